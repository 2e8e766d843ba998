import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from llama.datasets.instructions import InstructionDataset
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.datasets.token_file import TokenFile, document_ids, write_tokens
from llama.tasks.generation import Blocks, TextGenerationTask
from llama.tasks.instruction import InstructionTask
from llama.tasks.task import IGNORE_INDEX, Sample, Task, Totals, to_device
from llama.training.objective import Plain
from tokenizer.chat import FORMATS

TEMPLATES = Path(__file__).parent / "fixtures" / "chat_templates"

TALK = [{"role": "user", "content": "The dog?"}, {"role": "assistant", "content": "sleeps."}]


def _text(tmp_path, **options):
    path = tmp_path / "a.txt"
    path.write_text("The dog sleeps.\n\n今天天气很好。\n\nThe fox goes home, and the dog sleeps.\n", encoding="utf-8")
    return LanguageModelingDataset(path, **options)


# task.py

def test_worked_example_collate_shifts_and_pads():
    long, short = Sample([5, 6, 7, 8], [False, False, True, True]), Sample([9, 3], [True, True])
    batch = Task().collate([long, short])
    assert batch["tokens"].tolist() == [[5, 6, 7], [9, 0, 0]]
    assert batch["targets"].tolist() == [[IGNORE_INDEX, 7, 8], [3, IGNORE_INDEX, IGNORE_INDEX]]
    assert [index.tolist() for index in Task().rows(batch)] == [[0, 0, 1], [1, 2, 0]]
    assert (long.targets, short.targets) == (2, 1) and batch["tokens"].dtype == batch["targets"].dtype == torch.int64
    assert to_device(batch, "cpu").keys() == batch.keys()


def test_two_ways_learned_ids_are_those_of_the_sample_and_of_its_batch():
    samples = [Sample([5, 6, 7, 8], [True, False, True, True]), Sample([9, 3], [False, True]), Sample([4], [True])]
    assert Task().loss_mask(samples) == [[False, *sample.loss_mask[1:]] for sample in samples]


def test_property_padding_changes_no_loss(tiny_model):
    """A row alone and beside a longer one: what stands right of it cannot be seen."""
    task = Task()
    short, long = Sample(list(range(9)), [True] * 9), Sample(list(range(40)), [False] * 40)
    alone, targets = Plain(tiny_model, task)(task.collate([short]))
    beside, targets_beside = Plain(tiny_model, task)(task.collate([short, long]))
    assert targets == targets_beside == 8
    torch.testing.assert_close(alone, beside, rtol=1e-5, atol=0)


def test_worked_example_scores():
    scores = Task().score(Totals(loss=math.log(2) * 24, targets=8, bytes=6, characters=2))              # 24 bits
    assert scores == pytest.approx({"loss": 3 * math.log(2), "perplexity": 8, "bits_per_byte": 4,
                                    "bits_per_character": 12})
    assert Task().score(Totals(loss=1e6, targets=1)).keys() == {"loss", "perplexity"}
    with pytest.raises(ValueError, match="the data holds no target"):
        Task().score(Totals())


def test_two_ways_sizes_of_targets_are_those_of_the_text(tiny_tokenizer):
    text = "The dog 今天👩‍👩‍👧 sleeps."
    ids = [tiny_tokenizer.special_ids["<|im_start|>"], *document_ids(text, tiny_tokenizer)]
    targets = torch.tensor([[*ids, IGNORE_INDEX], [IGNORE_INDEX, *ids]])
    task = Task()
    assert task.sizes_of(targets, tiny_tokenizer) == {"bytes": 2 * len(text.encode()), "characters": 2 * len(text)}
    assert task.sizes_of(targets[:1], tiny_tokenizer) == {"bytes": len(text.encode()), "characters": len(text)}


# generation.py

def test_worked_example_blocks_with_overlap():
    a, b, c = Blocks(np.arange(10), block_size=4, overlap=1)
    assert a == Sample([0, 1, 2, 3, 4], [False, True, True, True, True], "block 1 of 3")
    assert b == Sample([3, 4, 5, 6, 7], [False, False, True, True, True], "block 2 of 3")
    assert c == Sample([6, 7, 8, 9], [False, False, True, True], "block 3 of 3")


