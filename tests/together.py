"""What tests/test_distributed.py lets one process do alone, and two processes together: small runs, and their results.

    python tests/together.py FOLDER             # writes FOLDER/results-RANK.pt
    torchrun … tests/together.py fail           # rank 1 fails at its second step
"""

import contextlib
import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llama import cli, distributed  # noqa: E402
from llama.config import preset  # noqa: E402
from llama.evaluate import evaluate  # noqa: E402
from llama.lora import LoRAConfig, add_lora  # noqa: E402
from llama.model import Llama  # noqa: E402
from llama.quantize import quantize  # noqa: E402
from llama.sharded import whole  # noqa: E402
from llama.tasks.classification import ClassificationTask  # noqa: E402
from llama.tasks.instruction import InstructionTask  # noqa: E402
from llama.trainer import TrainConfig, Trainer  # noqa: E402
from tokenizer import bpe  # noqa: E402

TURNS = [("Hi", "Hello!"), ("你是谁？", "我是小驼。"), ("Count", "one two three four five six"), ("Bye", "Bye."),
         ("Add 1 and 2", "3"), ("天气", "今天天气很好。"), ("Be still", "."), ("And more", "of the same, and longer")]
TALK = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "place": f"here:{i}"}
        for i, (q, a) in enumerate(TURNS)]
LABELS = [{"text": q, "label": "short" if len(a) < 7 else "long", "place": f"here:{i}"}
          for i, (q, a) in enumerate(TURNS)]
TOKENIZER = bpe.train([q + a for q, a in TURNS] * 4, 300, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))


def fresh(kind: str) -> Llama:
    torch.manual_seed(0)
    model = Llama(preset("test", vocab_size=TOKENIZER.vocab_size, tie_word_embeddings=kind != "untied")).eval()
    model.tokenizer = TOKENIZER
    if kind == "int8":
        quantize(model, bits=8, report=False)
    if kind in ("lora", "int8"):
        add_lora(model, LoRAConfig(rank=2), generator=torch.Generator().manual_seed(0))
    return model


def run(kind: str, parallel: str, *, output: Path | None = None, samples: int = 7, **more) -> dict:
    """Ten steps, the last of each epoch smaller than the number of processes asks for, and what there is to compare."""
    labels = kind == "labels"
    examples = (LABELS if labels else TALK)[:samples]
    settings = {"epochs": 10, "max_steps": 10, "batch_size": 6 // distributed.size(), "lr": 1e-2, "save_every": 5,
                "clip": 0.5, "parallel": parallel}
    dtype, resume = more.pop("dtype", None), more.pop("resume", False)
    trainer = Trainer(fresh(kind), ClassificationTask() if labels else InstructionTask(chat_format="chatml"), examples,
                      examples[:5], config=TrainConfig(**settings | more), output=output, dtype=dtype, resume=resume)
    gradients: dict[str, torch.Tensor] = {}
    norms: list[float] = []
    step = trainer.optimizer.step

    def spy() -> None:
        if not gradients:
            gradients.update({name: whole(p.grad).clone() for name, p in trainer.masters.learned.items()})
        step()

    trainer.optimizer.step = spy
    report = trainer._report
    trainer._report = lambda progress, rate, norm: (norms.append(norm), report(progress, rate, norm))
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        result = trainer.train()
        scores = evaluate(trainer.objective, trainer.eval_samples, TOKENIZER, batch_size=2)
        model = trainer.whole()
    trained = {} if model is None else {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = {"loss": result["train"]["loss"], "tokens": result["train"]["tokens"], **result["eval"]}
    return {"gradients": gradients, "norms": norms, "trained": trained, "train": losses, "eval": scores}


def cases(folder: Path) -> dict[str, dict]:
    kinds = ("ddp", "fsdp") if distributed.size() > 1 else ("ddp",)
    results = {}
    for parallel in kinds:
        for kind in ("full", "untied", "lora", "labels"):
            output = folder / f"{distributed.size()}-{kind}-{parallel}" if kind in ("full", "lora") else None
            results[f"{kind} {parallel}"] = run(kind, parallel, output=output)
        results[f"bfloat16 {parallel}"] = run("full", parallel, dtype=torch.bfloat16)
        results[f"accumulate {parallel}"] = run("full", parallel, accumulate=3, batch_size=2 // distributed.size())
        results[f"checkpoint {parallel}"] = run("lora", parallel, checkpoint_activations=True)
        for kind in ("full", "lora"):
            half = folder / f"{distributed.size()}-{kind}-{parallel}-half"
            run(kind, parallel, output=half, max_steps=5, schedule="constant", warmup=0.0)
            results[f"{kind} resumed {parallel}"] = run(kind, parallel, output=half, schedule="constant", warmup=0.0,
                                                        resume=True)
            results[f"{kind} constant {parallel}"] = run(kind, parallel, schedule="constant", warmup=0.0)
    results["int8 ddp"] = run("int8", "ddp")
    return results


def main() -> None:
    torch.set_num_threads(1)
    distributed.join(torch.device("cpu"))
    if sys.argv[1] == "fail":
        step = Trainer._update

        def fail_on_rank_1(trainer, indices):
            if trainer.step == 1 and distributed.rank() == 1:
                raise ValueError("this rank cannot go on")
            return step(trainer, indices)

        Trainer._update = fail_on_rank_1
        run("full", "ddp")
    else:
        results = cases(Path(sys.argv[1]))
        torch.save(results, Path(sys.argv[1], f"results-{distributed.size()}-{distributed.rank()}.pt"))


if __name__ == "__main__":
    cli.run(main)
