"""Pages as their readers run them: every block of this project in docs/article.md, in order, in one session, on a tiny
model; and that of docs/lens.md."""

import importlib
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).resolve().parent.parent
PAGES = ("docs/article.md", "docs/article.zh.md")


def blocks(page, kinds="python|sh"):
    """(kind, code) of the fenced blocks of a page, in order."""
    text = (HOME / page).read_text(encoding="utf-8")
    return re.findall(rf"^```({kinds})\n(.*?)^```$", text, re.M | re.S)


def test_worked_example_the_block_about_looking_inside_runs(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model.save("zh-small")
    (_, code), session = next(block for block in blocks("docs/lens.md") if block[0] == "python"), {}
    exec(compile(code, "docs/lens.md", "exec"), session)
    assert session["weights"].shape[:2] == (2, 4) and len(session["said"]) == 2
    assert float(session["found"].values.sum()) == pytest.approx(session["found"].logit, abs=1e-4)


def test_two_ways_both_languages_hold_the_same_blocks():
    assert blocks(PAGES[0], r"\w+") == blocks(PAGES[1], r"\w+")
    assert [kind for kind, _ in blocks(PAGES[0], r"\w+")].count("py") == 9          # one of the usual ones a step


def run_command(line, monkeypatch):
    """A command as one types it, in this process."""
    _, *words = shlex.split(line)
    name, arguments = (words[1], words[2:]) if words[0] == "-m" else (words[0].removesuffix(".py"), words[1:])
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    importlib.import_module(name).main()


def test_worked_example_every_block_of_the_page_runs(tiny_model, tmp_path, monkeypatch, capsys):
    """As the page says: a folder zh-small, my.txt and mine.jsonl lie there."""
    monkeypatch.chdir(tmp_path)
    tiny_model.save("zh-small")
    (tmp_path / "my.txt").write_text("\n\n".join(f"第{i}篇：今天天气很好。The dog {i} sleeps." for i in range(20)),
                                     encoding="utf-8")
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(
        {"instruction": f"你是谁 {i}？", "output": "小驼。"}) + "\n" for i in range(4)), encoding="utf-8")
    session = {}
    for kind, code in blocks(PAGES[0]):
        if kind == "python":
            exec(compile(code, f"{PAGES[0]}: {code.splitlines()[0]}", "exec"), session)
        else:
            for line in code.splitlines():
                run_command(line, monkeypatch)
    assert "epoch 2 loss" in (said := capsys.readouterr().out)
    assert "小驼。<|endoftext|>" in said                            # what is learned of an instruction, with its end
    for made in ("models/tuned_epoch1", "models/merged", "models/int8", "adapters/mine", "adapters/alpaca",
                 "merged.gguf", "merged.Modelfile"):
        assert (tmp_path / made).exists(), made


@pytest.mark.parametrize("page", PAGES)
def test_property_no_block_is_left_out(page):
    """Fences that open are closed, and every block is of a kind that is known: run, or the usual article's."""
    text = (HOME / page).read_text(encoding="utf-8")
    assert text.count("\n```") == 2 * len(blocks(page, "python|sh|py"))