@pytest.mark.parametrize(("length", "block_size"), list(itertools.product(range(14), (1, 2, 4, 20))))
def test_property_every_id_is_learned_once(length, block_size):
    for overlap in range(block_size):
        blocks = Blocks(np.arange(length), block_size, overlap)
        learned = [i for sample in blocks for i, learn in zip(sample.ids, sample.loss_mask, strict=True) if learn]
        assert learned == list(range(1, length))
        assert all(sample.targets and len(sample.ids) <= block_size + 1 for sample in blocks)
        assert len(blocks) == len(list(blocks)) and blocks[1:] == list(blocks)[1:] and blocks[-1:] == list(blocks)[-1:]


def test_property_text_is_kept_with_an_end_after_each_document(tmp_path, tiny_tokenizer):
    dataset = _text(tmp_path, block_size=7)
    samples = TextGenerationTask().samples(dataset, tiny_tokenizer)
    ids = samples[0].ids[:1] + [i for sample in samples for i in sample.ids[1:]]
    end = tiny_tokenizer.decode(tiny_tokenizer.eos_ids[:1])
    assert tiny_tokenizer.decode(ids) == "".join(example["text"] + end for example in dataset)
    alone = TextGenerationTask().encode(dataset[0], tiny_tokenizer)
    assert alone.ids == document_ids(dataset[0]["text"], tiny_tokenizer) and alone.targets == len(alone.ids) - 1


@pytest.mark.parametrize("overlap", [0, 3])
def test_two_ways_a_token_file_gives_the_samples_of_the_text(tmp_path, tiny_tokenizer, overlap):
    dataset, task = _text(tmp_path, block_size=8, overlap=overlap), TextGenerationTask()
    write_tokens(tmp_path / "t", (example["text"] for example in dataset), tiny_tokenizer)
    mapped = TokenFile(tmp_path / "t", block_size=8, overlap=overlap, tokenizer=tiny_tokenizer)
    assert list(task.samples(mapped, tiny_tokenizer)) == list(task.samples(dataset, tiny_tokenizer))


def test_property_overlap_changes_what_is_seen_not_what_is_counted(tmp_path, tiny_model):
    totals = []
    for overlap in (0, 6):
        task = TextGenerationTask()
        samples = task.samples(_text(tmp_path, block_size=8, overlap=overlap), tiny_model.tokenizer)
        batch = task.collate(samples)
        totals.append((len(task.rows(batch)[0]), task.sizes_of(batch["targets"], tiny_model.tokenizer)))
    assert totals[0] == totals[1]


def test_two_ways_predict_goes_on_as_generate_does(tiny_model):
    options = {"max_new_tokens": 6, "temperature": 0.0}
    together = TextGenerationTask().predict(tiny_model, ["The dog", "今天天气"], **options)
    assert together == [tiny_model.generate(prompt, **options) for prompt in ("The dog", "今天天气")]


# instruction.py

def test_worked_example_the_answer_and_its_end_are_learned(tiny_tokenizer):
    sample = InstructionTask("chatml").encode({"messages": TALK, "place": "f:1"}, tiny_tokenizer)
    learned = [i for i, learn in zip(sample.ids, sample.loss_mask, strict=True) if learn]
    assert tiny_tokenizer.decode(learned) == "sleeps.<|im_end|>"
    assert tiny_tokenizer.decode(sample.ids) == ("<|im_start|>user\nThe dog?<|im_end|>\n"
                                                 "<|im_start|>assistant\nsleeps.<|im_end|>\n")
    assert (sample.place, sample.cut) == ("f:1", 0)


def test_worked_example_an_answer_of_weight_0_is_read(tiny_tokenizer):
    wrong = [TALK[0], {"role": "assistant", "content": "barks.", "weight": 0}]
    sample = InstructionTask("chatml").encode({"messages": [*wrong, *TALK]}, tiny_tokenizer)
    learned = [i for i, learn in zip(sample.ids, sample.loss_mask, strict=True) if learn]
    assert tiny_tokenizer.decode(learned) == "sleeps.<|im_end|>" and "barks." in tiny_tokenizer.decode(sample.ids)
    assert not InstructionTask("chatml").encode({"messages": wrong}, tiny_tokenizer).targets


