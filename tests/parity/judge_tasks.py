"""Models with a head of labels as transformers and peft open them."""


def scores(request):
    """{"folder", "class", "adapter": "" or a folder, "labels", "ids": [[int]], "pad"} -> for the rows together, padded
    on the right: "scores" (B, C) of a class of texts, (B, T, C) of one of tokens, (B, T, 2) of one of answers."""
    import torch
    import transformers

    options = {"num_labels": len(request["labels"])} if request["adapter"] else {}
    kind = getattr(transformers, request["class"])
    model, report = kind.from_pretrained(request["folder"], dtype=torch.float32, output_loading_info=True, **options)
    if request["adapter"]:
        from peft import PeftModel

        model.config.pad_token_id = request["pad"]                  # a plain base may name none
        model = PeftModel.from_pretrained(model, request["adapter"])
    else:
        assert not any(report.values()), report                     # nothing is missing, and nothing too much
        labels = [model.config.id2label[i] for i in range(len(request["labels"]))]
        assert labels == request["labels"], labels
    model.eval()
    longest = max(map(len, request["ids"]))
    ids = torch.tensor([row + [request["pad"]] * (longest - len(row)) for row in request["ids"]])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in request["ids"]])
    with torch.inference_mode():
        out = model(ids, attention_mask=mask)
    return {"scores": _scores(out)}


def _scores(out):
    import torch

    return torch.stack([out.start_logits, out.end_logits], -1) if hasattr(out, "start_logits") else out.logits


def pipeline(request):
    """{"folder", "texts"} -> for each the label and its probability, from the text on."""
    from transformers import pipeline as build

    run = build("text-classification", model=request["folder"], device="cpu")
    return [[found["label"], found["score"]] for found in run(request["texts"])]


def adapter(request):
    """{"folder", "class", "labels", "adapter", "ids"}: writes a random adapter with its head -> "scores" of one row."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    base = getattr(transformers, request["class"]).from_pretrained(request["folder"], dtype=torch.float32,
                                                                   num_labels=len(request["labels"]))
    kinds = {"Sequence": "SEQ_CLS", "Token": "TOKEN_CLS", "Question": "QUESTION_ANS"}
    task_type = next(kind for name, kind in kinds.items() if name in request["class"])
    model = get_peft_model(base, LoraConfig(task_type=task_type, r=4, target_modules=["q_proj", "down_proj"])).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    model.save_pretrained(request["adapter"])
    with torch.inference_mode():
        return {"scores": _scores(model(torch.tensor([request["ids"]])))}
