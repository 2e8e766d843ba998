"""Learn a vocabulary from text: python -m tokenizer.train --kind bpe --vocab-size 8000 FILES… --output FOLDER

Kinds: bpe, byte-level as GPT-2's, Llama 3's and SmolLM's (bpe_train.py, by hand); spm-bpe and spm-unigram, as Llama's
and Llama 2's, through the SentencePiece library (spm_train.py). Files: .txt and .jsonl, packed or not.

Try: learn with --kind bpe twice from the same files in another order; tests/test_vocabulary_doors.py says what is the
same.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from llama.datasets.language_modeling import LanguageModelingDataset
from llama.runtime import cli
from llama.runtime.destinations import folder_to_write
from llama.runtime.ranges import Range
from tokenizer import bpe
from tokenizer.base import Tokenizer
from tokenizer.pretokenize import RULES
from tokenizer.spm_train import KINDS, train_spm
from tokenizer.vocabulary_report import rate
from weights.formats.atomic_write import atomic_folder
from weights.formats.paths import data_files

SPLIT = "llama3"
CHATML = "<|endoftext|>,<|im_start|>,<|im_end|>"


def main() -> None:
    parser = cli.Parser("python -m tokenizer.train", __doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="text to learn from: .txt or .jsonl, packed or not")
    parser.add_argument("--kind", choices=("bpe", *KINDS), default="bpe", help="of vocabulary")
    parser.add_argument("--vocab-size", type=Range(257, 2**22), required=True, metavar="N", help="pieces, at most")
    parser.add_argument("--special", metavar="A,B", help=f"control tokens (default for bpe: {CHATML})")
    parser.add_argument("--split", choices=tuple(RULES), help=f"bpe: the rule that splits words (default: {SPLIT})")
    parser.add_argument("--coverage", type=Range(0.5, 1.0), default=0.9995, metavar="X",
                        help="spm: part of all characters that get a piece; the others are written as bytes")
    add_text_flags(parser)
    arguments = parser.parse_args()
    if arguments.kind == "bpe" and arguments.coverage != parser.get_default("coverage"):
        raise ValueError("--coverage is for SentencePiece; byte-level BPE starts from bytes, which cover all")
    if arguments.kind != "bpe" and arguments.split:
        raise ValueError("--split is for byte-level BPE; SentencePiece splits at blanks")
    output = Path(arguments.output)
    cli.check_output(output, marker="tokenizer_config.json", overwrite=arguments.overwrite, resume=False)
    texts = read_texts(arguments.files, arguments)
    corpora = {name: read_texts([name], arguments) for name in arguments.corpus}
    given = CHATML if arguments.special is None and arguments.kind == "bpe" else arguments.special or ""
    special = [token for token in given.split(",") if token]

    started = time.monotonic()
    if arguments.kind == "bpe":
        tokenizer: Tokenizer = bpe.train(texts, arguments.vocab_size, split=arguments.split or SPLIT, special=special)
    else:
        tokenizer = train_spm(texts, arguments.vocab_size, kind=arguments.kind, special=special,
                              coverage=arguments.coverage)
    seconds = time.monotonic() - started
    save(tokenizer, output)

    rates = {name: rate(tokenizer, some) for name, some in corpora.items()}
    size = sum(len(text.encode()) for text in texts)
    said = f"{tokenizer.vocab_size:,} pieces from {size / 1e6:.1f} MB of text in {seconds:.1f} s"
    for name, each in rates.items():
        said += f"\n{name}: {each.tokens_per_character:.3f} tokens/character, {each.bytes_per_token:.2f} bytes/token"
    print(said, file=sys.stderr)
    result = {"output": str(output), "kind": arguments.kind, "vocab_size": tokenizer.vocab_size, "seconds": seconds,
              "bytes": size, "corpora": {name: asdict(each) for name, each in rates.items()}}
    print(json.dumps(result, ensure_ascii=False) if arguments.json else output)


def add_text_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of both doors of vocabularies: where to write, what to count on, how text is read."""
    parser.add_argument("--output", type=folder_to_write, required=True, metavar="FOLDER",
                        help="where the tokenizer's files go")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    parser.add_argument("--corpus", nargs="+", default=[], metavar="FILE",
                        help="texts to count tokens on, each by itself")
    parser.add_argument("--documents", choices=("blank-line", "line"), default="blank-line",
                        help="what separates the documents of a .txt file")
    parser.add_argument("--encoding", default="", help="of text files, such as gb18030 (default: UTF-8)")
    parser.add_argument("--json", action="store_true", help="print what was done as one line of JSON")


def read_texts(files: list[str], arguments: argparse.Namespace) -> list[str]:
    """The documents of text files; each is looked for here, then in the clone."""
    dataset = LanguageModelingDataset(*data_files(files), documents=arguments.documents, encoding=arguments.encoding)
    return [example["text"] for example in dataset]


def save(tokenizer: Tokenizer, output: Path) -> None:
    """Write its files into a folder of its own, whole or not at all."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(output) as partial:
        tokenizer.save(partial)


if __name__ == "__main__":
    cli.run(main)
