"""What happens in the fleet, one row each, for those who follow it: written where it happens, read from a cursor.

Rules
- A row is committed with what it tells of, or neither is.
- Nothing is kept in a process: any process of the server goes on from a cursor that another one gave.
- A cursor never passes what may still be committed. PostgreSQL numbers the rows of several writers before they are
  committed, so rows are read in the order of their transactions, and only those older than every one that still runs.
- Who comes too late for what retention has removed, or with a cursor of another database, is told so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from .db import Connection, Database, Row, Value, row, rows
from .errors import BadRequestError

KINDS: Final[Mapping[str, str]] = {
    "drift": "a drift alarm has arrived: `version`, `monitor`, `signal`, `statistic`, `threshold`",
    "deployment": "a device has told how far a deployment has come: `deployment`, `state`, `reason`",
    "command": "a device has answered a command: `command`, `name`, `state`, `detail`",
    "config": "a device has taken or refused settings: `version`, `state`, `reason`",
    "board": "a board behind a device is new, has changed or is gone: `uid`, `name`, `fw`, `model_version`, `state`",
    "change": "somebody has changed something: `what`, such as `deployment.create`, and `target`",
}
READ_MAX: Final = 500  # rows at once
TEXT_CHARACTERS_MAX: Final = 300
COLUMNS: Final = ("at", "type", "device", "model", "body")
_TOLD: Final = frozenset({"command", "config", "deployment", "device", "group", "model"})  # of the audit's subjects
_CURSOR: Final = re.compile(r"([0-9a-f]{8})-(\d{1,19})-(\d{1,19})-(\d{1,12})")
_SETTLED: Final = "xact < CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS TEXT) AS BIGINT)"
_HORIZON: Final = "SELECT CAST(CAST(pg_snapshot_xmin(pg_current_snapshot()) AS TEXT) AS BIGINT) AS xact"


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the feed: behind the row (xact, id), which was at that time."""

    instance: str
    xact: int
    id: int
    at: int

    def __str__(self) -> str:
        return f"{self.instance}-{self.xact}-{self.id}-{self.at}"


class FeedEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that has happened; `at` is when the server learnt of it."""

    type: str
    at: float
    device: str | None
    model: str | None
    body: dict[str, object]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a follower wants to hear of; empty for all."""

    types: frozenset[str] = frozenset()
    device: str | None = None
    model: str | None = None

    def matches(self, found: Row) -> bool:
        """Whether a row is meant."""
        return (
            (not self.types or found["type"] in self.types)
            and self.device in (None, found["device"])
            and self.model in (None, found["model"])
        )


def check_types(names: tuple[str, ...]) -> frozenset[str]:
    """The kinds that somebody names.

    Raises:
        BadRequestError: there is none of a name.
    """
    for name in names:
        if name not in KINDS:
            raise BadRequestError(f"the query's types names {name!r:.40}; expected some of {', '.join(KINDS)}")
    return frozenset(names)


# Writing ---------------------------------------------------------------------------------------------------


def values_of(
    type: str, now_s: float, device: str | None = None, model: str | None = None, **body: object
) -> tuple[Value, ...]:
    """A row, in the order of `COLUMNS`; long texts are cut, and what is neither text nor number is left out."""
    told = {
        key: value[:TEXT_CHARACTERS_MAX] if isinstance(value, str) else value
        for key, value in body.items()
        if value is None or isinstance(value, str | int | float)
    }
    return (now_s, type, device, model, json.dumps(told))


def note(
    connection: Connection, type: str, now_s: float, device: str | None = None, model: str | None = None, **body: object
) -> None:
    """Note that something has happened, in the transaction in which it does."""
    connection.execute(
        "INSERT INTO feed (at, type, device, model, body) VALUES (?, ?, ?, ?, ?)",
        values_of(type, now_s, device, model, **body),
    )


def note_change(connection: Connection, what: str, target: str, now_s: float) -> None:
    """Note a change that the audit has, if everybody may know of it: nobody is told who did it, nor of tokens."""
    subject = what.partition(".")[0]
    if subject in _TOLD:
        # What stands behind the first word of an enrolment names the join token.
        note(connection, "change", now_s, what=what, target=target.partition(" join token ")[0])


# Reading ---------------------------------------------------------------------------------------------------


def parse_cursor(text: str) -> Cursor:
    """A cursor as it was given.

    Raises:
        BadRequestError: it is none.
    """
    found = _CURSOR.fullmatch(text)
    if found is None or max(int(found[2]), int(found[3])) >= 1 << 63:
        raise BadRequestError("Last-Event-ID is none that this server gave; follow without it")
    return Cursor(found[1], int(found[2]), int(found[3]), int(found[4]))


def _now(connection: Connection, instance: str, now_s: float) -> Cursor:
    """Behind all that has happened."""
    if connection.kind == "sqlite":
        last = row(connection, "SELECT MAX(id) AS id FROM feed")
        return Cursor(instance, 0, int(last["id"] or 0) if last else 0, int(now_s))
    return Cursor(instance, int(rows(connection, _HORIZON)[0]["xact"]), 0, int(now_s))


def begin(db: Database, given: str | None, keep_s: float | None, now_s: float) -> tuple[Cursor, str]:
    """Where a follower begins, and why something may be missing before that (empty: nothing is).

    Args:
        given: the cursor of the last event that it has seen.
        keep_s: how long retention keeps the feed; None for ever.

    Raises:
        BadRequestError: `given` is no cursor.
    """
    instance = db.instance[:8]
    if given is None:
        return db.read(lambda connection: _now(connection, instance, now_s)), ""
    cursor = parse_cursor(given)
    if cursor.instance != instance:
        start = Cursor(instance, 0, 0, int(now_s))
        return start, "the server has another database than the one that gave this id: what is kept comes again"
    if keep_s is not None and cursor.at < now_s - keep_s:
        return cursor, f"the id is older than the {keep_s / 86_400:g} days that are kept"
    return cursor, ""


def after(db: Database, cursor: Cursor, wanted: Wanted) -> tuple[list[tuple[Cursor, FeedEvent]], Cursor, bool]:
    """What has happened behind a cursor.

    Returns:
        The events that are wanted, each with its own cursor; the cursor behind all that was looked at; and whether
        there is more at once.
    """

    def job(connection: Connection) -> list[Row]:
        settled = f" AND {_SETTLED}" if connection.kind == "postgresql" else ""
        sql = f"SELECT * FROM feed WHERE (xact, id) > (?, ?){settled} ORDER BY xact, id LIMIT ?"  # noqa: S608
        return rows(connection, sql, (cursor.xact, cursor.id, READ_MAX))

    found = db.read(job)
    events = []
    for item in found:
        cursor = Cursor(cursor.instance, int(item["xact"]), int(item["id"]), int(item["at"]))
        if wanted.matches(item):
            events.append((cursor, _event(item)))
    return events, cursor, len(found) == READ_MAX


def _event(found: Row) -> FeedEvent:
    body: dict[str, Any] = json.loads(found["body"])
    return FeedEvent(found["type"], found["at"], found["device"], found["model"], body)
