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


def in_parts(request):
    """{"file", "most"} -> a copy in parts of so many tensors at most, written beside it by this library: its files."""
    from pathlib import Path

    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    path = Path(request["file"])
    reader = GGUFReader(path)
    writer = GGUFWriter(path.with_name("parts.gguf"), "llama", split_max_tensors=request["most"])
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(str(part) for part in path.parent.glob("parts-*.gguf"))


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


def k_packed(request):
    """{"format", "tensors": {name: float32 (rows, 256)}} -> their blocks, uint8, by llama.cpp's own quantiser."""
    import ctypes
    from pathlib import Path

    import torch
    import xllamacpp
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    form = GGMLQuantizationType[request["format"]]
    library = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("*.so"))))
    pack = library.ggml_quantize_chunk                              # type, from, to, first row, rows, columns, weights
    pack.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    pack.restype = ctypes.c_size_t
    answer = {}
    for name, x in request["tensors"].items():
        answer[name] = torch.empty(len(x), GGML_QUANT_SIZES[form][1], dtype=torch.uint8)
        written = pack(form.value, x.data_ptr(), answer[name].data_ptr(), 0, len(x), 256, None)
        assert written == answer[name].numel(), written
    return answer


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
