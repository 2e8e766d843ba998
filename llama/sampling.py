"""From logits to the next token: pure functions, each with its paper, applied in Hugging Face's order.

    repetition penalty -> temperature -> top-k -> top-p -> min-p -> softmax -> draw

Each filter leaves the logits it keeps as they are and sets the rest to -inf; the softmax at the end shares the mass out
anew. Everything is float32, whatever the model computes in: bfloat16 has three digits, too few to add 100,000 masses.

Try: let `top_p` drop the token that crosses p as well (`before + mass >= p`); tests/test_sampling.py
(test_worked_example_top_p_keeps_the_token_that_crosses) fails, and a sure model is left with no token at all.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from llama.runtime.ranges import FACTORS, MANY, Range, check_ranges


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen."""

    temperature: Annotated[float, "divides the logits; 0 always takes the likeliest token", FACTORS] = 0.7
    top_k: Annotated[int, "only the N likeliest tokens; 0 is off", Range(0, MANY)] = 0
    top_p: Annotated[float, "only the fewest likeliest tokens that together reach this mass; 1 is off",
                     Range(0.0, 1.0)] = 0.9
    min_p: Annotated[float, "only tokens at least this fraction as likely as the likeliest; 0 is off",
                     Range(0.0, 1.0)] = 0.0
    repetition_penalty: Annotated[float, "makes tokens already in the text less likely; 0 and 1 are off",
                                  FACTORS] = 1.0

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def penalises(self) -> bool:
        """Whether it matters which tokens are in the text already."""
        return self.repetition_penalty not in (0, 1)


def pop_config(options: dict[str, Any]) -> SamplingConfig:
    """The config that is among mixed keyword options; its fields are taken out, the others stay."""
    return SamplingConfig(**{field.name: options.pop(field.name) for field in fields(SamplingConfig)
                             if field.name in options})


def tokens_seen(texts: Sequence[Sequence[int]], vocab_size: int, config: SamplingConfig,
                device: torch.device) -> Tensor | None:
    """(B, V) bool, `seen` of `sample`: the tokens that each text holds; None where no penalty asks for them."""
    if not config.penalises:
        return None
    seen = torch.zeros(len(texts), vocab_size, dtype=torch.bool, device=device)
    for row, ids in zip(seen, texts, strict=True):
        row[list(ids)] = True
    return seen


def repetition_penalty(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Tokens already in the text less likely (CTRL, arXiv:1909.05858, section 4.1).

    The paper divides the logit; below zero that would make the token likelier, so there it is multiplied instead.
    """
    return logits.where(~seen, torch.where(logits > 0, logits / penalty, logits * penalty))


def top_k(logits: Tensor, k: int) -> Tensor:
    """The k largest logits (arXiv:1805.04833, section 5.4) and those equal to the k-th."""
    least = logits.topk(min(k, logits.shape[-1])).values[..., -1:]
    return logits.masked_fill(logits < least, -math.inf)


def top_p(logits: Tensor, p: float) -> Tensor:
    """The fewest likeliest tokens whose mass reaches p, but one at least (nucleus, arXiv:1904.09751, eq. 2)."""
    return _among_all(*nucleus(logits, p), logits)


def nucleus(logits: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """`top_p` among few: ids (C,) in ascending order, all that any row keeps among them, and their logits (..., C).

    All tokens of a mass below (1 - p) / V weigh less than 1 - p together, so p is reached without them: they are left
    out before the rest, some hundreds of a hundred thousand, is sorted.
    """
    mass = logits.softmax(-1)
    few = _reaching(mass.reshape(-1, mass.shape[-1]), (1 - p) / mass.shape[-1])
    logits, mass = logits[..., few], mass[..., few]                 # (..., C)
    order = logits.argsort(dim=-1, descending=True, stable=True)
    mass = mass.gather(-1, order)
    before = mass.cumsum(-1) - mass
    behind = before >= p
    behind[..., 0] = False                                          # the first always stays, for p = 0 as well
    return few, logits.masked_fill(behind.scatter(-1, order, behind), -math.inf)    # back in the order of the ids


def min_p(logits: Tensor, p: float) -> Tensor:
    """Tokens at least p times as likely as the likeliest (arXiv:2407.01082, eq. 3, taken in logarithms)."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -math.inf)


def probabilities(logits: Tensor, config: SamplingConfig, seen: Tensor | None = None) -> Tensor:
    """The distribution that the next token is drawn from.

    logits  (..., V)
    seen    (..., V) bool, True for tokens already in the text; None for none
    ->      (..., V) float32, the last axis sums to 1; temperature 0 gives all of it to the first of the largest logits
    """
    logits = _penalised(logits, config, seen)
    if config.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, likeliest(logits).unsqueeze(-1), 1.0)
    return _among_all(*_filtered(logits, config), logits).softmax(-1)


