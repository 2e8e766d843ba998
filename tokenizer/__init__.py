"""Text ↔ ids. `load_tokenizer` reads whatever a model brings; which kind it is, its content says, never its name.

    pretokenize.py   where words end, by the rules of GPT-2, Llama 3, Qwen 2, SmolLM and Mistral
    bpe_merge.py     merging neighbours, the best pair first
    bpe.py           byte-level byte-pair encoding, and bpe_train.py, how its merges are learned
    tiktoken_ranks.py         tiktoken's rank files
    spm.py           SentencePiece models, through their library; spm_model.py, the file
    spm_pure.py     the same without the library, for vocabularies that come without a model file:
                     spm_json.py in a tokenizer.json, llama2c_vocabulary.py in llama2.c's tokenizer.bin
    gpt2_files.py    GPT-2's vocab.json and merges.txt as a tokenizer.json
    base.py          what all of them share: special tokens, streaming, the files of a folder
    chat.py          messages to ids, and which of them are learned: four formats, to read
    chat_template.py the same by any model's template, in template_sandbox.py's bounds; template_text.py, who wrote what

Try: let `_kind` go by the name of the file; tests/test_tokenizer.py then fails where a tokenizer.model holds
ranks, as in Meta's folders of Llama 3.
"""

import logging
import re
from pathlib import Path

from tokenizer import bpe, llama2c_vocabulary, spm, spm_json, spm_pure, tiktoken_ranks
from tokenizer.base import Settings, StreamDecoder, Tokenizer, read_json
from tokenizer.checked_json import check_value
from tokenizer.gpt2_files import MERGES, VOCABULARY, with_tokenizer_json
from tokenizer.spm_model import read_model

log = logging.getLogger(__name__)

__all__ = ["StreamDecoder", "Tokenizer", "from_vocabulary", "load_tokenizer", "tokenizer_file"]

# Of a model folder only these are opened: vocabularies, and what stands beside them.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "*.tiktoken", "tokenizer.bin")  # spiece: T5's
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
           "config.json", "chat_template.jinja", "additional_chat_templates/tool_use.jinja", VOCABULARY, MERGES)

# Where a folder has its vocabulary in several forms, the first of these: Llama 2's hold their SentencePiece model also
# translated to JSON, and Llama 3's hold their ranks so, with the special tokens that the rank file lacks.
_PREFERRED = ("SentencePiece", "JSON", "ranks", "llama2.c")


def load_tokenizer(source: str | Path | dict[str, bytes]) -> Tokenizer:
    """The tokenizer of a model folder, of a single file, or of a dictionary {file name: content} as files() gives it.

    A file is read by itself, without what lies beside it.

    Raises FileNotFoundError where there is none, ValueError for one that is not read here.
    """
    if isinstance(source, dict):
        return _load(source, place="the model file")
    path = Path(source)
    if path.is_dir():
        found = [file for pattern in (*_VOCABULARIES, *_BESIDE) for file in sorted(path.glob(pattern))]
        return _load({file.relative_to(path).as_posix(): file.read_bytes() for file in found if file.is_file()},
                     place=str(path))
    if not path.exists():
        raise FileNotFoundError(f"there is no tokenizer file or folder '{path}'; give one, or a name that python -m "
                                "weights.fetch --list shows")
    return _load({path.name: path.read_bytes()}, place=str(path.parent))


def from_vocabulary(vocabulary: dict) -> Tokenizer:
    """The tokenizer of a GGUF file, from its vocabulary as weights/formats/gguf.py gives it.

    Raises ValueError for a kind of vocabulary not known here.
    """
    if vocabulary["model"] == "gpt2":
        return bpe.from_vocabulary(vocabulary)
    if vocabulary["model"] == "llama":
        return spm_pure.from_vocabulary(vocabulary)
    raise ValueError(f"the GGUF file's vocabulary is of kind {vocabulary['model']!r} (tokenizer.ggml.model); "
                     "known are gpt2 (byte-level BPE) and llama (SentencePiece)")


