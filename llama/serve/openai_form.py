"""OpenAI's form: what a request's JSON may say, and the objects that answer it. No web framework, and no model.

Fields that this server has no use for are refused by name rather than passed over, but for a few that change nothing
(`user`, `metadata`, …). Beside OpenAI's own, requests may say `top_k`, `min_p`, `repetition_penalty` and `ignore_eos`.

Source: the OpenAI API reference.

Try: let `Fields.close` pass what is left; tests/test_serve_openai_form.py
(test_refuses_what_a_chat_request_cannot_mean) fails, and a misspelt field would do nothing in silence.
"""

import base64
import json
import math
import secrets
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llama.runtime.ranges import FACTORS, MANY, MOST_TOKENS, Range
from llama.sampling import SamplingConfig
from llama.serve.batch import Piece, TokenLogprob
from llama.serve.tool_calls import ToolText
from tokenizer.base import Tokenizer

JSON = dict[str, Any]

WITHOUT_EFFECT = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
                  "parallel_tool_calls", "reasoning_effort", "verbosity", "include_obfuscation")
OFF = {"presence_penalty": (0,), "frequency_penalty": (0,), "logit_bias": ({},), "best_of": (1,), "suffix": ("",),
       "response_format": ({"type": "text"},), "modalities": (["text"],)}           # the values that ask for nothing
MOST_LOGPROBS = 20
MOST_SAMPLES = 128
MOST_INPUTS = 2048                                                  # texts that are embedded


class APIError(Exception):
    """What goes wrong with a request, as OpenAI's clients expect to be told."""

    def __init__(self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None,
                 kind: str = "invalid_request_error"):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


class Fields:
    """The fields of a request, taken one by one; what nobody takes is refused."""

    def __init__(self, body: Any):
        if not isinstance(body, dict):
            raise APIError("the body must be a JSON object")
        self.left = {name: value for name, value in body.items() if value is not None and name not in WITHOUT_EFFECT}

    def take(self, name: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        value = self.left.pop(name, default)
        wrong = isinstance(value, bool) and kind is not bool
        if value is not default and (wrong or not isinstance(value, kind)):
            kinds = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
            raise APIError(f"{name} is {_shown(value)}; it must be of type {kinds}", param=name)
        return value

    def number(self, name: str, within: Range, default: Any = None) -> Any:
        value = self.left.pop(name, default)
        if value is not default and value not in within:
            raise APIError(f"{name} is {_shown(value)}; it must be {within}", param=name)
        return value

    def close(self) -> None:
        """Raise APIError for what is left, and would be without effect."""
        for name, values in OFF.items():
            value = self.left.pop(name, None)
            if value is not None and value not in values:
                raise APIError(f"{name} is not supported by this server; leave it out", param=name)
        if self.left:
            name = next(iter(self.left))
            raise APIError(f"the field {_shown(name)} is not known; leave it out", param=name)


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode()
    return text if len(text) <= 60 else f"{text[:60]}…"


@dataclass(frozen=True)
class Wish:
    """What a request for text asks for, whatever its prompt is.

    top_logprobs  None: none are wanted
    """

    model: str = ""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    max_new_tokens: int = 256
    n: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    stream: bool = False
    include_usage: bool = False
    top_logprobs: int | None = None


def _wish(fields: Fields, defaults: Wish) -> Wish:
    """What both kinds of requests say alike."""
    sampling = replace(
        defaults.sampling,
        temperature=fields.number("temperature", FACTORS, defaults.sampling.temperature),
        top_p=fields.number("top_p", Range(0.0, 1.0), defaults.sampling.top_p),
        top_k=fields.number("top_k", Range(0, MANY), defaults.sampling.top_k),
        min_p=fields.number("min_p", Range(0.0, 1.0), defaults.sampling.min_p),
        repetition_penalty=fields.number("repetition_penalty", FACTORS, defaults.sampling.repetition_penalty))
    stop = fields.take("stop", (str, list), [])
    stop = [stop] if isinstance(stop, str) else stop
    if not all(isinstance(each, str) and each for each in stop):
        raise APIError("stop must be a text, or a list of texts, of at least one character each", param="stop")
    stream, options = fields.take("stream", bool, False), Fields(fields.take("stream_options", dict, {}))
    if options.left and not stream:
        raise APIError("stream_options says how to stream; add \"stream\": true", param="stream_options")
    include_usage = options.take("include_usage", bool, False)
    options.close()
    tokens = Range(1, MOST_TOKENS)
    return replace(
        defaults, model=fields.take("model", str, ""), sampling=sampling, stop=tuple(stop), stream=stream,
        include_usage=include_usage, n=fields.number("n", Range(1, MOST_SAMPLES), 1),
        max_new_tokens=fields.number("max_completion_tokens", tokens,
                                     fields.number("max_tokens", tokens, defaults.max_new_tokens)),
        seed=fields.number("seed", Range(-2**63, 2**63 - 1), secrets.randbelow(2**32)) % 2**32,
        ignore_eos=fields.take("ignore_eos", bool, False))


@dataclass(frozen=True)
class ChatWish:
    wish: Wish
    messages: list[JSON]
    tools: list[JSON]


def read_chat(body: Any, defaults: Wish) -> ChatWish:
    """The body of /v1/chat/completions."""
    fields = Fields(body)
    wish = _wish(fields, defaults)
    logprobs, top = fields.take("logprobs", bool, False), fields.number("top_logprobs", Range(0, MOST_LOGPROBS))
    if top is not None and not logprobs:
        raise APIError("top_logprobs says how many logprobs to show; add \"logprobs\": true", param="top_logprobs")
    wish = replace(wish, top_logprobs=(top or 0) if logprobs else None)
    messages = fields.take("messages", list, [])
    if not messages:
        raise APIError("messages is missing or empty; give at least one, such as "
                       '{"role": "user", "content": "Hello"}', param="messages")
    tools, choice = fields.take("tools", list, []), fields.take("tool_choice", (str, dict), "auto")
    if choice not in ("auto", "none"):
        raise APIError(f"tool_choice is {_shown(choice)}, and this server forces no call; it must be \"auto\" or "
                       "\"none\"", param="tool_choice")
    if not all(isinstance(tool, dict) and isinstance(tool.get("function"), dict)
               and isinstance(tool["function"].get("name"), str) for tool in tools):
        raise APIError("each of the tools must be an object with a function, which has a name", param="tools")
    fields.close()
    return ChatWish(wish, [_message(message, i) for i, message in enumerate(messages)],
                    tools if choice == "auto" else [])


def _message(message: Any, number: int) -> JSON:
    """A message as chat templates read it: text in one piece, arguments of calls as objects."""
    param = f"messages.[{number}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise APIError(f"message {number} must be an object with a role", param=param)
    made = {key: value for key, value in message.items() if value is not None}
    if made["role"] == "developer":                                 # OpenAI's newer name
        made["role"] = "system"
    content = made.get("content", "")
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
                   for part in content):
            raise APIError(f"message {number} holds parts that are no text, and this model reads nothing else",
                           param=param)
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise APIError(f"the content of message {number} is {_shown(content)}; it must be a text", param=param)
    made["content"] = content
    if calls := made.get("tool_calls"):
        try:
            made["tool_calls"] = [{**call, "function": {**call["function"], "arguments": json.loads(
                call["function"]["arguments"])}} for call in calls]
        except (TypeError, KeyError, ValueError):
            raise APIError(f"message {number}: each of tool_calls must have a function with a name, and arguments as "
                           "JSON in a text", param=param) from None
    return made


