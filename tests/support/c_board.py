"""The C library in this process: compiled once a session for the host, called by ctypes (c_board.c)."""

from __future__ import annotations

import ctypes
import functools
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import line_reference as line
import numpy as np
from numpy.typing import NDArray

import firmware_bridge

C = Path(firmware_bridge.__file__).parent / "c"
SUPPORT = Path(__file__).parent
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-ffp-contract=off"]
HEADER = 128
OUT_MAX = 262_144


def compiler() -> str:
    """A C compiler, which building the package needs anyway."""
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        raise RuntimeError("needs a C compiler: apt-get install gcc libc6-dev")
    return found


@functools.cache
def library() -> ctypes.CDLL:
    """Everything in c_board.c."""
    out = Path(tempfile.mkdtemp(prefix="c_board")) / "c_board.so"
    sources = [str(SUPPORT / "c_board.c"), *map(str, sorted((C / "src").glob("*.c")))]
    command = [compiler(), "-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", "-ffp-contract=off", "-fPIC", "-shared"]
    subprocess.run([*command, f"-I{C / 'src'}", *sources, "-lm", "-o", str(out)], check=True, timeout=300)
    loaded = ctypes.CDLL(str(out))
    for name in ("sim_new", "reader_new", "stats_new"):
        getattr(loaded, name).restype = ctypes.c_void_p
    loaded.sim_changed.restype = ctypes.c_long
    for name in ("sim_dead", "sim_reset_asked"):
        getattr(loaded, name).restype = ctypes.c_bool
    for name in ("frame_size_max", "stats_size", "crc32_of", "sim_feed", "sim_push", "reader_feed"):
        getattr(loaded, name).restype = ctypes.c_uint32
    return loaded


def slot_size(slot_bytes: int) -> int:
    """What a slot takes in the store."""
    return HEADER + (slot_bytes + 15) // 16 * 16


class CBoard:
    """A board of C code. Its flash is a bytearray that outlives it, so that another one can start with it."""

    def __init__(
        self,
        factory: bytes,
        flash: bytearray | None = None,
        *,
        slot_bytes: int = 1024,
        align: int = 8,
        trial_s: int = 60,
        frame_max: int = 256,
        mapped: bool = False,
        budget: int = -1,
        boot: int = 1,
    ) -> None:
        self._lib = library()
        self.flash = bytearray(b"\xff" * 2 * slot_size(slot_bytes)) if flash is None else flash
        self._view = (ctypes.c_uint8 * len(self.flash)).from_buffer(self.flash)
        self._factory = factory
        self._out = (ctypes.c_uint8 * OUT_MAX)()
        status = ctypes.c_uint32()
        self._sim = ctypes.c_void_p(
            self._lib.sim_new(
                *(self._view, slot_bytes, align, trial_s, frame_max, ctypes.c_bool(mapped)),
                *(factory, len(factory), ctypes.c_long(budget), boot, ctypes.byref(status)),
            )
        )
        self.status = ctypes.c_int32(status.value).value
        self.reader = line.Reader()
        self.seq = 0

    def close(self) -> None:
        """Give the memory back; the flash stays."""
        self._lib.sim_free(self._sim)
        del self._view

    def __enter__(self) -> CBoard:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def feed_raw(self, data: bytes = b"") -> bytes:
        """Bytes in, bytes out."""
        n = self._lib.sim_feed(self._sim, data, len(data), self._out)
        return ctypes.string_at(self._out, n)

    def feed(self, data: bytes = b"") -> list[line.Frame]:
        """Bytes in, frames out."""
        return self.reader.feed(self.feed_raw(data))

    def ask(self, kind: int, payload: bytes = b"", seq: int | None = None) -> line.Frame:
        """A request and its answer; there must be one."""
        if seq is None:
            self.seq = (self.seq + 1) & 0xFFFF
            seq = self.seq
        frames = self.feed(line.encode(line.Frame(line.ACKREQ, kind, seq, payload)))
        (answer,) = [frame for frame in frames if frame.flags & line.RESP]
        assert (answer.type, answer.seq) == (kind, seq)
        return answer

    def hello(self, session: int = 1, payload_max: int = 1024) -> line.Frame:
        """Say HELLO."""
        return self.ask(line.HELLO, struct.pack("<BBHI", 1, 1, payload_max, session))

    def push(self, data: bytes) -> int:
        """Bytes as an interrupt hands them over; returns how many found room."""
        return int(self._lib.sim_push(self._sim, data, len(data)))

    def clock(self, now_us: int) -> None:
        """What time it is."""
        self._lib.sim_clock(self._sim, ctypes.c_uint64(now_us))

    def stick(self, stuck: bool) -> None:
        """A line that takes nothing."""
        self._lib.sim_stick(self._sim, ctypes.c_bool(stuck))

    def rows(self, stream: int, values: NDArray[np.int16] | NDArray[np.float32], t0_us: int = 0, dt_us: int = 1) -> int:
        """Send rows; returns the status."""
        packed = np.ascontiguousarray(values)
        return int(
            self._lib.sim_rows(
                *(self._sim, stream, packed.ctypes.data_as(ctypes.c_void_p), len(packed)),
                *(ctypes.c_uint64(t0_us), dt_us),
            )
        )

    def result(self, t_us: int, model: int, class_index: int, score: int, took_us: int) -> int:
        """Send a prediction."""
        return int(self._lib.sim_result(self._sim, ctypes.c_uint64(t_us), model, class_index, score, took_us))

    def drift(self, t_us: int, channel: int = 0, direction: int = 1, statistic: int = 1, first_bin: int = 6) -> int:
        """Queue a drift report."""
        return int(self._lib.sim_drift(self._sim, ctypes.c_uint64(t_us), channel, direction, statistic, first_bin))

    def metrics(self) -> int:
        """Send METRICS unasked."""
        return int(self._lib.sim_metrics(self._sim))

    def log(self, level: int, text: str) -> int:
        """Send a line of text."""
        return int(self._lib.sim_log(self._sim, level, text.encode()))

    @property
    def reset_asked(self) -> bool:
        return bool(self._lib.sim_reset_asked(self._sim))

    @property
    def dead(self) -> bool:
        """Whether the power went."""
        return bool(self._lib.sim_dead(self._sim))

    @property
    def changed(self) -> int:
        """Bytes of flash that changed so far."""
        return int(self._lib.sim_changed(self._sim))

    @property
    def running(self) -> tuple[bytes, int, int, int]:
        """SHA-256, slot, state and counter of what runs."""
        sha = (ctypes.c_uint8 * 32)()
        numbers = [ctypes.c_uint32() for _ in range(3)]
        self._lib.sim_running(self._sim, sha, *map(ctypes.byref, numbers))
        return bytes(sha), *(number.value for number in numbers)  # type: ignore[return-value]

    def run(self, features: NDArray[np.int16]) -> tuple[int, int]:
        """The class and score of the model that runs."""
        kind, score = ctypes.c_uint16(), ctypes.c_uint16()
        packed = np.ascontiguousarray(features, np.int16)
        self._lib.sim_run(self._sim, packed.ctypes.data_as(ctypes.c_void_p), ctypes.byref(kind), ctypes.byref(score))
        return kind.value, score.value


