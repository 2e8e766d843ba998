"""Answers, entities and words as pieces of their text: the model chooses, constrained_decoding.py allows nothing else.

    answers    «Answer with a piece of the text.»       one piece, or the word for none
    entities   «List all persons, one a line.»          pieces from left to right, for each type a question; every place
                                                        where a found name stands counts; of two that overlap the longer
    words      «Write this with a blank after each word.»

Texts that are longer than what a task reads at once are asked about part after part; for answers the question comes
last, and the part whose piece was likeliest to be copied wins.

Try: count only the first place of a name; tests/test_zero_shot.py
(test_property_every_place_of_a_name_counts_and_tags_keep_their_rules) fails.
"""

import re
from collections.abc import Sequence
from typing import Any

from llama.checkpoint import PretrainedLlama
from llama.datasets.tags import spans_of, tags_of
from llama.metrics.answers import answer_scores
from llama.metrics.language import is_chinese
from llama.tasks.labelled import Example, Result
from llama.zero_shot.constrained_decoding import (
    SegmentationGrammar,
    SpanGrammar,
    Vocabulary,
    Written,
    constrained_greedy_decode,
)
from llama.zero_shot.prompting import PromptedPredictor

NONE = ("无", "none")
ANSWER = ("根据文字回答问题，只写文字里的原文{or_none}。", "Answer the question with words of the text alone{or_none}.")
OR_NONE = ("；没有答案就写“无”", "; write none if it holds no answer")
ENTITIES = ("列出文中所有的{what}，每行一个；没有就写“无”。",
            "List all {what} in the text, one a line; write none if there are none.")
WORDS = ("把下面的句子分成词，词与词之间加空格。", "Split the sentence into words, with a blank between them.")
NAME = 16                                                           # ids of a name, from where on it ends
TYPES = {"PER": ("人名", "persons"), "LOC": ("地名", "places"), "ORG": ("机构名", "organisations")}


class Copying(PromptedPredictor):
    """What those that copy have in common."""

    def open(self, model: PretrainedLlama) -> None:
        super().open(model)
        self.vocabulary = Vocabulary(model.tokenizer)

    def copied(self, pairs: Sequence[tuple[str, str]], content: str, grammar: Any) -> Written:
        return constrained_greedy_decode(self.reader, self.prompt(self.turns(pairs, content)), grammar)


class Answers(Copying):
    """Asks for a piece of the text that answers a question."""

    def answer(self, example: Example) -> Result:
        text, question = example["context"], example["question"]
        chinese, best = self.chinese(question), Written([], float("-inf"))
        pairs = [(self.asked(each["context"], each["question"], chinese),
                  each["answers"][0]["text"] if each["answers"] else NONE[not chinese]) for each in self.examples]
        for begin, end in self.parts(text):
            if not (part := text[begin:end]).strip():
                continue
            grammar = SpanGrammar(part, self.vocabulary, closing=self.closing, longest=self.task.longest,
                             none=NONE[not chinese] if self.task.unanswerable else "")
            written = self.copied(pairs, self.asked(part, question, chinese), grammar)
            found = [(begin + start, begin + stop) for start, stop in written.found]
            if (bool(found), written.score) > (bool(best.found), best.score):           # a piece beats «none»
                best = Written(found, written.score)
        start, stop = best.found[0] if best.found else (0, 0)
        found = {"place": example.get("place", ""), "id": example.get("id", ""), "text": question,
                 "predicted": text[start:stop].strip(), "start": start, "score": round(max(best.score, -1e6), 6)}
        if "answers" not in example:
            return found
        gold = [each["text"] for each in example["answers"]]
        language = self.task.language or ("zh" if is_chinese(gold or [question]) else "en")
        match = answer_scores([gold], [found["predicted"]], language=language)
        return found | {"gold": gold, "correct": match["exact_match"] == 1}

    def predict(self, model: PretrainedLlama, inputs: Sequence[tuple[str, str]]) -> list[str]:
        self.open(model)
        return [self.answer({"question": question, "context": context})["predicted"] for question, context in inputs]

    def asked(self, text: str, question: str, chinese: bool) -> str:
        request = self.said(ANSWER, chinese)
        or_none = OR_NONE[not chinese] if self.task.unanswerable else ""
        return f"{request.replace('{or_none}', or_none)}\n\n{self.cut(text)}\n\n{question}"


