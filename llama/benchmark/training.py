"""How fast and how small training is, alone or in turn with transformers and peft.

    python -m llama.benchmark --training                            # speeds and memory of this project
    python -m llama.benchmark --training --peers --data FILE…       # beside transformers, on instructions of your own
    python -m llama.benchmark --training --works "LoRA, d; memory"  # some rows

Every engine is a process of its own (llama/benchmark/measure_training.py; tests/parity/peer_training.py) and takes the
same steps: the same ids in the same order, the same samples an update, AdamW, norms clipped at 1, products in
bfloat16 with float32 copies of what learns, or in float32 where that is faster here. After a step to warm up, they take
turns; each pair of neighbours gives a ratio. Tokens are those that are read, padding is none. That the losses are the
same is measured, too.

Try: count 4 N for a token of full training; tests/test_benchmark_training.py (test_worked_example_operations) fails.
"""

import dataclasses
import datetime
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llama import cost
from llama.benchmark.goals import met, ratio, table
from llama.benchmark.machine import SETTLE, machine, model_path
from llama.benchmark.machine_limits import measure_matrix_peak
from llama.benchmark.measure_training import random_tensors
from llama.checkpoint import build_on_meta, save_model
from llama.commands.flags import choose_dtype
from llama.config import preset
from llama.config_json import config_to_dict
from llama.datasets.instructions import InstructionDataset
from llama.lora.files import save_adapter
from llama.lora.swap import add_lora
from llama.lora.targets import LoRAConfig
from llama.model import Llama
from llama.runtime import worker
from llama.runtime.progress import Progress
from llama.runtime.worker import Engine
from llama.tasks.instruction import InstructionTask
from weights.formats.paths import home, resolve
from weights.formats.sources import open_source

DATA = ("examples/identity.jsonl",)
TEXTS = ("examples/neutral.txt", "data/three-kingdoms/text.txt", "data/peoples-daily/text.txt")
BLOCK = 256
STEPS = 3                                                           # of a turn
PEER, PLAIN, COMPILED = "transformers", "default", "compile"


@dataclass(frozen=True)
class Row:
    """One kind of work. `floor` and `stretch` are times as fast as the peer, by mode of ours, or 0 for none."""

    name: str
    data: str                                                       # "ragged" or "dense"
    batch_size: int
    lora: bool
    aims: Mapping[str, tuple[float, float]]
    shape: str = ""                                                 # a preset, with random weights


ROWS = (
    Row("LoRA, ragged", "ragged", 8, True, {PLAIN: (1.8, 2.5), COMPILED: (2.2, 3.0)}),
    Row("LoRA, dense", "dense", 4, True, {PLAIN: (1.15, 1.4), COMPILED: (1.5, 1.8)}),
    Row("all weights, dense", "dense", 4, False, {PLAIN: (1.0, 0), COMPILED: (1.15, 1.35)}),
    Row("from scratch", "dense", 8, False, {PLAIN: (1.3, 1.6)}, shape="tiny-7m"),
)


@dataclass(frozen=True)
class Memory:
    """What a step may hold at most: of the peer's peak, or, with a shape of its own, in GB.

    recompute  what is computed again in the backward pass: a field of TrainConfig
    """

    name: str
    bits: int
    floor: float
    stretch: float | None
    shape: str = ""
    recompute: str = ""


MEMORY = (
    Memory("memory, LoRA 4 × 256, float base", 0, 0.6, 0.45),
    Memory("memory, LoRA 4 × 256, int8 base", 8, 0.5, 0.35),
    Memory("memory, LoRA 4 × 256, float base, MLPs computed again", 0, 0.6, 0.45, recompute="checkpoint_mlps"),
    Memory("memory, LoRA 4 × 256, int8 base, MLPs computed again", 8, 0.5, 0.35, recompute="checkpoint_mlps"),
    Memory("memory, LoRA 4 × 256, float base, blocks computed again", 0, 0.6, 0.45, recompute="checkpoint_activations"),
    Memory("memory, LoRA 4 × 256, int8 base, blocks computed again", 8, 0.5, 0.35, recompute="checkpoint_activations"),
    Memory("1.1B, int8 base, 1 × 512", 8, 4.0, None, "tinyllama-1.1b", "checkpoint_activations"),
    Memory("1.1B, int4 base, 1 × 512", 4, 3.0, None, "tinyllama-1.1b", "checkpoint_activations"),
    Memory("7B, int4 base, 1 × 512", 4, 10.0, 8.0, "llama-2-7b", "checkpoint_activations"),
)
COSTS = "predicted memory"
WORKS = [*(row.name for row in (*ROWS, *MEMORY)), COSTS]


