"""Modelfiles: what their templates write is what the chat formats write, by Go's own text/template.

Its answers are kept in tests/fixtures/go_templates.json, with the templates that it was asked about;

    go build -o gotemplate tests/parity/modelfile.go
    python -m tests.test_modelfile ./gotemplate

asks anew, after a template has changed.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tokenizer import bpe, load_tokenizer
from tokenizer.chat import FORMATS
from tokenizer.modelfile import go_template, known_format, modelfile
from weights.convert import convert

FIXTURE = Path(__file__).parent / "fixtures" / "go_templates.json"
MARKS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TALK = [("user", "Hello"), ("assistant", "Hi {{ .Content }}\n\nthere"), ("user", "<|im_end|> [/INST] 你好")]
CHATS = [TALK[:1], [("system", "Be {kind}."), *TALK[:1]], TALK, [("system", "小驼"), *TALK]]
BEGUN = [chat[:-1] for chat in CHATS[2:]]                           # that end with an answer


def tokenizer_of(*, adds_bos=False, template=None):
    trained = bpe.train(["Hello there 你好"], 300, special=MARKS)
    config = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    tokenizer = load_tokenizer(trained.files() | {"tokenizer_config.json": json.dumps(config).encode()})
    tokenizer.adds_bos = adds_bos
    return tokenizer


def messages(chat):
    return [{"role": role, "content": text} for role, text in chat]


CASES = [(name, adds_bos) for name in FORMATS for adds_bos in (False, True)]


def asked():
    """What Go is asked: every format's template with every conversation."""
    templates = [go_template(FORMATS[name], tokenizer_of(adds_bos=adds_bos)) for name, adds_bos in CASES]
    return [{"Template": template, "Messages": [{"Role": role, "Content": text} for role, text in chat]}
            for template in templates for chat in CHATS + BEGUN]


def test_two_ways_what_the_template_writes_is_the_format():
    """Up to where the assistant speaks; where it has begun to, what stands there, without an end."""
    kept = json.loads(FIXTURE.read_text(encoding="utf-8"))
    assert [each["question"] for each in kept] == asked(), "a template changed; ask Go anew, as this file's text says"
    written = iter(each["written"] for each in kept)
    for name, adds_bos in CASES:
        tokenizer = tokenizer_of(adds_bos=adds_bos)
        for chat in CHATS + BEGUN:
            # alpaca has a system message in every conversation, which ollama takes from the Modelfile
            given = [("system", "Answer."), *chat] if name == "alpaca" and chat[0][0] != "system" else chat
            text, reply = next(written), chat in CHATS
            expected = tokenizer.decode(FORMATS[name].encode(messages(given), tokenizer, reply=reply)[0])
            if given is not chat:
                expected = expected.replace("Answer.\n\n", "")
            if adds_bos:
                expected = expected.removeprefix("<s>")
            assert (text == expected) if reply else (expected.startswith(text) and text.endswith(chat[-1][1])), name


@pytest.mark.parametrize("name", FORMATS)
def test_worked_example_a_format_is_known_by_what_its_template_writes(name):
    """Written otherwise, and with a system message of its own, as SmolLM2 and Qwen have one."""
    tokenizer = tokenizer_of(template=FORMATS[name].template.replace("{% for ", "{% set x = 1 %}{% for ", 1))
    assert tokenizer.chat_format is None
    assert known_format(tokenizer) == FORMATS[name]


def test_worked_example_chatml_with_a_system_message_of_its_own():
    system = "{{ '<|im_start|>system\\nYou are Xiaotuo.<|im_end|>\\n' }}"
    own = "{% if messages[0]['role'] != 'system' %}" + system + "{% endif %}" + FORMATS["chatml"].template
    text, remarks = modelfile(tokenizer_of(template=own), "tuo.gguf")
    assert remarks == [] and text.splitlines()[0] == "FROM ./tuo.gguf"
    assert text.splitlines()[-1] == 'SYSTEM """You are Xiaotuo."""' and text.count('PARAMETER stop "<|im_end|>"') == 1
    assert f'TEMPLATE """{go_template(FORMATS["chatml"], tokenizer_of())}"""' in text


@pytest.mark.parametrize("template", [
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    FORMATS["chatml"].template.replace("'<|im_start|>assistant", "'<|im_start|>model"),
    "{{ raise_exception('no') }}"])
def test_property_of_another_template_none_is_made_up(template):
    text, remarks = modelfile(tokenizer_of(template=template), "x.gguf")
    assert "TEMPLATE" not in text and "the Modelfile has none for ollama; --chat-format gives one" in remarks[0]


def test_worked_example_without_a_chat_template_text_goes_on():
    text, remarks = modelfile(tokenizer_of(), "x.gguf")
    assert text.startswith('FROM ./x.gguf\nTEMPLATE """{{ .Prompt }}"""\nPARAMETER stop "</s>"\n')
    assert remarks == ["no chat template: with its Modelfile, ollama continues a text"]


def test_property_a_gguf_comes_with_its_modelfile(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tiny_model.tokenizer, "chat_template", FORMATS["chatml"].template)
    tiny_model.save(tmp_path / "tiny")
    convert(tmp_path / "tiny", tmp_path / "out" / "mine.gguf")
    text = (tmp_path / "out" / "mine.Modelfile").read_text(encoding="utf-8")
    assert text == modelfile(tiny_model.tokenizer, "mine.gguf")[0] and "<|im_start|>user" in text
    assert "ollama create mine -f mine.Modelfile" in capsys.readouterr().err.replace(str(tmp_path / "out") + "/", "")
    (tmp_path / "out" / "mine.gguf").unlink()
    with pytest.raises(ValueError, match="mine.Modelfile exists, and would be replaced"):
        convert(tmp_path / "tiny", tmp_path / "out" / "mine.gguf")
    convert(tmp_path / "tiny", tmp_path / "out" / "mine.gguf", overwrite=True)


if __name__ == "__main__":
    questions = asked()
    said = subprocess.run(sys.argv[1:2], input=json.dumps(questions), capture_output=True, check=True, encoding="utf-8")
    answers = [{"question": question, "written": written}
               for question, written in zip(questions, json.loads(said.stdout), strict=True)]
    FIXTURE.write_text(json.dumps(answers, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
