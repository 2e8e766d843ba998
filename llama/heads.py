"""A head of labels on a model, in the place of the language model's: scores of classes instead of scores of tokens.

    kind       one row of scores for    class of Hugging Face               its head    bias
    sequence   a text                   LlamaForSequenceClassification      score       no
    tokens     every token              LlamaForTokenClassification         score       yes
    spans      every token: start, end  LlamaForQuestionAnswering           qa_outputs  yes

A swap from outside: `add_head` puts `model.score` (or `model.qa_outputs`) where `lm_head` was, `remove_head`
takes it back. From then on `forward` gives (B, T, C), and folders are those of the class in the table: labels as
`id2label`, `is_causal` false where every position sees the whole text. What only a task knows (`about`) is under
`task_specific_params`, which others leave aside.

Try: give the head of `sequence` a bias; tests/test_heads.py (test_worked_example_config_and_names_of_each_kind) fails,
and the folder would load elsewhere without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.config import LlamaConfig, require_llama
from llama.config_json import config_to_dict
from llama.model import Llama
from tokenizer.checked_json import FLAG, TEXT, check_fields, listed, mapped, record


class Kind(NamedTuple):
    """How Hugging Face calls it: end of the class, name of the head, whether it has a bias, PEFT's task_type."""

    architecture: str
    name: str
    bias: bool
    task_type: str


KINDS = {
    "sequence": Kind("ForSequenceClassification", "score", False, "SEQ_CLS"),
    "tokens": Kind("ForTokenClassification", "score", True, "TOKEN_CLS"),
    "spans": Kind("ForQuestionAnswering", "qa_outputs", True, "QUESTION_ANS"),
}
ATTENTIONS = ("causal", "full")
POOLINGS = ("last", "mean")
SPAN = ("start", "end")                                             # what a head of spans gives scores for
NAMES = tuple(dict.fromkeys(kind.name for kind in KINDS.values()))
FIELDS = {"architectures": listed(TEXT), "is_causal": FLAG, "problem_type": TEXT,
          "id2label": mapped(TEXT, lambda key: key.isascii() and key.isdecimal(), "a number"),
          "task_specific_params": mapped(record({}, {"pooling": TEXT}))}
_PROBLEMS = {False: "single_label_classification", True: "multi_label_classification"}


@dataclass(frozen=True)
class HeadConfig:
    """What a head gives scores for, and how the model below it is to be read.

    labels       C names, no two alike
    kind         a key of KINDS
    attention    "causal", or "full": every position sees the whole text (as in LLM2Vec, arXiv:2404.05961)
    multi_label  of "sequence": any number of labels a text, each by itself
    pooling      of "sequence": which row of a text is scored, the "last", or the "mean" of all. Hugging Face's class
                 knows the last alone, so a folder with the other gives other scores there
    about        what a task keeps for itself, in values that JSON holds
    """

    labels: tuple[str, ...]
    kind: str = "sequence"
    attention: str = "causal"
    multi_label: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    pooling: str = "last"

    def __post_init__(self) -> None:
        if self.pooling not in POOLINGS or self.pooling != "last" and self.kind != "sequence":
            raise ValueError(f"pooling is '{self.pooling}' and kind '{self.kind}'; texts (sequence) are scored by one "
                             f"of {', '.join(POOLINGS)}, tokens and spans each by itself")
        if self.kind not in KINDS or self.attention not in ATTENTIONS:
            raise ValueError(f"kind is '{self.kind}', one of {', '.join(KINDS)}; attention is '{self.attention}', one "
                             f"of {', '.join(ATTENTIONS)}")
        labels = tuple(self.labels)
        if not labels or len(set(labels)) < len(labels) or not all(isinstance(label, str) for label in labels):
            raise ValueError(f"labels are {labels!r:.80}; give at least one name, and no name twice")
        object.__setattr__(self, "labels", labels)

    @property
    def name(self) -> str:
        """Of the module in the model, and before its parameters on disk."""
        return KINDS[self.kind].name

    def to_dict(self, below: LlamaConfig) -> dict[str, Any]:
        """config.json of the model `below` with this head."""
        values = config_to_dict(below)
        architecture = values["architectures"][0].removesuffix("ForCausalLM") + KINDS[self.kind].architecture
        values |= {"architectures": [architecture],
                   "id2label": {str(i): label for i, label in enumerate(self.labels)},
                   "label2id": {label: i for i, label in enumerate(self.labels)}}
        if self.kind == "sequence":
            values["problem_type"] = _PROBLEMS[self.multi_label]
        if self.attention == "full":
            values["is_causal"] = False
        about = dict(self.about) | ({"pooling": self.pooling} if self.pooling != "last" else {})
        return values | ({"task_specific_params": {self.kind: about}} if about else {})

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "HeadConfig | None":
        """The head that a config.json names; None for a language model. Raises ValueError for what are no labels."""
        check_fields(values, FIELDS, "config.json")
        architecture = (values.get("architectures") or [""])[0]
        kind = next((name for name, each in KINDS.items() if architecture.endswith(each.architecture)), None)
        if kind is None:
            return None
        named = values.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}              # what a silent file means
        labels = SPAN if kind == "spans" else tuple(named[key] for key in sorted(named, key=int))
        about = dict((values.get("task_specific_params") or {}).get(kind) or {})
        pooling = about.pop("pooling", "last")
        return HeadConfig(labels, kind, "causal" if values.get("is_causal", True) else "full",
                          values.get("problem_type") == _PROBLEMS[True], about, pooling)


