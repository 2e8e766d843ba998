"""What tests/test_distributed.py lets one process do alone, and two processes together: small runs, and their results.

    torchrun --nproc-per-node 2 tests/together.py FOLDER

writes FOLDER/rank-0.pt and rank-1.pt; then, in one more run, rank 1 fails at its second step while rank 0 waits for it.
"""

import contextlib
import math
import os
import signal
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llama.checkpoint import PretrainedLlama  # noqa: E402
from llama.config import preset  # noqa: E402
from llama.lora import LoRAConfig, add_lora  # noqa: E402
from llama.methods import grpo  # noqa: E402
from llama.methods.adversarial import Adversarial, AdversarialConfig  # noqa: E402
from llama.methods.augmentation import Augmentation  # noqa: E402
from llama.methods.distillation import DistillConfig, Distilled, ModelTeacher  # noqa: E402
from llama.methods.preferences import Preference, begin  # noqa: E402
from llama.model import Llama  # noqa: E402
from llama.quantization.swap import quantize  # noqa: E402
from llama.runtime import cli, distributed  # noqa: E402
from llama.tasks.classification import ClassificationTask  # noqa: E402
from llama.tasks.instruction import InstructionTask  # noqa: E402
from llama.tasks.preference import PreferenceTask  # noqa: E402
from llama.trainer import Trainer, as_written  # noqa: E402
from llama.training.evaluation import evaluate  # noqa: E402
from llama.training.fsdp import cpu_can_shard, full_tensor  # noqa: E402
from llama.training.objective import Plain  # noqa: E402
from llama.training.optimizer import TrainConfig  # noqa: E402
from tokenizer import bpe  # noqa: E402

TURNS = [("Hi", "Hello!"), ("你是谁？", "我是小驼。"), ("Count", "one two three four five six"), ("Bye", "Bye."),
         ("Add 1 and 2", "3"), ("天气", "今天天气很好。"), ("Be still", "."), ("And more", "of the same, and longer")]
TALK = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "place": f"here:{i}"}
        for i, (q, a) in enumerate(TURNS)]
PAIRS = [{"messages": talk["messages"][:1], "chosen": talk["messages"][1], "place": talk["place"],
          "rejected": {"role": "assistant", "content": "No." * (i % 3 + 1)}} for i, talk in enumerate(TALK)]
LABELS = [{"text": q, "label": "short" if len(a) < 7 else "long", "place": f"here:{i}"}
          for i, (q, a) in enumerate(TURNS)]
TOKENIZER = bpe.train([q + a for q, a in TURNS] * 4, 300, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))


def fresh(kind: str) -> Llama:
    torch.manual_seed(0)
    shape = preset("test", vocab_size=TOKENIZER.vocab_size, tie_word_embeddings=kind != "untied")
    model = PretrainedLlama(shape, TOKENIZER).eval()
    if kind == "int8":
        quantize(model, bits=8, report=False)
    if kind in ("lora", "int8", "pissa"):
        start = "pissa" if kind == "pissa" else "default"
        add_lora(model, LoRAConfig(rank=2, lora_init=start), generator=torch.Generator().manual_seed(0))
    return model


def attacked(model: Llama, task: InstructionTask, *, readable: bool = False) -> torch.nn.Module:
    """Three points of a climb, each distilled; the questions are augmented, too."""
    teacher = ModelTeacher(fresh("untied"), task)
    teacher.model.embed_tokens.weight.data.mul_(2)
    return Adversarial(Distilled(model, task, teacher, DistillConfig("symmetric", temperature=2.0)),
                       AdversarialConfig("freelb", epsilon=0.1))


def run(kind: str, parallel: str, *, output: Path | None = None, change=lambda trainer: None, dtype=None,
        resume: bool = False, **more) -> dict:
    """Ten steps over 7 samples, the last of each epoch smaller than others, and what there is to compare."""
    if parallel == "fsdp" and not cpu_can_shard():
        return {}
    data = {"labels": LABELS, "pairs": PAIRS}.get(kind, TALK)
    task = {"labels": ClassificationTask, "pairs": partial(PreferenceTask, "chatml")}.get(
        kind, partial(InstructionTask, "chatml"))()
    settings = {"epochs": 10, "max_steps": 10, "batch_size": 6 // distributed.size(), "lr": 1e-2, "eval_every": 10,
                "save_every": 5, "schedule": "constant", "warmup": 0.0, "clip": 0.5, "parallel": parallel}
    objective = {"pairs": Preference, "attacked": attacked}.get(kind, Plain)
    augment = Augmentation(task, TOKENIZER, {"swap": 0.4, "insert": 0.3}) if kind == "attacked" else as_written
    trainer = Trainer(fresh(kind), task, data[:7], data[:5], config=TrainConfig(**settings | more), output=output,
                      dtype=dtype, resume=resume, objective=objective, augment=augment)
    if kind == "pairs":
        begin(trainer)
    found: dict = {"norms": [], "seed": torch.initial_seed()}
    step, report = trainer.optimizer.step, trainer._report

    def spy() -> None:
        if "gradients" not in found:
            found["gradients"] = {name: full_tensor(p.grad).clone() for name, p in trainer.masters.learned.items()}
        step()

    trainer.optimizer.step = spy
    trainer._report = lambda progress, rate, norm: (found["norms"].append(norm), report(progress, rate, norm))
    attention = trainer.model.layers[0].self_attn
    attention.register_forward_pre_hook(lambda module, inputs: found.update(rotary=inputs[1].dtype))
    change(trainer)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        try:
            found["train"] = trainer.train()
            found["eval"] = evaluate(trainer.objective, trainer.eval_samples, TOKENIZER, batch_size=2)
            model = trainer.whole_model()
            found["trained"] = {n: p.detach().clone() for n, p in model.named_parameters()} if model else {}
        except (KeyboardInterrupt, RuntimeError) as error:
            found["stopped"] = f"{type(error).__name__} after step {trainer.step}: {error}"
    return found | {"seed": torch.initial_seed()}


