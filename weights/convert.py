"""The command `python -m weights.convert SOURCE DESTINATION`: a model in any form known here → in any other.

What a source is, is read from its content (weights/formats/sources.py); what to write, from --to or the destination's
ending:

    hf        a Hugging Face folder, sharded above --max-shard-size       everything that has no ending below
    gguf      one file with tokenizer and chat template, for llama.cpp;
              a Modelfile beside it is for ollama                         .gguf
    meta      consolidated.NN.pth (--shards of them) and params.json      (none: give --to meta)
    llama2c   a .bin file, float32, or int8 with --quantization Q8_0; tokenizer.bin beside it      .bin
    pt        the single file of `model.save("model.pt")`                 .pt

Tensors pass through one at a time, so memory stays near the largest of them. The destination appears with its
certificate (weights/certificate.py) when that has passed, or not at all.

Try: in `_passing`, make a list of the tensors first; tests/test_convert.py (test_property_one_tensor_at_a_time) fails,
and a 7B model would ask for 27 GB.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama.runtime.interrupt import quiet_start
from llama.runtime.progress import Progress
from llama.runtime.terminal import say

with quiet_start(__name__):
    import torch
    from torch import Tensor

    from llama.config_json import config_from_dict, config_to_dict
    from llama.runtime.room import ELSEWHERE, check_disk
    from tokenizer import chat, load_tokenizer, tokenizer_file
    from tokenizer.chat_template import named_format
    from tokenizer.modelfile import modelfile
    from weights import download, hub
    from weights.formats import gguf, huggingface, llama2c, meta, single_file
    from weights.formats.atomic_write import atomic_files, atomic_folder, sweep
    from weights.formats.huggingface import HEADS, Ledger
    from weights.formats.paths import shown
    from weights.formats.plain_llama import plain_sizes
    from weights.formats.sources import VOCABULARIES, Source, open_source, template_remark, with_template

if TYPE_CHECKING:
    from llama.config import LlamaConfig
    from weights.certificate import Written

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
ENDINGS = {".gguf": "gguf", ".bin": "llama2c", ".pt": "pt"}
OF_FILES = (*ENDINGS, ".safetensors", ".pth")                       # who gives these means a file
KINDS = ("hf", "gguf", "meta", "llama2c", "pt")
FOLDERS = ("hf", "meta")


@dataclass(frozen=True)
class Form:
    """What to write.

    kind            one of KINDS; "" goes by the destination's ending
    dtype           of the written numbers; None keeps those of the source (what a file packs becomes float32)
    quantization    one of gguf.PACKED (gguf), "Q8_0" (llama2c, its version 2); "" packs nothing
    shards          number of .pth files (meta)
    max_shard_size  bytes of a .safetensors file (hf); 0 takes Hugging Face's 5 GB
    """

    kind: str = ""
    dtype: torch.dtype | None = None
    quantization: str = ""
    shards: int = 0
    max_shard_size: int = 0

    def of(self, destination: Path) -> "Form":
        """The same with its kind made out. Raises ValueError for flags that do not go together."""
        kind = self.kind or ENDINGS.get(destination.suffix.lower(), "hf")
        if kind in FOLDERS and destination.suffix.lower() in OF_FILES:
            raise ValueError(f"{destination} is named like a file, and a destination of kind {kind} is a folder; give "
                             f"{destination.with_suffix('')}, in which {_holds(kind)} will lie")
        if self.quantization and kind not in ("gguf", "llama2c"):
            raise ValueError(f"--quantization {self.quantization} packs GGUF and llama2.c files; a destination of kind "
                             f"{kind} holds whole numbers: give --dtype instead, or --to gguf")
        if self.quantization and kind == "llama2c" and self.quantization != "Q8_0":
            raise ValueError(f"--quantization {self.quantization}: llama2.c packs to 8 bits only; give Q8_0")
        if self.quantization and self.dtype:
            raise ValueError(f"--dtype and --quantization {self.quantization} both say how numbers are stored; "
                             "give one of them")
        if kind == "llama2c" and self.dtype not in (None, torch.float32):
            raise ValueError(f"--dtype {_name(self.dtype)}: llama2.c files hold float32, or int8 with "
                             "--quantization Q8_0")
        if self.shards and kind != "meta":
            raise ValueError(f"--shards {self.shards} is for --to meta; a destination of kind {kind} has none"
                             + (" of a given number: give --max-shard-size" if kind == "hf" else ""))
        if self.max_shard_size and kind != "hf":
            raise ValueError(f"--max-shard-size is for --to hf; a destination of kind {kind} is not split by size")
        if self.shards < 0 or self.max_shard_size < 0:
            raise ValueError(f"--shards is {self.shards} and --max-shard-size {self.max_shard_size}; "
                             "neither may be below 0")
        return dataclasses.replace(self, kind=kind)


def convert(source: str | Path, destination: str | Path, *, to: str = "", dtype: torch.dtype | None = None,
            quantization: str = "", shards: int = 0, max_shard_size: int = 0, chat_format: str = "",
            overwrite: bool = False) -> Path:
    """Write the model in `source` in another form, with its certificate, and tell on stderr what was done.

    to, dtype, quantization, shards, max_shard_size     as in `Form`
    chat_format  a name in tokenizer.chat.FORMATS or a file, to take the place of the source's chat template
    overwrite    replace an existing model of the same form, once the new one is complete

    Raises FileNotFoundError or ValueError, naming the file, for a source that is damaged or no Llama, for one whose
    rotary pairs are not where its form has them, and for a destination that may not be written or cannot hold it;
    RuntimeError where what was written is not what was read.
    """
    from weights.certificate import certify, place, read_naively, sealed, verdict  # whose model imports us
    from weights.passage import passage

    source, destination = Path(source), Path(destination)
    form = Form(to, dtype, quantization, shards, max_shard_size).of(destination)
    template = named_format(chat_format).template if chat_format else ""
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist; SOURCE is a model's file or folder")
    if source.resolve().is_relative_to(destination.resolve()):
        raise ValueError(f"{source} lies in {destination}, which would be replaced; give another destination")
    if source.is_dir() and destination.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"{destination} lies in {source}, and would become a part of it; give another destination")
    _refuse_existing(destination, form, overwrite=overwrite)
    read = open_source(source)
    if part := next((path for path in read.paths() if path.resolve() == destination.resolve()), None):
        raise ValueError(f"{part} is a part of {source}, and would be replaced; give another destination")
    if template:
        read.files = with_template(read.files, template)
    config = check(read.config, read.ledger, source)
    complete = config_to_dict(config)  # with what a file may leave to its class's defaults
    read.config = complete | {key: value for key, value in read.config.items()
                              if value is not None or key not in complete}
    text = passage(read.tokenizer, config)
    reading = read_naively(read, text) if _writes_text(read.ledger, config.tie_word_embeddings) else None
    check_disk(destination, written_bytes(form, read.ledger), "what is written", ELSEWHERE)
    destination.parent.mkdir(parents=True, exist_ok=True)
    staging = atomic_folder(destination) if form.kind in FOLDERS else \
        atomic_files(destination.parent, last=destination.name)
    with staging as hidden:
        made = hidden if form.kind in FOLDERS else hidden / destination.name
        written: list[Written] = []
        remarks = _WRITERS[form.kind](read, made, form, written)
        certificate = certify(read, made, written, text=text, reading=reading, remarks=remarks)
        place(made).write_bytes(sealed(certificate))
    for remark in [*read.remarks, *template_remark(read.files), *remarks, _summary(written), verdict(certificate)]:
        say(remark)
    return destination


def check(config: dict[str, Any], ledger: Ledger, place: Path) -> "LlamaConfig":
    """The config, if the tensors are those of its Llama; heads of tasks may be among them. Raises ValueError if not."""
    from llama.checkpoint import PretrainedLlama

    try:
        shape = config_from_dict(config)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    found = {name: shape for name, shape, _ in ledger}
    heads = {name for name in found if name.startswith(HEADS)}
    with torch.device("meta"):
        wanted = {name: tuple(parameter.shape) for name, parameter in PretrainedLlama(shape).named_parameters()}
    if heads - {_HEAD}:
        wanted.pop(_HEAD, None)                                     # another head takes its place
    for name, size in wanted.items():
        if name not in found:
            raise ValueError(f"{place}: lacks the tensor {name}; fetch or copy it again")
        if found[name] != size:
            raise ValueError(f"{place}: {name} has shape {list(found[name])}, but its config asks for {list(size)}")
    if unknown := sorted(found.keys() - wanted.keys() - heads):
        raise ValueError(f"{place}: holds {unknown[0]}, which has no place in a Llama; "
                         "the model is of a kind not built here")
    return shape


def written_bytes(form: Form, ledger: Ledger) -> float:
    """What a conversion has on the disk at once at most: torch.save copies what lies there already."""
    each = gguf.bytes_each(form.quantization) if form.quantization else 4 if form.kind == "llama2c" else 0
    whole = sum(torch.Size(shape).numel() * (each or dtype.itemsize) for _, shape, dtype in
                _cast_ledger(ledger, form.dtype))
    return whole * (2 if form.kind in ("meta", "pt") else 1)


def _writes_text(ledger: Ledger, tied: bool) -> bool:
    """Whether the model has the head of a language model, and no other."""
    return {name for name, _, _ in ledger if name.startswith(HEADS)} == (set() if tied else {_HEAD})


_HEAD = "lm_head.weight"


def _refuse_existing(destination: Path, form: Form, *, overwrite: bool) -> None:
    for name in (destination.name, ""):                             # leftovers of killed ones; "": of atomic_files
        sweep(destination.parent, name)
    if form.kind == "hf":
        huggingface.refuse_existing(destination, overwrite=overwrite)
    elif form.kind == "meta":
        huggingface.refuse_existing(destination, overwrite=overwrite, holds="params.json")
    elif destination.is_dir():
        raise ValueError(f"{destination} is a folder; give the name of a file to make")
    elif destination.exists() and not overwrite:
        raise ValueError(f"{destination} exists; give another name, or --overwrite to replace it")
    elif form.kind == "gguf" and (beside := _modelfile(destination)).exists() and not overwrite:
        raise ValueError(f"{beside} exists, and would be replaced; give another name, or --overwrite")
    elif form.kind == "llama2c" and (beside := destination.with_name("tokenizer.bin")).exists() and not overwrite:
        raise ValueError(f"{beside} exists, and would be taken for the tokenizer of {destination.name}; give another "
                         "folder, or --overwrite to replace it")


# ---- what goes through -----------------------------------------------------------------------------------------------


Stored = tuple[str, str]                # sha256 of the numbers that a reader will find, and how they were made


def _passing(source: Source, ledger: Ledger, written: "list[Written]",
             stored: Callable[[str, Tensor], Stored] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Each tensor in the ledger's dtype, noted in `written`, with a live line for whoever watches.

    stored  for forms that store numbers in another way than they are handed over
    """
    from weights.certificate import Written, digest

    progress = Progress(len(ledger), "tensor")
    for done, (name, shape, dtype) in enumerate(ledger, start=1):
        progress.show(done, name)
        tensor = source.read(name)
        before, read_as = digest([tensor]), tensor.dtype
        tensor = huggingface.cast(name, tensor, dtype)
        expected, rule = stored(name, tensor) if stored else (digest([tensor]), _rule(read_as, dtype))
        written.append(Written(name, shape, rule, before, expected, read_as))
        if done == len(ledger):
            progress.clear()
        yield name, tensor
        del tensor                                                  # before the next one is read


