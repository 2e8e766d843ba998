"""The models that a server has: the one it was started with, and every adapter that lies here, by name.

An adapter becomes a model of its own when somebody first asks for it, so that requests for several of them run side by
side; of those that nobody asked for lately, all but a few are forgotten again.

Try: let `Models.get` load what `names` does not list; tests/test_serve.py
(test_refuses_what_is_no_model_of_this_server) fails, and a request could read any folder.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from llama.checkpoint import PretrainedLlama
from llama.commands import flags
from llama.commands.flags import ModelFlags
from llama.lora.peft_folder import CONFIG
from llama.tasks.instruction import InstructionTask
from weights.formats.huggingface import read_json
from weights.formats.paths import home, shown

WRITES = "CAUSAL_LM"                                                # PEFT's task_type of a language model


@dataclass(eq=False)
class Served:
    """A model under its name, and the chat format in which it is asked."""

    name: str
    model: PretrainedLlama
    used: float = field(default_factory=time.monotonic)

    @cached_property
    def chat_format(self) -> Any:
        return InstructionTask().format(self.model.tokenizer)


class Models:
    """Loads by name; to be called from the one thread that owns the models.

    model_flags  the model, and its adapter if one was given, which is then what is asked for by no name
    keep         how many models stay in memory
    on_forgotten called with one that does not any more
    """

    on_forgotten: Callable[[PretrainedLlama], None] = staticmethod(lambda model: None)

    def __init__(self, model_flags: ModelFlags, *, keep: int):
        self.flags, self.keep = model_flags, keep
        self.base = Path(model_flags.model).name
        self._loaded: dict[str, Served] = {}
        self._given = flags.adapter_folder(model_flags.adapter) if model_flags.adapter else None
        self.default = self._given.name if self._given else self.base

    def names(self) -> dict[str, Path | None]:
        """Every name that may be asked for, and its adapter's folder; None for the model itself."""
        folders = [folder.parent for place in (Path("adapters"), home() / "adapters")
                   for folder in sorted(place.glob(f"[!.]*/{CONFIG}"))]
        if self._given:
            folders.insert(0, self._given)
        found: dict[str, Path | None] = {self.base: None}
        for folder in folders:
            name = folder.name if folder.name != self.base else f"adapters/{folder.name}"
            found.setdefault(name, folder)
        return found

    def described(self) -> list[dict[str, Any]]:
        """What a page shows to choose from: name, base or adapter, what it was tuned for, whether it is in memory."""
        return [{"name": name, "adapter": bool(folder), "task_type": _task_type(folder),
                 "folder": shown(folder) if folder else "", "loaded": name in self._loaded}
                for name, folder in self.names().items()]

    def loaded(self, name: str) -> Served | None:
        """The model of this name, if it is in memory; no name is the default."""
        if found := self._loaded.get(name or self.default):
            found.used = time.monotonic()
        return found

    def get(self, name: str) -> Served:
        """The model of this name, loaded if it is not. Raises KeyError for a name that `names` does not list."""
        if found := self.loaded(name):
            return found
        name = name or self.default
        wanted, folder = self._flags_of(name)
        model = flags.load(wanted, purpose="generate" if _task_type(folder) == WRITES else "find")
        if model.tokenizer is None:
            raise ValueError(f"{self.flags.model} has no tokenizer, so it neither reads nor writes text; give a model "
                             "folder")
        self._loaded[name] = Served(name, model.eval())
        while len(self._loaded) > self.keep:                        # rows under way keep theirs to their end
            oldest = self._loaded.pop(min(self._loaded, key=lambda each: self._loaded[each].used))
            self.on_forgotten(oldest.model)
        return self._loaded[name]

    def unfused(self, name: str) -> PretrainedLlama:
        """The model of this name loaded once more, as the definitions have it, and with tensors that take gradients.

        It is the caller's alone, who lets it go after use: until then its weights lie in memory a second time.
        """
        wanted, _ = self._flags_of(name or self.default)
        with torch.inference_mode(False):                           # under which the thread of the models runs
            return flags.load(wanted, purpose="measure").eval()

    def _flags_of(self, name: str) -> tuple[ModelFlags, Path | None]:
        """What loads a name, and its adapter's folder."""
        folder = self.names()[name]
        return replace(self.flags, adapter=str(folder) if folder else ""), folder


def _task_type(folder: Path | None) -> str:
    """What an adapter was tuned for, in PEFT's words; "" where its config cannot be read."""
    try:
        return str(read_json(folder / CONFIG).get("task_type") or WRITES) if folder else WRITES
    except ValueError:
        return ""


@torch.inference_mode()
def text_embedding(model: PretrainedLlama, ids: list[int]) -> list[float]:
    """(D,) the mean of the last hidden states of a text, scaled to length 1; a Llama has no other vector of a text.

    Raises ValueError for more ids than the context holds, and for ids that the model has no row for.
    """
    if len(ids) > model.config.context:
        raise ValueError(f"the text has {len(ids)} tokens, and the model reads {model.config.context}; shorten it")
    if max(ids) >= model.config.vocab_size:
        raise ValueError(f"the text holds the token {max(ids)}, and the model has rows for {model.config.vocab_size}")
    hidden = model.hidden(torch.tensor([ids], device=model.device))[0].float()                  # (T, D)
    return functional.normalize(hidden.mean(0), dim=0).tolist()
