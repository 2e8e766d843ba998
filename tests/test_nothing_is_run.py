"""Files come from strangers: nothing in the program turns what it reads into code. Held by reading the program."""

import ast

import pytest
from test_ladder import FILES

RUNS_CODE = {"eval", "exec", "compile", "__import__"}               # as names; model.eval() and re.compile are others
UNPICKLES = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch.distributed.checkpoint.load"}


def findings(name, tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in UNPICKLES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if (node.module.split(".")[0] in UNPICKLES or whole == "torch.distributed.checkpoint"):
                    yield f"from {node.module} import {alias.name}"
        elif isinstance(node, ast.Call):
            words = {keyword.arg: keyword.value for keyword in node.keywords}
            if isinstance(node.func, ast.Name) and node.func.id in RUNS_CODE:
                yield f"{node.func.id}()"
            if ast.unparse(node.func) == "torch.load" and ast.unparse(words.get("weights_only", node)) != "True":
                yield "torch.load without weights_only=True"
            if "allow_pickle" in words or any(isinstance(each, ast.Constant) and each.value is True for each in
                                              [words.get("shell"), words.get("trust_remote_code")]):
                yield ast.unparse(node)


@pytest.mark.parametrize("name", FILES)
def test_property_nothing_that_is_read_becomes_code(name):
    assert not list(findings(name, ast.parse(FILES[name].read_text(encoding="utf-8"))))


@pytest.mark.parametrize("line", ["eval(x)", "import pickle", "from pickle import loads", "torch.load(x)",
                                  "torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)",
                                  "from torch.distributed import checkpoint", "subprocess.run(x, shell=True)"])
def test_property_the_reading_finds_what_would_run_code(line):
    assert list(findings("x", ast.parse(line)))
