"""Grow a vocabulary behind its own pieces: python -m tokenizer.extend BASE ADDED… --output FOLDER

BASE: a tokenizer's file or folder, or a model's. To a SentencePiece vocabulary ADDED are others, whose pieces it lacks
(spm_extend.py); to byte-level BPE, text on which further merges are learned (bpe_extend.py). No added piece is dead,
and text of ASCII alone keeps its ids, as do the texts of --keep. A model gets the rows by python -m llama.resize.

Try: grow without --keep and encode old text with both; tests/test_bpe_extend.py says what may differ.
"""

import json
import shlex
import sys
from pathlib import Path

from llama.datasets.text_files import ending
from llama.pretrained import get_tokenizer
from llama.runtime import cli
from llama.runtime.ranges import Range
from tokenizer import bpe_extend, spm_extend
from tokenizer.base import Tokenizer
from tokenizer.bpe import BPETokenizer
from tokenizer.spm import PieceTokenizer
from tokenizer.spm_model import PieceModel, read_model
from tokenizer.train import add_text_flags, read_texts, save
from tokenizer.vocabulary_report import growth_report

KEEP = ("ascii", "nothing")
TEXTS = (".txt", ".jsonl", ".json")


def main() -> None:
    parser = cli.Parser("python -m tokenizer.extend", __doc__.splitlines()[0])
    parser.add_argument("base", metavar="BASE", help="the vocabulary to grow: a tokenizer's file or folder")
    parser.add_argument("added", nargs="+", metavar="ADDED",
                        help="for SentencePiece, vocabularies of its kind; for byte-level BPE, text: .txt or .jsonl")
    parser.add_argument("--add", type=Range(1, 2**22), metavar="N", help="byte-level BPE: pieces to add, at most")
    parser.add_argument("--keep", nargs="+", metavar="ascii|FILE",
                        help="what must have the ids that it had: ascii (default), nothing, or texts besides ASCII")
    parser.add_argument("--like-chinese-llama", action="store_true",
                        help="SentencePiece: append what is missing with score 0, dead pieces and all")
    add_text_flags(parser)
    arguments = parser.parse_args()
    if arguments.like_chinese_llama and arguments.keep:
        raise ValueError("--like-chinese-llama keeps nothing; leave --keep out, or grow without it")
    to_keep = ["nothing"] if arguments.like_chinese_llama else arguments.keep or ["ascii"]
    output = Path(arguments.output)
    cli.check_output(output, marker="tokenizer_config.json", overwrite=arguments.overwrite, resume=False)
    base = get_tokenizer(arguments.base)
    corpora = {name: read_texts([name], arguments) for name in arguments.corpus}
    files = [name for name in to_keep if name not in KEEP]
    keep = read_texts(files, arguments) if files else []
    keep_ascii = "nothing" not in to_keep
    if not keep_ascii and len(to_keep) > 1:
        raise ValueError("--keep nothing stands alone; leave it out, or the others")

    overlap = steps = 0
    if isinstance(base, BPETokenizer):
        if arguments.like_chinese_llama:
            raise ValueError("--like-chinese-llama joins SentencePiece vocabularies, and BASE is byte-level BPE")
        if named := next((name for name in arguments.added if ending(Path(name)) not in TEXTS), ""):
            raise ValueError(f"{named} is no text: BASE is byte-level BPE, which learns more pieces from .txt or "
                             ".jsonl files; give such as ADDED")
        if not arguments.add:
            raise ValueError("--add is missing: how many pieces to learn")
        texts = read_texts(arguments.added, arguments)
        grown: Tokenizer = bpe_extend.extend_bpe(base, texts, arguments.add, keep_ascii=keep_ascii, keep=keep)
        dead = bpe_extend.dead_pieces(grown)
    elif isinstance(base, PieceTokenizer):
        if arguments.add:
            raise ValueError("--add is for byte-level BPE; of SentencePiece vocabularies all pieces are added that are "
                             "missing")
        models = [_model(name) for name in arguments.added]
        if arguments.like_chinese_llama:
            grown = spm_extend.append_pieces(base, models)
        else:
            grown = spm_extend.extend_pieces(base, models, keep_ascii=keep_ascii, keep=keep)
        dead = spm_extend.dead_pieces(grown)
        there, wanted = set(base.pieces), {piece for model in models for piece in model.pieces}
        overlap, steps = len(wanted & there), len(set(grown.pieces) - there - wanted)
    else:
        raise ValueError(f"{arguments.base}: no vocabulary of its kind is grown here")

    kept = _prove_kept(base, grown, keep, said=to_keep)
    report = growth_report(base, grown, corpora, dead=len(dead), overlap=overlap, steps=steps, kept=kept)
    save(grown, output)
    print(report, file=sys.stderr)
    print(f"a model gets the rows by\n    python -m llama.resize MODEL {shlex.quote(str(output))} --output FOLDER",
          file=sys.stderr)
    print(json.dumps({"output": str(output), **report.as_dict()}, ensure_ascii=False) if arguments.json else output)


def _model(name: str) -> PieceModel:
    """The pieces of a SentencePiece vocabulary. Raises ValueError for one of another kind."""
    tokenizer = get_tokenizer(name)
    if not isinstance(tokenizer, PieceTokenizer):
        raise ValueError(f"{name} is byte-level BPE, whose merges mean nothing to a SentencePiece vocabulary; learn "
                         "one of its kind: python -m tokenizer.train --kind spm-bpe")
    return read_model(tokenizer.model_file())


def _prove_kept(base: Tokenizer, grown: Tokenizer, texts: list[str], *, said: list[str]) -> str:
    """See that old text has the ids that it had. Raises RuntimeError where it has not."""
    if said == ["nothing"]:
        return "nothing"
    new = range(base.vocab_size, grown.vocab_size)
    if ascii_pieces := [grown.piece(id) for id in new if grown.token_bytes(id).isascii()]:
        raise RuntimeError(f"{len(ascii_pieces)} added pieces are of ASCII alone, such as {ascii_pieces[0]!r}")
    for text in texts:
        if base.encode(text) != grown.encode(text):
            raise RuntimeError(f"a text to keep has other ids than before: {text[:60]!r}")
    counted = f", and {sum(map(len, texts)):,} characters of {', '.join(name for name in said if name not in KEEP)}"
    return "all text in ASCII" + counted * bool(texts)


if __name__ == "__main__":
    cli.run(main)
