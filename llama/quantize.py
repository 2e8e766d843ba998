"""The command that writes a model in 8 or 4 bits, and says what that costs.

    python -m llama.quantize --model weights/NAME --bits 8 --output weights/NAME-int8      # then --model, as any folder

This is the command; the swap itself, `quantize(model, bits=8)`, is in llama/quantization/swap.py.

Try: let `--data` be given beside `--bits 8`; tests/test_quantize.py says why it is refused.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    from llama.checkpoint import PretrainedLlama, save_model
    from llama.commands import flags
    from llama.datasets.language_modeling import LanguageModelingDataset
    from llama.pretrained import get_model, stored_bytes
    from llama.quantization.gptq import TOKENS, quantize_by_gptq
    from llama.quantization.layers import Int4Linear, Int8Linear
    from llama.quantization.swap import dequantize, is_quantized, quantize
    from llama.runtime import cli
    from llama.runtime.destinations import folder_to_write
    from llama.runtime.ranges import MOST_TOKENS, Range
    from llama.runtime.room import ELSEWHERE, check_disk
    from llama.training.verify_saved import verify_saved

__all__ = ["Int4Linear", "Int8Linear", "dequantize", "is_quantized", "quantize"]


def main() -> None:
    parser = cli.Parser("python -m llama.quantize", "Write a model in 8 or 4 bits, and report what it costs.")
    parser.add_argument("--model", default=flags.ModelFlags.model, metavar="TEXT",
                        help="a model folder or file, or a name to fetch")
    parser.add_argument("--bits", type=int, choices=(8, 4), required=True, help="of a weight")
    parser.add_argument("--data", nargs="+", metavar="FILE",
                        help="text, for 4 bits: round so that what the model makes of it changes least")
    parser.add_argument("--block-size", type=Range(0, MOST_TOKENS), default=0, metavar="N",
                        help="tokens of --data that see each other, best as in training (default: 512)")
    parser.add_argument("--output", type=folder_to_write, required=True, metavar="FOLDER",
                        help="where the quantised model goes")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    parser.add_argument("--json", action="store_true", help="print the error of every layer as JSON on stdout")
    arguments = parser.parse_args()

    output = Path(arguments.output)
    cli.check_output(output, marker="config.json", overwrite=arguments.overwrite, resume=False)
    if arguments.data and arguments.bits == 8:
        raise ValueError("--data is for --bits 4; with 8 there is too little to lose for a text to matter")
    if arguments.block_size and not arguments.data:
        raise ValueError(f"--block-size {arguments.block_size} divides a text; give one with --data, or leave it out")
    check_disk(output, stored_bytes(arguments.model, bits=arguments.bits), "the quantised model", ELSEWHERE)
    errors: dict[str, float] = {}
    if arguments.data:
        model = get_model(arguments.model)
        errors = quantize_by_gptq(model, read_ids(model, flags.data_files(arguments.data)), length=arguments.block_size)
    else:
        model = get_model(arguments.model, bits=arguments.bits, errors=errors)
    save_model(model, output)
    verify_saved(model, output)
    print(table(errors), file=sys.stderr)
    print(json.dumps({"output": str(output), "errors": errors}) if arguments.json else output)


def table(errors: dict[str, float]) -> str:
    """The relative errors ‖W - Ŵ‖ / ‖W‖ of a kind of layer a line: the mean, the largest, and the layer that has it."""
    kinds: dict[str, dict[str, float]] = {}
    for path, error in errors.items():
        kinds.setdefault(path.rpartition(".")[2], {})[path] = error
    lines = [f"{'layers':<12}  {'mean error':>10}  {'largest':>8}"]
    for kind, found in kinds.items():
        worst = max(found, key=found.__getitem__)
        lines.append(f"{kind:<12}  {sum(found.values()) / len(found):>10.3%}  {found[worst]:>8.3%}  {worst}")
    return "\n".join(lines) if errors else "every matrix is kept as it is stored: nothing was rounded"


def read_ids(model: PretrainedLlama, files: Sequence[str]) -> list[int]:
    """Tokens of text files, as many as `quantize_by_gptq` looks at. Raises ValueError without a tokenizer."""
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer, so it reads no text; leave --data out")
    ids: list[int] = []
    for example in LanguageModelingDataset(*files):
        ids += model.tokenizer.encode(example["text"], eos=True)
        if len(ids) >= TOKENS:
            break
    return ids[:TOKENS]


if __name__ == "__main__":
    cli.run(main)
