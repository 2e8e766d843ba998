"""The step from tokens to logits as one compiled function: decode.cpp built for one shape of model and one processor.

Python and torch need some 15 calls a layer for one token; with small models they take longer than the arithmetic. The
same step in C++ is a single call that reads each weight once, from where the model has it, in the type it is stored
in; the model is first moved to where that is fastest (huge_pages.py). On few bits it takes prompts as well; of
floats, and where a processor has AMX, torch multiplies many tokens faster, and both work on the model's own cache.
Building takes some seconds; the result lies in the user's own cache, closed to others, under a name made of all that
it depends on. Never beside a model: what is loaded there is run, and a model's folder may come from anybody.

    compile_step(model)                  # from now on generation uses it, where it can
    remove_step(model)                   # and no longer

Try: in `_turn_up_to`, give the cosines of one position later; tests/test_compiled_step.py
(test_two_ways_step_equals_model) fails.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable
from ctypes import POINTER, Array, Structure, c_char_p, c_float, c_int64, c_void_p
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llama.cache import KVCache
from llama.config import LlamaConfig
from llama.fast.huge_pages import move_to_huge_pages
from llama.heads import check_editable
from llama.model import PROJECTIONS, Llama, rotary_tables
from llama.quantization.layers import Quantized, QuantizedLinear
from weights.formats.paths import user_cache

SOURCE = Path(__file__).with_name("decode.cpp")
PARTS = ("attention.h", "matrices.h", "products.h")                 # which it includes
# Sums in any order and eight or sixteen exponentials at once. Compiled with -ffast-math, but not linked with it: gcc
# would make the whole process, torch too, take the smallest numbers for 0 from the moment the library is loaded.
# Of ARM's processors clang knows this one's features by -mcpu alone.
NATIVE = "-mcpu=native" if platform.machine().lower() in ("arm64", "aarch64") else "-march=native"
FLAGS = ("-std=c++17", "-O3", NATIVE, "-ffast-math", "-fPIC")
WIDE = "-mprefer-vector-width=512"                                  # else gcc stays at half of what AVX-512 can do
THREADS = "-fopenmp"
MAX_TOKENS = 8                                                      # of floats, or with AMX: of more, torch is faster


class Matrix(Structure):
    _fields_ = [("weight", c_void_p), ("scale", c_void_p), ("minimum", c_void_p), ("bias", c_void_p),
                ("rows", c_int64), ("columns", c_int64), ("kind", c_int64)]


class Layer(Structure):
    _fields_ = [("input_layernorm", c_void_p), ("post_attention_layernorm", c_void_p),
                *[(name.rpartition(".")[2], Matrix) for name in PROJECTIONS]]


class Model(Structure):
    _fields_ = [("layers", POINTER(Layer)), ("norm", c_void_p), ("embed_tokens", Matrix), ("lm_head", Matrix),
                ("cos", c_void_p), ("sin", c_void_p), ("num_layers", c_int64), ("window", c_int64), ("eps", c_float),
                ("precise", c_int64)]


class Cache(Structure):
    _fields_ = [("keys", c_void_p), ("values", c_void_p), ("row_stride", c_int64), ("head_stride", c_int64)]


class Lane(Structure):
    _fields_ = [("token", c_int64), ("position", c_int64), ("row", c_int64), ("slot", c_int64), ("first", c_int64),
                ("wanted", c_int64)]


class CompiledStep:
    """`Llama.forward` for tokens and a cache, on the CPU. Made by `compile_step`."""

    def __init__(self, model: Llama, library: Path, *, precise: bool = True):
        self.config = model.config
        self._kept: list[Tensor] = []                               # what C++ points at must stay alive
        layers = [Layer(self._vector(layer.input_layernorm.weight), self._vector(layer.post_attention_layernorm.weight),
                        *[self.matrix_of(layer.get_submodule(name)) for name in PROJECTIONS]) for layer in model.layers]
        self._layers = (Layer * len(layers))(*layers)
        self._model = Model(self._layers, self._vector(model.norm.weight), self.matrix_of(model.embed_tokens),
                            self.matrix_of(model.lm_head), None, None, len(layers), self.config.sliding_window,
                            self.config.rms_norm_eps, precise)
        self._turns: tuple[Tensor, ...] = ()                        # what rotary_tables gives for the first positions
        self._caches: tuple[Any, ...] = (lambda: None, lambda: None, None)
        self.max_tokens = _max_tokens(model)
        built = ctypes.CDLL(str(library))
        self._unpack, self._decode = built.unpack, built.decode
        self._unpack.restype = None
        self._unpack.argtypes = [POINTER(Matrix), c_int64, c_int64, c_int64, c_void_p]
        self._decode.restype = None
        built.instructions.restype = c_char_p
        self.instructions = built.instructions().decode()           # what products.h became
        self._decode.argtypes = [POINTER(Model), POINTER(Cache), c_int64, c_int64, POINTER(Lane), c_void_p]

    def fits(self, tokens: Tensor, cache: KVCache) -> bool:
        """Whether this step can run: not too many tokens, in a cache of a type that it reads."""
        return (tokens.numel() <= self.max_tokens and cache.length <= cache.rope_stable_length - tokens.shape[1]
                and cache.layers[0].keys.dtype in (torch.float32, torch.bfloat16))

    @torch.inference_mode()
    def __call__(self, tokens: Tensor, *, padding: Tensor, cache: KVCache, count: int | None = None) -> Tensor:
        """Logits (B, count, V) in float32 behind the last `count` of the next T tokens of every row.

        tokens   (B, T) int64; `cache` grows by T slots
        padding  (B,) slots at the start of each row that hold no text
        count    None for all T
        """
        B, T = tokens.shape
        ids = tokens.tolist()
        if wrong := [id for row in ids for id in row if not 0 <= id < self.config.vocab_size]:
            raise IndexError(f"token {wrong[0]} is none of this model's, which are 0 to {self.config.vocab_size - 1}")
        count = T if count is None else count
        start, blank = cache.length, padding.tolist()
        cache.advance(tokens)
        gone = cache.layers[0].evicted                              # behind a sliding window, places begin later
        self._turn_up_to(start + T, cache.rope_stable_length)
        lanes = (Lane * (B * T))(*[
            Lane(ids[row][t], max(start + t - blank[row], 0), row, start + t - gone, max(blank[row] - gone, 0),
                 t >= T - count) for row in range(B) for t in range(T)])
        logits = torch.empty(B, count, self.config.vocab_size)
        half = cache.layers[0].keys.dtype == torch.bfloat16
        self._decode(self._model, self._places(cache), half, B * T, lanes, logits.data_ptr())
        return logits

    def _turn_up_to(self, end: int, most: int) -> None:
        """Rotary tables for the positions before `end`: made now and then for twice as many, not for every token.

        An interrupted call, or another thread, may still read the tables before: they stay.
        """
        known = len(self._turns[0]) if self._turns else 0
        if end > known:
            turns = rotary_tables(torch.arange(max(end, min(2 * known + 256, most))), self.config)
            self._kept += turns
            self._model.cos, self._model.sin = (table.data_ptr() for table in turns)
            self._turns = turns

    def _places(self, cache: KVCache) -> Array:
        """Where keys and values lie. They move in all layers at once, or in none."""
        first, last, places = self._caches
        keys, values = cache.layers[0].keys, cache.layers[-1].values
        if first() is not keys or last() is not values:
            strides = keys.stride()[:2]
            places = (Cache * len(cache.layers))(*[
                Cache(layer.keys.data_ptr(), layer.values.data_ptr(), *strides) for layer in cache.layers])
            self._caches = weakref.ref(keys), weakref.ref(values), places
        return places

    def unpacked(self, matrix: Matrix, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """`QuantizedLinear.unpacked` in float32 or bfloat16, for what goes through torch, which takes floats."""
        rows = torch.empty(end - start, matrix.columns, dtype=dtype)
        self._unpack(matrix, start, end - start, dtype == torch.bfloat16, rows.data_ptr())
        return rows

    def _vector(self, x: Tensor | None) -> int | None:
        if x is None:
            return None
        self._kept.append(x.detach().float().contiguous())
        return self._kept[-1].data_ptr()

    def matrix_of(self, layer: nn.Module) -> Matrix:
        kind, weight, scale, minimum = _stored(layer)
        self._kept += [x for x in (weight, scale, minimum) if x is not None]
        pointers = [None if x is None else x.data_ptr() for x in (weight, scale, minimum)]
        rows, columns = layer.packed.shape if isinstance(layer, Quantized) else weight.shape
        return Matrix(*pointers, self._vector(getattr(layer, "bias", None)), rows, columns, kind)


def _stored(layer: nn.Module) -> tuple[int, Tensor, Tensor | None, Tensor | None]:
    """The number of the kind in decode.cpp, and the tensors that it reads. Raises ValueError for other layers."""
    if isinstance(layer, nn.Linear | nn.Embedding) and layer.weight.dtype in (torch.float32, torch.bfloat16):
        return (0 if layer.weight.dtype == torch.float32 else 1), layer.weight.detach(), None, None
    if isinstance(layer, Quantized):
        packed = layer.packed
        kind = 4 if packed.bits == 4 else 3 if packed.scale.dim() == 2 else 2
        return kind, packed.weight, packed.scale, packed.minimum
    raise ValueError(f"--compile has no kernel for {type(layer).__name__}; merge adapters first (merge_lora), "
                     "and take float32, bfloat16, int8 or int4 weights")


def _max_tokens(model: Llama) -> int:
    """For how many tokens at a time this step is faster than torch (docs/experiments.md)."""
    linears = [layer.get_submodule(name) for layer in model.layers for name in PROJECTIONS]
    few_bits = sum(isinstance(linear, QuantizedLinear) for linear in linears) > len(linears) / 2
    return sys.maxsize if few_bits and "amx" not in _processor() else MAX_TOKENS


# ---- building --------------------------------------------------------------------------------------------------------


def compile_step(model: Llama, *, precise: bool = True, say: Callable[[str], None] = lambda text: None) -> None:
    """Build the step for this model, or find it built, and let generation use it: sets `model.step`.

    precise  activations are rounded to 16 bits where they meet few bits, which loses nothing that shows; else to 8, as
             llama.cpp does, which is faster and as good as weights that were rounded to 8 bits themselves

    It reads weights where they lie: what is changed in place shows; where a tensor was replaced, build it again.

    Raises ValueError, saying what to do, where there is no C++ compiler, the model is not on the CPU, or its shape or
    layers are none that decode.cpp knows.
    """
    if model.device.type != "cpu":
        raise ValueError(f"--compile builds a step for the CPU, but the model is on {model.device.type}; leave one out")
    check_editable(model)
    if misfit := step_misfit(model.config):
        raise ValueError(f"--compile {misfit}; leave --compile out for this model")
    compiler = cxx_compiler()
    if compiler is None:
        raise ValueError("--compile needs a C++ compiler (g++ or clang++), and none is installed; "
                         "install one, or leave --compile out")
    version = _run([compiler, "--version"]).stdout
    command = [compiler, *FLAGS, *([WIDE] if "avx512f" in _processor() else []),
               *([] if platform.system() == "Darwin" else [THREADS]), *_shape(model.config)]
    sources = [path.read_text(encoding="utf-8") for path in (SOURCE, *map(SOURCE.with_name, PARTS))]
    key = hashlib.sha256("\n".join([*sources, version, _processor(), *command]).encode())
    library = _cache_folder() / f"decode-{key.hexdigest()[:16]}.so"
    if not _is_whole(library):
        say(f"compiling the decoding step with {Path(compiler).name} …")
        _build(command, library)
        say(f"compiled: {library}")
    move_to_huge_pages(model)
    model.step = CompiledStep(model, library, precise=precise)
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear) and layer.dtype in (torch.float32, torch.bfloat16):
            layer.unpacked = partial(model.step.unpacked, model.step.matrix_of(layer))


def remove_step(model: Llama) -> None:
    """The inverse of `compile_step`, but for where the weights lie."""
    model.step = None
    for layer in model.modules():
        vars(layer).pop("unpacked", None)


def _shape(config: LlamaConfig) -> list[str]:
    sizes = {"D": config.hidden_size, "H": config.num_attention_heads, "G": config.num_key_value_heads,
             "K": config.head_dim, "F": config.intermediate_size, "V": config.vocab_size}
    return [f"-D{letter}={size}" for letter, size in sizes.items()]


def step_misfit(config: LlamaConfig) -> str:
    """Why there is no step for this shape; empty if there is one."""
    if not isinstance(config, LlamaConfig):
        return f"builds the step of a Llama, and this model is shaped by a {type(config).__name__}"
    if not config.is_plain:
        return "builds a step for plain Llamas, and this model has parts of a sibling (see llama/siblings.py)"
    widths = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
              "num_attention_heads times head_dim": config.num_attention_heads * config.head_dim}
    for name, width in widths.items():
        if width % 32:
            return f"multiplies 32 numbers at a time, and {name} is {width}"
    return f"works on 16 numbers at a time, and head_dim is {config.head_dim}" if config.head_dim % 16 else ""


def cxx_compiler() -> str | None:
    """Where the C++ compiler is: $CXX, g++ or clang++; None if there is none."""
    return shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")


def _cache_folder() -> Path:
    """Where libraries lie: the user's own and closed to all others, for what is in it is run.

    Raises ValueError where it cannot be made, is a link, or belongs to somebody else.
    """
    folder = user_cache() / "llama-by-hand" / "compiled"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be made ({error.strerror}), and --compile keeps what it builds there; make "
                         "it, or leave --compile out") from None
    for place, closed in ((folder.parent, 0o022), (folder, 0o077)):
        if not _is_own(place, closed_to=closed):
            raise ValueError(f"{place} is a link, belongs to somebody else or is open to others, and what is compiled "
                             "there would be run; remove it, or leave --compile out")
    return folder


def _is_own(path: Path, *, closed_to: int) -> bool:
    if os.name != "posix":
        return True                                                 # no owners and no modes
    about = path.lstat()
    return not stat.S_ISLNK(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & closed_to


def _is_whole(library: Path) -> bool:
    """Whether the library is there, and is the one that was built: one cut short would end the process at every use."""
    told = _sum_of(library)
    if not (library.is_file() and told.is_file() and _is_own(library, closed_to=0o022)):
        return False
    return hashlib.sha256(library.read_bytes()).hexdigest() == told.read_text(encoding="ascii", errors="replace")


def _sum_of(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _processor() -> str:
    """What `NATIVE` will look at: a library for one processor stops with «illegal instruction» on another."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)


def _build(command: list[str], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        built, compiled = Path(folder) / library.name, Path(folder) / "decode.o"
        link = [command[0], "-shared", *(flag for flag in command if flag == THREADS), "-o", str(built), str(compiled)]
        for step in ([*command, "-c", "-o", str(compiled), str(SOURCE)], link):
            done = _run(step)
            if done.returncode:
                reason = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr[:200])
                raise ValueError(f"the C++ compiler refused {SOURCE.name}: {reason}; leave --compile out")
        told = Path(folder) / _sum_of(library).name
        told.write_text(hashlib.sha256(built.read_bytes()).hexdigest(), encoding="ascii")
        os.replace(built, library)                                  # two processes may build it at once
        os.replace(told, _sum_of(library))
