import subprocess
import sys
from pathlib import Path

import pytest

from llama.runtime import cli, run_lock

HOME = Path(__file__).resolve().parent.parent
HOLD = """
import sys
sys.path.insert(0, {home!r})
from pathlib import Path
from llama.runtime import cli, run_lock
print(cli.unique_path(Path({folder!r}), "mine", take=True), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def another_run(tmp_path):
    """A process that has chosen the name "mine" and is at work; its path, and the process."""
    script = HOLD.format(home=str(HOME), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               encoding="utf-8")
    yield Path(process.stdout.readline().strip()), process
    process.kill()
    process.communicate()


def test_property_names_are_taken_when_they_are_chosen(another_run, tmp_path):
    assert another_run[0] == tmp_path / "mine"
    ours = cli.unique_path(tmp_path, "mine", take=True)
    assert ours == tmp_path / "mine-2"
    assert cli.unique_path(tmp_path, "mine", take=True) == tmp_path / "mine-3"      # nor are two names one in a process
    for name in ("mine-2", "mine-3"):
        run_lock.release(tmp_path / name)
        assert not (tmp_path / f"{name}.training").exists()


@pytest.mark.parametrize("overwrite, resume", [(False, False), (True, False), (False, True)])
def test_refusal_of_an_output_that_another_run_writes(overwrite, resume, another_run):
    output, process = another_run
    words = f"is being written by another run .process {process.pid} on .*give another --output"
    with pytest.raises(ValueError, match=words):
        cli.check_output(output, marker="config.json", overwrite=overwrite, resume=resume)
    with pytest.raises(ValueError, match="is being written by another run"):
        run_lock.take(output)


def test_property_a_run_that_was_killed_blocks_nobody(another_run, tmp_path):
    output, process = another_run
    process.kill()
    process.wait()
    assert (tmp_path / "mine.training" / "lock").exists()           # it had no time to tidy up
    run_lock.take(output)
    run_lock.take(output)                                           # its own a second time
    run_lock.release(output)
    assert not (tmp_path / "mine.training").exists()


def test_property_runs_of_two_kinds_have_locks_of_their_own(another_run, tmp_path):
    run_lock.take(another_run[0], "job")
    assert (tmp_path / "mine.job" / "lock").exists()
    run_lock.release(another_run[0], "job")
    assert not (tmp_path / "mine.job").exists() and (tmp_path / "mine.training").exists()
