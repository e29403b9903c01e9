"""How a file leaves the store while others may upload the very same bytes.

Rules
- A file goes when no row names it: marked first, then removed, then noted as done.
- An upload takes the number of a file's removals before it stores it, and makes its row only if that is still the same
  and none is under way: else the bytes that it has stored may be gone, and it is to come again.
"""

from __future__ import annotations

from typing import Final

from .db import Connection, row
from .errors import BusyError

KEEP_S: Final = 86_400.0  # how long a removal is remembered: no upload takes longer
_NAMED: Final = (
    "SELECT 1 AS one FROM blob WHERE sha256 = ? UNION ALL SELECT 1 AS one FROM model_version WHERE sha256 = ? LIMIT 1"
)


def rounds(connection: Connection, sha256: str) -> int:
    """How often a file was removed, to be asked before it is stored."""
    found = row(connection, "SELECT round FROM removal WHERE sha256 = ?", (sha256,))
    return 0 if found is None else int(found["round"])


def check_stored(connection: Connection, sha256: str, before: int) -> None:
    """See that a file that was stored just now is there, in the job that makes its row.

    Raises:
        BusyError: it was removed meanwhile, or is about to be.
    """
    connection.lock(f"file {sha256}")
    found = row(connection, "SELECT round, done_at FROM removal WHERE sha256 = ?", (sha256,))
    if found is not None and (found["done_at"] is None or int(found["round"]) != before):
        raise BusyError("the same file was being removed; send it again", retry_after_s=1)


def mark(connection: Connection, sha256: str) -> bool:
    """Mark a file for removal if nothing names it; whether it is marked."""
    connection.lock(f"file {sha256}")
    if row(connection, _NAMED, (sha256, sha256)) is not None:
        return False
    connection.execute(
        "INSERT INTO removal (sha256, round, done_at) VALUES (?, 1, NULL) ON CONFLICT (sha256)"
        " DO UPDATE SET round = removal.round + 1, done_at = NULL",
        (sha256,),
    )
    return True


def marked(connection: Connection, limit: int) -> list[str]:
    """Files that are to be removed, or were when a process ended."""
    found = connection.rows("SELECT sha256 FROM removal WHERE done_at IS NULL ORDER BY sha256 LIMIT ?", (limit,))
    return [item["sha256"] for item in found]


def done(connection: Connection, sha256: str, now_s: float) -> None:
    """Note that a file was removed."""
    connection.execute("UPDATE removal SET done_at = ? WHERE sha256 = ?", (now_s, sha256))


def forget(connection: Connection, now_s: float) -> None:
    """Forget removals of long ago."""
    connection.execute("DELETE FROM removal WHERE done_at < ?", (now_s - KEEP_S,))
