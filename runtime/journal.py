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
import json
import os
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .clock import Clock
from .errors import ConfigError, DeviceError, JournalFullError, TinyLCMError, WireError
from .files import device_error, make_folder, read_bounded, write_atomic
from .journal_queue import (
    BACKOFF_S,
    BACKOFF_S_MAX,
    MARGIN_BYTES,
    WEAR_BYTES,
    Batch,
    JournalLimits,
    JournalStats,
    Pending,
    Queue,
    StreamStats,
)
from .log import Log
from .segments import BOOT_BYTES_MAX, ENTRY_BYTES, GAP, GAP_TYPE, RECORD, Loss, decode_payload, encode_body
from .types import Json, Record, Stream
from .wear import HOUR_S, Wear
from .wire import RECORD_BYTES_MAX, STREAMS, canonical_json, finite, is_plain

__all__ = ["Journal", "JournalLimits", "JournalStats", "StreamStats"]

MARK_TIMEOUT_S: Final = 5.0  # how long a read waits for the disk to note what it will hand out
_JSON_PER_MSGPACK_MAX: Final = 8  # no value's JSON is longer than this many times its msgpack


class _Durable(Future[Record]):
    """It cannot be cancelled: the record is on its way."""

    def cancel(self) -> bool:
        """Never."""
        return False


