"""What several test files share: a tiny model with a tokenizer, trained on the spot. Nothing is downloaded."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama.checkpoint import PretrainedLlama
from llama.config import preset
from tests.torture.modes import Launcher
from tokenizer import bpe

HOME = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)                                          # tiny tensors: a second thread only gets in the way
signal.signal(signal.SIGINT, signal.default_int_handler)          # a background job starts, and hands on, deaf to it
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)                  # and one under nohup deaf to this

TEXT = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps, and the fox goes home.",
    "你好，世界！今天天气很好。小驼是一个小小的语言模型。",
    "def add(a, b):\n    return a + b\n",
    "Emoji 👩‍👩‍👧 and numbers 12345, and   spaces.",
]


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """`program(*command, cwd=…, code=…)`: a command as one types it, behind «python», in a process of its own.

    On Linux that is a fork of one that has imported torch (tests/torture/launcher.py), for torch takes a second or two.
    """
    launcher = Launcher() if sys.platform == "linux" else None
    said = tmp_path_factory.mktemp("said")

    def run(*command, cwd, code=0, **environment):
        command = [str(HOME / word) if i == 0 and str(word).endswith(".py") else str(word)
                   for i, word in enumerate(command)]
        environment = {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", "HOME": str(cwd), **environment}
        if launcher is None:
            done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, encoding="utf-8",
                                  env=os.environ | environment)
        else:
            streams = {name: str(said / name) for name in ("stdout", "stderr")}
            codes = launcher.start([{"command": command, "folder": str(cwd), "environment": environment} | streams])
            done = subprocess.CompletedProcess(command, *codes["codes"], *(
                Path(path).read_text(encoding="utf-8") for path in streams.values()))
            for path in streams.values():
                os.unlink(path)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    yield run
    if launcher:
        launcher.close()


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """ChatML's special tokens and some 400 pieces."""
    return bpe.train(TEXT * 4, 400, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))


def same_choices(ours, theirs, *, gap):
    """Along a text, a fast path chooses the token of the readable one wherever that is sure of it.

    Sure: its two best logits differ by more than `gap` of its largest. Most places must be so, or this proves nothing.
    """
    ours, theirs = ours.float().flatten(0, -2), theirs.float().flatten(0, -2)                   # (N, V)
    best = theirs.topk(2).values
    sure = best[:, 0] - best[:, 1] > gap * theirs.abs().amax(-1)
    assert sure.float().mean() > 0.5, f"sure in {sure.sum()} of {len(sure)} places"
    assert torch.equal(ours.argmax(-1)[sure], theirs.argmax(-1)[sure])


@pytest.fixture
def tiny_model(tiny_tokenizer):
    """A random Llama of two blocks with grouped queries and a tied head, and the tiny tokenizer."""
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size)).eval()
    model.tokenizer = tiny_tokenizer
    return model


@pytest.fixture
def tiny_teacher(tiny_tokenizer):
    """Another, narrower, with larger weights, so that it is sure of something; the same tokenizer."""
    torch.manual_seed(7)
    shape = preset("test", vocab_size=tiny_tokenizer.vocab_size, hidden_size=16, initializer_range=0.5)
    return PretrainedLlama(shape, tiny_tokenizer).eval()


def matrix(rows=48, columns=64, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
