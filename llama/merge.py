"""Merge an adapter for good: python -m llama.merge --adapter FOLDER --output FOLDER

Writes a plain model folder, which runs without the adapter and as fast as its base, and says by how much its logits
differ from those of base and adapter: by rounding alone, computed in float32 and in the dtype of the folder.

Try: in `_computing_in`, leave out what restores the weights; tests/test_merge.py
(test_two_ways_merged_in_float32_computes_what_a_float32_model_does) fails: measuring a model must not change it.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    from llama.checkpoint import save_model
    from llama.commands import flags
    from llama.lora.files import load_adapter
    from llama.lora.layers import LoRALinear
    from llama.lora.swap import check_mergeable, merge_lora, wrappers
    from llama.model import Llama
    from llama.pretrained import get_model, stored_bytes
    from llama.runtime import cli
    from llama.runtime.destinations import folder_to_write
    from llama.runtime.room import ELSEWHERE, check_disk
    from llama.training.verify_saved import probe_outputs, verify_saved


@dataclass(frozen=True)
class MergeReport:
    """Largest |Δlogit| between a model with its active adapters and the same with these merged, on a short text.

    float32  both computed in float32, merged weights unrounded: shows that the merge is right
    rounded  both computed in `dtype`, merged weights rounded to it: what users of the folder will see
    untied   embeddings and head were one matrix, and merged are two
    """

    float32: float
    rounded: float
    dtype: str
    untied: bool

    def __str__(self) -> str:
        tie = "; embeddings and head were one matrix and are now two" if self.untied else ""
        rounded = f", {self.rounded:.1e} in {self.dtype}" if self.dtype != "float32" else ""
        return f"merged: logits differ from base and adapter by at most {self.float32:.1e} in float32{rounded}{tie}"


@torch.no_grad()
def merge_report(model: Llama, *, keep_undo: bool = True) -> MergeReport:
    """`merge_lora`, with a report of what it changed. Raises ValueError for what `merge_lora` refuses."""
    check_mergeable(model)
    tied, differences = model.config.tie_word_embeddings, []
    for dtype in (torch.float32, model.dtype):
        with _computing_in(model, dtype):
            beside = probe_outputs(model, text=False).logits
            with _folded(model):
                differences.append((probe_outputs(model, text=False).logits - beside).abs().max().item())
    merge_lora(model, keep_undo=keep_undo)
    name = str(model.dtype).removeprefix("torch.")
    return MergeReport(*differences, dtype=name, untied=tied and not model.config.tie_word_embeddings)


def merge_and_save(model: Llama, folder: str | Path) -> MergeReport:
    """Merge for good, write the model folder, prove that it holds the model, and say on stderr how it compares."""
    report = merge_report(model, keep_undo=False)
    save_model(model, folder)
    verify_saved(model, folder)
    print(f"{report}; the model is in {folder}", file=sys.stderr)
    return report


@contextmanager
def _computing_in(model: Llama, dtype: torch.dtype) -> Iterator[None]:
    """Every module's weights are cast while it runs and no longer, so that there is never a whole copy in float32."""
    inside = {id(module) for wrapper in wrappers(model).values() for module in wrapper.modules()}
    weights: list[tuple[nn.Module, list[nn.Parameter]]] = [
        (wrapper, list(wrapper.base.parameters())) for wrapper in wrappers(model).values()]
    weights += [(module, own) for module in model.modules()
                if id(module) not in inside and (own := list(module.parameters(recurse=False)))]
    with ExitStack() as stack:
        for module, parameters in weights:
            kept: list[Tensor] = []
            stack.callback(module.register_forward_pre_hook(partial(_cast, parameters, kept, dtype)).remove)
            stack.callback(module.register_forward_hook(partial(_restore, parameters, kept)).remove)
        yield


def _cast(parameters: list[nn.Parameter], kept: list[Tensor], dtype: torch.dtype, *call: Any) -> None:
    kept[:] = [parameter.data for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)


def _restore(parameters: list[nn.Parameter], kept: list[Tensor], *call: Any) -> None:
    for parameter, data in zip(parameters, kept, strict=True):
        parameter.data = data
    kept.clear()


@contextmanager
def _folded(model: Llama) -> Iterator[None]:
    """Each adapted layer computes with the weight that merging gives it, made when it is needed."""
    layers = [wrapper for wrapper in wrappers(model).values() if isinstance(wrapper, LoRALinear)]
    for layer in layers:
        layer.forward = partial(_merged_linear, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _merged_linear(layer: LoRALinear, x: Tensor) -> Tensor:
    return functional.linear(x, layer.merged(x.dtype), getattr(layer.base, "bias", None))


def main() -> None:
    parser = cli.Parser("python -m llama.merge", "Fold an adapter into its model and write a plain model folder.")
    parser.add_argument("--output", type=folder_to_write, required=True, metavar="FOLDER",
                        help="where the merged model goes")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    cli.add_flags(parser, flags.ModelFlags, skip=("compile", "quantize"))
    arguments = parser.parse_args()
    model_flags = cli.from_flags(flags.ModelFlags, arguments)
    if not model_flags.adapter:
        raise ValueError("--adapter is missing: the folder of the adapter to merge")
    cli.check_output(Path(arguments.output), marker="config.json", overwrite=arguments.overwrite, resume=False)
    dtype = None if model_flags.dtype == "auto" else getattr(torch, model_flags.dtype)  # auto: as the base is stored
    check_disk(arguments.output, stored_bytes(model_flags.model, dtype=dtype), "the merged model", ELSEWHERE)
    model = get_model(model_flags.model, device=flags.choose_device(model_flags.device), dtype=dtype,
                      seed=model_flags.seed)
    load_adapter(model, flags.adapter_folder(model_flags.adapter))
    report = merge_and_save(model, arguments.output)
    print(json.dumps({"output": arguments.output, **vars(report)}) if model_flags.json else arguments.output)


if __name__ == "__main__":
    cli.run(main)
