"""The door: ZeroShot(task).predict(model, inputs), as a tuned task's predict; with examples, few-shot.

    user        request                      «Which label fits the text: 好评, 差评? Answer with the label alone.»
                blank line, text
    assistant   what the task allows         scored (label_scoring.py), copied (extraction.py), or written

Examples stand before the question as earlier turns of the conversation, in the same words. The conversation is laid out
in the model's own chat format, and everything that two questions have in common is read once.

Try: put the examples behind the question; tests/test_zero_shot.py (test_worked_example_what_is_asked) fails.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from llama.checkpoint import PretrainedLlama
from llama.tasks.classification import ClassificationTask
from llama.tasks.instruction import InstructionTask
from llama.tasks.labelled import Example, Result
from llama.tasks.multiple_choice import MultipleChoiceTask
from llama.tasks.question_answering import QuestionAnsweringTask
from llama.tasks.tagging import NERTask, SegmentationTask
from llama.tasks.task import Task
from llama.zero_shot.extraction import Answers, Entities, Words
from llama.zero_shot.label_scoring import Labels
from llama.zero_shot.multiple_choice import Choices
from llama.zero_shot.prompting import Generative, PromptedPredictor


class ZeroShot:
    """A task for a language model that was not tuned for it.

    task      llama.ClassificationTask(labels), NERTask(types), QuestionAnsweringTask(), … : as for a tuned model
    examples  with what is right, as of a data set; each makes a turn of the prompt
    words     label -> how the prompt calls it, where the label itself says too little
    request   what the prompt asks; "" takes ours, in Chinese for Chinese texts

    Raises ValueError for a task that asks nothing, and for labels that are not there.
    """

    def __init__(self, task: Task, examples: Sequence[Example] = (), *, words: Mapping[str, str] | None = None,
                 request: str = "", chat_format: str | None = None, variables: Mapping[str, Any] | None = None):
        kinds = {ClassificationTask: Labels, NERTask: Entities, SegmentationTask: Words,
                 QuestionAnsweringTask: Answers, InstructionTask: Generative, MultipleChoiceTask: Choices}
        kind = next((asker for each, asker in kinds.items() if isinstance(task, each)), None)
        if kind is None:
            raise ValueError("text generation asks nothing of a text; its scores need no training, leave zero-shot out")
        if not isinstance(task, InstructionTask):
            for example in examples:
                if not task.is_labelled(example):
                    raise ValueError(f"{example.get('place', 'an example')}: it does not say what is right, so it "
                                     "shows the model nothing; give examples with labels")
        self.asker: PromptedPredictor = kind(task, examples, words=words or {}, request=request,
                                             chat_format=chat_format, variables=variables)

    def predict(self, model: PretrainedLlama, inputs: Sequence[Any]) -> list[Any]:
        """What the task's own `predict` gives, for the same inputs."""
        return self.asker.predict(model, inputs)

    def results(self, model: PretrainedLlama, dataset: Sequence[Example], **options: Any) -> list[Result]:
        """For each example what was found, and where it says what is right, whether it is (`Task.compute_metrics`).

        Options: those of InstructionTask.answered, for tasks that write; others need none.
        """
        return list(self.stream(model, [dataset], **options))

    def stream(self, model: PretrainedLlama, batches: Iterable[Sequence[Example]], **options: Any) -> Iterator[Result]:
        """The same for examples that come a few at a time, each batch answered before the next is asked for."""
        self.asker.open(model)
        for some in batches:
            yield from self.asker.answers(some, **options)