def run(model: str, works: str, *, data: Sequence[str], repeats: int, python: str,
        keep: Callable[[Mapping[str, Any]], None] = lambda results: None) -> dict[str, Any]:
    """All figures. works: names with semicolons between, or beginnings of names; "" for all. python: the peers'.

    keep  gets what there is after each work, for a run that may be stopped
    """
    chosen = [name for name in WORKS if not works or any(name.startswith(part.strip()) for part in works.split(";"))]
    if not chosen:
        raise ValueError(f"--works {works}: no work is called so; there are {'; '.join(WORKS)}")
    folder = model_path(model)
    threads, dtype = torch.get_num_threads(), choose_dtype("auto", torch.device("cpu"), purpose="train")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    results = {"date": datetime.date.today().isoformat(), "model": folder.name, "machine": machine(),
               "data": list(data or DATA), "repeats": repeats, "dtype": str(dtype).removeprefix("torch."),
               "matrix_peak": measure_matrix_peak(dtype), "rows": [], "memory": [], "costs": []}
    with tempfile.TemporaryDirectory(prefix="llama-benchmark-") as temporary:
        place = Place(folder, Path(temporary), python, threads, results["dtype"])
        place.prepare(data)
        progress = Progress(len(chosen), "works")
        for number, name in enumerate(chosen):
            progress.show(number, name)
            row = next((row for row in ROWS if row.name == name), None)
            try:
                if name == COSTS:
                    for kind, command in cost.RUNS.items():
                        results["costs"].append({"run": kind} | cost.compared(command, str(folder.absolute())))
                        keep(results)
                elif row:
                    results["rows"].append(speeds(row, place, repeats, peak=results["matrix_peak"]))
                else:
                    limit = next(limit for limit in MEMORY if limit.name == name)
                    results["memory"].append(memory(limit, place))
            except (ValueError, RuntimeError) as failure:           # the others are measured all the same
                results.setdefault("refused", {})[name] = str(failure)
            progress.clear()
            keep(results)
            print(f"{name}: done", file=sys.stderr, flush=True)
    return results


@dataclass
class Place:
    """Where the files of a run are, and how engines are started on them."""

    model: Path
    folder: Path
    python: str
    threads: int
    dtype: str                                                      # to compute in, of either side
    theirs: int = 0                                                 # bytes at the peer's peak, once it was measured

    def prepare(self, data: Sequence[str]) -> None:
        """Samples of both kinds, an adapter to begin with, and a small model with random weights."""
        tokenizer = open_source(self.model).tokenizer
        if tokenizer is None:
            raise ValueError(f"{self.model} has no tokenizer, so there is no text to learn; give a model folder")
        files = data or [str(resolve(name, name.split("/")[0])) for name in DATA]
        samples = InstructionTask().samples(InstructionDataset(*files), tokenizer)
        self.write("ragged", [[sample.ids, sample.loss_mask] for sample in samples])
        texts = [path.read_text(encoding="utf-8")[:400_000] for name in TEXTS
                 if (path := resolve(name, name.split("/")[0])).exists()]
        ids = tokenizer.encode("\n\n".join(texts))
        blocks = [ids[start : start + BLOCK + 1] for start in range(0, len(ids) - BLOCK, BLOCK)]
        learned = [False] + [True] * BLOCK
        self.write("dense", [[block, learned] for block in blocks])
        self.write("long", [[ids[start : start + 513], [False] + [True] * 512] for start in (0, 512, 1024)])
        bare = build_on_meta(open_source(self.model).config)
        self.write_adapter(bare)
        for row in ROWS:
            if row.shape:
                small = build_on_meta(config_to_dict(preset(row.shape)))
                for name, tensor in random_tensors(small, bits=0):
                    owner, _, leaf = name.rpartition(".")
                    setattr(small.get_submodule(owner), leaf, torch.nn.Parameter(tensor.float()))
                small.tie_weights()
                small.init_weights(torch.Generator().manual_seed(0))
                save_model(small, self.folder / row.shape)
                size = small.config.vocab_size
                self.write(f"dense {row.shape}", [[[i % size for i in block], learned] for block in blocks])
                few = [[[i % size for i in ids[start : start + 513]], [False] + [True] * 512] for start in (0, 512)]
                self.write("few", few)

    def write(self, name: str, samples: list[Any]) -> None:
        (self.folder / f"{name}.json").write_text(json.dumps(samples), encoding="utf-8")

    def write_adapter(self, model: Llama) -> None:
        """On q, k, v and o; both sides begin with it. The weights below are not looked at."""
        model.to_empty(device="cpu")
        add_lora(model, LoRAConfig(rank=8, targets=("q_proj", "k_proj", "v_proj", "o_proj")),
                 generator=torch.Generator().manual_seed(0))
        save_adapter(model, self.folder / "adapter")

    def samples(self, row: Row) -> str:
        return str(self.folder / (f"{row.data} {row.shape}".strip() + ".json"))

    def ours(self, **setting: Any) -> list[str]:
        setting |= {"threads": self.threads, "dtype": self.dtype}
        return [sys.executable, "-m", "llama.benchmark.measure_training", json.dumps(setting)]

    def engine(self, row: Row, name: str) -> list[str]:
        adapter = str(self.folder / "adapter") if row.lora else ""
        folder = str(self.folder / row.shape if row.shape else self.model.absolute())
        if name == PEER:
            setting = {"folder": folder, "adapter": adapter, "samples": self.samples(row), "lr": 2e-4}
            script = home() / "tests" / "parity" / "peer_training.py"
            return [self.python, "-I", str(Path(worker.__file__)), str(script),
                    json.dumps(setting | {"threads": self.threads, "dtype": self.dtype})]
        return self.ours(model=folder, adapter=adapter, samples=self.samples(row), batch_size=row.batch_size,
                         compile=name == COMPILED)


