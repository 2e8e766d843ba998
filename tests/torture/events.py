"""What happens inside an attacked process: every change that it makes to the disk is an event with a number.

    watch({"folder": F, "act": "count", "log": FILE})                       # say what there is, change nothing
    watch({"folder": F, "act": "kill", "at": 17, "when": "midway"})         # SIGKILL midway in the 17th, or after it
    watch({"folder": F, "act": "kill", "at": 17, "when": "dark"})           # and what was not synced is gone
    watch({"folder": F, "act": "fail", "at": 17, "errno": "ENOSPC"})        # the 17th fails, and all that follow

The functions of `os` that change names, and files opened for writing, are replaced by ones that count; the program
knows nothing of it. A write is one that reaches the system, behind Python's buffers, so what a kill here leaves of a
file is what any kill leaves. Only what lies in `folder` counts. The standard library alone is used here.
"""

import builtins
import errno
import io
import os
import signal
from collections.abc import Callable
from typing import Any

# What each kind of failure hits: a full disk lets names go and come, one that is read-only nothing.
FAILS = {"ENOSPC": {"open", "mkdir", "write", "fsync"}, "EIO": {"write", "fsync", "truncate", "replace", "rename"},
         "EROFS": {"open", "mkdir", "write", "truncate", "replace", "rename", "unlink", "rmdir"}}
NAMES = ("replace", "rename", "unlink", "remove", "mkdir", "rmdir")
NAMED = {"replace", "rename", "unlink", "remove", "mkdir", "rmdir", "open"}      # whose errors carry a file name


class Watch:
    def __init__(self, plan: dict[str, Any]):
        self.plan, self.number = plan, 0
        self.synced: dict[str, int] = {}                            # bytes on the disk, of files written to since
        self.folder = os.path.realpath(plan["folder"]) + os.sep
        self.log = os.open(plan["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if plan.get("log") else -1

    def inside(self, path: Any) -> bool:
        try:
            return (os.path.realpath(os.fsdecode(path)) + os.sep).startswith(self.folder)
        except TypeError:                                           # a file's number
            return False

    def happens(self, kind: str, path: Any, do: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Count one event, and do what is planned for it instead of, or around, `do`."""
        self.number += 1
        name = os.path.basename(os.fsdecode(path))
        line = f"{self.number} {kind} {name}\n".encode()
        act, at = self.plan["act"], self.plan.get("at")
        if self.log >= 0 and (act == "count" or self.number == at):
            os.write(self.log, line)
        if act == "fail" and self.number >= at and kind in FAILS[self.plan["errno"]] and \
                (self.number == at or self.plan.get("lasts")):
            if half:
                half()
            number = getattr(errno, self.plan["errno"])
            raise OSError(number, os.strerror(number), *([os.fsdecode(path)] if kind in NAMED else []))
        if act != "kill" or self.number != at:
            return self.done(kind, path, do)
        if self.plan["when"] == "midway" and half:
            half()
        else:
            self.done(kind, path, do)
        if self.plan["when"] == "dark":
            self.lose_what_was_not_synced()
        os.kill(os.getpid(), signal.SIGKILL)

    def done(self, kind: str, path: Any, do: Callable[[], Any]) -> Any:
        """Do it, and remember of each file how much of it a power cut would leave."""
        path = os.path.realpath(os.fsdecode(path))
        if kind == "open":
            self.synced.setdefault(path, os.path.getsize(path) if os.path.exists(path) else 0)
        result = do()
        if kind in ("fsync", "unlink"):
            self.synced.pop(path, None)
        elif kind == "write":
            self.synced.setdefault(path, 0)
        return result

    def renamed(self, source: Any, target: Any) -> None:
        """What lies under a name that is moved goes with it, and what lay under the new one is gone."""
        source, target = (os.path.realpath(os.fsdecode(path)) for path in (source, target))
        self.synced.pop(target, None)
        for path in [path for path in self.synced if f"{path}/".startswith(f"{source}/")]:
            self.synced[target + path.removeprefix(source)] = self.synced.pop(path)

    def lose_what_was_not_synced(self) -> None:
        for path, size in self.synced.items():
            if os.path.exists(path) and os.path.getsize(path) > size:
                os.truncate(path, size)


def watch(plan: dict[str, Any]) -> Watch:
    """From now on, for this process."""
    watching = Watch(plan)
    for name in NAMES:
        setattr(os, name, _counted(watching, "unlink" if name == "remove" else name, getattr(os, name)))
    fsync = os.fsync

    def counted_fsync(file: Any) -> None:
        number = file if isinstance(file, int) else file.fileno()
        path = os.readlink(f"/proc/self/fd/{number}") if os.path.exists("/proc/self/fd") else ""
        if path and not watching.inside(path):
            return fsync(file)
        return watching.happens("fsync", path, lambda: fsync(file))

    os.fsync = counted_fsync
    builtins.open = io.open = _counted_open(watching, io.open)
    return watching


def _counted(watching: Watch, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(path: Any, *rest: Any, **words: Any) -> Any:
        if words.get("dir_fd") is None and not watching.inside(path):
            return function(path, *rest, **words)
        if kind not in ("replace", "rename"):
            return watching.happens(kind, path, lambda: function(path, *rest, **words))

        def move() -> None:
            function(path, *rest, **words)
            watching.renamed(path, rest[0])
        return watching.happens(kind, rest[0], move)
    return counted


def _counted_open(watching: Watch, function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None,
                errors: str | None = None, newline: str | None = None, *rest: Any, **words: Any) -> Any:
        if not set(mode) & set("wax+") or not watching.inside(file):
            return function(file, mode, buffering, encoding, errors, newline, *rest, **words)
        plain = mode.replace("b", "").replace("t", "")
        raw = watching.happens("open", file, lambda: _CountedFile(watching, file, plain))
        if buffering == 0:
            return raw
        buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)
    return counted


class _CountedFile(io.FileIO):
    def __init__(self, watching: Watch, file: Any, mode: str):
        super().__init__(file, mode)
        self.watching = watching

    def write(self, content: Any) -> int:
        return self.watching.happens("write", self.name, lambda: io.FileIO.write(self, content),
                                     lambda: io.FileIO.write(self, memoryview(content)[: len(content) // 2]))

    def truncate(self, size: int | None = None) -> int:
        return self.watching.happens("truncate", self.name, lambda: io.FileIO.truncate(self, size))
