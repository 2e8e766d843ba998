"""Every reader of files from elsewhere, and a valid file for each: what `python -m tests.fuzz` changes and reads.

Try: give a reader a valid file that it does not read; tests/test_fuzz.py fails.
"""

import base64
import contextlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import load_file

from llama.checkpoint import PretrainedLlama, load_model, save_model
from llama.clean.sources import Texts
from llama.config import preset
from llama.datasets.columns import ColumnDataset
from llama.datasets.instructions import InstructionDataset
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.datasets.records import RecordDataset
from llama.datasets.squad import SquadDataset
from llama.datasets.token_file import TokenFile, write_tokens
from llama.lora.files import load_adapter, save_adapter
from llama.lora.swap import add_lora
from llama.lora.targets import LoRAConfig
from llama.quantization.swap import quantize
from tokenizer import bpe, load_tokenizer
from tokenizer.spm import SentencePieceTokenizer
from tokenizer.tiktoken_ranks import from_ranks
from weights.certificate import verify
from weights.convert import convert

TEXTS = ["The quick brown fox jumps over the lazy dog.\n", "你好，世界！今天天气很好，你好吗？\n"] * 4
ALPACA = [{"instruction": "Say it", "input": "你好", "output": "Hello"}, {"instruction": "Go", "output": "on"}]
CHAT = [{"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
                      {"role": "assistant", "content": "你好"}]}] * 2
SHAREGPT = [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": '{"name": "f"}'},
                               {"from": "observation", "value": "1"}, {"from": "gpt", "value": "你好"}],
             "tools": '[{"name": "f"}]', "system": "Be kind."}, {"prompt": "Hi", "chosen": "Hello", "rejected": "Ha"}]
FLAT = [{"id": 1, "context": "Paris is in France.", "question": "Where?",
         "answers": {"text": ["France"], "answer_start": [12]}}]
SQUAD = {"data": [{"title": "t", "paragraphs": [{"context": "Paris is in France.", "qas": [
    {"id": "1", "question": "Where?", "answers": [{"text": "France", "answer_start": 12}]},
    {"id": "2", "question": "Why?", "is_impossible": True, "answers": []}]}]}]}
CMRC = [{"context_id": "A", "context_text": "北京是首都。", "title": "", "qas": [
    {"query_id": "A1", "query_text": "首都？", "answers": ["北京"]}]}]

WIKI = """<mediawiki><page><title>北京</title><ns>0</ns><revision><text>
{{信息|a={{b|c}}}}'''北京'''，[[中国|中國]]首都&lt;ref&gt;书&lt;/ref&gt;。
{|
| 表
|}
-{zh-hans:软件; zh-hant:軟體}-[[File:a.jpg|[[b]]]]</text></revision></page></mediawiki>
"""


@dataclass(frozen=True)
class Reader:
    """folder  holds the valid files · file  which of them is changed · kind  see mutate.mutant"""

    name: str
    folder: Path
    file: str
    kind: str
    read: Callable[[Path], Any]


def readers(place: Path) -> list[Reader]:
    """All of them, their files written under `place`."""
    with contextlib.redirect_stderr(io.StringIO()):                 # conversions tell what they do
        return [*_models(place), *_data(place)]


def _use(path: Path) -> None:
    """Load a model with its tokenizer and read a text with it, as everybody does next."""
    model = load_model(path)
    ids = [1, 2, 3]
    if model.tokenizer:
        ids = model.tokenizer.encode("Hi 你好")
        model.tokenizer.decode([id for id in ids if id < model.config.vocab_size])
        model.tokenizer.files()
    with torch.no_grad():
        model(torch.tensor([ids or [0]]).clamp(max=model.config.vocab_size - 1))


def _tokenize(path: Path) -> None:
    tokenizer = load_tokenizer(path)
    tokenizer.decode(tokenizer.encode("Hi 你好<s> <|im_end|>", allow_special=True))
    tokenizer.files()