class Journal:
    """See the module's text; make one with `Journal.open`. Every method may be called from any thread.

    A future's callbacks run on the journal's thread: they must be short and must not wait for the journal.
    """

    def __init__(self, folder: Path, limits: JournalLimits, clock: Clock, lock: int) -> None:
        self._limits, self._clock, self._lock = limits, clock, lock
        self._boot = clock.boot
        self._streams: dict[Stream, Queue] = {
            name: Queue(
                name, Log(folder / name, name, os.urandom(8).hex(), self._boot, limits.segment_bytes_max), limits
            )
            for name in STREAMS
        }
        self._wear = Wear(limits.wear_bytes_per_day, limits.commit_interval_s, clock.monotonic_s())
        self._wear_path = folder / "wear"
        self._wear_saved_s = clock.monotonic_s()
        self._counted = (0, 0)  # bytes and fsyncs of both logs that the wear knows of
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
        body = self._encode(type, boot_ns, payload)
        future: Future[Record] = _Durable()
        now_s = self._clock.monotonic_s()
        pending = Pending(type, boot_ns, body, future, now_s)
        with self._changed:
            problem = self._problem(state, len(body) + ENTRY_BYTES)
            if problem is None:
                state.push(pending)
                if len(state.queue) == 1 or state.is_due(now_s):
                    self._changed.notify_all()
        if problem is not None:
            future.set_exception(problem)
        return future

    def _encode(self, kind: str, boot_ns: int, payload: object) -> bytes:
        values = payload if is_plain(payload) else finite(payload)
        if not isinstance(values, dict):
            raise WireError(f"a payload must be a mapping, got {type(payload).__name__}")
        try:
            body = encode_body(kind, boot_ns, values)
        except (ValueError, OverflowError) as error:
            raise WireError(f"the payload of a {kind} record cannot be stored: {error}") from error
        size = len(body)
        if size * _JSON_PER_MSGPACK_MAX > RECORD_BYTES_MAX:
            size = max(size, len(canonical_json(values)) + 200)  # 200: the envelope
        bytes_max = min(RECORD_BYTES_MAX, self._limits.segment_bytes_max - MARGIN_BYTES)
        if size > bytes_max:
            raise WireError(f"a {kind} record has {size} bytes, at most {bytes_max} are taken: split it")
        return body

    def _problem(self, state: Queue, size: int) -> TinyLCMError | None:
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
            headers = MARGIN_BYTES * (2 + queued // limits.segment_bytes_max)
            if on_disk + queued + size + headers > limits.events_bytes_max:
                state.refused += 1
                return JournalFullError(
                    f"the events on disk use up their {limits.events_bytes_max} bytes: sync them, or raise "
                    "events_bytes_max; the stored ones are safe"
                )
        return None

    def _overflow(self, state: Queue) -> None:
        state.overflowed += 1
        if state.queue and state.queue[-1].lost:
            state.queue[-1].lost += 1
        else:
            state.push(Pending(GAP_TYPE, self._clock.boot_ns(), b"", None, self._clock.monotonic_s(), 1))

    def read(self, stream: Stream, records_max: int, bytes_max: int) -> list[Record]:
        """The oldest durable records that are not acknowledged, in order.

        Details that are handed out may be sent, and are never merged from then on. That is noted on the disk first,
        once a segment: while the disk takes no note, the records of that segment are not handed out.

        Args:
            stream: which.
            records_max: at most this many.
            bytes_max: at most this many bytes as stored on disk, but one record at least.

        Raises:
            DeviceError: the disk cannot be read.
        """
        state = self._streams[stream]
        is_merged = stream == "details"
        if is_merged and not state.log.mark(bytes_max):
            with self._changed:
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda: state.log.is_marked or state.failed or not self._thread.is_alive(), MARK_TIMEOUT_S
                )
        records = state.log.read(records_max, bytes_max, marked_only=is_merged)
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

    def commit_within(self, interval_s: float) -> None:
        """Let details wait so long for each other from now on; the budget for wear may still stretch it.

        Raises:
            ConfigError: it is not within 0 and 3600 seconds.
        """
        self._limits = replace(self._limits, commit_interval_s=interval_s)
        with self._changed:
            self._wear.rebase(interval_s)
            self._streams["details"].interval_s = self._wear.interval_s(self._clock.monotonic_s())
            self._changed.notify_all()

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

    @property
    def is_running(self) -> bool:
        """Whether its thread lives."""
        return self._thread.is_alive()

    def stats(self) -> JournalStats:
        """What there is, what was lost, and whether the disk works."""
        with self._changed:
            events, details = (self._stream_stats(self._streams[name]) for name in STREAMS)
            wear = self._wear.report(self._clock.monotonic_s())
        return JournalStats(events.bytes + details.bytes, events, details, wear)

    def _stream_stats(self, state: Queue) -> StreamStats:
        size, segments, records = state.log.sizes()
        return StreamStats(
            bytes=size,
            segments=segments,
            queued=state.waiting,
            unacknowledged=records,
            dropped=state.log.dropped,
            merged=state.log.merged,
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
        self._load_wear()
        self._opened.set_result(None)
        while due := self._wait():
            for state in due:
                self._serve(state)
            self._note_wear()
        self._end()

    def _wait(self) -> list[Queue]:
        with self._changed:
            while not self._stopping:
                now_s = self._clock.monotonic_s()
                due = [state for state in self._streams.values() if state.is_due(now_s)]
                if due:
                    return due
                wait_s = min(state.due_s() for state in self._streams.values()) - now_s
                # At most a second at once: a clock that was passed in may run faster than the machine's.
                self._changed.wait(min(max(wait_s, 0.001), 1.0) if wait_s < float("inf") else None)
        return []

    def _serve(self, state: Queue) -> None:
        try:
            if state.batch is None and (state.queue or state.log.has_losses):
                self._take(state)
            if state.batch is not None:
                batch = state.batch
                state.log.commit(b"".join(batch.parts), batch.first, batch.last, batch.sample_bytes)
                self._settle(state, batch)
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

    def _take(self, state: Queue) -> None:
        bytes_max = self._limits.batch_bytes_max
        losses = state.log.losses(bytes_max // 256)
        batch = Batch(first=state.next_seq, losses=len(losses))
        for loss in losses:
            self._declare(state, batch, loss, self._clock.boot_ns())
        if state.name == "details":
            self._make_room(state, batch)
        with self._changed:
            while state.queue and (not batch.parts or batch.size + len(state.queue[0].body) <= bytes_max):
                pending = state.pop()
                batch.items += 1
                if pending.future is not None:
                    record = self._record(state, pending.type, pending.boot_ns, decode_payload(pending.body))
                    batch.add(RECORD, record, pending.body)
                    batch.done.append((pending.future, record))
                    continue
                first = state.next_seq
                state.next_seq += pending.lost
                loss = Loss(state.log.epoch, first, state.next_seq - 1, "memory", pending.lost)
                state.log.declare(loss)
                self._declare(state, batch, loss, pending.boot_ns)
            state.batch = batch

    def _make_room(self, state: Queue, batch: Batch) -> None:
        """Let the oldest details give way when the disk's budget is used up; what says so is part of the batch."""
        bytes_more = min(self._limits.batch_bytes_max, state.queue_bytes) + MARGIN_BYTES
        outcome = state.log.make_room(bytes_more, self._limits.details_room_bytes, self._limits.segment_bytes_max // 2)
        if outcome is not None:
            items = outcome.items(self._clock.boot_ns())
            batch.add_pack(state.log.epoch, state.next_seq, items)
            state.next_seq += len(items)

    def _record(self, state: Queue, kind: str, boot_ns: int, payload: dict[str, Json]) -> Record:
        record = Record(kind, state.log.epoch, state.next_seq, self._boot, boot_ns, payload)
        state.next_seq += 1
        return record

    def _declare(self, state: Queue, batch: Batch, loss: Loss, boot_ns: int) -> None:
        record = self._record(state, GAP_TYPE, boot_ns, loss.payload())
        batch.add(GAP, record, encode_body(GAP_TYPE, boot_ns, loss.payload()))

    def _settle(self, state: Queue, batch: Batch) -> None:
        state.log.settle_losses(batch.losses)
        for future, record in batch.done:
            future.set_result(record)
        with self._changed:
            state.batch = None
            state.settled += batch.items
            self._changed.notify_all()

    def _load_wear(self) -> None:
        with suppress(OSError, ValueError, TinyLCMError):  # missing or damaged: the accounting begins anew
            self._wear.restore(json.loads(read_bounded(self._wear_path, WEAR_BYTES)))
        with self._changed:
            self._streams["details"].interval_s = self._wear.interval_s(self._clock.monotonic_s())

    def _note_wear(self) -> None:
        logs = [state.log for state in self._streams.values()]
        counted = sum(log.written_bytes for log in logs), sum(log.syncs for log in logs)
        now_s = self._clock.monotonic_s()
        with self._changed:
            self._wear.note(now_s, counted[0] - self._counted[0], counted[1] - self._counted[1])
            self._counted = counted
            self._streams["details"].interval_s = self._wear.interval_s(now_s)
        if now_s - self._wear_saved_s >= HOUR_S:
            self._save_wear(now_s)

    def _save_wear(self, now_s: float) -> None:
        self._wear_saved_s = now_s
        with suppress(TinyLCMError):  # an hour later again; the records matter more
            write_atomic(self._wear_path, canonical_json(self._wear.state()) + b"\n")

    def _end(self) -> None:
        self._note_wear()
        self._save_wear(self._clock.monotonic_s())
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
