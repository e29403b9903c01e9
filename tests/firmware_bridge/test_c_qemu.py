"""The real firmware on a pty: its predictions are an oracle's, and every row is itself or told to be missing.

What a host does with it is in test_qemu_line.py.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
from board_oracle import Oracle, random_network, random_trees
from qemu_board import QemuBoard, firmware
from serial_wire import Faults, FaultyPty
from watch_model import converted

from firmware_bridge.errors import BridgeError
from firmware_bridge.link import Link, open_link
from firmware_bridge.messages import (
    MetricsRequest,
    StreamRequest,
)
from firmware_bridge.protocol import Event, Gap, Received, Rows
from firmware_bridge.transfer import Transfer

CHANNELS = 6
DRIFT, RESULT, LOG, METRICS = 0x21, 0x11, 0x40, 0x20


@pytest.fixture(scope="module")
def elf(root: Path) -> Path:
    return firmware(root)


def model(seed: int, rows: int = 50) -> bytes:
    """A network for the watch's six channels, moved on by 10 rows."""
    blob = bytearray(random_network(seed, (30, 16, 4), rows=rows, channels=CHANNELS))
    blob[16:18] = (10).to_bytes(2, "little")
    return bytes(blob)


def sha(blob: bytes) -> str:
    return hashlib.sha256(blob).hexdigest()


def opened(path: str, time_interval_s: float = 0.0) -> Link:
    return open_link(path, baud=115_200, hello_s=30.0, units=False, time_interval_s=time_interval_s)


def gathered(link: Link, seconds: float) -> list[Event]:
    events: list[Event] = []
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        events += link.poll(left)
    return events


def update(link: Link, blob: bytes, timeout_s: float = 120.0) -> Transfer:
    return link.update(Transfer(blob, session=link.session), timeout_s=timeout_s)


def messages(events: list[Event], kind: int) -> list:
    return [event.message for event in events if isinstance(event, Received) and kind == event.message.TYPE]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["network", "forest", "converted"])
def test_400_predictions_equal_the_oracles(elf: Path, tmp_path: Path, root: Path, kind: str) -> None:
    """Of the windows that lie within what was streamed; `converted` is the forest of examples/board_activity."""
    if kind == "network":
        blob = model(1)
    elif kind == "forest":
        changed = bytearray(random_trees(2, trees=12, features=30, rows=50, channels=CHANNELS))
        changed[16:18] = (10).to_bytes(2, "little")
        blob = bytes(changed)
    else:
        blob = converted(root).blob
    oracle = Oracle(blob)
    with QemuBoard(elf, tmp_path, pty=True, speed=100, trial_s=600) as board, opened(board.path) as link:
        update(link, blob)
        link.ask(StreamRequest(0, True))
        events: list[Event] = []
        for _ in range(60):
            events += gathered(link, 1.0)
            if len(messages(events, RESULT)) > 430:
                break
    rows: dict[int, np.ndarray] = {}
    for event in events:
        if isinstance(event, Rows):
            rows |= zip(event.times_us.tolist(), event.values.astype(np.int16), strict=True)
    wanted = int.from_bytes(hashlib.sha256(blob).digest()[:4], "little")
    compared = 0
    for result in messages(events, RESULT):
        if result.model != wanted:  # before the update
            continue
        times = [result.time_us - 1000 * back for back in reversed(range(oracle.rows))]
        if all(at in rows for at in times):
            told = oracle.predict(np.stack([rows[at] for at in times]))
            assert (result.label, result.score) == (told.label, told.scores[told.label])
            compared += 1
    assert compared >= 400


@pytest.mark.long
def test_a_line_that_damages_a_byte_in_a_thousand(elf: Path, tmp_path: Path) -> None:
    """Flipped, dropped, doubled and invented bytes, 1e-3 each: all requests and an update complete, gaps are told."""
    blob = model(6)
    there, back = Faults.each(1e-3, 1), Faults.each(1e-3, 51)
    with (
        QemuBoard(elf, tmp_path, pty=True, speed=20, trial_s=600, metrics_ms=0) as board,
        FaultyPty(board.path, there, back) as proxy,
        opened(proxy.path) as link,
    ):
        asked(link, StreamRequest(0, True))
        events = gathered(link, 5.0)
        transfer = update(link, blob, 300.0)
        assert transfer.error is None
        for _ in range(40):
            asked(link, MetricsRequest())
        off = asked(link, StreamRequest(0, False))
        events += gathered(link, 1.0)
    assert there.done > 0 and back.done > 0
    at = lost = 0
    for event in events:
        if isinstance(event, Rows):
            assert event.index == at
            at += len(event.values)
        elif isinstance(event, Gap):
            assert event.index == at
            at += event.rows
            lost += event.frames
    assert at == off.index and lost > 0
    with QemuBoard(elf, tmp_path, pty=True) as board, opened(board.path) as link:
        assert (link.caps.model.sha256, link.caps.model.state) == (sha(blob), 2)


def asked(link: Link, request):
    """Ask until it is answered: four tries in a row may all be damaged."""
    for _ in range(10):
        try:
            return link.ask(request)
        except BridgeError:
            continue
    raise AssertionError(f"no answer to {request}")


def test_no_semihosting_and_no_store_is_a_board_too(elf: Path, tmp_path: Path) -> None:
    with QemuBoard(elf, tmp_path, pty=True, semihosting=False) as board, opened(board.path) as link:
        assert link.caps.uid == "mps2-an385-0001"
        assert update(link, model(8)).error is None
