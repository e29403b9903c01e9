"""Jobs: by one process at a time, taken up by another when that one dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet import Sphere
from kit import Kit, make_kit
from postgres import Cluster
from tinysphere.db import Database, Row, rows
from tinysphere.errors import StorageError
from tinysphere.jobs import Lease, LeaseLostError, Work, Worker, claim, soon


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


def nothing(lease: Lease) -> None:
    pass


def make(kit: Kit, *names: str, run: Callable[[Lease], object] = nothing, every_s: float = 60.0) -> Worker:
    """A worker that knows jobs which are due now; its thread is not started."""
    worker = Worker(kit.db, {name: Work(run, every_s) for name in names}, poll_s=0.02)
    worker._make_known()
    for name in names:
        kit.db.write(lambda connection, name=name: soon(connection, name))  # type: ignore[misc]
    return worker


def take(kit: Kit, worker: Worker, lease_s: float = 20.0) -> Lease | None:
    return claim(kit.db, worker._work, threading.Event(), lease_s)


def stored(kit: Kit, name: str = "sweep") -> Row:
    return kit.db.read(lambda connection: rows(connection, "SELECT * FROM job WHERE name = ?", (name,)))[0]


def until(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_job_is_done_and_done_again(kit: Kit) -> None:
    done: list[str] = []
    worker = make(kit, "sweep", run=lambda lease: done.append(lease.name), every_s=0.02)
    worker.start()
    until(lambda: len(done) >= 3)
    worker.close()
    assert set(done) == {"sweep"} and stored(kit)["problem"] == "" and stored(kit)["finished_at"] is not None


def test_one_holds_a_job_and_the_next_gets_the_next(kit: Kit) -> None:
    worker = make(kit, "a", "b")
    first, second = take(kit, worker), take(kit, worker)
    assert first is not None and second is not None and {first.name, second.name} == {"a", "b"}
    assert take(kit, worker) is None


def test_many_threads_never_get_one_job_twice(kit: Kit) -> None:
    worker = make(kit, *(f"job-{i}" for i in range(8)))
    taken: list[str] = []

    def claim_all() -> None:
        while (lease := take(kit, worker)) is not None:
            taken.append(lease.name)

    threads = [threading.Thread(target=claim_all) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(taken) == sorted(f"job-{i}" for i in range(8))


def test_who_lost_the_lease_changes_nothing(kit: Kit) -> None:
    worker = make(kit, "sweep")
    slow = take(kit, worker, lease_s=0.05)
    assert slow is not None and stored(kit)["owner"]
    time.sleep(0.2)
    quick = take(kit, worker)
    assert quick is not None
    with pytest.raises(LeaseLostError):
        slow.write(lambda connection: connection.execute("DELETE FROM job"))
    quick.write(lambda connection: connection.execute("UPDATE job SET problem = 'seen'"))
    assert stored(kit)["problem"] == "seen"
    worker.run(slow)  # gives back what is not its own: nothing happens
    assert stored(kit)["lease"] == quick.token
    worker.run(quick)
    assert stored(kit)["lease"] is None and stored(kit)["finished_at"] is not None


def test_writing_holds_the_lease(kit: Kit) -> None:
    worker = make(kit, "sweep")
    lease = take(kit, worker, lease_s=0.4)
    assert lease is not None
    for _ in range(8):
        time.sleep(0.1)
        lease.write(lambda connection: None)
    assert take(kit, worker) is None


@pytest.mark.parametrize("error", [StorageError("the disk is full"), ValueError("secret-value")])
def test_a_job_that_fails_says_so_and_is_tried_again_later(
    kit: Kit, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(lease: Lease) -> None:
        raise error

    worker = make(kit, "sweep", run=fail)
    waits = []
    for attempt in range(1, 4):
        kit.db.write(lambda connection: soon(connection, "sweep"))
        lease = take(kit, worker)
        assert lease is not None
        before = time.time()
        worker.run(lease)
        assert stored(kit)["attempts"] == attempt
        waits.append(stored(kit)["run_at"] - before)
    assert waits[0] < waits[1] < waits[2] < 60
    problem = stored(kit)["problem"]
    assert problem == (
        "the disk is full" if isinstance(error, StorageError) else "ValueError; the server's log has more"
    )
    assert "sweep" in caplog.text


def test_a_worker_ends_in_the_middle_of_a_job(kit: Kit) -> None:
    begun = threading.Event()

    def long(lease: Lease) -> None:
        begun.set()
        lease.stopping.wait(30)

    worker = make(kit, "sweep", run=long)
    worker.start()
    assert begun.wait(10)
    before = time.monotonic()
    worker.close()
    assert time.monotonic() - before < 5 and not worker._thread.is_alive()


TEMPLATE = "tinysphere_template"  # of conftest.py
OLD = 400_000


@pytest.mark.long
def test_another_process_takes_up_the_job_of_one_that_was_killed(cluster: Cluster, tmp_path: Path) -> None:
    """Two servers on one PostgreSQL: one is killed in the middle of deleting old records, the other goes on."""
    url = cluster.database(TEMPLATE)
    db = Database(url)
    db.write(
        lambda connection: connection.execute(
            "INSERT INTO record (device, stream, epoch, seq, type, boot, boot_ns, received_at, payload)"
            " SELECT 'd', 'details', 'e', n, 'summary', 'b', 1, CASE WHEN n <= ? THEN 1e9 + n ELSE 1e11 END, '{}'"
            " FROM generate_series(1, ?) n",
            (OLD, OLD + 10),
        )
    )
    db.write(
        lambda connection: connection.execute(
            "INSERT INTO job (name, run_at, attempts, problem) VALUES ('retention', 0, 0, '')"
        )
    )

    def left() -> int:
        return int(db.read(lambda connection: rows(connection, "SELECT COUNT(*) AS n FROM record"))[0]["n"])

    servers = [
        Sphere(tmp_path / name / "data", environment={"TINYSPHERE_DATABASE": url}, token="unused")
        for name in ("one", "two")
    ]
    for server in servers:
        server.data.mkdir(parents=True)
        server.start()
    try:
        until(lambda: left() < OLD)
        owner = db.read(lambda connection: rows(connection, "SELECT owner, lease FROM job"))[0]
        (busy,) = [server for server in servers if owner["owner"].endswith(f":{server.process.pid}")]  # type: ignore[union-attr]
        busy.kill()
        at_the_kill = left()
        assert at_the_kill > 10, "it was killed in the middle"
        until(lambda: left() == 10, 60.0)
        until(lambda: stored_in(db)["finished_at"] is not None)
        assert stored_in(db)["attempts"] == 0 and stored_in(db)["lease"] is None
    finally:
        for server in servers:
            server.stop()
        db.close()


def stored_in(db: Database) -> Row:
    return db.read(lambda connection: rows(connection, "SELECT * FROM job"))[0]
