"""Proof after saving: what lies on the disk, loaded anew, is the model in memory, or the run has failed.

Nothing is held twice for it. A saved adapter is put on the base that is there already, in the place of the one that was
saved. Of a saved model each tensor is read, compared with that in memory bit by bit, and let go; the model that the
files describe, with their config and their tokenizer, then runs on the tensors found equal. Logits and greedy text must
be the same.

Try: compare the tensors and leave the answers out; tests/test_verify_saved.py
(test_refusal_a_saved_adapter_that_computes_something_else) fails: a wrong alpha is in no tensor.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llama.checkpoint import build_on_meta, load_tensors, plain_tensors
from llama.heads import head_config
from llama.lora.files import attach_adapter
from llama.lora.peft_folder import read_adapter
from llama.lora.swap import adapter_names, has_lora, remove_lora, set_active, stored_tensors
from llama.model import Llama
from llama.quantization.loading import iter_quantized
from weights.formats.quantized_matrix import QuantizedMatrix
from weights.formats.sources import open_source

PROMPT = "The most important thing about"
TEXT = f"{PROMPT} a proof is that others can repeat it. 证明的要点是人人都能重做一遍。 def f(x): return x + 1"
LIMIT = 1e-4                                                        # of |Δlogit|: kernels of a GPU may vary, no more
SAVED = "from_disk"


@dataclass
class Answers:
    """What a model says to the texts above."""

    logits: Tensor                                                  # (T, V), float32
    text: str                                                       # greedy; "" without a tokenizer or with labels


def verify_saved(model: Llama, place: str | Path) -> None:
    """See that `place` holds this model, or the adapter 'default' of a model with LoRA. Says so on stderr.

    Raises RuntimeError, naming the difference.
    """
    prove = prove_adapter if has_lora(model) else prove_model
    prove(model, place)
    what = "labels" if head_config(model) else "the same text"
    print(f"loaded again from disk: the same tensors, logits, and {what} as before saving", file=sys.stderr)


@torch.no_grad()
def prove_adapter(model: Llama, folder: str | Path, *, name: str = "default") -> None:
    """See that `folder` holds the adapter `name` as it is on the model, which stays as it is.

    Raises ValueError if that adapter is not active, and so not part of what the model computes.
    """
    if name not in (active := adapter_names(model, active=True)):
        raise ValueError(f"adapter '{name}' is not active, so there is nothing to prove; active are "
                         f"{', '.join(active) or 'none'}")
    expected = probe_outputs(model)
    with _loading(folder):
        adapter = read_adapter(folder)
    for key, tensor in stored_tensors(model, name).items():
        _same_tensor(folder, key, tensor, adapter.tensors.get(key))
    with _put_back(model):
        set_active(model, [])                                       # two copies of the embeddings cannot be active
        with _loading(folder):
            attach_adapter(model, adapter, name=SAVED, place=folder)
        set_active(model, [SAVED if other == name else other for other in active])
        found = probe_outputs(model)
    _same_answers(folder, expected, found)


@torch.no_grad()
def prove_model(model: Llama, place: str | Path) -> None:
    """See that `place`, a folder or file, holds the whole model."""
    expected = probe_outputs(model)
    with _loading(place):
        source = open_source(place)
        again = build_on_meta(source.config)
        ours = plain_tensors(model)
        tensors = iter_quantized(source, 0) if source.quantization else source.tensors()
        load_tensors(again, _found_equal(place, tensors, ours), dtype=model.dtype, place=source.path,
                     put=lambda tensor: tensor.to(model.device))
        again.tokenizer = source.tokenizer
    if (found := head_config(again)) != (expected_head := head_config(model)):
        raise RuntimeError(f"{place} does not hold the model in memory: its head is {found} instead of {expected_head}")
    _same_answers(place, expected, probe_outputs(again))


@torch.no_grad()
def probe_outputs(model: Llama, *, text: bool = True) -> Answers:
    """Logits, and greedy text, of the model as it computes when it is used."""
    training = model.training
    model.eval()
    try:
        ids = model.tokenizer.encode(TEXT) if model.tokenizer else list(range(min(model.config.vocab_size, 64)))
        ids = ids[: model.config.context]
        logits = model(torch.tensor([ids], device=model.device))[0].float().cpu()
        writes = text and model.tokenizer and head_config(model) is None
        said = model.generate(PROMPT, max_new_tokens=32, temperature=0.0) if writes else ""
    finally:
        model.train(training)
    return Answers(logits, said)


def _found_equal(place: str | Path, saved: Iterator[tuple[str, Tensor | QuantizedMatrix]],
                 ours: dict[str, Tensor]) -> Iterator[tuple[str, Tensor | QuantizedMatrix]]:
    for name, tensor in saved:
        if isinstance(tensor, QuantizedMatrix):
            stem = name.removesuffix("weight")
            yield name, QuantizedMatrix(**{part: _ours_if_equal(place, stem + part, stored, ours)
                                  for part, stored in tensor.tensors().items()})
        else:
            yield name, _ours_if_equal(place, name, tensor, ours)


def _ours_if_equal(place: str | Path, name: str, saved: Tensor, ours: dict[str, Tensor]) -> Tensor:
    if name in ours:
        _same_tensor(place, name, ours[name], saved)
    return ours.get(name, saved)


def _same_tensor(place: str | Path, name: str, ours: Tensor, saved: Tensor | None) -> None:
    if saved is None or saved.shape != ours.shape:
        return                                                      # what is loaded strictly is refused in better words
    if saved.dtype != ours.dtype:
        raise RuntimeError(f"{place} does not hold the model in memory: {name} is {saved.dtype} instead of "
                           f"{ours.dtype}")
    if not torch.equal(saved, ours.cpu()):
        worst = (saved.double() - ours.cpu().double()).abs().max().item()
        raise RuntimeError(f"{place} does not hold the model in memory: {name} differs by up to {worst:.1e}")


def _same_answers(place: str | Path, expected: Answers, found: Answers) -> None:
    if found.logits.shape != expected.logits.shape:
        raise RuntimeError(f"{place} does not hold the model in memory: its tokenizer or vocabulary differs")
    worst = (found.logits - expected.logits).abs().max().item()
    if not worst <= LIMIT:                                          # NaN, too
        raise RuntimeError(f"{place} does not hold the model in memory: its logits differ by up to {worst:.1e}")
    if found.text != expected.text:
        raise RuntimeError(f"{place} does not hold the model in memory: to {PROMPT!r} it writes {found.text!r} "
                           f"instead of {expected.text!r}")


@contextmanager
def _loading(place: str | Path) -> Iterator[None]:
    """What users are refused (exit code 2) is here a failure of ours (1): the result was written a moment ago."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise RuntimeError(f"{place} was saved, but cannot be loaded again: {error}") from None


@contextmanager
def _put_back(model: Llama) -> Iterator[None]:
    """Afterwards the adapter from disk is off again, and what was active and learning is so again."""
    active, learning = adapter_names(model, active=True), [(p, p.requires_grad) for p in model.parameters()]
    template = model.tokenizer.chat_template if model.tokenizer else None
    try:
        yield
    finally:
        if SAVED in adapter_names(model):
            remove_lora(model, SAVED)
        set_active(model, active)
        for parameter, requires_grad in learning:
            parameter.requires_grad_(requires_grad)
        if model.tokenizer:
            model.tokenizer.chat_template = template
