"""A solution of the exercise of docs/tour/01-tokens.md."""


def encode_word(word: bytes, merges: list[tuple[int, int]]) -> list[int]:
    ids, rank = list(word), {pair: i for i, pair in enumerate(merges)}
    while known := [(rank[pair], at) for at, pair in enumerate(zip(ids, ids[1:], strict=False)) if pair in rank]:
        first, at = min(known)
        ids[at : at + 2] = [256 + first]
    return ids
