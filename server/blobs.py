"""Blobs that devices upload, such as captured windows that no record can hold: in pieces, resumed, checked.

Rules
- A blob is visible when all of it is here, its SHA-256 is that of its name, and it is durable; never before.
- What has come of one stays over cut connections and restarts, so that the device goes on where it stopped: at most
  `PARTS_MAX` unfinished ones a device, the oldest give way.
- A device's blobs have a quota; the same blob of two devices is stored once and counted for both.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tinylcm.files import list_files, make_folder

from . import removals
from .db import Connection, Database, row
from .errors import BadRequestError, BusyError, ConflictError, InvalidError, NotFoundError, StorageError, TooLargeError
from .sql import storage_error
from .store import Store

PARTS_MAX: Final = 4
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_RANGE: Final = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15})")
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of a blob is here, in bytes, and whether that is all."""

    offset: int
    complete: bool


def check_name(sha256: str) -> str:
    """Refuse a name that is no SHA-256 in lower-case hex.

    Raises:
        BadRequestError: it is none.
    """
    if not _SHA256.fullmatch(sha256):
        raise BadRequestError("a blob's name is its SHA-256: 64 lower-case hexadecimal digits")
    return sha256


def read_range(content_range: str, content_length: str) -> tuple[int, int]:
    """Where a piece begins and how long the whole is, from its headers; without a range it is the whole.

    Raises:
        BadRequestError: they say nothing of the kind.
    """
    if not content_range:
        if not content_length.isdigit():
            raise BadRequestError("expected a Content-Range (bytes FIRST-LAST/SIZE), or the whole with Content-Length")
        return 0, int(content_length)
    found = _RANGE.fullmatch(content_range)
    if found is None or not int(found[1]) <= int(found[2]) < int(found[3]):
        raise BadRequestError(f"Content-Range is {content_range[:80]!r}, expected bytes FIRST-LAST/SIZE")
    return int(found[1]), int(found[3])


def progress(db: Database, store: Store, device: str, sha256: str) -> Progress:
    """How much of a blob of this device is here."""
    found = db.read(lambda connection: _size(connection, device, sha256))
    if found is not None:
        return Progress(found, True)
    try:
        return Progress(_part_path(store, device, sha256).stat().st_size, False)
    except FileNotFoundError:
        return Progress(0, False)


def check_uploaded(db: Database, sha256: str) -> None:
    """Refuse a blob that no device has uploaded.

    Raises:
        NotFoundError: nobody has.
    """
    check_name(sha256)
    sql = "SELECT 1 AS one FROM blob WHERE sha256 = ?"
    if db.read(lambda connection: row(connection, sql, (sha256,))) is None:
        raise NotFoundError("no device has uploaded a blob of this hash")


def _size(connection: Connection, device: str, sha256: str) -> int | None:
    found = row(connection, "SELECT size FROM blob WHERE device = ? AND sha256 = ?", (device, sha256))
    return None if found is None else int(found["size"])


def _part_path(store: Store, device: str, sha256: str) -> Path:
    return store.folder / ".parts" / device / sha256


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes of one blob, and of all of one device."""

    blob_bytes_max: int
    device_bytes_max: int


class Part:
    """A blob that is being uploaded; made by `Part.open`, and closed in any case."""

    def __init__(self, db: Database, store: Store, device: str, sha256: str, handle: int) -> None:
        self._db, self._store, self._device, self._sha256 = db, store, device, sha256
        self._handle = handle
        self.path = _part_path(store, device, sha256)
        self.offset = os.fstat(handle).st_size

    @classmethod
    def open(cls, db: Database, store: Store, device: str, sha256: str, first: int, size: int, limits: Limits) -> Self:
        """Begin a piece.

        Args:
            first: where it begins.
            size: of the whole blob.

        Raises:
            TooLargeError: the blob is larger than is taken.
            ConflictError: it begins elsewhere than what is here ends.
            BusyError: another request uploads the same.
            StorageError: the device's quota is used up, or the disk is full.
        """
        if size > limits.blob_bytes_max:
            raise TooLargeError(f"the blob has {size} bytes, at most {limits.blob_bytes_max} are taken")
        used = db.read(lambda connection: _used(connection, device))
        if used + size > limits.device_bytes_max:
            raise StorageError(
                f"the device's blobs have {used} bytes, {size} more are beyond its {limits.device_bytes_max}"
            )
        path = _part_path(store, device, sha256)
        make_folder(path.parent, private=True)
        try:
            _make_room(path)
            handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise storage_error(error) or StorageError("the disk refuses") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part = cls(db, store, device, sha256, handle)
            if part.offset >= size:  # all of it came, and the server ended before it was checked
                os.ftruncate(handle, 0)
                part.offset = 0
            if part.offset != first:
                raise ConflictError(f"{part.offset} bytes of this blob are here, the piece begins at {first}")
        except BaseException as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                raise BusyError("another request uploads this blob", retry_after_s=1) from error
            raise
        return part

    def write(self, piece: bytes) -> None:
        """Append.

        Raises:
            StorageError: the disk is full; what came before stays.
        """
        try:
            view = memoryview(piece)
            while view:
                written = os.write(self._handle, view)
                self.offset += written
                view = view[written:]
        except OSError as error:
            raise storage_error(error) or StorageError("the disk refuses") from error

    def finish(self, size: int, now_s: float) -> Progress:
        """Store the blob when all of it is here.

        Raises:
            InvalidError: its hash is another one; nothing is kept of it.
            StorageError: the disk refuses.
            BusyError: the same blob was being removed; send it again.
        """
        if self.offset < size:
            return Progress(self.offset, False)
        if _hash(self.path) != self._sha256:
            self.path.unlink()
            raise InvalidError("the bytes have another SHA-256 than their name; send them again from the beginning")
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise storage_error(error) or StorageError("the disk refuses") from error
        before = self._db.read(lambda connection: removals.rounds(connection, self._sha256))
        self._store.put(self, self._sha256)

        def job(connection: Connection) -> None:
            removals.check_stored(connection, self._sha256, before)
            connection.execute(
                "INSERT INTO blob (device, sha256, size, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (self._device, self._sha256, size, now_s),
            )

        self._db.write(job)
        return Progress(size, True)

    def close(self) -> None:
        """Let go of it; what has come stays."""
        with suppress(OSError):
            os.close(self._handle)


def _used(connection: Connection, device: str) -> int:
    found = row(connection, "SELECT COALESCE(SUM(size), 0) AS used FROM blob WHERE device = ?", (device,))
    return int(found["used"]) if found else 0


def _make_room(path: Path) -> None:
    others = [other for other in list_files(path.parent, "*") if other != path]
    others.sort(key=lambda other: other.stat().st_mtime_ns, reverse=True)
    for other in others[PARTS_MAX - 1 :]:
        other.unlink(missing_ok=True)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()
