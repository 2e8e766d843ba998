"""Many texts: a batch at a time, each record written as soon as it and all before it are there. What is done is kept.

    texts 0 … 15   ->  a batch  ->  0, 1, 2 …     one JSON object a line, flushed
    texts 16 … 31  ->  a batch  ->  16, 17 …      killed here: 0 … 15 are kept, and what has come of this batch in order

What comes of a batch depends on its prompts, their seeds and the options, and on nothing that ran before it. So a job
that goes on runs the batch that it was stopped in anew, from its first text on, writes what is missing of it, and ends
with the file that it would have written at once, to the byte, but for speeds. Other batches would be other roundings,
and where two tokens are almost equally likely, another text.

Try: in `run_in_batches`, begin with the first text that is missing; tests/test_generate_records.py
(test_property_a_resumed_job_runs_the_batches_of_the_whole_one) fails, though almost all texts stay the same.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from llama.checkpoint import PretrainedLlama, fingerprint
from llama.commands.prompts import Prompt
from llama.decoding.speculative import SpeculativeCompletion, draft_stats
from llama.generation import Completion
from llama.runtime import run_lock
from llama.runtime.interrupt import signals_raise
from llama.runtime.progress import Progress
from tokenizer.chat import ChatFormat
from weights.formats.atomic_write import atomic_file
from weights.formats.paths import resolve

# Flags that say where prompts come from and records go, how fast, and in how much memory. All others shape the texts.
BESIDE_THE_TEXTS = ("prompt", "prompt_file", "skip_bad", "json", "output", "resume", "overwrite", "batch_size",
                    "device", "compile", "readable", "help_all")
BY_CONTENT = ("model", "adapter", "draft")                          # what is in these files counts, not their names

Write = Callable[..., Any]              # (ids, seed=…, on_end=…): generation.generate, or one of its siblings
Emit = Callable[[int, Completion], None]


# ---- where records are kept ------------------------------------------------------------------------------------------


def settings_of(arguments: Namespace, model: PretrainedLlama, draft: PretrainedLlama | None,
                chat_format: ChatFormat | None) -> dict[str, Any]:
    """What a job that goes on must have in common with the one before: flags, and in place of names what they meant."""
    flags = {name: value for name, value in vars(arguments).items() if name not in BESIDE_THE_TEXTS}
    meant = {"chat_format": chat_format and [chat_format.name, chat_format.template],
             "dtype": str(model.dtype).removeprefix("torch."),
             "model": fingerprint(model.source), "draft": fingerprint(draft.source) if draft else "",
             "adapter": _adapter_fingerprint(resolve(arguments.adapter, "adapters")) if arguments.adapter else ""}
    return json.loads(json.dumps(flags | meant))                    # as they are when they come back from a file


def _adapter_fingerprint(folder: Path) -> str:
    files = sorted(path for path in folder.glob("adapter_*") if path.is_file())
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)).hexdigest()


class RecordFile:
    """OUTPUT, an object a line; and OUTPUT.job beside it, with the lock of a job at work and the settings of the last.

    A line counts once its line feed is there: what a kill cut short is dropped when the job goes on.
    """

    def __init__(self, path: Path, *, resume: bool, overwrite: bool, prompt_file: str | None):
        """Take the name. Raises ValueError where another job has it, or where something is that nobody gave up."""
        if path.exists() and prompt_file and Path(prompt_file).exists() and path.samefile(prompt_file):
            raise ValueError(f"--output {path} is the file of the prompts; give another --output")
        if path.exists() and not path.is_file():
            raise ValueError(f"--output {path} is no file that can be resumed; give the name of a new one")
        run_lock.take(path, "job")
        if path.exists() and path.stat().st_size and not (resume or overwrite):
            raise ValueError(f"{path} exists already; give --resume to go on where it ends, --overwrite to start anew, "
                             "or another --output")
        self.path, self.resume, self.overwrite = path, resume, overwrite
        self.settings = Path(f"{path}.job", "settings.json")
        self.done = 0                                               # records that were there when the file was opened
        self.file: BinaryIO | None = None

    def open(self, prompts: Sequence[Prompt], settings: dict[str, Any], *, num_samples: int) -> None:
        """Make ready for the next record.

        Raises ValueError, naming the line, where those that are there are not of the first texts of this job.
        """
        self.done, end = self._records(prompts, num_samples) if self.resume and self.path.exists() else (0, 0)
        if self.done:
            self._check(settings)
            print(f"{self.path} holds {self.done} of {len(prompts) * num_samples} records", file=sys.stderr)
        self.file = open(self.path, "ab", buffering=0)
        self.file.truncate(end)
        if not self.done:
            with atomic_file(self.settings) as file:
                file.write(json.dumps(settings, ensure_ascii=False, indent=1).encode())

    def write(self, record: dict[str, Any]) -> None:
        """Add a line. Raises RuntimeError if the disk is full or broken."""
        line = memoryview(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        try:
            while line:
                line = line[self.file.write(line) :]
        except OSError as error:
            raise RuntimeError(f"{self.path} cannot be written: {error.strerror}") from None

    def count(self) -> int:
        """How many records there are, by the file itself: whoever breaks into `write` leaves no wrong number."""
        with open(self.path, "rb") as file:
            return sum(line.endswith(b"\n") for line in file)

    def close(self) -> None:
        """Put it on the disk, and let go of the name."""
        if self.file:
            with contextlib.suppress(OSError):                      # said already, if the disk is full
                os.fsync(self.file.fileno())
            self.file.close()
        run_lock.release(self.path, "job")

    def _records(self, prompts: Sequence[Prompt], num_samples: int) -> tuple[int, int]:
        """How many whole lines there are, each checked to be of its prompt, and how many bytes they take."""
        number = end = 0
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return number - 1, end
                if number > len(prompts) * num_samples:
                    raise ValueError(f"{self.path}:{number}: this job has {number - 1} texts, and here is a record "
                                     f"more; {_OTHERWISE}")
                self._check_record(number, line, prompts[(number - 1) // num_samples])
                end += len(line)
        return number, end

    def _check_record(self, number: int, line: bytes, prompt: Prompt) -> None:
        try:
            given = json.loads(line)["prompt"]
        except (ValueError, RecursionError, KeyError, TypeError):
            raise ValueError(f"{self.path}:{number}: this is no record of a text; {_OTHERWISE}") from None
        if given != prompt.text:
            raise ValueError(f"{self.path}:{number}: this record is of the prompt {given!r:.50}, and the job has "
                             f"{prompt.text!r:.50} there ({prompt.place}); {_OTHERWISE}")

    def _check(self, settings: dict[str, Any]) -> None:
        try:
            before = dict(json.loads(self.settings.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            raise ValueError(f"{self.settings} cannot be read, so nobody knows by which options {self.path} was "
                             "written; give another --output, or --overwrite to start anew") from None
        changed = [name for name in settings | before if settings.get(name) != before.get(name)]
        if changed:
            raise ValueError(f"{self.path} was written with {', '.join(_given(name, before) for name in changed)}; "
                             "give the same to resume, --overwrite to start anew, or another --output")


_OTHERWISE = "give the prompts of before, --overwrite to start anew, or another --output"


def _given(name: str, before: dict[str, Any]) -> str:
    flag, value = "--" + name.replace("_", "-"), before.get(name)
    if name in BY_CONTENT and value:
        return f"another {flag}"
    if value in (None, False, "", []):
        return f"no {flag}"
    return flag if value is True else " ".join(f"{flag} {each}" for each in (value if isinstance(value, list)
                                                                             else [value]))


# ---- what is said about a job ----------------------------------------------------------------------------------------


class Summary:
    """What has been written in this run, for its last line: sums alone, since ten thousand texts are not to be held."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.texts = self.tokens = self.cut = 0
        self.guessed: list[SpeculativeCompletion] = []              # without prompts, texts and ids

    def add(self, completion: Completion) -> None:
        self.texts += 1
        self.tokens += len(completion.token_ids)
        self.cut += completion.finish_reason == "length"
        if isinstance(completion, SpeculativeCompletion):           # of the ids their number is all that is asked for
            numbers = range(len(completion.token_ids))
            self.guessed.append(dataclasses.replace(completion, prompt="", text="", token_ids=numbers))

    @property
    def speed(self) -> float:
        return self.tokens / (time.perf_counter() - self.started)

    def __str__(self) -> str:
        if not self.texts:
            return "nothing was left to write"
        line = f"{self.tokens} tokens in {time.perf_counter() - self.started:.1f} s ({self.speed:.1f} a second)"
        if self.guessed:
            line += f"; {draft_stats(self.guessed)}"
        return line + (f"; {self.cut} of {self.texts} texts cut off, see --max-new-tokens" if self.cut else "")


