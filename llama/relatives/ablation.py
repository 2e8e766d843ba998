"""What Llama changed, one change at a time: small models on the same text, for the same steps, scored on the same rest.

    python -m llama.relatives.ablation                              # all, two seeds; goes on where it was interrupted
    python -m llama.relatives.ablation --only llama "no positions" --steps 100

Every row takes one part of Llama back to what its relatives have, by a swap from outside, and what that frees or costs
in parameters goes into the feed-forward part, as far as it can. A run is a line of the records' file; the table is made
of all that are there.

Try: give a variant another number of parameters; tests/test_ablation.py (test_property_parameters_are_as_equal) fails.
"""

import contextlib
import dataclasses
import functools
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.cache import LayerCache
from llama.checkpoint import new_model
from llama.config import LlamaConfig
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.masks import additive_mask, causal_mask
from llama.model import Llama, RMSNorm
from llama.relatives.gpt import GPTConfig, LayerNorm
from llama.relatives.mixture_of_experts import Balanced, active_parameters, use_experts
from llama.relatives.t5 import GatedGELUMLP, RelativeBias, ReLUMLP, T5Config
from llama.runtime import cli
from llama.runtime.destinations import file_to_write
from llama.runtime.ranges import MANY, Range
from llama.siblings import PositionlessAttention
from llama.tasks.generation import TextGenerationTask
from llama.trainer import Trainer
from llama.training.evaluation import evaluate
from llama.training.objective import Plain
from llama.training.optimizer import TrainConfig
from tokenizer import bpe
from tokenizer.base import Tokenizer
from weights.fetch import fetch

CORPUS, HELD_OUT, BLOCK, BATCH = "three-kingdoms", 20_000, 128, 4
BASE = LlamaConfig(1024, 96, 264, 3, 4, 2, max_position_embeddings=BLOCK, tie_word_embeddings=True,
                   initializer_range=0.05)
ALL = tuple(range(BASE.num_hidden_layers))


# ---- parts of relatives in a Llama -----------------------------------------------------------------------------------


class GELUMLP(ReLUMLP):
    """down(gelu(up x)): GPT's, without its biases."""

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.gelu(self.up_proj(x), approximate="tanh"))


