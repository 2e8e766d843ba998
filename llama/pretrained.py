"""A model by its name: here already, fetched, or of a published shape with random weights.

Try: ask for a name that is almost right; tests/test_checkpoint.py shows the sentence that answers.
"""

import logging
from pathlib import Path

import torch

from llama.checkpoint import PretrainedLlama, load_model
from llama.config import PRESETS, preset, unknown_name
from llama.quantization.swap import quantize
from weights.fetch import MODELS, fetch
from weights.formats.paths import home, resolve
from weights.formats.quantized_matrix import QuantizedMatrix

log = logging.getLogger(__name__)


def get_model(name_or_folder: str | Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None,
              seed: int = 0, bits: int = 0, fine: bool = False, errors: dict[str, float] | None = None,
              exact: dict[str, QuantizedMatrix] | None = None) -> PretrainedLlama:
    """A model by folder or file, by the name of a fetched (or fetchable) one, or by a preset's, with random weights.

    dtype  None takes that of most numbers in the files
    seed   of the random weights
    bits   8 or 4 for a quantised model, and with it `fine` and `errors`; `exact` without (see `load_model`)

    Raises ValueError, with the nearest names, for anything else.
    """
    name = str(name_or_folder)
    if (path := resolve(name, "weights")).exists():
        return load_model(path, device=device, dtype=dtype, bits=bits, fine=fine, errors=errors, exact=exact)
    if name in MODELS:
        log.warning("%s is not here yet: fetching it once", name)
        return load_model(fetch(name), device=device, dtype=dtype, bits=bits, fine=fine, errors=errors, exact=exact)
    if name in PRESETS:
        log.warning("%s is a shape: its weights are random (seed %d)", name, seed)
        torch.manual_seed(seed)
        with torch.device(device):
            model = PretrainedLlama(preset(name)).to(dtype)
        if bits:
            (errors if errors is not None else {}).update(quantize(model, bits=bits, fine=fine))
        return model
    if "/" in name or "\\" in name or Path(name).suffix in (".pt", ".pth", ".gguf", ".bin", ".safetensors"):
        raise FileNotFoundError(f"{name}: there is no such model file or folder")
    there = [folder.name for folder in (home() / "weights").glob("*/") if (folder / "config.json").exists()]
    raise ValueError(unknown_name(name, sorted({*PRESETS, *MODELS, *there})))
