"""Losses over pairs and groups of answers, and their gradients, as trl takes them of the same ids, in one batch."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from llama.checkpoint import PretrainedLlama, load_model, save_model
from llama.config import preset
from llama.methods.grpo import Answer, GRPOConfig, Policy
from llama.methods.preferences import Preference, PreferenceConfig, remember_reference
from llama.tasks.preference import Pair, PreferenceTask
from llama.tasks.task import Sample
from tests.parity import texts
from tests.parity.judges import Check, Judges, difference
from tokenizer import bpe
from weights.formats.huggingface import stored_name

BOUND = 1e-4                                                        # of gradients, relative


def checks(judges: Judges) -> Iterator[Check]:
    tokenizer = bpe.train([texts.NEUTRAL], 512, special=("<|endoftext|>",))
    folders = [judges.folder / "pairs-now", judges.folder / "pairs-before"]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        model = PretrainedLlama(preset("test"), tokenizer)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter) * 0.05
        save_model(model, folder)
    generator = torch.Generator().manual_seed(0)
    pairs = [[torch.randint(500, (int(length),), generator=generator).tolist() for length in lengths]
             for lengths in torch.randint(2, 12, (4, 3), generator=generator)]
    for kind, beta, margin in (("dpo", 0.1, 0.0), ("simpo", 2.0, 0.8), ("orpo", 0.3, 0.0)):
        config = PreferenceConfig(preference_loss=kind, beta=beta, margin=margin)
        ours = _ours(folders, pairs, config)
        request = {"folder": str(folders[0]), "pairs": pairs, "beta": beta}
        if kind == "dpo":
            theirs = judges.ask("judge_preferences.py", what="dpo", reference=str(folders[1]), **request)
        else:
            theirs = judges.ask("judge_preferences.py", what="reference_free", loss=kind, margin=margin, **request)
        worst = difference(ours, theirs)
        yield Check(f"preferences, {kind}: loss and gradients", "trl", f"{len(pairs)} pairs", f"{worst:.1e} relative",
                    worst < BOUND)
    yield _answers(judges, folders[0], generator)


def _answers(judges: Judges, folder: Path, generator: torch.Generator) -> Check:
    """A step of GRPO on answers that were drawn from another model, so that some ratios are clipped."""
    model, config = load_model(folder), GRPOConfig(clip=0.2, kl=0.04)
    answers = []
    for lengths in torch.randint(2, 12, (6, 2), generator=generator).tolist():
        prompt, new = (torch.randint(500, (length,), generator=generator).tolist() for length in lengths)
        answers.append(Answer(prompt + new, [False] * len(prompt) + [True] * len(new),
                              advantage=torch.randn((), generator=generator).item()))
    policy = Policy(model, config)
    with torch.no_grad():
        now = [policy.scores(policy.task.collate([answer])) for answer in answers]
    old, reference = ([(each + torch.randn(each.shape, generator=generator) * 0.3).tolist() for each in now]
                      for _ in range(2))
    answers = [replace(answer, old=some, reference=other)
               for answer, some, other in zip(answers, old, reference, strict=True)]
    loss, count = policy(policy.task.collate(answers))
    (loss / count).backward()
    ours = {"loss": (loss / count).detach()} | {f"gradient.{stored_name(name)}": parameter.grad
                                                for name, parameter in model.named_parameters()}
    sides = [[answer.ids[: answer.loss_mask.index(True)], answer.ids[answer.loss_mask.index(True) :]]
             for answer in answers]
    theirs = judges.ask("judge_preferences.py", what="grpo", folder=str(folder), answers=sides, old=old,
                        reference=reference, advantages=[answer.advantage for answer in answers], clip=config.clip,
                        kl=config.kl)
    worst = difference(ours, theirs)
    return Check("GRPO, clip and KL: loss and gradients", "trl", f"{count} answers", f"{worst:.1e} relative",
                 worst < BOUND)


def _ours(folders: list, pairs: list, config: PreferenceConfig) -> dict[str, torch.Tensor]:
    task, model, before = PreferenceTask(), load_model(folders[0]), load_model(folders[1])
    sides = [[Sample(prompt + answer, [False] * len(prompt) + [True] * len(answer)) for answer in answers]
             for prompt, *answers in pairs]
    samples = [Pair(chosen.ids, chosen.loss_mask, rejected=rejected) for chosen, rejected in sides]
    remember_reference(Preference(before, task, config=config), samples, before.tokenizer, batch_size=2)
    loss, count = Preference(model, task, config=config)(task.collate(samples))
    (loss / count).backward()
    return {"loss": (loss / count).detach()} | {f"gradient.{stored_name(name)}": parameter.grad
                                                for name, parameter in model.named_parameters()}
