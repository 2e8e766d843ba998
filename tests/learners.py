"""`make mutants`, second half: edits that a learner makes, one at a time, in a copy, run as one types it.

    python -m tests.learners [--only NAME …]

What one reads is what runs: after each edit of a definition, the text of generate.py or the losses of finetune.py, with
no flag that asks for it, must be others than before. One that changes nothing is hidden by a fast version. The compiled
step, for which the test model is too small, is asked for: on floats, and on few bits with a longer prompt.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from llama.checkpoint import PretrainedLlama, save_model
from llama.config import preset
from tests.mutants import COPIED, HOME, mutated
from tests.mutants import Mutant as Place
from tokenizer import bpe

TEXT = ["The quick brown fox jumps over the lazy dog.",
        "你好，世界！今天天气很好。", "def add(a, b):\n    return a + b\n"]
GENERATE = ("generate.py", "--prompt", "The quick brown fox", "--max-new-tokens", "12", "--temperature", "0",
            "--ignore-eos", "--json")
COMPILED = (*GENERATE, "--compile", "on")
FEW_BITS = ("generate.py", "--prompt", " ".join(TEXT), *GENERATE[3:], "--compile", "on", "--quantize", "int8")
DRAW = ("generate.py", "--prompt", "The quick", "--max-new-tokens", "24", "--temperature", "1", "--top-p", "0.5",
        "--top-k", "0", "--ignore-eos", "--json")
FINETUNE = ("finetune.py", "--lora", "--data", "data.jsonl", "--max-steps", "3", "--max-length", "256",
            "--lr", "0.05", "--output", "out", "--overwrite")


def edit(name: str, file: str, old: str, new: str, door: tuple[str, ...]) -> tuple[Place, tuple[str, ...]]:
    return Place(name, file, old, new, ""), door


EDITS = [
    edit("a rotary embedding of neighbours", "llama/model.py", "turned = torch.cat([-second, first], dim=-1)",
         "turned = torch.stack([-x32[..., 1::2], x32[..., 0::2]], dim=-1).flatten(-2)", GENERATE),
    edit("a norm without its weight", "llama/model.py", "return self.weight * x32.to(x.dtype)",
         "return x32.to(x.dtype)", GENERATE),
    edit("GELU instead of SiLU", "llama/model.py", "functional.silu(self.gate_proj(x))",
         "functional.gelu(self.gate_proj(x))", GENERATE),
    edit("no causal mask", "llama/model.py",
         "scores = scores + additive_mask(causal_mask(T, S, q.device) if mask is None else mask, scores.dtype)",
         "scores = scores if mask is None else scores + additive_mask(mask, scores.dtype)", FINETUNE),
    edit("another scale of attention", "llama/model.py", "k.float().transpose(-2, -1) * K**-0.5",
         "k.float().transpose(-2, -1) * K**-0.3", GENERATE),
    edit("an MLP that adds nothing", "llama/model.py", "return x + self.mlp(self.post_attention_layernorm(x))",
         "return x + 0 * self.mlp(self.post_attention_layernorm(x))", FINETUNE),
    edit("blocks that do nothing", "llama/model.py", "return x + self.mlp(self.post_attention_layernorm(x))",
         "return x * 0.0", GENERATE),
    edit("LoRA twice as strong", "llama/lora/layers.py",
         "functional.linear(inner, B.to(x.dtype)) * self.scale",
         "functional.linear(inner, B.to(x.dtype)) * self.scale * 2", FINETUNE),
    edit("smoothed labels", "llama/tasks/task.py", 'functional.cross_entropy(scores, targets, reduction="sum")',
         'functional.cross_entropy(scores, targets, reduction="sum", label_smoothing=0.1)', FINETUNE),
    edit("a loss over all tokens", "llama/tasks/task.py",
         "torch.tensor(sample.loss_mask[1:], dtype=torch.bool)",
         "torch.tensor([any(sample.loss_mask[i:]) for i in range(1, end + 1)])", FINETUNE),
    edit("a top-p that is off by one", "llama/sampling.py", "behind = before >= p", "behind = before >= p / 2", DRAW),
    edit("a cache that forgets the first token", "llama/cache.py", "        self.keys[:, :, places] = k\n",
         "        self.keys[:, :, places] = k\n        self.keys[:, :, 0] = 0\n", GENERATE),
    edit("a block without its first norm", "llama/model.py", "self.self_attn(self.input_layernorm(x), cos",
         "self.self_attn(x, cos", GENERATE),
]


def write_material(folder: Path) -> None:
    """A random model that is far from any definition's neighbourhood, its tokenizer, and data to tune it on."""
    torch.manual_seed(0)
    tokenizer = bpe.train(TEXT * 4, 400, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    model = PretrainedLlama(preset("test", vocab_size=tokenizer.vocab_size, hidden_size=64, intermediate_size=96))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3)
    model.tokenizer = tokenizer
    save_model(model, folder / "model")
    records = [{"instruction": text, "output": text[::-1]} for text in TEXT]
    (folder / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def what_comes_out(code: Path, folder: Path, door: tuple[str, ...]) -> tuple[str, str]:
    """Token ids of a door that writes, losses of one that trains; and what it said on stderr."""
    command = [sys.executable, str(code / door[0]), "--model", "model", "--device", "cpu", *door[1:]]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False)
    if door[0] == "generate.py":
        return run.stdout and str(json.loads(run.stdout.splitlines()[0])["token_ids"]), run.stderr
    metrics = folder / "out.training" / "metrics.jsonl"
    losses = [json.loads(line)["loss"] for line in metrics.read_text(encoding="utf-8").splitlines()]
    shutil.rmtree(metrics.parent)
    return str([f"{loss:.5f}" for loss in losses]), run.stderr


