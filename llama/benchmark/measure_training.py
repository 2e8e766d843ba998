"""This project's side of `python -m llama.benchmark --training`: steps of the Trainer, in a process of its own.

    python -m llama.benchmark.measure_training '{"model": "weights/NAME", "samples": "FILE", …}'      # serves
    llama/runtime/worker.py

    train   one update for each list of sample numbers: tokens that were read (padding is none), seconds, losses
    shape   how many weights the products of one token need, and how many of all are learned
    saved   seconds to save the model into a folder, and to load it again

Try: count padding as tokens; tests/test_measure_training.py (test_worked_example_what_is_counted) fails.
"""

import contextlib
import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch
    from torch import Tensor

    from llama.checkpoint import build_on_meta, load_model, load_tensors, save_model
    from llama.config import preset
    from llama.config_json import config_to_dict
    from llama.fast.compile_blocks import compilations
    from llama.lora.files import load_adapter
    from llama.lora.swap import adapter_names, add_lora, remove_lora
    from llama.lora.targets import LoRAConfig
    from llama.model import Llama
    from llama.pretrained import get_model
    from llama.quantization.swap import quantize_weight
    from llama.runtime.worker import Works, results_alone, serve
    from llama.tasks.task import Sample, Task
    from llama.trainer import Trainer
    from llama.training.optimizer import TrainConfig
    from tokenizer import bpe
    from tokenizer.base import Tokenizer
    from weights.formats.quantized_matrix import QuantizedMatrix


@dataclass(frozen=True)
class Setting:
    """What is trained, and how.

    model     a folder, or the name of a preset, which gets random weights
    samples   JSON: [[ids, learned], …]
    adapter   folder of the adapter to go on with, over a frozen base; "new" puts one on; "" trains every weight
    bits      of the frozen base, 8 or 4; 0 for floats
    dtype     to compute in, and of a frozen base in floats
    """

    model: str
    samples: str
    adapter: str = ""
    bits: int = 0
    dtype: str = "bfloat16"
    batch_size: int = 8
    lr: float = 2e-4
    compile: bool = False
    checkpoint_activations: bool = False
    checkpoint_mlps: bool = False


class Given(Task):
    """Samples as they are."""

    checks = ()

    def samples(self, dataset: Sequence[Sample], tokenizer: Tokenizer) -> Sequence[Sample]:
        return dataset


def works(setting: Setting) -> Works:
    samples = [Sample(ids, learned) for ids, learned in json.loads(Path(setting.samples).read_text(encoding="utf-8"))]
    model = model_of(setting)
    config = TrainConfig(batch_size=setting.batch_size, lr=setting.lr, schedule="constant", warmup=0.0,
                         checkpoint_activations=setting.checkpoint_activations,
                         checkpoint_mlps=setting.checkpoint_mlps, compile=setting.compile)
    model.train()
    masters = None if setting.adapter else getattr(torch, setting.dtype)
    trainer = Trainer(model, Given(), samples, config=config, dtype=masters)

    def train(steps: list[list[int]]) -> dict[str, Any]:
        losses, tokens, started = [], trainer.tokens, time.perf_counter()
        for numbers in steps:
            loss, targets, _ = trainer._update(numbers)             # the step itself, without the reports around it
            losses.append(loss / targets)
        return {"tokens": trainer.tokens - tokens, "seconds": time.perf_counter() - started, "losses": losses}

    def shape() -> dict[str, Any]:
        embeds = () if model.config.tie_word_embeddings else ("embed_tokens.weight",)
        shapes = build_on_meta(config_to_dict(model.config)).named_parameters()
        weights = {name: math.prod(p.shape) for name, p in shapes}
        return {"multiplied": sum(size for name, size in weights.items() if "norm" not in name and name not in embeds),
                "learned": sum(p.numel() for p in model.parameters() if p.requires_grad)}

    def saved() -> dict[str, Any]:
        return save_and_load(model)

    return {"train": train, "shape": shape, "saved": saved, "compilations": lambda: {"compilations": compilations()}}


def model_of(setting: Setting) -> Llama:
    """The model with its adapter. One of few bits, and random weights, is never there in floats, as when loading."""
    path = Path(setting.model)
    dtype = getattr(torch, setting.dtype) if setting.adapter else torch.float32
    if path.exists():
        model = get_model(path, dtype=dtype, bits=setting.bits)
    else:
        model = build_on_meta(config_to_dict(preset(setting.model)))
        load_tensors(model, random_tensors(model, bits=setting.bits), dtype=dtype, place=path)
    model.tokenizer = model.tokenizer or bpe.train(["no text is read here"], 260)
    if setting.adapter == "new":
        add_lora(model, LoRAConfig(rank=8, targets=("q_proj", "k_proj", "v_proj", "o_proj")),
                 generator=torch.Generator().manual_seed(0))
    elif setting.adapter:
        with contextlib.redirect_stderr(io.StringIO()):
            load_adapter(model, setting.adapter)
    return model


def random_tensors(model: Llama, *, bits: int) -> Iterator[tuple[str, Tensor | QuantizedMatrix]]:
    """A tensor for each parameter of a model on the meta device, one at a time, matrices rounded to `bits`.

    Small normal numbers, ones for norms. Matrices of one shape and kind share their numbers, made once and copied: a
    billion of them would take longer than all else.
    """
    generator, made = torch.Generator().manual_seed(0), {}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}     # before any is replaced
    for name, shape in shapes.items():
        if len(shape) < 2:
            yield name, torch.ones(shape)
            continue
        kind = shape, name.startswith(("embed_tokens", "lm_head"))
        if kind not in made:
            numbers = torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            made[kind] = quantize_weight(name.removesuffix(".weight"), numbers, bits) if bits else numbers
        yield name, _copy(made[kind])


def _copy(tensor: Tensor | QuantizedMatrix) -> Tensor | QuantizedMatrix:
    if isinstance(tensor, Tensor):
        return tensor.clone()
    return QuantizedMatrix(**{part: each.clone() for part, each in tensor.tensors().items()})


def save_and_load(model: Llama) -> dict[str, Any]:
    """The base, tensor by tensor, both ways. The one in memory is let go before the other is read."""
    for name in adapter_names(model):
        remove_lora(model, name)
    with tempfile.TemporaryDirectory(prefix="llama-benchmark-") as folder:
        started = time.perf_counter()
        save_model(model, Path(folder, "model"))
        seconds, size = time.perf_counter() - started, sum(f.stat().st_size for f in Path(folder, "model").iterdir())
        for parameter in model.parameters():
            parameter.data = parameter.data.new_empty(0)
        started = time.perf_counter()
        load_model(Path(folder, "model"))
        return {"saving": seconds, "loading": time.perf_counter() - started, "size": size}


def main() -> None:
    settings = json.loads(sys.argv[1])
    torch.set_num_threads(settings.pop("threads"))
    with results_alone() as results:
        serve(works(Setting(**settings)), results)


if __name__ == "__main__":
    from llama.runtime import cli

    cli.run(main)
