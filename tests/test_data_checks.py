"""Each check by a sample that it alone refuses, and all of them by samples that are well."""

import dataclasses
from pathlib import Path

import pytest

from llama.checkpoint import PretrainedLlama
from llama.config import preset
from llama.datasets import token_file
from llama.datasets.instructions import InstructionDataset
from llama.datasets.token_file import TokenFile, write_tokens
from llama.tasks.generation import TextGenerationTask
from llama.tasks.instruction import InstructionTask
from llama.tasks.preference import PreferenceTask
from llama.tasks.task import IGNORE_INDEX, Sample, Task
from llama.trainer import Trainer
from llama.training.data_checks import CHECKS, OF_DATA, examine
from llama.training.optimizer import TrainConfig
from tokenizer.chat import FORMATS

IDENTITY = Path(__file__).resolve().parent.parent / "examples" / "identity.jsonl"
CHATML = FORMATS["chatml"]
BRIEF = CHATML.template.replace("{% for message in messages %}", "{% for message in messages %}{% if loop.first and "
                                "messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}"
                                "{% endif %}")


def _talk(question, answer, place):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            "place": place}


TALKS = [_talk("The dog?", "sleeps.", "f.jsonl:1"), _talk("天气？", "很好。", "f.jsonl:2")]
READ = [{**talk, "messages": [talk["messages"][0], {**talk["messages"][1], "weight": 0}]} for talk in TALKS]


def _report(task, data, tokenizer, vocab_size=None):
    return examine(task, data, task.samples(data, tokenizer), tokenizer, vocab_size=vocab_size or tokenizer.vocab_size)


class CutsTheEnd(InstructionTask):
    """As many do it: what is too long loses its end."""

    def encode(self, example, tokenizer):
        sample = super().encode(example, tokenizer)
        return Sample(sample.ids[:-3], sample.loss_mask[:-3], sample.place, lost=3)


class LosesTheBeginning(InstructionTask):
    """As this program did it: of what is too long the end is kept."""

    def encode(self, example, tokenizer):
        sample = super().encode(example, tokenizer)
        cut = sample.loss_mask.index(True) - 1
        return dataclasses.replace(sample, ids=sample.ids[cut:], loss_mask=sample.loss_mask[cut:], cut=cut)

    def prompts(self, example, tokenizer):
        return ()


class MasksThePaddingId(InstructionTask):
    """As many do it: labels == pad_id are ignored, wherever they stand."""

    def __init__(self, chat_format, pad_id):
        super().__init__(chat_format)
        self.pad_id = pad_id

    def collate(self, samples):
        batch = super().collate(samples)
        return batch | {"targets": batch["targets"].masked_fill(batch["targets"] == self.pad_id, IGNORE_INDEX)}


class AsksWithASpace(InstructionTask):
    """A prompt that ends in the space that tuning has at the beginning of the answer's first token."""

    def prompts(self, example, tokenizer):
        return [prompt + tokenizer.encode(" ") for prompt in super().prompts(example, tokenizer)]


class NeverEndsTheRejected(PreferenceTask):
    def encode(self, example, tokenizer):
        pair = super().encode(example, tokenizer)
        pair.rejected.loss_mask[-2] = False
        return pair


def _turns(head="<|im_start|>user\n", body="{}<|im_end|>", tail="\n"):
    """ChatML with other words for the user's head, or another end of the assistant's turn."""
    turns = CHATML.turns | {"user": (head, "{}<|im_end|>", "\n"), "assistant": ("<|im_start|>assistant\n", body, tail)}
    return dataclasses.replace(CHATML, turns=turns)


