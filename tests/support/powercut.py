"""What a power cut can leave of a process's files: its system calls recorded by strace, and the states of the disk
that POSIX allows after each of them.

Rules of the disk
- What was written counts as kept only from the fsync or fdatasync of its file on, what was named, renamed or unlinked
  from the fsync of its folder on: a file that was synced can be lost with its name.
- Before that all, nothing or any part of it may be there: names up to some point in their order, data in any order and
  torn at sectors of 512 bytes, a file's new size without its data (zeros).
- A rename is whole or not at all.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECTOR_BYTES = 512
CALLS = (
    "openat,open,creat,close,dup,dup2,dup3,fcntl,lseek,write,writev,pwrite64,pwritev,fsync,fdatasync,sync_file_range,"
    "ftruncate,truncate,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,symlink,symlinkat"
)
VARIANTS = ("nothing", "everything", "names", "data", "torn 1", "torn 2", "torn 3")
_LINE = re.compile(r"(\d+) +(\w+)\((.*)\) += (-?\d+)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')


@dataclass(frozen=True)
class Op:
    """One change: of data (`write`, `truncate`), of names (`create`, `mkdir`, `rename`, `unlink`) or a `sync`.

    `said` is no change, but a line that the process printed: what it believed then.
    """

    kind: str
    inode: int = -1
    path: str = ""
    target: str = ""
    offset: int = 0
    data: bytes = b""
    said: Any = None


def record(command: list[str], root: Path, trace: Path) -> list[Op]:
    """Run a command under strace; its changes below a folder and the JSON lines that it printed, in order."""
    arguments = ["-f", "-qq", "-xx", "-s", "2000000", "-e", f"trace={CALLS}", "-o", str(trace)]
    subprocess.run(["strace", *arguments, *command], check=True, timeout=120, stdout=subprocess.DEVNULL)
    return list(_Reader(root).read(trace))


class _Reader:
    def __init__(self, root: Path) -> None:
        self._root = f"{root}/"
        self._files: dict[int, tuple[int, bool]] = {}  # descriptor: inode, append
        self._folders: dict[int, str] = {}
        self._places: dict[int, int] = {}
        self._inodes: dict[str, int] = {}
        self._sizes: dict[int, int] = {}
        self._begun: dict[str, str] = {}

    def read(self, trace: Path) -> Iterator[Op]:
        with trace.open() as lines:
            for line in lines:
                yield from self._line(line.rstrip("\n"))

    def _line(self, line: str) -> Iterator[Op]:
        if line.endswith("<unfinished ...>"):
            pid = line.split(" ", 1)[0]
            self._begun[pid] = line.removesuffix("<unfinished ...>").rstrip()
            return
        if resumed := _RESUMED.match(line):
            line = self._begun.pop(resumed[1]) + resumed[3]
        found = _LINE.match(line)
        if found is None or int(found[4]) < 0:
            return
        call, arguments, result = found[2], found[3], int(found[4])
        texts = [bytes.fromhex(text.replace("\\x", "")) for text in _STRING.findall(arguments)]
        handler = getattr(self, f"_{call}", None)
        if handler is None:
            raise AssertionError(f"a call that is not modelled: {line[:200]}")
        yield from handler(_STRING.sub('""', arguments).split(", "), texts, result)

    def _below(self, path: bytes) -> str:
        text = os.fsdecode(path)
        return text.removeprefix(self._root) if text.startswith(self._root) else ""

    def _openat(self, values: list[str], texts: list[bytes], result: int) -> Iterator[Op]:
        path, flags = self._below(texts[0]), values[2]
        self._files.pop(result, None)
        self._folders.pop(result, None)
        if texts[0] == os.fsencode(self._root.rstrip("/")):
            self._folders[result] = ""
            return
        if not path:
            return
        if "O_DIRECTORY" in flags:
            self._folders[result] = path
            return
        if path not in self._inodes:
            if "O_CREAT" not in flags:
                return  # something that is only looked at, or a folder
            self._inodes[path] = len(self._sizes)
            self._sizes[self._inodes[path]] = 0
            yield Op("create", self._inodes[path], path)
        inode = self._inodes[path]
        self._files[result], self._places[result] = (inode, "O_APPEND" in flags), 0
        if "O_TRUNC" in flags and self._sizes[inode]:
            self._sizes[inode] = 0
            yield Op("truncate", inode, offset=0)

    def _close(self, values: list[str], texts: list[bytes], result: int) -> Iterator[Op]:
        self._files.pop(int(values[0]), None)
        self._folders.pop(int(values[0]), None)
        yield from ()

    def _fcntl(self, values: list[str], texts: list[bytes], result: int) -> Iterator[Op]:
        assert not values[1].startswith("F_DUPFD") or int(values[0]) not in self._files
        yield from ()

    def _lseek(self, values: list[str], texts: list[bytes], result: int) -> Iterator[Op]:
        self._places[int(values[0])] = result
        yield from ()

    def _written(self, handle: int, place: int | None, data: bytes) -> Iterator[Op]:
        if handle == 1:
            for line in data.splitlines():
                yield Op("said", said=json.loads(line))
        if handle not in self._files:
            return
        inode, appends = self._files[handle]
        offset = place if place is not None else self._sizes[inode] if appends else self._places[handle]
        if place is None:
            self._places[handle] = offset + len(data)
        self._sizes[inode] = max(self._sizes[inode], offset + len(data))
        yield Op("write", inode, offset=offset, data=data)

    def _write(self, values: list[str], texts: list[bytes], result: int) -> Iterator[Op]:
        yield from self._written(int(values[0]), None, texts[0][:result])

    def _pwrite64(self, values: list[str], texts: list[bytes], result: int) -> Iterator[Op]:
        yield from self._written(int(values[0]), int(values[3]), texts[0][:result])

    def _ftruncate(self, values: list[str], texts: list[bytes], result: int) -> Iterator[Op]:
        if int(values[0]) in self._files:
            inode = self._files[int(values[0])][0]
            self._sizes[inode] = int(values[1])
            yield Op("truncate", inode, offset=int(values[1]))

    def _fsync(self, values: list[str], texts: list[bytes], result: int) -> Iterator[Op]:
        handle = int(values[0])
        if handle in self._files:
            yield Op("sync", self._files[handle][0])
        if handle in self._folders:
            yield Op("sync folder", path=self._folders[handle])

    _fdatasync = _fsync

    def _rename(self, values: list[str], texts: list[bytes], result: int) -> Iterator[Op]:
        source, target = map(self._below, texts)
        if source and target:
            self._inodes[target] = self._inodes.pop(source)
            yield Op("rename", self._inodes[target], source, target)

    _renameat = _renameat2 = _rename

    def _unlink(self, values: list[str], texts: list[bytes], result: int) -> Iterator[Op]:
        path = self._below(texts[0])
        if path:
            self._inodes.pop(path, None)
            yield Op("unlink", path=path)

    _unlinkat = _unlink

    def _mkdir(self, values: list[str], texts: list[bytes], result: int) -> Iterator[Op]:
        path = self._below(texts[0])
        if path:
            yield Op("mkdir", path=path)

    _mkdirat = _mkdir


@dataclass
class _Names:
    """What a folder's names are for sure, and what has happened to them since."""

    kept: dict[str, int] = field(default_factory=dict)  # path: inode, -1 for a folder
    pending: list[Op] = field(default_factory=list)


