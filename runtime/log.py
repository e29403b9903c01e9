"""One segmented log on disk: its format, its recovery as a function of the bytes, and its cursor.

It owns the files of one stream; threads, queues and time are the journal's. Only the journal's thread may call what
writes (`recover`, `commit`, `save_cursor`, `seal`, `make_room`); `read`, `acknowledge` and `stats` may be called from
any thread.

A folder holds segments `00000001.seg`, `00000002.seg`, ... and `cursor`. All integers are little-endian.

    segment   two copies of a header of 96 bytes (a damaged sector may take one), then entries until the end
    header    magic "TLMJRNL\\n", u16 schema, u8 stream, u8 length of boot, 8 bytes epoch, u64 first seq,
              64 bytes boot, u32 CRC-32C of all before
    entry     4 bytes marker, u32 CRC-32C of all that follows, u32 kind << 24 | length of body, u64 seq,
              8 bytes epoch, body
    body      msgpack of [type, boot_ns, payload]
    cursor    two slots, 4096 bytes apart: u64 generation, u64 segment, 8 bytes epoch, u64 seq, u32 CRC-32C

Rules
1. Every entry carries its epoch, so that a record keeps its id when both headers are gone: 8 bytes of some 250 buy
   that. The boot is in the header alone; without any header it is empty, which means that the time is not known.
2. A segment has one epoch, and none is appended to after the log was opened again.
3. After a failed write the records go to a new segment. Of two entries with one id the one in the later segment
   counts: an entry whose seq is not below the first seq of a later segment of its epoch is not read.
4. Damage costs the entries that it hits: reading goes on at the next marker whose CRC is right. What is missing
   between two seqs of an epoch is a hole. A `seal` ends a log that was closed in order, so a hole at its end is
   seen; without a seal the end was torn by a crash, and nothing there was ever durable.
5. A segment is given up only after the gap record that declares it is durable, and deleted after an
   acknowledgement only when the cursor is durable.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

import msgpack

from ._ext.frame import crc32c
from .errors import DeviceError
from .files import device_error, fsync_folder, make_folder
from .types import Json, Record, Stream

JOURNAL_SCHEMA: Final = 1
MAGIC: Final = b"TLMJRNL\n"
MARKER: Final = b"\xf5TL\xff"  # 0xF5 and 0xFF never occur in UTF-8: no text in a payload looks like a marker
RECORD: Final = 1
GAP: Final = 2
SEAL: Final = 3
ENTRIES_AT: Final = 192  # bytes of the two headers
ENTRY_BYTES: Final = 28  # bytes of an entry without its body
CURSOR_BYTES: Final = 8192
BOOT_BYTES_MAX: Final = 64
_HEADER: Final = struct.Struct("<8sHBB8sQ64sI")
_ENTRY: Final = struct.Struct("<4sIIQ8s")
_FIELDS: Final = struct.Struct("<IQ8s")
_CURSOR: Final = struct.Struct("<QQ8sQI")
_SLOT_BYTES: Final = 4096
_LENGTH_MASK: Final = (1 << 24) - 1
_SEQ_MAX: Final = (1 << 63) - 1
_PAGE_BYTES: Final = 4096
_STREAM_NUMBERS: Final[dict[Stream, int]] = {"events": 1, "details": 2}


@dataclass(frozen=True, slots=True)
class Loss:
    """Records that will not come: seqs `first` to `last` of an epoch, `count` of them, and why.

    `reason` is `damaged` (on the disk), `dropped` (the bound in bytes) or `memory` (the queue was full).
    """

    epoch: str
    first: int
    last: int
    reason: str
    count: int

    def payload(self) -> dict[str, Json]:
        """The payload of the gap record that declares it."""
        return {
            "epoch": self.epoch,
            "from_seq": self.first,
            "to_seq": self.last,
            "reason": self.reason,
            "count": self.count,
        }


@dataclass(frozen=True, slots=True)
class Cursor:
    """The last acknowledged record: its segment's number, epoch and seq; all empty before the first."""

    segment: int = 0
    epoch: str = ""
    seq: int = 0
    generation: int = field(default=0, compare=False)


