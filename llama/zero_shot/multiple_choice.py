"""Multiple choice, asked as raw text: the likeliest continuation wins.

    letter                                          text
    The following are questions with one …          The following are questions with their answers.
    ⏎                                               ⏎
    Which animal barks?                             Which animal barks?
    A. a cat                                        Answer: a dog
    B. a dog                                        ⏎
    Answer: B                                       Which animal meows?
    ⏎                                               Answer:| a cat
    Which animal meows?                             Answer:| a dog
    A. a cat
    B. a dog
    Answer:| A      what is scored begins behind the bar

Text that goes on, as a model was trained on it, and no chat: so base models and tuned ones are asked the same. The
question with its examples is encoded once, as generation would be given it (`encode_prompt`: with the token that begins
a text where the tokenizer's files ask for it; special tokens that it spells are text). Each option is encoded apart, as
what generation would write next (`encode_continuation`): behind a blank in English, without one in Chinese, where none
is written. Its score is

    letter   Σ log p(id | all before)       over the ids of the letter, which are one in nearly every vocabulary
    text     the same sum divided by the bytes of the option, or the shortest would win

Of equal scores the first option wins, and the tie is told. Logarithms are of all ids of the vocabulary, in float32.

Try: leave the division by bytes out; tests/test_multiple_choice.py
(test_two_ways_scores_equal_those_of_plain_forward_passes) fails.
"""

import logging
from collections.abc import Sequence
from typing import Any

from llama.checkpoint import PretrainedLlama
from llama.decoding.loglikelihood import loglikelihood
from llama.generation import encode_prompt
from llama.tasks.labelled import Example, Result
from llama.zero_shot.prompting import PromptedPredictor

log = logging.getLogger(__name__)

REQUESTS = {"letter": ("下面是单项选择题，每题只有一个正确答案。",
                       "The following are questions with one right answer each."),
            "text": ("下面是问题和答案。", "The following are questions with their answers.")}
ANSWER = ("答案：", "Answer:")
GAP = ("", " ")                                                     # between that and what follows


class Choices(PromptedPredictor):
    """Asks for the option that is right. Examples serve the questions of their subject."""

    def __init__(self, task: Any, examples: Sequence[Example], *, chat_format: str | None, variables: Any,
                 **options: Any):
        if chat_format or variables:
            raise ValueError("multiple choice is asked as text that goes on, and not as a chat; leave --chat-format "
                             "and --template-args out")
        super().__init__(task, examples, chat_format=None, variables=None, **options)
        self.letters = task.score_by == "letter"

    def lay_out(self) -> None:
        """As text that goes on."""
        self.without = 0                                            # questions, so far

    def answers(self, dataset: Sequence[Example], **options: Any) -> list[Result]:
        """Refuses what has no room before the first question is asked."""
        for example in dataset:
            self.encoded(example)
        self.without = 0
        found = super().answers(dataset)
        if self.without:
            log.warning("%d of %d questions had no room for all of their examples in the %d tokens of the model, and "
                        "were asked with fewer", self.without, len(dataset), self.model.config.rope_stable_length)
        return found

    def answer(self, example: Example) -> Result:
        prefix, continuations = self.encoded(example)
        logs = loglikelihood(self.model, prefix, list(continuations.values()), tokenizer=self.tokenizer,
                             reader=self.reader)
        scores = {letter: each.sum().item() / (1 if self.letters else len(example["options"][letter].encode()))
                  for letter, each in zip(continuations, logs, strict=True)}
        best = max(scores.values())
        likeliest = [letter for letter, score in scores.items() if score == best]
        found = {"place": example.get("place", ""), "subject": example.get("subject", ""), "text": example["question"],
                 "predicted": likeliest[0], "scores": {letter: round(score, 6) for letter, score in scores.items()},
                 "tie": len(likeliest) > 1}
        if "answer" not in example:
            return found
        return found | {"gold": example["answer"], "correct": likeliest[0] == example["answer"]}

    def predict(self, model: PretrainedLlama, inputs: Sequence[Example]) -> list[str]:
        """The letter of each question; inputs are {"question", "options": {"A": …}}."""
        self.open(model)
        return [self.answer(example)["predicted"] for example in inputs]

    def encoded(self, example: Example) -> tuple[list[int], dict[str, list[int]]]:
        """The ids of a question behind as many of its examples as there is room for, and those of each option.

        Raises ValueError for a question that is too long alone.
        """
        language = 0 if self.chinese(example["question"]) else 1
        continuations = {letter: self.tokenizer.encode_continuation(GAP[language] + self.said_of(example, letter))
                         for letter in example["options"]}
        room = self.model.config.rope_stable_length - max(map(len, continuations.values()))
        shots = [each for each in self.examples if each.get("subject", "") == example.get("subject", "")]
        for count in range(len(shots), -1, -1):
            ids = encode_prompt(self.tokenizer, self.text(example, shots[:count], language))
            if len(ids) <= room:
                self.without += count < len(shots)
                return ids, continuations
        raise ValueError(f"{example.get('place', 'a question')}: it is {len(ids)} tokens long, and the model has room "
                         f"for {room} before an answer; leave it out, or take a model with a longer context")

    def text(self, example: Example, shots: Sequence[Example], language: int) -> str:
        """What the model reads before an answer."""
        before = [self.asked(each, language) + GAP[language] + self.said_of(each, each["answer"]) for each in shots]
        request = self.request or REQUESTS[self.task.score_by][language]
        return "\n\n".join([request, *before, self.asked(example, language)])

    def asked(self, example: Example, language: int) -> str:
        """A question up to where its answer begins."""
        options = [f"{letter}. {text}" for letter, text in example["options"].items()] if self.letters else []
        return "\n".join([example["question"], *options, ANSWER[language]])

    def said_of(self, example: Example, letter: str) -> str:
        """What answers with an option."""
        return letter if self.letters else example["options"][letter]
