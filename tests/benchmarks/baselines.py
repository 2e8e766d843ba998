"""What methods of old reach on the same examples, a program of its own: python -m tests.benchmarks.baselines METHOD …

    tfidf         characters, 1 to 3 in a row, weighed by TF-IDF; logistic regression             scikit-learn
    bayes         naive Bayes on words, as snownlp has it, trained anew on these examples         snownlp
    crf           a conditional random field on windows of characters                             sklearn-crfsuite
    window        the piece of a text that holds the most of the question's rare characters       by hand
    first         the first sentence                                                              by hand
    dictionary    word by word, each by the piece it most often stands beside in the pairs        by hand
    unchanged     classical Chinese as it stands: modern Chinese has many of its characters       by hand

Packages are imported where they are used; without one, a sentence says what to install. Scores are llama/metrics'.

Try: let `window` look at frequent characters alike; tests/test_task_baselines.py
(test_worked_example_the_window_around_the_questions_rare_characters) fails.
"""

import argparse
import contextlib
import json
import math
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama.metrics.answers import answer_scores
from llama.metrics.classification import classification_scores
from llama.metrics.overlap import bleu, chrf, rouge_scores
from llama.metrics.spans import entity_scores, word_scores
from llama.runtime.worker import peak_memory
from tests.benchmarks.sets import SETS, examples_of

METHODS = {"sentiment": ("tfidf", "bayes"), "classification": ("tfidf",), "ner": ("crf",), "segmentation": ("crf",),
           "qa": ("window",), "summarization": ("first",), "translation": ("dictionary",)}
PAIRS = 20_000                                                      # that a dictionary is made of: more take gigabytes
NAMES = {"tfidf": "TF-IDF, logistic regression", "bayes": "naive Bayes of snownlp", "crf": "CRF, character windows",
         "window": "best sliding window", "first": "first sentence", "dictionary": "word-by-word dictionary",
         "unchanged": "the text unchanged"}
Examples = Sequence[dict[str, Any]]


def methods_of(name: str) -> tuple[str, ...]:
    """Those for the task of a data set, and its own."""
    return METHODS[SETS[name].task] + SETS[name].methods


def tfidf(train: Examples, test: Examples) -> list[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=1000)
    model.fit(vectors.fit_transform([example["text"] for example in train]), [example["label"] for example in train])
    return list(model.predict(vectors.transform([example["text"] for example in test])))


def bayes(train: Examples, test: Examples) -> list[str]:
    from snownlp.sentiment import Sentiment

    model = Sentiment()
    by_label = {label: [example["text"] for example in train if example["label"] == label]
                for label in ("negative", "positive")}
    model.train(by_label["negative"], by_label["positive"])
    return ["positive" if model.classify(example["text"]) > 0.5 else "negative" for example in test]


def crf(train: Examples, test: Examples, *, iterations: int) -> list[list[str]]:
    import sklearn_crfsuite

    model = sklearn_crfsuite.CRF(algorithm="lbfgs", c1=0.0, c2=1.0, min_freq=3, max_iterations=iterations)
    model.fit((_windows(example) for example in train), [example["tags"] for example in train])
    return [model.predict_single(_windows(example)) for example in test]


def _windows(example: dict[str, Any]) -> list[list[str]]:
    return [_around(example["tokens"], i) for i in range(len(example["tokens"]))]


def _around(tokens: Sequence[str], i: int) -> list[str]:
    """A character, two on either side, and the pairs among them."""
    c = {k: tokens[i + k] if 0 <= i + k < len(tokens) else "#" for k in range(-2, 3)}
    pairs = [f"{k},{k + 1}={c[k]}{c[k + 1]}" for k in range(-2, 2)]
    return [f"{k}={c[k]}" for k in c] + pairs + [f"-1,1={c[-1]}{c[1]}"]


