import math

import pytest
import torch

from llama.tasks.generation import TextGenerationTask
from llama.tasks.instruction import InstructionTask
from llama.training.evaluation import evaluate
from llama.training.objective import Plain

EXAMPLES = [{"messages": [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "one " * n}],
             "place": str(n)} for n in (1, 5, 9, 2)]


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_two_ways_scores_do_not_depend_on_batches_and_equal_a_sum_by_hand(tiny_model, batch_size):
    task, tokenizer = InstructionTask(chat_format="chatml"), tiny_model.tokenizer
    samples = task.samples(EXAMPLES, tokenizer)
    total = targets = 0
    with torch.no_grad():
        for sample in samples:
            logs = tiny_model(torch.tensor([sample.ids]))[0].log_softmax(-1)
            for t in range(1, len(sample.ids)):
                if sample.loss_mask[t]:
                    total, targets = total - logs[t - 1, sample.ids[t]].item(), targets + 1
    scores = evaluate(Plain(tiny_model, task), samples, tokenizer, batch_size=batch_size)
    assert scores["loss"] == pytest.approx(total / targets, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(total / targets), rel=1e-4)


def test_worked_example_bits_per_byte_of_a_model_that_knows_nothing(tiny_model):
    torch.nn.init.zeros_(tiny_model.embed_tokens.weight)            # all logits 0: every token costs log V
    text, tokenizer = "The quick brown fox. 你好，世界！", tiny_model.tokenizer
    ids = tokenizer.encode(text)
    sample = TextGenerationTask().encode({"text": text}, tokenizer)
    scores = evaluate(Plain(tiny_model, TextGenerationTask()), [sample], tokenizer, batch_size=1)
    known = len(tokenizer.token_bytes(ids[0]))                      # the first token is given
    bits = len(ids) * math.log2(tiny_model.config.vocab_size)       # the others, and the end
    assert scores["bits_per_byte"] == pytest.approx(bits / (len(text.encode()) - known), rel=1e-5)


def test_property_the_model_is_left_in_the_mode_it_was_in(tiny_model):
    task = InstructionTask(chat_format="chatml")
    objective = Plain(tiny_model, task)
    for mode in (True, False):
        objective.train(mode)
        evaluate(objective, task.samples(EXAMPLES, tiny_model.tokenizer), tiny_model.tokenizer, batch_size=4)
        assert tiny_model.training is mode
