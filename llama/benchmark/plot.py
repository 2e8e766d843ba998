"""A roofline: bytes read for a token against tokens a second, under what the memory's bandwidth allows.

Try: draw the roof as bandwidth times bytes; tests/test_plot.py (test_worked_example_roof) fails.
"""

import statistics
from collections.abc import Mapping
from typing import Any

from llama.runtime.figures import figure_to, label_log_axis


def roof(bandwidth: float, traffic: float) -> float:
    """Tokens a second, at most, when each reads `traffic` bytes."""
    return bandwidth / traffic


def write_plot(path: str, results: Mapping[str, Any]) -> None:
    """Draw what `python -m llama.benchmark --json` prints. The ending of `path` says in which format."""
    with figure_to(path, 8, 5.5) as figure:
        _draw(figure.add_subplot(), results)


def _draw(axes: Any, results: Mapping[str, Any]) -> None:
    engines = {name: found for name, found in results["engines"].items() if found.get("decode")}
    bandwidth = results["bandwidth"]
    traffic = [found["traffic"] / 1e6 for found in engines.values()]
    ends = [min(traffic) / 1.5, max(traffic) * 1.5]
    axes.plot(ends, [roof(bandwidth, end * 1e6) for end in ends], "k-",
              label=f"memory at {bandwidth / 1e9:.0f} GB/s")
    for name, found in engines.items():
        peer = " " in name                                          # "transformers bfloat16", and modes in one word
        x, y = found["traffic"] / 1e6, statistics.median(found["decode"])
        axes.plot(x, y, "s" if peer else "o", color="tab:gray" if peer else "tab:blue")
        axes.annotate(name, (x, y), xytext=(5, 3), textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", xlabel="MB read for a token", ylabel="tokens a second",
             title=f"{results['model']} · {results['machine']['cpu']} · {results['date']}")
    for axis in (axes.xaxis, axes.yaxis):
        label_log_axis(axis, "{x:,.0f}")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
