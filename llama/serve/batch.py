"""Continuous batching: requests join a running batch and leave it between two steps, and none waits for another's end.

    waiting -> [ prompts, a chunk at a time -> join -> draw -> send -> leave -> step ]* -> last piece

Each model has a batch of left-padded rows (generation.py) with so many places. A row that ended leaves its place to a
prompt that was read meanwhile, written over its keys and values; what is padding in every row is cut off when the cache
is full. A long prompt is read in chunks, between which all others go on; what prompts begin with alike is read once.
Every row draws from its own generator, so that a request gets the text that `generate` writes for it alone (but for
ties within the rounding of float arithmetic).

Source: Yu et al., Orca (OSDI 2022), section 3.2, iteration-level scheduling.

Try: leave out the padding in `BatchDecoder.replace` (generation.py); tests/test_serve_scheduler.py
(test_two_ways_requests_that_join_and_leave_get_the_texts_of_generate) fails.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llama.checkpoint import PretrainedLlama
from llama.decoding.prefix_cache import PrefixCache
from llama.generation import (
    MIN_SHARED_PREFIX,
    BatchDecoder,
    TextRow,
    check_options,
    clamp_max_new_tokens,
    common_prefix_length,
)
from llama.sampling import SamplingConfig, sample, tokens_seen
from tokenizer.chat import ChatFormat

log = logging.getLogger(__name__)

SLACK = 128  # slots that a cache has more than it needs: so many steps until it is copied to a larger one


@dataclass(frozen=True)
class TokenLogprob:
    """How likely the model found a token that was drawn, and those that it found likeliest, before any filter."""

    token: int
    logprob: float
    top: list[tuple[int, float]]                                    # the likeliest first


@dataclass(frozen=True)
class Piece:
    """What a step added to one text of a request. The last piece of a text has its `finish_reason`."""

    index: int
    text: str
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str = ""
    tokens: int = 0                                                 # of the whole text, in the last piece


@dataclass(eq=False)
class Request:
    """A prompt to continue `n` times. Sample i draws with the seed `seed + i`, as in `generate`.

    send          called from the scheduler's thread with each Piece; with an exception, once, where it fails
    top_logprobs  so many alternatives come with each token; None for no logprobs at all
    cancelled     set by whoever does not want it any more: its rows end without a word

    Raises ValueError for a prompt that leaves no room in the context or holds what is no token, and for bad options.
    """

    model: PretrainedLlama
    prompt: list[int]
    send: Callable[[Piece | Exception], None]
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    max_new_tokens: int = 256
    n: int = 1
    seed: int = 0
    stop: Sequence[str] = ()
    chat_format: ChatFormat | None = None
    ignore_eos: bool = False
    top_logprobs: int | None = None
    cancelled: bool = False

    def __post_init__(self) -> None:
        check_options([self.prompt], max_new_tokens=self.max_new_tokens, num_samples=self.n, stop=self.stop)
        self.limit = clamp_max_new_tokens(self.model, self.prompt, self.max_new_tokens)
        if (largest := max(self.prompt)) >= (known := self.model.tokenizer.vocab_size):
            raise ValueError(f"the prompt holds the token {largest}, and the vocabulary ends before {known}; give ids "
                             "of this model's own tokenizer")
        self.slots = len(self.prompt) + self.limit

    def fail(self, error: Exception) -> None:
        if self.cancelled:
            return
        self.cancelled = True
        try:
            self.send(error)
        except Exception:                                           # the others are to be told all the same
            log.exception("a request could not be told that it failed")


class RequestRow(TextRow):
    """One text of a request, and what of it is still to be sent."""

    def __init__(self, request: Request, index: int):
        self.request, self.index = request, index
        self._shown: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        super().__init__(request.prompt, tokenizer=request.model.tokenizer, chat_format=request.chat_format,
                         limit=request.limit, stop=request.stop, ignore_eos=request.ignore_eos,
                         generator=torch.Generator().manual_seed(request.seed + index), on_text=self._shown.append)
        self._seen = tokens_seen([request.prompt], request.model.tokenizer.vocab_size, request.sampling,
                                 request.model.device)

    @property
    def ended(self) -> bool:
        return bool(self.finish_reason) or self.request.cancelled

    def draw(self, logits: Tensor) -> None:
        """Choose the next token from logits (1, V), and take it."""
        request = self.request
        token = int(sample(logits, request.sampling, self._seen, [self.generator]))
        if self._seen is not None:
            self._seen[0, token] = True
        kept = len(self.token_ids)
        self.push(token)
        if request.top_logprobs is not None and len(self.token_ids) > kept:
            self._logprobs.append(_logprob(logits[0], token, request.top_logprobs))

    def send(self) -> None:
        """Send what is new, if anything can be shown yet."""
        if self._shown or self.finish_reason:
            self.request.send(Piece(self.index, "".join(self._shown), self._logprobs, self.finish_reason,
                                    len(self.token_ids) if self.finish_reason else 0))
            self._shown.clear()
            self._logprobs = []


def _logprob(logits: Tensor, token: int, top: int) -> TokenLogprob:
    logprobs = logits.float().log_softmax(-1)
    values, ids = logprobs.topk(min(top, len(logprobs)))
    return TokenLogprob(token, float(logprobs[token]), list(zip(ids.tolist(), values.tolist(), strict=True)))


class Prefill:
    """Prompts on their way into a batch: left-padded together, and read a chunk at a time."""

    def __init__(self, requests: Sequence[Request]):
        self.requests = requests
        self.decoder: BatchDecoder | None = None                    # until it has begun
        self.chunks: deque[Tensor] = deque()
        self.logits = torch.empty(0)

    def begin(self, chunk: int, cache_dtype: torch.dtype | None, begun: PrefixCache, common: int) -> None:
        """`begun` has read the first `common` ids of all prompts."""
        model, longest = self.requests[0].model, max(len(request.prompt) for request in self.requests)
        padding = [longest - len(request.prompt) for request in self.requests]
        tokens = torch.tensor([[0] * blank + request.prompt
                               for blank, request in zip(padding, self.requests, strict=True)])
        if common:
            self.decoder = begun.decoder.expand(padding, longest)
        else:
            self.decoder = BatchDecoder(model, padding, longest, vocab_size=model.tokenizer.vocab_size,
                                        cache_dtype=cache_dtype)
        self.chunks.extend(tokens[:, common:].to(model.device).split(chunk, dim=1))

    def read_chunk(self) -> None:
        self.logits = self.decoder.step(self.chunks.popleft())      # (requests, V)

    def rows(self) -> tuple[list[RequestRow], BatchDecoder, Tensor]:
        """A row for each sample of each request, their decoder, and the logits (rows, V) of their first tokens."""
        owners = [i for i, request in enumerate(self.requests) for _ in range(request.n)]
        if len(owners) > len(self.requests):
            self.decoder.select(owners)
        rows = [RequestRow(request, index) for request in self.requests for index in range(request.n)]
        return rows, self.decoder, self.logits[owners]


@dataclass
class Tally:
    """What has been done so far: tokens of prompts that were read, padding included, and tokens that were written."""

    read: int = 0
    generated: int = 0


class Batch:
    """The rows of one model that run together, and the requests that wait for a place among them.

    places  how many rows there may be;  chunk  tokens of prompts that are read between two steps
    lock    that whoever puts requests into `waiting`, or takes them out, holds meanwhile
    """

    def __init__(self, model: PretrainedLlama, *, places: int = 32, chunk: int = 512,
                 cache_dtype: torch.dtype | None = None, tally: Tally | None = None,
                 lock: AbstractContextManager | None = None):
        self.model, self.places, self.chunk, self.cache_dtype = model, places, chunk, cache_dtype
        self.tally = Tally() if tally is None else tally
        self.lock = threading.Lock() if lock is None else lock
        self.waiting: deque[Request] = deque()
        self.prefill: Prefill | None = None
        self.rows: list[RequestRow] = []                            # those that ended too, until their place is taken
        self.decoder: BatchDecoder | None = None
        self.logits = torch.empty(0)                                # (rows, V), to draw each row's next token from
        self._begun = PrefixCache(model, slots=1, chunk=chunk, vocab_size=model.tokenizer.vocab_size,
                                  cache_dtype=cache_dtype)
        self._before: list[list[int]] = []                          # the prompt that was read last
        config = model.config
        self._contiguous = min(config.rope_stable_length, config.sliding_window or config.rope_stable_length)

    @property
    def running(self) -> list[int]:
        return [i for i, row in enumerate(self.rows) if not row.ended]

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.prefill or self.rows)

    def advance(self) -> None:
        """Read a chunk of prompts, let those that are read join, and give every row its next token."""
        if self.prefill is None and (requests := self._next()):
            self.prefill = Prefill(requests)
        if self.prefill:
            self._read()
        for i in self.running:
            self._draw(i)
        running = self.running
        if len(running) < len(self.rows) and not (running and (self.waiting or self.prefill)):
            self._keep(running)                                     # else their places are about to be taken
        if running:
            self._step()

    def fail(self, error: Exception) -> None:
        """Give up everything that is under way, and what waits, and tell all of them."""
        with self.lock:
            waiting = list(self.waiting)
            self.waiting.clear()
        reading = self.prefill.requests if self.prefill else []
        for request in (*(row.request for row in self.rows), *reading, *waiting):
            request.fail(error)
        self.rows, self.decoder, self.prefill = [], None, None

    def _next(self) -> list[Request]:
        """Who is to join: the first that wait, as far as there are places, and prompts fit into a chunk with padding.

        A text that may outgrow what the cache holds unbroken (sliding windows, dynamic NTK) cannot be moved beside
        others: it runs alone.
        """
        taken: list[Request] = []
        running = self.running
        free, longest = self.places - len(running), 0
        if any(self._outgrows(self.rows[i].request) for i in running):
            return []
        with self.lock:                                             # a client may hang up between a look and a move
            while self.waiting:
                request = self.waiting[0]
                longest = max(longest, len(request.prompt))
                crowded = bool(running or taken)
                if request.n > free or (crowded and self._outgrows(request)) or \
                        (taken and (len(taken) + 1) * longest > self.chunk):
                    break
                taken.append(self.waiting.popleft())
                free -= request.n
                if self._outgrows(request):
                    break
        return taken

    def _outgrows(self, request: Request) -> bool:
        return request.slots > self._contiguous

    def _read(self) -> None:
        prefill = self.prefill
        if all(request.cancelled for request in prefill.requests):
            self.prefill = None
            return
        if prefill.decoder is None:
            prefill.begin(self.chunk, self.cache_dtype, self._begun, self._read_common(prefill.requests))
        self.tally.read += prefill.chunks[0].numel()
        prefill.read_chunk()
        if not prefill.chunks:
            self._join(*prefill.rows())
            self.prefill = None                                     # not before: who joins is told of a failure, too

    def _read_common(self, requests: Sequence[Request]) -> int:
        """How many ids all these prompts, and the one before them, begin with: a system message, say, or the turns of
        a chat so far. They are read once and remembered; where that would not pay, 0."""
        prompts = [request.prompt for request in requests]
        before, self._before = self._before, [prompts[-1]]
        known = common_prefix_length([self._begun.ids, prompts[0]])
        common = min(common_prefix_length([*before, *prompts]), min(map(len, prompts)) - 1, known + self.chunk)
        if common < MIN_SHARED_PREFIX or self._outgrows(requests[0]):
            return 0
        if known < common:
            self._begun.read(prompts[0][:common])
            self.tally.read += common - known
        self._begun.truncate(common)
        return common

    def _join(self, rows: list[RequestRow], decoder: BatchDecoder, logits: Tensor) -> None:
        ended = [i for i, row in enumerate(self.rows) if row.ended][: len(rows)]
        if self.decoder and len(ended) == len(rows) and decoder.cache.length <= self.decoder.cache.length:
            self.decoder.replace(ended, decoder)
            self.logits[ended] = logits
            for i, row in zip(ended, rows, strict=True):
                self.rows[i] = row
            return
        self._keep(self.running)
        if self.decoder:
            length = max(self.decoder.cache.length, decoder.cache.length)
            decoder = self.decoder.stack([decoder], self._room(length))
            logits = torch.cat([self.logits, logits])
        self.rows, self.decoder, self.logits = self.rows + rows, decoder, logits

    def _keep(self, rows: list[int]) -> None:
        """Go on with these rows alone, without slots that are padding in all of them."""
        if not rows:
            self.rows, self.decoder = [], None
        else:
            self.decoder.select(rows)
            self.rows, self.logits = [self.rows[i] for i in rows], self.logits[rows]

    def _draw(self, i: int) -> None:
        row = self.rows[i]
        if row.ended:                                               # since another text of its request has failed
            return
        try:
            row.draw(self.logits[i : i + 1])
        except RuntimeError as error:                               # this row's logits are not finite
            row.request.fail(error)
            return
        self.tally.generated += 1
        row.send()

    def _step(self) -> None:
        cache = self.decoder.cache
        if cache.length == cache.max_length:
            self._keep(self.running)
            cache.reserve(self._room(cache.length))
        tokens = [0 if row.ended else row.token_ids[-1] for row in self.rows]
        self.logits = self.decoder.step(torch.tensor(tokens, device=self.model.device)[:, None])

    def _room(self, length: int) -> int:
        """How many slots to make for texts that have `length` of them now."""
        return min(length + SLACK, max([self._contiguous, *(row.request.slots for row in self.rows)]))
