"""What was found in examples, for people and for files: scores as a table, predictions as JSON, errors to look at.

Try: write predictions with plain `open`; tests/test_results.py
(test_property_predictions_are_written_whole_or_not_at_all) fails: of an interrupted run a file would tell too little.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weights.formats.atomic_write import atomic_file


def write_predictions(path: str | Path, results: Sequence[dict[str, Any]]) -> None:
    """What was found in each example, a line of JSON each; the file is written whole or not at all."""
    with atomic_file(Path(path)) as file:
        for result in results:
            file.write((as_json(result) + "\n").encode())


def as_json(result: dict[str, Any]) -> str:
    """What was found in an example, as one line."""
    return json.dumps({name: _named(value) for name, value in result.items()}, ensure_ascii=False)


def _named(value: Any) -> Any:
    """Entities as objects with names, not as rows."""
    if isinstance(value, list):
        return [each._asdict() if isinstance(each, tuple) else each for each in value]
    return value


def errors(results: Sequence[dict[str, Any]], most: int) -> str:
    """The first `most` examples in which something else was found than what is right, to look at."""
    wrong = [result for result in results if not result["correct"]]
    lines = [f"{len(wrong):,} of {len(results):,} are not right" + (f"; the first {most}" if len(wrong) > most else "")]
    for result in wrong[:most]:
        lines += ["", f"{result['place']}  {shortened(result['text'])}", f"  right      {_shown(result['gold'])}",
                  f"  predicted  {_shown(result['predicted'])}"]
    return "\n".join(lines)


def shortened(text: str, most: int = 200) -> str:
    """In one line, without what a terminal would obey."""
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    return text if len(text) <= most else f"{text[:most]} …"


def _shown(found: Any) -> str:
    """A label, words or entities, each between quotation marks."""
    if isinstance(found, str):
        return f"«{shortened(found)}»"
    return " ".join(f"«{shortened(each[0])}» {each[1]}" if isinstance(each, tuple) else f"«{shortened(each)}»"
                    for each in found) or "nothing"


def table(scores: dict[str, float]) -> str:
    """A score a line."""
    return "\n".join(f"{name:<20}{value:.4f}" for name, value in scores.items())
