"""Questions about GPT-2 and T5, answered with transformers."""


def relative(request):
    """{"config", "given"}, tensors ids (B, T) and weight.NAME as in files -> logits, and gradients of the mean loss."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    values = dict(request["config"])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    if not values["tie_word_embeddings"]:                      # newer versions tie a T5's head whatever the config says
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    weights = {name.removeprefix("weight."): x for name, x in request["tensors"].items() if name.startswith("weight.")}
    prefix = "" if config.is_encoder_decoder else "transformer."
    named = {name if name.startswith("lm_head.") else prefix + name: x for name, x in weights.items()}
    missing, unknown = model.load_state_dict(named, strict=False)
    tied = {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert not unknown and set(missing) <= tied, (missing, unknown)
    logits = _logits(model, request["tensors"]["ids"], request["given"])
    rest = request["tensors"]["ids"][:, request["given"]:]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), rest.flatten()).backward()
    parameters = {name.removeprefix(prefix): p for name, p in model.named_parameters()}
    return {"logits": logits.detach()} | {f"gradient.{name}": p.grad for name, p in parameters.items()}


def saved_again(request):
    """{"folder", "to", "given"}, tensor ids (1, T): the logits of the model in a folder, which is written anew."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(request["folder"])
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model, info = kind.from_pretrained(request["folder"], dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    model.eval().save_pretrained(request["to"])
    with torch.inference_mode():
        return {"logits": _logits(model, request["tensors"]["ids"], request["given"])}


def gpt2_tokenizer(request):
    """{"folder", "form", "texts"}: learn one, write its files in the old form or the new one, and the ids of texts."""
    from pathlib import Path

    from tokenizers import ByteLevelBPETokenizer
    from transformers import GPT2TokenizerFast

    folder = Path(request["folder"])
    folder.mkdir()
    learned = ByteLevelBPETokenizer()
    learned.train_from_iterator(request["texts"] * 3, vocab_size=300, special_tokens=["<|endoftext|>"])
    learned.save_model(str(folder))
    tokenizer = GPT2TokenizerFast.from_pretrained(str(folder))
    ids = [tokenizer(text)["input_ids"] for text in request["texts"]]
    if request["form"] == "tokenizer.json":
        for path in folder.iterdir():
            path.unlink()
        tokenizer.save_pretrained(str(folder))
    return ids


def _logits(model, ids, given):
    import torch

    if not model.config.is_encoder_decoder:
        return model(ids[:, :-1]).logits[:, given - 1:]
    end = torch.full((len(ids), 1), model.config.eos_token_id)
    start = torch.full((len(ids), 1), model.config.decoder_start_token_id)
    return model(input_ids=torch.cat([ids[:, :given], end], 1),
                 decoder_input_ids=torch.cat([start, ids[:, given:-1]], 1)).logits
