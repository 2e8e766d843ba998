"""Chats with a model that was tuned here, in other programs: {"path", "chats", "new"} -> what is said in each."""


def transformers(request):
    """By the folder, its tokenizer and its template, greedily and in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["path"])
    model = AutoModelForCausalLM.from_pretrained(request["path"], dtype=torch.float32).eval()
    said = []
    for chat in request["chats"]:
        given = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = model.generate(**given, do_sample=False, max_new_tokens=request["new"])
        said.append(tokenizer.decode(out[0, given["input_ids"].shape[1]:], skip_special_tokens=True))
    return said


def llama_cpp(request):
    """By the GGUF alone, which brings tokenizer and template; settings as in judge_formats.py."""
    import xllamacpp as x

    params = x.CommonParams()
    params.model.path, params.n_ctx, params.n_gpu_layers, params.n_parallel = request["path"], 512, 0, 1
    params.cache_type_k = params.cache_type_v = x.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = x.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = params.fit_params = False
    params.verbosity, params.use_jinja = 0, True
    server, said = x.Server(params), []
    for chat in request["chats"]:
        answer = server.handle_chat_completions({"messages": chat, "max_tokens": request["new"], "temperature": 0,
                                                 "cache_prompt": False})
        if "choices" not in answer:
            raise RuntimeError(f"llama.cpp refuses {request['path']}: {answer}")
        said.append(answer["choices"][0]["message"]["content"])
    return said


def vllm(request):
    """By the folder, its tokenizer and its template, greedily and in float32, on the CPU."""
    import os

    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    from vllm import LLM, SamplingParams

    model = LLM(request["path"], dtype="float32", max_model_len=512, enforce_eager=True)
    sampling = SamplingParams(temperature=0, max_tokens=request["new"])
    return [model.chat(chat, sampling, use_tqdm=False)[0].outputs[0].text for chat in request["chats"]]
