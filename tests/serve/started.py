"""A server of this project in a process of its own, and what the system says of it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]


@dataclass
class Started:
    url: str
    process: subprocess.Popen

    def resident(self) -> int:
        """Bytes in memory now. Linux alone tells."""
        text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) * 1024

    def cpu_seconds(self) -> float:
        """That all its threads have computed so far, whoever else had the processor meanwhile."""
        after_name = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")

    def peers(self) -> int:
        """Open files of the process, connections among them."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextlib.contextmanager
def started(*flags: str) -> Iterator[Started]:
    """`python -m llama.serve FLAGS --port 0`, ended with Ctrl-C. Raises RuntimeError if it does not come up."""
    process = subprocess.Popen([sys.executable, "-m", "llama.serve", *flags, "--port", "0"], cwd=HOME,
                               stderr=subprocess.PIPE, encoding="utf-8")
    said = []
    try:
        for line in process.stderr:
            said.append(line)
            if found := re.search(r" at (http://\S+?),", line):
                break
        else:
            raise RuntimeError(f"the server did not start: {''.join(said[-3:])}")
        threading.Thread(target=lambda: [sys.stderr.write(line) for line in process.stderr], daemon=True).start()
        yield Started(found[1], process)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