def draw_and_learn() -> dict:
    """Two steps of GRPO, rewarded by the length of what was said: which answers, and what was learned."""
    with patch.dict(grpo.REWARDS, arithmetic=lambda text, question: float(len(text) % 3)):
        run = grpo.GRPO(fresh("lora"), grpo.GRPOConfig(steps=2, prompts=2, group=4, new_tokens=4, lr=1e-2, kl=0.05,
                                                       updates=2, eval_prompts=0))
        with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
            run.train()
    return {"rewards": run.rewards, "learned": {name: each.clone() for name, each in run._learned().items()}}


def alone() -> dict[str, dict]:
    return {"full": run("full", "ddp"), "lora": run("lora", "ddp"), "labels": run("labels", "ddp"),
            "pissa": run("pissa", "ddp", lr=1e-3, lora_plus=2.0), "pairs": run("pairs", "ddp"),
            "grpo": draw_and_learn(), "int8": run("int8", "ddp"), "attacked": run("attacked", "ddp"),
            "bfloat16": run("full", "ddp", dtype=torch.bfloat16)}


def together(folder: Path) -> dict[str, dict]:
    half = {"max_steps": 5, "save_every": 3}
    results = {
        "full ddp": run("full", "ddp"),
        "full ddp, accumulated": run("full", "ddp", batch_size=1, accumulate=3),
        "full fsdp": run("full", "fsdp", output=folder / "full"),
        "lora ddp": run("lora", "ddp", output=folder / "lora"),
        "lora fsdp, checkpointed": run("lora", "fsdp", checkpoint_activations=True),
        "labels ddp": run("labels", "ddp"),
        "labels fsdp": run("labels", "fsdp"),
        "pissa fsdp": run("pissa", "fsdp", lr=1e-3, lora_plus=2.0, output=folder / "pissa"),
        "pairs ddp": run("pairs", "ddp"),
        "grpo": draw_and_learn(),
        "pairs fsdp": run("pairs", "fsdp"),
        "int8 ddp": run("int8", "ddp"),
        "bfloat16 ddp": run("full", "ddp", dtype=torch.bfloat16),
        "bfloat16 fsdp": run("full", "fsdp", dtype=torch.bfloat16),
        "attacked ddp": run("attacked", "ddp"),
        "attacked fsdp": run("attacked", "fsdp"),
        "interrupted": run("lora", "ddp", output=folder / "interrupted", change=interrupt_rank_1),
        "burst": run("full", "fsdp", output=folder / "burst", change=burst_on_rank_1),
        "skipped ddp": run("lora", "ddp", change=burst_on_rank_1, skip_nonfinite=1),
        "skipped fsdp": run("full", "fsdp", change=burst_on_rank_1, skip_nonfinite=1),
    }
    run("full", "fsdp", output=folder / "half-full", **half)
    if distributed.is_rank0() and cpu_can_shard():                  # so that all must go on from step 3
        damage(folder / "half-full.training" / "last-5" / "rank-1.safetensors")
    distributed.barrier()
    results["full fsdp, resumed"] = run("full", "fsdp", output=folder / "half-full", resume=True)
    run("lora", "ddp", output=folder / "half-lora", **half)
    results["lora ddp, resumed"] = run("lora", "ddp", output=folder / "half-lora", resume=True)
    return results


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 16                                               # a bit of the last number
    path.write_bytes(content)


def at_step(trainer: Trainer, step: int, act) -> None:
    update = trainer._update

    def updating(indices):
        if trainer.step == step and distributed.rank() == 1:
            act()
        return update(indices)

    trainer._update = updating


def interrupt_rank_1(trainer: Trainer) -> None:
    at_step(trainer, 2, lambda: os.kill(os.getpid(), signal.SIGINT))


def burst_on_rank_1(trainer: Trainer) -> None:
    """At its fourth step alone."""
    def burst() -> None:
        forward = trainer.objective.forward
        trainer.objective.forward = lambda batch: (forward(batch)[0] * math.nan, 1)
        at_step(trainer, 4, lambda: setattr(trainer.objective, "forward", forward))

    at_step(trainer, 3, burst)


def fail_on_rank_1(trainer: Trainer) -> None:
    def fail() -> None:
        raise FileNotFoundError(2, "No such file or directory", "data/gone.txt")

    at_step(trainer, 1, fail)


def main() -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(torch.device("cpu"))
    torch.save(together(Path(sys.argv[1])), Path(sys.argv[1], f"rank-{distributed.rank()}.pt"))
    run("full", "ddp", change=fail_on_rank_1)


if __name__ == "__main__":
    cli.run(main)
