"""What all kinds of questions share: a prompt in the model's chat format, with examples as earlier turns before it.

Try: put the examples behind the question; tests/test_zero_shot.py (test_worked_example_what_is_asked) fails.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from llama.checkpoint import PretrainedLlama
from llama.decoding.prefix_cache import PrefixCache
from llama.metrics.language import is_chinese
from llama.runtime.progress import Progress
from llama.tasks.instruction import InstructionTask, Messages
from llama.tasks.labelled import Example, Result
from llama.tasks.task import Task
from tokenizer.chat import end_of_turn_id
from tokenizer.offsets import encode_with_offsets

log = logging.getLogger(__name__)

SLOTS = 1024                                                        # of the cache at first; it grows with the prompts


class PromptedPredictor:
    """What all kinds of questions share. A subclass says what is asked about an example, and how an answer comes."""

    def __init__(self, task: Any, examples: Sequence[Example], *, words: Mapping[str, str], request: str,
                 chat_format: str | None, variables: Mapping[str, Any] | None):
        self.task, self.examples, self.words = task, examples, words
        self.request, self.format = request, InstructionTask(chat_format, variables=variables).format

    def open(self, model: PretrainedLlama) -> None:
        """For this model; what it reads is remembered from question to question.

        Raises ValueError for a model that writes no text, or reads none.
        """
        Task.bind(InstructionTask(), model)
        if model.tokenizer is None:
            raise ValueError("this model has no tokenizer, so nothing can be asked of it; give a model folder")
        self.model, self.tokenizer = model, model.tokenizer
        self.lay_out()
        self.reader = PrefixCache(model, slots=SLOTS, vocab_size=model.tokenizer.vocab_size)

    def lay_out(self) -> None:
        """In which form the tokenizer writes what is asked."""
        self.chat = self.format(self.tokenizer)
        self.closing = end_of_turn_id(self.chat, self.tokenizer)

    def answer(self, example: Example) -> Result:
        """What was found in one example."""
        raise NotImplementedError

    def answers(self, dataset: Sequence[Example], **options: Any) -> list[Result]:
        progress = Progress(len(dataset), "example")
        found = []
        for example in dataset:
            found.append(self.answer(example))
            progress.show(len(found))
        progress.clear()
        return found

    def predict(self, model: PretrainedLlama, inputs: Sequence[Any]) -> list[Any]:
        self.open(model)
        return [self.answer({"text": text})["predicted"] for text in inputs]

    def prompt(self, turns: Messages) -> list[int]:
        """The ids up to where the assistant's answer begins. Raises ValueError where no room is left for it."""
        ids = self.chat.encode(turns, self.tokenizer, reply=True, apart=True)[0]
        if len(ids) > self.model.config.rope_stable_length - 2:
            raise ValueError(f"the question with its examples is {len(ids)} tokens long and the model is steady up to "
                             f"{self.model.config.rope_stable_length}; give fewer examples (--few-shot), or a smaller "
                             "--max-length")
        return ids

    def turns(self, pairs: Sequence[tuple[str, str]], content: str) -> Messages:
        """Examples as pairs of what is asked and answered, and then the question."""
        told = [message for asked, answered in pairs for message in (
            {"role": "user", "content": asked}, {"role": "assistant", "content": answered})]
        return [*told, {"role": "user", "content": content}]

    def said(self, texts: tuple[str, str], chinese: bool) -> str:
        """The request in the text's language, unless another was given."""
        return self.request or texts[0 if chinese else 1]

    def cut(self, text: str) -> str:
        """As much of a text as the task reads."""
        ids, offsets = encode_with_offsets(self.tokenizer, text)
        return text if len(ids) <= self.task.max_length else text[: offsets[self.task.max_length - 1][1]]

    def parts(self, text: str) -> list[tuple[int, int]]:
        """A text as pieces of at most `max_length` ids: (begin, end)."""
        begin, found = 0, []
        while begin < len(text):
            found.append((begin, begin := begin + len(self.cut(text[begin:]))))
        return found

    @staticmethod
    def chinese(text: str) -> bool:
        return is_chinese([text])


class Generative(PromptedPredictor):
    """Summaries, translations, instructions: written as the tuned task would, behind the examples."""

    def __init__(self, task: InstructionTask, examples: Sequence[Example], **options: Any):
        super().__init__(task, examples, **options)
        if self.request and hasattr(task, "request"):
            task.request = self.request

    def before(self) -> Messages:
        return [message for example in self.examples for message in self.task.messages(example, self.tokenizer)
                if message["role"] != "system"]

    def answers(self, dataset: Sequence[Example], **options: Any) -> list[Result]:
        """All at once, for they share batches."""
        return self.task.answered(self.model, dataset, before=self.before(), **options)

    def predict(self, model: PretrainedLlama, inputs: Sequence[str]) -> list[str]:
        self.open(model)
        kind = "source" if hasattr(self.task, "request") else "messages"
        asked = [{"source": text, "target": ""} if kind == "source" else
                 {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]}
                 for text in inputs]
        return [result["predicted"] for result in self.answers(asked)]