@dataclass(frozen=True)
class CompletionWish:
    wish: Wish
    prompts: list[str | list[int]]
    echo: bool


def read_completion(body: Any, defaults: Wish) -> CompletionWish:
    """The body of /v1/completions."""
    fields = Fields(body)
    wish = _wish(fields, defaults)
    wish = replace(wish, top_logprobs=fields.number("logprobs", Range(0, MOST_LOGPROBS)))
    prompts = texts_or_ids(fields.take("prompt", (str, list), ""), "prompt")
    echo = fields.take("echo", bool, False)
    if echo and wish.top_logprobs is not None:
        raise APIError("echo gives back the prompt without logprobs; leave one of the two out", param="echo")
    fields.close()
    return CompletionWish(wish, prompts, echo)


@dataclass(frozen=True)
class EmbeddingWish:
    model: str
    inputs: list[str | list[int]]
    base64: bool


def read_embedding(body: Any) -> EmbeddingWish:
    """The body of /v1/embeddings."""
    fields = Fields(body)
    model, form = fields.take("model", str, ""), fields.take("encoding_format", str, "float")
    if form not in ("float", "base64"):
        raise APIError(f"encoding_format is {_shown(form)}; it must be \"float\" or \"base64\"",
                       param="encoding_format")
    inputs = texts_or_ids(fields.take("input", (str, list), ""), "input")
    if len(inputs) > MOST_INPUTS:
        raise APIError(f"input holds {len(inputs):,} texts, and at most {MOST_INPUTS:,} are embedded at once",
                       param="input")
    fields.close()
    return EmbeddingWish(model, inputs, form == "base64")


def texts_or_ids(value: str | list[Any], param: str) -> list[str | list[int]]:
    """A text, a list of ids, or a list of either, as a list. Raises APIError for anything else, and for nothing."""
    def is_ids(each: Any) -> bool:
        return isinstance(each, list) and bool(each) and all(type(id) is int and id >= 0 for id in each)

    values = [value] if isinstance(value, str) or is_ids(value) else value
    if not values or not all(isinstance(each, str) and each or is_ids(each) for each in values):
        raise APIError(f"{param} must be a text, a list of texts, or a list of token ids, none of them empty",
                       param=param)
    return values


# ---- answers ---------------------------------------------------------------------------------------------------------


def new_id(kind: str) -> str:
    return f"{kind}-{secrets.token_hex(12)}"


def envelope(id: str, kind: str, model: str, choices: list[JSON], **more: Any) -> JSON:
    """What surrounds every answer, whole or a chunk of one."""
    return {"id": id, "object": kind, "created": int(time.time()), "model": model, "choices": choices, **more}


