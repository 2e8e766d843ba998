"""The house has stairs that go one way: every import, also one inside a function, leads to a lower rung.

A rung is a file, or a room whose files stand on one rung; inside a room files may import each other, but nowhere is
there a circle of files.
"""

import ast
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent

LADDER = """
    tokenizer  llama.runtime.interrupt  llama.runtime.run_lock  llama.runtime.worker  llama.runtime.distributed
    llama.runtime.terminal  llama.runtime.ranges  llama.runtime.destinations  llama.runtime.room  llama.runtime.figures
    weights.formats  llama.runtime.progress  llama.fast.numbers
    llama.runtime.cli
    llama.config
    llama.config_json  llama.masks  llama.rope_scaling  llama.sampling  llama.stop_strings
    llama.cache
    llama.model
    llama.reference  llama.heads  llama.siblings  llama.relatives
    llama.generation
    llama.decoding
    llama.quantization
    llama.checkpoint
    llama.lora
    llama.token_prior
    llama.freeze
    llama.fast
    llama.datasets
    llama.clean
    llama.metrics
    llama.tasks
    llama.zero_shot  llama.word_vectors
    llama.training
    llama.trainer  llama.relatives.mixture_of_experts
    llama.methods
    weights.corpora  weights.passage  weights.hub
    weights.download
    weights.certificate
    weights.convert
    weights.catalogue
    weights.fetch
    llama.pretrained
    llama.commands
    llama.evaluate  llama.predict  llama.nearest  llama.merge  llama.cost  llama.quantize  llama.resize  llama.lens
    llama.trace  llama.plot  llama.relatives.ablation  llama.methods.cut  llama.methods.grpo
    llama.serve
    tokenizer.train
    tokenizer.extend
    llama.benchmark
    llama.frontier
    llama.methods.reptile
    train  finetune  generate
"""
RUNGS = {name: number for number, line in enumerate(LADDER.strip().splitlines()) for name in line.split()}
DOORS_ONLY = ("llama", "weights", "weights.formats", "llama.runtime", "llama.fast", "llama.lora")   # import none


def files() -> dict[str, Path]:
    """Every module of the project by its dotted name; a package by its `__init__`."""
    weights = [*HOME.glob("weights/*.py"), *HOME.glob("weights/formats/**/*.py")]   # models lie beside
    found = [*HOME.glob("*.py"), *HOME.glob("llama/**/*.py"), *HOME.glob("tokenizer/**/*.py"), *weights]
    return {".".join(path.relative_to(HOME).with_suffix("").parts).removesuffix(".__init__"): path for path in found}


FILES = files()


def imports(path: Path) -> set[str]:
    """The modules of ours that a file imports, at its top, in functions, and for types alone."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: an import with dots; write the whole name"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in whole}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {each.value for each in node.args if isinstance(each, ast.Constant)}
    assert not any(name.split(".")[0] == "tests" for name in found), f"{path} imports tests"
    return found & FILES.keys()


def rung(name: str) -> int:
    """Of a file, or of the nearest room above it."""
    assert room(name) in RUNGS, f"{name} stands on no rung; give it one in LADDER"
    return RUNGS[room(name)]


def room(name: str) -> str:
    """The rung's own name: files of one room may import each other."""
    while name not in RUNGS and "." in name:
        name = name.rpartition(".")[0]
    return name


IMPORTS = {name: imports(path) for name, path in FILES.items()}


@pytest.mark.parametrize("name", [name for name in FILES if name not in DOORS_ONLY])
def test_property_every_import_leads_to_a_lower_rung(name):
    above = [other for other in IMPORTS[name] if rung(other) >= rung(name) and room(other) != room(name)]
    assert not above, f"{name} imports {', '.join(above)}, which is no lower rung"


@pytest.mark.parametrize("name", DOORS_ONLY)
def test_property_a_room_whose_files_stand_on_several_rungs_imports_none_of_them(name):
    assert not IMPORTS[name]


def test_property_no_circle_of_files():
    left = {name: set(others) - {name} for name, others in IMPORTS.items()}
    while free := [name for name, others in left.items() if not others & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import each other: {', '.join(sorted(left))}"


def test_property_every_rung_holds_something():
    assert set(RUNGS) <= {room(name) for name in FILES if name not in DOORS_ONLY}
