"""Every model of the house by a preset's name, or by what config.json calls its kind: Llama's own, and its relatives.

Try: call GPT-2's kind `gpt`; tests/test_relatives.py (test_two_ways_saved_and_loaded) fails.
"""

from dataclasses import fields, replace
from typing import Any

from llama import config as llamas
from llama import config_json
from llama.config import LlamaConfig, unknown_name
from llama.relatives import gpt, t5
from llama.relatives.gpt import GPTConfig
from llama.relatives.t5 import T5Config

AnyConfig = LlamaConfig | GPTConfig | T5Config

PRESETS: dict[str, Any] = llamas.PRESETS | gpt.PRESETS | t5.PRESETS
SMALL = {"gpt3": "gpt3-tiny", "t5": "t5-tiny"}                      # a kind's own name: one that a laptop trains
KINDS: dict[str, Any] = {"gpt2": GPTConfig, "gpt3": GPTConfig, "t5": T5Config}          # by model_type


def preset(name: str, **changes: Any) -> Any:
    """A published shape by name, fields replaced by keyword. Raises ValueError with the nearest names."""
    name = SMALL.get(name, name)
    if name not in PRESETS:
        raise ValueError(unknown_name(name, [*PRESETS, *SMALL]))
    if name in llamas.PRESETS:
        return llamas.preset(name, **changes)
    known = {field.name for field in fields(PRESETS[name])}
    if foreign := changes.keys() - known:
        raise ValueError(f"{name} has no {min(foreign)}: {type(PRESETS[name]).__name__} has "
                         f"{', '.join(sorted(known))}; leave it out")
    return replace(PRESETS[name], **changes)


def for_vocabulary(config: Any, tokenizer: Any) -> Any:
    """The same shape with as many rows as a tokenizer has ids; where an encoder is, closed and begun by its end."""
    ids = {"vocab_size": tokenizer.vocab_size}
    if isinstance(config, T5Config):
        end = next(iter(tokenizer.eos_ids), None)
        if end is None:
            raise ValueError("this tokenizer calls no token an end, and a T5's sources are closed by one; give another")
        start = tokenizer.pad_id if tokenizer.pad_id is not None else end
        ids |= {"eos_token_id": end, "decoder_start_token_id": start}
    return replace(config, **ids)


def given_of_block(config: Any, block_size: int) -> int:
    """How many ids of a block of running text are given and not learned: of an encoder's, half (a prefix language
    model, arXiv:1910.10683, section 3.2.1), which is what the block before has learned; of a decoder's, none."""
    return block_size // 2 if isinstance(config, T5Config) else 0


def config_from_dict(values: dict[str, Any]) -> Any:
    """Read a config.json of any kind that is built here. Raises ValueError for what would be computed otherwise."""
    kind = KINDS.get(values.get("model_type", "llama"))
    return kind.from_dict(values) if kind else config_json.config_from_dict(values)


def config_to_dict(config: Any) -> dict[str, Any]:
    """The inverse. Raises ValueError where no published class of Llamas has these parts."""
    return config_json.config_to_dict(config) if isinstance(config, LlamaConfig) else config.to_dict()
