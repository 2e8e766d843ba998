"""Questions about texts, each answered by a piece of its text, or by none.

    SQuAD 1.1, 2.0   {"data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "is_impossible",
                      "answers": [{"text", "answer_start"}]}]}]}]}
    CMRC 2018        the same; or a list of {"context_id", "context_text", "qas": [{"query_id", "query_text",
                      "answers": [text, …]}]}, where answers do not say where they stand

Every answer is looked up in its text. Where it does not stand at its `answer_start`, the nearest place at which it does
is taken. Such repairs are counted aloud: CMRC's trial set has five answers beside their place, and two blank questions.

Try: take the first place of an answer instead of the nearest; tests/test_squad.py
(test_worked_example_an_answer_beside_its_place_is_moved_to_the_nearest) fails.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama.datasets.examples import Examples, named_files
from llama.datasets.lines import numbered_lines, text_field

log = logging.getLogger(__name__)

_ORIGINAL = {"context": "context_text", "question": "query_text", "id": "query_id"}     # CMRC's own names
_MOVED = "answers that stood beside their answer_start, now at the nearest place"
_LOST = "answers that do not stand in their text, left out; others of the same question remain"
_BLANK = "blank questions, left out"


class SquadDataset(Examples):
    """The questions of files: `dataset[i]` is {"id", "question", "context", "title", "answers", "place"}.

    answers  [{"text", "start"}, …], context[start : start + len(text)] == text; an empty list: the text holds no
             answer. What annotators thought plausible for such a question is left aside
    place    "file: id", for a JSON document has no lines of its own

    Raises ValueError, naming file and question, for what is not of this form, a question without an answer that does
    not say is_impossible, and one of whose answers none stands in its text.
    """

    def __init__(self, *files: str | Path):
        self.files = named_files(files, ".json")
        self._examples = []
        for path in self.files:
            repairs = defaultdict(list)
            questions = (_example(path, title, paragraph, question, repairs)
                         for title, paragraph, question in _questions(path))
            found = [example for example in questions if example["question"].strip()]
            if not found:
                raise ValueError(f"{path}: the file holds no questions; give one that does")
            self._examples += found
            for what, which in repairs.items():
                log.warning("%s: %s: %d (first in %s)", path, what, len(which), which[0])


def _questions(path: Path) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(title, paragraph, question) from either form."""
    for article in _list(_document(path), "data", str(path)):
        place = f"{path}: {article.get('id', article.get('context_id', article.get('title', 'an article')))}"
        title = article.get("title", "")
        paragraphs = _list(article, "paragraphs", place) if "paragraphs" in article else [article]
        for paragraph in paragraphs:
            for question in _list(paragraph, "qas", place):
                yield title if isinstance(title, str) else "", paragraph, question


def _document(path: Path) -> dict[str, Any]:
    text = "\n".join(line for _, line in numbered_lines(path))
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"{path}{line}: this is not JSON: {error}; the file may be cut off") from None
    return {"data": document} if isinstance(document, list) else document


def _list(record: Any, name: str, place: str) -> list[dict[str, Any]]:
    found = record.get(name) if isinstance(record, dict) else None
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError(f"{place}: there is no list of objects called '{name}'; SQuAD's form is data, paragraphs, qas")
    return found


def _example(path: Path, title: str, paragraph: dict[str, Any], question: dict[str, Any],
             repairs: dict[str, list[str]]) -> dict[str, Any]:
    name = _text(question, "id", f"{path}: a question")
    place = f"{path}: {name}"
    context = _text(paragraph, "context", place)
    impossible = question.get("is_impossible") is True
    given = question.get("answers", [] if impossible else None)
    if not isinstance(given, list):
        raise ValueError(f"{place}: 'answers' is {given!r:.40}; it must be a list")
    answers = []
    for answer in given if not impossible else []:
        text, start = _answer(answer, place)
        found = _nearest(context, text, start)
        if found is None:
            repairs[_LOST].append(name)
            continue
        if start is not None and start != found:
            repairs[_MOVED].append(name)
        answers.append({"text": text, "start": found})
    if not answers and not impossible:
        why = f"none of its answers stands in its text, not even «{text:.40}»" if given else "it has no answers"
        raise ValueError(f"{place}: {why}; mend it, or say \"is_impossible\": true")
    asked = _text(question, "question", place)
    if not asked.strip():
        repairs[_BLANK].append(name)
    return {"id": name, "question": asked, "context": context, "title": title, "answers": answers, "place": place}


def _text(record: dict[str, Any], name: str, place: str) -> str:
    return text_field(record, _ORIGINAL[name] if _ORIGINAL[name] in record else name, place)


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
