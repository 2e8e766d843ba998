"""What the rest of the house asks of a model: `Llama` has it by itself, its relatives have it from here.

    model      embed_tokens, layers, norm, and a head of tokens, under these names; device, dtype
               hidden(tokens, positions=, mask=, cache=) -> (B, T, D), forward(…, rows=) -> logits
    config     a frozen dataclass: vocab_size, hidden_size, num_hidden_layers, tie_word_embeddings, what a KVCache
               needs (num_key_value_heads, head_dim), and how long a text may be (context)

Trainer, tasks, generation, LoRA, freezing and the proof after saving use no more; what they do with a model that
learned by other means than Llama's follows from its `hidden`. Fast versions and few bits are twins of Llama's own parts
and leave these models as they are, or say so.

Try: call the layers `blocks`; tests/test_relatives.py (test_property_llama_and_its_relatives_answer_the_same_questions)
fails.
"""

from typing import Any

from torch import Tensor, nn


class RelativeConfig:
    """What other parts ask of a config whose model has no rotary positions, and as many keys as queries."""

    rope_scaling = None
    sliding_window = 0                                              # of all layers, which would let a cache drop keys
    num_attention_heads: int
    max_position_embeddings: int

    @property
    def num_key_value_heads(self) -> int:
        return self.num_attention_heads

    @property
    def context(self) -> int:
        """How many tokens a text may have, what is generated included."""
        return self.max_position_embeddings

    @property
    def rope_stable_length(self) -> int:
        """Keys stay what they are: nothing is rotated."""
        return self.context

    def check_sizes(self, *names: str) -> None:
        """Raise ValueError for a size that is no whole number from 1 on."""
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Not drawn here, since `init_weights` draws: on the meta device that would cost a second of imports."""


class LanguageModel(nn.Module):
    """The part of `Llama` that says nothing of Llama: tokens in, states out, and a head for the rows asked for."""

    takes_prefix = False                                            # whether `mask` is a masks.Prefix, and must be

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.head_name = "lm_head"
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the head the embedding's own parameter, if the config says so (again after loading onto `meta`)."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def hidden(self, tokens: Tensor, *, positions: Tensor | None = None, mask: Any = None,
               cache: Any = None) -> Tensor:
        """The last layer's normalised states: (B, T) int64 -> (B, T, D)."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, *, positions: Tensor | None = None, mask: Any = None, cache: Any = None,
                rows: Any = None) -> Tensor:
        """Logits (B, T, V), or (N, V) for `rows`: anything that indexes (B, T)."""
        hidden = self.hidden(tokens, positions=positions, mask=mask, cache=cache)
        return self.head(hidden if rows is None else hidden[rows])

    @property
    def head(self) -> nn.Module:
        return getattr(self, self.head_name)

    @property
    def device(self) -> Any:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> Any:
        return self.norm.weight.dtype
