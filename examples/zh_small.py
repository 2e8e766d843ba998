"""zh-small, the Chinese Llama that comes with this repository, made from its sources: python examples/zh_small.py

    fetch       a newspaper, reviews, a novel, prose and poems of two thousand years
    prepare     data/zh-small/{train,dev,test}/SOURCE.txt, in simplified characters
    vocabulary  data/zh-small/tokenizer: 8,000 SentencePiece pieces
    train       weights/zh-small-float32, by train.py; --minutes says how long, and more of them go on where it ended
    pack        weights/zh-small/model.gguf: eight bits a weight, the tokenizer in the same file
    judge       bits per character of each source beside a 5-gram and xz, and the form of its poems

Each step is done once: delete what it made, and it is done again. `python examples/zh_small.py judge` does that alone.
What is held out of a source is what its own sets hold out, so that no task is judged by what was read here.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from examples.steps import add_steps, chosen  # noqa: E402
from llama.benchmark.text_baselines import ngram_bits_per_byte, xz_bits_per_byte  # noqa: E402
from llama.clean.han import Converter  # noqa: E402
from llama.generation import generate  # noqa: E402
from llama.model import Llama  # noqa: E402
from llama.pretrained import get_model  # noqa: E402
from llama.runtime import cli  # noqa: E402
from llama.runtime.terminal import say  # noqa: E402
from llama.sampling import SamplingConfig  # noqa: E402
from tokenizer.spm_train import train_spm  # noqa: E402
from weights.convert import convert  # noqa: E402
from weights.corpora import PARTS  # noqa: E402
from weights.fetch import fetch  # noqa: E402
from weights.formats.atomic_write import atomic_file, atomic_folder  # noqa: E402

DATA = HOME / "data" / "zh-small"
TRAINED, PACKED = HOME / "weights" / "zh-small-float32", HOME / "weights" / "zh-small" / "model.gguf"
PIECES = 8000
SHAPE = {"preset": "tiny-15m", "hidden-size": 320, "num-hidden-layers": 6, "num-attention-heads": 5,
         "num-key-value-heads": 5, "intermediate-size": 896, "max-position-embeddings": 1024}
RUN = {"block-size": 256, "batch-size": 8, "lr": 2e-3, "warmup": 0.02, "epochs": 2, "eval-every": 500,
       "save-every": 250, "dtype": "bfloat16"}
CHOSEN_BY = 20_000                                                  # characters of each dev set, and of a 5-gram's ...
COUNTED = 4_000_000                                                 # ... training text: more takes gigabytes
TEMPERATURES = (0.7, 0.5)                                           # of poems that are judged; the first is usual

Parts = dict[str, list[str]]                                        # train, dev and test: documents


# ---- what it reads ---------------------------------------------------------------------------------------------------


def news(folder: Path) -> Parts:
    """Articles of the People's Daily: their tagged words, joined again."""
    return {part: ["\n".join("".join(word.rpartition("/")[0] for word in line.split(" "))
                             for line in article.split("\n")) for article in articles]
            for part, articles in _parts(folder).items()}


def reviews(folder: Path) -> Parts:
    return {part: [json.loads(line)["text"] for line in (folder / f"{part}.jsonl").read_text("utf-8").splitlines()]
            for part in PARTS}


def novel(folder: Path) -> Parts:
    """Romance of the Three Kingdoms, whose last eight chapters of 120 are held out."""
    chapters = _documents(folder / "text.txt")
    return {"train": chapters[:-8], "dev": chapters[-8:-4], "test": chapters[-4:]}


def modern(folder: Path) -> Parts:
    return _parts(folder / "modern")


def classical(folder: Path) -> Parts:
    return _parts(folder / "classical")


def poems(folder: Path) -> Parts:
    return _parts(folder, Converter("t2s", fetch("opencc")))