def _rule(before: torch.dtype, after: torch.dtype) -> str:
    return "as it was" if before == after else f"cast to {_name(after)}"


def _cast_ledger(ledger: Ledger, wanted: torch.dtype | None) -> Ledger:
    return [(name, shape, wanted if wanted and stored.is_floating_point else stored) for name, shape, stored in ledger]


# Each writer gives sentences on what its form cannot hold, or what else a person should know.


def _write_hf(source: Source, path: Path, form: Form, written: "list[Written]") -> list[str]:
    ledger = _cast_ledger(source.ledger, form.dtype)
    huggingface.write_folder(path, source.config, ledger, _passing(source, ledger, written), files=source.files,
                             max_shard_size=form.max_shard_size or 5_000_000_000, overwrite=True)
    return []


def _write_pt(source: Source, path: Path, form: Form, written: "list[Written]") -> list[str]:
    ledger = _cast_ledger(source.ledger, form.dtype)
    single_file.write_single(path, source.config, ledger, _passing(source, ledger, written), files=source.files)
    return []


def _write_gguf(source: Source, path: Path, form: Form, written: "list[Written]") -> list[str]:
    if source.tokenizer is None:
        raise ValueError(f"{source.path} has no tokenizer, and a GGUF is not complete without; put tokenizer.json or "
                         "tokenizer.model beside it")
    encoding = form.quantization or huggingface.CODES[form.dtype or source.dtype]

    def stored(name: str, tensor: Tensor) -> Stored:
        from weights.certificate import digest

        format = gguf.format_of(name, tuple(tensor.shape), encoding, source.config["num_hidden_layers"])
        pieces = (format.unpack(format.pack(piece.float().numpy().reshape(-1, format.numbers)))
                  for piece in tensor.reshape(-1).split(gguf.PIECE))
        return digest(pieces), _rule(tensor.dtype, format.dtype) if format.numbers == 1 else f"packed as {format.name}"

    name = source.path.absolute()
    remarks = gguf.write_gguf(path, source.config, source.tokenizer.vocabulary(), source.ledger,
                              _passing(source, source.ledger, written, stored), encoding=encoding,
                              name=name.name if name.is_dir() else gguf.without_part(name.stem))
    text, lost = modelfile(source.tokenizer, path.name)
    _modelfile(path).write_text(text, encoding="utf-8")
    return [*remarks, *lost, f"for ollama: ollama create {path.stem} -f {_modelfile(path).name}"]


