import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llama.runtime.interrupt import Stopped, quiet_start, signals_raise

HOME = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("door", ["train.py", "finetune.py", "generate.py", "-m llama.evaluate", "-m llama.predict",
                                  "-m llama.nearest", "-m llama.merge", "-m llama.quantize", "-m weights.fetch",
                                  "-m weights.convert"])
def test_property_ctrl_c_during_the_imports_is_quiet(door, tmp_path):
    """A stand-in for torch, found first, says when it is being imported and then takes its time."""
    (tmp_path / "torch.py").write_text("import time; print('importing', flush=True); time.sleep(30)", encoding="utf-8")
    command = door.split() if door.startswith("-m") else [str(HOME / door)]
    starting = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                cwd=HOME, env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}, encoding="utf-8")
    assert starting.stdout.readline() == "importing\n"
    starting.send_signal(signal.SIGINT)
    assert starting.communicate() == ("", "") and starting.returncode == 130


def test_property_only_a_program_takes_ctrl_c_and_gives_it_back():
    usual = signal.getsignal(signal.SIGINT)
    with quiet_start("llama.evaluate"):
        assert signal.getsignal(signal.SIGINT) is usual
    with quiet_start("__main__"):
        assert signal.getsignal(signal.SIGINT) is not usual
    assert signal.getsignal(signal.SIGINT) is usual


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_property_signals_raise_within_and_do_as_before_behind_and_what_was_ignored_stays_so():
    before = signal.getsignal(signal.SIGTERM)
    usual = signal.signal(signal.SIGHUP, signal.SIG_IGN)            # as nohup leaves it
    try:
        with pytest.raises(Stopped) as stopped, signals_raise():
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGTERM)
        assert stopped.value.signal == signal.SIGTERM
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == (before, signal.SIG_IGN)
    finally:
        signal.signal(signal.SIGHUP, usual)
