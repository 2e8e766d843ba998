"""Adapters that begin at the matrices: peft's starts and ours, converted for the original base and read by the other.

LoRA+ belongs here, too: which parameter learns at which rate. LoftQ's base has no form that peft reads, so it is given
the same numbers in floats.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from llama.checkpoint import load_model, save_model
from llama.lora import LoRAConfig, add_lora, load_adapter, save_adapter
from llama.lora.loftq import begin_at, quantize_around
from llama.lora.swap import wrappers
from llama.quantization.swap import dequantize
from llama.tasks.task import Sample
from llama.trainer import Trainer
from llama.training.optimizer import TrainConfig
from tests.parity.judges import Check, Judges
from tests.parity.training import Given
from tests.parity.variants import BOUND, IDS, build, compare, difference_of, stir
from tokenizer import bpe
from weights.formats.huggingface import stored_name

STARTS = {
    "PiSSA": {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": "pissa"},
    "PiSSA, rsLoRA": {"r": 3, "lora_alpha": 6, "target_modules": ["k_proj"], "init_lora_weights": "pissa",
                      "use_rslora": True},
    "OLoRA": {"r": 2, "lora_alpha": 3, "target_modules": ["v_proj", "gate_proj"], "init_lora_weights": "olora"},
}
RANKS = {r"layers\.0\..*": 4, "down_proj": 3}


def checks(judges: Judges) -> Iterator[Check]:
    base = build(judges.folder / "starts")
    positions = f"{len(IDS)} positions"
    for name, options in STARTS.items():
        folder = judges.folder / f"start-{name}"
        theirs = judges.ask("judge_adapters.py", what="started", folder=str(base), options=options, ids=IDS,
                            adapter=str(folder))
        model = load_model(base)
        add_lora(model, _config(options))
        taken = {stored_name(f"{path}.weight").removesuffix(".weight"): wrapper.adapters["default"]
                 for path, wrapper in wrappers(model).items()}
        worst = max(difference_of(part.scale * part.start_B @ part.start_A, theirs[f"start.{path}"])
                    for path, part in taken.items())
        yield Check(f"adapter, {name}: what is taken from a matrix", "peft", f"{len(taken)} matrices", f"Δ {worst:.1e}",
                    worst < BOUND)
        model = load_model(base)
        load_adapter(model, folder)
        worst = compare(model, theirs, name)
        yield Check(f"adapter, {name}: theirs here, merged too", "peft", positions, f"Δ {worst:.1e}", worst < BOUND)
        yield _ours_there(judges, base, name, _config(options))
    yield _ours_there(judges, base, "DoRA at PiSSA", LoRAConfig(rank=2, dora=True, lora_init="pissa"))
    by_layer = LoRAConfig(rank=2, rank_pattern=RANKS, alpha_pattern={"q_proj": 3.0})
    yield _ours_there(judges, base, "rank by layer", by_layer)
    yield _loftq(judges, base)
    yield _rates(judges, base)


def _config(options: dict) -> LoRAConfig:
    return LoRAConfig(rank=options["r"], alpha=options["lora_alpha"], targets=tuple(options["target_modules"]),
                      rslora=options.get("use_rslora", False), lora_init=options["init_lora_weights"])


def _ours_there(judges: Judges, base: Path, name: str, config: LoRAConfig) -> Check:
    model = load_model(base)
    add_lora(model, config, generator=torch.Generator().manual_seed(0))
    stir(model)
    folder = judges.folder / f"start-{name}-ours"
    save_adapter(model, folder)
    theirs = judges.ask("judge_adapters.py", what="merged", folder=str(base), adapter=str(folder), ids=IDS)
    worst = compare(model, theirs, name)
    return Check(f"adapter, {name}: ours there, merged too", "peft", f"{len(IDS)} positions", f"Δ {worst:.1e}",
                 worst < BOUND)


def _loftq(judges: Judges, base: Path) -> Check:
    model, config = load_model(base), LoRAConfig(rank=2, lora_init="loftq")
    starts = quantize_around(model, config, bits=8)
    floats, folder = judges.folder / "loftq-base", judges.folder / "loftq"
    save_model(model, judges.folder / "loftq-bits")
    add_lora(model, config)
    begin_at(model, starts)
    stir(model)
    save_adapter(model, folder)
    plain = load_model(judges.folder / "loftq-bits")
    dequantize(plain)
    save_model(plain, floats)
    theirs = judges.ask("judge_adapters.py", what="merged", folder=str(floats), adapter=str(folder), ids=IDS)
    with torch.inference_mode():
        worst = difference_of(model(torch.tensor([IDS]))[0], theirs["logits"])
    return Check("adapter, LoftQ on 8 bits: ours on their floats", "peft", f"{len(IDS)} positions", f"Δ {worst:.1e}",
                 worst < BOUND)


def _rates(judges: Judges, base: Path) -> Check:
    options = {"r": 2, "target_modules": ["q_proj", "down_proj"]}
    theirs = judges.ask("judge_adapters.py", what="rates", folder=str(base), options=options, lr=1e-3, ratio=16.0)
    model = load_model(base)
    model.tokenizer = bpe.train(["no text is read here"], 260)
    add_lora(model, LoRAConfig(rank=2, targets=("q_proj", "down_proj")))
    trainer = Trainer(model, Given(), [Sample([1, 2, 3], [False, True, True], "0")],
                      config=TrainConfig(lr=1e-3, lora_plus=16.0))
    rate = {id(each): group["lr"] for group in trainer.optimizer.param_groups for each in group["params"]}
    ours = {_peft_name(name): rate[id(each)] for name, each in trainer.masters.learned.items()}
    differ = sum(ours.get(name) != each for name, each in theirs.items()) + len(ours.keys() ^ theirs.keys())
    return Check("LoRA+: the rate of every parameter", "peft", f"{len(theirs)} tensors", f"{differ} differ", not differ)


def _peft_name(name: str) -> str:
    """layers.0.self_attn.q_proj.adapters.default.lora_A -> layers.0.self_attn.q_proj.lora_A.default.weight"""
    path, letter = name.rsplit(".adapters.default.", 1)
    return f"{path}.{letter}.default.weight"