def order(count: int, batch_size: int, steps: int) -> list[list[int]]:
    """Sample numbers of each step: all in an order drawn once, again and again if they are few."""
    numbers = list(range(count))
    random.Random(0).shuffle(numbers)
    return [[numbers[(step * batch_size + i) % count] for i in range(batch_size)] for step in range(steps)]


def speeds(row: Row, place: Place, repeats: int, *, peak: float) -> dict[str, Any]:
    """Tokens a second of each engine, turn by turn, its losses, and the most memory that it held."""
    names = [PLAIN] + [COMPILED] * (COMPILED in row.aims) + [PEER] * bool(place.python)
    samples = json.loads(Path(place.samples(row)).read_text(encoding="utf-8"))
    steps = order(len(samples), row.batch_size, 1 + repeats * STEPS)
    found: dict[str, Any] = {name: {"speeds": [], "losses": []} for name in names}
    with ExitStack() as stack:
        engines = {name: stack.enter_context(Engine(name, place.engine(row, name))) for name in names}
        for engine in engines.values():
            engine.ask("train", steps=steps[:1])
        if COMPILED in engines:
            found[COMPILED]["compiled at first"] = engines[COMPILED].ask("compilations")["compilations"]
        for turn in range(repeats):
            for name, engine in engines.items():
                time.sleep(SETTLE)
                answer = engine.ask("train", steps=steps[1 + turn * STEPS : 1 + (turn + 1) * STEPS])
                found[name]["speeds"].append(answer["tokens"] / answer["seconds"])
                found[name]["losses"] += answer["losses"]
        for name, engine in engines.items():
            found[name]["memory"] = engine.ask("memory")["bytes"]
        shape = engines[PLAIN].ask("shape")
        for name in names:
            if name == COMPILED:
                found[name] |= engines[name].ask("compilations")
    config = open_source(place.folder / row.shape if row.shape else place.model).config
    work = operations(config, shape["multiplied"], lora=row.lora)
    for name in names:
        found[name]["utilisation"] = statistics.median(found[name]["speeds"]) * work / peak
    return {"name": row.name, "batch_size": row.batch_size, "shape": shape, "engines": found,
            "aims": {name: row.aims[name] for name in names if name in row.aims}}


def operations(config: Mapping[str, Any], multiplied: int, *, lora: bool, T: int = BLOCK) -> float:
    """Floating-point operations that a token of a dense block needs, forward and backward (PaLM, arXiv:2204.02311,
    appendix B): 6 N and attention over the (T + 1) / 2 positions that it sees; with frozen weights 4 N, as no weight
    gets a gradient. What is computed twice does not count.
    """
    attention = 2 * 2 * config["num_hidden_layers"] * config["hidden_size"] * (T + 1) / 2
    return (4 if lora else 6) * multiplied + 3 * attention


def memory(limit: Memory, place: Place) -> dict[str, Any]:
    """The peak of a process that takes three steps; of the peer's, where that is the measure."""
    options = {limit.recompute: True} if limit.recompute else {}
    if limit.shape:
        command = place.ours(model=limit.shape, adapter="new", bits=limit.bits, samples=str(place.folder / "few.json"),
                             batch_size=1, **options)
        steps, theirs = [[0], [1]], None
    else:
        row = ROWS[1]
        steps = order(64, row.batch_size, 3)
        if place.python and not place.theirs:
            place.theirs = alone("transformers", place.engine(row, PEER), steps)["memory"]
        theirs = place.theirs or None
        command = place.ours(model=str(place.model.absolute()), adapter=str(place.folder / "adapter"), bits=limit.bits,
                             samples=place.samples(row), batch_size=row.batch_size, **options)
    ours = alone(limit.name, command, steps, save=limit.shape.endswith("7b"))
    return dataclasses.asdict(limit) | {"ours": ours, "theirs": theirs}


