"""What every tokenizer here can do, and the small files that stand beside a vocabulary.

A vocabulary gives two things: the bytes of each id, and the ids of a stretch of text that holds no special token. All
else is here, once: special tokens, the ids of beginning and end, decoding id by id, and the files of a model folder.

Special tokens in text are text. Whoever types <|im_end|> into a chat gets the ids of ten characters, unless the caller
passes allow_special=True; the chat formats never do so for what a person wrote.

Try: let StreamDecoder.push decode the bytes of each id by themselves; tests/test_tokenizer.py then finds broken
characters, since a token may hold a third of a Chinese one.
"""

import codecs
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokenizer import chat

# Texts by which published vocabularies mark an end, for files that do not say which of their tokens do.
WELL_KNOWN_ENDS = ("<|im_end|>", "<|eot_id|>", "</s>", "<|endoftext|>", "<|end_of_text|>")


@dataclass
class Settings:
    """What a folder says of its vocabulary. Tokens are named by their text or by their id.

    eos     every end that the files name, the tokenizer's own first; empty where they name none
    adds_bos   whether the model expects text to begin with the token `bos`; None where the files do not say
    tokenizer_config, generation_config   those files as read, so that fields we do not know are kept
    """

    bos: str | int | None = None
    eos: Sequence[str | int] = ()
    pad: str | int | None = None
    adds_bos: bool | None = None
    chat_template: str | None = None
    tokenizer_config: dict = field(default_factory=dict)
    generation_config: dict = field(default_factory=dict)

    @classmethod
    def read(cls, files: dict[str, bytes]) -> "Settings":
        """Gather the settings from a model folder's files, {name: content}; files that are missing say nothing.

        Ends are the tokenizer's own and, after them, those of generation_config.json, or of config.json where that
        file is missing. (Llama 3's tokenizer names <|eot_id|> alone; its generation_config adds <|end_of_text|>.)
        """
        tokenizer = read_json(files, "tokenizer_config.json")
        generation = read_json(files, "generation_config.json")
        names = read_json(files, "special_tokens_map.json") | tokenizer
        numbers = generation or read_json(files, "config.json")
        ends = numbers.get("eos_token_id")
        ends = [_text(names.get("eos_token")), *(ends if isinstance(ends, list) else [ends])]
        return cls(
            bos=_first(_text(names.get("bos_token")), numbers.get("bos_token_id") if not names else None),
            eos=[end for end in ends if _first(end) is not None],
            pad=_first(_text(names.get("pad_token")), numbers.get("pad_token_id")),
            adds_bos=tokenizer.get("add_bos_token"),
            chat_template=_template(files, tokenizer),
            tokenizer_config=tokenizer,
            generation_config=generation,
        )