@contextlib.contextmanager
def _kept(records: RecordFile | None, progress: Progress, summary: Summary) -> Iterator[None]:
    """If the body is broken off, by a signal or a failure, say what is kept and how to go on."""
    try:
        with signals_raise():
            yield
    except BaseException as error:
        progress.clear()
        if records:
            print(f"{records.count()} of {progress.total} records are in {records.path}; to go on, give the same "
                  f"command with --resume{' in place of --overwrite' if records.overwrite else ''}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt) and progress.total > 1:
            print(f"interrupted after {summary.texts} of {progress.total} texts; a job with --output FILE goes on with "
                  "--resume", file=sys.stderr)
        raise
    finally:
        progress.clear()
        if records:
            records.close()


# ---- the job ---------------------------------------------------------------------------------------------------------


class InOrder:
    """Passes texts on in order, from number `next` on, whatever the order in which they end."""

    def __init__(self, emit: Emit, next: int):
        self.emit, self.next = emit, next
        self.waiting: dict[int, Completion] = {}                    # for one before them

    def __call__(self, text: int, completion: Completion) -> None:
        self.waiting[text] = completion
        while self.next in self.waiting:
            self.emit(self.next, self.waiting.pop(self.next))
            self.next += 1


def run_in_batches(write: Write, prompts: Sequence[Sequence[int]], emit: Emit, *, num_samples: int, batch_size: int,
                   seed: int, done: int = 0) -> None:
    """Let `write` continue every prompt `num_samples` times, and `emit` (number, completion) in order, from `done` on.

    Text i is of prompt i // num_samples and draws with seed + i, as in generation.generate.
    """
    texts = len(prompts) * num_samples
    in_order = InOrder(emit, done)
    for start in range(done // batch_size * batch_size if done < texts else texts, texts, batch_size):
        def end(row: int, completion: Completion, start: int = start) -> None:
            if start + row >= done:                                 # else it is there already
                in_order(start + row, completion)

        write([prompts[i // num_samples] for i in range(start, min(start + batch_size, texts))],
              seed=seed + start, on_end=end)


def run_job(write: Write, prompts: Sequence[Prompt], show: Emit, *, records: RecordFile | None, num_samples: int,
            batch_size: int, seed: int) -> Summary:
    """All texts, into `records`, or else to `show`, each as soon as it and all before it are there."""
    done, texts = records.done if records else 0, len(prompts) * num_samples
    progress, summary = Progress(texts, "text", before=done), Summary()

    def emit(number: int, completion: Completion) -> None:
        completion = dataclasses.replace(completion, prompt=prompts[number // num_samples].text)
        progress.clear()
        summary.add(completion)                                     # who sees the text may end the job at once
        if records:
            records.write(dataclasses.asdict(completion))
        else:
            show(number, completion)
        if number + 1 < texts:
            progress.show(number + 1, f"{summary.speed:.1f} tokens/s")

    with _kept(records, progress, summary):
        run_in_batches(write, [prompt.ids for prompt in prompts], emit, num_samples=num_samples, batch_size=batch_size,
                       seed=seed, done=done)
    return summary
