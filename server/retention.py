"""How long what the devices have told is kept: by age, and by size; deleted from the tables and from the store.

Rules
- Rows go in pieces, oldest first, each piece a transaction of its own: syncs are not held up.
- Watermarks stay for ever: a record that comes again after its row has gone is still known to have been settled.
- A file of the store goes when no row names it any more: see `removals`.
- Sizes are those of the rows and files that are there. What a database has freed and not given back to the disk does
  not count: it is used again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from . import removals
from .db import Connection, row, rows
from .errors import StartError
from .jobs import Lease
from .store import Store

DAY_S: Final = 86_400.0
PIECE_ROWS: Final = 5000
FILES_A_PIECE: Final = 200
EVERY_S: Final = 3600.0
FOREVER: Final = "forever"
_AGE: Final = re.compile(r"(\d{1,5})d")
_SIZE: Final = re.compile(r"(\d{1,6})(MB|GB)")
_UNITS: Final = {"MB": 10**6, "GB": 10**9}


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that grow old: their table, their key, the time that counts, and which of them are meant."""

    name: str
    key: tuple[str, ...]
    time: str = "received_at"
    where: str = ""


KINDS: Final[Mapping[str, tuple[Table, ...]]] = {
    "records": (
        Table("record", ("device", "stream", "epoch", "seq")),
        Table("summary", ("id",)),
        Table("refused_record", ("device", "stream", "epoch", "seq")),
        Table("gap", ("device", "stream", "epoch", "from_seq", "to_seq")),
        Table("judgement", ("device", "prediction"), "changed_at"),
    ),
    "minutes": (Table("rollup", ("device", "model", "version", "step", "at"), "at", "step = 60"),),
    "hours": (Table("rollup", ("device", "model", "version", "step", "at"), "at", "step = 3600"),),
    "days": (Table("rollup", ("device", "model", "version", "step", "at"), "at", "step = 86400"),),
    "events": (Table("drift_event", ("id",)),),
    "labels": (Table("label", ("id",)),),
    "logs": (Table("log", ("id",)),),
    "feed": (Table("feed", ("id",), "at"),),
    "blobs": (),  # with their files: see `_old_blobs`
}
SIZED: Final = ("records", "blobs")
DEFAULTS: Final[Mapping[str, float | None]] = {
    "records": 90.0,
    "minutes": 14.0,
    "hours": 400.0,
    "days": None,
    "events": None,
    "labels": None,
    "logs": 30.0,
    "feed": 7.0,
    "blobs": 90.0,
}


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept.

    Attributes:
        days: by kind, one of `KINDS`; None for ever.
        bytes: by kind, one of `SIZED`; what is not named has no bound.
    """

    days: Mapping[str, float | None] = field(default_factory=lambda: dict(DEFAULTS))
    bytes: Mapping[str, int] = field(default_factory=dict)


def parse_keep(texts: Sequence[str]) -> Keep:
    """Read `--keep KIND=90d`, `KIND=forever` and `KIND=20GB`.

    Raises:
        StartError: a text says something else.
    """
    days, sizes = dict(DEFAULTS), {}
    for text in texts:
        kind, _, value = text.partition("=")
        if kind not in KINDS:
            raise StartError(f"--keep {text!r:.60}: there is no kind {kind!r:.30}; expected one of {', '.join(KINDS)}")
        if value == FOREVER:
            days[kind] = None
        elif (age := _AGE.fullmatch(value)) is not None and int(age[1]):
            days[kind] = float(age[1])
        elif (size := _SIZE.fullmatch(value)) is not None and kind in SIZED:
            sizes[kind] = int(size[1]) * _UNITS[size[2]]
        else:
            sized = f", and for {' and '.join(SIZED)} such as 500MB or 20GB" if value else ""
            raise StartError(f"--keep {text!r:.60}: expected an age such as 90d, forever{sized}")
    return Keep(days, sizes)


def sweep(lease: Lease, store: Store, keep: Keep, now_s: float) -> dict[str, int]:
    """Delete what is older or more than is kept; returns how many rows and files went, by table."""
    gone: dict[str, int] = {}
    for kind, tables in KINDS.items():
        age = keep.days[kind]
        if age is not None:
            for table in tables:
                condition = f"{table.time} < ?{' AND ' + table.where if table.where else ''}"
                _delete_all(lease, table, condition, now_s - age * DAY_S, gone)
    _shrink(lease, keep, gone)
    _old_blobs(lease, keep, now_s, gone)
    _remove_files(lease, store, now_s, gone)
    _clear_up(lease, now_s)
    return {name: count for name, count in gone.items() if count}


def _delete(connection: Connection, table: Table, condition: str, value: float) -> int:
    key = ", ".join(table.key)
    return connection.execute(
        f"DELETE FROM {table.name} WHERE ({key}) IN (SELECT {key} FROM {table.name} WHERE {condition}"  # noqa: S608
        f" ORDER BY {table.time} LIMIT {PIECE_ROWS})",
        (value,),
    ).rowcount


def _delete_all(lease: Lease, table: Table, condition: str, value: float, gone: dict[str, int]) -> None:
    while not lease.stopping.is_set():
        count = lease.write(lambda connection: _delete(connection, table, condition, value))
        gone[table.name] = gone.get(table.name, 0) + count
        if count < PIECE_ROWS:
            return


# By size ---------------------------------------------------------------------------------------------------


def table_bytes(connection: Connection, name: str) -> int:
    """About how many bytes the rows of a table take, dead ones and its indexes not counted: from a sample."""
    if connection.kind == "postgresql":
        connection.execute(f"ANALYZE {name}")
        found = connection.rows(
            "SELECT CAST(c.reltuples AS DOUBLE PRECISION) AS n, (SELECT CAST(SUM(avg_width) AS DOUBLE PRECISION)"
            " FROM pg_stats s WHERE s.schemaname = current_schema() AND s.tablename = c.relname) AS width"
            " FROM pg_class c WHERE c.oid = CAST(CAST(? AS TEXT) AS regclass)",
            (name,),
        )[0]
        return max(0, int(found["n"] * ((found["width"] or 0) + 28)))  # 24 of the header, 4 of the line pointer
    width = "LENGTH(payload) + 120"
    found = connection.rows(
        f"SELECT COUNT(*) AS n, AVG({width}) AS width FROM (SELECT payload FROM {name} LIMIT 2000)"  # noqa: S608
    )[0]
    total = connection.rows(f"SELECT COUNT(*) AS n FROM {name}")[0]["n"]  # noqa: S608 (constants)
    return int(total * (found["width"] or 0))


def _shrink(lease: Lease, keep: Keep, gone: dict[str, int]) -> None:
    """Delete the oldest records and summaries until they fit."""
    most = keep.bytes.get("records")
    if most is not None:
        for table in KINDS["records"][:2]:  # both hold the same summaries: each gets its half
            gone[table.name] = gone.get(table.name, 0) + _shrink_table(lease, table, most // 2)


def _shrink_table(lease: Lease, table: Table, bytes_max: int) -> int:
    def excess(connection: Connection) -> int:
        count = int(rows(connection, f"SELECT COUNT(*) AS n FROM {table.name}")[0]["n"])  # noqa: S608 (constants)
        size = table_bytes(connection, table.name)
        return 0 if size <= bytes_max else -(-count * (size - bytes_max) // size)

    left, gone, key = lease.write(excess), 0, ", ".join(table.key)
    while left > 0 and not lease.stopping.is_set():
        sql = (
            f"DELETE FROM {table.name} WHERE ({key}) IN (SELECT {key} FROM {table.name}"  # noqa: S608 (constants)
            f" ORDER BY {table.time} LIMIT {min(left, PIECE_ROWS)})"
        )
        deleted = lease.write(partial(_run, sql))
        gone += deleted
        left -= PIECE_ROWS
        if not deleted:
            break
    return gone


def _run(sql: str, connection: Connection) -> int:
    return connection.execute(sql).rowcount


# Files -----------------------------------------------------------------------------------------------------


def _old_blobs(lease: Lease, keep: Keep, now_s: float, gone: dict[str, int]) -> None:
    """Forget blobs that are too old, then the oldest while all together are too large; their files are marked."""
    age, most = keep.days["blobs"], keep.bytes.get("blobs")
    if age is not None:
        before_s = now_s - age * DAY_S
        sql = "SELECT device, sha256, size FROM blob WHERE created_at < ? ORDER BY created_at LIMIT ?"
        while not lease.stopping.is_set():
            count = lease.write(
                lambda connection: _forget_blobs(connection, rows(connection, sql, (before_s, FILES_A_PIECE)))
            )
            gone["blob"] = gone.get("blob", 0) + count
            if count < FILES_A_PIECE:
                break
    while most is not None and not lease.stopping.is_set():
        count = lease.write(lambda connection: _forget_largest(connection, most))
        gone["blob"] = gone.get("blob", 0) + count
        if not count:
            break


def _forget_largest(connection: Connection, bytes_max: int) -> int:
    found = row(connection, "SELECT COALESCE(SUM(size), 0) AS used FROM blob")
    excess, old = int(found["used"]) - bytes_max if found else 0, []
    sql = "SELECT device, sha256, size FROM blob ORDER BY created_at, sha256 LIMIT ?"
    for item in rows(connection, sql, (FILES_A_PIECE,)) if excess > 0 else []:
        if excess <= 0:
            break
        excess -= int(item["size"])
        old.append(item)
    return _forget_blobs(connection, old)


def _forget_blobs(connection: Connection, found: Sequence[Mapping[str, object]]) -> int:
    for item in found:
        device, sha256 = str(item["device"]), str(item["sha256"])
        connection.execute("DELETE FROM blob WHERE device = ? AND sha256 = ?", (device, sha256))
        removals.mark(connection, sha256)
    return len(found)


def _remove_files(lease: Lease, store: Store, now_s: float, gone: dict[str, int]) -> None:
    """Remove what is marked, also by a process that ended before it came to that."""
    while not lease.stopping.is_set():
        names = lease.db.read(lambda connection: removals.marked(connection, FILES_A_PIECE))
        for name in names:
            store.delete(name)
            lease.write(partial(removals.done, sha256=name, now_s=now_s))
            gone["file"] = gone.get("file", 0) + 1
        if len(names) < FILES_A_PIECE:
            return


def _clear_up(lease: Lease, now_s: float) -> None:
    """What has no use any more: ended sessions, old answers, points that MLflow has, clocks of old boots."""

    def job(connection: Connection) -> None:
        removals.forget(connection, now_s)
        connection.execute("DELETE FROM session WHERE expires_at < ?", (now_s,))
        connection.execute("DELETE FROM fleet_point WHERE at < ?", (now_s - 401 * DAY_S,))  # MLflow has them
        connection.execute("DELETE FROM idempotency WHERE created_at < ?", (now_s - 7 * DAY_S,))
        connection.execute(
            "DELETE FROM anchor WHERE received_at < ? AND received_at <"
            " (SELECT MAX(newer.received_at) FROM anchor newer WHERE newer.device = anchor.device)",
            (now_s - 400 * DAY_S,),
        )

    lease.write(job)
