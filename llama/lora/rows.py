"""Rows of the embedding and of the head that are learned by themselves: those of new pieces (llama/resize.py).

    y = embed_tokens(x), but where x is a learned row's id, that row
    z = lm_head(h), but at the ids of learned rows, those rows · h

The matrices below stay as they are to the bit, in few bits too; an adapter holds the learned rows alone, in float32.
On disk that is PEFT's `trainable_token_indices`, and where nothing else is learned its type TRAINABLE_TOKENS. Embedding
and head that are tied share the rows.

Try: let the head's `forward` leave out `index_copy_`; tests/test_lora_rows.py
(test_two_ways_merged_equals_adapter_and_old_rows_stay) fails.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.lora.targets import LoRAConfig

DELTA = "token_adapter.trainable_tokens_delta"                      # PEFT's name; it holds the rows, not a difference


class RowsPart(nn.Module):
    """Rows in float32 beside a matrix, which start as its own. slots (V,): which of them an id has, -1 for none."""

    def __init__(self, base: nn.Module, ids: Sequence[int], config: LoRAConfig):
        super().__init__()
        self.config = config
        self.register_buffer("ids", torch.tensor(ids, device=base.weight.device), persistent=False)         # (n,)
        slots = torch.full((base.weight.shape[0],), -1, device=base.weight.device)
        slots[self.ids] = torch.arange(len(ids), device=slots.device)
        self.register_buffer("slots", slots, persistent=False)
        weight = base.packed.rows(self.ids).dequantize(torch.float32) if hasattr(base, "packed") else \
            base.weight.detach()[self.ids]
        self.rows = nn.Parameter(weight.to(torch.float32, copy=True))                                       # (n, D)

    def hold(self, direction: Tensor) -> None:
        """Learn nothing along a direction (D,): a step of all rows along it would move all of their logits at once."""
        unit = direction.to(self.rows.device) / direction.norm()
        self.rows.register_hook(lambda grad: grad - torch.outer(grad @ unit, unit))

    def tensors(self) -> dict[str, nn.Parameter]:
        """What is learned, by PEFT's name in a file."""
        return {DELTA: self.rows}

    stored = tensors


class TrainableRows(nn.Module):
    """An embedding or a head, in floats or in few bits, with learned rows in the place of its own."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()                           # one at most

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if not self.active:
            return y
        part = self.part
        if not hasattr(self.base, "out_features"):                  # an embedding: x (B, T) ids
            slots = part.slots[x]
            learned = functional.embedding(slots.clamp(min=0), part.rows).to(y.dtype)
            return torch.where((slots >= 0).unsqueeze(-1), learned, y)
        return y.index_copy_(-1, part.ids, functional.linear(x, part.rows.to(x.dtype)))

    @property
    def rows(self) -> nn.Parameter | None:
        """Those that are learned, (n, D)."""
        return self.part.rows if self.active else None

    def grad_rows(self, dz: Tensor, h: Tensor) -> Tensor:
        """Their gradient, of a head with dz (N, V) behind it and h (N, D) before: (n, D) float32."""
        return (dz[:, self.part.ids].t() @ h).float()

    def grad_input(self, dz: Tensor) -> Tensor:
        """That of what is before a head: (N, V) -> (N, D)."""
        of_rows = 0
        if self.active:
            of_rows = dz[:, self.part.ids] @ self.part.rows.to(dz.dtype)
            dz = dz.index_fill(1, self.part.ids, 0)
        return of_rows + (self.base.grad_input(dz) if hasattr(self.base, "grad_input") else dz @ self.base.weight)

    def merged(self, dtype: torch.dtype) -> Tensor:
        return self.base.weight.to(dtype, copy=True).index_copy_(0, self.part.ids, self.part.rows.detach().to(dtype))

    @property
    def part(self) -> Any:
        return self.adapters[self.active[0]]

    @property
    def weight(self) -> Tensor:
        return self.base.weight                                     # the model's dtype stays the base's
