"""Text that grows until a stop string comes, wherever the borders between tokens fall.

Try: show the held text at once; tests/test_generation.py fails where a stop string comes in two pieces.
"""

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string, wherever the borders between tokens fall.

    The end of the text is held back while it could be the beginning of a stop string: once shown, it cannot be taken
    back. «First» is the one that is complete first, so the result does not depend on how the text was cut to pieces.
    """

    def __init__(self, stops: Sequence[str]):
        self.stops = tuple(stops)
        self.held = ""
        self.found = False

    def push(self, text: str) -> str:
        text = self.held + text
        places = [(start + len(stop), start) for stop in self.stops if (start := text.find(stop)) >= 0]
        if places:
            self.found, self.held = True, ""
            return text[: min(places)[1]]
        beginnings = (n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        shown = len(text) - max(beginnings, default=0)
        self.held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        text, self.held = self.held, ""
        return text
