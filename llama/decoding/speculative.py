"""Several tokens a step: cheap guesses, checked by the model all at once, and kept by a rule that changes nothing.

    guess   The cat sat on | the mat . It      by a small model, or as the text went on when it said the same before
    check                  | .9  .8  .7  .1    one pass of the model: how likely it finds each of them, after the others
    keep                   | the mat .         until one fails; in its place comes a token drawn from what is left

Decoding one token reads all weights, and so does checking eight: where reading them takes the time, a right guess costs
next to nothing. The texts are distributed as without guesses (arXiv:2211.17192, appendix A.1), and at temperature 0
they are the same texts, as long as the two likeliest tokens are further apart than float arithmetic of one and of eight
tokens differs (some 1e-5 of the largest logit in float32, 1e-2 in bfloat16, where also more than eight tokens may be
multiplied by another rounding of the same weights, see fused_linear.py).

Try: in `keep`, draw from p instead of from what is left of it when a guess fails; tests/test_speculative.py
(test_worked_example_the_rule_gives_the_models_own_distribution) fails, while every text still reads well.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor

from llama.decoding.prefix_cache import PrefixCache
from llama.generation import Completion, TextRow, check_options, clamp_max_new_tokens, eval_mode
from llama.model import Llama
from llama.runtime.ranges import Range, check_ranges
from llama.sampling import SamplingConfig, check_finite, probabilities
from tokenizer.base import Tokenizer
from tokenizer.chat import ChatFormat

TIMED = 3               # steps behind a text, to tell what it would have taken without guesses
FIRST, MOST = 4, 7      # guesses in the first step, and at most: with the token before, what a compiled step takes


@dataclass(frozen=True)
class SpeculationConfig:
    """Speculative decoding: the same texts sooner."""

    draft: Annotated[str, "guess tokens with this smaller model of the same vocabulary"] = ""
    lookup: Annotated[bool, "guess that the text goes on as it did where it said the same before"] = False
    draft_tokens: Annotated[int, "tokens to guess at a time; 0 takes as many as have been right lately, 7 at most",
                            Range(0, 256)] = 0

    def __post_init__(self) -> None:
        if self.draft and self.lookup:
            raise ValueError(f"--draft {self.draft} and --lookup are two ways to guess; give one of them")
        check_ranges(self)
        if self.draft_tokens and not self.wanted:
            raise ValueError(f"--draft-tokens {self.draft_tokens} needs something that guesses: --draft or --lookup")

    @property
    def wanted(self) -> bool:
        return bool(self.draft) or self.lookup


@dataclass(frozen=True)
class SpeculativeCompletion(Completion):
    """A completion and how well the guessing went."""

    steps: int                  # passes of the model
    guessed: int                # tokens
    acceptance: float           # of these, how many were kept; 0 if none were guessed
    tokens_per_step: float      # 1 without guesses
    speed_up: float             # of decoding, over a token a pass, timed behind the text; 0 if nobody timed that


@dataclass(frozen=True)
class DraftStats:
    """How well guesses went in several texts together; the fields are those of a completion."""

    acceptance: float
    tokens_per_step: float
    speed_up: float

    def __str__(self) -> str:
        make_completion = f"{self.acceptance:.0%} of the guesses kept, {self.tokens_per_step:.2f} tokens a step"
        return make_completion + (f", {self.speed_up:.2f} × as fast as one a step" if self.speed_up else "")


def draft_stats(texts: Sequence[SpeculativeCompletion]) -> DraftStats:
    """Longer texts count for more, as the time that they take does."""
    steps, guessed = sum(text.steps for text in texts), sum(text.guessed for text in texts)
    timed = [(len(text.token_ids) / text.tokens_per_second, text.speed_up) for text in texts if text.speed_up]
    return DraftStats(sum(text.acceptance * text.guessed for text in texts) / max(guessed, 1),
                   sum(text.tokens_per_step * text.steps for text in texts) / steps,
                   sum(seconds * speed_up for seconds, speed_up in timed) / max(sum(row[0] for row in timed), 1e-9))


class Drafter(Protocol):
    """Anything that can say how a text may go on."""

    def guess(self, ids: Sequence[int], count: int, *, sampling: SamplingConfig, seen: Tensor,
              generator: torch.Generator) -> tuple[list[int], Tensor | None]:
        """At most `count` ids that may follow, and the distributions that they were drawn from.

        seen  (V,) bool, the tokens in `ids`, for the repetition penalty
        ->    n ids, and (n, V); None where nothing was drawn, which is to say that each had a probability of 1
        """


class NoDraft:
    """One token a step: what is called decoding where nobody speculates."""

    def guess(self, ids: Sequence[int], count: int, **_: Any) -> tuple[list[int], None]:
        return [], None


class PromptLookup:
    """Guesses that a text goes on as it did after the same words before (prompt look-up; LLMA, arXiv:2304.04487).

    Answers that repeat what they were given, as corrections and summaries do, are guessed well, others seldom.
    """

    def __init__(self, *, longest: int = 6, shortest: int = 2):
        self.longest, self.shortest = longest, shortest             # tokens that have to be the same

    def guess(self, ids: Sequence[int], count: int, **_: Any) -> tuple[list[int], None]:
        text = array("q", ids)
        for n in range(min(self.longest, len(text) - 1), self.shortest - 1, -1):
            place = _last_place(text[:-1], text[-n:])
            if place >= 0:
                return text[place + n : place + n + count].tolist(), None
        return [], None


def _last_place(text: array, part: array) -> int:
    """Where `part` stands in `text` for the last time; -1 if it does not."""
    size, whole, sought = text.itemsize, text.tobytes(), part.tobytes()
    place = whole.rfind(sought)
    while place > 0 and place % size:                               # these bytes begin within a number
        place = whole.rfind(sought, 0, place + len(sought) - 1)
    return place // size


class DraftModel:
    """Guesses what a smaller model would say, by the same rules of sampling."""

    def __init__(self, model: Llama, *, vocab_size: int, cache_dtype: torch.dtype | None = None):
        self.model = model
        self.reader = PrefixCache(model, vocab_size=vocab_size, cache_dtype=cache_dtype)

    def guess(self, ids: Sequence[int], count: int, *, sampling: SamplingConfig, seen: Tensor,
              generator: torch.Generator) -> tuple[list[int], Tensor]:
        guessed: list[int] = []
        chances = [torch.empty(0, len(seen))]
        seen = seen.clone()
        for _ in range(min(count, self.model.config.context - len(ids))):
            q = probabilities(self.reader.read([*ids, *guessed]), sampling, seen).cpu()         # (1, V)
            guessed.append(draw(q[0], generator))
            chances.append(q)
            seen[guessed[-1]] = True
        return guessed, torch.cat(chances)


def check_draft(model: Llama, draft: Llama, name: str) -> None:
    """Raise ValueError, naming what differs, for a draft model whose ids do not mean what the model's mean."""
    ours, theirs = model.tokenizer, draft.tokenizer
    if theirs is None:
        raise ValueError(f"the draft model {name} has no tokenizer, so nobody knows what its ids mean; give a folder")
    if ours.vocab_size != theirs.vocab_size:
        raise ValueError(f"the draft model {name} has {theirs.vocab_size} tokens and the model {ours.vocab_size}; "
                         "give one with the same vocabulary")
    for i in range(ours.vocab_size):
        if ours.piece(i) != theirs.piece(i):
            raise ValueError(f"the draft model {name} means {theirs.piece(i)!r} by id {i} and the model "
                             f"{ours.piece(i)!r}; give one with the same vocabulary")


