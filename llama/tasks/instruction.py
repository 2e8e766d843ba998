"""Instruction tuning: learn what the assistant says, and that it then stops, given everything said before.

Beside the loss, which asks how likely what was written is, the answers themselves are judged: the model writes in place
of the last thing that the assistant says in each conversation, and what comes is compared.

The same chat format (tokenizer/chat.py, chat_template.py) lays out conversations here and in generation: a model that
is tuned on one and asked in another answers worse, and often never stops.

Try: learn the answers whose weight is 0, too; tests/test_tasks.py (test_worked_example_an_answer_of_weight_0_is_read)
fails.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llama.checkpoint import PretrainedLlama
from llama.datasets.reading import Reading
from llama.metrics.overlap import chrf, rouge_scores
from llama.tasks.fitting import fit, is_learned, refuse_lost, unlearn
from llama.tasks.stored_samples import StoredSamples
from llama.tasks.task import Sample, Task
from tokenizer.base import Tokenizer
from tokenizer.chat import FORMATS, ChatFormat
from tokenizer.chat_template import ChatTemplate, named_format, own_format

log = logging.getLogger(__name__)

PLAIN = "alpaca"                                                    # for base models, which have no format of their own
APART = "answer"                                                    # in an example: which answer of it is learned
ANSWER = 128                                                        # ids of an answer that is judged, at most

Messages = list[dict[str, Any]]
Result = dict[str, Any]


class InstructionTask(Task):
    """Conversations in a chat format, the assistant's words and the ids that end them learned, the rest masked.

    chat_format  a name in tokenizer.chat.FORMATS or a file with a chat template; None takes the tokenizer's own, and
                 alpaca for one that has none
    max_length   ids of a sample; fitting.py says what of a longer one is kept
    variables    what else a template asks for, such as {"enable_thinking": False}
    skip_bad     go on without conversations that the format cannot write; they are counted aloud
    writes       whether its scores also ask what the model answers itself
    """

    checks = (*Task.checks, "eos", "eos-cut", "pad-is-eos", "question", "prompt-prefix", "template")
    writes = True
    name = "instruction"

    def __init__(self, chat_format: str | None = None, max_length: int = 512, *,
                 variables: dict[str, Any] | None = None, skip_bad: bool | None = None):
        self.chosen = named_format(chat_format, variables) if chat_format else None
        if max_length < 2:
            raise ValueError(f"max_length is {max_length}; it must be at least 2: one id to read and one to learn")
        self.max_length, self.variables, self.skip_bad = max_length, variables, skip_bad
        self._own: ChatTemplate | None = None

    def format(self, tokenizer: Tokenizer) -> ChatFormat | ChatTemplate:
        """The format asked for, else the tokenizer's own template."""
        if self.chosen or not tokenizer.chat_template:
            return self.chosen or FORMATS[PLAIN]
        if self._own is None or self._own.template != tokenizer.chat_template:
            self._own = own_format(tokenizer, self.variables)
        return self._own

    def messages(self, example: dict[str, Any], tokenizer: Tokenizer) -> Messages:
        """An example as a conversation."""
        return example["messages"]

    def samples(self, dataset: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> Sequence[Sample]:
        """All conversations; says how many were cut, and by which format they are laid out if the model does not."""
        chosen = self.format(tokenizer).name
        if not (self.chosen or tokenizer.chat_template):
            log.warning("the tokenizer has no chat format; conversations are laid out in the format '%s'", chosen)
        reading = Reading(skip_bad=self.skip_bad)
        parts = [part for each in reading.each(self._as_asked, ((example, tokenizer) for example in dataset))
                 for part in each]
        if divided := sum(APART in part for part in parts):
            log.warning("%d answers are samples of their own: the chat template writes an answer otherwise once more "
                        "is said, as without its thoughts", divided)
        counts, longest = Counter(), 0

        def fitted() -> Iterator[tuple[Sample, dict[str, Any]]]:
            nonlocal longest
            for sample, part in reading.each(lambda part: (self.encode(part, tokenizer), part),
                                             ((part,) for part in parts)):
                counts["samples"] += 1
                shortened, learned = sample.cut or sample.lost, bool(sample.targets)
                if shortened:
                    counts["longer"] += 1
                    counts["learn an answer without its end"] += learned and sample.lost > 0
                    counts["read a question without its middle"] += learned and sample.cut > 0
                    counts["have no room for an answer, and are left out"] += not learned
                    longest = max(longest, *(len(each.ids) + each.cut + each.lost for each in sample.parts))
                if learned or not shortened:
                    yield sample, part

        samples = self.stored(fitted(), tokenizer)
        reading.tell(Path("conversations"))
        if longer := counts.pop("longer", 0):
            which = ", ".join(f"{n} {what}" for what, n in counts.items() if n and what != "samples")
            log.warning("%d of %d samples were longer than %d tokens: %s; --max-length %d holds all", longer,
                        counts["samples"], self.max_length, which, longest)
        if counts["samples"] and not samples:
            raise ValueError(f"none of {counts['samples']} samples has room for an answer in {self.max_length} tokens; "
                             "raise --max-length")
        return samples

    def stored(self, pairs: Iterator[tuple[Sample, dict[str, Any]]], tokenizer: Tokenizer) -> Sequence[Sample]:
        """Samples, each with what it was made of, as they wait to be learned."""
        return StoredSamples(pairs, lambda example: {**example, "messages": self.messages(example, tokenizer)})

    def _as_asked(self, example: dict[str, Any], tokenizer: Tokenizer) -> list[dict[str, Any]]:
        """The example itself, or where the template writes its answers otherwise than they are asked for, a copy for
        each answer, which ends with it and only reads the others."""
        talk, chat_format = self.messages(example, tokenizer), self.format(tokenizer)
        answers = [number for number, message in enumerate(talk) if is_learned(message)]
        with _placed(example):
            if len(answers) < 2 or isinstance(chat_format, ChatFormat) or \
                    chat_format.writes_as_asked(talk, tokenizer, **_brought(example)):
                return [example]
        read = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in talk]
        return [{**example, "messages": [*read[:number], talk[number]], APART: number} for number in answers]

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Sample:
        with _placed(example):
            found = fit(self.messages(example, tokenizer), lambda messages: self._encode(messages, example, tokenizer),
                        tokenizer, self.max_length)
        return Sample(found.ids, found.learned, example.get("place", ""), found.cut, found.lost,
                      {**example, "messages": found.messages})

    def _encode(self, messages: Messages, example: dict[str, Any], tokenizer: Tokenizer
                ) -> tuple[list[int], list[bool]]:
        """Ids, and which are learned; without an answer that is only read, and with all that the example brought."""
        chat_format = self.format(tokenizer)
        ids, learned = chat_format.encode(messages, tokenizer, **_brought(example))
        refuse_lost(messages, example.get("tools", ()), ids, tokenizer, lambda other, tools: chat_format.encode(
            other, tokenizer, **_brought({**example, "tools": tools}))[0])
        return ids, unlearn(messages, learned)

    def prompts(self, example: dict[str, Any], tokenizer: Tokenizer) -> Iterator[list[int]]:
        messages = example.get("messages", [])
        for turn, message in enumerate(messages):
            if is_learned(message):
                yield self.format(tokenizer).encode(messages[:turn], tokenizer, reply=True, apart=True,
                                                    **_brought(example))[0]

    def ends(self, tokenizer: Tokenizer) -> set[int]:
        """Beside the tokenizer's, the control token that closes an answer: a base model's files may not call it one."""
        return super().ends(tokenizer) | {self.format(tokenizer).closing_token(tokenizer)} & set(
            tokenizer.special_ids.values())

    def prompt(self, text: str, tokenizer: Tokenizer) -> list[int]:
        return self.format(tokenizer).encode([{"role": "user", "content": text}], tokenizer, reply=True)[0]

    def predict(self, model: PretrainedLlama, inputs: Sequence[str], **options: Any) -> list[str]:
        """The answers to questions; they also end where the chat format ends them."""
        return super().predict(model, inputs, chat_format=self.format(model.tokenizer), **options)

    # What the model writes, beside what was written

    def answered(self, model: PretrainedLlama, dataset: Sequence[dict[str, Any]], *, before: Messages = (),
                 batch_size: int = 16, max_new_tokens: int = ANSWER) -> list[Result]:
        """The likeliest answer to each conversation in place of its last: "text", "predicted", "gold", "correct".

        before  turns that come in front of every conversation without a system message, as examples
        """
        from llama.generation import generate
        from llama.sampling import SamplingConfig

        self.bind(model)
        tokenizer, chat_format = model.tokenizer, self.format(model.tokenizer)
        room = max(model.config.context - max_new_tokens, model.config.context // 2)

        def asked(example: dict[str, Any]) -> tuple[dict[str, Any], Messages, list[int]]:
            talk = _answered(self.messages(example, tokenizer))
            return example, talk, self._question(_behind(before, talk), example, tokenizer, room)

        reading = Reading(skip_bad=self.skip_bad)                   # as `samples` goes on without them
        every = [each for each in reading.each(asked, ((example,) for example in dataset))
                 if len(each[2]) < model.config.context]
        if len(every) < len(dataset):
            log.warning("%d of %d questions cannot be asked, and are not scored", len(dataset) - len(every),
                        len(dataset))
        order = sorted(range(len(every)), key=lambda i: -len(every[i][2]))              # little padding
        completions = generate(model, [every[i][2] for i in order], tokenizer=tokenizer, chat_format=chat_format,
                               sampling=SamplingConfig(temperature=0), max_new_tokens=max_new_tokens,
                               batch_size=batch_size)
        written = dict(zip(order, (completion.text.strip() for completion in completions), strict=True))
        return [{"place": example.get("place", ""), "text": self.given(example), "predicted": written[i],
                 "gold": (gold := text_of(talk[-1]).strip()), "correct": written[i].split() == gold.split()}
                for i, (example, talk, _) in enumerate(every)]

    def _question(self, talk: Messages, example: dict[str, Any], tokenizer: Tokenizer, room: int) -> list[int]:
        """The ids that ask for the last answer of `talk`; of a question longer than `room` without its middle."""
        brought = _brought(example)
        ids = self.format(tokenizer).encode(talk[:-1], tokenizer, reply=True, apart=True, **brought)[0]
        if len(ids) <= room:
            return ids
        asked = fit([{**message, "weight": 0} for message in talk[:-1]] + [{"role": "assistant", "content": "!"}],
                    lambda messages: self._encode(messages, example, tokenizer), tokenizer, room).messages
        return self.format(tokenizer).encode(asked[:-1], tokenizer, reply=True, apart=True, **brought)[0]

    def given(self, example: dict[str, Any]) -> str:
        """What an example asks, for people."""
        return next((text_of(message) for message in reversed(_answered(example["messages"])[:-1])
                     if message["role"] == "user"), "")

    def compute_metrics(self, results: Sequence[Result]) -> dict[str, float]:
        """`exact_match` (blanks aside), `chrf` and `rouge_l` of answers."""
        predicted, gold = ([result[key] for result in results] for key in ("predicted", "gold"))
        return {"exact_match": sum(result["correct"] for result in results) / len(results),
                "chrf": chrf(predicted, gold), "rouge_l": rouge_scores(predicted, gold)["rouge_l"]}

    def report(self, results: Sequence[Result]) -> tuple[dict[str, Any], str]:
        """More than a number each: for JSON, and as a text to print."""
        return {}, ""


def text_of(message: dict[str, Any]) -> str:
    """What a message says, also one of several parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


@contextmanager
def _placed(example: dict[str, Any]) -> Iterator[None]:
    """What is wrong with an example is said with its place."""
    try:
        yield
    except ValueError as error:
        place = example.get("place", "")
        raise ValueError(f"{place}: {error}" if place else str(error)) from None


def _brought(example: dict[str, Any]) -> dict[str, Any]:
    """What an example has beside its messages, for templates that write it."""
    return {key: example[key] for key in ("tools", "documents") if example.get(key)}


def _answered(talk: Messages) -> Messages:
    """A conversation up to its last answer in words that is learned, or else its last message."""
    said = [i for i, message in enumerate(talk) if is_learned(message) and message["content"]]
    return talk[: said[-1] + 1] if said else talk


def _behind(before: Messages, talk: Messages) -> Messages:
    """The turns of `talk` with others in front, but behind the system's."""
    system = [message for message in talk[:1] if message["role"] == "system"]
    return [*system, *before, *talk[len(system) :]]
