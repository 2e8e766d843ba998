"""The pages of the tour, with what stands in them fetched from where it comes from, and nothing of it typed.

    python -m docs.tour.renew          after a change of the code, or of a page: every page, in both languages

A mark is a comment that says what the fenced block beneath it holds:

    <!-- code: FILE NAME … -->         functions or methods of the source, without their docstrings; with
                                       from "…" to "…" of the only one the lines that begin so
    <!-- example -->                   Python that is run; the examples of a page share their names. A page in another
                                       language gets the English one's
    <!-- prints -->                    what the example above it printed
    <!-- edit: NAME -->                one edit of tests/mutants.py, as a diff
    <!-- run: NAME --> <!-- before: NAME --> <!-- after: NAME -->
                                       the commands of runs.py, and what came out before and after the edit
    <!-- test: NAME -->                the test that fails after it

Try: change a number that a page prints; tests/test_tour.py (test_two_ways_pages_equal_what_they_were_made_from) fails.
"""

import ast
import contextlib
import io
import re
import shlex
import textwrap
from functools import cache
from pathlib import Path

import torch

from docs.tour import runs
from tests.mutants import MUTANTS, Mutant

HERE = Path(__file__).resolve().parent
HOME = HERE.parents[1]
INDEXES = (HERE / "README.md", HERE / "README.zh.md")
MARKED = re.compile(r"<!-- (\w+)(?:: ([^\n]+?))? -->\n```(\w+)\n(.*?)```$", re.M | re.S)
LANGUAGES = {"code": "python", "example": "python", "edit": "diff", "run": "sh", "test": "sh", "prints": "text",
             "before": "text", "after": "text"}


def pages(language: str = "") -> list[Path]:
    """The steps of the tour in their order; language "zh" gives the Chinese ones."""
    return sorted(HERE.glob(f"[0-9][0-9]-*.{language}.md") if language else
                  [path for path in HERE.glob("[0-9][0-9]-*.md") if path.suffixes == [".md"]])


def english(page: Path) -> Path:
    """The page in English of one in any language."""
    return page.with_name(page.name.split(".")[0] + ".md")


def renewed(page: Path) -> str:
    """The text of a page as it should be. Raises ValueError for a mark that names what is not there."""
    text = page.read_text(encoding="utf-8")
    marks = re.findall(r"^<!-- (?:" + "|".join(LANGUAGES) + r")\b", text, re.M)
    if len(marks) != len(MARKED.findall(text)):
        raise ValueError(f"{page.name}: {len(marks)} marks, but {len(MARKED.findall(text))} with a block beneath them")
    code = iter(examples(english(page).read_text(encoding="utf-8")))
    printed = iter(outputs(english(page)))
    last = ""

    def block(found: re.Match[str]) -> str:
        nonlocal last
        kind, argument, _, old = found.groups()
        match kind:
            case "code":
                new = source_of(argument)
            case "example":
                new, last = next(code, old), next(printed, "")
            case "prints":
                new = last
            case "edit":
                new = diff(mutant(argument))
            case "test":
                file, _, test = mutant(argument).test.partition("::")
                new = f"python -m pytest {file} -k {test}\n"
            case "run":
                new = runs.shown(argument)
            case "before" | "after":
                new = runs.kept()[argument][kind]
            case _:
                raise ValueError(f"{page.name}: no mark is called {kind}")
        head = f"<!-- {kind}{f': {argument}' if argument else ''} -->"
        return f"{head}\n```{LANGUAGES[kind]}\n{new}```"

    lines = MARKED.sub(block, text).split("\n")
    lines[2] = path_line(page)
    if lines[3]:
        lines.insert(3, "")
    return "\n".join(lines)


def path_line(page: Path) -> str:
    """The third line of a page: the other language, the index, and the pages before and behind."""
    chinese = page.suffixes == [".zh", ".md"]
    both = [english(page), english(page).with_suffix(".zh.md")]
    words = ("English", "导览", "上一页", "下一页") if chinese else ("中文", "the tour", "before", "then")
    links = [f"[{words[0]}]({both[not chinese].name})", f"[{words[1]}](README{'.zh' * chinese}.md)"]
    order = pages("zh" if chinese else "")
    at = order.index(page)
    for word, other in ((words[2], order[at - 1] if at else None), (words[3], order[at + 1 : at + 2])):
        if other := other[0] if isinstance(other, list) and other else other:
            title = other.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")
            links.append(f"{word}: [{title}]({other.name})" if not chinese else f"{word}：[{title}]({other.name})")
    return f"*{' · '.join(links)}*"


