"""llama.cpp at the work of `python -m llama.benchmark --peers`, in llama/runtime/worker.py with the judges' Python."""


def works(settings):
    """{"file", "threads", "context", "weights", "cache"} -> some of the works of llama/benchmark/measure_generation.py.

    weights, cache  bytes read for a token, and for each token before it
    """
    import xllamacpp as x

    params = x.CommonParams()
    params.model.path, params.n_gpu_layers = settings["file"], 0
    params.n_parallel, params.n_ctx = 1, settings["context"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.fit_params = False
    params.verbosity = 0
    server = x.Server(params)

    def timings(prompt, new):
        answer = server.handle_completions({"prompt": prompt, "n_predict": new, "samplers": ["top_k"], "top_k": 1,
                                            "ignore_eos": True, "cache_prompt": False})
        if "timings" not in answer:
            raise RuntimeError(f"llama.cpp refuses {settings['file']}: {answer}")
        return answer["timings"]

    def decode(prompt, new):
        found = timings(prompt, new + 1)                            # the clock starts when the first one is there
        assert found["predicted_n"] == new + 1, found
        return {"tokens": new, "seconds": found["predicted_ms"] / 1000}

    def prefill(prompt):
        found = timings(prompt, 1)
        assert found["prompt_n"] == len(prompt), found
        return {"tokens": len(prompt), "seconds": found["prompt_ms"] / 1000}

    def traffic(context):
        return {"bytes": settings["weights"] + settings["cache"] * context}

    return {"decode": decode, "prefill": prefill, "traffic": traffic}
