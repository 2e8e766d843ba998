"""SmolLM2-135M-Instruct against transformers: logits, greedy text, beam search."""

from collections.abc import Iterator

import torch

from llama.decoding.beam_search import BeamConfig, beam_search
from llama.generation import generate
from llama.model import Llama
from llama.pretrained import get_model
from llama.sampling import SamplingConfig
from tests.parity import texts
from tests.parity.judges import Check, Judges
from tests.parity.models import compare_logits

NAME = "smollm2-135m-instruct"


def checks(judges: Judges) -> Iterator[Check]:
    ours = get_model(NAME)
    tokenizer = ours.tokenizer
    ids = {name: tokenizer.encode(text)[:1024] for name, text in texts.LOGITS.items()}
    yield compare_logits(judges, "SmolLM2-135M: logits", ours, ours.source, ids)

    prompts = [tokenizer.encode(prompt) for prompt in texts.PROMPTS]
    theirs = judges.ask("judge_models.py", what="greedy", folder=str(ours.source), ids=prompts, new=200,
                        eos=list(tokenizer.eos_ids))
    rows = generate(ours, prompts, tokenizer=tokenizer, sampling=SamplingConfig(temperature=0.0), max_new_tokens=200,
                    batch_size=len(prompts))
    differ = ties = 0
    for prompt, row, their_ids in zip(prompts, rows, theirs, strict=True):
        if row.token_ids != their_ids:
            tied = is_tie(ours, prompt, row.token_ids, their_ids)
            ties, differ = ties + tied, differ + (not tied)
    tokens = sum(map(len, theirs))
    yield Check("SmolLM2-135M: greedy text of 200 tokens", "transformers", f"{len(prompts)} prompts, {tokens:,} ids",
                f"{differ} differ, {ties} tied", differ == 0 and ties <= 2)

    for penalty in (1.0, -1.0):
        some, options = prompts[:3], {"beams": 4, "length_penalty": penalty}
        theirs = judges.ask("judge_models.py", what="beams", folder=str(ours.source), ids=some, new=24,
                            eos=list(tokenizer.eos_ids), **options)
        rows = beam_search(ours, some, BeamConfig(**options), tokenizer=tokenizer, max_new_tokens=24)
        differ = sum(row.token_ids != their_ids for row, their_ids in zip(rows, theirs, strict=True))
        yield Check(f"SmolLM2-135M: beam search, 4 beams, length penalty {penalty}", "transformers",
                    f"{len(some)} prompts", f"{differ} differ", differ == 0)


@torch.inference_mode()
def is_tie(ours: Llama, prompt: list[int], mine: list[int], theirs: list[int], gap: float = 1e-3) -> bool:
    """Whether two greedy texts part at a place where the two best logits are closer than `gap`: both are right."""
    same = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), min(len(mine), len(theirs)))
    best = ours(torch.tensor([prompt + mine[:same]]), rows=(0, -1)).topk(2).values
    return bool(best[0] - best[1] < gap)
