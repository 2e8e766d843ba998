"""Beam search: not one token after the other, but the likeliest whole text among many that are kept side by side.

    beams  ->  each with every next token  ->  the N likeliest that go on, and what has ended  ->  …  ->  the best text

Greedy decoding takes the likeliest token and can be led into a text none of whose continuations is likely; N beams look
further. What is likely need not be interesting: for answers that should vary, draw (sampling.py). The rules are those
of Hugging Face's beam search, so that both write the same text.

Try: take what ends at any rank, not at the first N alone; tests/test_beam_search.py
(test_worked_example_an_end_of_low_rank_does_not_count) fails: short texts win early, however good the long ones become.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from llama.generation import BatchDecoder, Completion, TextRow, check_options, clamp_max_new_tokens, eval_mode
from llama.model import Llama
from llama.runtime.ranges import Range, check_ranges
from llama.sampling import check_finite
from tokenizer.base import Tokenizer
from tokenizer.chat import ChatFormat, stop_ids


@dataclass(frozen=True)
class BeamConfig:
    """Beam search."""

    beams: Annotated[int, "look for the likeliest text with N beams, instead of drawing tokens; 0 is off",
                     Range(0, 10**6)] = 0
    length_penalty: Annotated[float, "a text of n tokens scores log-probability / n^X; above 0 helps long ones",
                              Range(-30.0, 30.0)] = 1.0

    def __post_init__(self) -> None:
        check_ranges(self)

    def score(self, log_probability: float, length: int) -> float:
        """By which texts of different length are compared: every token makes a text less likely, also a good one.

        (GNMT, arXiv:1609.08144, eq. 14, in Hugging Face's simpler form: n^X for ((5 + n) / 6)^X.)
        """
        return log_probability / length**self.length_penalty


@torch.inference_mode()
def beam_search(model: Llama, prompts: Sequence[Sequence[int]], config: BeamConfig, *, tokenizer: Tokenizer,
                chat_format: ChatFormat | None = None, max_new_tokens: int = 256, stop: Sequence[str] = (),
                ignore_eos: bool = False, prefill_chunk: int = 512, cache_dtype: torch.dtype | None = None,
                on_text: Callable[[int, str], None] | None = None,
                on_end: Callable[[int, Completion], None] | None = None) -> list[Completion]:
    """The best continuation of every prompt, one prompt after the other; options are those of generation.generate.

    Costs `beams` rows of the model and of its cache. on_text is called once a text is found: nothing is certain sooner.

    Raises ValueError, before anything runs, for a prompt that leaves no room in the context and for bad options.
    """
    check_options(prompts, max_new_tokens=max_new_tokens, num_samples=1, stop=stop)
    if not config.beams:
        raise ValueError("beams is 0, which is no search; give at least 1")
    if config.beams > tokenizer.vocab_size:
        raise ValueError(f"beams is {config.beams:,}, and the vocabulary has {tokenizer.vocab_size:,} ids to begin "
                         "with; 4 beams are many already")
    limits = [clamp_max_new_tokens(model, prompt, max_new_tokens) for prompt in prompts]
    closing = [] if ignore_eos else stop_ids(chat_format, tokenizer)

    def ends(ids: list[int]) -> bool:
        return ids[-1] in closing or (len(stop) > 0 and any(text in tokenizer.decode(ids) for text in stop))

    completions = []
    with eval_mode(model):
        for i, (prompt, limit) in enumerate(zip(prompts, limits, strict=True)):
            show = None if on_text is None else lambda text, i=i: on_text(i, text)
            row = TextRow(prompt, tokenizer=tokenizer, chat_format=chat_format, limit=limit, stop=stop,
                      ignore_eos=ignore_eos, on_text=show)
            decoder = BatchDecoder(model, [0], len(prompt) + limit, vocab_size=tokenizer.vocab_size,
                                   cache_dtype=cache_dtype)
            logits = decoder.prefill(torch.tensor([list(prompt)], device=model.device), prefill_chunk)
            ids, times = search(decoder, logits, config, limit=limit, ends=ends, ends_at_most=len(closing))
            for token in ids:
                row.push(token)
            row.times = times                                       # of the search: pushing took none
            completions.append(row.completion())
            if on_end:
                on_end(i, completions[-1])
    return completions


def search(decoder: BatchDecoder, logits: Tensor, config: BeamConfig, *, limit: int, ends: Callable[[list[int]], bool],
           ends_at_most: int) -> tuple[list[int], list[float]]:
    """The ids of the best text, and when each step of the search was done.

    A text ends where `ends` says so, if it is then among the N likeliest, or at `limit`. The search is over when N have
    ended and the likeliest beam scores no more than the worst of them.

    logits        (1, V), those after the prompt
    ends_at_most  how many ids can end a text: so many more candidates are looked at that N go on
    """
    N, times = config.beams, []
    running: list[tuple[float, list[int]]] = [(0.0, [])]            # log-probability and ids, the likeliest first
    ended: list[tuple[float, list[int]]] = []                       # score and ids, the best first, N at most
    for n in range(1, limit + 1):
        check_finite(logits)
        log_probabilities = logits.float().log_softmax(-1)          # (beams, V)
        totals = log_probabilities + log_probabilities.new_tensor([total for total, _ in running])[:, None]
        best = totals.flatten().topk(min(max(2, 1 + ends_at_most) * N, totals.numel()))
        going: list[tuple[float, list[int]]] = []
        parents = []
        for rank, (total, place) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            beam, token = divmod(place, totals.shape[1])
            ids = [*running[beam][1], token]
            if n == limit or ends(ids):
                if rank < N:
                    ended.append((config.score(total, n), ids))
            elif len(going) < N:
                going.append((total, ids))
                parents.append(beam)
        ended = sorted(ended, key=lambda text: -text[0])[:N]
        times.append(time.perf_counter())
        if not going or (len(ended) == N and config.score(going[0][0], n) <= ended[-1][0]):
            break
        if parents != list(range(len(running))):
            decoder.select(parents)
        running = going
        logits = decoder.step(torch.tensor([ids[-1:] for _, ids in running], device=logits.device))
    return ended[0][1], times