def alone(name: str, command: list[str], steps: list[list[int]], *, save: bool = False) -> dict[str, Any]:
    started = time.perf_counter()
    with Engine(name, command) as engine:
        loaded = time.perf_counter() - started
        answer = engine.ask("train", steps=steps)
        found = {"loading": loaded, "memory": engine.ask("memory")["bytes"], "losses": answer["losses"],
                 "tokens_per_second": answer["tokens"] / answer["seconds"]}
        if save:
            found["saved"] = engine.ask("saved") | {"memory": engine.ask("memory")["bytes"]}
        return found


# ---- telling ---------------------------------------------------------------------------------------------------------


def tables(results: Mapping[str, Any]) -> str:
    """What docs/results.md shows: where and when, speeds beside the peer's, memory, and how far losses are apart."""
    here, peak = results["machine"], results["matrix_peak"] / 1e9
    lines = [f"{results['model']}, {results['date']}, {here['cpu']}, {here['threads']} threads on {here['cores']} "
             f"cores, torch {here['torch']}, matrix products at {peak:,.0f} GFLOP/s in {results['dtype']}, which all "
             f"compute in. Medians of {results['repeats']} pairs of {STEPS} steps each; instructions of "
             f"{', '.join(results['data'])}.", ""]
    rows = []
    for row in results["rows"]:
        peer = row["engines"].get(PEER)
        for name, found in row["engines"].items():
            again = found.get("compilations", 0) - found.get("compiled at first", 0)
            cells = [row["name"], f"{name} ({again} recompilations)" if name == COMPILED else name,
                     f"{statistics.median(found['speeds']):,.0f}", f"{found['utilisation']:.0%}",
                     f"{found['memory'] / 1e6:,.0f}"]
            bounds = row["aims"].get(name)
            if peer and bounds:
                times = ratio(found["speeds"], peer["speeds"])
                floor, stretch = (bound or None for bound in bounds)
                cells += [str(times), *["" if bound is None else f"{bound:.2f}" for bound in (floor, stretch)],
                          met(times.median, floor, stretch), losses(found["losses"], peer["losses"])]
            else:
                cells += ["", "", "", "", f"{statistics.mean(found['losses']):.4f}"]
            rows.append(cells)
    if rows:
        lines += [table(["work", "engine", "tokens/s", "of the peak", "peak MB", "times the peer (least–most)", "floor",
                         "stretch", "met", "mean loss (largest difference)"], rows)]
    if limits := [_limit(each) for each in results["memory"]]:
        lines += ["", table(["memory", "peak MB", "value", "floor", "stretch", "met", "tokens/s", "notes"], limits)]
    if results["costs"]:
        lines += ["", *map(cost.line, results["costs"])]
    return "\n".join(lines + [f"{name}: {why}" for name, why in results.get("refused", {}).items()])


def losses(ours: Sequence[float], theirs: Sequence[float]) -> str:
    far = max(abs(mine - other) for mine, other in zip(ours, theirs, strict=True))
    return f"{statistics.mean(ours):.4f}, {statistics.mean(theirs):.4f} ({far:.4f})"


def _limit(found: Mapping[str, Any]) -> list[str]:
    ours, theirs = found["ours"]["memory"], found["theirs"]
    notes = []
    if saved := found["ours"].get("saved"):
        notes.append(f"saved in {saved['saving']:.0f} s, loaded in {saved['loading']:.0f} s, "
                     f"{saved['size'] / 1e9:.1f} GB; peak then {saved['memory'] / 1e9:.2f} GB")
    bounds = [*["" if bound is None else f"{bound:g}" for bound in (found["floor"], found["stretch"])]]
    if found["shape"]:
        value, shown = ours / 1e9, f"{ours / 1e9:.2f} GB"
    elif theirs:
        value, shown = ours / theirs, f"{ours / theirs:.2f} × of {theirs / 1e6:,.0f}"
    else:
        return [found["name"], f"{ours / 1e6:,.0f}", "", *bounds, "", f"{found['ours']['tokens_per_second']:,.0f}", ""]
    return [found["name"], f"{ours / 1e6:,.0f}", shown, *bounds,
            met(value, found["floor"], found["stretch"], smaller=True),
            f"{found['ours']['tokens_per_second']:,.0f}", "; ".join(notes)]
