"""What a teacher said, in a file: asked once for each sample, then read in any order, epoch after epoch.

    {"format": "teacher cache 1", "teacher": …, "top_k": 32, "temperature": 1.0, …}⏎        what it is, as JSON
    key (16 bytes) · n, k, v, crc32 (uint32) · ids (n, k) int32 · values (n, v) float32     a sample, one behind another

A sample's key is a digest of the ids that it reads and of the rows that it learns, so neither shuffling nor packing nor
--resume changes it, and equal samples share what was said. Of a vocabulary the k likeliest ids are kept, with their
log-probabilities at the temperature of the run and that of all others together, v = k + 1 (at another temperature, that
one would be unknown); of labels all scores, and k = 0.

A file that a killed run left ends in half a sample at most, which is cut off; what is there is not asked for again. A
file that holds all is enough by itself: the teacher need not be loaded.

Try: leave the rows out of `keys_of`; tests/test_teacher_cache.py (test_property_other_rows_are_another_sample) fails.
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from llama.methods.distillation import ModelTeacher
from llama.runtime.progress import Progress
from llama.tasks.task import Batch, Sample, Task, sort_by_length, to_device
from llama.training.packing import sample_of_position

FORMAT = "teacher cache 1"
_RECORD = struct.Struct("<16sIIII")                                 # key, n, k, v, crc32
ROWS_AT_ONCE = 256                                                  # whose scores of the whole vocabulary are there


class TeacherCache:
    """The file, opened. `about` is what must be true of it, None where it may be anything: "teacher", "top_k",
    "temperature", "labels", and "rows", the V that scores of a vocabulary are cut to.

    Raises ValueError for a file that is about something else, naming what differs, and for what is no such file.
    """

    def __init__(self, path: str | Path, about: Mapping[str, Any]):
        self.path = Path(path)
        self.about = {"format": FORMAT} | dict(about)
        self.load()

    def load(self) -> None:
        """Look through the file, where there is one."""
        self.places: dict[bytes, int] = {}
        self.end = 0                                                # behind the last whole sample
        if not self.path.exists() or not self.path.stat().st_size:
            return
        with open(self.path, "rb") as file:
            line = file.readline(2**16)
            try:
                found = json.loads(line)
                whole = line.endswith(b"\n") and found["format"] == FORMAT
            except (ValueError, KeyError, TypeError):
                whole = False
            if not whole:
                raise ValueError(f"{self.path}: this is no teacher cache; give --teacher-cache another name")
            if differ := [name for name, value in self.about.items() if value is not None and found.get(name) != value]:
                raise ValueError(f"{self.path} was written with another {differ[0].replace('_', ' ')}: "
                                 f"{found.get(differ[0])!r:.80}, and this run has {self.about[differ[0]]!r:.80}; give "
                                 "the same, or --teacher-cache with another name")
            self.about, self.end = found, file.tell()
            while (record := _read(file)) is not None:
                self.places[record[0]] = self.end
                self.end = file.tell()

    def missing(self, task: Task, samples: Sequence[Sample]) -> list[int]:
        """The numbers of samples that the teacher was not asked about."""
        found = []
        for number in range(len(samples)):
            key, = keys_of(task, task.collate([samples[number]]))
            if key not in self.places:
                found.append(number)
        return found

    def fill(self, teacher: ModelTeacher, task: Task, samples: Sequence[Sample], *, batch_size: int = 8) -> None:
        """Ask about what is missing. One process; killed, it goes on where it was."""
        wanted = self.missing(task, samples)
        progress = Progress(len(wanted), "asking the teacher")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.end:
            self.path.touch()
        with open(self.path, "r+b") as file:
            if not self.end:
                file.write(json.dumps(self.about).encode() + b"\n")
                self.end = file.tell()
            file.truncate(self.end)
            file.seek(self.end)
            some_samples = [samples[i] for i in wanted]
            for number, some in enumerate(sort_by_length(some_samples, batch_size), start=1):
                batch = to_device(task.collate([some_samples[i] for i in some]), teacher.model.device)
                for key, ids, values in _answers(teacher, task, batch, self.about):
                    if key not in self.places:
                        self.places[key], record = file.tell(), _pack(key, ids, values)
                        file.write(record)
                file.flush()
                progress.show(min(number * batch_size, len(wanted)))
            self.end = file.tell()
        progress.clear()

    def read(self, keys: Sequence[bytes]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids, values) of samples, (n, k) each. Raises ValueError for one that is not there."""
        found = []
        with open(self.path, "rb") as file:
            for key in keys:
                if key not in self.places:
                    raise ValueError(f"{self.path} lacks a sample of this run: give --teacher, too, and it is asked "
                                     "about those that are missing")
                file.seek(self.places[key])
                record = _read(file)
                if record is None:
                    raise ValueError(f"{self.path} is damaged: a sample in it is not what was written; delete it")
                found.append(record[1:])
        return found


