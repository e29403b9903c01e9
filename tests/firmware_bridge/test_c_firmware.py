"""The real firmware: the MPS2 example, compiled for Cortex-M3 and run by QEMU, speaks the line."""

from __future__ import annotations

import struct
from pathlib import Path

import line_reference as line
import msgpack
import pytest
from qemu_board import QemuBoard, firmware


@pytest.fixture(scope="module")
def elf(root: Path) -> Path:
    return firmware(root)


def hello(board: QemuBoard, session: int = 7) -> dict:
    answer = board.ask(line.HELLO, struct.pack("<BBHI", 1, 1, 1024, session))
    assert answer.flags == line.RESP
    return msgpack.unpackb(answer.payload)


def test_it_says_what_it_is(elf: Path, tmp_path: Path) -> None:
    with QemuBoard(elf, tmp_path, uid="watch-7") as board:
        caps = hello(board)
    assert caps["uid"] == "watch-7"
    assert caps["slots"] == 2 and caps["abi"] == 1 and caps["formats"] == [1]
    assert caps["model"]["slot"] == 255 and caps["model"]["state"] == 0
    (sensor,) = caps["sensors"]
    assert sensor["channels"] == ["ax", "ay", "az", "gx", "gy", "gz"] and sensor["rate_mhz"] == 10_000


def test_a_stream_comes_whole_and_ends_as_told(elf: Path, tmp_path: Path) -> None:
    with QemuBoard(elf, tmp_path, speed=50) as board:
        hello(board)
        board.ask(line.STREAM, struct.pack("<BBI", 0, 1, 0xFFFFFFFF))
        board.read(2.0)
        off = board.ask(line.STREAM, struct.pack("<BBI", 0, 0, 0))
        board.read(0.3)
    sensor = [frame for frame in board.frames if frame.type == line.SENSOR]
    _, on, _, next_seq, next_index = struct.unpack("<BBIHI", off.payload)
    assert on == 0 and next_seq == len(sensor) > 20
    assert [frame.seq for frame in sensor] == list(range(len(sensor)))
    index = 0
    for frame in sensor:
        _, kind, rows, first, _, dt_us = struct.unpack("<BBHIQI", frame.payload[:20])
        assert (kind, first, dt_us, len(frame.payload)) == (1, index, 2000, 20 + rows * 12)
        index += rows
    assert next_index == index


def test_credit_is_kept_to(elf: Path, tmp_path: Path) -> None:
    with QemuBoard(elf, tmp_path, speed=50) as board:
        hello(board)
        board.ask(line.STREAM, struct.pack("<BBI", 0, 1, 3))
        board.read(1.5)
        metrics = msgpack.unpackb(board.ask(line.METRICS).payload)
    assert len([frame for frame in board.frames if frame.type == line.SENSOR]) == 3
    assert metrics["credit"] == 0 and metrics["rows_drop"] > 0
