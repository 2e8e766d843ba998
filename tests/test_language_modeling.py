import pytest

from llama.datasets.language_modeling import LanguageModelingDataset, hold_out

TEXT = "One line,\nand another.\n\n \n四行诗\n\n\n\nlast\n"


def _file(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


def test_worked_example_documents_between_blank_lines(tmp_path):
    path = _file(tmp_path, "a.txt", TEXT)
    dataset = LanguageModelingDataset(path)
    assert list(dataset) == [{"text": "One line,\nand another.", "place": f"{path}:1"},
                             {"text": "四行诗", "place": f"{path}:5"}, {"text": "last", "place": f"{path}:9"}]
    assert len(dataset) == 3 and dataset[-1] == dataset[2]


def test_worked_example_records_with_text(tmp_path):
    path = _file(tmp_path, "a.jsonl", '{"text": "one\\n\\ntwo", "id": 7}\n\n{"text": " "}\n{"text": "三"}')
    assert list(LanguageModelingDataset(path)) == [{"text": "one\n\ntwo", "place": f"{path}:1"},
                                                   {"text": "三", "place": f"{path}:4"}]


def test_property_documents_cover_every_line_that_is_not_blank(tmp_path):
    path = _file(tmp_path, "a.TXT", TEXT)
    lines = [line for line in TEXT.split("\n") if line.strip()]
    assert [example["text"] for example in LanguageModelingDataset(path, documents="line")] == lines
    assert "\n".join(example["text"] for example in LanguageModelingDataset(path)).split("\n") == lines


def test_two_ways_two_files_are_one_after_the_other(tmp_path):
    a, b = _file(tmp_path, "a.txt", TEXT), _file(tmp_path, "b.jsonl", '{"text": "b"}')
    assert list(LanguageModelingDataset(a, str(b))) == [*LanguageModelingDataset(a), *LanguageModelingDataset(b)]


def test_two_ways_line_ends_of_windows_change_nothing(tmp_path):
    a, b = _file(tmp_path, "a.txt", TEXT), _file(tmp_path, "b.txt", "\ufeff" + TEXT.replace("\n", "\r\n"))
    texts = [[example["text"] for example in LanguageModelingDataset(path)] for path in (a, b)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.txt", "", "a.txt: the file is empty"),
    ("a.txt", "\n \n", "a.txt: the file holds no text, only blanks"),
    ("a.jsonl", '{"text": ""}', "a.jsonl: the file holds no text, only blanks"),
    ("a.jsonl", '{"text": "a"}\n{"content": "b"}', "a.jsonl:2: the field 'text' is missing; the record has content"),
    ("a.jsonl", "plain words", "a.jsonl:1: this is not JSON"),
    ("a.pdf", "text", "a.pdf: text is read from .txt and .jsonl files"),
])
def test_refusal_of_files_without_text(tmp_path, name, content, words):
    with pytest.raises(ValueError, match=words):
        LanguageModelingDataset(_file(tmp_path, name, content))


def test_refusal_of_options_that_make_no_blocks(tmp_path):
    path = _file(tmp_path, "a.txt", TEXT)
    with pytest.raises(ValueError, match="no files given"):
        LanguageModelingDataset()
    with pytest.raises(ValueError, match="documents is 'page'; .* one of blank-line, line"):
        LanguageModelingDataset(path, documents="page")
    with pytest.raises(ValueError, match="block_size is 0"):
        LanguageModelingDataset(path, block_size=0)
    with pytest.raises(ValueError, match="overlap is 8; it must be 0 .* below the block_size of 8"):
        LanguageModelingDataset(path, block_size=8, overlap=8)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        LanguageModelingDataset(tmp_path / "b.txt")


def test_worked_example_texts_of_a_list():
    data = LanguageModelingDataset(["one", "  ", "two"])
    assert [example["text"] for example in data] == ["one", "two"]
    assert data[1]["place"] == "text 2"
    with pytest.raises(ValueError, match="none of the 1 texts"):
        LanguageModelingDataset([" "])


@pytest.mark.parametrize(("documents", "share", "learned", "held"), [
    (["a", "b", "c", "d"], 0.25, ["a", "b", "c"], ["d"]),
    (["a", "b"], 0.0, ["a", "b"], []),
    (["one two three four"], 0.3, ["one two "], ["three four"]),   # the last blank before
    (["one\ntwo three four"], 0.3, ["one\ntwo "], ["three four"]),
    (["天气" * 10], 0.2, ["天气" * 8], ["天气" * 2]),
    (["one two three four", "five"], 0.1, ["one two three four", "fi"], ["ve"]),
    (["one two three four", "e"], 0.1, ["one two three four"], ["e"]),
])
def test_worked_example_what_is_held_out(documents, share, learned, held):
    assert hold_out(documents, share) == (learned, held)
    assert "".join(learned + held) == "".join(documents)


def test_refusal_to_hold_out_all_or_nothing():
    for documents, share, words in ((["a", "b"], 0.9, "learn from"), (["a"], 0.5, "learn from"),
                                    (["ab  "], 0.5, "evaluate on")):
        with pytest.raises(ValueError, match=f"--hold-out {share}: of {len(documents)} doc.* nothing to {words}"):
            hold_out(documents, share)
