"""The database: one writer thread with group commit, and readers with connections of their own.

A job is a function of the writer's connection. Jobs that wait are run in one transaction, each in its own
savepoint, so that a bad job fails alone; a job's result is given only after the commit that holds it.
"""

from __future__ import annotations

import base64
import binascii
import json
import queue
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Generic, TypeAlias, TypeVar

import msgspec
from peewee import SchemaManager, SqliteDatabase

from .errors import BadRequestError, BusyError, StartError, StorageError, TinySphereError
from .models import SCHEMA_VERSION, TABLES

T = TypeVar("T")
Connection: TypeAlias = sqlite3.Connection
Value: TypeAlias = "str | int | float | bytes | None"
BUSY_TIMEOUT_S: Final = 10
_STORAGE_CODES: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY})


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


def rows(connection: Connection, sql: str, values: Sequence[Value] = ()) -> list[sqlite3.Row]:
    """All rows of a query, readable by column name; the query bounds their number."""
    cursor = connection.cursor()
    cursor.row_factory = sqlite3.Row
    return cursor.execute(sql, values).fetchall()


def row(connection: Connection, sql: str, values: Sequence[Value] = ()) -> sqlite3.Row | None:
    """The first row of a query, or None."""
    found = rows(connection, sql, values)
    return found[0] if found else None


def storage_error(error: sqlite3.Error | OSError) -> TinySphereError | None:
    """The error to answer when the disk is at fault or the database is locked; None for any other reason."""
    if isinstance(error, OSError):
        return StorageError(f"the server's disk refuses: {error.strerror}; nothing was stored, free some space")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _STORAGE_CODES:
        return StorageError("the server's disk is full or failing; nothing was stored, free some space and resend")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BusyError("the database is locked by another program; nothing was stored", retry_after_s=2)
    return None


class _Job:
    __slots__ = ("future", "run")

    def __init__(self, run: Callable[[Connection], object]) -> None:
        self.run = run
        self.future: Future[object] = Future()