def test_refusal_of_what_the_format_does_not_write(tiny_tokenizer):
    call = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {
        "name": "weather", "arguments": {"city": "北京"}}}]}
    thought = {"role": "assistant", "content": "sleeps.", "reasoning_content": "What do dogs do?"}
    task = InstructionTask("chatml")
    for example, words in (({"messages": [TALK[0], call]}, "'tool_calls' of this conversation .«weather»"),
                           ({"messages": [TALK[0], thought]}, "'reasoning_content' of this conversation"),
                           ({"messages": TALK, "tools": [{"name": "weather"}]}, "'chatml' has no place for tools")):
        with pytest.raises(ValueError, match=f"f:9: .*{words}"):
            task.encode(example | {"place": "f:9"}, tiny_tokenizer)


def test_worked_example_conversations_that_cannot_be_written_are_skipped_when_asked(tiny_tokenizer, caplog):
    data = [{"messages": [{"role": "tool", "content": "?"}, TALK[1]], "place": "f:1"}, {"messages": TALK}]
    with pytest.raises(ValueError, match="f:1: message 1 of the chat has the role 'tool'.*--skip-bad"):
        InstructionTask("chatml", skip_bad=False).samples(data, tiny_tokenizer)
    assert len(InstructionTask("chatml", skip_bad=True).samples(data, tiny_tokenizer)) == 1
    assert "1 left out by --skip-bad, the first: f:1: message 1" in caplog.text


def test_two_ways_prompts_of_generation_begin_the_samples_of_tuning(tiny_tokenizer):
    for name in ("chatml", "alpaca"):
        task = InstructionTask(name)
        prompt = task.prompt("The dog?", tiny_tokenizer)
        assert task.encode({"messages": TALK}, tiny_tokenizer).ids[: len(prompt)] == prompt


def test_two_ways_each_answer_of_a_conversation_follows_what_generation_would_be_given(tiny_tokenizer):
    again = [{"role": "user", "content": "天气？"}, {"role": "assistant", "content": "很好。"}]
    for name in ("chatml", "alpaca"):
        task, example = InstructionTask(name), {"messages": [*TALK, *again]}
        sample, prompts = task.encode(example, tiny_tokenizer), list(task.prompts(example, tiny_tokenizer))
        assert prompts[0] == task.prompt("The dog?", tiny_tokenizer) and len(prompts) == 2
        for prompt in prompts:
            assert sample.ids[: len(prompt)] == prompt and sample.loss_mask[len(prompt) - 1 : len(prompt) + 1] == [0, 1]


@pytest.mark.parametrize("variables, thought, expected", [
    ({"enable_thinking": False}, "", ["A<|im_end|>", "B<|im_end|>"]),
    ({}, "<think>\nhm\n</think>\n\n", [f"<think>\nhm\n</think>\n\n{word}<|im_end|>" for word in "AB"])])
def test_worked_example_answers_that_the_template_writes_otherwise_later(variables, thought, expected, tiny_tokenizer,
                                                                         caplog):
    """By a template like Qwen 3's: each answer is learned as it is asked for, the ones before it are read as they are
    then written; and an answer follows what generation would be given."""
    task = InstructionTask(str(TEMPLATES / "thinking.jinja"), variables=variables)
    talk = [{"role": "user", "content": "one"}, {"role": "assistant", "content": f"{thought}A"},
            {"role": "user", "content": "two"}, {"role": "assistant", "content": f"{thought}B"}]
    samples = task.samples([{"messages": talk}, {"messages": talk[:2]}], tiny_tokenizer)
    learned = [tiny_tokenizer.decode([id for id, flag in zip(sample.ids, sample.loss_mask, strict=True) if flag])
               for sample in samples]
    assert learned == [*expected, expected[0]]
    assert "2 answers are samples of their own" in caplog.text
    for sample in samples:
        (prompt,) = task.prompts(sample.example, tiny_tokenizer)
        assert sample.ids[: len(prompt)] == prompt


def test_property_a_chat_format_brings_the_end_of_its_answers(tiny_tokenizer, monkeypatch):
    """A base model's files call only the end of a document an end."""
    text, turn = (tiny_tokenizer.special_ids[mark] for mark in ("<|endoftext|>", "<|im_end|>"))
    monkeypatch.setattr(tiny_tokenizer, "eos_ids", (text,))
    assert Task().ends(tiny_tokenizer) == {text} and InstructionTask("chatml").ends(tiny_tokenizer) == {text, turn}