def _model(tokenizer: Any, **changes: Any) -> PretrainedLlama:
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=tokenizer.vocab_size, **changes)).eval()
    model.tokenizer = tokenizer
    return model


def _models(place: Path) -> list[Reader]:
    byte_level = bpe.train(TEXTS, 330)
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=proto, model_type="bpe", vocab_size=350, byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2)
    pieces = SentencePieceTokenizer(proto.getvalue())
    found = []

    def add(name: str, folder: Path, file: str, kind: str, read: Callable[[Path], Any] = _use) -> None:
        found.append(Reader(name, folder, file, kind, read))

    hf, spm = place / "hf", place / "spm"
    model = _model(byte_level)
    save_model(model, hf)
    settings = json.loads((hf / "tokenizer_config.json").read_bytes()) | {
        "added_tokens_decoder": {"300": {"content": "<x>", "special": True}}, "pad_token": {"content": "<|endoftext|>"}}
    (hf / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (hf / "special_tokens_map.json").write_text('{"bos_token": "<|im_start|>"}', encoding="utf-8")
    save_model(_model(pieces, num_key_value_heads=4), spm)
    (spm / "added_tokens.json").write_text('{"<x>": 349}', encoding="utf-8")
    for file in ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
                 "tokenizer.json"):
        add(file, hf, file, "json")
    add("model.safetensors", hf, "model.safetensors", "safetensors")
    add("added_tokens.json", spm, "added_tokens.json", "json")
    add("tokenizer.model", spm, "tokenizer.model", "bytes")

    sharded = place / "sharded"
    convert(hf, sharded, max_shard_size=100_000)
    add("index", sharded, "model.safetensors.index.json", "json")
    add("certificate", sharded, "certificate.json", "json", verify)
    for bits in (8, 4):
        folder = place / f"int{bits}"
        packed = _model(byte_level)
        quantize(packed, bits=bits, report=False)
        save_model(packed, folder)
        add(f"int{bits} config.json", folder, "config.json", "json")
        add(f"int{bits} model.safetensors", folder, "model.safetensors", "safetensors")
    files = place / "files"
    files.mkdir()
    for name, source, packed in (("pieces.gguf", spm, ""), ("words.gguf", hf, "Q8_0")):
        convert(source, files / name, quantization=packed)
        add(name, files, name, "bytes", lambda folder, name=name: _use(folder / name))
    save_model(model, files / "model.pt")
    add("model.pt", files, "model.pt", "zip", lambda folder: _use(folder / "model.pt"))
    release = place / "meta"
    convert(spm, release, to="meta")
    add("consolidated.00.pth", release, "consolidated.00.pth", "zip")
    add("params.json", release, "params.json", "json")
    for name, packed in (("float.bin", ""), ("packed.bin", "Q8_0")):
        folder = place / name.removesuffix(".bin")
        folder.mkdir()
        convert(spm, folder / name, to="llama2c", quantization=packed)
        add(name, folder, name, "bytes", lambda folder, name=name: _use(folder / name))
    add("tokenizer.bin", folder, "tokenizer.bin", "bytes", lambda folder: _tokenize(folder / "tokenizer.bin"))
    (files / "pieces.json").write_bytes(_pieces_json(pieces))
    add("tokenizer.json of pieces", files, "pieces.json", "json", lambda folder: _tokenize(folder / "pieces.json"))
    (files / "ranks").write_bytes(b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256)))
    add("ranks", files, "ranks", "text", lambda folder: from_ranks((folder / "ranks").read_bytes(), split="llama3"))
    adapter = place / "adapter"
    add_lora(model, LoRAConfig(rank=2, targets=("q_proj", "down_proj"), rank_pattern={"q_proj": 4}))
    save_adapter(model, adapter)
    for file, kind in (("adapter_config.json", "json"), ("adapter_model.safetensors", "safetensors")):
        add(file, adapter, file, kind, lambda folder: load_adapter(load_model(hf), folder))
    pickled = place / "pickled"
    shutil.copytree(adapter, pickled)
    torch.save(load_file(pickled / "adapter_model.safetensors"), pickled / "adapter_model.bin")
    (pickled / "adapter_model.safetensors").unlink()
    add("adapter_model.bin", pickled, "adapter_model.bin", "zip", lambda folder: load_adapter(load_model(hf), folder))
    return found


