"""What Llama's siblings do otherwise: parts that take the place of plain ones, in the same forward pass.

    Qwen 3      queries and keys are normed, each head by itself             qk_norm="head"
    OLMo 2      queries and keys are normed, all heads at once, and          qk_norm="all"
                norms stand behind attention and feed-forward part           norm_after=True
    SmolLM 3    every fourth block knows no positions (arXiv:2501.18795)     no_rope_layers=(3, 7, …)
    Granite     what is embedded, added, scored and said is scaled           embedding_multiplier … logits_scaling

`PretrainedLlama` puts in what its config asks for; names of parameters are those of Hugging Face's files.

Try: norm the values as well; tests/test_siblings.py (test_two_ways_a_sibling_equals_the_reference) fails.
"""

import torch
from torch import Tensor, nn

from llama.cache import LayerCache
from llama.config import LlamaConfig
from llama.model import Attention, Block, Llama, RMSNorm


class HeadNorm(RMSNorm):
    """RMSNorm of each head by itself, in a row of all heads."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.unflatten(-1, (-1, len(self.weight)))).flatten(-2)


class SiblingAttention(Attention):
    """Queries and keys are normed, where asked, before they are turned; scores have a scale of their own."""

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        H, G, K = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.q_norm, self.k_norm = nn.Identity(), nn.Identity()
        if config.qk_norm == "head":
            self.q_norm, self.k_norm = HeadNorm(K, config.rms_norm_eps), HeadNorm(K, config.rms_norm_eps)
        elif config.qk_norm == "all":
            self.q_norm, self.k_norm = RMSNorm(H * K, config.rms_norm_eps), RMSNorm(G * K, config.rms_norm_eps)
        self.factor = config.attention_multiplier * K**0.5 or 1.0   # beside the 1 / √K of `attention`

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self._heads(self.q_norm(self.q_proj(x))) * self.factor  # (B, H, T, K)
        k = self._heads(self.k_norm(self.k_proj(x)))                # (B, G, T, K)
        v = self._heads(self.v_proj(x))
        return q, k, v


class PositionlessAttention(SiblingAttention):
    """Attention that sees an order by the causal mask alone: nothing is turned."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        return super().forward(x, torch.ones_like(cos), torch.zeros_like(sin), mask, cache)


class SiblingBlock(Block):
    """`Block` with its own attention, whose parts are scaled before they are added."""

    def __init__(self, config: LlamaConfig, number: int):
        super().__init__(config)
        self.self_attn = (PositionlessAttention if number in config.no_rope_layers else SiblingAttention)(config)
        self.before = config.embedding_multiplier if number == 0 else 1.0
        self.added = config.residual_multiplier

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        x = x * self.before
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache) * self.added
        return x + self.mlp(self.post_attention_layernorm(x)) * self.added


class NormAfterBlock(SiblingBlock):
    """The norms behind the parts: x + norm(part(x)) (OLMo 2, arXiv:2501.00656, section 3.3)."""

    def __init__(self, config: LlamaConfig, number: int):
        super().__init__(config, number)
        del self.input_layernorm
        self.post_feedforward_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        x = x * self.before
        x = x + self.post_attention_layernorm(self.self_attn(x, cos, sin, mask, cache)) * self.added
        return x + self.post_feedforward_layernorm(self.mlp(x)) * self.added


class ScaledNorm(RMSNorm):
    """The last norm of a model whose logits are divided by a number: the head is linear, so states are as well."""

    def __init__(self, size: int, eps: float, divisor: float):
        super().__init__(size, eps)
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.divisor


def put_in_parts(model: Llama) -> None:
    """Give a new model the parts that its config asks for; nothing to do for a Llama, a Mistral or a Qwen 2."""
    config = model.config
    if config.is_plain:
        return
    block = NormAfterBlock if config.norm_after else SiblingBlock
    model.layers = nn.ModuleList(block(config, number) for number in range(config.num_hidden_layers))
    if config.logits_scaling != 1:
        model.norm = ScaledNorm(config.hidden_size, config.rms_norm_eps, config.logits_scaling)
    model.init_weights()
