"""Slots of a board: what runs after a power cut at any byte is what docs/wire.md's table says, and always whole."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import pytest
from board_models import begin_of as request
from board_models import install, threshold_model

from firmware_bridge.errors import RefusedError
from firmware_bridge.messages import CONFIRMED, FACTORY, TRIAL, BeginRequest
from firmware_bridge.slots import Flash, Slots

FIRST, SECOND, THIRD = (threshold_model(i, filler=20 + i) for i in (1, 2, 3))
SIZE = 2048


class PowerCutError(Exception):
    """The board is off."""


class Fading:
    """A memory that loses power after so many bytes were written, also in the middle of a write or an erase."""

    def __init__(self, path: Path, budget: list[int]) -> None:
        self._flash, self._budget, self.size = Flash(path, SIZE), budget, SIZE

    def erase(self) -> None:
        if self._budget[0] < 256:
            data = self._flash.path.read_bytes()
            self._flash.path.write_bytes(b"\xff" * self._budget[0] + data[self._budget[0] :])
            raise PowerCutError
        self._budget[0] -= 256
        self._flash.erase()

    def write(self, offset: int, data: bytes) -> None:
        part = data[: self._budget[0]]
        self._flash.write(offset, part)
        self._budget[0] -= len(part)
        if len(part) < len(data):
            raise PowerCutError

    def read(self, offset: int, size: int) -> bytes:
        return self._flash.read(offset, size)


def running(slots: Slots) -> bytes:
    return b"" if slots.running is None else slots.model(slots.running)


def test_models_take_turns_and_what_runs_survives_a_restart(tmp_path: Path) -> None:
    slots = Slots.in_folder(tmp_path, SIZE)
    slots.start()
    assert (slots.running, slots.state) == (None, FACTORY)
    for blob in (FIRST, SECOND, THIRD):
        install(slots, blob)
        slots = Slots.in_folder(tmp_path, SIZE)
        slots.start()
        assert (running(slots), slots.state) == (blob, CONFIRMED)


def test_power_lost_at_any_byte_leaves_a_whole_model(tmp_path: Path) -> None:
    """From the second model on trial to the third confirmed, cut after each byte."""
    total = 2 * 256 + 64 + len(SECOND) + 3 * 16 + 400
    outcomes = set()
    for budget in range(total):
        folder = tmp_path / str(budget)
        plain = Slots.in_folder(folder, SIZE)
        plain.start()
        install(plain, FIRST)
        left = [budget]
        slots = Slots((Fading(folder / "slot0.bin", left), Fading(folder / "slot1.bin", left)))
        slots.start()
        with contextlib.suppress(PowerCutError):
            install(slots, SECOND)
        for _ in range(3):  # the first start may begin a trial, the next one ends it
            slots = Slots.in_folder(folder, SIZE)
            slots.start()
            assert running(slots) in (FIRST, SECOND)
            assert hashlib.sha256(running(slots)).digest() == slots.header(slots.running or 0).sha256  # type: ignore[union-attr]
        outcomes.add(running(slots))
        if slots.state == CONFIRMED and running(slots) == FIRST:  # and the way on is open
            install(slots, SECOND)
            assert running(slots) == SECOND
        for file in folder.iterdir():
            file.unlink()
    assert outcomes == {FIRST, SECOND}


def test_a_trial_ends_with_the_next_start(tmp_path: Path) -> None:
    slots = Slots.in_folder(tmp_path, SIZE)
    slots.start()
    install(slots, FIRST)
    install(slots, SECOND, confirm=False)
    assert slots.state == TRIAL and running(slots) == SECOND
    with pytest.raises(RefusedError, match="on trial"):
        slots.begin(request(THIRD))
    slots.start()
    assert slots.state == CONFIRMED and running(slots) == FIRST


def test_a_half_model_goes_on_where_it_was_and_another_begins_anew(tmp_path: Path) -> None:
    slots = Slots.in_folder(tmp_path, SIZE)
    slots.start()
    slots.begin(request(FIRST))
    slots.chunk(0, FIRST[:128])
    slots = Slots.in_folder(tmp_path, SIZE)
    slots.start()
    _, offset = slots.begin(request(FIRST))
    assert 112 <= offset <= 128
    assert slots.begin(request(SECOND))[1] == 0
    assert slots.begin(request(FIRST))[1] == 0
    slots.chunk(0, FIRST[:128])
    slots.abort()
    assert slots.begin(request(FIRST))[1] == 0


def test_rollback_rejects_what_runs(tmp_path: Path) -> None:
    slots = Slots.in_folder(tmp_path, SIZE)
    slots.start()
    install(slots, FIRST)
    install(slots, SECOND)
    slots.roll_back()
    assert running(slots) == FIRST
    slots.roll_back()
    assert slots.running is None and slots.state == FACTORY
    with pytest.raises(RefusedError, match="factory"):
        slots.roll_back()


def test_what_is_out_of_order_is_refused_or_not_written(tmp_path: Path) -> None:
    slots = Slots.in_folder(tmp_path, SIZE)
    slots.start()
    with pytest.raises(RefusedError, match="no model is coming"):
        slots.chunk(0, b"12345678")
    with pytest.raises(RefusedError, match="no model is coming"):
        slots.arrived(bytes(32))
    with pytest.raises(RefusedError, match="no model is on trial"):
        slots.confirm()
    with pytest.raises(RefusedError, match="takes 1920"):
        slots.begin(BeginRequest(1921, bytes(32), 1, 1))
    slots.begin(request(FIRST))
    assert slots.chunk(64, FIRST[64:128]) == 0
    with pytest.raises(RefusedError, match="SIZE"):
        slots.chunk(0, FIRST[:61])
    with pytest.raises(RefusedError, match="not all of it"):
        slots.arrived(hashlib.sha256(FIRST).digest())
    slots.chunk(0, bytes(len(FIRST)))
    with pytest.raises(RefusedError, match="HASH"):
        slots.arrived(hashlib.sha256(FIRST).digest())
