"""Adapters as peft makes, reads, places and merges them."""


def make(request):
    """{"folder", "options": of LoraConfig or TrainableTokensConfig, "adapter", "ids"}: writes a random adapter to the
    folder "adapter".

    ->  as `merged`
    """
    from peft import LoraConfig, TrainableTokensConfig, get_peft_model

    kind = TrainableTokensConfig if "token_indices" in request["options"] else LoraConfig
    model = get_peft_model(_base(request["folder"]), kind(task_type="CAUSAL_LM", **request["options"])).eval()
    _stir(model)
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


def started(request):
    """{"folder", "options" with init_lora_weights "pissa" or "olora", "adapter", "ids"}: an adapter that begins at the
    matrices, stirred and written to the folder "adapter" as peft converts it, for the base as it was.

    ->  as `merged`, and "start.MODULE", what was taken from each matrix (out, in)
    """
    import tempfile
    from pathlib import Path

    from peft import LoraConfig, get_peft_model

    model = get_peft_model(_base(request["folder"]), LoraConfig(task_type="CAUSAL_LM", **request["options"])).eval()
    taken = {f"start.{name.removeprefix('base_model.model.')}": module.get_delta_weight("default").clone()
             for name, module in model.named_modules() if hasattr(module, "lora_A")}
    kind = model.peft_config["default"]
    with tempfile.TemporaryDirectory() as folder:
        begun = kind.init_lora_weights
        kind.init_lora_weights = True                               # as peft's documents say to keep a start
        model.save_pretrained(folder + "/start")
        kind.init_lora_weights = begun
        _stir(model)
        model.save_pretrained(request["adapter"], path_initial_model_for_weight_conversion=str(Path(folder, "start")))
    return merged(request) | taken


def rates(request):
    """{"folder", "options", "lr", "ratio"} -> by the name of each parameter that LoRA+ learns, its rate."""
    import torch
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    model = get_peft_model(_base(request["folder"]), LoraConfig(task_type="CAUSAL_LM", **request["options"]))
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=request["lr"],
                                          loraplus_lr_ratio=request["ratio"])
    rate = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    return {name.removeprefix("base_model.model.model."): rate[id(parameter)]
            for name, parameter in model.named_parameters() if parameter.requires_grad}


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


def _stir(model):
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.1


def _base(folder):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
