"""The journal as its callers see it: durable futures, ids, bounds, failing disks and killed writers."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tinylcm.clock import SystemClock
from tinylcm.errors import ConfigError, DeviceError, JournalFullError, WireError
from tinylcm.journal import Journal, JournalLimits
from tinylcm.segments import ENTRIES_AT, MARKER
from tinylcm.types import Record, Stream
from tinylcm.wire import record_from_json, record_to_json

SMALL = JournalLimits(
    journal_bytes_max=128 << 10,
    events_bytes_max=32 << 10,
    segment_bytes_max=8 << 10,
    commit_interval_s=0.01,
)


class HandClock:
    """Time that moves when the test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.boot = "boot-of-the-test"

    def boot_ns(self) -> int:
        return int(self.now_s * 1e9)

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        raise AssertionError("the journal must not ask for the wall time")


def open_journal(folder: Path, limits: JournalLimits = SMALL) -> Journal:
    return Journal.open(folder, limits, SystemClock())


def read_all(journal: Journal, stream: Stream = "events") -> list[Record]:
    return journal.read(stream, 1_000_000, 1 << 30)


def values(records: list[Record]) -> list[object]:
    return [record.payload["n"] for record in records if record.type != "gap"]


@contextmanager
def full_disk(bytes_more: int = 10, path: Path | None = None) -> Iterator[None]:
    """No file may grow over a size; Python ignores SIGXFSZ, so writes fail with EFBIG, and short before that."""
    limit = (path.stat().st_size if path else 0) + bytes_more
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def wait_for(condition: object, what: str, timeout_s: float = 10.0) -> None:
    assert callable(condition)
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"did not happen: {what}"
        time.sleep(0.005)


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segment_bytes_max": 100}, "segment_bytes_max is 100, expected 4096"),
        ({"events_bytes_max": 1 << 20}, "two segments and the cursor"),
        ({"journal_bytes_max": 17 << 20}, "four segments and a cursor"),
        ({"commit_interval_s": -1.0}, "expected 0 to 3600 seconds"),
        ({"commit_interval_s": float("nan")}, "expected 0 to 3600 seconds"),
        ({"pending_records_max": 0}, "must be positive"),
    ],
)
def test_limits_that_cannot_be_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JournalLimits(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ([1], "must be a mapping, got list"),
        ({"n": object()}, "object"),
        ({"n": {1, 2}}, "set"),
        ({"n": 1 << 70}, "integer"),
        ({"n": "x" * 9000}, "at most 6784 are taken"),
    ],
)
def test_a_payload_that_cannot_be_stored_is_refused_at_once(tmp_path: Path, payload: object, message: str) -> None:
    with open_journal(tmp_path) as journal:
        with pytest.raises(WireError, match=message):
            journal.append("events", "label", payload)
        assert journal.append("events", "label", {"n": 1}).result(5).seq == 1


def test_a_record_that_no_sync_could_carry_is_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path, JournalLimits()) as journal, pytest.raises(WireError, match="at most 262144"):
        journal.append("events", "label", {"n": "\x01" * 60_000})  # six bytes of JSON each


