"""`make arm`: the compiled step for ARM's processors, cross-compiled and run under emulation. Right, if not timed.

    python -m tests.arm

Each build compares its products with the portable ones, whole numbers exactly (products.cpp); then the logits of a
whole step are compared with those of the portable build (step.cpp), which differ by the order of sums alone.

Try: swap the halves of a byte in `neon::dot`; the first build says which product is another one.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from llama.config import preset
from llama.fast.compiled_step import FLAGS, NATIVE, SOURCE, _shape

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
BUILDS = {
    "portable": ["-march=armv8-a", "-DPORTABLE"],
    "NEON": ["-march=armv8-a"],
    "NEON with dot products": ["-march=armv8.2-a+dotprod"],
}
SHAPE = preset("test", hidden_size=64, intermediate_size=96, vocab_size=118)
WITHIN = 1e-5                                                       # of the largest logit
HERE = Path(__file__).parent


def main() -> None:
    check_tools()
    with tempfile.TemporaryDirectory() as folder:
        logits = {}
        for name, flags in BUILDS.items():
            print(f"{name}: {run(build(HERE / 'products.cpp', flags, Path(folder))).strip()}", flush=True)
            logits[name] = [float(line) for line in run(build(HERE / "step.cpp", flags, Path(folder))).split()]
        for name, found in logits.items():
            print(f"{name}: {compared(found, logits['portable'])}")


def check_tools() -> None:
    """Raise ValueError, saying what to install, where the compiler or the emulator is missing."""
    missing = [tool for tool in (COMPILER, EMULATOR) if shutil.which(tool) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} not found; on Debian: "
                         "apt-get install g++-aarch64-linux-gnu qemu-user")


def build(source: Path, flags: list[str], folder: Path) -> Path:
    compiled, program = folder / f"{source.stem}.o", folder / source.stem
    common = [flag for flag in FLAGS if flag != NATIVE]
    for command in ([*common, *flags, *_shape(SHAPE), f"-I{SOURCE.parent}", "-c", "-o", str(compiled), str(source)],
                    ["-static", "-o", str(program), str(compiled)]):          # without -ffast-math, as compiled_step.py
        done = subprocess.run([COMPILER, *command], capture_output=True, text=True, encoding="utf-8", check=False)
        if done.returncode:
            raise ValueError(done.stderr.strip())
    return program


def run(program: Path) -> str:
    done = subprocess.run([EMULATOR, "-cpu", "max", str(program)], capture_output=True, text=True, encoding="utf-8",
                          check=False)
    if done.returncode:
        raise ValueError(done.stdout.strip() or done.stderr.strip())
    return done.stdout


def compared(found: list[float], expected: list[float]) -> str:
    """A line on how far two lists of logits are apart. Raises ValueError beyond `WITHIN`, or where some are missing."""
    top = max(map(abs, expected))
    apart = max(abs(a - b) for a, b in zip(found, expected, strict=True)) / top
    if not apart <= WITHIN:
        raise ValueError(f"logits of a step are {apart:.1e} of the largest apart, more than {WITHIN:.0e}")
    return f"{len(found)} logits of steps within {apart:.1e} of the largest"


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
