"""Serial ports and sockets as file descriptors: opened for one program alone, read by `select` and `os.read`.

pyserial sets the line up and gives the list of ports. It does not read: its `read_until` takes a byte at a time, and
its `in_waiting` is not to be relied on with ptys.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import grp
import os
import select
import socket
import stat
import termios
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from .errors import LinkError

if TYPE_CHECKING:
    import serial

READ_BYTES_MAX: Final = 65_536
BAUD: Final = 115_200
BAUDS: Final = (
    115_200, 921_600, 1_000_000, 460_800, 230_400, 57_600, 2_000_000, 38_400, 19_200, 9_600, 1_500_000, 3_000_000,
)  # fmt: skip
"""Rates in use, the commonest first: what is tried when none is given."""
CONNECT_S: Final = 5.0
_SOCKET: Final = "socket://"
_VIRTUAL: Final = ("/dev/pts/", "/dev/ttyACM", "/dev/ttyGS")
"""Ports whose rate is a mere number: no UART stands behind it that takes time for a byte."""


@dataclass(frozen=True, slots=True)
class PortInfo:
    """A port of this machine, as the operating system tells of it."""

    path: str
    description: str
    hardware: str


def list_ports() -> list[PortInfo]:
    """The serial ports of this machine.

    Raises:
        LinkError: pyserial is not installed.
    """
    _need_serial()
    from serial.tools import list_ports as found

    # A PC's ttyS0 to ttyS31 are listed whether anything is there or not: those without hardware say "n/a".
    infos = [PortInfo(item.device, item.description or "", item.hwid or "") for item in found.comports()]
    return sorted((info for info in infos if info.hardware != "n/a"), key=lambda info: info.path)


def expand(patterns: Sequence[str]) -> list[str]:
    """The ports that patterns such as `/dev/ttyACM*` stand for, each once; without patterns all of this machine."""
    if not patterns:
        return [info.path for info in list_ports()]
    paths: list[str] = []
    for pattern in patterns:
        if pattern.startswith(_SOCKET):
            paths.append(pattern)
        else:
            paths += [os.path.realpath(path) for path in sorted(glob.glob(pattern))]  # noqa: PTH207
    return list(dict.fromkeys(paths))


def _need_serial() -> None:
    try:
        import serial as _serial  # noqa: F401
    except ImportError as error:
        raise LinkError("serial ports need pyserial: pip install 'tinymlops[bridge]'") from error


class Port:
    """An open port or socket.

    Args:
        url: a path, or `socket://HOST:PORT`.
        baud: of a path; a socket has none.

    Raises:
        LinkError: it is not there, not permitted, or another program has it.
    """

    def __init__(self, url: str, baud: int = BAUD) -> None:
        self.url = url
        self._serial: serial.Serial | None = None
        self._socket: socket.socket | None = None
        self._closed = False
        if url.startswith(_SOCKET):
            self._socket = _connect(url)
            self._fd = self._socket.fileno()
        else:
            self._serial = _open_serial(url, baud)
            self._fd = self._serial.fileno()
        os.set_blocking(self._fd, False)
        self._block_on_nothing()

    def fileno(self) -> int:
        """For `select`."""
        return self._fd

    @property
    def has_baud(self) -> bool:
        """Whether a rate means anything here."""
        return self._serial is not None

    @property
    def baud(self) -> int:
        """The rate, 0 where there is none."""
        return int(self._serial.baudrate) if self._serial is not None else 0

    @baud.setter
    def baud(self, value: int) -> None:
        if self._serial is None:
            return
        try:
            self._serial.baudrate = value
        except (OSError, ValueError, termios.error) as error:
            raise LinkError(f"{self.url} cannot run at {value} baud: {error}") from error
        self._block_on_nothing()
        with contextlib.suppress(OSError, termios.error):
            termios.tcflush(self._fd, termios.TCIFLUSH)  # what came at the other rate is noise

    def _block_on_nothing(self) -> None:
        """Tell "nothing there yet" from "the port is gone": with pyserial's VMIN of 0 both read as no bytes."""
        if self._serial is None:
            return
        with contextlib.suppress(OSError, termios.error):
            rules = termios.tcgetattr(self._fd)
            rules[6][termios.VMIN], rules[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._fd, termios.TCSANOW, rules)

    @property
    def byte_s(self) -> float:
        """How long a byte takes, 0 where no UART is behind the port."""
        if self._serial is None or os.path.realpath(self.url).startswith(_VIRTUAL):
            return 0.0
        return 10 / self.baud if self.baud else 0.0

    def read(self, size: int = READ_BYTES_MAX) -> bytes:
        """What is there; empty when nothing is.

        Raises:
            LinkError: the port broke off.
        """
        try:
            data = os.read(self._fd, size)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise self._gone(error) from error
        if not data:
            # Nothing to read would have blocked: an end of file is an unplugged adapter or a closed socket.
            raise self._gone(None)
        return data

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Write what the port takes now; how much that was.

        Raises:
            LinkError: the port broke off.
        """
        try:
            return os.write(self._fd, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._gone(error) from error

    def _gone(self, error: OSError | None) -> LinkError:
        why = "it ended" if error is None else error.strerror or str(error)
        return LinkError(f"{self.url} broke off: {why}; is the board unplugged?")

    def wait(self, timeout_s: float, *, writing: bool = False) -> bool:
        """Wait until something can be read, or written; whether it can."""
        found = select.select([self._fd], [self._fd] if writing else [], [], max(0.0, timeout_s))
        return bool(found[0] or found[1])

    def close(self) -> None:
        """Give the port up."""
        if self._closed:
            return
        self._closed = True
        if self._socket is not None:
            self._socket.close()
        if self._serial is not None:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._fd, termios.TIOCNXCL)
            with contextlib.suppress(OSError, termios.error):
                termios.tcflush(self._fd, termios.TCOFLUSH)  # else closing waits for a line that takes nothing
            with contextlib.suppress(OSError):
                self._serial.close()


def _connect(url: str) -> socket.socket:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise LinkError(f"{url!r} names no port: expected socket://HOST:PORT")
    try:
        connection = socket.create_connection((host, port), CONNECT_S)
    except OSError as error:
        raise LinkError(f"{url} cannot be reached: {error.strerror or error}; does something listen there?") from error
    # Small frames must not wait for each other: with Nagle's algorithm a round trip was measured at 44 ms.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _open_serial(path: str, baud: int) -> serial.Serial:
    _need_serial()
    import serial

    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise _cannot_open(path, error) from error
    if not stat.S_ISCHR(mode):
        raise LinkError(f"{path} is no serial port: expected one such as /dev/ttyACM0")
    try:
        port = serial.Serial(path, baud, timeout=0, exclusive=True)
    except (OSError, ValueError) as error:  # SerialException is an OSError
        raise _cannot_open(path, error) from error
    if not os.path.realpath(path).startswith("/dev/pts/"):  # there it would outlive us, for as long as the other end
        with contextlib.suppress(OSError):
            fcntl.ioctl(port.fileno(), termios.TIOCEXCL)
    return port


def _cannot_open(path: str, error: OSError | ValueError) -> LinkError:
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.EACCES, errno.EPERM):
        return LinkError(f"no permission to open {path}: {_advice(path)}")
    if code in (errno.EAGAIN, errno.EBUSY):
        return LinkError(f"{path} is in use by another program: end it, or give it another port")
    if code in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return LinkError(f"{path} is not there: is the board plugged in? `tinylcm board ports` shows what is")
    return LinkError(f"{path} cannot be opened: {error}")


def _advice(path: str) -> str:
    try:
        found = Path(path).stat()
        group = grp.getgrgid(found.st_gid).gr_name
    except (OSError, KeyError):
        return "ask who administers this machine"
    if not found.st_mode & stat.S_IRGRP:
        return f"its mode is {stat.S_IMODE(found.st_mode):o}, not even its group {group} may read it: change that"
    return f"it belongs to group {group}: run `sudo usermod -aG {group} $USER`, then log in again"
