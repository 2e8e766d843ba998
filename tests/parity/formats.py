"""File formats against the libraries of their makers, and the files that we write, run by llama.cpp.

Some blocks of each number format lie with the numbers of the gguf library in tests/fixtures/gguf_blocks.safetensors, so
that `make test` asks about the same facts without it;

    python -m tests.parity.formats --judges .venv-parity/bin/python

writes them anew.
"""

import argparse
import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from llama.checkpoint import PretrainedLlama, load_model, plain_tensors
from llama.config import LlamaConfig, RopeScaling
from llama.config_json import config_to_dict
from llama.model import Llama
from llama.pretrained import get_model
from tests.parity import texts
from tests.parity.judges import Check, Judges
from weights.fetch import CATALOGUE
from weights.formats import gguf
from weights.formats.gguf_blocks import FORMATS
from weights.formats.gguf_file import blocks
from weights.formats.paths import home
from weights.formats.sources import open_source

MODEL = "smollm2-135m-instruct"
JUDGE = "judge_formats.py"
FIXTURE = Path(__file__).parents[1] / "fixtures" / "gguf_blocks.safetensors"
PACKED = [format for format in FORMATS.values() if format.numbers > 1]
WRITTEN = [format for format in FORMATS.values() if format.pack and format.numbers < 256]
K_FORMATS = [format for format in FORMATS.values() if format.pack and format.numbers == 256]


def checks(judges: Judges) -> Iterator[Check]:
    yield from number_formats(judges)
    yield from k_formats(judges)
    fetched = home() / CATALOGUE[MODEL].members[0].path
    yield unpacking(judges, "GGUF fetched (Q4_1, Q8_0), its numbers here", fetched)
    yield parts(judges, fetched)
    yield from smollm2(judges, fetched)
    yield from shapes(judges)
    yield from packed_shapes(judges)


# ---- numbers ---------------------------------------------------------------------------------------------------------


def number_formats(judges: Judges) -> Iterator[Check]:
    stored = random_blocks(1000)
    theirs = judges.ask(JUDGE, what="unpacked", tensors=stored)
    differ = 0
    for format in PACKED:
        ours = format.unpack(stored[format.name].numpy())
        differ += int((ours.view(torch.int32) != theirs[format.name].view(torch.int32)).sum())
    yield Check(f"GGUF blocks unpacked: {' '.join(format.name for format in PACKED)}", "gguf",
                f"{1000 * len(PACKED):,} blocks", f"{differ} differ", differ == 0)

    x = random_numbers(5000)
    theirs = judges.ask(JUDGE, what="packed", formats=[format.name for format in WRITTEN], tensors={"x": x})
    differ = sum(int((torch.from_numpy(packed(format, x)) != theirs[format.name].flatten()).sum())
                 for format in WRITTEN)
    yield Check(f"GGUF blocks packed: {' '.join(format.name for format in WRITTEN)}", "gguf",
                f"{len(WRITTEN) * x.numel():,} numbers", f"{differ} differ", differ == 0)


