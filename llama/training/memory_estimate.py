"""What a run will cost, before it starts: memory by arithmetic, time by two steps, and what is written at the end.

    python finetune.py --lora --dry-run                 # of a run that could be given like this
    python -m llama.cost                                # predictions against what was measured, nine runs

Memory is the sum of the terms of `training_memory`, in bytes. Most follow from shapes. Two belong to the machine and
were fitted on CPUs: LIBRARY_OVERHEAD, and FRAGMENTATION, since glibc keeps what is freed between two tensors that stay.
On CUDA torch's own allocator fills such gaps, and the program's own memory is not the device's: there both count
nothing.

Try: forget that RMSNorm keeps float32; tests/test_cost.py (test_two_ways_kept_for_backward) fails, where the formula is
held against what autograd keeps.
"""

import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llama.fast.custom_autograd import FusedMLP
from llama.fast.fused_cross_entropy import LOGITS_AT_ONCE, floats_at_once
from llama.lora.layers import LoRALinear, LoRAPart
from llama.lora.swap import has_lora
from llama.model import Llama
from llama.quantization.layers import Quantized
from llama.training.objective import has_token_loss
from llama.training.packing import in_one_row, micro_batches

MB = 10**6
LIBRARY_OVERHEAD = 184 * MB  # what the optimiser imports; libraries of products
FRAGMENTATION = {"lora": (0.1, 10), "full": (0.5, 0)}  # beside a byte that is kept; in blocks' worth
LOOKED_AT = 256                                                     # steps of a long run
SAVED = 1.01                                                        # headers, config and tokenizer beside tensors


@dataclass(frozen=True)
class Layer:
    """What a block computes with, by the letters of config.py.

    size     bytes of a number in the dtype to compute in
    learned  its own matrices and norms get gradients
    adapted  (in, rank) of each LoRA part, by the name of the linear layer
    quick    its parts have gradients by hand (custom_autograd.py), which keep less
    """

    D: int
    H: int
    G: int
    K: int
    F: int
    size: int
    learned: bool
    adapted: dict[str, tuple[int, int]]
    dropout: bool = False
    quick: bool = False


def activation_bytes_per_token(layer: Layer) -> dict[str, int]:
    """Bytes that one block keeps of one token for the backward pass, by what they are."""
    D, H, G, K, F, size = layer.D, layer.H, layer.G, layer.K, layer.F, layer.size
    reads = {"q": ("q_proj", "k_proj", "v_proj"), "gate": ("gate_proj", "up_proj"), "down": ("down_proj",)}
    asked = {name: layer.learned or bool(layer.adapted.keys() & set(linears)) for name, linears in reads.items()}
    readable = not layer.quick
    # Readable norms keep float32, 1/rms, and what is scaled for the gain's gradient; attention its softmax's sums;
    # SwiGLU silu(gate), too. By hand, all that is computed again.
    terms = {
        "norms": 2 * (4 * D + 4) + 2 * size * D * layer.learned if readable else 2 * (size * D + 4),
        "inputs of products": size * D * (asked["q"] + asked["gate"]),
        "attention": size * K * (2 * H + 2 * G) + 4 * H * readable,                     # q, k, v, what comes out
        "SwiGLU": (2 + readable) * size * F + size * F * asked["down"],                 # gate, up; their product
        "adapters": sum(size * rank for _, rank in layer.adapted.values()),
    }
    if layer.dropout:
        terms["dropout"] = sum((size + 1) * columns for columns, _ in layer.adapted.values())
    return terms


def layers_of(model: Llama, *, size: int) -> list[Layer]:
    """The blocks that keep something: from the lowest that learns upwards."""
    config, found = model.config, []
    for block in model.layers:
        adapters = {path.split(".")[1]: part for path, part in _adapted(block).items()}
        learned = any(parameter.requires_grad and "adapters" not in name for name, parameter in
                      block.named_parameters())
        found.append(Layer(config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim,
                           config.intermediate_size, size, learned,
                           {name: (part.lora_A.shape[1], part.lora_A.shape[0]) for name, part in adapters.items()},
                           dropout=any(part.dropout.p > 0 for part in adapters.values()),
                           quick=type(block.mlp) is FusedMLP))
    if any(parameter.requires_grad for parameter in model.embed_tokens.parameters()):
        return found
    lowest = next((i for i, layer in enumerate(found) if layer.learned or layer.adapted), len(found))
    return found[lowest:]