def window(train: Examples, test: Examples) -> list[str]:
    """Of all pieces as long as half of the training answers are, the one beside which the question's characters are
    the rarest together (after MCTest's sliding window: Richardson, Burges, Renshaw 2013).
    """
    lengths = sorted(len(example["answers"][0]["text"]) for example in train if example["answers"])
    size = lengths[len(lengths) // 2]
    return [_window(example["context"], example["question"], size) for example in test]


def _window(text: str, question: str, size: int) -> str:
    counts, asked = Counter(text), set(question)
    worth = [math.log(1 + 1 / counts[sign]) if sign in asked and sign.isalnum() else 0.0 for sign in text]
    sums = [0.0]
    for each in worth:
        sums.append(sums[-1] + each)

    def around(i: int) -> tuple[float, float]:
        """Most of it near, and among equals the least inside: an answer does not repeat its question."""
        end = min(i + size, len(text))
        near = sums[min(end + 2 * size, len(text))] - sums[max(i - 2 * size, 0)]
        return round(near, 9), sums[i] - sums[end]
    best = max(range(max(1, len(text) - size + 1)), key=around)
    return text[best : best + size]


def first(train: Examples, test: Examples) -> list[str]:
    return [re.match(r"[^。！？；.!?;]*", example["source"])[0] for example in test]


def dictionary(train: Examples, test: Examples) -> list[str]:
    """For each word the piece of 1 to 4 characters with the largest Dice coefficient 2 n(w, p) / (n(w) + n(p))."""
    pairs, words, pieces = defaultdict(Counter), Counter(), Counter()
    for example in list(train)[:: math.ceil(len(train) / PAIRS)]:
        found, there = set(_words(example["source"])), _pieces(example["target"])
        words.update(found)
        pieces.update(there)
        for word in found:
            pairs[word].update(there)

    def likely(word: str) -> str:
        return max(pairs[word], key=lambda piece: (2 * pairs[word][piece] / (words[word] + pieces[piece]), len(piece),
                                                   piece), default="")
    best = {word: likely(word) for word in pairs}
    return ["".join(best.get(word, "") for word in _words(example["source"])) for example in test]


def _words(text: str) -> list[str]:
    return re.findall(r"[\u3400-\u9fff]|(?:(?![\u3400-\u9fff])[\w'])+", text.lower())


def unchanged(train: Examples, test: Examples) -> list[str]:
    return [example["source"] for example in test]


def _pieces(text: str) -> set[str]:
    runs = re.findall(r"[\u3400-\u9fff]+", text)
    return {run[i : i + n] for run in runs for n in range(1, 5) for i in range(len(run) - n + 1)}


def scores_of(task: str, test: Examples, predicted: Sequence[Any]) -> dict[str, float]:
    """As llama/tasks score the same predictions."""
    if task == "ner":
        return entity_scores([example["tags"] for example in test], predicted)
    if task == "segmentation":
        from llama.datasets.tags import spans_of

        words = [[["".join(example["tokens"][begin:end]) for begin, end, _ in spans_of(tags)]
                  for example, tags in zip(test, side, strict=True)]
                 for side in ([example["tags"] for example in test], predicted)]
        return word_scores(*words)
    if task == "qa":
        return answer_scores([[answer["text"] for answer in example["answers"]] for example in test], predicted,
                             language="zh")
    if task in ("summarization", "translation"):
        gold = [example["target"] for example in test]
        return rouge_scores(predicted, gold) if task == "summarization" else {
            "chrf": chrf(predicted, gold), "bleu": bleu(predicted, gold, tokenization="zh")}
    return classification_scores([example["label"] for example in test], predicted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=NAMES)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--iterations", type=int, default=100, help="of the CRF; others end by themselves")
    arguments = parser.parse_args()
    train, test = (examples_of(arguments.set, file) for file in (arguments.train, arguments.test))
    options = {"iterations": arguments.iterations} if arguments.method == "crf" else {}
    started = time.monotonic()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            predicted = globals()[arguments.method](train, test, **options)
    except ModuleNotFoundError as error:
        print(f"the baseline {arguments.method} needs the package {error.name}; pip install '.[bench]'",
              file=sys.stderr)
        sys.exit(2)
    print(json.dumps({"scores": scores_of(SETS[arguments.set].task, test, predicted),
                      "minutes": (time.monotonic() - started) / 60, "memory": peak_memory()}))


if __name__ == "__main__":
    main()
