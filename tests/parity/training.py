"""Ten training steps by our Trainer against ten by transformers' Trainer, whole models and, through peft, adapters.

Same weights, same samples in the same micro-batches, ragged and partly masked; each side pads, shifts labels, weighs
micro-batches, clips, decays and steps by itself.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llama.checkpoint import PretrainedLlama, load_tensors, plain_tensors
from llama.config import LlamaConfig, preset
from llama.config_json import config_from_dict, config_to_dict
from llama.lora import LoRAConfig, add_lora, has_lora, load_adapter, save_adapter
from llama.model import Llama
from llama.tasks.task import Batch, Sample, Task
from llama.trainer import Trainer
from llama.training.optimizer import TrainConfig
from tests.parity.judges import Check, Judges, difference
from tests.parity.parts import SHAPE
from tokenizer import bpe

STEPS, BATCH, ACCUMULATE = 10, 2, 2
CASES: dict[str, tuple[LlamaConfig, LoRAConfig | None]] = {
    "all weights": (replace(SHAPE, tie_word_embeddings=True), None),
    "a million weights": (preset("tiny-1m"), None),
    "LoRA": (SHAPE, LoRAConfig(rank=4)),
    "rsLoRA": (SHAPE, LoRAConfig(rank=4, rslora=True)),
    "DoRA": (SHAPE, LoRAConfig(rank=4, dora=True)),
    "LoRA, whole head": (SHAPE, LoRAConfig(rank=4, modules_to_save=("embed_tokens", "lm_head"))),
}
KEPT = ("all weights", "LoRA", "DoRA")                              # as fixtures
SETTINGS = {"sgd": {"lr": 0.05, "weight_decay": 0.01}, "adamw": {"lr": 1e-3, "weight_decay": 0.1}}
FEW = 1e-3                                                          # of all weights, after AdamW


class Given(Task):
    """Samples as they are; remembers which of them came together."""

    def __init__(self) -> None:
        self.together: list[list[int]] = []

    def samples(self, dataset: Sequence[Sample], tokenizer: Any) -> Sequence[Sample]:
        return dataset

    def collate(self, samples: Sequence[Sample]) -> Batch:
        self.together.append([int(sample.place) for sample in samples])
        return super().collate(samples)

    def joined(self, batches: Sequence[Batch]) -> Batch:
        """Packed into one row; each has come alone before."""
        self.together[-len(batches) :] = [sum(self.together[-len(batches) :], [])]
        return super().joined(batches)


def train(request: dict[str, Any]) -> dict[str, Tensor]:
    """What ten steps make of the question's model: the loss of each, and what was learned, by its name in files."""
    return _train(request)[0]


def _train(request: dict[str, Any]) -> tuple[dict[str, Tensor], list[list[int]]]:
    model, task = _model(request), Given()
    model.tokenizer = bpe.train(["no text is read here"], 260)
    samples = [Sample(ids, learned, str(i)) for i, (ids, learned) in enumerate(request["samples"])]
    config = TrainConfig(lr=request["lr"], weight_decay=request["weight_decay"], clip=request["clip"],
                         batch_size=BATCH, accumulate=ACCUMULATE, schedule="constant", warmup=0.0)
    trainer = Trainer(model, task, samples, optimizer=request["optimizer"], config=config)
    sums = []
    trainer.objective.register_forward_hook(lambda module, inputs, output: sums.append((output[0].item(), output[1])))
    task.together.clear()                                           # the trainer looks at its data before it begins
    with redirect_stderr(StringIO()):                               # a line a step
        trainer.train()
    steps = [sums[i : i + ACCUMULATE] for i in range(0, len(sums), ACCUMULATE)]
    losses = torch.tensor([sum(loss for loss, _ in step) / sum(count for _, count in step) for step in steps])
    return {"loss": losses, **_learned(model)}, task.together


