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

Try: let `_merge` give every known pair the rank 0, so that the leftmost goes first; tests/test_bpe.py
(test_worked_example_the_merge_learned_first_goes_first) then fails at "lower".
"""

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from tokenizer.base import FLAGS, Settings, Tokenizer, check_ids, is_control, utf8, write_json
from tokenizer.bpe_merge import WordCache, merge
from tokenizer.bpe_train import learn_merges
from tokenizer.checked_json import (
    ANYTHING,
    FLAG,
    NULL,
    TEXT,
    check_value,
    either,
    listed,
    mapped,
    number,
    record,
    whole,
)
from tokenizer.pretokenize import RULES, WHOLE_WORDS, SplitRule, rule_of_gguf, rule_of_json

log = logging.getLogger(__name__)

# GGUF's types of token
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5


def _alphabet() -> list[str]:
    """The character by which vocabularies in JSON spell each byte (GPT-2's bytes_to_unicode).

    Bytes that print in Latin-1 stand for themselves, the others for the characters from U+0100 on: a space is Ġ.
    """
    printing = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printing else next(others)) for byte in range(256)]


ALPHABET = _alphabet()
_BYTE_OF = {char: byte for byte, char in enumerate(ALPHABET)}


def bytes_to_unicode(data: bytes) -> str:
    return "".join(ALPHABET[byte] for byte in data)


def unicode_to_bytes(token: str) -> bytes:
    """The bytes of a token; one that the alphabet cannot have spelled stands for its own UTF-8."""
    try:
        return bytes(_BYTE_OF[char] for char in token)
    except KeyError:
        return token.encode(errors="replace")


class BPETokenizer(Tokenizer):
    """Byte-level BPE, out of the content of a tokenizer.json.

    Raises ValueError where that content asks for something that would change ids and that is not done here.
    """

    huggingface_class = "PreTrainedTokenizerFast"

    def __init__(self, spec: dict, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        check_spec(spec)
        spec = with_added(spec, settings)
        model = spec["model"]
        vocab: dict[str, int] = model["vocab"]
        added: list[dict] = spec.get("added_tokens") or []
        refuse_other_modes(spec)
        _refuse_what_is_not_of_bytes(spec)
        self._rule = rule_of_json(spec.get("pre_tokenizer"))
        self._nfc = bool(steps_of(spec.get("normalizer"), "normalizers"))
        self._ranks, self._merged = _read_merges(model["merges"], vocab)
        spellings = {id: unicode_to_bytes(token) for token, id in vocab.items()}
        spellings |= {token["id"]: token["content"].encode() for token in added}
        check_ids(spellings, len(spellings))
        spellings = [spellings.get(id, b"") for id in range(max(spellings, default=-1) + 1)]
        control = {token["content"]: token["id"] for token in added if is_control(token)}
        always = {token["content"]: token["id"] for token in added if not is_control(token)}
        bos = bos_of(spec.get("post_processor"))
        self._spec = spec
        self._words = WordCache(self._encode_word)
        super().__init__(spellings, special=control, always=always, settings=with_bos(settings, bos), flags=added)
        # No text becomes a control token, though a vocabulary has merges that spell it, or calls missing bytes so.
        self._ranks = {pair: rank for pair, rank in self._ranks.items() if self._merged[rank] not in self._controls}
        unknown = vocab.get(model.get("unk_token"))
        unknown = None if unknown in (self.bos_id, *self.eos_ids) else unknown
        self._byte_ids = [vocab.get(char, unknown) for char in ALPHABET]
        # Llama 3: a word that is a token is that token, whatever merges would make.
        words = vocab.items() if model.get("ignore_merges") else ()
        self._whole = {unicode_to_bytes(token): id for token, id in words if id not in self._controls}

    def normalize(self, text: str, *, starts: bool) -> str:
        return unicodedata.normalize("NFC", text) if self._nfc else text

    def encode_words(self, text: str, *, starts: bool) -> list[int]:
        return list(chain.from_iterable(map(self._words.__getitem__, self._rule.split(text))))

    def words(self, text: str) -> list[str]:
        """The words of a text, which merges do not cross."""
        return self._rule.split(self.normalize(text, starts=True))

    def spelling(self, data: bytes) -> list[int]:
        return self._encode_bytes(data)

    def _encode_word(self, word: str) -> list[int]:
        return self._encode_bytes(word.encode())

    def _encode_bytes(self, data: bytes) -> list[int]:
        if data in self._whole:
            return [self._whole[data]]
        return self._merge([id for byte in data if (id := self._byte_ids[byte]) is not None])

    def _merge(self, ids: list[int]) -> list[int]:
        ranks, merged = self._ranks, self._merged
        return merge(ids, lambda left, right: ranks.get((left, right)),
                     lambda left, right: merged[ranks[left, right]])

    def with_merges(self, merges: Sequence[tuple[int, int]]) -> "BPETokenizer":
        """The vocabulary with further merges behind its own: pairs of ids, of which merge i makes vocab_size + i."""
        model = self._spec["model"]
        spelt = [bytes_to_unicode(data) for data in self._spellings]
        for left, right in merges:
            spelt.append(spelt[left] + spelt[right])
        pairs = [[spelt[left], spelt[right]] for left, right in merges]
        if not model["merges"] or isinstance(model["merges"][0], str):
            pairs = [" ".join(pair) for pair in pairs]
        new = {token: id for id, token in enumerate(spelt[self.vocab_size:], start=self.vocab_size)}
        model = model | {"vocab": model["vocab"] | new, "merges": [*model["merges"], *pairs]}
        return BPETokenizer(self._spec | {"model": model}, self.settings_of_larger())

    def vocabulary_files(self) -> dict[str, bytes]:
        return {"tokenizer.json": write_json(self._spec)}

    def vocabulary(self) -> dict[str, Any]:
        """The vocabulary as GGUF files hold it, kind "gpt2"; the inverse of tokenizer.from_vocabulary.

        Raises ValueError where such a file, which names no more than a split rule, would be read to do other things
        than this tokenizer does.
        """
        self._refuse_what_gguf_cannot_say()
        texts = {id: token for token, id in self._spec["model"]["vocab"].items()}
        texts |= {token["id"]: token["content"] for token in self._spec.get("added_tokens") or []}
        types = dict.fromkeys(texts, NORMAL) | dict.fromkeys(self._always.values(), USER_DEFINED)
        types |= dict.fromkeys(self._controls, CONTROL)
        types |= {id: UNUSED for id, text in texts.items() if text == f"[PAD{id}]" and types[id] == NORMAL}
        ids = range(self.vocab_size)
        merges = self._spec["model"]["merges"]
        return {"model": "gpt2", "pre": self._rule.gguf_names[0],
                "tokens": [texts.get(id, f"[PAD{id}]") for id in ids], "types": [types.get(id, UNUSED) for id in ids],
                "scores": None, "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in merges],
                "add_space_prefix": False, "unk_id": self._spec["model"]["vocab"].get(self._spec["model"]["unk_token"]),
                **self._roles()}

    def _refuse_what_gguf_cannot_say(self) -> None:
        if self._nfc != _composes(self._rule):
            raise ValueError(f"a GGUF file cannot say that text is {'' if self._nfc else 'not '}put into the form NFC "
                             f"before it is split by the rule '{self._rule.gguf_names[0]}'")
        if bool(self._whole) == (self._rule.gguf_names[0] in WHOLE_WORDS):
            return
        for token in self._spec["model"]["vocab"]:
            word = unicode_to_bytes(token).decode(errors="replace")
            if token not in self.special_ids and self._rule.split(word) == [word] and "\ufffd" not in word:
                merged = self._merge([self._byte_ids[byte] for byte in word.encode()])
                if len(merged) != 1:
                    raise ValueError(f"a GGUF file of the split rule '{self._rule.gguf_names[0]}' cannot say how the "
                                     f"word {word!r} is written, which is a token that merges do not make")


# Reading tokenizer.json

# What is read of it. Which of the many things that its parts can say are done here, is asked where they are read.
_OBJECT = either(mapped(ANYTHING), NULL)
_MODEL = record({"vocab": mapped(whole()), "merges": listed(either(TEXT, listed(TEXT)))},
                {"type": TEXT, "unk_token": TEXT, "byte_fallback": FLAG, "ignore_merges": FLAG, "dropout": number(),
                 "continuing_subword_prefix": TEXT, "end_of_word_suffix": TEXT})
_ADDED = record({"id": whole(), "content": TEXT},
                dict.fromkeys(("special", "lstrip", "rstrip", "single_word", "normalized"), FLAG))
SPEC = record({"model": _MODEL}, {"added_tokens": listed(_ADDED), "normalizer": _OBJECT, "pre_tokenizer": _OBJECT,
                                  "post_processor": _OBJECT})


def check_spec(spec: dict) -> None:
    """Raises ValueError for a tokenizer.json that holds another kind of vocabulary, or what should not stand there."""
    match spec:
        case {"model": {"type": str(kind)}} if kind != "BPE":
            raise ValueError(f"tokenizer.json holds a vocabulary of type {kind:.40}; only BPE is read here"
                             + "; the tokenizer.model that it was made from is read, too" * (kind == "Unigram"))
    check_value(spec, SPEC, "tokenizer.json")


def refuse_other_modes(spec: dict) -> None:
    """Raises ValueError for a tokenizer.json, of whatever kind, that asks for something that would change ids."""
    model = spec["model"]
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ValueError(f"tokenizer.json asks for {key} {model[key]!r} in its model, which is not done here")


def with_added(spec: dict, settings: Settings) -> dict:
    """A tokenizer.json with the tokens that the files beside it add under ids of their own."""
    there = {*spec["model"]["vocab"].values(), *(token["id"] for token in spec.get("added_tokens") or [])}
    more = [{"id": id, **dict.fromkeys(FLAGS, False), "special": False, **token}
            for id, token in sorted(settings.added.items()) if id not in there]
    return spec | {"added_tokens": [*(spec.get("added_tokens") or []), *more]} if more else spec


def with_bos(settings: Settings, bos: str | None) -> Settings:
    """The post-processor of a tokenizer.json alone says whether texts begin with a token, whatever add_bos_token says
    beside it: so `transformers` 5 reads both."""
    return replace(settings, bos=bos if settings.bos is None else settings.bos, adds_bos=bos is not None)


def _refuse_what_is_not_of_bytes(spec: dict) -> None:
    if spec["model"].get("byte_fallback"):
        raise ValueError("tokenizer.json holds a SentencePiece vocabulary (byte_fallback); read it with load_tokenizer")
    if any(step != {"type": "NFC"} for step in steps_of(spec.get("normalizer"), "normalizers")):
        raise ValueError(f"tokenizer.json asks for the normalizer {str(spec['normalizer'])[:200]}; only NFC, or none, "
                         "is known here")


def steps_of(step: Any, key: str) -> list[Any]:
    """The steps of a normaliser or pre-tokeniser: a Sequence may hold any number of them under `key`, Sequences too."""
    match step:
        case None:
            return []
        case {"type": "Sequence"} if isinstance(step.get(key), list):
            return [each for inner in step[key] for each in steps_of(inner, key)]
    return [step]


def _read_merges(merges: list, vocab: dict[str, int]) -> tuple[dict[tuple[int, int], int], list[int]]:
    """(pair of ids -> rank, rank -> id of the pair as one). A merge is written "a b", in newer files ["a", "b"]."""
    ranks, merged = {}, []
    for rank, entry in enumerate(merges):
        try:
            left, right = entry.split(" ") if isinstance(entry, str) else entry
            ranks[vocab[left], vocab[right]] = rank
            merged.append(vocab[left + right])
        except (ValueError, KeyError):
            raise ValueError(f"merge {rank} of the vocabulary is {entry!r:.80}, which is not two of its tokens that "
                             "make a third") from None
    return ranks, merged


def bos_of(post_processor: dict | None) -> str | None:
    """The token that a tokenizer.json puts before every text, if it does."""
    match post_processor:
        case {"type": "Sequence", "processors": [*steps]}:
            return next((bos for step in steps if (bos := bos_of(step))), None)
        case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": str(bos)}}, *_]} | \
                {"type": "BertProcessing" | "RobertaProcessing", "cls": [str(bos), _]}:
            return bos
    return None


# Other sources, as a tokenizer.json


def _composes(rule: SplitRule) -> bool:
    """Whether the vocabularies of this rule put text into the form NFC first."""
    return rule.name == "qwen2"


def tokenizer_json(vocab: dict[str, int], merges: list[str], rule: SplitRule, *, added: dict[str, int],
                   control: Iterable[str], bos: str | None = None, ignore_merges: bool = False) -> dict:
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
        "normalizer": {"type": "NFC"} if _composes(rule) else None,
        "pre_tokenizer": rule.written_as,
        "post_processor": post_processor,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": ignore_merges, "vocab": vocab | added, "merges": merges},
    }


def from_vocabulary(vocabulary: dict) -> BPETokenizer:
    """The tokenizer of a GGUF file, from its vocabulary as weights/formats/gguf.py gives it (kind "gpt2").

    Raises ValueError for a split rule not known here and for a vocabulary without merges.
    """
    tokens, types = vocabulary["tokens"], vocabulary["types"]
    if not vocabulary["merges"]:
        raise ValueError("the GGUF file's vocabulary is of kind gpt2 but has no merges (tokenizer.ggml.merges)")
    control = {token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL}
    added = {token: id for id, (token, kind) in enumerate(zip(tokens, types, strict=True))
             if kind in (CONTROL, USER_DEFINED)}
    bos = tokens[vocabulary["bos_id"]] if vocabulary["add_bos"] and vocabulary["bos_id"] is not None else None
    named = vocabulary["pre"] not in (None, "", "default")
    rule = rule_of_gguf(vocabulary["pre"]) if named else _rule_by_marks(tokens)
    spec = tokenizer_json({token: id for id, token in enumerate(tokens)}, vocabulary["merges"], rule,
                          added=added, control=control, bos=bos,
                          ignore_merges=(vocabulary["pre"] if named else rule.gguf_names[0]) in WHOLE_WORDS)
    return BPETokenizer(spec, Settings.of_vocabulary(vocabulary))


def _rule_by_marks(tokens: Sequence[str]) -> SplitRule:
    """The split rule of a GGUF file that names none: whose marks it has, its family splits like."""
    marks = set(tokens)
    known = {"<|begin_of_text|>": "llama3", "<|object_ref_start|>": "qwen2"}
    name = next((rule for mark, rule in known.items() if mark in marks), "gpt2")
    log.warning("the GGUF file does not say how text is split (tokenizer.ggml.pre); by its tokens, as %s does", name)
    return RULES[name]


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
        words.update(rule.split(unicodedata.normalize("NFC", text) if _composes(rule) else text))
    tokens = [bytes([byte]) for byte in range(256)]
    merges = []
    for left, right in learn_merges({word.encode(): count for word, count in words.items()}, vocab_size - first):
        merges.append(f"{bytes_to_unicode(tokens[left])} {bytes_to_unicode(tokens[right])}")
        tokens.append(tokens[left] + tokens[right])
    added = {token: id for id, token in enumerate(special)}
    vocab = {bytes_to_unicode(token): len(special) + i for i, token in enumerate(tokens)}
    if clash := sorted(added.keys() & vocab.keys()):
        raise ValueError(f"the special tokens {clash} are also words of the texts; mark them, as in <|{clash[0]}|>")
    return BPETokenizer(tokenizer_json(added | vocab, merges, rule, added=added, control=special))