def tokenizer_file(tokenizer: Tokenizer, form: str) -> tuple[str, bytes]:
    """(name, content) of the one file that holds a vocabulary in another program's form.

    form  "SentencePiece" and "ranks", both tokenizer.model as in Meta's folders; "llama2.c", tokenizer.bin

    Raises ValueError where that form cannot hold this vocabulary.
    """
    if form == "SentencePiece":
        if not isinstance(tokenizer, spm.PieceTokenizer):
            raise ValueError("this is a byte-level vocabulary, which a SentencePiece model cannot hold")
        whole = spm_pure.from_vocabulary(tokenizer.vocabulary()) if tokenizer.adds_tokens else tokenizer
        return "tokenizer.model", whole.model_file()
    if form == "ranks":
        return "tokenizer.model", tiktoken_ranks.rank_file(tokenizer.vocabulary())
    if form == "llama2.c":
        return "tokenizer.bin", llama2c_vocabulary.tokenizer_bin(tokenizer.vocabulary())
    raise ValueError(f"no form of a vocabulary is called '{form}'; there are SentencePiece, ranks and llama2.c")


def _load(files: dict[str, bytes], *, place: str) -> Tokenizer:
    files = with_tokenizer_json(files)
    kinds = {name: _kind(data, f"{place}/{name}") for name, data in files.items() if name not in _BESIDE}
    if not kinds:
        raise FileNotFoundError(f"there is no tokenizer in {place}: neither tokenizer.json nor tokenizer.model")
    name = min(kinds, key=lambda name: _PREFERRED.index(kinds[name]))
    try:
        settings = Settings.of_files(files)
        newer = next((other for other, kind in kinds.items() if kind == "JSON"), "")
        if kinds[name] == "SentencePiece" and newer and _says_more(read_json(files, newer), files[name], settings):
            log.warning("%s: %s has other tokens than %s, and is taken: the other is of an earlier model", place, newer,
                        name)
            name = newer
        if kinds[name] == "SentencePiece":
            return spm.SentencePieceTokenizer(files[name], settings)
        if kinds[name] == "JSON":
            spec = read_json(files, name)
            return (spm_json.JSONPieceTokenizer if spm_json.is_of_pieces(spec) else bpe.BPETokenizer)(spec, settings)
        read = {"ranks": tiktoken_ranks.from_ranks, "llama2.c": llama2c_vocabulary.from_tokenizer_bin}[kinds[name]]
        return read(files[name], settings)
    except ValueError as error:
        says_which = str(error).startswith((name, *_BESIDE))
        raise ValueError(f"{place}{'/' if says_which else f'/{name}: '}{error}") from None


def _says_more(spec: dict, model: bytes, settings: Settings) -> bool:
    """Whether a tokenizer.json holds other pieces than the model file beside it, or tokens that no file there adds."""
    if not spm_json.is_of_pieces(spec):
        return False
    check_value(spec, bpe.SPEC, "tokenizer.json")
    added = {token["id"]: token["content"] for token in spec.get("added_tokens") or []}
    words = {id: piece for piece, id in spec["model"]["vocab"].items()} | added
    pieces = read_model(model).pieces
    return any(words.get(id) != piece for id, piece in enumerate(pieces)) or \
        any(id >= len(pieces) and id not in settings.added for id in words)


def _kind(data: bytes, place: str) -> str:
    if data.lstrip()[:1] == b"{":
        return "JSON"
    if re.match(rb"[A-Za-z0-9+/]+=* \d+\s", data):         # a token in base64 and its rank
        return "ranks"
    if llama2c_vocabulary.is_tokenizer_bin(data):
        return "llama2.c"
    if data[:1] == b"\n":                                   # field 1 of a protocol buffer: a piece
        return "SentencePiece"
    remedy = "convert it with python -m weights.convert" if data[:4] == b"GGUF" else \
             "known are tokenizer.json, SentencePiece models, tiktoken rank files and llama2.c's tokenizer.bin"
    raise ValueError(f"{place} is {'empty' if not data else 'no tokenizer'}; {remedy}")
