"""Rows for a grown vocabulary: python -m llama.resize MODEL TOKENIZER --output FOLDER

TOKENIZER is what python -m tokenizer.extend wrote: the model's own vocabulary with more pieces behind it. Embedding and
head get a row for each. A new piece was spelled by several before, and its row starts as the mean of theirs: on the way
in the model then reads about what it read, and on the way out the piece is about as likely as its parts. (So did
Hewitt, «Initializing New Word Embeddings», 2021, with the mean of all rows; the parts of each are nearer.)

    model = llama.get_model("smollm2-135m-instruct")
    llama.resize_embeddings(model, get_tokenizer("smollm2-zh-tokenizer"))

Old rows stay as they are to the bit, so old text gets the logits that it got, with more of them behind. With --texts
each new piece is as likely from the start, in the mean, as it is frequent there (token_prior.py).

Try: let `_mean_rows` take the first of the pieces alone; tests/test_resize.py (test_worked_example_of_a_mean) fails.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch
    from torch import Tensor, nn

    from llama.checkpoint import PretrainedLlama, save_model
    from llama.datasets.language_modeling import LanguageModelingDataset
    from llama.heads import check_editable, require_lm_head
    from llama.lora.swap import has_lora
    from llama.pretrained import get_model, get_tokenizer, stored_bytes
    from llama.quantization.swap import is_quantized
    from llama.runtime import cli
    from llama.runtime.destinations import folder_to_write
    from llama.runtime.ranges import SEEDS, Range
    from llama.runtime.room import ELSEWHERE, check_disk
    from llama.token_prior import match_frequencies
    from llama.training.verify_saved import verify_saved
    from tokenizer.base import Tokenizer
    from weights.formats.paths import data_files

Init = Literal["mean", "mean-of-all", "random"]
INITS: tuple[Init, ...] = ("mean", "mean-of-all", "random")


@dataclass(frozen=True)
class ResizeReport:
    """rows: of embedding and head, before and after. pieces: new ones, each spelled by `spelled_by` old ones before, in
    the mean. counted: tokens of the texts whose frequencies they were given."""

    rows: tuple[int, int]
    pieces: int
    spelled_by: float
    init: str
    counted: int = 0

    def __str__(self) -> str:
        frequent = f", and as likely as they are frequent in {self.counted:,} tokens" if self.counted else ""
        return (f"{self.rows[0]:,} → {self.rows[1]:,} rows: {self.pieces:,} new pieces, spelled by "
                f"{self.spelled_by:.2f} old ones each, start as {self.init}{frequent}")


@torch.no_grad()
def resize_embeddings(model: PretrainedLlama, tokenizer: Tokenizer, *, init: Init = "mean", texts: Sequence[str] = (),
                      pad_to: int = 0, seed: int = 0) -> ResizeReport:
    """Give the model a grown vocabulary: new rows in embedding and head, tied or not, and `tokenizer` as its own.

    init    how new rows start: "mean" of the rows of the pieces that spelled each before, "mean-of-all" rows, or
            "random", as a new model's
    texts   move the head's new rows so that each piece is foretold as often as it occurs in these; none: leave them
    pad_to  round the number of rows up to a multiple of this; rows of no piece start as the mean of all
    seed    of random rows

    Rows that the model had beyond its old vocabulary (Qwen's have some) are new pieces' first.

    Raises ValueError, with nothing changed, where the tokenizer does not begin with the model's own, for texts that
    hold nothing, and for models with adapters, in few bits, or with a head of labels.
    """
    old = model.tokenizer
    _check(model, tokenizer, init)
    counted = [id for text in texts for id in tokenizer.encode(text)]
    if texts and not counted:
        raise ValueError("the texts for the frequencies of new pieces hold nothing to count; give more, or none")
    new = range(old.vocab_size, tokenizer.vocab_size)
    rows = max(model.embed_tokens.num_embeddings, tokenizer.vocab_size)
    rows = -(-rows // pad_to) * pad_to if pad_to else rows
    spelled = [old.spelling(tokenizer.token_bytes(id)) for id in new]
    generator = torch.Generator().manual_seed(seed)
    how: Callable[[Tensor], Tensor] = {
        "mean": lambda weight: _mean_rows(weight, spelled, old.vocab_size),
        "mean-of-all": lambda weight: weight[: old.vocab_size].float().mean(0).expand(len(new), -1),
        "random": lambda weight: torch.randn(len(new), weight.shape[1], generator=generator).to(weight.device)
                                 * model.config.initializer_range,
    }[init]
    before = model.embed_tokens.num_embeddings
    tied = model.lm_head.weight is model.embed_tokens.weight
    for module in [model.embed_tokens] if tied else [model.embed_tokens, model.lm_head]:
        weight = module.weight
        grown = weight[: old.vocab_size].float().mean(0).to(weight.dtype).repeat(rows, 1)
        grown[: len(weight)] = weight
        grown[new.start : new.stop] = how(weight).to(weight.dtype)
        module.weight = nn.Parameter(grown, requires_grad=weight.requires_grad)
    model.embed_tokens.num_embeddings = model.lm_head.out_features = rows
    model.config = replace(model.config, vocab_size=rows)
    model.tie_weights()
    model.step = None                                               # one that was compiled is of the rows before
    if new and tokenizer.first_new_id != new.start:                 # it has grown more than once
        tokenizer = tokenizer.with_new_from(new.start)
    model.tokenizer, model.source = tokenizer, None                 # the files there are no longer this model
    counted = counted if new else []
    if counted:
        match_frequencies(model, torch.tensor(counted), new)
    return ResizeReport((before, rows), len(new), sum(map(len, spelled)) / max(1, len(spelled)), init, len(counted))


def _mean_rows(weight: Tensor, spelled: list[list[int]], count: int) -> Tensor:
    """(pieces, D) float32: the mean of the rows that each piece was spelled by; of all, for one that was spelled by
    none."""
    every = weight[:count].float().mean(0)
    return torch.stack([weight[ids].float().mean(0) if ids else every for ids in spelled]) if spelled else \
        weight.new_empty(0, weight.shape[1], dtype=torch.float32)


def _check(model: PretrainedLlama, tokenizer: Tokenizer, init: str) -> None:
    check_editable(model)
    require_lm_head(model)
    old = model.tokenizer
    if init not in INITS:
        raise ValueError(f"init is '{init}'; new rows start as one of {', '.join(INITS)}")
    if has_lora(model):
        raise ValueError("the model has adapters, whose files know its old rows; merge them, or resize the model first")
    if is_quantized(model):
        raise ValueError("the model is in 8 or 4 bits, which get no new rows; resize it in floats, then quantise")
    if old is None:
        raise ValueError("the model has no tokenizer, so nothing tells how new pieces were spelled before")
    if tokenizer.vocab_size < old.vocab_size:
        raise ValueError(f"the tokenizer has {tokenizer.vocab_size:,} pieces, the model's own {old.vocab_size:,}; rows "
                         "are added here, and none are taken away")
    for id in range(old.vocab_size):
        if (theirs := tokenizer.token_bytes(id)) != (ours := old.token_bytes(id)):
            raise ValueError(f"id {id} is {theirs!r} for the tokenizer, and {ours!r} for the model, so its rows would "
                             "mean something else; grow the model's own: python -m tokenizer.extend")


def main() -> None:
    parser = cli.Parser("python -m llama.resize", "Give a model rows for a grown vocabulary; writes a model folder.")
    parser.add_argument("model", metavar="MODEL", help="a model folder, file or name")
    parser.add_argument("tokenizer", metavar="TOKENIZER", help="its vocabulary, grown by python -m tokenizer.extend")
    parser.add_argument("--output", type=folder_to_write, required=True, metavar="FOLDER",
                        help="where the model goes")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    parser.add_argument("--init", choices=INITS, default="mean",
                        help="new rows start as the mean of those that spelled the piece before, or of all, or random")
    parser.add_argument("--texts", nargs="+", default=[], metavar="FILE",
                        help="text, .txt or .jsonl: each new piece is foretold as often from the start as it occurs "
                        "there, however its row starts")
    parser.add_argument("--pad-to", type=Range(1, 65_536, off=True), default=0, metavar="N",
                        help="round the rows up to a multiple of N; 0 for none more than pieces")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto",
                        help="number format to write; auto: the source's")
    parser.add_argument("--seed", type=SEEDS, default=0, metavar="N", help="of random rows")
    parser.add_argument("--json", action="store_true", help="print what was done as one line of JSON")
    arguments = parser.parse_args()
    cli.check_output(Path(arguments.output), marker="config.json", overwrite=arguments.overwrite, resume=False)
    tokenizer = get_tokenizer(arguments.tokenizer)
    texts = [example["text"] for example in LanguageModelingDataset(*data_files(arguments.texts))] \
        if arguments.texts else []
    dtype = None if arguments.dtype == "auto" else getattr(torch, arguments.dtype)
    check_disk(arguments.output, stored_bytes(arguments.model, dtype=dtype), "the model with new rows", ELSEWHERE)
    model = get_model(arguments.model, dtype=dtype)
    report = resize_embeddings(model, tokenizer, init=arguments.init, texts=texts, pad_to=arguments.pad_to,
                               seed=arguments.seed)
    if report.rows[0] == report.rows[1]:
        raise ValueError(f"{arguments.tokenizer} has no piece that {arguments.model} lacks, so there is no row to add; "
                         "grow it first: python -m tokenizer.extend")
    save_model(model, arguments.output)
    verify_saved(model, arguments.output)
    print(f"{report}; the model is in {arguments.output}", file=sys.stderr)
    print(json.dumps({"output": arguments.output, **vars(report)}) if arguments.json else arguments.output)


if __name__ == "__main__":
    cli.run(main)
