"""What every tokenizer here can do, and the small files that stand beside a vocabulary.

A vocabulary gives two things: the bytes of each id, and the ids of a stretch of text that holds no special token. All
else is here, once: special tokens, the ids of beginning and end, decoding id by id, and the files of a model folder.

Special tokens in text are text. Whoever types <|im_end|> into a chat gets the ids of ten characters, unless the caller
passes allow_special=True; generate.py --special-tokens alone does so (tests/test_text_stays_text.py goes through all
ways in).

Try: let StreamDecoder.push decode the bytes of each id by themselves; tests/test_tokenizer.py then finds broken
characters, since a token may hold a third of a Chinese one.
"""

import codecs
import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizer.added_tokens import AddedToken, Finder
from tokenizer.chat import name_of
from tokenizer.checked_json import (
    FLAG,
    TEXT,
    check_fields,
    check_value,
    either,
    listed,
    mapped,
    read_object,
    record,
    whole,
)

log = logging.getLogger(__name__)

# Texts by which published vocabularies mark an end, for files that do not say which of their tokens do. The ends of a
# document come first, since encode(eos=True) writes the first.
WELL_KNOWN_ENDS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<|im_end|>", "<|eot_id|>")

FIRST_NEW_ID = "first_new_id"       # in tokenizer_config.json: other programs keep fields that they do not know

# What the files beside a vocabulary may say, of what is read here.
FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
ADDED_TOKEN = record({"content": TEXT}, {"special": FLAG, **dict.fromkeys(FLAGS, FLAG)})
ROLES = dict.fromkeys(("bos_token", "eos_token", "pad_token"), either(TEXT, record({"content": TEXT})))
ROLE_IDS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), either(whole(-1), listed(whole(-1))))
TOKENIZER_CONFIG = ROLES | {
    FIRST_NEW_ID: whole(),
    "add_bos_token": FLAG,
    "chat_template": either(TEXT, listed(record({"name": TEXT, "template": TEXT}))),
    "added_tokens_decoder": mapped(ADDED_TOKEN, lambda key: key.isascii() and key.isdecimal() and len(key) < 11,
                                   "an id"),
}


@dataclass
class Settings:
    """What the files of a model say about its vocabulary. Tokens are named by their text or by their id.

    eos         every end that the tokenizer's files and generation_config.json name; empty where they name none
    of_config   what config.json says of beginning, ends and padding, for vocabularies whose own files do not
    adds_bos    whether the model expects text to begin with the token `bos`; None where the files do not say
    added       id -> {"content", "special"} of the tokens that the folder adds to a SentencePiece model
    tokenizer_config, generation_config     those files as read, so that fields we do not know are kept
    """

    bos: str | int | None = None
    eos: Sequence[str | int] = ()
    pad: str | int | None = None
    adds_bos: bool | None = None
    of_config: dict[str, list[int]] = field(default_factory=dict)
    chat_template: str | None = None
    tool_template: str | None = None
    added: dict[int, dict] = field(default_factory=dict)
    tokenizer_config: dict = field(default_factory=dict)
    generation_config: dict = field(default_factory=dict)

    @property
    def called_special(self) -> set[str]:
        """The texts of what tokenizer_config.json calls special tokens, whatever the vocabulary says of them."""
        config = self.tokenizer_config
        named = [token for token in (config.get("added_tokens_decoder") or {}).values() if token.get("special")]
        for key in ("additional_special_tokens", "extra_special_tokens"):
            more = config.get(key) or []
            named += more.values() if isinstance(more, dict) else more if isinstance(more, list) else []
        texts = [token.get("content") if isinstance(token, dict) else token for token in named]
        return {text for text in texts if isinstance(text, str)}

    @classmethod
    def of_files(cls, files: dict[str, bytes]) -> "Settings":
        """Gather the settings from a model folder's files, {name: content}; files that are missing say nothing.

        Ends are the tokenizer's own and, after them, those of generation_config.json. (Llama 3's tokenizer names
        <|eot_id|> alone; its generation_config adds <|end_of_text|>.)
        """
        tokenizer = read_json(files, "tokenizer_config.json")
        generation = read_json(files, "generation_config.json")
        config = read_json(files, "config.json")
        others = read_json(files, "special_tokens_map.json")
        check_fields(tokenizer, TOKENIZER_CONFIG, "tokenizer_config.json")
        check_fields(others, ROLES, "special_tokens_map.json")
        check_fields(generation, ROLE_IDS, "generation_config.json")
        check_fields(config, ROLE_IDS, "config.json")
        names = others | tokenizer
        # The first converted Llamas give roles to the empty text, and -1 for none.
        names = {role: text for role in ("bos_token", "eos_token", "pad_token") if (text := _content(names.get(role)))}
        ids = {role: _listed(generation.get(f"{role}_token_id")) for role in ("bos", "eos", "pad")}
        of_config = {role: _listed(config.get(f"{role}_token_id")) for role in ids}
        return cls(
            bos=names.get("bos_token"),
            eos=[*([names["eos_token"]] if "eos_token" in names else []), *ids["eos"]],
            pad=names.get("pad_token", next(iter(ids["pad"]), None)),
            of_config=of_config | {"bos": [*ids["bos"], *of_config["bos"]]},
            adds_bos=tokenizer.get("add_bos_token"),
            chat_template=_template_of(files, tokenizer, "default"),
            tool_template=_template_of(files, tokenizer, "tool_use"),
            added=_added_tokens(files, tokenizer),
            tokenizer_config=tokenizer,
            generation_config=generation,
        )

    @classmethod
    def of_vocabulary(cls, vocabulary: dict) -> "Settings":
        """The settings of a GGUF file, from its vocabulary as weights/formats/gguf.py gives it."""
        return cls(bos=vocabulary["bos_id"], eos=vocabulary["eos_ids"], pad=vocabulary["pad_id"],
                   adds_bos=vocabulary["add_bos"], chat_template=vocabulary["chat_template"],
                   tool_template=vocabulary.get("tool_template"))


