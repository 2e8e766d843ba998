"""Whole models against transformers: small random ones of many shapes, forward and backward.

Questions are answered twice, by `model` here and by `model` in judge_models.py, like the questions of parts.py.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llama.checkpoint import PretrainedLlama, load_tensors, plain_tensors
from llama.config import LlamaConfig
from llama.config_json import config_from_dict, config_to_dict
from llama.model import Llama
from llama.tasks.task import Sample, Task
from llama.training.objective import Plain
from tests.parity.judges import Check, Judges, difference
from tests.parity.parts import SHAPE, scaled

SMALL = replace(SHAPE, num_attention_heads=4)


def shapes() -> dict[str, LlamaConfig]:
    """Llamas, and a sibling of each kind; those with a scaling read 24 tokens and were trained on 8."""
    return {
        "grouped queries": SMALL,
        "tied head": replace(SMALL, tie_word_embeddings=True),
        "multi-head": replace(SMALL, num_key_value_heads=4),
        "multi-query": replace(SMALL, num_key_value_heads=1),
        "head_dim = D / H": replace(SMALL, head_dim=2),
        "biases of attention": replace(SMALL, attention_bias=True),
        "all biases": replace(SMALL, attention_bias=True, mlp_bias=True),
        "biases of q, k, v (Qwen 2)": replace(SMALL, qkv_bias=True),
        "sliding window (Mistral)": replace(SMALL, sliding_window=5),
        "norms of each head (Qwen 3)": replace(SMALL, qk_norm="head"),
        "norms of all heads, and behind (OLMo 2)": replace(SMALL, qk_norm="all", norm_after=True),
        "a block without positions (SmolLM 3)": replace(SMALL, no_rope_layers=(1,)),
        "four multipliers (Granite)": replace(SMALL, embedding_multiplier=3.0, residual_multiplier=0.5,
                                              attention_multiplier=0.3, logits_scaling=2.0),
        **{f"scaling {kind}": config for kind, config in scaled(replace(SMALL, head_dim=8), 8).items()},
    }


def long_shapes() -> dict[str, LlamaConfig]:
    """Shapes to read 3,000 tokens, of which 1,024 were trained on where a scaling stretches them."""
    small = replace(SHAPE, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    return {"no scaling": small, "sliding window": replace(small, sliding_window=300),
            **scaled(small, 1024)}


def model(request: dict[str, Any]) -> dict[str, Tensor]:
    """Logits, the mean loss of the next token, and its gradient for every weight."""
    ours = PretrainedLlama(config_from_dict(request["config"]))
    weights = {name.removeprefix("weight."): tensor.clone() for name, tensor in request["tensors"].items()
               if name.startswith("weight.")}
    load_tensors(ours, weights.items(), dtype=None, place=Path("the question"))
    ids = request["tensors"]["ids"]
    task = Task()
    loss, targets = Plain(ours, task)(task.collate([Sample(row, [True] * len(row)) for row in ids.tolist()]))
    (loss / targets).backward()
    return {"logits": ours(ids).detach(), "loss": (loss / targets).detach().reshape(1)} | {
        f"gradient.{name}": parameter.grad for name, parameter in ours.named_parameters()}


def checks(judges: Judges) -> Iterator[Check]:
    for name, config in shapes().items():
        yield _compare(judges, f"model, {name}", config, (1, 24), 1e-5, keep=f"models/{name}")
    for name, config in long_shapes().items():
        yield _compare(judges, f"model, 3,000 tokens, {name}", config, (1, 3000), 1e-4)


def _compare(judges: Judges, what: str, config: LlamaConfig, size: tuple[int, int], limit: float, *,
             keep: str = "") -> Check:
    torch.manual_seed(0)
    built = PretrainedLlama(config)
    tensors = {"ids": torch.randint(config.vocab_size, size)}
    for name, tensor in plain_tensors(built).items():
        tensors[f"weight.{name}"] = tensor + torch.randn_like(tensor) * 0.2
    request = {"config": config_to_dict(config)}
    theirs = judges.ask("judge_models.py", what="model", tensors=tensors, keep=keep, **request)
    worst = difference(model(request | {"tensors": tensors}), theirs)
    return Check(f"{what}: logits and gradients", "transformers", f"{size[0] * size[1]:,} positions",
                 f"{worst:.1e} relative", worst < limit)


@torch.inference_mode()
def compare_logits(judges: Judges, what: str, ours: Llama, folder: Path, ids: dict[str, list[int]], *,
                   limit: float = 1e-3) -> Check:
    """Largest difference over all positions of all texts, in float32."""
    theirs = judges.ask("judge_models.py", what="logits", folder=str(folder), ids=ids)
    worst = max((ours(torch.tensor([row]))[0] - theirs[name]).abs().max().item() for name, row in ids.items())
    return Check(what, "transformers", f"{sum(map(len, ids.values())):,} positions", f"Δ {worst:.1e}", worst < limit)
