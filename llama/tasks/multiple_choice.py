"""Multiple choice: what a model knows, by the option that it finds likeliest. A measure, and never trained on.

    letter   the options stand in the question; the model says how likely A, B, C and D are as what follows
    text     the options do not stand there; it says how likely the text of each is, a byte

Letters ask whether a model also understands what a letter stands for, which small ones do not: they are at chance there
and better in texts. How it is asked is in llama/zero_shot/multiple_choice.py.

    accuracy          0.5200                        26 of 50: questions count alike
    macro_accuracy    0.6625 ± 0.1301               the mean of subjects

    subject           questions  accuracy   95 % (Wilson)
    astronomy                40    0.4250   0.2851 … 0.5781
    poems                    10    0.9000   0.5958 … 0.9821

Try: let `accuracy` be the mean of subjects, too; tests/test_multiple_choice.py
(test_worked_example_scores_by_subject) fails.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal, NoReturn, get_args

from llama.metrics.intervals import margin_of_mean, wilson_interval
from llama.runtime.progress import pad_to_width
from llama.tasks.task import Task

Score = Literal["letter", "text"]
NEVER = "questions of --task multiple-choice measure what a model knows, and it is never trained on them; tune it on " \
    "other data, and score it on these with python -m llama.evaluate"


class MultipleChoiceTask(Task):
    """Questions with "question", "options" and "answer", as llama.datasets.multiple_choice gives them.

    score  by the likelihood of the "letter" of each option, or of its "text"
    """

    name, trained = "multiple-choice", False

    def __init__(self, score: Score = "letter"):
        if score not in get_args(Score):
            raise ValueError(f"score is '{score}'; it must be one of {', '.join(get_args(Score))}")
        self.score_by = score

    def prepare(self, *_: Any, **__: Any) -> NoReturn:
        raise ValueError(NEVER)

    def samples(self, *_: Any) -> NoReturn:
        raise ValueError(NEVER)

    def is_labelled(self, example: dict[str, Any]) -> bool:
        return "answer" in example

    def check(self, dataset: Sequence[dict[str, Any]]) -> None:
        """Raise ValueError for a question without an answer."""
        if (example := next((each for each in dataset if not self.is_labelled(each)), None)) is not None:
            raise ValueError(f"{example.get('place', 'a question')}: it does not say which option is right, so nothing "
                             "can be scored; give a split that has answers")

    def compute_metrics(self, results: Sequence[dict[str, Any]]) -> dict[str, float]:
        """`accuracy` of all questions with its interval (Wilson, 95 %), and `macro_accuracy`, the mean of subjects,
        with the half width of its own.
        """
        counts = list(self._counts(results).values())
        right, count = (sum(each) for each in zip(*counts, strict=True))
        low, high = wilson_interval(right, count)
        return {"accuracy": right / count, "accuracy_low": low, "accuracy_high": high,
                "macro_accuracy": sum(k / n for k, n in counts) / len(counts), "macro_margin": margin_of_mean(counts)}

    def report(self, results: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], str]:
        """Each subject, what guessing would give, and in how many questions two options were the likeliest."""
        by_subject = {}
        for subject, (right, count) in self._counts(results).items():
            low, high = wilson_interval(right, count)
            by_subject[subject] = {"accuracy": right / count, "low": low, "high": high, "questions": count}
        ties = sum(result["tie"] for result in results)
        chance = sum(1 / len(result["scores"]) for result in results) / len(results)
        lines = [f"{'subject':<40}{'questions':>10}{'accuracy':>10}   95 % (Wilson)"]
        lines += [f"{pad_to_width(subject[:38] or '-', 40)}{each['questions']:>10,}{each['accuracy']:>10.4f}   "
                  f"{each['low']:.4f} … {each['high']:.4f}" for subject, each in by_subject.items()]
        lines.append(f"{'guessing':<50}{chance:>10.4f}")
        if ties:
            lines.append(f"of {ties} questions two options or more were equally likely; the first of them counts")
        return {"by_subject": by_subject, "interval": "Wilson, 95 %", "chance": chance, "ties": ties}, "\n".join(lines)

    @staticmethod
    def _counts(results: Sequence[dict[str, Any]]) -> dict[str, tuple[int, int]]:
        """(right, questions) of each subject."""
        marks = defaultdict(list)
        for result in results:
            marks[result["subject"]].append(result["correct"])
        return {subject: (sum(some), len(some)) for subject, some in marks.items()}
