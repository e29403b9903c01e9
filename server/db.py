"""The database, SQLite or PostgreSQL: one writer thread with group commit, and readers with connections of their own.

A job is a function of the writer's connection. Jobs that wait are run in one transaction, each in its own
savepoint, so that a bad job fails alone; a job's result is given only after the commit that holds it.

Some jobs are many and alike. What waits for the same `Batch` is given to it at once, after the other jobs, so that it
can use few statements for all; if that fails, each is given to it alone.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast
from urllib.parse import urlsplit

import msgspec
from peewee import PeeweeException, SqliteDatabase
from playhouse.pool import PooledPostgresqlDatabase

from .errors import BadRequestError, BusyError, StartError, StorageError
from .schema import Schema, kind_of
from .sql import (
    UNREACHABLE,
    Connection,
    Row,
    Value,
    is_conflict,
    is_database_error,
    row,
    rows,
    storage_error,
    wrap,
)

T = TypeVar("T")
I = TypeVar("I")  # noqa: E741 (what goes into a batch)
# Does many alike jobs at once: a result or the error of each, in their order. An error that it raises is of all.
Batch = Callable[[Connection, Sequence[I]], Sequence[T | Exception]]
__all__ = [
    "Batch",
    "Connection",
    "Database",
    "Page",
    "Row",
    "Value",
    "meta",
    "open_database",
    "raise_generation",
    "row",
    "rows",
]
BUSY_TIMEOUT_S: Final = 10
CONNECT_TIMEOUT_S: Final = 10
READERS_MAX: Final = 16  # connections of one process to PostgreSQL, beside the writer's
GROUP_BYTES_MAX: Final = 8 << 20  # that came in the batches of one commit, so that none takes long
# The writer's thread does not take the log into the file at a commit that happens to be the thousandth page: for some
# ten milliseconds nobody would get an answer. See `Database._checkpoint_loop`.
_PRAGMAS: Final = {
    "journal_mode": "wal", "synchronous": "full", "foreign_keys": 1, "cache_size": -16000, "wal_autocheckpoint": 0,
}  # fmt: skip
_CHECKPOINT: Final = "PRAGMA wal_checkpoint(PASSIVE)"
CHECKPOINT_EVERY_S: Final = 0.5
LOG_PAGES: Final = 1000  # the log of a longer one is begun anew
LINGER_S: Final = 0.0005
LINGER_TRIES: Final = 8
LINGER_FROM: Final = 8  # jobs in the commit before
CONFLICT_TRIES: Final = 6
CONFLICT_WAIT_S: Final = 0.01  # doubled with each try
_OPTIONS: Final = "-c statement_timeout=30000 -c lock_timeout=10000 -c idle_in_transaction_session_timeout=60000"


class Page(msgspec.Struct, Generic[T], frozen=True):
    """One page of a list; `next` is the cursor of the page after it, or null."""

    items: list[T]
    next: str | None = None


def encode_cursor(key: str | int | list[str]) -> str:
    """An opaque cursor of the last item's key."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None, kind: type[T], default: T) -> T:
    """The key in a cursor.

    Raises:
        BadRequestError: it is none that this server gave.
    """
    if not cursor:
        return default
    try:
        value = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error) as error:
        raise BadRequestError("the cursor is not one that this server gave; begin without it") from error
    if type(value) is not kind or (isinstance(value, int) and not -(1 << 63) <= value < 1 << 63):
        raise BadRequestError("the cursor is of another list; begin without it")
    return value


def paged(items: list[T], limit: int, key: Callable[[T], str | int | list[str]]) -> Page[T]:
    """Cut a list, of which one item more than `limit` was read, into a page."""
    return Page(items[:limit], encode_cursor(key(items[limit - 1])) if len(items) > limit else None)


class _Job:
    """Something for the writer, and who waits for it: a thread, or a coroutine of `loop`."""

    __slots__ = ("batch", "future", "item", "loop", "size")

    def __init__(
        self, batch: Any, item: Any, size: int, future: Future[Any] | asyncio.Future[Any], loop: Any = None
    ) -> None:
        self.batch, self.item, self.size, self.future, self.loop = batch, item, size, future, loop


_Outcome = tuple[_Job, object, Exception | None]


def _begins(future: Future[Any] | asyncio.Future[Any]) -> bool:
    """Whether somebody still waits for it; a thread cannot give it up from here on."""
    return not isinstance(future, Future) or future.set_running_or_notify_cancel()


def _resolve(outcomes: list[_Outcome]) -> None:
    """Tell those who wait; in their own loop's thread if they are coroutines."""
    for job, result, problem in outcomes:
        if job.future.done():
            continue  # it was given up
        if problem is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(problem)


