"""The queue in memory: order, what it weighs, and when it is due."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
from tinylcm.errors import ConfigError
from tinylcm.journal_queue import Batch, JournalLimits, Pending, Queue
from tinylcm.log import Log
from tinylcm.segments import ENTRY_BYTES, PACK, RECORD, SAMPLE_TYPE, stored_entries
from tinylcm.types import Record, Stream

EPOCH = "00112233445566aa"


def make(folder: Path, name: Stream = "details", **limits: object) -> Queue:
    return Queue(name, Log(folder, name, EPOCH, "boot", 1 << 16), JournalLimits(**limits))  # type: ignore[arg-type]


def pending(queued_s: float = 0.0, kind: str = "note", size: int = 100) -> Pending:
    return Pending(kind, 0, b"x" * size, Future(), queued_s)


def test_details_are_due_after_their_interval_and_events_at_once(tmp_path: Path) -> None:
    details, events = make(tmp_path), make(tmp_path, "events")
    for queue in (details, events):
        assert not queue.is_due(0.0) and queue.due_s() == float("inf")
        queue.push(pending(10.0))
    assert events.is_due(10.0) and not details.is_due(10.5) and details.is_due(11.0)
    assert details.due_s() == 11.0


def test_a_flush_an_urgent_record_and_a_full_queue_are_due_at_once(tmp_path: Path) -> None:
    flushed, urgent = make(tmp_path), make(tmp_path, urgent=frozenset({"now"}))
    full = make(tmp_path, pending_records_max=4)
    flushed.push(pending())
    flushed.flush_to = flushed.accepted
    urgent.push(pending(kind="now"))
    full.push(pending())
    assert flushed.is_due(0.0) and urgent.is_due(0.0) and full.is_due(0.0)
    heavy = make(tmp_path)
    heavy.push(pending(size=1 << 20))
    assert heavy.is_due(0.0)


def test_after_a_failure_everything_waits_for_the_retry(tmp_path: Path) -> None:
    queue = make(tmp_path, "events")
    queue.push(pending())
    queue.retry_s = 5.0
    assert not queue.is_due(4.9) and queue.is_due(5.0) and queue.due_s() >= 5.0


def test_weight_and_number_follow_pushes_and_pops(tmp_path: Path) -> None:
    queue = make(tmp_path)
    queue.push(pending(size=10))
    queue.push(Pending("gap", 0, b"", None, 0.0, 3))
    assert (queue.queue_records, queue.queue_bytes, queue.waiting, queue.accepted) == (1, 10 + ENTRY_BYTES, 1, 2)
    assert len(queue.pop().body) == 10 and queue.pop().lost == 3
    assert (queue.queue_records, queue.queue_bytes) == (0, 0)


def test_a_batch_knows_its_size_its_last_seq_and_its_samples() -> None:
    batch = Batch(first=5)
    batch.add_pack(EPOCH, 5, [(RECORD, b"a"), (RECORD, b"b")])
    batch.add(RECORD, Record(SAMPLE_TYPE, EPOCH, 7, "boot", 0, {}), b"body")
    data = b"".join(batch.parts)
    assert batch.size == len(data) and batch.last == 7 and batch.sample_bytes == ENTRY_BYTES + 4
    assert [(entry.kind, entry.seq) for entry in stored_entries(data, 0, 1)] == [(PACK, 6), (RECORD, 7)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wear_bytes_per_day": -1}, "wear_bytes_per_day is -1"),
        ({"segment_bytes_max": 100}, "expected 4096 or more"),
        ({"pending_records_max": 0}, "must be positive"),
    ],
)
def test_limits_that_cannot_be_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JournalLimits(**change)  # type: ignore[arg-type]
