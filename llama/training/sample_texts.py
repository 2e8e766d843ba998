"""What a model writes while it learns: a few texts, each going on where one of the data's own does.

    step 20    «What is your name?»    writes «I am a language model»    the data say «I am Tuo.»

A curve does not show that a model repeats itself, never ends, or has learned the wrong half of a file; its texts do.
They stand in metrics.jsonl beside the losses, and the server's page shows them.

Try: begin each text one id later; tests/test_sample_texts.py (test_worked_example_a_text_goes_on_where_the_answer_does)
fails.
"""

import sys
from collections.abc import Sequence

from llama.checkpoint import PretrainedLlama
from llama.generation import generate
from llama.sampling import SamplingConfig
from llama.tasks.instruction import InstructionTask
from llama.tasks.labelled import LabelledTask
from llama.tasks.task import Sample, Task

GIVEN = 16                                                          # ids of running text, where nothing else begins one
WRITTEN = 48                                                        # ids of a text, at most


class SampleTexts:
    """Where `count` samples, spread over all of them, are gone on from. Raises ValueError for a task of labels."""

    def __init__(self, samples: Sequence[Sample], task: Task, *, count: int):
        if count and isinstance(task, LabelledTask):
            raise ValueError(f"--sample-texts {count}: a model with a head of labels writes no text; leave it out")
        self.task = task
        count = min(count, len(samples))
        parts = [samples[i * len(samples) // count].parts[0] for i in range(count)]
        self.halves = [_divided(part) for part in parts]            # ids that are given, and those that follow

    def write(self, model: PretrainedLlama, step: int) -> list[dict[str, str]]:
        """The likeliest text after each: "prompt", "text" and, as the data have it, "gold"; printed as well."""
        if not self.halves:
            return []
        tokenizer = model.tokenizer
        chat_format = self.task.format(tokenizer) if isinstance(self.task, InstructionTask) else None
        written = generate(model, [given for given, _ in self.halves], tokenizer=tokenizer, chat_format=chat_format,
                           sampling=SamplingConfig(temperature=0), max_new_tokens=WRITTEN)
        texts = [{"prompt": completion.prompt, "text": completion.text,
                  "gold": tokenizer.decode(rest[:WRITTEN], skip_special=True)}
                 for completion, (_, rest) in zip(written, self.halves, strict=True)]
        for text in texts:
            print(f"step {step}: after {text['prompt'][-60:]!r} it writes {text['text']!r}", file=sys.stderr)
        return texts


def _divided(sample: Sample) -> tuple[list[int], list[int]]:
    """The ids before the first that is learned, and those from it on."""
    begin = next((i for i, learned in enumerate(sample.loss_mask) if learned), 1)
    if begin == 1:                                                  # all of it is learned: running text
        begin = max(min(GIVEN, len(sample.ids) // 2), 1)
    return list(sample.ids[:begin]), list(sample.ids[begin:])
