"""Multiple choice with SmolLM2-135M: each option's likelihood as transformers sums it, by ids of its own tokenizer.

The judge gets texts alone, a prompt and what would follow it, and encodes both together: so this also holds that an
option encoded apart, as generation would go on, has the ids that it has in the whole text.
"""

from collections.abc import Iterator
from pathlib import Path

from llama.datasets.multiple_choice import MultipleChoiceDataset
from llama.pretrained import get_model
from llama.tasks.multiple_choice import MultipleChoiceTask
from llama.zero_shot.multiple_choice import GAP
from llama.zero_shot.zero_shot import ZeroShot
from tests.parity.judges import Check, Judges

NAME = "smollm2-135m-instruct"
QUESTIONS = Path(__file__).parents[2] / "examples" / "multiple-choice"


def checks(judges: Judges) -> Iterator[Check]:
    model, whole = get_model(NAME), MultipleChoiceDataset(QUESTIONS)
    model.float()
    data = whole.part(range(0, len(whole), 2))
    for score in ("letter", "text"):
        for count in (0, 5):
            task, shots = MultipleChoiceTask(score), whole.shots(count) if count else []
            shot = ZeroShot(task, shots)
            results, prompts, options = shot.results(model, data), [], []
            for example in data:
                language = 0 if shot.asker.chinese(example["question"]) else 1
                before = [each for each in shots if each["subject"] == example["subject"]]
                prompts.append(shot.asker.text(example, before, language))
                options.append([GAP[language] + shot.asker.said_of(example, letter) for letter in example["options"]])
            theirs = judges.ask("judge_choices.py", what="sums", folder=str(model.source), prompts=prompts,
                                options=options)
            yield compare(f"multiple choice by {score}, {count} examples", data, results, theirs, texts=score == "text")


def compare(what: str, data: MultipleChoiceDataset, results: list[dict], theirs: list[list[float]], *,
            texts: bool) -> Check:
    worst, differ = 0.0, 0
    for example, result, sums in zip(data, results, theirs, strict=True):
        sizes = [len(text.encode()) if texts else 1 for text in example["options"].values()]
        scores = {letter: value / size for letter, value, size in zip(example["options"], sums, sizes, strict=True)}
        worst = max(worst, *(abs(result["scores"][letter] - value) for letter, value in scores.items()))
        differ += result["predicted"] != max(scores, key=scores.__getitem__)
    return Check(what, "transformers", f"{len(data)} questions", f"{differ} differ, Δ {worst:.1e}",
                 not differ and worst < 1e-3)