@dataclass(slots=True)
class Segment:
    """One file of the log, as far as it is durable."""

    number: int
    path: Path
    epoch: str
    boot: str
    first_seq: int
    last_seq: int
    size: int
    limit: int = _SEQ_MAX  # seqs from here on are in a later segment


class Entry(NamedTuple):
    """A sound entry and where it ends: segment number and offset in bytes."""

    kind: int
    epoch: str
    seq: int
    body: bytes
    segment: int
    end: int


class Hole(NamedTuple):
    """Seqs that an epoch should have and the disk has not; noticed in that segment."""

    epoch: str
    first: int
    last: int
    segment: int


class Ranges:
    """Closed ranges of seqs, by epoch; ranges that touch become one."""

    def __init__(self) -> None:
        self._ranges: dict[str, list[tuple[int, int]]] = {}

    def add(self, epoch: str, first: int, last: int) -> None:
        """Put a range in."""
        kept = []
        for low, high in self._ranges.get(epoch, []):
            if high + 1 < first or last + 1 < low:
                kept.append((low, high))
            else:
                first, last = min(first, low), max(last, high)
        self._ranges[epoch] = sorted([*kept, (first, last)])

    def missing_from(self, epoch: str, first: int, last: int) -> list[tuple[int, int]]:
        """The parts of a range that are not in."""
        parts = []
        for low, high in self._ranges.get(epoch, []):
            if high < first or low > last:
                continue
            if first < low:
                parts.append((first, low - 1))
            first = high + 1
        if first <= last:
            parts.append((first, last))
        return parts

    def keep(self, epochs: set[str]) -> None:
        """Forget all other epochs."""
        for epoch in self._ranges.keys() - epochs:
            del self._ranges[epoch]


def encode_header(stream: Stream, epoch: str, boot: str, first_seq: int) -> bytes:
    """The two header copies that a segment begins with."""
    name = boot.encode()
    fields = _HEADER.pack(
        MAGIC, JOURNAL_SCHEMA, _STREAM_NUMBERS[stream], len(name), bytes.fromhex(epoch), first_seq, name, 0
    )[:-4]
    return (fields + crc32c(fields).to_bytes(4, "little")) * 2


def encode_entry(kind: int, epoch: str, seq: int, body: bytes) -> bytes:
    """One entry as it stands in a segment."""
    rest = _FIELDS.pack(kind << 24 | len(body), seq, bytes.fromhex(epoch)) + body
    return MARKER + crc32c(rest).to_bytes(4, "little") + rest


def encode_body(kind: str, boot_ns: int, payload: Json) -> bytes:
    """A record's body; raises ValueError, OverflowError or UnicodeError for what msgpack cannot hold."""
    packed = msgpack.packb([kind, boot_ns, payload])
    assert isinstance(packed, bytes)
    return packed


def decode_record(entry: Entry, boot: str) -> Record:
    """The record of a sound entry."""
    kind, boot_ns, payload = msgpack.unpackb(entry.body, strict_map_key=False)
    return Record(kind, entry.epoch, entry.seq, boot, boot_ns, payload)


def decode_loss(entry: Entry) -> Loss:
    """What a gap record declares."""
    payload = decode_record(entry, "").payload
    return Loss(*(payload[key] for key in ("epoch", "from_seq", "to_seq", "reason", "count")))  # type: ignore[arg-type]


def parse_header(data: bytes, path: Path, stream: Stream) -> tuple[str, str, int] | None:
    """Epoch, boot and first seq of a segment; None when both copies are damaged.

    Raises:
        DeviceError: a later version of the software wrote it, or it belongs to the other stream.
    """
    for offset in (0, _HEADER.size):
        copy = data[offset : offset + _HEADER.size]
        if len(copy) < _HEADER.size or crc32c(copy[:-4]) != int.from_bytes(copy[-4:], "little"):
            continue
        magic, schema, number, length, epoch, first_seq, boot, _ = _HEADER.unpack(copy)
        if magic != MAGIC:
            continue
        if schema != JOURNAL_SCHEMA:
            raise DeviceError(
                f"{path} has journal schema {schema}, this version reads {JOURNAL_SCHEMA}: "
                "install the version that wrote it, or move the folder away"
            )
        if number != _STREAM_NUMBERS[stream]:
            raise DeviceError(f"{path} does not belong to the stream {stream}: move it out of this folder")
        return epoch.hex(), boot[:length].decode("utf-8", "replace"), first_seq
    return None


