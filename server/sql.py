"""One way to talk to SQLite and to PostgreSQL: the same statements, with `?` for values and rows read by name.

What both databases understand is written once, by whoever needs it. The few things that they do not share are
methods here: bulk inserts, locks and the meaning of errors.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Final, Protocol, TypeAlias, cast

from .errors import BusyError, StorageError, TinySphereError

Value: TypeAlias = "str | int | float | bytes | None"
Row: TypeAlias = "Mapping[str, Any]"
UNREACHABLE: Final = "the database cannot be reached; nothing was stored, resending is safe"
STREAM_ROWS: Final = 2000
COPY_MIN: Final = 20  # rows from which on COPY is quicker than statements
# Rows of one statement of `bulk`: few sizes, so that the databases know the statements already.
BULK_ROWS: Final = (128, 32, 8, 1)
_UNIQUE_VIOLATION: Final = "23505"
_STORAGE_CODES: Final = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY})


class Changed(Protocol):
    """What a statement did."""

    @property
    def rowcount(self) -> int:
        """Rows that were changed."""


class Connection(Protocol):
    """A connection in a transaction. Statements use `?` for values and what both databases understand."""

    @property
    def kind(self) -> str:
        """`sqlite` or `postgresql`."""

    def execute(self, sql: str, values: Sequence[Value] = ()) -> Changed:
        """Run one statement."""

    def executemany(self, sql: str, values: Sequence[Sequence[Value]]) -> None:
        """Run one statement for many rows of values."""

    def bulk(self, head: str, values: Sequence[Sequence[Value]], tail: str = "") -> None:
        """Run `head VALUES (?, ...), ... tail` for many rows of values, with few statements.

        A statement is one step of the driver, in which others may run Python: a row a step would wait for them each
        time. What it changes must be rows of their own: PostgreSQL refuses to change one twice in a statement.
        """

    def rows(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        """All rows of a query, by column name; the query bounds their number."""

    def stream(self, sql: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """The columns of a query, and its rows one by one, never many in memory."""

    def restart_ids(self) -> None:
        """Have numbers that the database gives go on behind the highest there is."""

    def insert(self, table: str, columns: Sequence[str], values: Sequence[Sequence[Value]]) -> None:
        """Insert many rows; those whose key is there already are left out."""

    def lock(self, name: str) -> None:
        """Keep other processes from the same lock until the transaction ends. SQLite has one writer anyway."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    def is_broken(self) -> bool:
        """Whether it will never work again and has to be opened anew."""


def rows(connection: Connection, sql: str, values: Sequence[Value] = ()) -> list[Row]:
    """All rows of a query, readable by column name; the query bounds their number."""
    return connection.rows(sql, values)


def row(connection: Connection, sql: str, values: Sequence[Value] = ()) -> Row | None:
    """The first row of a query, or None."""
    found = connection.rows(sql, values)
    return found[0] if found else None


def rows_of(
    connection: Connection,
    table: str,
    columns: tuple[str, ...],
    key: tuple[str, ...],
    values: Sequence[tuple[Value, ...]],
    tail: str = "",
) -> list[Row]:
    """The rows of a table that have one of many keys, in queries of few sizes.

    Args:
        columns: that are wanted.
        key: columns that an index begins with.
        values: of these columns.
        tail: behind the query.
    """
    found: list[Row] = []
    for size, piece in _pieces(values):
        found += connection.rows(_keys_sql(table, columns, key, size, tail), list(chain.from_iterable(piece)))
    return found


