r"""Any chat template: messages -> token ids and which of them are learned, by running what the model's files bring.

    {% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}

What comes out is text that remembers who wrote each character (template_text.py). A special token counts where the
template wrote all of it; everything else is text, also where a message spells <|im_end|>, or half of it before the
template writes the other half. So nothing that a user or a data file says steers the model, and a template may do to
contents what it likes: trim them, look into them, write them as JSON.

Learned is what {% generation %} encloses. Where a template has none, an answer begins where the same chat, cut before
the answer and asked for one, ends, and goes up to and with the first token by which the template closes an answer.

Source: Hugging Face's «Chat templates»; ids are those of transformers' apply_chat_template, wherever no message spells
a special token (tests/parity/chat.py). template_sandbox.py says what keeps a template from doing harm.

Try: count special tokens in what people say, too; tests/test_chat_template.py
(test_property_no_word_of_a_person_becomes_a_mark) fails.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from os.path import commonprefix
from pathlib import Path
from typing import Any

from tokenizer.added_tokens import AddedToken, with_spaces
from tokenizer.chat import FORMATS, ChatFormat
from tokenizer.template_text import LEARNED, MESSAGE, WRITTEN, Text, said

# Names of roles may be part of a token that the template composes ('<|' + role + '|>'); other names are said.
KNOWN_ROLES = frozenset(("system", "user", "assistant", "tool", "developer", "function", "ipython", "observation",
                         "environment", "tool_response", "document", "context"))
_REASONING = ("reasoning_content", "thinking", "reasoning")         # one thing under three names
_OLDEST = (3, 1, 6)                                                 # before it, there are ways out of the sandbox

Message = dict[str, Any]
Span = tuple[int, int]
Mark = tuple[int, int, AddedToken]                                  # (begin, end, token) of a special one in a text


@dataclass(frozen=True)
class ChatTemplate:
    """How a conversation is written as tokens, said by a Jinja template. It answers as a chat.ChatFormat does.

    template     its text
    for_tools    another one, for conversations with tools; "" for none
    variables    what else the template may ask for, such as {"enable_thinking": False}
    """

    template: str
    for_tools: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)
    name: str = "the model's own template"
    _closing: dict[Any, int | None] = field(default_factory=dict, repr=False, compare=False)
    _heads: dict[Any, str] = field(default_factory=dict, repr=False, compare=False)

    def encode(self, messages: Sequence[Message], tokenizer: Any, *, reply: bool = False, apart: bool | None = None,
               tools: Sequence[Any] | None = None, documents: Sequence[Any] | None = None
               ) -> tuple[list[int], list[bool]]:
        """The ids of a conversation, and for each whether a model should learn to say it.

        reply   also write the head of an answer, so that a model goes on as the assistant
        apart   whether the beginning of an answer is also a border between tokens, as where the answer was generated,
                and answers are marked as learned; by default where a conversation is learned, without `reply`. With it,
                encode(messages[:k], reply=True, apart=True) are the first ids of encode(messages)

        Raises ValueError for what the template refuses, for a template that fails, and for one that asks for too much.
        """
        given = {"tools": tools, "documents": documents}
        apart = not reply if apart is None else apart
        text = self.render(messages, tokenizer, reply=reply, **given)
        if not text:
            raise ValueError("the chat template writes nothing of this conversation; name a format with --chat-format")
        if apart and not reply:
            text = self._closed(text, messages, tokenizer, **given)
        marks = _marks(text, tokenizer)
        _refuse_lost_marks(text, marks, tokenizer, [messages, given, self.variables])
        learned = self._learned(text, marks, messages, tokenizer, **given) if apart else []
        return _tokens(text.plain(), marks, learned, tokenizer)

    def render(self, messages: Sequence[Message], tokenizer: Any = None, *, reply: bool = False,
               tools: Sequence[Any] | None = None, documents: Sequence[Any] | None = None) -> Text:
        """The conversation as the template writes it; without a tokenizer, bos_token and the like are empty."""
        roles = tokenizer.roles() if tokenizer else dict.fromkeys(("bos_token", "eos_token", "pad_token"), "")
        roles = {role: Text(text, WRITTEN) for role, text in roles.items()}
        return _run(self._for(tools), roles | said(dict(self.variables)) | {
            "messages": [_prepared(message, number) for number, message in enumerate(messages, 1)],
            "tools": said(tools), "documents": said(documents), "add_generation_prompt": reply})

    def _for(self, tools: Any) -> str:
        return self.for_tools if tools and self.for_tools else self.template

    # Which characters are learned

    def _closed(self, text: Text, messages: Sequence[Message], tokenizer: Any, **given: Any) -> Text:
        """The conversation with the end of its last answer, where the template writes it only if more is said."""
        closing = self.closing_token(tokenizer)
        if closing is None or messages[-1]["role"] != "assistant" or "endgeneration" in self._for(given["tools"]):
            return text
        words = _words(text)
        last = words.pop(len(messages), (0, 0))[1] or self._begins(
            text.plain(), messages[:-1], tokenizer, (max([0, *(end for _, end in words.values())]), len(text)), None,
            **given)
        if any(token.id == closing and end > last for _, end, token in _marks(text, tokenizer)):
            return text
        try:
            more = self.render([*messages, {"role": "user", "content": "?"}], tokenizer, **given)
        except ValueError:
            return text
        ends = [end for _, end, token in _marks(more, tokenizer) if token.id == closing and end > last]
        return more[: ends[0]] if ends and more.startswith(text[:last].plain()) else text

    def _learned(self, text: Text, marks: Sequence[Mark], messages: Sequence[Message], tokenizer: Any, **given: Any
                 ) -> list[Span]:
        """The stretches of `text` that a model should learn to say."""
        enclosed = [(begin, end) for begin, end, origin in text.stretches() if origin & LEARNED]
        if enclosed or "endgeneration" in self._for(given["tools"]):
            return _merged(enclosed)
        words = _words(text)
        closing = self.closing_token(tokenizer)
        ends = [end for _, end, token in marks if token.id == closing]
        learned = []
        for number, message in enumerate(messages, 1):
            if message["role"] != "assistant":
                continue
            room = (max([0, *(end for other, (_, end) in words.items() if other < number)]),
                    min([len(text), *(begin for other, (begin, _) in words.items() if other > number)]))
            first, last = words.get(number, (None, 0))
            begin = self._begins(text.plain(), messages[: number - 1], tokenizer, room, first, **given)
            last = max(last, begin)
            learned.append((begin, next((end for end in ends if last < end <= room[1]), last)))
        return learned

    def _begins(self, text: str, before: Sequence[Message], tokenizer: Any, room: Span, first: int | None, **given: Any
                ) -> int:
        """Where in `text` the answer to the chat `before` begins: within `room`, at `first`, its words, or before them.

        That is where the same chat ends when it asks for the answer, mostly right before the words. Templates may add
        to what they ask with, or write what came before otherwise once it lies further back: then it is found by the
        head that asking adds.
        """
        head, (floor, ceiling) = self._head(tokenizer), room
        if first is not None and head and text.endswith(head, floor, first):
            return first
        latest = ceiling if first is None else first
        try:
            asked = self.render(before, tokenizer, reply=True, **given).plain()
        except ValueError:                                          # an answer that nobody asked for, say
            return latest
        shared = len(asked) if text.startswith(asked) else len(commonprefix([text, asked]))
        if shared >= floor:
            return min(shared, latest)
        at = text.rfind(head, floor, latest) if head else -1
        return latest if at < 0 else at + len(head)

    def _head(self, tokenizer: Any) -> str:
        """What the template adds where it asks for an answer; "" where it adds nothing, or writes all otherwise."""
        if tokenizer not in self._heads:
            chat = [{"role": "user", "content": "?"}]
            try:
                asked, plain = (self.render(chat, tokenizer, reply=reply).plain() for reply in (True, False))
                self._heads[tokenizer] = asked.removeprefix(plain) if asked.startswith(plain) else ""
            except ValueError:
                self._heads[tokenizer] = ""
        return self._heads[tokenizer]

    def writes_as_asked(self, messages: Sequence[Message], tokenizer: Any, **given: Any) -> bool:
        """Whether every answer stands behind what asking for it writes, and whole. Templates of models that think write
        earlier answers without their thoughts, or without the empty ones that asking for none adds."""
        text, head = self.render(messages, tokenizer, **given).plain(), self._head(tokenizer)
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        words = [messages[number].get(key) for number in answers for key in ("content", "reasoning_content")]
        if not all(said.strip() in text for said in words if isinstance(said, str)):
            return False
        if text.count(head) >= len(answers):
            return True
        try:
            asked = [self.render(messages[:number], tokenizer, reply=True, **given).plain() for number in answers]
        except ValueError:                                          # an answer that nobody asked for
            return True
        return all(map(text.startswith, asked))

    def closing_token(self, tokenizer: Any) -> int | None:
        """The id by which the template closes an answer: the first special token behind it; None if there is none.

        Some templates close an answer only when more is said; what then comes first may open the next turn instead, and
        is taken for an end if the model's files call it one.
        """
        if tokenizer not in self._closing:
            chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
            closing = self._behind_answer(chat, tokenizer)
            if closing is None:
                closing = self._behind_answer([*chat, {"role": "user", "content": "?"}], tokenizer)
                closing = closing if closing in tokenizer.eos_ids else None
            self._closing[tokenizer] = closing
        return self._closing[tokenizer]

    def _behind_answer(self, chat: Sequence[Message], tokenizer: Any) -> int | None:
        try:
            text = self.render(chat, tokenizer)
        except ValueError:
            return None
        end = max((end for _, end, origin in text.stretches() if origin // MESSAGE == 2), default=len(text))
        return next((token.id for _, last, token in _marks(text, tokenizer) if last > end), None)

    @cached_property
    def default_system(self) -> str:
        """The system message that the template writes where a conversation brings none; "" for none."""
        asked = {"role": "user", "content": "?"}
        try:
            plain = self.render([asked])
            told = self.render([{"role": "system", "content": "!"}, asked])
        except ValueError:
            return ""
        begin, end = next(((begin, end) for begin, end, origin in told.stretches() if origin // MESSAGE == 1), (0, 0))
        before, after = told[:begin], told[end:]
        fits = plain.startswith(before) and plain.endswith(after) and len(before) + len(after) <= len(plain)
        return plain.plain()[len(before) : len(plain) - len(after)] if end and fits else ""


def _prepared(message: Message, number: int) -> Message:
    """A message as a template finds it: keys without a value left out, its texts marked as said."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise ValueError(f"message {number} of the chat has no text as its 'role'")
    prepared = {key: said(value, number) for key, value in message.items() if value is not None}
    if message["role"] in KNOWN_ROLES:
        prepared["role"] = Text(message["role"], WRITTEN)
    reasoning = next((prepared[key] for key in _REASONING if key in prepared), None)
    return prepared if reasoning is None else {"thinking": reasoning} | prepared | {"reasoning_content": reasoning}