def entries(data: bytes, offset: int, segment: int, start: int = 0) -> Iterator[Entry]:
    """The sound entries of a segment's bytes from an offset on; damage is passed over.

    Args:
        data: bytes of the segment from `start` on.
        offset: where to begin, counted in `data`.
        segment: the segment's number, and
        start: the place of `data` in it, for the entries' positions.
    """
    view, size = memoryview(data), len(data)
    while offset + ENTRY_BYTES <= size:
        marker, crc, word, seq, epoch = _ENTRY.unpack_from(data, offset)
        end = offset + ENTRY_BYTES + (word & _LENGTH_MASK)
        if marker == MARKER and end <= size and crc32c(view[offset + 8 : end]) == crc:
            yield Entry(word >> 24, epoch.hex(), seq, data[offset + ENTRY_BYTES : end], segment, start + end)
            offset = end
            continue
        offset = data.find(MARKER, offset + 1)
        if offset < 0:
            return


def walk(sources: Iterable[tuple[Segment, bytes, int]], epoch: str, last: int) -> Iterator[Entry | Hole]:
    """Records, gap records and holes of a log in order, each id once.

    Args:
        sources: segments in order, each with its bytes from an offset on, and that offset.
        epoch: of the record after which to begin, and
        last: its seq; "" and 0 to begin where the disk does.
    """
    front = True
    for segment, data, start in sources:
        if front and segment.epoch and segment.epoch != epoch:
            # What was before the first segment has been acknowledged or declared: that is why it is gone.
            epoch, last = segment.epoch, max(segment.first_seq - 1, 0)
        front = False
        for entry in entries(data, max(ENTRIES_AT - start, 0), segment.number, start):
            if entry.seq >= segment.limit:
                continue
            if entry.epoch != epoch:
                epoch, last = entry.epoch, 0
            sealed = entry.kind == SEAL
            if entry.seq <= last:
                continue
            if entry.seq > last + 1 or sealed:
                yield Hole(epoch, last + 1, entry.seq if sealed else entry.seq - 1, segment.number)
            last = entry.seq
            if not sealed:
                yield entry
        end = min(segment.last_seq, segment.limit - 1)
        if segment.epoch == epoch and end > last:  # its last records were durable and are damaged now
            yield Hole(epoch, last + 1, end, segment.number)
            last = end


def load_segment(path: Path, start: int, size: int) -> bytes:
    """Read `size` bytes of a segment from `start` on; pages that the disk cannot read are zeros.

    Raises:
        OSError: the file cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            return _read_fully(handle, start, size)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        pages, offset = [], start
        while offset < start + size:
            end = min(offset - offset % _PAGE_BYTES + _PAGE_BYTES, start + size)
            try:
                pages.append(_read_fully(handle, offset, end - offset).ljust(end - offset, b"\0"))
            except OSError:
                pages.append(bytes(end - offset))
            offset = end
        return b"".join(pages)
    finally:
        os.close(handle)


def _read_fully(handle: int, start: int, size: int) -> bytes:
    parts, done = [], 0
    while done < size:
        part = os.pread(handle, size - done, start + done)
        if not part:
            break
        parts.append(part)
        done += len(part)
    return b"".join(parts)


def write_fully(handle: int, data: bytes) -> None:
    """Write everything; a short write goes on until the system says why.

    Raises:
        OSError: what the system said.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def load_cursor(path: Path) -> Cursor:
    """The newest sound slot of a cursor file; an empty cursor when there is none."""
    try:
        data = load_segment(path, 0, CURSOR_BYTES)
    except FileNotFoundError:
        return Cursor()
    found = Cursor()
    for offset in (0, _SLOT_BYTES):
        slot = data[offset : offset + _CURSOR.size]
        if len(slot) < _CURSOR.size or crc32c(slot[:-4]) != int.from_bytes(slot[-4:], "little"):
            continue
        generation, segment, epoch, seq, _ = _CURSOR.unpack(slot)
        if generation > found.generation:
            found = Cursor(segment, epoch.hex(), seq, generation)
    return found


