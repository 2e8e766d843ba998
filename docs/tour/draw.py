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
from llama.quantization.rounding import to_int4_nearest
from llama.relatives.mixture_of_experts import route
from llama.sampling import SamplingConfig, probabilities
from llama.training.optimizer import learning_rate

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


@drawing
def draw_10_sampling() -> Canvas:
    """The page's four tokens, as they are and through each filter."""
    canvas = Canvas(640, 220)
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    plain = {"temperature": 1.0, "top_p": 1.0}
    for k, (name, more) in enumerate((("t = 1", {}), ("t = 0.5", {"temperature": 0.5}), ("top-k 2", {"top_k": 2}),
                                      ("top-p 0.9", {"top_p": 0.9}), ("min-p 0.2", {"min_p": 0.2}))):
        masses = probabilities(logits, SamplingConfig(**plain | more)).tolist()
        x0 = 28 + 122 * k
        for token, mass in enumerate(masses):
            height = 150 * mass
            canvas.box(x0 + 25 * token, 180 - height, 21, height, fill="blue" if k < 2 else "green")
            canvas.text(x0 + 25 * token + 10, 174 - height, f"{mass:.2f}" if mass else "0", size=10, color=PALE)
        canvas.line((x0 - 4, 180), (x0 + 100, 180))
        canvas.text(x0 + 48, 204, name)
    return canvas


@drawing
def draw_11_loss() -> Canvas:
    """Ids, tokens and targets of the page."""
    canvas = Canvas(640, 220)
    ids, learned = [5, 1, 4, 2, 0], [False, False, True, True, True]
    for row, (name, values) in enumerate((("ids", ids), ("tokens", ids[:-1]), ("targets", ids[1:]))):
        y = 30 + 62 * row
        canvas.text(120, y + 25, name, anchor="end")
        for i, value in enumerate(values):
            asked = learned[i] if row == 0 else row == 2 and learned[i + 1]
            words = str(value) if row < 2 or asked else "-100"
            canvas.box(150 + 84 * i, y, 64, 38, words, fill="orange" if asked else "grey", size=16)
    for i in range(4):
        canvas.arrow((182 + 84 * i, 132), (182 + 84 * i, 152), color=INK)
    canvas.box(520, 154, 20, 16, fill="orange")
    canvas.text(548, 168, "is learned", anchor="start", size=13)
    canvas.text(496, 112, "T = 4", anchor="start", color=PALE)
    canvas.text(320, 212, "row t has read tokens 0 … t", size=12, color=PALE)
    return canvas


@drawing
def draw_12_backward() -> Canvas:
    """Values forward, gradients back."""
    canvas = Canvas(640, 200)
    names = [("x", "dx"), ("n", "dn"), ("y", "dy"), ("loss", "1")]
    steps = ["1 / rms", "· w", "…"]
    for k, (value, gradient) in enumerate(names):
        x = 40 + 160 * k
        canvas.box(x, 40, 76, 36, value, fill="blue", size=16)
        canvas.box(x, 130, 76, 36, gradient, fill="orange", size=16)
        if k < 3:
            canvas.arrow((x + 78, 58), (x + 156, 58))
            canvas.text(x + 118, 48, steps[k], size=12)
            canvas.arrow((x + 158, 148), (x + 80, 148))
            canvas.line((x + 118, 62), (x + 118, 142), dashed=True)
            canvas.text(x + 124, 108, "kept", size=11, color=PALE, anchor="start")
    canvas.text(20, 26, "forward", anchor="start", color=BLUE)
    canvas.text(20, 188, "backward", anchor="start", color=ORANGE)
    return canvas


@drawing
def draw_13_adamw() -> Canvas:
    """The courses that a learning rate may take."""
    canvas = Canvas(640, 220)
    x0, y0, width, height = 70, 180, 520, 140
    canvas.line((x0, y0), (x0 + width + 10, y0))
    canvas.line((x0, y0), (x0, y0 - height - 10))
    for k, (schedule, color) in enumerate((("cosine", BLUE), ("linear", ORANGE), ("constant", PALE))):
        rates = [learning_rate(i / 80, peak=1.0, warmup=0.1, schedule=schedule) for i in range(81)]
        canvas.line(*((x0 + width * i / 80, y0 - height * rate) for i, rate in enumerate(rates)), color=color,
                    width=2.2, dashed=k == 2)
        canvas.text(500, 60 + 18 * k, schedule, color=color, anchor="start")
    canvas.text(58, y0 - height + 5, "lr", anchor="end")
    canvas.text(58, y0 - height / 10 + 5, "lr/10", anchor="end", size=12)
    canvas.text(x0 + 26, y0 + 22, "warm-up", size=12)
    canvas.text(x0 + width, y0 + 22, "end of the run", size=12, anchor="end")
    return canvas


