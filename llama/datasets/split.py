"""A data set divided into parts between which nothing leaks: what is nearly the same lies on one side.

Two texts are near-duplicates if their shingles, every 5 neighbouring characters of letters and digits alone (NFKC, no
case), are alike by half or more: |A ∩ B| / |A ∪ B| ≥ 0.5 (Broder 1997). In a sentence of 20 Chinese characters that is
one character exchanged. Who is a near-duplicate of whom forms groups, and so do fields given as `groups`; a group is
never divided.

All such pairs are found, none by chance: sort each text's shingles from the rarest to the most frequent; two texts that
share half of their shingles share one among the first half of either (prefix filtering: Bayardo, Ma, Srikant 2007,
«Scaling up all pairs similarity search»). Rare shingles stand in few texts, so few pairs are compared: some ten seconds
for 35,000 reviews. For one form filled in again and again, time grows as the square of their number.

Try: in `_similar_pairs` look at one shingle less of each text; tests/test_split.py
(test_two_ways_pairs_equal_those_of_comparing_all_with_all) fails.
"""

import hashlib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llama.datasets.examples import Examples

SHINGLE = 5
SIMILAR = 0.5
INPUTS = ("text", "source", "context")                               # which field of an example is its text
GROUPS = ("document", "title")                                       # and which field says what it is a piece of

_SIGNS = re.compile(r"[\W_]+")                                       # all but letters and digits
# Without these two, NFKC takes its slow way through nearly every Chinese text:
_PUNCTUATION = re.compile("[\\s，。、；：？！…—“”‘’（）《》]+")
_FULL_WIDTH = re.compile("[！-～]+")

Key = str | Callable[[dict[str, Any]], Any]


def split(data: Sequence[dict[str, Any]], train: float = 0.9, validation: float = 0.05, test: float = 0.05,
          seed: int = 0, *, text: Key | None = None, groups: Key | None = None,
          similar: float = SIMILAR) -> tuple[Any, Any, Any]:
    """(train, validation, test): data sets of the same kind whose sizes have about these shares, which sum to 1.

    text     the field that is compared, or a function of an example; None takes the first of INPUTS that is there,
             for a conversation what its users say
    groups   a field, or a function: examples that are equal in it stay together; None takes the first of GROUPS
    similar  how alike two texts must be to stay together; above 1 only `groups` count

    The same examples are divided alike in whatever order they come, and keep that order. The largest part takes what
    fits nowhere else, so that the others are never larger than asked. Raises ValueError for shares that do not sum
    to 1, and if a part that should get examples gets none.
    """
    shares = {"train": train, "validation": validation, "test": test}
    if min(shares.values()) < 0 or not math.isclose(sum(shares.values()), 1, abs_tol=1e-9):
        raise ValueError(f"the shares are {', '.join(f'{name} {share}' for name, share in shares.items())}; they must "
                         "not be negative, and sum to 1")
    if not isinstance(data, (Examples, list, tuple)):
        raise ValueError(f"a {type(data).__name__} cannot be divided; split the examples that it is made of")
    texts = [_text(example, text) for example in data]
    together = grouped(texts, [_group(example, groups) for example in data], similar=similar)
    parts = _fill(together, texts, shares, seed)
    for name, share in shares.items():
        if share and not parts[name]:
            raise ValueError(f"{name} should get {share:.3g} of {len(data)} examples and gets none: they form "
                             f"{len(together)} groups of near-duplicates, the largest of {max(map(len, together))}; "
                             "give more data, or raise similar")
    return tuple(data.part(part) if isinstance(data, Examples) else [data[i] for i in part] for part in parts.values())