class Disk:
    """What is on the disk for sure after the first changes, and what may be.

    Args:
        ops: changes, in order.
        syncs: False forgets every fsync: the control, which must lose something.
    """

    def __init__(self, ops: list[Op], *, syncs: bool = True) -> None:
        self._kept: dict[int, bytes] = {}
        self._pending: dict[int, list[Op]] = {}
        self._names: dict[str, _Names] = {}
        for op in ops:
            if op.kind in ("write", "truncate"):
                self._pending.setdefault(op.inode, []).append(op)
            elif op.kind in ("create", "mkdir", "rename", "unlink"):
                parent = os.path.dirname(op.target or op.path)  # noqa: PTH120 - a text, no path of this machine
                self._names.setdefault(parent, _Names()).pending.append(op)
            elif op.kind == "sync" and syncs:
                self._kept[op.inode] = self._data(op.inode, self._pending.pop(op.inode, []))
            elif op.kind == "sync folder" and syncs:
                names = self._names.setdefault(op.path, _Names())
                names.kept, names.pending = self._named(names, len(names.pending)), []

    def _data(self, inode: int, pending: list[Op]) -> bytes:
        data = bytearray(self._kept.get(inode, b""))
        for op in pending:
            _apply(data, op)
        return bytes(data)

    def _torn(self, inode: int, chance: random.Random) -> bytes:
        """Any sectors of what is pending, in any order; the size may have grown without them."""
        pending = self._pending.get(inode, [])
        data = bytearray(self._kept.get(inode, b""))
        for op in pending:
            if op.kind == "truncate":
                if chance.random() < 0.5:
                    _apply(data, op)
                continue
            first = op.offset - op.offset % SECTOR_BYTES
            for start in range(first, op.offset + len(op.data), SECTOR_BYTES):
                low, high = max(start, op.offset), min(start + SECTOR_BYTES, op.offset + len(op.data))
                if chance.random() < 0.5:
                    _apply(data, Op("write", offset=low, data=op.data[low - op.offset : high - op.offset]))
        whole = len(self._data(inode, pending))
        if len(data) < whole and chance.random() < 0.5:
            data.extend(bytes(whole - len(data)))
        return bytes(data)

    def _named(self, names: _Names, count: int) -> dict[str, int]:
        found = dict(names.kept)
        for op in names.pending[:count]:
            if op.kind == "unlink":
                found.pop(op.path, None)
            elif op.kind == "rename":
                found.pop(op.path, None)
                found[op.target] = op.inode
            else:
                found[op.path] = op.inode if op.kind == "create" else -1
        return found

    def files(self, variant: str, seed: int) -> dict[str, bytes | None]:
        """One state that the disk may be in: the content by path, None for a folder."""
        chance = random.Random(f"{variant} {seed}")
        found: dict[str, bytes | None] = {}
        for folder in sorted(self._names):
            names = self._names[folder]
            count = {"nothing": 0, "data": 0}.get(variant, len(names.pending))
            if variant.startswith("torn"):
                count = chance.randint(0, len(names.pending))
            for path, inode in self._named(names, count).items():
                found[path] = None if inode < 0 else self._content(inode, variant, chance)
        # What lies in a folder that is not there is lost with it.
        return {path: data for path, data in found.items() if all(parent in found for parent in _parents(path))}

    def _content(self, inode: int, variant: str, chance: random.Random) -> bytes:
        if variant in ("nothing", "names"):
            return self._kept.get(inode, b"")
        if variant.startswith("torn"):
            return self._torn(inode, chance)
        return self._data(inode, self._pending.get(inode, []))


def _parents(path: str) -> Iterator[str]:
    while path := os.path.dirname(path):  # noqa: PTH120 - a text, no path of this machine
        yield path


def _apply(data: bytearray, op: Op) -> None:
    if op.kind == "truncate":
        del data[op.offset :]
        data.extend(bytes(op.offset - len(data)))
        return
    data.extend(bytes(max(0, op.offset - len(data))))
    data[op.offset : op.offset + len(op.data)] = op.data


def lay_out(files: dict[str, bytes | None], folder: Path) -> Path:
    """Make a state real, in a folder of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in sorted(files):
        data = files[path]
        if data is None:
            (folder / path).mkdir(exist_ok=True)
        else:
            (folder / path).write_bytes(data)
    return folder


def said_before(ops: list[Op], cut: int) -> list[Any]:
    """What the process had printed before a change."""
    return [op.said for op in ops[:cut] if op.kind == "said"]


def victim(name: str, folder: Path) -> list[str]:
    """The command of a scenario in tests/support/powered.py."""
    return [sys.executable, str(Path(__file__).parent / "powered.py"), name, str(folder)]