class Database:
    """The server's SQLite database.

    Args:
        path: its file; made with its tables when it does not exist.
        queue_max: jobs that may wait; one more is refused.
        group_max: jobs in one commit.
        timeout_s: how long `write` waits for its commit.

    Raises:
        StartError: the file cannot be opened, or a newer server made it.
    """

    def __init__(self, path: Path, *, queue_max: int = 2000, group_max: int = 200, timeout_s: float = 30.0) -> None:
        self.path = path
        self._group_max = group_max
        self._timeout_s = timeout_s
        self._queue: queue.Queue[_Job | None] = queue.Queue(queue_max)
        self._database = SqliteDatabase(
            str(path),
            pragmas={
                "journal_mode": "wal",
                "synchronous": "full",
                "foreign_keys": 1,
                "cache_size": -16000,
            },
            timeout=BUSY_TIMEOUT_S,
        )
        self.commits = 0
        self.jobs = 0
        self._closed = False
        try:
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise StartError(f"the database {path} cannot be opened: {error}") from error
        except Exception as error:
            if isinstance(error, TinySphereError):
                raise
            raise StartError(f"the database {path} cannot be opened: {error}") from error
        self.instance = self.read(lambda connection: meta(connection, "instance"))
        self._thread = threading.Thread(target=self._write_loop, name="tinysphere-writer", daemon=True)
        self._thread.start()

    def _prepare(self) -> None:
        existed = self.path.exists()
        if not existed:
            self.path.touch(mode=0o600)
        with self._database.connection_context():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            for table in TABLES:
                manager = SchemaManager(table, self._database)
                manager.create_table(safe=True)
                manager.create_indexes(safe=True)
            for key, value in (
                ("schema", str(SCHEMA_VERSION)),
                ("instance", secrets.token_hex(8)),
                ("generation", "1"),
            ):
                connection.execute("INSERT OR IGNORE INTO meta (key, value) VALUES (?, ?)", (key, value))
            schema = _migrate(connection, int(meta(connection, "schema")))
            connection.execute("COMMIT")
        if schema != SCHEMA_VERSION:
            raise StartError(
                f"the database {self.path} has schema {schema}, this program knows {SCHEMA_VERSION}; "
                "use the version of TinySphere that made it"
            )

    def _connection(self) -> Connection:
        found: Connection = self._database.connection()  # type: ignore[no-untyped-call]
        return found

    def read(self, job: Callable[[Connection], T]) -> T:
        """Run a reading function on a connection of this thread; it sees committed data only."""
        with self._reader() as connection:
            return job(connection)

    @contextmanager
    def _reader(self) -> Iterator[Connection]:
        with self._database.connection_context():
            connection = self._connection()
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")

    def submit(self, job: Callable[[Connection], T]) -> Future[T]:
        """Queue a writing job.

        Returns:
            A future that is resolved after the commit.

        Raises:
            BusyError: too many jobs wait.
        """
        if self._closed:
            raise BusyError("the server is stopping; try again", retry_after_s=5)
        item = _Job(job)
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            raise BusyError("too many changes wait to be written; try again", retry_after_s=2) from None
        return item.future  # type: ignore[return-value]

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
            raise BusyError(
                f"the disk did not answer within {self._timeout_s:g} s; ask again, resending is safe", retry_after_s=5
            ) from None

    def close(self) -> None:
        """Finish what waits and stop the writer."""
        if self._closed:
            return
        self._closed = True
        self._queue.put(None)
        self._thread.join(timeout=self._timeout_s)

    # The writer's thread ----------------------------------------------------------------------------------

    def _write_loop(self) -> None:
        with self._database.connection_context():
            connection = self._connection()
            while True:
                first = self._queue.get()
                if first is None:
                    return
                group, stop = [first], False
                while len(group) < self._group_max:
                    try:
                        item = self._queue.get_nowait()
                    except queue.Empty:
                        break
                    if item is None:
                        stop = True
                        break
                    group.append(item)
                self._commit(connection, [item for item in group if item.future.set_running_or_notify_cancel()])
                if stop:
                    return

    def _commit(self, connection: Connection, group: list[_Job]) -> None:
        outcomes: list[tuple[_Job, object, Exception | None]] = []
        failure: Exception | None = None
        try:
            connection.execute("BEGIN IMMEDIATE")
            for item in group:
                outcomes.append((item, *self._run(connection, item)))
                if not connection.in_transaction:  # SQLite rolls everything back by itself when the disk is full
                    failure = outcomes[-1][2] or StorageError("the transaction was lost; nothing was stored")
                    break
            else:
                connection.execute("COMMIT")
        except Exception as error:
            failure = (storage_error(error) if isinstance(error, sqlite3.Error) else None) or error
        if failure is not None:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            for item in group:
                item.future.set_exception(failure)
            return
        self.commits += 1
        self.jobs += len(group)
        for item, result, problem in outcomes:
            if problem is None:
                item.future.set_result(result)
            else:
                item.future.set_exception(problem)

    @staticmethod
    def _run(connection: Connection, item: _Job) -> tuple[object, Exception | None]:
        connection.execute("SAVEPOINT job")
        try:
            result = item.run(connection)
        except Exception as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK TO job")
                connection.execute("RELEASE job")
            return None, (storage_error(error) if isinstance(error, sqlite3.Error | OSError) else None) or error
        connection.execute("RELEASE job")
        return result, None


def _migrate(connection: Connection, schema: int) -> int:
    """Bring an older schema up to date; returns what it is now. Missing tables are there by now.

    Schema 3 has tables of its own for commands and configuration, and changes no other.
    """
    if schema != 2:
        return schema
    connection.execute("UPDATE meta SET value = '3' WHERE key = 'schema'")
    return 3


def meta(connection: Connection, key: str) -> str:
    """A fact about this database."""
    found = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return str(found[0])


def raise_generation(connection: Connection) -> int:
    """Note that some device's desired state may have changed; returns the new generation."""
    connection.execute("UPDATE meta SET value = CAST(value AS INTEGER) + 1 WHERE key = 'generation'")
    return int(meta(connection, "generation"))
