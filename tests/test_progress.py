import sys

from llama.runtime import progress
from llama.runtime.progress import Progress, display_width, duration, pad_to_width


def test_worked_example_durations():
    assert [duration(seconds) for seconds in (0.4, 59.4, 75, 3600, 3720)] == [
        "0 s", "59 s", "1 min 15 s", "1 h 0 min", "1 h 2 min"]


def test_worked_example_time_left(monkeypatch):
    now = iter([0.0, 10.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    assert Progress(100, "step").left(20) == 40.0
    now = iter([0.0, 10.0])
    assert Progress(100, "step", before=10).left(20) == 80.0        # ten in ten seconds


def test_property_a_log_gets_no_live_line(capsys):
    progress = Progress(10, "step")
    progress.show(3, "loss 1.2")
    progress.clear()
    assert capsys.readouterr() == ("", "")


def test_worked_example_the_live_line(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(10, "step")
    progress.show(10, "loss 1.2")
    progress.clear()
    assert capsys.readouterr() == ("", "\r\x1b[Kstep 10/10 loss 1.2 · 0 s left\r\x1b[K")
    progress.clear()                                                # there is none: the line belongs to someone else
    assert capsys.readouterr() == ("", "")


def test_worked_example_columns_of_a_terminal():
    assert [display_width(text) for text in ("abc", "你好，", "e\u0301", "👩\u200d👧", "")] == [3, 6, 1, 4, 0]
    assert pad_to_width("你", 4) == "你  " and pad_to_width("long", 2) == "long"
