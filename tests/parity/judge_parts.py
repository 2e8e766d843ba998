"""Questions about the model's parts, answered with transformers' modules for Llama.

A request holds "tensors": x, the gradient of the output, and the weights as `weight.NAME`; "config"; "layout". The
answer is y and the gradients of x and of every weight. For the layout «neighbours» the rotation of Llama's modules is
replaced by that of transformers' Llama 4, which multiplies complex numbers.
"""


def norm(request):
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    size = request["tensors"]["x"].shape[-1]
    return _through(LlamaRMSNorm(size, request["eps"]).to(request["tensors"]["x"].dtype), request, lambda m, x: m(x))


def rotary(request):
    import torch
    from transformers.models.llama import modeling_llama

    tensors = request["tensors"]
    x = tensors["x"].requires_grad_()
    cos, sin = modeling_llama.LlamaRotaryEmbedding(_config(request))(x, tensors["positions"][None])
    rotate = _neighbours if request["layout"] == "neighbours" else modeling_llama.apply_rotary_pos_emb
    y, _ = rotate(x, torch.zeros_like(x), cos, sin)
    y.backward(tensors["gradient"])
    return {"y": y, "gradient.x": x.grad}


def attention(request):
    from transformers.models.llama.modeling_llama import LlamaAttention

    return _with_positions(LlamaAttention(_config(request), layer_idx=0), request)


def swiglu(request):
    from transformers.models.llama.modeling_llama import LlamaMLP

    return _through(LlamaMLP(_config(request)), request, lambda m, x: m(x))


def block(request):
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    return _with_positions(LlamaDecoderLayer(_config(request), layer_idx=0), request)


def _config(request):
    from transformers import AutoConfig

    values = dict(request["config"])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config._attn_implementation = "eager"                           # not torch's kernel, which ours uses
    return config


def _neighbours(q, k, cos, sin):
    """In the place of `apply_rotary_pos_emb`: pairs (2i, 2i + 1). cos and sin (B, T, K) repeat after K/2."""
    import torch
    from transformers.models.llama4.modeling_llama4 import apply_rotary_emb

    half = cos.shape[-1] // 2
    turns = torch.complex(cos[..., :half], sin[..., :half])
    q, k = apply_rotary_emb(q.transpose(1, 2), k.transpose(1, 2), turns)
    return q.transpose(1, 2), k.transpose(1, 2)


def _with_positions(module, request):
    from unittest import mock

    import torch
    from transformers.models.llama import modeling_llama

    T = request["tensors"]["x"].shape[1]
    embedding = modeling_llama.LlamaRotaryEmbedding(_config(request))
    mask = torch.full((T, T), float("-inf")).triu(1)[None, None]

    def call(module, x):
        y = module(x, position_embeddings=embedding(x, torch.arange(T)[None]), attention_mask=mask)
        return y[0] if isinstance(y, tuple) else y

    rotate = _neighbours if request["layout"] == "neighbours" else modeling_llama.apply_rotary_pos_emb
    with mock.patch.object(modeling_llama, "apply_rotary_pos_emb", rotate):
        return _through(module, request, call)


def _through(module, request, call):
    tensors = request["tensors"]
    module.load_state_dict({name.removeprefix("weight."): tensor for name, tensor in tensors.items()
                            if name.startswith("weight.")})
    x = tensors["x"].requires_grad_()
    y = call(module, x)
    y.backward(tensors["gradient"])
    return {"y": y, "gradient.x": x.grad} | {f"gradient.{name}": p.grad for name, p in module.named_parameters()}
