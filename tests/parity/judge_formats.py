"""Questions about files."""


def gguf(request):
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
    return sums


def unpacked(request):
    """{"tensors": {format: uint8 (blocks, bytes)}} -> the numbers of each, float32."""
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return {name: torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[name]).copy())
            for name, blocks in request["tensors"].items()}


def packed(request):
    """{"formats", "tensors": {"x": float32 (rows, 32)}} -> the blocks of each format, uint8."""
    import numpy as np
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    x = request["tensors"]["x"].numpy()
    return {name: torch.from_numpy(np.ascontiguousarray(quantize(x, GGMLQuantizationType[name])).view(np.uint8).copy())
            for name in request["formats"]}


def llama_cpp(request):
    """{"file", "prompts": [str | [int]], "new", "context"} -> for each {"ids", "text", "logprobs"} of the greedy text.

    A token that ends within a character has no log-probability of its own.

    Everything is float32 that can be: the cache, and no flash attention, which rounds to float16. One thread, since
    llama.cpp's threads wait for each other without sleeping, which takes for ever where other programs run.
    """
    import xllamacpp as x

    params = x.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers, params.n_parallel = request["file"], request["context"], 0, 1
    params.cache_type_k = params.cache_type_v = x.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = params.fit_params = False
    params.verbosity = 0
    server, answers = x.Server(params), []
    for prompt in request["prompts"]:
        answer = server.handle_completions({"prompt": prompt, "n_predict": request["new"], "temperature": 0,
                                            "n_probs": 1, "cache_prompt": False, "return_tokens": True,
                                            "verbose": True})
        if "choices" not in answer:
            raise RuntimeError(f"llama.cpp refuses {request['file']}: {answer}")
        choice = answer["choices"][0]
        answers.append({"ids": answer["__verbose"]["tokens"], "text": choice["text"],
                        "logprobs": [token["logprob"] for token in choice["logprobs"]["content"]]})
    return answers
