"""One file with all that a server knows, made while it runs, and restored into either database.

A tar of `tables/<table>/<number>.msgpack.gz` (rows of one snapshot), `blobs/<sha256>` and, last, `manifest.json` with
the schema's steps and the SHA-256 of every table's part. A blob's name is its hash.

Rules
- The tables are of one moment. Blobs that retention removes while the backup is made are named as missing.
- Nothing is restored before all of the file was read and found whole, and nothing into a database that has tables.
- A restored server is another one: it draws a new instance, so that devices are sent their full desired state, and a
  bucket that the former one owned is its own from then on.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import msgspec
from tinylcm.files import fsync_folder

from .db import Connection, Database
from .errors import TinySphereError
from .models import TABLES
from .store import Store

FORMAT: Final = 1
ROWS_A_PART: Final = 2000
PART_BYTES_MAX: Final = 256 << 20
MANIFEST_BYTES_MAX: Final = 64 << 20
BLOB_BYTES_MAX: Final = 1 << 30
_PIECE: Final = 1 << 20
_PART: Final = re.compile(r"tables/([a-z_]{1,40})/(\d{6,9})\.msgpack\.gz")
_BLOB: Final = re.compile(r"blobs/([0-9a-f]{64})")
_NAMES: Final = tuple(table._meta.table_name for table in TABLES)
_LEFT_OUT: Final = frozenset({"session", "job", "feed"})  # of the moment: sign-ins, who does what, the news
Progress = Callable[[str], object]


class BackupError(TinySphereError):
    """The file is no backup, is damaged, or is of a newer program."""


class Part(msgspec.Struct, frozen=True):
    """Rows of a table."""

    name: str
    sha256: str
    rows: int


class Manifest(msgspec.Struct, frozen=True):
    """What a backup holds; `missing` are blobs that were named and not there."""

    format: int
    instance: str
    steps: list[str]
    columns: dict[str, list[str]]
    parts: list[Part]
    blobs: int
    missing: list[str]
    made_at: float

    @property
    def rows(self) -> int:
        """Rows of all tables."""
        return sum(part.rows for part in self.parts)


@dataclass(slots=True)
class _Writer:
    """The tar that is being written."""

    tar: tarfile.TarFile
    parts: list[Part]

    def add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o600
        self.tar.addfile(info, io.BytesIO(data))

    def add_rows(self, table: str, number: int, found: list[tuple[Any, ...]]) -> None:
        data = gzip.compress(msgspec.msgpack.encode(found), compresslevel=3, mtime=0)
        name = f"tables/{table}/{number:06d}.msgpack.gz"
        self.add(name, data)
        self.parts.append(Part(name, hashlib.sha256(data).hexdigest(), len(found)))


def backup(
    db: Database, store: Store | None, path: Path, steps: list[str], now_s: float, progress: Progress
) -> Manifest:
    """Write a backup; `path` has the whole of it or nothing.

    Args:
        store: of the blobs; None leaves them out.
        steps: of the schema that the database has taken.
        progress: called with what is being done.

    Raises:
        OSError: the file cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    handle = os.open(unfinished, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                writer = _Writer(tar, [])
                columns, names = db.read(lambda connection: _dump(connection, writer, progress))
                count, missing = _copy_blobs(store, writer, names, progress) if store is not None else (0, [])
                manifest = Manifest(
                    FORMAT, db.instance, steps, columns, writer.parts, count, missing, now_s
                )  # fmt: skip
                writer.add("manifest.json", msgspec.json.encode(manifest))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
        fsync_folder(path.parent)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    return manifest


def _dump(connection: Connection, writer: _Writer, progress: Progress) -> tuple[dict[str, list[str]], list[str]]:
    """Write every table; returns the columns of each, and the blobs that are named."""
    columns: dict[str, list[str]] = {}
    for table in _NAMES:
        if table in _LEFT_OUT:
            continue
        progress(f"table {table}")
        names, found = connection.stream(f"SELECT * FROM {table}")  # noqa: S608 (constants)
        columns[table] = names
        for number, some in enumerate(_pieces(found)):
            writer.add_rows(table, number, some)
    sql = "SELECT sha256 FROM model_version UNION SELECT sha256 FROM blob ORDER BY sha256"
    return columns, [str(item[0]) for item in connection.stream(sql)[1]]


def _pieces(found: Iterator[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    some: list[tuple[Any, ...]] = []
    for item in found:
        some.append(tuple(bytes(value) if isinstance(value, memoryview) else value for value in item))
        if len(some) == ROWS_A_PART:
            yield some
            some = []
    if some:
        yield some


def _copy_blobs(store: Store, writer: _Writer, names: list[str], progress: Progress) -> tuple[int, list[str]]:
    missing, count = [], 0
    for number, sha256 in enumerate(names):
        progress(f"blob {number + 1} of {len(names)}")
        size = store.size(sha256)
        if size is None:
            missing.append(sha256)
            continue
        info = tarfile.TarInfo(f"blobs/{sha256}")
        info.size, info.mode = size, 0o600
        writer.tar.addfile(info, _Pieces(store.read(sha256)))
        count += 1
    return count, missing


class _Pieces(io.RawIOBase):
    """An iterator of bytes as a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, fewer only at the end."""
        while len(self._left) < size or size < 0:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._left += piece
        if size < 0:
            size = len(self._left)
        taken, self._left = self._left[:size], self._left[size:]
        return taken


# Restore ---------------------------------------------------------------------------------------------------


def inspect(path: Path, progress: Progress) -> Manifest:
    """Read all of a backup and see that it is whole.

    Raises:
        BackupError: it is not.
    """
    try:
        return _inspect(path, progress)
    except tarfile.TarError as error:
        raise BackupError(f"{path} is no backup of TinySphere, or is damaged: {error}") from error


def _inspect(path: Path, progress: Progress) -> Manifest:
    hashes: dict[str, str] = {}
    blobs, manifest = 0, None
    for member, file in _members(path):
        if manifest is not None:
            raise BackupError(f"{path} has something behind its manifest")
        progress(f"checking {member.name[:60]}")
        if member.name == "manifest.json":
            manifest = _manifest(path, file, member.size)
        elif _PART.fullmatch(member.name):
            hashes[member.name] = _digest(file)
        elif (named := _BLOB.fullmatch(member.name)) is not None and member.size <= BLOB_BYTES_MAX:
            blobs += 1
            if _digest(file) != named[1]:
                raise BackupError(f"{path} is damaged: {member.name} has other bytes than its name says")
        else:
            raise BackupError(f"{path} is no backup of TinySphere: it holds {member.name!r:.60}")
    if manifest is None:
        raise BackupError(f"{path} is no backup of TinySphere, or was cut off: it has no manifest")
    if {part.name: part.sha256 for part in manifest.parts} != hashes or manifest.blobs != blobs:
        raise BackupError(f"{path} is damaged: its parts are not those that its manifest names")
    return manifest


def _members(path: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isreg() else None
            if file is None:
                raise BackupError(f"{path} is no backup of TinySphere: {member.name!r:.60} is no file")
            yield member, file


def _manifest(path: Path, file: IO[bytes], size: int) -> Manifest:
    if size > MANIFEST_BYTES_MAX:
        raise BackupError(f"{path} has a manifest of {size} bytes, at most {MANIFEST_BYTES_MAX} are read")
    try:
        manifest = msgspec.json.decode(file.read(), type=Manifest)
    except msgspec.DecodeError as error:
        raise BackupError(f"{path} has a manifest that cannot be read: {error}") from error
    if manifest.format != FORMAT:
        raise BackupError(f"{path} has format {manifest.format}, this program reads {FORMAT}; use a newer one")
    for table, columns in manifest.columns.items():
        if table not in _NAMES or not all(re.fullmatch(r"[a-z_0-9]{1,40}", name) for name in columns):
            raise BackupError(f"{path} has a table {table!r:.40} that this program does not know")
    return manifest


def _digest(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def load_tables(connection: Connection, path: Path, manifest: Manifest, instance: str, progress: Progress) -> None:
    """Fill the empty tables of a database with a backup's schema, in one writing job, as another instance.

    Raises:
        BackupError: the file has changed since it was inspected.
    """
    hashes = {part.name: part.sha256 for part in manifest.parts}
    for member, file in _members(path):
        named = _PART.fullmatch(member.name)
        if named is None:
            continue
        progress(member.name)
        data = file.read()
        if hashlib.sha256(data).hexdigest() != hashes.get(member.name) or named[1] not in manifest.columns:
            raise BackupError(f"{path} has changed while it was read")
        columns = [f'"{name}"' if name == "window" else name for name in manifest.columns[named[1]]]
        found = _rows(path, data)
        if any(len(item) != len(columns) for item in found):
            raise BackupError(f"{path} is damaged: {member.name} has rows of another length")
        connection.insert(named[1], columns, found)
    connection.execute("UPDATE meta SET value = ? WHERE key = 'instance'", (instance,))
    connection.restart_ids()


def _rows(path: Path, data: bytes) -> list[list[Any]]:
    expander = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = expander.decompress(data, PART_BYTES_MAX)
        if expander.unconsumed_tail:
            raise BackupError(f"{path} has a part that expands to more than {PART_BYTES_MAX} bytes")
        return msgspec.msgpack.decode(plain, type=list[list[Any]])
    except (zlib.error, msgspec.DecodeError) as error:
        raise BackupError(f"{path} has a part that cannot be read: {error}") from error


def load_blobs(store: Store, path: Path, progress: Progress) -> int:
    """Put a backup's blobs into a store; those that are there already stay. Returns how many there are."""
    count = 0
    for member, file in _members(path):
        named = _BLOB.fullmatch(member.name)
        if named is None:
            continue
        progress(member.name[:20])
        count += 1
        if store.size(named[1]) == member.size:
            continue
        upload = store.begin(member.size)
        try:
            while piece := file.read(_PIECE):
                upload.write(piece)
            if upload.finish() != named[1]:
                raise BackupError(f"{path} has changed while it was read")
            store.put(upload, named[1])
        finally:
            upload.close()
    return count


def check_steps(manifest: Manifest, known: list[str]) -> str:
    """The last step of a backup's schema, which this program must know with all before it.

    Raises:
        BackupError: it does not.
    """
    if not manifest.steps or manifest.steps != known[: len(manifest.steps)]:
        raise BackupError(
            f"the backup's schema is {json.dumps(manifest.steps)[:200]}, which this program does not know; use the "
            "version of TinySphere that made it, or a newer one"
        )
    return manifest.steps[-1]
