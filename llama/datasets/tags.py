"""Tags that mark spans of tokens: what they mean, which may follow which, and from one scheme to another.

    tokens   江  泽  民  在  北  京  说
    BIO      B-PER I-PER I-PER O B-LOC I-LOC O
    BMES     B-PER M-PER E-PER O B-LOC E-LOC O          S-… a span of one token
    spans    (0, 3, "PER"), (4, 6, "LOC")               begin, end (exclusive), type

A tag without a type («B») has the type "". BIOES and BILOU are BMES in other letters, and IOB1 (a span begins with I-
unless it touches one of its own type) is read as BIO: `spans_of` takes any mixture, as conlleval does.

Try: let `_begins` forget that a change of type begins a span; tests/test_tags.py
(test_worked_example_of_broken_sequences) fails.
"""

from collections.abc import Iterable, Sequence

import numpy as np

SCHEMES = {"BIO": "BIO", "BMES": "BMESO"}
LETTERS = {"O": "O", "B": "B", "I": "M", "M": "M", "E": "E", "L": "E", "S": "S", "U": "S"}

Span = tuple[int, int, str]

# Of two neighbours of one type: the pairs of letters between which one span ends and another begins.
_BREAKS = {(before, after) for before in "BMES" for after in "BMES" if before in "ES" or after in "BS"}


def spans_of(tags: Sequence[str]) -> list[Span]:
    """The spans that tags mark, in their order, each token in at most one.

    Tags that contradict themselves are read as conlleval.pl does (Tjong Kim Sang and De Meulder 2003): what continues
    nothing begins a span, and so does a change of type. Raises ValueError for what is no tag.
    """
    found, begin, letter, kind = [], 0, "O", ""
    for i, tag in enumerate([*tags, "O"]):
        new_letter, new_kind = _read(tag)
        if letter != "O" and (new_letter == "O" or _begins(letter, kind, new_letter, new_kind)):
            found.append((begin, i, kind))
        if new_letter != "O" and (letter == "O" or _begins(letter, kind, new_letter, new_kind)):
            begin = i
        letter, kind = new_letter, new_kind
    return found


def tags_of(spans: Iterable[Span], length: int, scheme: str = "BIO") -> list[str]:
    """The inverse of `spans_of`. Raises ValueError for spans that overlap, are empty, or go past `length` tokens."""
    _letters(scheme)
    tags = ["O"] * length
    for begin, end, kind in spans:
        if not 0 <= begin < end <= length or any(tag != "O" for tag in tags[begin:end]):
            raise ValueError(f"the span from {begin} to {end} of {length} tokens is empty, overlaps another, or goes "
                             "past the end; give each token one span at most")
        if scheme == "BIO":
            marks = "B" + "I" * (end - begin - 1)
        else:
            marks = "S" if end - begin == 1 else "B" + "M" * (end - begin - 2) + "E"
        tags[begin:end] = [f"{mark}-{kind}" if kind else mark for mark in marks]
    return tags


def convert(tags: Sequence[str], scheme: str) -> list[str]:
    """The same spans, marked in another scheme; always a legal row, however broken the one given."""
    return tags_of(spans_of(tags), len(tags), scheme)


def tag_set(kinds: Iterable[str], scheme: str = "BIO", *, outside: bool = True) -> list[str]:
    """All tags for some types of spans, O first, in an order that depends on nothing but their names.

    outside  False where every token belongs to a span, as for the words of a text
    """
    marks = [letter for letter in _letters(scheme) if letter != "O"]
    return ["O"] * outside + [f"{mark}-{kind}" if kind else mark for kind in sorted(set(kinds)) for mark in marks]


def is_legal(tags: Sequence[str], scheme: str) -> bool:
    """Whether a row of tags keeps the rules of a scheme, so that it needs no interpretation."""
    known = list(dict.fromkeys(tags))
    if not {tag[:1] for tag in known} <= set(_letters(scheme)):
        return False
    first, follows, last = transitions(known, scheme)
    ids = [known.index(tag) for tag in tags]
    pairs = zip(ids, ids[1:], strict=False)
    return not ids or bool(first[ids[0]] and last[ids[-1]] and all(follows[pair] for pair in pairs))


def transitions(known: Sequence[str], scheme: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which tags a legal row may begin with, which may follow which, and which it may end with.

    (C,), (C, C), (C,) of bool for C tags; in the second, row i holds what may follow tag i. Raises ValueError for
    tags that are none of the scheme's.
    """
    letters = _letters(scheme)
    for tag in known:
        if tag[:1] not in letters or _read(tag)[0] == "":
            raise ValueError(f"the tag '{tag}' is none of the scheme {scheme}, whose tags begin with "
                             f"{', '.join(letters)}")
    open_after, goes_on = ({"B", "I"}, {"I"}) if scheme == "BIO" else ({"B", "M"}, {"M", "E"})

    def may_follow(before: str, after: str) -> bool:
        if after[0] in goes_on:
            return before[0] in open_after and before[1:] == after[1:]
        return scheme == "BIO" or before[0] not in open_after        # BIO may leave a span at any time

    follows = np.array([[may_follow(before, after) for after in known] for before in known], bool)
    first = np.array([tag[0] not in goes_on for tag in known], bool)
    last = np.array([scheme == "BIO" or tag[0] not in open_after for tag in known], bool)
    return first, follows.reshape(len(known), len(known)), last


def _read(tag: str) -> tuple[str, str]:
    letter, dash, kind = tag.partition("-")
    if letter not in LETTERS or (dash and not kind) or (letter == "O" and dash):
        raise ValueError(f"'{tag}' is no tag; tags are O, and one of {', '.join(list(LETTERS)[1:])} "
                         "alone or with a type behind a dash: B-PER")
    return LETTERS[letter], kind


def _begins(letter: str, kind: str, new_letter: str, new_kind: str) -> bool:
    """Whether of two neighbouring tags, neither O, the second begins a span of its own."""
    return kind != new_kind or (letter, new_letter) in _BREAKS


def _letters(scheme: str) -> str:
    if scheme not in SCHEMES:
        raise ValueError(f"the tag scheme '{scheme}' is not known; there are {', '.join(SCHEMES)}")
    return SCHEMES[scheme]
