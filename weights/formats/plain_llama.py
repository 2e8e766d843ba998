"""A plain Llama: what Meta's and llama2.c's files can hold, with the shapes and the order of rotary rows they share.

Both formats name sizes and no more: no biases, no sliding window, heads of D / H features. And in both, as in GGUF, a
rotary pair is two neighbours (2i, 2i + 1), where Hugging Face's is (i, i + K/2): the same numbers, rows of q_proj and
k_proj in another order. The letters are explained in llama/config.py.

Try: let `to_interleaved` return its argument; tests/test_meta.py (test_two_ways_complex_rotation_of_neighbours)
fails, while a real model would go on writing fluent text for some 20 tokens.
"""

from typing import Any, NamedTuple

from torch import Tensor

from weights.formats.huggingface import Ledger

HEAD = "lm_head.weight"


class Sizes(NamedTuple):
    """What decides the shapes."""

    D: int
    F: int
    L: int
    H: int
    G: int
    V: int

    @property
    def K(self) -> int:
        return self.D // self.H

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor by its name in memory, the head among them."""
        D, F, H, G, K = self.D, self.F, self.H, self.G, self.K
        block = {
            "input_layernorm": (D,),
            "self_attn.q_proj": (H * K, D),
            "self_attn.k_proj": (G * K, D),
            "self_attn.v_proj": (G * K, D),
            "self_attn.o_proj": (D, H * K),
            "post_attention_layernorm": (D,),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
        }
        blocks = {f"layers.{i}.{part}.weight": shape for i in range(self.L) for part, shape in block.items()}
        return {"embed_tokens.weight": (self.V, D), **blocks, "norm.weight": (D,), HEAD: (self.V, D)}

    def config(self, **more: Any) -> dict[str, Any]:
        """Hugging Face's config.json of a plain Llama; `more` is what sizes do not say."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.V,
            "hidden_size": self.D,
            "intermediate_size": self.F,
            "num_hidden_layers": self.L,
            "num_attention_heads": self.H,
            "num_key_value_heads": self.G,
            "head_dim": self.K,
            **more,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
        }

    def rotated_heads(self, name: str) -> int:
        """How many heads share the rows of a tensor that rotary embedding turns; 0 for all other tensors."""
        return {"q_proj": self.H, "k_proj": self.G}.get(name.split(".")[-2], 0)

    def misfit(self) -> str:
        """Why no Llama has these sizes; empty if one may."""
        if any(size < 1 for size in self):
            return f"its sizes are {self}; each must be at least 1"
        if self.D % (2 * self.H):
            return f"hidden size {self.D} for {self.H} heads; rotary embedding asks for an even number of features each"
        if self.H % self.G:
            return f"{self.H} heads are no multiple of {self.G} key-value heads; each group shares one"
        return ""


def plain_sizes(config: dict[str, Any], ledger: Ledger, form: str) -> Sizes:
    """The sizes in a config with Hugging Face's keys, if the model is a plain Llama and its tensors are in the ledger.

    form  "Meta's files", "llama2.c", …: named in the refusals

    Raises ValueError, naming what `form` has no place for, what is missing, or what has another shape.
    """
    if missing := [key for key in _REQUIRED if not config.get(key)]:
        raise ValueError(f"the config lacks {', '.join(missing)}; {form} cannot be written without")
    D, F, L, H, V = (config[key] for key in _REQUIRED[:5])
    sizes = Sizes(D, F, L, H, config.get("num_key_value_heads") or H, V)
    if reason := sizes.misfit():
        raise ValueError(f"the config: {reason}")
    plain = {"hidden_act": "silu", "head_dim": sizes.K, "partial_rotary_factor": 1.0, "attention_bias": False,
             "qkv_bias": False, "mlp_bias": False, "sliding_window": 0}
    for key, value in plain.items():
        if (config.get(key) or value) != value:
            raise ValueError(f"{key} is {config[key]!r}, and {form} can hold {value!r} only; write another format")
    if (kind := config.get("model_type", "llama")) not in ("llama", "mistral"):
        raise ValueError(f"model_type is '{kind}', whose biases or norms {form} cannot hold; write another format")

    found = {name: shape for name, shape, _ in ledger}
    if (last := f"layers.{L - 1}.input_layernorm.weight") not in found:            # before shapes of a billion layers
        raise ValueError(f"the tensor {last} is missing, though the config says {L:,} layers")
    wanted = sizes.shapes()
    if config.get("tie_word_embeddings"):
        del wanted[HEAD]
    if foreign := [name for name in found if name not in wanted]:
        raise ValueError(f"{foreign[0]} has no place in {form}; leave it out or write another format")
    for name, shape in wanted.items():
        if name not in found:
            raise ValueError(f"the tensor {name} is missing; {form} cannot be written without")
        if found[name] != shape:
            raise ValueError(f"{name} has shape {list(found[name])}, but the config asks for {list(shape)}")
    return sizes


_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
             "rms_norm_eps")


def to_half_split(rows: Tensor, heads: int) -> Tensor:
    """Rows of each head from 0 K/2 1 K/2+1 2 … (pairs are neighbours) to 0 1 2 … K-1; H heads of queries, G of keys."""
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def to_interleaved(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `to_half_split`."""
    return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
