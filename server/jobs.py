"""Work that is done again and again beside the requests, by one of several processes at a time.

Rules
- A job is a row. Who does it holds a lease on it, which ends by itself: the work of a process that died is taken up by
  another. Every time is of the database's clock, so that no process's own clock matters.
- Rows are claimed by `FOR UPDATE SKIP LOCKED`: processes never wait for each other.
- What a job changes is changed through its lease (`Lease.write`), in a transaction that fails if the lease is another's
  by now: a process that was stopped for a while and goes on can do no harm.
- A job that fails is tried again, later each time; why is in its row, in the log and at `GET /metrics`.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from .db import Connection, Database, row
from .errors import TinySphereError

T = TypeVar("T")
LEASE_S: Final = 20.0
POLL_S: Final = 1.0
FIRST_S: Final = 30.0  # a job that was never done waits as long as this, or its own interval
RETRY_FIRST_S: Final = 5.0
RETRY_MAX_S: Final = 600.0
PROBLEM_CHARACTERS_MAX: Final = 500
_NOW: Final = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)",
}
_log = logging.getLogger("tinysphere.jobs")


class LeaseLostError(TinySphereError):
    """Another process has the job now: what was begun is left to it."""


@dataclass(frozen=True, slots=True)
class Work:
    """A job that this process can do.

    Attributes:
        run: does it; what it changes goes through the lease.
        every_s: how long it rests after it was done.
    """

    run: Callable[[Lease], object]
    every_s: float


@dataclass(slots=True)
class Lease:
    """The right to do a job for a while.

    Attributes:
        stopping: set when the process ends: a long job then returns early.
    """

    db: Database
    name: str
    token: str
    lease_s: float
    stopping: threading.Event

    def write(self, job: Callable[[Connection], T]) -> T:
        """Change something, and hold the lease for another while.

        Raises:
            LeaseLostError: another process has it; nothing was changed.
        """

        def guarded(connection: Connection) -> T:
            now = _NOW[connection.kind]
            extended = connection.execute(
                f"UPDATE job SET lease_until = {now} + ? WHERE name = ? AND lease = ?",  # noqa: S608 (constants)
                (self.lease_s, self.name, self.token),
            )
            if extended.rowcount != 1:
                raise LeaseLostError(f"another process does {self.name} now")
            return job(connection)

        return self.db.write(guarded)


def owner_name() -> str:
    """Which process this is, for people."""
    return f"{socket.gethostname()[:100]}:{os.getpid()}"


def claim(db: Database, work: Mapping[str, Work], stopping: threading.Event, lease_s: float = LEASE_S) -> Lease | None:
    """Take a job that is due and that nobody does, or None."""
    if not db.read(lambda connection: _due(connection, work, lock=False)):
        return None
    token, owner = secrets.token_hex(8), owner_name()

    def job(connection: Connection) -> Lease | None:
        name = _due(connection, work, lock=True)
        if name is None:
            return None
        now = _NOW[connection.kind]
        connection.execute(
            f"UPDATE job SET lease = ?, owner = ?, lease_until = {now} + ? WHERE name = ?",  # noqa: S608 (constants)
            (token, owner, lease_s, name),
        )
        return Lease(db, name, token, lease_s, stopping)

    return db.write(job)


def _due(connection: Connection, work: Mapping[str, Work], *, lock: bool) -> str | None:
    now = _NOW[connection.kind]
    marks = ", ".join("?" * len(work))
    skip = " FOR UPDATE SKIP LOCKED" if lock and connection.kind == "postgresql" else ""
    found = row(
        connection,
        f"SELECT name FROM job WHERE name IN ({marks}) AND run_at <= {now}"  # noqa: S608 (constants)
        f" AND (lease_until IS NULL OR lease_until < {now}) ORDER BY run_at LIMIT 1{skip}",
        tuple(work),
    )
    return None if found is None else str(found["name"])


def _finish(lease: Lease, wait_s: float, problem: str | None) -> None:
    """Give the job back, to be done again after a while."""

    def job(connection: Connection) -> None:
        now = _NOW[connection.kind]
        attempts, finished = ("0", now) if problem is None else ("attempts + 1", "finished_at")
        connection.execute(
            f"UPDATE job SET lease = NULL, owner = NULL, lease_until = NULL, run_at = {now} + ?, problem = ?,"  # noqa: S608
            f" attempts = {attempts}, finished_at = {finished} WHERE name = ? AND lease = ?",
            (wait_s, problem or "", lease.name, lease.token),
        )

    lease.db.write(job)


def soon(connection: Connection, name: str) -> None:
    """Have a job done as soon as somebody can, in a writing job."""
    now = _NOW[connection.kind]
    connection.execute(f"UPDATE job SET run_at = {now} WHERE name = ? AND run_at > {now}", (name,))  # noqa: S608


class Worker:
    """The thread in which this process does jobs, one after the other.

    Args:
        work: the jobs by name.
        lease_s: how long a job may be silent until another process takes it up.
        poll_s: how often to look.
    """

    def __init__(
        self, db: Database, work: Mapping[str, Work], *, lease_s: float = LEASE_S, poll_s: float = POLL_S
    ) -> None:
        self._db, self._work = db, dict(work)
        self._lease_s, self._poll_s = lease_s, poll_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tinysphere-jobs", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """End; a job that runs is left to whoever takes it up."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _loop(self) -> None:
        is_known = False
        while not self._stopping.is_set():
            try:
                if not is_known:
                    self._make_known()
                    is_known = True
                lease = claim(self._db, self._work, self._stopping, self._lease_s)
            except TinySphereError:  # the database is away or busy: the requests say so already
                lease = None
            except Exception:
                _log.exception("jobs cannot be claimed")
                lease = None
            if lease is None:
                # Processes that began together shall not look together.
                self._stopping.wait(self._poll_s * random.uniform(0.7, 1.3))  # noqa: S311 (no secret)
            else:
                self.run(lease)

    def _make_known(self) -> None:
        def job(connection: Connection) -> None:
            now = _NOW[connection.kind]
            for name, work in sorted(self._work.items()):
                connection.execute(
                    "INSERT INTO job (name, run_at, attempts, problem)"  # noqa: S608 (constants)
                    f" VALUES (?, {now} + ?, 0, '') ON CONFLICT (name) DO NOTHING",
                    (name, min(work.every_s, FIRST_S)),
                )

        self._db.write(job)

    def run(self, lease: Lease) -> None:
        """Do a claimed job, and say when it is to be done again."""
        work = self._work[lease.name]
        problem: str | None = None
        try:
            work.run(lease)
        except LeaseLostError as error:
            _log.warning("%s", error)
            return
        except TinySphereError as error:
            problem = str(error)[:PROBLEM_CHARACTERS_MAX]
            _log.warning("the job %s will be tried again: %s", lease.name, problem)
        except Exception as error:
            problem = f"{type(error).__name__}; the server's log has more"
            _log.exception("the job %s failed", lease.name)
        try:
            _finish(lease, work.every_s if problem is None else self._retry_s(lease, work), problem)
        except TinySphereError as error:
            _log.warning("the job %s could not be given back, its lease will end: %s", lease.name, error)

    def _retry_s(self, lease: Lease, work: Work) -> float:
        found = self._db.read(
            lambda connection: row(connection, "SELECT attempts FROM job WHERE name = ?", (lease.name,))
        )
        attempts = 0 if found is None else min(int(found["attempts"]), 20)
        return min(max(work.every_s, RETRY_FIRST_S), RETRY_MAX_S, RETRY_FIRST_S * 2.0**attempts)
