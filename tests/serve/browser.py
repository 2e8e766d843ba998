"""The page as people use it, in Debian's chromium driven by Playwright; run in an environment that has it alone.

    python browser.py URL [FOLDER]       # screenshots go into FOLDER

Prints a line a check, and exits 1 if one fails. tests/serve/browse.py serves what it looks at.
"""

import re
import shutil
import sys
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

VIEWS = ("chat", "generate", "tasks", "tokens", "lens", "trace", "training", "inspect")
NAMELESS = """() => [...document.querySelectorAll("button, select, input, textarea, [role=tab]")].filter((each) =>
    !(each.labels?.length || each.textContent.trim() || each.ariaLabel)).map((each) => each.outerHTML)"""
# Of the two colours of every text that is shown, the contrast as WCAG 2 has it; those below 4.5 : 1.
FAINT = """() => {
  const part = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = numbers(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
  return [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.disabled &&
    [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && !e.closest("svg, .skip, noscript, option"))
    .map((e) => { const [a, b] = [light(numbers(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
      return [e.textContent.slice(0, 30), (a + 0.05) / (b + 0.05)]; }).filter(([, ratio]) => ratio < 4.5);
}"""


class Visitor:
    """A browser's window on the page, and what went wrong in it."""

    def __init__(self, browser, url, **about):
        self.url, self.wrong = url, []
        self.page = browser.new_context(**about).new_page()
        self.page.set_default_timeout(60_000)
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("console", lambda message: message.type == "error" and self.wrong.append(message.text))
        self.page.on("request", lambda request: request.url.startswith(url) or self.wrong.append(request.url))
        self.page.goto(url)
        self.page.wait_for_selector("[role=tab]")

    def view(self, name):
        self.page.click(f"#tab-{name}")
        self.page.wait_for_selector(f"#tab-{name}[aria-selected=true]")
        return self.page

    def model(self, name):
        self.page.select_option("#model", name)

    def text(self, selector):
        return self.page.locator(selector).first.text_content()

    def until(self, script):
        """Looked at from outside: the page's policy lets nobody evaluate a text within it."""
        end = time.monotonic() + 600
        while not self.page.evaluate(script):
            assert time.monotonic() < end, script
            time.sleep(0.05)


