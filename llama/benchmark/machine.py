"""What figures were measured on: the machine, and the model's files."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from weights.fetch import fetch, is_model
from weights.formats.paths import resolve

SETTLE = 0.5                                                        # s; some libraries' threads wait for work awake


def machine() -> dict[str, Any]:
    return {"cpu": cpu_name(), "instructions": torch.backends.cpu.get_cpu_capability(), "cores": os.cpu_count(),
            "threads": torch.get_num_threads(), "torch": torch.__version__, "system": platform.system()}


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def model_path(name: str) -> Path:
    """The folder or file of a model; one that is known by name is fetched."""
    path = resolve(name, "weights")
    if not path.exists() and is_model(name):
        return fetch(name, kind="weights")
    if not path.exists():
        raise FileNotFoundError(f"{name}: there is no such model file or folder")
    return path