# ---- the rule --------------------------------------------------------------------------------------------------------


def accepts(chance: float, generator: torch.Generator) -> bool:
    return torch.rand((), generator=generator, dtype=torch.float64).item() < chance


def draw(weights: Tensor, generator: torch.Generator) -> int:
    """An index of weights (V,), drawn in proportion to them."""
    mass = weights.cpu().double().cumsum(-1)
    uniform = torch.rand(1, generator=generator, dtype=torch.float64)
    return torch.searchsorted(mass, uniform * mass[-1], right=True).item()


def keep(guessed: Sequence[int], p: Tensor, q: Tensor | None, generator: torch.Generator) -> list[int]:
    """The ids to write: guesses up to the first that fails, and one more (arXiv:2211.17192, algorithm 1).

    A guess x, drawn from q, is kept with probability min(1, p(x) / q(x)). In place of one that fails comes a token from
    max(0, p - q), which is what p has and q does not give: so x comes up min(p, q) + (p - min(p, q)) = p of the time.

    p  (n + 1, V)  what the model would draw each from, and the one after them; on the CPU, as q
    q  (n, V)      what the n guesses were drawn from; None: each with probability 1
    """
    kept: list[int] = []
    for i, token in enumerate(guessed):
        drawn_from = 1.0 if q is None else q[i, token].item()
        if not accepts(p[i, token].item() / drawn_from, generator):
            rest = p[i].clone()
            if q is None:
                rest[token] = 0
            else:
                rest = (rest - q[i]).clamp(min=0)
            return [*kept, draw(rest if rest.any() else p[i], generator)]      # none where they differ by rounding
        kept.append(token)
    return [*kept, draw(p[len(guessed)], generator)]


# ---- a text ----------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    steps: int = 0              # passes of the model
    guessed: int = 0
    kept: int = 0               # of those guessed
    first: int = 0              # ids that the first pass gave, which read the prompt as well


