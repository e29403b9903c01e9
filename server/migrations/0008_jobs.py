"""Work that any of several processes may do, and files of the store that go."""

from __future__ import annotations

from typing import Any

from tinysphere.schema import run_ddl

UP = """
CREATE TABLE job (
    name TEXT NOT NULL PRIMARY KEY,
    run_at DOUBLE PRECISION NOT NULL,
    lease_until DOUBLE PRECISION,
    lease TEXT,
    owner TEXT,
    attempts INTEGER NOT NULL,
    problem TEXT NOT NULL,
    finished_at DOUBLE PRECISION
);
CREATE TABLE removal (
    sha256 TEXT NOT NULL PRIMARY KEY,
    round INTEGER NOT NULL,
    done_at DOUBLE PRECISION
);
CREATE INDEX blob_created_at ON blob (created_at);
CREATE INDEX label_received_at ON label (received_at);
CREATE INDEX drift_event_received_at ON drift_event (received_at);
"""


def up(migrator: Any, db: Any) -> None:
    """Make the tables."""
    run_ddl(db, UP)


def down(migrator: Any, db: Any) -> None:
    """Drop them."""
    run_ddl(
        db,
        "DROP INDEX drift_event_received_at; DROP INDEX label_received_at; DROP INDEX blob_created_at;"
        " DROP TABLE removal; DROP TABLE job",
    )
