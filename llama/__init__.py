"""A Llama written from scratch. The short API; everything else is imported from its own module.

    model = llama.get_model("smollm2-135m-instruct")
    print(model.generate("The capital of France is"))

Data is divided without leaks by `train, validation, test = llama.split(data)` (llama/datasets/split.py). What a model
was tuned for is `llama.task_of(model)`, whose `predict(model, texts)` does it (llama/tasks/task_of.py); without
training, `llama.ZeroShot(task).predict(model, texts)` asks for the same (llama/zero_shot). Words whose vectors are near
that of a word are `llama.nearest(model, word)` (llama/word_vectors.py). What happens inside is shown by
`llama.lens.attention(model, ids)`, `logit_lens` and `contributions` (llama/lens.py).

A name is imported when it is first used, so that `import llama` costs nothing.

Try: add a task of your own here; tests/test_api.py checks that every door opens.
"""

import importlib
from typing import Any

LAZY_EXPORTS = {
    "get_model": "llama.pretrained",
    "load_model": "llama.checkpoint",
    "TextGenerationTask": "llama.tasks.generation",
    "InstructionTask": "llama.tasks.instruction",
    "SummarizationTask": "llama.tasks.pairs",
    "TranslationTask": "llama.tasks.pairs",
    "ClassificationTask": "llama.tasks.classification",
    "OpinionTask": "llama.tasks.opinion",
    "NERTask": "llama.tasks.tagging",
    "SegmentationTask": "llama.tasks.tagging",
    "QuestionAnsweringTask": "llama.tasks.question_answering",
    "task_of": "llama.tasks.task_of",
    "MultipleChoiceTask": "llama.tasks.multiple_choice",
    "ZeroShot": "llama.zero_shot.zero_shot",
    "nearest": "llama.word_vectors",
    "Trainer": "llama.trainer",
    "split": "llama.datasets.split",
    "resize_embeddings": "llama.resize",
    "readable": "llama.fast.agreement",
    "compile_step": "llama.fast.agreement",
    "lens": "llama.lens",
}


def __dir__() -> list[str]:
    return sorted([*globals(), *LAZY_EXPORTS])


def __getattr__(name: str) -> Any:
    if name not in LAZY_EXPORTS:
        raise AttributeError(f"module 'llama' has no attribute '{name}'; its doors are {', '.join(LAZY_EXPORTS)}")
    module = importlib.import_module(LAZY_EXPORTS[name])
    return module if module.__name__ == f"llama.{name}" else getattr(module, name)