@drawing
def draw_14_lora() -> Canvas:
    """The frozen matrix, and the thin detour."""
    canvas = Canvas(640, 240)
    canvas.box(30, 102, 76, 36, "x (in)")
    canvas.box(200, 24, 190, 96, "W (out, in)  frozen", fill="grey")
    canvas.box(200, 158, 150, 22, "A (R, in)", fill="orange", size=13)
    canvas.box(400, 130, 24, 90, "", fill="green")
    canvas.text(412, 234, "B (out, R)", size=13)
    canvas.arrow((106, 112), (150, 112), (150, 72), (198, 72))
    canvas.arrow((106, 128), (150, 128), (150, 169), (198, 169))
    canvas.arrow((350, 169), (398, 169))
    canvas.text(374, 160, "(R)", size=12)
    canvas.arrow((390, 72), (520, 72), (520, 101))
    canvas.arrow((424, 169), (520, 169), (520, 133))
    canvas.text(474, 160, "· α/R", size=13)
    canvas.circle(520, 117, 15, fill=PAPER, edge=INK)
    canvas.text(520, 123, "+", size=18)
    canvas.arrow((535, 117), (560, 117))
    canvas.box(562, 99, 66, 36, "y (out)")
    return canvas


@drawing
def draw_15_merge() -> Canvas:
    """The matrices of the page."""
    canvas = Canvas(640, 170)
    parts = [("W", [[1.0, 0.0], [0.0, 1.0]], "grey"), ("α/R", [[2.0]], "none"), ("B", [[0.5], [-0.5]], "green"),
             ("A", [[1.0, 2.0]], "orange"), ("W'", [[2.0, 2.0], [-1.0, -1.0]], "blue")]
    x = 24.0
    for (name, values, fill), sign in zip(parts, ("+", "·", "·", "=", ""), strict=True):
        width = 52 * len(values[0])
        canvas.grid(x, 92 - 18 * len(values), values, cell=(52, 36), fill=lambda i, j, f=fill: f, size=15)
        canvas.text(x + width / 2, 36, name, bold=True)
        canvas.text(x + width + 20, 98, sign, size=20)
        x += width + 40
    canvas.text(76, 156, "(out, in)", size=12, color=PALE)
    canvas.text(548, 156, "(out, in)", size=12, color=PALE)
    return canvas


@drawing
def draw_16_quantisation() -> Canvas:
    """A group of weights on its 16 steps, and with an outlier."""
    canvas = Canvas(640, 230)
    weights = (torch.arange(32) * 7 % 32 - 15.5) / 10 + 0.04 * torch.arange(32).cos()
    for k, outlier in enumerate((None, 6.0)):
        y, group = 70 + 105 * k, weights.clone()
        if outlier:
            group[0] = outlier
        x_of = lambda w: 60 + 520 * (w + 1.6) / 7.8                     # noqa: E731
        few = to_int4_nearest(group.view(1, 32))
        steps = few.minimum.float().item() + few.scale.float().item() * torch.arange(16)
        canvas.line((40, y), (600, y))
        for step in steps.tolist():
            canvas.line((x_of(step), y - 14), (x_of(step), y + 14), color=ORANGE)
        for w in group.tolist():
            canvas.circle(x_of(w), y - 22, 2.5, fill=BLUE, edge=BLUE)
        canvas.text(42, y - 40, "32 weights, 16 steps" if k == 0 else "one of them far away", anchor="start", size=13)
        canvas.text(600, y + 30, f"scale {few.scale.item():.2f}", anchor="end", size=13, color=ORANGE)
    return canvas