class Tokenizer:
    """Text to ids and back. A subclass knows one kind of vocabulary: it gives `encode_words` and `vocabulary_files`.

    vocab_size      one more than the largest id
    special_ids     text -> id of the control tokens
    bos_id, pad_id  None where the vocabulary has none
    eos_ids         every id at which generation ends; encode(eos=True) writes the first
    adds_bos        whether the model expects text to begin with bos_id
    chat_template   the Jinja text of the model's files, or None; set it to store another with the model
    """

    spells_space_first = False      # whether the first word of a text is spelt with a space before it

    def __init__(self, spellings: Sequence[bytes], *, special: dict[str, int], always: dict[str, int],
                 settings: Settings) -> None:
        """
        spellings  the bytes of each id
        special    control tokens: recognised in text only where the caller allows it
        always     added tokens that are ordinary text, such as <think>: recognised wherever they stand
        """
        self._spellings = spellings
        self.vocab_size = len(spellings)
        self.special_ids = dict(special)
        self._controls = frozenset(special.values())
        self._always = always
        self._settings = settings
        self.bos_id = self._id_of(settings.bos, "bos")
        self.eos_ids = tuple(dict.fromkeys(self._id_of(end, "eos") for end in settings.eos))
        if not self.eos_ids:
            self.eos_ids = tuple(special[end] for end in WELL_KNOWN_ENDS if end in special)
        self.pad_id = self._id_of(settings.pad, "pad")
        self.adds_bos = bool(settings.adds_bos) and self.bos_id is not None
        self.chat_template = settings.chat_template

    # What a subclass knows

    def encode_words(self, text: str, *, starts: bool) -> list[int]:
        """Ids of text without special tokens. `starts`: nothing precedes it, or a control token does."""
        raise NotImplementedError

    def vocabulary_files(self) -> dict[str, bytes]:
        """The files that hold the vocabulary itself."""
        raise NotImplementedError

    # Text to ids

    def encode(self, text: str, *, bos: bool = False, eos: bool = False, allow_special: bool = False) -> list[int]:
        """Ids of `text`, between bos_id and eos_ids[0] where asked.

        Raises ValueError where such a token is asked for and there is none, and for half a surrogate pair, which no
        file in UTF-8 can hold.
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
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text holds U+{ord(text[error.start]):04X} at character {error.start}, half of a "
                             "surrogate pair, which is no character; was its file read in the wrong encoding?") from None
        tokens = self._always | self.special_ids if allow_special else self._always
        if not tokens:
            return self.encode_words(text, starts=starts)
        ids = []
        longest_first = sorted(tokens, key=len, reverse=True)
        for i, part in enumerate(re.split(f"({'|'.join(map(re.escape, longest_first))})", text)):
            if i % 2:
                ids.append(tokens[part])
                starts = tokens[part] in self._controls
            elif part:
                ids += self.encode_words(part, starts=starts)
                starts = False
        return ids

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

    def piece(self, id: int) -> str:
        r"""One id in a form to look at: spaces as ▁, line ends as \n, parts of a character as \xe4."""
        text = self.token_bytes(id).decode(errors="backslashreplace").replace(" ", "▁")
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)

    # Files

    @property
    def chat_format(self) -> str | None:
        """The name in chat.FORMATS of the format that `chat_template` writes; None without one, or for one not ours."""
        try:
            return chat.recognise(self.chat_template).name if self.chat_template else None
        except ValueError:
            return None

    def files(self) -> dict[str, bytes]:
        """Every file to write into a model folder, {name: content}; load_tokenizer reads the same dictionary."""
        config = self._settings.tokenizer_config | {
            "bos_token": self._text_of(self.bos_id),
            "eos_token": self._text_of(self.eos_ids[0] if self.eos_ids else None),
            "pad_token": self._text_of(self.pad_id),
            "add_bos_token": self.adds_bos,
            "chat_template": self.chat_template,
        }
        generation = self._settings.generation_config | {
            "bos_token_id": self.bos_id,
            "eos_token_id": self.eos_ids[0] if len(self.eos_ids) == 1 else list(self.eos_ids) or None,
            "pad_token_id": self.pad_id,
        }
        return self.vocabulary_files() | {
            "tokenizer_config.json": write_json(config),
            "generation_config.json": write_json(generation),
        }

    def save(self, folder: str | Path) -> None:
        """Write files() into `folder`, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            part = folder / f".{name}.{os.getpid()}.part"
            part.write_bytes(content)
            os.replace(part, folder / name)

    def _id_of(self, token: str | int | None, role: str) -> int | None:
        if token is None:
            return None
        if isinstance(token, str):
            # Roles are named in files by text; nearly always a control token's, but some models end with a plain one.
            id = next((table[token] for table in (self.special_ids, self._always) if token in table), None)
            if id is None and token.encode() in self._spellings:
                id = self._spellings.index(token.encode())
        else:
            id = token if 0 <= token < self.vocab_size else None
        if id is None:
            raise ValueError(f"the tokenizer's files name {token!r} as the {role} token, "
                             f"but its vocabulary of {self.vocab_size} tokens does not hold it")
        return id

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
        if id in self._tokenizer._controls:
            self._starts = self._tokenizer.spells_space_first
            return "" if self._skip_special else self._utf8.decode(spelling)
        if self._starts and spelling:
            spelling = spelling.removeprefix(b" ")
            self._starts = False
        return self._utf8.decode(spelling)

    def flush(self) -> str:
        """What was held back, at the end of the stream: U+FFFD for a character that was never completed."""
        return self._utf8.decode(b"", final=True)


def read_json(files: dict[str, bytes], name: str) -> dict:
    """The object in a JSON file, {} where the file is missing. Raises ValueError naming file and line."""
    if name not in files:
        return {}
    try:
        value = json.loads(files[name])
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}: line {error.lineno} is not JSON: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError):
        raise ValueError(f"{name} is not JSON in UTF-8") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} holds a JSON {type(value).__name__} where an object is expected")
    return value


def write_json(value: dict) -> bytes:
    """JSON as these files have it, without the fields that are None: readers take null for a value."""
    kept = {key: item for key, item in value.items() if item is not None}
    return (json.dumps(kept, ensure_ascii=False, indent=2) + "\n").encode()