def test_what_is_stored_passes_the_wire(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        record = journal.append("events", "label", {"n": float("nan"), "t": (1, 2), "s": "\ud800"}).result(5)
        assert read_all(journal) == [record]
    assert record_from_json(record_to_json(record)) == record
    assert record.payload["n"] is None
    assert record.payload["t"] == [1, 2]


def test_a_second_opening_is_refused(tmp_path: Path) -> None:
    with open_journal(tmp_path), pytest.raises(DeviceError, match="in use by another process"):
        open_journal(tmp_path)
    open_journal(tmp_path).close()


def test_another_process_is_refused(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tinylcm.clock import SystemClock\n"
        "from tinylcm.journal import Journal, JournalLimits\n"
        "Journal.open(Path(sys.argv[1]), JournalLimits(), SystemClock())"
    )
    with open_journal(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert "in use by another process" in done.stderr


def test_a_file_in_the_way_is_a_device_error(tmp_path: Path) -> None:
    (tmp_path / "j").write_text("here")
    with pytest.raises(DeviceError, match="a file, not a folder"):
        open_journal(tmp_path / "j")


def test_a_failed_opening_leaves_the_folder_unlocked(tmp_path: Path) -> None:
    (tmp_path / "events").write_text("in the way")
    with pytest.raises(DeviceError):
        open_journal(tmp_path)
    (tmp_path / "events").unlink()
    open_journal(tmp_path).close()


def test_after_close_a_record_fails_in_its_future(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    journal.close()
    with pytest.raises(DeviceError, match="is closed"):
        journal.append("events", "label", {}).result(1)
    journal.close()


# Append, read, acknowledge


def test_a_record_is_read_once_durable_and_gone_once_acknowledged(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        first, second = (journal.append("events", "label", {"n": n}).result(5) for n in (1, 2))
        assert (first.seq, second.seq, first.epoch) == (1, 2, second.epoch)
        assert read_all(journal) == [first, second] == read_all(journal)
        assert journal.acknowledge("events", first.epoch, 1)
        assert read_all(journal) == [second]
        assert not journal.acknowledge("events", first.epoch, 1)
        assert journal.stats().events.acknowledged == (first.epoch, 1)


def test_streams_have_their_own_ids(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        event = journal.append("events", "alarm", {"n": 1}).result(5)
        detail = journal.append("details", "summary", {"n": 2}).result(5)
        assert (event.seq, detail.seq) == (1, 1)
        assert event.epoch != detail.epoch
        assert (read_all(journal), read_all(journal, "details")) == ([event], [detail])


def test_reopening_keeps_everything_and_draws_a_new_epoch(tmp_path: Path) -> None:
    written = []
    for n in range(4):
        with open_journal(tmp_path) as journal:
            written.append(journal.append("events", "label", {"n": n}).result(5))
            if n == 1:
                journal.acknowledge("events", written[0].epoch, 1)
    with open_journal(tmp_path) as journal:
        assert read_all(journal) == written[1:]
    assert len({record.epoch for record in written}) == 4


def test_details_wait_for_their_group_and_events_do_not(tmp_path: Path) -> None:
    clock = HandClock()
    limits = JournalLimits(commit_interval_s=60.0)
    with Journal.open(tmp_path, limits, clock) as journal:
        detail = journal.append("details", "summary", {"n": 1})
        assert journal.append("events", "alarm", {"n": 2}).result(5).boot == "boot-of-the-test"
        time.sleep(0.05)
        assert not detail.done()
        assert read_all(journal, "details") == []
        clock.now_s = 61.0
        journal.append("events", "alarm", {"n": 3}).result(5)
        assert detail.result(5).boot_ns == 0


def test_another_interval_counts_at_once_for_what_waits_too(tmp_path: Path) -> None:
    clock = HandClock()
    with Journal.open(tmp_path, JournalLimits(commit_interval_s=600.0), clock) as journal:
        detail = journal.append("details", "summary", {"n": 1})
        clock.now_s = 5.0
        journal.commit_within(4.0)
        assert detail.result(5).seq == 1
        assert journal.stats().wear["commit_interval_s"] == 4.0
        with pytest.raises(ConfigError, match="commit_interval_s is -1"):
            journal.commit_within(-1.0)


def test_over_its_budget_for_wear_a_journal_writes_details_less_often_also_after_a_restart(tmp_path: Path) -> None:
    clock = HandClock()
    limits = JournalLimits(commit_interval_s=1.0, wear_bytes_per_day=10_000)
    with Journal.open(tmp_path, limits, clock) as journal:
        for _ in range(3):
            journal.append("events", "alarm", {"text": "x" * 4000}).result(5)
        clock.now_s = 601.0
        journal.append("events", "alarm", {}).result(5)
        detail = journal.append("details", "summary", {})
        wait_for(lambda: journal.stats().wear["stretched"], "the interval is stretched")
        clock.now_s = 602.5
        assert journal.append("events", "alarm", {}).result(5)  # events never wait
        assert not detail.done() and journal.stats().wear["commit_interval_s"] == 2.0
        clock.now_s = 603.5
        journal.append("events", "alarm", {}).result(5)
        assert detail.result(5).seq == 1
    with Journal.open(tmp_path, limits, clock) as journal:
        assert journal.stats().wear["commit_interval_s"] == 2.0


def test_flush_does_not_wait_for_the_interval(tmp_path: Path) -> None:
    with Journal.open(tmp_path, JournalLimits(commit_interval_s=3600.0), SystemClock()) as journal:
        future = journal.append("details", "summary", {"n": 1})
        journal.flush(5)
        assert future.done()
        journal.acknowledge("details", future.result().epoch, 1)
        journal.flush(5)
    with open_journal(tmp_path) as journal:
        assert read_all(journal, "details") == []


def test_threads_append_side_by_side(tmp_path: Path) -> None:
    def work(name: int) -> None:
        for n in range(100):
            futures.append(journal.append("details", "summary", {"thread": name, "n": n}))

    futures: list[object] = []
    with open_journal(tmp_path, JournalLimits(commit_interval_s=0.005)) as journal:
        threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        journal.flush(10)
        records = read_all(journal, "details")
    assert [record.seq for record in records] == list(range(1, 401))
    for name in range(4):
        assert [record.payload["n"] for record in records if record.payload["thread"] == name] == list(range(100))


def test_only_the_journals_thread_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for call in ("fsync", "fdatasync"):
        real = getattr(os, call)

        def recording(handle: int, real: object = real) -> None:
            names.add(threading.current_thread().name)
            real(handle)  # type: ignore[operator]

        monkeypatch.setattr(os, call, recording)
    (tmp_path / "j").mkdir()
    for _ in range(2):
        with open_journal(tmp_path / "j") as journal:
            record = journal.append("events", "label", {"n": 1}).result(5)
            journal.append("events", "label", {"n": 2}).result(5)
            journal.acknowledge("events", record.epoch, record.seq)
    assert names == {"tinylcm-journal"}


# Bounds


def test_over_the_budget_the_newest_details_stay_and_the_rest_is_declared(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        event = journal.append("events", "alarm", {"n": 0}).result(5)
        for n in range(1000):
            journal.append("details", "summary", {"n": n, "text": "x" * 200})
            if n % 20 == 0:
                journal.flush(10)
        journal.flush(10)
        size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        assert size <= SMALL.journal_bytes_max
        stats = journal.stats()
        assert stats.bytes == size
        records = read_all(journal, "details")
        assert read_all(journal) == [event]
    check_complete(records)
    kept = values(records)
    assert kept == list(range(1000))[-len(kept) :]
    assert 150 < len(kept) < 500
    assert stats.details.dropped > 0


def check_complete(records: list[Record]) -> None:
    """Every seq of every epoch is a record or declared lost, and what is lost does not come."""
    for epoch in {record.epoch for record in records}:
        came = [record.seq for record in records if record.epoch == epoch]
        lost = {
            seq
            for record in records
            if record.type == "gap" and record.payload["epoch"] == epoch
            for seq in range(record.payload["from_seq"], record.payload["to_seq"] + 1)  # type: ignore[operator,arg-type]
        }
        assert came == sorted(set(came))
        assert not lost & set(came)
        assert lost | set(came) == set(range(1, max(came) + 1))


def test_gaps_outlive_the_segments_that_declared_them(tmp_path: Path) -> None:
    for _ in range(6):
        with open_journal(tmp_path) as journal:
            for n in range(300):
                journal.append("details", "summary", {"n": n, "text": "x" * 200})
                if n % 20 == 0:
                    journal.flush(10)
    with open_journal(tmp_path) as journal:
        records = read_all(journal, "details")
    check_complete(records)
    gaps = [record.payload for record in records if record.type == "gap"]
    assert len({gap["epoch"] for gap in gaps}) >= 4
    assert {gap["reason"] for gap in gaps} == {"dropped"}


def test_events_over_their_budget_are_refused_and_the_stored_ones_stay(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        stored = []
        with pytest.raises(JournalFullError, match="use up their 32768 bytes"):
            for n in range(1000):
                stored.append(journal.append("events", "alarm", {"n": n, "text": "x" * 200}).result(5))
        assert journal.stats().events.refused == 1
        assert read_all(journal) == stored
        assert journal.acknowledge("events", stored[-1].epoch, stored[-1].seq)
        journal.flush(5)
        assert journal.append("events", "alarm", {"n": -1, "text": "x" * 200}).result(5).seq == len(stored) + 1
        assert sum(path.stat().st_size for path in (tmp_path / "events").iterdir()) <= SMALL.events_bytes_max


# Failing disks


def test_a_full_disk_delays_records_and_loses_none(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.append("events", "alarm", {"n": 0}).result(5)
        with full_disk(10, tmp_path / "events" / "00000001.seg"):
            futures = [journal.append("events", "alarm", {"n": n}) for n in range(1, 6)]
            wait_for(lambda: journal.stats().failed, "the failure shows")
            assert "journal" in str(journal.stats().events.failed)
            assert not any(future.done() for future in futures)
            assert values(read_all(journal)) == [0]
            with pytest.raises(DeviceError, match="5 records are not durable"):
                journal.flush(0.3)
        assert [future.result(40).seq for future in futures] == [2, 3, 4, 5, 6]
        assert journal.stats().failed is None
        assert values(read_all(journal)) == [0, 1, 2, 3, 4, 5]
    with open_journal(tmp_path) as journal:
        assert values(read_all(journal)) == [0, 1, 2, 3, 4, 5]
        assert journal.stats().events.damaged == 0


def test_closing_on_a_full_disk_says_how_many_are_lost(tmp_path: Path) -> None:
    journal = open_journal(tmp_path)
    with full_disk():
        futures = [journal.append("events", "alarm", {"n": n}) for n in range(3)]
        with pytest.raises(DeviceError, match="3 records are not durable"):
            journal.close(0.3)
    for future in futures:
        with pytest.raises(DeviceError, match="closed before the record was durable"):
            future.result(1)
    with open_journal(tmp_path) as journal:
        assert read_all(journal) == []


@pytest.mark.parametrize("call", ["fdatasync", "ftruncate"])
def test_a_batch_that_failed_half_way_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    failures: list[str] = []

    def failing(handle: int, *size: int) -> None:
        if len(failures) < 3:
            failures.append(call)
            raise OSError(5, "Input/output error")
        real(handle, *size)

    journal = open_journal(tmp_path)
    first = journal.append("events", "alarm", {"n": 0}).result(5)
    real = getattr(os, call)
    monkeypatch.setattr(os, call, failing)
    if call == "ftruncate":  # the torn half stays in the abandoned segment
        sync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", lambda handle: failing(handle) if len(failures) < 1 else sync(handle))
    second = journal.append("events", "alarm", {"n": 1}).result(10)
    assert read_all(journal) == [first, second]
    monkeypatch.undo()
    journal.close()
    assert len(list((tmp_path / "events").glob("*.seg"))) == 2
    assert failures
    with open_journal(tmp_path) as journal:
        assert read_all(journal) == [first, second]
        assert journal.stats().events.damaged == 0


@pytest.mark.parametrize("call", ["open", "write", "fsync", "fdatasync", "pwrite", "unlink", "close"])
def test_one_failing_call_anywhere_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    reached = 0
    for number in range(40):
        with monkeypatch.context() as patch:
            fault = Fault(patch, call, number)
            expected = scenario(tmp_path / str(number), fault)
        reached += fault.reached
        with open_journal(tmp_path / str(number), TINY) as journal:
            assert read_all(journal) == expected, number
            assert journal.stats().events.damaged == 0
        if not fault.reached:
            break
    assert not fault.reached  # every call of the scenario has failed once
    assert reached >= {"pwrite": 2, "unlink": 1}.get(call, 4)


TINY = JournalLimits(journal_bytes_max=64 << 10, events_bytes_max=32 << 10, segment_bytes_max=4096)


class Fault:
    """The `number`th call of one system call on the journal's thread fails with EIO."""

    def __init__(self, patch: pytest.MonkeyPatch, call: str, number: int) -> None:
        self.armed = self.reached = False
        self._real, self._left = getattr(os, call), number
        patch.setattr(os, call, self)

    def __call__(self, *args: object, **kwargs: object) -> object:
        if self.armed and threading.current_thread().name == "tinylcm-journal":
            self._left -= 1
            if self._left == -1:
                self.reached = True
                raise OSError(5, "Input/output error")
        return self._real(*args, **kwargs)


def scenario(folder: Path, fault: Fault) -> list[Record]:
    """Three segments, an acknowledgement that frees one, and more; returns what must be left."""
    journal = open_journal(folder, TINY)
    fault.armed = True
    futures = [journal.append("events", "alarm", {"n": n, "text": "x" * 900}) for n in range(9)]
    journal.flush(20)
    records = [future.result(0) for future in futures]
    for seq in (2, 6):
        assert journal.acknowledge("events", records[0].epoch, seq)
        journal.flush(20)
    records.append(journal.append("events", "alarm", {"n": 9}).result(20))
    assert read_all(journal) == records[6:]
    journal.close(20)
    return records[6:]


def test_a_full_queue_drops_details_declares_them_and_refuses_events(tmp_path: Path) -> None:
    limits = JournalLimits(commit_interval_s=0.01, pending_records_max=4)
    with open_journal(tmp_path, limits) as journal:
        with full_disk():
            details = [journal.append("details", "summary", {"n": n}) for n in range(4)]
            wait_for(lambda: journal.stats().details.failed, "the failure shows")
            details += [journal.append("details", "summary", {"n": n}) for n in range(4, 20)]
            events = [journal.append("events", "alarm", {"n": n}) for n in range(20)]
            wait_for(lambda: journal.stats().events.failed, "the failure shows")
        journal.flush(40)
        stats = journal.stats()
        records = read_all(journal, "details")
        assert len(values(records)) + stats.details.overflowed == 20
        assert stats.details.overflowed >= 12
        check_complete(records)
        counts = [record.payload["count"] for record in records if record.type == "gap"]
        assert sum(count for count in counts if isinstance(count, int)) == stats.details.overflowed
        assert {record.payload["reason"] for record in records if record.type == "gap"} == {"memory"}
        refused = [future for future in events if future.exception(5)]
        assert len(refused) == stats.events.refused > 0
        assert all(isinstance(future.exception(), JournalFullError) for future in refused)
        assert len(read_all(journal)) == 20 - len(refused)
    assert [future.exception() is None for future in details[:4]] == [True] * 4


def test_damage_that_appears_while_it_is_open_is_declared(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        futures = [journal.append("events", "label", {"n": n}) for n in range(5)]
        journal.flush(5)
        path = tmp_path / "events" / "00000001.seg"
        data = bytearray(path.read_bytes())
        data[-5] ^= 1  # inside the last record
        data[data.index(MARKER, ENTRIES_AT + 1) + 30] ^= 1  # and inside the second
        path.write_bytes(data)
        assert values(read_all(journal)) == [0, 2, 3]
        journal.flush(5)
        records = read_all(journal)
    assert futures[4].result().seq == 5
    assert [(record.payload["from_seq"], record.payload["reason"]) for record in records if record.type == "gap"] == [
        (2, "damaged"),
        (5, "damaged"),
    ]
    check_complete(records)


def test_damage_found_at_opening_is_declared_once(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for n in range(5):
            journal.append("details", "label", {"n": n})
    path = tmp_path / "details" / "00000001.seg"
    data = bytearray(path.read_bytes())
    data[data.index(MARKER, ENTRIES_AT + 1) + 30] ^= 1
    path.write_bytes(data)
    for damaged in (1, 0, 0):
        with open_journal(tmp_path) as journal:
            journal.flush(5)
            records = read_all(journal, "details")
            assert journal.stats().details.damaged == damaged
        assert values(records) == [0, 2, 3, 4]
        assert [record.payload["count"] for record in records if record.type == "gap"] == [1]


# Killed writers

WRITER = """
import sys
from pathlib import Path
from tinylcm.clock import SystemClock
from tinylcm.journal import Journal, JournalLimits
limits = JournalLimits(journal_bytes_max=1 << 20, events_bytes_max=512 << 10, segment_bytes_max=16 << 10,
                       commit_interval_s=0.002)
journal = Journal.open(Path(sys.argv[1]), limits, SystemClock())
def durable(stream):
    def report(future):
        record = future.result()
        sys.stdout.buffer.write(f"{stream} {record.epoch} {record.seq} {record.payload['n']}\\n".encode())
        sys.stdout.buffer.flush()
    return report
for n in range(100_000):
    for stream in ("events", "details"):
        journal.append(stream, "label", {"n": n}).add_done_callback(durable(stream))
    if n % 7 == 0:
        journal.flush()
"""


@pytest.mark.long
def test_no_durable_record_is_lost_when_the_writer_is_killed(tmp_path: Path) -> None:
    chance = random.Random(20)
    limits = JournalLimits(journal_bytes_max=1 << 20, events_bytes_max=512 << 10, segment_bytes_max=16 << 10)
    total = 0
    for _ in range(20):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        told = [writer.stdout.readline()]
        time.sleep(chance.uniform(0.0, 0.08))
        writer.send_signal(signal.SIGKILL)
        told += writer.stdout.readlines()
        writer.wait(10)
        writer.stdout.close()
        lines = [line.decode().split() for line in told if line.endswith(b"\n")]
        total += len(lines)
        with open_journal(tmp_path, limits) as journal:
            for stream in ("events", "details"):
                found = {(record.epoch, record.seq): record for record in read_all(journal, stream)}
                for name, epoch, seq, n in lines:
                    if name == stream:
                        assert found[epoch, int(seq)].payload == {"n": int(n)}
                assert journal.stats().events.damaged == 0
                newest = list(found)[-1]
                journal.acknowledge(stream, *newest)
    assert total > 200


# Against a model


class JournalModel(RuleBasedStateMachine):
    """Appends, commits, reopenings, crashes and acknowledgements against two lists."""

    def __init__(self) -> None:
        super().__init__()
        base = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
        import tempfile

        self.folder = Path(tempfile.mkdtemp(prefix="tinylcm-journal-", dir=base))
        self.opening = 0
        self.limits = JournalLimits(segment_bytes_max=4096, commit_interval_s=3600.0)
        self.journal = open_journal(self.folder / "0", self.limits)
        self.expected: dict[Stream, list[Record]] = {"events": [], "details": []}
        self.pending: list[tuple[Stream, object]] = []

    def settle(self) -> None:
        self.journal.flush(10)
        for stream, future in self.pending:
            self.expected[stream].append(future.result(0))  # type: ignore[attr-defined]
        self.pending = []

    @rule(stream=st.sampled_from(["events", "details"]), n=st.integers(-(2**63), 2**63 - 1), size=st.integers(0, 900))
    def append(self, stream: Stream, n: int, size: int) -> None:
        self.pending.append((stream, self.journal.append(stream, "label", {"n": n, "text": "\xf5" * size})))

    @rule()
    def flush(self) -> None:
        self.settle()

    @rule(torn=st.binary(max_size=60))
    def crash(self, torn: bytes) -> None:
        """The folder as a crash would leave it: without the seal, perhaps with a torn end."""
        self.settle()
        self.opening += 1
        copy = self.folder / str(self.opening)
        shutil.copytree(self.folder / str(self.opening - 1), copy)
        self.journal.close()
        for path in copy.rglob("*.seg"):
            with path.open("ab") as file:
                file.write(torn)
        self.journal = open_journal(copy, self.limits)

    @rule()
    def reopen(self) -> None:
        self.settle()
        self.journal.close()
        self.journal = open_journal(self.folder / str(self.opening), self.limits)

    @precondition(lambda self: self.expected["events"] or self.expected["details"])
    @rule(stream=st.sampled_from(["events", "details"]), part=st.floats(0, 1), durable=st.booleans())
    def acknowledge(self, stream: Stream, part: float, durable: bool) -> None:
        records = self.expected[stream]
        if records:
            index = int(part * (len(records) - 1))
            assert self.journal.acknowledge(stream, records[index].epoch, records[index].seq)
            assert not self.journal.acknowledge(stream, records[index].epoch, records[index].seq)
            del records[: index + 1]
        if durable:
            self.settle()

    @invariant()
    def reads_the_same(self) -> None:
        if not self.pending:
            for stream, records in self.expected.items():
                assert read_all(self.journal, stream) == records
                assert self.journal.read(stream, 2, 1) == records[:1]

    def teardown(self) -> None:
        try:
            self.settle()
            self.reads_the_same()
        finally:
            self.journal.close()
            shutil.rmtree(self.folder)


TestJournalModel = JournalModel.TestCase
TestJournalModel.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
