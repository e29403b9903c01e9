"""What a running device says of itself to `tinylcm status`: one JSON document over a socket in its data folder."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from .errors import DeviceError
from .types import Json
from .wire import canonical_json, finite

_log = logging.getLogger("tinylcm")
SOCKET: Final = "status.sock"
TIMEOUT_S: Final = 2.0
RETRY_S: Final = 0.5
STATUS_BYTES_MAX: Final = 8 << 20
_PATH_BYTES_MAX: Final = 100  # the kernel's limit is 108


class StatusServer:
    """Answers each connection with the present status, in a thread of its own.

    Args:
        folder: where the socket lies; only this user may connect.
        read: makes the document.
    """

    def __init__(self, folder: Path, read: Callable[[], Mapping[str, object]]) -> None:
        self._path = folder / SOCKET
        self._read = read
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def start(self) -> bool:
        """Listen; False, and a warning, where that cannot be: the device works without."""
        if len(os.fsencode(self._path)) > _PATH_BYTES_MAX:
            _log.warning("%s is too long a path for a socket: `tinylcm status` shows only what is on disk", self._path)
            return False
        try:
            self._path.unlink(missing_ok=True)  # of a process that crashed: the journal's lock says that we are alone
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            before = os.umask(0o177)
            try:
                self._socket.bind(str(self._path))
            finally:
                os.umask(before)
            self._socket.listen(4)
        except OSError as error:
            _log.warning("no status socket: %s", error)
            if self._socket is not None:
                self._socket.close()
            return False
        self._thread = threading.Thread(target=self._serve, name="tinylcm-status", daemon=True)
        self._thread.start()
        return True

    def _serve(self) -> None:
        assert self._socket is not None
        while not self._closing.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if not self._closing.wait(RETRY_S):  # out of descriptors, perhaps: that passes
                    _log.warning("a status was not given: %s", error)
                continue
            with connection:
                connection.settimeout(TIMEOUT_S)
                try:
                    connection.sendall(canonical_json(finite(self._read())))
                except Exception as error:  # one who asks must not end what runs
                    _log.warning("a status was not given: %s", error)

    def close(self) -> None:
        """Stop, and take the socket away."""
        self._closing.set()
        if self._socket is None or self._thread is None:
            return
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._socket.close()
        self._thread.join(TIMEOUT_S)
        self._path.unlink(missing_ok=True)


def ask_status(folder: Path) -> dict[str, Json] | None:
    """The status of the device that runs on this folder; None when none does.

    Raises:
        DeviceError: it runs, and gives no answer.
    """
    path = folder / SOCKET
    if not path.exists():
        return None
    parts, size = [], 0
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(TIMEOUT_S)
            connection.connect(str(path))
            while size < STATUS_BYTES_MAX and (part := connection.recv(1 << 16)):
                parts.append(part)
                size += len(part)
    except (ConnectionRefusedError, FileNotFoundError):
        return None  # left behind by a process that crashed, or closed just now
    except OSError as error:
        raise DeviceError(f"the device that runs on {folder} does not answer: {error}") from error
    try:
        document = json.loads(b"".join(parts))
    except ValueError as error:
        raise DeviceError(f"the device that runs on {folder} gave no status: {error}") from error
    if not isinstance(document, dict):
        raise DeviceError(f"the device that runs on {folder} gave no status: expected an object")
    return document
