"""The articles of a MediaWiki dump (Wikipedia and its like) as plain text, one after the other, of any size.

    zhwiki-…-pages-articles.xml, also .bz2, .gz and .xz          https://www.mediawiki.org/wiki/Help:Export

Of the markup, what is read as prose stays: paragraphs, headings, items of lists, the words of links. Templates, tables,
references, pictures, categories and comments go, and with a template goes what it would have written, but for those
that only mark words or link them. Of the variants that Chinese articles spell out, -{zh-hans:软件; zh-hant:軟體}-, the
simplified one stays.

Try: leave the loop out of `_without`; tests/test_mediawiki.py (test_worked_example_nested_templates_go) fails.
"""

import html
import re
from collections.abc import Iterator
from pathlib import Path
from xml.parsers import expat

from llama.datasets.reading import Reading
from llama.datasets.text_files import opened

BLOCK = 1 << 16
LONGEST = 1000                                                      # characters within a template that is shown
DEEPEST = 100                                                       # of what stands in one another; MediaWiki knows 40
ARTICLES = "0"                                                      # their namespace; talk and users have others
_TEMPLATE = re.compile(r"\{\{\{[^{}]*\}\}\}|\{\{((?:[^{}]|\{(?!\{)|\}(?!\}))*)\}\}")
_BAR = re.compile(r"\|(?![^\[\]]*\]\])")                           # not that of a link
# of templates whose words are a part of the sentence: which argument is shown, the first of these that is there
_SHOWN = {"lang": (2,), "nowrap": (1,), "nobr": (1,), "le": (3, 1), "link": (3, 1), "ill": (1,), "tsl": (4, 3)}
_TABLE = re.compile(r"\{\|(?:(?!\{\||\|\}).)*\|\}", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_ASIDE = re.compile(r"<(ref|math|gallery|timeline|code|source|syntaxhighlight|score|imagemap|table)\b[^<>]*>",
                    re.IGNORECASE)
_BREAK = re.compile(r"<br\b[^<>]*>|</p>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
_LINK = re.compile(r"\[\[([^\[\]|]*)(?:\|([^\[\]]*))?\]\]")
_OUTSIDE = re.compile(r"\[(?:https?:)?//[^\s\]]*[ \t]*([^\]\n]{0,300})\]")
# pictures, categories, and the article in another language, whose code stands in small letters
_NO_PROSE = re.compile(r"(?:(?i:file|image|media|category|文件|檔案|档案|圖像|图像|圖片|图片|媒體|媒体|"
                       r"分類|分类)|[a-z]{2,3}|zh-[a-z]+|simple) *:")
_VARIANTS = re.compile(r"-\{([^{}]*)\}-")
_SIMPLIFIED = re.compile(r"(?:zh-(?:hans|cn|sg|my)|zh)\s*:\s*([^;]*)")
_HEADING = re.compile(r"^=+\s*(.*?)\s*=+\s*$", re.MULTILINE)
_ITEM = re.compile(r"^[*#:;]+\s*", re.MULTILINE)
_MAGIC = re.compile(r"__[A-Z]+__")
_QUOTES = re.compile(r"'{2,5}")
_BROKEN = ("|", "{|", "{{")                                          # tables and templates that nothing closes
_END = re.compile(r"^(参考资料|參考資料|参考文献|參考文獻|外部链接|外部連結|注释|註釋|脚注|腳註|参见|參見|References|"
                  r"External links|See also|Notes|Further reading)$", re.MULTILINE)


def articles(path: Path, reading: Reading | None = None) -> Iterator[tuple[str, str, int]]:
    """(title, plain text, line of the dump) of each page that is an article and no redirect.

    Raises ValueError, naming the line, for what is no such XML, and for declarations, with which a few bytes could grow
    to gigabytes.
    """
    made: list[tuple[str, str, int]] = []
    page: dict[str, list[str]] = {}
    inside: list[str] = []
    begun = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal begun
        if not inside and name != "mediawiki":
            raise ValueError(f"{path}:{parser.CurrentLineNumber}: the file begins with <{name:.40}>, and a dump of "
                             "MediaWiki with <mediawiki>; give such a dump, …-pages-articles.xml.bz2")
        inside.append(name)
        if name == "page":
            page.clear()
            begun = parser.CurrentLineNumber
        elif name in ("title", "ns", "text", "redirect"):           # of several revisions the last stays
            page[name] = []

    def end(name: str) -> None:
        inside.pop()
        if name == "page" and "redirect" not in page and "".join(page.get("ns", ARTICLES)).strip() == ARTICLES:
            if text := plain_text("".join(page.get("text", ()))):
                made.append(("".join(page.get("title", ())).strip(), text, begun))

    def words(data: str) -> None:
        if inside and inside[-1] in ("title", "ns", "text"):
            page[inside[-1]].append(data)

    def declared(*_: object) -> None:
        raise ValueError(f"{path}:{parser.CurrentLineNumber}: the file declares a document type; a MediaWiki dump does "
                         "not, so this is no dump, or a harmful one")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, words
    parser.StartDoctypeDeclHandler = declared
    try:
        with opened(path, watch=reading and reading.watch) as (file, _):
            while block := file.read(BLOCK):
                parser.Parse(block, False)
                yield from made
                made.clear()
            parser.Parse(b"", True)
        yield from made
    except expat.ExpatError as error:
        raise ValueError(f"{path}:{error.lineno}: this is no XML, or cut short ({expat.ErrorString(error.code)}); give "
                         "a MediaWiki dump, or get it again") from None


def plain_text(markup: str) -> str:
    """An article's prose: a paragraph, heading or item a line."""
    text = _without_asides(_COMMENT.sub("", markup))
    text = _VARIANTS.sub(_variant, text)
    text = _OUTSIDE.sub(r"\1", _without(_TABLE, _without(_TEMPLATE, text, _words_of_template)))
    text = _without(_LINK, text, _words_of_link)
    text = html.unescape(_TAG.sub("", _BREAK.sub("\n", text)))
    text = _QUOTES.sub("", _MAGIC.sub("", _ITEM.sub("", _HEADING.sub(r"\1", text))))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    text = "\n".join(line for line in lines if line.strip("|!{}-–— ") and not line.startswith(_BROKEN))
    last = _END.search(text)
    return text[: last.start()].strip() if last else text


def _without(pattern: re.Pattern, text: str, put=lambda found: "") -> str:
    """Again and again, from the inside out, until nothing is found."""
    for _ in range(DEEPEST):
        text, found = pattern.subn(put, text)
        if not found:
            break
    return text


def _without_asides(text: str) -> str:
    """Without elements that are no prose. One that is not closed stays: nobody looks again for its end, or a page of
    such tags would take hours.
    """
    kept, at, never_closed = [], 0, set()
    for found in _ASIDE.finditer(text):
        name = found[1].lower()
        if found.start() < at or name in never_closed:              # it stands in the one before
            continue
        end = found.end()
        if not found[0].endswith("/>"):
            closed = re.compile(rf"</{name}\s*>", re.IGNORECASE).search(text, end)
            if not closed:
                never_closed.add(name)
                continue
            end = closed.end()
        kept.append(text[at : found.start()])
        at = end
    return "".join((*kept, text[at:]))


def _words_of_template(found: re.Match) -> str:
    """{{lang|en|Linux}} is Linux, {{tsl|en|Tux|企鹅}} and {{link-en|企鹅|Tux}} are 企鹅; nearly all are nothing."""
    name, _, arguments = (found[1] or "").partition("|")
    name = name.strip().lower()
    shown = _SHOWN.get("link" if name.startswith("link-") else name)
    if not shown or len(arguments) > LONGEST:
        return ""
    given = [argument.strip() for argument in _BAR.split(arguments) if "=" not in argument]
    return next((given[number - 1] for number in shown if len(given) >= number and given[number - 1]), "")


def _words_of_link(found: re.Match) -> str:
    """[[北京市|北京]] is 北京; a picture, a category and a link to another language is nothing."""
    target, shown = found[1].strip(), found[2]
    if _NO_PROSE.match(target):
        return ""
    return (shown.rsplit("|", 1)[-1] if shown is not None else target.lstrip(":")).strip()


def _variant(found: re.Match) -> str:
    """-{zh-hans:软件; zh-hant:軟體}- is 软件, -{H|…}- only tells the page how to convert, -{乾}- stays as it is."""
    flag, bar, inside = found[1].rpartition("|") if "|" in found[1][:3] else ("", "", found[1])
    if flag.strip() in ("H", "T", "-"):
        return ""
    if simplified := _SIMPLIFIED.search(inside):
        return simplified[1].strip()
    return "" if bar and ":" in inside else inside
