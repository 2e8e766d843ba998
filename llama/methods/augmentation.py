"""Inputs written a little otherwise, in every epoch anew: words replaced, left out, added, exchanged; texts mixed.

    replace    a synonym                        delete  nothing in its place        mask  what the model would write
    neighbor   a word with a near vector        insert  a synonym of a word, or     swap  the word behind it
    homophone  a character that sounds so               the word again, behind it   mix   cut-mix, of whole texts

Each comes with a rate: of the words of a text that it happens to, and of the texts for `mix`. (Synonyms, insertion,
swap and deletion are EDA: Wei and Zou 2019, arXiv:1901.11196. Mixing is CutMix on ids: Yun and others 2019,
arXiv:1905.04899, eq. 1: the head of a text before the tail of another, its label a mixture as the lengths are.)

What is to be learned is never touched: answers of an assistant, targets, labels. Tags move along with their words,
answers of questions with their place. An entity, or an answer in a text, is a wall: nothing within it changes, and
nothing is exchanged across it. English is changed by words, Chinese by the words of the tables and else by characters.

What a sample is in an epoch follows from seed, epoch and its number alone (`random.Random` of the three), so it is the
same after --resume, and for any number of processes.

Try: let `_swapped` take locked units; tests/test_augmentation.py (test_property_entities_and_answers_are_walls) fails.
"""

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from llama.datasets.tags import spans_of, tags_of
from llama.methods.substitutes import CJK, Fills, kind_of
from llama.runtime.terminal import visible
from llama.tasks.labelled import Labelled
from llama.tasks.task import Sample, Task
from tokenizer.base import Tokenizer

OPERATIONS = ("replace", "neighbor", "homophone", "delete", "insert", "swap", "mask", "mix")
_PARTS = re.compile(f"(\\s*)([{CJK}]+|[^\\W{CJK}]+(?:['’-][^\\W{CJK}]+)*|\\S)")
LONGEST = 6                                                         # characters of a Chinese word

Example = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """A word of a text, a sign, or a piece that stays as it is.

    before  the blank before it
    start   its first character in the text as it was; -1 of one that is new
    tokens  of tagged text: its tokens, and the blank before each but the first; () makes them of the text
    kind    of tagged text: the type of the span that it is; None outside
    """

    before: str
    text: str
    start: int = -1
    locked: bool = False
    tokens: tuple[tuple[str, str], ...] = ()
    kind: str | None = None

    @property
    def free(self) -> bool:
        """Whether anything may happen to it."""
        return not self.locked and bool(kind_of(self.text))

    def written(self, text: str) -> "Unit":
        return replace(self, text=text, tokens=())


class Augmentation:
    """What happens to samples: called as `Trainer` calls its `augment`.

    rates       operation -> how often, above 0 and up to 1
    substitutes  "replace", "neighbor", "homophone" -> what may stand in a word's place; "mask" -> by text: its fills
    """

    def __init__(self, task: Task, tokenizer: Tokenizer, rates: Mapping[str, float],
                 substitutes: Mapping[str, Any] | None = None, *, seed: int = 0):
        self.task, self.tokenizer, self.rates, self.seed = task, tokenizer, dict(rates), seed
        self.substitutes = dict(substitutes or {})
        self.words = _Words(self.substitutes)

    def __call__(self, samples: Sequence[Sample], number: int, epoch: int) -> Sample:
        sample, random = samples[number], Random(f"{self.seed} {epoch} {number}")
        if sample.example:
            example = rewritten(sample.example, lambda units, text: self.changed(units, text, random), self.words)
            other = self.task.reencode(sample, example, self.tokenizer)
            sample = other if other.targets else sample             # or nothing would be left to learn
        if "mix" in self.rates:
            mixed = random.random() < self.rates["mix"]
            partner = samples[random.randrange(len(samples))] if mixed else sample
            sample = cut_mix(sample, partner, random.random() if mixed else 1.0, len(self.task.labels))
        return sample

    def changed(self, units: list[Unit], text: str, random: Random) -> list[Unit]:
        """The units of a text after all operations, in the order of OPERATIONS but for deletion, which is last."""
        for name in ("mask", "replace", "neighbor", "homophone"):
            if rate := self.rates.get(name):
                units = [self._substituted(unit, name, text, random) if unit.free and random.random() < rate else unit
                         for unit in units]
        if rate := self.rates.get("insert"):
            units = [each for unit in units for each in self._inserted(unit, text, random, rate)]
        if rate := self.rates.get("swap"):
            units = _swapped(units, random, rate)
        if rate := self.rates.get("delete"):
            left = [unit for unit in units if not (unit.free and random.random() < rate)]
            units = left if any(kind_of(unit.text) for unit in left) else units
        return units

    def _candidates(self, unit: Unit, name: str, text: str) -> Sequence[str]:
        """What may stand in a unit's place; nothing new for what is new itself."""
        given = self.substitutes.get(name, {})
        if name == "mask":
            return given.get(text, {}).get((unit.start, unit.start + len(unit.text)), ())
        if name == "homophone":
            return [unit.text[:i] + other + unit.text[i + 1 :] for i, each in enumerate(unit.text)
                    for other in given.get(each, ())]
        return given.get(unit.text, ())

    def _substituted(self, unit: Unit, name: str, text: str, random: Random) -> Unit:
        candidates = self._candidates(unit, name, text)
        return unit.written(random.choice(candidates)) if candidates else unit

    def _inserted(self, unit: Unit, text: str, random: Random, rate: float) -> list[Unit]:
        if not unit.free or random.random() >= rate:
            return [unit]
        candidates = next(filter(None, (self._candidates(unit, name, text) for name in ("replace", "neighbor"))), ())
        new = random.choice(candidates) if candidates else unit.text
        blank = "" if kind_of(unit.text) == "chinese" else " "
        return [unit, Unit(blank, new, kind=unit.kind)]