def k_formats(judges: Judges) -> Iterator[Check]:
    """Errors of our rounding beside those of llama.cpp's own: the formats leave open which numbers to take."""
    model = open_source(home() / "weights" / MODEL)
    tensors = {name: model.read(name).float().reshape(-1, 256) for name, shape, _ in model.ledger if len(shape) > 1}
    weights = {name: x[:: max(1, len(x) // 32)].contiguous() for name, x in tensors.items()}
    for what, x in {"random matrices": random_matrices(2048), f"{MODEL}, 32 blocks of each": weights}.items():
        for format in K_FORMATS:
            theirs = judges.ask(JUDGE, what="k_packed", format=format.name, tensors=x)
            ratios = [error(format.pack(each.numpy()), format, each) / error(theirs[name].numpy(), format, each)
                      for name, each in x.items()]
            yield Check(f"GGUF {format.name} written here, error beside theirs: {what}", "llama.cpp",
                        f"{len(x)} tensors", f"× {sum(ratios) / len(ratios):.3f}, at most {max(ratios):.3f}",
                        max(ratios) <= 1.01)


def error(blocks: np.ndarray, format: gguf.Format, x: Tensor) -> float:
    return (format.unpack(blocks) - x).square().mean().sqrt().item()


def random_matrices(rows: int) -> dict[str, Tensor]:
    """float32 (rows, 256) of kinds that weights are like, or should not be."""
    random = np.random.default_rng(2)
    kinds = {"normal": random.standard_normal((rows, 256)), "long tails": random.standard_t(4, (rows, 256)),
             "uniform": random.uniform(-1, 1, (rows, 256)), "exponential": random.exponential(1, (rows, 256)),
             "columns": random.standard_normal((rows, 256)) * np.exp(random.standard_normal(256))}
    return {name: torch.from_numpy((0.02 * x).astype(np.float32)) for name, x in kinds.items()}


def random_blocks(count: int) -> dict[str, Tensor]:
    """{format: uint8 (count, bytes)}: any bytes whose numbers are finite."""
    random, found = np.random.default_rng(0), {}
    for format in PACKED:
        raw = random.integers(0, 256, (2 * count, format.bytes), dtype=np.uint8)
        with np.errstate(invalid="ignore", over="ignore"):
            finite = np.isfinite(format.unpack(raw).numpy()).all(-1)
        found[format.name] = torch.from_numpy(raw[finite][:count].copy())
    return found


def random_numbers(rows: int) -> Tensor:
    """float32 (rows, 32): of all magnitudes, and rows where roundings meet: zeros, halves, ties between signs."""
    random = np.random.default_rng(1)
    x = random.standard_normal((rows, 32)) * 10.0 ** random.integers(-9, 4, (rows, 1))
    x[0], x[1] = 0, 3
    x[2], x[3] = np.arange(-16, 16) / 2, np.arange(32) % 2 - 0.5
    return torch.from_numpy(x.astype(np.float32))


def packed(format: gguf.Format, x: Tensor) -> np.ndarray:
    return format.pack(x.numpy().reshape(-1, format.numbers)).ravel()


def unpacking(judges: Judges, what: str, path: Path) -> Check:
    """The tensors of a file as read here and by the reader of its makers."""
    file = gguf.open_gguf(path)
    config = gguf.config(file)
    theirs = judges.ask(JUDGE, what="gguf", file=str(path), layers=config["num_hidden_layers"],
                        heads={"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]},
                        names=[name for name, _, _ in gguf.tensor_ledger(file)])
    ours = {name: hashlib.sha256(tensor.float().numpy().tobytes()).hexdigest()
            for name, tensor in gguf.read_tensors(file)}
    differ = sum(ours.get(name) != theirs.get(name) for name in ours.keys() | theirs.keys())
    return Check(what, "gguf", f"{len(theirs)} tensors", f"{differ} differ", differ == 0)


def parts(judges: Judges, path: Path) -> Check:
    """The tensors of a file, and of the parts that the gguf library makes of it."""
    (copy := judges.folder / "one.gguf").write_bytes(path.read_bytes())
    paths = judges.ask(JUDGE, what="in_parts", file=str(copy), most=100)
    whole, split = gguf.open_gguf(path), gguf.open_gguf(paths[-1])
    differ = sum(not np.array_equal(blocks(whole, name), blocks(split, name)) for name in whole.tensors)
    differ += whole.tensors.keys() != split.tensors.keys() or gguf.config(whole) != gguf.config(split)
    for written in (copy, *split.paths):
        written.unlink()
    return Check("GGUF in parts written by gguf, its numbers here", "gguf",
                 f"{len(whole.tensors)} tensors in {len(paths)} parts", f"{differ} differ", differ == 0)


# ---- files that we write, run by llama.cpp ---------------------------------------------------------------------------

# Up to which lead of the best logit over the second either token may be the next one. In F32 both sides compute alike;
# with packed weights llama.cpp rounds what it multiplies them by to 8 bits too, in groups of 32 numbers for Q8_0, so
# that log-probabilities move by 0.4, and of 256 for the K formats: leads of 0.53 were overturned.
LEAD = {"F32": 1e-3, "Q8_0": 0.5, "Q4_K_M": 1.0}


def smollm2(judges: Judges, fetched: Path) -> Iterator[Check]:
    """Our greedy text against llama.cpp's, of the same file: F32 to the first close call, others wherever none is."""
    tokenizer, source = get_model(MODEL).tokenizer, gguf.open_gguf(fetched)
    for encoding, prompts in {"F32": texts.PROMPTS[:12], "Q8_0": texts.PROMPTS[:6],
                              "Q4_K_M": texts.PROMPTS[:6]}.items():
        path = judges.folder / f"{encoding}.gguf"
        gguf.write_gguf(path, gguf.config(source), tokenizer.vocabulary(), gguf.tensor_ledger(source),
                        gguf.read_tensors(source), encoding=encoding, name=MODEL)
        yield unpacking(judges, f"GGUF written here ({encoding}), its numbers there", path)
        model = load_model(path)
        theirs = judges.ask(JUDGE, what="llama_cpp", file=str(path), prompts=prompts, new=48, context=512)
        same = []
        for prompt, answer in zip(prompts, theirs, strict=True):
            ours, leads = follow(model, tokenizer.encode(prompt), answer["ids"])
            clear = (leads > LEAD[encoding]).tolist()
            until = clear.index(False) if encoding == "F32" and False in clear else len(clear)
            same += [a == b for a, b, sure in list(zip(ours, answer["ids"], clear, strict=True))[:until] if sure]
            ids = [i for i in answer["ids"] if i not in tokenizer.eos_ids]
            same.append(tokenizer.decode(ids) == answer["text"] or answer["text"].endswith("\ufffd"))
        path.unlink()
        what = "greedy text of 48 tokens" if encoding == "F32" else f"tokens ahead by {LEAD[encoding]}"
        yield Check(f"GGUF written here ({encoding}), {what}", "llama.cpp", f"{len(prompts)} prompts",
                    f"{same.count(False)} differ", all(same) and len(same) > 20 * len(prompts))


@torch.inference_mode()
def follow(model: Llama, prompt: list[int], ids: list[int]) -> tuple[list[int], Tensor]:
    """What our model would say at every step of `ids`, and by how much its logit leads.

    Where it says the same at every step, `ids` is the text that it would have written by itself.
    """
    best = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1].topk(2)
    return best.indices[:, 0].tolist(), best.values[:, 0] - best.values[:, 1]


YARN = {"kind": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SHAPES = {
    "grouped queries": {},
    "tied, multi-query": {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "biases in attention and MLP": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": "head", "head_dim": 32},
    "smollm3": {"num_hidden_layers": 5, "no_rope_layers": (3,)},
    "granite": {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "attention_multiplier": 0.15,
                "logits_scaling": 2.0, "attention_bias": True},
    "olmo2": {"qk_norm": "all", "norm_after": True},
    "head_dim twice D/H": {"head_dim": 32},
    "D no multiple of H": {"hidden_size": 72, "num_attention_heads": 5, "num_key_value_heads": 5, "head_dim": 16},
    "linear scaling": {"rope_scaling": RopeScaling("linear", 4.0)},
    "NTK scaling": {"rope_scaling": RopeScaling("ntk", 4.0)},
    "Llama 3 scaling": {"rope_scaling": RopeScaling("llama3", 8.0, original_max_position_embeddings=64)},
    "YaRN": {"rope_scaling": RopeScaling(**YARN)},
    "YaRN with attention_factor": {"rope_scaling": RopeScaling(**YARN, attention_factor=1.5)},
    "YaRN with mscale, qwen2": {"rope_scaling": RopeScaling(**YARN, mscale=2.0, mscale_all_dim=0.7), "qkv_bias": True},
}


def shapes(judges: Judges) -> Iterator[Check]:
    """Small random models of every kind that a GGUF can hold: log-probabilities of the tokens that llama.cpp chose."""
    prompt = [(7 * i * i + i) % 256 for i in range(300)]            # far beyond the 64 positions before scaling
    for name, changes in SHAPES.items():
        model, path = build(changes), judges.folder / "shape.gguf"
        tensors = plain_tensors(model)
        ledger = [(key, tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()]
        gguf.write_gguf(path, config_to_dict(model.config), VOCABULARY, ledger, iter(tensors.items()))
        theirs = judges.ask(JUDGE, what="llama_cpp", file=str(path), prompts=[prompt], new=16, context=512)[0]
        ids = theirs["ids"]
        with torch.inference_mode():
            ours = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        worst = (ours[range(len(ids)), ids] - torch.tensor(theirs["logprobs"])).abs().max().item()
        yield Check(f"GGUF written here, {name}", "llama.cpp", f"{len(ids)} tokens after 300", f"Δ {worst:.1e}",
                    worst < 1e-3 and ids == ours.argmax(-1).tolist())


def packed_shapes(judges: Judges) -> Iterator[Check]:
    """Files in K formats: llama.cpp computes with 8 bits of what they are multiplied by, in blocks of 256."""
    prompt = [(7 * i * i + i) % 256 for i in range(30)]
    model, path = build({"hidden_size": 256, "intermediate_size": 512}), judges.folder / "packed.gguf"
    tensors = {name: x * (0.2 if x.ndim > 1 else 1) for name, x in plain_tensors(model).items()}
    ledger = [(name, tuple(x.shape), x.dtype) for name, x in tensors.items()]
    for encoding in ("Q4_K_M", "Q5_K_M", "Q6_K"):
        gguf.write_gguf(path, config_to_dict(model.config), VOCABULARY, ledger, iter(tensors.items()),
                        encoding=encoding)
        theirs = judges.ask(JUDGE, what="llama_cpp", file=str(path), prompts=[prompt], new=16, context=512)[0]
        model.load_state_dict(dict(gguf.read_tensors(gguf.open_gguf(path))))
        with torch.inference_mode():
            ours = model(torch.tensor([prompt + theirs["ids"]]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        worst = (ours[range(16), theirs["ids"]] - torch.tensor(theirs["logprobs"])).abs().max().item()
        yield Check(f"GGUF written here ({encoding}), log-probabilities", "llama.cpp", "16 tokens after 30",
                    f"Δ {worst:.1e}", worst < 0.1)


# Tokens are numbers in letters, so that llama.cpp reports each by itself and not in the company of half a character.
VOCABULARY = {"model": "gpt2", "pre": "smollm", "tokens": ["<end>", "Ċ", *(f"{i:03d}" for i in range(2, 320))],
              "types": [3] + [1] * 319, "scores": None, "merges": ["0 0"], "bos_id": 0, "eos_ids": [0], "pad_id": 0,
              "unk_id": None, "add_bos": False, "add_space_prefix": False, "chat_template": None}


@torch.no_grad()
def build(changes: dict) -> Llama:
    config = {"vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    model, generator = PretrainedLlama(LlamaConfig(**config | changes)), torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        centre = 1.0 if name.endswith("norm.weight") else 0.0
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25 + centre)
    return model.eval()


def write_fixture(judges: Judges) -> None:
    stored, x = random_blocks(4), random_numbers(8)
    numbers = judges.ask(JUDGE, what="unpacked", tensors=stored)
    packed = judges.ask(JUDGE, what="packed", formats=[format.name for format in WRITTEN], tensors={"x": x})
    matrices = torch.cat([each[:4] for each in random_matrices(4).values()])
    k_packed = {f"{format.name}.packed": judges.ask(JUDGE, what="k_packed", format=format.name,
                                                    tensors={"x": matrices})["x"] for format in K_FORMATS}
    tensors = {"x": x, "matrices": matrices} | k_packed | {f"{name}.{part}": tensor for part, all_of in
                          {"blocks": stored, "numbers": numbers, "packed": packed}.items()
                          for name, tensor in all_of.items()}
    FIXTURE.parent.mkdir(exist_ok=True)
    save_file(tensors, FIXTURE, {"written by": "python -m tests.parity.formats --judges .venv-parity/bin/python"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.parity.formats", description=__doc__.splitlines()[0])
    parser.add_argument("--judges", required=True, metavar="PYTHON", help="one that has requirements-parity.txt")
    with tempfile.TemporaryDirectory() as temporary, Judges(parser.parse_args().judges, Path(temporary)) as judges:
        write_fixture(judges)