# name: (what is fetched, how it is read, how many times a document of it is there to be learned from)
SOURCES: dict[str, tuple[str, Callable[[Path], Parts], float]] = {
    "news": ("peoples-daily", news, 2), "reviews": ("reviews", reviews, 1), "novel": ("three-kingdoms", novel, 2),
    "modern": ("classical-modern", modern, 1), "classical": ("classical-modern", classical, 0.5),
    "poems": ("poems", poems, 0.5)}


def _parts(folder: Path, convert: Callable[[str], str] = str) -> Parts:
    return {part: _documents(folder / f"{part}.txt", convert) for part in PARTS}


def _documents(path: Path, convert: Callable[[str], str] = str) -> list[str]:
    return convert(path.read_text(encoding="utf-8")).strip("\n").split("\n\n")


def _texts(part: str) -> dict[str, str]:
    return {name: (DATA / part / f"{name}.txt").read_text(encoding="utf-8") for name in SOURCES}


# ---- its steps -------------------------------------------------------------------------------------------------------


def prepare() -> None:
    """A document a paragraph; dev is cut to CHOSEN_BY characters of each source."""
    for name, (fetched, read, times) in SOURCES.items():
        if (DATA / "train" / f"{name}.txt").is_file():
            continue
        parts = read(fetch(fetched))
        parts["train"] = (parts["train"] * max(1, int(times)))[:: max(1, round(1 / times))]
        for part, documents in reversed(parts.items()):             # train last: it says that all are there
            text = "\n\n".join(documents)
            text = text[:CHOSEN_BY] if part == "dev" else text
            (DATA / part).mkdir(parents=True, exist_ok=True)
            with atomic_file(DATA / part / f"{name}.txt") as file:
                file.write(text.encode() + b"\n")
            say(f"{part}/{name}.txt: {len(text):,} characters")


def learn_vocabulary() -> None:
    """From one line in six of prose and news, and one in twelve of poems and classical texts."""
    if (DATA / "tokenizer").is_dir():
        return

    def lines() -> Iterator[str]:
        for name, text in _texts("train").items():
            yield from text.splitlines()[:: 12 if name in ("poems", "classical") else 6]

    say(f"learning {PIECES:,} pieces")
    with atomic_folder(DATA / "tokenizer") as partial:
        train_spm(lines(), PIECES).save(partial)


def train(minutes: float) -> None:
    """As `python train.py --help` says; a run that ended goes on if `minutes` are more than it had."""
    command = [sys.executable, str(HOME / "train.py"), "--tokenizer", str(DATA / "tokenizer"), "--output", str(TRAINED),
               "--data", *(str(DATA / "train" / f"{name}.txt") for name in SOURCES),
               "--eval-data", *(str(DATA / "dev" / f"{name}.txt") for name in SOURCES),
               *(word for name, value in (SHAPE | RUN).items() for word in (f"--{name}", str(value))),
               "--minutes", str(minutes)]
    if any(Path(f"{TRAINED}.training").glob("last-*.pt")):
        command.append("--resume")
    if code := subprocess.run(command, check=False).returncode:
        raise SystemExit(code)


def pack() -> None:
    convert(TRAINED, PACKED, quantization="Q8_0", overwrite=True)
    say(f"{PACKED}: {PACKED.stat().st_size:,} bytes")


# ---- how good it is --------------------------------------------------------------------------------------------------


def judge() -> None:
    """Prints Markdown."""
    model = get_model(str(PACKED.parent))
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, {PACKED.stat().st_size:,} bytes\n")
    print("| source, held out | characters | bits per character | 5-gram | xz -9 |\n|---|---|---|---|---|")
    for name, text in _texts("test").items():
        scores = json.loads(subprocess.run(
            [sys.executable, "-m", "llama.evaluate", "--task", "generation", "--model", str(PACKED.parent), "--data",
             str(DATA / "test" / f"{name}.txt"), "--max-length", str(RUN["block-size"]), "--json"],
            check=True, stdout=subprocess.PIPE, cwd=HOME).stdout)
        learned = (DATA / "train" / f"{name}.txt").read_text(encoding="utf-8")[-COUNTED:]
        of_bytes = len(text.encode()) / len(text)
        print(f"| {name} | {len(text):,} | {scores['bits_per_character']:.2f} "
              f"| {ngram_bits_per_byte(learned, text) * of_bytes:.2f} "
              f"| {xz_bits_per_byte(learned.encode(), text.encode()) * of_bytes:.2f} |", flush=True)
    judge_quatrains(model)
    show_curve(TRAINED.with_name(f"{TRAINED.name}.training") / "metrics.jsonl")


