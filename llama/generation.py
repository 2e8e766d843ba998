"""Prompts in, text out: prefill, then one token a step through the KV cache until each row has said its last word.

    prompts  ->  left-padded passes of like lengths  ->  prefill in chunks
             ->  one batch  ->  [ sample -> push -> drop rows that ended -> step ]*

Prompts of different length share a batch: the short ones get padding on their left, which a mask hides and positions
do not count, so that every row reads as if it were alone. sampling.py chooses the tokens, chat_session.py keeps a chat.

Try: leave out the mask in `BatchDecoder.read`; test_generation.py (test_two_ways_a_ragged_batch_equals_single_runs)
fails, while the longest row still reads well. Leaving out the positions instead changes no text, since rotary attention
sees distances alone.
"""

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llama.cache import KVCache
from llama.heads import require_lm_head
from llama.masks import padding_mask
from llama.model import Llama
from llama.sampling import SamplingConfig, pop_config, sample, tokens_seen
from llama.stop_strings import StopStrings
from tokenizer.base import Tokenizer
from tokenizer.chat import ChatFormat, stop_ids

PASS_OVERHEAD = 64  # tokens that take as long as what a pass costs beside its tokens, above all reading all weights
MIN_SHARED_PREFIX = 16  # ids that prompts begin with alike; with fewer, a pass of their own costs more than it saves
PromptReader = Callable[[Sequence[Sequence[int]], int], tuple[Any, Tensor]]  # prompts, slots: decoder, logits (B, V)


@dataclass(frozen=True)
class Completion:
    """What came of one prompt; field for field an object of `--json`."""

    prompt: str
    text: str                   # new text only, up to the stop string if one came
    token_ids: list[int]        # new ids: without the id that closed the text, with all those that spell a stop string
    finish_reason: str          # "stop": the model closed its text, or a stop string came; "length": cut off
    prompt_tokens: int
    tokens_per_second: float    # of decoding, that is after the first token; 0 if there was only one


class TextRow:
    """One text while it grows: its ids, the text that may be shown, and whether and why it has ended.

    An answer begins anew and also ends at its chat format's own end, which a base model's files may not call one. Other
    text goes on where the prompt stops: there SentencePiece's space before a first word is a space between words.
    """

    def __init__(self, prompt: Sequence[int], *, tokenizer: Tokenizer, chat_format: ChatFormat | None, limit: int,
                 stop: Sequence[str], ignore_eos: bool, generator: torch.Generator | None = None,
                 on_text: Callable[[str], None] | None = None, on_end: Callable[["TextRow"], None] | None = None):
        self.prompt, self.tokenizer, self.limit, self.generator = prompt, tokenizer, limit, generator
        self.token_ids: list[int] = []
        self.text = ""
        self.finish_reason = ""
        self.times: list[float] = []
        self._ends = () if ignore_eos else stop_ids(chat_format, tokenizer)
        self._characters = tokenizer.stream()
        if not chat_format:
            self._characters.push(prompt[-1])
        self._stops = StopStrings(stop)
        self._on_text, self._on_end = on_text, on_end

    def push(self, token: int) -> None:
        """Take one more id; afterwards `finish_reason` says whether it was the last."""
        self.times.append(time.perf_counter())
        if token in self._ends:
            self._show(self._stops.push(self._characters.flush()))
            self._finish("stop")
            return
        self.token_ids.append(token)
        self._show(self._stops.push(self._characters.push(token)))
        if self._stops.found:
            self._finish("stop")
        elif len(self.token_ids) == self.limit:     # a character begun and not ended here is not shown
            self._finish("length")

    @property
    def stopped_by_text(self) -> bool:
        return self._stops.found

    def completion(self, prompt: str | None = None, *, first: int = 1) -> Completion:
        """What has come of it; `first` of its ids came of reading the prompt, and tell nothing of decoding."""
        prompt = self.tokenizer.decode(self.prompt, skip_special=True) if prompt is None else prompt
        seconds = self.times[-1] - self.times[first - 1]
        speed = (len(self.times) - first) / seconds if seconds else 0.0
        return Completion(prompt, self.text, self.token_ids, self.finish_reason, len(self.prompt), round(speed, 2))

    def _finish(self, reason: str) -> None:
        if not self._stops.found:
            self._show(self._stops.flush())
        self.finish_reason = "stop" if self._stops.found else reason
        if self._on_end:
            self._on_end(self)

    def _show(self, text: str) -> None:
        self.text += text
        if text and self._on_text:
            self._on_text(text)