def test_property_the_format_is_the_one_asked_for_or_the_tokenizers_own(tiny_tokenizer, monkeypatch, caplog):
    assert InstructionTask().format(tiny_tokenizer).name == "alpaca"
    InstructionTask().samples([{"messages": TALK}], tiny_tokenizer)
    assert "no chat format; conversations are laid out in the format 'alpaca'" in caplog.text
    monkeypatch.setattr(tiny_tokenizer, "chat_template", FORMATS["chatml"].template)
    assert InstructionTask().format(tiny_tokenizer).name == "chatml"
    assert InstructionTask("llama-3").format(tiny_tokenizer).name == "llama-3"


def test_property_cut_samples_are_counted(tiny_tokenizer, caplog):
    asked = [{"role": "user", "content": "The dog? " * 50}, TALK[1]]
    said = [TALK[0], {"role": "assistant", "content": "sleeps. " * 50}]
    told = [*TALK, {"role": "user", "content": "?"}]
    talks = [{"messages": each} for each in (TALK, asked, said, told)]
    samples = InstructionTask("chatml", max_length=60).samples(talks, tiny_tokenizer)
    assert [(sample.cut > 0, sample.lost > 0) for sample in samples] == [(0, 0), (1, 0), (0, 1), (0, 0)]
    assert ("2 of 4 samples were longer than 60 tokens: 1 learn an answer without its end, 1 read a question without "
            "its middle; --max-length") in caplog.text
    whole = max(len(InstructionTask("chatml", 9999).encode(each, tiny_tokenizer).ids) for each in talks)
    assert f"--max-length {whole - 1} holds all" in caplog.text     # the line end behind the last answer is nobody's
    with pytest.raises(ValueError, match="none of 1 samples has room for an answer in 9 tokens"):
        InstructionTask("chatml", max_length=9).samples(talks[:1], tiny_tokenizer)


def test_property_both_tasks_lower_the_loss_of_what_they_teach(tmp_path, tiny_model):
    """The whole way: a file, samples, a batch, a loss, its gradient."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "The dog?", "output": "sleeps."}\n{"instruction": "天气？", "output": "很好。"}\n',
                    encoding="utf-8")
    talk, text = (InstructionTask("chatml"), InstructionDataset(path)), (TextGenerationTask(), _text(tmp_path))
    for task, dataset in (talk, text):
        batch = task.collate(task.samples(dataset, tiny_model.tokenizer))
        losses = []
        for _ in range(3):
            loss, targets = Plain(tiny_model, task)(batch)
            tiny_model.zero_grad()
            (loss / targets).backward()
            with torch.no_grad():
                for parameter in tiny_model.parameters():
                    parameter -= 0.3 * parameter.grad
            losses.append(loss.item())
        assert losses[0] > losses[1] > losses[2]


def test_two_ways_predict_answers_as_the_chat_format_asks(tiny_model):
    task, options = InstructionTask("chatml"), {"max_new_tokens": 6, "temperature": 0.0, "ignore_eos": True}
    alone = [task.predict(tiny_model, [text], **options)[0] for text in ("The dog?", "你好")]
    assert task.predict(tiny_model, ["The dog?", "你好"], **options) == alone


def test_refusal_of_formats_and_lengths(tiny_tokenizer, monkeypatch):
    with pytest.raises(ValueError, match="the chat format 'vicuna' is not known; known are chatml"):
        InstructionTask("vicuna")
    with pytest.raises(ValueError, match="max_length is 1; it must be at least 2"):
        InstructionTask(max_length=1)
    with pytest.raises(ValueError, match="f:9: the chat format 'llama-2' needs <bos>"):
        InstructionTask("llama-2").encode({"messages": TALK, "place": "f:9"}, tiny_tokenizer)
    monkeypatch.setattr(tiny_tokenizer, "chat_template", "{{ unknown }}")
    with pytest.raises(ValueError, match="--chat-format"):
        InstructionTask().samples([{"messages": TALK}], tiny_tokenizer)