def checks(browser, url):
    visitor = Visitor(browser, url, viewport={"width": 1100, "height": 760}, locale="en-US")
    page = visitor.page

    page.fill("textarea", "Hello there")
    page.keyboard.press("Enter")
    page.wait_for_selector(".assistant:not(.writing)")
    yield "chat: Enter sends, and the answer is shown", len(visitor.text(".assistant")) > 0
    page.get_by_role("button", name="New chat").click()
    page.fill("textarea", "slowly, please")
    page.keyboard.press("Enter")
    visitor.until("document.querySelector('.assistant')?.textContent.length > 3")
    begun = visitor.text(".assistant")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_selector(".assistant:not(.writing)")
    ended = visitor.text(".assistant")
    yield "chat: text comes as it is written, and Stop keeps it", ended.startswith(begun) and not ended.endswith(
        "home.")
    page.get_by_role("button", name="New chat").click()
    yield "chat: a new one begins empty", page.locator(".talk li").count() == 0
    markup = "markup <img src=x onerror=\"document.title='hit'\"><script>document.title='hit'</script>"
    page.fill("textarea", markup)
    page.keyboard.press("Enter")
    page.wait_for_selector(".assistant:not(.writing)")
    answer = visitor.text(".assistant")
    yield "chat: what people and the model write is text, never markup", (
        "<img src=x" in answer and visitor.text(".user") == markup
        and page.locator(".talk img, .talk script").count() == 0 and page.title() != "hit")

    visitor.view("generate")
    page.get_by_label("Tokens at most").fill("5")
    page.get_by_label("Temperature").fill("0")
    page.get_by_role("button", name="Write").click()
    visitor.until("document.querySelector('p.note').textContent !== ''")
    base = visitor.text(".out")
    yield "generate: parameters are heeded, and the end is told", visitor.text("p.note").startswith("5 tokens")
    visitor.model("loud")
    page.get_by_label("Tokens at most").fill("5")
    page.get_by_role("button", name="Write").click()
    visitor.until("document.querySelector('p.note').textContent !== ''")
    yield "adapters: switched live, another text", visitor.text(".out") != base
    yield "generate: what was set stays when one comes back", page.get_by_label("Temperature").input_value() == "0"

    visitor.view("tokens")
    page.fill("textarea", "The dog sleeps.")
    visitor.until("document.querySelector('p.note').textContent.includes('15 characters')")
    before = page.locator(".pieces li").count()
    page.locator("textarea").press_sequentially(" Yes 你好 <b>")
    visitor.until(f"document.querySelectorAll('.pieces li').length > {before}")
    yield "tokens: pieces and ids as one types", page.locator(".pieces small").first.text_content().isdecimal()

    visitor.model("tiny")
    visitor.view("lens")
    page.fill("textarea", "The lazy dog sleeps")
    page.get_by_role("button", name="Show").click()
    page.wait_for_selector("table.heat")
    page.wait_for_selector("table.said")
    rows = page.locator("table.heat tbody tr").count()
    yield "inside: attention of a layer, a row and a column for each token", rows > 3 and \
        page.locator("table.heat td").count() == rows * rows
    first = page.locator("table.heat td").nth(rows).get_attribute("title")
    page.get_by_role("combobox", name="Head").select_option("1")
    yield "inside: heads are chosen", page.locator("table.heat td").nth(rows).get_attribute("title") != first
    yield "inside: a row for each layer", page.locator("table.said tbody tr").count() == 2

    yield from trace_checks(visitor)

    visitor.view("tasks")
    visitor.model("reviews")
    page.get_by_label("Text", exact=True).fill("The quick brown fox")
    page.get_by_role("button", name="Look").click()
    page.wait_for_selector(".bar")
    yield "tasks: a label with its confidence", visitor.text("#panel strong") in ("good", "bad") and \
        bool(re.fullmatch(r"confidence [01]\.\d{3}", visitor.text(".bar + span")))
    visitor.model("names")
    page.get_by_label("Text", exact=True).fill("The quick brown fox 👩‍👩‍👧 and 小驼 <i>")
    page.get_by_role("button", name="Look").click()
    page.wait_for_selector(".out")
    yield "tasks: entities are marked in the text, with their kinds", page.locator(".out mark b").count() > 0 and \
        page.locator(".out i").count() == 0
    visitor.model("answers")
    page.get_by_label("Question", exact=True).fill("Who sleeps?")
    page.get_by_label("The text that the question is about").fill("The lazy dog sleeps all day, and 小驼 does not.")
    page.get_by_role("button", name="Look").click()
    page.wait_for_selector(".out mark")
    yield "tasks: the answer is marked in its context", visitor.text(".out mark") == visitor.text("#panel strong")

    visitor.model("tiny")
    visitor.view("training")
    page.locator("#panel select").first.select_option("adapters/live")
    page.wait_for_selector("svg.curve")
    step = int(visitor.text(".figures dd"))
    visitor.until(f"Number(document.querySelector('.figures dd').textContent) > {step}")
    figures = page.locator(".figures").text_content()
    yield "training: a curve that grows while one looks", all(
        word in figures for word in ("loss", "held-out loss", "tokens/s", "time left"))
    page.wait_for_selector(".samples li")
    written = visitor.text(".samples li")
    yield "training: what the model writes, and what the data say, as text", written.startswith("Who are you?") and \
        "<img src=x" in written and written.endswith("The quick brown fox.") and page.locator(
            ".samples img, .samples script").count() == 0 and page.title() != "hit"
    page.get_by_role("textbox", name="Name").fill("from-the-page")
    page.get_by_role("spinbutton", name="Minutes").fill("0.1")
    page.get_by_role("combobox", name="Data").select_option("mine.jsonl")
    page.get_by_role("button", name="Start a run").click()
    visitor.until("document.querySelector('#panel select').value === 'adapters/from-the-page'")
    visitor.until("document.querySelector('.figures dd') && document.querySelector('pre')")
    yield "training: a run started from the page shows its steps and what it prints", True
    visitor.until("document.querySelectorAll('.samples li').length === 3")
    yield "training: and what its model writes", True
    visitor.until("[...document.querySelectorAll('#model option')].some((each) => each.value === 'from-the-page')")
    visitor.model("from-the-page")
    yield "training: its adapter can be chosen as soon as it is there", True
    visitor.model("tiny")
    visitor.view("tokens")
    visitor.view("training")

    visitor.view("inspect")
    page.get_by_role("combobox", name="Data").select_option("mine.jsonl")
    page.wait_for_selector(".pieces .learned")
    yield "X-ray: learned pieces are framed, checks are listed", page.locator(".pieces li:not(.learned)").count() > 0 \
        and "check" in visitor.text("pre")

    page.click("#language")
    yield "language: the page speaks Chinese", visitor.text("#tab-chat") == "对话" and \
        page.evaluate("document.documentElement.lang") == "zh-CN"
    page.reload()
    page.wait_for_selector("[role=tab]")
    yield "language: it stays so", visitor.text("#tab-chat") == "对话"

    page.focus("[role=tab][aria-selected=true]")
    page.keyboard.press("ArrowRight")
    yield "keyboard: arrows go through the tabs", page.evaluate("document.activeElement.id") == "tab-chat"
    page.reload()
    page.wait_for_selector("[role=tab]")
    seen = set()
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    yield "keyboard: everything is reached with Tab", {"model", "language", "tab-chat", "TEXTAREA"} <= seen
    yield "nothing went wrong, and nothing was asked of elsewhere", not visitor.wrong or print(visitor.wrong)

    for scheme, width in (("light", 1100), ("dark", 360)):
        looked = Visitor(browser, url, viewport={"width": width, "height": 740}, color_scheme=scheme, locale="zh-CN")
        for name in VIEWS:
            looked.view(name)
            looked.page.wait_for_timeout(300)
            names = looked.page.evaluate(NAMELESS)
            faint = looked.page.evaluate(FAINT)
            wide = looked.page.evaluate("document.documentElement.scrollWidth - innerWidth")
            yield f"{name}, {scheme}, {width} wide: names, contrast, no sideways scrolling", not (
                names or faint or wide > 0) or print(names, faint, wide)
        yield f"{scheme}: nothing went wrong", not looked.wrong or print(looked.wrong)


