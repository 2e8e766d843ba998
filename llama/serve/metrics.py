"""Prometheus' text format: what a server has done, and is doing.

Source: the Prometheus exposition format, version 0.0.4.

Try: let buckets of a histogram count their own range alone; tests/test_serve.py
(test_worked_example_histograms_add_up_from_bucket_to_bucket) fails.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Histogram:
    """How many values were at most so large."""

    def __init__(self, name: str, about: str, bounds: Iterable[float] = SECONDS):
        self.name, self.about = name, about
        self.counts = dict.fromkeys([*bounds, float("inf")], 0)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.sum += value
        for bound in self.counts:
            self.counts[bound] += value <= bound

    def lines(self) -> Iterator[str]:
        yield from _head(self.name, "histogram", self.about)
        for bound, count in self.counts.items():
            yield f'{self.name}_bucket{{le="{"+Inf" if bound == float("inf") else f"{bound:g}"}"}} {count}'
        yield f"{self.name}_sum {self.sum:.6f}"
        yield f"{self.name}_count {self.counts[float('inf')]}"


class Metrics:
    """Counted by the server's front; the scheduler counts tokens itself."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()         # (path, status)
        self.first_token = Histogram("llama_first_token_seconds", "From a request to its first piece of text.")
        self.whole = Histogram("llama_request_seconds", "From a request to the end of its answer.")
        self._lock = threading.Lock()

    def answered(self, path: str, status: int) -> None:
        with self._lock:
            self.requests[path, status] += 1

    def text(self, numbers: Iterable[tuple[str, str, str, float]]) -> str:
        """All of it. `numbers`: name, kind (counter, gauge), what it is, value."""
        lines = list(_head("llama_requests_total", "counter", "Requests by path and status."))
        lines += [f'llama_requests_total{{path="{path}",status="{status}"}} {count}'
                  for (path, status), count in sorted(self.requests.items())]
        for name, kind, about, value in numbers:
            lines += [*_head(name, kind, about), f"{name} {value:g}" if value % 1 else f"{name} {int(value)}"]
        return "\n".join([*lines, *self.first_token.lines(), *self.whole.lines(), ""])


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"
