"""Words as vectors: which are near each other, and what is to 东京 as 中国 is to 北京.

    vector      the row of the input embedding; of a word of several pieces, the mean of its rows
    states      instead the last layer's state behind the word, which a fine-tuned model has made for its task
    nearness    cos(u, v) = u·v / |u||v|
    analogy     b - a + c, of vectors of length 1, and the word nearest to that which is none of the three
                (3CosAdd: Mikolov, Yih and Zweig 2013, as Levy and Goldberg 2014 write it)

Candidates are the pieces of the vocabulary, or words that one gives. No candidates are control tokens, parts of a
character, signs that are not printed, rows that are all 0, and dead pieces: those that no text is ever encoded as.

A word is taken as it is written. Many vocabularies have one piece for «dog» at the beginning of a line and another for
« dog» within it, with another row each; `blank` puts a blank before every word.

Try: leave out the division by lengths; tests/test_word_vectors.py
(test_two_ways_nearest_equals_a_sum_in_numpy) fails.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from llama.checkpoint import PretrainedLlama
from llama.datasets.words import Analogy
from llama.generation import eval_mode
from llama.heads import head_config
from llama.masks import bidirectional_mask
from llama.runtime.progress import Progress
from tokenizer.base import Tokenizer

log = logging.getLogger(__name__)
AT_ONCE = 4096                                                      # words whose vectors are made together
STATES_AT_ONCE = 64


class Neighbor(NamedTuple):
    """A word, and the cosine between its vector and the one that was asked for."""

    text: str
    similarity: float


class WordVectors:
    """Vectors of all candidates, (N, D) float32 of length 1, which take 4 · N · D bytes.

    words   the candidates; None takes the pieces of the vocabulary
    states  states of the last layer instead of rows of the embedding: every word runs through the model
    blank   every word stands behind a blank
    """

    def __init__(self, model: PretrainedLlama, words: Iterable[str] | None = None, *, states: bool = False,
                 blank: bool = False):
        if model.tokenizer is None:
            raise ValueError("this model has no tokenizer, so it knows no words; give a model folder")
        self.model, self.tokenizer, self.states, self.blank = model, model.tokenizer, states, blank
        self.alive: dict[int, bool] = {}
        if words is None:
            self.texts, self.ids = _pieces(self.tokenizer)
        else:
            self.texts = list(dict.fromkeys(words))
            self.ids = [self._ids(word) for word in self.texts]
        self.of_vocabulary = words is None
        self.table = self._unit(self.ids, watched=states)

    def nearest(self, word: str, top: int = 10) -> list[Neighbor]:
        """The candidates nearest to a word, the nearest first, of equals the earlier; the word itself is none,
        and of the vocabulary no piece that it is made of."""
        self._warn_of_parts(word)
        ids = self._ids(word)
        return self._neighbors(self._best(self._unit([ids])[0], top, but=[ids]))

    def analogy(self, a: str, b: str, c: str, top: int = 10) -> list[Neighbor]:
        """The candidates nearest to b - a + c: what is to c as b is to a. No piece of the three is one."""
        for word in (a, b, c):
            self._warn_of_parts(word)
        return self._neighbors(self._best_analogy((a, b, c), top))

    def accuracy(self, questions: Sequence[Analogy]) -> dict[str, Any]:
        """The share of questions whose d is the nearest, by section and of all, and among how many candidates.

        Raises ValueError for a d that is no candidate: it could never be found.
        """
        known = set(self.ids)
        right: dict[str, list[bool]] = defaultdict(list)
        for question in questions:
            if (wanted := self._ids(question.d)) not in known:
                raise ValueError(f"'{question.d}' is the answer to a question of analogy and none of the candidates; "
                                 "add it to the words")
            best = self._best_analogy(question[:3], 1)
            right[question.section].append(bool(best) and self.ids[best[0][0]] == wanted)
        every = [each for some in right.values() for each in some]
        return {"accuracy": sum(every) / len(every), "questions": len(every), "candidates": len(self.ids),
                "by_section": {name: sum(some) / len(some) for name, some in right.items() if name}}

    def _neighbors(self, found: list[tuple[int, float]]) -> list[Neighbor]:
        return [Neighbor(self.texts[i], value) for i, value in found]

    def _best_analogy(self, words: Sequence[str], top: int) -> list[tuple[int, float]]:
        """`_best` of b - a + c."""
        ids = [self._ids(word) for word in words]
        a, b, c = self._unit(ids)
        return self._best(functional.normalize(b - a + c, dim=0), top, but=ids)

    def _best(self, vector: Tensor, top: int, *, but: Sequence[tuple[int, ...]]) -> list[tuple[int, float]]:
        """(number, cosine) of the nearest candidates; whether a piece is dead is looked up for these alone.

        but  words that are none, nor is a piece of the vocabulary that they are made of
        """
        if self.of_vocabulary:
            but = [*but, *((id,) for ids in but for id in ids)]
        values, order = (self.table @ vector).sort(descending=True, stable=True)
        found = []
        for i, value in zip(order.tolist(), values.tolist(), strict=True):
            if len(found) == top:
                break
            if self.ids[i] not in but and self.table[i].any() and self._is_alive(i):
                found.append((i, value))
        return found

    def _is_alive(self, i: int) -> bool:
        """Whether the text of a piece is encoded as that piece. Words that were given are what they are."""
        if not self.of_vocabulary:
            return True
        if i not in self.alive:
            self.alive[i] = tuple(self.tokenizer.encode_continuation(self.texts[i])) == self.ids[i]
        return self.alive[i]

    def _ids(self, word: str) -> tuple[int, ...]:
        if not word.strip():
            raise ValueError("a word is empty; give at least one character")
        ids = self.tokenizer.encode_continuation(" " + word if self.blank else word)
        if not ids:
            raise ValueError(f"the vocabulary has no piece for '{word:.40}', so it has no vector; take another word")
        return tuple(ids)

    def _warn_of_parts(self, word: str) -> None:
        """Parts of characters are those of many others, and say little."""
        if parts := sum(map(self.tokenizer.is_part, self._ids(word))):
            log.warning("'%.40s' is spelled by %d parts of characters, which say little of it; take a model whose "
                        "vocabulary has these characters", word, parts)

    @torch.inference_mode()
    def _unit(self, rows: Sequence[tuple[int, ...]], *, watched: bool = False) -> Tensor:
        """Vectors (N, D) of length 1, or all 0, float32 on the CPU."""
        vectors = torch.empty(len(rows), self.model.config.hidden_size)
        progress = Progress(len(rows), "word")
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))                    # little padding
        size = STATES_AT_ONCE if self.states else AT_ONCE
        with eval_mode(self.model):
            for start in range(0, len(order), size):
                some = order[start : start + size]
                found = (self._states if self.states else self._rows)([rows[i] for i in some])
                vectors[some] = functional.normalize(found.cpu(), dim=-1)
                if watched:
                    progress.show(start + len(some))
        if watched:
            progress.clear()
        return vectors

    def _rows(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        """The mean of each word's rows of the embedding."""
        sizes = [len(row) for row in rows]
        flat = torch.tensor([id for row in rows for id in row], device=self.model.device)
        found = self.model.embed_tokens(flat).float()               # (ids, D)
        return torch.stack([some.mean(0) for some in found.split(sizes)])

    def _states(self, rows: Sequence[tuple[int, ...]]) -> Tensor:
        """The state of each word's last piece. Before it stands what begins a text: the state of a text's first token
        is much the same whatever it is, for models keep other things there.
        """
        ids = [[_start(self.tokenizer), *row] for row in rows]
        sizes = torch.tensor([len(row) for row in ids], device=self.model.device)
        T = max(map(len, ids))
        tokens = torch.tensor([row + [0] * (T - len(row)) for row in ids], device=self.model.device)
        head = head_config(self.model)
        mask = bidirectional_mask(sizes, T) if head and head.attention == "full" else None
        hidden = self.model.hidden(tokens, mask=mask)               # (B, T, D)
        return hidden[torch.arange(len(ids), device=self.model.device), sizes - 1].float()


