"""The documents tell the truth about the code: links lead to files, and to the lines that they name.

`python tests/test_readme.py` writes the line numbers anew, after definitions have moved.
"""

import re
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent
DOCUMENTS = ["README.md", "README.zh.md", "weights/README.md", "examples/README.md"]


def _links(document):
    text = (HOME / document).read_text(encoding="utf-8")
    return re.findall(r"\[([^\]]+)\]\((?!https?:)([^)#\s]+)(?:#L(\d+))?\)", text)


def _places(path, shown):
    """The lines of a file that define the name shown."""
    name = re.escape(shown.strip("`"))
    lines = path.read_text(encoding="utf-8").splitlines()
    return [i for i, text in enumerate(lines, 1) if re.search(rf"(def|class) {name}\b", text)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_property_every_link_leads_to_a_file_and_every_line_number_to_the_name_it_shows(document):
    for shown, target, line in _links(document):
        path = (HOME / document).parent / target
        assert path.exists(), f"{document} links to {target}, which does not exist"
        if line:
            assert int(line) in _places(path, shown), (
                f"{document}: {shown} is not at line {line} of {target}; python tests/test_readme.py puts it right")


def test_property_both_languages_show_the_same_commands_and_figures():
    def facts(document):
        text = (HOME / document).read_text(encoding="utf-8")
        commands = {line.split("#")[0].strip() for block in re.findall(r"```(?:sh|python)\n(.*?)```", text, re.S)
                    for line in block.splitlines() if line.split("#")[0].strip()}
        return commands, set(re.findall(r"\d+(?:[.,]\d+)+", re.sub(r"\(.*?#L\d+\)", "", text)))
    english, chinese = facts("README.md"), facts("README.zh.md")
    assert english[0] == chinese[0]
    assert english[1] == chinese[1]


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
        return f"[{shown}]({target}#L{_places(path.parent / target, shown)[0]})"

    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(r"\[(`\w+`)\]\(([^)#\s]+)#L\d+\)", link, text), encoding="utf-8")


if __name__ == "__main__":
    for document in DOCUMENTS:
        renumber(HOME / document)
