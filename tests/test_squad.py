import json

import pytest

from llama.datasets.squad import SquadDataset

CONTEXT = "鱼分布于海域，俗名鱼。体长二尺。"


def _file(tmp_path, content, name="a.json"):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def _squad(*questions, context=CONTEXT):
    return {"version": "v2.0", "data": [{"title": "鱼", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def _question(text="海域", start=4, name="q1", **more):
    return {"id": name, "question": "在哪？", "answers": [{"text": text, "answer_start": start}]} | more


def test_worked_example_of_each_form(tmp_path, caplog):
    path = _file(tmp_path, _squad(_question(), _question(name="q2", answers=[], is_impossible=True,
                                                         plausible_answers=[{"text": "鱼", "answer_start": 0}])))
    expected = {"id": "q1", "question": "在哪？", "context": CONTEXT, "title": "鱼",
                "answers": [{"text": "海域", "start": 4}], "place": f"{path}: q1"}
    assert list(SquadDataset(path)) == [expected, expected | {"id": "q2", "answers": [], "place": f"{path}: q2"}]
    original = _file(tmp_path, [{"context_id": "c", "context_text": CONTEXT, "title": "鱼", "qas": [
        {"query_id": "q1", "query_text": "在哪？", "answers": ["海域", "海域"]}]}], "b.json")
    assert SquadDataset(original)[0] == expected | {"answers": [{"text": "海域", "start": 4}] * 2,
                                                    "place": f"{original}: q1"}
    assert not caplog.records


def test_two_ways_flat_records_and_articles_say_the_same(tmp_path, caplog):
    """As Hugging Face writes them, a list, one a line, or in a document; ids may be numbers."""
    nested = SquadDataset(_file(tmp_path, _squad(_question(name=1), _question(name=2, answers=[]))))
    assert "questions with an empty list of answers, whose text is taken to hold none: 1 (first in 2)" in caplog.text
    flat = [{"id": number, "title": "鱼", "context": CONTEXT, "question": "在哪？", "answers": answers}
            for number, answers in enumerate(
                ({"text": ["海域"], "answer_start": [4]}, {"text": [], "answer_start": []}), start=1)]
    one = flat[0] | {"answers": {"text": "海域", "answer_start": 4}}
    for name, content in (("b.json", flat), ("c.json", {"data": [one, flat[1]]}),
                          ("d.jsonl", "\n".join(json.dumps(each) for each in flat)),
                          ("e.jsonl", "\n".join(json.dumps(each, indent=1) for each in flat))):
        found = SquadDataset(_file(tmp_path, content, name))
        assert [{**each, "place": ""} for each in found] == [{**each, "place": ""} for each in nested]
    assert [each["id"] for each in nested] == ["1", "2"] and [each["answers"] for each in nested][1] == []
    assert found[1]["place"].endswith("e.jsonl:15")


def test_worked_example_a_question_that_contradicts_itself(tmp_path, caplog):
    dataset = SquadDataset(_file(tmp_path, _squad(_question(is_impossible=True))))
    assert dataset[0]["answers"] == []
    assert "questions with answers that say is_impossible, which was taken" in caplog.text


def test_worked_example_an_answer_beside_its_place_is_moved_to_the_nearest(tmp_path, caplog):
    for start, found in ((1, 0), (7, 9), (4, 0), (5, 9), (99, 9), (-3, 0)):
        path = _file(tmp_path, _squad(_question("鱼", start)))
        assert SquadDataset(path)[0]["answers"] == [{"text": "鱼", "start": found}]
    assert caplog.messages[0] == (f"{path}: answers that stood beside their answer_start, now at the nearest place: 1 "
                                  "(first in q1)")


def test_property_every_answer_stands_where_it_says(tmp_path):
    questions = [_question(CONTEXT[begin:end], start, f"q{begin}-{end}-{start}") for begin in range(0, 16, 3)
                 for end in range(begin + 1, 17, 4) for start in range(-1, 18, 2)]
    for example in SquadDataset(_file(tmp_path, _squad(*questions))):
        for answer in example["answers"]:
            assert CONTEXT[answer["start"]:].startswith(answer["text"])


def test_worked_example_one_of_several_answers_is_lost(tmp_path, caplog):
    answers = [{"text": "山", "answer_start": 0}, {"text": "海域", "answer_start": 4}]
    path = _file(tmp_path, _squad(_question(answers=answers)))
    assert [answer["text"] for answer in SquadDataset(path)[0]["answers"]] == ["海域"]
    assert "answers that do not stand in their text, left out; others of the same question remain: 1" in caplog.text


def test_worked_example_a_blank_question_is_left_out(tmp_path, caplog):
    dataset = SquadDataset(_file(tmp_path, _squad(_question(question=" "), _question(name="q2"))))
    assert [example["id"] for example in dataset] == ["q2"]
    assert "blank questions, left out: 1 (first in q1)" in caplog.text


@pytest.mark.parametrize(("content", "words"), [
    (_squad(_question("山")), "a.json: q1: none of its answers stands in its text, not even «山»; mend it, or say"),
    (_squad(_question(answers=[], is_impossible=False)), 'a.json: q1: it has no answers, and says "is_impossible"'),
    (_squad(_question(answers={"text": ["a", "b"], "answer_start": [1]})), "q1: 'answers' has 2 texts and 1 times"),
    (_squad(_question(answers=None)), "a.json: q1: 'answers' is None; it must be a list"),
    (_squad(_question(answers=[7])), "a.json: q1: an answer is 7; it must be an object with text and answer_start"),
    (_squad(_question(start="4")), "a.json: q1: the answer «海域» at '4' is not a text at a whole number"),
    (_squad(_question(question=" ")), "a.json: the file holds no questions"),
    (_squad({"question": "?", "answers": []}), "a.json: a question: the field 'id' is missing"),
    (_squad(_question(), context=3), "a.json: q1: the field 'context' is 3; it must be a text"),
    (_squad(), "a.json: the file holds no questions"),
    ({"data": [{"title": "鱼", "paragraphs": {}}]}, "a.json: 鱼: there is no list of objects called 'paragraphs'"),
    ({"version": 1}, "a.json: an article: there is no list of objects called 'paragraphs'"),
    ('{"data": [\n{"title": ', "a.json:2: this is not JSON: Expecting value at column 11"),
])
def test_refusal_names_file_and_question(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        SquadDataset(_file(tmp_path, content))


def test_refusal_of_no_files():
    with pytest.raises(ValueError, match="no files given; name at least one .json file"):
        SquadDataset()
