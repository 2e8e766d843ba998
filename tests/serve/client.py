"""What the official `openai` client makes of the server; run in an environment that has it, and none of this project.

    python client.py URL FILE     # FILE: {"text": …, "chat": …, "tokens": …, "seeded": […]}, what generate.py writes

Prints a line a check, and exits 1 if one fails.
"""

import json
import sys
from pathlib import Path

import openai

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Get the weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}


def checks(url, expected):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    chat = {"model": client.models.list().data[0].id, "temperature": 0, "max_tokens": expected["tokens"],
            "messages": [{"role": "user", "content": expected["question"]}]}

    yield "models.list and models.retrieve", client.models.retrieve(chat["model"]).id == chat["model"]

    answer = client.chat.completions.create(**chat)
    choice = answer.choices[0]
    yield "chat: the text of generate.py", choice.message.content == expected["chat"]
    yield "chat: usage and finish_reason", (
        answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
        and answer.usage.completion_tokens <= expected["tokens"] and choice.finish_reason in ("stop", "length"))

    with client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    yield "chat, streamed: the same text", expected["chat"] == "".join(
        choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    yield "chat, streamed: usage in the last chunk", chunks[-1].usage == answer.usage

    scored = client.chat.completions.create(**chat | {"max_tokens": 4}, logprobs=True, top_logprobs=3)
    entries = scored.choices[0].logprobs.content
    yield "logprobs: the likeliest is what was taken", len(entries) == 4 and all(
        len(entry.top_logprobs) == 3 and entry.top_logprobs[0].token == entry.token for entry in entries)

    several = client.chat.completions.create(**chat | {"temperature": 1.0}, n=3, seed=7)
    again = client.chat.completions.create(**chat | {"temperature": 1.0}, n=3, seed=7)
    texts = [choice.message.content for choice in several.choices]
    yield "n and seed: the same again", texts == [choice.message.content for choice in again.choices]
    yield "n and seed: the texts of generate.py", texts == expected["seeded"]

    stopped = client.chat.completions.create(**chat, stop=[expected["chat"][10:14]])
    yield "stop", stopped.choices[0].message.content == expected["chat"][: expected["chat"].find(
        expected["chat"][10:14])] and stopped.choices[0].finish_reason == "stop"

    text = client.completions.create(model=chat["model"], prompt=expected["prompt"], temperature=0, echo=True,
                                     max_tokens=expected["tokens"])
    yield "completions: the text of generate.py", text.choices[0].text == expected["prompt"] + expected["text"]
    with client.completions.create(model=chat["model"], prompt=[expected["prompt"], "你好"], temperature=0,
                                   max_tokens=8, stream=True) as stream:
        parts = {0: "", 1: ""}
        for chunk in stream:
            for choice in chunk.choices:
                parts[choice.index] += choice.text
    yield "completions: two prompts, streamed", expected["text"].startswith(parts[0]) and bool(parts[1])

    packed = client.embeddings.create(model=chat["model"], input=["a dog", "a puppy", "the stock market"])
    plain = client.embeddings.create(model=chat["model"], input="a dog", encoding_format="float")
    vectors = [row.embedding for row in packed.data]
    yield "embeddings: base64 and floats agree", max(
        abs(a - b) for a, b in zip(vectors[0], plain.data[0].embedding, strict=True)) < 1e-6
    yield "embeddings: a dog is nearer to a puppy than to the market", (
        sum(map(float.__mul__, vectors[0], vectors[1])) > sum(map(float.__mul__, vectors[0], vectors[2])))

    if expected["calls"]:
        talk = [{"role": "user", "content": "What is the weather in Paris now? Use the tool."}]
        asked = chat | {"messages": talk, "max_tokens": 64}
        called = client.chat.completions.create(**asked, tools=[WEATHER]).choices[0]
        call = (called.message.tool_calls or [None])[0]
        yield "tools: the model calls one", bool(call) and call.function.name == "get_weather" and \
            "Paris" in json.loads(call.function.arguments)["city"] and called.finish_reason == "tool_calls"
        with client.chat.completions.create(**asked, tools=[WEATHER], stream=True) as stream:
            calls = [each for chunk in stream for choice in chunk.choices for each in choice.delta.tool_calls or []]
        yield "tools: the same call, streamed", bool(call) and [each.function.arguments for each in calls] == [
            call.function.arguments]
        if call:
            talk += [called.message.model_dump(exclude_none=True),
                     {"role": "tool", "tool_call_id": call.id, "content": "18 degrees, sun"}]
            said = client.chat.completions.create(**asked | {"messages": talk}, tools=[WEATHER], tool_choice="none")
            yield "tools: what it gives is read", "18" in (said.choices[0].message.content or "")

    else:
        try:
            client.chat.completions.create(**chat, tools=[WEATHER])
            refused = False
        except openai.BadRequestError as error:
            refused = error.param == "tools"
        yield "tools: refused by a model whose chat format leaves them out", refused

    for what, kind, change in (("an unknown model", openai.NotFoundError, {"model": "gpt-4"}),
                               ("a field out of range", openai.BadRequestError, {"temperature": -1}),
                               ("a prompt beyond the context", openai.BadRequestError,
                                {"messages": [{"role": "user", "content": "a b " * 40_000}]})):
        try:
            client.chat.completions.create(**chat | change)
            raised = None
        except openai.APIStatusError as error:
            raised = error
        yield f"errors: {what}", isinstance(raised, kind) and bool(raised.message) and raised.type == \
            "invalid_request_error"


def main():
    url, file = sys.argv[1:]
    failed = 0
    for what, passed in checks(url, json.loads(Path(file).read_text(encoding="utf-8"))):
        print(f"{'ok' if passed else 'FAILED':6} openai {openai.__version__}: {what}", flush=True)
        failed += not passed
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
