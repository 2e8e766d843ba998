"""Byte-level byte-pair encoding (GPT-2; Sennrich et al., arXiv:1508.07909, on bytes instead of characters).

Text is split into words (pretokenize.py). A word starts as its UTF-8 bytes, one token each; then, again and again, the
adjacent pair that was learned first is merged, until no learned pair is left:

    merges learned    0: w e    1: l o    2: lo w
    "lower"           l o w e r  ->  l o we r  ->  lo we r        (not low, for w was taken by a merge learned earlier)

Every byte has a token, so every text can be written and nothing is unknown. (SmolLM2 is an exception: its vocabulary
lacks 21 bytes that its training text never held, most of them impossible in UTF-8; they vanish, as they do in Hugging
Face's `tokenizers`.)

A vocabulary is held as the content of a tokenizer.json, whatever it was read from: so there is one reader, and what we
write loads elsewhere with the same ids.

Try: let `_merge` take the leftmost known pair instead of the earliest learned; tests/test_bpe.py then fails at "lower".
"""

import base64
import binascii
import heapq
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain

from tokenizer.base import Settings, Tokenizer, is_control, utf8, write_json
from tokenizer.learn import learn_merges
from tokenizer.pretokenize import RULES, SplitRule, rule_of_gguf, rule_of_json

# GGUF's kinds of token
CONTROL, USER_DEFINED = 3, 4


def _alphabet() -> list[str]:
    """The character by which vocabularies in JSON spell each byte (GPT-2's bytes_to_unicode).

    Bytes that print in Latin-1 stand for themselves, the others for the characters from U+0100 on: a space is Ġ.
    """
    printing = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]


ALPHABET = _alphabet()
_BYTE_OF = {char: byte for byte, char in enumerate(ALPHABET)}


def _spelled(data: bytes) -> str:
    return "".join(ALPHABET[byte] for byte in data)


def _unspelled(token: str) -> bytes:
    """The bytes of a token; one that the alphabet cannot have spelled stands for its own UTF-8."""
    try:
        return bytes(_BYTE_OF[char] for char in token)
    except KeyError:
        return token.encode(errors="replace")


class _Words(dict):
    """word -> its ids: a cache before `encode`. Texts repeat their words: this is what makes MBs a second."""

    MOST_WORDS = 1 << 18
    LONGEST = 64            # characters; longer ones hardly return

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> list[int]:
        ids = self._encode(word)
        if len(word) <= self.LONGEST:
            if len(self) >= self.MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids


class BPETokenizer(Tokenizer):
    """Byte-level BPE, out of the content of a tokenizer.json.

    Raises ValueError where that content asks for something that would change ids and that is not done here.
    """

    huggingface_class = "PreTrainedTokenizerFast"

    def __init__(self, spec: dict, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        try:
            model = spec["model"]
            vocab: dict[str, int] = model["vocab"]
            added: list[dict] = spec.get("added_tokens") or []
            _refuse_what_is_not_done_here(spec)
            self._rule = rule_of_json(spec.get("pre_tokenizer"))
            self._nfc = spec.get("normalizer") is not None
            self._ranks, self._merged = _read_merges(model["merges"], vocab)
            spellings = {id: _unspelled(token) for token, id in vocab.items()}
            spellings |= {token["id"]: token["content"].encode() for token in added}
            spellings = [spellings.get(id, b"") for id in range(max(spellings) + 1)]
            control = {token["content"]: token["id"] for token in added if is_control(token)}
            always = {token["content"]: token["id"] for token in added if not is_control(token)}
            bos = _bos_of(spec.get("post_processor"))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"tokenizer.json does not hold a byte-level BPE: {error!r} while reading it") from None
        unknown = vocab.get(model.get("unk_token"))
        self._byte_ids = [vocab.get(char, unknown) for char in ALPHABET]
        if model.get("ignore_merges"):      # Llama 3: a word that is a token is that token, whatever merges would make
            self._whole = {_unspelled(token): id for token, id in vocab.items() if token not in control}
        else:
            self._whole = {}
        self._spec = spec
        self._words = _Words(self._encode_word)
        if settings.adds_bos is None:
            settings = replace(settings, bos=bos if settings.bos is None else settings.bos, adds_bos=bos is not None)
        super().__init__(spellings, special=control, always=always, settings=settings)

    def encode_words(self, text: str, *, starts: bool) -> list[int]:
        if self._nfc:
            text = unicodedata.normalize("NFC", text)
        return list(chain.from_iterable(map(self._words.__getitem__, self._rule.split(text))))

    def _encode_word(self, word: str) -> list[int]:
        data = word.encode()
        if data in self._whole:
            return [self._whole[data]]
        return _merge([id for byte in data if (id := self._byte_ids[byte]) is not None], self._ranks, self._merged)

    def vocabulary_files(self) -> dict[str, bytes]:
        return {"tokenizer.json": write_json(self._spec)}


