"""What waits to be told to MLflow: a row for each thing that changed, written in the transaction that changed it.

Rules
- A row names a thing (a version, an alias, the metrics of a version), never what became of it: whoever sends it looks
  at the tables then. A thing that changes ten times while MLflow is away waits once.
- So there are at most as many rows as there are versions (twice) and aliases, and as MLflow still has to forget.
- `marks` counts the changes. A row is settled only if it is still what was looked at: what changed while it was being
  sent is sent again.
- A row that MLflow refuses waits by itself, longer each time; the others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from .db import Connection, rows
from .jobs import soon

JOB: Final = "mlflow"  # who tells
Kind = Literal["version", "alias", "metrics"]
KINDS: Final[tuple[Kind, ...]] = ("version", "alias", "metrics")  # in the order in which they can be sent
REFUSED_FIRST_S: Final = 30.0
REFUSED_MAX_S: Final = 3600.0
PROBLEM_CHARACTERS_MAX: Final = 500


@dataclass(frozen=True, slots=True)
class Item:
    """A thing that waits, as it was when it was looked at."""

    kind: Kind
    model: str
    name: str
    marks: int
    tries: int


class Waiting(msgspec.Struct, frozen=True):
    """A thing that waits, for people; `problem` is why it was refused, if it was."""

    kind: str
    model: str
    name: str
    queued_at: float
    tries: int
    retry_at: float
    problem: str


def mark(
    connection: Connection, kind: Kind, model: str, name: str, now_s: float, *, due_s: float | None = None
) -> None:
    """Have a thing sent: at once, or from `due_s` on. Call it in the job that changes the thing."""
    connection.execute(
        "INSERT INTO outbox (kind, model, name, marks, queued_at, tries, retry_at, problem)"
        " VALUES (?, ?, ?, 1, ?, 0, ?, '') ON CONFLICT (kind, model, name) DO UPDATE SET marks = outbox.marks + 1,"
        " tries = 0, retry_at = CASE WHEN excluded.retry_at < outbox.retry_at OR outbox.tries > 0"
        " THEN excluded.retry_at ELSE outbox.retry_at END",
        (kind, model, name, now_s, now_s if due_s is None else due_s),
    )
    if due_s is None:
        soon(connection, JOB)


def forget(connection: Connection, kind: Kind, model: str, name: str) -> None:
    """Take a thing back that need not be sent after all."""
    connection.execute("DELETE FROM outbox WHERE kind = ? AND model = ? AND name = ?", (kind, model, name))


def due(connection: Connection, kind: Kind, now_s: float, limit: int) -> Sequence[Item]:
    """What waits and may be sent now, the oldest first."""
    sql = (
        "SELECT kind, model, name, marks, tries FROM outbox WHERE kind = ? AND retry_at <= ?"
        " ORDER BY retry_at, queued_at, model, name LIMIT ?"
    )
    return [Item(**found) for found in rows(connection, sql, (kind, now_s, limit))]


def settle(connection: Connection, item: Item) -> bool:
    """Note that it was sent; whether it waits no more."""
    return bool(
        connection.execute(
            "DELETE FROM outbox WHERE kind = ? AND model = ? AND name = ? AND marks = ?",
            (item.kind, item.model, item.name, item.marks),
        ).rowcount
    )


def rest(connection: Connection, item: Item, until_s: float) -> None:
    """Leave it until then: nothing of it can be sent yet. A change in the meantime comes first."""
    connection.execute(
        "UPDATE outbox SET retry_at = ?, tries = 0, problem = '' WHERE kind = ? AND model = ? AND name = ?"
        " AND marks = ?",
        (until_s, item.kind, item.model, item.name, item.marks),
    )


def postpone(connection: Connection, item: Item, problem: str, now_s: float) -> None:
    """Note that it was refused, and when to try it again."""
    wait_s = min(REFUSED_MAX_S, REFUSED_FIRST_S * 2.0 ** min(item.tries, 20))
    connection.execute(
        "UPDATE outbox SET tries = tries + 1, retry_at = ?, problem = ? WHERE kind = ? AND model = ? AND name = ?"
        " AND marks = ?",
        (now_s + wait_s, problem[:PROBLEM_CHARACTERS_MAX], item.kind, item.model, item.name, item.marks),
    )


def counts(connection: Connection) -> dict[str, int]:
    """How many things of each kind wait."""
    found = {item["kind"]: int(item["n"]) for item in rows(connection, _COUNT_SQL)}
    return {kind: found.get(kind, 0) for kind in KINDS}


_COUNT_SQL: Final = "SELECT kind, COUNT(*) AS n FROM outbox GROUP BY kind"


def waiting(connection: Connection, limit: int) -> list[Waiting]:
    """What waits: first what was refused, then the oldest."""
    sql = (
        "SELECT kind, model, name, queued_at, tries, retry_at, problem FROM outbox"
        " ORDER BY CASE WHEN problem = '' THEN 1 ELSE 0 END, queued_at, kind, model, name LIMIT ?"
    )
    return [Waiting(**found) for found in rows(connection, sql, (limit,))]
