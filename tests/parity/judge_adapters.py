"""Adapters as peft makes, reads, places and merges them."""


def make(request):
    """{"folder", "options": of LoraConfig or TrainableTokensConfig, "adapter", "ids"}: writes a random adapter to the
    folder "adapter".

    ->  as `merged`
    """
    import torch
    from peft import LoraConfig, TrainableTokensConfig, get_peft_model

    kind = TrainableTokensConfig if "token_indices" in request["options"] else LoraConfig
    model = get_peft_model(_base(request["folder"]), kind(task_type="CAUSAL_LM", **request["options"])).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    model.save_pretrained(request["adapter"])
    return merged(request)                                          # as read back from there


def merged(request):
    """{"folder", "adapter", "ids"} -> "logits" (T, V) with the adapter; "merged", the same once peft has merged it;
    and the merged model's weights by their names in files."""
    import torch
    from peft import PeftModel

    model = PeftModel.from_pretrained(_base(request["folder"]), request["adapter"]).eval()
    ids = torch.tensor([request["ids"]])
    with torch.no_grad():
        logits = model(ids).logits[0]
        whole = model.merge_and_unload()
        return {"logits": logits, "merged": whole(ids).logits[0], **dict(whole.named_parameters())}


def targets(request):
    """{"folder", "options": [of LoraConfig]} -> for each {module: [rank, scale]}, or None where peft refuses it."""
    from peft import LoraConfig, get_peft_model

    answers = []
    for options in request["options"]:
        try:
            config = LoraConfig(**{"r": 8, "lora_alpha": 8, **options})
            model = get_peft_model(_base(request["folder"]), config)
        except ValueError:
            answers.append(None)
            continue
        answers.append({name.removeprefix("base_model.model."): [module.r["default"], module.scaling["default"]]
                        for name, module in model.named_modules() if hasattr(module, "lora_A")})
    return answers


def defaults(request):
    """Every key of adapter_config.json with the value that it has where nothing is said."""
    from peft import LoraConfig

    return LoraConfig().to_dict()


def _base(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
