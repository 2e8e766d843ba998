"""The pictures of the tour: SVG, written by hand, with numbers that our code computes.

    python -m docs.tour.draw           every picture anew, into docs/tour/pictures/

A picture brings its own paper, so that it reads on a dark page as on a light one; what is written in it are the names
and shapes of the code, the same in every language.

Try: give `heat` another colour; tests/test_tour.py (test_two_ways_pictures_equal_what_is_drawn) fails until the
pictures are drawn anew.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import torch
from torch import Tensor

from llama.config import preset
from llama.model import RMSNorm, rotary_frequencies

PICTURES = Path(__file__).with_name("pictures")
PAPER, INK, PALE, BLUE, ORANGE, GREEN = "#fcfbf7", "#222222", "#8a8a8a", "#2f6db3", "#d2751f", "#37855a"
FILLS = {"blue": "#d9e7f5", "orange": "#fbe3cb", "green": "#d8eee0", "grey": "#ecebe6", "none": "none"}

Drawing = Callable[[], "Canvas"]
DRAWINGS: dict[str, Drawing] = {}


def drawing(function: Drawing) -> Drawing:
    """Register a picture under the name of its page: `draw_03_rms_norm` is pictures/03-rms-norm.svg."""
    DRAWINGS[function.__name__.removeprefix("draw_").replace("_", "-")] = function
    return function


class Canvas:
    """Shapes that add up to an SVG; y grows downwards, text stands on its y."""

    def __init__(self, width: int, height: int):
        self.width, self.height = width, height
        self.shapes: list[str] = []

    def text(self, x: float, y: float, words: str, *, size: int = 14, color: str = INK, anchor: str = "middle",
             bold: bool = False) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self.shapes.append(f'<text x="{x:.5g}" y="{y:.5g}" font-size="{size}" fill="{color}" text-anchor="{anchor}"'
                           f"{weight}>{escape(words)}</text>")

    def box(self, x: float, y: float, width: float, height: float, words: str = "", *, fill: str = "grey",
            size: int = 14, color: str = INK, edge: str = PALE) -> None:
        self.shapes.append(f'<rect x="{x:.5g}" y="{y:.5g}" width="{width:.5g}" height="{height:.5g}" rx="3" '
                           f'fill="{FILLS.get(fill, fill)}" stroke="{edge}"/>')
        if words:
            self.text(x + width / 2, y + height / 2 + size * 0.36, words, size=size, color=color)

    def line(self, *points: tuple[float, float], color: str = PALE, width: float = 1.5, arrow: bool = False,
             dashed: bool = False) -> None:
        path = " ".join(f"{x:.4g},{y:.4g}" for x, y in points)
        more = ' marker-end="url(#tip)"' * arrow + ' stroke-dasharray="4 3"' * dashed
        self.shapes.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"{more}/>')

    def arrow(self, *points: tuple[float, float], color: str = INK) -> None:
        self.line(*points, color=color, arrow=True)

    def circle(self, x: float, y: float, r: float, *, fill: str = "none", edge: str = PALE) -> None:
        self.shapes.append(f'<circle cx="{x:.5g}" cy="{y:.5g}" r="{r:.5g}" fill="{FILLS.get(fill, fill)}" '
                           f'stroke="{edge}"/>')

    def grid(self, x: float, y: float, values: Sequence[Sequence[object]], *, cell: tuple[float, float] = (44, 28),
             fill: Callable[[int, int], str] = lambda i, j: "none", size: int = 13) -> None:
        """A matrix, a row below the other; "" leaves a cell empty."""
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                words = f"{value:.2f}" if isinstance(value, float) else str(value)
                self.box(x + j * cell[0], y + i * cell[1], *cell, words, fill=fill(i, j), size=size)

    def svg(self) -> str:
        head = (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" font-family="Helvetica, Arial, DejaVu Sans, sans-serif">')
        tip = ('<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerUnits="userSpaceOnUse" '
               f'markerWidth="9" markerHeight="9" orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{INK}"/></marker>'
               "</defs>")
        paper = f'<rect width="{self.width}" height="{self.height}" rx="8" fill="{PAPER}" stroke="#d8d6cd"/>'
        return "\n".join([head, tip, paper, *self.shapes, "</svg>\n"])


def heat(share: float) -> str:
    """From paper to blue as a share grows from 0 to 1."""
    low, high = (252, 251, 247), (120, 170, 220)
    share = min(max(share, 0.0), 1.0)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))


# ---- the steps -------------------------------------------------------------------------------------------------------


@drawing
def draw_03_rms_norm() -> Canvas:
    """Vectors of two features, before and behind the norm, and with a weight."""
    canvas, unit = Canvas(640, 250), 34.0
    vectors = torch.tensor([[2.6, 1.0], [0.5, 0.8], [-0.3, 0.25], [-1.5, -0.6], [0.9, -2.4]])
    norm = RMSNorm(2, eps=1e-5)
    stages = [("x", vectors), ("x / rms(x)", norm(vectors)), ("weight · x / rms(x)", None)]
    norm.weight.data = torch.tensor([1.6, 0.7])
    stages[2] = (stages[2][0], norm(vectors))
    for k, (title, points) in enumerate(stages):
        x0, y0 = 110 + 210 * k, 125
        canvas.line((x0 - 95, y0), (x0 + 95, y0))
        canvas.line((x0, y0 - 92), (x0, y0 + 92))
        if k:
            gain = (1.0, 1.0) if k == 1 else (1.6, 0.7)
            around = [2 * math.pi * i / 48 for i in range(49)]
            canvas.line(*((x0 + unit * 2**0.5 * gain[0] * math.cos(a), y0 - unit * 2**0.5 * gain[1] * math.sin(a))
                          for a in around), color=GREEN, dashed=True)
        for px, py in points.tolist():
            canvas.line((x0, y0), (x0 + unit * px, y0 - unit * py), color=BLUE, arrow=True, width=2)
        canvas.text(x0, 240, title)
        if k:
            canvas.arrow((x0 - 112, 20), (x0 - 92, 20))
    canvas.text(320, 22, "√D", color=GREEN)
    return canvas


@drawing
def draw_04_rotary() -> Canvas:
    """K = 4: two pairs as clocks, at positions 0 … 5."""
    canvas = Canvas(640, 250)
    config = preset("test", hidden_size=16, num_attention_heads=4, rope_theta=100.0)
    for row, turn in enumerate(rotary_frequencies(config).tolist()):
        y = 78 + 112 * row
        canvas.text(62, y - 6, f"({row}, {row + 2})", bold=True)
        canvas.text(62, y + 14, f"{turn:.1f} rad / position", size=11, color=PALE)
        for position in range(6):
            x = 165 + 84 * position
            canvas.circle(x, y, 36, fill="blue" if row == 0 else "orange")
            canvas.line((x, y), (x + 34, y), dashed=True)
            angle = position * turn
            canvas.line((x, y), (x + 34 * math.cos(angle), y - 34 * math.sin(angle)), color=INK, width=2.2, arrow=True)
            if row == 0:
                canvas.text(x, 28, f"t = {position}")
    return canvas


@drawing
def draw_05_attention() -> Canvas:
    """From scores to weights to a mixture, T = S = 4."""
    canvas = Canvas(640, 230)
    scores = torch.tensor([[2.0, 1.0, 0.0, 0.5], [0.5, 1.5, 1.0, 0.0], [1.0, 0.2, 2.0, 1.0], [0.3, 1.0, 0.6, 1.2]])
    hidden = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), -math.inf)
    weights = hidden.softmax(-1)
    _matrix(canvas, 60, 60, scores, "q kᵀ / √K", "(T, S)")
    canvas.grid(264, 60, [["−∞" if v == -math.inf else v for v in row] for row in hidden.tolist()], cell=(40, 30),
                fill=lambda i, j: "none" if j <= i else "orange")
    canvas.text(344, 44, "+ causal mask")
    _matrix(canvas, 468, 60, weights, "softmax", "Σ = 1", shade=True)
    canvas.arrow((226, 120), (258, 120))
    canvas.arrow((430, 120), (462, 120))
    for i in range(4):
        canvas.text(46, 80 + 30 * i, f"t {i}", size=12, color=PALE)
        for x in (60, 264, 468):
            canvas.text(x + 20 + 40 * i, 198, f"s {i}", size=12, color=PALE)
    canvas.text(320, 220, "row t: how much query t takes of each v; nothing of those behind it", size=12, color=PALE)
    return canvas


def _matrix(canvas: Canvas, x: float, y: float, values: Tensor, title: str, note: str, *, shade: bool = False) -> None:
    fill = (lambda i, j: heat(values[i, j].item())) if shade else (lambda i, j: "none")
    canvas.grid(x, y, values.tolist(), cell=(40, 30), fill=fill)
    canvas.text(x + 20 * values.shape[1], y - 30 + 14, f"{title}   {note}")


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        (PICTURES / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