def grouped(texts: Sequence[str], keys: Sequence[Any] | None = None, *, similar: float = SIMILAR) -> list[list[int]]:
    """Which texts belong together: near-duplicates, those with equal keys (None belongs to nobody), and so on in turn.

    Lists of indices that cover all, each in ascending order, sorted by their first.
    """
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[Any, int] = {}
    for i, key in enumerate(keys or []):
        if key is not None:
            parent[root(i)] = root(seen.setdefault(key, i))
    if similar <= 1:
        for i, j in _similar_pairs(texts, similar, lambda i, j: root(i) == root(j)):
            parent[root(i)] = root(j)
    members = defaultdict(list)
    for i in range(len(texts)):
        members[root(i)].append(i)
    return sorted(members.values())


def letters_and_digits(text: str) -> str:
    """A text's letters and digits alone (NFKC, no case); one without any is itself."""
    short = _FULL_WIDTH.sub(lambda found: _nfkc(found[0]), _PUNCTUATION.sub("", text))
    return _SIGNS.sub("", _nfkc(short).casefold()) or " ".join(text.split())


def _nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def shingles(text: str) -> frozenset[str]:
    """What of a text is compared: all that is SHINGLE characters long in it, or where it is shorter, all of it."""
    text = letters_and_digits(text)
    return frozenset(text[i : i + SHINGLE] for i in range(max(1, len(text) - SHINGLE + 1)))


def _similar_pairs(texts: Sequence[str], similar: float,
                   known: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
    """All near-duplicates, but for pairs already `known` to belong together: that chain suffices to group them."""
    if similar <= 0:
        raise ValueError(f"similar is {similar}; it must be above 0, or all texts would be alike")
    first: dict[frozenset[str], int] = {}
    for i, text in enumerate(texts):
        pieces = shingles(text)
        if first.setdefault(pieces, i) != i:
            yield i, first[pieces]
    frequency = Counter(piece for pieces in first for piece in pieces)
    holding: dict[str, list[tuple[frozenset[str], int]]] = defaultdict(list)
    for pieces, i in sorted(first.items(), key=lambda item: (len(item[0]), item[1])):
        rarest = sorted(pieces, key=lambda piece: (frequency[piece], piece))
        rarest = rarest[: len(pieces) - math.ceil(similar * len(pieces) - 1e-9) + 1]
        met = set()
        for piece in rarest:
            for others, j in holding[piece]:
                if j not in met and len(others) >= similar * len(pieces) - 1e-9 and not known(i, j):
                    met.add(j)
                    common = len(pieces & others)
                    if common >= similar * (len(pieces) + len(others) - common) - 1e-9:
                        yield i, j
        for piece in rarest:
            holding[piece].append((pieces, i))


def _fill(together: list[list[int]], texts: Sequence[str], shares: dict[str, float], seed: int) -> dict[str, list[int]]:
    """Group after group, in an order that texts and seed decide, into the smallest part that has room for it."""
    def order(group: list[int]) -> str:
        return min(hashlib.sha256(f"{seed} {texts[i]}".encode()).hexdigest() for i in group)

    room = {name: round(share * len(texts)) for name, share in shares.items()}
    *small, largest = sorted(shares, key=lambda name: (shares[name], name == "train"))
    parts: dict[str, list[int]] = {name: [] for name in shares}
    for group in sorted(together, key=order):
        name = next((name for name in small if len(parts[name]) + len(group) <= room[name]), largest)
        parts[name] += group
    return {name: sorted(part) for name, part in parts.items()}


def _text(example: dict[str, Any], key: Key | None) -> str:
    if key is not None:
        return example[key] if isinstance(key, str) else key(example)
    for name in INPUTS:
        if name in example:
            return example[name]
    if "messages" in example:
        return "\n".join(message["content"] for message in example["messages"] if message["role"] == "user")
    raise ValueError(f"{example.get('place', 'an example')}: it has none of {', '.join(INPUTS)} to compare; say with "
                     f"text which of {', '.join(example)} it is")


def _group(example: dict[str, Any], key: Key | None) -> Any:
    if callable(key):
        return key(example)
    if key is not None:
        return example[key]
    return next((example[name] for name in GROUPS if example.get(name) not in (None, "")), None)
