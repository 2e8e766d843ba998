"""How fast, how large and how exact: every mode of generation, for any model folder, alone or beside other engines.

    python -m llama.benchmark                                       # the usual modes of the default model
    python -m llama.benchmark --model weights/NAME --modes default,int8 --repeats 3
    python -m llama.benchmark --peers                               # in turn with transformers and llama.cpp, too

A mode is what one types after `python generate.py` (llama/benchmark/modes.py). Each runs in a process of its own that
does the works of llama/benchmark/measure_generation.py; with --peers other engines (llama/benchmark/peers.py) do the
same works with the same ids and the same number of threads. Figures are medians, held against what
llama/benchmark/goals.py asks for.

Try: in `in_turn`, finish one engine before the next; tests/test_benchmark.py (test_property_engines_take_turns) fails.
"""

import dataclasses
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch

    from llama.benchmark.goals import RATIOS, Goal, engine_table, limit_table, ratio_table
    from llama.benchmark.machine import SETTLE, machine, model_path
    from llama.benchmark.machine_limits import measure_bandwidth
    from llama.benchmark.modes import MODES, USUAL, chosen_modes, generate_command, mode_commands, starts
    from llama.benchmark.peers import PARITY, PEERS, chosen_peers, gguf_of, peer_commands, peers_python
    from llama.benchmark.plot import write_plot
    from llama.commands import flags
    from llama.config_json import config_from_dict
    from llama.datasets.lines import json_records
    from llama.decoding.speculative import DraftStats
    from llama.runtime import cli
    from llama.runtime.destinations import file_to_write
    from llama.runtime.figures import need_matplotlib
    from llama.runtime.progress import Progress
    from llama.runtime.ranges import MANY, MOST_TOKENS, Range, check_ranges
    from llama.runtime.terminal import say
    from llama.runtime.worker import Engine
    from llama.tasks.instruction import InstructionTask
    from tokenizer.base import Tokenizer
    from weights.fetch import CATALOGUE, fetch
    from weights.formats.paths import resolve
    from weights.formats.sources import open_source

TEXTS = ("examples/neutral.txt", "data/three-kingdoms/text.txt")    # English whole, then Chinese from its beginning
BLOCK = 512                                                         # tokens of a block, for perplexity
QUESTIONS = "examples/repeat.jsonl"                                 # three texts to copy or correct, one to sum up
ANSWER = 160                                                        # tokens of an answer to one of them, at most


@dataclass(frozen=True)
class Work:
    """What every mode does."""

    prompt_tokens: Annotated[int, "tokens before those that are decoded", Range(1, MOST_TOKENS)] = 128
    new_tokens: Annotated[int, "tokens to decode", Range(2, MOST_TOKENS)] = 128
    prefill: Annotated[int, "tokens of the long prompt", Range(1, MOST_TOKENS)] = 512
    batch: Annotated[tuple[int, ...], "numbers of prompts at once, of different lengths", Range(1, 4096)] = (8, 32)
    repeats: Annotated[int, "measurements of each speed", Range(1, 10_000)] = 5
    starts: Annotated[int, "runs of generate.py, for its memory and its time to a first token", Range(0, 10_000)] = 3
    text_tokens: Annotated[int, "tokens of the text for perplexity; 0 leaves it out", Range(0, MANY)] = 20_480

    def __post_init__(self) -> None:
        check_ranges(self)