def _modelfile(path: Path) -> Path:
    """What lies beside a GGUF for ollama."""
    return path.with_suffix(".Modelfile")


def _write_meta(source: Source, path: Path, form: Form, written: "list[Written]") -> list[str]:
    ledger = _cast_ledger(source.ledger, form.dtype)
    files, lost = _meta_tokenizer(source)
    meta.write_meta(path, source.config, ledger, _passing(source, ledger, written), shards=form.shards or 1,
                    files=files, overwrite=True)
    return meta.unsaid(source.config) + lost


def _write_llama2c(source: Source, path: Path, form: Form, written: "list[Written]") -> list[str]:
    version, files, lost = 2 if form.quantization else 0, *_llama2c_tokenizer(source)
    sizes = plain_sizes(source.config, source.ledger, "llama2.c's files")
    size = llama2c.group_size(sizes.D, sizes.F)

    def stored(name: str, tensor: Tensor) -> Stored:
        from weights.certificate import digest

        if version == 0 or name.endswith("norm.weight"):
            return digest([tensor.float()]), _rule(tensor.dtype, torch.float32)
        return digest([llama2c.packed(tensor, size)]), f"packed as int8 in groups of {size}"

    llama2c.write_llama2c(path, source.config, source.ledger, _passing(source, source.ledger, written, stored),
                          version=version)
    for name, content in files.items():
        (path.parent / name).write_bytes(content)
    return lost


