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
from torch.nn import functional

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
def draw_01_tokens() -> Canvas:
    """«lower» by the merges of the page: l o, lo w, e w, n ew."""
    canvas = Canvas(640, 230)
    rows = [("l o w e r", "bytes"), ("lo w e r", "256 = l + o"), ("low e r", "257 = lo + w"),
            ("", "low + e, e + r: not learned")]
    for i, (row, why) in enumerate(rows):
        y, x = 24 + 50 * i, 60.0
        canvas.text(420, y + 22, why, anchor="start", color=PALE)
        for piece in row.split():
            width = 56 * len(piece)
            canvas.box(x, y, width, 34, piece, fill="grey" if len(piece) == 1 else "green", size=16)
            x += width + 8
    for x, width, number in ((60, 168, "257"), (236, 56, "101"), (300, 56, "114")):
        canvas.box(x, 176, width, 34, number, fill="blue", size=15)
    return canvas


@drawing
def draw_02_embeddings() -> Canvas:
    """Ids choose rows."""
    canvas = Canvas(640, 230)
    ids = (3, 0, 3)
    table = [[v + d / 10 for d in range(4)] for v in range(5)]
    canvas.text(78, 36, "tokens (T,)")
    canvas.text(312, 36, "E (V, D)")
    canvas.text(532, 36, "x (T, D)")
    canvas.grid(220, 50, [[f"{v:.1f}" for v in row] for row in table], cell=(46, 30),
                fill=lambda i, j: {3: "orange", 0: "blue"}.get(i, "none"))
    for t, token in enumerate(ids):
        color = {3: "orange", 0: "blue"}[token]
        canvas.box(54, 66 + 44 * t, 46, 30, str(token), fill=color)
        canvas.arrow((104, 81 + 44 * t), (200, 65 + 30 * token))
        canvas.grid(440, 66 + 44 * t, [[f"{v:.1f}" for v in table[token]]], cell=(46, 30), fill=lambda i, j, c=color: c)
        canvas.arrow((408, 65 + 30 * token), (436, 81 + 44 * t))
    for v in range(5):
        canvas.text(210, 70 + 30 * v, str(v), size=11, color=PALE, anchor="end")
    return canvas


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


@drawing
def draw_06_cache() -> Canvas:
    """A prompt of three, then three steps of one."""
    canvas = Canvas(640, 230)
    canvas.text(255, 24, "keys, values (B, G, slots, K)")
    canvas.text(540, 24, "runs")
    for step, (start, end) in enumerate(((0, 3), (3, 4), (4, 5), (5, 6))):
        y = 38 + 46 * step
        canvas.text(56, y + 22, f"step {step}", color=PALE)
        for slot in range(8):
            new, old = start <= slot < end, slot < start
            canvas.box(100 + 40 * slot, y, 40, 32, f"k{slot}" if old or new else "",
                       fill="orange" if new else "blue" if old else "none")
        canvas.text(540, y + 22, f"{end - start} token" + "s" * (end - start > 1))
    return canvas


@drawing
def draw_07_swiglu() -> Canvas:
    """The curve, and the way through the part."""
    canvas = Canvas(640, 250)
    x0, y0, unit = 150.0, 170.0, 30.0
    canvas.line((30, y0), (275, y0))
    canvas.line((x0, 30), (x0, 225))
    xs = torch.linspace(-4, 4, 65)
    for curve, color, dashed in ((xs.relu(), PALE, True), (functional.gelu(xs), ORANGE, True),
                                 (functional.silu(xs), BLUE, False)):
        canvas.line(*((x0 + unit * x, y0 - unit * y) for x, y in zip(xs.tolist(), curve.tolist(), strict=True)),
                    color=color, width=2.2, dashed=dashed)
    for k, (name, color) in enumerate((("silu", BLUE), ("gelu", ORANGE), ("relu", PALE))):
        canvas.text(50, 60 + 20 * k, name, color=color, anchor="start")
    canvas.box(320, 108, 60, 34, "x (D)", fill="grey")
    canvas.box(420, 50, 90, 34, "gate (F)", fill="blue")
    canvas.box(420, 166, 90, 34, "up (F)", fill="orange")
    canvas.text(547, 60, "silu", color=BLUE)
    canvas.circle(547, 125, 14)
    canvas.text(547, 131, "×", size=18)
    canvas.box(575, 108, 58, 34, "down", fill="green")
    canvas.arrow((350, 108), (350, 67), (418, 67))
    canvas.arrow((350, 142), (350, 183), (418, 183))
    canvas.arrow((510, 67), (547, 67), (547, 109))
    canvas.arrow((510, 183), (547, 183), (547, 141))
    canvas.arrow((561, 125), (574, 125))
    canvas.text(604, 162, "(D)")
    return canvas


@drawing
def draw_08_block() -> Canvas:
    """The stream from left to right, with two branches."""
    canvas = Canvas(640, 220)
    canvas.line((30, 160), (610, 160), color=BLUE, width=5)
    canvas.arrow((604, 160), (622, 160))
    canvas.text(40, 190, "x (B, T, D)", anchor="start", color=BLUE)
    for k, name in enumerate(("attention", "SwiGLU")):
        x = 90 + 270 * k
        canvas.arrow((x, 160), (x, 75), (x + 18, 75))
        canvas.box(x + 20, 58, 66, 34, "norm", fill="grey")
        canvas.arrow((x + 86, 75), (x + 106, 75))
        canvas.box(x + 108, 58, 92, 34, name, fill="orange" if k == 0 else "green")
        canvas.arrow((x + 200, 75), (x + 222, 75), (x + 222, 146))
        canvas.circle(x + 222, 160, 13, fill=PAPER, edge=INK)
        canvas.text(x + 222, 166, "+", size=18)
    canvas.text(200, 40, "tokens meet", size=12, color=PALE)
    canvas.text(480, 40, "each token by itself", size=12, color=PALE)
    return canvas


@drawing
def draw_09_logits() -> Canvas:
    """The rows of the page's table, its state, and the logits."""
    canvas, unit = Canvas(640, 250), 78.0
    rows = torch.tensor([[1.0, 0.0], [0.8, 0.8], [0.0, 1.0], [-1.0, 0.2], [0.3, -1.0]])
    state = torch.tensor([0.9, 1.1])
    x0, y0 = 170.0, 130.0
    for v, (x, y) in enumerate(rows.tolist()):
        canvas.line((x0, y0), (x0 + unit * x, y0 - unit * y), color=BLUE, width=2, arrow=True)
        canvas.text(x0 + 1.2 * unit * x, y0 - 1.17 * unit * y + 5, str(v), color=BLUE)
    canvas.line((x0, y0), (x0 + unit * 0.9, y0 - unit * 1.1), color=ORANGE, width=3, arrow=True)
    canvas.text(x0 + unit * 0.9 + 28, y0 - unit * 1.1 - 8, "state", color=ORANGE)
    canvas.line((470, 30), (470, 225))
    for v, logit in enumerate((rows @ state).tolist()):
        y = 38 + 38 * v
        canvas.box(min(470, 470 + 70 * logit), y, abs(70 * logit), 26, fill="blue" if logit > 0 else "grey")
        canvas.text(360, y + 18, f"token {v}", anchor="end")
        canvas.text(628, y + 18, f"{logit:.2f}", anchor="end")
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
