"""The documents tell the truth about the code: links lead to files, to headings, and to the lines that they name.

`python tests/test_readme.py` writes the line numbers anew, after definitions have moved.
"""

import re
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent
FRONT = ("README.md", "README.zh.md")
PATTERNS = ("*.md", "docs/**/*.md", "weights/*.md", "weights/zh-small/*.md", "examples/**/*.md", "tests/**/*.md")
DOCUMENTS = sorted({path.relative_to(HOME).as_posix() for pattern in PATTERNS for path in HOME.glob(pattern)})
CHINESE = [document for document in DOCUMENTS if document.endswith(".zh.md")]


def _read(document):
    return (HOME / document).read_text(encoding="utf-8")


def _links(document):
    """(what is shown, the file or "", the place in it or "") of every link that stays in the project."""
    return re.findall(r"\[([^\]]+)\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", _read(document))


def _places(path, shown):
    """The lines of a file that define the name shown."""
    name = re.escape(shown.strip("`"))
    lines = path.read_text(encoding="utf-8").splitlines()
    return [i for i, text in enumerate(lines, 1) if re.search(rf"(def|class) {name}\b", text)]


def _anchors(path):
    """The headings of a document, spelled as links to them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_property_every_link_leads_to_a_file_and_every_line_number_to_the_name_it_shows(document):
    for shown, target, place in _links(document):
        path = (HOME / document).parent / target if target else HOME / document
        assert path.exists(), f"{document} links to {target}, which does not exist"
        if line := re.fullmatch(r"L(\d+)", place):
            assert int(line[1]) in _places(path, shown), (
                f"{document}: {shown} is not at line {line[1]} of {target}; python tests/test_readme.py puts it right")
        elif place:
            assert place in _anchors(path), f"{document} links to #{place} of {path.name}, which has no such heading"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_property_a_name_in_code_that_links_to_a_file_says_the_line_that_defines_it(document):
    """So that none stays without one: a link's line number is looked at only where it has one."""
    for shown, target, place in _links(document):
        path = (HOME / document).parent / target
        if shown.startswith("`") and target.endswith(".py") and not place:
            assert not _places(path, shown), f"{document}: {shown} is defined in {target}; link to its line, #L1"


@pytest.mark.parametrize("document", FRONT)
def test_property_what_one_reads_first_is_short(document):
    lines = len(_read(document).splitlines())
    assert lines <= 250, f"{document} has {lines} lines; what is not needed at once belongs into docs/"


def test_property_every_file_has_its_row_in_the_architecture():
    rows = "\n".join(line for line in _read("docs/architecture.md").splitlines() if line.startswith("|"))
    for path in (path for folder in ("llama", "tokenizer", "weights") for path in (HOME / folder).rglob("*.py")):
        name = path.relative_to(HOME).as_posix()
        assert name in rows, f"{name} has no row in docs/architecture.md"


@pytest.mark.parametrize("chinese", CHINESE)
def test_property_both_languages_show_the_same_commands_and_figures(chinese):
    def facts(document):
        text = _read(document)
        commands = {line.split("#")[0].strip() for block in re.findall(r"```(?:sh|python)\n(.*?)```", text, re.S)
                    for line in block.splitlines() if line.split("#")[0].strip()}
        return commands, set(re.findall(r"\d+(?:[.,]\d+)+", re.sub(r"\(\S*?#L\d+\)", "", text)))
    english, other = facts(chinese.replace(".zh.md", ".md")), facts(chinese)
    assert english[0] == other[0]
    assert english[1] == other[1]


def test_property_every_module_says_what_to_try_and_which_test_then_fails():
    for path in [*HOME.glob("llama/**/*.py"), *HOME.glob("tokenizer/*.py"), *HOME.glob("weights/*.py")]:
        text = path.read_text(encoding="utf-8")
        docstring = text.split('"""')[1] if '"""' in text else ""
        if len(text) > 1500:
            assert "Try: " in docstring, f"{path.relative_to(HOME)} says nothing to try"
            for name in re.findall(r"tests/(\w+)\.py", docstring):
                assert (HOME / "tests" / f"{name}.py").exists(), f"{path.relative_to(HOME)} names tests/{name}.py"


def renumber(path):
    def link(found):
        shown, target = found.groups()
        places = _places(path.parent / target, shown)
        return f"[{shown}]({target}#L{places[0]})" if places else found[0]      # gone: the test says which

    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"\[(`\w+`)\]\(([^)#\s]+\.py)(?:#L\d+)?\)", link, text), encoding="utf-8")


if __name__ == "__main__":
    for document in DOCUMENTS:
        renumber(HOME / document)