class _Sqlite:
    """SQLite's, through the standard library."""

    kind = "sqlite"

    def __init__(self, raw: sqlite3.Connection) -> None:
        self.raw = raw

    def execute(self, sql: str, values: Sequence[Value] = ()) -> Changed:
        return self.raw.execute(sql, values)

    def executemany(self, sql: str, values: Sequence[Sequence[Value]]) -> None:
        self.raw.executemany(sql, values)

    def bulk(self, head: str, values: Sequence[Sequence[Value]], tail: str = "") -> None:
        for count, piece in _pieces(values):
            self.raw.execute(_bulk_sql(head, len(piece[0]), count, tail), list(chain.from_iterable(piece)))

    def rows(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        cursor = self.raw.execute(sql, values)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, found, strict=True)) for found in cursor.fetchall()]

    def stream(self, sql: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        cursor = self.raw.execute(sql)
        return [column[0] for column in cursor.description], iter(cursor)

    def restart_ids(self) -> None:
        pass  # the next is always the highest and one

    def insert(self, table: str, columns: Sequence[str], values: Sequence[Sequence[Value]]) -> None:
        self.bulk(_insert_head(table, tuple(columns)), values, "ON CONFLICT DO NOTHING")

    def lock(self, name: str) -> None:
        pass

    @property
    def in_transaction(self) -> bool:
        return self.raw.in_transaction

    def is_broken(self) -> bool:
        return False


class _Postgres:
    """PostgreSQL's, through psycopg 3."""

    kind = "postgresql"

    def __init__(self, raw: Any) -> None:
        from psycopg.rows import dict_row

        self.raw = raw
        self._cursor = raw.cursor(row_factory=dict_row)

    def execute(self, sql: str, values: Sequence[Value] = ()) -> Changed:
        return cast("Changed", self._cursor.execute(_format(sql), values))

    def executemany(self, sql: str, values: Sequence[Sequence[Value]]) -> None:
        if values:
            self._cursor.executemany(_format(sql), values)

    def bulk(self, head: str, values: Sequence[Sequence[Value]], tail: str = "") -> None:
        for count, piece in _pieces(values):
            sql = _format(_bulk_sql(head, len(piece[0]), count, tail))
            self._cursor.execute(sql, list(chain.from_iterable(piece)))

    def rows(self, sql: str, values: Sequence[Value] = ()) -> list[Row]:
        return cast("list[Row]", self._cursor.execute(_format(sql), values).fetchall())

    def stream(self, sql: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        cursor = self.raw.cursor(name="stream")  # of the server: its rows come in pieces
        cursor.itersize = STREAM_ROWS
        cursor.execute(sql)
        return [column.name for column in cursor.description], _closing(cursor)

    def restart_ids(self) -> None:
        sql = (
            "SELECT table_name AS t, column_name AS c FROM information_schema.columns"
            " WHERE table_schema = current_schema() AND is_identity = 'YES'"
        )
        for found in self.rows(sql):
            table, column = found["t"], found["c"]
            self._cursor.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'),"  # noqa: S608 (names of the schema)
                f" COALESCE(MAX({column}), 0) + 1, false) FROM {table}"
            )

    def insert(self, table: str, columns: Sequence[str], values: Sequence[Sequence[Value]]) -> None:
        if len(values) < COPY_MIN:
            self.bulk(_insert_head(table, tuple(columns)), values, "ON CONFLICT DO NOTHING")
            return
        # COPY knows no ON CONFLICT. Nearly always there is none; else it goes through a temporary table.
        names, incoming = ", ".join(columns), f"incoming_{table}"
        self._cursor.execute("SAVEPOINT copy")
        try:
            self._copy(f"COPY {table} ({names}) FROM STDIN", values)
        except Exception as error:
            if getattr(error, "sqlstate", None) != _UNIQUE_VIOLATION:
                raise
        else:
            self._cursor.execute("RELEASE SAVEPOINT copy")
            return
        self._cursor.execute("ROLLBACK TO SAVEPOINT copy")
        self._cursor.execute("RELEASE SAVEPOINT copy")
        self._cursor.execute(
            f"CREATE TEMPORARY TABLE IF NOT EXISTS {incoming} ON COMMIT DELETE ROWS"  # noqa: S608
            f" AS SELECT {names} FROM {table} WITH NO DATA"
        )
        self._copy(f"COPY {incoming} ({names}) FROM STDIN", values)
        self._cursor.execute(
            f"INSERT INTO {table} ({names}) SELECT {names} FROM {incoming} ON CONFLICT DO NOTHING"  # noqa: S608
        )
        self._cursor.execute(f"TRUNCATE {incoming}")

    def _copy(self, sql: str, values: Sequence[Sequence[Value]]) -> None:
        with self._cursor.copy(sql) as copy:
            for item in values:
                copy.write_row(item)

    def lock(self, name: str) -> None:
        self._cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (name,))

    @property
    def in_transaction(self) -> bool:
        from psycopg.pq import TransactionStatus

        return self.raw.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR)

    def is_broken(self) -> bool:
        return bool(self.raw.closed or self.raw.broken)


