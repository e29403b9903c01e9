"""What a journal's stream holds in memory: its limits, the records that wait for the disk, and when they are due.

It owns no file and no thread: `tinylcm.journal` moves what waits here into a `tinylcm.log`. A record waits here
without an id; it gets one when it is put into a batch, and keeps it however often the disk refuses the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from .errors import ConfigError
from .log import Log
from .segments import (
    CURSOR_BYTES,
    ENTRIES_AT,
    ENTRY_BYTES,
    SAMPLE_TYPE,
    encode_entry,
    encode_pack,
)
from .types import Json, Record, Stream

BACKOFF_S: Final = 0.1  # first wait after a failed write; doubles up to the next
BACKOFF_S_MAX: Final = 30.0
BATCH_BYTES: Final = 256 << 10  # one commit's bytes: large enough that fsync is a small part of its cost
MARGIN_BYTES: Final = 2 * ENTRIES_AT + 1024  # headers, seal and gap records, which no caller asked for
WEAR_BYTES: Final = 4096  # of the file that keeps the wear


@dataclass(frozen=True, slots=True)
class JournalLimits:
    """Every bound of a journal.

    Attributes:
        journal_bytes_max: the whole folder on disk, both streams.
        events_bytes_max: the events' own budget inside it; details have the rest.
        segment_bytes_max: size of one file, the unit in which space is given back.
        commit_interval_s: how long a details record may wait to be made durable together with others.
        pending_bytes_max, pending_records_max: what a stream may hold in memory while it waits for the disk.
        urgent: types of details that are made durable at once too, as every event is.
        wear_bytes_per_day: budget of estimated bytes on the flash card in 24 hours, 0: none. Over it, details wait
            longer for each other, up to 10 minutes; events and what is urgent never wait.
    """

    journal_bytes_max: int = 64 << 20
    events_bytes_max: int = 16 << 20
    segment_bytes_max: int = 1 << 20
    commit_interval_s: float = 1.0
    pending_bytes_max: int = 4 << 20
    pending_records_max: int = 20_000
    urgent: frozenset[str] = frozenset()
    wear_bytes_per_day: int = 0

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
        if self.wear_bytes_per_day < 0:
            raise ConfigError(f"wear_bytes_per_day is {self.wear_bytes_per_day}, expected 0 (none) or more")

    @property
    def details_bytes_max(self) -> int:
        """What is left for details on disk."""
        return self.journal_bytes_max - self.events_bytes_max

    @property
    def details_room_bytes(self) -> int:
        """What all segments of details may take. One less than there is: what is given up is deleted only after."""
        return self.details_bytes_max - CURSOR_BYTES - WEAR_BYTES - self.segment_bytes_max

    @property
    def batch_bytes_max(self) -> int:
        """Entries of one commit: they fit into one segment."""
        return min(BATCH_BYTES, self.segment_bytes_max - MARGIN_BYTES)


@dataclass(frozen=True, slots=True)
class StreamStats:
    """The state of one stream.

    Attributes:
        bytes: on disk, cursor included.
        segments: files.
        queued: records in memory, not durable yet.
        unacknowledged: durable records not acknowledged yet; missing ones in between count too.
        dropped: details given up because the disk's budget was used up, since the journal was opened.
        merged: summaries that became part of a coarser one for that reason, since the journal was opened.
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
    merged: int
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
    """The state of the journal: both streams, their bytes on disk, and `tinylcm.wear.Wear.report`."""

    bytes: int
    events: StreamStats
    details: StreamStats
    wear: dict[str, Json]

    @property
    def failed(self) -> str | None:
        """Why the disk does not take records at the moment, or None."""
        return self.events.failed or self.details.failed


@dataclass(slots=True)
class Pending:
    """A record that waits for its seq; or, without a future, `lost` records that there was no room for."""

    type: str
    boot_ns: int
    body: bytes
    future: Future[Record] | None
    queued_s: float
    lost: int = 0


@dataclass(slots=True)
class Batch:
    """Encoded records with their ids, on the way to the disk: they keep both until it takes them."""

    first: int
    last: int = 0
    parts: list[bytes] = field(default_factory=list)
    size: int = 0
    sample_bytes: int = 0
    items: int = 0  # taken from the queue
    losses: int = 0  # taken from the log's undeclared ones
    done: list[tuple[Future[Record], Record]] = field(default_factory=list)

    def add(self, kind: int, record: Record, body: bytes) -> None:
        """Put a record in, encoded."""
        self._append(encode_entry(kind, record.epoch, record.seq, body), record.seq)
        if record.type == SAMPLE_TYPE:
            self.sample_bytes += ENTRY_BYTES + len(body)

    def add_pack(self, epoch: str, first_seq: int, items: Sequence[tuple[int, bytes]]) -> None:
        """Put entries in that the disk takes all together or not at all."""
        self._append(encode_pack(epoch, first_seq, items), first_seq + len(items) - 1)

    def _append(self, entry: bytes, seq: int) -> None:
        self.parts.append(entry)
        self.size += len(entry)
        self.last = seq


class Queue:
    """One stream's queue, counters and log; the journal's lock guards all but the log."""

    def __init__(self, name: Stream, log: Log, limits: JournalLimits) -> None:
        self.name: Stream = name
        self.log = log
        self.limits = limits
        self.interval_s = limits.commit_interval_s  # may be longer than configured, for the sake of the disk
        self.queue: deque[Pending] = deque()
        self.queue_bytes = 0
        self.queue_records = 0
        self.batch: Batch | None = None
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

    def push(self, pending: Pending) -> None:
        """Put a record, or a loss, at the end."""
        self.queue.append(pending)
        self.accepted += 1
        if pending.future is not None:
            self.queue_records += 1
            self.queue_bytes += len(pending.body) + ENTRY_BYTES
            if pending.type in self.limits.urgent:
                self.flush_to = self.accepted

    def pop(self) -> Pending:
        """Take the oldest."""
        pending = self.queue.popleft()
        if pending.future is not None:
            self.queue_records -= 1
            self.queue_bytes -= len(pending.body) + ENTRY_BYTES
        return pending

    def is_due(self, now_s: float) -> bool:
        """Whether the disk should get something now."""
        limits = self.limits
        if now_s < self.retry_s:
            return False
        if self.batch or self.log.has_losses or self.log.cursor_moved:
            return True
        if not self.queue:
            return False
        return (
            self.name == "events"
            or self.settled < self.flush_to
            or 4 * self.queue_bytes >= min(4 * BATCH_BYTES, limits.pending_bytes_max)
            or 4 * self.queue_records >= limits.pending_records_max
            or now_s >= self.queue[0].queued_s + self.interval_s
        )

    def due_s(self) -> float:
        """When it will be due if nothing else happens."""
        if self.batch or self.log.has_losses or self.log.cursor_moved:
            return self.retry_s
        if not self.queue:
            return float("inf")
        return max(self.retry_s, self.queue[0].queued_s + self.interval_s)