def checks(judges: Judges) -> Iterator[Check]:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(STEPS * BATCH * ACCUMULATE):
        length = int(torch.randint(4, 14, (), generator=generator))
        ids = torch.randint(SHAPE.vocab_size, (length,), generator=generator).tolist()
        samples.append((ids, (torch.rand(length, generator=generator) < 0.7).tolist()[:-1] + [True]))

    for optimizer, settings in SETTINGS.items():
        for name, (config, adapter) in CASES.items():
            model = _random(config)
            tensors = {f"weight.{key}": tensor for key, tensor in plain_tensors(model).items()}
            files = {}
            if adapter and adapter.dora:
                settings = settings | {"weight_decay": 0.0}         # theirs decays magnitudes, ours no vector
            if adapter:
                add_lora(model, adapter, generator=torch.Generator().manual_seed(1))
                files, learned = _adapter_files(model)
                tensors |= {f"adapter.{key}": tensor for key, tensor in learned.items()}
            request = {"config": config_to_dict(model.config), "adapter": files, "samples": samples,
                       "optimizer": optimizer, "clip": 1.0, **settings}
            ours, request["together"] = _train(request | {"tensors": tensors})
            theirs = judges.ask("judge_training.py", what="train", tensors=tensors, accumulate=ACCUMULATE,
                                keep=f"training/{optimizer}, {name}" if name in KEPT else "", **request)
            yield _row(optimizer, name, ours, theirs, lr=settings["lr"], library="peft" if adapter else "transformers")


def _row(optimizer: str, name: str, ours: dict[str, Tensor], theirs: dict[str, Tensor], *, lr: float,
         library: str) -> Check:
    what = f"{STEPS} steps of {optimizer}, {name}"
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        return Check(f"{what}: losses and weights", library, f"{len(odd)} odd names", odd[0], passed=False)
    count = sum(tensor.numel() for key, tensor in ours.items() if key != "loss")
    loss = difference({"loss": ours["loss"]}, {"loss": theirs["loss"]})
    if optimizer == "sgd":
        worst = difference(ours, theirs)
        return Check(f"{what}: losses and weights", library, f"{count:,} weights", f"{worst:.1e} relative",
                     worst < 1e-5)
    far = far_apart(ours, theirs, lr)
    return Check(f"{what}: losses; weights beyond lr / 100", library, f"{count:,} weights",
                 f"{loss:.1e}; {far / count:.2%}", loss < 1e-5 and far <= FEW * count)


def far_apart(ours: dict[str, Tensor], theirs: dict[str, Tensor], lr: float) -> int:
    """How many weights differ by more than a hundredth of AdamW's step.

    A first step of Adam is the sign of the gradient: where that is nothing but rounding, signs differ by chance.
    """
    return sum(int(((ours[key] - theirs[key]).abs() > lr / 100).sum()) for key in ours if key != "loss")


def _random(config: LlamaConfig) -> Llama:
    torch.manual_seed(0)
    model = PretrainedLlama(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    return model


def _model(request: dict[str, Any]) -> Llama:
    """The question's model, with its adapter on it."""
    model = PretrainedLlama(config_from_dict(request["config"]))
    tensors = {part: {name.removeprefix(f"{part}."): tensor.clone() for name, tensor in request["tensors"].items()
                      if name.startswith(f"{part}.")} for part in ("weight", "adapter")}
    load_tensors(model, tensors["weight"].items(), dtype=None, place=Path("the question"))
    if request["adapter"]:
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "adapter_config.json").write_text(json.dumps(request["adapter"]), encoding="utf-8")
            save_file(tensors["adapter"], Path(folder, "adapter_model.safetensors"))
            load_adapter(model, folder)
    return model


def _learned(model: Llama) -> dict[str, Tensor]:
    return _adapter_files(model)[1] if has_lora(model) else plain_tensors(model)


def _adapter_files(model: Llama) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """adapter_config.json and the tensors of adapter_model.safetensors."""
    with tempfile.TemporaryDirectory() as temporary:
        save_adapter(model, Path(temporary, "adapter"))
        config = json.loads(Path(temporary, "adapter", "adapter_config.json").read_text(encoding="utf-8"))
        return config, load_file(Path(temporary, "adapter", "adapter_model.safetensors"))
