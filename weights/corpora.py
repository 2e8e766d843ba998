"""What becomes of fetched corpora: plain text to learn a language from, and sets to learn and to judge a task with.

    peoples_daily    text.txt, and train, dev, test.txt of tagged words, 90 : 5 : 5, no article on two sides
    reviews          train, dev, test.jsonl with `text` and `label`, 80 : 10 : 10
    poems            authors/ and forms/, each with train, dev, test.jsonl as above; and train, dev, test.txt, all poems
                     with form, title and poet, 99 : 0.5 : 0.5
    three_kingdoms   text.txt
    classical_modern train, dev, test.tsv of `source` and `target`, 99 : 0.5 : 0.5; the same sentences joined to
                     passages in classical/ and modern/, each with train, dev, test.txt
    wikipedia        train, dev, test.txt of articles in simplified characters, 99 : 0.5 : 0.5

Near-duplicates (llama/datasets/split.py) are on one side of the newspaper; of reviews and poems only one is kept, and
none of those that contradict each other. The same files come out every time.

Try: let `_certain` be True of every headline; tests/test_corpora.py
(test_worked_example_an_article_with_headings_stays_whole) fails.
"""

import hashlib
import itertools
import json
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from llama.clean.han import Converter
from llama.clean.sources import Text, Texts
from llama.clean.steps import CleanConfig, Cleaner, held_out
from llama.datasets.lines import numbered_lines
from llama.datasets.split import grouped, split
from llama.runtime.terminal import say
from weights.formats.atomic_write import atomic_file
from weights.formats.paths import resolve

TEXT = "text.txt"
PARTS = ("train", "dev", "test")
SHORT = 15                      # characters; shorter paragraphs, «（附图片１张）», are in many articles
POETS, POEMS = 10, 500          # of each dynasty, of each poet
# by the number of lines, and of characters in each
FORMS = {(4, 5): "五言绝句", (4, 7): "七言绝句", (8, 5): "五言律诗", (8, 7): "七言律诗"}
POEMS_OF_A_FORM = 2500
NOBODY = ("不詳", "無名氏", "佚名")
PASSAGE = 50                    # sentences that stay together
HELD_OUT = 200                  # one passage, or article, of so many for dev, and one for test
STUB = 100                      # characters; shorter articles say where a place lies, and no more


# ---- the newspaper ---------------------------------------------------------------------------------------------------


def peoples_daily(tagged: Path, folder: Path) -> None:
    """«迈向/v  充满/v …», a paragraph a line, articles not marked -> text.txt, and articles in train, dev and test.txt.

    A paragraph that does not end like a sentence is taken for a headline, whatever is in brackets behind it left
    aside; an article begins with the first of one or more headlines. An article with headings in it falls into parts
    that way, so what is divided are larger pieces, from one certain beginning to the next: a headline above a dateline.
    """
    lines = [" ".join(line.split()) for line in tagged.read_text(encoding="utf-8").splitlines() if line.strip()]
    texts = ["".join(word.rpartition("/")[0] for word in line.split(" ")) for line in lines]
    articles = list(_articles(texts))
    pieces, examples = -1, []
    for number, article in enumerate(articles):
        pieces += pieces < 0 or _certain([texts[i] for i in article])
        examples += [{"text": texts[i], "line": lines[i], "article": number, "piece": pieces} for i in article]
    parts = split(examples, groups="piece", text=lambda example: example["text"] if len(example["text"]) >= SHORT
                  else f"{example['text']} {example['article']} {'-' * SHORT}")
    say(f"{len(articles):,} articles in {pieces + 1:,} pieces")
    _write(folder / TEXT, "\n\n".join("\n".join(texts[i] for i in article) for article in articles) + "\n")
    for name, part in reversed([*zip(PARTS, parts, strict=True)]):
        say(f"{name}.txt: {len(part):,} paragraphs, {sum(len(example['text']) for example in part):,} characters")
        _write(folder / f"{name}.txt", "".join(
            "\n" * (i > 0 and example["article"] != part[i - 1]["article"]) + example["line"] + "\n"
            for i, example in enumerate(part)))


