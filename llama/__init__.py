"""A Llama written from scratch. The short API; everything else is imported from its own module.

    model = llama.get_model("smollm2-135m-instruct")
    print(model.generate("The capital of France is"))

Each door is one line that imports inside, so that `import llama` costs nothing.
"""

from typing import Any


def get_model(name_or_folder: Any, **options: Any) -> Any:
    """A model by folder, fetched name or preset; see llama.checkpoint.get_model."""
    from llama.checkpoint import get_model

    return get_model(name_or_folder, **options)


def load_model(file_or_folder: Any, **options: Any) -> Any:
    """A model from what `model.save` wrote; see llama.checkpoint.load_model."""
    from llama.checkpoint import load_model

    return load_model(file_or_folder, **options)


def TextGenerationTask(**options: Any) -> Any:  # noqa: N802 - the name of the class it opens
    """Language modelling in blocks; see llama.tasks.generation."""
    from llama.tasks.generation import TextGenerationTask

    return TextGenerationTask(**options)


def InstructionTask(**options: Any) -> Any:  # noqa: N802
    """Supervised answers; see llama.tasks.instruction."""
    from llama.tasks.instruction import InstructionTask

    return InstructionTask(**options)