def main() -> None:
    parser = cli.Parser(
        "python -m llama.benchmark", __doc__.splitlines()[0],
        most=("model", "modes", "peers", "training", "works", "text-tokens", "repeats", "output", "plot", "json"),
        example="python -m llama.benchmark --modes default,int8 --output figures.json")
    parser.add_argument("--model", default=flags.ModelFlags.model, metavar="FOLDER", help="a model folder, or a name")
    parser.add_argument("--modes", default=",".join(USUAL), metavar="A,B",
                        help=f"what to measure, of {', '.join(MODES)}")
    parser.add_argument("--peers", nargs="?", const=PARITY, metavar="PYTHON",
                        help=f"measure other engines, too; PYTHON has requirements-parity.txt ({PARITY})")
    parser.add_argument("--against", default="", metavar="A,B",
                        help=f"with --peers: these of them (default: all): {', '.join(PEERS)}")
    parser.add_argument("--text", nargs="+", metavar="FILE", help=f"for perplexity and prompts ({', '.join(TEXTS)})")
    parser.add_argument("--output", type=file_to_write, metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--plot", type=file_to_write, metavar="FILE",
                        help="draw bytes a token against tokens a second, as .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--training", action="store_true", help="measure training instead")
    parser.add_argument("--works", default="", metavar="A;B",
                        help="with --training: what to measure, by names or their beginnings")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="with --training: instructions to learn")
    cli.add_flags(parser, Work)
    arguments = parser.parse_args()
    if arguments.training:
        from llama.benchmark import training

        repeats = 3 if arguments.repeats == Work.repeats else arguments.repeats
        python = peers_python(arguments.peers) if arguments.peers else ""
        results = training.run(arguments.model, arguments.works, data=flags.data_files(arguments.data or []),
                                         repeats=repeats, python=python,
                                         keep=partial(write_results, arguments.output))
        print(json.dumps(results) if arguments.json else training.tables(results))
        return
    if arguments.works or arguments.data:
        raise ValueError("--works and --data are for --training; add it, or leave them out")
    work = cli.from_flags(Work, arguments)
    modes = chosen_modes(arguments.modes)
    if arguments.plot:
        need_matplotlib(arguments.plot)
    python = peers_python(arguments.peers) if arguments.peers else ""
    against = chosen_peers(arguments.against)

    model = model_path(arguments.model)
    ids = text_ids(model, work, arguments.text)
    results = run(model, modes, work, ids, python=python, against=against)
    results["work"]["text"] = list(arguments.text or TEXTS)
    write_results(arguments.output, results)
    if arguments.plot:
        write_plot(arguments.plot, results)
    print(json.dumps(results) if arguments.json else tables(results))


def write_results(path: str | None, results: Mapping[str, Any]) -> None:
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


# ---- what is asked for -----------------------------------------------------------------------------------------------


def text_ids(model: Path, work: Work, files: Sequence[str] | None) -> list[int]:
    """The ids that prompts and perplexity are taken from. Raises ValueError where they, or the context, are too few."""
    source = open_source(model)
    if source.tokenizer is None:
        raise ValueError(f"{model} has no tokenizer, so there is no text to measure with; give a model folder")
    context = config_from_dict(source.config).context
    for flags, tokens in (("--prompt-tokens and --new-tokens", work.prompt_tokens + work.new_tokens),
                          ("--prefill", work.prefill + 1)):
        if tokens > context:
            raise ValueError(f"{flags} need a context of {tokens} tokens, and this model's is {context}; give less")
    needed = max(work.text_tokens, work.prompt_tokens, work.prefill)
    texts = []
    for name in files or TEXTS:
        path = resolve(name, name.split("/")[0]) if not files else Path(name)
        if not path.exists() and path.parent.name in CATALOGUE:
            fetch(path.parent.name)
        texts.append(path.read_text(encoding="utf-8")[: 8 * needed])
    ids = source.tokenizer.encode("\n\n".join(texts))[:needed]
    if len(ids) < max(work.prompt_tokens, work.prefill):
        raise ValueError(f"the text has {len(ids)} tokens, --prompt-tokens is {work.prompt_tokens} and --prefill "
                         f"{work.prefill}; give a longer --text")
    return ids


# ---- measuring -------------------------------------------------------------------------------------------------------


