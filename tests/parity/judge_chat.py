"""Questions about chat templates, answered with transformers."""


def ids(request):
    """{"folder", "template", "chats": [{"messages", "tools", "documents", "variables", "reply", "safe"}]} -> [ids].

    An error's text stands in place of ids that there are not. "safe": special tokens in words are text.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(request["folder"])
    return [_one(tokenizer, request["template"], chat) for chat in request["chats"]]


def _one(tokenizer, template, chat):
    options = {"sanitize_control_tokens": True} if chat["safe"] else {}
    try:
        return tokenizer.apply_chat_template(
            chat["messages"], chat_template=template, tools=chat.get("tools"), documents=chat.get("documents"),
            add_generation_prompt=chat["reply"], tokenize=True, return_dict=False, **chat.get("variables", {}),
            **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def learned(request):
    """{"folder", "template", "chats"} -> for each, [ids, whether {% generation %} encloses each]."""
    from transformers import AutoTokenizer

    tokenizer, answers = AutoTokenizer.from_pretrained(request["folder"]), []
    for chat in request["chats"]:
        try:
            found = tokenizer.apply_chat_template(
                chat["messages"], chat_template=request["template"], tools=chat.get("tools"), tokenize=True,
                return_dict=True, return_assistant_tokens_mask=True, **chat.get("variables", {}))
            answers.append([found["input_ids"], found["assistant_masks"]])
        except Exception as error:
            answers.append(f"{type(error).__name__}: {error}")
    return answers
