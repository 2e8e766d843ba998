"""transformers at the work of `python -m llama.benchmark --peers`, in llama/runtime/worker.py."""

import time


def works(settings):
    """{"folder", "dtype", "threads"} -> the works that llama/benchmark/measure_generation.py has, too."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(settings["threads"])
    model = AutoModelForCausalLM.from_pretrained(settings["folder"], dtype=getattr(torch, settings["dtype"])).eval()
    model.generation_config.eos_token_id = None                     # go on where the model would end
    options = {"do_sample": False, "pad_token_id": 0}

    class Clock:
        """A streamer, which is handed every token; the prompt first."""

        def __init__(self):
            self.times = []

        def put(self, tokens):
            self.times.append(time.perf_counter())

        def end(self):
            pass

    @torch.inference_mode()
    def decode(prompt, new):
        ids, clock = torch.tensor([prompt]), Clock()
        written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new + 1, streamer=clock,
                                 **options)
        assert written.shape[1] == len(prompt) + new + 1 == len(prompt) + len(clock.times) - 1
        return {"tokens": new, "seconds": clock.times[-1] - clock.times[1]}

    @torch.inference_mode()
    def prefill(prompt):
        ids = torch.tensor([prompt])
        started = time.perf_counter()
        model(ids, logits_to_keep=1)
        return {"tokens": len(prompt), "seconds": time.perf_counter() - started}

    @torch.inference_mode()
    def batch(prompts, new):
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        started = time.perf_counter()
        written = model.generate(ids, attention_mask=seen, max_new_tokens=new, **options)
        seconds = time.perf_counter() - started
        assert written.shape[1] == longest + new
        return {"tokens": len(prompts) * new, "seconds": seconds}

    def traffic(context):
        config, weights = model.config, {p.data_ptr(): p.nbytes for p in model.parameters()}
        if not config.tie_word_embeddings:
            weights.pop(model.get_input_embeddings().weight.data_ptr())
        cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
        return {"bytes": sum(weights.values()) + cache * context}

    return {"decode": decode, "prefill": prefill, "batch": batch, "traffic": traffic}
