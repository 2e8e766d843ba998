import io
import json
import tarfile
from collections import Counter

import pytest

from llama.datasets.columns import ColumnDataset
from llama.datasets.records import RecordDataset
from llama.datasets.split import shingles
from weights import corpora

PARTS = ("train", "dev", "test")


def _tagged(paragraphs):
    return "\n".join("  ".join(f"{character}/n" for character in text) for text in paragraphs) + "\n"


def _paper(tmp_path, paragraphs):
    path = tmp_path / "199801.txt"
    path.write_text(_tagged(paragraphs), encoding="utf-8")
    corpora.peoples_daily(path, tmp_path)
    return {name: ColumnDataset(tmp_path / f"{name}.txt") for name in PARTS}


def _story(i):
    """A headline, a dateline, a paragraph; words that no other story has."""
    word = "".join(chr(0x4E00 + 97 * i + 13 * k) for k in range(12))
    return [f"{word[:6]}", f"本报北京电记者{word}。", f"{word[::-1]}。"]


def test_worked_example_plain_text_of_the_newspaper(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("标题/n  一/m  （/w  图/n  ）/w\n副题/n\n第一/m  段/q  。/w\n（/w  记者/n  摄/v  ）/w\n\n"
                    "１/２/m  段/q  。/w\n新/a  标题/n\n她/r  说/v  ：/w\n“/w  好/a  。/w  ”/w\n" +
                    _tagged(sum((_story(i) for i in range(30)), [])), encoding="utf-8")
    corpora.peoples_daily(path, tmp_path)
    text = (tmp_path / "text.txt").read_text(encoding="utf-8")
    assert text.startswith("标题一（图）\n副题\n第一段。\n（记者摄）\n１/２段。\n\n"
                           "新标题\n她说：\n“好。”\n\n" + _story(0)[0])
    assert text.count("\n\n") == 31


def test_property_no_article_and_no_long_paragraph_is_on_two_sides(tmp_path, capsys):
    repeated = "这是在两篇文章中都出现的一个长段落。"
    stories = [_story(i) + ["（图片）"] + [repeated] * (i in (3, 30)) for i in range(60)]
    parts = _paper(tmp_path, sum(stories, []))
    texts = {name: [example["text"] for example in part] for name, part in parts.items()}
    assert sum(texts.values(), []).count("（图片）") == 60
    for story in stories:
        assert sum(story[1] in part for part in texts.values()) == 1
        assert [len(set(story[:3]) & set(part)) in (0, 3) for part in texts.values()] == [True] * 3
    assert [repeated in part for part in texts.values()].count(True) == 1
    assert len({example["document"] for example in parts["train"]}) >= 50
    assert "60 articles in 60 pieces" in capsys.readouterr().err


def test_worked_example_an_article_with_headings_stays_whole(tmp_path, capsys):
    whole = [*_story(99), "小标题", "这一节没有电头，所以属于上文。", "另一个标题", "这一节也没有，同样属于它。"]
    parts = _paper(tmp_path, whole + sum((_story(i) for i in range(40)), []))
    inside = [set(whole) <= {example["text"] for example in part} for part in parts.values()]
    assert inside.count(True) == 1 and "43 articles in 41 pieces" in capsys.readouterr().err


def test_worked_example_reviews_that_stand_twice_or_on_both_sides(tmp_path, capsys):
    kinds = {"pos": 0, "neg": 700}
    for name, shift in kinds.items():
        lines = ["".join(chr(0x4E00 + shift + 31 * i + k) for k in range(20)) for i in range(20)]
        lines += [lines[0] + "！", "都有的评论，两边都写了", ""]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    corpora.reviews(tmp_path / "pos.txt", tmp_path)
    parts = [RecordDataset(tmp_path / f"{name}.jsonl") for name in PARTS]
    assert [len(part) for part in parts] == [32, 4, 4]
    kept = [example["text"] for part in parts for example in part]
    assert len({shingles(text) for text in kept}) == 40 and not any("都有" in text for text in kept)
    assert "44 read; 2 near-duplicates left out, and 2 that contradict one another; 40 kept" in capsys.readouterr().err


def _poem(i, lines, length):
    signs = "".join(chr(0x4E00 + (211 * i + 17 * k) % 20000) for k in range(lines * length))
    return ["，".join(signs[k * length : (k + 1) * length] for k in (j, j + 1)) + "。" for j in range(0, lines, 2)]


def test_worked_example_poems_by_poet_and_by_form(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "POETS", 2)
    monkeypatch.setattr(corpora, "POEMS", 30)
    shapes = list(corpora.FORMS)
    with tarfile.open(tmp_path / "p.tgz", "w:gz") as archive:
        for d, dynasty in enumerate(("tang", "song")):
            poems = [{"author": f"{dynasty}{i % 3 if i % 7 else 0}", "title": f"其 {i}",
                      "paragraphs": _poem(500 * d + i, *shapes[i % 4])}
                     for i in range(200)] + [{"author": "不詳", "title": "句", "paragraphs": ["□□，□□。"]}] * 300
            for name, some in ((f"quantangshi/poet.{dynasty}.0.json", poems), (f"rank/poet.{dynasty}.0.json", poems)):
                content = json.dumps(some).encode()
                info = tarfile.TarInfo(f"package/dist/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    corpora.poems(tmp_path / "p.tgz", tmp_path)
    poets, forms = ([example for name in PARTS for example in RecordDataset(tmp_path / folder / f"{name}.jsonl")]
                    for folder in ("authors", "forms"))
    assert set(Counter(example["label"] for example in poets).values()) == {30} and len(poets) == 120
    assert "tang0" in {example["label"] for example in poets}
    assert Counter(example["label"] for example in forms) == dict.fromkeys(corpora.FORMS.values(), 100)
    for example in forms:
        lines = example["text"].replace("。", "，").split("，")[:-1]
        assert corpora.FORMS[len(lines), len(lines[0])] == example["label"]
    texts = {name: (tmp_path / f"{name}.txt").read_text(encoding="utf-8").strip().split("\n\n") for name in PARTS}
    assert texts["train"][0] == "\n".join(("五言绝句《其0》tang0", *_poem(0, 4, 5)))
    judged = {example["text"] for folder in ("authors", "forms") for name in PARTS[1:]
              for example in RecordDataset(tmp_path / folder / f"{name}.jsonl")}
    learned = {"".join(text.split("\n")[1:]) for text in texts["train"]}
    assert len(learned) > 200 and texts["dev"] != [""] and not learned & judged


@pytest.mark.parametrize("text", ["本报北京电记者某：", "新华社北京电", "据新华社拉萨电", "上海２日讯记者某报道"])
def test_worked_example_certain_beginnings(text):
    assert corpora._certain(["标题", "副题", text + "。"]) and not corpora._certain(["标题", "某日，" + text + "。"])


def test_property_of_a_held_out_passage_no_sentence_is_learned(tmp_path):
    """Passages stay whole and in order, each pair comes once, and what another book quotes goes with the passage."""
    def sentence(i):
        return f"{chr(0x4E00 + i)}曰。", f"{chr(0x4E00 + i)}说。"

    lines = [f"书\t{old}\t{new}" for old, new in map(sentence, range(12_000))]
    lines += [f"引\t{old}\t他书{i}。" for i in range(12_000) for old, _ in [sentence(i)]]
    (tmp_path / "a.tsv").write_text("\n".join(lines + lines[:5]) + "\n", encoding="utf-8")
    corpora.classical_modern(tmp_path / "a.tsv", tmp_path / "made")
    pairs = {name: [tuple(line.split("\t")) for line in (tmp_path / "made" / f"{name}.tsv").read_text(
        encoding="utf-8").splitlines()[1:]] for name in PARTS}
    sides = {name: {side for pair in part for side in pair} for name, part in pairs.items()}
    assert not sides["train"] & (sides["dev"] | sides["test"])
    assert 0 < len(pairs["dev"]) < 480 and 0 < len(pairs["test"]) < 480 and len(pairs["dev"]) % corpora.PASSAGE == 0
    assert len(pairs["train"]) == len(set(pairs["train"])) > 23_000
    passage = (tmp_path / "made" / "modern" / "dev.txt").read_text(encoding="utf-8").split("\n\n")[0]
    assert passage == "".join(new for _, new in pairs["dev"][: corpora.PASSAGE])
