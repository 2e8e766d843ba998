"""The model that comes with the repository, and the program that makes it: weights/zh-small, examples/zh_small.py."""

import json
import re
from pathlib import Path

import pytest

from examples.zh_small import PACKED, PIECES, has_form, rhymes, share
from llama.generation import generate
from llama.pretrained import get_model
from llama.sampling import SamplingConfig

# Written for this test, so that no corpus holds it.
PROSE = ("早上八点，市里的小学开学了。孩子们背着书包走进校门，老师站在门口迎接他们。一年级的学生第一次坐进教室，"
         "有的高兴，有的紧张。校长说，今年学校新建了图书馆，欢迎大家去看书。\n")
TITLES = ("春日", "秋夜", "送友人", "山中", "江上", "月夜", "怀古", "咏梅", "登楼", "闻雁")


@pytest.fixture(scope="module")
def model():
    return get_model("zh-small")


def test_property_it_is_small_and_its_own_tokenizer_comes_with_it(model):
    assert PACKED.stat().st_size < 16_000_000 and 9e6 < sum(each.numel() for each in model.parameters()) < 12e6
    assert model.config.vocab_size == model.tokenizer.vocab_size == PIECES
    assert model.tokenizer.decode(model.tokenizer.encode(PROSE)) == PROSE
    assert len(model.tokenizer.encode(PROSE)) < len(PROSE)


def test_property_it_writes_chinese_from_the_command_line(program, tmp_path):
    said = program("generate.py", "--model", "zh-small", "--prompt", "春风", "--max-new-tokens", "32", "--seed", "1",
                   cwd=tmp_path).stdout
    assert len(re.findall(r"[\u3400-\u9fff]", said)) > 12 and "\ufffd" not in said


def test_property_it_has_read_chinese(program, tmp_path):
    """A model that knows nothing needs log2(8000) = 13 bits a piece, over 8 a character of this."""
    (tmp_path / "prose.txt").write_text(PROSE, encoding="utf-8")
    scores = json.loads(program("-m", "llama.evaluate", "--task", "generation", "--model", "zh-small", "--data",
                                "prose.txt", "--json", cwd=tmp_path).stdout)
    assert scores["bits_per_character"] < 7


def test_property_its_quatrains_have_four_lines_of_seven(model):
    ids = [model.tokenizer.encode(f"七言绝句《{title}》\n", bos=True) for title in TITLES]
    written = generate(model, ids, tokenizer=model.tokenizer, max_new_tokens=50, seed=0,
                       sampling=SamplingConfig(temperature=0.7, top_p=0.9))
    bodies = [each.text.partition("\n\n")[0] for each in written]
    assert share(has_form, bodies) >= 0.8, bodies


def test_property_it_learns_as_any_other(program, tmp_path):
    """From eight bits to weights that learn, and back to a folder."""
    records = [{"text": text, "label": label} for text, label in (("很好", "praise"), ("太差", "complaint")) * 4]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in records),
                                           encoding="utf-8")
    done = program("finetune.py", "--model", "zh-small", "--task", "sentiment", "--data", "labels.jsonl", "--max-steps",
                   "8", "--lr", "1e-3", "--word-dropout", "0", "--output", "tuned", "--json", cwd=tmp_path)
    assert json.loads(done.stdout.splitlines()[-1])["train"]["loss"] < 0.4
    said = program("-m", "llama.predict", "--model", "tuned", "--json", "很好", "太差", cwd=tmp_path).stdout
    assert [json.loads(line)["predicted"] for line in said.splitlines()] == ["praise", "complaint"]


def test_worked_examples_of_the_form_of_a_quatrain():
    right = "孙吴纪德旧刊碑，草没蟠螭与伏龟。\n惆怅冈头三段石，至今犹似鼎分时。"
    assert has_form(right) and has_form(right.replace("\n", ""))
    assert not has_form(right[:-2] + "。") and not has_form(right + "\n" + right) and not has_form("")


def test_worked_examples_of_rhymes():
    pytest.importorskip("pypinyin", reason="rhymes are told by pypinyin, an extra")
    lines = "一二三四五六{}，一二三四五六{}。一二三四五六{}，一二三四五六{}。"
    assert rhymes(lines.format("天", "光", "地", "香"))   # uang and iang: what glides is aside
    assert rhymes(lines.format("天", "回", "地", "水"))
    assert not rhymes(lines.format("天", "光", "地", "人")) and not rhymes("一句，两句。")


def test_property_the_card_is_there_and_says_whose_texts_these_are():
    card = (Path(PACKED).parent / "README.md").read_text(encoding="utf-8")
    for word in ("classical-modern", "peoples-daily", "reviews", "three-kingdoms", "poems", "MIT", "Apache-2.0"):
        assert word in card
