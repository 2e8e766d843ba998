import json

import pytest

import finetune
from llama.commands.method_flags import MethodFlags
from llama.methods.cut import cut
from llama.tasks.classification import ClassificationTask
from llama.tasks.generation import TextGenerationTask
from llama.tasks.preference import PreferenceTask
from llama.training.optimizer import TrainConfig

TALKS = [{"instruction": f"The dog {number}?", "output": "sleeps."} for number in range(4)]


@pytest.fixture
def door(tiny_model, tmp_path, monkeypatch, capsys):
    """finetune.py on four talks; beside the tiny model lies a student that was cut from it."""
    monkeypatch.chdir(tmp_path)
    tiny_model.save("model")
    cut(tiny_model, layers=(1,)).save("student")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in TALKS), encoding="utf-8")

    def door(*flags, model="model", steps=2):
        command = (f"finetune.py --model {model} --data a.jsonl --max-steps {steps} --batch-size 2 --device cpu "
                   "--output out --chat-format chatml --max-length 100")
        monkeypatch.setattr("sys.argv", [*command.split(), *flags])
        finetune.main()
        out = capsys.readouterr()
        return json.loads(out.out.splitlines()[-1]) if out.out.strip().endswith("}") else out.out, out.err

    return door


def test_worked_example_methods_together_resumed_and_refused_with_another(door):
    """Augmented, noisy, adversarial, over two regularised passes of LoRA; a run goes on with these methods alone."""
    flags = ["--lora", "--dropout", "0.1", "--adversarial", "freelb", "--adversarial-steps", "2", "--noise", "5",
             "--r-drop", "1", "--augment", "delete=0.2,swap=0.2"]
    result, _ = door(*flags)
    assert result["train"]["steps"] == 2 and result["train"]["loss"] > 0
    with pytest.raises(ValueError, match="is of a run with another noise; resume with noise = 5.0, or start anew"):
        door(*[each.replace("5", "6") for each in flags], "--resume", steps=3)
    result, err = door(*flags, "--resume", steps=3)
    assert "resuming after step 2 of 3" in err and result["train"]["steps"] == 3


def test_worked_example_a_student_learns_from_a_teacher_and_then_from_its_file_alone(door, tmp_path):
    result, err = door("--teacher", "model", "--teacher-cache", "said.bin", "--teacher-top-k", "16", model="student")
    assert "asking the teacher about 4 of 4 samples; what it says is kept in said.bin" in err
    again, err = door("--teacher-cache", "said.bin", "--teacher-top-k", "16", "--overwrite", model="student")
    assert "asking" not in err and again["train"]["loss"] == pytest.approx(result["train"]["loss"], rel=1e-6)
    (tmp_path / "a.jsonl").write_text(json.dumps(TALKS[0] | {"output": "runs."}) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="said.bin lacks 1 of 1 samples; give --teacher, too, and it is asked about"):
        door("--teacher-cache", "said.bin", "--teacher-top-k", "16", "--overwrite", model="student")


def test_worked_example_pairs_are_compared_on_noisy_and_moved_embeddings(door, tmp_path):
    pairs = [{"prompt": talk["instruction"], "chosen": "sleeps.", "rejected": "The fox."} for talk in TALKS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(each) + "\n" for each in pairs), encoding="utf-8")
    plain, _ = door("--task", "preference", "--lora", "--lr", "1e-9")
    moved, _ = door("--task", "preference", "--lora", "--lr", "1e-9", "--adversarial", "pgd", "--overwrite")
    assert plain["train"]["loss"] == pytest.approx(0.6931, abs=1e-3)   # log 2: nothing is preferred yet
    assert moved["train"]["loss"] > plain["train"]["loss"] + 1e-4


def test_worked_example_the_plan_of_a_run_counts_passes_and_teacher(door):
    plain, _ = door("--dry-run", model="student")
    more, _ = door("--dry-run", "--teacher", "model", "--adversarial", "freelb", model="student")
    assert "  teacher " in more and "  teacher " not in plain


def test_worked_example_inspect_shows_augmented_lines(door):
    out, _ = door("--inspect", "0", "--augment", "swap=1")
    assert "  The dog 0?\n→ dog The 0?\n" in out


@pytest.mark.parametrize(("given", "words"), [
    ({"adversarial_epsilon": 0.1}, "say how --adversarial fgm, pgd or freelb goes; give that, too"),
    ({"adversarial": "fgm", "adversarial_steps": 5}, "--adversarial fgm takes one step"),
    ({"adversarial": "freelb", "adversarial_steps": 1}, "freelb with 1 step learns unperturbed examples alone"),
    ({"temperature": 2.0}, "say how to learn from a teacher; give --teacher or --teacher-cache"),
    ({"teacher": "x", "r_drop": 1.0}, "--r-drop and --teacher each say what else probabilities shall be"),
    ({"teacher_cache": "x", "distill_hidden": 1.0}, "--distill-hidden matches states, and --teacher-cache holds"),
    ({"teacher": "x", "teacher_top_k": 5}, "--teacher-top-k is about --teacher-cache"),
    ({"teacher_cache": "x", "augment": ("delete=0.1",)}, "--augment makes new samples in every epoch"),
    ({"augment": ("delete=2",)}, r"--augment delete=2: give each of replace, .* with its rate, above 0 and up to 1"),
    ({"augment": ("delete=0.1", "delete=0.2")}, "--augment delete=0.2: give each of"),
    ({"augment": ("forget=0.1",)}, "--augment forget=0.1: give each of"),
])
def test_refusals_of_what_does_not_go_together(given, words):
    with pytest.raises(ValueError, match=words):
        MethodFlags(**given)


def test_refusals_of_what_does_not_go_with_a_task_or_a_run():
    with pytest.raises(ValueError, match="--r-drop compares two passes with other dropout, and there is none"):
        MethodFlags(r_drop=1.0).check_run(TrainConfig(), dropout=0.0)
    MethodFlags(r_drop=1.0, noise=5.0).check_run(TrainConfig(), dropout=0.0)
    with pytest.raises(ValueError, match="--adversarial fgm goes through a graph twice, and compiled blocks forget"):
        MethodFlags(adversarial="fgm").check_run(TrainConfig(compile=True), dropout=0.0)
    MethodFlags(adversarial="pgd").check_run(TrainConfig(compile=True), dropout=0.0)
    with pytest.raises(ValueError, match="of --task generation all is learned; leave it out, or take --word-dropout"):
        MethodFlags(augment=("swap=0.1",)).check_task(TextGenerationTask())
    with pytest.raises(ValueError, match="--task preference has a loss of its own: leave --augment, --r-drop and"):
        MethodFlags(teacher="x").check_task(PreferenceTask("chatml"))
    with pytest.raises(ValueError, match="--augment mix mixes texts that have one label each; leave mix out"):
        MethodFlags(augment=("mix=0.5",)).check_task(ClassificationTask(multi_label=True))