def _articles(texts: Sequence[str]) -> Iterator[list[int]]:
    article, after_headline = [], False
    for i, text in enumerate(texts):
        bare = re.sub(r"（[^（）]*）$", "", text)
        if _is_headline(text) and not after_headline and article:
            yield article
            article = []
        after_headline = _is_headline(text) or (after_headline and not bare)
        article.append(i)
    yield article


def _is_headline(text: str) -> bool:
    bare = re.sub(r"（[^（）]*）$", "", text)
    return bare != "" and bare[-1] not in "。！？：；，…”’』」》"


def _certain(article: Sequence[str]) -> bool:
    """Whether the text under the headlines says where it comes from: «本报北京１月１日讯记者…»."""
    text = next((text for text in article if not _is_headline(text)), "")
    return re.match(r"(本报|据?新华社|中新社)|[^，。]{0,25}[讯电](特派|通讯)?(记者|员|（)", text) is not None


# ---- the novel -------------------------------------------------------------------------------------------------------


def three_kingdoms(listed: Path, folder: Path) -> None:
    """A JSON list of chapters -> plain text, a paragraph a line, chapters separated by blank lines."""
    chapters = json.loads(listed.read_bytes())
    paragraphs = ([line.strip() for line in chapter.splitlines()] for chapter in chapters)
    _write(folder / TEXT, "\n\n".join("\n".join(filter(None, lines)) for lines in paragraphs) + "\n")


# ---- classical sentences and modern ones -----------------------------------------------------------------------------