def _segment_paths(folder: Path) -> list[tuple[int, Path]]:
    return sorted((int(path.stem), path) for path in folder.glob("*.seg") if path.stem.isdecimal())


def load_segments(folder: Path, stream: Stream) -> list[Segment]:
    """The segments of a folder in order, as their headers, or else their first entries, describe them.

    Raises:
        DeviceError: a segment of another schema or stream.
        OSError: a file cannot be opened.
    """
    segments = []
    for number, path in _segment_paths(folder):
        size = path.stat().st_size
        header = parse_header(load_segment(path, 0, ENTRIES_AT), path, stream)
        if header is None:
            first = next(entries(load_segment(path, 0, size), ENTRIES_AT, number), None)
            header = (first.epoch, "", first.seq) if first else ("", "", 0)
        epoch, boot, first_seq = header
        segments.append(Segment(number, path, epoch, boot, first_seq, 0, size))
    firsts: dict[str, int] = {}
    for segment in reversed(segments):
        segment.limit = firsts.get(segment.epoch, _SEQ_MAX)
        firsts[segment.epoch] = min(segment.limit, segment.first_seq)
    boots = {segment.epoch: segment.boot for segment in segments if segment.boot}
    for segment in segments:
        segment.boot = segment.boot or boots.get(segment.epoch, "")
    return segments