def _merge(ids: list[int], ranks: dict[tuple[int, int], int], merged: Sequence[int]) -> list[int]:
    """Merge neighbours, the pair of lowest rank first, the leftmost first among equals. O(n log n) for n tokens.

    ranks   pair of ids -> when it was learned
    merged  rank -> the id of the pair as one

    The tokens are a linked list by position, so that a merge moves nothing; known pairs wait in a heap and are looked
    at again when they come up, for a neighbour may have been merged away meanwhile. Searching for the best pair anew
    after each merge is as fast for words, but quadratic: a megabyte of spaces, which is one word, would take a day.
    """
    end = len(ids)
    after = list(range(1, end + 1))
    before = list(range(-1, end - 1))
    heap = [(rank, i) for i in range(end - 1) if (rank := ranks.get((ids[i], ids[i + 1]))) is not None]
    heapq.heapify(heap)
    while heap:
        rank, i = heapq.heappop(heap)
        j = after[i]
        if j == end or ranks.get((ids[i], ids[j])) != rank:
            continue
        ids[i], ids[j] = merged[rank], -1
        left, right = before[i], after[j]
        after[i] = right
        if right < end:
            before[right] = i
            if (rank := ranks.get((ids[i], ids[right]))) is not None:
                heapq.heappush(heap, (rank, i))
        if left >= 0 and (rank := ranks.get((ids[left], ids[i]))) is not None:
            heapq.heappush(heap, (rank, left))
    return [id for id in ids if id >= 0]


# Reading tokenizer.json


def _refuse_what_is_not_done_here(spec: dict) -> None:
    model = spec["model"]
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"tokenizer.json holds a vocabulary of type {model['type']}; only BPE is read here")
    if model.get("byte_fallback"):
        raise ValueError("tokenizer.json holds a SentencePiece vocabulary (byte_fallback); "
                         "use the tokenizer.model that it was made from")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ValueError(f"tokenizer.json asks for {key} {model[key]!r} in its model, which is not done here")
    if spec.get("normalizer") not in (None, {"type": "NFC"}):
        raise ValueError(f"tokenizer.json asks for the normalizer {spec['normalizer'].get('type')!r}; "
                         "only NFC, or none, is known here")
    for token in spec.get("added_tokens") or []:
        for key in ("lstrip", "rstrip", "single_word"):
            if token.get(key):
                raise ValueError(f"tokenizer.json asks for {key} at its token {token['content']!r}, "
                                 "which is not done here")


def _read_merges(merges: list, vocab: dict[str, int]) -> tuple[dict[tuple[int, int], int], list[int]]:
    """(pair of ids -> rank, rank -> id of the pair as one). A merge is written "a b", in newer files ["a", "b"]."""
    ranks, merged = {}, []
    for rank, merge in enumerate(merges):
        try:
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            ranks[vocab[left], vocab[right]] = rank
            merged.append(vocab[left + right])
        except (ValueError, KeyError):
            raise ValueError(f"merge {rank} of the vocabulary is {merge!r}, which is not two of its tokens that make a "
                             "third") from None
    return ranks, merged


def _bos_of(post_processor: dict | None) -> str | None:
    """The token that a tokenizer.json puts before every text, if it does."""
    match post_processor:
        case {"type": "Sequence", "processors": [*steps]}:
            return next((bos for step in steps if (bos := _bos_of(step))), None)
        case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": str(bos)}}, *_]}:
            return bos
    return None


# Other sources, as a tokenizer.json


def _spec(vocab: dict[str, int], merges: list[str], rule: SplitRule, *, added: dict[str, int], control: Iterable[str],
          bos: str | None = None, ignore_merges: bool = False) -> dict:
    """The content of a tokenizer.json, field by field as `tokenizers` writes it."""
    post_processor = bos and {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [added[bos]], "tokens": [bos]}},
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id, "content": text, **flags, "special": text in control}
                         for text, id in sorted(added.items(), key=lambda item: item[1])],
        "normalizer": {"type": "NFC"} if rule.name == "qwen2" else None,
        "pre_tokenizer": rule.written_as,
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": ignore_merges, "vocab": vocab | added, "merges": merges},
    }