def _meta_tokenizer(source: Source) -> tuple[dict[str, bytes], list[str]]:
    """tokenizer.model as Meta has it, and the small files that say what it cannot; or Hugging Face's, with a remark."""
    kept = {name: content for name, content in source.files.items() if name not in VOCABULARIES}
    if source.tokenizer is None:
        return kept, []
    try:
        form = "SentencePiece" if "tokenizer.model" in source.files else "ranks"
        name, content = tokenizer_file(source.tokenizer, form)
        files = source.tokenizer.files() | kept | {name: content}
        files.pop("tokenizer.json", None)
        if load_tokenizer(files).special_ids != source.tokenizer.special_ids:
            raise ValueError("its control tokens would be forgotten")
    except ValueError as error:
        return source.files, [f"tokenizer.json is kept, since Meta's tokenizer.model cannot hold it: {error}"]
    return files, []


def _llama2c_tokenizer(source: Source) -> tuple[dict[str, bytes], list[str]]:
    if source.tokenizer is None:
        return {}, []
    try:
        return dict([tokenizer_file(source.tokenizer, "llama2.c")]), \
            ["tokenizer.bin holds pieces and scores alone: no chat template"] * bool(source.tokenizer.chat_template)
    except ValueError as error:
        return {}, [f"tokenizer.bin is not written: {error}"]


