import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llama.runtime.interrupt import Stopped, quiet_start, quiet_until_now, signals_raise

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


def test_property_only_a_program_that_hears_ctrl_c_is_quiet_until_its_main():
    usual = signal.getsignal(signal.SIGINT)
    try:
        with quiet_start("llama.evaluate"):
            pass
        assert signal.getsignal(signal.SIGINT) is usual and not quiet_until_now()
        with quiet_start("__main__"):
            pass
        assert signal.getsignal(signal.SIGINT) is not usual and quiet_until_now()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)                # as a shell leaves it to its background jobs
        with quiet_start("__main__"):
            pass
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN and not quiet_until_now()
    finally:
        signal.signal(signal.SIGINT, usual)


@pytest.mark.parametrize(("place", "code"), [("before main", 130), ("at exit", 0)])
def test_property_ctrl_c_is_quiet_around_main(place, code):
    """Where Python still has, or again has, no `try` of ours around it."""
    ended = subprocess.run([sys.executable, "-c", f"""
import atexit, signal
from llama.runtime.interrupt import quiet_start
with quiet_start(__name__):
    from llama.runtime import cli
if {place!r} == "before main":
    signal.raise_signal(signal.SIGINT)
atexit.register(signal.raise_signal, signal.SIGINT)
cli.run(lambda: None)"""], cwd=HOME, capture_output=True, text=True, encoding="utf-8", check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", "")


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