def judge_quatrains(model: Llama) -> None:
    """Of all held-out titles, as generate.py chooses tokens unless flags say otherwise, and by a lower temperature."""
    real = [poem.split("\n", 1) for poem in _texts("test")["poems"].strip().split("\n\n")
            if poem.startswith("七言绝句")]
    titles, theirs = zip(*real, strict=True)
    ids = [model.tokenizer.encode(f"{title}\n", bos=True) for title in titles]
    rows, shown = [("real ones", theirs)], []
    for temperature in TEMPERATURES:
        sampling = SamplingConfig(temperature=temperature)
        written = generate(model, ids, tokenizer=model.tokenizer, max_new_tokens=60, seed=0, sampling=sampling)
        bodies = [completion.text.split("\n\n")[0] for completion in written]
        rows.append((f"`--temperature {temperature} --top-p {sampling.top_p}`", bodies))
        shown = shown or list(zip(titles, bodies, strict=True))[:3]
    print(f"\n| quatrains of seven characters, {len(titles)} held-out titles | have the form | rhyme, by today's "
          "pinyin |\n|---|---|---|")
    for what, bodies in rows:
        print(f"| {what} | {share(has_form, bodies):.1%} | {share(rhymes, bodies):.1%} |")
    for title, body in shown:
        print(f"\n    {title}\n    " + body.replace("\n", "\n    "))
    print()


def show_curve(metrics: Path) -> None:
    """What its training found on the way, where it was trained here."""
    lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()] if metrics.exists() else []
    told = {line["step"]: line for line in lines if "tokens" in line}
    print("| step | tokens read | minutes | bits per character of the dev sets |\n|---|---|---|---|" if told else "")
    for line in lines:
        if "eval" in line:
            there = told.get(line["step"], {"tokens": 0, "seconds": 0})
            print(f"| {line['step']:,} | {there['tokens']:,} | {there['seconds'] / 60:.0f} "
                  f"| {line['eval']['bits_per_character']:.3f} |")


def share(holds: Callable[[str], bool], bodies: Sequence[str]) -> float:
    return sum(map(holds, bodies)) / len(bodies)


def has_form(body: str) -> bool:
    """Four lines of seven Chinese characters, two to a sentence."""
    return re.fullmatch(r"([\u3400-\u9fff]{7}，[\u3400-\u9fff]{7}[。？！]\n?){2}", body) is not None


def rhymes(body: str) -> bool:
    """Whether the second line and the fourth end on the same final, in any tone, glides before its vowel aside."""
    from pypinyin import Style, pinyin
    lines = re.findall(r"[\u3400-\u9fff]+", body)
    if len(lines) != 4:
        return False
    one, other = (re.sub(r"^[iuüv](?=[aeo])", "", pinyin(lines[i][-1], style=Style.FINALS)[0][0]) for i in (1, 3))
    return one == other


STEPS = {"prepare": prepare, "vocabulary": learn_vocabulary, "train": train, "pack": pack, "judge": judge}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python examples/zh_small.py", description=__doc__.splitlines()[0])
    add_steps(parser, list(STEPS))
    parser.add_argument("--minutes", type=float, default=240, metavar="X", help="of training in all (default: 240)")
    arguments = parser.parse_args()
    for name in chosen(parser, arguments.names, list(STEPS), {"judge": "pypinyin"}):
        STEPS[name](arguments.minutes) if name == "train" else STEPS[name]()


if __name__ == "__main__":
    cli.run(main)
