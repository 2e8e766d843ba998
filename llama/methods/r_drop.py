"""R-Drop: two passes of other dropout shall say the same (Liang and others 2021, arXiv:2106.14448, eq. 2 to 4).

    L = ½ (L₁ + L₂) + α/4 (KL(P₁‖P₂) + KL(P₂‖P₁))          the paper's, halved, so that a loss is one pass's

P are the probabilities of the rows that are learned: of the vocabulary, or of labels. A model whose dropout is off says
the same twice: it is for runs with --dropout of LoRA, --word-dropout, or --noise.

Try: leave one of the two divergences out; tests/test_r_drop.py (test_two_ways_the_loss_equals_its_equation) fails.
"""

from torch import Tensor

from llama.model import Llama
from llama.tasks.task import Batch, Task
from llama.training.objective import Plain, chunked_sum


class RDrop(Plain):
    """The task's loss in two passes, and `alpha` times how far they are apart."""

    graphs = 2

    def __init__(self, model: Llama, task: Task, alpha: float, *, readable: bool = False):
        super().__init__(model, task, readable=readable)
        self.alpha = alpha

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        if not self.model.training:
            return super().forward(batch)
        targets, head = self.task.targets(batch), self.task.head(self.model)
        one, two = self.states(batch), self.states(batch)           # (N, D)

        def apart(one: Tensor, two: Tensor, targets: Tensor) -> Tensor:
            p, q = (self.task.log_probs(head(states).float(), targets) for states in (one, two))
            return ((p.exp() - q.exp()) * (p - q)).sum()            # KL(P₁‖P₂) + KL(P₂‖P₁)

        loss = (self.loss(one, targets) + self.loss(two, targets)) / 2
        loss = loss + self.alpha / 4 * chunked_sum(apart, one, two, targets, head=head)
        return loss, self.task.count(targets)
