"""Calls of tools in Qwen's form: the chat template writes the tools into the prompt, and the model calls one by writing

    <tool_call>
    {"name": "get_weather", "arguments": {"city": "北京"}}
    </tool_call>

Source: Qwen's chat template.

Try: let `ToolText.push` show the text at once; tests/test_serve_openai_form.py
(test_worked_example_a_call_is_no_part_of_the_text) fails.
"""

import json
import re
import secrets
from collections.abc import Collection
from typing import Any

from llama.stop_strings import StopStrings

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class ToolText:
    """A text while it grows, apart from the calls of tools that it holds.

    Small models leave the marks out: a text that is the JSON of a call, of one of the `names`, and nothing else, is a
    call, too.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = names
        self._before = StopStrings([OPEN])
        self._calls = ""
        self._bare: str | None = ""                                 # the text, as long as it may be such JSON

    def push(self, text: str) -> str:
        """What of it may be shown: nothing that is a call, or could become one."""
        if self._bare is not None:
            self._bare += text
            if self._bare.lstrip()[:1] in ("", "{"):
                return ""
            text, self._bare = self._bare, None
        if self._before.found:
            self._calls += text
            return ""
        whole = self._before.held + text
        shown = self._before.push(text)
        if self._before.found:
            self._calls = whole[len(shown):]
        return shown

    def end(self) -> tuple[str, list[dict[str, Any]]]:
        """The rest of the text, and the calls. What was begun as a call and is none is text."""
        if self._bare is not None:
            call = _call(self._bare)
            return ("", [call]) if call and call["function"]["name"] in self.names else (self._bare, [])
        rest, calls = self._before.flush(), []
        for block in re.findall(rf"{OPEN}(.*?)(?:{CLOSE}|$)", self._calls, re.DOTALL):
            call = _call(block)
            if call is None:
                return rest + self._calls, []
            calls.append(call)
        return rest, calls


def _call(block: str) -> dict[str, Any] | None:
    try:
        call = json.loads(block)
        name, arguments = call["name"], call.get("arguments", {})
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    return {"id": f"call_{secrets.token_hex(12)}", "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}}
