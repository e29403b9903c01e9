"""One segmented log on disk: writing it, giving its space back, and its cursor.

It owns the files of one stream; their format is `tinylcm.segments`', threads, queues and time are the journal's. Only
the journal's thread may call what writes (`recover`, `commit`, `save_cursor`, `seal`, `make_room`); `read`,
`acknowledge` and what only looks may be called from any thread.

A segment is given up only after the pack that declares it is durable, and deleted after an acknowledgement only when
the cursor is durable. A failed write or fsync is final for its file: nothing is written to that one again, and before
anything else is, it is opened anew and read back from the disk. What it had promised and has not is declared.

Whether a record was ever handed out decides if it may be merged, also after a restart. So before details are read from
a segment its number goes into the cursor as the last one `sent` from; within the own epoch the highest seq is known.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from .compaction import Given, Outcome, compact
from .files import device_error, fsync_folder, make_folder
from .segments import (
    CURSOR_BYTES,
    ENTRIES_AT,
    ENTRY_BYTES,
    GAP,
    RECORD,
    SEAL,
    Cursor,
    Entry,
    Hole,
    Loss,
    Ranges,
    Segment,
    decode_loss,
    decode_record,
    encode_cursor,
    encode_entry,
    encode_header,
    entries,
    is_sample,
    load_cursor,
    load_segment,
    load_segments,
    walk,
    write_fully,
)
from .types import Record, Stream

SAMPLES_SHARE: Final = 4  # a segment is given up for its samples when they are at least one in so many of its bytes


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
        self.merged = 0
        self.written_bytes = 0
        self.syncs = 0
        self._folder, self._stream, self._boot, self._segment_bytes_max = folder, stream, boot, segment_bytes_max
        self._guard = threading.Lock()  # over everything below; never held during I/O
        self._segments: list[Segment] = []
        self._leaving: list[Segment] = []  # may be deleted at any time
        self._victims: list[Segment] = []  # may be deleted after the next commit, which declares them
        self._cursor = self._saved_cursor = Cursor()
        self._position = (0, ENTRIES_AT, "", 0)  # segment, offset, epoch and seq before which all is acknowledged
        self._read_end = ("", 0, 0, 0)  # epoch, seq, segment and end of the last record that was read
        self._handed = 0  # highest seq of the own epoch that was handed out
        self._declared = Ranges()
        self._losses: list[Loss] = []
        self._number = 0
        self._has_cursor_file = False
        self._handle = -1
        self._current: Segment | None = None
        self._suspect: Segment | None = None  # a write or fsync to it failed, and it was not read back yet

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
            self._has_cursor_file = self._make_cursor_file()
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

    def _make_cursor_file(self) -> bool:
        # Whole from the beginning, so that on a full disk what was sent can still be acknowledged, which makes room.
        path = self._folder / "cursor"
        if path.exists():
            return True
        with suppress(OSError):
            path.write_bytes(bytes(CURSOR_BYTES))
            _sync_file(path)
            self.written_bytes += CURSOR_BYTES
            return True
        return False

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
            segment.sample_bytes += _sample_bytes(item)
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

    def commit(self, data: bytes, first_seq: int, last_seq: int, sample_bytes: int = 0) -> None:
        """Make encoded entries durable, or leave nothing of them that counts.

        Args:
            data: the entries, of seqs `first_seq` to `last_seq`;
            sample_bytes: of them are samples.

        Raises:
            OSError: nothing was added; the caller keeps the entries and tries again with the same ids.
        """
        if self._suspect is not None:
            self._rescan(self._suspect)
            self._suspect = None
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
                self.syncs += 1  # of the folder
            segment.size += len(data)
            segment.last_seq = last_seq
            segment.sample_bytes += sample_bytes
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
        if segment is not None and segment.size:
            self._suspect = segment
        self._end_segment()

    def _rescan(self, segment: Segment) -> None:
        """Look on the disk for what this file had promised before a write to it failed; what is missing is a loss.

        Raises:
            OSError: the disk does not even open the file: nothing is written until it does.
        """
        try:
            _forget_cached(segment.path)
            data = load_segment(segment.path, 0, segment.size)
        except FileNotFoundError:
            return  # acknowledged or given up meanwhile
        settled = self._cursor.seq if self._cursor.epoch == segment.epoch else 0
        found = walk([(segment, data, 0)], segment.epoch, max(segment.first_seq - 1, settled))
        holes = [item for item in found if isinstance(item, Hole)]
        with self._guard:
            if segment in self._segments:
                for hole in holes:
                    self._note(hole)

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

    def make_room(self, bytes_more: int, bytes_max: int, kept_bytes_max: int) -> Outcome | None:
        """Choose whole segments to give up so that `bytes_more`, and what is kept of them, fit below `bytes_max`.

        A segment's worth stays free beside that, so this happens at most once for every segment that is filled. They
        are not read any more from now on, and are deleted once the next commit, which must hold what this
        returns as one pack, is durable.

        Args:
            bytes_more: to be written next.
            bytes_max: of all segments.
            kept_bytes_max: what may be kept of the given up ones.

        Returns:
            None when there is room.
        """
        given: list[Given] = []
        total = sum(segment.charged_bytes for segment in self._segments) + bytes_more
        if total <= bytes_max:
            return None
        free = bytes_max - kept_bytes_max - self._segment_bytes_max
        while self._segments and (not given or total > free):
            segment = self._to_give_up()
            if segment is self._current:
                self._end_segment()
            given.append(self._give_up(segment))
            total -= segment.charged_bytes
        with self._guard:
            declared = self._declared.copy()
        outcome = compact(given, kept_bytes_max, declared)
        for loss in outcome.losses:
            self.declare(loss)
        self.dropped += outcome.dropped
        self.merged += outcome.merged
        return outcome

    def _to_give_up(self) -> Segment:
        """Samples go first: the oldest segment that has a good part of them, else the oldest."""
        for segment in self._segments:
            if segment is not self._current and SAMPLES_SHARE * segment.sample_bytes >= segment.size:
                return segment
        return self._segments[0]

    def _give_up(self, segment: Segment) -> Given:
        with self._guard:
            self._segments.remove(segment)
            self._victims.append(segment)
            first, last = segment.first_seq, min(segment.last_seq, segment.limit - 1)
            if segment.epoch == self._cursor.epoch:
                first = max(first, self._cursor.seq + 1)
            # Who reads in this moment finds the segment gone before it hands anything out, and begins again.
            is_open = segment.number <= self._cursor.sent
            handed = self._handed if segment.epoch == self.epoch else last

        def stored() -> Iterator[Entry]:
            with suppress(OSError):  # what cannot be read is declared with the rest
                yield from entries(load_segment(segment.path, 0, segment.size), ENTRIES_AT, segment.number)

        return Given(
            segment.epoch, segment.boot, first, last, segment.size, lambda seq: is_open and seq <= handed, stored
        )

    def mark(self, bytes_max: int) -> bool:
        """Note that a read of so many bytes may hand out what it reaches; `save_cursor` makes the note durable.

        Returns:
            True when it is durable already.
        """
        with self._guard:
            cursor, reached = self._cursor, 0
            for segment in self._segments:
                if segment.number < cursor.segment:
                    continue
                if reached > bytes_max:
                    break
                cursor = replace(cursor, sent=max(cursor.sent, segment.number))
                reached += segment.size - (self._position[1] if self._position[0] == segment.number else 0)
            self._cursor = cursor
            return self.is_marked

    @property
    def is_marked(self) -> bool:
        """True when all that a read may hand out is noted durably as such."""
        return self._cursor.sent <= self._saved_cursor.sent

    def read(self, records_max: int, bytes_max: int, *, marked_only: bool = False) -> list[Record]:
        """The oldest durable records that are not acknowledged, in order; at least one if there is any.

        Args:
            records_max, bytes_max: at most so many.
            marked_only: only what `mark` has noted durably.

        Raises:
            DeviceError: a segment cannot be opened.
        """
        for _ in range(4):  # a segment may be given up while it is read: then the picture is taken anew
            with self._guard:
                cursor, position = self._cursor, self._position
                last = self._saved_cursor.sent if marked_only else self._number
                live = [replace(segment) for segment in self._segments if cursor.segment <= segment.number <= last]
            if live and live[0].number != position[0]:
                position = (live[0].number, ENTRIES_AT, cursor.epoch, cursor.seq)
            try:
                records = self._read(live, cursor, position, records_max, bytes_max)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise device_error(error, "reading the journal") from error
            if records is not None:
                return records
        return []

    def _read(
        self,
        live: list[Segment],
        cursor: Cursor,
        position: tuple[int, int, str, int],
        records_max: int,
        bytes_max: int,
    ) -> list[Record] | None:
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
        touched, end = 0, self._read_end
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
            touched, end = item.segment, (item.epoch, item.seq, item.segment, item.end)
        with self._guard:
            there = {segment.number for segment in self._segments}
            if any(segment.number not in there for segment in live if segment.number <= touched):
                return None
            self._handed = max([self._handed, *(item.seq for item in records if item.epoch == self.epoch)])
            self._position = max(position, self._position, key=lambda place: place[:2])
            self._read_end = end
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
            self._cursor = replace(cursor, segment=segment.number, epoch=epoch, seq=seq)
            if self._read_end[:2] == (epoch, seq):  # the next read begins here, and not with what it has read before
                self._position = (*self._read_end[2:], epoch, seq)
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
        place, slot = encode_cursor(cursor)
        path = self._folder / "cursor"
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            # Never the slot of the cursor that is durable: a torn write leaves that one.
            if os.pwrite(handle, slot, place) != len(slot):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            if self._has_cursor_file:
                os.fdatasync(handle)  # its size stays, so its inode need not go along
            else:
                os.fsync(handle)
                fsync_folder(self._folder)
                self._has_cursor_file = True
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

    @property
    def charged_bytes(self) -> int:
        """What the files cost of the budget."""
        with self._guard:
            files = (*self._segments, *self._leaving, *self._victims)
            return sum(segment.charged_bytes for segment in files) + CURSOR_BYTES

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
            return size + (CURSOR_BYTES if self._has_cursor_file else 0), len(self._segments), records

    @property
    def acknowledged(self) -> tuple[str, int] | None:
        """The cursor's id, None before the first acknowledgement."""
        cursor = self._cursor
        return (cursor.epoch, cursor.seq) if cursor.segment else None

    @property
    def durable(self) -> tuple[str, int] | None:
        """The id of the newest record that is known to have been durable, None when there is none."""
        with self._guard:
            segment = self._segments[-1] if self._segments else None
        if segment and segment.last_seq >= segment.first_seq:
            return segment.epoch, segment.last_seq
        return self.acknowledged


def _sample_bytes(entry: Entry) -> int:
    return ENTRY_BYTES + len(entry.body) if entry.kind == RECORD and is_sample(entry.body) else 0


def _forget_cached(path: Path) -> None:
    """Let the next read come from the disk: after a failed fsync the cache may hold what the disk never got."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def _sync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
