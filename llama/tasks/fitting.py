"""A conversation that is longer than a sample may be: what of it is kept, and what is not learned.

    system · question · answer · question · ans                the end is left out, from where the room ends: what is
                                                               learned stands behind all that it answers
    system · ques … tion · answer                              where the first answer would not have the half of the
                                                               room, the longest text before it loses its middle

Nothing that is learned ever loses its question. An answer that is cut does not learn an end, for it has none there.

Try: cut ids at their beginning instead; tests/test_fitting.py (test_property_the_question_stays) fails.
"""

from collections.abc import Callable, Sequence
from itertools import groupby, takewhile
from typing import Any, NamedTuple

from tokenizer.base import Tokenizer
from tokenizer.offsets import encode_with_offsets

GAP = " … "                                                         # where a text lost its middle
_OTHER = "_other"                                                   # behind a name, it makes another name
_LEAST = 8                                                          # ids of a text that is shortened: both its ends

Message = dict[str, Any]
Encoder = Callable[[Sequence[Message]], tuple[list[int], list[bool]]]


class Fitted(NamedTuple):
    """The ids of a conversation as it was shortened, which of them are learned, and how many ids were left out before
    the first answer (`cut`) and from one that is learned on (`lost`). Nothing is learned where no answer found room.
    """

    messages: Sequence[Message]
    ids: list[int]
    learned: list[bool]
    cut: int = 0
    lost: int = 0


def fit(messages: Sequence[Message], encode: Encoder, tokenizer: Tokenizer, most: int) -> Fitted:
    """A conversation in at most `most` ids; encode gives its ids, and for each whether it is learned."""
    ids, learned = encode(messages)
    whole = len(ids)
    if whole <= most or True not in learned:
        return Fitted(messages, ids[:most], learned[:most], 0, max(0, whole - most))
    begins = learned.index(True)
    room = most - min(learned[begins:].index(False) if False in learned[begins:] else whole - begins, most // 2)
    before = [message["content"] for message in takewhile(lambda each: not is_learned(each), messages)]
    sizes = [len(tokenizer.encode_continuation(text)) for text in before]
    while begins > room and max(sizes, default=0) > _LEAST:
        longest = sizes.index(max(sizes))
        sizes[longest] = max(_LEAST, sizes[longest] - (begins - room))
        content = _without_middle(before[longest], sizes[longest], tokenizer)
        messages = [*messages[:longest], {**messages[longest], "content": content}, *messages[longest + 1 :]]
        ids, learned = encode(messages)
        begins = learned.index(True)
    cut, end = whole - len(ids), len(ids)
    if end > most:
        end = most - learned[:most][::-1].index(True) if True in learned[:most] else most
    return Fitted(messages, ids[:end], learned[:end], cut, len(ids) - end if True in learned[end:] else 0)


def is_learned(message: Message) -> bool:
    """Whether a message is an answer to be learned."""
    return message["role"] == "assistant" and bool(message.get("weight", 1))


def unlearn(messages: Sequence[Message], learned: list[bool]) -> list[bool]:
    """Without the answers whose weight is 0: of ids, each run of learned ones is an answer.

    Raises ValueError where that is not so, as with a template that writes an answer in pieces.
    """
    answers = [is_learned(message) for message in messages if message["role"] == "assistant"]
    if all(answers):
        return learned
    runs = [(learn, len(list(run))) for learn, run in groupby(learned)]
    if sum(learn for learn, _ in runs) != len(answers):
        raise ValueError(f"the chat template writes {len(answers)} answers in {sum(learn for learn, _ in runs)} "
                         "pieces, so a weight of 0 cannot be told to them; leave the weights out")
    counted = iter(answers)
    return [keep for learn, length in runs for keep in [learn and next(counted)] * length]


def refuse_lost(messages: Sequence[Message], tools: Sequence[Any], ids: list[int], tokenizer: Tokenizer,
                encode: Callable[[Sequence[Message], Sequence[Any]], list[int]]) -> None:
    """Raise ValueError if what stands beside the contents did not come into the ids: templates leave out what they do
    not know, without a word.

    Each name must stand in the text. Since words may hold it by chance, other names must also give other ids, by
    `encode` of messages and tools.
    """
    calling = [{**message, "tool_calls": [_renamed(call) for call in message["tool_calls"]]}
               if message.get("tool_calls") else message for message in messages]
    thought = messages[-1].get("reasoning_content", "") if messages else ""
    thinking = [*messages[:-1], {**messages[-1], "reasoning_content": thought + _OTHER}] if thought else messages
    names = {"tools": [tool.get("function", tool).get("name") for tool in tools],
             "tool_calls": [call["function"]["name"] for message in messages for call in message.get("tool_calls", ())],
             "reasoning_content": [thought.strip()[:20]]}
    others = {"tools": (messages, [_renamed(tool) for tool in tools]), "tool_calls": (calling, tools),
              "reasoning_content": (thinking, tools)}
    if not any(map(any, names.values())):
        return
    text = tokenizer.decode(ids)
    for field, some in names.items():
        some = [name for name in some if name]
        lost = [name for name in some if name not in text]
        if lost or some and _same(encode, others[field], ids):
            raise ValueError(f"the chat template does not write the '{field}' of this conversation "
                             f"(«{(lost or some)[0]:.40}»); take a model whose template does, or leave them out")


def _renamed(tool: dict[str, Any]) -> dict[str, Any]:
    """A tool, or a call of one, by another name."""
    function = tool.get("function", tool)
    other = {**function, "name": f"{function.get('name')}{_OTHER}"}
    return {**tool, "function": other} if "function" in tool else other


def _same(encode: Callable[..., list[int]], other: tuple[Any, ...], ids: list[int]) -> bool:
    try:
        return encode(*other) == ids
    except ValueError:                                              # a template that looks at names reads them
        return False


def _without_middle(text: str, keep: int, tokenizer: Tokenizer) -> str:
    """The first and the last of `keep` ids of a text, whole characters."""
    offsets = encode_with_offsets(tokenizer, text)[1]
    return text[: offsets[(keep + 1) // 2 - 1][1]].rstrip() + GAP + text[offsets[-(keep // 2)][0] :].lstrip()
