r"""Where byte-pair merges may not reach: the rules that split text into words before BPE, one a line, as published.

A rule is a regular expression over Unicode: \p{L} letters (categories L*; of them \p{Lu} large, \p{Ll} small), \p{M}
marks, \p{N} numbers (N*), \s white space. Python's `re` knows no category, and its \s is not White_Space (it adds
U+001C to U+001F). So a rule is matched not against the text but against its *shadow*, which has the same length and in
which one character of the same class stands for every character:

    text    Don't  wait, 李白生于701年…
    shadow  Don't  wait, ªªªª701ª!

The regular expression then needs few characters alone, `re` runs it at full speed, and the spans it finds cut the text.

The categories are those of Python's `unicodedata` (Unicode 14.0 in Python 3.11, see UNICODE). Characters that a later
version added count as unassigned here, and other programs may split around them otherwise; no other text is affected.

Try: let `\p{N}{1,3}` of "llama3" be `\p{N}+`; tests/test_pretokenize.py then finds the digits of 1234 in one piece.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

UNICODE = unicodedata.unidata_version

# The property White_Space without CR and LF. The standard has promised no additions since Unicode 6.3.
WHITE_SPACE = {0x09, 0x0B, 0x0C, 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B),
               0x2028, 0x2029, 0x202F, 0x205F, 0x3000}


LARGE, SMALL, CASELESS, MARK, LONG_S = "X", "x", "\u00aa", "\u0301", "\u017f"
_CLASSES = {r"\p{Lu}\p{Lt}": "A-Z", r"\p{Ll}": f"a-z{LONG_S}", r"\p{Lm}\p{Lo}": CASELESS, r"\p{M}": MARK,
            r"\p{L}": f"A-Za-z{CASELESS}{LONG_S}", r"\p{N}": r"\d"}
_SHADOWS = {"Lu": LARGE, "Lt": LARGE, "Ll": SMALL, "Lm": CASELESS, "Lo": CASELESS}    # x begins no English contraction


class _Shadow(dict):
    """Code point -> the character that stands for it. Filled as characters are met: few texts hold many."""

    def __missing__(self, code: int) -> str:
        category = unicodedata.category(chr(code))
        if code < 128 or chr(code) == LONG_S:                       # ſ is an s where a rule ignores case
            shadow = chr(code)
        elif code in WHITE_SPACE:
            shadow = "\t"           # not " ", which rules name by itself
        elif category[0] == "L":
            shadow = _SHADOWS[category]
        elif category[0] in "MN":
            shadow = MARK if category[0] == "M" else "0"
        else:
            shadow = "!"            # signs, controls, unassigned: but no apostrophe, which rules name
        self[code] = shadow
        return shadow


_shadow = _Shadow()


@dataclass(frozen=True)
class SplitRule:
    """One way of splitting text into the words that merges may not cross.

    name         ours
    gguf_names   what `tokenizer.ggml.pre` of GGUF files calls it
    pattern      the regular expression
    written_as   tokenizer.json's `pre_tokenizer`: Hugging Face has several ways to say a rule; this one we write
    """

    name: str
    gguf_names: tuple[str, ...]
    pattern: str
    written_as: dict

    @cached_property
    def _regex(self) -> re.Pattern:
        pattern = re.sub(r"\[[^]]*]", lambda bracket: _spelled_out(bracket[0]), self.pattern)
        pattern = pattern.replace("(?i:'s", f"(?i:'[s{LONG_S}]")
        return re.compile(_spelled_out(pattern.replace(r"\p{L}", r"[\p{L}]")), re.ASCII)

    def split(self, text: str) -> list[str]:
        """The words of `text`; joined they are `text` again. Linear in its length.

        >>> RULES["gpt2"].split("It's 10  o'clock")
        ['It', "'s", ' 10', ' ', ' o', "'", 'clock']
        """
        if text.isascii():
            return self._regex.findall(text)
        return [text[word.start():word.end()] for word in self._regex.finditer(text.translate(_shadow))]


def _spelled_out(pattern: str) -> str:
    for name, members in _CLASSES.items():
        pattern = pattern.replace(name, members)
    return pattern


def _byte_level(*, splits: bool) -> dict:
    """The step of tokenizer.json that spells bytes as characters, and that may split by GPT-2's pattern besides."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": splits}


