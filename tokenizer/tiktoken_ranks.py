"""tiktoken's rank files, as of Llama 3 and Qwen: for each token a line of its bytes in base64 and its rank, its id.

    IQ== 0          !
    Ig== 1          "
    …
    IHRoZQ== 279     the

The file lists no merges. Any two neighbours may merge that make a token together, the token of lowest rank first; so
each token gives a merge for every way of cutting it into two tokens. A word that is a token is that token at once. What
else a tokenizer needs, how text is split and which control tokens follow, such files do not say: the length of the
published ones tells whose they are.

Try: let `_merges` take the first cut of each token alone; tests/test_tiktoken_ranks.py
(test_two_ways_agree_merging_by_rank_and_by_derived_merges) fails.
"""

import base64
import binascii
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tokenizer.base import Settings
from tokenizer.bpe import BPETokenizer, bytes_to_unicode, tokenizer_json, unicode_to_bytes
from tokenizer.pretokenize import RULES


def _llama3_special() -> tuple[str, ...]:
    """The 256 control tokens of Llama 3 as of version 3.2, which are in no file of Meta's but in their program."""
    named = ("begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1",
             "finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag",
             "image")
    reserved = (f"reserved_special_token_{i}" for i in range(2, 2 + 256 - len(named)))
    return tuple(f"<|{name}|>" for name in (*named, *reserved))


_PUBLISHED = {
    128_000: ("llama3", _llama3_special()),
    151_643: ("qwen2", ("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
}


def from_ranks(data: bytes, settings: Settings | None = None, *, split: str | None = None,
               special: Sequence[str] = ()) -> BPETokenizer:
    """The tokenizer of a rank file.

    split, special  the rule of pretokenize.RULES and the control tokens that follow; found out for published files.
                    Tokens that the files beside it add (`settings.added`, with their ids) follow too.

    Raises ValueError for lines that are no such thing, and for a file that is neither published nor described.
    """
    ranks = _read(data)
    if split is None:
        if len(ranks) not in _PUBLISHED:
            known = " and ".join(f"{number:,} ({rule})" for number, (rule, _) in _PUBLISHED.items())
            raise ValueError(f"this rank file of {len(ranks):,} tokens does not say how text is split, and it is none "
                             f"of those known here, which have {known} tokens")
        split, special = _PUBLISHED[len(ranks)]
    added = {token: len(ranks) + i for i, token in enumerate(special)}
    control = set(special)
    if settings and settings.added:
        stated = {id: token for id, token in settings.added.items() if id >= len(ranks)}
        added = {text: id for text, id in added.items() if id not in stated}
        added |= {token["content"]: id for id, token in stated.items()}
        control |= {token["content"] for token in stated.values() if token.get("special")}
        settings = replace(settings, added={})
    bos = "<|begin_of_text|>" if "<|begin_of_text|>" in added else None
    spec = tokenizer_json({bytes_to_unicode(token): rank for token, rank in ranks.items()},
                          [f"{bytes_to_unicode(left)} {bytes_to_unicode(right)}" for left, right in _merges(ranks)],
                          RULES[split],
                          added=added, control=control, bos=bos, ignore_merges=True)
    return BPETokenizer(spec, settings)


def rank_file(vocabulary: dict) -> bytes:
    """The rank file of a vocabulary of kind "gpt2"; its control and added tokens are left to files beside it.

    What from_ranks read comes out as the same bytes.

    Raises ValueError for another kind, and where the ids are not the order in which tokens are merged, which is all
    that such a file can say: SmolLM2's, for one, begin with control tokens.
    """
    if vocabulary["model"] != "gpt2":
        raise ValueError(f"a vocabulary of kind {vocabulary['model']!r} has no ranks; only byte-level BPE ('gpt2') has")
    plain = [token for token, type in zip(vocabulary["tokens"], vocabulary["types"], strict=True) if type == 1]
    if plain != vocabulary["tokens"][:len(plain)]:
        raise ValueError("a rank file numbers its tokens from 0, and this vocabulary has control or added tokens among "
                         "the others; write tokenizer.json")
    ids = {token: id for id, token in enumerate(plain)}
    made = list(dict.fromkeys(ids["".join(merge.split(" "))] for merge in vocabulary["merges"]))
    if made != list(range(len(plain) - len(made), len(plain))):
        raise ValueError("a rank file merges tokens in the order of their ids, and this vocabulary merges them in "
                         "another; write tokenizer.json")
    return b"".join(base64.b64encode(unicode_to_bytes(token)) + b" %d\n" % id for token, id in ids.items())


def _merges(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    for token in ranks:
        cuts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        yield from sorted(cuts, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))


def _read(data: bytes) -> dict[bytes, int]:
    ranks = {}
    for number, line in enumerate(data.splitlines(), 1):
        try:
            token, rank = line.split()
            token, rank = base64.b64decode(token, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"line {number} of the rank file is not a token in base64 and its rank: "
                             f"{line[:60].decode(errors='replace')!r}") from None
        if rank != len(ranks) or token in ranks:
            raise ValueError(f"line {number} of the rank file has rank {rank}; expected are different tokens in order")
        ranks[token] = rank
    return ranks
