"""Files that survive a power cut: written whole or not at all, read with their hash checked."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from .errors import DeviceError, ModelError


def device_error(error: OSError, doing: str) -> DeviceError:
    """Turn an OSError into a sentence that a person can act on."""
    advice = {
        errno.ENOSPC: "the disk is full: free some space or lower the configured limits",
        errno.EDQUOT: "the disk quota is used up: free some space or raise the quota",
        errno.EROFS: "the file system is read-only: set `data` to a writable folder",
        errno.EACCES: f"no permission for user id {os.getuid()}: change the folder's owner or set `data` elsewhere",
        errno.EPERM: f"not permitted for user id {os.getuid()}: change the folder's owner or set `data` elsewhere",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.EIO: "the disk reports an input/output error: check or replace it",
    }.get(error.errno or 0, error.strerror or str(error))
    where = f" {error.filename}" if error.filename else ""
    return DeviceError(f"{doing}{where} failed: {advice}")


def fsync_folder(folder: Path) -> None:
    """Make renames and new names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path, *, private: bool = False) -> Path:
    """Create a folder and its parents durably.

    Raises:
        DeviceError: no permission, no space, or a file is in the way.
    """
    try:
        if folder.is_dir():
            return folder
        for parent in reversed((folder, *folder.parents)):
            if not parent.exists():
                parent.mkdir(mode=0o700 if private and parent == folder else 0o755, exist_ok=True)
                fsync_folder(parent.parent)
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(folder))
    except OSError as error:
        raise device_error(error, "creating the folder") from error
    return folder


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace a file's content so that a reader, now or after a power cut, sees the old or the new bytes whole.

    Raises:
        DeviceError: the old content is still in place.
    """
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        temporary = None
        fsync_folder(path.parent)
    except OSError as error:
        error.filename = str(path)
        raise device_error(error, "writing") from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # the first error says more
                Path(temporary).unlink()


def read_bounded(path: Path, bytes_max: int) -> bytes:
    """Read a whole file that may not be larger than `bytes_max`.

    Raises:
        DeviceError: the file cannot be read, or is larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as error:
        raise device_error(error, "reading") from error
    if len(data) > bytes_max:
        raise DeviceError(f"{path} is larger than the {bytes_max} bytes allowed here")
    return data


def list_files(folder: Path, pattern: str) -> list[Path]:
    """The paths in a folder that match, sorted; none when there is no such folder.

    Raises:
        DeviceError: the folder cannot be listed.
    """
    try:
        return sorted(folder.glob(pattern))
    except OSError as error:
        raise device_error(error, "listing") from error


def read_verified(path: Path, sha256: str, bytes_max: int) -> bytes:
    """Read a file and make sure that it is the one that was meant.

    Raises:
        ModelError: the content has another hash.
        DeviceError: the file cannot be read, or is larger than `bytes_max`.
    """
    data = read_bounded(path, bytes_max)
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise ModelError(f"{path} is damaged: sha256 is {found}, expected {sha256}; fetch it again")
    return data
