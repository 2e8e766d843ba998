"""GPT-2 and T5 against transformers: small random ones of many shapes, forward, backward, and their folders both ways.

Questions are answered twice, by `relative` here and by `relative` in judge_relatives.py. Tensors go under the names of
the files, so that the tables of weights/formats/relatives.py are part of what is compared.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llama.checkpoint import load_model, load_tensors, new_model, plain_tensors
from llama.masks import Prefix
from llama.relatives.families import config_from_dict, config_to_dict
from llama.relatives.gpt import GPTConfig
from llama.relatives.t5 import T5Config
from tests.parity.judges import Check, Judges, difference
from tokenizer import load_tokenizer
from weights.formats.relatives import to_disk, to_memory
from weights.formats.tensor_files import StoredTensor

GPT = GPTConfig(32, 12, 48, 2, 2, max_position_embeddings=24)
T5 = T5Config(32, 12, 20, 2, 2, 2, 5, relative_attention_num_buckets=8, relative_attention_max_distance=12)
GIVEN = 9                                                           # of a T5's row, the rest is written
KEPT = ("GPT-2", "T5", "T5 1.1, gated")                             # as fixtures


def shapes() -> dict[str, Any]:
    return {
        "GPT-2": GPT,
        "GPT-2, a head of its own, F no 4 D": replace(GPT, tie_word_embeddings=False, intermediate_size=20),
        "T5": T5,
        "T5, fewer layers that write": replace(T5, num_hidden_layers=1),
        "T5 1.1, gated": replace(T5, gated=True, tie_word_embeddings=False, scale_decoder_outputs=False),
        "T5, gated and tied": replace(T5, gated=True, scale_decoder_outputs=False),
    }


def relative(request: dict[str, Any]) -> dict[str, Tensor]:
    """Logits, and the gradient of the mean loss of each next token for every weight."""
    config, tensors = request["config"], request["tensors"]
    stored = {name.removeprefix("weight."): StoredTensor(Path("the question"), tuple(x.shape), x.dtype, lambda x=x: x)
              for name, x in tensors.items() if name.startswith("weight.")}
    ours = new_model(config_from_dict(config))
    named = ((name, tensor.read().clone()) for name, tensor in to_memory(config, stored).items())
    load_tensors(ours, named, dtype=None, place=Path("the question"))
    rows, given = tensors["ids"], request["given"]
    mask = Prefix(torch.full((len(rows),), given)) if ours.takes_prefix else None
    logits = ours(rows[:, :-1], mask=mask)[:, given - 1 :]
    functional.cross_entropy(logits.flatten(0, 1), rows[:, given:].flatten()).backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    return {"logits": logits.detach()} | {f"gradient.{name}": tensor for name, tensor in to_disk(config, gradients)[1]}


def checks(judges: Judges) -> Iterator[Check]:
    for name, config in shapes().items():
        torch.manual_seed(0)
        built = new_model(config)
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        given = GIVEN if built.takes_prefix else 1
        values = config_to_dict(config)
        tensors = {f"weight.{name}": tensor for name, tensor in to_disk(values, plain_tensors(built))[1]}
        tensors["ids"] = torch.randint(2, config.vocab_size, (2, 24))
        request = {"config": values, "given": given}
        theirs = judges.ask("judge_relatives.py", what="relative", tensors=tensors, **request,
                            keep=f"relatives/{name}" if name in KEPT else "")
        worst = difference(relative(request | {"tensors": tensors}), theirs)
        yield Check(f"{name}: logits and gradients", "transformers", "46 positions" if given == 1 else "30 positions",
                    f"{worst:.1e} relative", worst < 1e-5)
        yield _folders(judges, name, built, given)
    yield from _tokenizers(judges)


def _folders(judges: Judges, name: str, built: Any, given: int) -> Check:
    """A folder of ours is read there, written there anew, and read here: three times the same logits."""
    here, there = (judges.folder / f"{side} {name}" for side in ("ours", "theirs"))
    built.tokenizer = None
    built.eval().save(here)
    row = torch.randint(2, built.config.vocab_size, (1, 24))
    theirs = judges.ask("judge_relatives.py", what="saved_again", folder=str(here), to=str(there), given=given,
                        tensors={"ids": row})["logits"]
    mask = Prefix(torch.tensor([given])) if built.takes_prefix else None
    with torch.inference_mode():
        found = [model(row[:, :-1], mask=mask)[:, given - 1 :] for model in (built, load_model(there))]
    worst = max((each - theirs).abs().max().item() for each in found)
    return Check(f"{name}: our folder there, their folder here", "transformers", f"{24 - given} positions",
                 f"Δ {worst:.1e}", worst < 1e-4)


def _tokenizers(judges: Judges) -> Iterator[Check]:
    """GPT-2's tokenizer in both forms of files: tokenizer.json, and vocab.json with merges.txt."""
    texts = ["Hello world, it's 2026!", "  two  spaces\n\n\tand a tab", "你好，世界。",
             "naïve café — ½ 👩‍👩‍👧", "<|endoftext|>a"]
    for form in ("tokenizer.json", "vocab.json"):
        folder = judges.folder / f"gpt-2 {form}"
        expected = judges.ask("judge_relatives.py", what="gpt2_tokenizer", folder=str(folder), form=form, texts=texts)
        tokenizer = load_tokenizer(folder)
        found = [tokenizer.encode(text, allow_special=True) for text in texts]
        wrong = sum(ours != theirs for ours, theirs in zip(found, expected, strict=True))
        wrong += sum(tokenizer.decode(ids) != text for ids, text in zip(found, texts, strict=True))
        yield Check(f"GPT-2's tokenizer from {form}: ids and back", "transformers", f"{len(texts)} texts",
                    f"{wrong} differ", not wrong)