def nearest(model: PretrainedLlama, word: str, top: int = 10, *, words: Iterable[str] | None = None,
            states: bool = False, blank: bool = False) -> list[Neighbor]:
    """The pieces of the vocabulary, or of `words`, whose vectors are nearest to that of a word: see WordVectors.

    Of many words, make one WordVectors and ask it.
    """
    return WordVectors(model, words, states=states, blank=blank).nearest(word, top)


def _pieces(tokenizer: Tokenizer) -> tuple[list[str], list[tuple[int, ...]]]:
    """(texts, ids) of the pieces of which something is seen: no control tokens, no parts of characters, no blanks."""
    special = set(tokenizer.special_ids.values())
    texts, ids = [], []
    for i in range(tokenizer.vocab_size):
        if i in special or tokenizer.is_part(i):
            continue
        text = tokenizer.token_bytes(i).decode()
        if any(sign.isprintable() and not sign.isspace() for sign in text):
            texts.append(text)
            ids.append((i,))
    return texts, ids


def _start(tokenizer: Tokenizer) -> int:
    """What stands before a text: its own token, or the end of the text before it, or a line end."""
    if tokenizer.adds_bos:
        return tokenizer.bos_id
    return tokenizer.eos_ids[0] if tokenizer.eos_ids else tokenizer.encode_continuation("\n")[0]