def copy_of_the_code(folder: Path) -> Path:
    code = folder / "code"
    for name in COPIED:
        if (HOME / name).is_dir():
            shutil.copytree(HOME / name, code / name, ignore=shutil.ignore_patterns(
                "__pycache__", "*.safetensors", "*.gguf", ".cache", "smollm2*"))
        else:
            code.mkdir(parents=True, exist_ok=True)
            shutil.copy(HOME / name, code / name)
    return code


def shows(place: Place, door: tuple[str, ...], code: Path, folder: Path, before: str) -> bool:
    """Whether what comes out of the door is another thing with this edit; the file is put back afterwards."""
    file = code / place.file
    original = file.read_text(encoding="utf-8")
    try:
        mutated(code, place)
        after, said = what_comes_out(code, folder, door)
    finally:
        file.write_text(original, encoding="utf-8")
    if not after:
        raise RuntimeError(f"{place.name}: {door[0]} printed nothing: {said}")
    return after != before


def named(door: tuple[str, ...]) -> str:
    return " ".join([door[0], *door[door.index("--compile"):]]) if "--compile" in door else door[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="the edits of these names")
    only = parser.parse_args().only
    hidden = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        code = copy_of_the_code(folder)
        write_material(folder)
        before: dict[tuple[str, ...], str] = {}
        chosen = [(place, each) for place, door in EDITS if not only or place.name in only
                  for each in ((GENERATE, COMPILED, FEW_BITS) if door is GENERATE else (door,))]
        for place, door in chosen:
            if door not in before:
                before[door] = what_comes_out(code, folder, door)[0]
            seen = shows(place, door, code, folder, before[door])
            hidden += [place.name] * (not seen)
            print(f"{'seen  ' if seen else 'HIDDEN'}  {place.name} ({named(door)})", flush=True)
    print(f"{len(chosen) - len(hidden)} edits seen, {len(hidden)} hidden")
    sys.exit(bool(hidden))


if __name__ == "__main__":
    main()