def open_database(where: Path | str) -> Any:
    """Peewee's database: of a file, or of a `postgresql://` address, whose password may be in libpq's usual places.

    Raises:
        StartError: the address is none, or the driver is not installed.
    """
    if isinstance(where, Path):
        return SqliteDatabase(
            str(where),
            pragmas=_PRAGMAS,
            timeout=BUSY_TIMEOUT_S,
        )
    if urlsplit(where).scheme != "postgresql":
        raise StartError("the database's address begins with postgresql://, as in postgresql://user@host/name")
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise StartError("PostgreSQL needs psycopg: pip install 'tinymlops[postgresql]'") from None
    return PooledPostgresqlDatabase(
        where,
        prefer_psycopg3=True,
        max_connections=READERS_MAX + 2,
        stale_timeout=300,
        timeout=BUSY_TIMEOUT_S,
        connect_timeout=CONNECT_TIMEOUT_S,
        options=_OPTIONS,
    )


def close_database(database: Any) -> None:
    """Close the connections of `open_database`."""
    if kind_of(database) == "postgresql":
        database.close_all()
    elif not database.is_closed():
        database.close()


class Database:
    """The server's database.

    Args:
        where: SQLite's file, made with its tables when it does not exist; or a `postgresql://` address, whose tables
            `tinysphere migrate` makes.
        queue_max: jobs that may wait; one more is refused.
        group_max: jobs in one commit.
        waiting_bytes_max: of what waits in batches; more is refused.
        timeout_s: how long `write` waits for its commit.

    Raises:
        StartError: it cannot be opened, has another schema, or a newer server made it.
    """

    def __init__(
        self,
        where: Path | str,
        *,
        queue_max: int = 2000,
        group_max: int = 200,
        waiting_bytes_max: int = 64 << 20,
        timeout_s: float = 30.0,
    ) -> None:
        self.where = where
        self._group_max = group_max
        self._timeout_s = timeout_s
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._queue_max, self._waiting_bytes_max = queue_max, waiting_bytes_max
        self._waiting_bytes, self._bytes_lock = 0, threading.Lock()
        self._database = open_database(where)
        self.kind = kind_of(self._database)
        self.commits = 0
        self.jobs = 0
        self._closed = False
        self._stopping, self._is_log_long = threading.Event(), False
        name = f"the database {where}" if isinstance(where, Path) else "the PostgreSQL database"
        try:
            self._prepare(name)
        except Exception as error:
            close_database(self._database)
            if isinstance(error, StartError):
                raise
            raise StartError(f"{name} cannot be opened: {error}") from error
        self.instance = self.read(lambda connection: meta(connection, "instance"))
        self._thread = threading.Thread(target=self._write_loop, name="tinysphere-writer", daemon=True)
        self._thread.start()
        self._checkpointer: threading.Thread | None = None
        if self.kind == "sqlite":
            self._checkpointer = threading.Thread(
                target=self._checkpoint_loop, name="tinysphere-checkpoint", daemon=True
            )
            self._checkpointer.start()

    def _prepare(self, name: str) -> None:
        schema = Schema(self._database)
        if isinstance(self.where, Path):
            if not self.where.exists():
                self.where.touch(mode=0o600)
            schema.up()  # one process owns the folder; elsewhere this is a command of its own
        if unknown := schema.unknown():
            raise StartError(
                f"{name} has taken steps that this program does not know ({', '.join(unknown)}); "
                "use the version of TinySphere that made it"
            )
        if pending := schema.pending():
            raise StartError(f"{name} has to be migrated first ({', '.join(pending)}): run `tinysphere migrate up`")
        with self._connected() as connection:
            connection.execute("BEGIN")
            values = [("instance", secrets.token_hex(8)), ("generation", "1")]
            connection.insert("meta", ("key", "value"), values)
            connection.execute("COMMIT")

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        try:
            self._database.connect(reuse_if_open=True)
        except (PeeweeException, ValueError) as error:  # ValueError: the pool's, when every connection is taken
            raise BusyError(UNREACHABLE, retry_after_s=5) from error
        try:
            raw = self._database.connection()
            yield wrap(self.kind, raw)
        finally:
            self._database.close()

    def read(self, job: Callable[[Connection], T]) -> T:
        """Run a reading function on a connection of this thread; it sees committed data only."""
        with self._reader() as connection:
            return job(connection)

    @contextmanager
    def _reader(self) -> Iterator[Connection]:
        with self._connected() as connection:
            try:
                connection.execute(
                    "BEGIN" if self.kind == "sqlite" else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
                )
                yield connection
            except Exception as error:
                problem = storage_error(error) if is_database_error(error) else None
                if problem is not None:
                    raise problem from error
                raise
            finally:
                with suppress(Exception):
                    connection.execute("ROLLBACK")

    @property
    def waiting(self) -> int:
        """Jobs that wait for the writer."""
        return self._queue.qsize()

    def submit(self, job: Callable[[Connection], T]) -> Future[T]:
        """Queue a writing job.

        Returns:
            A future that is resolved after the commit.

        Raises:
            BusyError: too many jobs wait.
        """
        future: Future[T] = Future()
        self._enqueue(_Job(None, job, 0, future))
        return future

    async def batched(self, batch: Batch[I, T], item: I, size: int) -> T:
        """Give something to a batch, from a coroutine; returns after the commit.

        Args:
            size: the bytes that it came in; what waits is bounded.

        Raises:
            BusyError: too much waits, or the disk did not answer in time.
            StorageError: the disk is full or failing; nothing was stored.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._enqueue(_Job(batch, item, size, future, loop))
        late = loop.call_later(self._timeout_s, self._give_up, future)
        try:
            return await future
        finally:
            late.cancel()

    def _enqueue(self, job: _Job) -> None:
        if self._closed:
            raise BusyError("the server is stopping; try again", retry_after_s=5)
        if self._queue.qsize() >= self._queue_max:
            raise BusyError("too many changes wait to be written; try again", retry_after_s=2)
        if job.size:
            with self._bytes_lock:
                if self._waiting_bytes and self._waiting_bytes + job.size > self._waiting_bytes_max:
                    raise BusyError("too many bytes wait to be written; try again", retry_after_s=2)
                self._waiting_bytes += job.size
        self._queue.put(job)

    def _give_up(self, future: asyncio.Future[Any]) -> None:
        if not future.done():
            future.set_exception(self._too_late())

    def _too_late(self) -> BusyError:
        text = f"the disk did not answer within {self._timeout_s:g} s; ask again, resending is safe"
        return BusyError(text, retry_after_s=5)

    def write(self, job: Callable[[Connection], T]) -> T:
        """Run a writing job and wait until it is on disk.

        Raises:
            BusyError: too many jobs wait, or the disk did not answer in time.
            StorageError: the disk is full or failing; nothing was stored.
        """
        future = self.submit(job)
        try:
            return future.result(self._timeout_s)
        except FutureTimeoutError:
            future.cancel()
            raise self._too_late() from None

    def close(self) -> None:
        """Finish what waits and stop the writer."""
        if self._closed:
            return
        self._closed = True
        self._stopping.set()
        self._queue.put(None)
        self._thread.join(timeout=self._timeout_s)
        if self._checkpointer is not None:
            self._checkpointer.join(timeout=self._timeout_s)
        close_database(self._database)

    # The writer's thread ----------------------------------------------------------------------------------

    def _write_loop(self) -> None:
        connection: Connection | None = None
        group: list[_Job] = []
        before = 0  # jobs in the larger one of the last two commits
        while True:
            first = self._queue.get()
            if first is None:
                break
            self._linger(max(before, len(group)))
            before = len(group)
            group, size, stop = [first], first.size, False
            while len(group) < self._group_max and size < GROUP_BYTES_MAX:
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    break
                if item is None:
                    stop = True
                    break
                group.append(item)
                size += item.size
            if size:
                with self._bytes_lock:
                    self._waiting_bytes -= size
            group = [item for item in group if _begins(item.future)]
            connection = self._usable(connection, group)
            if connection is not None:
                self._commit(connection, group)
                if self._is_log_long:
                    self._is_log_long = False
                    with suppress(Exception):  # a disk that refuses is told by the next commit
                        connection.rows(_CHECKPOINT)
            if stop:
                break
        self._database.close()

    def _checkpoint_loop(self) -> None:
        """Bring SQLite's log into its file beside the writer, which may add to it meanwhile.

        While pages are added the log never ends, so when it has become long the writer does the short rest between two
        commits, and begins it anew with the next.
        """
        seen = -1
        while not self._stopping.wait(CHECKPOINT_EVERY_S):
            if self.commits == seen:
                continue
            seen = self.commits
            with suppress(Exception), self._connected() as connection:
                (found,) = connection.rows(_CHECKPOINT)
                self._is_log_long = int(found["log"]) > LOG_PAGES

    def _linger(self, before: int) -> None:
        """Under load wait a moment for half of as many as came last: those who were answered then come again one by
        one, and a commit for the first of them costs as much as one for all."""
        if before < LINGER_FROM:
            return
        for _ in range(LINGER_TRIES):
            if self._queue.qsize() >= before // 2:
                return
            time.sleep(LINGER_S)

    def _usable(self, connection: Connection | None, group: list[_Job]) -> Connection | None:
        """The writer's connection, opened anew when it broke; without one the group fails."""
        if connection is not None and not connection.is_broken():
            return connection
        with suppress(Exception):
            self._database.manual_close() if self.kind == "postgresql" else self._database.close()
        try:
            self._database.connect(reuse_if_open=True)
            raw = self._database.connection()
            return wrap(self.kind, raw)
        except Exception as error:
            failure = BusyError(UNREACHABLE, retry_after_s=5)
            failure.__cause__ = error
            self._tell([(item, None, failure) for item in group])
            return None

    def _commit(self, connection: Connection, group: list[_Job]) -> None:
        outcomes, failure = self._try(connection, group)
        if failure is None or not is_conflict(failure):  # SQLite has no conflicts
            self._settle(group, outcomes, failure)
            return
        for item in group:  # each alone: then none holds what another process waits for while it waits itself
            for attempt in range(CONFLICT_TRIES):
                time.sleep(random.uniform(0.0, CONFLICT_WAIT_S * 2**attempt))  # noqa: S311 (no secret)
                outcomes, failure = self._try(connection, [item])
                if failure is None or not is_conflict(failure):
                    break
            self._settle([item], outcomes, failure)

    def _settle(self, group: list[_Job], outcomes: list[_Outcome], failure: Exception | None) -> None:
        if failure is not None:
            problem = (storage_error(failure) if is_database_error(failure) else None) or failure
            self._tell([(item, None, problem) for item in group])
            return
        self.commits += 1
        self.jobs += len(group)
        self._tell(outcomes)

    @staticmethod
    def _tell(outcomes: list[_Outcome]) -> None:
        """Give the outcomes: those of one loop together, because waking it costs more than they do."""
        loops: dict[Any, list[_Outcome]] = {}
        for outcome in outcomes:
            loops.setdefault(outcome[0].loop, []).append(outcome)
        for loop, found in loops.items():
            if loop is None:
                _resolve(found)
            else:
                with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                    loop.call_soon_threadsafe(_resolve, found)

    def _try(self, connection: Connection, group: list[_Job]) -> tuple[list[_Outcome], Exception | None]:
        """Run a group in one transaction: each job's outcome, and why nothing was committed, if so."""
        outcomes: list[_Outcome] = []
        try:
            connection.execute("BEGIN IMMEDIATE" if self.kind == "sqlite" else "BEGIN")
            batches: dict[Any, list[_Job]] = {}
            for item in group:
                if item.batch is None:
                    outcomes.append((item, *self._run(connection, item.item)))
                    self._check(connection, outcomes[-1][2])
                else:
                    batches.setdefault(item.batch, []).append(item)
            for batch, items in batches.items():
                outcomes += self._run_batch(connection, batch, items)
            connection.execute("COMMIT")
        except Exception as error:
            with suppress(Exception):
                connection.execute("ROLLBACK")
            return [], error
        return outcomes, None

    @staticmethod
    def _check(connection: Connection, problem: Exception | None) -> None:
        if not connection.in_transaction:  # SQLite rolls everything back by itself when the disk is full
            raise problem or StorageError("the transaction was lost; nothing was stored")

    def _run_batch(self, connection: Connection, batch: Batch[Any, Any], items: list[_Job]) -> list[_Outcome]:
        """Each one's outcome: from all at once, or when that failed from each alone."""

        def run(some: list[_Job]) -> Callable[[Connection], list[_Outcome]]:
            def job(connection: Connection) -> list[_Outcome]:
                results = batch(connection, [item.item for item in some])
                return [
                    (item, None, result) if isinstance(result, Exception) else (item, result, None)
                    for item, result in zip(some, results, strict=True)
                ]

            return job

        outcomes, problem = self._run(connection, run(items))
        self._check(connection, problem)
        if problem is None:
            return cast("list[_Outcome]", outcomes)
        if len(items) == 1:
            return [(items[0], None, problem)]
        found: list[_Outcome] = []
        for item in items:
            found += self._run_batch(connection, batch, [item])
        return found

    @staticmethod
    def _run(connection: Connection, job: Callable[[Connection], T]) -> tuple[T | None, Exception | None]:
        connection.execute("SAVEPOINT job")
        try:
            result = job(connection)
        except Exception as error:
            if is_conflict(error) or connection.is_broken():
                raise  # the whole group is tried again, or fails
            if connection.in_transaction:
                connection.execute("ROLLBACK TO SAVEPOINT job")
                connection.execute("RELEASE SAVEPOINT job")
            is_storage = is_database_error(error) or isinstance(error, OSError)
            return None, (storage_error(error) if is_storage else None) or error
        connection.execute("RELEASE SAVEPOINT job")
        return result, None


def meta(connection: Connection, key: str) -> str:
    """A fact about this database."""
    found = row(connection, "SELECT value FROM meta WHERE key = ?", (key,))
    assert found is not None
    return str(found["value"])


def raise_generation(connection: Connection) -> int:
    """Note that some device's desired state may have changed; returns the new generation."""
    connection.execute("UPDATE meta SET value = CAST(CAST(value AS BIGINT) + 1 AS TEXT) WHERE key = 'generation'")
    return int(meta(connection, "generation"))