def classical_modern(source: Path, folder: Path) -> None:
    """The repository's folder, or «book TAB classical TAB modern» a line, also packed -> pairs, and passages of prose.

    Held out are whole passages, sentences that follow one another; what stands in one of them, word for word, on either
    side, is left out of what is learned: books quote books.
    """
    passages: list[list[tuple[str, str]]] = []
    for _, pairs in itertools.groupby(_sentences(source), key=lambda sentence: sentence[0]):
        for number, (_, old, new) in enumerate(pairs):
            if number % PASSAGE == 0:
                passages.append([])
            passages[-1].append((old, new))
    drawn = sorted(range(len(passages)), key=lambda i: hashlib.sha256(passages[i][0][0].encode()).digest())
    share = max(1, len(drawn) // HELD_OUT)
    cuts = {"train": drawn[2 * share :], "dev": drawn[:share], "test": drawn[share : 2 * share]}
    parts = {name: [passages[i] for i in sorted(cut)] for name, cut in cuts.items()}
    held = {side for name in ("dev", "test") for passage in parts[name] for pair in passage for side in pair}
    parts["train"] = [kept for passage in parts["train"]
                      if (kept := [pair for pair in passage if not held.intersection(pair)])]
    for name, part in reversed(parts.items()):
        pairs = [pair for passage in part for pair in passage]
        for side, kind in enumerate(("classical", "modern")):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            _write(folder / kind / f"{name}.txt",
                   "\n\n".join("".join(pair[side] for pair in passage) for passage in part) + "\n")
        say(f"{name}.tsv: {len(pairs):,} pairs, {sum(len(new) for _, new in pairs):,} modern characters")
        _write(folder / f"{name}.tsv", "source\ttarget\n" + "".join(f"{old}\t{new}\n" for old, new in pairs))


def _sentences(source: Path) -> Iterator[tuple[str, str, str]]:
    """(book, classical, modern), each pair once; of a clone in the order of its paths."""
    if source.is_dir():
        root = source / "双语数据"
        chapters = sorted(root.rglob("source.txt"))
        if not chapters:
            raise ValueError(f"{source}: there is no {root.name}/…/source.txt; give the cloned repository, or a file "
                             "of lines «book TAB classical TAB modern»")
        rows = ((path.relative_to(root).parts[0], old, new) for path in chapters for old, new in zip(
            *(file.read_text(encoding="utf-8").split("\n") for file in (path, path.with_name("target.txt"))),
            strict=True))
    else:
        rows = (_columns(source, number, line) for number, line in numbered_lines(source))
    seen = set()
    for book, old, new in rows:
        pair = "".join(old.split()), "".join(new.split())
        if all(pair) and pair not in seen:
            seen.add(pair)
            yield book, *pair


def _columns(path: Path, number: int, line: str) -> list[str]:
    if len(columns := line.split("\t")) != 3:
        raise ValueError(f"{path}:{number}: {len(columns)} columns; «book TAB classical TAB modern» are expected")
    return columns


# ---- Wikipedia -------------------------------------------------------------------------------------------------------


def wikipedia(source: Path, folder: Path) -> None:
    """A MediaWiki dump, or lines of JSON with `title` and `text`, also packed -> articles, the title first, a paragraph
    a line, blank lines between them.

    An article goes where its text says, whatever stands beside it, so a later dump holds out the same ones. Memory does
    not grow with the dump, but for 80 bytes an article by which those that stand there twice are known.
    """
    texts = Texts(source, skip_bad=None)
    config = CleanConfig(characters="t2s", min_characters=STUB)
    cleaner = Cleaner(config, Converter(config.characters, resolve("data/opencc", "data")))
    sums = {name: Counter(texts=0, characters=0) for name in PARTS}
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        files = {name: stack.enter_context(atomic_file(folder / f"{name}.txt")) for name in PARTS}  # the first is last
        for text in texts.watched(folder.name):
            article = cleaner(_with_title(text), text.place)
            if article is not None:
                name = PARTS[held_out(article, 2 / HELD_OUT) + held_out(article, 1 / HELD_OUT)]
                files[name].write(f"{article}\n\n".encode())
                sums[name].update(texts=1, characters=len(article))
        if empty := [name for name in PARTS if not sums[name]["texts"]]:
            raise ValueError(f"{source}: of {cleaner.read['texts']:,} articles {cleaner.kept['texts']:,} have {STUB} "
                             f"characters or more, and none is for {' and '.join(empty)}.txt; give a whole dump, or "
                             "see python -m llama.clean")
    dropped = ", ".join(f"{step.dropped:,} {name}" for name, step in cleaner.steps.items() if step.dropped)
    say(f"{cleaner.read['texts']:,} articles read; left out: {dropped or 'none'}")
    for name in PARTS:
        say(f"{name}.txt: {sums[name]['texts']:,} articles, {sums[name]['characters']:,} characters")


def _with_title(text: Text) -> str:
    title = text.others.get("title")
    fits = isinstance(title, str) and title.strip() and not text.text.lstrip().startswith(title.strip() + "\n")
    return f"{title}\n{text.text}" if fits else text.text


# ---- reviews and poems, by classes -----------------------------------------------------------------------------------


def reviews(positive: Path, folder: Path) -> None:
    """pos.txt and neg.txt, a review a line, most of them twice -> train, dev and test.jsonl."""
    examples = [{"text": text, "label": label} for name, label in ((positive.name, "positive"), ("neg.txt", "negative"))
                for line in (folder / name).read_text(encoding="utf-8").splitlines() if (text := line.strip())]
    _divide(examples, folder)


def poems(archive: Path, folder: Path) -> None:
    """The package of all poems of Tang and Song -> who of twenty wrote it, which of four forms it has, and their text.

    In the text a poem is a document: «七言绝句《出塞》王昌龄», then a sentence a line; «诗» are those of other forms.
    What a class is judged by is no part of train.txt, nor is a poem with a line of one that is held out.
    """
    written = list(_poems(archive))
    chosen: list[str] = []
    for dynasty in ("tang", "song"):
        counts = Counter(poem["author"] for poem in written if poem["dynasty"] == dynasty)
        chosen += [author for author, _ in counts.most_common() if author not in NOBODY][:POETS]
    _divide([{"text": poem["text"], "label": poem["author"]} for poem in written if poem["author"] in chosen],
            folder / "authors", most=POEMS)
    # A few more than are kept: comparing all of them takes minutes.
    few = _some([{"text": poem["text"], "label": FORMS[poem["form"]]} for poem in written if poem["form"] in FORMS],
                2 * POEMS_OF_A_FORM)
    _divide(few, folder / "forms", most=POEMS_OF_A_FORM)
    _write_poems(written, folder)


def _write_poems(written: Sequence[dict[str, Any]], folder: Path) -> None:
    judged = {json.loads(line)["text"] for kind in ("authors", "forms") for name in PARTS[1:]
              for line in (folder / kind / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()}
    parts: dict[str, list[dict[str, Any]]] = {name: [] for name in PARTS}
    for poem in {poem["text"]: poem for poem in written}.values():
        draw = int.from_bytes(hashlib.sha256(poem["text"].encode()).digest()[:4], "big") % HELD_OUT
        parts["dev" if draw == 0 else "test" if draw == 1 else "train"].append(poem)
    held = {line for name in PARTS[1:] for poem in parts[name] for line in poem["lines"]}
    parts["train"] = [poem for poem in parts["train"]
                      if poem["text"] not in judged and not held.intersection(poem["lines"])]
    for name, part in reversed(parts.items()):
        say(f"{name}.txt: {len(part):,} poems, {sum(len(poem['text']) for poem in part):,} characters")
        _write(folder / f"{name}.txt", "\n\n".join("\n".join((
            f"{FORMS.get(poem['form'], '诗')}《{poem['title']}》{poem['author']}", *poem["sentences"]))
            for poem in part) + "\n")


def _poems(archive: Path) -> Iterator[dict[str, Any]]:
    with tarfile.open(archive) as package:
        for member in package:
            if found := re.fullmatch(r"package/dist/quantangshi/poet\.(tang|song)\.\d+\.json", member.name):
                for poem in json.load(package.extractfile(member)):
                    sentences = ["".join(sentence.split()) for sentence in poem["paragraphs"]]
                    text = "".join(sentences)
                    lines = [line for line in re.split("[，。？！；：、]", text) if line]
                    if len(lines) > 1 and "□" not in text:           # what is lost is shown so
                        form = (len(lines), len(lines[0])) if len({len(line) for line in lines}) == 1 else None
                        yield {"text": text, "author": poem["author"], "dynasty": found[1], "form": form,
                               "lines": lines, "title": "".join(poem["title"].split()),
                               "sentences": [sentence for sentence in sentences if sentence]}


def _divide(examples: Sequence[dict[str, str]], folder: Path, *, most: int | None = None) -> None:
    """One of each group of near-duplicates, at most `most` of a label, in three files; says how many were left out."""
    kept, twice, contradictions = [], 0, 0
    for group in grouped([example["text"] for example in examples]):
        if len({examples[i]["label"] for i in group}) > 1:
            contradictions += len(group)
        else:
            kept.append(examples[group[0]])
            twice += len(group) - 1
    kept = _some(kept, most) if most else kept
    say(f"{folder.name}: {len(examples):,} read; {twice:,} near-duplicates left out, and {contradictions:,} that "
         f"contradict one another; {len(kept):,} kept")
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in reversed([*zip(PARTS, split(kept, 0.8, 0.1, 0.1, similar=2), strict=True)]):
        counts = Counter(example["label"] for example in part)
        say(f"  {name}.jsonl: {len(part):,} of {len(counts)} labels, from {min(counts.values()):,} to "
             f"{max(counts.values()):,} of each")
        _write(folder / f"{name}.jsonl", "".join(json.dumps(example, ensure_ascii=False) + "\n" for example in part))


def _some(examples: Iterable[dict[str, str]], most: int) -> list[dict[str, str]]:
    """At most so many of each label, chosen by the hash of their text: at random, and the same every time."""
    by_label = defaultdict(list)
    for example in sorted(examples, key=lambda example: hashlib.sha256(example["text"].encode()).digest()):
        by_label[example["label"]].append(example)
    return [example for label in sorted(by_label) for example in by_label[label][:most]]


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())