class BatchDecoder:
    """A model and the past of a batch of left-padded rows.

    vocab_size   of the tokenizer: many models have a few more rows of logits, which stand for no token
    cache_dtype  of keys and values; None takes the model's
    """

    def __init__(self, model: Llama, padding: Sequence[int], max_length: int, *, vocab_size: int,
                 cache_dtype: torch.dtype | None = None):
        require_lm_head(model)
        require_decoder(model)
        self.model, self.vocab_size = model, vocab_size
        self.cache = KVCache(model.config, len(padding), max_length, dtype=cache_dtype or model.dtype,
                             device=model.device)
        self._pad(torch.tensor(padding, device=model.device))

    def step(self, tokens: Tensor) -> Tensor:
        """Run the next tokens (B, T) of every row: the logits (B, V) behind the last of them, in float32."""
        return self.read(tokens, 1)[:, 0]

    def read(self, tokens: Tensor, count: int) -> Tensor:
        """As `step`, but the logits (B, count, V) that follow each of the last `count` tokens."""
        step = getattr(self.model, "step", None)                    # of a PretrainedLlama that was compiled
        if step is not None and step.fits(tokens, self.cache):
            logits = step(tokens, padding=self.padding, cache=self.cache, count=count)
        else:
            T, S = tokens.shape[1], self.cache.length + tokens.shape[1]
            positions = mask = None                                 # a batch without padding is the default case
            if self._padded:
                slots = torch.arange(S - T, S, device=tokens.device)
                positions = (slots - self.padding[:, None]).clamp(min=0)                # (B, T)
                mask = padding_mask(self.padding, T, S)
            hidden = self.model.hidden(tokens, positions=positions, mask=mask, cache=self.cache)
            logits = self.model.lm_head(hidden[:, -count:]).float()         # as a step gives them: their rows may mix
        return logits[..., : self.vocab_size]

    def prefill(self, tokens: Tensor, chunk: int) -> Tensor:
        """As `step`, `chunk` tokens at a time: scores and states of a long text would not fit into memory at once."""
        for piece in tokens.split(chunk, dim=1):
            logits = self.step(piece)
        return logits

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, each as often as it is named, without slots that are padding in all of them.

        With those slots, a short row would come to the end of the cache earlier beside a long one than alone.
        """
        padding = self.padding[rows]
        spare = int(padding.min())
        self._pad(padding - spare)
        self.cache.select(rows, start=spare)

    def expand(self, padding: Sequence[int], max_length: int) -> "BatchDecoder":
        """One text becomes the beginning of many: a decoder of as many rows, left-padded so, in as many slots.

        So of n slots with p of padding, n - p hold text, and its last p ids are to run again.
        """
        other = copy.copy(self)
        other.cache = self.cache.expand(padding)
        other.cache.reserve(max_length)
        other._pad(torch.tensor(padding, device=self.padding.device))
        return other

    def stack(self, others: Sequence["BatchDecoder"], max_length: int) -> "BatchDecoder":
        """One decoder for the rows of this one and then of the others (see `KVCache.stack`)."""
        other = copy.copy(self)
        other.cache = self.cache.stack([each.cache for each in others], max_length)
        other._pad(torch.cat([each.padding + (other.cache.length - each.cache.length) for each in (self, *others)]))
        return other

    def replace(self, rows: Sequence[int], other: "BatchDecoder") -> None:
        """These rows, which have ended, become those of `other`, which has no more slots (see `KVCache.replace`)."""
        self.cache.replace(rows, other.cache)
        padding = self.padding.clone()
        padding[rows] = other.padding + (self.cache.length - other.cache.length)
        self._pad(padding)

    def _pad(self, padding: Tensor) -> None:
        self.padding = padding                                      # (B,)
        self._padded = bool(padding.any())                          # asked once: a GPU would have to be waited for


def require_decoder(model: Llama) -> None:
    """Raise ValueError where an encoder reads the prompt, whole: no cache goes on from a part of it."""
    if getattr(model, "takes_prefix", False):
        raise ValueError(f"a model shaped by a {type(model.config).__name__} reads a whole prompt by its encoder: "
                         "beams, guesses (--lookup, --draft), scores of continuations and chats of several turns are "
                         "built for decoders alone; leave them out")


def common_prefix_length(texts: Sequence[Sequence[int]]) -> int:
    """How many ids all of them have in common from the beginning on."""
    first, last = min(texts), max(texts)                            # in lexical order, the least alike
    length = min(len(first), len(last))
    if first[:length] == last[:length]:
        return length
    return next(i for i in range(length) if first[i] != last[i])


@contextmanager
def eval_mode(model: Llama) -> Iterator[None]:
    """Dropout off, and back to what it was: a model fresh from training would write noise otherwise."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def encode_prompt(tokenizer: Tokenizer, text: str, *, special: bool = False) -> list[int]:
    """A raw text as ids, with a token for its beginning if the tokenizer's own files ask for one.

    special  special tokens that the text spells are such tokens, not text

    Raises ValueError for an empty text where no such token stands in for it.
    """
    ids = tokenizer.encode(text, allow_special=special)
    if tokenizer.adds_bos and ids[:1] != [tokenizer.bos_id]:
        ids = [tokenizer.bos_id, *ids]
    if not ids:
        raise ValueError("the prompt is empty and this tokenizer begins texts with no token of its own; "
                         "give at least one character")
    return ids


