"""Instruction tuning: learn what the assistant says, and that it then stops, given everything said before.

Beside the loss, which asks how likely what was written is, the answers themselves are judged: the model writes in place
of the last thing that the assistant says in each conversation, and what comes is compared.

The same chat format (tokenizer/chat.py, chat_template.py) lays out conversations here and in generation: a model that
is tuned on one and asked in another answers worse, and often never stops.

Try: cut overlong samples at their end; tests/test_tasks.py (test_property_an_overlong_sample_keeps_its_end) fails:
without the end token among its targets a model goes on talking.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from llama.checkpoint import PretrainedLlama
from llama.metrics.overlap import chrf, rouge_scores
from llama.tasks.task import Sample, Task
from tokenizer.base import Tokenizer
from tokenizer.chat import FORMATS, ChatFormat
from tokenizer.chat_template import ChatTemplate, named_format, own_format

log = logging.getLogger(__name__)

PLAIN = "alpaca"                                                    # for base models, which have no format of their own
ANSWER = 128                                                        # ids of an answer that is judged, at most

Messages = list[dict[str, Any]]
Result = dict[str, Any]


class InstructionTask(Task):
    """Conversations in a chat format, the assistant's words and the ids that end them learned, the rest masked.

    chat_format  a name in tokenizer.chat.FORMATS or a file with a chat template; None takes the tokenizer's own, and
                 alpaca for one that has none
    max_length   ids of a sample; of a longer one the end is kept, with the answer and the id that closes it
    variables    what else a template asks for, such as {"enable_thinking": False}
    """

    checks = (*Task.checks, "eos", "eos-cut", "pad-is-eos", "prompt-prefix", "template")
    name = "instruction"

    def __init__(self, chat_format: str | None = None, max_length: int = 512, *,
                 variables: dict[str, Any] | None = None):
        self.chosen = named_format(chat_format, variables) if chat_format else None
        if max_length < 2:
            raise ValueError(f"max_length is {max_length}; it must be at least 2: one id to read and one to learn")
        self.max_length, self.variables = max_length, variables
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

    def samples(self, dataset: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> list[Sample]:
        """All conversations; says how many were cut, and by which format they are laid out if the model does not."""
        chosen = self.format(tokenizer).name
        if not (self.chosen or tokenizer.chat_template):
            log.warning("the tokenizer has no chat format; conversations are laid out in the format '%s'", chosen)
        samples = [self.encode(example, tokenizer) for example in dataset]
        if cut := sum(sample.cut > 0 for sample in samples):
            log.warning("%d of %d samples were longer than %d tokens and lost their beginning; --max-length sets this",
                        cut, len(samples), self.max_length)
        return samples

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Sample:
        place = example.get("place", "")
        try:
            ids, learned = self.format(tokenizer).encode(self.messages(example, tokenizer), tokenizer,
                                                         **_brought(example))
        except ValueError as error:
            raise ValueError(f"{place}: {error}" if place else str(error)) from None
        cut = max(0, len(ids) - self.max_length)
        return Sample(ids[cut:], learned[cut:], place, cut)

    def prompts(self, example: dict[str, Any], tokenizer: Tokenizer) -> Iterator[list[int]]:
        messages = self.messages(example, tokenizer)
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
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
        talks = [self.messages(example, tokenizer) for example in dataset]
        prompts = [chat_format.encode(_behind(before, talk[:-1]), tokenizer, reply=True, apart=True,
                                      **_brought(example))[0]
                   for example, talk in zip(dataset, talks, strict=True)]
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))             # little padding
        completions = generate(model, [prompts[i] for i in order], tokenizer=tokenizer, chat_format=chat_format,
                               sampling=SamplingConfig(temperature=0), max_new_tokens=max_new_tokens,
                               batch_size=batch_size)
        written = dict(zip(order, (completion.text.strip() for completion in completions), strict=True))
        return [{"place": example.get("place", ""), "text": self.given(example), "predicted": written[i],
                 "gold": (gold := text_of(talk[-1]).strip()), "correct": written[i].split() == gold.split()}
                for i, (example, talk) in enumerate(zip(dataset, talks, strict=True))]

    def given(self, example: dict[str, Any]) -> str:
        """What an example asks, for people."""
        return text_of(example["messages"][-2])

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


def _brought(example: dict[str, Any]) -> dict[str, Any]:
    """What an example has beside its messages, for templates that write it."""
    return {key: example[key] for key in ("tools", "documents") if example.get(key)}


def _behind(before: Messages, talk: Messages) -> Messages:
    """The turns of `talk` with others in front, but behind the system's."""
    system = [message for message in talk[:1] if message["role"] == "system"]
    return [*system, *before, *talk[len(system) :]]
