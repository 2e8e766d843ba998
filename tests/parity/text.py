"""Traditional and simplified characters, by OpenCC's tables, against the answers of OpenCC's own tests."""

import json
import re
from collections.abc import Iterator

from llama.clean.han import CONFIGURATIONS, Converter
from tests.parity.judges import Check, Judges
from weights.fetch import fetch


def checks(judges: Judges) -> Iterator[Check]:
    folder = fetch("opencc")
    text = (folder / "testcases.json").read_text(encoding="utf-8")
    cases = json.loads(re.sub(r",(\s*[}\]])", r"\1", text))["cases"]  # commas that JSON does not know
    for name in CONFIGURATIONS:
        convert = Converter(name, folder)
        asked = [(case["input"], case["expected"][name]) for case in cases if name in case["expected"]]
        wrong = sum(convert(given) != answer for given, answer in asked)
        yield Check(f"text, characters: {name}", "OpenCC's tests", f"{len(asked)} texts", f"{wrong} differ",
                    not wrong and len(asked) > 20)