def clamp_max_new_tokens(model: Llama, prompt: Sequence[int], max_new_tokens: int) -> int:
    """How many tokens the answer may have. Raises ValueError if the context has no place for even one, and for a token
    that the model has no row for."""
    context, prompt_tokens = model.config.context, len(prompt)
    if (largest := max(prompt, default=0)) >= model.config.vocab_size:
        raise ValueError(f"the prompt holds the token {largest}, and the model has rows for {model.config.vocab_size}; "
                         "its tokenizer is a larger one: leave that token out")
    if prompt_tokens >= context:
        raise ValueError(f"the prompt is {prompt_tokens} tokens long and the model's context is {context}, answer "
                         f"included; shorten the prompt by at least {prompt_tokens - context + 1} tokens")
    return min(max_new_tokens, context - prompt_tokens)


@torch.inference_mode()
def generate(model: Llama, prompts: Sequence[Sequence[int]], *, tokenizer: Tokenizer,
             sampling: SamplingConfig, chat_format: ChatFormat | None = None, max_new_tokens: int = 256,
             stop: Sequence[str] = (), ignore_eos: bool = False, seed: int = 0, num_samples: int = 1,
             batch_size: int = 16, prefill_chunk: int = 512, cache_dtype: torch.dtype | None = None,
             on_text: Callable[[int, str], None] | None = None,
             on_end: Callable[[int, Completion], None] | None = None) -> list[Completion]:
    """Continue every prompt `num_samples` times. What all prompts begin with, every one of them, is run once.

    prompts      ids, of any lengths; none may be empty
    chat_format  the one that the prompts are written in; None for raw text (see Row)
    stop         texts that end a row and are not part of it
    ignore_eos   go on after ids that close a text
    seed         row i draws from a generator of its own, seeded with seed + i: its text is the same in any company
                 (but for ties within the rounding of float arithmetic, and of weights: see fused_linear.py)
    batch_size   rows run at once; memory grows with it, results do not change
    cache_dtype  of keys and values; None takes the model's
    on_text      called with (row, new text) as the text grows; what it gets adds up to the row's `text`
    on_end       called with (row, completion) as soon as that row has ended
    ->           prompt after prompt, the samples of each together: row = prompt index * num_samples + sample index

    Raises ValueError, before anything runs, for a prompt that leaves no room in the context and for bad options.
    """
    check_options(prompts, max_new_tokens=max_new_tokens, num_samples=num_samples, stop=stop)
    limits = [clamp_max_new_tokens(model, prompt, max_new_tokens) for prompt in prompts]
    rows = []
    for i in range(len(prompts) * num_samples):
        show = None if on_text is None else lambda text, i=i: on_text(i, text)
        end = None if on_end is None else lambda row, i=i: on_end(i, row.completion())
        rows.append(TextRow(prompts[i // num_samples], tokenizer=tokenizer, chat_format=chat_format,
                        limit=limits[i // num_samples], stop=stop, ignore_eos=ignore_eos,
                        generator=torch.Generator().manual_seed(seed + i), on_text=show, on_end=end))
    with eval_mode(model):
        reader = getattr(model, "prompt_reader", None) or partial(prompt_reader, model)     # an encoder has its own
        read = reader(prompts, vocab_size=tokenizer.vocab_size, cache_dtype=cache_dtype, chunk=prefill_chunk)
        for start in range(0, len(rows), batch_size):
            _complete(read, rows[start : start + batch_size], sampling, device=model.device)
    return [row.completion() for row in rows]


def complete_text(model: Llama, tokenizer: Tokenizer, prompt: str, **options: Any) -> str:
    """The text that follows `prompt`, without it. Options: the fields of SamplingConfig and those of `generate`."""
    if tokenizer is None:
        raise ValueError("this model has no tokenizer, so it reads no text; load one from a model folder, "
                         "or set model.tokenizer")
    ids = encode_prompt(tokenizer, prompt)
    return generate(model, [ids], tokenizer=tokenizer, sampling=pop_config(options), **options)[0].text


def check_options(prompts: Sequence[Sequence[int]], *, max_new_tokens: int, num_samples: int,
                  stop: Sequence[str]) -> None:
    """Raise ValueError for what cannot be meant."""
    for name, value in (("max_new_tokens", max_new_tokens), ("num_samples", num_samples)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if isinstance(stop, str) or "" in stop:
        raise ValueError(f"stop is {stop!r}; it must be a list of texts of at least one character")
    if empty := [i for i, prompt in enumerate(prompts) if not len(prompt)]:
        raise ValueError(f"prompt {empty[0]} holds no ids; a model continues at least one")


def _common_start(model: Llama, prompts: Sequence[Sequence[int]]) -> int:
    """How many ids to run once for all prompts; at least one of each prompt is left, whose logits are needed."""
    if len(prompts) < 2:
        return 0
    common = min(common_prefix_length(prompts), min(map(len, prompts)) - 1)
    if window := model.config.sliding_window:
        common = min(common, window)                                # rows that are moved need all of it
    return common if common >= MIN_SHARED_PREFIX else 0


def prompt_reader(model: Llama, prompts: Sequence[Sequence[int]], *, vocab_size: int,
                  cache_dtype: torch.dtype | None, chunk: int) -> PromptReader:
    """What reads batches of these prompts, in any order; what all of them begin with is read now, once."""
    common = _common_start(model, prompts)
    first = BatchDecoder(model, [0], common, vocab_size=vocab_size, cache_dtype=cache_dtype)
    if common:
        first.prefill(torch.tensor([list(prompts[0][:common])], device=model.device), chunk)
    return partial(_read, first, chunk=chunk)


def _complete(read: PromptReader, rows: list[TextRow], sampling: SamplingConfig, *, device: torch.device) -> None:
    """Run one batch to its end. A prompt of several rows is run once, and what all begin with not again."""
    rows = sorted(rows, key=lambda row: len(row.prompt))
    prompts = list({id(row.prompt): row.prompt for row in rows}.values())
    slots = len(prompts[-1]) + max(row.limit for row in rows)
    decoder, logits = read(prompts, slots)                          # (B, V)

    if len(rows) > len(prompts):
        owner = {id(prompt): i for i, prompt in enumerate(prompts)}
        owners = [owner[id(row.prompt)] for row in rows]
        decoder.select(owners)
        logits = logits[owners]
    seen = tokens_seen([row.prompt for row in rows], logits.shape[1], sampling, device)

    while True:
        tokens = sample(logits, sampling, seen, [row.generator for row in rows])
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.push(token)
        going = [i for i, row in enumerate(rows) if not row.finish_reason]
        if not going:
            return
        if len(going) < len(rows):
            decoder.select(going)
            rows, tokens, seen = [rows[i] for i in going], tokens[going], None if seen is None else seen[going]
        tokens = tokens.to(device)[:, None]                   # (B, 1)
        if seen is not None:
            seen.scatter_(1, tokens, True)
        logits = decoder.step(tokens)


def _read(first: BatchDecoder, prompts: Sequence[Sequence[int]], slots: int, *,
          chunk: int) -> tuple[BatchDecoder, Tensor]:
    """Read prompts, sorted by length, behind what `first` has read: their decoder, and the logits (B, V) after each."""
    common, longest = first.cache.length, len(prompts[-1])
    whole = longest <= first.cache.contiguous                         # else nothing can be stacked
    starts = prefill_batches([len(prompt) - common for prompt in prompts]) if whole else [0]
    decoders, logits = [], []
    for start, end in itertools.pairwise([*starts, len(prompts)]):
        some = prompts[start:end]
        padding = [len(some[-1]) - len(prompt) for prompt in some]
        decoder = first.expand(padding, len(some[-1]) if len(starts) > 1 else slots)
        padded = [[0] * blank + list(prompt) for blank, prompt in zip(padding, some, strict=True)]
        rest = torch.tensor(padded, device=first.model.device)[:, common:]
        logits.append(decoder.prefill(rest, chunk))
        decoders.append(decoder)
    decoder, *others = decoders
    return decoder.stack(others, slots) if others else decoder, torch.cat(logits)


def prefill_batches(lengths: Sequence[int]) -> list[int]:
    """Where to cut a batch of texts, sorted by length, to run through as few tokens of padding as pays.

    A pass costs PASS_OVERHEAD tokens more than those in it, of which each row has as many as its longest: the best
    cut is found from the front on, since the best for all rows up to one contains the best for those before its last.
    """
    cost, start = [0], [0]                                          # of the best cut of the first n; its last part
    for n in range(1, len(lengths) + 1):
        costs = [cost[m] + PASS_OVERHEAD + (n - m) * lengths[n - 1] for m in range(n)]
        start.append(min(range(n), key=costs.__getitem__))
        cost.append(costs[start[-1]])
    starts = [start[-1]]
    while starts[-1]:
        starts.append(start[starts[-1]])
    return starts[::-1]
