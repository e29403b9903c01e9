"""The two model slots of a simulated board, as docs/wire.md lays them out, in files in place of flash.

What a slot holds is decided by what was written, in the order in which it was written, never by what was meant: so a
board may lose power at any byte. `Flash` is the only thing that touches a file; tests cut its power.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from .errors import HASH, SIZE, STATE, STORE, RefusedError
from .messages import CONFIRMED, FACTORY, TRIAL, BeginRequest

HEADER_BYTES: Final = 64
MODEL_AT: Final = 128
"""Where the model begins in a slot."""
_HEADER: Final = struct.Struct("<4sI32sHHI12sI")
_MAGIC: Final = b"TBS1"
_SET: Final = b"\xa5" * 16
VALID_AT, TRIAL_AT, CONFIRMED_AT, REJECTED_AT = 64, 80, 96, 112


class Memory(Protocol):
    """A slot's memory: erased to ones, then written."""

    size: int

    def erase(self) -> None:
        """All ones."""
        ...

    def write(self, offset: int, data: bytes) -> None:
        """Write what is erased."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """Read."""
        ...


class Flash:
    """A file that behaves like flash: an erase makes all bits 1, a write only makes some of them 0."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        if not path.exists() or path.stat().st_size != size:
            path.write_bytes(b"\xff" * size)

    def erase(self) -> None:
        """All ones."""
        self.path.write_bytes(b"\xff" * self.size)

    def write(self, offset: int, data: bytes) -> None:
        """Write what is erased; other bits stay 0, as in flash."""
        with self.path.open("r+b") as file:
            file.seek(offset)
            before = file.read(len(data))
            file.seek(offset)
            file.write(bytes(a & b for a, b in zip(before, data, strict=False)))

    def read(self, offset: int, size: int) -> bytes:
        """Read."""
        with self.path.open("rb") as file:
            file.seek(offset)
            return file.read(size)


@dataclass(frozen=True, slots=True)
class Header:
    """What a slot says of itself."""

    size: int
    sha256: bytes
    format: int
    abi: int
    counter: int
    valid: bool
    tried: bool
    confirmed: bool
    rejected: bool

    @property
    def runs(self) -> bool:
        """Whether it may run, confirmed."""
        return self.valid and self.confirmed and not self.rejected