@pytest.fixture
def broken(tiny_tokenizer, tmp_path, monkeypatch):
    """Name of a check -> task, data, rows of the embedding, words of the refusal: what this check alone refuses."""
    end, V = tiny_tokenizer.special_ids["<|im_end|>"], tiny_tokenizer.vocab_size

    def unended_documents():
        with monkeypatch.context() as patch:
            patch.setattr(token_file, "document_ids", lambda text, tokenizer: tokenizer.encode(text))
            write_tokens(tmp_path / "t", ["The dog sleeps.", "The fox goes home."], tiny_tokenizer)
        return TextGenerationTask(), TokenFile(tmp_path / "t", block_size=8, tokenizer=tiny_tokenizer), V

    def case(name):
        if name == "masked":
            return InstructionTask("chatml"), READ, V, "nothing is to be learned of its"
        if name == "eos":
            monkeypatch.setitem(FORMATS, "chatml", _turns(body="{}", tail="<|im_end|>\n"))
            return InstructionTask("chatml"), TALKS, V, f"the end id {end} at position"
        if name == "eos-cut":
            return CutsTheEnd("chatml"), TALKS, V, "lost its last 3 ids"
        if name == "rejected":
            pairs = [{**talk, "messages": talk["messages"][:-1], "chosen": talk["messages"][-1],
                      "rejected": {"role": "assistant", "content": "No."}} for talk in TALKS]
            return NeverEndsTheRejected("chatml"), pairs, V, f"of the rejected answer, the end id {end} at position"
        if name == "pad-is-eos":
            monkeypatch.setattr(tiny_tokenizer, "pad_id", end)
            return MasksThePaddingId("chatml", end), TALKS, V, f"is not learned, and is the padding id {end}"
        if name == "question":
            return LosesTheBeginning("chatml"), TALKS, V, "the answer is learned without its question, «The dog.»"
        if name == "doubled-bos":
            monkeypatch.setattr(tiny_tokenizer, "bos_id", tiny_tokenizer.special_ids["<|im_start|>"])
            monkeypatch.setitem(FORMATS, "chatml", dataclasses.replace(CHATML, begin="<bos>"))
            return InstructionTask("chatml"), TALKS, V, "stands at position 0 and again at 1"
        if name == "prompt-prefix":
            return AsksWithASpace("chatml"), TALKS, V, "the prompt that generation would be given"
        if name == "vocabulary":
            return InstructionTask("chatml"), TALKS, 300, "the model's vocabulary has 300"
        if name == "template":
            monkeypatch.setattr(tiny_tokenizer, "chat_template", CHATML.template)
            return InstructionTask("alpaca"), TALKS, V, "as 'alpaca' beginning with «Below is"
        if name == "document-ends":
            return *unended_documents(), "there are 2 documents, and 0 ends are learned"
        raise AssertionError(f"no case is known for the check {name}")

    return case


@pytest.mark.parametrize("name", CHECKS)
def test_refusal_each_check_by_its_name(broken, tiny_tokenizer, name):
    task, data, V, words = broken(name)
    report = _report(task, data, tiny_tokenizer, V)
    assert list(report.findings) == [name]
    with pytest.raises(ValueError, match=f"^{name}: .*{words}.*--allow {name}$") as refused:
        report.refuse()
    if CHECKS[name] not in OF_DATA:
        assert "f.jsonl:1 (sample 1 of 2)" in str(refused.value)
    report.refuse([name])
    assert f"check {name:<14} FAILED " in report.table() and f"check {name:<14} allowed " in report.table([name])
    assert report.summary().split("\n")[1].startswith(f"allowed by --allow: {name}: ")

    model = PretrainedLlama(preset("test", vocab_size=V))
    model.tokenizer = tiny_tokenizer
    with pytest.raises(ValueError, match=f"^{name}: "):
        Trainer(model, task, data)
    assert Trainer(model, task, data, allow=[name]).report.findings.keys() == {name}


@pytest.mark.parametrize("own", [True, False])
def test_property_the_bundled_examples_pass_every_check(tiny_tokenizer, monkeypatch, own):
    """As in the default model: a template with a system message of its own, and the end of a turn also pads."""
    if own:
        monkeypatch.setattr(tiny_tokenizer, "chat_template", BRIEF)
    monkeypatch.setattr(tiny_tokenizer, "pad_id", tiny_tokenizer.special_ids["<|im_end|>"])
    data = InstructionDataset(IDENTITY)
    report = _report(InstructionTask(None if own else "chatml", max_length=2000), data, tiny_tokenizer)
    report.refuse()
    assert report.counts.samples == report.counts.eos_supervised == len(data)
    assert set(report.made) == set(InstructionTask.checks) and "FAILED" not in report.table()


def test_property_the_systems_own_message_belongs_to_the_template(tiny_tokenizer, monkeypatch):
    """--chat-format chatml on a ChatML model that brings a system message of its own leaves that message out."""
    monkeypatch.setattr(tiny_tokenizer, "chat_template", BRIEF)
    assert _report(InstructionTask(), TALKS, tiny_tokenizer).findings == {}
    report = _report(InstructionTask("chatml"), TALKS, tiny_tokenizer)
    assert "beginning with «Be brief.»" in report.sentence("template")


