"""What a sample looks like to the model: which ids it reads, and which of them it is to learn.

Most failures of tuning are visible here before they cost an hour: an answer that is masked, an end token that is not
learned, a doubled beginning, a template printed as plain letters. llama/training/data_checks.py looks for them in all
samples.

Try: tune on examples/identity.jsonl and see in this list that <|im_end|> is learned; tests/test_inspect_samples.py
(test_property_what_is_marked_is_what_is_learned) says that the marks are the targets of the batch.
"""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any, TextIO

from llama.runtime.progress import pad_to_width
from llama.runtime.terminal import bare, visible
from llama.tasks.task import Sample, Task
from llama.training.data_checks import Report, examine
from tokenizer.base import Tokenizer

GREEN, PLAIN = "\x1b[32m", "\x1b[0m"
NOTE = 40                                                           # cells before what a head of labels is to say
PIECE = 14                                                          # cells of a piece; longer ones push what follows


def inspect_samples(task: Task, dataset: Any, tokenizer: Tokenizer, *, vocab_size: int, show: int,
                    allow: Collection[str] = (),
          as_json: bool = False) -> None:
    """Print the first `show` samples id by id, then counts and checks, then the samples where checks failed first.

    as_json  this to stderr, and to stdout one line {"data": counts, "checks": {name: what failed, or null}}

    Raises ValueError for a check that failed and is not allowed by name, and for a negative `show`.
    """
    if show < 0:
        raise ValueError(f"--inspect {show}: a number of samples to show; 0 shows none of them, and checks all")
    out = sys.stderr if as_json else sys.stdout
    samples = task.samples(dataset, tokenizer)
    for sample in _as_learned(task, samples[:show]):
        for part in sample.parts:
            print(show_sample(part, tokenizer, colour=in_colour(out)), end="\n\n", file=bare(out))
    report = examine(task, dataset, samples, tokenizer, vocab_size=vocab_size)
    print(report.table(allow), file=out)
    failed = {found.index for found in report.findings.values() if found.index is not None}
    for index in sorted(index for index in failed if index >= show):
        print("\n" + show_sample(_as_learned(task, [samples[index]])[0], tokenizer, colour=in_colour(out)),
              file=bare(out))
    if as_json:
        print(json.dumps(_record(report)))
    report.refuse(allow)


def show_sample(sample: Sample, tokenizer: Tokenizer, *, colour: bool, most: int = 0) -> str:
    """One sample, a line an id: position, id, ● if it is learned, its piece; then their numbers.

    Behind the last part of a character that is spelt by several ids stands the character. Of a sample longer than
    `most` lines, the middle is left out; 0 shows all.
    """
    characters = tokenizer.stream()
    lines = [visible(f"{sample.place or 'a sample'}, as the model sees it (● is learned, · is only read):")]
    if sample.cut:
        lines.append(f"  … {sample.cut} ids of what stands before the answer are left out: the sample is too long")
    for position, token in enumerate(sample.ids):
        known = 0 <= token < tokenizer.vocab_size
        piece = spelled(tokenizer.token_bytes(token)) if known else "(not in the vocabulary)"
        text = characters.push(token).strip() if known else ""
        if 0 < most < len(sample.ids) and most // 2 <= position < len(sample.ids) - most // 2:
            if position == most // 2:
                lines.append(f"  … {len(sample.ids) - 2 * (most // 2)} more …")
            continue
        learned = position >= sample.shift and sample.loss_mask[position]  # the first has nothing to be predicted from
        line = f"{position:6} {token:7} {'●' if learned else '·'} "
        if _BROKEN.search(piece) and text and text.isprintable():   # an escape sequence in the data stays spelt out
            line += f"{pad_to_width(piece, PIECE)}  {text}"
        else:
            line += piece
        if note := sample.note(position):
            line = f"{pad_to_width(line, NOTE)}  {visible(note)}"
        lines.append(f"{GREEN}{line}{PLAIN}" if colour and learned else line)
    if sample.lost:
        lines.append(f"  … {sample.lost} ids after these are cut off: the sample is too long")
    lines.append(f"{len(sample.ids)} ids: {sample.targets} learned, {len(sample.ids) - sample.targets} only read")
    return "\n".join(lines)


_BROKEN = re.compile(r"<[0-9A-F]{2}( [0-9A-F]{2})*>")


def spelled(data: bytes) -> str:
    r"""Bytes in a form to look at: a space is ▁, a line end \n (a backslash \\), part of a character <E4 BD>."""
    text = data.decode(errors="surrogateescape").replace(" ", "▁")
    text = re.sub("[\udc80-\udcff]+", lambda found: f"<{_bytes(found[0]).hex(' ').upper()}>", text)
    return "".join(c if c.isprintable() and c != "\\" else repr(c)[1:-1] for c in text)


def _bytes(escaped: str) -> bytes:
    return escaped.encode(errors="surrogateescape")


def in_colour(stream: TextIO) -> bool:
    """Whether someone looks who wants colour: a terminal, and no NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def _as_learned(task: Task, samples: Sequence[Sample]) -> list[Sample]:
    """The samples with marks read off their batch, where the loss reads them."""
    marks = task.loss_mask(samples) if samples else []
    return [dataclasses.replace(sample, loss_mask=learned) for sample, learned in zip(samples, marks, strict=True)]


def _record(report: Report) -> dict[str, Any]:
    failed = {name: f"{found.place}: {found.what}" for name, found in report.findings.items()}
    return {"data": dataclasses.asdict(report.counts), "checks": {name: failed.get(name) for name in report.made}}
