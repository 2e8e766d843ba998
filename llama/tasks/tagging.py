"""Tagging: a tag for every character or word, from which entities (NER) or the words of a Chinese text are read.

    tokens    江    泽    民    在    北    京
    tags      B-PER I-PER I-PER O     B-LOC I-LOC           entities, BIO
              S     B     E     S     B     E               words, BMES

Each token is encoded by itself, with the blank before it, so that none shares an id with its neighbour; its tag is read
at its last id, which has seen all of it. The best row of tags among those that keep the rules of the scheme is found
exactly (viterbi.py). A sentence longer than `max_length` is read in windows that overlap; tags of the whole sentence
are decided together.

Try: take the best tag of every token by itself; tests/test_tagging.py (test_property_rows_are_always_legal) fails.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llama.checkpoint import PretrainedLlama
from llama.datasets.tags import SCHEMES, convert, spans_of, tag_set, transitions
from llama.metrics.spans import entity_counts, entity_scores, word_scores
from llama.tasks.labelled import Example, Labelled, LabelledTask, Result, counts_table, stride_windows
from llama.tasks.task import IGNORE_INDEX
from llama.tasks.viterbi import viterbi_decode
from tokenizer.base import Tokenizer

_CHARACTER = re.compile(r"\S")
# Words and signs; each character of the scripts that are written without blanks is a word here.
_WORD = re.compile("[\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|"
                   "[^\\W\u2e80-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+|[^\\w\\s]")


class Entity(NamedTuple):
    """text[start:end], and what it is."""

    text: str
    type: str
    start: int
    end: int


class TaggingTask(LabelledTask):
    """Sentences with "tokens" and "tags", in "text" with "starts", as llama.datasets.columns gives them.

    overlap  ids that neighbouring windows share, where a sentence is longer than max_length
    """

    kind = "tokens"
    scheme: str

    def __init__(self, labels: Iterable[str] = (), *, attention: str = "", max_length: int = 512, overlap: int = 64):
        super().__init__(labels, attention=attention, max_length=max_length)
        self.overlap = overlap

    def is_labelled(self, example: Example) -> bool:
        return "tags" in example

    def pieces(self, example: Example, tokenizer: Tokenizer) -> list[Labelled]:
        ids, goals = self._ids(example, tokenizer), self._goals(example)
        begin = [tokenizer.bos_id] if tokenizer.adds_bos else []
        room = self.max_length - len(begin)
        ids = [some[-room:] for some in ids]                        # of a token longer than all that is read, the end
        cuts = stride_windows([len(some) for some in ids], room, min(self.overlap, room // 2))
        borders = self._borders(cuts)
        pieces = []
        for (start, end), first, behind in zip(cuts, borders, borders[1:], strict=False):
            row, learned, notes = list(begin), [False] * len(begin), {}
            for token in range(start, end):
                row += ids[token]
                own = first <= token < behind
                learned += [False] * (len(ids[token]) - 1) + [own]
                if own and goals[token] != IGNORE_INDEX:
                    notes[len(row) - 1] = self.labels[goals[token]]
            pieces.append(Labelled(row, learned, example.get("place", ""), goals=goals[first:behind], notes=notes,
                                   example=example))
        return pieces

    def _borders(self, cuts: list[tuple[int, int]]) -> list[int]:
        """Which window a token belongs to that two have: the one that shows more of what is to be seen around it."""
        borders = [0]
        for (_, end), (start, _) in zip(cuts, cuts[1:], strict=False):
            borders.append((start + end + 1) // 2 if self.attention == "full" else end)
        return [*borders, cuts[-1][1]] if cuts else []

    def _ids(self, example: Example, tokenizer: Tokenizer) -> list[list[int]]:
        text, ids, end = example["text"], [], 0
        for token, start in zip(example["tokens"], example["starts"], strict=True):
            piece, end = text[end:start] + token, start + len(token)
            # A vocabulary may lack the bytes of a rare sign; something must stand there to have a tag.
            ids.append(tokenizer.encode_continuation(piece) or tokenizer.encode_continuation("?"))
        return ids

    def _goals(self, example: Example) -> list[int]:
        if "tags" not in example:
            return [IGNORE_INDEX] * len(example["tokens"])
        known = {label: i for i, label in enumerate(self.labels)}
        return [known.get(tag, IGNORE_INDEX) for tag in self._tags(example)]

    def _tags(self, example: Example) -> list[str]:
        """In the scheme of the head."""
        tags = example.get("tags", [])
        return tags if set(tags) <= set(self.labels) else convert(tags, self.scheme)

    def unknown(self, example: Example) -> list[str]:
        return sorted(set(self._tags(example)) - set(self.labels))

    def decode(self, samples: Sequence[Labelled], scores: Sequence[Tensor]) -> Result:
        example = samples[0].example
        best = viterbi_decode(torch.cat(list(scores)).log_softmax(-1).numpy(), *transitions(self.labels, self.scheme))
        tags = [self.labels[i] for i in best]
        found = {"place": example.get("place", ""), "text": example["text"], "predicted": self.spans(example, tags)}
        if "tags" not in example:
            return found | {"tags": tags}
        gold = convert(example["tags"], self.scheme)
        return found | {"gold": self.spans(example, gold), "correct": tags == gold, "tags": tags, "gold_tags": gold}

    def spans(self, example: Example, tags: list[str]) -> list[Any]:
        """What tags mark, for people and files."""
        raise NotImplementedError

    def example(self, given: str) -> Example:
        """A text that nobody has cut into tokens, as an example."""
        found = [match.span() for match in self._token().finditer(given)]
        return {"text": given, "tokens": [given[start:end] for start, end in found],
                "starts": [start for start, _ in found]}

    def _token(self) -> re.Pattern:
        return _CHARACTER


class NERTask(TaggingTask):
    """Entities: `predict` gives lists of Entity.

    types   of entities; () takes those of the model's head, or else of the data that is learned
    scheme  "BIO" or "BMES" (with O); whatever the data is written in, it is brought into this one
    """

    name = "ner"

    def __init__(self, types: Iterable[str] = (), *, scheme: str = "BIO", attention: str = "", max_length: int = 512,
                 overlap: int = 64):
        if scheme not in SCHEMES:
            raise ValueError(f"the tag scheme '{scheme}' is not known; there are {', '.join(SCHEMES)}")
        types = tuple(types)
        super().__init__(tag_set(types, scheme) if types else (), attention=attention, max_length=max_length,
                         overlap=overlap)
        self.scheme, self.unit = scheme, "word"

    def labels_of(self, dataset: Sequence[Example]) -> list[str]:
        kinds = {kind for example in dataset for _, _, kind in spans_of(example["tags"])}
        return tag_set(kinds, self.scheme) if kinds else []

    def about(self, dataset: Sequence[Example]) -> dict[str, Any]:
        """Whether tokens are characters, as in the People's Daily, or words: so texts are cut that come without."""
        return {"unit": "character" if all(len(token) == 1 for example in dataset for token in example["tokens"])
                else "word"}

    def remember(self, about: Any) -> None:
        self.scheme = "BIO" if {label[0] for label in self.labels} <= set("BIO") else "BMES"
        self.unit = about.get("unit", "word")

    def _token(self) -> re.Pattern:
        return _CHARACTER if self.unit == "character" else _WORD

    def spans(self, example: Example, tags: list[str]) -> list[Entity]:
        text, tokens, starts = example["text"], example["tokens"], example["starts"]
        found = [(starts[begin], starts[end - 1] + len(tokens[end - 1]), kind) for begin, end, kind in spans_of(tags)]
        return [Entity(text[start:end], kind, start, end) for start, end, kind in found]

    def compute_metrics(self, results: Sequence[Result]) -> dict[str, float]:
        """Of entities, as conlleval counts them."""
        return entity_scores(*([result[key] for result in results] for key in ("gold_tags", "tags")))

    def report(self, results: Sequence[Result]) -> tuple[dict[str, Any], str]:
        counts = entity_counts(*([result[key] for result in results] for key in ("gold_tags", "tags")))
        return {"by_type": {kind: each.scores() for kind, each in counts.items()}}, counts_table("type", counts)


class SegmentationTask(TaggingTask):
    """The words of Chinese texts: `predict` gives lists of words. A blank always ends one."""

    name, scheme = "segmentation", "BMES"

    def __init__(self, *, attention: str = "", max_length: int = 512, overlap: int = 64):
        super().__init__(tag_set([""], "BMES", outside=False), attention=attention, max_length=max_length,
                         overlap=overlap)

    def spans(self, example: Example, tags: list[str]) -> list[str]:
        return ["".join(example["tokens"][begin:end]) for begin, end, _ in spans_of(tags)]

    def compute_metrics(self, results: Sequence[Result]) -> dict[str, float]:
        """Of words, as the bakeoffs count them."""
        return word_scores(*([result[key] for result in results] for key in ("gold", "predicted")))

    def detailed(self, model: PretrainedLlama, inputs: Sequence[str], *, batch_size: int = 16) -> list[Result]:
        parts = [text.split() for text in inputs]
        found = iter(super().detailed(model, [part for some in parts for part in some], batch_size=batch_size))
        return [{"place": "", "text": text, "predicted": [word for _ in some for word in next(found)["predicted"]]}
                for text, some in zip(inputs, parts, strict=True)]
