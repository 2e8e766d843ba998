"""What LoRA computes: a thin B A beside a matrix W that stays as it is, W x + α/R · B A x (arXiv:2106.09685, eq. 3).

`LoRALinear` has the face of the linear layer that it wraps, and adds up the parts of the active adapters. DoRA, a part
that learns the rows' lengths beside their directions, is the same to it: each part says what it adds to W x, and what
it adds to W. `ModulesToSaveWrapper` is for an embedding or a head that an adapter learns whole.

Try: start B as A starts; tests/test_lora.py (test_property_a_new_adapter_changes_nothing) fails, and training would
begin with repairing the damage.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.lora.rows import TrainableRows
from llama.lora.starts import STARTS, start
from llama.lora.targets import LoRAConfig


def weight_of(linear: nn.Module) -> Tensor:
    """W as numbers; of a quantised layer, those that it stands for."""
    return linear.dequantized() if hasattr(linear, "dequantized") else linear.weight


class LoRAPart(nn.Module):
    """x ↦ scale · B A x in the dtype of `x`; A (R, in) and B (out, R) are float32, or small updates would be lost.

    scale  α/R (arXiv:2106.09685, section 4.1), or α/√R (arXiv:2312.03732, theorem 3.2)

    Where A and B begin at a part of W (starts.py), that part is subtracted again: x ↦ scale · (B A - B₀ A₀) x.
    """

    def __init__(self, base: nn.Module, config: LoRAConfig, *, path: str = "",
                 generator: torch.Generator | None = None):
        super().__init__()
        rank = config.rank_of(path)
        A = torch.empty(rank, base.in_features, dtype=torch.float32)
        nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)            # U(-1/√in, 1/√in), as in PEFT
        self.lora_A = nn.Parameter(A)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=torch.float32))
        self.dropout = nn.Dropout(config.dropout)
        self.scale = config.scale_of(path)
        self.config = config
        if config.lora_init in STARTS:
            A, B = start(config.lora_init, weight_of(base).detach(), rank, self.scale)
            self.lora_A.data, self.lora_B.data = A, B
            self.register_buffer("start_A", A.clone(), persistent=False)
            self.register_buffer("start_B", B.clone(), persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B as they act and as they are stored: (R, in) and (out, R), or [A; A₀] and [B, -B₀] of rank 2 R."""
        if self.config.lora_init not in STARTS:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.start_A]), torch.cat([self.lora_B, -self.start_B], dim=1)

    def low_rank(self, x: Tensor) -> Tensor:
        A, B = self.factors()
        inner = functional.linear(x, A.to(x.dtype))                                 # (…, R)
        return functional.linear(inner, B.to(x.dtype)) * self.scale

    def forward(self, x: Tensor, base: nn.Module, y: Tensor) -> Tensor:
        """What is added to y = base(x)."""
        return self.low_rank(self.dropout(x))

    def product(self) -> Tensor:
        """scale · B A: (out, in), float32."""
        A, B = self.factors()
        return self.scale * (B.float() @ A.float())

    def delta_weight(self, weight: Tensor) -> Tensor:
        """What is added to W: (out, in), float32."""
        return self.product()

    def tensors(self) -> dict[str, nn.Parameter]:
        """What is learned, by PEFT's names in a file."""
        return {"lora_A.weight": self.lora_A, "lora_B.weight": self.lora_B}

    def stored(self) -> dict[str, Tensor]:
        """What a file holds, by the same names: `factors`."""
        return self.tensors() | dict(zip(("lora_A.weight", "lora_B.weight"), self.factors(), strict=True))


class DoRA(LoRAPart):
    """W x ↦ m ⊙ V x with the rows of V = W + scale · B A scaled to length 1 (arXiv:2402.09353, eq. 5).

    m (out,) starts as the lengths of W's rows, so that nothing changes. The lengths of V's rows are taken as constants
    in the gradient, as the paper proposes in section 4.3. They follow B A, so each forward pass builds V once: merge
    before generating much.
    """

    def __init__(self, base: nn.Module, config: LoRAConfig, *, path: str = "",
                 generator: torch.Generator | None = None):
        super().__init__(base, config, path=path, generator=generator)
        self.magnitude = nn.Parameter(weight_of(base).detach().float().norm(dim=1))

    def gain(self, weight: Tensor) -> Tensor:
        """m over the lengths of V's rows: (out,), float32, 1 where the row's length did not change."""
        with torch.no_grad():
            lengths = (weight.float() + self.product()).norm(dim=1)
        return self.magnitude / lengths

    def forward(self, x: Tensor, base: nn.Module, y: Tensor) -> Tensor:
        """m ⊙ V x - W x, as (gain - 1) ⊙ W x + gain ⊙ (scale · B A x): small numbers stay small in bfloat16."""
        weight = weight_of(base)
        gain = self.gain(weight)
        if self.training and self.dropout.p:
            x = self.dropout(x)                                     # W x must see what is left, too
            y = functional.linear(x, weight)
        elif getattr(base, "bias", None) is not None:
            y = y - base.bias
        return (gain - 1).to(x.dtype) * y + gain.to(x.dtype) * self.low_rank(x)

    def delta_weight(self, weight: Tensor) -> Tensor:
        return self.gain(weight)[:, None] * (weight.float() + self.product()) - weight.float()

    def tensors(self) -> dict[str, nn.Parameter]:
        return super().tensors() | {"lora_magnitude_vector": self.magnitude}


class LoRALinear(nn.Module):
    """base(x) and the active adapters' parts, added up. `base` is anything with the face of nn.Linear."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base = base
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return sum((self.adapters[name](x, self.base, y) for name in self.active), start=y)

    def merged(self, dtype: torch.dtype) -> Tensor:
        """W with the active parts in it, added in float32 and rounded once."""
        parts = (self.adapters[name].delta_weight(self.weight) for name in self.active)
        return sum(parts, start=self.weight.float()).to(dtype)

    @property
    def weight(self) -> Tensor:
        return self.base.weight


class ModulesToSaveWrapper(nn.Module):
    """An embedding or a head that an adapter learns whole: a float32 copy at work, the original waiting in `base`.

    The copy of a bias, which only heads of labels have, is in `biases`.
    """

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        self.adapters = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        self.active: tuple[str, ...] = ()                           # one at most

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return self.base(x)
        copy = self.adapters[self.active[0]]
        if isinstance(self.base, nn.Embedding):
            return functional.embedding(x, copy).to(self.weight.dtype)
        bias = self.biases[self.active[0]].to(x.dtype) if self.active[0] in self.biases else None
        return functional.linear(x, copy.to(x.dtype), bias)

    def merged(self, dtype: torch.dtype) -> Tensor:
        return self.adapters[self.active[0]].to(dtype, copy=True)

    def merged_bias(self, dtype: torch.dtype) -> Tensor:
        return self.biases[self.active[0]].to(dtype, copy=True)

    @property
    def weight(self) -> Tensor:
        return self.base.weight                                     # the model's dtype stays the base's


Wrapper = LoRALinear | ModulesToSaveWrapper | TrainableRows
