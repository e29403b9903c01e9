"""Publishers' roots and what they said: of the database, so that all its servers know the same."""

from __future__ import annotations

from typing import Any

from tinysphere.schema import run_ddl

UP = """
CREATE TABLE trusted_root (
    fingerprint TEXT NOT NULL PRIMARY KEY,
    pinned_at DOUBLE PRECISION NOT NULL,
    pinned_by TEXT NOT NULL
);
CREATE TABLE trust_statement (
    fingerprint TEXT NOT NULL PRIMARY KEY,
    document TEXT NOT NULL,
    learnt_at DOUBLE PRECISION NOT NULL
);
"""


def up(migrator: Any, db: Any) -> None:
    """Make the tables."""
    run_ddl(db, UP)


def down(migrator: Any, db: Any) -> None:
    """Drop them."""
    run_ddl(db, "DROP TABLE trust_statement; DROP TABLE trusted_root")
