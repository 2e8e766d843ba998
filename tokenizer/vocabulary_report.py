"""What a vocabulary makes of texts, and what one that was grown makes better: figures, as a table or as JSON.

    tokens a character   how long a text becomes; Llama 2 writes Chinese in more tokens than characters
    bytes a token        the same for any language: how much text fits into a context
    Han characters       which of the 6,763 of GB 2312, and which part of those in a text, are one piece each

Try: count a text's bytes as its characters; tests/test_vocabulary_report.py (test_worked_example_of_rates) fails.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenizer.base import Tokenizer

LONGEST = 10
SHOWN = 40                                                          # characters of a piece, for people


@dataclass(frozen=True)
class Rate:
    """How one vocabulary spells one corpus. han: the part of its Han characters that are one piece each."""

    tokens: int
    tokens_per_character: float
    bytes_per_token: float
    han: float


def rate(tokenizer: Tokenizer, texts: Iterable[str]) -> Rate:
    """Raises ValueError for texts that are empty."""
    tokens = characters = size = 0
    han: Counter[str] = Counter()
    for text in texts:
        tokens += len(tokenizer.encode(text))
        characters += len(text)
        size += len(text.encode())
        han.update(char for char in text if is_han(char))
    if not tokens:
        raise ValueError("a corpus to count on is empty; give one that holds text")
    whole = sum(count for char, count in han.items() if is_piece(tokenizer, char))
    return Rate(tokens, tokens / characters, size / tokens, whole / max(1, han.total()))


def is_han(char: str) -> bool:
    """Whether this is one of Unicode's unified ideographs, as far as its first plane goes."""
    return "\u4e00" <= char <= "\u9fff" or "\u3400" <= char <= "\u4dbf"


def is_piece(tokenizer: Tokenizer, char: str) -> bool:
    ids = tokenizer.spelling(char.encode())
    return len(ids) == 1 and tokenizer.token_bytes(ids[0]) == char.encode()         # <unk> is no piece of it


def gb2312() -> list[str]:
    """The 6,763 Han characters of GB 2312, the Chinese standard of 1980: rows 16 to 87 of its table."""
    codes = (bytes([row + 0xA0, cell + 0xA0]) for row in range(16, 88) for cell in range(1, 95))
    return [char for code in codes if (char := code.decode("gb2312", errors="ignore"))]


@dataclass(frozen=True)
class GrowthReport:
    """What became of a vocabulary.

    size     before and after
    added    pieces, `steps` among them: made only on the way to others
    overlap  pieces to add that were there already
    dead     added pieces that no text is cut into
    corpora  name -> rates before and after
    han      of GB 2312's characters, how many are one piece each, before and after
    kept     what has the ids that it had, and was looked at
    """

    size: tuple[int, int]
    added: int
    overlap: int
    steps: int
    dead: int
    longest: list[str]
    han: tuple[int, int]
    kept: str
    corpora: dict[str, tuple[Rate, Rate]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        before, after = self.size
        lines = [f"{before:,} + {self.added:,} = {after:,} pieces · {self.overlap:,} were there already · "
                 f"{self.steps:,} steps · {self.dead:,} dead",
                 f"kept: {self.kept}",
                 f"Han characters of GB 2312 that are one piece: {self.han[0]:,} → {self.han[1]:,} of "
                 f"{len(gb2312()):,}",
                 f"longest: {' '.join(map(_shown, self.longest))}"]
        rows = [("corpus", "tokens/character", "bytes/token", "Han in one piece")]
        rows += [(name, f"{old.tokens_per_character:.3f} → {new.tokens_per_character:.3f}",
                  f"{old.bytes_per_token:.2f} → {new.bytes_per_token:.2f}", f"{old.han:.1%} → {new.han:.1%}")
                 for name, (old, new) in self.corpora.items()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join(lines + (table if self.corpora else []))


def _shown(piece: str) -> str:
    """A piece may be a page: who learns on one line that comes again a thousand times gets it whole."""
    return piece if len(piece) <= SHOWN else f"{piece[:SHOWN]}…({len(piece):,} characters)"


def growth_report(base: Tokenizer, grown: Tokenizer, corpora: Mapping[str, list[str]], *, dead: int, overlap: int = 0,
                  steps: int = 0, kept: str = "nothing was asked for") -> GrowthReport:
    """Compare two vocabularies of which the second has all of the first, and more behind it."""
    new = range(base.vocab_size, grown.vocab_size)
    longest = sorted(new, key=lambda id: -len(grown.token_bytes(id)))[:LONGEST]
    covered = tuple(sum(is_piece(tokenizer, char) for char in gb2312()) for tokenizer in (base, grown))
    return GrowthReport((base.vocab_size, grown.vocab_size), len(new), overlap, steps, dead,
                        [grown.piece(id) for id in longest], covered, kept,
                        {name: (rate(base, texts), rate(grown, texts)) for name, texts in corpora.items()})
