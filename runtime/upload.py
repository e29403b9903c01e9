"""What is too large for a record, on its way to the server: kept in a folder, sent in pieces, resumed where it stopped.

A blob is named by its SHA-256. It is deleted here when the server says that it has all of it, durably.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from .errors import DeviceError, ServerError
from .files import device_error, list_files, make_folder, read_bounded, write_atomic
from .http import HttpClient
from .sync import read_refusal

_log = logging.getLogger("tinylcm")
BLOB_BYTES_MAX: Final = 4 << 20
SPOOL_BYTES_MAX: Final = 64 << 20
PIECE_BYTES: Final = 256 << 10
CONFLICTS_MAX: Final = 3  # times that the server may say it has another part of it than was thought
_NEVER: Final = (413, 422)  # answers that sending again cannot change


class Spool:
    """Blobs that wait.

    Args:
        folder: made when the first is kept.
        bytes_max: of all of them.
    """

    def __init__(self, folder: Path, bytes_max: int = SPOOL_BYTES_MAX) -> None:
        self._folder, self._bytes_max = folder, bytes_max

    def keep(self, data: bytes) -> str:
        """Store a blob durably until it is uploaded; returns its SHA-256.

        Raises:
            DeviceError: too large, no room for it beside the others, or the disk refuses.
        """
        if len(data) > BLOB_BYTES_MAX:
            raise DeviceError(f"a blob has {len(data)} bytes, at most {BLOB_BYTES_MAX} are taken")
        waiting = self.size()
        if waiting + len(data) > self._bytes_max:
            raise DeviceError(
                f"blobs of {waiting} bytes wait for the server, of at most {self._bytes_max}: "
                f"{len(data)} more are not kept"
            )
        sha256 = hashlib.sha256(data).hexdigest()
        write_atomic(make_folder(self._folder, private=True) / sha256, data, mode=0o600)
        return sha256

    def pending(self) -> list[Path]:
        """Those that wait, oldest first; what a cut left of another is removed."""
        for left in list_files(self._folder, ".*"):
            with suppress(OSError):
                left.unlink()
        return sorted(list_files(self._folder, "[0-9a-f]*"), key=_age)

    def size(self) -> int:
        """Their bytes."""
        return sum(path.stat().st_size for path in list_files(self._folder, "[0-9a-f]*"))

    def send(self, client: HttpClient, *, progress: Callable[[int], object] | None = None) -> int:
        """Upload what waits; returns how many the server has taken.

        Args:
            client: of the server.
            progress: told the bytes of each piece that arrived.

        Raises:
            ServerError: it could not be reached or refused; what is left is sent again later, from where it stopped.
        """
        count = 0
        for path in self.pending():
            data = read_bounded(path, BLOB_BYTES_MAX)
            if hashlib.sha256(data).hexdigest() != path.name:
                _log.error("%s is damaged and is given up", path)
                _delete(path)
                continue
            try:
                upload(client, path.name, data, progress=progress)
            except ServerError as error:
                if error.status not in _NEVER:
                    raise
                _log.error("the server does not take the blob %s, it is given up: %s", path.name[:12], error)
            else:
                count += 1
            _delete(path)
        return count


def upload(client: HttpClient, sha256: str, data: bytes, *, progress: Callable[[int], object] | None = None) -> None:
    """Send one blob, from where the server has it.

    Raises:
        ServerError: it could not be reached, or refused.
    """
    path, conflicts = f"/api/v1/blobs/{sha256}", 0
    offset = _look(client, path, len(data))
    while offset < len(data):
        piece = data[offset : offset + PIECE_BYTES]
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"bytes {offset}-{offset + len(piece) - 1}/{len(data)}",
        }
        answer = client.request("PUT", path, piece, headers)
        if answer.status == 409 and conflicts < CONFLICTS_MAX:
            conflicts += 1
            offset = _look(client, path, len(data))
            continue
        if answer.status not in (200, 201, 202):
            raise read_refusal(answer.status, answer.headers, answer.body)
        if progress is not None:
            progress(len(piece))
        if answer.status != 202:
            return
        offset += len(piece)


def _look(client: HttpClient, path: str, size: int) -> int:
    """How many bytes the server has; all of them when it has stored the blob."""
    answer = client.request("HEAD", path)
    if answer.status != 200:
        raise read_refusal(answer.status, answer.headers, answer.body)
    text = answer.headers.get("upload-offset", "")
    if answer.headers.get("upload-complete") == "?1":
        return size
    # All of it without having been stored can only be a wrong beginning: the server begins anew at 0.
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < size else 0


def _age(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _delete(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise device_error(error, "deleting") from error
