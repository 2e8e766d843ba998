"""Texts that were perturbed, and the table of which methods helped: tests/ablation."""

import json
import os
import random
import sys

import pytest

from llama.datasets.tags import spans_of, tags_of
from tests.ablation import __main__ as ablation
from tests.ablation import sets
from tests.ablation.forked import forked
from tests.ablation.perturb import HOMOPHONES, KINDS, SAID_ALIKE, perturbed

TEXT = "这本书的内容很好，房间也很干净，服务员的态度让人感到温暖，下次还会再来住。"


def test_worked_example_each_kind():
    typed = {kind: perturbed(TEXT, kind)[0] for kind in KINDS}
    differing = sum(a != b for a, b in zip(TEXT, typed["homophones"], strict=True))
    assert differing == 3                                           # a tenth of 34 Chinese characters
    assert all(a == b or b in SAID_ALIKE[a] for a, b in zip(TEXT, typed["homophones"], strict=True))
    assert len(typed["deletions"]) == len(TEXT) - 3
    assert len(typed["typos"]) == len(TEXT) and 1 <= sum(a != b for a, b in zip(TEXT, typed["typos"], strict=True)) <= 6
    assert set(typed["typos"]) <= set(TEXT)


@pytest.mark.parametrize("kind", KINDS)
def test_property_spans_move_along_with_their_characters(kind):
    """Whatever is changed, a span holds what its characters became: none empty, in order, of the same types."""
    drawn = random.Random(0)
    for number in range(60):
        text = "".join(drawn.choice("的是在有人这中大来上国") for _ in range(drawn.randint(6, 30)))
        cuts = sorted(drawn.sample(range(len(text) + 1), 4))
        spans = [(cuts[0], cuts[1], "PER"), (cuts[2], cuts[3], "LOC")]
        said, moved = perturbed(text, kind, share=0.5, seed=number, spans=spans)
        assert [each[2] for each in moved] == ["PER", "LOC"]
        assert all(begin < end for begin, end, _ in moved)
        assert spans_of(tags_of(moved, len(said))) == moved
        outside = said[: moved[0][0]] + said[moved[0][1] : moved[1][0]] + said[moved[1][1] :]
        before = text[: cuts[0]] + text[cuts[1] : cuts[2]] + text[cuts[3] :]
        assert len(outside) == len(before) or kind == "deletions" and len(outside) <= len(before)
        if kind == "homophones":
            assert moved == spans


def test_worked_example_a_deletion_before_a_span_moves_it():
    text, spans = "张三说李四在家", [(0, 2, "PER"), (3, 5, "PER")]
    said, moved = perturbed(text, "deletions", share=0.4, seed=3, spans=spans)
    assert [text[b:e] for b, e, _ in spans] == ["张三", "李四"] and len(said) == 4
    for (begin, end, _), name in zip(moved, ("张三", "李四"), strict=True):
        assert said[begin:end] and set(said[begin:end]) <= set(name)


def test_property_a_text_is_perturbed_alike_wherever_it_stands():
    assert perturbed(TEXT, "typos", seed=1) == perturbed(TEXT, "typos", seed=1)
    assert perturbed(TEXT, "typos", seed=1) != perturbed(TEXT, "typos", seed=2)
    assert perturbed("no Chinese here", "deletions")[0] == "no Chinese here"
    assert perturbed("好", "deletions")[0] == "好"                   # nothing would be left


def test_property_every_character_is_in_one_group():
    characters = HOMOPHONES.replace("\n", "").replace(" ", "")
    assert len(characters) == len(set(characters)) == len(SAID_ALIKE) > 400


def test_refusal_of_another_kind():
    with pytest.raises(ValueError, match="the kind is 'noise'; it must be one of typos"):
        perturbed(TEXT, "noise")


def test_worked_example_nothing_is_better_within_the_spread():
    plain = [0.70, 0.72, 0.74]
    assert ablation.marked([0.75, 0.76, 0.77], plain, lower=False).endswith("▲")
    assert ablation.marked([0.73, 0.80, 0.90], plain, lower=False) == "0.810 ± 0.085"
    assert ablation.marked([0.60, 0.61, 0.62], plain, lower=False).endswith("▼")
    assert ablation.marked([0.60, 0.61, 0.62], plain, lower=True).endswith("▲")
    assert ablation.marked([0.90], plain, lower=False) == "0.900" == ablation.marked([0.9], [], lower=False)


def test_property_an_interrupted_ablation_goes_on(tmp_path, monkeypatch, capsys):
    """What is there is not run again; one more method is told by its flags; what fails is said, and the code tells."""
    ran = []

    def tuned(command):
        ran.append(command)
        if "nan" in command:
            raise RuntimeError("no luck")
        return {"seconds": 60.0, "peak_memory": 5e8}, None

    monkeypatch.setattr(ablation, "tuned", tuned)
    monkeypatch.setattr(ablation, "base", lambda dtype: None)
    monkeypatch.setattr(ablation, "forked", lambda work, log: work() | {"cpu": 65.0})
    monkeypatch.setattr(ablation, "scored", lambda *a: dict.fromkeys(sets.TESTS, 0.5 + len(ran) / 100))
    monkeypatch.setattr(ablation, "files_of", lambda *a: {"train": tmp_path / "t"})
    monkeypatch.setattr(ablation, "share_of", lambda *a, **b: (tmp_path / "part", 138))
    argv = ["x", "--sets", "sentiment", "--shares", "0.01", "--seeds", "2", "--output", str(tmp_path / "r.json"),
            "--method", "mine=--lr 'nan'", "--methods", "plain", "LoRA on int4", "mine"]
    for times in (6, 8):
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit) as left:
            ablation.main()
        assert left.value.code == 1 and len(ran) == times and "left out: no luck" in capsys.readouterr().err
    plain, lora = ran[:2]
    assert plain[plain.index("--max-steps") + 1] == "40" and "--lora" not in plain and "/model" in " ".join(plain)
    assert lora[lora.index("--quantize") + 1] == "int4" and "/adapter" in " ".join(lora)
    monkeypatch.setattr("sys.argv", [*argv, "--table"])
    with pytest.raises(SystemExit):
        ablation.main()
    out = capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*argv, "--table", "--max-steps", "7"])  # runs of another budget: another table
    with pytest.raises(SystemExit):
        ablation.main()
    assert not capsys.readouterr().out.strip()
    assert len(ran) == 8 and "**sentiment, 1%**: 138 examples, 40 steps; accuracy" in out
    assert "| LoRA on int4 |" in out and "| plain " in out and "0.525 ± 0.021" in out and "mine" not in out