def _pieces_json(pieces: SentencePieceTokenizer) -> bytes:
    """The same vocabulary as transformers' folders of Llama 2 hold it: pieces, and pairs where a model has scores."""
    words = pieces.vocabulary()["tokens"]
    ids = {piece: id for id, piece in enumerate(words)}
    merges = [f"{piece[:i]} {piece[i:]}" for piece in words for i in range(1, len(piece))
              if piece[:i] in ids and piece[i:] in ids and not piece.startswith("<")]
    return json.dumps({
        "added_tokens": [{"id": i, "content": words[i], "special": True} for i in range(3)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": None, "post_processor": None,
        "model": {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "vocab": ids, "merges": merges},
    }).encode()


def _data(place: Path) -> list[Reader]:
    """What is learned from: a file, its form, how it is read."""
    place = place / "data"
    place.mkdir()
    tokenizer = bpe.train(TEXTS, 300)
    write_tokens(place / "tokens.bin", TEXTS, tokenizer)
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in ALPACA)
    texts = {
        "alpaca.jsonl": ("lines", lines, InstructionDataset),
        "alpaca.json": ("json", json.dumps(ALPACA), InstructionDataset),
        "chat.jsonl": ("lines", "".join(json.dumps(each) + "\n" for each in CHAT), InstructionDataset),
        "sharegpt.jsonl": ("lines", "".join(json.dumps(each) + "\n" for each in SHAREGPT), InstructionDataset),
        "texts.jsonl": ("lines", '{"text": "one"}\n{"text": "二"}\n', LanguageModelingDataset),
        "prose.txt": ("text", "".join(TEXTS) + "\n\nAnother.\n", LanguageModelingDataset),
        "labels.jsonl": ("lines", '{"text": "good", "label": "+"}\n{"text": "坏", "label": "-"}\n', RecordDataset),
        "labels.csv": ("text", 'text,label\n"good, very",+\n坏,-\n', RecordDataset),
        "labels.tsv": ("text", "text\tlabel\ngood\t+\n坏\t-\n", RecordDataset),
        "entities.conll": ("text", "John B-PER\nSmith I-PER\nruns O\n\n北 B-LOC\n京 I-LOC\n", ColumnDataset),
        "words.txt": ("text", "19980101-01-001-001/m  迈向/v  充满/v  希望/n  的/u\n", ColumnDataset),
        "flat.jsonl": ("lines", "".join(json.dumps(each) + "\n" for each in FLAT), SquadDataset),
        "squad.json": ("json", json.dumps(SQUAD), SquadDataset),
        "cmrc.json": ("json", json.dumps(CMRC, ensure_ascii=False), SquadDataset),
        "wiki.xml": ("text", WIKI, Texts),
        "repaired.txt": ("text", "".join(TEXTS) + "\n\n二、Another.\n", lambda path: Texts(path, repair=True)),
        "column.csv": ("text", 'text,label\n"good, very",+\n坏,-\n', Texts),
    }
    for name, (_, text, _) in texts.items():
        (place / name).write_text(text, encoding="utf-8", newline="")
    return [*(Reader(name, place, name, kind, lambda folder, name=name, read=read: list(read(folder / name)))
              for name, (kind, _, read) in texts.items()),
            Reader("token file", place, "tokens.bin", "text",
                   lambda folder: TokenFile(folder / "tokens.bin", block_size=16, tokenizer=tokenizer)[:20])]