def _words(text: Text) -> dict[int, Span]:
    """number of a message -> from the first of its words to the last."""
    words: dict[int, Span] = {}
    for begin, end, origin in text.stretches():
        if number := origin // MESSAGE:
            words[number] = words.get(number, (begin, end))[0], end
    return words


def _marks(text: Text, tokenizer: Any) -> list[Mark]:
    """The special tokens that the template wrote, every character of them, with the spaces that they take along."""
    plain, marks, last = text.plain(), [], 0
    for begin, end in _merged((begin, end) for begin, end, origin in text.stretches() if origin & WRITTEN):
        for first, after, token in tokenizer.special_tokens_in(plain[begin:end]):
            first, last = with_spaces(plain, begin + first, begin + after, token, last)
            marks.append((first, last, token))
    return marks


def _refuse_lost_marks(text: Text, marks: Sequence[Mark], tokenizer: Any, given: Any) -> None:
    """Raise ValueError for a special token that nobody said, and that the template did not plainly write either.

    It would become text, and the model would read something that it has never seen.
    """
    plain, begin = text.plain(), 0
    for mark, end, _ in [*marks, (len(text), len(text), None)]:
        for first, last, _ in tokenizer.special_tokens_in(plain[begin:mark]):
            token = plain[begin + first : begin + last]
            spoken = any(origin // MESSAGE for _, _, origin in text[begin + first : begin + last].stretches())
            if not spoken and token not in json.dumps(given, ensure_ascii=False, default=str):
                raise ValueError(f"the chat template composes the special token {token} in a way that cannot be told "
                                 "from words of a person; name a format with --chat-format")
        begin = end


def _tokens(text: str, marks: Sequence[Mark], learned: Sequence[Span], tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Ids, and which are learned. Text runs on between marks and borders of what is learned, as it does elsewhere."""
    ids: list[int] = []
    flags: list[bool] = []
    starts, begin, borders = True, 0, sorted({at for span in learned for at in span})
    for mark, end, token in [*marks, (len(text), len(text), None)]:
        cuts = [begin, *(at for at in borders if begin < at < mark), mark]
        for left, right in pairwise(cuts):
            if left < right:
                ids += (tokenizer.encode if starts else tokenizer.encode_continuation)(text[left:right])
                flags += [_within(left, learned)] * (len(ids) - len(flags))
                starts = False
        if token is not None:
            ids.append(token.id)
            flags.append(_within(mark, learned))
            starts = tokenizer.starts_after(token)
        begin = end
    return ids, flags


def _merged(spans: Any) -> list[Span]:
    """Neighbours that touch become one."""
    merged: list[Span] = []
    for begin, end in spans:
        if merged and merged[-1][1] == begin:
            begin = merged.pop()[0]
        merged.append((begin, end))
    return merged


def _within(at: int, spans: Sequence[Span]) -> bool:
    return any(begin <= at < end for begin, end in spans)


# ---- running a template ----------------------------------------------------------------------------------------------

def _run(template: str, variables: dict[str, Any]) -> Text:
    """Raises ValueError, in a sentence that says which line of the template, for all that may go wrong in it."""
    try:
        from jinja2 import TemplateError, __version__

        from tokenizer.template_sandbox import TooMuch, line_of
    except ImportError:
        raise ValueError("the model's chat template needs jinja2 to be run: pip install jinja2; or name a format with "
                         "--chat-format") from None
    if tuple(int(part) for part in __version__.split(".")[:3] if part.isdecimal()) < _OLDEST:
        raise ValueError(f"the model's chat template is a stranger's program, and the sandbox of jinja2 {__version__} "
                         "has known ways out; install a newer one: pip install -U jinja2")
    try:
        compiled = _compiled(template)
        with compiled.environment.one_at_a_time:
            compiled.environment.begin()
            return compiled.render(variables)
    except Exception as error:      # a program that came with somebody's weights: anything may go wrong in it
        at = f", line {line}" if (line := line_of(error)) else ""
        if isinstance(error, TooMuch):
            raise ValueError(f"the chat template{at} is given up: {error}") from None
        if type(error) is TemplateError:
            raise ValueError(f"the chat template refuses this conversation: {error}") from None
        if isinstance(error, RecursionError):
            raise ValueError(f"the chat template{at} is given up: it calls itself again and again") from None
        raise ValueError(f"the chat template{at} fails on this conversation: {type(error).__name__}: {error}") from None


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    from tokenizer.template_sandbox import Environment

    return Environment().compiled(template)


# ---- which one -------------------------------------------------------------------------------------------------------

def own_format(tokenizer: Any, variables: Mapping[str, Any] | None = None) -> ChatTemplate | None:
    """The template of a model's files; None where they have none."""
    if not tokenizer.chat_template:
        return None
    return ChatTemplate(tokenizer.chat_template, tokenizer.tool_template or "", variables or {},
                        tokenizer.chat_format or ChatTemplate.name)


def named_format(name: str, variables: Mapping[str, Any] | None = None) -> ChatFormat | ChatTemplate:
    """What --chat-format NAME|FILE says: one of FORMATS, or a file with a template, alone or in tokenizer_config.json.

    Raises ValueError for a name that is neither, and for variables to a format that asks for none.
    """
    if name in FORMATS:
        if variables:
            raise ValueError(f"the chat format '{name}' asks for no variables; leave --template-args out")
        return FORMATS[name]
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"the chat format '{name}' is not known; known are {', '.join(FORMATS)}, and files with a "
                         "chat template")
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".json":
        try:
            text = json.loads(text)["chat_template"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise ValueError(f"{name} has no text as its 'chat_template'; give a file with a chat template alone")
    return ChatTemplate(text, variables=variables or {}, name=path.name)


def template_variables(text: str) -> dict[str, Any]:
    """What --template-args brings; nothing is {}. Raises ValueError for what is no JSON object."""
    if not text:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--template-args {text!r} is no JSON ({error.msg}); write it as "
                         "'{\"enable_thinking\": false}'") from None
    if not isinstance(value, dict):
        raise ValueError(f"--template-args {text!r} is no JSON object; write it as '{{\"enable_thinking\": false}}'")
    return value