def _adapted(block: nn.Module) -> dict[str, LoRAPart]:
    return {path: module.adapters[name] for path, module in block.named_modules() if isinstance(module, LoRALinear)
            for name in module.active}


def training_memory(model: Llama, *, tokens: int, rows: int, dtype: torch.dtype | None, optimizer: str = "adamw",
                    checkpointed: str = "", quick_loss: bool = True, program: int = 0) -> dict[str, int]:
    """Bytes at the peak of a training step, by what they are for.

    tokens        that go through the model at once, padding included;  rows  of them on which the loss is taken
    dtype         to compute in, over float32 masters; None: the parameters' own
    checkpointed  "blocks", "mlps", or "" for neither
    quick_loss    by fused_cross_entropy.py, not by chunks that are computed again
    program       what the process holds before it loads a model
    """
    parameters = list(model.parameters())
    numbers = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    size, D = (dtype or model.dtype).itemsize, model.config.hidden_size
    layers = layers_of(model, size=size)
    kept = [tokens * sum(activation_bytes_per_token(layer).values()) for layer in layers]
    if checkpointed == "blocks":                                    # a block's input each, and one block at a time
        kept = [tokens * size * D for _ in layers] + kept[-1:]
    elif checkpointed:
        mlps = [tokens * activation_bytes_per_token(layer)["SwiGLU"] for layer in layers]
        inputs = [tokens * size * D * (not (layer.learned or layer.adapted.keys() & {"gate_proj", "up_proj"}))
                  for layer in layers]
        kept = [each - mlp + read for each, mlp, read in zip(kept, mlps, inputs, strict=True)] + mlps[-1:]
    backward = sum(kept) + tokens * (4 * D + 4 + 2 * size * D)      # the last norm, and its rows for the head
    on_cpu = model.device.type == "cpu"
    beside, blocks = FRAGMENTATION["lora" if any(layer.adapted for layer in layers) else "full"]
    largest = max((sum(activation_bytes_per_token(each).values()) for each in layers), default=0)
    holes = round(backward * beside + blocks * tokens * largest) * on_cpu
    scores = _scores(model, rows, size=size, quick=quick_loss)
    gradients = (4 + (size if size < 4 else 0)) * numbers
    return {
        "program": (program + LIBRARY_OVERHEAD) * on_cpu,
        "weights": sum(parameter.numel() * (size if dtype else parameter.element_size()) for parameter in parameters),
        "float32 masters": sum(4 * parameter.numel() for parameter in parameters if dtype and parameter.dtype != dtype),
        "optimiser": {"adamw": 8, "adam": 8, "sgd": 0}[optimizer] * numbers,
        "kept for backward": backward,
        "holes between": holes,
        "scores": scores,
        "gradients beyond": max(0, gradients - backward - holes - scores),  # they come as activations go
    }


