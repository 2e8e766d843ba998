"""NEFTune: uniform noise on the embeddings (Jain and others 2023, arXiv:2310.05914, algorithm 1).

    x' = x + α / √(T D) · u,   u ~ Uniform(-1, 1) in each of T · D places of an example

It is the control for adversarial training: an equally blind step costs nothing, so what FGM gains must be more. T is
the example's own length, not that of the padded row.

Try: divide by √D alone; tests/test_noise.py (test_worked_example_the_size_of_the_noise) fails.
"""

import torch
from torch import Tensor, nn

from llama.tasks.task import IGNORE_INDEX, Batch
from llama.training.embeddings import on_embeddings
from llama.training.objective import Wrapper
from llama.training.packing import sample_of_position


class Noisy(Wrapper):
    """The objective inside, on embeddings with noise of size `alpha`: 5 to 15 in the paper."""

    def __init__(self, objective: nn.Module, alpha: float):
        super().__init__(objective)
        self.alpha = alpha

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        if not self.model.training:
            return self.objective(batch)
        size = self.alpha / (lengths(batch)[sample_of_position(batch)] * self.model.config.hidden_size).sqrt()
        with on_embeddings(self.model, lambda x: x + (2 * torch.rand_like(x) - 1) * size.unsqueeze(-1).to(x.dtype)):
            return self.objective(batch)


def lengths(batch: Batch) -> Tensor:
    """Positions of each sample of a batch, padding aside: (n,) int64, 1 at least."""
    for name in ("lengths", "sizes"):                               # packed; or with a head of labels
        if name in batch:
            return batch[name]
    T = batch["targets"].shape[1]
    read = (batch["targets"] != IGNORE_INDEX) * torch.arange(1, T + 1, device=batch["targets"].device)
    return read.amax(1).clamp(min=1)                                # up to the last that is learned
