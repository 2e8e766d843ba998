"""Sampling distributions against transformers' logits processors: every combination of a grid of settings."""

from collections.abc import Iterator
from dataclasses import asdict, fields
from itertools import product
from typing import Any

import torch
from torch import Tensor

from llama.sampling import SamplingConfig, probabilities
from tests.parity.judges import Check, Judges

GRID = {"temperature": (0.3, 1.0, 1.7), "top_k": (0, 1, 7, 500), "top_p": (0.01, 0.35, 0.9, 1.0),
        "min_p": (0.0, 0.05, 0.5), "repetition_penalty": (1.0, 1.3, 0.8)}
VOCABULARY = 80
LIMIT = 1e-6


def distributions(request: dict[str, Any]) -> dict[str, Tensor]:
    """{"settings": [a dict of SamplingConfig's fields]} -> (settings, B, V) probabilities."""
    logits, texts = request["tensors"]["logits"], request["tensors"]["texts"]
    seen = torch.zeros(logits.shape, dtype=torch.bool).scatter(1, texts, True)
    return {"mass": torch.stack([probabilities(logits, SamplingConfig(**settings), seen)
                                 for settings in request["settings"]])}


def checks(judges: Judges) -> Iterator[Check]:
    generator = torch.Generator().manual_seed(0)
    spread = torch.tensor([0.01, 0.5, 2.0, 5.0, 12.0])[:, None]     # from nearly flat to nearly sure
    tensors = {"logits": torch.randn(5, VOCABULARY, generator=generator) * spread,
               "texts": torch.randint(VOCABULARY, (5, 20), generator=generator)}
    grid = [dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())]
    alone = {name: [asdict(SamplingConfig(**(_off() | {name: value}))) for value in values]
             for name, values in GRID.items()}
    for name, settings in (alone | {"all combinations": grid}).items():
        kept = f"sampling/{name}" if name in alone else ""
        theirs = judges.ask("judge_sampling.py", what="distributions", keep=kept, tensors=tensors, settings=settings)
        ours = distributions({"settings": settings, "tensors": tensors})
        worst = (ours["mass"] - theirs["mass"]).abs().max().item()
        yield Check(f"probabilities, {name}", "transformers", f"{len(settings) * 5:,} rows", f"Δ {worst:.1e}",
                    worst < LIMIT)


def _off() -> dict[str, float]:
    """A config that leaves the distribution as it is."""
    return {field.name: 1.0 if field.name in ("temperature", "top_p") else 0 for field in fields(SamplingConfig)}
