"""Train a Llama from scratch: text → tokenizer → tokens → model folder → a sample and an honest score.

    python train.py                                             # fetched news text, some 3 million parameters
    python train.py --data my.txt --hold-out 0.05 --preset tiny-15m --minutes 60
    python train.py --data my.txt --tokenizer weights/my-llama --hidden-size 512 --num-hidden-layers 8

Without --data the People's Daily of January 1998 is fetched and its last twentieth held out; of your own text nothing
is held out unless you ask with --hold-out or --eval-data.
"""

import dataclasses
import json
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch

    from llama.benchmark import text_baselines
    from llama.checkpoint import PretrainedLlama, new_model
    from llama.commands import flags, side_texts
    from llama.datasets.language_modeling import LanguageModelingDataset, hold_out
    from llama.datasets.token_file import TokenFile, is_current, write_tokens
    from llama.plot import plot_runs, read_run
    from llama.pretrained import get_tokenizer
    from llama.relatives.families import PRESETS, config_to_dict, for_vocabulary, given_of_block, preset
    from llama.runtime import cli, distributed, run_lock
    from llama.runtime.destinations import folder_to_write
    from llama.runtime.progress import Progress
    from llama.runtime.ranges import MOST_TOKENS, Range
    from llama.tasks.generation import TextGenerationTask
    from llama.trainer import Trainer
    from llama.training.evaluation import evaluate
    from llama.training.inspect_samples import inspect_samples
    from llama.training.memory_estimate import resident_set_size
    from llama.training.optimizer import OPTIMIZERS, TrainConfig
    from llama.training.results import table
    from llama.training.what_fits import dry_run
    from tokenizer import bpe, load_tokenizer
    from tokenizer.base import Tokenizer
    from weights.fetch import fetch
    from weights.formats.atomic_write import atomic_folder
    from weights.formats.paths import home

CORPUS = "peoples-daily"
VOCAB_SIZE = 4096
YARDSTICK = 7_000_000                                               # characters: beyond, minutes and gigabytes
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
         "max_position_embeddings")


