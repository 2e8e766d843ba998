r"""A Modelfile, by which ollama runs a GGUF with the chat format that the model was tuned with.

    FROM ./mine.gguf
    TEMPLATE …                     the chat format, in Go's text/template
    PARAMETER stop "<|im_end|>"    one for each token that ends an answer
    SYSTEM …                       what the format says where a conversation brings no system message

ollama runs a GGUF's own Jinja template only where it happens to know it; of another one it would make none, and a tuned
model would read bare text. Which format a template is, is found by what it writes: the same ids for the same
conversations. So SmolLM2's and Qwen's templates are ChatML with a system message of their own.

White space around what is said stays, where a format trims it: Go's templates, as ollama gives them, cannot.

Source: ollama's documentation, «Modelfile Reference» and «Template»; Go's package text/template.

Try: write the tail of the assistant's turn also behind the last message; tests/test_modelfile.py
(test_two_ways_what_the_template_writes_is_the_format) fails: an answer that was begun could not go on.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tokenizer.chat import FORMATS, ChatFormat, stop_ids
from tokenizer.chat_template import own_format

_CONVERSATIONS = ([("system", "Be brief."), ("user", "Who are you?")],
                  [("system", "小驼。"), ("user", "1"), ("assistant", "2"), ("user", "3")])


def modelfile(tokenizer: Any, gguf: str) -> tuple[str, list[str]]:
    """The text of a Modelfile for the GGUF file of this name, which lies beside it, and what else there is to say."""
    lines = [f"FROM ./{gguf}"]
    if tokenizer.chat_template is None:
        lines += ['TEMPLATE """{{ .Prompt }}"""', *_stops(tokenizer.eos_ids, tokenizer)]
        return "\n".join(lines) + "\n", ["no chat template: with its Modelfile, ollama continues a text"]
    format = known_format(tokenizer)
    if format is None:
        known = ", ".join(FORMATS)
        lines.append(f"# The model's chat template is none of {known}: ollama may know it from the GGUF.")
        return "\n".join(lines) + "\n", [f"the chat template is none of {known}, so the Modelfile has none for ollama; "
                                         "--chat-format gives one"]
    lines += [f'TEMPLATE """{go_template(format, tokenizer)}"""', *_stops(stop_ids(format, tokenizer), tokenizer)]
    if format.default_system:
        lines.append(f'SYSTEM """{format.default_system}"""')
    return "\n".join(lines) + "\n", []


def known_format(tokenizer: Any) -> ChatFormat | None:
    """That of FORMATS which writes what the tokenizer's own template writes, with its system message; None if none."""
    own = own_format(tokenizer)
    for format in FORMATS.values():
        format = replace(format, default_system=_default_system(own, format, tokenizer))
        conversations = [[{"role": role, "content": text} for role, text in turns]
                         for turns in (*_CONVERSATIONS, *(turns[1:] for turns in _CONVERSATIONS))]
        if all(_ids(own, turns, tokenizer) == _ids(format, turns, tokenizer) is not None for turns in conversations):
            return format
    return None


def _default_system(own: Any, format: ChatFormat, tokenizer: Any) -> str:
    """What the template says as the system where a conversation does not, if it writes turns as the format does."""
    if "system" not in format.turns:
        return ""
    head, body, tail = format.turns["system"]
    before, after = body.split("{}")
    begin, end = (_text(part, tokenizer) for part in (format.begin + head + before, after + tail))
    try:
        said = own.render([{"role": "user", "content": "?"}], tokenizer).plain()
    except ValueError:
        return ""
    system, _, asked = said[len(begin):].partition(end)
    return system if said.startswith(begin) and "?" in asked else ""


def _ids(format: Any, turns: Sequence[dict[str, str]], tokenizer: Any) -> list[int] | None:
    try:
        return format.encode(turns, tokenizer, reply=True, apart=False)[0]
    except ValueError:
        return None


def go_template(format: ChatFormat, tokenizer: Any) -> str:
    """A chat format in Go's text/template, over ollama's `.Messages`, up to where the assistant is to speak.

    The token for the beginning of a text is left out where the GGUF says that a program puts it there itself.
    """
    bos = "{{ if gt $i 1 }}<bos>{{ end }}" if tokenizer.adds_bos else "<bos>"
    cases = []
    for role, (head, body, tail) in format.turns.items():
        before, after = body.split("{}")
        if role == "user" and format.folds_system:                  # into the first user's turn
            before += "{{ if and $.System (le $i 1) }}" + format.folds_system.format("{{ $.System }}") + "{{ end }}"
        end = "{{ if not $last }}" + after + tail + "{{ end }}" if role == "assistant" else after + tail
        cases.append(f'if eq .Role "{role}" }}}}' + head.replace("<bos>", bos) + before + "{{ .Content }}" + end)
    reply = format.turns["assistant"][0]
    asks = '{{ if and $last (ne .Role "assistant") }}' + reply + "{{ end }}" if reply else ""
    return _text("".join(["" if tokenizer.adds_bos else format.begin, "{{ range $i, $_ := .Messages }}",
                          "{{ $last := eq (len (slice $.Messages $i)) 1 }}{{ ", "{{ else ".join(cases), "{{ end }}",
                          asks, "{{ end }}"]), tokenizer)


def _text(marked: str, tokenizer: Any) -> str:
    """A format's text with its marks for roles spelled as this vocabulary spells them."""
    roles = tokenizer.roles()
    for mark, role in (("<bos?>", "bos_token"), ("<bos>", "bos_token"), ("<eos>", "eos_token")):
        marked = marked.replace(mark, roles.get(role) or "")
    return marked


def _stops(ids: Sequence[int], tokenizer: Any) -> list[str]:
    spelled = {id: text for text, id in tokenizer.special_ids.items()}
    ends = [spelled[id] for id in dict.fromkeys(ids) if id in spelled]
    return [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in ends]
