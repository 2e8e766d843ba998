"""Samples of other texts among those that are learned, at a share of the tokens: English, while Chinese is learned.

    samples   z z z z z z z z        eight of 128 tokens each; a share of 0.2 is then 256 tokens of another text
    others    e e e e e              of which so many are drawn, the same in every epoch; of too few, some come twice
    mixed     z z z z z z z z e e    each epoch orders them anew, so any part has about that share

Try: draw `own * share` tokens; tests/test_mixed_samples.py (test_worked_example_of_a_share) fails: a fifth of what is
there is a sixth of what is there then.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

import torch

from llama.tasks.task import Sample


class MixedSamples(Sequence):
    """`samples`, and behind them as many of each other text as make up its share of all tokens.

    others  name -> (samples, share), each share between 0 and 1, and all of them together

    Raises ValueError for other shares, and for a text without a sample.
    """

    def __init__(self, samples: Sequence[Sample], others: dict[str, tuple[Sequence[Sample], float]], *, seed: int = 0):
        shares = [share for _, share in others.values()]
        if not (all(0 < share < 1 for share in shares) and sum(shares) < 1):
            raise ValueError(f"texts are mixed in at shares of {', '.join(map(str, shares))}; each must lie between 0 "
                             "and 1, and all of them together leave something to the data")
        own = sum(sample.reads for sample in samples)
        self._places = [(samples, i) for i in range(len(samples))]
        self._said = []
        for number, (name, (other, share)) in enumerate(others.items()):
            if not len(other):
                raise ValueError(f"{name}: the text to mix in holds no sample")
            drawn = _drawn(other, own * share / (1 - sum(shares)), seed=seed + number)
            self._places += [(other, i) for i in drawn]
            read = sum(other[i].reads for i in drawn)
            times = f", each {len(drawn) / len(other):.1f} times" if len(drawn) > len(other) else ""
            self._said.append(f"{name} is mixed in: {min(len(drawn), len(other)):,} of its {len(other):,} samples"
                              f"{times}, {read:,} tokens beside the data's {own:,}")

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [samples[j] for samples, j in self._places[i]]
        samples, j = self._places[i]
        return samples[j]

    def __str__(self) -> str:
        return "\n".join(self._said)


def _drawn(samples: Sequence[Sample], tokens: float, *, seed: int) -> list[int]:
    """At random, each once before any comes again: as near to so many tokens as samples allow, but one at least."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn, read = [], 0
    for i in cycle(order):
        reads = samples[i].reads
        if drawn and read + reads / 2 > tokens:
            return drawn
        drawn.append(i)
        read += reads
    return drawn
