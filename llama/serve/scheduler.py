"""The thread that owns the models: it lets requests wait for their turn, advances batches, and answers calls.

    submit(request)  ->  a place in the queue  ->  Batch.advance (batch.py), again and again  ->  request.send(piece)
    call(f)          ->  f() between two steps, for whatever else needs a model

The queue is bounded: whoever comes when it is full is told so at once. What fails ends its own batch, and no other; and
whatever ends the thread, nobody is left waiting.

Try: let `cancel` leave a request in the queue; tests/test_serve_scheduler.py
(test_refuses_more_than_may_wait_and_more_texts_than_places) fails: clients that have gone take up its places.
"""

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from llama.checkpoint import PretrainedLlama
from llama.serve.batch import Batch, Request, Tally

log = logging.getLogger(__name__)

T = TypeVar("T")


class QueueFull(RuntimeError):
    """As many requests wait as may."""


class Scheduler(threading.Thread):
    """The thread that owns the models.

    places  rows of a batch;  queue  requests and calls that may wait;  chunk  tokens of prompts between two steps
    """

    def __init__(self, *, places: int = 32, queue: int = 128, chunk: int = 512,
                 cache_dtype: torch.dtype | None = None):
        super().__init__(name="scheduler", daemon=True)
        self.places, self.queue, self.chunk, self.cache_dtype = places, queue, chunk, cache_dtype
        self.tally = Tally()
        self.refused = self.steps = 0
        self.seconds = 0.0                                          # that it has worked
        self._batches: dict[int, Batch] = {}                        # by the identity of their model
        self._calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self._forgotten: weakref.WeakSet[PretrainedLlama] = weakref.WeakSet()
        self._changed = threading.Condition()                       # its lock is re-entrant, and the batches' own, too
        self._closing = False

    def submit(self, request: Request) -> None:
        """Let it wait for a place; pieces come through `request.send`.

        Raises QueueFull if too many wait, ValueError if it asks for more texts than there are places.
        """
        if request.n > self.places:
            raise ValueError(f"n is {request.n}, and this server writes {self.places} texts at once; ask for fewer")
        with self._changed:
            self._check_room()
            batch = self._batches.get(id(request.model))
            if batch is None:
                batch = self._batches[id(request.model)] = Batch(
                    request.model, places=self.places, chunk=self.chunk, cache_dtype=self.cache_dtype,
                    tally=self.tally, lock=self._changed)
            batch.waiting.append(request)
            self._changed.notify()

    def cancel(self, request: Request) -> None:
        """Nobody wants it any more: it leaves the queue at once, or the batch before its next step."""
        with self._changed:
            request.cancelled = True
            batch = self._batches.get(id(request.model))
            if batch and request in batch.waiting:
                batch.waiting.remove(request)

    def call(self, f: Callable[[], T]) -> "Future[T]":
        """Have `f` called between two steps, in the thread that owns the models. Raises QueueFull as `submit`."""
        with self._changed:
            self._check_room()
            self._calls.append((f, future := Future()))
            self._changed.notify()
        return future

    def forget(self, model: PretrainedLlama) -> None:
        """Keep nothing of a model that is out of use, once its last row has ended, whoever still asks for it."""
        with self._changed:
            self._forgotten.add(model)

    @property
    def waiting(self) -> int:
        return len(self._calls) + sum(len(batch.waiting) for batch in list(self._batches.values()))

    @property
    def running(self) -> int:
        return sum(len(batch.running) for batch in list(self._batches.values()))

    def close(self) -> None:
        """End, giving up what is under way."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self.is_alive():
            self.join()

    @torch.inference_mode()
    def run(self) -> None:
        try:
            while self._work():
                start = time.perf_counter()
                self._turn()
                self.seconds += time.perf_counter() - start
                self.steps += 1
        finally:
            self._end()

    def _turn(self) -> None:
        """One call, and a step of each batch: in a frame that ends, so that none of their models is held by a name."""
        if self._calls:
            _answer(*self._calls.popleft())
        for batch in list(self._batches.values()):
            if batch.busy:
                self._advance(batch)

    def _end(self) -> None:
        """Tell everybody that nothing comes any more, and let nobody else in."""
        error = RuntimeError("the server is about to end")
        with self._changed:
            self._closing = True
            for batch in self._batches.values():
                batch.fail(error)
            for _, future in self._calls:
                if future.set_running_or_notify_cancel():
                    future.set_exception(error)
            self._calls.clear()

    def _work(self) -> bool:
        """Wait until there is something to do; False if that is to end."""
        with self._changed:
            self._batches = {key: batch for key, batch in self._batches.items()
                             if batch.busy or batch.model not in self._forgotten}
            while not (self._calls or self._closing or any(batch.busy for batch in self._batches.values())):
                self._changed.wait()
            return not self._closing

    def _advance(self, batch: Batch) -> None:
        try:
            batch.advance()
        except Exception as error:              # a fault of ours, or of memory: the others, and the server, go on
            log.exception("a batch of %d texts is given up", len(batch.rows))
            batch.fail(error)

    def _check_room(self) -> None:
        if self._closing:
            raise RuntimeError("the server is about to end")
        if self.waiting >= self.queue:
            self.refused += 1
            raise QueueFull(f"{self.queue} requests wait already; try again in a while")


def _answer(f: Callable[[], Any], future: Future) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(f())
    except Exception as error:                                      # told to whoever asked
        future.set_exception(error)
