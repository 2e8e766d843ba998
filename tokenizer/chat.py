r"""Messages -> token ids and which of them are learned: one definition of a format serves tuning and generating.

A turn is three texts: a head, which asks for the turn; a body, in which {} is what was said; a tail. A model learns the
bodies of the assistant, whose last token is the end that stops generation, and nothing else:

    head                       body                       tail
    <|im_start|>user\n         Who are you?<|im_end|>     \n
    <|im_start|>assistant\n    A Llama.<|im_end|>         \n
                               learned

Ids are built piece by piece, never by encoding the whole as one string: the marks of a format become control tokens,
and what people say is always text, even where it spells such a mark. The border between the head and what the assistant
says is also a border between tokens, since that is where generation starts.

Each format comes with its Jinja template, the form in which Hugging Face's folders store it and other programs run it.
This file is the readable definition of five formats; chat_template.py runs any template, and tests compare the two.

Try: move "<|im_end|>" of chatml from the assistant's body to its tail; tests/test_chat.py then says that the end is not
learned. A model tuned so never stops talking.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

ROLES = ("system", "user", "assistant")
Message = dict[str, str]

# What a format writes as one id: a control token, by its text or by its role; <bos?> where the vocabulary has one.
_MARK = re.compile(r"(<\|\w+\|>|<bos>|<bos\?>|<eos>)")


@dataclass(frozen=True)
class ChatFormat:
    """How a conversation is written as tokens.

    turns           role -> (head, body with {} for the content, tail); marks such as <|im_end|> stand for their token
    template        the same in Jinja, for other programs
    begin           what precedes the first turn
    default_system  the system message where a conversation brings none; "" for none
    trims           whether white space around each content is dropped, as the template does
    folds_system    "", or how the system message enters the first user's turn, for formats without a system turn
    """

    name: str
    turns: dict[str, tuple[str, str, str]]
    template: str
    begin: str = ""
    default_system: str = ""
    trims: bool = False
    folds_system: str = ""

    def encode(self, messages: Sequence[Message], tokenizer: Any, *, reply: bool = False, apart: bool = True,
               tools: Any = None, documents: Any = None) -> tuple[list[int], list[bool]]:
        """The ids of a conversation, and for each whether a model should learn to say it.

        `reply` appends the assistant's head, so that a model goes on as the assistant. Where messages[k] is the
        assistant's, encode(messages[:k], reply=True) are the first ids of encode(messages): what is tuned is what is
        run. Not `apart`, text runs on where an answer begins, as in other programs, and nothing is learned.

        Raises ValueError for a message that this format cannot write, and for tokens that the vocabulary lacks.
        """
        for name, given in (("tools", tools), ("documents", documents)):
            if given:
                raise ValueError(f"the chat format '{self.name}' has no place for {name}; leave them out, or name a "
                                 "file with a chat template that has (--chat-format)")
        marks = self._ids_of_marks(tokenizer)
        ids, learned = [], []
        starts = True
        every = ((text, is_mark, learn and apart) for text, is_mark, learn in self._parts(messages, reply=reply))
        for (is_mark, learn), parts in groupby(every, key=lambda part: part[1:]):
            texts = [text for text, *_ in parts]
            if is_mark:
                new = [id for mark in texts for id in marks[mark]]
            else:
                # Joined first: spaces and line ends merge across the pieces of a turn as they would in any text.
                encode = tokenizer.encode if starts else tokenizer.encode_continuation
                new = encode("".join(texts))
            ids += new
            learned += [learn] * len(new)
            starts = is_mark and tokenizer.restarts
        return ids, learned

    def closing_token(self, tokenizer: Any) -> int | None:
        """The id by which an answer is closed: the last one that tuning learns; None if it learns no such id."""
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}]
        pairs = zip(*self.encode(turns, tokenizer), strict=True)
        return next((token for token, is_learned in reversed(list(pairs)) if is_learned), None)

    def _parts(self, messages: Sequence[Message], *, reply: bool) -> Iterator[tuple[str, bool, bool]]:
        """(text, whether it is a mark, whether it is learned), in order, without empty texts."""
        ours = [(self.begin, False)]            # (text, learned) as far as the format wrote it
        for role, content in self._checked(messages):
            head, body, tail = self.turns[role]
            before, after = body.split("{}")
            learn = role == "assistant"
            yield from _split_marks([*ours, (head, False), (before, learn)])
            if content:
                yield content, False, learn
            ours = [(after, learn), (tail, False)]
        if reply:
            ours.append((self.turns["assistant"][0], False))
        yield from _split_marks(ours)

    def _checked(self, messages: Sequence[Message]) -> list[tuple[str, str]]:
        """(role, content) of each turn to write, with the default system message and trimmed as the format wants it."""
        turns = []
        for number, message in enumerate(messages, 1):
            for key in ("role", "content"):
                if not isinstance(message, dict) or not isinstance(message.get(key), str):
                    raise ValueError(f"message {number} of the chat has no text as its '{key}'")
            if message["role"] not in ROLES:
                raise ValueError(f"message {number} of the chat has the role '{message['role']}'; "
                                 f"known are {', '.join(ROLES)}")
            turns.append((message["role"], message["content"]))
        if self.default_system and (not turns or turns[0][0] != "system"):
            turns.insert(0, ("system", self.default_system))
        if self.folds_system:
            turns = self._folded(turns)
        return [(role, content.strip() if self.trims else content) for role, content in turns]

    def _folded(self, turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """The same conversation without a system turn. Such formats also want user and assistant to take turns."""
        system = turns[0][1] if turns and turns[0][0] == "system" else None
        rest = turns if system is None else turns[1:]
        for number, (role, _) in enumerate(rest):
            if role != ("user", "assistant")[number % 2]:
                raise ValueError(f"the chat format '{self.name}' wants a user and the assistant in turns, the user "
                                 f"first, after at most one system message; its turn {number + 1} is by '{role}'")
        if system is None:
            return rest
        if not rest:
            raise ValueError(f"the chat format '{self.name}' writes the system message into the first user's turn, "
                             "and this chat has none")
        return [("user", self.folds_system.replace("{}", system) + rest[0][1]), *rest[1:]]

    def _ids_of_marks(self, tokenizer: Any) -> dict[str, list[int]]:
        used = _MARK.findall("".join([self.begin, *(text for turn in self.turns.values() for text in turn)]))
        by_role = {
            "<bos>": tokenizer.bos_id,
            "<bos?>": tokenizer.bos_id,
            "<eos>": tokenizer.eos_ids[0] if tokenizer.eos_ids else None,
        }
        ids = {mark: by_role.get(mark, tokenizer.special_ids.get(mark)) for mark in used}
        missing = [mark for mark, id in ids.items() if id is None and mark != "<bos?>"]
        if missing:
            raise ValueError(f"the chat format '{self.name}' needs {', '.join(missing)}, which this vocabulary has not "
                             f"as special tokens; choose another with --chat-format ({', '.join(FORMATS)})")
        return {mark: [] if id is None else [id] for mark, id in ids.items()}


def _split_marks(texts: list[tuple[str, bool]]) -> Iterator[tuple[str, bool, bool]]:
    for text, learn in texts:
        for i, part in enumerate(_MARK.split(text)):
            if part:
                yield part, i % 2 == 1, learn


# The formats, each beside the text of its template as published.

_CHATML_TURNS = "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}" \
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"

_CHATML = ChatFormat(
    name="chatml",
    turns={role: (f"<|im_start|>{role}\n", "{}<|im_end|>", "\n") for role in ROLES},
    template="{% for message in messages %}" + _CHATML_TURNS,
)

_LLAMA3 = ChatFormat(
    name="llama-3",
    begin="<bos>",
    turns={role: (f"<|start_header_id|>{role}<|end_header_id|>\n\n", "{}<|eot_id|>", "") for role in ROLES},
    trims=True,
    template="{% set loop_messages = messages %}{% for message in loop_messages %}"
             "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
             "+ message['content'] | trim + '<|eot_id|>' %}"
             "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
             "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
)

_LLAMA2 = ChatFormat(
    name="llama-2",
    turns={"user": ("<bos>[INST] ", "{} [/INST]", ""), "assistant": ("", " {} <eos>", "")},
    folds_system="<<SYS>>\n{}\n<</SYS>>\n\n",
    trims=True,
    template="{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
             "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
             "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
             "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception("
             "'Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
             "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
             "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
             "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
             "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}"
             "{% endfor %}",
)

# Stanford Alpaca's sentences (github.com/tatsu-lab/stanford_alpaca), with the answer on a line of its own.
_ALPACA_SYSTEM = "Below is an instruction that describes a task. " \
                 "Write a response that appropriately completes the request."

_ALPACA = ChatFormat(
    name="alpaca",
    begin="<bos?>",
    turns={"system": ("", "{}\n\n", ""),
           "user": ("### Instruction:\n", "{}\n\n", ""),
           "assistant": ("### Response:\n", "{}<eos>", "\n\n")},
    default_system=_ALPACA_SYSTEM,
    trims=True,
    template="{{ bos_token }}{% if messages[0]['role'] != 'system' %}{{ '" + _ALPACA_SYSTEM + "\\n\\n' }}{% endif %}"
             "{% for message in messages %}"
             "{% if message['role'] == 'system' %}{{ message['content'] | trim + '\\n\\n' }}"
             "{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + message['content'] | trim + '\\n\\n' }}"
             "{% else %}{{ '### Response:\\n' + message['content'] | trim + eos_token + '\\n\\n' }}{% endif %}"
             "{% endfor %}{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}",
)

# Nothing but line ends, for small vocabularies: alpaca's sentences alone are a hundred ids of one that is Chinese.
_PLAIN = ChatFormat(
    name="plain",
    begin="<bos?>",
    turns={"system": ("", "{}\n", ""), "user": ("", "{}\n", ""), "assistant": ("", "{}<eos>", "\n")},
    trims=True,
    template="{{ bos_token }}{% for message in messages %}{{ message['content'] | trim }}"
             "{{ eos_token + '\\n' if message['role'] == 'assistant' else '\\n' }}{% endfor %}",
)

FORMATS = {format.name: format for format in (_CHATML, _ALPACA, _LLAMA2, _LLAMA3, _PLAIN)}


def name_of(template: str) -> str | None:
    """The name of the format whose template this is, by its exact text; None for any other."""
    return next((name for name, each in FORMATS.items() if _normal(each.template) == _normal(template)), None)


def _normal(template: str) -> str:
    r"""A line end within a Jinja string may be written as itself or as \n; files of templates may end with one."""
    return template.strip().replace("\\n", "\n")


def end_of_turn_id(chat_format: Any, tokenizer: Any) -> int:
    """The id by which an answer in this format is closed. Raises ValueError where neither format nor files name one."""
    closing = chat_format.closing_token(tokenizer)
    if closing is None and not tokenizer.eos_ids:
        raise ValueError(f"neither {chat_format.name} nor the model's files say which token ends an answer; name a "
                         f"format that does with --chat-format ({', '.join(FORMATS)})")
    return tokenizer.eos_ids[0] if closing is None else closing


def stop_ids(chat_format: Any, tokenizer: Any) -> list[int]:
    """All ids that end a text: those of the model's own files, and the one that closes an answer in this format."""
    closing = chat_format.closing_token(tokenizer) if chat_format else None
    return [*tokenizer.eos_ids, *([] if closing is None else [closing])]
