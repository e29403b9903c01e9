"""The bytes of a segmented log: how records stand in its files, and what is read from them after any damage.

It owns the format and nothing that changes: everything here is a function of bytes. Writing is `tinylcm.log`'s.

A folder holds segments `00000001.seg`, `00000002.seg`, ... and `cursor`. All integers are little-endian.

    segment   two copies of a header of 96 bytes (a damaged sector may take one), then entries until the end
    header    magic "TLMJRNL\\n", u16 schema, u8 stream, u8 length of boot, 8 bytes epoch, u64 first seq,
              64 bytes boot, u32 CRC-32C of all before
    entry     4 bytes marker, u32 CRC-32C of all that follows, u32 kind << 24 | length of body, u64 seq,
              8 bytes epoch, body
    body      msgpack of [type, boot_ns, payload], and the boot as a fourth when it is not the segment's
    pack      an entry of kind 4 that holds several which stand or fall together: msgpack of [[kind, body], ...];
              its seq is the last one's, the others have those before
    cursor    two slots, 4096 bytes apart: u64 generation, u64 segment, 8 bytes epoch, u64 seq,
              u64 last segment that records may have been sent from, u32 CRC-32C

Rules
1. Every entry carries its epoch, so that a record keeps its id when both headers are gone: 8 bytes of some 250 buy
   that. The boot is in the header alone; without any header it is empty, which means that the time is not known.
2. A segment has one epoch, and none is appended to after the log was opened again.
3. After a failed write the records go to a new segment. Of two entries with one id the one in the later segment
   counts: an entry whose seq is not below the first seq of a later segment of its epoch is not read.
4. Damage costs the entries that it hits: reading goes on at the next marker whose CRC is right. What is missing
   between two seqs of an epoch is a hole. A `seal` ends a log that was closed in order, so a hole at its end is
   seen; without a seal a broken end counts as a write that a crash has torn, which was never durable.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import msgpack

from ._ext.frame import crc32c
from .errors import DeviceError
from .types import Json, Record, Stream

JOURNAL_SCHEMA: Final = 1
MAGIC: Final = b"TLMJRNL\n"
MARKER: Final = b"\xf5TL\xff"  # 0xF5 and 0xFF never occur in UTF-8: no text in a payload looks like a marker
RECORD: Final = 1
GAP: Final = 2
SEAL: Final = 3
PACK: Final = 4
GAP_TYPE: Final = "gap"
SUMMARY_TYPE: Final = "summary"
SAMPLE_TYPE: Final = "sample"
ENTRIES_AT: Final = 192  # bytes of the two headers
ENTRY_BYTES: Final = 28  # bytes of an entry without its body
CURSOR_BYTES: Final = 8192
BOOT_BYTES_MAX: Final = 64
_HEADER: Final = struct.Struct("<8sHBB8sQ64sI")
_ENTRY: Final = struct.Struct("<4sIIQ8s")
_FIELDS: Final = struct.Struct("<IQ8s")
_CURSOR: Final = struct.Struct("<QQ8sQQI")
_SLOT_BYTES: Final = 4096
_LENGTH_MASK: Final = (1 << 24) - 1
SEQ_MAX: Final = (1 << 63) - 1
_PAGE_BYTES: Final = 4096
_SAMPLE_TYPE_PACKED: Final = msgpack.packb(SAMPLE_TYPE)
_STREAM_NUMBERS: Final[dict[Stream, int]] = {"events": 1, "details": 2}


@dataclass(frozen=True, slots=True)
class Loss:
    """Records that will not come: seqs `first` to `last` of an epoch, `count` of them, and why.

    `reason` is `damaged` (on the disk), `dropped` (the bound in bytes), `merged` (written anew as part of a coarser
    summary) or `memory` (the queue was full). Ranges of what was dropped and what was merged may interleave: a
    range's `count` says how many of it went that way.
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
    """The last acknowledged record: its segment's number, epoch and seq; all empty before the first.

    `sent` is the number of the last segment that any record may have been handed out from.
    """

    segment: int = 0
    epoch: str = ""
    seq: int = 0
    generation: int = field(default=0, compare=False)
    sent: int = 0


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
    limit: int = SEQ_MAX  # seqs from here on are in a later segment
    sample_bytes: int = 0  # of its entries that are samples, which give way first

    @property
    def charged_bytes(self) -> int:
        """What it costs of a budget: whole blocks, or many openings could fill a disk with tiny segments."""
        return -(-self.size // _PAGE_BYTES) * _PAGE_BYTES


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

    def copy(self) -> Ranges:
        """The same ranges, to be changed apart."""
        ranges = Ranges()
        ranges._ranges = {epoch: list(parts) for epoch, parts in self._ranges.items()}
        return ranges

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


def encode_pack(epoch: str, first_seq: int, items: Sequence[tuple[int, bytes]]) -> bytes:
    """Several entries, each a kind and a body, as one: after any power cut all of them are there or none."""
    body = msgpack.packb(items)
    assert isinstance(body, bytes)
    return encode_entry(PACK, epoch, first_seq + len(items) - 1, body)


def encode_body(kind: str, boot_ns: int, payload: Json, boot: str = "") -> bytes:
    """A record's body; raises ValueError, OverflowError or UnicodeError for what msgpack cannot hold.

    Args:
        kind: the record's type.
        boot_ns: its time since
        boot: the boot, when that is not the segment's.
        payload: what it says.
    """
    packed = msgpack.packb([kind, boot_ns, payload, boot] if boot else [kind, boot_ns, payload])
    assert isinstance(packed, bytes)
    return packed


def decode_payload(body: bytes) -> dict[str, Json]:
    """What a body that was just encoded says: a copy that shares nothing with what it was made of."""
    payload: dict[str, Json] = msgpack.unpackb(body, strict_map_key=False)[2]
    return payload


def decode_record(entry: Entry, boot: str) -> Record:
    """The record of a sound entry; `boot` is its segment's."""
    kind, boot_ns, payload, *own = msgpack.unpackb(entry.body, strict_map_key=False)
    return Record(kind, entry.epoch, entry.seq, own[0] if own else boot, boot_ns, payload)


def is_sample(body: bytes) -> bool:
    """Whether a body is a sample's, without unpacking it."""
    return body[1:].startswith(_SAMPLE_TYPE_PACKED)


def decode_loss(entry: Entry) -> Loss:
    """What a gap record declares."""
    payload = decode_record(entry, "").payload
    return Loss(*(payload[key] for key in ("epoch", "from_seq", "to_seq", "reason", "count")))  # type: ignore[arg-type]


def _sound_headers(data: bytes) -> list[bytes]:
    copies = (data[offset : offset + _HEADER.size] for offset in (0, _HEADER.size))
    return [
        copy
        for copy in copies
        if len(copy) == _HEADER.size
        and copy.startswith(MAGIC)
        and crc32c(copy[:-4]) == int.from_bytes(copy[-4:], "little")
    ]


def sound_header_bytes(data: bytes) -> int:
    """How many bytes of a segment's two header copies are sound: all of them, half, or none."""
    return sum(map(len, _sound_headers(data)))


def parse_header(data: bytes, path: Path, stream: Stream) -> tuple[str, str, int] | None:
    """Epoch, boot and first seq of a segment; None when both copies are damaged.

    Raises:
        DeviceError: a later version of the software wrote it, or it belongs to the other stream.
    """
    for copy in _sound_headers(data):
        _, schema, number, length, epoch, first_seq, boot, _ = _HEADER.unpack(copy)
        if schema != JOURNAL_SCHEMA:
            raise DeviceError(
                f"{path} has journal schema {schema}, this version reads {JOURNAL_SCHEMA}: "
                "install the version that wrote it, or move the folder away"
            )
        if number != _STREAM_NUMBERS[stream]:
            raise DeviceError(f"{path} does not belong to the stream {stream}: move it out of this folder")
        return epoch.hex(), boot[:length].decode("utf-8", "replace"), first_seq
    return None


def stored_entries(data: bytes, offset: int, segment: int, start: int = 0) -> Iterator[Entry]:
    """The sound entries of a segment's bytes from an offset on, packs as they stand; damage is passed over.

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


def entries(data: bytes, offset: int, segment: int, start: int = 0) -> Iterator[Entry]:
    """As `stored_entries`, with what is in a pack in its place."""
    for entry in stored_entries(data, offset, segment, start):
        if entry.kind != PACK:
            yield entry
            continue
        items = msgpack.unpackb(entry.body)
        before = entry.end - ENTRY_BYTES - len(entry.body)  # who stops inside of a pack begins again with the pack
        for seq, (kind, body) in enumerate(items, entry.seq - len(items) + 1):
            yield Entry(kind, entry.epoch, seq, body, segment, entry.end if seq == entry.seq else before)


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


def encode_cursor(cursor: Cursor) -> tuple[int, bytes]:
    """Where in the file a cursor goes, which is never where the one before it is, and its bytes there."""
    fields = _CURSOR.pack(cursor.generation, cursor.segment, bytes.fromhex(cursor.epoch), cursor.seq, cursor.sent, 0)[
        :-4
    ]
    return cursor.generation % 2 * _SLOT_BYTES, fields + crc32c(fields).to_bytes(4, "little")


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
        generation, segment, epoch, seq, sent, _ = _CURSOR.unpack(slot)
        if generation > found.generation:
            found = Cursor(segment, epoch.hex() if segment else "", seq, generation, sent)
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
        segment.limit = firsts.get(segment.epoch, SEQ_MAX)
        firsts[segment.epoch] = min(segment.limit, segment.first_seq)
    boots = {segment.epoch: segment.boot for segment in segments if segment.boot}
    for segment in segments:
        segment.boot = segment.boot or boots.get(segment.epoch, "")
    return segments