def _sequence(first: dict, *, splits: bool) -> dict:
    return {"type": "Sequence", "pretokenizers": [first, _byte_level(splits=splits)]}


def _split(pattern: str) -> dict:
    return _sequence({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                     splits=False)


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
           r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_QWEN2 = _LLAMA3.replace("{1,3}", "")
# SmolLM first cuts out each digit, then splits what lies between by GPT-2's pattern. In one expression: a digit takes
# no space with it, and a run of white space before a digit stays whole, as it does at the end of a text.
_SMOLLM = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"

# Words begin at a large letter, as in camelCase (Mistral's Tekken; OpenAI's o200k adds contractions).
_LARGE, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (rf"[^\r\n\p{{L}}\p{{N}}]?{_LARGE}*{_SMALL}+|[^\r\n\p{{L}}\p{{N}}]?{_LARGE}+{_SMALL}*|\p{{N}}"
           r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_CONTRACTED = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K = _TEKKEN.replace(f"{_SMALL}+|", f"{_SMALL}+{_CONTRACTED}|").replace(
    rf"{_SMALL}*|\p{{N}}|", rf"{_SMALL}*{_CONTRACTED}|\p{{N}}{{1,3}}|")

# Names in GGUF files: for each, llama.cpp gives the ids that the rule gives.
RULES = {rule.name: rule for rule in (
    SplitRule("gpt2", ("gpt-2", "mpt", "olmo", "phi-2", "jais", "gigachat", "mellum", "trillion", "a.x-4.0",
                       "exaone4", "granite-docling"), _GPT2, _byte_level(splits=True)),
    SplitRule("llama3", ("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "dbrx", "falcon3", "falcon-h1", "pixtral",
                         "midm-2.0", "lfm2", "glm4", "chatglm-bpe"), _LLAMA3, _split(_LLAMA3)),
    SplitRule("qwen2", ("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2, _split(_QWEN2)),
    SplitRule("smollm", ("smollm", "starcoder", "refact", "command-r", "exaone", "codeshell", "minerva-7b"), _SMOLLM,
              _sequence({"type": "Digits", "individual_digits": True}, splits=True)),
    SplitRule("tekken", ("tekken",), _TEKKEN, _split(_TEKKEN)),
    SplitRule("o200k", ("gpt-4o", "llama4"), _O200K, _split(_O200K)),
)}
# Those by which a GGUF file says besides that a word that is a token is that token, whatever merges would make of it.
WHOLE_WORDS = frozenset(("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
                         "glm4", "tekken"))


def rule_of_gguf(pre: str | None) -> SplitRule:
    """The rule that a GGUF file names in `tokenizer.ggml.pre`. Raises ValueError for one not known here."""
    for rule in RULES.values():
        if pre in rule.gguf_names:
            return rule
    raise ValueError(f"the split rule {pre!r} (tokenizer.ggml.pre) is not known here; known are: "
                     + ", ".join(name for rule in RULES.values() for name in rule.gguf_names))


def rule_of_json(pre_tokenizer: object) -> SplitRule:
    """The rule that a tokenizer.json asks for in `pre_tokenizer`, whatever way it says it.

    Raises ValueError, quoting it, for one not known here.
    """
    for rule in RULES.values():
        if _essence(pre_tokenizer) == _essence(rule.written_as):
            return rule
    quoted = json.dumps(pre_tokenizer, ensure_ascii=False)
    raise ValueError(f"the split rule of this tokenizer.json is not known here: \"pre_tokenizer\": {quoted[:500]} "
                     f"(known are those of {', '.join(RULES)})")


def _essence(pre_tokenizer: object) -> list[tuple] | None:
    """What a pre_tokenizer does, free of spelling and of defaults, as a list of steps; None where we cannot tell."""
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [*steps]}:
            parts = [_essence(step) for step in steps]
            return None if None in parts else [step for part in parts for step in part]
        case {"type": "Digits", "individual_digits": True}:
            return [("digits",)]
        # What matches is a word of its own; or what does not is thrown away, which with these rules is nothing.
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False} | \
                {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Removed", "invert": True}:
            return [("split", pattern)]
        case {"type": "ByteLevel", "add_prefix_space": False}:
            splits = pre_tokenizer.get("use_regex", True)
            return [("split", _GPT2), ("bytes",)] if splits else [("bytes",)]
    return None
