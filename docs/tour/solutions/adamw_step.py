"""A solution of the exercise of docs/tour/13-adamw.md."""

from torch import Tensor


def adamw_step(theta: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, *, lr: float, beta1: float, beta2: float,
               decay: float, eps: float = 1e-8) -> tuple[Tensor, Tensor, Tensor]:
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
    return theta * (1 - lr * decay) - lr * m_hat / (v_hat.sqrt() + eps), m, v