class Tokenizer:
    """Text to ids and back. A subclass knows one kind of vocabulary: it gives `encode_words`, `vocabulary_files`,
    `vocabulary`.

    vocab_size      one more than the largest id
    special_ids     text -> id of the control tokens
    bos_id, pad_id  None where the vocabulary has none
    eos_ids         every id at which generation ends; encode(eos=True) writes the first
    adds_bos        whether the model expects text to begin with bos_id
    chat_template   the Jinja text of the model's files, or None; set it to store another with the model
    tool_template   the one for conversations with tools, where the files have one of its own
    """

    spells_space_first = False      # whether the first word of a text is spelt with a space before it,
    restarts = True                 # and whether what follows a control token is such a first word
    huggingface_class: str          # the class of transformers that reads our files

    def __init__(self, spellings: Sequence[bytes], *, special: dict[str, int], always: dict[str, int],
                 settings: Settings, flags: Iterable[dict] = ()) -> None:
        """
        spellings  the bytes of each id
        special    control tokens: recognised in text only where the caller allows it
        always     added tokens that are ordinary text, such as <think>: recognised wherever they stand
        flags      how they are found in text, where a file says so: see added_tokens.py
        """
        self._spellings = spellings
        self._settings = settings
        special = special | {text: id for text, id in always.items() if text in settings.called_special}
        self._always = {text: id for text, id in always.items() if text not in special}
        self.vocab_size = len(spellings)
        self.special_ids = dict(special)
        of_config = settings.of_config
        self.bos_id = self._first_of([settings.bos, *of_config.get("bos", [])], "beginning")
        ends = [self._id_of(end, "end") for end in settings.eos]
        others = [self._id_of(end, "end") for end in of_config.get("eos", [])]
        if not any(id is not None for id in ends) or set(ends) & set(others):           # else of another vocabulary
            ends += others
        self.eos_ids = tuple(dict.fromkeys(id for id in ends if id is not None))
        self.pad_id = self._first_of([settings.pad, *of_config.get("pad", [])], "padding")
        if not self.eos_ids:
            self.eos_ids = tuple(special[end] for end in WELL_KNOWN_ENDS if end in special)
        self.adds_bos = bool(settings.adds_bos) and self.bos_id is not None
        self.chat_template, self.tool_template = settings.chat_template, settings.tool_template
        self._controls = frozenset(self.special_ids.values())
        found = {flag["content"]: flag for flag in flags}
        self._added_tokens = {id: self._added_token(text, id, found.get(text, {}))
                              for text, id in (self._always | self.special_ids).items()}
        ordinary = [token for token in self._added_tokens.values() if token.id not in self._controls]
        longest_first = sorted(self._always | self.special_ids, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._finders = {allowed: (Finder(token for token in some if not token.normalized),
                                   Finder(token for token in some if token.normalized))
                         for allowed, some in ((False, ordinary), (True, list(self._added_tokens.values())))}

    def _added_token(self, text: str, id: int, flags: dict) -> AddedToken:
        """As it is looked for: one that is `normalized` is so itself."""
        token = AddedToken(text, id, **{name: bool(flags.get(name)) for name in FLAGS})
        return token._replace(content=self.normalize(text, starts=True)) if token.normalized else token

    def _first_of(self, named: Sequence[str | int | None], role: str) -> int | None:
        """The first that is in the vocabulary, of those by which files name a role."""
        return next((id for token in named if (id := self._id_of(token, role)) is not None), None)

    def _id_of(self, token: str | int | None, role: str) -> int | None:
        """The id of a token that the settings name. It is a control token if it is named by its text, if it was added,
        or is written as a mark, </s>; but a line end may be the id at which a model ends, and stay a line end.

        One that is not in the vocabulary has no role, which is said.
        """
        if isinstance(token, int) and 0 <= token < self.vocab_size and token not in self.special_ids.values():
            text = self._spellings[token].decode(errors="replace")
            if self._always.get(text) == token or re.fullmatch(r"<[^<>\s]+>", text):
                self._always.pop(text, None)
                self.special_ids.setdefault(text, token)
        if isinstance(token, str) and token not in self.special_ids:
            id = self._always.pop(token, None)
            if id is None and token.encode() in self._spellings:
                id = self._spellings.index(token.encode())
            if id is not None:
                self.special_ids[token] = id
        id = self.special_ids.get(token) if isinstance(token, str) else token
        if token is None or token == -1 or id is not None and 0 <= id < self.vocab_size:
            return None if token == -1 else id
        log.warning("the model's files name the token %r for the %s of texts, but it is not in the vocabulary of %d "
                    "tokens; it is passed over", token, role, self.vocab_size)
        return None

    # What a subclass knows

    def encode_words(self, text: str, *, starts: bool) -> list[int]:
        """Ids of normalised text without added tokens. `starts`: nothing precedes it, or a token after which text
        starts anew does."""
        raise NotImplementedError

    def normalize(self, text: str, *, starts: bool) -> str:
        """The text as the vocabulary's normaliser leaves it, before tokens that are `normalized` are looked for."""
        return text

    def starts_after(self, token: AddedToken) -> bool:
        """Whether text behind an added token starts anew, as at the beginning."""
        return self.restarts and token.id in self._controls

    def spelling(self, data: bytes) -> list[int]:
        """The ids that spell these bytes within a text, wherever they stand there: a piece of a larger vocabulary."""
        raise NotImplementedError

    def vocabulary_files(self) -> dict[str, bytes]:
        """The files that hold the vocabulary itself."""
        raise NotImplementedError

    def vocabulary(self) -> dict[str, Any]:
        """The vocabulary as plain values, under the keys of weights/formats/gguf.py; `from_vocabulary` reads the same.

        Raises ValueError where those keys cannot say what this tokenizer does.
        """
        raise NotImplementedError

    def _roles(self) -> dict[str, Any]:
        """The part of `vocabulary` that is the same for all kinds."""
        return {"bos_id": self.bos_id, "eos_ids": list(self.eos_ids), "pad_id": self.pad_id, "add_bos": self.adds_bos,
                "chat_template": self.chat_template,
                **({"tool_template": self.tool_template} if self.tool_template else {})}

    # Text to ids

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False) -> list[int]:
        """Ids of `text`, between bos_id and eos_ids[0] where asked.

        Raises ValueError where such a token is asked for and there is none, and for what `utf8` refuses.
        """
        ids = self._encode(text, starts=True, allow_special=allow_special)
        if bos:
            ids.insert(0, self._required(self.bos_id, "beginning"))
        if eos:
            ids.append(self._required(self.eos_ids[0] if self.eos_ids else None, "end"))
        return ids

    def encode_continuation(self, text: str) -> list[int]:
        """Ids of text that goes on where other text stopped; special tokens in it are text.

        Differs from `encode` where a vocabulary spells the first word of a text with a space before it, as
        SentencePiece's do: to go on with "ing" must not say " ing".
        """
        return self._encode(text, starts=False, allow_special=False)

    def _encode(self, text: str, *, starts: bool, allow_special: bool) -> list[int]:
        utf8(text)
        first, then = self._finders[allow_special]
        ids = []
        for part in first.split(text):
            normal = [part] if isinstance(part, AddedToken) else then.split(self.normalize(part, starts=starts))
            for piece in normal:
                if isinstance(piece, AddedToken):
                    ids.append(piece.id)
                    starts = self.starts_after(piece)
                else:
                    ids += self.encode_words(piece, starts=starts)
                    starts = False
        return ids

    def special_tokens_in(self, text: str) -> list[tuple[int, int, AddedToken]]:
        """(begin, end, token) of the control tokens that a text spells, without the spaces that they take along."""
        return [(*match.span(), self._added_tokens[id]) for match in self._spelled.finditer(text)
                if (id := self.special_ids.get(match[0])) is not None]

    @property
    def first_new_id(self) -> int:
        """From which id on pieces were added to an older vocabulary (tokenizer/extend.py); vocab_size for none."""
        return self._settings.tokenizer_config.get(FIRST_NEW_ID, self.vocab_size)

    def with_new_from(self, id: int) -> "Tokenizer":
        """This vocabulary, with the pieces from this id on as those that were added: it may have grown several times
        since a model had it."""
        grown = copy(self)
        grown._settings = replace(self._settings, tokenizer_config=self._settings.tokenizer_config | {FIRST_NEW_ID: id})
        return grown

    def settings_of_larger(self) -> Settings:
        """The settings of this vocabulary with more pieces behind it: roles and templates stay."""
        config = self._settings.tokenizer_config | {FIRST_NEW_ID: self.vocab_size}
        return replace(self._settings, tokenizer_config=config, chat_template=self.chat_template,
                       tool_template=self.tool_template)

    def _required(self, id: int | None, what: str) -> int:
        if id is None:
            raise ValueError(f"this tokenizer has no token for the {what} of a text; its files name none")
        return id

    # Ids to text

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. Equals what a stream gives, id by id."""
        stream = self.stream(skip_special=skip_special)
        return "".join(map(stream.push, ids)) + stream.flush()

    def stream(self, *, skip_special: bool = True) -> "StreamDecoder":
        return StreamDecoder(self, skip_special=skip_special)

    def token_bytes(self, id: int) -> bytes:
        """The bytes of one id. Raises ValueError for one that is not in the vocabulary."""
        if not 0 <= id < self.vocab_size:
            raise ValueError(f"id {id} is not in this vocabulary of {self.vocab_size} tokens; "
                             "do model and tokenizer belong together?")
        return self._spellings[id]

    def is_part(self, id: int) -> bool:
        """Whether a token is some bytes of a character, and no text. Raises ValueError as `token_bytes` does."""
        try:
            self.token_bytes(id).decode()
        except UnicodeDecodeError:
            return True
        return False

    def piece(self, id: int) -> str:
        r"""One id in a form to look at: spaces as ▁, line ends as \n, parts of a character as \xe4."""
        text = self.token_bytes(id).decode(errors="backslashreplace").replace(" ", "▁")
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

    # Files

    @property
    def chat_format(self) -> str | None:
        """The name in chat.FORMATS of the format whose template this is; None without one, or for another."""
        return name_of(self.chat_template) if self.chat_template else None

    def files(self) -> dict[str, bytes]:
        """Every file to write into a model folder, {name: content}; load_tokenizer reads the same dictionary."""
        config = {"tokenizer_class": self.huggingface_class} | self._settings.tokenizer_config | {
            "bos_token": None, "eos_token": None, "pad_token": None, **self.roles(),
            "add_bos_token": self.adds_bos,
            "chat_template": self._templates(),
        }
        generation = self._settings.generation_config | {
            "bos_token_id": self.bos_id,
            "eos_token_id": self.eos_ids[0] if len(self.eos_ids) == 1 else list(self.eos_ids) or None,
            "pad_token_id": self.pad_id,
        }
        return self.vocabulary_files() | {
            "tokenizer_config.json": write_json(_without_none(config)),
            "generation_config.json": write_json(_without_none(generation)),
        }

    def _templates(self) -> str | list[dict[str, str]] | None:
        """As tokenizer_config.json has them: one as a text, two by their names."""
        named = {"default": self.chat_template, "tool_use": self.tool_template}
        return [{"name": name, "template": template} for name, template in named.items() if template] \
            if self.tool_template else self.chat_template

    def save(self, folder: str | Path) -> None:
        """Write files() into `folder`, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            part = folder / f".{name}.{os.getpid()}.part"
            part.write_bytes(content)
            os.replace(part, folder / name)

    def roles(self) -> dict[str, str]:
        """The texts of the tokens with a role, under the names by which files and chat templates know them."""
        return _without_none({"bos_token": self._text_of(self.bos_id),
                              "eos_token": self._text_of(self.eos_ids[0] if self.eos_ids else None),
                              "pad_token": self._text_of(self.pad_id)})

    def _text_of(self, id: int | None) -> str | None:
        return None if id is None else self.token_bytes(id).decode(errors="replace")


