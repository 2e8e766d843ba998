"""Model folders saved here, opened by transformers; adapters of every kind, ours in peft and peft's here."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from llama.checkpoint import PretrainedLlama, load_model, save_model
from llama.config import preset
from tests.parity import starts, texts, variants
from tests.parity.judges import Check, Judges
from tests.parity.models import compare_logits
from tests.parity.parts import scaled
from tokenizer import bpe


def checks(judges: Judges) -> Iterator[Check]:
    tokenizer = bpe.train([texts.NEUTRAL], 512)
    ids = tokenizer.encode(texts.NEUTRAL)[:200]
    small = preset("test")
    shapes = {
        "tied": small,
        "untied": replace(small, tie_word_embeddings=False, num_key_value_heads=4),
        "Qwen 2": replace(small, qkv_bias=True),
        "Mistral": replace(small, sliding_window=30, tie_word_embeddings=False),
        **scaled(small, 64),
    }
    for number, (name, config) in enumerate(shapes.items()):
        torch.manual_seed(0)
        built = PretrainedLlama(config)
        with torch.no_grad():
            for parameter in built.parameters():
                parameter += torch.randn_like(parameter) * 0.2
        built.tokenizer = tokenizer
        folder = judges.folder / f"model-{number}"
        save_model(built, folder)
        yield compare_logits(judges, f"saved folder, {name}: logits", load_model(folder), folder, {"text": ids})
    yield from variants.checks(judges)
    yield from starts.checks(judges)