class Slots:
    """Two slots, and which of them runs.

    Attributes:
        running: the slot whose model runs; None for the factory's.
        state: `FACTORY`, `TRIAL` or `CONFIRMED`.
    """

    def __init__(self, memories: tuple[Memory, Memory], align: int = 8) -> None:
        self._memories = memories
        self._align = align
        self.running: int | None = None
        self.state = FACTORY
        self._next = 0
        self._taking: int | None = None

    @classmethod
    def in_folder(cls, folder: Path, slot_bytes: int, align: int = 8) -> Slots:
        """Slots in files of a folder, which is made when it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls((Flash(folder / "slot0.bin", slot_bytes), Flash(folder / "slot1.bin", slot_bytes)), align)

    @property
    def model_bytes_max(self) -> int:
        """The largest model that a slot takes."""
        return min(memory.size for memory in self._memories) - MODEL_AT

    def header(self, slot: int) -> Header | None:
        """What a slot holds; None when it holds nothing whole."""
        raw = self._memories[slot].read(0, MODEL_AT)
        magic, size, sha256, kind, abi, counter, _, crc = _HEADER.unpack_from(raw)
        if magic != _MAGIC or crc != zlib.crc32(raw[: HEADER_BYTES - 4]) or size > self._memories[slot].size - MODEL_AT:
            return None
        marks = [raw[at : at + 16] == _SET for at in (VALID_AT, TRIAL_AT, CONFIRMED_AT, REJECTED_AT)]
        return Header(size, sha256, kind, abi, counter, *marks)

    def model(self, slot: int) -> bytes:
        """The bytes of a slot's model."""
        header = self.header(slot)
        return b"" if header is None else self._memories[slot].read(MODEL_AT, header.size)

    def _mark(self, slot: int, at: int) -> None:
        self._memories[slot].write(at, _SET)

    # at start -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Decide what runs, as after a restart."""
        self._taking = None
        for slot in self._newest_first():
            header = self.header(slot)
            if header is None or not header.valid or header.rejected:
                continue
            if header.confirmed:
                self.running, self.state = slot, CONFIRMED
                return
            if header.tried:  # it was started once and never confirmed
                self._mark(slot, REJECTED_AT)
                continue
            self._mark(slot, TRIAL_AT)
            self.running, self.state = slot, TRIAL
            return
        self.running, self.state = None, FACTORY

    def _newest_first(self) -> list[int]:
        found = [(header.counter, slot) for slot in (0, 1) if (header := self.header(slot)) is not None]
        return [slot for _, slot in sorted(found, reverse=True)]

    # a model comes ------------------------------------------------------------------------------------------

    def begin(self, request: BeginRequest) -> tuple[int, int]:
        """Make a slot ready; the slot, and where to go on.

        Raises:
            RefusedError: not now, or not here.
        """
        if self.state == TRIAL:
            raise RefusedError("MODEL_BEGIN", STATE, "a model is on trial")
        if not 0 < request.size <= self.model_bytes_max:
            raise RefusedError("MODEL_BEGIN", SIZE, f"a slot takes {self.model_bytes_max} bytes")
        slot = 0 if self.running is None else 1 - self.running
        header = self.header(slot)
        half = header is not None and not header.valid and not header.rejected
        if not half or header is None or (header.sha256, header.size) != (request.sha256, request.size):
            self._write_header(slot, request)
        self._taking = slot
        self._next = self._written(slot, request.size)
        return slot, self._next

    def _write_header(self, slot: int, request: BeginRequest) -> None:
        other = self.header(1 - slot)
        counter = 1 if other is None else other.counter + 1 & 0xFFFFFFFF
        self._memories[slot].erase()
        head = _HEADER.pack(_MAGIC, request.size, request.sha256, request.format, request.abi, counter, bytes(12), 0)[
            : HEADER_BYTES - 4
        ]
        self._memories[slot].write(0, head + zlib.crc32(head).to_bytes(4, "little"))

    def _written(self, slot: int, size: int) -> int:
        """How far the model is there: up to the unit that holds the last byte which is not erased."""
        data = self._memories[slot].read(MODEL_AT, size).rstrip(b"\xff")
        return size if len(data) == size else len(data) // self._align * self._align

    def chunk(self, offset: int, data: bytes) -> int:
        """Write what goes on where the model ends; where to go on then.

        Raises:
            RefusedError: no model is coming, or the chunk is no multiple of `align`.
        """
        if self._taking is None:
            raise RefusedError("MODEL_CHUNK", STATE, "no model is coming")
        header = self.header(self._taking)
        if header is None:
            raise RefusedError("MODEL_CHUNK", STORE, "the slot has no header")
        if offset != self._next:
            return self._next
        end = offset + len(data)
        if end > header.size or (len(data) % self._align and end != header.size):
            raise RefusedError("MODEL_CHUNK", SIZE, f"{len(data)} bytes at {offset} of {header.size}")
        self._memories[self._taking].write(MODEL_AT + offset, data)
        self._next = end
        return end

    def arrived(self, sha256: bytes) -> bytes:
        """The bytes of the model that came, its hash checked.

        Raises:
            RefusedError: it is not all there, or not what was announced.
        """
        if self._taking is None:
            raise RefusedError("MODEL_COMMIT", STATE, "no model is coming")
        header = self.header(self._taking)
        if header is None or header.sha256 != sha256 or self._next != header.size:
            raise RefusedError("MODEL_COMMIT", STATE, "another model, or not all of it, is there")
        data = self.model(self._taking)
        if hashlib.sha256(data).digest() != sha256:
            self.reject()
            raise RefusedError("MODEL_COMMIT", HASH, "what was written differs")
        return data

    def reject(self) -> None:
        """What came is no model for this board: the next one, the same or another, begins anew."""
        if self._taking is not None:
            self._mark(self._taking, REJECTED_AT)
            self._taking = None

    def try_out(self) -> int:
        """Run what came, on trial; its slot."""
        if self._taking is None:
            raise RefusedError("MODEL_COMMIT", STATE, "no model is coming")
        slot, self._taking = self._taking, None
        self._mark(slot, VALID_AT)
        self._mark(slot, TRIAL_AT)
        self.running, self.state = slot, TRIAL
        return slot

    def confirm(self) -> int:
        """The model that runs stays.

        Raises:
            RefusedError: the factory's model runs.
        """
        if self.running is None:
            raise RefusedError("MODEL_CONFIRM", STATE, "no model is on trial")
        if self.state == TRIAL:
            self._mark(self.running, CONFIRMED_AT)
            self.state = CONFIRMED
        return self.running

    def abort(self) -> None:
        """Erase what was received."""
        if self._taking is not None:
            self._memories[self._taking].erase()
            self._taking = None

    def roll_back(self) -> None:
        """The model that runs is rejected; the earlier one runs.

        Raises:
            RefusedError: there is nothing to go back to.
        """
        if self.running is None:
            raise RefusedError("MODEL_ROLLBACK", STATE, "the factory's model runs")
        self._mark(self.running, REJECTED_AT)
        self.start()