def trace_checks(visitor):
    page = visitor.view("trace")
    page.fill("textarea", "The lazy dog <b>")
    page.get_by_role("button", name="Show").click()
    page.wait_for_selector("table.traced")
    groups = page.locator("table.traced th[scope=rowgroup]").all_text_contents()
    yield "trace: groups of the first layer, and of what stands around", \
        {"layers.0.self_attn", "layers.0.mlp", "around the layers"} <= set(groups) and \
        not any(group.startswith("layers.1") for group in groups)
    page.get_by_role("combobox", name="Layer").select_option("")
    yield "trace: every layer", any(group.startswith("layers.1") for group in page.locator(
        "table.traced th[scope=rowgroup]").all_text_contents())
    page.get_by_label("Filter by name").press_sequentially("attention.SCORES")
    visitor.until("document.querySelectorAll('table.traced tbody').length === 2")
    row = page.locator("table.traced tbody tr").nth(1).locator("td").all_text_contents()
    yield "trace: filtered by name, with letters, sizes, statistics, line and code", row[0] == "B H T T" and \
        row[2] == "float32" and float(row[7]) > 0 and bool(re.fullmatch(r"llama/model\.py:\d+", row[9])) and \
        row[10].startswith("scores = ")
    faint, names = page.evaluate(FAINT), page.evaluate(NAMELESS)
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    yield "trace: names, contrast, no sideways scrolling of the page", not (faint or names or wide > 0) or print(
        names, faint, wide)


def main():
    url, failed = sys.argv[1], 0
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        sys.exit("the page is tried in Debian's chromium, and none is here: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            for what, passed in checks(browser, url):
                print(f"{'ok' if passed else 'FAILED':6} {what}", flush=True)
                failed += not passed
        finally:
            if len(sys.argv) > 2:
                for number, context in enumerate(browser.contexts):
                    context.pages[0].screenshot(path=Path(sys.argv[2]) / f"last-{number}.png")
            browser.close()
    print(f"browser: {failed} failed" if failed else "browser: all passed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
