"""What is kept, and what goes: by age and by size, from the tables and from the store."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, alarm, make_kit, record, summary
from tinylcm.wire import Anchor
from tinysphere import blobs, retention
from tinysphere.db import rows
from tinysphere.errors import BusyError, StartError
from tinysphere.jobs import Lease, Work, Worker, claim, soon
from tinysphere.retention import DAY_S, DEFAULTS, Keep, parse_keep, sweep

NEVER = dict.fromkeys(DEFAULTS)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


@pytest.fixture
def lease(kit: Kit) -> Lease:
    work = {"retention": Work(lambda lease: None, 60.0)}
    Worker(kit.db, work)._make_known()
    kit.db.write(lambda connection: soon(connection, "retention"))
    found = claim(kit.db, work, threading.Event(), 600.0)
    assert found is not None
    return found


def count(kit: Kit, table: str) -> int:
    return int(kit.db.read(lambda connection: rows(connection, f"SELECT COUNT(*) AS n FROM {table}"))[0]["n"])


def told(kit: Kit, device: str, days_ago: float, first: int, records: int = 3) -> None:
    """A sync of some days ago."""
    kit.clock.jump_wall(NOW - days_ago * DAY_S - kit.clock.wall_s())
    items = [record(first + i, "summary", summary([5.0], [0.5])) for i in range(records)]
    kit.sync(
        device,
        anchor=Anchor(10_000_000_000, kit.clock.wall_s()),
        details=items,
        events=[record(first, "alarm", alarm()), record(first + 1, "label", {"prediction": "p", "label": "a"})],
    )
    kit.clock.jump_wall(NOW - kit.clock.wall_s())


def upload(kit: Kit, device: str, data: bytes, days_ago: float) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    part = blobs.Part.open(
        kit.db, kit.store, device, sha256, 0, len(data), blobs.Limits(1 << 20, 1 << 20)
    )  # fmt: skip
    part.write(data)
    assert part.finish(len(data), NOW - days_ago * DAY_S).complete
    part.close()
    return sha256


def test_old_rows_go_and_the_young_stay(kit: Kit, lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PIECE_ROWS", 2)
    device = kit.enrol()
    told(kit, device, 500, 1, 5)
    told(kit, device, 1, 101)
    gone = sweep(lease, kit.store, Keep(), NOW)
    assert (gone["record"], gone["summary"]) == (7, 5)
    assert (count(kit, "record"), count(kit, "summary")) == (5, 3)
    assert (count(kit, "drift_event"), count(kit, "label")) == (2, 2), "people's work is kept for ever unless told"
    assert count(kit, "rollup") == 4, "of the old day only the day is left"
    again = kit.sync(device, details=[record(3, "summary", summary([5.0], [0.5]))])
    assert again.acked["details"] is not None and count(kit, "record") == 5, "what was settled once never comes again"


def test_people_may_let_their_work_go_too(kit: Kit, lease: Lease) -> None:
    device = kit.enrol()
    told(kit, device, 40, 1)
    sweep(lease, kit.store, parse_keep(["events=30d", "labels=30d", "days=30d"]), NOW)
    assert count(kit, "drift_event") == count(kit, "label") == 0 and count(kit, "rollup") == 1
    assert count(kit, "record") == 5


def test_records_are_bounded_in_bytes_oldest_first(kit: Kit, lease: Lease) -> None:
    device = kit.enrol()
    for i in range(10):
        told(kit, device, 10 - i, 1 + 100 * i, 100)
    whole = kit.db.write(lambda connection: retention.table_bytes(connection, "summary"))
    payload = int(
        kit.db.read(lambda connection: rows(connection, "SELECT SUM(LENGTH(payload)) AS n FROM summary"))[0]["n"]
    )
    assert payload < whole < 3 * payload
    sweep(lease, kit.store, Keep(NEVER, {"records": whole}), NOW)
    assert 300 <= count(kit, "summary") <= 700 and count(kit, "record") < 1020
    oldest = kit.db.read(lambda connection: rows(connection, "SELECT MIN(received_at) AS at FROM summary"))[0]["at"]
    assert oldest > NOW - 9 * DAY_S
    left = count(kit, "summary")
    sweep(lease, kit.store, Keep(NEVER, {"records": whole}), NOW)
    assert count(kit, "summary") >= 0.9 * left, "what fits is not cut again"


def test_blobs_go_with_their_files_when_the_last_row_does(kit: Kit, lease: Lease) -> None:
    first, second = kit.enrol("one", "11" * 32), kit.enrol("two", "22" * 32)
    old, shared = upload(kit, first, b"old", 100), upload(kit, first, b"shared", 100)
    assert upload(kit, second, b"shared", 1) == shared
    gone = sweep(lease, kit.store, Keep(), NOW)
    assert gone["blob"] == 2 and gone["file"] == 1
    assert kit.store.size(old) is None and kit.store.size(shared) == 6
    sweep(lease, kit.store, parse_keep(["blobs=forever"]), NOW + 1000 * DAY_S)
    assert kit.store.size(shared) == 6


def test_blobs_are_bounded_in_bytes_oldest_first(kit: Kit, lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "FILES_A_PIECE", 2)
    device = kit.enrol()
    names = [upload(kit, device, bytes([i]) * 1000, 10 - i) for i in range(10)]
    sweep(lease, kit.store, Keep(NEVER, {"blobs": 3500}), NOW)
    assert [kit.store.size(name) is not None for name in names] == [False] * 7 + [True] * 3


def test_a_package_is_never_taken_for_a_blob(kit: Kit, lease: Lease) -> None:
    sha256 = kit.upload().sha256
    device = kit.enrol()
    data = b"".join(kit.store.read(sha256))
    upload(kit, device, data, 100)
    sweep(lease, kit.store, Keep(), NOW)
    assert count(kit, "blob") == 0 and kit.store.size(sha256) == len(data)


def test_a_store_that_is_away_costs_a_try_and_no_file(kit: Kit, lease: Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    name = upload(kit, kit.enrol(), b"old", 100)
    with monkeypatch.context() as broken:

        def refuse(sha256: str) -> None:
            raise BusyError("the store cannot be reached", retry_after_s=5)

        broken.setattr(kit.store, "delete", refuse)
        with pytest.raises(BusyError):
            sweep(lease, kit.store, Keep(), NOW)
    assert kit.store.size(name) == 3
    assert sweep(lease, kit.store, Keep(), NOW) == {"file": 1} and kit.store.size(name) is None
    assert upload(kit, kit.enrol("again", "33" * 32), b"old", 0) == name, "it may come again"


def test_what_is_to_be_kept_is_read_as_people_write_it() -> None:
    keep = parse_keep(["records=30d", "records=20GB", "blobs=500MB", "minutes=forever"])
    assert keep.days["records"] == 30 and keep.days["minutes"] is None and keep.days["hours"] == 400
    assert keep.bytes == {"records": 20 * 10**9, "blobs": 500 * 10**6}


@pytest.mark.parametrize("text", ["", "records", "records=0d", "records=-1d", "records=30", "sessions=3d", "days=1GB"])
def test_what_cannot_be_kept_is_said(text: str) -> None:
    with pytest.raises(StartError, match="--keep"):
        parse_keep([text])


def test_points_that_mlflow_has_for_long_go(kit: Kit, lease: Lease) -> None:
    hours = [(NOW - days * DAY_S) // 3600 * 3600 for days in (10, 300, 402, 900)]
    columns = ("model", "version", "at", "span_s", "marks", "taken", "settled", "stamp_ms", "body")
    values = [("m", "1", int(hour), 3600, 1, 1, 1, 1, "{}") for hour in hours]
    kit.db.write(lambda connection: connection.insert("fleet_point", columns, values))
    sweep(lease, kit.store, Keep(NEVER), NOW)
    assert count(kit, "fleet_point") == 2
