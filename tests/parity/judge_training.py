"""Training steps, by transformers' Trainer, and peft where there is an adapter."""


def train(request):
    """{"config", "adapter", "samples": [[ids, learned]], "together": [[sample]], …} -> loss of each step, and weights.

    tensors   weight.NAME of the model, without the leading `model.`; adapter.NAME as in PEFT's file
    together  the samples of each micro-batch; `accumulate` of these make a step
    ->        "loss" (steps,), and what was learned by its name in files: the adapter's, or the model's without `model.`
    """
    import json
    import tempfile
    from pathlib import Path

    import torch
    from safetensors.torch import save_file
    from torch.utils.data import DataLoader
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments

    values = dict(request["config"])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    weights = {_stored(name): tensor for name, tensor in _part(request, "weight").items()}
    missing, unknown = model.load_state_dict(weights, strict=False)
    assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)
    with tempfile.TemporaryDirectory() as folder:
        if request["adapter"]:
            from peft import PeftModel

            Path(folder, "adapter_config.json").write_text(json.dumps(request["adapter"]), encoding="utf-8")
            save_file(_part(request, "adapter"), Path(folder, "adapter_model.safetensors"))
            model = PeftModel.from_pretrained(model, folder, is_trainable=True)

        losses, total = [], []

        class InOrder(Trainer):
            def get_train_dataloader(self):
                return DataLoader([_padded([request["samples"][i] for i in some]) for some in request["together"]],
                                  batch_size=None)

            def training_step(self, *arguments, **options):
                total.append(super().training_step(*arguments, **options).item())
                if len(total) == request["accumulate"]:
                    losses.append(sum(total))
                    total.clear()
                return torch.tensor(0.0)

        InOrder(model=model, train_dataset=[0], args=TrainingArguments(
            output_dir=folder, optim={"adamw": "adamw_torch"}.get(request["optimizer"], request["optimizer"]),
            learning_rate=request["lr"], weight_decay=request["weight_decay"], max_grad_norm=request["clip"],
            adam_beta1=0.9, adam_beta2=0.95, gradient_accumulation_steps=request["accumulate"],
            max_steps=len(request["together"]) // request["accumulate"], lr_scheduler_type="constant", use_cpu=True,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True)).train()

        if request["adapter"]:
            model.save_pretrained(folder + "/trained")
            from safetensors.torch import load_file

            learned = load_file(folder + "/trained/adapter_model.safetensors")
        else:
            learned = {name.removeprefix("model."): parameter for name, parameter in model.named_parameters()}
    return {"loss": torch.tensor(losses), **learned}


def _part(request, part):
    return {name.removeprefix(f"{part}."): tensor for name, tensor in request["tensors"].items()
            if name.startswith(f"{part}.")}


def _stored(name):
    return name if name.startswith("lm_head.") else f"model.{name}"


def _padded(samples):
    """Padded on the right, as a tokenizer's collator would: padding is hidden, and has no label."""
    import torch

    longest = max(len(ids) for ids, _ in samples)
    rows = {"input_ids": [], "attention_mask": [], "labels": []}
    for ids, learned in samples:
        blank = longest - len(ids)
        rows["input_ids"].append(ids + [0] * blank)
        rows["attention_mask"].append([1] * len(ids) + [0] * blank)
        rows["labels"].append([i if own else -100 for i, own in zip(ids, learned, strict=True)] + [-100] * blank)
    return {name: torch.tensor(values) for name, values in rows.items()}