class CachedTeacher:
    """A teacher that says what the file has."""

    held = 0

    def __init__(self, cache: TeacherCache, task: Task):
        self.cache, self.task = cache, task

    def rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        found = self.cache.read(keys_of(self.task, batch))
        ids, values = (torch.from_numpy(np.concatenate(each)) for each in zip(*found, strict=True))
        device = batch["tokens"].device
        return ids.long().to(device), values.to(device)             # (N, k), (N, v)

    def log_probs(self, scores: Tensor, targets: Tensor, ids: Tensor, values: Tensor, *, temperature: float
                  ) -> tuple[Tensor, Tensor]:
        if not ids.shape[1]:                                        # labels
            p, q = (self.task.log_probs(each / temperature, targets) for each in (values, scores))
            return p, q
        q = with_rest(scores[:, : self.cache.about["rows"]] / temperature, ids)
        return values[:, : q.shape[1]], q


def with_rest(z: Tensor, ids: Tensor) -> Tensor:
    """log softmax of logits z (n, V) at ids (n, k), and of all others together: (n, k + 1), or (n, V) where k is V."""
    total = z.logsumexp(1, keepdim=True)
    kept = z.gather(1, ids) - total
    if ids.shape[1] == z.shape[1]:
        return kept
    return torch.cat([kept, z.scatter(1, ids, -torch.inf).logsumexp(1, keepdim=True) - total], 1)


def keys_of(task: Task, batch: Batch) -> list[bytes]:
    """A digest for each sample of a batch, padded or packed: the ids up to its last row, and which rows are learned."""
    b, t = (each.cpu() for each in task.rows(batch))
    sample = sample_of_position(batch).cpu()
    tokens, owner = batch["tokens"].cpu(), sample[b, t]
    keys = []
    for number in range(int(sample.max()) + 1):
        places = (sample == number).nonzero()                       # (T, 2)
        first, rows = places[0], t[owner == number] - places[0, 1]
        end = int(rows.max()) + 1 if len(rows) else 0
        ids = tokens[first[0], first[1] : first[1] + end]
        keys.append(sha256(ids.numpy().tobytes() + b"|" + rows.numpy().tobytes()).digest()[:16])
    return keys


@torch.no_grad()
def _answers(teacher: ModelTeacher, task: Task, batch: Batch, about: Mapping[str, Any]
             ) -> Iterator[tuple[bytes, Tensor, Tensor]]:
    """(key, ids, values) of each sample of a batch."""
    states, = teacher.rows(batch)
    kept = [_kept(teacher.scores(some), about) for some in states.split(ROWS_AT_ONCE)]
    ids, values = (torch.cat(each).cpu() for each in zip(*kept, strict=True))
    b, t = task.rows(batch)
    counts = torch.bincount(sample_of_position(batch)[b, t].cpu(), minlength=len(batch["tokens"])).tolist()
    yield from zip(keys_of(task, batch), ids.split(counts), values.split(counts), strict=True)


def _kept(scores: Tensor, about: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    if about["labels"]:
        return scores.new_empty(len(scores), 0, dtype=torch.int64), scores
    z = scores[:, : about["rows"]] / about["temperature"]
    ids = z.topk(min(about["top_k"], z.shape[1])).indices
    return ids, with_rest(z, ids)


def _pack(key: bytes, ids: Tensor, values: Tensor) -> bytes:
    body = ids.numpy().astype("<i4").tobytes() + values.numpy().astype("<f4").tobytes()
    return _RECORD.pack(key, len(values), ids.shape[1], values.shape[1], zlib.crc32(body)) + body


def _read(file: BinaryIO) -> tuple[bytes, np.ndarray, np.ndarray] | None:
    """The next sample; None at the end, or before what is not whole."""
    head = file.read(_RECORD.size)
    if len(head) < _RECORD.size:
        return None
    key, n, k, v, sum_of_body = _RECORD.unpack(head)
    body = file.read(4 * n * (k + v))
    if len(body) < 4 * n * (k + v) or zlib.crc32(body) != sum_of_body:
        return None
    return key, np.frombuffer(body, "<i4", n * k).reshape(n, k), np.frombuffer(body, "<f4", n * v, 4 * n * k).reshape(
        n, v)
