"""The serial line: frames and rows beside cobs and zlib in Python, bytes of a pty beside pyserial's ways to read, and
how much of a chunk's bytes on the wire are the model's, beside SMP over a console.

Each ratio is measured with both sides in turn in the same run, the best of several rounds of each.
"""

from __future__ import annotations

import os
import pty
import random
import struct
import time
import tty
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import serial
from cobs import cobs
from pytest_benchmark.fixture import BenchmarkFixture

from firmware_bridge.frames import ACKREQ, Block, Decoder, Frame, encode
from firmware_bridge.messages import ChunkRequest, SensorRows
from firmware_bridge.ports import Port

FRAMES = 2000
ROUNDS = 9
HEAD = struct.Struct("<BBH")
SENSOR = struct.Struct("<BBHIQI")
CHANNELS = 2
PTY_BYTES = 24_000_000
READ_UNTIL_BYTES = 100_000


def cpu_us(call: Callable[[], object]) -> float:
    """Of the processor, a frame: on a busy machine a long call would be interrupted more often than a short one."""
    start_s = time.thread_time()
    call()
    return (time.thread_time() - start_s) / FRAMES * 1e6


def in_turn(ours: Callable[[], object], peer: Callable[[], object]) -> tuple[float, float]:
    """The best of several rounds of each, one after the other so that a busy machine is busy for both."""
    mine, theirs = [], []
    for _ in range(ROUNDS):
        mine.append(cpu_us(ours))
        theirs.append(cpu_us(peer))
    return min(mine), min(theirs)


def frames_of(size: int) -> bytes:
    noise = random.Random(size)
    return b"".join(encode(Frame(0x40, i & 0xFFFF, noise.randbytes(size))) for i in range(FRAMES))


def peer_frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """What people write: PyPI's cobs, zlib, struct."""
    found = []
    for part in data.split(b"\0"):
        if not part:
            continue
        try:
            body = cobs.decode(part)
        except cobs.DecodeError:
            continue
        if len(body) < 8 or zlib.crc32(body[:-4]) != int.from_bytes(body[-4:], "little"):
            continue
        first, kind, seq = HEAD.unpack_from(body)
        found.append((first, kind, seq, body[4:-4]))
    return found


@pytest.mark.parametrize("size", [64, 512])
def test_frames(benchmark: BenchmarkFixture, size: int) -> None:
    data = frames_of(size)
    decoder = Decoder()._core
    assert decoder.feed(data) == peer_frames(data)
    ours, peer = in_turn(lambda: decoder.feed(data), lambda: peer_frames(data))
    benchmark(decoder.feed, data)
    benchmark.extra_info.update(
        table="serial", peer="cobs + zlib + struct", ratio=round(peer / ours, 1), wanted=3 if size == 64 else "-",
        ours_us=round(ours, 3), peer_us=round(peer, 3),
    )  # fmt: skip


def sensors_of(size: int) -> bytes:
    rows = (size - SENSOR.size) // (2 * CHANNELS)
    values = np.random.default_rng(size).integers(-2000, 2000, (rows, CHANNELS)).astype(np.int16)
    return b"".join(
        encode(Frame(0x10, i & 0xFFFF, SensorRows(0, i * rows, i * 1000, 100, values).encode())) for i in range(FRAMES)
    )


class PeerRows:
    """The same in Python: header, gap, values into a preallocated array, the time of each row."""

    def __init__(self, rows: int) -> None:
        self.values = np.empty((rows, CHANNELS), np.float32)
        self.times = np.empty(rows, np.int64)
        self.at = self.lost = 0
        self.expected = -1

    def feed(self, data: bytes) -> None:
        for _, kind, seq, payload in peer_frames(data):
            if kind != 0x10:
                continue
            _, _, rows, _, t0_us, dt_us = SENSOR.unpack_from(payload)
            if self.expected >= 0 and seq != self.expected:
                self.lost += (seq - self.expected) & 0xFFFF
            self.expected = (seq + 1) & 0xFFFF
            end = self.at + rows
            self.values[self.at : end] = np.frombuffer(payload, "<i2", rows * CHANNELS, SENSOR.size).reshape(
                rows, CHANNELS
            )
            self.times[self.at : end] = np.arange(rows) * dt_us + t0_us
            self.at = end


