"""A process that is killed before any chosen change of a file: every change is counted, and may be the last.

What is changed: files below one folder, by the thread that entered, through `os` and `open`. A write is two steps, so
that it is also cut in the middle. From the chosen step on nothing changes any more, also not in a `finally`: the
process is dead, and only its files count. What was written stays, as it does when the kernel ends a process; a power
cut, which forgets what was not synced, is another matter.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest


class Killed(BaseException):
    """The process ends here."""


class Cutter:
    """Counts the changes below a folder while it is entered, and ends before one of them.

    Args:
        folder: whose files count.
        skip: names of folders in it that do not.
        kill_at: the number of the change that does not happen any more, counted from 1; 0 lets all happen.

    Attributes:
        steps: what was done, in order, the one that was not to be included.
        dead: the process was killed.
    """

    def __init__(self, folder: Path, *, skip: tuple[str, ...] = (), kill_at: int = 0) -> None:
        self._folder, self._skip, self._kill_at = folder.resolve(), skip, kill_at
        self._thread = threading.get_ident()
        self._patch = pytest.MonkeyPatch()
        self.steps: list[str] = []
        self.dead = False

    def step(self, what: str, path: object) -> None:
        """One change is about to happen."""
        name = self._counted(path)
        if name is None:
            return
        if self.dead:
            raise Killed
        self.steps.append(f"{what} {name}")
        if len(self.steps) == self._kill_at:
            self.dead = True
            raise Killed

    def _counted(self, path: object) -> str | None:
        if threading.get_ident() != self._thread:
            return None
        found = Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else Path(str(path)).absolute()
        if not found.is_relative_to(self._folder):
            return None
        name = found.relative_to(self._folder)
        return None if name.parts and name.parts[0] in self._skip else str(name)

    def __enter__(self) -> Cutter:
        real_open, real_fdopen, real_io = os.open, os.fdopen, io.open

        def os_open(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
            if flags & os.O_CREAT:
                self.step("create", path)
            return real_open(path, flags, *arguments, **named)

        def fdopen(handle: int, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            file = real_fdopen(handle, mode, *arguments, **named)
            return _File(file, self, handle) if set(mode) & set("wax+") and self._counted(handle) else file

        def io_open(path: Any, mode: str = "r", *arguments: Any, **named: Any) -> Any:
            changes = bool(set(mode) & set("wax+")) and not isinstance(path, int) and self._counted(path)
            if not changes:
                return real_io(path, mode, *arguments, **named)
            self.step(f"open {mode}", path)
            return _File(real_io(path, mode, *arguments, **named), self, path)

        self._patch.setattr(os, "open", os_open)
        self._patch.setattr(os, "fdopen", fdopen)
        self._patch.setattr(io, "open", io_open)
        for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir", "fsync", "fdatasync", "truncate"):
            self._patch.setattr(os, name, self._counting(name, getattr(os, name)))
        return self

    def _counting(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **named: Any) -> Any:
            self.step(name, arguments[0] if name in ("replace", "rename") else path)
            return real(path, *arguments, **named)

        return call

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._patch.undo()


class _File:
    """A file whose writes are cut in two."""

    def __init__(self, file: Any, cutter: Cutter, path: object) -> None:
        self._file, self._cutter, self._path = file, cutter, path

    def write(self, data: bytes) -> int:
        for part, name in ((data[: len(data) // 2], "first half"), (data[len(data) // 2 :], "second half")):
            self._cutter.step(f"write {name}", self._path)
            self._file.write(part)
            self._file.flush()
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