def _swapped(units: list[Unit], random: Random, rate: float) -> list[Unit]:
    """Words exchanged with their neighbours, each at most once; blanks stay."""
    units, i = list(units), 0
    while i < len(units) - 1:
        one, two = units[i : i + 2]
        if one.free and two.free and random.random() < rate:
            units[i : i + 2] = replace(two, before=one.before), replace(one, before=two.before)
            i += 1
        i += 1
    return units


def texts_of(example: Example) -> list[str]:
    """The inputs of an example that may change."""
    found: list[str] = []
    rewritten(example, lambda units, text: found.append(text) or units)
    return found


def shown(augment: Any, samples: Sequence[Sample], count: int = 20) -> str:
    """Some samples as they are written, and as their first epoch has them; "" where nothing changes."""
    if not isinstance(augment, Augmentation):
        return ""
    lines = []
    for number in range(min(count, len(samples))):
        before, after = samples[number], augment(samples, number, 0)
        mixed = "mix" in augment.rates
        now = [augment.tokenizer.decode(after.ids)] if mixed else texts_of(after.example)
        labels = [f"{label} {part:.2f}" for label, part in zip(augment.task.labels, after.goals[0], strict=True)
                  if part] if mixed else []
        lines += ["  " + " | ".join(texts_of(before.example)), "→ " + " | ".join(now + labels)]
    return visible("\n".join(line.replace("\n", "⏎") for line in lines)) + "\n\n"


# ---- from examples to units, and back --------------------------------------------------------------------------------

Edit = Callable[[list[Unit], str], list[Unit]]


def rewritten(example: Example, edit: Edit, words: Container[str] = ()) -> Example:
    """An example of any task with its inputs edited; see llama/datasets for the fields."""
    if "tokens" in example:
        return _rewritten_tags(example, edit, words)
    if "context" in example:
        return _rewritten_context(example, edit, words) | {"question": _rewritten(example["question"], edit, words)}
    if "source" in example:
        return example | {"source": _rewritten(example["source"], edit, words)}
    if "messages" in example:
        return example | {"messages": [
            message | {"content": _rewritten(message["content"], edit, words)}
            if message.get("role") == "user" and isinstance(message.get("content"), str) else message
            for message in example["messages"]]}
    return example | {"text": _rewritten(example["text"], edit, words)}


def units_of(text: str, words: Container[str] = (), *, start: int = 0) -> tuple[list[Unit], str]:
    """A text as units, Chinese by the longest of `words` or by characters; and the blank at its end.

    start  of the text in a longer one
    """
    units, end = [], 0
    for match in _PARTS.finditer(text):
        before, part = match.groups()
        begin, end = match.start(2), match.end()
        for word in _cut(part, words) if kind_of(part) == "chinese" else [part]:
            units.append(Unit(before, word, start + begin))
            before, begin = "", begin + len(word)
    return units, text[end:]


def _cut(text: str, words: Container[str]) -> Iterable[str]:
    """Longest match from the left."""
    while text:
        size = next((size for size in range(min(LONGEST, len(text)), 1, -1) if text[:size] in words), 1)
        yield text[:size]
        text = text[size:]