def _filtered(logits: Tensor, config: SamplingConfig) -> tuple[Tensor | None, Tensor]:
    """Ids (C,) that any row may draw, None for all, and their logits (..., C) by temperature and filters."""
    few = None
    logits = (logits - logits.amax(-1, keepdim=True)) / config.temperature      # at most 0: nothing overflows
    if config.top_k:
        logits = top_k(logits, config.top_k)
    if config.top_p < 1:
        few, logits = nucleus(logits, config.top_p)
    if config.min_p:
        logits = min_p(logits, config.min_p)                        # the likeliest are among the few
    return few, logits


def _among_all(few: Tensor | None, logits: Tensor, like: Tensor) -> Tensor:
    """Logits (..., C) of few ids as (..., V), -inf for all others."""
    return logits if few is None else torch.full_like(like, -math.inf).index_copy(-1, few, logits)


def likeliest(logits: Tensor) -> Tensor:
    """(...,) int64, the first of the largest along the last axis. On CPUs numpy's search takes a tenth of torch's."""
    if logits.device.type != "cpu":
        return logits.argmax(-1)
    return torch.from_numpy(np.asarray(logits.float().numpy().argmax(-1)))


def _reaching(mass: Tensor, least: float) -> Tensor:
    """(C,) int64, the ids whose mass (B, V) is at least so much in any row. On CPUs, again, numpy is faster."""
    if mass.device.type != "cpu":
        return (mass >= least).any(0).nonzero().squeeze(-1)
    return torch.from_numpy(np.flatnonzero((mass.numpy() >= least).any(0)))


def _penalised(logits: Tensor, config: SamplingConfig, seen: Tensor | None) -> Tensor:
    logits = logits.float()
    if seen is None or not config.penalises:
        return logits
    return repetition_penalty(logits, seen, config.repetition_penalty)


def check_finite(logits: Tensor) -> None:
    """Raise RuntimeError when the logits hold NaN or infinity, rather than to go on with a choice among them."""
    if not all(map(math.isfinite, logits.amax(-1).flatten().tolist())):     # the largest is NaN if any is
        raise RuntimeError("the model's logits are not finite, so no token can be chosen; "
                           "if it runs in float16, take --dtype float32 or bfloat16")


def sample(logits: Tensor, config: SamplingConfig, seen: Tensor | None,
           generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one token a row: the first whose cumulated mass exceeds a uniform number in [0, 1).

    logits      (B, V)
    generators  B on the CPU, one a row: each gives one number a token, so a row's text depends neither on the device
                nor on its neighbours in the batch
    ->          (B,) int64 on the CPU

    Raises RuntimeError when the logits hold NaN or infinity.
    """
    if logits.device.type == "cpu" and len(logits) > 1:     # a row fits into the processor's cache, a batch does not
        seen_rows = [None] * len(logits) if seen is None else seen.split(1)
        return torch.cat([sample(row, config, seen_row, [generator]) for row, seen_row, generator
                          in zip(logits.split(1), seen_rows, generators, strict=True)])
    if config.temperature == 0:
        scores = _penalised(logits, config, seen)
        tokens = likeliest(scores)                                  # NaN counts as the largest
        check_finite(scores.gather(-1, tokens[:, None]))
        return tokens.cpu()
    check_finite(logits)
    few, logits = _filtered(_penalised(logits, config, seen), config)
    mass = logits.softmax(-1).cpu().double().cumsum(-1)             # (B, C): those left out would add nothing
    uniform = torch.cat([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    drawn = torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True).squeeze(-1)
    return drawn if few is None else few.cpu()[drawn]
