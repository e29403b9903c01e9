"""The journal's grouped appends beside SQLite (WAL, synchronous=FULL) on the same disk in the same run.

Both make the same records of about 200 bytes durable in groups of 100; SQLite gets the bare packed payload, the journal
also checks it, gives ids and resolves a future a record. `extra_info` has the ratio of the rates, and the bytes that
each sends to the disk as the kernel counts them, to store a payload byte and in a record's whole life (stored, read,
acknowledged, deleted in groups of 100 as well): on a flash card that is the figure that counts.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import msgpack
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from tinylcm.clock import SystemClock
from tinylcm.journal import Journal, JournalLimits
from tinylcm.wear import SYNC_BYTES

RECORDS = 5000
GROUP = 100
PAYLOAD = {**{f"channel_{n}": 1.37 * n for n in range(8)}, "text": "x" * 40}
LIMITS = JournalLimits(pending_records_max=2 * RECORDS, commit_interval_s=60.0)


def fill_journal(folder: Path, group: int = GROUP) -> None:
    with Journal.open(folder, LIMITS, SystemClock()) as journal:
        for start in range(0, RECORDS, group):
            for _ in range(start, start + group):
                journal.append("details", "summary", PAYLOAD)
            journal.flush()


def fill_sqlite(path: Path) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("pragma journal_mode=wal")
    database.execute("pragma synchronous=full")
    database.execute("create table record (seq integer primary key, body blob)")
    for _ in range(0, RECORDS, GROUP):
        database.execute("begin")
        for _ in range(GROUP):
            database.execute("insert into record (body) values (?)", (msgpack.packb(PAYLOAD),))
        database.execute("commit")
    database.close()


def drain_journal(folder: Path) -> None:
    with Journal.open(folder, LIMITS, SystemClock()) as journal:
        while records := journal.read("details", GROUP, 1 << 20):
            journal.acknowledge("details", records[-1].epoch, records[-1].seq)
            journal.flush()


def drain_sqlite(path: Path) -> None:
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("pragma synchronous=full")
    while rows := database.execute("select seq, body from record order by seq limit ?", (GROUP,)).fetchall():
        database.execute("delete from record where seq <= ?", (rows[-1][0],))
    database.close()


def disk_bytes() -> int:
    """Bytes that this process has caused to be sent to block devices."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["write_bytes"])


def life_bytes(fill: Callable[[Path], None], drain: Callable[[Path], None], path: Path) -> tuple[float, float]:
    """Bytes a record on the device: to store it, and in its whole life."""
    before = disk_bytes()
    fill(path)
    stored = disk_bytes()
    drain(path)
    return (stored - before) / RECORDS, (disk_bytes() - before) / RECORDS


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


DAY_S = 86400
COMMITS = 300  # of a day's


def bytes_a_day(folder: Path, records_per_s: int) -> tuple[int, int]:
    """Bytes of a day with one commit a second: as the kernel counts them, and as the journal estimates them."""
    with Journal.open(folder, LIMITS, SystemClock()) as journal:
        before, stats = disk_bytes(), journal.stats().details
        for _ in range(COMMITS):
            for _ in range(records_per_s):
                journal.append("details", "summary", PAYLOAD)
            journal.flush()
        counted, now = disk_bytes() - before, journal.stats().details
    estimated = now.written_bytes - stats.written_bytes + SYNC_BYTES * (now.syncs - stats.syncs)
    return counted * DAY_S // COMMITS, estimated * DAY_S // COMMITS


@pytest.mark.parametrize("records_per_s", [1, 10])
def test_bytes_a_day(benchmark: BenchmarkFixture, tmp_path: Path, records_per_s: int) -> None:
    counted, estimated = benchmark.pedantic(bytes_a_day, args=(tmp_path, records_per_s), rounds=1)  # type: ignore[no-untyped-call]
    benchmark.extra_info.update(
        table="wear",
        peer="payload alone",
        records_per_s=records_per_s,
        payload_mb_a_day=round(records_per_s * DAY_S * len(msgpack.packb(PAYLOAD)) / 1e6, 1),
        kernel_mb_a_day=round(counted / 1e6, 1),
        estimated_mb_a_day=round(estimated / 1e6, 1),
    )


@pytest.mark.benchmark(group="journal")
def test_grouped_append(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    own_s: list[float] = []
    peer_s: list[float] = []

    def peer() -> None:
        # Round by round beside ours, so that a busy machine slows both.
        start_s = time.perf_counter()
        fill_sqlite(tmp_path / f"{len(peer_s)}.db")
        peer_s.append(time.perf_counter() - start_s)

    def own() -> None:
        start_s = time.perf_counter()
        fill_journal(tmp_path / f"journal{len(own_s)}")
        own_s.append(time.perf_counter() - start_s)

    benchmark.pedantic(own, setup=peer, rounds=7, warmup_rounds=1)  # type: ignore[no-untyped-call]
    start_s = time.perf_counter()
    fill_journal(tmp_path / "whole", group=RECORDS)
    whole_s = time.perf_counter() - start_s
    payload_bytes = RECORDS * len(msgpack.packb(PAYLOAD))
    stored, life = life_bytes(fill_journal, drain_journal, tmp_path / "life")
    peer_stored, peer_life = life_bytes(fill_sqlite, drain_sqlite, tmp_path / "life.db")
    benchmark.extra_info.update(
        table="journal",
        journal_records_per_s=round(RECORDS / median(own_s)),
        journal_one_group_records_per_s=round(RECORDS / whole_s),
        sqlite_records_per_s=round(RECORDS / median(peer_s)),
        peer="SQLite WAL FULL, records/s",
        ratio=round(median(peer_s) / median(own_s), 2),
        payload_bytes=payload_bytes // RECORDS,
        journal_file_bytes_per_payload_byte=round(size_of(tmp_path / "whole") / payload_bytes, 2),
        journal_device_bytes_per_payload_byte=round(stored * RECORDS / payload_bytes, 2),
        sqlite_device_bytes_per_payload_byte=round(peer_stored * RECORDS / payload_bytes, 2),
        journal_life_bytes_per_record=round(life, 1),
        sqlite_life_bytes_per_record=round(peer_life, 1),
    )
    with Journal.open(tmp_path / "whole", LIMITS, SystemClock()) as journal:
        assert len(journal.read("details", 2 * RECORDS, 1 << 30)) == RECORDS
