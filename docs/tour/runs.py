"""What comes out of the commands of the tour before and after one edit, kept in runs.json.

    python -m docs.tour.runs [NAME …]      run those anew, or all whose edit or commands are others than when they ran

An edit is one of tests/mutants.py by its name, made in a copy of the program; the commands run there as they are shown,
on SmolLM2. The last one's output is what is kept.

Try: change an edit in tests/mutants.py; tests/test_tour.py (test_property_kept_runs_are_of_these_edits) fails.
"""

import json
import os
import subprocess
import sys
import tempfile
from datetime import date
from functools import cache
from pathlib import Path

import torch

from llama.benchmark.machine import cpu_name
from tests.learners import copy_of_the_code
from tests.mutants import HOME, MUTANTS, mutated

KEPT = Path(__file__).with_name("runs.json")
MODELS = ("smollm2-135m-instruct",)
WRITE = 'python generate.py --readable --prompt "{}" --max-new-tokens {} --temperature 0'
CAPITAL = WRITE.format("The capital of France is", 24)
STORY = WRITE.format("Once upon a time, in a small village by the sea,", 40)
ASK = 'python generate.py --adapter adapters/tour --chat --prompt "Who are you?" --max-new-tokens 24 --temperature 0'
LEARN = "python finetune.py --lora --max-steps 1 --batch-size 2 --output adapters/tour --overwrite"
SCRATCH = ("python train.py --data examples/neutral.txt --preset test --vocab-size 400 --block-size 64 --max-steps {} "
           "--output weights/tour --overwrite")
LOSSES = ' 2>&1 | grep -oE "^step [0-9/]+ loss [0-9.]+|.*other numbers.*"'
TENTHS = ' 2>&1 | grep -oE "^step (1|10|20|30|40)/40 loss [0-9.]+"'
RUNS: dict[str, tuple[str, ...]] = {
    "the leftmost pair merges first": (CAPITAL,),
    "embeddings as long as the first transformer's": (CAPITAL,),
    "a norm without its weight": (CAPITAL,),
    "a norm that takes the mean away": (CAPITAL,),
    "rotary pairs are neighbours": (STORY,),
    "key-value heads repeat in the wrong order": (CAPITAL,),
    "causal mask aligned to the upper left": (CAPITAL,),
    "scores without 1/√K": (CAPITAL,),
    "cached texts start again at position 0": (STORY,),
    "GELU for SiLU": (CAPITAL,),
    "a block that forgets what came in": (CAPITAL,),
    "no norm before the head": (CAPITAL,),
    "a temperature that multiplies": (STORY.replace("--temperature 0", "--temperature 0.5 --seed 1"),),
    "one scale for a whole matrix": (CAPITAL.replace("--readable", "--quantize int8 --readable"),),
    "a guess that was refused may come again": (
        WRITE.replace("--temperature 0", "--temperature 1 --seed 1").replace("--readable", "--lookup").format(
            "tick tock tick tock tick tock tick tock tick tock tick", 32),),
    "an adapter that begins as noise": (LEARN, ASK),
    "a gradient of the norm that leaves out rms(x)": (SCRATCH.format(5) + LOSSES,),
    "labels are not shifted": (SCRATCH.format(40) + TENTHS,),
    "masters as coarse as what they stand behind": (SCRATCH.format(40) + " --dtype bfloat16 --lr 3e-4" + TENTHS,),
    "sums that stay at home": (
        "torchrun --nproc-per-node 2 " + SCRATCH.format(5).removeprefix("python ") + " --batch-size 4" + LOSSES,),
    "a balance of choices alone": ("python examples/experts.py",),
    "merged without α/R": (
        SCRATCH.format(5),
        "python finetune.py --lora --model weights/tour --rank 2 --alpha 32 --max-steps 3 --max-length 256 "
        "--output adapters/tour --overwrite",
        "python -m llama.merge --model weights/tour --adapter adapters/tour --output weights/tour-merged --overwrite "
        "2>&1 | grep ^merged"),
}


def shown(name: str) -> str:
    """The commands of a run as a page shows them, with what they ran on."""
    kept_run = kept()[name]
    return "".join(f"{command}\n" for command in kept_run["commands"]) + f"# {kept_run['on']}\n"


@cache
def kept() -> dict[str, dict]:
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}


def edit_of(name: str) -> list[str]:
    edit = next(each for each in MUTANTS if each.name == name)
    return [edit.file, edit.old, edit.new]


def stale(name: str) -> bool:
    """Whether what is kept came of another edit, or of other commands."""
    run = kept().get(name, {})
    return run.get("edit") != edit_of(name) or run.get("commands") != list(RUNS[name])


def output_of(code: Path, commands: tuple[str, ...]) -> str:
    """What the last command writes, on stderr if not on stdout, without blanks at the ends of lines."""
    place = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(code),
             "OMP_NUM_THREADS": "1"}
    for command in commands:
        run = subprocess.run(command, shell=True, cwd=code, env=os.environ | place, capture_output=True, text=True,
                             encoding="utf-8", check=False)
        if run.returncode:
            raise RuntimeError(f"{command}: {run.stderr[-2000:]}")
    said = run.stdout if run.stdout.strip() else run.stderr
    return "".join(f"{line.rstrip()}\n" for line in said.strip("\n").splitlines())


def run(name: str, folder: Path, before: dict[tuple[str, ...], str]) -> dict:
    commands = RUNS[name]
    outputs = []
    for edited in (False, True):
        code = copy_of_the_code(folder / f"{len(list(folder.iterdir()))}")
        for model in MODELS:
            (code / "weights" / model).symlink_to((HOME / "weights" / model).resolve())
        if edited:
            mutated(code, next(each for each in MUTANTS if each.name == name))
            outputs.append(output_of(code, commands))
        else:
            if commands not in before:
                before[commands] = output_of(code, commands)
            outputs.append(before[commands])
    on = f"{cpu_name()} ({torch.backends.cpu.get_cpu_capability()}), one thread, {date.today()}"
    return {"commands": list(commands), "edit": edit_of(name), "on": on, "before": outputs[0], "after": outputs[1]}


def main() -> None:
    before: dict[tuple[str, ...], str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in sys.argv[1:] or [name for name in RUNS if stale(name)]:
            found = run(name, Path(temporary), before)
            everything = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else {}
            everything[name] = found
            KEPT.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            print(f"== {name}\n-- before\n{found['before']}-- after\n{found['after']}", flush=True)


if __name__ == "__main__":
    main()