def from_vocabulary(vocabulary: dict) -> BPETokenizer:
    """The tokenizer of a GGUF file, from its vocabulary as weights/gguf.py gives it (kind "gpt2").

    Raises ValueError for a split rule not known here and for a vocabulary without merges.
    """
    tokens, types = vocabulary["tokens"], vocabulary["types"]
    if not vocabulary["merges"]:
        raise ValueError("the GGUF file's vocabulary is of kind gpt2 but has no merges (tokenizer.ggml.merges)")
    control = {token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL}
    added = {token: id for id, (token, kind) in enumerate(zip(tokens, types, strict=True))
             if kind in (CONTROL, USER_DEFINED)}
    bos = tokens[vocabulary["bos_id"]] if vocabulary["add_bos"] and vocabulary["bos_id"] is not None else None
    rule = rule_of_gguf(vocabulary["pre"])
    spec = _spec({token: id for id, token in enumerate(tokens)}, vocabulary["merges"], rule,
                 added=added, control=control, bos=bos, ignore_merges=rule.name == "llama3")
    return BPETokenizer(spec, Settings.of_vocabulary(vocabulary))


def _llama3_special() -> tuple[str, ...]:
    """The 256 control tokens of Llama 3 as of version 3.2, which are in no file of Meta's but in their program."""
    named = ("begin_of_text", "end_of_text", "reserved_special_token_0", "reserved_special_token_1",
             "finetune_right_pad_id", "step_id", "start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag",
             "image")
    reserved = (f"reserved_special_token_{i}" for i in range(2, 2 + 256 - len(named)))
    return tuple(f"<|{name}|>" for name in (*named, *reserved))


# A rank file says neither how text is split nor which control tokens follow. Its length tells whose it is.
_PUBLISHED_RANKS = {
    128_000: ("llama3", _llama3_special()),
    151_643: ("qwen2", ("<|endoftext|>", "<|im_start|>", "<|im_end|>")),
}


def from_ranks(data: bytes, settings: Settings | None = None, *, split: str | None = None,
               special: Sequence[str] = ()) -> BPETokenizer:
    """The tokenizer of a tiktoken rank file: lines of a token in base64 and its rank, which is its id.

    The file lists no merges. Any two neighbours may merge that make a token together, the token of lowest rank first;
    so each token gives a merge for every way of cutting it into two tokens.

    split, special  the rule of pretokenize.RULES and the control tokens that follow; found out for published files

    Raises ValueError for lines that are no such thing, and for a file that is neither published nor described.
    """
    ranks = _read_ranks(data)
    if split is None:
        if len(ranks) not in _PUBLISHED_RANKS:
            known = " and ".join(f"{number:,} ({rule})" for number, (rule, _) in _PUBLISHED_RANKS.items())
            raise ValueError(f"this rank file of {len(ranks):,} tokens does not say how text is split, and it is none "
                             f"of those known here, which have {known} tokens")
        split, special = _PUBLISHED_RANKS[len(ranks)]
    merges = []
    for token in ranks:
        cuts = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
        merges += sorted(cuts, key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
    bos = "<|begin_of_text|>" if "<|begin_of_text|>" in special else None
    spec = _spec({_spelled(token): rank for token, rank in ranks.items()},
                 [f"{_spelled(left)} {_spelled(right)}" for left, right in merges], RULES[split],
                 added={token: len(ranks) + i for i, token in enumerate(special)}, control=special, bos=bos,
                 ignore_merges=True)
    return BPETokenizer(spec, settings)


def _read_ranks(data: bytes) -> dict[bytes, int]:
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


# Learning a vocabulary


def train(texts: Iterable[str], vocab_size: int, *, split: str = "llama3",
          special: Sequence[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")) -> BPETokenizer:
    """Learn a vocabulary: control tokens first, then the 256 bytes, then merges as they are learned.

    It is smaller than `vocab_size` where the texts run out of pairs that occur twice. The same texts give the same ids.

    Raises ValueError for a size without room for the bytes, for an unknown split rule, and for what `utf8` refuses.
    """
    if split not in RULES:
        raise ValueError(f"the split rule '{split}' is not known; known are {', '.join(RULES)}")
    first = len(special) + 256
    if vocab_size < first:
        raise ValueError(f"a vocabulary of {vocab_size} is too small: 256 bytes and {len(special)} special tokens are "
                         f"{first} already")
    rule = RULES[split]
    words = Counter()
    for text in texts:
        utf8(text)
        words.update(rule.split(unicodedata.normalize("NFC", text) if rule.name == "qwen2" else text))
    tokens = [bytes([byte]) for byte in range(256)]
    merges = []
    for left, right in learn_merges({word.encode(): count for word, count in words.items()}, vocab_size - first):
        merges.append(f"{_spelled(tokens[left])} {_spelled(tokens[right])}")
        tokens.append(tokens[left] + tokens[right])
    added = {token: id for id, token in enumerate(special)}
    vocab = {_spelled(token): len(special) + i for i, token in enumerate(tokens)}
    if clash := sorted(added.keys() & vocab.keys()):
        raise ValueError(f"the special tokens {clash} are also words of the texts; mark them, as in <|{clash[0]}|>")
    return BPETokenizer(_spec(added | vocab, merges, rule, added=added, control=special))
