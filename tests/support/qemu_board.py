"""The real firmware, run by QEMU: built once a session, its line a socket, its slots a file."""

from __future__ import annotations

import functools
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import line_reference as line

import firmware_bridge

C = Path(firmware_bridge.__file__).parent / "c"
NEEDS = "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm"


@functools.cache
def firmware(root: Path) -> Path:
    """The MPS2 example's ELF, built from the C sources that are installed."""
    out = Path(tempfile.mkdtemp(prefix="firmware"))
    command = ["make", "-s", "-C", str(C), "mps2", f"OUT={out}", f"PYTHON={sys.executable}"]
    command.append(f"DATA={root / 'examples' / 'activity' / 'data' / 'basic_motions.npz'}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(f"the firmware was not built ({NEEDS}):\n{done.stdout}{done.stderr}")
    return out / "mps2.elf"


class QemuBoard:
    """A running board. `options` are the example's: speed, rows, drift_at, trial_s, metrics_ms, frame_max, uid.

    Its line is a socket that this class reads; with `pty=True` a pty, whose name is `path`, for a program to open; or
    what `serial` says in QEMU's words.
    """

    def __init__(
        self,
        elf: Path,
        folder: Path,
        serial: str = "",
        *,
        pty: bool = False,
        semihosting: bool = True,
        **options: object,
    ) -> None:
        self.flash = folder / "flash.bin"
        self.socket_path = Path(tempfile.mkdtemp(prefix="tb")) / "line"  # short: a socket's name has 107 bytes at most
        words = ["mps2", f"flash={self.flash}", *(f"{key}={value}" for key, value in options.items())]
        config = "enable=on,target=native," + ",".join(f"arg={word}" for word in words)
        self.process = subprocess.Popen(
            [
                *("qemu-system-arm", "-M", "mps2-an385", "-kernel", str(elf), "-display", "none", "-monitor", "none"),
                *("-serial", "pty" if pty else serial or f"unix:{self.socket_path},server=on,wait=off"),
                *(("-semihosting-config", config) if semihosting else ()),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if pty else None,
            text=True,
        )
        self.frames: list[line.Frame] = []
        self.reader = line.Reader()
        self.seq = 0
        self.socket: socket.socket | None = None
        self.path = ""
        if pty:
            assert self.process.stdout is not None
            found = re.search(r"redirected to (\S+)", self.process.stdout.readline())
            assert found is not None, "QEMU did not say which pty it has"
            self.path = found[1]
        elif not serial:
            self._connect()

    def _connect(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.connect(str(self.socket_path))
                break
            except OSError:
                self.socket.close()
                if time.monotonic() > deadline or self.process.poll() is not None:
                    raise
                time.sleep(0.02)
        self.socket.settimeout(0.05)

    def read(self, seconds: float) -> list[line.Frame]:
        """What arrives in so many seconds."""
        assert self.socket is not None
        got, deadline = [], time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                got += self.reader.feed(self.socket.recv(65536))
            except TimeoutError:
                continue
        self.frames += got
        return got

    def ask(self, kind: int, payload: bytes = b"", seq: int | None = None, tries: int = 8) -> line.Frame:
        """Ask, again after half a second without an answer; other frames are kept in `frames`."""
        assert self.socket is not None
        if seq is None:
            self.seq += 1
            seq = self.seq
        for _ in range(tries):
            self.socket.sendall(line.encode(line.Frame(line.ACKREQ, kind, seq, payload)))
            deadline = time.monotonic() + 0.5
            while time.monotonic() < deadline:
                for frame in self.read(0.02):
                    if frame.flags & line.RESP and frame.type == kind and frame.seq == seq:
                        return frame
        raise TimeoutError(f"no answer to request {kind:#x}")

    def kill(self) -> None:
        """End QEMU as a power cut would; the file of the slots stays."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        if self.socket is not None:
            self.socket.close()
        shutil.rmtree(self.socket_path.parent, ignore_errors=True)

    def __enter__(self) -> QemuBoard:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
