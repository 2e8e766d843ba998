"""The other side of the checks, run by the judges' own interpreter. Imports nothing of this project.

    judge.py REQUEST.json ANSWER.safetensors|ANSWER.json

A request is {"what": "logits" | "greedy" | "tokens" | "gguf", …}; see the functions.
"""

import json
import sys


def _model(request):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(request["folder"], dtype=torch.float32)
    if request.get("adapter"):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, request["adapter"])
    return model.eval()


def logits(request, answer):
    """{"folder", "adapter"?, "ids": {name: [int]}} -> a float32 tensor (T, V) for each name."""
    import torch
    from safetensors.torch import save_file

    model = _model(request)
    with torch.inference_mode():
        save_file({name: model(torch.tensor([ids])).logits[0].float().contiguous()
                   for name, ids in request["ids"].items()}, answer)


def greedy(request, answer):
    """{"folder", "ids": [[int]], "new": int} -> the new ids of each."""
    import torch

    model, rows = _model(request), []
    with torch.inference_mode():
        for ids in request["ids"]:
            out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=request["new"],
                                 eos_token_id=request["eos"], pad_token_id=request["eos"][0])
            rows.append(out[0, len(ids):].tolist())
    json.dump(rows, open(answer, "w"))


def tokens(request, answer):
    """{"file": tokenizer.json, "texts": [str]} -> ids of each, special tokens in the text being text, and decoded."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(request["file"])
    tokenizer.encode_special_tokens = True
    rows = [tokenizer.encode(text, add_special_tokens=False).ids for text in request["texts"]]
    json.dump({"ids": rows, "texts": [tokenizer.decode(ids, skip_special_tokens=False) for ids in rows]},
              open(answer, "w"))


def gguf(request, answer):
    """{"file", "layers", "heads": {"attn_q": H, "attn_k": G}, "names"} -> sha256 of each tensor in float32.

    The names are Hugging Face's; which tensor of the file each one is, this library says. Rows of q and k are
    put back from GGUF's order of rotary pairs to Hugging Face's.
    """
    import hashlib

    import numpy as np
    from gguf import MODEL_ARCH, GGUFReader, get_tensor_name_map
    from gguf.quants import dequantize

    mapping = get_tensor_name_map(MODEL_ARCH.LLAMA, request["layers"])
    names = {mapping.get_name("model." + name, try_suffixes=(".weight",)): name for name in request["names"]}
    sums = {}
    for tensor in GGUFReader(request["file"]).tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if heads := request["heads"].get(tensor.name.split(".")[-2]):
            values = values.reshape(heads, -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        sums[names[tensor.name]] = hashlib.sha256(values.tobytes()).hexdigest()
    json.dump(sums, open(answer, "w"))


if __name__ == "__main__":
    asked = json.load(open(sys.argv[1]))
    {"logits": logits, "greedy": greedy, "tokens": tokens, "gguf": gguf}[asked["what"]](asked, sys.argv[2])