class StreamDecoder:
    """Ids to text one at a time: whole characters as soon as they are there, the rest when they are completed.

    At most three bytes are ever held back. Bytes that can no longer become a character come out as U+FFFD at once, so
    that a model that stumbles does not silence the stream.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._starts = tokenizer.spells_space_first

    def push(self, id: int) -> str:
        """The text that `id` completes, which may be empty."""
        spelling = self._tokenizer.token_bytes(id)
        if (token := self._tokenizer._added_tokens.get(id)) is not None:
            self._starts = self._tokenizer.spells_space_first and self._tokenizer.starts_after(token)
            hidden = self._skip_special and id in self._tokenizer._controls
            return "" if hidden else self._utf8.decode(spelling)
        if self._starts and spelling:
            spelling = spelling.removeprefix(b" ")
            self._starts = False
        return self._utf8.decode(spelling)

    def flush(self) -> str:
        """What was held back, at the end of the stream: U+FFFD for a character that was never completed."""
        return self._utf8.decode(b"", final=True)


def is_control(token: dict) -> bool:
    """Whether an added token steers the model, rather than being ordinary text, as <think> is.

    So do all that look like <|this|>, or as DeepSeek's <｜this｜>: some files forget to call them special, and then
    anybody's text could close a turn of the chat.
    """
    return bool(token.get("special")) or re.fullmatch(r"<[|｜].*[|｜]>", token["content"], re.DOTALL) is not None


def check_ids(ids: Iterable[int], count: int) -> None:
    """See that no id lies far beyond so many tokens: up to the largest there is a list of all.

    Raises ValueError. Vocabularies have gaps, but none that a file of a few bytes could make gigabytes of.
    """
    if (largest := max(ids, default=0)) > 2 * count + 65_536:
        raise ValueError(f"the vocabulary has {count:,} tokens and the id {largest:,}, so it is damaged; fetch it "
                         "again")


def _without_none(fields: dict) -> dict:
    return {key: value for key, value in fields.items() if value is not None}


def _listed(ids: int | list[int] | None) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]


def _content(token: str | dict | None) -> str | None:
    """The text of a token in tokenizer_config.json, which may stand in an object with flags."""
    return token["content"] if isinstance(token, dict) else token


def _template_of(files: dict[str, bytes], tokenizer_config: dict, name: str) -> str | None:
    """A chat template: a file of its own in newer folders; a model may have several, of which one is the default."""
    alone = "chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja"
    if alone in files:
        return files[alone].decode(errors="replace")
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):
        return next((each.get("template") for each in template if each.get("name") == name), None)
    return template if name == "default" else None


def _added_tokens(files: dict[str, bytes], tokenizer_config: dict) -> dict[int, dict]:
    """id -> {"content", "special"}. Older folders list them in a file of their own, which knows no flags."""
    alone = check_value(read_json(files, "added_tokens.json"), mapped(whole()), "added_tokens.json")
    flagged = tokenizer_config.get("added_tokens_decoder") or {}
    return {id: {"content": content} for content, id in alone.items()} | \
        {int(id): token for id, token in flagged.items()}


def utf8(text: str) -> bytes:
    """The bytes of a text. Raises ValueError for half a surrogate pair, which a string can hold and UTF-8 cannot."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds U+{ord(text[error.start]):04X} at character {error.start}, half of a "
                         "surrogate pair, which is no character; was its file read in the wrong encoding?") from None


def read_json(files: dict[str, bytes], name: str) -> dict:
    """The object in a JSON file, {} where the file is missing. Raises ValueError, naming file and line."""
    return read_object(files[name], name) if name in files else {}


def write_json(value: dict) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode(errors="replace")
