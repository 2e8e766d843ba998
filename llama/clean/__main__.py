"""Raw text made fit to learn from: python -m llama.clean FILES… --output FILE

    python -m llama.clean news.txt.gz forum.jsonl --output clean.txt --half-width --near-duplicates 0.8 --split 0.01
    python -m llama.clean zhwiki-pages-articles.xml.bz2 --output wiki.jsonl.gz --characters t2s --min-characters 100
    python -m llama.clean old.txt --output new.txt --repair          # lines of GB18030 among UTF-8

Texts pass through one at a time, so memory does not grow with the files, but for what is known of each text or line to
find it again: some 80 bytes, and 2 kB with --near-duplicates. The same files become the same output every time.

Try: write texts as they come, without `atomic_file`; tests/test_clean_command.py
(test_property_whatever_stops_it_nothing_is_left) fails: of an interrupted run half a file would look like a whole one.
"""

import bz2
import gzip
import json
import lzma
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from llama.runtime.interrupt import quiet_start, signals_raise

with quiet_start(__name__):
    from llama.clean.han import Converter
    from llama.clean.sources import Text, Texts
    from llama.clean.steps import CleanConfig, Cleaner, Step, held_out
    from llama.datasets.text_files import PACKINGS, ending
    from llama.runtime import cli
    from llama.runtime.destinations import file_to_write
    from llama.runtime.progress import display_width, pad_to_width
    from llama.runtime.ranges import Range, check_ranges
    from llama.runtime.terminal import say
    from weights.formats.atomic_write import atomic_file
    from weights.formats.paths import data_files, resolve

HELD_OUT = "-held-out"                                              # in the name of the second file
WRITTEN = (".jsonl", ".txt")
PACK: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {               # without a date: the same texts, the same bytes
    ".gz": lambda file: gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0),
    ".xz": lambda file: lzma.open(file, "wb"), ".bz2": lambda file: bz2.open(file, "wb")}


@dataclass(frozen=True)
class SourceFlags:
    """What is read, and where it goes."""

    field: Annotated[str, "the field or column that holds the text, a column also by its number; it is called text "
                     "from then on, and other fields stay in .jsonl"] = "text"
    documents: Annotated[Literal["blank-line", "line"], "what separates the documents of a .txt file"] = "blank-line"
    keep_tags: Annotated[bool, "leave lines of word/tag as they are; without it they become plain text"] = False
    encoding: Annotated[str, "of data files, such as gb18030; default: UTF-8"] = ""
    skip_bad: Annotated[bool, "go on without what is wrong in the files; it is counted, and the first named"] = False
    split: Annotated[float, "hold out about this share of the texts, whole ones, in a second file; 0 for none",
                     Range(0.0, 0.5)] = 0.0
    overwrite: Annotated[bool, "replace --output if it exists"] = False
    json: Annotated[bool, "print the report as JSON on stdout"] = False

    def __post_init__(self) -> None:
        check_ranges(self)


def main() -> None:
    parser = cli.Parser("python -m llama.clean", "Texts of files put right, judged and compared, and a report of it.",
                        most=("files", "output", "field", "documents", "characters", "half-width", "repair",
                              "near-duplicates", "min-characters", "min-han", "split", "overwrite", "json"),
                        example="python -m llama.clean news.txt.gz forum.jsonl --output clean.txt --split 0.01")
    parser.add_argument("files", metavar="FILE", nargs="+",
                        help=".txt, .jsonl, .json, .csv, .tsv, or .xml of a MediaWiki dump, also as .gz, .xz or .bz2")
    parser.add_argument("--output", type=file_to_write, required=True, metavar="FILE",
                        help="a .jsonl, or a .txt with blank lines between texts; also packed, by its ending")
    cli.add_flags(parser, SourceFlags)
    cli.add_flags(parser, CleanConfig)
    arguments = parser.parse_args()

    flags, config = cli.from_flags(SourceFlags, arguments), cli.from_flags(CleanConfig, arguments)
    outputs = output_paths(Path(arguments.output), split=flags.split > 0)
    texts = Texts(*data_files(arguments.files), name=flags.field, documents=flags.documents, keep_tags=flags.keep_tags,
                  encoding=flags.encoding, repair=config.repair, skip_bad=flags.skip_bad)
    check_outputs(outputs, texts.paths, overwrite=flags.overwrite)
    cleaner = Cleaner(config, Converter(config.characters, resolve("data/opencc", "data")) if config.characters else
                      None)
    begun = time.monotonic(), time.process_time()
    written = clean(texts, cleaner, outputs, flags.split)
    if flags.json:
        print(json.dumps(report(texts, cleaner, written), ensure_ascii=False))
    else:
        print(as_text(report(texts, cleaner, written)))
        whole, own = time.monotonic() - begun[0], time.process_time() - begun[1]
        say(f"{whole:.1f} s, {own:.1f} s of the processor, each of these for "
            f"{cleaner.read['characters'] / max(own, 1e-3) / 1e6:.1f} M characters")


# ---- the work --------------------------------------------------------------------------------------------------------


def clean(texts: Texts, cleaner: Cleaner, outputs: list[Path], share: float = 0.0) -> dict[Path, Counter[str]]:
    """Write what is kept of the texts, the `share` that is held out into the second of two files; each whole or, if
    anything goes wrong, none. How many texts and characters each holds.

    Raises ValueError where nothing is left to write into one of them.
    """
    written = {path: Counter(texts=0, characters=0) for path in outputs}
    for path in outputs:
        path.parent.mkdir(parents=True, exist_ok=True)
    with signals_raise(), ExitStack() as stack:
        files = {path: stack.enter_context(atomic_file(path)) for path in reversed(outputs)}  # failures name the first
        with ExitStack() as packing:
            packed = [packing.enter_context(PACK[path.suffix.lower()](files[path])) if path.suffix.lower() in PACK else
                      files[path] for path in outputs]
            for text in texts.watched("cleaning"):
                kept = cleaner(text.text, text.place)
                if kept is not None:
                    number = int(share > 0 and held_out(kept, share))
                    packed[number].write(_encoded(outputs[number], kept, text))
                    written[outputs[number]].update(texts=1, characters=len(kept))
            _refuse_nothing(texts, cleaner, written)
        for file in files.values():                                 # all on the disk before one gets its name
            file.flush()
            os.fsync(file.fileno())
    return written


