"""A student cut from a model: fewer blocks, or narrower ones, with the numbers that were there.

    python -m llama.methods.cut --model smollm2-135m-instruct --layers 15 --output weights/student

    layers        every n-th block, spread evenly and the last among them (DistilBERT takes every second,
                  arXiv:1910.01108), or the first ones
    hidden        D': the dimensions of the residual stream with the largest embeddings
    intermediate  F': of every block the features whose rows and columns are largest, |gate| |up| |down|
    groups        G': the first key-value heads, each with its queries

It keeps the vocabulary, so the model that it was cut from can be its teacher (docs/methods.md). Cut off anything at all
and it writes nonsense until it has learned again.

Try: keep the first features instead of the largest; tests/test_cut.py
(test_property_what_never_mattered_can_be_cut_off) fails.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch
    from torch import Tensor

    from llama.checkpoint import PretrainedLlama, save_model
    from llama.heads import check_editable, require_lm_head
    from llama.lora.swap import has_lora
    from llama.pretrained import get_model
    from llama.quantization.swap import is_quantized
    from llama.runtime import cli
    from llama.runtime.destinations import folder_to_write
    from llama.runtime.ranges import MANY, Range
    from llama.training.verify_saved import verify_saved


@torch.no_grad()
def cut(model: PretrainedLlama, *, layers: Sequence[int] = (), hidden: int = 0, intermediate: int = 0,
        groups: int = 0) -> PretrainedLlama:
    """A new model of the blocks with these numbers, and of these sizes; 0 and () keep all.

    Raises ValueError for sizes that are none of the model's parts, and for models with adapters, in few bits, or with a
    head of labels.
    """
    check_editable(model)
    require_lm_head(model)
    if has_lora(model) or is_quantized(model):
        raise ValueError("a student is cut from floats without an adapter; merge the adapter, or take the model before "
                         "it was rounded")
    config, K = model.config, model.config.head_dim
    layers = tuple(layers) or tuple(range(config.num_hidden_layers))
    whole = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
             "num_key_value_heads": config.num_key_value_heads}
    sizes = {name: size or whole[name] for name, size in zip(whole, (hidden, intermediate, groups), strict=True)}
    for name, size in sizes.items():
        if not 0 < size <= whole[name]:
            raise ValueError(f"{name} {size} is not between 1 and the model's {whole[name]}; a student is cut smaller")
    if not all(0 <= layer < config.num_hidden_layers for layer in layers):
        raise ValueError(f"the model has blocks 0 to {config.num_hidden_layers - 1}, and {max(layers)} is asked for")
    D, F, G = sizes.values()
    queries = config.num_attention_heads // config.num_key_value_heads
    shape = replace(config, **sizes, head_dim=K, num_hidden_layers=len(layers), num_attention_heads=G * queries,
                    no_rope_layers=tuple(new for new, old in enumerate(layers) if old in config.no_rope_layers))
    student = PretrainedLlama(shape, model.tokenizer).to(model.dtype)
    d = _largest(model.embed_tokens.weight.float().norm(dim=0), D)
    keep = {"embed_tokens.weight": (slice(None), d), "lm_head.weight": (slice(None), d), "norm.weight": (d,)}
    for new, old in enumerate(layers):
        mlp = model.layers[old].mlp
        f = _largest(mlp.gate_proj.weight.float().norm(dim=1) * mlp.up_proj.weight.float().norm(dim=1)
                     * mlp.down_proj.weight.float().norm(dim=0), F)
        q, k = torch.arange(G * queries * K), torch.arange(G * K)
        out = {"q_proj": q, "k_proj": k, "v_proj": k, "o_proj": d, "gate_proj": f, "up_proj": f, "down_proj": d,
               "input_layernorm": d, "post_attention_layernorm": d}
        into = {"o_proj": q, "down_proj": f}
        for name, parameter in model.layers[old].named_parameters():
            module, _, kind = name.rpartition(".")
            part = out.get(module.rpartition(".")[2], slice(None))  # norms of queries and keys are per head: whole
            keep[f"layers.{new}.{name}"] = (part,) if parameter.dim() < 2 else (
                part, into.get(module.rpartition(".")[2], d))
    for name, parameter in student.named_parameters():
        old_name = name
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            old_name = f"layers.{layers[int(number)]}.{rest}"
        parameter.copy_(_part(model.get_parameter(old_name), keep[name]))
    return student.eval()


def spread(count: int, of: int) -> tuple[int, ...]:
    """So many of the numbers 0 … of - 1, as evenly as can be, the last among them."""
    return tuple((i + 1) * of // count - 1 for i in range(count))


def _largest(values: Tensor, count: int) -> Tensor:
    """Where the largest are, in their order."""
    return values.topk(count).indices.sort().values


def _part(values: Tensor, index: tuple[Tensor | slice, ...]) -> Tensor:
    for dimension, some in enumerate(index):
        if not isinstance(some, slice):
            values = values.index_select(dimension, some.to(values.device))
    return values


def main() -> None:
    parser = cli.Parser("python -m llama.methods.cut", "Cut a smaller student from a model; writes a model folder.")
    parser.add_argument("--model", default="smollm2-135m-instruct", metavar="NAME", help="what it is cut from")
    parser.add_argument("--layers", type=Range(0, MANY), default=0, metavar="N", help="blocks that stay (all)")
    parser.add_argument("--keep", choices=("spread", "first"), default="spread", help="which blocks")
    parser.add_argument("--hidden-size", type=Range(0, MANY), default=0, metavar="D", help="width that stays (all)")
    parser.add_argument("--intermediate-size", type=Range(0, MANY), default=0, metavar="F",
                        help="features of the feed-forward parts that stay (all)")
    parser.add_argument("--num-key-value-heads", type=Range(0, MANY), default=0, metavar="G",
                        help="groups of heads that stay (all)")
    parser.add_argument("--output", type=folder_to_write, required=True, metavar="FOLDER",
                        help="where the student goes")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    arguments = parser.parse_args()
    output = Path(arguments.output)
    cli.check_output(output, marker="config.json", overwrite=arguments.overwrite, resume=False)
    model = get_model(arguments.model)
    there = model.config.num_hidden_layers
    if arguments.layers > there:
        raise ValueError(f"--layers {arguments.layers}: the model has {there}; a student is cut smaller")
    count = arguments.layers or there
    student = cut(model, layers=spread(count, there) if arguments.keep == "spread" else range(count),
                  hidden=arguments.hidden_size, intermediate=arguments.intermediate_size,
                  groups=arguments.num_key_value_heads)
    save_model(student, output)
    verify_saved(student, output)
    before, after = (sum(parameter.numel() for parameter in each.parameters()) for each in (model, student))
    print(f"{before:,} → {after:,} parameters; the student is in {output}; let it learn: python finetune.py "
          f"--model {shlex.quote(str(output))} --teacher {shlex.quote(arguments.model)}", file=sys.stderr)


if __name__ == "__main__":
    cli.run(main)
