"""Words in files: lists of them, and questions of analogy.

    a list       a word a line; lines that begin with # and blank ones are left aside
    analogies    : capitals                     what is asked about until the next such line
                 北京 中国 东京 日本             four words a line, tabs or blanks between: 北京 is to 中国 as …

The second form is word2vec's (questions-words.txt), in which most test sets are written.

Try: leave lines of five words aside in silence; tests/test_word_vectors.py (test_refusal_of_what_is_no_question) fails.
"""

from pathlib import Path
from typing import NamedTuple

from llama.datasets.lines import numbered_lines
from llama.datasets.reading import Reading


class Analogy(NamedTuple):
    """a is to b as c to d, in a section of its file."""

    a: str
    b: str
    c: str
    d: str
    section: str = ""


def word_list(path: str | Path, *, encoding: str = "") -> list[str]:
    """The words of a list, each once, in its order. Raises ValueError if there are none."""
    lines = (line.strip() for _, line in numbered_lines(Path(path), Reading(encoding)))
    if not (words := list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))):
        raise ValueError(f"{path}: the file holds no words; write one a line")
    return words


def analogies(path: str | Path, *, encoding: str = "") -> list[Analogy]:
    """The questions of a file. Raises ValueError, naming the line, for one that is no four words, and if none is."""
    found, section = [], ""
    for number, line in numbered_lines(Path(path), Reading(encoding)):
        words = [word.strip() for word in line.split("\t")] if "\t" in line else line.split()
        if line.startswith(":"):
            section = line[1:].strip()
        elif words and not line.startswith("#"):
            if len(words) != 4 or "" in words:
                raise ValueError(f"{path}:{number}: a question of analogy is four words, with blanks or tabs between, "
                                 f"and this line has {len([word for word in words if word])}; mend it, or put # in "
                                 "front")
            found.append(Analogy(*words, section))
    if not found:
        raise ValueError(f"{path}: the file holds no questions; write four words a line, as 北京 中国 东京 日本")
    return found
