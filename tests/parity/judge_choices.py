"""How likely transformers finds texts behind a prompt."""


def sums(request):
    """{"folder", "prompts": [text], "options": [[text]]} -> for each prompt the log-probability of each of its options.

    Prompt and option are encoded as one text, whose first ids must be those of the prompt alone.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["folder"])
    model = AutoModelForCausalLM.from_pretrained(request["folder"], dtype=torch.float32).eval()
    answers = []
    for prompt, options in zip(request["prompts"], request["options"], strict=True):
        begin, found, read = tokenizer(prompt)["input_ids"], [], {}
        for option in options:
            ids = tokenizer(prompt + option)["input_ids"]
            assert ids[: len(begin)] == begin and len(ids) > len(begin), (prompt, option)
            if (before := tuple(ids[:-1])) not in read:             # the same for all letters
                with torch.inference_mode():
                    read[before] = model(torch.tensor([before])).logits[0].float().log_softmax(-1)
            logs = read[before]
            found.append(sum(logs[i - 1, ids[i]].item() for i in range(len(begin), len(ids))))
        answers.append(found)
    return answers
