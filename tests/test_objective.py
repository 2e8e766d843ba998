import pytest
import torch
from torch import nn

from llama.training.objective import chunked_cross_entropy


@pytest.mark.parametrize("N", [0, 1, 5, 12])
def test_two_ways_loss_in_chunks_equals_loss_at_once_with_gradients(N):
    torch.manual_seed(0)
    head, targets = nn.Linear(8, 11, bias=False), torch.randint(0, 11, (N,))
    results = []
    for loss_of in (lambda h: nn.functional.cross_entropy(head(h), targets, reduction="sum"),
                    lambda h: chunked_cross_entropy(h, targets, head, chunk=5)):
        hidden = torch.randn(N, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        head.zero_grad()
        loss = loss_of(hidden)
        loss.backward() if N else None
        results.append((loss.detach(), hidden.grad, head.weight.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b) if N or a is not None and a.dim() == 0 else None


def test_worked_example_uniform_logits_cost_log_of_the_vocabulary():
    head = nn.Linear(2, 4, bias=False)
    nn.init.zeros_(head.weight)
    assert chunked_cross_entropy(torch.ones(3, 2), torch.tensor([0, 1, 3]), head).item() == pytest.approx(3 * 1.386294)