def write(row: TextRow, reader: PrefixCache, guesser: Drafter, sampling: SamplingConfig, *,
          draft_tokens: int = 0) -> Tally:
    """Let a row write its text, with `reader` for the model and guesses of `guesser`.

    draft_tokens  how many to guess at a time. 0 goes by success: two more when all were right, else one less
    """
    ids, tally, count = list(row.prompt), Tally(), draft_tokens or FIRST
    seen = torch.zeros(reader.decoder.vocab_size, dtype=torch.bool, device=reader.decoder.padding.device)
    seen[ids] = True
    while not row.finish_reason:
        # The last token comes from the model. Beyond `steady` all positions turn with each token: one at a time there.
        room = min(row.limit - len(row.token_ids), reader.decoder.cache.rope_stable_length - len(ids) + 1) - 1
        guessed, q = guesser.guess(ids, max(min(count, room), 0), sampling=sampling, seen=seen, generator=row.generator)
        before = seen.repeat(len(guessed) + 1, 1)                   # (n + 1, V), each with the guesses before it
        for i, token in enumerate(guessed):
            before[i + 1 :, token] = True
        logits = reader.read([*ids, *guessed], len(guessed) + 1)    # (n + 1, V)
        check_finite(logits)
        written = keep(guessed, probabilities(logits, sampling, before).cpu(), q, row.generator)
        tally.steps, tally.guessed, tally.kept = (
            tally.steps + 1, tally.guessed + len(guessed), tally.kept + len(written) - 1)
        if guessed and not draft_tokens:
            count = min(count + 2, MOST) if len(written) > len(guessed) else max(count - 1, 1)
        for token in written:
            if not row.finish_reason:
                row.push(token)
                ids.append(token)
        seen[written] = True
        tally.first = tally.first or len(row.times)
    return tally


@torch.inference_mode()
def generate_speculatively(model: Llama, prompts: Sequence[Sequence[int]], guesser: Drafter, *, tokenizer: Tokenizer,
                           sampling: SamplingConfig, draft_tokens: int = 0, chat_format: ChatFormat | None = None,
                           max_new_tokens: int = 256, stop: Sequence[str] = (), ignore_eos: bool = False,
                           seed: int = 0, num_samples: int = 1, prefill_chunk: int = 512,
                           cache_dtype: torch.dtype | None = None,
                           on_text: Callable[[int, str], None] | None = None,
                           on_end: Callable[[int, Completion], None] | None = None) -> list[SpeculativeCompletion]:
    """Continue every prompt `num_samples` times, one text after the other; options are those of generation.generate.

    One after the other, since rows of a batch would keep different numbers of guesses, and a batch reads the weights
    for many tokens at once already. What a prompt has in common with the one before it does not run again.

    Raises ValueError, before anything runs, for a prompt that leaves no room in the context and for bad options.
    """
    check_options(prompts, max_new_tokens=max_new_tokens, num_samples=num_samples, stop=stop)
    limits = [clamp_max_new_tokens(model, prompt, max_new_tokens) for prompt in prompts]
    reader = PrefixCache(model, chunk=prefill_chunk, vocab_size=tokenizer.vocab_size, cache_dtype=cache_dtype)
    completions = []
    with eval_mode(model):
        for i in range(len(prompts) * num_samples):
            prompt, limit = prompts[i // num_samples], limits[i // num_samples]
            show = None if on_text is None else lambda text, i=i: on_text(i, text)
            row = TextRow(prompt, tokenizer=tokenizer, chat_format=chat_format, limit=limit, stop=stop,
                      ignore_eos=ignore_eos, generator=torch.Generator().manual_seed(seed + i), on_text=show)
            tally = write(row, reader, guesser, sampling, draft_tokens=draft_tokens)
            completions.append(make_completion(row, None, tally, reader, sampling))
            if on_end:
                on_end(i, completions[-1])
    return completions


def make_completion(row: TextRow, prompt: str | None, tally: Tally, reader: PrefixCache,
                    sampling: SamplingConfig) -> SpeculativeCompletion:
    """What came of a prompt and of guessing, with the speed without guesses measured behind it."""
    plain = row.completion(prompt, first=tally.first)
    speed_up = plain.tokens_per_second * seconds_alone(reader, sampling) if tally.guessed else 0.0
    return SpeculativeCompletion(**vars(plain), steps=tally.steps, guessed=tally.guessed,
                                 acceptance=round(tally.kept / max(tally.guessed, 1), 4),
                                 tokens_per_step=round(len(row.times) / tally.steps, 3), speed_up=round(speed_up, 3))


def seconds_alone(reader: PrefixCache, sampling: SamplingConfig) -> float:
    """What a step of one token takes behind the text that was read: the mean of a few. 0 where it reads all anew."""
    if len(reader.ids) > reader.decoder.cache.rope_stable_length:
        return 0.0
    seen = torch.zeros(reader.decoder.vocab_size, dtype=torch.bool, device=reader.decoder.padding.device)
    started = time.perf_counter()
    for _ in range(TIMED):
        p = probabilities(reader.read(reader.ids), sampling, seen)  # all ids but the last are remembered
        keep([], p.cpu(), None, torch.Generator())
    return (time.perf_counter() - started) / TIMED
