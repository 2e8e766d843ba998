"""Products of whole numbers: what is written for each processor gives what plain C++ gives, at ends of ranges, too."""

import shutil
import subprocess
from pathlib import Path

import pytest
from test_compiled_step import PROCESSORS, needs_compiler

from llama.fast import compiled_step
from llama.fast.compiled_step import PARTS, SOURCE

SOURCES = Path(__file__).with_name("products.cpp")


@needs_compiler
@pytest.mark.parametrize("processor", [*PROCESSORS, "this one"])
def test_two_ways_every_processor_equals_the_portable_one(processor, tmp_path):
    if processor != "this one" and PROCESSORS[processor] not in compiled_step._processor().split():
        pytest.skip(f"this processor has no {PROCESSORS[processor]}")
    march = compiled_step.NATIVE if processor == "this one" else f"-march={processor}"
    compiler = shutil.which("g++") or shutil.which("clang++")
    program = tmp_path / "products"
    built = subprocess.run([compiler, "-std=c++17", "-O1", march, f"-I{SOURCE.parent}", "-o", program, SOURCES],
                           capture_output=True, text=True, encoding="utf-8", check=False)
    assert not built.returncode, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, encoding="utf-8", check=False)
    assert not done.returncode and "352614 equal" in done.stdout, done.stdout


@needs_compiler
@pytest.mark.parametrize("edited", PARTS)
def test_property_another_part_is_another_library(edited, tmp_path, monkeypatch):
    from test_compiled_step import tiny
    built = []
    monkeypatch.setattr(compiled_step, "_cache_folder", lambda: tmp_path)
    monkeypatch.setattr(compiled_step, "_build", lambda command, library: built.append(library))
    monkeypatch.setattr(compiled_step, "CompiledStep", lambda model, library, **_: None)
    compiled_step.compile_step(tiny())
    for part in (SOURCE.name, *PARTS):
        (tmp_path / part).write_text(SOURCE.with_name(part).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(compiled_step, "SOURCE", tmp_path / SOURCE.name)
    compiled_step.compile_step(tiny())
    with (tmp_path / edited).open("a", encoding="utf-8") as part:
        part.write("// edited\n")
    compiled_step.compile_step(tiny())
    assert built[0] == built[1] != built[2]
    included = [part for part in PARTS for path in SOURCE.parent.iterdir() if path.suffix in (".h", ".cpp")
                and f'#include "{part}"' in path.read_text(encoding="utf-8")]
    assert sorted(included) == sorted(PARTS) == sorted(path.name for path in SOURCE.parent.glob("*.h"))


def test_refusal_of_arm_without_its_tools(monkeypatch):
    from arm import check_tools
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="not found; on Debian: apt-get install g\\+\\+-aarch64-linux-gnu qemu-user"):
        check_tools()
