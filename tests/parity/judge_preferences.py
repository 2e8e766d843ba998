"""Losses over pairs and over groups of answers, by trl."""


def dpo(request):
    """{"folder", "reference", "pairs": [[prompt ids, chosen ids, rejected ids]], "beta"}: the loss of trl's DPOTrainer
    on all pairs in one batch, the model in "folder" against that in "reference".

    ->  "loss" (), its gradients by the names of the model's files
    """
    import tempfile

    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class AsGiven(DPOTrainer):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    data = Dataset.from_list([dict(zip(names, pair, strict=True)) for pair in request["pairs"]])
    with tempfile.TemporaryDirectory() as folder:
        trainer = AsGiven(
            model=_model(request["folder"]), ref_model=_model(request["reference"]), train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(request["folder"]),
            args=DPOConfig(output_dir=folder, beta=request["beta"], per_device_train_batch_size=len(data), report_to=[],
                           use_cpu=True, bf16=False, max_length=None, remove_unused_columns=False,
                           gradient_checkpointing=False))
        trainer.model.eval()
        loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    return {"loss": loss} | _gradients(trainer.model, loss)


def reference_free(request):
    """{"folder", "pairs", "loss": "simpo" or "orpo", "beta", "margin"} -> as `dpo`; the mean over pairs, each by trl's
    own loss of mean log-likelihoods; orpo's likelihood of the chosen answer is that of its own tokens, as in its paper.
    """
    from types import SimpleNamespace

    import torch
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    model = _model(request["folder"]).eval()
    settings = SimpleNamespace(beta=request["beta"], accelerator=SimpleNamespace(device="cpu"), loss_type="simpo",
                               simpo_gamma=request["margin"], label_smoothing=0.0, alpha=0.0)
    sides = []
    for side in (1, 2):
        mean = []
        for pair in request["pairs"]:
            ids = torch.tensor([pair[0] + pair[side]])
            labels = torch.tensor([[-100] * len(pair[0]) + pair[side]])
            mean.append(ORPOTrainer.get_batch_logps(model(ids).logits, labels, average_log_prob=True)[0])
        sides.append(torch.stack(mean))
    if request["loss"] == "simpo":
        loss = CPOTrainer.cpo_loss(settings, *sides)[0].mean()
    else:
        loss = (-sides[0] - ORPOTrainer.odds_ratio_loss(settings, *sides)[0]).mean()
    return {"loss": loss} | _gradients(model, loss)


def grpo(request):
    """{"folder", "answers": [[prompt ids, answer ids]], "advantages", "old", "reference": [a number a token], "clip",
    "kl"} -> as `dpo`: trl's GRPOTrainer on these answers as one batch, its KL not weighed by ratios, as in the paper.
    """
    import tempfile

    import torch
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    answers = request["answers"]
    longest = [max(len(pair[side]) for pair in answers) for side in (0, 1)]

    def padded(rows, *, left, kind=torch.int64):                    # prompts on their left, answers on their right
        most = longest[0] if left else longest[1]
        blank = [[0] * (most - len(row)) for row in rows]
        return torch.tensor([a + row if left else row + a for a, row in zip(blank, rows, strict=True)], dtype=kind)

    prompts, new = ([pair[side] for pair in answers] for side in (0, 1))
    inputs = {"prompt_ids": padded(prompts, left=True), "completion_ids": padded(new, left=False),
              "prompt_mask": padded([[1] * len(row) for row in prompts], left=True),
              "completion_mask": padded([[1] * len(row) for row in new], left=False),
              "advantages": torch.tensor(request["advantages"]),
              "old_per_token_logps": padded(request["old"], left=False, kind=torch.float32),
              "ref_per_token_logps": padded(request["reference"], left=False, kind=torch.float32)}
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=_model(request["folder"]), reward_funcs=lambda completions, **_: [0.0] * len(completions),
            train_dataset=Dataset.from_list([{"prompt": "?"}] * 8),
            processing_class=AutoTokenizer.from_pretrained(request["folder"]),
            args=GRPOConfig(output_dir=folder, beta=request["kl"], epsilon=request["clip"], loss_type="grpo",
                            report_to=[], use_cpu=True, bf16=False, num_generations=2, per_device_train_batch_size=2,
                            temperature=1.0, gradient_checkpointing=False, use_bias_correction_kl=False))
        trainer.model.eval()
        loss = trainer._compute_loss(trainer.model, inputs)
    return {"loss": loss} | _gradients(trainer.model, loss)


def _model(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {f"gradient.{name}": parameter.grad for name, parameter in model.named_parameters()
            if parameter.grad is not None}
