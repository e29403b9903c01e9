"""One writer, group commit, readers beside it."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tinysphere.db import Connection, Database, decode_cursor, encode_cursor, meta, paged, raise_generation, rows
from tinysphere.errors import BadRequestError, BusyError, StartError, StorageError


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "tinysphere.db", queue_max=4)
    yield opened
    opened.close()


def note(text: str) -> object:
    def job(connection: Connection) -> str:
        connection.execute("INSERT INTO audit (at, who, what, target) VALUES (1, 'me', 'note', ?)", (text,))
        return text

    return job


def notes(db: Database) -> list[str]:
    found = db.read(lambda connection: rows(connection, "SELECT target FROM audit ORDER BY id"))
    return [item["target"] for item in found]


def test_the_log_is_brought_into_the_file_beside_the_writer_and_stays_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinysphere import db as module

    monkeypatch.setattr(module, "CHECKPOINT_EVERY_S", 0.02)
    path, total = tmp_path / "sphere.db", 0
    db = Database(path)
    db.write(lambda connection: connection.execute("CREATE TABLE blobs (data BLOB)"))
    longest = 0
    for _ in range(60):
        data = os.urandom(500_000)
        db.write(lambda connection, data=data: connection.execute("INSERT INTO blobs VALUES (?)", (data,)))
        total += len(data)
        longest = max(longest, path.with_name("sphere.db-wal").stat().st_size)
        time.sleep(0.02)
    assert longest < total / 2
    assert path.stat().st_size > total / 2
    db.close()


def test_a_result_is_given_only_after_its_commit(db: Database) -> None:
    assert db.write(note("a")) == "a"
    with sqlite3.connect(db.where) as other:
        assert other.execute("SELECT target FROM audit").fetchall() == [("a",)]
    other.close()


def test_a_bad_job_fails_alone_in_its_group(db: Database) -> None:
    gate, started = threading.Event(), threading.Event()

    def wait(connection: Connection) -> None:
        started.set()
        gate.wait(10)

    def bad(connection: Connection) -> None:
        connection.execute("INSERT INTO audit (at, who, what, target) VALUES (1, 'me', 'note', 'half')")
        raise BadRequestError("no")

    first = db.submit(wait)
    started.wait(10)  # what is queued now will be one group
    jobs = [db.submit(note("b")), db.submit(bad), db.submit(note("c"))]
    gate.set()
    first.result(10)
    assert jobs[0].result(10) == "b" and jobs[2].result(10) == "c"
    with pytest.raises(BadRequestError):
        jobs[1].result(10)
    assert notes(db) == ["b", "c"]


def test_a_full_queue_is_refused_at_once(db: Database) -> None:
    gate, started = threading.Event(), threading.Event()

    def wait(connection: Connection) -> None:
        started.set()
        gate.wait(10)

    db.submit(wait)
    started.wait(10)
    waiting = [db.submit(note(str(index))) for index in range(4)]
    with pytest.raises(BusyError) as caught:
        db.submit(note("too many"))
    assert caught.value.retry_after_s
    gate.set()
    assert [future.result(10) for future in waiting] == ["0", "1", "2", "3"]


def test_what_was_answered_survives_a_kill(tmp_path: Path) -> None:
    child = (
        "import sys, pathlib; from tinysphere.db import Database; db = Database(pathlib.Path(sys.argv[1]))\n"
        "n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    sql = \"INSERT INTO audit (at, who, what, target) VALUES (1, 'me', 'note', ?)\"\n"
        "    db.write(lambda c: c.execute(sql, (str(n),)) and None)\n"
        "    print(n, flush=True)\n"
    )
    path = tmp_path / "killed.db"
    process = subprocess.Popen([sys.executable, "-c", child, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    answered = [int(process.stdout.readline()) for _ in range(50)][-1]
    os.kill(process.pid, signal.SIGKILL)
    answered = max([answered, *(int(line) for line in process.stdout if line.endswith("\n"))])
    process.wait()
    process.stdout.close()
    again = Database(path)
    assert len(notes(again)) >= answered
    again.close()


def test_reopening_keeps_the_instance_and_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    first = Database(path)
    first.write(raise_generation)
    first.close()
    second = Database(path)
    assert second.instance == first.instance
    assert second.read(lambda connection: meta(connection, "generation")) == "2"
    step = "INSERT INTO schema_migration (name, applied) VALUES ('9999_of_tomorrow', '2099-01-01')"
    second.write(lambda connection: connection.execute(step) and None)
    second.close()
    with pytest.raises(StartError, match="9999_of_tomorrow"):
        Database(path)
    (tmp_path / "noise.db").write_bytes(b"noise" * 1000)
    with pytest.raises(StartError, match="cannot be opened"):
        Database(tmp_path / "noise.db")


def test_a_full_disk_stores_nothing_and_the_server_goes_on(tmp_path: Path) -> None:
    child = """
