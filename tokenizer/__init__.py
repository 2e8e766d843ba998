"""Text ↔ ids. `load_tokenizer` reads whatever a model brings; which kind it is, its content says, never its name.

    pretokenize.py   where words end, by the rules of GPT-2, Llama 3, SmolLM and Qwen 2
    bpe.py           byte-level byte-pair encoding, and learn.py, how its merges are learned
    spm.py           SentencePiece models
    base.py          what all of them share: special tokens, streaming, the files of a folder
    chat.py          messages to ids, and which of them are learned

Try: ask for the name of the file instead of its first bytes; tests/test_tokenizer.py then fails on Meta's Llama 3 folder,
whose tokenizer.model is a rank file.
"""

import re
from pathlib import Path

from tokenizer import bpe, spm
from tokenizer.base import Settings, StreamDecoder, Tokenizer, read_json

__all__ = ["StreamDecoder", "Tokenizer", "from_vocabulary", "load_tokenizer"]

# Of a model folder only these are opened: a vocabulary, in the order of preference, and what stands beside it.
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "*.tiktoken", "*.model")
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
           "config.json", "chat_template.jinja")


def load_tokenizer(source: str | Path | dict[str, bytes]) -> Tokenizer:
    """The tokenizer of a model folder, of a single file, or of a dictionary {file name: content} as files() gives it.

    Raises FileNotFoundError where there is nothing, ValueError where it is no tokenizer that is read here.
    """
    if isinstance(source, dict):
        return _of_files(source, place="the model file")
    path = Path(source)
    if path.is_dir():
        found = [file for pattern in (*_VOCABULARIES, *_BESIDE) for file in sorted(path.glob(pattern)) if file.is_file()]
        return _of_files({file.name: file.read_bytes() for file in found}, place=str(path))
    if not path.exists():
        raise FileNotFoundError(f"there is no tokenizer file or folder {path}")
    try:
        return _of_vocabulary(path.read_bytes(), Settings())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def from_vocabulary(vocabulary: dict) -> Tokenizer:
    """The tokenizer of a GGUF file, from its vocabulary as weights/gguf.py gives it.

    Raises ValueError for a kind of vocabulary not known here.
    """
    kinds = {"gpt2": bpe.from_vocabulary, "llama": spm.from_vocabulary}
    if vocabulary["model"] not in kinds:
        raise ValueError(f"the GGUF file's vocabulary is of kind {vocabulary['model']!r} (tokenizer.ggml.model); "
                         f"known are {' and '.join(kinds)}")
    return kinds[vocabulary["model"]](vocabulary)


def _of_files(files: dict[str, bytes], *, place: str) -> Tokenizer:
    vocabularies = {name: data for name, data in files.items() if name not in _BESIDE}
    if not vocabularies:
        raise FileNotFoundError(f"{place} holds no tokenizer: neither tokenizer.json nor tokenizer.model")
    # Llama 2's folders hold their SentencePiece vocabulary twice: as it is, and translated to JSON.
    ...