_WRITERS = {"hf": _write_hf, "gguf": _write_gguf, "meta": _write_meta, "llama2c": _write_llama2c, "pt": _write_pt}


def _summary(written: "list[Written]") -> str:
    count = sum(torch.Size(entry.shape).numel() for entry in written)
    rules = sorted({entry.rule for entry in written})
    heads = [entry.name for entry in written if entry.name.startswith(HEADS)]
    head = f"head: {', '.join(heads)}" if heads else "head tied to the embedding"
    return f"{len(written)} tensors, {count:,} parameters, {' and '.join(rules)}, {head}"


def _holds(kind: str) -> str:
    return "model.safetensors" if kind == "hf" else "consolidated.00.pth"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    from llama.runtime.cli import Parser
    from llama.runtime.destinations import file_or_folder_to_write
    from llama.runtime.ranges import Range
    from weights.certificate import verdict, verify

    parser = Parser("python -m weights.convert", __doc__.splitlines()[0])
    parser.add_argument("source", metavar="SOURCE",
                        help="a model: a folder or a file of any form known here, or hf:ORG/NAME, fetched")
    parser.add_argument("destination", type=file_or_folder_to_write, metavar="DESTINATION", nargs="?",
                        help="what to make, such as weights/NAME")
    parser.add_argument("--to", choices=KINDS, help="form to write; without it, by the destination's ending: "
                                                    ".gguf, .bin (llama2c), .pt, else hf")
    parser.add_argument("--dtype", choices=DTYPES, help="number format to write; without it, that of the source")
    parser.add_argument("--quantization", choices=gguf.PACKED,
                        help="pack numbers, the fewest bits last (llama2c: Q8_0 alone)")
    parser.add_argument("--shards", type=Range(1, 1024), metavar="N", help="number of .pth files (meta)")
    parser.add_argument("--max-shard-size", metavar="SIZE", help="size of a .safetensors file, such as 5GB (hf)")
    parser.add_argument("--chat-format", metavar="NAME",
                        help=f"replace the source's chat template: by that of {', '.join(chat.FORMATS)}, or by a file")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing model")
    parser.add_argument("--verify", action="store_true", help="convert nothing: prove SOURCE by its certificate")
    flags = parser.parse_args()
    if flags.verify:
        if given := [name for name, value in vars(flags).items() if value and name not in ("source", "verify")]:
            raise ValueError(f"--verify converts nothing, so it takes SOURCE alone; leave out {', '.join(given)}")
        say(verdict(verify(flags.source)))
        return
    if not flags.destination:
        parser.error("the following arguments are required: DESTINATION")
    source = download.fetch(flags.source, kind="weights") if hub.is_address(flags.source) else flags.source
    path = convert(source, flags.destination, to=flags.to or "", dtype=DTYPES.get(flags.dtype),
                   quantization=flags.quantization or "", shards=flags.shards or 0,
                   max_shard_size=_bytes(flags.max_shard_size), chat_format=flags.chat_format or "",
                   overwrite=flags.overwrite)
    print(shown(path))


def _bytes(size: str | None) -> int:
    if size is None:
        return 0
    match = re.fullmatch(r"(\d{1,15}(?:\.\d+)?)\s*([kKMGT]?)B?", size)
    if not match or not (count := int(float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " "))):
        raise ValueError(f"--max-shard-size is {size!r}; it must be a size such as 5GB or 500MB")
    return count


if __name__ == "__main__":
    from llama.runtime.cli import run

    run(main)
