"""Exercise of docs/tour/01-tokens.md: python -m pytest docs/tour/exercises/test_01_encode_word.py"""


def encode_word(word: bytes, merges: list[tuple[int, int]]) -> list[int]:
    """The tokens of a word: its bytes, joined in the order in which pairs were learned.

    merges  pair i becomes the token 256 + i; of equal pairs the leftmost is joined first
    """
    raise NotImplementedError
