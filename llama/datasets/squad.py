"""Questions about texts, each answered by a piece of its text, or by none.

    SQuAD 1.1, 2.0   {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "is_impossible",
                      "answers": [{"text", "answer_start"}]}]}]}]}
    CMRC 2018        the same; or a list of {"context_id", "context_text", "qas": [{"query_id", "query_text",
                      "answers": [text, …]}]}, where answers do not say where they stand
    Hugging Face     a list, or lines, of {"id", "context", "question", "answers": {"text": […], "answer_start": […]}};
                      without any answer, the text holds none

Every answer is looked up in its text. Where it does not stand at its `answer_start`, the nearest place at which it does
is taken. Such repairs are counted aloud: CMRC's trial set has five answers beside their place, and two blank questions.

Try: take the first place of an answer instead of the nearest; tests/test_squad.py
(test_worked_example_an_answer_beside_its_place_is_moved_to_the_nearest) fails.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama.datasets.examples import Examples, named_files
from llama.datasets.lines import json_records, text_field
from llama.datasets.reading import Reading

_ORIGINAL = {"context": "context_text", "question": "query_text", "id": "query_id"}     # CMRC's own names
_MOVED = "answers that stood beside their answer_start, now at the nearest place"
_LOST = "answers that do not stand in their text, left out; others of the same question remain"
_BLANK = "blank questions, left out"
_NONE = "questions with an empty list of answers, whose text is taken to hold none"
_BOTH = "questions with answers that say is_impossible, which was taken: their text holds no answer"


class SquadDataset(Examples):
    """The questions of files: `dataset[i]` is {"id", "question", "context", "title", "answers", "place"}.

    answers  [{"text", "start"}, …], context[start : start + len(text)] == text; an empty list: the text holds no
             answer. What annotators thought plausible for such a question is left aside
    place    "file: id", for a document has no lines of its own; of a list or of lines "file:line"
    encoding, skip_bad  see reading.py

    Raises ValueError, naming file and question, for what is not of this form, a question without an answer that says
    is_impossible: false, and one of whose answers none stands in its text.
    """

    def __init__(self, *files: str | Path, encoding: str | None = None, skip_bad: bool | None = None):
        self.files = named_files(files, ".json")
        self._examples = []
        reading = Reading(encoding, skip_bad=skip_bad)
        self._read(reading, lambda path: (example for example in reading.each(
            lambda *question: _example(*question, reading), _questions(path, reading)) if example["question"].strip()),
            "questions")


def _questions(path: Path, reading: Reading) -> Iterator[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """(place, title, paragraph, question) from any form."""
    articles = ((line if article is record else "", article) for line, record in json_records(path, reading)
                for article in (_list(record, "data", str(path)) if "data" in record else [record]))
    for asked in reading.each(lambda line, article: _asked(path, line, article), articles):
        yield from asked


def _asked(path: Path, line: str, article: dict[str, Any]) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    title = article.get("title", "")
    title = title if isinstance(title, str) else ""
    place = f"{path}: {article.get('id', article.get('context_id', title or 'an article'))}"
    if "question" in article:
        return [(line or place, title, article, article)]
    paragraphs = [article] if "qas" in article else _list(article, "paragraphs", place)
    return [(_place(path, question), title, paragraph, question)
            for paragraph in paragraphs for question in _list(paragraph, "qas", place)]


def _place(path: Path, question: dict[str, Any]) -> str:
    return f"{path}: {question.get('id', question.get('query_id', 'a question'))}"


def _list(record: Any, name: str, place: str) -> list[dict[str, Any]]:
    found = record.get(name) if isinstance(record, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError(f"{place}: there is no list of objects called '{name}'; SQuAD's form is data, paragraphs, "
                         "qas, or records with context, question and answers")
    return found


def _example(place: str, title: str, paragraph: dict[str, Any], question: dict[str, Any],
             reading: Reading) -> dict[str, Any]:
    name, context = _text(question, "id", place), _text(paragraph, "context", place)
    given, impossible = _given(question, place), question.get("is_impossible")
    if impossible is True and given:
        reading.note(_BOTH, name)
    answers = []
    for answer in given if impossible is not True else []:
        text, start = _answer(answer, place)
        found = _nearest(context, text, start)
        if found is None:
            reading.note(_LOST, name)
            continue
        if start is not None and start != found:
            reading.note(_MOVED, name)
        answers.append({"text": text, "start": found})
    if given and not answers and impossible is not True:
        raise ValueError(f"{place}: none of its answers stands in its text, not even «{text:.40}»; mend it, or say "
                         "\"is_impossible\": true")
    if not given and impossible is False:
        raise ValueError(f"{place}: it has no answers, and says \"is_impossible\": false; mend one of the two")
    if not given and impossible is None:
        reading.note(_NONE, name)
    asked = _text(question, "question", place)
    if not asked.strip():
        reading.note(_BLANK, name)
    return {"id": name, "question": asked, "context": context, "title": title, "answers": answers, "place": place}


def _given(question: dict[str, Any], place: str) -> list[Any]:
    """Its answers one by one, whichever way they stand."""
    given = question.get("answers", [] if question.get("is_impossible") is True else None)
    if isinstance(given, dict):
        columns = [each if isinstance(each, list) else [each] for each in
                   (given.get("text"), given.get("answer_start", []))]
        if len(columns[0]) != len(columns[1]) and columns[1]:
            raise ValueError(f"{place}: 'answers' has {len(columns[0])} texts and {len(columns[1])} times "
                             "answer_start; give one of each")
        given = [{"text": text, "answer_start": start} for text, start in itertools.zip_longest(*columns)]
    if not isinstance(given, list):
        raise ValueError(f"{place}: 'answers' is {given!r:.40}; it must be a list")
    return given


def _text(record: dict[str, Any], name: str, place: str) -> str:
    name = _ORIGINAL[name] if _ORIGINAL[name] in record else name
    if name.endswith("id") and type(record.get(name)) is int:
        return str(record[name])
    return text_field(record, name, place)


def _answer(answer: Any, place: str) -> tuple[str, int | None]:
    if isinstance(answer, str):
        answer = {"text": answer}
    if not isinstance(answer, dict):
        raise ValueError(f"{place}: an answer is {answer!r:.40}; it must be an object with text and answer_start")
    text, start = text_field(answer, "text", place), answer.get("answer_start")
    if not text or not (start is None or type(start) is int):
        raise ValueError(f"{place}: the answer «{text:.40}» at {start!r:.20} is not a text at a whole number")
    return text, start


def _nearest(context: str, text: str, start: int | None) -> int | None:
    """Where a text stands, as near to `start` as it can be, the earlier of two; the first place without a start."""
    if start is None:
        start = 0
    before = context.rfind(text, 0, max(0, start) + len(text))
    after = context.find(text, max(0, start))
    places = [place for place in (before, after) if place >= 0]
    return min(places, key=lambda place: abs(place - start), default=None)