class PositionedEmbedding(nn.Embedding):
    """A token's vector and that of its place, learned both, as in GPT. For whole rows alone: no cache."""

    def __init__(self, tokens: nn.Embedding, places: int):
        super().__init__(*tokens.weight.shape, device="meta")
        self.weight = tokens.weight                                 # itself: a tied head has it, too
        self.places = nn.Parameter(torch.empty(places, tokens.embedding_dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) + self.places[: tokens.shape[1]]


class BucketAttention(PositionlessAttention):
    """T5's buckets of distances, one number a head and bucket, shared by all layers."""

    def __init__(self, config: LlamaConfig, bias: RelativeBias):
        super().__init__(config)
        self.bias = bias

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        T = x.shape[1]
        mask = self.bias(T, T) + additive_mask(causal_mask(T, T, x.device), x.dtype)
        return super().forward(x, cos, sin, mask, cache)


def use_layer_norm(model: Llama) -> None:
    for path, module in list(model.named_modules()):
        if isinstance(module, RMSNorm):
            model.set_submodule(path, LayerNorm(len(module.weight), module.eps))


def use_learned_positions(model: Llama) -> None:
    model.embed_tokens = PositionedEmbedding(model.embed_tokens, model.config.max_position_embeddings)


def use_buckets(model: Llama) -> None:
    config = model.config
    shape = T5Config(config.vocab_size, config.hidden_size, config.intermediate_size, 1, 1, config.num_attention_heads,
                     config.head_dim)
    bias = RelativeBias(shape, both_ways=False)
    for layer in model.layers:
        layer.self_attn = BucketAttention(config, bias)


def use_mlp(kind: type[nn.Module], model: Llama) -> None:
    for layer in model.layers:
        layer.mlp = kind(model.config)


# ---- what is compared ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """One row: what differs from Llama in its config, and what is swapped in the model that was built.

    objective  what makes the loss
    unequal    why its parameters are not Llama's, in a word; "" where they are
    """

    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    swap: Callable[[Any], None] | None = None
    config: Any = None
    objective: Callable[..., nn.Module] = Plain
    unequal: str = ""


# Two matrices instead of three are half as wide again; a key-value head more or less is 2 · 96 · 24 numbers a layer, of
# which each column of the feed-forward part has 3 · 96.
VARIANTS = {
    "llama": Variant(),
    "norm: LayerNorm": Variant(swap=use_layer_norm),
    "positions: learned": Variant({"no_rope_layers": ALL}, use_learned_positions, unequal="a table of places"),
    "positions: T5's buckets": Variant({"no_rope_layers": ALL}, use_buckets),
    "positions: none": Variant({"no_rope_layers": ALL}),
    "activation: ReLU": Variant({"intermediate_size": 396}, functools.partial(use_mlp, ReLUMLP)),
    "activation: GELU": Variant({"intermediate_size": 396}, functools.partial(use_mlp, GELUMLP)),
    "activation: gated GELU": Variant(swap=functools.partial(use_mlp, GatedGELUMLP)),
    "heads: MHA, 4 keys": Variant({"num_key_value_heads": 4, "intermediate_size": 232}),
    "heads: MQA, 1 key": Variant({"num_key_value_heads": 1, "intermediate_size": 280}),
    "head: its own": Variant({"tie_word_embeddings": False}, unequal="a second matrix of tokens"),
    "biases: everywhere": Variant({"attention_bias": True, "mlp_bias": True}),
    "all of GPT-3's": Variant(config=GPTConfig(1024, 96, 348, 3, 4, BLOCK, initializer_range=0.05)),
    "mixture of experts": Variant(swap=functools.partial(use_experts, experts=4, top_k=2), objective=Balanced,
                                  unequal="4 experts, 2 of them active"),
    "mixture, not balanced": Variant(swap=functools.partial(use_experts, experts=4, top_k=2),
                                     unequal="4 experts, 2 of them active"),
}


def build(variant: Variant, tokenizer: Tokenizer | None, *, seed: int) -> Any:
    """The model of a row, with random weights."""
    torch.manual_seed(seed)
    model = new_model(variant.config or dataclasses.replace(BASE, **variant.changes), tokenizer)
    if variant.swap:
        variant.swap(model)
        model.init_weights()
    return model


def run(name: str, texts: tuple[list[str], list[str]], tokenizer: Tokenizer, *, seed: int, steps: int,
        lr: float) -> dict[str, Any]:
    """Train one row, and score it on what was held out. Its order of samples is that of every row with this seed."""
    variant = VARIANTS[name]
    model = build(variant, tokenizer, seed=seed)
    parameters, active = sum(parameter.numel() for parameter in model.parameters()), active_parameters(model)
    task = TextGenerationTask()
    train, held_out = (LanguageModelingDataset(text, block_size=BLOCK) for text in texts)
    config = TrainConfig(epochs=1000, max_steps=steps, batch_size=BATCH, lr=lr, weight_decay=0.1, seed=seed, pack="off")
    with contextlib.redirect_stderr(io.StringIO()):                 # a line a step, of so many runs
        trainer = Trainer(model, task, train, config=config, objective=variant.objective)
        started = time.process_time()
        result = trainer.train()["train"]
        seconds = time.process_time() - started
        scores = evaluate(trainer.objective, task.samples(held_out, tokenizer), tokenizer, batch_size=BATCH)
    return {"variant": name, "seed": seed, "steps": steps, "lr": lr, "parameters": parameters, "active": active,
            "loss": scores["loss"], "bits_per_character": scores["bits_per_character"], "train_loss": result["loss"],
            "tokens": result["tokens"], "cpu_seconds": round(seconds, 1)}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: means over seeds, and how far they are apart; differences to Llama are taken seed by seed."""
    base = {record["seed"]: record["loss"] for record in records if record["variant"] == "llama"}
    lines = ["| one change at a time | parameters | loss | against Llama | bits a character | tokens a CPU second |",
             "|---|---|---|---|---|---|"]
    for name in VARIANTS:
        if not (rows := [record for record in records if record["variant"] == name]):
            continue
        size = f"{rows[0]['parameters']:,}"
        if rows[0]["active"] != rows[0]["parameters"]:
            size += f", {rows[0]['active']:,} active"
        apart = [row["loss"] - base[row["seed"]] for row in rows if row["seed"] in base]
        lines.append(f"| {name} | {size} | {_mean([row['loss'] for row in rows])} | "
                     f"{_mean(apart, signed=True) if apart and name != 'llama' else '—'} | "
                     f"{statistics.mean(row['bits_per_character'] for row in rows):.3f} | "
                     f"{statistics.mean(row['tokens'] / row['cpu_seconds'] for row in rows):,.0f} |")
    return "\n".join(lines)


def _mean(values: Sequence[float], *, signed: bool = False) -> str:
    """Mean ± half of the range."""
    return f"{statistics.mean(values):{'+' if signed else ''}.3f} ± {(max(values) - min(values)) / 2:.3f}"


def main() -> None:
    parser = cli.Parser("python -m llama.relatives.ablation", __doc__.splitlines()[0],
                        example="python -m llama.relatives.ablation --only llama 'positions: none'")
    parser.add_argument("--only", nargs="+", choices=tuple(VARIANTS), default=tuple(VARIANTS), metavar="NAME",
                        help="; ".join(VARIANTS))
    parser.add_argument("--seeds", type=Range(1, 100), default=2, metavar="N", help="runs of each")
    parser.add_argument("--steps", type=Range(1, MANY), default=250, metavar="N",
                        help=f"updates, of {BATCH * BLOCK} tokens each")
    parser.add_argument("--lr", type=Range(1e-12, 1e3), default=4e-3, metavar="X", help="peak learning rate, of all")
    parser.add_argument("--output", type=file_to_write, default="ablation.jsonl", metavar="FILE",
                        help="records, a line a run; those that are there are not run again")
    arguments = parser.parse_args()
    path = Path(arguments.output)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    wanted = {"steps": arguments.steps, "lr": arguments.lr}
    records = [record for record in records if wanted.items() <= record.items()]
    done = {(record["variant"], record["seed"]) for record in records}
    todo = [(name, seed) for name in arguments.only for seed in range(arguments.seeds) if (name, seed) not in done]
    if todo:
        text = (fetch(CORPUS) / "text.txt").read_text(encoding="utf-8")
        texts = text[:-HELD_OUT].split("\n\n"), text[-HELD_OUT:].split("\n\n")
        print(f"training a tokenizer of {BASE.vocab_size} ids", file=sys.stderr)
        tokenizer = bpe.train(texts[0], BASE.vocab_size)
    for number, (name, seed) in enumerate(todo, start=1):
        record = run(name, texts, tokenizer, seed=seed, steps=arguments.steps, lr=arguments.lr)
        records.append(record)
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{number} of {len(todo)}: {name}, seed {seed}: loss {record['loss']:.4f}, "
              f"{record['cpu_seconds']:.0f} s", file=sys.stderr)
    print(table(records))


if __name__ == "__main__":
    cli.run(main)