@drawing
def draw_17_speculation() -> Canvas:
    """Guess, check, keep."""
    canvas = Canvas(640, 220)
    for i, word in enumerate(("The", "cat", "sat", "on")):
        canvas.box(90 + 56 * i, 30, 52, 32, word, fill="grey")
    rows = (("guess", ("the", "mat", "and", "it"), "orange"), ("p / q", ("1.0", "0.9", "0.1", ""), "blue"),
            ("keep", ("the", "mat", ".", ""), "green"))
    for k, (name, words, fill) in enumerate(rows):
        y = 30 + 52 * k
        canvas.text(76, y + 22, name, anchor="end")
        for i, word in enumerate(words):
            if word:
                canvas.box(330 + 66 * i, y, 60, 32, word, fill="none" if k == 1 and word == "0.1" else fill)
    canvas.text(90, 104, "one pass checks all", anchor="start", size=12, color=PALE)
    canvas.text(90, 156, "up to the first that fails, and one more", anchor="start", size=12, color=PALE)
    canvas.line((462, 76), (522, 120), color=ORANGE, width=2)
    canvas.text(492, 206, "from max(0, p − q)", size=12)
    return canvas


@drawing
def draw_18_distribution() -> Canvas:
    """Two ranks of the page's example."""
    canvas = Canvas(640, 230)
    for rank, (samples, count) in enumerate(((("2", "4"), 6), (("6",), 6))):
        y = 30 + 104 * rank
        canvas.text(30, y + 34, f"rank {rank}", anchor="start", bold=True)
        for i, sample in enumerate(samples):
            canvas.box(100 + 58 * i, y + 12, 50, 34, sample, fill="grey")
        canvas.box(240, y + 6, 96, 46, "whole model", fill="blue", size=13)
        canvas.arrow((216, y + 29), (238, y + 29))
        canvas.arrow((336, y + 29), (372, y + 29))
        canvas.box(374, y + 12, 104, 34, "Σ own · 2 / 12", fill="orange", size=13)
        canvas.arrow((478, y + 29), (530, y + 29), (530, 98 if rank == 0 else 132))
        canvas.text(288, y + 72 if rank else y - 4, f"{count} targets", size=12, color=PALE)
    canvas.line((288, 84), (288, 138), dashed=True)
    canvas.text(296, 116, "6 + 6 = 12 targets", size=12, anchor="start")
    canvas.circle(530, 115, 16, fill=PAPER, edge=INK)
    canvas.text(530, 120, "mean", size=10)
    canvas.arrow((546, 115), (572, 115))
    canvas.text(604, 120, "one step", size=13)
    return canvas


@drawing
def draw_19_mixture_of_experts() -> Canvas:
    """The page's scores, what is taken of them, and which experts compute."""
    canvas, cell = Canvas(640, 264), 40
    logits = torch.tensor([[2.0, -2.0, 1.0, -1.0], [-1.0, 1.0, 2.0, -2.0], [2.0, -2.0, 0.5, -0.5]])
    scores, (weights, chosen) = logits.softmax(-1), route(logits, 2)
    taken = torch.zeros_like(scores).scatter(-1, chosen, weights)
    canvas.text(130, 34, "softmax(x Wᵍ)   (N, E)")
    canvas.grid(50, 48, scores.tolist(), cell=(cell, 30), fill=lambda i, j: heat(scores[i, j].item()))
    canvas.text(348, 34, "the 2 largest, Σ = 1")
    canvas.grid(268, 48, [[value or "" for value in row] for row in taken.tolist()], cell=(cell, 30),
                fill=lambda i, j: heat(taken[i, j].item()))
    canvas.arrow((216, 93), (260, 93))
    for t, (row, experts) in enumerate(zip(weights.tolist(), chosen.tolist(), strict=True)):
        canvas.text(38, 68 + 30 * t, f"t {t}", size=12, color=PALE)
        words = " + ".join(f"{weight:.2f} e{expert}" for weight, expert in zip(row, experts, strict=True))
        canvas.text(446, 68 + 30 * t, f"y{t} = {words}", anchor="start", size=13)
    for e, count in enumerate(torch.bincount(chosen.flatten(), minlength=4).tolist()):
        x, works = 236 + 72 * e, count > 0
        canvas.line((268 + cell * (e + 0.5), 138), (x + 31, 184), color=INK if works else PALE, arrow=works,
                    dashed=not works)
        canvas.box(x, 186, 62, 34, f"e{e}", fill="green" if works else "none", color=INK if works else PALE)
        canvas.text(x + 31, 242, f"{count} token" + "s" * (count != 1), size=12, color=INK if works else PALE)
    canvas.text(50, 200, "experts, each an MLP:", size=13, anchor="start")
    canvas.text(50, 218, "only the chosen compute", size=13, anchor="start", color=PALE)
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