def _encoded(path: Path, kept: str, text: Text) -> bytes:
    """A line of JSON, or a document and the blank line behind it, which no kept text has inside."""
    if ending(path) == ".txt":
        return f"{kept}\n\n".encode()
    record = json.dumps({"text": kept} | {name: value for name, value in text.others.items() if name != "text"},
                        ensure_ascii=False)
    return f"{record}\n".encode("utf-8", "backslashreplace")        # half a character, as JSON writes it


def _refuse_nothing(texts: Texts, cleaner: Cleaner, written: dict[Path, Counter[str]]) -> None:
    if not cleaner.read["texts"]:
        why = f": {left_out.examples[0]}" if (left_out := next(iter(texts.steps.values()), None)) else ""
        raise ValueError(f"no text was found in {', '.join(map(str, texts.paths)) or 'the files'}{why}; give files "
                         "that hold some")
    for path, sums in written.items():
        if not sums["texts"]:
            dropped = ", ".join(f"{name} {step.dropped:,}" for name, step in cleaner.steps.items() if step.dropped)
            raise ValueError(f"{path} would be empty: of {_several(cleaner.read['texts'], 'text')} "
                             f"{cleaner.kept['texts']:,} were kept{f' (dropped: {dropped})' * bool(dropped)}; "
                             + ("give more text, or another share to --split" if cleaner.kept["texts"] else
                                "ask for less"))


def output_paths(output: Path, *, split: bool) -> list[Path]:
    """The file, and the one for what is held out. Raises ValueError for one of which is not known how to write it."""
    if ending(output) not in WRITTEN:
        raise ValueError(f"--output {output}: texts are written as {' or '.join(WRITTEN)}, also packed as "
                         f"{', '.join(PACKINGS)}; give it one of these endings")
    packing = output.suffix if output.suffix.lower() in PACKINGS else ""
    plain = output.with_suffix("") if packing else output
    return [output, *([plain.with_name(f"{plain.stem}{HELD_OUT}{plain.suffix}{packing}")] if split else [])]


def check_outputs(outputs: list[Path], inputs: list[Path], *, overwrite: bool) -> None:
    """Raise ValueError where an output would take the place of an input, or of a file that nobody asked to replace."""
    for path in outputs:
        if path.is_dir():
            raise ValueError(f"{path} is a folder; give another --output")
        if path.exists():
            if any(os.path.samefile(path, each) for each in inputs):
                raise ValueError(f"{path} is one of the files that are read, and would be replaced; give another "
                                 "--output")
            if not overwrite:
                raise ValueError(f"{path} exists already; give --overwrite to replace it, or another --output")


# ---- the report ------------------------------------------------------------------------------------------------------


def report(texts: Texts, cleaner: Cleaner, written: dict[Path, Counter[str]]) -> dict[str, Any]:
    """What was read, repaired, changed, dropped and kept: read = kept + all that was dropped."""
    def steps(of: dict[str, Step], what: str) -> dict[str, Any]:
        return {name: {"texts": count, "examples": step.examples} for name, step in of.items()
                if (count := getattr(step, what))}

    characters = cleaner.kept["characters"] or 1
    return {"files": [str(path) for path in texts.paths], "remarks": texts.remarks, "read": dict(cleaner.read),
            "left_out": steps(texts.steps, "dropped"), "repaired": steps(texts.steps, "changed"),
            "changed": steps(cleaner.steps, "changed"), "dropped": steps(cleaner.steps, "dropped"),
            "kept": dict(cleaner.kept),
            "scripts": {name: round(count / characters, 4) for name, count in cleaner.scripts.most_common()},
            "written": {str(path): dict(sums) for path, sums in written.items()}}


def as_text(told: dict[str, Any]) -> str:
    """The same in a few lines."""
    read, kept = told["read"], told["kept"]
    lines = [*told["remarks"], f"read      {_sums(read)}, of {_several(len(told['files']), 'file')}"]
    for name in ("left_out", "repaired", "changed", "dropped"):
        steps = told[name]
        width = max(map(display_width, steps), default=0)
        for i, (step, done) in enumerate(steps.items()):
            examples = " · ".join(done["examples"]) if name != "changed" else done["examples"][0]
            lines.append(f"{name.replace('_', ' ') if i == 0 else '':10}{pad_to_width(step, width)} {done['texts']:9,}"
                         f"  {examples}")
    lines.append(f"kept      {_sums(kept)} ({kept['texts'] / max(read['texts'], 1):.1%} of the texts, "
                 f"{kept['characters'] / max(read['characters'], 1):.1%} of the characters)")
    lines.append("scripts   " + ", ".join(f"{name} {share:.1%}" for name, share in told["scripts"].items()
                                      if share >= 0.0005))
    lines += [f"{'written' if i == 0 else '':10}{path}: {_sums(sums)}"
              for i, (path, sums) in enumerate(told["written"].items())]
    return "\n".join(lines)


def _sums(sums: dict[str, int]) -> str:
    return f"{_several(sums['texts'], 'text')}, {_several(sums['characters'], 'character')}"


def _several(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


if __name__ == "__main__":
    cli.run(main)
