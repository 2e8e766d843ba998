"""`make parity`: the same questions to this project and to libraries that share no code with it; one table.

    python -m tests.parity --judges .venv-parity/bin/python [--vllm .venv-vllm/bin/python] [--only models training …]

The areas: the model's modules (parts), whole models of many shapes, SmolLM2-135M, ten training steps, sampling
distributions, adapters, tokenizers, chat templates, file formats, a tuned model in other programs (deploy), scores,
heads of labels, losses over pairs, multiple choice, what a hub says, Chinese characters, and GPT-2 and T5 (relatives).
"""

import argparse
import importlib
import logging
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from tests.parity import variants
from tests.parity.judges import Check, Judges, write_kept
from weights.fetch import fetch

AREAS = ("parts", "models", "smollm2", "training", "sampling", "adapters", "tokenizers", "chat", "formats",
         "deploy", "metrics", "tasks", "preferences", "choices", "hub", "text", "relatives")
FIXTURES = Path(__file__).parents[1] / "fixtures"
MODEL = "smollm2-135m-instruct"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--judges", required=True, metavar="PYTHON", help="one that has requirements-parity.txt")
    parser.add_argument("--vllm", default="", metavar="PYTHON", help="one that has requirements-vllm.txt; without it "
                        "nothing is asked of vLLM")
    parser.add_argument("--only", nargs="+", choices=AREAS, default=AREAS, metavar="AREA", help=", ".join(AREAS))
    parser.add_argument("--write-fixtures", action="store_true", help="keep small answers, for tests/test_fixtures.py")
    arguments = parser.parse_args()
    logging.getLogger("llama").setLevel(logging.ERROR)              # adapters without a base's fingerprint, and so on
    fetch(MODEL)
    checks, seconds = [], {}
    with tempfile.TemporaryDirectory() as temporary, Judges(
            arguments.judges, Path(temporary), vllm=arguments.vllm) as judges:
        print(_row("what", "against", "cases", "worst", "verdict") + "\n" + _row(*["---"] * 5))
        for area in arguments.only:
            started = time.monotonic()
            for check in _checks(area, judges):
                checks.append(check)
                verdict = "equal" if check.passed else "DIFFERS"
                print(_row(check.what, check.against, check.cases, check.worst, verdict), flush=True)
            seconds[area] = time.monotonic() - started
        if arguments.write_fixtures:
            write_kept(judges.kept, FIXTURES)
            if "adapters" in arguments.only:
                variants.write_fixtures(judges)
    failed = sum(not check.passed for check in checks)
    print("\n" + ", ".join(f"{area} {spent:.0f} s" for area, spent in seconds.items()))
    print(f"parity: {len(checks) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _checks(area: str, judges: Judges) -> Iterator[Check]:
    """The rows of an area; one that breaks off is a failed row, and the other areas still get their turn."""
    try:
        yield from importlib.import_module(f"tests.parity.{area}").checks(judges)
    except Exception as error:
        traceback.print_exc()
        yield Check(f"{area}: broke off", "-", "-", type(error).__name__, passed=False)


def _row(what: str, against: str, cases: str, worst: str, verdict: str) -> str:
    return f"| {what:<60} | {against:<13} | {cases:<18} | {worst:<22} | {verdict:<7} |"


if __name__ == "__main__":
    sys.exit(main())