def test_property_test_sets_are_the_same_texts_perturbed_and_shares_are_drawn_by_the_seed(tmp_path, monkeypatch):
    tagged = [{"tokens": list(f"第{n}天张三说李四在北京的家"), "tags": ["O"] * (2 + len(str(n))) + tags_of(
        [(0, 2, "PER"), (3, 5, "PER"), (6, 8, "LOC")], 10)} for n in range(30)]
    monkeypatch.setitem(sets._READERS, "entities", lambda samples: (tagged, tagged[:10]))
    files = sets.files_of("entities", tmp_path, tmp_path, 8)
    clean, deleted = (sets._pieces(files[test]) for test in ("clean", "deletions"))
    assert len(clean) == len(deleted) == 8 and len(sets._pieces(files["train"])) == 30
    for one, other in zip(clean, deleted, strict=True):
        assert one.count("B-") == other.count("B-") == 3 and one.count("\n") > other.count("\n")
    drawn = {seed: sets.share_of("entities", files["train"], 0.2, seed, tmp_path)[0].read_text("utf-8")
             for seed in (0, 1)}
    assert drawn[0] != drawn[1]
    path, count = sets.share_of("entities", files["train"], 0.2, 0, tmp_path)
    assert count == 6 and path.read_text("utf-8") == drawn[0]
    (files["clean"]).write_text("kept", encoding="utf-8")
    assert sets.files_of("entities", tmp_path, tmp_path, 8)["clean"].read_text("utf-8") == "kept"


def test_property_a_budget_leaves_out_long_texts_and_draws_the_share_from_the_whole(tmp_path, monkeypatch):
    reviews = [{"text": "好" * n, "label": "good"} for n in range(1, 41)]
    monkeypatch.setitem(sets._READERS, "sentiment", lambda samples: (reviews, reviews))
    files = sets.files_of("sentiment", tmp_path, tmp_path, 100, 30)
    assert len(sets._pieces(files["train"])) == len(sets._pieces(files["clean"])) == 30
    drawn = {seed: set(sets._pieces(sets.share_of("sentiment", files["train"], 0.5, seed, tmp_path, whole=20)[0]))
             for seed in range(8)}
    assert {len(each) for each in drawn.values()} == {10} and len(set().union(*drawn.values())) == 20
    assert sets.SETS["sentiment"].within(8).batch_size == 8 and sets.SETS["instructions"].within(8).batch_size == 4
    assert sets.SETS["sentiment"].within(0) == sets.SETS["sentiment"]


def test_property_a_copy_gives_what_the_work_gives(tmp_path):
    """However much; what the work does to its process ends with the copy, and what it breaks by is said."""
    left = []

    def work():
        left.append(1)
        print("it goes", file=sys.stderr)
        return {"long": "字" * 100_000, "cpu": -1}

    found = forked(work, tmp_path / "log")
    assert found["long"] == "字" * 100_000 and found["cpu"] >= 0 and not left
    assert (tmp_path / "log").read_text("utf-8") == "it goes\n"
    with pytest.raises(RuntimeError, match="ValueError: no luck"):
        forked(lambda: (_ for _ in ()).throw(ValueError("no luck")), tmp_path / "log")
    with pytest.raises(RuntimeError, match="it said nothing, and ended with -9"):
        forked(lambda: os.kill(os.getpid(), 9), tmp_path / "log")


def test_property_what_a_user_says_is_perturbed_and_no_answer(tmp_path, monkeypatch):
    example = {"messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT}]}
    monkeypatch.setitem(sets._READERS, "instructions", lambda samples: ([example] * 3, [example]))
    files = sets.files_of("instructions", tmp_path, tmp_path, 5)
    user, assistant = json.loads(files["typos"].read_text("utf-8"))["messages"]
    assert user["content"] != TEXT and assistant["content"] == TEXT


def test_refusal_of_what_is_no_method(monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "--methods", "magic"])
    with pytest.raises(ValueError, match="--methods magic: there are plain, "):
        ablation.main()
    monkeypatch.setattr("sys.argv", ["x", "--method", "mine"])
    with pytest.raises(ValueError, match="--method mine: write NAME=FLAGS"):
        ablation.main()


def test_property_the_door_knows_every_method_and_every_set(monkeypatch, tmp_path):
    import finetune
    for data in sets.SETS.values():
        for flags in ablation.METHODS.values():
            monkeypatch.setattr("sys.argv", ["x", "--data", str(tmp_path / "no"), *data.flags, *flags])
            with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)):
                finetune.main()