@pytest.mark.parametrize("size", [64, 512])
def test_rows(benchmark: BenchmarkFixture, size: int) -> None:
    data = sensors_of(size)
    rows = FRAMES * ((size - SENSOR.size) // (2 * CHANNELS))
    block, decoder = Block(CHANNELS, rows_max=rows), Decoder()
    decoder.bind(0, block)
    core, taken = decoder._core, peer_rows(data, rows)

    def ours() -> None:
        block.core.clear()
        block.core.joined()
        core.feed(data)

    ours()
    (run,) = block.take()
    assert np.array_equal(run.values, taken.values) and np.array_equal(run.times_us, taken.times)
    mine, peer = in_turn(ours, lambda: peer_rows(data, rows))
    benchmark(ours)
    benchmark.extra_info.update(
        table="serial", peer="cobs + zlib + struct + numpy", ratio=round(peer / mine, 1), wanted=4,
        ours_us=round(mine, 3), peer_us=round(peer, 3),
    )  # fmt: skip


def peer_rows(data: bytes, rows: int) -> PeerRows:
    peer = PeerRows(rows)
    peer.feed(data)
    return peer


# a pty --------------------------------------------------------------------------------------------------


Go = Callable[[], float]
Reader = Callable[[str, int, Go], tuple[int, float]]


def pumped(size: int, read: Reader) -> float:
    """Megabytes a second that a reader gets from a pty whose other end writes as fast as it can."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    data = (frames_of(512) * (1 + size // 1_000_000))[:size]
    waits, starts = os.pipe()
    child = os.fork()  # a process of its own: two threads would share one interpreter
    if child == 0:
        try:
            os.read(waits, 1)  # opening a port throws away what came before
            view = memoryview(data)
            while view:
                view = view[os.write(master, view[:65536]) :]
            time.sleep(5)
        finally:
            os._exit(0)

    def go() -> float:
        os.write(starts, b"!")
        return time.perf_counter()

    try:
        got, start_s = read(os.ttyname(slave), size, go)
        took_s = time.perf_counter() - start_s
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        for fd in (master, slave, waits, starts):
            os.close(fd)
    assert got >= size * 0.99, f"{got} of {size} bytes"
    return got / took_s / 1e6


def by_us(path: str, size: int, go: Go) -> tuple[int, float]:
    port, got = Port(path), 0
    start_s = go()
    while got < size and port.wait(2.0):
        got += len(port.read())
    port.close()
    return got, start_s


def by_us_with_frames(path: str, size: int, go: Go) -> tuple[int, float]:
    port, got, decoder = Port(path), 0, Decoder()._core
    start_s = go()
    while got < size and port.wait(2.0):
        data = port.read()
        got += len(data)
        decoder.feed(data)
    port.close()
    return got, start_s


def by_pyserial(take: Callable[[serial.Serial], bytes]) -> Reader:
    def read(path: str, size: int, go: Go) -> tuple[int, float]:
        with serial.Serial(path, 115200, timeout=1) as port:
            got, start_s = 0, go()
            while got < size and time.perf_counter() - start_s < 60:
                got += len(take(port))
        return got, start_s

    return read


PATTERNS: dict[str, tuple[Reader, int]] = {
    "in_waiting + read": (by_pyserial(lambda port: port.read(port.in_waiting or 1)), PTY_BYTES),
    "read(4096)": (by_pyserial(lambda port: port.read(4096)), PTY_BYTES),
    "read_until(0)": (by_pyserial(lambda port: port.read_until(b"\0")), READ_UNTIL_BYTES),
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pty(benchmark: BenchmarkFixture, pattern: str) -> None:
    read, size = PATTERNS[pattern]
    mine, peer, decoded = [], [], []
    for _ in range(5):
        mine.append(pumped(PTY_BYTES, by_us))
        peer.append(pumped(size, read))
        decoded.append(pumped(PTY_BYTES, by_us_with_frames))
    benchmark.pedantic(lambda: pumped(PTY_BYTES // 4, by_us), rounds=1)  # type: ignore[no-untyped-call]
    benchmark.extra_info.update(
        table="pty", peer=f"pyserial {pattern}", ratio=round(max(mine) / max(peer), 1), wanted_MB_s=50,
        ours_MB_s=round(max(mine), 1), ours_with_frames_MB_s=round(max(decoded), 1), peer_MB_s=round(max(peer), 2),
    )  # fmt: skip


# the bytes of a chunk -------------------------------------------------------------------------------------


def smp_bytes(payload: bytes) -> int:
    """What SMP over a console sends for an upload request of the same bytes, by the `smp` package's own encoder."""
    from smp import packet
    from smp.image_management import ImageUploadWriteRequest

    request = ImageUploadWriteRequest(off=512, data=payload)
    return sum(len(line) for line in packet.encode(bytes(request), line_length=127))


@pytest.mark.parametrize("what", ["random", "zeros"])
def test_chunk_on_the_wire(benchmark: BenchmarkFixture, what: str) -> None:
    payload = random.Random(3).randbytes(512) if what == "random" else bytes(512)
    data = benchmark(encode, Frame(ChunkRequest.TYPE, 1, ChunkRequest(512, payload).encode(), ACKREQ))
    smp = smp_bytes(payload)
    benchmark.extra_info.update(
        table="chunk", peer="SMP on a console (smp)", ratio=round(smp / len(data), 2), wanted=0.95,
        ours=round(512 / len(data), 4), peer_efficiency=round(512 / smp, 4), ours_bytes=len(data), peer_bytes=smp,
    )  # fmt: skip