def usage(prompt_tokens: int, completion_tokens: int) -> JSON:
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens}


def chat_logprobs(logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer) -> JSON:
    def entry(token: int, logprob: float) -> JSON:
        spelling = tokenizer.token_bytes(token)
        return {"token": spelling.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(spelling)}

    return {"content": [entry(each.token, each.logprob) | {"top_logprobs": [entry(*pair) for pair in each.top]}
                        for each in logprobs], "refusal": None}


def text_logprobs(logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer) -> JSON:
    def text(token: int) -> str:
        return tokenizer.token_bytes(token).decode(errors="replace")

    tokens = [text(each.token) for each in logprobs]
    return {"tokens": tokens, "token_logprobs": [_finite(each.logprob) for each in logprobs],
            "top_logprobs": [{text(token): _finite(logprob) for token, logprob in each.top} for each in logprobs],
            "text_offset": [sum(map(len, tokens[:i])) for i in range(len(tokens))]}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else -9999.0           # JSON has no infinity, and OpenAI writes this


def embedding(vector: list[float], *, as_base64: bool) -> list[float] | str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if as_base64 else vector


# ---- a text while it grows -------------------------------------------------------------------------------------------


class ChatChoice:
    """One answer of a chat while it grows: deltas for a stream, a message for a whole one."""

    def __init__(self, index: int, tokenizer: Tokenizer, *, tools: Sequence[JSON], logprobs: bool):
        self.index, self.tokenizer = index, tokenizer
        self.tools = ToolText([tool["function"]["name"] for tool in tools]) if tools else None
        self.content, self.calls = "", []
        self.logprobs: list[TokenLogprob] | None = [] if logprobs else None
        self.finish_reason: str | None = None
        self.tokens = 0

    def first(self) -> JSON:
        return self._chunk({"role": "assistant", "content": ""})

    def push(self, piece: Piece) -> list[JSON]:
        """Take a piece; the choices of the chunks that a stream sends for it."""
        text, calls = self.tools.push(piece.text) if self.tools else piece.text, []
        if piece.finish_reason:
            self.tokens, self.finish_reason = piece.tokens, piece.finish_reason
            if self.tools:
                rest, calls = self.tools.end()
                text += rest
        self.content += text
        self.calls += calls
        if self.logprobs is not None:
            self.logprobs += piece.logprobs
        chunks = []
        if text or piece.logprobs:
            logprobs = chat_logprobs(piece.logprobs, self.tokenizer) if self.logprobs is not None else None
            chunks.append(self._chunk({"content": text}, logprobs))
        if calls:
            chunks.append(self._chunk({"tool_calls": [{"index": i, **call} for i, call in enumerate(calls)]}))
        if self.finish_reason:
            chunks.append(self._chunk({}, finish_reason="tool_calls" if self.calls else self.finish_reason))
        return chunks

    def whole(self) -> JSON:
        message: JSON = {"role": "assistant", "content": self.content, "refusal": None}
        if self.calls:
            message |= {"content": self.content.strip() or None, "tool_calls": self.calls}
        return {"index": self.index, "message": message, "logprobs": None if self.logprobs is None else
                chat_logprobs(self.logprobs, self.tokenizer),
                "finish_reason": "tool_calls" if self.calls else self.finish_reason}

    def _chunk(self, delta: JSON, logprobs: JSON | None = None, finish_reason: str | None = None) -> JSON:
        return {"index": self.index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


class TextChoice:
    """The same for a text that goes on from a prompt; `echo` is what stands before it."""

    def __init__(self, index: int, tokenizer: Tokenizer, *, echo: str, logprobs: bool):
        self.index, self.tokenizer, self.echo = index, tokenizer, echo
        self.text = echo
        self.logprobs: list[TokenLogprob] | None = [] if logprobs else None
        self.finish_reason: str | None = None
        self.tokens = 0

    def first(self) -> JSON | None:
        return self._choice(self.echo, [], None) if self.echo else None

    def push(self, piece: Piece) -> list[JSON]:
        self.text += piece.text
        if piece.finish_reason:
            self.tokens, self.finish_reason = piece.tokens, piece.finish_reason
        if self.logprobs is not None:
            self.logprobs += piece.logprobs
        return [self._choice(piece.text, piece.logprobs, piece.finish_reason or None)]

    def whole(self) -> JSON:
        return self._choice(self.text, self.logprobs or [], self.finish_reason)

    def _choice(self, text: str, logprobs: Sequence[TokenLogprob], finish_reason: str | None) -> JSON:
        return {"index": self.index, "text": text, "finish_reason": finish_reason,
                "logprobs": None if self.logprobs is None else text_logprobs(logprobs, self.tokenizer)}


def listed(names: Mapping[str, Any], created: int) -> JSON:
    """The answer of /v1/models."""
    return {"object": "list", "data": [described(name, created) for name in names]}


def described(name: str, created: int) -> JSON:
    return {"id": name, "object": "model", "created": created, "owned_by": "llama-by-hand"}
