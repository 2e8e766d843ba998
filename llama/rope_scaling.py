"""Rotary frequencies for texts longer than those of pre-training: one function a kind, the kinds of config.RopeScaling.

Position m turns pair i by m · θ^(-2i/K). Beyond the trained length low frequencies come to angles that the model has
never seen, while high ones have been round often. So the low ones are slowed down and the high ones, which tell
neighbours apart, are kept; the kinds differ in where the border lies. Static NTK needs no function: it is a larger θ.

Try: in `_yarn`, let the ramp begin and end between pairs although `truncate` is set; tests/test_model.py
(test_worked_example_yarn_by_hand) fails, and tuned models read long texts a little worse than their makers said.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from llama.config import LlamaConfig


def _linear(exponents: Tensor, config: LlamaConfig, length: Tensor) -> Tensor:
    """Every frequency / factor: positions are interpolated (arXiv:2306.15595, eq. 3)."""
    return 1 / config.rope_theta**exponents / config.rope_scaling.factor


def _dynamic(exponents: Tensor, config: LlamaConfig, length: Tensor) -> Tensor:
    """θ · (factor · length / trained - (factor - 1))^(K/(K-2)) for θ, once a text is longer than what was trained.

    So the lowest frequency is stretched just as far as the text needs it (dynamic NTK; arXiv:2309.00071, section 3.3,
    in the form that Hugging Face gives it, which also stretches by more than length / trained).
    """
    K, factor = config.head_dim, config.rope_scaling.factor
    stretch = (factor * length / config.max_position_embeddings - (factor - 1)).clamp(min=1)
    theta = config.rope_theta * stretch ** (K / (K - 2))
    return 1 / theta.unsqueeze(-1) ** exponents


def _llama3(exponents: Tensor, config: LlamaConfig, length: Tensor) -> Tensor:
    """Kept with more than high_freq_factor turns over the original context, divided by `factor` with fewer than
    low_freq_factor, going linearly from one to the other between (Llama 3.1's published code)."""
    scaling, frequencies = config.rope_scaling, 1 / config.rope_theta**exponents
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    keep = keep.clamp(0, 1)
    return frequencies * keep + frequencies / scaling.factor * (1 - keep)


def _yarn(exponents: Tensor, config: LlamaConfig, length: Tensor) -> Tensor:
    """As `_llama3`, from beta_fast turns to beta_slow, with a ramp over the numbers i of the pairs.

    The paper's ramp runs over turns (arXiv:2309.00071, eq. 17 and 18), its published code over pairs, and models are
    trained with the code. The other half of YaRN, sharper attention, is `RopeScaling.attention_scaling`.
    """
    scaling, frequencies, K = config.rope_scaling, 1 / config.rope_theta**exponents, config.head_dim

    def pair_with(turns: float) -> float:                           # the i whose wave turns so often; no whole number
        wavelength = scaling.original_max_position_embeddings / turns
        return K * math.log(wavelength / (2 * math.pi)) / (2 * math.log(config.rope_theta))

    first, last = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, K - 1)
    pairs = torch.arange(K // 2, device=exponents.device).float()
    divide = ((pairs - first) / ((last - first) or 0.001)).clamp(0, 1)
    return frequencies / scaling.factor * divide + frequencies * (1 - divide)


# (exponents 2i/K (K/2,), config, length of the text (1,) or (B, 1)) -> (K/2,), or (…, K/2) where it depends on length
ROPE_SCALING: dict[str, Callable[[Tensor, LlamaConfig, Tensor], Tensor]] = {
    "linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn}