def run(model: Path, modes: Sequence[str], work: Work, ids: list[int], *, python: str,
        against: Sequence[str] = tuple(PEERS)) -> dict[str, Any]:
    """All figures. python: the interpreter of the other engines, `against`; "" leaves them out."""
    threads = torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = str(threads)                    # every process that is started here gets as many
    engines: dict[str, Any] = {}
    results = {"date": datetime.date.today().isoformat(), "model": model.name, "machine": machine(),
               "work": dataclasses.asdict(work), "bandwidth": measure_bandwidth(), "engines": engines, "turns": []}
    tokenizer = open_source(model).tokenizer
    prompt = tokenizer.decode(ids[: work.prompt_tokens])
    pieces = requests(work, ids) | edit_request(tokenizer, config_from_dict(open_source(model).config).context)
    with tempfile.TemporaryDirectory(prefix="llama-benchmark-") as folder:
        commands = mode_commands(model, modes, Path(folder))
        if python:
            context = max(work.prompt_tokens + work.new_tokens, work.prefill) + 8
            peers = peer_commands(model, Path(folder), python, context=context, threads=threads)
            commands |= {name: command for name, command in peers.items() if name in against}
        groups = turn_groups(commands, pieces, results["machine"]["instructions"])
        progress = Progress(len(commands) + len(groups), "engines and turns")
        for name, command in commands.items():
            progress.show(len(engines), name)
            try:
                engines[name] = alone(name, command, work, ids)
                if name in MODES and work.starts:
                    engines[name] |= starts(generate_command(command), prompt, new_tokens=work.new_tokens,
                                            runs=work.starts)
            except (ValueError, RuntimeError) as failure:           # the others are measured all the same
                engines[name] = {"refused": str(failure)}
            tell(progress, f"{name}: {brief(engines[name])}")
        for number, ((piece, mode), aims) in enumerate(groups.items()):
            progress.show(len(commands) + number, f"{piece}, {mode}")
            names = [name for name in (mode, *(aim.against for aim in aims)) if "decode" in engines.get(name, {})]
            if mode not in names or len(names) < 2:
                continue                                            # one that refused
            try:
                answers = in_turn({name: commands[name] for name in names}, pieces[piece], work.repeats)
            except (ValueError, RuntimeError) as failure:
                tell(progress, f"{piece} in turn: {failure}")
                continue
            speeds = {name: [speed(answer) for answer in found] for name, found in answers.items()}
            for aim in aims:
                if aim.against in speeds:
                    results["turns"].append(dataclasses.asdict(aim) | {
                        "ours": speeds[mode], "theirs": speeds[aim.against],
                        "guesses": answers[mode][-1].get("guesses")})
            tell(progress, f"{piece} in turn: {', '.join(names)}")
    return results


def turn_groups(commands: Mapping[str, Any], pieces: Mapping[str, Any], instructions: str) -> \
        dict[tuple[str, str], list[Goal]]:
    """Those of RATIOS whose engines and works are here, by work and mode: they run in turn, ours first."""
    groups: dict[tuple[str, str], list[Goal]] = {}
    for aim in RATIOS.get(instructions, RATIOS["AVX2"]):
        if aim.work in pieces and aim.against in commands and aim.mode in commands:
            groups.setdefault((aim.work, aim.mode), []).append(aim)
    return groups


def requests(work: Work, ids: list[int]) -> dict[str, dict[str, Any]]:
    """The speeds that are measured, by name, as requests to an engine."""
    asked = {"decode": {"work": "decode", "prompt": ids[: work.prompt_tokens], "new": work.new_tokens},
             "prefill": {"work": "prefill", "prompt": ids[: work.prefill]}}
    for count in work.batch:
        asked[f"batch {count}"] = {"work": "batch", "prompts": ragged(ids, count, work.prompt_tokens),
                                   "new": work.new_tokens}
    return asked


def edit_request(tokenizer: Tokenizer, context: int) -> dict[str, dict[str, Any]]:
    """Questions whose answers repeat much of them, where looking up should help; {} where the context is too short."""
    chat_format = InstructionTask().format(tokenizer)
    prompts = [chat_format.encode([{"role": "user", "content": record["prompt"]}], tokenizer, reply=True)[0]
               for _, record in json_records(resolve(QUESTIONS, "examples"))]
    fit = max(map(len, prompts)) + ANSWER <= context
    return {"edit": {"work": "answers", "prompts": prompts, "new": ANSWER}} if fit else {}