def renewed_index(index: Path) -> str:
    """The list of pages, under the mark of an index: each with its title and what its first sentence says."""
    def entry(page: Path) -> str:
        lines = page.read_text(encoding="utf-8").split("\n")
        title, picture = lines[0].removeprefix("# "), f"pictures/{english(page).stem}.svg"
        about = re.split(r"(?<=[.。])\s|(?<=。)", " ".join(lines[4:8]))[0]
        return f"| [{title}]({page.name}) | {about} | [▦]({picture}) |\n"

    text = index.read_text(encoding="utf-8")
    language = "zh" if ".zh" in index.suffixes else ""
    table = "| | | |\n|---|---|---|\n" + "".join(entry(page) for page in pages(language))
    return re.sub(r"(<!-- steps -->\n).*?(?=\n## )", lambda found: found[1] + table, text, count=1, flags=re.S)


def examples(text: str) -> list[str]:
    """The examples of a page."""
    return [code for kind, _, _, code in MARKED.findall(text) if kind == "example"]


@cache
def outputs(page: Path) -> list[str]:
    """What each example of a page prints, run one after the other as one program."""
    names: dict[str, object] = {"__name__": page.stem}
    printed = []
    torch.manual_seed(0)
    torch.set_printoptions(precision=3, sci_mode=False, linewidth=110)
    try:
        for code in examples(page.read_text(encoding="utf-8")):
            with contextlib.redirect_stdout(io.StringIO()) as said:
                exec(compile(code, str(page), "exec"), names)
            printed.append("".join(f"{line.rstrip()}\n" for line in said.getvalue().splitlines()))
    finally:
        torch.set_printoptions(profile="default")
    return printed


def source_of(place: str) -> str:
    """The source that a mark names, dedented and without docstrings."""
    file, *words = shlex.split(place)
    lines = (HOME / file).read_text(encoding="utf-8").splitlines()
    tree = ast.parse("\n".join(lines))
    names, limits = (words[: words.index("from")], words[words.index("from") :]) if "from" in words else (words, [])
    parts = [_lines_of(_definition(tree, name, file), lines) for name in names]
    if limits:
        _, first, _, last = limits
        part = parts[0]
        try:
            start = next(i for i, line in enumerate(part) if line.strip().startswith(first))
            end = next(i for i, line in enumerate(part) if i >= start and line.strip().startswith(last))
        except StopIteration:
            raise ValueError(f"{place}: there are no lines that begin so; let the mark follow the code") from None
        parts = [part[start : end + 1]]
    owners = [name.rpartition(".")[0] for name in names]
    texts = [textwrap.dedent("\n".join(part)) for part in parts]
    if len(set(owners)) > 1:                                        # methods of several classes: say whose
        before = ["", *owners]
        texts = [f"# {owner}\n{text}" if owner and owner != last else text
                 for owner, last, text in zip(owners, before, texts, strict=False)]
    return "\n\n".join(texts) + "\n"


def _definition(tree: ast.AST, name: str, file: str) -> ast.AST:
    node = tree
    for part in name.split("."):
        node = next((child for child in ast.iter_child_nodes(node) if getattr(child, "name", "") == part), None)
        if node is None:
            raise ValueError(f"{file} defines no {name}; let the mark follow the code")
    return node


def _lines_of(node: ast.AST, lines: list[str]) -> list[str]:
    """From its first decorator to its end, without the docstring."""
    start = min([node.lineno, *(each.lineno for each in node.decorator_list)]) - 1
    kept = lines[start : node.end_lineno]
    if ast.get_docstring(node) is not None:
        del kept[node.body[0].lineno - 1 - start : node.body[0].end_lineno - start]
    return kept


def mutant(name: str) -> Mutant:
    """An edit of tests/mutants.py by its name."""
    found = next((each for each in MUTANTS if each.name == name), None)
    if found is None:
        raise ValueError(f"tests/mutants.py has no edit '{name}'")
    return found


def diff(edit: Mutant) -> str:
    old, new = (textwrap.dedent(part.strip("\n")).splitlines() for part in (edit.old, edit.new))
    return "".join([f"# {edit.file}\n", *(f"- {line.rstrip()}\n" for line in old),
                    *(f"+ {line.rstrip()}\n" for line in new)])


def main() -> None:
    for page in [*pages(), *pages("zh"), *INDEXES]:
        text = renewed_index(page) if page in INDEXES else renewed(page)
        if text != page.read_text(encoding="utf-8"):
            page.write_text(text, encoding="utf-8")
            print(f"{page.name} was renewed")


if __name__ == "__main__":
    main()