def test_worked_example_counts_of_conversations(tiny_tokenizer):
    data = [*TALKS, {"messages": [*TALKS[0]["messages"], *TALKS[1]["messages"]], "place": "f.jsonl:3"},
            _talk("The dog? " * 99, "sleeps.", "f.jsonl:4")]
    task = InstructionTask("chatml", max_length=200)
    samples = task.samples(data, tiny_tokenizer)
    counts = _report(task, data, tiny_tokenizer).counts
    assert (counts.samples, counts.truncated, counts.packed, counts.fully_masked) == (4, 1, 0, 0)
    assert counts.eos_supervised == 5                               # the third conversation has two answers
    assert counts.tokens == sum(len(sample.ids) - 1 for sample in samples)
    assert counts.supervised_tokens == sum(sample.targets for sample in samples)


def test_worked_example_counts_of_packed_text(tiny_tokenizer, tmp_path):
    """Two documents of three and two ids, each with its end, in blocks of 4: the first block holds of both."""
    write_tokens(tmp_path / "t", ["xyz", "qw"], tiny_tokenizer)
    task, data = TextGenerationTask(), TokenFile(tmp_path / "t", block_size=4, tokenizer=tiny_tokenizer)
    assert len(data) == 7
    report = _report(task, data, tiny_tokenizer)
    report.refuse()
    assert dataclasses.asdict(report.counts) == {"samples": 2, "tokens": 6, "supervised_tokens": 6, "truncated": 0,
                                                 "packed": 1, "fully_masked": 0, "eos_supervised": 2}
    assert report.summary() == ("2 samples, 6 tokens, 6 supervised tokens, 0 truncated, 1 packed, 0 fully masked, "
                                "2 EOS supervised; 4 of 4 checks passed")


def test_property_a_check_counts_all_that_fail_and_names_the_first(tiny_tokenizer):
    class ForgetsOddAnswers(InstructionTask):
        def encode(self, example, tokenizer):
            sample = super().encode(example, tokenizer)
            odd = int(sample.place.split(":")[1]) % 2
            return dataclasses.replace(sample, loss_mask=[False] * len(sample.ids)) if odd else sample

    data = [{**TALKS[0], "place": f"f.jsonl:{i}"} for i in range(200, 0, -1)]
    report = _report(ForgetsOddAnswers("chatml"), data, tiny_tokenizer)
    assert report.sentence("masked").startswith("masked: f.jsonl:199 (sample 2 of 200) and 99 more: nothing")
    assert report.counts.fully_masked == report.findings["masked"].number == 100


def test_property_a_task_says_which_checks_apply(tiny_tokenizer):
    class Tagging(Task):
        """No text is written, so nothing ends."""

        def encode(self, example, tokenizer):
            ids = tokenizer.encode(example["text"])
            return Sample(ids, [True] * len(ids))

    report = _report(Tagging(), [{"text": "The dog"}], tiny_tokenizer)
    report.refuse()
    assert report.made == ["masked", "doubled-bos", "vocabulary"]


def test_property_answers_that_lost_their_end_are_allowed_up_to_a_half(tiny_tokenizer):
    long = _talk("The dog?", "sleeps. " * 99, "f.jsonl:3")
    for data, failed in (([*TALKS, long], False), ([*TALKS, long, long, long], True)):
        report = _report(InstructionTask("chatml", max_length=64), data, tiny_tokenizer)
        assert ("eos-cut" in report.findings) is failed and report.counts.truncated == len(data) - 2


def test_property_ids_outside_of_the_vocabulary_are_found_at_both_ends(tiny_tokenizer):
    for token in (-1, 400):
        class Strange(Task):
            def encode(self, example, tokenizer, token=token):
                return Sample([5, token], [False, True])

        report = _report(Strange(), [{}], tiny_tokenizer, 400)
        assert f"position 1 holds the id {token}" in report.sentence("vocabulary")


def test_property_training_goes_on_where_a_masked_sample_is_allowed(tiny_model):
    trainer = Trainer(tiny_model, InstructionTask("chatml"), READ, config=TrainConfig(epochs=1), allow=["masked"])
    assert trainer.train()["train"]["loss"] == 0


def test_refusal_of_names_that_no_check_has(tiny_tokenizer):
    report = _report(InstructionTask("chatml"), TALKS, tiny_tokenizer)
    with pytest.raises(ValueError, match="no check is called bos, eoss; checks are masked, eos, "):
        report.refuse(["eoss", "bos", "masked"])
