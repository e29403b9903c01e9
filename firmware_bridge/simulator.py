"""A simulated board behind a pty: for people without hardware, and for tests.

    with Simulator(SimulatedBoard("bench-1", slots, [synthetic()])) as simulator:
        print(simulator.path)        # a serial port like any other
        ...

It runs in a thread of its own. `unplug` and `plug` make the port disappear and come back under another name; with
`baud` set, a port opened at another rate carries noise, as a UART's would.
"""

from __future__ import annotations

import contextlib
import os
import pty
import random
import select
import termios
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .errors import LinkError
from .simboard import SimulatedBoard

READ_BYTES: Final = 65_536
WAIT_S: Final = 0.05
KEPT_BYTES_MAX: Final = 262_144
"""What waits for a host that does not read; beyond it the board's own bytes are lost, as on a wire."""
_RATES: Final = {
    getattr(termios, name): int(name[1:]) for name in dir(termios) if name.startswith("B") and name[1:].isdigit()
}


class Simulator:
    """A board, a pty and the thread between them.

    Args:
        board: the board; while this runs, only through `with simulator.lock`.
        link: a path that always points to the port, as udev's /dev/serial/by-id would.
        baud: the only rate at which the port carries more than noise; 0 for any.
        banner: what a boot loader prints when the board starts.
    """

    def __init__(
        self,
        board: SimulatedBoard,
        *,
        link: Path | None = None,
        baud: int = 0,
        banner: bytes = b"",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.board = board
        self.lock = threading.RLock()
        self.path = ""
        self._link, self._baud, self._banner = link, baud, banner
        self._now = now
        self._origin_s = now()
        self._master = self._slave = -1
        self._out = bytearray()
        self._noise = random.Random(0)  # noqa: S311
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="simulated-board", daemon=True)

    # its port -----------------------------------------------------------------------------------------------

    def plug(self) -> str:
        """Make a port appear; its path.

        Raises:
            LinkError: this machine gives no pty.
        """
        with self.lock:
            self.unplug()
            try:
                self._master, self._slave = pty.openpty()
                tty.setraw(self._slave)
                os.set_blocking(self._master, False)
                self.path = os.ttyname(self._slave)
                if self._link is not None:
                    self._link.unlink(missing_ok=True)
                    self._link.symlink_to(self.path)
            except OSError as error:
                raise LinkError(f"no pty for the simulated board: {error}") from error
            self._out = bytearray(self._banner)
            return self.path

    def unplug(self) -> None:
        """Make the port disappear, in the middle of whatever there was."""
        with self.lock:
            for fd in (self._slave, self._master):
                if fd >= 0:
                    os.close(fd)
            self._master = self._slave = -1
            if self._link is not None:
                self._link.unlink(missing_ok=True)

    def restart(self, why: str = "power") -> None:
        """Restart the board; its port stays, as behind a USB adapter."""
        with self.lock:
            self.board.restart(self._board_s(), why)
            self._out = bytearray(self._banner)

    # running ------------------------------------------------------------------------------------------------

    def _board_s(self) -> float:
        return self._now() - self._origin_s

    def start(self) -> Self:
        """Plug it in and run."""
        self.plug()
        self._thread.start()
        return self

    def stop(self) -> None:
        """End it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(5)
        self.unplug()

    def interrupt(self) -> None:
        """End it from a signal's handler: nothing is waited for."""
        self._stop.set()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until it was stopped from elsewhere."""
        return self._stop.wait(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            master = self._master
            if master < 0:
                time.sleep(0.01)
            else:
                wait_s = min(WAIT_S, max(0.0, self.board.next_timeout() - self._board_s()))
                with contextlib.suppress(OSError, ValueError):  # unplugged meanwhile
                    select.select([master], [master] if self._out else [], [], wait_s)
            with self.lock:
                self._step()

    def _step(self) -> None:
        now_s = self._board_s()
        if self._master >= 0:
            data = b""
            with contextlib.suppress(OSError):
                data = os.read(self._master, READ_BYTES)
            if data:
                self.board.receive(self._garbled(data), now_s)
        self.board.tick(now_s)
        sent = self.board.outgoing()
        if self._master < 0:
            return
        if len(self._out) + len(sent) <= KEPT_BYTES_MAX:
            self._out += self._garbled(sent)
        if self._out:
            with contextlib.suppress(OSError):
                del self._out[: os.write(self._master, self._out)]

    def _garbled(self, data: bytes) -> bytes:
        """What a UART makes of bytes at another rate: other bytes."""
        if not self._baud or not data:
            return data
        speed = termios.tcgetattr(self._master)[5]
        return data if _RATES.get(speed) == self._baud else self._noise.randbytes(len(data))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