class CReader:
    """The C decoder: bytes in, frames out; damaged ones are counted."""

    def __init__(self, payload_max: int = 1024) -> None:
        self._lib = library()
        self._reader = ctypes.c_void_p(self._lib.reader_new(payload_max))
        assert self._reader
        self._bad = ctypes.c_uint32()

    @property
    def bad(self) -> int:
        return self._bad.value

    def feed(self, data: bytes) -> list[line.Frame]:
        out = ctypes.create_string_buffer(len(data) * 2 + 2048)
        n = self._lib.reader_feed(self._reader, data, len(data), out, ctypes.byref(self._bad))
        raw, frames, at = out.raw[:n], [], 0
        while at < n:
            head, kind, seq, size = struct.unpack_from("<BBHH", raw, at)
            frames.append(line.Frame(head & 15, kind, seq, raw[at + 6 : at + 6 + size], head >> 4))
            at += 6 + size
        return frames

    def close(self) -> None:
        self._lib.reader_free(self._reader)


def c_encode(frame: line.Frame, ring_size: int = 4096, start: int = 0, reserve: int = 0) -> bytes | int:
    """A frame by the C encoder, or its status when there was no room."""
    out = ctypes.create_string_buffer(ring_size)
    n = library().frame_encode(
        *(frame.flags, frame.type, frame.seq, frame.payload, len(frame.payload), ring_size, start, reserve, out)
    )
    return out.raw[:n] if n >= 0 else int(n)


def c_predict(
    blob: bytes, windows: NDArray[np.int16], features: int, classes: int
) -> tuple[int, NDArray[np.int16], NDArray[np.uint16], NDArray[np.uint16]]:
    """Status, quantised features, classes and scores of windows `[n, rows, channels]`."""
    count = len(windows)
    packed = np.ascontiguousarray(windows, np.int16)
    quantised = np.zeros((count, features), np.int16)
    kinds = np.zeros(count, np.uint16)
    scores = np.zeros((count, classes), np.uint16)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (packed, quantised, kinds, scores)]
    status = library().model_predict(blob, len(blob), pointers[0], count, *pointers[1:])
    return int(status), quantised, kinds, scores


class CStats:
    """Statistics of one feature, by the C library."""

    def __init__(self, delta: int, threshold: int, warm_up: int, shift: int, edges: list[int]) -> None:
        self._lib = library()
        made = self._lib.stats_new(delta, threshold, warm_up, shift, (ctypes.c_int32 * 15)(*edges))
        if not made:
            raise ValueError("refused")
        self._stats = ctypes.c_void_p(made)

    def update(self, x: int) -> tuple[int, int, int, int, int, int, list[int]]:
        """Direction, mean, variance, up, down, count, histogram after a value of Q16.16."""
        out = (ctypes.c_int32 * 4)()
        count = ctypes.c_uint32()
        histogram = (ctypes.c_uint16 * 16)()
        direction = self._lib.stats_update(self._stats, x, out, ctypes.byref(count), histogram)
        return int(direction), *out, count.value, list(histogram)

    def close(self) -> None:
        self._lib.stats_free(self._stats)