class Log:
    """The files of one stream.

    Args:
        folder: its own; made when missing.
        stream: written into each segment.
        epoch: 16 hexadecimal digits, drawn for this opening.
        boot: of the machine, at most 64 bytes of UTF-8.
        segment_bytes_max: size at which a new segment begins.
    """

    def __init__(self, folder: Path, stream: Stream, epoch: str, boot: str, segment_bytes_max: int) -> None:
        self.epoch = epoch
        self.damaged = 0
        self.dropped = 0
        self.written_bytes = 0
        self.syncs = 0
        self._folder, self._stream, self._boot, self._segment_bytes_max = folder, stream, boot, segment_bytes_max
        self._guard = threading.Lock()  # over everything below; never held during I/O
        self._segments: list[Segment] = []
        self._leaving: list[Segment] = []  # may be deleted at any time
        self._victims: list[Segment] = []  # may be deleted after the next commit, which declares them
        self._cursor = self._saved_cursor = Cursor()
        self._position = (0, ENTRIES_AT, "", 0)  # segment, offset, epoch and seq before which all is acknowledged
        self._declared = Ranges()
        self._losses: list[Loss] = []
        self._number = 0
        self._handle = -1
        self._current: Segment | None = None

    def recover(self) -> None:
        """Find out what the disk holds, and make it durable: a killed process may have left it in the cache.

        Raises:
            DeviceError: the folder cannot be used, or another version wrote it.
        """
        try:
            make_folder(self._folder)
            cursor = load_cursor(self._folder / "cursor")
            segments = load_segments(self._folder, self._stream)
            self._number = max([cursor.segment, *(segment.number for segment in segments)])
            behind = [segment for segment in segments if segment.number < cursor.segment]
            live = segments[len(behind) :]
            holes = self._recover(live, cursor)
            for segment in live:
                _sync_file(segment.path)
            if live:
                fsync_folder(self._folder)
        except OSError as error:
            raise device_error(error, "opening the journal") from error
        behind += [segment for segment in live if self._is_settled(segment, cursor)]
        with self._guard:
            self._cursor = self._saved_cursor = cursor
            self._segments = [segment for segment in live if segment not in behind]
            self._leaving = behind
            for hole in holes:
                self._note(hole)
        self._sweep()

    def _is_settled(self, segment: Segment, cursor: Cursor) -> bool:
        if not segment.epoch:
            return not segment.size  # nothing is known of it: it stays until the cursor has passed it
        first = segment.first_seq
        if segment.epoch == cursor.epoch:
            if segment.last_seq <= cursor.seq:
                return True
            first = max(first, cursor.seq + 1)
        # It was given up, and the power went after the gap record and before the deletion.
        return first <= segment.last_seq and not self._declared.missing_from(segment.epoch, first, segment.last_seq)

    def _recover(self, live: list[Segment], cursor: Cursor) -> list[Hole]:
        by_number = {segment.number: segment for segment in live}
        holes = []
        sources = ((segment, load_segment(segment.path, 0, segment.size), 0) for segment in live)
        for item in walk(sources, cursor.epoch, cursor.seq):
            segment = by_number[item.segment]
            if isinstance(item, Hole):
                holes.append(item)
                segment.last_seq = max(segment.last_seq, item.last if item.last < segment.limit else 0)
                continue
            segment.last_seq = item.seq
            if item.kind == GAP:
                loss = decode_loss(item)
                self._declared.add(loss.epoch, loss.first, loss.last)
        return holes

    def _note(self, hole: Hole) -> None:
        for first, last in self._declared.missing_from(hole.epoch, hole.first, hole.last):
            self._declared.add(hole.epoch, first, last)
            self._losses.append(Loss(hole.epoch, first, last, "damaged", last - first + 1))
            self.damaged += last - first + 1

    def losses(self, losses_max: int) -> list[Loss]:
        """The oldest losses that no durable gap record declares yet; the caller declares them with its next commit."""
        with self._guard:
            return self._losses[:losses_max]

    def settle_losses(self, count: int) -> None:
        """The oldest so many losses are declared now, durably."""
        with self._guard:
            del self._losses[:count]

    def declare(self, loss: Loss) -> None:
        """Remember that a gap record declares this range."""
        with self._guard:
            self._declared.add(loss.epoch, loss.first, loss.last)

    @property
    def has_losses(self) -> bool:
        """True while a loss is not declared durably."""
        return bool(self._losses)

    @property
    def cursor_moved(self) -> bool:
        """True while the cursor is newer than the one on disk."""
        return self._cursor != self._saved_cursor

    def commit(self, data: bytes, first_seq: int, last_seq: int) -> None:
        """Make encoded entries durable, or leave nothing of them that counts.

        Raises:
            OSError: nothing was added; the caller keeps the entries and tries again with the same ids.
        """
        segment = self._current
        if segment is not None and segment.size + len(data) > self._segment_bytes_max:
            self._end_segment()
            segment = None
        try:
            if segment is None:
                segment, data = self._begin_segment(first_seq, data)
            write_fully(self._handle, data)
            if segment.size:
                os.fdatasync(self._handle)
            else:
                os.fsync(self._handle)
                fsync_folder(self._folder)
        except OSError:
            self._abandon(segment)
            raise
        with self._guard:
            if not segment.size:
                self._segments.append(segment)
            segment.size += len(data)
            segment.last_seq = last_seq
            self._current = segment
            self.written_bytes += len(data)
            self.syncs += 1
            self._leaving += self._victims
            self._victims = []
        self._sweep()

    def _begin_segment(self, first_seq: int, data: bytes) -> tuple[Segment, bytes]:
        self._number += 1
        path = self._folder / f"{self._number:08d}.seg"
        self._handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)
        header = encode_header(self._stream, self.epoch, self._boot, first_seq)
        return Segment(self._number, path, self.epoch, self._boot, first_seq, first_seq - 1, 0), header + data

    def _end_segment(self) -> None:
        handle, self._handle, self._current = self._handle, -1, None
        if handle >= 0:
            with suppress(OSError):  # what was written is durable already
                os.close(handle)

    def _abandon(self, segment: Segment | None) -> None:
        # A failed fsync may have thrown the pages away and reports it once: this file is not written to again.
        # Whatever of the batch stays in it is superseded by the segment that will hold the batch.
        with suppress(OSError):
            if self._handle >= 0 and segment is not None and segment.size:
                os.ftruncate(self._handle, segment.size)
        with suppress(OSError):
            if self._handle >= 0 and segment is not None and not segment.size:
                segment.path.unlink()
        self._end_segment()

    def seal(self, seq: int) -> None:
        """Say that the log ends here in order; without a current segment there is nothing to say.

        Raises:
            OSError: the log has no seal, which costs nothing but the certainty about its last record.
        """
        if self._current is None:
            return
        try:
            write_fully(self._handle, encode_entry(SEAL, self.epoch, seq, b""))
            os.fdatasync(self._handle)
        finally:
            self._end_segment()

    def close(self) -> None:
        """Let go of the current file."""
        self._end_segment()

    def make_room(self, bytes_more: int, bytes_max: int) -> list[Loss]:
        """Choose whole segments, oldest first, to give up so that `bytes_more` fit below `bytes_max`.

        They are not read any more from now on, and are deleted once the next commit, which must declare the
        losses that this returns, is durable.
        """
        losses: list[Loss] = []
        total = sum(segment.size for segment in self._segments)
        while self._segments and total + bytes_more > bytes_max:
            segment = self._segments[0]
            if segment is self._current:
                self._end_segment()
            with self._guard:
                del self._segments[0]
                self._victims.append(segment)
                first, last = segment.first_seq, min(segment.last_seq, segment.limit - 1)
                if segment.epoch == self._cursor.epoch:
                    first = max(first, self._cursor.seq + 1)
            own = Loss(segment.epoch, first, last, "dropped", last - first + 1)
            losses += self._inner_losses(segment, own)
            if own.count > 0:
                self.declare(own)
                self.dropped += own.count
                losses.append(own)
            total -= segment.size
        return _merge(losses)

    def _inner_losses(self, segment: Segment, own: Loss) -> list[Loss]:
        # Gap records that go with the segment are declared anew, because what they say has not been heard yet;
        # those of its own range are in the segment's own loss already.
        try:
            data = load_segment(segment.path, 0, segment.size)
        except OSError:
            return []
        found = (
            decode_loss(entry)
            for entry in entries(data, ENTRIES_AT, segment.number)
            if entry.kind == GAP and own.first <= entry.seq <= own.last
        )
        return [loss for loss in found if loss.epoch != own.epoch or loss.last < own.first or own.last < loss.first]

    def read(self, records_max: int, bytes_max: int) -> list[Record]:
        """The oldest durable records that are not acknowledged, in order; at least one if there is any.

        Raises:
            DeviceError: a segment cannot be opened.
        """
        for _ in range(4):  # a segment may be given up while it is read: then the picture is taken anew
            with self._guard:
                cursor, position = self._cursor, self._position
                live = [replace(segment) for segment in self._segments if segment.number >= cursor.segment]
            if live and live[0].number != position[0]:
                position = (live[0].number, ENTRIES_AT, cursor.epoch, cursor.seq)
            try:
                return self._read(live, cursor, position, records_max, bytes_max)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise device_error(error, "reading the journal") from error
        return []

    def _read(
        self,
        live: list[Segment],
        cursor: Cursor,
        position: tuple[int, int, str, int],
        records_max: int,
        bytes_max: int,
    ) -> list[Record]:
        number, offset, epoch, last = position
        starts = {segment.number: offset if segment.number == number else 0 for segment in live}
        boots = {segment.number: segment.boot for segment in live}
        sources = (
            (segment, load_segment(segment.path, start, segment.size - start), start)
            for segment in live
            if (start := starts[segment.number]) <= segment.size
        )
        records: list[Record] = []
        holes, total = [], 0
        for item in walk(sources, epoch, last):
            settled = item.epoch == cursor.epoch and item[2] <= cursor.seq  # an entry's seq, a hole's last
            if isinstance(item, Hole):
                if not settled:
                    holes.append(item)
                continue
            if settled:
                position = (item.segment, item.end, item.epoch, item.seq)
                continue
            total += ENTRY_BYTES + len(item.body)
            if len(records) >= records_max or (records and total > bytes_max):
                break
            records.append(decode_record(item, boots[item.segment]))
        with self._guard:
            self._position = max(position, self._position, key=lambda place: place[:2])
            for hole in holes:
                self._note(hole)
        return records

    def acknowledge(self, epoch: str, seq: int) -> bool:
        """Move the cursor up to a record, in memory; `save_cursor` makes it durable.

        Returns:
            False when the id is not on this disk, or not beyond the cursor: nothing happened.
        """
        with self._guard:
            own = [segment for segment in self._segments if segment.epoch == epoch]
            if not own or seq > max(segment.last_seq for segment in own):
                return False
            place = [segment for segment in own if segment.first_seq <= seq]
            if not place:
                return False
            segment, cursor = place[-1], self._cursor
            if segment.number < cursor.segment or (epoch == cursor.epoch and seq <= cursor.seq):
                return False
            self._cursor = Cursor(segment.number, epoch, seq)
            return True

    def save_cursor(self) -> None:
        """Make the cursor durable, and delete the segments behind it.

        Raises:
            OSError: the cursor on disk is the one before; it is written again next time.
        """
        with self._guard:
            cursor = self._cursor
        if cursor == self._saved_cursor:
            return
        cursor = replace(cursor, generation=self._saved_cursor.generation + 1)
        fields = _CURSOR.pack(cursor.generation, cursor.segment, bytes.fromhex(cursor.epoch), cursor.seq, 0)[:-4]
        slot = fields + crc32c(fields).to_bytes(4, "little")
        path = self._folder / "cursor"
        fresh = not path.exists()
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            if fresh:
                os.ftruncate(handle, CURSOR_BYTES)
            # Never the slot of the cursor that is durable: a torn write leaves that one.
            if os.pwrite(handle, slot, cursor.generation % 2 * _SLOT_BYTES) != len(slot):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(handle)
            if fresh:
                fsync_folder(self._folder)
        finally:
            os.close(handle)
        self._saved(cursor, len(slot))

    def _saved(self, cursor: Cursor, size: int) -> None:
        current = self._current
        if (
            current is not None
            and current.epoch == cursor.epoch
            and current.last_seq <= cursor.seq
            and 2 * current.size > self._segment_bytes_max
        ):
            self._end_segment()
        with self._guard:
            self._saved_cursor = cursor
            behind = [segment for segment in self._segments if self._is_behind(segment, cursor)]
            self._segments = [segment for segment in self._segments if segment not in behind]
            self._leaving += behind
            self._declared.keep({segment.epoch for segment in self._segments} | {cursor.epoch, self.epoch})
            self.written_bytes += size
            self.syncs += 1
        self._sweep()

    def _is_behind(self, segment: Segment, cursor: Cursor) -> bool:
        if segment is self._current:
            return False
        return segment.number < cursor.segment or (segment.number == cursor.segment and segment.last_seq <= cursor.seq)

    def _sweep(self) -> None:
        left = []
        for segment in self._leaving:
            try:
                segment.path.unlink(missing_ok=True)
            except OSError:  # tried again at the next commit
                left.append(segment)
        with self._guard:
            self._leaving = left

    def sizes(self) -> tuple[int, int, int]:
        """Bytes on disk, segments, and durable records that are not acknowledged (holes count as records)."""
        with self._guard:
            cursor = self._cursor
            size = sum(segment.size for segment in (*self._segments, *self._leaving, *self._victims))
            records = 0
            for segment in self._segments:
                low = cursor.seq + 1 if segment.epoch == cursor.epoch else 1
                if segment.number >= cursor.segment:
                    last = min(segment.last_seq, segment.limit - 1)
                    records += max(0, last - max(segment.first_seq, low) + 1)
            return size + (CURSOR_BYTES if self._saved_cursor.generation else 0), len(self._segments), records

    @property
    def acknowledged(self) -> tuple[str, int] | None:
        """The cursor's id, None before the first acknowledgement."""
        cursor = self._cursor
        return (cursor.epoch, cursor.seq) if cursor.segment else None

    @property
    def durable(self) -> tuple[str, int] | None:
        """The id of the newest durable record on disk, None when there is none."""
        with self._guard:
            segment = self._segments[-1] if self._segments else None
            return (segment.epoch, segment.last_seq) if segment and segment.last_seq >= segment.first_seq else None


def _merge(losses: list[Loss]) -> list[Loss]:
    merged: list[Loss] = []
    for loss in sorted(losses, key=lambda item: (item.epoch, item.reason, item.first)):
        if merged and merged[-1].last + 1 == loss.first and merged[-1].epoch == loss.epoch:
            before = merged[-1]
            if before.reason == loss.reason:
                merged[-1] = replace(before, last=loss.last, count=before.count + loss.count)
                continue
        merged.append(loss)
    return merged


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