def _rewritten(text: str, edit: Edit, words: Container[str]) -> str:
    units, tail = units_of(text, words)
    new = "".join(unit.before + unit.text for unit in edit(units, text)) + tail
    return new if text[:1].isspace() else new.lstrip()              # where the first word was left out


def _rewritten_context(example: Example, edit: Edit, words: Container[str]) -> Example:
    """A text with answers, each locked with those that it touches."""
    text, answers = example["context"], example.get("answers", [])
    units, before, end = [], "", 0
    for first, behind in _joined([(each["start"], each["start"] + len(each["text"])) for each in answers]):
        some, before = units_of(text[end:first], words, start=end)
        units += [*some, Unit(before, text[first:behind], first, locked=True)]
        end = behind
    some, tail = units_of(text[end:], words, start=end)
    new, moved = "", {}
    for unit in edit(units + some, text):
        new += unit.before + unit.text
        if unit.locked:
            moved |= {unit.start + i: len(new) - len(unit.text) + i for i in range(len(unit.text))}
    answers = [each | {"start": moved[each["start"]]} for each in answers]
    return example | {"context": new + tail} | ({"answers": answers} if "answers" in example else {})


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        elif end > begin:
            found.append((begin, end))
    return found


def _rewritten_tags(example: Example, edit: Edit, words: Container[str]) -> Example:
    """Tokens with tags: spans with a type are locked; words of a segmented text are units, and stay spans."""
    characters = all(len(token) == 1 for token in example["tokens"])
    units = edit(_tagged_units(example, words, characters=characters), example["text"])
    text, tokens, starts, spans = "", [], [], []
    for unit in units:
        first = len(tokens)
        made = unit.tokens or tuple(("", each) for each in (unit.text if characters else [unit.text]))
        for i, (blank, token) in enumerate(made):
            text += (unit.before if i == 0 else blank) if text else ""
            tokens.append(token)
            starts.append(len(text))
            text += token
        if unit.kind is not None:
            spans.append((first, len(tokens), unit.kind))
    scheme = "BMES" if any(tag[:1] in "MES" for tag in example.get("tags", ())) else "BIO"
    tags = {"tags": tags_of(spans, len(tokens), scheme)} if "tags" in example else {}
    return example | {"tokens": tokens, "starts": starts, "text": text} | tags


def _tagged_units(example: Example, words: Container[str], *, characters: bool) -> list[Unit]:
    text, tokens, starts = example["text"], example["tokens"], example["starts"]
    ends = [start + len(token) for start, token in zip(starts, tokens, strict=True)]
    blanks = [text[end:start] for end, start in zip([0, *ends], starts, strict=False)]
    units, done = [], 0

    def outside(begin: int, end: int) -> None:
        if characters and end > begin:                              # words are found across tokens
            for unit in units_of(text[starts[begin] : ends[end - 1]], words, start=starts[begin])[0]:
                units.append(replace(unit, before=unit.before or blanks[starts.index(unit.start)]))
        else:
            units.extend(Unit(blanks[i], tokens[i], starts[i]) for i in range(begin, end))

    for begin, end, kind in spans_of(example.get("tags", ["O"] * len(tokens))):
        outside(done, begin)
        units.append(Unit(blanks[begin], text[starts[begin] : ends[end - 1]], starts[begin], locked=kind != "",
                          tokens=tuple((blanks[i], tokens[i]) for i in range(begin, end)), kind=kind))
        done = end
    outside(done, len(tokens))
    return units


class _Words:
    """What Chinese is cut into: all words that something may stand in the place of."""

    def __init__(self, substitutes: Mapping[str, Any]):
        self.tables = [given for name, given in substitutes.items() if name in ("replace", "neighbor")]
        fills: Iterable[tuple[str, Fills]] = substitutes.get("mask", {}).items()
        self.filled = {text[begin:end] for text, places in fills for begin, end in places}

    def __contains__(self, word: object) -> bool:
        return word in self.filled or any(word in table for table in self.tables)


# ---- texts mixed -----------------------------------------------------------------------------------------------------


def cut_mix(sample: Labelled, other: Labelled, part: float, labels: int) -> Labelled:
    """The first `part` of a text, and the rest of another behind it; their labels as probabilities of all `labels`."""
    head = sample.ids[: max(1, round(part * len(sample.ids)))]
    tail = other.ids[len(other.ids) - round((1 - part) * len(other.ids)) :]
    share = len(head) / (len(head) + len(tail))
    goal = [share * (sample.goals[0] == label) + (1 - share) * (other.goals[0] == label) for label in range(labels)]
    ids = head + tail
    return replace(sample, ids=ids, loss_mask=[False] * (len(ids) - 1) + [True], goals=[goal], notes={})
