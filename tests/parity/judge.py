"""The other side of the checks, run by the judges' own interpreter. Imports nothing of this project.

Reads lines [script, function, question, answer] and says after each whether the answer is tensors, JSON or an error.
The scripts beside it (judge_*.py) hold the functions: each takes the request, a dict, and returns the answer. They are
plain modules whose imports of libraries stand inside the functions, so that a question needs only its own libraries.
"""

import json
import os
import runpy
import sys
import traceback
from pathlib import Path


def answer_one(script, function, question, answer):
    """Run the function on the question, write its answer, and say of what kind it is."""
    with open(question, encoding="utf-8") as file:
        request = json.load(file)
    if Path(f"{question}.safetensors").exists():
        from safetensors.torch import load_file

        request["tensors"] = load_file(f"{question}.safetensors")
    if script not in SCRIPTS:
        SCRIPTS[script] = runpy.run_path(script)
    result = SCRIPTS[script][function](request)
    if isinstance(result, dict) and result and all(hasattr(value, "detach") for value in result.values()):
        from safetensors.torch import save_file

        tensors = {name: value.detach().contiguous().clone() for name, value in result.items()}
        save_file(tensors, f"{answer}.safetensors")
        return "tensors"
    with open(answer, "w", encoding="utf-8") as file:
        json.dump(result, file)
    return "json"


SCRIPTS = {}

if __name__ == "__main__":
    says = os.fdopen(os.dup(1), "w", encoding="utf-8")              # libraries may print: they do so to the log
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            outcome = answer_one(*json.loads(line))
        except Exception:
            Path(json.loads(line)[3]).write_text(traceback.format_exc(), encoding="utf-8")
            outcome = "error"
        print(outcome, file=says, flush=True)
