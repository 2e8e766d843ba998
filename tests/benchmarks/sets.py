"""The data sets that tasks are compared on: each as train, dev and test files that every program reads.

Those of fetched corpora are divided already (weights/corpora.py). Others are divided here by `llama.split`, 80 : 10 :
10 with near-duplicates on one side, and written where the comparison keeps its files.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from llama.datasets.records import RecordDataset
from llama.datasets.split import split
from weights.formats.paths import home

PARTS = ("train", "dev", "test")
Example = dict[str, Any]


class DataSet(NamedTuple):
    """A task on some data, and the score that decides.

    source   file to divide; empty for those that are divided already
    methods  more baselines than those of the task
    written  tokens of an answer at most
    traditional  whether its characters are those of Taiwan and of old books, and no other
    """

    task: str
    what: str
    score: str
    folder: str
    ending: str
    source: str = ""
    methods: tuple[str, ...] = ()
    written: int = 48
    traditional: bool = False


SETS = {
    "sentiment-reviews": DataSet("sentiment", "book and hotel reviews", "accuracy", "data/reviews", "jsonl"),
    "poets": DataSet("classification", "poems of 20 poets", "accuracy", "data/poems/authors", "jsonl",
                      traditional=True),
    "poem-forms": DataSet("classification", "poems of 4 forms", "accuracy", "data/poems/forms", "jsonl",
                          traditional=True),
    "disciplines": DataSet("classification", "CSL titles, 13 disciplines", "accuracy", "csl_cls", "jsonl",
                           "csl_cls_train.tsv"),
    "entities": DataSet("ner", "People's Daily", "f1", "data/peoples-daily", "txt"),
    "words": DataSet("segmentation", "People's Daily", "f1", "data/peoples-daily", "txt"),
    "questions": DataSet("qa", "CMRC 2018, a sample", "f1", "cmrc", "json", "cmrc2018_trial.json"),
    "titles": DataSet("summarization", "CSL abstracts, a sample", "rouge_l", "csl_ts", "jsonl", "csl_ts_dev.tsv"),
    "sentences": DataSet("translation", "Tatoeba, English to Chinese", "chrf", "tatoeba", "jsonl", "tatoeba_en_zh.txt"),
    "classical": DataSet("translation", "classical to modern Chinese", "chrf", "data/classical-modern", "tsv",
                         methods=("unchanged",), written=96),
}


def files_of(name: str, samples: Path, work: Path) -> dict[str, Path]:
    """train, dev and test of a data set, made if they are not there. Raises ValueError where its source is missing."""
    data = SETS[name]
    if not data.source:
        folder = home() / data.folder
        if not (folder / f"train.{data.ending}").exists():
            raise ValueError(f"{folder} is not here; python -m weights.fetch "
                             f"{Path(data.folder).parts[1]} fetches it")
        return {part: folder / f"{part}.{data.ending}" for part in PARTS}
    source, folder = samples / data.source, work / data.folder
    if not source.exists():
        raise ValueError(f"{source} is not here; say with --samples where the files of other projects are")
    files = {part: folder / f"{part}.{data.ending}" for part in PARTS}
    if not all(file.exists() for file in files.values()):
        folder.mkdir(parents=True, exist_ok=True)
        _DIVIDE[data.task](source, files)
    return files


def _records(fields: tuple[str, str]) -> Callable[[Path, dict[str, Path]], None]:
    def divide(source: Path, files: dict[str, Path]) -> None:
        parts = split(RecordDataset(source, fields=fields), 0.8, 0.1, 0.1)
        for file, part in zip(files.values(), parts, strict=True):
            _write(file, ({name: example[name] for name in fields} for example in part))
    return divide


def _questions(source: Path, files: dict[str, Path]) -> None:
    """By texts: all questions about one stay together."""
    document = json.loads(source.read_text(encoding="utf-8"))
    texts = [{"text": article.get("context_text") or article["paragraphs"][0]["context"], "article": article}
             for article in (document if isinstance(document, list) else document["data"])]
    for file, part in zip(files.values(), split(texts, 0.8, 0.1, 0.1), strict=True):
        articles = [each["article"] for each in part]
        file.write_text(json.dumps(articles if isinstance(document, list) else {"data": articles}, ensure_ascii=False),
                        encoding="utf-8")


def _write(file: Path, records: Iterable[Example]) -> None:
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


_DIVIDE = {"classification": _records(("text", "label")), "summarization": _records(("source", "target")),
           "translation": _records(("source", "target")), "qa": _questions}


def examples_of(name: str, file: Path) -> Any:
    """The examples of one of its files."""
    from llama.datasets.columns import ColumnDataset
    from llama.datasets.squad import SquadDataset

    task = SETS[name].task
    if task == "ner":
        return ColumnDataset(file)
    if task == "segmentation":
        return ColumnDataset(file, spans="words", scheme="BMES")
    if task == "qa":
        return SquadDataset(file)
    return RecordDataset(file, fields=("source", "target") if task in ("summarization", "translation") else
                         ("text", "label"))


def texts_of(name: str, file: Path) -> list[str]:
    """What a small model can learn to write from: the texts of a training file, each once."""
    fields = ("text", "context", "source", "target")
    return list(dict.fromkeys(example[field] for example in examples_of(name, file) for field in fields
                              if field in example))
