"""Questions about whole models, answered with transformers."""


def _model(request):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(request["folder"], dtype=torch.float32).eval()


def logits(request):
    """{"folder", "ids": {name: [int]}} -> a float32 tensor (T, V) for each name."""
    import torch

    model = _model(request)
    with torch.inference_mode():
        return {name: model(torch.tensor([ids])).logits[0].float() for name, ids in request["ids"].items()}


def greedy(request):
    """{"folder", "ids": [[int]], "new": int, "eos": [int]} -> the new ids of each, without the one that ends it."""
    import torch

    model, longest = _model(request), max(map(len, request["ids"]))
    pad = request["eos"][0]
    rows = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in request["ids"]])
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in request["ids"]])
    out = model.generate(rows, attention_mask=mask, do_sample=False, max_new_tokens=request["new"],
                         eos_token_id=request["eos"], pad_token_id=pad)[:, longest:].tolist()
    return [row[: next((i for i, token in enumerate(row) if token in request["eos"]), len(row))] for row in out]


def beams(request):
    """{"folder", "ids": [[int]], "new": int, "eos": [int], "beams", "length_penalty"} -> the new ids of each."""
    import torch

    model, rows = _model(request), []
    for ids in request["ids"]:
        out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64),
                             do_sample=False, num_beams=request["beams"], length_penalty=request["length_penalty"],
                             early_stopping=False, max_new_tokens=request["new"], eos_token_id=request["eos"],
                             pad_token_id=request["eos"][0])[0, len(ids):].tolist()
        rows.append([token for token in out if token not in request["eos"]])
    return rows


def model(request):
    """{"config"}, tensors ids (B, T) and weight.NAME -> logits, the mean loss, and its gradient for every weight."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(request["config"])
    config = AutoConfig.for_model(values.pop("model_type"), **values, pad_token_id=None)   # some have one beyond V
    built = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    weights = {name.removeprefix("weight."): tensor for name, tensor in request["tensors"].items()
               if name.startswith("weight.")}
    missing, unknown = built.load_state_dict({_stored(name): tensor for name, tensor in weights.items()}, strict=False)
    assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)
    ids = request["tensors"]["ids"]
    read, following = ids[:, :-1], ids[:, 1:].contiguous()     # not all: dynamic scaling depends on the length
    loss = built(read, labels=following, shift_labels=following, use_cache=False).loss
    loss.backward()
    gradients = {f"gradient.{name.removeprefix('model.')}": p.grad for name, p in built.named_parameters()}
    return {"logits": built(ids, use_cache=False).logits, "loss": loss.reshape(1), **gradients}


def _stored(name):
    return name if name.startswith("lm_head.") else f"model.{name}"
