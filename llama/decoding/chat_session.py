"""A chat that remembers: its turns as text, and as keys and values in the cache, so that a turn costs its own tokens.

    turn 1   [system][question 1]                      run through the model
    turn 2   [system][question 1][answer 1]            is in the cache already
                                           [question 2]  is run

What may be kept is found by comparing ids (prefix_cache.py). So a changed system message, forgotten turns, another
answer to the same question or an interrupted one need no care of their own: they make the shared beginning shorter.

Try: let `_encode` leave the answers as chat.py encodes them; tests/test_chat_session.py
(test_two_ways_turn_n_runs_only_its_new_tokens) counts more, since a text often has several spellings in ids.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any

import torch

from llama.decoding.prefix_cache import PrefixCache
from llama.decoding.speculative import Drafter, NoDraft, make_completion, write
from llama.generation import Completion, TextRow, clamp_max_new_tokens, eval_mode
from llama.model import Llama
from llama.sampling import SamplingConfig
from tokenizer.base import Tokenizer
from tokenizer.chat import ChatFormat

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Turn:
    question: str
    answer: str
    written: list[int] | None       # the answer's ids as the model wrote them; None where the text alone counts


class ChatSession:
    """Questions and answers with a model, in the ids of one chat format.

    system       the system message; None takes the format's own default
    tools        functions that the model may call, as its template writes them
    guesser      what speculates about the answers, draft_tokens ids at a time (see speculative.write)
    cache_dtype  of keys and values; None takes the model's
    """

    def __init__(self, model: Llama, tokenizer: Tokenizer, chat_format: ChatFormat, *, sampling: SamplingConfig,
                 system: str | None = None, tools: Sequence[Any] = (), max_new_tokens: int = 512,
                 stop: Sequence[str] = (), ignore_eos: bool = False, seed: int = 0, guesser: Drafter | None = None,
                 draft_tokens: int = 0, cache_dtype: torch.dtype | None = None):
        self.model, self.tokenizer, self.chat_format = model, tokenizer, chat_format
        self.sampling, self.max_new_tokens, self.stop, self.ignore_eos = sampling, max_new_tokens, stop, ignore_eos
        self.system, self.tools, self.seed = system, {"tools": list(tools)} if tools else {}, seed
        self.guesser, self.draft_tokens = guesser or NoDraft(), draft_tokens
        self.reader = PrefixCache(model, vocab_size=tokenizer.vocab_size, cache_dtype=cache_dtype)
        self.reset()

    def reset(self) -> None:
        """Forget every turn; the system message stays. The seed starts again."""
        self.turns: list[Turn] = []
        self.generator = torch.Generator().manual_seed(self.seed)

    @property
    def messages(self) -> list[dict[str, str]]:
        return self._messages(self.turns)

    @torch.inference_mode()
    def reply(self, question: str, on_text: Callable[[str], None] | None = None) -> Completion:
        """Answer, and remember question and answer. `on_text` gets the answer as it grows.

        An exception while the model writes, Ctrl-C before all, passes through; what had been said by then is kept as
        the answer, and a question that got no word is forgotten. When the context is full, the oldest turns are
        forgotten until half of it is free, with a warning in the log.

        Raises ValueError for a question that does not fit into the context even alone; nothing is remembered then.
        """
        ids, forgotten = self._fit(question)
        limit = clamp_max_new_tokens(self.model, ids, self.max_new_tokens)
        row = TextRow(ids, tokenizer=self.tokenizer, chat_format=self.chat_format, limit=limit, stop=self.stop,
                  ignore_eos=self.ignore_eos, generator=self.generator, on_text=on_text)
        if forgotten:
            log.warning("the context of %d tokens is full: the oldest turns are forgotten (%d)",
                        self.model.config.context, forgotten)
            del self.turns[:forgotten]
        with eval_mode(self.model):
            try:
                tally = write(row, self.reader, self.guesser, self.sampling, draft_tokens=self.draft_tokens)
            finally:
                if row.text or row.finish_reason:
                    self.turns.append(Turn(question, row.text, None if row.stopped_by_text else row.token_ids))
            if tally.guessed:
                return make_completion(row, question, tally, self.reader, self.sampling)
        return row.completion(question, first=tally.first)

    def _fit(self, question: str) -> tuple[list[int], int]:
        """The ids of the conversation up to the next answer, and how many of the oldest turns must go for that."""
        context = self.model.config.context
        ids = self._encode(self.turns, question)
        if len(ids) + min(self.max_new_tokens, context // 4) <= context:
            return ids, 0
        for forgotten in range(1, len(self.turns) + 1):
            ids = self._encode(self.turns[forgotten:], question)
            if len(ids) <= context // 2:        # half, since it all moves and runs anew: not again with every turn
                return ids, forgotten
        return ids, len(self.turns)

    def _encode(self, turns: list[Turn], question: str) -> list[int]:
        """Chat format of the turns and the question, with the ids of answers as they were written.

        A run of learned ids is an answer and the id that closes it. Encoded again, its text may be spelled otherwise.
        A template may also write an earlier answer otherwise than it was given, without its thoughts, say: then what
        the template says counts, and the cache is worth what lies before.
        """
        messages = [*self._messages(turns), {"role": "user", "content": question}]
        pairs = zip(*self.chat_format.encode(messages, self.tokenizer, reply=True, apart=True, **self.tools),
                    strict=True)
        parts = [(learned, [token for token, _ in run]) for learned, run in groupby(pairs, key=itemgetter(1))]
        answers = iter(turns if sum(learned for learned, _ in parts) == len(turns) else ())
        ids: list[int] = []
        for learned, part in parts:
            turn = next(answers, None) if learned else None
            if turn and turn.written is not None and self.tokenizer.decode(part[:-1]).strip() == turn.answer.strip():
                part = turn.written + part[-1:]                     # the last is the id that closes the answer
            ids += part
        return ids

    def _messages(self, turns: list[Turn]) -> list[dict[str, str]]:
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in turns:
            messages += [{"role": "user", "content": turn.question}, {"role": "assistant", "content": turn.answer}]
        return messages
