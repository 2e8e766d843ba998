"""Where A and B begin: not at noise and zero, but at what the matrix W itself says.

    PiSSA   W = U S Vᵀ: the R largest singular values, B₀ = U √S, A₀ = √S Vᵀ       (arXiv:2404.02948, eq. 2 and 3)
    OLoRA   W = Q R:    the first R columns and rows,  B₀ = Q,    A₀ = R           (arXiv:2406.01775, section 3)
    LoftQ   W ≈ Q + B A in turn: Q the few bits of W - B A, B A the R largest singular values of W - Q
                                                                                   (arXiv:2311.08815, algorithm 1)

PiSSA and OLoRA learn a part of W itself, so what the start takes must be taken from W: W - s B₀ A₀ + s B A. Here W
stays as it is and s (B A - B₀ A₀) stands beside it, which is the same sum. So such an adapter is on the disk an
ordinary LoRA of rank 2 R, of [B, -B₀] and [A; A₀], on the original base: the form into which PEFT converts its own.

LoftQ's few bits are not those of W alone, so they are a base of their own, and are saved as one (finetune.py).

Try: let `pissa` forget the division by `scale`; tests/test_lora_starts.py
(test_property_a_new_start_is_the_base_and_the_best_of_its_rank) fails.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from weights.formats.quantized_matrix import QuantizedMatrix

TURNS = 5                                                           # of LoftQ's alternation; the paper's T

Factors = tuple[Tensor, Tensor]                                     # A (R, in) and B (out, R), float32


def pissa(weight: Tensor, rank: int, scale: float) -> Factors:
    """scale · B A is the best approximation of W (out, in) of that rank; A and B share the singular values evenly."""
    U, S, Vh = torch.linalg.svd(weight.float(), full_matrices=False)
    root = (S[:rank] / scale).sqrt()
    return (root[:, None] * Vh[:rank]).contiguous(), (U[:, :rank] * root).contiguous()  # as FSDP wants them


def olora(weight: Tensor, rank: int, scale: float) -> Factors:
    """B is orthonormal, and scale · B A what the first `rank` columns of Q say of W (out, in).

    As in the paper's code and in PEFT, A is R itself: what is taken from W is scale times QR's part, and so learned.
    """
    Q, R = torch.linalg.qr(weight.float())
    return R[:rank].contiguous(), Q[:, :rank].contiguous()


STARTS: dict[str, Callable[[Tensor, int, float], Factors]] = {"pissa": pissa, "olora": olora}


def start(name: str, weight: Tensor, rank: int, scale: float) -> Factors:
    """A and B of STARTS. Raises ValueError for a rank that W does not have."""
    if rank > (most := min(weight.shape)):
        raise ValueError(f"--lora-init {name} takes {rank} directions of a matrix that has {most}; give a --rank of "
                         f"{most} at most")
    return STARTS[name](weight, rank, scale)


def loftq(weight: Tensor, rank: int, scale: float, quantized: Callable[[Tensor], QuantizedMatrix], *,
          turns: int = TURNS) -> tuple[QuantizedMatrix, Tensor, Tensor, list[float]]:
    """Few bits, and A and B, such that Q + scale · B A is near to W (out, in).

    quantized  what makes few bits of a matrix
    ->         also ‖W - Q - scale · B A‖ / ‖W‖: of W's own bits without B A, then after each turn

    The best turn is taken: rounding may make a later one worse.
    """
    weight = weight.float()
    whole, low_rank = weight.norm().clamp(min=1e-30), torch.zeros_like(weight)
    best, residuals = None, []
    for _ in range(turns):
        packed = quantized(weight - low_rank)
        left = weight - packed.dequantize()
        if not residuals:
            residuals.append((left.norm() / whole).item())
        A, B = pissa(left, rank, scale)
        low_rank = scale * B @ A
        residuals.append(((left - low_rank).norm() / whole).item())
        if best is None or residuals[-1] < min(residuals[1:-1]):
            best = packed, A, B
    return *best, residuals
