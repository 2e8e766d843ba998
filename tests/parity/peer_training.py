"""transformers' Trainer, over peft where there is an adapter, at the work of `llama.benchmark --training --peers`.

llama/runtime/worker.py runs it with the judges' Python. Its settings are the usual ones: each batch padded to its
longest sample, bfloat16 by autocast where the processor multiplies it fast, fused AdamW, clipped gradients. Seconds are
taken from the beginning of the first step to the end of the last, so that what the Trainer sets up does not count, and
data that it reads does.
"""

import time


def works(settings):
    """{"folder", "adapter", "samples": file, "batch_size", "lr", "threads", "dtype"} -> `train`.

    folder   of the model
    adapter  folder of one in PEFT's form to go on with; "" trains every weight
    samples  JSON: [[ids, learned], …], which `train` names by their numbers
    dtype    to compute in, "bfloat16" or "float32"
    """
    import json
    import tempfile
    from pathlib import Path

    import torch
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    samples = json.loads(Path(settings["samples"]).read_text(encoding="utf-8"))
    adapter = settings["adapter"]
    dtype = getattr(torch, settings["dtype"]) if adapter else torch.float32             # what learns is float32
    model = AutoModelForCausalLM.from_pretrained(settings["folder"], dtype=dtype)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    model.config.use_cache = False
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=settings["lr"], betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    folder = tempfile.TemporaryDirectory(prefix="peer-training-")
    losses, moments = [], []

    def padded(some):
        longest = max(len(each["input_ids"]) for each in some)
        rows = {"input_ids": 0, "attention_mask": 0, "labels": -100}
        return {name: torch.tensor([each[name] + [blank] * (longest - len(each[name])) for each in some])
                for name, blank in rows.items()}

    class InOrder(Trainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

        def compute_loss(self, *inputs, **options):
            loss = super().compute_loss(*inputs, **options)
            losses.append(loss.item())
            return loss

    class Clock(TrainerCallback):
        def on_step_begin(self, *inputs, **options):
            moments.append(time.perf_counter())

        def on_step_end(self, *inputs, **options):
            moments.append(time.perf_counter())

    def train(steps):
        losses.clear()
        moments.clear()
        data = [{"input_ids": samples[i][0], "attention_mask": [1] * len(samples[i][0]),
                 "labels": [each if own else -100 for each, own in zip(*samples[i], strict=True)]}
                for numbers in steps for i in numbers]
        arguments = TrainingArguments(folder.name, per_device_train_batch_size=len(steps[0]), max_steps=len(steps),
                                      bf16=settings["dtype"] == "bfloat16", use_cpu=True, report_to=[],
                                      save_strategy="no", max_grad_norm=1.0, logging_strategy="no", disable_tqdm=True,
                                      remove_unused_columns=False)
        InOrder(model, arguments, train_dataset=data, data_collator=padded, optimizers=(optimizer, schedule),
                callbacks=[Clock()]).train()
        return {"tokens": sum(len(samples[i][0]) - 1 for numbers in steps for i in numbers),
                "seconds": moments[-1] - moments[0], "losses": list(losses)}

    return {"train": train}
