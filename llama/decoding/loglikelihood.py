"""How likely a model finds each of many continuations of one text, which runs once.

    [the examples and the question, 900 tokens] + " positive"      -0.4
                                                  " negative"      -1.9     2 tokens each instead of 902

What ranks answers: the sum of their log-probabilities, or where answers differ much in length, the mean.

Try: let `loglikelihood` begin with the logits after the prefix's last token but one; tests/test_loglikelihood.py
(test_two_ways_scores_equal_those_of_whole_texts) fails.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llama.decoding.prefix_cache import PrefixCache
from llama.generation import eval_mode
from llama.model import Llama
from tokenizer.base import Tokenizer

PIECE = 32              # ids of a continuation at a time: the logits of 16 rows and 50,000 ids take 100 MB then


@torch.inference_mode()
def loglikelihood(model: Llama, prefix: Sequence[int], continuations: Sequence[Sequence[int]], *, tokenizer: Tokenizer,
          batch_size: int = 16, prefill_chunk: int = 512, cache_dtype: torch.dtype | None = None,
          reader: PrefixCache | None = None) -> list[Tensor]:
    """The log-probability of every id of every continuation.

    prefix, continuations  ids, none of them empty
    reader                 of the same model: what the prefixes of several calls begin with is read once
    ->                     for each continuation a tensor of its length, float32 on the CPU

    Raises ValueError if one of them is empty, or where they exceed the model's context together.
    """
    if not prefix or not all(continuations):
        raise ValueError("the prefix or a continuation holds no ids; a score needs at least one of each")
    whole = len(prefix) + max(map(len, continuations), default=0)
    if whole > model.config.rope_stable_length:
        raise ValueError(f"prefix and continuation are {whole} tokens long and the model is steady up to "
                         f"{model.config.rope_stable_length} (beyond, its context ends or its rotation depends on the "
                         "length); shorten the prefix")
    scores = []
    with eval_mode(model):
        reader = reader or PrefixCache(model, slots=len(prefix), chunk=prefill_chunk, vocab_size=tokenizer.vocab_size,
                                  cache_dtype=cache_dtype)
        logits = reader.read(prefix)                                # (1, V)
        for start in range(0, len(continuations), batch_size):
            rows = [list(ids) for ids in continuations[start : start + batch_size]]
            longest = max(map(len, rows))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)
            found = [_chosen(logits[:, None].expand(len(rows), -1, -1), ids[:, :1])]
            decoder = reader.decoder.expand([0] * len(rows), len(prefix) + longest)
            for piece, following in zip(ids[:, :-1].split(PIECE, 1), ids[:, 1:].split(PIECE, 1), strict=True):
                if piece.shape[1]:
                    found.append(_chosen(decoder.read(piece, piece.shape[1]), following))
            scores += [line[: len(row)] for line, row in zip(torch.cat(found, 1).cpu(), rows, strict=True)]
    return scores


def _chosen(logits: Tensor, ids: Tensor) -> Tensor:
    """Log-probabilities (B, T) of these ids under logits (B, T, V)."""
    logits = logits.float()
    return logits.gather(-1, ids[..., None]).squeeze(-1) - logits.logsumexp(-1)
