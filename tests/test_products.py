"""Products of whole numbers: what is written for each processor gives what plain C++ gives, at ends of ranges, too."""

import shutil
import subprocess
from pathlib import Path

import pytest
from test_compiled_step import PROCESSORS, needs_compiler

from llama.fast import compiled_step
from llama.fast.compiled_step import PRODUCTS, SOURCE

SOURCES = Path(__file__).with_name("products.cpp")


@needs_compiler
@pytest.mark.parametrize("processor", [*PROCESSORS, "this one"])
def test_two_ways_every_processor_equals_the_portable_one(processor, tmp_path):
    if processor != "this one" and PROCESSORS[processor] not in compiled_step._processor().split():
        pytest.skip(f"this processor has no {PROCESSORS[processor]}")
    march = compiled_step.NATIVE if processor == "this one" else f"-march={processor}"
    compiler = shutil.which("g++") or shutil.which("clang++")
    program = tmp_path / "products"
    built = subprocess.run([compiler, "-std=c++17", "-O1", march, f"-I{PRODUCTS.parent}", "-o", program, SOURCES],
                           capture_output=True, text=True, encoding="utf-8", check=False)
    assert not built.returncode, built.stderr
    done = subprocess.run([program], capture_output=True, text=True, encoding="utf-8", check=False)
    assert not done.returncode and "344424 equal" in done.stdout, done.stdout


@needs_compiler
def test_property_another_products_h_is_another_library(tmp_path, monkeypatch):
    from test_compiled_step import tiny
    built = []
    monkeypatch.setattr(compiled_step, "_cache_folder", lambda: tmp_path)
    monkeypatch.setattr(compiled_step, "_build", lambda command, library: built.append(library))
    monkeypatch.setattr(compiled_step, "CompiledStep", lambda model, library, **_: None)
    compiled_step.compile_step(tiny())
    edited = tmp_path / "products.h"
    edited.write_text(PRODUCTS.read_text(encoding="utf-8") + "// edited\n", encoding="utf-8")
    monkeypatch.setattr(compiled_step, "PRODUCTS", edited)
    compiled_step.compile_step(tiny())
    assert built[0] != built[1] and f'#include "{PRODUCTS.name}"' in SOURCE.read_text(encoding="utf-8")


def test_refusal_of_arm_without_its_tools(monkeypatch):
    from arm import check_tools
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ValueError, match="not found; on Debian: apt-get install g\\+\\+-aarch64-linux-gnu qemu-user"):
        check_tools()
