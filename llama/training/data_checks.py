"""Before every tuning run: what the samples amount to, and whether a model tuned on them can come out right.

A loss curve shows none of these failures: an answer whose end is masked lowers the loss like any other, and the model
talks on for ever. So each has a name, is looked for in every sample, and is a refusal until it is allowed by its name.
What is learned is read off the batch that the task makes, since that is where the loss reads it.

    CHECKS        the table: name, what holds when it passes, what to do when it does not
    examine       one pass over the samples -> Report
    Task.checks   the names that apply to a task

Try: in `_prompt_prefix`, compare only the first id; tests/test_data_checks.py (test_refusal_each_check_by_its_name)
fails.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from llama.runtime.progress import Progress
from llama.tasks.fitting import is_learned
from llama.tasks.task import Sample, Task
from tokenizer.base import Tokenizer
from tokenizer.chat_template import own_format

AT_ONCE = 64                                                        # samples that become a batch, to be looked at
PATIENCE = 2.0                                                      # seconds until progress is shown
FEW = 8                                                             # examples by which two templates are compared
EDGE = 8                                                            # characters by which a question is known


@dataclass
class Counts:
    """What a data set amounts to. The names are those of the records that training writes."""

    samples: int = 0
    tokens: int = 0                 # that the model reads: of L ids the last is predicted, never read
    supervised_tokens: int = 0      # that it learns to predict
    truncated: int = 0              # samples that were too long and lost a part
    packed: int = 0                 # samples that hold an end and what comes after it, of another document
    fully_masked: int = 0           # samples with nothing to learn
    eos_supervised: int = 0         # ends that are learned


@dataclass(frozen=True)
class Seen:
    """One sample, with all that a check may ask about it. `ends` are the ids at which generation stops."""

    sample: Sample
    loss_mask: list[bool]
    example: Any
    task: Task
    tokenizer: Tokenizer
    ends: frozenset[int]
    vocab_size: int


@dataclass(frozen=True)
class Data:
    """All samples together, for what is no matter of a single one."""

    dataset: Any
    counts: Counts
    task: Any
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Check:
    """`look` says what is wrong with a sample (or, in OF_DATA, with the data), in words and values; "" for nothing.

    share  of the samples in which it may fail
    """

    name: str
    holds: str
    remedy: str
    look: Callable[[Any], str]
    share: float = 0.0


@dataclass
class Finding:
    """Where a check failed first, what it found there, and in how many samples it did.

    index  of that first sample; None for a check of all the data
    """

    place: str
    what: str
    index: int | None
    number: int = 0


@dataclass
class Report:
    """What `examine` saw: the counts, the names of the checks that were made, and what those that failed found."""

    counts: Counts
    made: list[str]
    findings: dict[str, Finding] = field(default_factory=dict)

    def sentence(self, name: str) -> str:
        """«masked: f.jsonl:3 (sample 3 of 9) and 2 more: nothing …; what to do»."""
        found, check = self.findings[name], CHECKS[name]
        more = f" and {found.number - 1:,} more" if found.number > 1 else ""
        return f"{name}: {found.place}{more}: {found.what}; {check.remedy}, or go on all the same with --allow {name}"

    def refuse(self, allow: Collection[str] = ()) -> None:
        """Raise ValueError for the first failure that is not allowed by its name, and for names of no check."""
        if unknown := set(allow) - set(CHECKS):
            raise ValueError(f"no check is called {', '.join(sorted(unknown))}; checks are {', '.join(CHECKS)}")
        if failed := [name for name in self.findings if name not in allow]:
            also = f" (failed as well: {', '.join(failed[1:])})" if failed[1:] else ""
            raise ValueError(self.sentence(failed[0]) + also)

    def summary(self) -> str:
        """The counts in a line, and a line for each failure that was allowed."""
        counts = ", ".join(f"{value:,} {_words(name)}" for name, value in dataclasses.asdict(self.counts).items())
        passed = len(self.made) - len(self.findings)
        lines = [f"{counts}; {passed} of {len(self.made)} checks passed"]
        return "\n".join(lines + [f"allowed by --allow: {name}: {found.place}: {found.what}"
                                  for name, found in self.findings.items()])

    def table(self, allow: Collection[str] = ()) -> str:
        """The counts and the checks, a line each."""
        lines = [f"{_words(name):<18}{value:>12,}" for name, value in dataclasses.asdict(self.counts).items()]
        for name in self.made:
            found = self.findings.get(name)
            verdict = "ok" if not found else "allowed" if name in allow else "FAILED"
            text = f"{found.number:,} times, first in {found.place}: {found.what}" if found else CHECKS[name].holds
            lines.append(f"check {name:<14} {verdict:<8} {text}")
        return "\n".join(lines)


def _words(name: str) -> str:
    return name.replace("_", " ").replace("eos", "EOS")


def examine(task: Task, dataset: Any, samples: Sequence[Sample], tokenizer: Tokenizer, *, vocab_size: int) -> Report:
    """Look once at every sample, as the loss will see it. Takes 0.1 to 0.2 ms a sample; progress is shown after 2 s.

    dataset     what the samples were made of
    vocab_size  rows of the model's embedding, V
    """
    made = [check for check in OF_SAMPLES if check.name in task.checks]
    report = Report(Counts(), [name for name in CHECKS if name in task.checks])
    ends = frozenset(task.ends(tokenizer))
    started, progress = time.monotonic(), Progress(len(samples), "checking sample")
    for start in range(0, len(samples), AT_ONCE):
        some = samples[start : start + AT_ONCE]
        for number, (sample, learned) in enumerate(zip(some, task.loss_mask(some), strict=True), start):
            seen = Seen(sample, learned, sample.example, task, tokenizer, ends, vocab_size)
            _count(report.counts, seen)
            for check in made:
                if what := check.look(seen):
                    place = " ".join([sample.place, f"(sample {number + 1} of {len(samples)})"]).strip()
                    report.findings.setdefault(check.name, Finding(place, what, number)).number += 1
        if time.monotonic() - started > PATIENCE:
            progress.show(start + len(some))
    progress.clear()
    report.findings = {name: found for name, found in report.findings.items()
                       if found.number > CHECKS[name].share * len(samples)}
    for check in OF_DATA:
        if check.name in task.checks and (what := check.look(Data(dataset, report.counts, task, tokenizer))):
            report.findings[check.name] = Finding("all of the data", what, None, 1)
    return report


def _count(counts: Counts, seen: Seen) -> None:
    ids, learned = seen.sample.ids, seen.loss_mask
    supervised = sum(learned) + sum(part.targets for part in seen.sample.parts[1:])
    counts.samples += 1
    counts.tokens += seen.sample.reads
    counts.supervised_tokens += supervised
    counts.truncated += seen.sample.cut > 0 or seen.sample.lost > 0
    counts.packed += seen.task.packs and not seen.ends.isdisjoint(ids[1:-1])
    counts.fully_masked += not supervised
    counts.eos_supervised += sum(token in seen.ends for token, learn in zip(ids, learned, strict=True) if learn)


# The checks. Each says what it found, or nothing.

def _masked(seen: Seen) -> str:
    return "" if any(seen.loss_mask) else f"nothing is to be learned of its {len(seen.sample.ids)} ids"


def _vocabulary(seen: Seen) -> str:
    if min(seen.sample.ids) >= 0 and max(seen.sample.ids) < seen.vocab_size:
        return ""
    position, token = next((i, token) for i, token in enumerate(seen.sample.ids) if not 0 <= token < seen.vocab_size)
    return f"position {position} holds the id {token}, the model's vocabulary has {seen.vocab_size}"


def _doubled_bos(seen: Seen) -> str:
    """Where beginning and end are one id (GPT-2's), the end of a document and the beginning of the next may meet."""
    bos, ids = seen.tokenizer.bos_id, seen.sample.ids
    if bos is None or bos in seen.ends or ids.count(bos) < 2 or (bos, bos) not in zip(ids, ids[1:], strict=False):
        return ""
    position = list(zip(ids, ids[1:], strict=False)).index((bos, bos))
    return f"the beginning id {bos} stands at position {position} and again at {position + 1}"


def _eos(seen: Seen) -> str:
    why, what = _unlearned_end(seen)
    return what if why == "eos" else ""


def _eos_cut(seen: Seen) -> str:
    why, what = _unlearned_end(seen)
    return f"{what}: the sample was too long and lost its last {seen.sample.lost} ids" if why == "eos-cut" else ""


def _pad_is_eos(seen: Seen) -> str:
    why, what = _unlearned_end(seen)
    return f"{what}, and is the padding id {seen.tokenizer.pad_id} as well" if why == "pad-is-eos" else ""


def _unlearned_end(seen: Seen) -> tuple[str, str]:
    """Which check a sample fails whose last answer's end is not learned, and what is found in its place."""
    ids, learned = seen.sample.ids, seen.loss_mask
    if not any(learned):
        return "", ""                                               # another check's
    last = len(ids) - 1 - learned[::-1].index(True)
    if ids[last] in seen.ends:
        return "", ""
    after = ids[last + 1] if last + 1 < len(ids) else None
    if after in seen.ends:
        why = "pad-is-eos" if after == seen.tokenizer.pad_id else "eos"
        return why, f"the end id {after} at position {last + 1} is not learned"
    if seen.sample.lost and any(token in seen.ends for token, learn in zip(ids, learned, strict=True) if learn):
        return "", ""                                               # an earlier answer has taught it
    return ("eos-cut" if seen.sample.lost else "eos",
            f"the last id to be learned is {ids[last]} at position {last}, which ends nothing")


def _rejected(seen: Seen) -> str:
    """Of a pair: what of the answer beside the chosen one is learned, and that it ends, is asked as of that."""
    other = seen.sample.parts[1]
    beside = dataclasses.replace(seen, sample=other, loss_mask=other.loss_mask)
    what = _masked(beside) or _unlearned_end(beside)[1] * (not other.lost)
    return f"of the rejected answer, {what}" if what else ""


def _question(seen: Seen) -> str:
    """Looked for in samples that lost something: the beginning or the end of what was last asked must be there."""
    messages = seen.example.get("messages", ())
    first = next((i for i, message in enumerate(messages) if is_learned(message)), 0)
    asked = next((message["content"] for message in messages[:first][::-1] if message["role"] == "user"), "")
    if not (seen.sample.cut or seen.sample.lost) or not asked.strip() or not any(seen.loss_mask):
        return ""
    text = seen.tokenizer.decode(seen.tokenizer.encode(asked)).strip()
    left = seen.tokenizer.decode(seen.sample.ids[: seen.loss_mask.index(True)])
    if text[:EDGE] in left or text[-EDGE:] in left:
        return ""
    return f"the answer is learned without its question, «{text[:40]}»: {seen.sample.cut} ids before it are cut off"


def _prompt_prefix(seen: Seen) -> str:
    ids = seen.sample.ids
    for prompt in seen.task.prompts(seen.example, seen.tokenizer):
        given = prompt[: len(ids)]
        if ids[: len(given)] != given:
            position = next(i for i in range(len(given)) if ids[i : i + 1] != given[i : i + 1])
            return (f"at position {position} the sample holds {ids[position : position + 1]}, the prompt that "
                    f"generation would be given {given[position : position + 1]}")
        if len(prompt) >= len(ids):                                 # what comes later was left out
            break
    return ""


def _template(data: Data) -> str:
    """By what comes of the first examples; one that the model's own template refuses is taken at the user's word."""
    chosen, own = data.task.format(data.tokenizer), own_format(data.tokenizer)
    if own is None or chosen.template == own.template:
        return ""
    for example in islice(data.dataset, FEW):
        messages = data.task.messages(example, data.tokenizer)
        try:
            if chosen.encode(messages, data.tokenizer) != own.encode(messages, data.tokenizer):
                formats = [f"{what}{f' beginning with «{each.default_system}»' if each.default_system else ''}"
                           for what, each in ((f"'{chosen.name}'", chosen), ("the model's own template", own))]
                return f"conversations are laid out as {formats[0]}, otherwise than by {formats[1]}"
        except ValueError:
            continue
    return ""


def _document_ends(data: Data) -> str:
    documents, ends = data.task.documents(data.dataset), data.counts.eos_supervised
    return "" if ends >= documents else f"there are {documents:,} documents, and {ends:,} ends are learned"


OF_SAMPLES = (
    Check("masked", "every sample holds something to learn",
          "raise --max-length if it was cut, or remove it", _masked),
    Check("eos", "every answer that was not cut is closed by an id at which generation stops, and learns it",
          "without it the tuned model never stops: choose a --chat-format whose answers end, or mend the task", _eos),
    Check("eos-cut", "truncation left most samples an answer with its end",
          "raise --max-length: from such samples a model does not learn to stop", _eos_cut, share=0.5),
    Check("question", "every answer that is learned has the question before it",
          "raise --max-length, or let the task leave out the middle of the question", _question),
    Check("rejected", "every rejected answer is learned as the chosen one is, with its end where it was not cut",
          "raise --max-length if it was cut, or remove the pair", _rejected),
    Check("pad-is-eos", "an end that is also the padding id is learned all the same",
          "mask padding by its position instead of by its id, or give the tokenizer another pad_token", _pad_is_eos),
    Check("doubled-bos", "no text begins twice",
          "let either the template or the tokenizer write the beginning, not both", _doubled_bos),
    Check("prompt-prefix", "what generation is given before an answer is what the sample holds there, id for id",
          "encode prompt and answer so that the border between them is also one between tokens, by a template that "
          "writes before an answer what it asks with (--chat-format, --template-args)", _prompt_prefix),
    Check("vocabulary", "every id has a row in the model's embedding",
          "take the tokenizer that belongs to the model", _vocabulary),
)
OF_DATA = (
    Check("document-ends", "every document is closed by an end that is learned",
          "close each document with the tokenizer's end id (delete the token file, and it is written anew)",
          _document_ends),
    Check("template", "conversations are laid out by the model's own template",
          "leave --chat-format away", _template),
)
CHECKS = {check.name: check for check in (*OF_SAMPLES, *OF_DATA)}
