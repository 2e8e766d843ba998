"""Texts that answer texts: what summaries and translations share. A pair is one turn of a conversation.

    source   --messages-->   user       request, blank line, source     «Translate into Chinese:»
    target   --messages-->   assistant  target                          learned, with the id that ends it

So a tuned chat model stays one, an untuned one can be asked the same (zero-shot), and pairs may stand before the
question as examples. A source that is too long loses its end: newspapers and abstracts begin with what matters.

Try: cut the source at its beginning; tests/test_pairs.py (test_worked_example_a_long_source_loses_its_end) fails.
"""

from collections.abc import Sequence
from typing import Any

from llama.metrics.language import is_chinese
from llama.metrics.overlap import bleu, chrf, rouge_scores
from llama.tasks.instruction import InstructionTask, Messages, Result
from tokenizer.base import Tokenizer


class PairTask(InstructionTask):
    """Pairs with "source" and "target", as llama.datasets.records gives them.

    request     what stands before the source; "" takes what the task has for the source's language
    max_length  ids of a sample; the source gets three quarters of it at most
    """

    requests: tuple[str, str]                                       # before a source that is Chinese, that is not

    def __init__(self, request: str = "", *, chat_format: str | None = None, max_length: int = 512,
                 variables: dict[str, Any] | None = None, skip_bad: bool | None = None):
        super().__init__(chat_format, max_length, variables=variables, skip_bad=skip_bad)
        self.request = request

    def messages(self, example: dict[str, Any], tokenizer: Tokenizer) -> Messages:
        return [{"role": "user", "content": self._asked(example["source"], tokenizer)},
                {"role": "assistant", "content": example["target"]}]

    def prompt(self, text: str, tokenizer: Tokenizer) -> list[int]:
        return super().prompt(self._asked(text, tokenizer), tokenizer)

    def given(self, example: dict[str, Any]) -> str:
        return example["source"]

    def _asked(self, source: str, tokenizer: Tokenizer) -> str:
        room = max(1, 3 * self.max_length // 4)
        ids = tokenizer.encode_continuation(source)
        if len(ids) > room:                                         # a character that was cut in parts goes as a whole
            source = tokenizer.decode(ids[:room]).rstrip("\ufffd")
        request = self.request or self.requests[0 if is_chinese([source]) else 1]
        return f"{request}\n\n{source}"


class SummarizationTask(PairTask):
    """A short text for a long one; scored by ROUGE, of characters where they are Chinese."""

    name, requests = "summarization", ("用一句话概括：", "Summarize in one sentence:")

    def compute_metrics(self, results: Sequence[Result]) -> dict[str, float]:
        return rouge_scores(*([result[key] for result in results] for key in ("predicted", "gold")))


class TranslationTask(PairTask):
    """The same in another language; scored by chrF, and by BLEU, with the tokenisation that the references ask for."""

    name, requests = "translation", ("翻译成英文：", "Translate into Chinese:")

    def compute_metrics(self, results: Sequence[Result]) -> dict[str, float]:
        predicted, gold = ([result[key] for result in results] for key in ("predicted", "gold"))
        return {"chrf": chrf(predicted, gold), "bleu": bleu(predicted, gold, tokenization=self._tokenization(results))}

    def report(self, results: Sequence[Result]) -> tuple[dict[str, Any], str]:
        name = self._tokenization(results)
        return {"bleu_tokenization": name}, f"BLEU with the tokenisation «{name}» (llama/metrics/overlap.py)"

    @staticmethod
    def _tokenization(results: Sequence[Result]) -> str:
        return "zh" if is_chinese(result["gold"] for result in results) else "13a"