import pathlib, resource, signal, sys
from tinysphere.db import Database
from tinysphere.errors import TinySphereError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
db = Database(pathlib.Path(sys.argv[1]))
sql = "INSERT INTO audit (at, who, what, target) VALUES (1, 'me', 'note', ?)"
db.write(lambda c: c.execute(sql, ("before",)) and None)
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (pathlib.Path(sys.argv[1] + "-wal").stat().st_size + 4096, hard))
try:
    db.write(lambda c: c.execute(sql, ("x" * 200_000,)) and None)
    print("stored")
except TinySphereError as error:
    print(type(error).__name__)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
db.write(lambda c: c.execute(sql, ("after",)) and None)
print(db.read(lambda c: [row["target"] for row in c.rows("SELECT target FROM audit ORDER BY id")]))
db.close()
"""
    result = subprocess.run(
        [sys.executable, "-c", child, str(tmp_path / "full.db")], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == [StorageError.__name__, "['before', 'after']"]


def test_cursors_are_opaque_and_checked() -> None:
    assert decode_cursor(encode_cursor(7), int, 0) == 7
    assert decode_cursor(None, str, "start") == "start"
    for cursor in ("!!", "bm90IGpzb24", encode_cursor("text"), encode_cursor(2**70)):
        with pytest.raises(BadRequestError, match="cursor"):
            decode_cursor(cursor, int, 0)


def test_a_page_says_whether_there_is_another() -> None:
    assert paged([1, 2, 3], 2, lambda item: item).next == encode_cursor(2)
    assert paged([1, 2], 2, lambda item: item).next is None


def test_a_batch_gets_what_waits_at_once_and_a_bad_item_fails_alone(db: Database) -> None:
    seen: list[int] = []

    def batch(connection: Connection, items: Sequence[str]) -> list[str | Exception]:
        seen.append(len(items))
        for item in items:
            connection.execute("INSERT INTO audit (at, who, what, target) VALUES (1, 'me', 'note', ?)", (item,))
            if item == "breaks":
                raise ValueError("breaks everything that was given with it")
        return [BadRequestError(item) if item == "refused" else item.upper() for item in items]

    async def ask() -> list[object]:
        gate, started = threading.Event(), threading.Event()

        def wait(connection: Connection) -> None:
            started.set()
            gate.wait(10)

        db.submit(wait)
        started.wait(10)  # what is given now will be one group
        asked = [asyncio.create_task(db.batched(batch, item, 1)) for item in ("a", "breaks", "refused", "b")]
        await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    first, breaks, refused, last = asyncio.run(ask())
    assert (first, last) == ("A", "B")
    assert isinstance(breaks, ValueError) and isinstance(refused, BadRequestError)
    assert seen == [4, 1, 1, 1, 1]
    assert sorted(notes(db)) == ["a", "b", "refused"]  # a refusal is an answer, not a failure


def test_the_bytes_that_wait_are_bounded_and_a_slow_disk_is_said_so(tmp_path: Path) -> None:
    db = Database(tmp_path / "small.db", waiting_bytes_max=100, timeout_s=0.2)
    gate, started = threading.Event(), threading.Event()

    def wait(connection: Connection) -> None:
        started.set()
        gate.wait(10)

    async def ask() -> list[object]:
        db.submit(wait)
        started.wait(10)
        asked = [asyncio.create_task(db.batched(lambda connection, items: items, "x", size)) for size in (90, 20)]
        return await asyncio.gather(*asked, return_exceptions=True)

    late, refused = asyncio.run(ask())
    assert "too many bytes" in str(refused) and "within 0.2 s" in str(late)
    assert isinstance(late, BusyError) and isinstance(refused, BusyError) and refused.retry_after_s
    gate.set()
    db.write(note("behind what waited"))
    assert asyncio.run(db.batched(lambda connection, items: items, "y", 100)) == "y"  # the room is free again
    db.close()
