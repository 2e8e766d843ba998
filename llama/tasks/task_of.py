"""The task that a model was tuned for, as its folder says it: by the head of labels that it has.

    head      labels                    task
    sequence  any                       ClassificationTask, sentiment and opinions among it
    tokens    B, E, M, S with no type   SegmentationTask
    tokens    others                    NERTask
    spans     start, end                QuestionAnsweringTask

Which labels, whether positions see the whole text, and what else a task must know stand in the folder, too. A language
model has no such head, and does not say which of the tasks that write it learned.

Try: let every head of tokens be NERTask's; tests/test_predict.py
(test_two_ways_a_model_says_what_it_was_tuned_for) fails.
"""

from typing import Any

from llama.heads import head_config
from llama.model import Llama
from llama.tasks.classification import ClassificationTask
from llama.tasks.labelled import LabelledTask
from llama.tasks.question_answering import QuestionAnsweringTask
from llama.tasks.tagging import NERTask, SegmentationTask


def task_of(model: Llama, **options: Any) -> LabelledTask:
    """The task of a model's head, bound to the model. Options: `max_length`, and `overlap` where texts have windows.

    Raises ValueError for a model without a head of labels.
    """
    head = head_config(model)
    if head is None:
        raise ValueError("the model has no head of labels, so it does not say what it was tuned for; name the task, or "
                         "give the folder of a model or adapter that was tuned for one")
    if head.kind == "sequence":
        task: LabelledTask = ClassificationTask(multi_label=head.multi_label, **options)
    elif head.kind == "spans":
        task = QuestionAnsweringTask(**options)
    else:
        words = SegmentationTask(**options)
        task = words if set(head.labels) == set(words.labels) else NERTask(**options)
    task.bind(model)
    return task
