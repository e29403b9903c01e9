"""Looking into a journal's folder without opening it: what it holds, its newest records, every byte checked, a copy.

Nothing is written and no lock is taken, so a running device may own the folder: segments are only ever appended to
and deleted whole. One that goes away while it is read has been acknowledged or given up, and is passed over. At most
one segment is in memory at a time.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import ConfigError, DeviceError
from .files import device_error, read_bounded
from .journal_queue import WEAR_BYTES
from .segments import (
    ENTRIES_AT,
    ENTRY_BYTES,
    GAP,
    SEAL,
    SEQ_MAX,
    Cursor,
    Entry,
    Hole,
    Ranges,
    Segment,
    decode_loss,
    decode_record,
    load_cursor,
    load_segment,
    load_segments,
    sound_header_bytes,
    stored_entries,
    walk,
)
from .types import Json, Record, Stream
from .wear import Wear
from .wire import STREAMS, record_to_json

FORMATS: Final = ("jsonl", "csv")
COLUMNS: Final = ("stream", "type", "epoch", "seq", "boot", "boot_ns", "payload")
POLL_S: Final = 0.5  # between two looks of `tail`
_TRIES: Final = 5  # to list a folder out of which files go meanwhile


@dataclass(frozen=True, slots=True)
class SegmentCheck:
    """What `verify` found in one segment.

    Attributes:
        path: of the segment.
        stream: which it belongs to.
        state: `sound`; `torn`: an unfinished write at its end, which was never durable; or `damaged`.
        bytes: of the file.
        bad_bytes: that belong to no sound header or entry.
        records: sound entries, gap records among them.
        missing: seqs that were durable, are not here and that no gap record declares.
    """

    path: Path
    stream: Stream
    state: str
    bytes: int
    bad_bytes: int
    records: int
    missing: int


def stat(folder: Path) -> dict[str, Json]:
    """What a journal holds, by stream: files, bytes, records by type, what waits, what was lost and why.

    Raises:
        ConfigError: there is no journal in this folder.
        DeviceError: it cannot be read, or another version wrote it.

    Returns:
        A table for each stream, and under `wear` what the flash card was given, as far as it was noted: every hour
        and when the journal is closed; see `tinylcm.wear.Wear.report`.
    """
    found: dict[str, Json] = {}
    for stream in STREAMS:
        cursor, segments = _open(folder, stream)
        types: Counter[str] = Counter()
        lost: Counter[str] = Counter()
        ends: list[Json] = []
        waiting = 0
        for entry, record in _records(segments):
            types[record.type] += 1
            ends[1:] = [_name(record)]
            waiting += not _is_settled(entry, cursor)
            if entry.kind == GAP:
                loss = decode_loss(entry)
                lost[loss.reason] += loss.count
        found[stream] = {
            "segments": len(segments),
            "bytes": sum(segment.size for segment in segments),
            "records": dict(types),
            "waiting": waiting,
            "first": ends[0] if ends else None,
            "last": ends[-1] if ends else None,
            "acknowledged": {"epoch": cursor.epoch, "seq": cursor.seq} if cursor.segment else None,
            "lost": dict(lost),
        }
    return {**found, "wear": _wear(folder)}


def _wear(folder: Path) -> Json:
    wear = Wear(0, 0.0, 0.0)
    try:
        if wear.restore(json.loads(read_bounded(folder / "wear", WEAR_BYTES))):
            report = wear.report(0.0)
            return {key: report[key] for key in ("measured_s", "written_bytes", "syncs", "device_bytes_estimate")}
    except (OSError, ValueError, DeviceError):
        pass  # not noted yet, or damaged: it says nothing about the records
    return None


def tail(
    folder: Path, stream: Stream, count: int, *, follow: bool = False, wait: Callable[[float], object] | None = None
) -> Iterator[Record]:
    """The newest records of a stream, oldest first.

    Args:
        folder: the journal's.
        stream: `events` or `details`.
        count: how many, from 0.
        follow: go on with those that come, until the caller stops.
        wait: called with the seconds until the next look, such as `time.sleep`; needed to follow.

    Raises:
        ConfigError, DeviceError: as `stat`.
    """
    _, segments = _open(folder, stream)
    newest: deque[Record] = deque(maxlen=count)
    place = (0, ENTRIES_AT)
    for entry, record in _records(segments):
        newest.append(record)
        place = (entry.segment, entry.end)
    yield from newest
    seen = (newest[-1].epoch, newest[-1].seq) if newest else ("", 0)
    while follow and wait is not None:
        wait(POLL_S)
        _, segments = _open(folder, stream)
        for entry, record in _records(segments, place):
            place = (entry.segment, entry.end)
            if record.epoch == seen[0] and record.seq <= seen[1]:
                continue
            seen = (record.epoch, record.seq)
            yield record


def export(folder: Path, format: str, streams: Iterable[Stream] = STREAMS) -> Iterator[str]:
    """Every record as one line of text: `jsonl`, or `csv` with a line of names first and the payload as JSON.

    Raises:
        ConfigError: no such format, or as `stat`.
        DeviceError: as `stat`.
    """
    if format not in FORMATS:
        raise ConfigError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    if format == "csv":
        yield _csv_line(COLUMNS)
    for stream in streams:
        for _, record in _records(_open(folder, stream)[1]):
            line = {"stream": stream, **record_to_json(record), "boot": record.boot, "boot_ns": record.boot_ns}
            if format == "csv":
                payload = json.dumps(record.payload, separators=(",", ":"))
                yield _csv_line([payload if name == "payload" else line[name] for name in COLUMNS])
            else:
                yield json.dumps(line, separators=(",", ":"))


def verify(folder: Path) -> Iterator[SegmentCheck]:
    """Check every byte of every segment.

    A device that runs may give a segment up meanwhile; what it declares only later then shows as missing.

    Raises:
        ConfigError, DeviceError: as `stat`.
    """
    for stream in STREAMS:
        cursor, segments = _open(folder, stream)
        missing = _missing(segments, cursor)
        for segment in segments:
            with suppress(FileNotFoundError):
                yield _check(segment, stream, missing[segment.number])


def _check(segment: Segment, stream: Stream, missing: int) -> SegmentCheck:
    data = load_segment(segment.path, 0, segment.size)
    good = sound_header_bytes(data)
    has_headers = good == ENTRIES_AT
    records, end, is_sealed, has_hole, last_seq = 0, ENTRIES_AT, False, False, segment.first_seq - 1
    for entry in stored_entries(data, ENTRIES_AT, segment.number):
        size = ENTRY_BYTES + len(entry.body)
        has_hole = has_hole or entry.end - size != end
        good, end, is_sealed, last_seq = good + size, entry.end, entry.kind == SEAL, entry.seq
        records += not is_sealed
    bad = len(data) - good
    is_followed = last_seq + 1 < segment.limit < SEQ_MAX  # by a segment that begins where this one should have ended
    is_begun = not records and (len(data) < ENTRIES_AT or not data.strip(b"\0"))  # the write that made it was cut
    if not (bad or missing):
        state = "sound"
    elif not missing and (is_begun or (has_headers and not has_hole and not is_sealed and not is_followed)):
        state = "torn"
    else:
        state = "damaged"
    return SegmentCheck(segment.path, stream, state, len(data), bad, records, missing)


def _missing(segments: list[Segment], cursor: Cursor) -> Counter[int]:
    """Undeclared holes, by the number of the segment that shows them."""
    holes: list[Hole] = []
    declared = Ranges()
    for item in walk(_sources(segments), cursor.epoch, cursor.seq):
        if isinstance(item, Hole):
            holes.append(item)
        elif item.kind == GAP:
            loss = decode_loss(item)
            declared.add(loss.epoch, loss.first, loss.last)
    missing: Counter[int] = Counter()
    for hole in holes:
        for first, last in declared.missing_from(hole.epoch, hole.first, hole.last):
            missing[hole.segment] += last - first + 1
    return missing


def _open(folder: Path, stream: Stream) -> tuple[Cursor, list[Segment]]:
    if not (folder / stream).is_dir():
        raise ConfigError(f"{folder} holds no journal: expected its folders {' and '.join(STREAMS)}")
    for _ in range(_TRIES):
        try:
            cursor = load_cursor(folder / stream / "cursor")
            return cursor, load_segments(folder / stream, stream)
        except FileNotFoundError:
            continue  # a segment was deleted between its listing and its reading
        except OSError as error:
            raise device_error(error, "reading the journal") from error
    raise DeviceError(f"the segments of {folder / stream} go faster than they can be listed: try again")


def _sources(segments: list[Segment], start: tuple[int, int] = (0, 0)) -> Iterator[tuple[Segment, bytes, int]]:
    for segment in segments:
        if segment.number < start[0]:
            continue
        offset = start[1] if segment.number == start[0] else 0
        with suppress(FileNotFoundError):
            yield segment, load_segment(segment.path, offset, segment.size - offset), offset


def _records(segments: list[Segment], start: tuple[int, int] = (0, 0)) -> Iterator[tuple[Entry, Record]]:
    boots = {segment.number: segment.boot for segment in segments}
    try:
        for item in walk(_sources(segments, start), "", 0):
            if not isinstance(item, Hole):
                yield item, decode_record(item, boots[item.segment])
    except OSError as error:
        raise device_error(error, "reading the journal") from error


def _is_settled(entry: Entry, cursor: Cursor) -> bool:
    if entry.epoch == cursor.epoch:
        return entry.seq <= cursor.seq
    return entry.segment < cursor.segment


def _name(record: Record) -> Json:
    return {"epoch": record.epoch, "seq": record.seq, "boot": record.boot, "boot_ns": record.boot_ns}


def _csv_line(values: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()
