"""Blobs in a folder, named by their SHA-256: written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, Protocol

from tinylcm.files import fsync_folder, make_folder

from .db import storage_error
from .errors import StorageError, TooLargeError

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


class FolderStore:
    """Blobs under `folder/<aa>/<sha256>`.

    Args:
        folder: made when it is missing; uploads that a power cut left are removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = make_folder(folder, private=True)

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

    def path(self, sha256: str) -> Path:
        """Where a blob is or would be."""
        return self.folder / sha256[:2] / sha256

    def put(self, upload: Finished, sha256: str) -> Path:
        """Give a finished upload its name, durably.

        Raises:
            StorageError: the disk refuses.
        """
        target = self.path(sha256)
        try:
            make_folder(target.parent, private=True)
            upload.path.replace(target)
            fsync_folder(target.parent)
        except OSError as error:
            raise storage_error(error) or StorageError("the disk refuses") from error
        return target