def _scores(model: Llama, rows: int, *, size: int, quick: bool) -> int:
    """What the loss holds at once."""
    head = model.head
    width, D = head.weight.shape[0], model.config.hidden_size
    if not quick:                                                   # with log-softmax and two gradients
        return width * min(rows, max(1, LOGITS_AT_ONCE // width)) * (16 + (2 * size if size < 4 else 0))
    at_once = -(-rows // max(1, -(-rows * width // LOGITS_AT_ONCE)))
    floats = 2 * 4 * min(at_once * width, floats_at_once(model.device))
    learned = any(parameter.requires_grad for parameter in head.parameters())
    return at_once * width * size + floats + 2 * size * D * rows + 2 * size * D * width * learned


def resident_set_size() -> int:
    """What this process holds now, in bytes; 0 where nobody tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def largest_batch(trainer: Any, *, batch_size: int = 0, longest: int = 0) -> tuple[int, int]:
    """Tokens, padding included, and rows with a target, of the largest micro-batch; of a long run a part is looked at.

    batch_size, longest  as if the run had this --batch-size, or samples of so many tokens at most; 0: as it is
    """
    batch_size, longest = batch_size or trainer.config.batch_size, longest or sys.maxsize
    found, room = (0, 0), trainer.model.config.context
    for step in range(0, trainer.steps_per_epoch, max(1, trainer.steps_per_epoch // LOOKED_AT)):
        taken = [trainer.samples[i] for i in trainer._samples_of_step(step)]
        for samples in micro_batches(taken, batch_size):
            lengths = [min(sample.reads, longest) for sample in samples]
            packed = trainer.packs and in_one_row(samples, room)
            tokens = sum(lengths) if packed else len(lengths) * max(lengths)
            found = max(found, (tokens, sum(min(sample.targets, longest) for sample in samples)))
    return found


def count(model: Llama) -> int:
    """The numbers that a model consists of, however many bits each has; tied ones once."""
    sizes = {id(p): p.numel() for p in model.parameters()}
    for module in model.modules():
        if isinstance(module, Quantized):
            sizes |= {id(each): 0 for each in module.packed.tensors().values()}
            sizes[id(module.weight)] = math.prod(module.packed.shape)
    return sum(sizes.values())


def predict(trainer: Any, *, optimizer: str, dtype: torch.dtype | None, program: int, loading: int) -> dict[str, Any]:
    """Everything but time, which only `time_two_steps` knows.

    loading  bytes that were held at most while the model was loaded
    """
    model = trainer.model
    terms = terms_of(trainer, optimizer=optimizer, dtype=dtype, program=program)
    parameters, training = list(model.parameters()), sum(terms.values())
    learned = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    # Masters and optimiser stay; what was saved is read back beside them, a tensor at a time.
    saving = training - terms["scores"] + 2 * max(parameter.nbytes for parameter in parameters)
    numbers = {"parameters": count(model), "learned": learned}
    memory = {"loading": loading, "training": training, "saving": saving, "peak": max(loading, training, saving)}
    return numbers | {"memory": memory, "terms": terms, "artefact": artefact_bytes(trainer)}


def terms_of(trainer: Any, *, optimizer: str, dtype: torch.dtype | None, program: int = 0, batch_size: int = 0,
             longest: int = 0, checkpointed: str | None = None) -> dict[str, int]:
    """`training_memory` of a run; with other settings, if they are given, than its own."""
    config = trainer.config
    tokens, rows = (trainer.objective.graphs * each
                    for each in largest_batch(trainer, batch_size=batch_size, longest=longest))
    own = "blocks" if config.checkpoint_activations else "mlps" if config.checkpoint_mlps else ""
    terms = training_memory(trainer.model, tokens=tokens, rows=rows, dtype=dtype, optimizer=optimizer,
                            checkpointed=own if checkpointed is None else checkpointed,
                            quick_loss=has_token_loss(trainer.task, trainer.model), program=program)
    # The model computes in `dtype` already.
    return terms | {"float32 masters": trainer.masters.bytes(), "teacher": trainer.objective.held}


def artefact_bytes(trainer: Any) -> int:
    """What the result takes on the disk."""
    model, masters = trainer.model, trainer.masters.dtype           # with masters, all is saved in float32
    saved = [each for each in model.parameters() if each.requires_grad or not has_lora(model)]
    return round(SAVED * sum(each.numel() * (4 if masters else each.element_size()) for each in saved))


def time_two_steps(trainer: Any) -> dict[str, Any]:
    """Two steps, of which the second is timed, since the first also sets things up. Changes the model.

    Steps of other lengths count by their tokens; evaluations and saving come on top.
    """
    steps = trainer.total_steps
    trainer.model.train()
    trainer._update(trainer._samples_of_step(0))
    indices = trainer._samples_of_step(min(1, trainer.steps_per_epoch - 1))
    started = time.perf_counter()
    trainer._update(indices)
    seconds = time.perf_counter() - started
    looked_at = range(0, len(trainer.samples), max(1, len(trainer.samples) // (16 * LOOKED_AT)))
    mean = sum(trainer.samples[i].reads for i in looked_at) / len(looked_at)
    tokens = sum(trainer.samples[i].reads for i in indices)
    an_epoch = seconds / tokens * mean * len(trainer.samples)
    total = an_epoch * steps / trainer.steps_per_epoch
    limit = 60 * trainer.config.minutes
    return {"steps": steps, "steps_per_epoch": trainer.steps_per_epoch, "seconds_a_step": total / steps,
            "seconds": min(total, limit) if limit else total}




def megabytes(size: int) -> str:
    return f"{size / MB:,.1f} MB" if size < 100 * MB else f"{size / MB:,.0f} MB"