class Head(nn.Module):
    """h ↦ W h + b: (…, D) -> (…, C). Not an nn.Linear, for neither LoRA nor quantisation is to take it for one.

    replaced  the head that was here before, out of the way of `parameters()`; None if the model was loaded with this
    tied      that one was the embedding
    """

    def __init__(self, config: HeadConfig, hidden_size: int, *, tied: bool, replaced: nn.Module | None = None):
        super().__init__()
        self.config, self.tied = config, tied
        self.kept = (replaced,)                                     # in a tuple, torch does not look for modules
        self.weight = nn.Parameter(torch.empty(len(config.labels), hidden_size))
        self.bias = nn.Parameter(torch.zeros(len(config.labels))) if KINDS[config.kind].bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@torch.no_grad()
def add_head(model: Llama, config: HeadConfig, *, generator: torch.Generator | None = None) -> None:
    """Put a new head in the place of `lm_head`: normal weights, no bias. Add LoRA afterwards: it learns the head whole.

    Raises ValueError for a model that has one, or adapters already, and for full attention over a sliding window.
    """
    if (there := head_config(model)) is not None:
        raise ValueError(f"the model has a head for {', '.join(there.labels):.60} already; remove_head comes first")
    require_llama(model.config, "heads of labels are", "let it write the label, as --task instruction learns to")
    if any(hasattr(module, "adapters") for module in model.modules()):
        raise ValueError("an adapter sits on the model, and what it saves would not hold the new head; add the head "
                         "first, then LoRA")
    if config.attention == "full" and model.config.sliding_window:
        raise ValueError(f"the model looks through a sliding window of {model.config.sliding_window} positions, "
                         "backwards; full attention is not built for it: take causal")
    head = Head(config, model.config.hidden_size, tied=model.config.tie_word_embeddings, replaced=model.lm_head)
    head.to(device=model.device, dtype=model.dtype)
    if not head.weight.is_meta:
        noise = torch.randn(head.weight.shape, generator=generator) * model.config.initializer_range
        head.weight.copy_(noise)                                    # drawn on the CPU: the same on every device
    del model.lm_head
    model.config = replace(model.config, tie_word_embeddings=False)
    model.head_name = config.name
    model.add_module(config.name, head)


def remove_head(model: Llama) -> None:
    """The inverse: a language model again, with the head that it had.

    Raises ValueError where that is not known: the model has no head of labels, or it was loaded with one and is untied.
    """
    head = head_of(model)
    if head is None or getattr(model, model.head_name) is not head:
        raise ValueError("the model has no head to remove, or an adapter sits on it: remove_lora or merge_lora first")
    before = head.kept[0]
    if before is None or any(parameter.is_meta for parameter in before.parameters()):
        if not head.tied:
            raise ValueError("the model was loaded with this head, and its files hold no other; load the model that it "
                             "was tuned from")
        before = nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False, device="meta")
    if head.tied and not isinstance(model.embed_tokens, nn.Embedding) and isinstance(before, nn.Linear):
        raise ValueError("the embedding that the head was tied to has been quantised since; load the model anew")
    delattr(model, model.head_name)
    model.head_name, model.lm_head = "lm_head", before
    model.config = replace(model.config, tie_word_embeddings=head.tied)
    model.tie_weights()
    model.lm_head.to(model.device)


def head_of(model: nn.Module) -> Head | None:
    """The head of labels, also below an adapter that learns it; None for a language model."""
    head = getattr(model, model.head_name)
    head = getattr(head, "base", head)
    return head if isinstance(head, Head) else None


def head_config(model: nn.Module) -> HeadConfig | None:
    head = head_of(model)
    return head.config if head is not None else None


def require_lm_head(model: nn.Module) -> None:
    """Raise ValueError for a model whose head gives no scores of tokens, so that no text can come out of it."""
    if (head := head_config(model)) is not None:
        raise ValueError(f"the model has a head for {', '.join(head.labels):.60}, so it writes no text; use it by "
                         "python -m llama.evaluate or a task's predict, or take the model below it")


def check_editable(model: nn.Module) -> None:
    """Raise ValueError where blocks were swapped for some that only generate: their parameters may be empty."""
    if any(getattr(layer, "only_generates", False) for layer in model.layers):
        raise ValueError("this model is fused, for generating alone; unfuse it first (llama/fast/fused_block.py)")
