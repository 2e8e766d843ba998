"""transformers, and peft where there is an adapter, at the work of `python -m llama.benchmark --training --peers`.

llama/engine.py runs it with the judges' Python. It trains as their Trainer does, in a loop without the Trainer's own
overhead: each batch is padded to its longest sample, bfloat16 comes by autocast, AdamW is fused, gradients are clipped.
"""

import time


def works(settings):
    """{"folder", "adapter", "samples": file, "lr", "threads"} -> `train`.

    folder   of the model
    adapter  folder of one in PEFT's form to go on with; "" trains every weight
    samples  JSON: [[ids, learned], …], which `train` names by their numbers
    """
    import json
    from pathlib import Path

    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    samples = json.loads(Path(settings["samples"]).read_text(encoding="utf-8"))
    adapter = settings["adapter"]
    dtype = torch.bfloat16 if adapter else torch.float32            # what is frozen is bfloat16, what learns float32
    model = AutoModelForCausalLM.from_pretrained(settings["folder"], dtype=dtype)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    model.train()
    model.config.use_cache = False
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=settings["lr"], betas=(0.9, 0.95), weight_decay=0.0, fused=True)

    def step(numbers):
        batch = padded([samples[i] for i in numbers])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    def padded(some):
        longest = max(len(ids) for ids, _ in some)
        rows = {"input_ids": [], "attention_mask": [], "labels": []}
        for ids, own in some:
            blank = longest - len(ids)
            rows["input_ids"].append(ids + [0] * blank)
            rows["attention_mask"].append([1] * len(ids) + [0] * blank)
            rows["labels"].append([i if each else -100 for i, each in zip(ids, own, strict=True)] + [-100] * blank)
        return {name: torch.tensor(values) for name, values in rows.items()}

    def train(steps):
        losses, started = [], time.perf_counter()
        for numbers in steps:
            losses.append(step(numbers))
        seconds = time.perf_counter() - started
        return {"tokens": sum(len(samples[i][0]) - 1 for numbers in steps for i in numbers), "seconds": seconds,
                "losses": losses}

    return {"train": train}
