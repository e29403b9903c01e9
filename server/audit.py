"""Who changed what, and when: a log in which each entry carries the hash of the one before.

An entry's hash is the SHA-256 of the JSON list [hash before, at, who, what, target]; the first one follows 64 zeros.
Who changes or removes an entry with the tools of the database breaks the chain there: `tinysphere audit verify` finds
it. The end of the chain can be cut off without a trace, unless its hash was noted elsewhere: `--head`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

import msgspec

from .db import Connection, Database, row, rows
from .feed import note_change

START: Final = "0" * 64
_PAGE: Final = 1000


class AuditEntry(msgspec.Struct, frozen=True):
    """One change."""

    id: int
    at: float
    who: str
    what: str
    target: str
    sha256: str


class Verified(msgspec.Struct, frozen=True):
    """What a look at the whole chain has found; `broken_at` is the first entry that does not follow."""

    entries: int
    head: str
    broken_at: int | None
    has_head: bool


def chained(before: str, at: float, who: str, what: str, target: str) -> str:
    """The hash of an entry."""
    return hashlib.sha256(json.dumps([before, at, who, what, target]).encode()).hexdigest()


def audit(connection: Connection, who: str, what: str, target: str, now_s: float) -> None:
    """Note a change, in the same transaction as the change."""
    connection.lock("audit")  # one chain, also of several processes
    last = row(connection, "SELECT sha256 FROM audit ORDER BY id DESC LIMIT 1")
    sha256 = chained(START if last is None else str(last["sha256"]), float(now_s), who, what, target)
    connection.execute(
        "INSERT INTO audit (at, who, what, target, sha256) VALUES (?, ?, ?, ?, ?)", (now_s, who, what, target, sha256)
    )
    note_change(connection, what, target, now_s)


def list_audit(db: Database, before_id: int, limit: int) -> list[AuditEntry]:
    """The audit, newest first, one entry more than `limit` when there are more."""
    sql = "SELECT id, at, who, what, target, sha256 FROM audit WHERE id < ? ORDER BY id DESC LIMIT ?"
    return [AuditEntry(**found) for found in db.read(lambda connection: rows(connection, sql, (before_id, limit + 1)))]


def verify(db: Database, head: str | None = None) -> Verified:
    """Follow the chain from its start.

    Args:
        head: a hash that was noted earlier; the chain must go through it.
    """

    def job(connection: Connection) -> Verified:
        before, last_id, count, has_head = START, 0, 0, head is None
        sql = "SELECT id, at, who, what, target, sha256 FROM audit WHERE id > ? ORDER BY id LIMIT ?"
        while found := rows(connection, sql, (last_id, _PAGE)):
            for item in found:
                if item["sha256"] != chained(before, item["at"], item["who"], item["what"], item["target"]):
                    return Verified(count, before, item["id"], has_head)
                before, last_id, count = str(item["sha256"]), int(item["id"]), count + 1
                has_head = has_head or before == head
        return Verified(count, before, None, has_head)

    return db.read(job)