def ragged(ids: list[int], count: int, longest: int) -> list[list[int]]:
    """`count` prompts of different texts, their lengths spread evenly from a quarter of the longest to the longest."""
    lengths = [max(1, longest * (count + 3 * i) // (4 * count)) for i in range(1, count + 1)]
    starts = [i * (len(ids) - longest) // count for i in range(count)]
    return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def alone(name: str, command: list[str], work: Work, ids: list[int]) -> dict[str, Any]:
    """The figures of one engine. Raises what Engine raises, where this machine or this model does not have it."""
    figures: dict[str, Any] = {}
    with Engine(name, command) as process:
        for piece, request in requests(work, ids).items():
            if piece.startswith("batch") and "llama.cpp" in name:
                continue                                            # its script decodes one text at a time
            warm_up(process, request)
            figures[piece] = [speed(process.ask(**request)) for _ in range(work.repeats)]
            if piece == "decode":
                figures["memory"] = process.ask("memory")["bytes"]
        context = work.prompt_tokens + work.new_tokens // 2
        traffic = process.ask("traffic", context=context)
        figures |= {"traffic": traffic["bytes"], "kernel": traffic.get("kernel", "")}
        if name in MODES:
            figures |= perplexity(process, work, ids)
    if file := gguf_of(command):                                    # what its rounding costs, whoever runs it
        ours = [sys.executable, "-m", "llama.benchmark.measure_generation", "--model", file, "--dtype", "float32"]
        with Engine(file, ours) as process:
            figures |= perplexity(process, work, ids)
    return figures


def perplexity(process: Engine, work: Work, ids: list[int]) -> dict[str, float]:
    return process.ask("perplexity", ids=ids[: work.text_tokens], block=BLOCK) if work.text_tokens else {}


def in_turn(commands: Mapping[str, list[str]], request: dict[str, Any], repeats: int) -> \
        dict[str, list[dict[str, Any]]]:
    """What several engines answer to one piece of work, one after the other, again and again."""
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in commands}
    with ExitStack() as stack:
        engines = {name: stack.enter_context(Engine(name, command)) for name, command in commands.items()}
        for process in engines.values():
            warm_up(process, request)
        for _ in range(repeats):
            for name, process in engines.items():
                time.sleep(SETTLE)
                answers[name].append(process.ask(**request))
    return answers


def warm_up(process: Engine, request: dict[str, Any]) -> None:
    process.ask(**request | ({"new": 8} if "new" in request else {}))


def speed(answer: Mapping[str, Any]) -> float:
    return answer["tokens"] / answer["seconds"]


# ---- telling ---------------------------------------------------------------------------------------------------------


def tell(progress: Progress, line: str) -> None:
    progress.clear()
    say(line)


def brief(figures: Mapping[str, Any]) -> str:
    if "refused" in figures:
        return figures["refused"]
    exact = f", perplexity {figures['perplexity']:.3f}" if "perplexity" in figures else ""
    return (f"{statistics.median(figures['decode']):.1f} tokens/s, prefill "
            f"{statistics.median(figures['prefill']):,.0f}{exact}")


def tables(results: Mapping[str, Any]) -> str:
    """What docs/results.md shows: what was measured where and when, each engine, the ratios, the limits."""
    work, here, engines = results["work"], results["machine"], results["engines"]
    text = (f"; perplexity of {work['text_tokens']:,} tokens of {', '.join(work.get('text', []))} in blocks of {BLOCK}"
            if work["text_tokens"] else "")
    lines = [f"{results['model']}, {results['date']}, {here['cpu']} ({here['instructions']}), {here['threads']} "
             f"threads on {here['cores']} cores, torch {here['torch']}, memory read at "
             f"{results['bandwidth'] / 1e9:.1f} GB/s. Decoding "
             f"{work['new_tokens']} tokens behind {work['prompt_tokens']}, prefill of {work['prefill']}; medians of "
             f"{work['repeats']}{text}.",
             "", engine_table(engines, batches=work["batch"], bandwidth=results["bandwidth"])]
    if results["turns"]:
        lines += ["", f"In turn, {work['repeats']} pairs each:", "", ratio_table(results["turns"])]
    lines += [f"\n{turn['mode']}, {turn['work']}: {DraftStats(**turn['guesses'])}" for turn in results["turns"]
              if turn.get("guesses")]
    lines += ["", limit_table(engines)]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
