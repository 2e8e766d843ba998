"""What the commands that draw share: figures without a screen, and a refusal before anything is computed.

matplotlib is an extra (`pip install matplotlib`); it is imported here and where something is drawn, and nowhere else.

Try: leave `need_matplotlib` out of flags.py; tests/test_plot.py
(test_refusal_without_matplotlib_comes_before_the_training) fails: the run would be lost to its last line.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENDINGS = (".png", ".svg", ".pdf")
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei", "SimHei")


def need_matplotlib(path: str | Path, *, flag: str = "--plot") -> None:
    """Raise ValueError where no figure could be written to `path`: no matplotlib, or an ending that says no format."""
    if Path(path).suffix not in ENDINGS:
        raise ValueError(f"{flag} {path}: the ending says the format; give one of {', '.join(ENDINGS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ValueError(f"{flag} needs matplotlib, and it is not installed; pip install matplotlib, or leave {flag} "
                         "out") from None


@contextmanager
def figure_to(path: str | Path, width: float, height: float) -> Iterator[Any]:
    """A figure of so many inches, to draw on in the body and written at its end, into a folder that is made if need be.

    Chinese is drawn where this machine has a font for it; matplotlib's own has none, and draws boxes.
    """
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.figure import Figure

    there = set(font_manager.get_font_names())
    fonts = [name for name in FONTS if name in there]
    with matplotlib.rc_context({"font.family": fonts, "text.parse_math": False}):   # a piece "$" is no formula
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)


def label_log_axis(axis: Any, form: str) -> None:
    """Numbers such as 1, 2, 5, 10 beside an axis of powers; `form` as "{x:g}"."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(form)
    axis.set_minor_formatter(NullFormatter())
