"""Which runs there are, and their commands: llama/frontier/grid.py."""

import pytest

import finetune
import train
from llama.frontier import grid as grids
from llama.frontier.grid import Files, Grid, Start, Tuned, flags_of, key, runs_of, shuffle


def test_worked_example_the_runs_of_a_small_grid():
    grid = Grid(shapes=("tiny-1m", "zh-small"), tokens=(2000, 1024), shuffled=("0", "0.5"), methods=("full",), seeds=2)
    runs = list(runs_of(grid))
    starts = [run for run in runs if isinstance(run, Start)]
    assert len(starts) == 2 * 2 * 2 + 1 and len(runs) == 2 * len(starts) + 1
    assert starts[0].name == "tiny-1m, 1,024 tokens of peoples-daily, seed 0"
    assert starts[1].cell == "tiny-1m, 1,024 tokens of peoples-daily, 50% shuffled"
    assert [run.name for run in runs if run.seed and isinstance(run, Tuned)][-1] == "zh-small: full, seed 1"
    assert len({key(grid, run) for run in runs}) == len(runs) == len({run.name for run in runs})
    assert len({run.folder for run in starts}) == len(starts)


def test_property_a_start_comes_before_what_is_tuned_from_it_and_one_seed_before_the_next():
    runs = list(runs_of(Grid()))
    for number, run in enumerate(runs):
        assert not isinstance(run, Tuned) or run.start in runs[:number]
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


def test_property_other_settings_are_other_runs():
    run = Tuned(Start("tiny-1m", "peoples-daily", "0", 1024, 0), "full", 0)
    keys = {key(grid, run) for grid in (Grid(), Grid(vocab_size=300), Grid(tune_steps=1), Grid(examples=10))}
    assert len(keys) == 4 and key(Grid(tune_steps=1), run.start) == key(Grid(), run.start)


@pytest.mark.parametrize(("method", "flags"), [
    ("full", "--lr 1e-3"), ("freeze-2", "--lr 1e-3 --freeze-layers 2"), ("lora-8", "--lr 3e-3 --lora --rank 8"),
    ("dora-4-int8", "--lr 3e-3 --lora --rank 4 --dora --quantize int8")])
def test_worked_example_methods(method, flags):
    assert " ".join(flags_of(method)) == flags


@pytest.mark.parametrize(("wrong", "words"), [
    ({"methods": ("lora",)}, "--methods lora: it must be"), ({"methods": ("full-int8",)}, "--methods full-int8"),
    ({"shuffled": ("2",)}, "--shuffled 2: give shares"), ({"shuffled": ("x",)}, "--shuffled x"),
    ({"tokens": ()}, "each need one value"), ({"tokens": (10,)}, "tokens")])
def test_refusal_of_what_is_no_grid(wrong, words):
    with pytest.raises(ValueError, match=words):
        Grid(**wrong)


def test_property_the_doors_know_every_flag(tmp_path, monkeypatch, capsys):
    """Commands are parsed by the doors themselves, as far as the first file, which is not there."""
    grid = Grid(methods=("full", "freeze-2", "lora-8", "dora-8", "lora-8-int4"))
    files = Files.__new__(Files)
    files.grid, files.folder = grid, tmp_path
    files.beginning = lambda start: tmp_path / "nothing.txt"
    files.held_out, files.vocabulary, files.learned, files.tested = (tmp_path / name for name in "hvlt")
    start = Start("tiny-1m", "peoples-daily", "0", 100_000, 3)
    commands = [(train, grids.train_command(grid, start, files))]
    commands += [(finetune, grids.tune_command(grid, "zh-small", Tuned(start, method, 0), files))
                 for method in grid.methods]
    for door, command in commands:
        monkeypatch.setattr("sys.argv", command)
        with pytest.raises((FileNotFoundError, ValueError), match=str(tmp_path)):
            door.main()


def test_property_texts_are_made_alike_and_once(tmp_path, monkeypatch):
    text = tmp_path / "news.txt"
    articles = [f"这是第{n}篇文章，讲的是天气和{chr(0x4E00 + n)}。" for n in range(40)]
    text.write_text("\n\n".join(articles), encoding="utf-8")
    records = tmp_path / "r.jsonl"
    records.write_text('{"text": "好", "label": "p"}\n{"text": "坏", "label": "n"}\n' * 10, encoding="utf-8")
    monkeypatch.setattr(grids, "run", lambda *a: None)              # the vocabulary
    grid = Grid(texts=(str(text),), shuffled=("0", "0.5"), examples=8)
    made = [Files(grid, tmp_path / name, [str(records)] * 2) for name in ("one", "two")]
    for name in ("news.txt", "news-0.5-shuffled.txt", "held-out.txt", "train-sentiment.jsonl", "test-sentiment.jsonl"):
        one, two = ((tmp_path / work / name).read_text(encoding="utf-8") for work in ("one", "two"))
        assert one == two
    clean, worse = (made[0].text(str(text), share).read_text(encoding="utf-8") for share in ("0", "0.5"))
    pairs = list(zip(clean.split("\n\n"), worse.split("\n\n"), strict=True))
    assert len(pairs) == 38 and sum(a != b for a, b in pairs) == 19
    assert all(sorted(a.strip()) == sorted(b.strip()) for a, b in pairs)
    assert "第39篇" in made[0].held_out.read_text(encoding="utf-8") and "第39篇" not in clean
    assert len(made[0].learned.read_text(encoding="utf-8").splitlines()) == 8
    (tmp_path / "one" / "news.txt").write_text("kept", encoding="utf-8")
    assert Files(grid, tmp_path / "one", [str(records)] * 2).text(str(text), "0").read_text(encoding="utf-8") == "kept"


def test_property_a_start_reads_whole_documents_from_the_beginning_and_no_more_than_it_can(tmp_path):
    files = Files.__new__(Files)
    files.folder = tmp_path
    documents = [f"第{n}篇。" * 300 for n in range(40)]
    (tmp_path / "news.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    paths = [files.beginning(Start("tiny-1m", "news.txt", "0", tokens)) for tokens in (1024, 3000, 10**6)]
    read = [path.read_text(encoding="utf-8").strip("\n").split("\n\n") for path in paths]
    assert len(set(paths)) == 3 and len(read[0]) == 6 and len(read[0]) < len(read[1]) < 40
    assert all(part == documents[: len(part)] for part in read) and read[2] == documents
    (tmp_path / "one.txt").write_text("长" * 99_999, encoding="utf-8")
    assert files.beginning(Start("tiny-1m", "one.txt", "0", 1024)).read_text(encoding="utf-8") == "长" * 8192


def test_property_no_share_and_the_whole():
    texts = ["一二三四五六七八九十" * 3] * 3
    assert shuffle(texts, 0.0) == texts
    assert all(a != b and sorted(a) == sorted(b) for a, b in zip(texts, shuffle(texts, 1.0), strict=True))


def test_refusal_of_a_corpus_that_nobody_knows(tmp_path):
    with pytest.raises(ValueError, match="--texts nowhere: this is no corpus"):
        Files(Grid(texts=("nowhere",)), tmp_path, ["a", "b"])
