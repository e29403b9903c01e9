"""The two databases behind one way to talk: bulk inserts, conflicts between processes, a database that goes away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kit as rooms
import pytest
from kit import EPOCH, NOW, Kit, make_kit, record, request
from postgres import Cluster
from tinysphere import ingest
from tinysphere.db import Connection, Database, close_database, open_database, rows
from tinysphere.errors import BusyError, InvalidError
from tinysphere.schema import Schema
from tinysphere.sql import COPY_MIN

COLUMNS = ("device", "stream", "epoch", "seq", "reason", "received_at")


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


def refusals(first: int, count: int) -> list[tuple[str, str, str, int, str, float]]:
    return [("d", "events", "e", seq, f"tab\tline\nback\\slash ü {seq}", 1.5) for seq in range(first, first + count)]


@pytest.mark.parametrize("count", [0, 1, COPY_MIN - 1, COPY_MIN, 1000])
def test_many_rows_go_in_at_once_and_known_ones_are_left_out(count: int, kit: Kit) -> None:
    for first in (1, 1, 1 + count // 2):  # again, and half of them again
        kit.db.write(lambda connection, at=first: connection.insert("refused_record", COLUMNS, refusals(at, count)))
    found = kit.db.read(lambda connection: rows(connection, "SELECT * FROM refused_record ORDER BY seq"))
    assert [tuple(item[name] for name in COLUMNS) for item in found] == refusals(1, count + count // 2)


def test_a_bulk_insert_that_fails_costs_its_job_alone(kit: Kit) -> None:
    def bad(connection: Connection) -> None:
        connection.insert("refused_record", COLUMNS, refusals(1, 50))
        connection.insert("refused_record", COLUMNS, [("d", "events", "e", None, "", 1.0)] * 50)

    with pytest.raises(Exception, match=r"(?i)null"):
        kit.db.write(bad)
    kit.db.write(lambda connection: connection.insert("refused_record", COLUMNS, refusals(7, 30)))
    assert len(kit.db.read(lambda connection: rows(connection, "SELECT * FROM refused_record"))) == 30


def test_values_mean_the_same(kit: Kit) -> None:
    values = ("a'b%c?d", 2**63 - 1, 0.1 + 0.2, None, b"\0\xff", "x")
    kit.db.write(
        lambda connection: (
            connection.execute(
                "INSERT INTO idempotency (key, who, request_sha256, status, answer, created_at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (values[0], "100% sure?", "s", values[1], values[4], values[2]),
            )
            and None
        )
    )
    (found,) = kit.db.read(
        lambda connection: rows(connection, "SELECT * FROM idempotency WHERE who = ?", ("100% sure?",))
    )
    assert (found["key"], found["status"], found["created_at"]) == values[:3] and bytes(found["answer"]) == values[4]


def test_a_text_that_postgresql_cannot_hold_is_refused_by_name_and_costs_no_other(kit: Kit) -> None:
    device = kit.enrol()
    label = {"prediction": "p", "label": "a\0b"}
    answer = kit.sync(device, events=[record(1, "label", label), record(2, "odd", {"free": "a\0b"}), record(3)])
    assert [(item.seq, "NUL" in item.reason) for item in answer.refused] == [(1, True)]
    (kept,) = kit.db.read(lambda connection: rows(connection, "SELECT payload FROM record WHERE seq = 2"))
    assert json.loads(kept["payload"]) == {"free": "a\0b"}


@pytest.fixture
def pair(tmp_path: Path, cluster: Cluster) -> Iterator[tuple[Kit, Kit]]:
    """Two servers on one database, as two processes would be."""
    url, before = cluster.database("tinysphere_template"), rooms.DATABASE.url
    rooms.DATABASE.url = lambda: url
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    both = make_kit(tmp_path / "a"), make_kit(tmp_path / "b")
    rooms.DATABASE.url = before
    yield both
    for each in both:
        each.db.close()


def test_two_servers_settle_a_devices_records_once(pair: tuple[Kit, Kit]) -> None:
    first, second = pair
    assert first.db.instance == second.db.instance
    devices = [first.enrol(f"d{n}", f"{n:02d}" * 32) for n in range(4)]
    batches = [[record(seq) for seq in range(start, start + 40)] for start in range(1, 400, 40)]

    def send(kit: Kit, device: str) -> None:
        for batch in batches:  # the same records through both, at the same time
            ingest.sync(kit.db, device, request(events=batch), NOW, 30)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: send(*item), [(kit, device) for device in devices for kit in pair]))
    sql = "SELECT device, COUNT(*) AS n, MAX(seq) AS last FROM record GROUP BY device"
    assert {(item["device"], item["n"], item["last"]) for item in first.db.read(lambda c: rows(c, sql))} == {
        (device, 400, 400) for device in devices
    }
    assert first.db.read(lambda c: rows(c, "SELECT * FROM gap")) == []


def test_transactions_that_block_each_other_are_tried_again(pair: tuple[Kit, Kit]) -> None:
    """Each holds a row that the other wants next: PostgreSQL ends one of the two, which begins anew."""
    meeting, tries = threading.Barrier(2, timeout=10), []
    for kit in pair:
        kit.db.write(lambda c: c.insert("meta", ("key", "value"), [("left", "0"), ("right", "0")]))

    def job(names: tuple[str, str]) -> object:
        def run(connection: Connection) -> None:
            tries.append(names)
            for name in names:
                connection.execute(
                    "UPDATE meta SET value = CAST(CAST(value AS BIGINT) + 1 AS TEXT) WHERE key = ?", (name,)
                )
                if name == names[0] and len(tries) <= 2:
                    meeting.wait()

        return run

    futures = [pair[0].db.submit(job(("left", "right"))), pair[1].db.submit(job(("right", "left")))]  # type: ignore[arg-type]
    for future in futures:
        future.result(30)
    found = pair[0].db.read(lambda c: rows(c, "SELECT value FROM meta WHERE key IN ('left', 'right')"))
    assert [item["value"] for item in found] == ["2", "2"] and len(tries) == 3


@pytest.mark.long
def test_a_database_that_is_killed_costs_nothing_that_was_answered(tmp_path: Path) -> None:
    with Cluster() as cluster:
        cluster.sql("CREATE DATABASE fleet", "postgres")
        database = open_database(cluster.url("fleet"))
        Schema(database).up()
        close_database(database)
        db = Database(cluster.url("fleet"))
        answered, refused = [], 0

        def note(number: int) -> None:
            db.write(lambda c: c.insert("meta", ("key", "value"), [(f"n{number}", "x")]))

        for number in range(60):
            if number in (20, 40):
                cluster.kill()
                with pytest.raises(BusyError, match="cannot be reached"):
                    db.read(lambda c: rows(c, "SELECT 1 AS one"))
                with pytest.raises(BusyError, match="cannot be reached"):
                    note(number)
                cluster.start()
            deadline = time.monotonic() + 20
            while True:  # it recovers by itself
                try:
                    note(number)
                    answered.append(f"n{number}")
                    break
                except BusyError:
                    refused += 1
                    assert time.monotonic() < deadline
        found = db.read(lambda c: rows(c, "SELECT key FROM meta WHERE key LIKE 'n%'"))
        assert set(answered) <= {item["key"] for item in found} and len(answered) == 60
        db.close()


def test_an_error_of_ours_is_not_taken_for_one_of_the_database(kit: Kit) -> None:
    def bad(connection: Connection) -> None:
        connection.execute("INSERT INTO meta (key, value) VALUES ('half', 'x')")
        raise InvalidError("no")

    with pytest.raises(InvalidError):
        kit.db.write(bad)
    assert kit.db.read(lambda c: rows(c, "SELECT * FROM meta WHERE key = 'half'")) == [] and EPOCH