def main() -> None:
    parser = cli.Parser(
        "train.py", __doc__.splitlines()[0],
        most=("data", "eval-data", "tokenizer", "vocab-size", "preset", "block-size", "output", "resume", "epochs",
              "minutes", "batch-size", "lr", "dry-run"),
        example="python train.py --data my.txt --preset tiny-3m --minutes 10 --output weights/mine")
    parser.add_argument("--data", nargs="+", metavar="FILE", help=f"text to learn (default: {CORPUS}, fetched)")
    parser.add_argument("--documents", choices=("blank-line", "line"), default="blank-line",
                        help="what separates the documents of a .txt file")
    parser.add_argument("--encoding", default="", help="of text files, such as gb18030 (default: UTF-8)")
    parser.add_argument("--skip-bad", action="store_true", help="go on without lines that cannot be read; they are "
                        "counted, and the first named")
    parser.add_argument("--eval-data", nargs="+", metavar="FILE", help="text to evaluate on")
    parser.add_argument("--hold-out", type=Range(0.0, 1 - 1e-6), metavar="X",
                        help="part of the text, the last documents or the end of the only one, to evaluate on")
    parser.add_argument("--tokenizer", metavar="PATH", help="file or folder (default: train one on the text)")
    parser.add_argument("--vocab-size", type=Range(256, 2**22), metavar="N",
                        help=f"size of a tokenizer trained here (default: {VOCAB_SIZE})")
    parser.add_argument("--preset", default="tiny-3m", metavar="NAME", help="shape of the model: " + ", ".join(PRESETS))
    for name in SIZES:
        parser.add_argument("--" + name.replace("_", "-"), type=Range(1, MOST_TOKENS), metavar="N",
                            help="instead of the preset's")
    parser.add_argument("--block-size", type=Range(1, MOST_TOKENS), default=128, metavar="N",
                        help="tokens of a training sample")
    parser.add_argument("--output", type=folder_to_write, metavar="FOLDER",
                        help="where the model goes (default: next free in weights/)")
    parser.add_argument("--resume", action="store_true", help="go on with the interrupted run of --output")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="how gradients become updates")
    side_texts.add_side_texts(parser)
    flags.add_inspection(parser)
    cli.add_flags(parser, TrainConfig, skip=("seed", "lora_plus"))
    cli.add_flags(parser, flags.ModelFlags, skip=("model", "adapter", "quantize", "compile"))
    parser.set_defaults(epochs=100, minutes=8.5, lr=4e-3, batch_size=8, weight_decay=0.1, eval_every=1000,
                        save_every=500)
    arguments = parser.parse_args()
    if arguments.resume and not arguments.output:
        raise ValueError("--resume needs --output: the folder of the run to go on with")
    flags.check_alone(arguments)
    if arguments.tokenizer and arguments.vocab_size is not None:
        raise ValueError("--vocab-size is for a tokenizer trained here, not for the one given with --tokenizer")
    vocab_size = arguments.vocab_size or VOCAB_SIZE
    if arguments.hold_out is not None and arguments.eval_data:
        raise ValueError(f"--hold-out {arguments.hold_out} and --eval-data both say what to evaluate on; give one")
    config = cli.from_flags(TrainConfig, arguments)
    changes = {name: value for name in SIZES if (value := getattr(arguments, name)) is not None}
    shape = preset(arguments.preset, **changes)
    config_to_dict(shape)                                           # refuse before training what no file could hold
    if arguments.block_size > shape.context:
        raise ValueError(f"--block-size {arguments.block_size} exceeds the model's context of "
                         f"{shape.context}; lower it or raise --max-position-embeddings")

    # text; of several processes the first fetches, tokenises and writes, and the others find it done
    device = distributed.init_process_group(flags.choose_device(arguments.device))
    with distributed.first_goes_first():
        files = flags.data_files(arguments.data) if arguments.data else [str(fetch(CORPUS) / "text.txt")]
    reading = {"documents": arguments.documents, "encoding": arguments.encoding, "skip_bad": arguments.skip_bad}
    documents = [example["text"] for example in LanguageModelingDataset(*files, **reading)]
    share = arguments.hold_out if arguments.hold_out is not None else 0.0 if arguments.data else 0.05
    there = len(documents)
    documents, held_out = hold_out(documents, share)
    if len(documents) + len(held_out) > there:
        print(f"the end of the last document is held out: {len(held_out[0]):,} characters", file=sys.stderr)
    eval_files = flags.data_files(arguments.eval_data or [])
    if eval_files:
        held_out = [example["text"] for example in LanguageModelingDataset(*eval_files, **reading)]

    if (arguments.watch or arguments.guard) and not held_out:
        raise ValueError("--watch and --guard are scored with what is evaluated on; give --hold-out or --eval-data")
    given = given_of_block(shape, arguments.block_size)
    reading |= {"block_size": arguments.block_size, "overlap": given}
    beside = {"mix": side_texts.mixed(arguments, lambda names: LanguageModelingDataset(
                  *flags.data_files(names), **reading)),
              "watch": side_texts.watched(arguments, **reading)}

    stem = Path(files[0]).stem if arguments.data else CORPUS
    writes = arguments.inspect is None and not arguments.dry_run
    first = distributed.is_rank0()
    output = Path(arguments.output or cli.unique_path(home() / "weights", stem, take=writes and first))
    output = distributed.broadcast(output)
    if writes and first:
        cli.check_output(output, marker="config.json", overwrite=arguments.overwrite, resume=arguments.resume)
        run_lock.take(output)
    run = Path(f"{output}.training")

    # tokenizer and tokens, made once: a resumed run finds them
    with distributed.first_goes_first():
        if arguments.tokenizer:
            tokenizer = get_tokenizer(arguments.tokenizer)
        elif arguments.resume or not distributed.is_rank0():
            tokenizer = load_tokenizer(run / "tokenizer")
        else:
            print(f"training a tokenizer of {vocab_size} ids on {len(documents):,} documents", file=sys.stderr)
            tokenizer = bpe.train(documents, vocab_size)
        if writes and distributed.is_rank0() and not arguments.resume:
            with atomic_folder(run / "tokenizer") as partial:
                tokenizer.save(partial)
    task = TextGenerationTask()
    dtype = flags.choose_dtype(arguments.dtype, device, purpose="train")
    shape = for_vocabulary(shape, tokenizer)
    if not writes:
        with tempfile.TemporaryDirectory() as folder:
            data = _tokens(Path(folder, "tokens"), documents, files, "", tokenizer, arguments.block_size, given)
            if arguments.inspect is not None:
                inspect_samples(task, data, tokenizer, vocab_size=tokenizer.vocab_size, show=arguments.inspect,
                      allow=arguments.allow, as_json=arguments.json)
                return
            program = resident_set_size()
            eval_data = _tokens(Path(folder, "held-out"), held_out, eval_files or files, "", tokenizer,
                                arguments.block_size, given) if held_out else None
            trainer = Trainer(_model(shape, tokenizer, device, arguments.seed), task, data, eval_data,
                              arguments.optimizer, config, dtype=dtype, allow=arguments.allow,
                              readable=arguments.readable, **beside)
            dry_run(trainer, optimizer=arguments.optimizer, dtype=dtype, program=program, output=output,
                    as_json=arguments.json)
        return
    parts = (f"the first {len(documents)} documents, less {share}", f"the last {len(held_out)} documents")
    train_how, eval_how = (f"{part}, by {arguments.documents}" for part in parts)
    with distributed.first_goes_first():
        train_data = _tokens(run / "train.tokens", documents, files, train_how, tokenizer, arguments.block_size, given)
        eval_data = None
        if held_out:
            eval_data = _tokens(run / "held-out.tokens", held_out, eval_files or files, eval_how, tokenizer,
                                arguments.block_size, given)

    # model
    model = _model(shape, tokenizer, device, arguments.seed)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters:,} parameters, {len(train_data):,} tokens of text, computing in {dtype}", file=sys.stderr)

    # train, save, prove that what was saved is the model
    settings = {"vocabulary": "--tokenizer" if arguments.tokenizer else f"--vocab-size {vocab_size}"}
    trainer = Trainer(model, task, train_data, eval_data, arguments.optimizer, config, dtype=dtype, output=output,
                      resume=arguments.resume, settings=settings, allow=arguments.allow, readable=arguments.readable,
                      **beside)
    print(trainer.report.summary(), file=sys.stderr)
    if arguments.mix:
        print(trainer.samples, file=sys.stderr)
    result = trainer.train() | {"data": dataclasses.asdict(trainer.report.counts)}
    prompt = documents[0][:12]
    if (whole := trainer.whole_model()) is not None and distributed.is_rank0():
        sample = whole.generate(prompt, max_new_tokens=100, temperature=0.8, seed=arguments.seed)
        print(f"\n{prompt}{sample}\n", file=sys.stderr)
    if held_out:
        samples = task.samples(eval_data, tokenizer)
        result["eval"] = evaluate(trainer.objective, samples, tokenizer, batch_size=config.batch_size)
        print("on held-out text:\n" + table(result["eval"]), file=sys.stderr)
    if held_out and distributed.is_rank0():
        result["baselines"] = _yardsticks("\n\n".join(documents), "\n\n".join(held_out))
        print(table(result["baselines"]), file=sys.stderr)
    print(f"the model is in {output}; use it with\n    python generate.py --model {shlex.quote(str(output))} "
          "--prompt TEXT", file=sys.stderr)
    print(json.dumps(result))
    if arguments.plot and distributed.is_rank0():
        plot_runs(arguments.plot, [read_run(output)])


def _model(shape: Any, tokenizer: Tokenizer, device: torch.device, seed: int) -> PretrainedLlama:
    torch.manual_seed(seed)
    return new_model(shape, tokenizer).to(device)


def _tokens(path: Path, documents: list[str], sources: list[str], how: str, tokenizer: Tokenizer,
            block_size: int, given: int) -> TokenFile:
    """The documents as a token file, made once: a rerun with the same text and tokenizer finds it."""
    if not is_current(path, tokenizer, sources=sources, how=how):
        progress = Progress(len(documents), "tokenising document")
        write_tokens(path, documents, tokenizer, sources=sources, how=how, progress=progress.show)
        progress.clear()
    return TokenFile(path, block_size=block_size, overlap=given, tokenizer=tokenizer)


def _yardsticks(documents: str, held_out: str) -> dict[str, float]:
    """Bits per byte of the same held-out text, with the same training text known (of a large one its last part)."""
    documents = documents[-YARDSTICK:]
    held_out = held_out[:YARDSTICK]
    return {"xz -9": text_baselines.xz_bits_per_byte(documents.encode(), held_out.encode()),
            "5-gram": text_baselines.ngram_bits_per_byte(documents, held_out, order=5)}


if __name__ == "__main__":
    cli.run(main)
