"""All tasks beside methods of old, on the same examples: make tasks, or python -m tests.benchmarks.

    python -m tests.benchmarks --only sentiment-reviews --programs small --minutes 20
    python -m tests.benchmarks --judges .venv-bench/bin/python --samples FOLDER --json

For each data set (tests/benchmarks/sets.py): its baselines, a small model that is trained here, zh-small tuned, the
default model with LoRA, a larger one that is asked (tests/benchmarks/programs.py). Every result is kept in --output as
soon as it is there, so that the comparison can be made in parts, and goes on with what is missing; --again makes those
anew that --only and --programs name.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llama.benchmark import goals
from llama.runtime.progress import duration
from tests.benchmarks.programs import PROGRAMS, WAYS, measured, minutes_of, programs_of
from tests.benchmarks.sets import SETS, files_of
from weights.formats.atomic_write import atomic_file

Results = dict[str, dict[str, Any]]


def main() -> None:
    arguments = _parser().parse_args()
    results: Results = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else {}
    missing = [(name, program) for name in arguments.only for program in programs_of(name, arguments.programs)
               if arguments.again or program not in results.get(name, {})]
    failed = False
    for number, (name, program) in enumerate(missing, start=1):
        left = 60 * sum(minutes_of(*each, arguments.minutes) for each in missing[number - 1 :])
        print(f"[{number}/{len(missing)}] {name}: {program} … (all that is left: about {duration(left)} and the time "
              "of scoring)", file=sys.stderr, flush=True)
        try:
            files = files_of(name, arguments.samples, arguments.work)
            found = measured(name, program, files, work=arguments.work, minutes=arguments.minutes,
                             limit=arguments.limit, judges=arguments.judges, iterations=arguments.iterations,
                             again=arguments.again)
        except KeyboardInterrupt:
            print(f"interrupted; {arguments.output} keeps what is done, and the same command goes on with the rest",
                  file=sys.stderr)
            sys.exit(130)
        except (ValueError, RuntimeError) as error:
            print(f"{name}: {program}: left out: {error}", file=sys.stderr)
            failed = True
            continue
        results.setdefault(name, {})[program] = found | {"date": time.strftime("%Y-%m-%d")}
        print(f"    {SETS[name].score} {found['scores'][SETS[name].score]:.3f} after {found['minutes']:.1f} min",
              file=sys.stderr, flush=True)
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(arguments.output) as file:
            file.write((json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
    print(json.dumps(results, ensure_ascii=False) if arguments.json else table(results))
    sys.exit(1 if failed else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__.splitlines()[0],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="minutes of training at most, for each of ours:\n" + "\n".join(
            f"  {name:<20}{way.minutes:>4g}   {SETS[name].task} on {SETS[name].what}" for name, way in WAYS.items()))
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS), metavar="SET", help="of those below")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="what to run")
    parser.add_argument("--minutes", type=float, default=0, help="of training at most, instead of those below")
    parser.add_argument("--iterations", type=int, default=100, help="of the CRF")
    parser.add_argument("--limit", type=int, default=0, help="examples to score answers that are written on; 0: all")
    parser.add_argument("--samples", type=Path, default=Path("../shared/data"), help="where the files of others lie")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/tasks"), help="splits, trained models and logs")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/tasks.json"), help="results so far")
    parser.add_argument("--judges", default=sys.executable, metavar="PYTHON", help="an interpreter with the baselines")
    parser.add_argument("--again", action="store_true", help="make these anew even if they are there")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each program, in Markdown, the best score of a data set marked."""
    rows = []
    for name in (key for key in SETS if key in results):
        data, found = SETS[name], results[name]
        best = max((row["scores"][data.score] for row in found.values()), default=0)
        for program in (key for key in programs_of(name) if key in found):
            value, row = found[program]["scores"][data.score], found[program]
            rows.append([data.task, data.what, program, data.score, f"**{value:.3f}**" if value == best else
                         f"{value:.3f}", str(row.get("limit") or "all"), f"{row['minutes']:.1f}",
                         f"{row['memory'] / 1e9:.2f}"])
    return goals.table(["task", "data", "program", "score", "test", "of", "minutes", "GB"], rows)


if __name__ == "__main__":
    main()
