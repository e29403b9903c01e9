"""The bounded, power-safe store of records: two streams, one thread that writes.

It owns the queue in memory, the ids, the grouping of commits, the budgets and the answer to a failing disk; the
files are `tinylcm.log`'s. It knows nothing of networks: `read` gives what may be sent, `acknowledge` says what may
be deleted. A record is durable when its future resolves, and only durable records are read.

    with Journal.open(folder, JournalLimits(), SystemClock()) as journal:
        record = journal.append("events", "label", {"label": "running"}).result(timeout=5)
        for record in journal.read("events", records_max=100, bytes_max=65536):
            ...
        journal.acknowledge("events", record.epoch, record.seq)
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .clock import Clock
from .errors import ConfigError, DeviceError, JournalFullError, TinyLCMError, WireError
from .files import device_error, make_folder
from .log import Log
from .segments import (
    BOOT_BYTES_MAX,
    CURSOR_BYTES,
    ENTRIES_AT,
    ENTRY_BYTES,
    GAP,
    RECORD,
    Loss,
    encode_body,
    encode_entry,
)
from .types import Json, Record, Stream
from .wire import RECORD_BYTES_MAX, STREAMS, canonical_json, finite

GAP_TYPE: Final = "gap"
BACKOFF_S: Final = 0.1  # first wait after a failed write; doubles up to the next
BACKOFF_S_MAX: Final = 30.0
_BATCH_BYTES: Final = 256 << 10  # one commit's bytes: large enough that fsync is a small part of its cost
_MARGIN_BYTES: Final = 2 * ENTRIES_AT + 1024  # headers, seal and gap records, which no caller asked for
_JSON_PER_MSGPACK_MAX: Final = 8  # no value's JSON is longer than this many times its msgpack


@dataclass(frozen=True, slots=True)
class JournalLimits:
    """Every bound of a journal.

    Attributes:
        journal_bytes_max: the whole folder on disk, both streams.
        events_bytes_max: the events' own budget inside it; details have the rest.
        segment_bytes_max: size of one file, the unit in which space is given back.
        commit_interval_s: how long a details record may wait to be made durable together with others.
        pending_bytes_max, pending_records_max: what a stream may hold in memory while it waits for the disk.
    """

    journal_bytes_max: int = 64 << 20
    events_bytes_max: int = 16 << 20
    segment_bytes_max: int = 1 << 20
    commit_interval_s: float = 1.0
    pending_bytes_max: int = 4 << 20
    pending_records_max: int = 20_000

    def __post_init__(self) -> None:
        segment = self.segment_bytes_max
        if segment < 4096:
            raise ConfigError(f"segment_bytes_max is {segment}, expected 4096 or more")
        if self.events_bytes_max < 2 * segment + CURSOR_BYTES:
            raise ConfigError(
                f"events_bytes_max is {self.events_bytes_max}, expected {2 * segment + CURSOR_BYTES} or more: "
                "two segments and the cursor"
            )
        if self.details_bytes_max < 4 * segment + CURSOR_BYTES:
            raise ConfigError(
                f"journal_bytes_max is {self.journal_bytes_max}, expected at least "
                f"{self.events_bytes_max + 4 * segment + CURSOR_BYTES}: events_bytes_max, four segments and a cursor"
            )
        if not 0 <= self.commit_interval_s <= 3600:
            raise ConfigError(f"commit_interval_s is {self.commit_interval_s}, expected 0 to 3600 seconds")
        if self.pending_bytes_max < 1 or self.pending_records_max < 1:
            raise ConfigError("pending_bytes_max and pending_records_max must be positive")

    @property
    def details_bytes_max(self) -> int:
        """What is left for details on disk."""
        return self.journal_bytes_max - self.events_bytes_max


@dataclass(frozen=True, slots=True)
class StreamStats:
    """The state of one stream.

    Attributes:
        bytes: on disk, cursor included.
        segments: files.
        queued: records in memory, not durable yet.
        unacknowledged: durable records not acknowledged yet; missing ones in between count too.
        dropped: details given up because the disk's budget was used up, since the journal was opened.
        overflowed: details given up because the queue in memory was full, since the journal was opened.
        refused: events answered with `JournalFullError`, since the journal was opened.
        damaged: records found missing or unreadable on the disk, since the journal was opened.
        failed: why the disk does not take records at the moment, or None.
        durable, acknowledged: newest (epoch, seq), or None before the first.
        written_bytes, syncs: given to the disk since the journal was opened, for its wear.
    """

    bytes: int
    segments: int
    queued: int
    unacknowledged: int
    dropped: int
    overflowed: int
    refused: int
    damaged: int
    failed: str | None
    durable: tuple[str, int] | None
    acknowledged: tuple[str, int] | None
    written_bytes: int
    syncs: int


@dataclass(frozen=True, slots=True)
class JournalStats:
    """The state of the journal: both streams, and the bytes of the whole folder."""

    bytes: int
    events: StreamStats
    details: StreamStats

    @property
    def failed(self) -> str | None:
        """Why the disk does not take records at the moment, or None."""
        return self.events.failed or self.details.failed


@dataclass(slots=True)
class _Pending:
    """A record that waits for its seq; or, without a future, `lost` records that there was no room for."""

    type: str
    boot_ns: int
    payload: dict[str, Json]
    body: bytes
    future: Future[Record] | None
    queued_s: float
    lost: int = 0


@dataclass(slots=True)
class _Batch:
    """Encoded records with their ids, on the way to the disk: they keep both until it takes them."""

    first: int
    last: int = 0
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    items: int = 0  # taken from the queue
    losses: int = 0  # taken from the log's undeclared ones
    done: list[tuple[Future[Record], Record]] = field(default_factory=list)

    def add(self, kind: int, record: Record, body: bytes) -> None:
        entry = encode_entry(kind, record.epoch, record.seq, body)
        self.parts.append(entry)
        self.size += len(entry)
        self.last = record.seq


class _Stream:
    """One stream's queue, counters and log; the journal's lock guards all but the log."""

    def __init__(self, name: Stream, log: Log) -> None:
        self.name: Stream = name
        self.log = log
        self.queue: deque[_Pending] = deque()
        self.queue_bytes = 0
        self.queue_records = 0
        self.batch: _Batch | None = None
        self.next_seq = 1
        self.accepted = 0  # items ever put into the queue, and
        self.settled = 0  # of these, durable
        self.flush_to = 0
        self.overflowed = self.refused = 0
        self.failed: str | None = None
        self.backoff_s = BACKOFF_S
        self.retry_s = -float("inf")

    @property
    def waiting(self) -> int:
        """Records that are not durable."""
        return self.queue_records + (len(self.batch.done) if self.batch else 0)

    def push(self, pending: _Pending) -> None:
        self.queue.append(pending)
        self.accepted += 1
        if pending.future is not None:
            self.queue_records += 1
            self.queue_bytes += len(pending.body) + ENTRY_BYTES

    def pop(self) -> _Pending:
        pending = self.queue.popleft()
        if pending.future is not None:
            self.queue_records -= 1
            self.queue_bytes -= len(pending.body) + ENTRY_BYTES
        return pending

    def is_due(self, now_s: float, limits: JournalLimits) -> bool:
        if now_s < self.retry_s:
            return False
        if self.batch or self.log.has_losses or self.log.cursor_moved:
            return True
        if not self.queue:
            return False
        return (
            self.name == "events"
            or self.settled < self.flush_to
            or 4 * self.queue_bytes >= min(4 * _BATCH_BYTES, limits.pending_bytes_max)
            or 4 * self.queue_records >= limits.pending_records_max
            or now_s >= self.queue[0].queued_s + limits.commit_interval_s
        )

    def due_s(self, limits: JournalLimits) -> float:
        """When it will be due if nothing else happens."""
        if self.batch or self.log.has_losses or self.log.cursor_moved:
            return self.retry_s
        if not self.queue:
            return float("inf")
        return max(self.retry_s, self.queue[0].queued_s + limits.commit_interval_s)


class Journal:
    """See the module's text; make one with `Journal.open`. Every method may be called from any thread.

    A future's callbacks run on the journal's thread: they must be short and must not wait for the journal.
    """

    def __init__(self, folder: Path, limits: JournalLimits, clock: Clock, lock: int) -> None:
        self._limits, self._clock, self._lock = limits, clock, lock
        self._boot = clock.boot
        self._streams: dict[Stream, _Stream] = {
            name: _Stream(name, Log(folder / name, name, os.urandom(8).hex(), self._boot, limits.segment_bytes_max))
            for name in STREAMS
        }
        self._changed = threading.Condition()
        self._closing = self._stopping = False
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="tinylcm-journal", daemon=True)

    @classmethod
    def open(cls, folder: Path, limits: JournalLimits, clock: Clock) -> Journal:
        """Open the folder's journal, made when missing, and recover what is in it.

        Raises:
            DeviceError: no permission, another process has it open, or another version wrote it.
            ConfigError: the clock's boot is longer than 64 bytes.
        """
        if len(clock.boot.encode()) > BOOT_BYTES_MAX:
            raise ConfigError(f"the clock's boot has {len(clock.boot)} characters, at most {BOOT_BYTES_MAX} are taken")
        make_folder(folder)
        lock = _lock_folder(folder)
        journal = cls(folder, limits, clock, lock)
        journal._thread.start()
        try:
            journal._opened.result()
        except BaseException:
            os.close(lock)
            raise
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, stream: Stream, type: str, payload: object) -> Future[Record]:
        """Queue a record; never waits for the disk.

        Args:
            stream: `events` are made durable at once and never dropped, `details` in groups.
            type: the record's type.
            payload: a mapping that `tinylcm.wire.finite` can make JSON of.

        Returns:
            A future that resolves with the record once it is durable. It fails with `JournalFullError` when there
            is no room, and with `DeviceError` when the journal was closed first. It cannot be cancelled.

        Raises:
            WireError: the payload is no mapping, has no JSON form, or is too large for one record.
        """
        state = self._streams[stream]
        boot_ns = self._clock.boot_ns()
        values, body = self._encode(type, boot_ns, payload)
        future: Future[Record] = Future()
        future.set_running_or_notify_cancel()
        now_s = self._clock.monotonic_s()
        pending = _Pending(type, boot_ns, values, body, future, now_s)
        with self._changed:
            problem = self._problem(state, len(body) + ENTRY_BYTES)
            if problem is None:
                state.push(pending)
                if len(state.queue) == 1 or state.is_due(now_s, self._limits):
                    self._changed.notify_all()
        if problem is not None:
            future.set_exception(problem)
        return future

    def _encode(self, kind: str, boot_ns: int, payload: object) -> tuple[dict[str, Json], bytes]:
        values = finite(payload)
        if not isinstance(values, dict):
            raise WireError(f"a payload must be a mapping, got {type(payload).__name__}")
        try:
            body = encode_body(kind, boot_ns, values)
        except (ValueError, OverflowError) as error:
            raise WireError(f"the payload of a {kind} record cannot be stored: {error}") from error
        size = len(body)
        if size * _JSON_PER_MSGPACK_MAX > RECORD_BYTES_MAX:
            size = max(size, len(canonical_json(values)) + 200)  # 200: the envelope
        bytes_max = min(RECORD_BYTES_MAX, self._limits.segment_bytes_max - _MARGIN_BYTES)
        if size > bytes_max:
            raise WireError(f"a {kind} record has {size} bytes, at most {bytes_max} are taken: split it")
        return values, body

    def _problem(self, state: _Stream, size: int) -> TinyLCMError | None:
        limits = self._limits
        if self._closing:
            return DeviceError("the journal is closed: the record was not stored")
        if state.queue_records >= limits.pending_records_max or state.queue_bytes + size > limits.pending_bytes_max:
            if state.name == "details":
                self._overflow(state)
            else:
                state.refused += 1
            return JournalFullError(
                f"{state.queue_records} {state.name} wait in memory for the disk, which is all that may: "
                + (state.failed or "the disk is slower than the records come")
            )
        if state.name == "events":
            on_disk = state.log.charged_bytes
            queued = state.queue_bytes + (state.batch.size if state.batch else 0)
            headers = _MARGIN_BYTES * (2 + queued // limits.segment_bytes_max)
            if on_disk + queued + size + headers > limits.events_bytes_max:
                state.refused += 1
                return JournalFullError(
                    f"the events on disk use up their {limits.events_bytes_max} bytes: sync them, or raise "
                    "events_bytes_max; the stored ones are safe"
                )
        return None

    def _overflow(self, state: _Stream) -> None:
        state.overflowed += 1
        if state.queue and state.queue[-1].lost:
            state.queue[-1].lost += 1
        else:
            state.push(_Pending(GAP_TYPE, self._clock.boot_ns(), {}, b"", None, self._clock.monotonic_s(), 1))

    def read(self, stream: Stream, records_max: int, bytes_max: int) -> list[Record]:
        """The oldest durable records that are not acknowledged, in order.

        Args:
            stream: which.
            records_max: at most this many.
            bytes_max: at most this many bytes as stored on disk, but one record at least.

        Raises:
            DeviceError: the disk cannot be read.
        """
        state = self._streams[stream]
        records = state.log.read(records_max, bytes_max)
        if state.log.has_losses:
            with self._changed:
                self._changed.notify_all()
        return records

    def acknowledge(self, stream: Stream, epoch: str, seq: int) -> bool:
        """Settle all records up to and including this one: they are not read again, and deleted soon.

        Returns at once; `flush` waits until it is durable. Until then a crash makes them be read again.

        Returns:
            False when the record is unknown here or was acknowledged before: nothing happened.
        """
        moved = self._streams[stream].log.acknowledge(epoch, seq)
        if moved:
            with self._changed:
                self._changed.notify_all()
        return moved

    def flush(self, timeout_s: float = 10.0) -> None:
        """Wait until all that was appended and acknowledged before is durable.

        Raises:
            DeviceError: it is not after `timeout_s` seconds; says how many records, and why.
        """
        with self._changed:
            targets = {state.name: state.accepted for state in self._streams.values()}
            for state in self._streams.values():
                state.flush_to = max(state.flush_to, state.accepted)
                state.retry_s = -float("inf")
            self._changed.notify_all()

            def is_flushed() -> bool:
                return all(
                    state.settled >= targets[state.name] and not state.log.cursor_moved and not state.log.has_losses
                    for state in self._streams.values()
                )

            if not self._changed.wait_for(lambda: is_flushed() or not self._thread.is_alive(), timeout_s):
                raise DeviceError(f"after {timeout_s:g} s {self._backlog()}")
            if not is_flushed():
                raise DeviceError(f"the journal is closed, and {self._backlog()}")

    def _backlog(self) -> str:
        left = sum(state.waiting for state in self._streams.values())
        reasons = {state.failed for state in self._streams.values() if state.failed}
        return f"{left} records are not durable: " + ("; ".join(sorted(reasons)) or "the disk is slow")

    def close(self, timeout_s: float = 10.0) -> None:
        """Make everything durable, and end; doing it again changes nothing.

        Raises:
            DeviceError: how many records were not durable after `timeout_s` seconds; their futures fail too.
        """
        with self._changed:
            if self._closing and not self._thread.is_alive():
                return
            self._closing = True
        problem: DeviceError | None = None
        try:
            self.flush(timeout_s)
        except DeviceError as error:
            problem = error
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(max(timeout_s, 1.0))
        if self._thread.is_alive():
            raise DeviceError(f"the disk has not answered for {timeout_s:g} s; the journal stays locked until it does")
        with self._changed:
            lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)
        if problem is not None:
            raise problem

    def stats(self) -> JournalStats:
        """What there is, what was lost, and whether the disk works."""
        with self._changed:
            events, details = (self._stream_stats(self._streams[name]) for name in STREAMS)
        return JournalStats(events.bytes + details.bytes, events, details)

    def _stream_stats(self, state: _Stream) -> StreamStats:
        size, segments, records = state.log.sizes()
        return StreamStats(
            bytes=size,
            segments=segments,
            queued=state.waiting,
            unacknowledged=records,
            dropped=state.log.dropped,
            overflowed=state.overflowed,
            refused=state.refused,
            damaged=state.log.damaged,
            failed=state.failed,
            durable=state.log.durable,
            acknowledged=state.log.acknowledged,
            written_bytes=state.log.written_bytes,
            syncs=state.log.syncs,
        )

    # From here on: the journal's thread.

    def _run(self) -> None:
        try:
            for state in self._streams.values():
                state.log.recover()
        except BaseException as error:
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        while due := self._wait():
            for state in due:
                self._serve(state)
        self._end()

    def _wait(self) -> list[_Stream]:
        with self._changed:
            while not self._stopping:
                now_s = self._clock.monotonic_s()
                due = [state for state in self._streams.values() if state.is_due(now_s, self._limits)]
                if due:
                    return due
                wait_s = min(state.due_s(self._limits) for state in self._streams.values()) - now_s
                # At most a second at once: a clock that was passed in may run faster than the machine's.
                self._changed.wait(min(max(wait_s, 0.001), 1.0) if wait_s < float("inf") else None)
        return []

    def _serve(self, state: _Stream) -> None:
        try:
            if state.batch is None and (state.queue or state.log.has_losses):
                self._take(state)
            if state.batch is not None:
                state.log.commit(b"".join(state.batch.parts), state.batch.first, state.batch.last)
                self._settle(state, state.batch)
            if state.log.cursor_moved:
                state.log.save_cursor()
        except Exception as error:  # whatever it was, the records keep their places and are tried again
            problem = device_error(error, "the journal's write") if isinstance(error, OSError) else error
            with self._changed:
                state.failed = str(problem) or type(problem).__name__
                state.retry_s = self._clock.monotonic_s() + state.backoff_s
                state.backoff_s = min(2 * state.backoff_s, BACKOFF_S_MAX)
                self._changed.notify_all()
            return
        with self._changed:
            state.failed, state.backoff_s = None, BACKOFF_S
            self._changed.notify_all()

    def _take(self, state: _Stream) -> None:
        bytes_max = min(_BATCH_BYTES, self._limits.segment_bytes_max - _MARGIN_BYTES)
        losses = state.log.losses(bytes_max // 256)
        batch = _Batch(first=state.next_seq, losses=len(losses))
        if state.name == "details":
            # One segment less than the budget: what is given up is deleted only after its gap record is durable.
            room = self._limits.details_bytes_max - CURSOR_BYTES - self._limits.segment_bytes_max
            losses += state.log.make_room(min(bytes_max, state.queue_bytes) + _MARGIN_BYTES, room)
        for loss in losses:
            self._declare(state, batch, loss, self._clock.boot_ns())
        with self._changed:
            while state.queue and (not batch.parts or batch.size + len(state.queue[0].body) <= bytes_max):
                pending = state.pop()
                batch.items += 1
                if pending.future is not None:
                    record = self._record(state, pending.type, pending.boot_ns, pending.payload)
                    batch.add(RECORD, record, pending.body)
                    batch.done.append((pending.future, record))
                    continue
                first = state.next_seq
                state.next_seq += pending.lost
                loss = Loss(state.log.epoch, first, state.next_seq - 1, "memory", pending.lost)
                state.log.declare(loss)
                self._declare(state, batch, loss, pending.boot_ns)
            state.batch = batch

    def _record(self, state: _Stream, kind: str, boot_ns: int, payload: dict[str, Json]) -> Record:
        record = Record(kind, state.log.epoch, state.next_seq, self._boot, boot_ns, payload)
        state.next_seq += 1
        return record

    def _declare(self, state: _Stream, batch: _Batch, loss: Loss, boot_ns: int) -> None:
        record = self._record(state, GAP_TYPE, boot_ns, loss.payload())
        batch.add(GAP, record, encode_body(GAP_TYPE, boot_ns, loss.payload()))

    def _settle(self, state: _Stream, batch: _Batch) -> None:
        state.log.settle_losses(batch.losses)
        for future, record in batch.done:
            future.set_result(record)
        with self._changed:
            state.batch = None
            state.settled += batch.items
            self._changed.notify_all()

    def _end(self) -> None:
        left: list[Future[Record]] = []
        for state in self._streams.values():
            clean = state.batch is None and not state.queue
            with self._changed:
                left += [future for future, _ in state.batch.done] if state.batch else []
                left += [pending.future for pending in state.queue if pending.future is not None]
            try:
                if clean:
                    state.log.seal(state.next_seq - 1)
            except OSError:
                pass  # without a seal the log reads the same
            finally:
                state.log.close()
        for future in left:
            future.set_exception(DeviceError("the journal was closed before the record was durable"))


def _lock_folder(folder: Path) -> int:
    path = folder / "lock"
    try:
        handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise device_error(error, "opening the journal") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise DeviceError(
                f"the journal {folder} is in use by another process: stop it, or give this one another folder"
            ) from error
        raise device_error(error, "locking the journal") from error
    return handle