class Tags(Copying):
    """What entities and words have in common: spans of the text become tags of its tokens."""

    def predict(self, model: PretrainedLlama, inputs: Sequence[str]) -> list[Any]:
        self.open(model)
        return [self.answer(self.task.example(text))["predicted"] if text.strip() else [] for text in inputs]

    def answer(self, example: Example) -> Result:
        spans = [span for begin, end in self.parts(example["text"]) if example["text"][begin:end].strip()
                 for span in self.spans(example["text"], begin, end)]
        tags = tags_of(self._of_tokens(example, spans), len(example["tokens"]), self.task.scheme)
        found = {"place": example.get("place", ""), "text": example["text"], "tags": tags,
                 "predicted": self.task.spans(example, tags)}
        if "tags" not in example:
            return found
        gold = tags_of(spans_of(example["tags"]), len(example["tags"]), self.task.scheme)
        return found | {"gold": self.task.spans(example, gold), "gold_tags": gold, "correct": tags == gold}

    def spans(self, text: str, begin: int, end: int) -> list[tuple[int, int, str]]:
        """What is found in text[begin:end], as characters of the whole text."""
        raise NotImplementedError

    @staticmethod
    def _of_tokens(example: Example, spans: Sequence[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
        """The same as tokens, each in one span; the longer goes first."""
        taken: dict[int, bool] = {}
        found = []
        for begin, end, kind in sorted(spans, key=lambda span: (span[0] - span[1], span[0])):
            inside = [i for i, (start, token) in enumerate(zip(example["starts"], example["tokens"], strict=True))
                      if start < end and begin < start + len(token)]
            if inside and not any(i in taken for i in inside):
                taken |= dict.fromkeys(inside, True)
                found.append((inside[0], inside[-1] + 1, kind))
        return sorted(found)


class Entities(Tags):
    """Asks for the entities of each type."""

    def __init__(self, task: Any, examples: Sequence[Example], **options: Any):
        super().__init__(task, examples, **options)
        self.types = sorted({label[2:] for label in task.labels if label[1:2] == "-"})
        if not self.types:
            raise ValueError("there are no types of entities; without training nobody else names them: give all there "
                             "are, --labels PER,LOC or NERTask(types=…)")

    def spans(self, text: str, begin: int, end: int) -> list[tuple[int, int, str]]:
        part, chinese, found = text[begin:end], self.chinese(text), set()
        for kind in self.types:
            pairs = [(self.asked(each["text"], kind, chinese), self.told(each, kind, chinese))
                     for each in self.examples]
            grammar = SpanGrammar(part, self.vocabulary, closing=self.closing, several=True, none=NONE[not chinese],
                             longest=NAME)
            for start, stop in self.copied(pairs, self.asked(part, kind, chinese), grammar).found:
                name = part[start:stop]
                found |= {(begin + place.start(), begin + place.end(), kind)
                          for place in re.finditer(_whole(name), part)}
        return sorted(found)

    def asked(self, text: str, kind: str, chinese: bool) -> str:
        what = self.words.get(kind) or TYPES.get(kind, (kind, kind))[not chinese]
        return f"{self.said(ENTITIES, chinese).replace('{what}', what)}\n\n{self.cut(text)}"

    def told(self, example: Example, kind: str, chinese: bool) -> str:
        names = [entity.text for entity in self.task.spans(example, example["tags"]) if entity.type == kind]
        return "\n".join(names) or NONE[not chinese]


class Words(Tags):
    """Asks for the words of a text."""

    def spans(self, text: str, begin: int, end: int) -> list[tuple[int, int, str]]:
        chinese, found = self.chinese(text), []
        pairs = [(self.asked(each["text"], chinese), " ".join(self.task.spans(each, each["tags"])))
                 for each in self.examples]
        for run in re.finditer(r"\S+", text[begin:end]):
            grammar = SegmentationGrammar(run[0], self.vocabulary, closing=self.closing)
            found += [(begin + run.start() + start, begin + run.start() + stop, "")
                      for start, stop in self.copied(pairs, self.asked(run[0], chinese), grammar).found]
        return found

    def asked(self, text: str, chinese: bool) -> str:
        return f"{self.said(WORDS, chinese)}\n\n{self.cut(text)}"


def _whole(name: str) -> str:
    """A pattern for a name: not within a longer word of a script that is written with blanks."""
    before = r"(?<![^\W\u2e80-\uffef])" if re.match(r"[^\W\u2e80-\uffef]", name) else ""
    behind = r"(?![^\W\u2e80-\uffef])" if re.search(r"[^\W\u2e80-\uffef]$", name) else ""
    return before + re.escape(name) + behind
