"""The parts of the model against transformers' modules, forward and backward, in both layouts of rotary pairs.

A question is made once and answered twice: by the function here and by that of the same name in judge_parts.py.
In files of the layout «neighbours» (Meta's, GGUF's) the rows of q_proj and k_proj are interleaved. Ours are the
conversion to halves and then our model; the judge's is the rotation by complex numbers, without any conversion.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from llama.config import LlamaConfig, RopeScaling
from llama.config_json import config_from_dict, config_to_dict
from llama.model import MLP, Attention, Block, RMSNorm, apply_rotary, rotary_tables
from tests.parity.judges import Check, Judges, difference
from weights.formats.plain_llama import to_half_split

SHAPE = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=8,
                    num_key_value_heads=2, head_dim=4, max_position_embeddings=4096)
LAYOUTS = ("halves", "neighbours")
LIMIT = 1e-5                                                        # of the largest number of each tensor
FAR = 1e-4                                                          # at position 3,000 float32 knows angles to 4 digits


def scaled(config: LlamaConfig, original: int) -> dict[str, LlamaConfig]:
    """Models of that shape, trained on `original` positions and stretched in every way that transformers knows too."""
    def stretched(kind: str, factor: float, **options: Any) -> LlamaConfig:
        return replace(config, rope_scaling=RopeScaling(kind, factor, **options))

    return {
        "linear": stretched("linear", 4.0),
        "llama3": stretched("llama3", 8.0, original_max_position_embeddings=original),
        "dynamic": replace(stretched("dynamic", 4.0), max_position_embeddings=original),
        "yarn": stretched("yarn", 4.0, original_max_position_embeddings=original),
    }


def norm(request: dict[str, Any]) -> dict[str, Tensor]:
    weights, x = _leaves(request["tensors"])
    return _backward(torch.func.functional_call(RMSNorm(len(weights["weight"]), request["eps"]), weights, (x,)),
                     request["tensors"]["gradient"], weights, x)


def rotary(request: dict[str, Any]) -> dict[str, Tensor]:
    _, x = _leaves(request["tensors"])                              # (B, H, T, K)
    config = _config(request)
    order = torch.arange(config.head_dim)
    if request["layout"] == "neighbours":
        order = to_half_split(order[:, None], 1).squeeze(1)
    y = apply_rotary(x[..., order], *rotary_tables(request["tensors"]["positions"], config))[..., order.argsort()]
    return _backward(y, request["tensors"]["gradient"], {}, x)


def attention(request: dict[str, Any]) -> dict[str, Tensor]:
    return _with_positions(Attention(_config(request)), request)


def swiglu(request: dict[str, Any]) -> dict[str, Tensor]:
    weights, x = _leaves(request["tensors"])
    return _backward(torch.func.functional_call(MLP(_config(request)), weights, (x,)),
                     request["tensors"]["gradient"], weights, x)


def block(request: dict[str, Any]) -> dict[str, Tensor]:
    return _with_positions(Block(_config(request)), request)


def checks(judges: Judges) -> Iterator[Check]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def question(module: nn.Module | None, x: Tensor) -> dict[str, Tensor]:
        """Random weights of the module, away from where they start, and the gradient that comes from above."""
        parameters = module.named_parameters() if module else []
        return {"x": x, "gradient": normal(*x.shape)} | {
            f"weight.{name}": normal(*p.shape) * 0.3 + name.endswith("norm.weight") for name, p in parameters}

    def ask(what: str, name: str, tensors: dict[str, Tensor], **request: Any) -> float:
        request = request | {"tensors": tensors}
        theirs = judges.ask("judge_parts.py", what=what, keep=f"parts/{what}, {name}", **request)
        return difference(globals()[what](request), theirs)

    def row(what: str, cases: list[str], worst: float, limit: float = LIMIT) -> Check:
        return Check(f"{what}, forward and backward: {', '.join(cases)}", "transformers", f"{len(cases)} cases",
                     f"{worst:.1e} relative", worst < limit)

    x = normal(2, 7, SHAPE.hidden_size)
    found = {}
    for dtype, size in {torch.float32: 3, torch.bfloat16: 3, torch.float16: 300}.items():      # 300² is no float16
        name = str(dtype).removeprefix("torch.")
        found[name] = ask("norm", name, {key: tensor.to(dtype) for key, tensor in
                                         question(RMSNorm(8, 1e-5), x * size).items()}, eps=1e-5)
    yield row("RMSNorm", list(found), max(found.values()))

    positions = torch.tensor([0, 1, 2, 63, 1023, 1024, 2999])
    wide = replace(SHAPE, head_dim=16)
    yarns = {"yarn (attention_factor)": {"attention_factor": 1.3, "truncate": False, "beta_fast": 16.0},
             "yarn (mscale)": {"mscale": 0.7, "mscale_all_dim": 1.2}}
    yarns = {name: replace(wide, rope_scaling=RopeScaling("yarn", 4.0, original_max_position_embeddings=1024, **more))
             for name, more in yarns.items()}
    for layout in LAYOUTS:
        found = {}
        for name, config in {"default": wide, **scaled(wide, 1024), **yarns}.items():
            found[name] = ask("rotary", f"{name}, {layout}", question(None, normal(1, 2, 7, 16)) |
                              {"positions": positions}, config=config_to_dict(config), layout=layout)
        # The library has no static NTK, but its dynamic one is ours where the text is as long as that factor asks for.
        config = scaled(wide, 64)["dynamic"]
        found["ntk"] = ask("rotary", f"ntk, {layout}", question(None, normal(1, 2, 7, 16)) |
                           {"positions": torch.tensor([0, 1, 2, 31, 63, 64, 111])}, config=config_to_dict(config),
                           static_ntk=4.0, layout=layout)
        yield row(f"rotary embedding, {layout}", list(found), max(found.values()), FAR)

    for layout in LAYOUTS:
        found = {}
        for G in (1, 2, 4, 8):
            config = replace(SHAPE, num_key_value_heads=G)
            found[f"G = {G}"] = ask("attention", f"G = {G}, {layout}", question(Attention(config), x),
                                    config=config_to_dict(config), layout=layout)
        yield row(f"attention of 8 heads, {layout}", list(found), max(found.values()))

    found = {"plain": ask("swiglu", "plain", question(MLP(SHAPE), x), config=config_to_dict(SHAPE))}
    biased = replace(SHAPE, mlp_bias=True)
    found["bias"] = ask("swiglu", "bias", question(MLP(biased), x), config=config_to_dict(biased))
    yield row("SwiGLU", list(found), max(found.values()))

    found = {layout: ask("block", layout, question(Block(SHAPE), x), config=config_to_dict(SHAPE), layout=layout)
             for layout in LAYOUTS}
    yield row("block", list(found), max(found.values()))


def _config(request: dict[str, Any]) -> LlamaConfig:
    config = config_from_dict(request["config"])
    if "static_ntk" in request:
        config = replace(config, rope_scaling=RopeScaling("ntk", request["static_ntk"]))
    return config


def _leaves(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    """The question's weights and its x, to be differentiated."""
    weights = {name.removeprefix("weight."): tensor.clone().requires_grad_() for name, tensor in tensors.items()
               if name.startswith("weight.")}
    return weights, tensors["x"].clone().requires_grad_()


def _with_positions(module: nn.Module, request: dict[str, Any]) -> dict[str, Tensor]:
    weights, x = _leaves(request["tensors"])
    config = _config(request)
    heads = {"q_proj.weight": config.num_attention_heads, "k_proj.weight": config.num_key_value_heads}
    used = dict(weights)
    if request["layout"] == "neighbours":
        for name in weights:
            if count := heads.get(".".join(name.split(".")[-2:])):
                used[name] = to_half_split(weights[name], count)
    cos, sin = rotary_tables(torch.arange(x.shape[1]), config)
    return _backward(torch.func.functional_call(module, used, (x, cos, sin, None, None)),
                     request["tensors"]["gradient"], weights, x)


def _backward(y: Tensor, gradient: Tensor, weights: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    y.backward(gradient)
    return {"y": y.detach(), "gradient.x": x.grad} | {f"gradient.{name}": w.grad for name, w in weights.items()}
