"""Blobs, named by their SHA-256, in a folder or elsewhere: written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final, Literal, Protocol, runtime_checkable

from tinylcm.files import fsync_folder, make_folder

from .errors import NotFoundError, StorageError, TooLargeError
from .sql import storage_error

PIECE_BYTES: Final = 256 << 10
_PREFIX: Final = ".upload-"


class Finished(Protocol):
    """A file beside the store, whole and durable."""

    path: Path


class Upload:
    """A blob that is being written; `close` removes what was not stored.

    Args:
        folder: where the temporary file is made.
        bytes_max: more are refused.
    """

    def __init__(self, folder: Path, bytes_max: int) -> None:
        self.size = 0
        self._bytes_max = bytes_max
        self._digest = hashlib.sha256()
        handle, name = tempfile.mkstemp(dir=folder, prefix=_PREFIX)
        self.path = Path(name)
        self._file: IO[bytes] = os.fdopen(handle, "wb")

    def write(self, piece: bytes) -> None:
        """Append a piece.

        Raises:
            TooLargeError: more than `bytes_max`.
            StorageError: the disk is full.
        """
        self.size += len(piece)
        if self.size > self._bytes_max:
            raise TooLargeError(f"a package has at most {self._bytes_max} bytes")
        self._digest.update(piece)
        self._attempt(lambda: self._file.write(piece))

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            raise storage_error(error) or StorageError("the disk refuses") from error

    def finish(self) -> str:
        """Make it durable; returns its SHA-256 in hex."""

        def sync() -> None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

        self._attempt(sync)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Remove the temporary file, unless it was stored."""
        with suppress(OSError):
            self._file.close()
        with suppress(FileNotFoundError):
            self.path.unlink()


class Spool:
    """Where uploads are written before they are stored.

    Args:
        folder: of this process, or of several on one machine.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def clean(self) -> None:
        """Remove uploads that a power cut left; only for the process that owns the folder."""
        for left in self.folder.glob(f"{_PREFIX}*"):
            left.unlink(missing_ok=True)

    def begin(self, bytes_max: int) -> Upload:
        """Start to write a blob.

        Raises:
            StorageError: the disk is full or not writable.
        """
        try:
            return Upload(self.folder, bytes_max)
        except OSError as error:
            raise storage_error(error) or StorageError("the disk refuses") from error


class Store(Protocol):
    """Blobs by their SHA-256: a folder, or a bucket. What is stored is durable and never changes."""

    folder: Path

    def clean(self) -> None:
        """Remove uploads that a power cut left; only for the process that owns the folder."""

    def begin(self, bytes_max: int) -> Upload:
        """Start to write a blob."""

    def put(self, upload: Finished, sha256: str) -> None:
        """Store a finished upload under its name, durably; again changes nothing."""

    def size(self, sha256: str) -> int | None:
        """Bytes of a blob, or None when it is not there."""

    def local(self, sha256: str) -> Path | None:
        """The file of a blob, where the store is a folder of this machine."""

    def read(self, sha256: str, first: int = 0, length: int | None = None) -> Iterator[bytes]:
        """A blob's bytes from `first` on, in pieces; NotFoundError when it is not there."""

    def delete(self, sha256: str) -> None:
        """Remove a blob; one that is not there is removed already."""

    def names(self) -> Iterator[str]:
        """The SHA-256 of every blob."""

    def uri(self, sha256: str) -> str:
        """The address of a blob for other programs."""

    def check(self) -> None:
        """See whether the store answers."""


@runtime_checkable
class Linking(Protocol):
    """A store that others can reach by an address that holds the right to it, for a short time."""

    def link(self, sha256: str, ttl_s: int = 900, method: Literal["GET", "PUT"] = "GET") -> str:
        """An address that fetches or stores one blob without credentials, for at most 15 minutes."""


class FolderStore(Spool):
    """Blobs under `folder/<aa>/<sha256>`.

    Args:
        folder: made when it is missing.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(make_folder(folder, private=True))

    def _path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    def put(self, upload: Finished, sha256: str) -> None:
        """Give a finished upload its name, durably.

        Raises:
            StorageError: the disk refuses.
        """
        target = self._path(sha256)
        with _told():
            make_folder(target.parent, private=True)
            upload.path.replace(target)
            fsync_folder(target.parent)

    def local(self, sha256: str) -> Path:
        """Where a blob is or would be."""
        return self._path(sha256)

    def size(self, sha256: str) -> int | None:
        """Bytes of a blob, or None when it is not there."""
        with suppress(FileNotFoundError):
            return self._path(sha256).stat().st_size
        return None

    def read(self, sha256: str, first: int = 0, length: int | None = None) -> Iterator[bytes]:
        """A blob's bytes from `first` on, in pieces.

        Raises:
            NotFoundError: it is not there.
        """
        try:
            file = self._path(sha256).open("rb")
        except FileNotFoundError:
            raise NotFoundError("the store does not have it") from None
        return _pieces(file, first, length)

    def delete(self, sha256: str) -> None:
        """Remove a blob; one that is not there is removed already."""
        with _told():
            self._path(sha256).unlink(missing_ok=True)

    def names(self) -> Iterator[str]:
        """The SHA-256 of every blob."""
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            if len(path.name) == 64:
                yield path.name

    def uri(self, sha256: str) -> str:
        """The `file://` address of a blob."""
        return self._path(sha256).resolve().as_uri()

    def check(self) -> None:
        """See whether the folder can be written.

        Raises:
            StorageError: it cannot.
        """
        if not os.access(self.folder, os.W_OK):
            raise StorageError(f"the folder {self.folder} cannot be written")


def _pieces(file: IO[bytes], first: int, length: int | None) -> Iterator[bytes]:
    with file:
        file.seek(first)
        left = length
        while left is None or left > 0:
            piece = file.read(PIECE_BYTES if left is None else min(left, PIECE_BYTES))
            if not piece:
                return
            left = None if left is None else left - len(piece)
            yield piece


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(error) or StorageError("the disk refuses") from error
