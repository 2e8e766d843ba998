"""Questions about sampling, answered with what transformers' `generate` would do to the logits, in its order."""


def distributions(request):
    """{"settings": [dict]}, logits (B, V) and texts (B, T), the ids so far -> (settings, B, V) probabilities."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    logits, texts = request["tensors"]["logits"], request["tensors"]["texts"]
    model = LlamaForCausalLM(LlamaConfig(vocab_size=logits.shape[1], hidden_size=8, intermediate_size=8,
                                         num_hidden_layers=1, num_attention_heads=1))
    rows = []
    for settings in request["settings"]:
        names = {"top_p": settings["top_p"], "min_p": settings["min_p"] or None, "top_k": settings["top_k"],
                 "temperature": settings["temperature"], "repetition_penalty": settings["repetition_penalty"] or None}
        config = GenerationConfig(do_sample=True, **names)
        processors = model._get_logits_processor(generation_config=config, input_ids_seq_length=texts.shape[1])
        rows.append(processors(texts, logits.clone()).softmax(-1))
    return {"mass": torch.stack(rows)}
