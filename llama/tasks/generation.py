"""Text generation: learn to predict every next token of running text.

Documents are laid end to end, each closed by the end-of-text id, and the long row of ids is cut into blocks:

    ids      a b c d ■ e f g h i ■ j k ■            block_size 4, overlap 1
    block 0  a[b c d ■]                             [ ] is learned, what stands before it is given
    block 1        d ■[e f g]
    block 2              f g[h i ■]
    block 3                    i ■[j k ■]

So every id but the very first is learned exactly once, whatever the overlap.

Try: let `stride` be block_size; tests/test_tasks.py (test_property_every_id_is_learned_once) fails.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llama.datasets.language_modeling import LanguageModelingDataset, check_blocks
from llama.datasets.token_file import TokenFile, document_ids
from llama.tasks.task import Sample, Task
from tokenizer.base import Tokenizer


class TextGenerationTask(Task):
    """Blocks of running text, all of it learned."""

    checks = (*Task.checks, "document-ends")
    packs = True

    def samples(self, dataset: LanguageModelingDataset | TokenFile, tokenizer: Tokenizer) -> Sequence[Sample]:
        """The blocks of all documents, in their order; those of a token file are read when they are asked for."""
        if isinstance(dataset, TokenFile):
            return Blocks(dataset, dataset.block_size, dataset.overlap)
        pieces = [np.array(document_ids(example["text"], tokenizer), np.uint32) for example in dataset]
        return Blocks(np.concatenate(pieces), dataset.block_size, dataset.overlap)

    def documents(self, dataset: LanguageModelingDataset | TokenFile) -> int:
        """How many documents there are, each to be closed by an end."""
        return dataset.header["documents"] if isinstance(dataset, TokenFile) else len(dataset)

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Sample:
        ids = document_ids(example["text"], tokenizer)
        return Sample(ids, [False] + [True] * (len(ids) - 1), example.get("place", ""))

    def prompt(self, text: str, tokenizer: Tokenizer) -> list[int]:
        from llama.generation import encode_prompt

        return encode_prompt(tokenizer, text)


class Blocks(Sequence):
    """A long row of ids, cut: block i reads block_size ids and predicts the one after each. The last may be shorter.

    Blocks begin block_size - overlap ids apart. In all but the first, the first `overlap` predictions do not count:
    the block before has made them, with more context.
    """

    def __init__(self, ids: Any, block_size: int, overlap: int = 0):
        check_blocks(block_size, overlap)
        self.ids, self.block_size, self.overlap = ids, block_size, overlap
        self.stride = block_size - overlap
        to_learn = len(ids) - 1
        self.count = 0 if to_learn < 1 else 1 + max(0, -(-(to_learn - block_size) // self.stride))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[each] for each in range(*i.indices(self.count))]
        if not -self.count <= i < self.count:
            raise IndexError(f"block {i} of {self.count}")          # ends iteration: a Sequence counts up to it
        i %= self.count
        ids = self.ids[i * self.stride : i * self.stride + self.block_size + 1].tolist()
        given = 1 + (self.overlap if i else 0)
        return Sample(ids, [False] * given + [True] * (len(ids) - given), f"block {i + 1} of {self.count}")
