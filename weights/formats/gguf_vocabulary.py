"""The tokenizer's part of a GGUF's metadata, as plain values, both ways.

model "gpt2" (byte-level BPE, with merges) or "llama" (SentencePiece, with scores); pre, the name of the split rule;
tokens, types, scores, merges; ids (None where there is none); add_bos, add_space_prefix; chat_template, and where a
file has one, tool_template.
eos_ids holds whatever ends a turn or a text: the file's own, then the control tokens known to do so. Files name one
or two of them only, and a chat model that is not stopped by the others talks on to itself.

Try: leave `known` out of eos_ids; tests/test_gguf_vocabulary.py (test_worked_example_vocabulary) fails.
"""

import logging
import re
from typing import Any

import numpy as np

from weights.formats.gguf_file import GGUF, get

log = logging.getLogger(__name__)

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6    # of tokens; control: a sign, no text
MARKS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>",
         "<EOT>", "[EOT]", "[EOS]")     # that end a turn or a text, whatever type a file gives them
CLOSING = (*MARKS, "</s>")              # the last only where it is no piece of text
STARTS_WITH_BOS = ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "tekken")
ENDS = ("eos", "eot", "eom")            # the keys for them: end of text, of turn, of message


def vocabulary(gguf: GGUF) -> dict[str, Any]:
    """What the file says, for `tokenizer/` to build from.

    Raises ValueError for a missing or unknown vocabulary and for arrays of different lengths.
    """
    model = get(gguf, "tokenizer.ggml.model", str)
    if model not in ("gpt2", "llama"):
        raise ValueError(f"{gguf.path}: its vocabulary is of kind '{model}'; known are 'gpt2' and 'llama'")
    pre = get(gguf, "tokenizer.ggml.pre", str, None)
    tokens = get(gguf, "tokenizer.ggml.tokens", list)
    types = _per_token(gguf, "tokenizer.ggml.token_type", len(tokens)) or _guessed_types(model, tokens)
    if (wrong := next((id for id, type in enumerate(types) if not 0 <= type <= BYTE), None)) is not None:
        raise ValueError(f"{gguf.path}: token {wrong} is of type {types[wrong]}; types are from 0 to {BYTE}: fetch or "
                         "convert it again")
    ids = {name: _id(gguf, name, len(tokens)) for name in ("bos", *ENDS, "padding", "unknown")}
    for_tools = get(gguf, "tokenizer.chat_template.tool_use", str, None)
    return {
        "model": model,
        "pre": pre,
        "tokens": tokens,
        "types": types,
        "scores": _per_token(gguf, "tokenizer.ggml.scores", len(tokens)),
        "merges": get(gguf, "tokenizer.ggml.merges", list, None),
        "bos_id": ids["bos"],
        "eos_ids": _ends([ids[name] for name in ENDS], tokens, types),
        "pad_id": ids["padding"],
        "unk_id": ids["unknown"],
        "add_bos": get(gguf, "tokenizer.ggml.add_bos_token", bool, model == "llama" or pre in STARTS_WITH_BOS),
        "add_space_prefix": get(gguf, "tokenizer.ggml.add_space_prefix", bool, model == "llama"),
        "chat_template": get(gguf, "tokenizer.chat_template", str, None),
        **({"tool_template": for_tools} if for_tools else {}),
    }


def metadata(vocabulary: dict[str, Any], rows: int) -> dict[str, Any]:
    """The inverse: GGUF's keys. Tokens up to `rows`, the embedding's, are filled with unused ones.

    Raises ValueError for more tokens than rows, for a vocabulary without the scores or merges of its kind, and for
    more ends than a GGUF has keys for, unless they are known by their spelling.
    """
    v, absent = vocabulary, rows - len(vocabulary["tokens"])
    if absent < 0:
        raise ValueError(f"the vocabulary has {len(v['tokens']):,} tokens, but the embedding only {rows:,} rows")
    needed = "scores" if v["model"] == "llama" else "merges"
    if v[needed] is None:
        raise ValueError(f"the vocabulary is of kind '{v['model']}', but has no {needed}")
    tokens = [*v["tokens"], *(f"[PAD{i}]" for i in range(len(v["tokens"]), rows))]
    types = [*v["types"], *[UNUSED] * absent]
    ids = {"bos": v["bos_id"], **dict(zip(ENDS, v["eos_ids"], strict=False)), "padding": v["pad_id"],
           "unknown": v["unk_id"]}
    if lost := set(v["eos_ids"]) - set(_ends([ids.get(name) for name in ENDS], tokens, types)):
        raise ValueError(f"{len(v['eos_ids'])} tokens end a text, but a GGUF names {len(ENDS)}; "
                         f"{', '.join(tokens[i] for i in sorted(lost))} would be forgotten")
    values = {
        "tokenizer.ggml.model": v["model"],
        "tokenizer.ggml.pre": v["pre"],
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.scores": v["scores"] and np.array([*v["scores"], *[0.0] * absent], np.float32),
        "tokenizer.ggml.merges": v["merges"],
        **{f"tokenizer.ggml.{name}_token_id": id for name, id in ids.items()},
        "tokenizer.ggml.add_bos_token": v["add_bos"],
        "tokenizer.ggml.add_space_prefix": v["add_space_prefix"],
        "tokenizer.chat_template": v["chat_template"],
        "tokenizer.chat_template.tool_use": v.get("tool_template"),
    }
    return {key: value for key, value in values.items() if value is not None}


def _guessed_types(model: str, tokens: list[str]) -> list[int]:
    """Of files without types, as llama.cpp's first converters wrote them: the usual marks, and pieces for bytes."""
    names = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL} if model == "llama" else {}
    byte = r"<0x[0-9A-F]{2}>" if model == "llama" else "(?!)"
    return [names.get(token, CONTROL if re.fullmatch(r"<\|.*\|>", token) else
                      BYTE if re.fullmatch(byte, token) else NORMAL) for token in tokens]


def _ends(named: list[int | None], tokens: list[str], types: list[int]) -> list[int]:
    """The ends that a file names, and those known by their spelling: files of 2023 have marks of any type."""
    known = [i for text in CLOSING for i, token in enumerate(tokens)
             if token == text and types[i] in ((NORMAL, CONTROL, USER_DEFINED) if text in MARKS else
                                               (CONTROL, USER_DEFINED))]
    return list(dict.fromkeys([id for id in named if id is not None] + known))


def _per_token(gguf: GGUF, key: str, count: int) -> list[int] | list[float] | None:
    values = get(gguf, key, np.ndarray, None)
    if values is not None and len(values) != count:
        raise ValueError(f"{gguf.path}: {key} has {len(values):,} entries for {count:,} tokens; fetch or copy it again")
    return None if values is None else values.tolist()


def _id(gguf: GGUF, name: str, count: int) -> int | None:
    """The token of a role; −1, also as an unsigned number, is none, and one outside is said and passed over."""
    value = get(gguf, f"tokenizer.ggml.{name}_token_id", int, None)
    if value is None or value in (-1, 2**32 - 1) or 0 <= value < count:
        return value if value is not None and 0 <= value < count else None
    log.warning("%s: the %s token is %d, but the vocabulary has %d tokens; it is passed over", gguf.path, name, value,
                count)
    return None