def _closing(cursor: Any) -> Iterator[tuple[Any, ...]]:
    with cursor:
        yield from cursor


def wrap(kind: str, raw: Any) -> Connection:
    """A driver's connection as one of ours."""
    return _Sqlite(raw) if kind == "sqlite" else _Postgres(raw)


@functools.lru_cache(512)
def _format(sql: str) -> str:
    return sql.replace("%", "%%").replace("?", "%s")


@functools.lru_cache(256)
def _insert_head(table: str, columns: tuple[str, ...]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)})"


@functools.lru_cache(256)
def _bulk_sql(head: str, width: int, count: int, tail: str) -> str:
    marks = f"({', '.join('?' * width)})"
    return f"{head} VALUES {', '.join([marks] * count)} {tail}"


@functools.lru_cache(256)
def _keys_sql(table: str, columns: tuple[str, ...], key: tuple[str, ...], count: int, tail: str) -> str:
    wanted = ", ".join(columns)
    if len(key) == 1:
        return f"SELECT {wanted} FROM {table} WHERE {key[0]} IN ({', '.join('?' * count)}) {tail}"  # noqa: S608
    # Not `(a, b) IN (VALUES ...)`: with more than one row SQLite reads the whole table for that. Its CROSS JOIN keeps
    # the order, so that each key is looked up in the index; to PostgreSQL it is a join like every other.
    marks = f"({', '.join('?' * len(key))})"
    given = ", ".join(f"k.column{place}" for place in range(1, len(key) + 1))
    return (
        f"SELECT {wanted} FROM (VALUES {', '.join([marks] * count)}) AS k CROSS JOIN {table}"  # noqa: S608
        f" WHERE ({', '.join(key)}) = ({given}) {tail}"
    )


def _pieces(values: Sequence[Sequence[Value]]) -> Iterator[tuple[int, Sequence[Sequence[Value]]]]:
    """Cut rows into pieces of the sizes in `BULK_ROWS`."""
    start, left = 0, len(values)
    for size in BULK_ROWS:
        while left >= size:
            yield size, values[start : start + size]
            start, left = start + size, left - size


def is_database_error(error: BaseException) -> bool:
    """Whether a database's driver raised it."""
    return isinstance(error, sqlite3.Error) or _psycopg_error(error) is not None


def _psycopg_error(error: BaseException) -> Any:
    """It, if psycopg raised it: looked at by name, so that who uses SQLite needs no psycopg."""
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return error if "psycopg" in modules else None


def is_conflict(error: BaseException) -> bool:
    """Whether two transactions of two processes stood in each other's way: to be tried again."""
    found = _psycopg_error(error)
    return found is not None and getattr(found, "sqlstate", None) in ("40001", "40P01", "55P03")


def storage_error(error: BaseException) -> TinySphereError | None:
    """The error to answer when the disk is at fault or the database cannot be had; None for any other reason."""
    if isinstance(error, OSError):
        return StorageError(f"the server's disk refuses: {error.strerror}; nothing was stored, free some space")
    if (found := _psycopg_error(error)) is not None:
        return _postgres_error(found)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _STORAGE_CODES:
        return StorageError("the server's disk is full or failing; nothing was stored, free some space and resend")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return BusyError("the database is locked by another program; nothing was stored", retry_after_s=2)
    return None


def _postgres_error(error: Any) -> TinySphereError | None:
    """By SQLSTATE (appendix A of PostgreSQL's manual): its first two characters are the class."""
    state = getattr(error, "sqlstate", None) or ""
    if (state.startswith("53") and state != "53300") or state.startswith("58"):
        return StorageError("the database's disk is full or failing; nothing was stored, free some space and resend")
    if is_conflict(error):
        return BusyError("other changes stood in the way; nothing was stored, try again", retry_after_s=1)
    if state.startswith(("08", "57", "53")) or (not state and type(error).__name__ == "OperationalError"):
        return BusyError(UNREACHABLE, retry_after_s=5)
    return None
