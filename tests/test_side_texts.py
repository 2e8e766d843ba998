"""--mix, --watch and --guard as one gives them."""

import argparse

import pytest

from llama.commands.side_texts import add_side_texts, check_task, mixed, watched
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.tasks.generation import TextGenerationTask
from llama.tasks.tagging import NERTask


@pytest.fixture
def parse(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt", "x=1.txt"):
        (tmp_path / name).write_text(f"This is {name}.", encoding="utf-8")
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_side_texts(parser)
    return lambda *flags: parser.parse_args(flags)


def test_worked_example_names_and_guards(parse):
    arguments = parse("--watch", "english=a.txt", "x=1.txt", "--guard", "english=1.05", "b.txt=1.5")
    found = {text.name: (text.dataset[0]["text"], text.guard) for text in watched(arguments, block_size=8)}
    assert found == {"english": ("This is a.txt.", 1.05), "x=1.txt": ("This is x=1.txt.", 0.0),
                     "b.txt": ("This is b.txt.", 1.5)}
    assert watched(parse(), block_size=8) == [] and mixed(parse(), LanguageModelingDataset) == {}


def test_worked_example_a_share(parse):
    found = mixed(parse("--mix", "a.txt=0.1", "x=1.txt=0.25"), lambda files: LanguageModelingDataset(*files))
    assert {name: (dataset[0]["text"], share) for name, (dataset, share) in found.items()} == {
        "a.txt": ("This is a.txt.", 0.1), "x=1.txt": ("This is x=1.txt.", 0.25)}


@pytest.mark.parametrize("flags, words", [
    (("--mix", "a.txt"), "must be FILE=NUMBER, the number from 1e-06 to"),
    (("--mix", "b.txt=0.1", "a.txt=1.5"), "of 'a.txt=1.5', it is '1.5'"),
    (("--guard", "a.txt=0.9"), "it is '0.9', and must be from 1 to"), (("--guard", "=2"), "must be FILE=NUMBER")])
def test_refusal_of_what_is_no_number(parse, flags, words):
    with pytest.raises(argparse.ArgumentError, match=words):
        parse(*flags)


@pytest.mark.parametrize("flags, words", [(("--watch", "a.txt"), "--watch: a model with a head of labels writes no"),
                                          (("--guard", "a.txt=2"), "--guard: a model with a head of labels writes no")])
def test_refusal_of_texts_where_none_is_written(parse, flags, words):
    arguments = parse(*flags)
    check_task(arguments, TextGenerationTask())
    with pytest.raises(ValueError, match=words):
        check_task(arguments, NERTask())


def test_refusal_of_equal_names_missing_files_and_shares_of_everything(parse):
    with pytest.raises(ValueError, match="two texts have one name"):
        watched(parse("--watch", "a=a.txt", "a=b.txt"))
    with pytest.raises(ValueError, match="--mix names a file twice"):
        mixed(parse("--mix", "a.txt=0.1", "a.txt=0.2"), lambda files: LanguageModelingDataset(*files))
    with pytest.raises(ValueError, match="--mix gives 1.1 of all tokens to other texts"):
        mixed(parse("--mix", "nowhere.txt=0.6", "b.txt=0.5"), lambda files: LanguageModelingDataset(*files))
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        watched(parse("--guard", "nowhere.txt=1.1"))


def test_refusal_of_guards_of_which_one_would_be_forgotten(parse, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.txt").write_text("More.", encoding="utf-8")
    assert [text.guard for text in watched(parse("--watch", "more/a.txt", "--guard", "more/a.txt=1.1"))] == [1.1]
    for flags, words in ((("--guard", "a.txt=1.1", "more/a.txt=1.2"), "a.txt is called 'a.txt' as well; give each its"),
                         (("--watch", "a.txt", "--guard", "more/a.txt=1.2"), "a.txt is called 'a.txt' as well"),
                         (("--guard", "a.txt=1.1", "a.txt=1.5"), "'a.txt' is guarded already, by 1.1; guard it once"),
                         (("--watch", "x=a.txt", "--guard", "x=1.1", "x=1.5"), "'x' is guarded already"),
                         (("--watch", "en=a.txt", "--guard", "fr=1.1"), r"no watched text is called so \(en\), and")):
        with pytest.raises(ValueError, match=words):
            watched(parse(*flags))
