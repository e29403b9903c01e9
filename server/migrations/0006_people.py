"""People with passwords, and their sessions."""

from __future__ import annotations

from typing import Any

from tinysphere.schema import run_ddl

UP = """
CREATE TABLE person (
    name TEXT NOT NULL PRIMARY KEY,
    password TEXT NOT NULL,
    role TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    created_by TEXT NOT NULL,
    disabled_at DOUBLE PRECISION
);
ALTER TABLE session ADD COLUMN person TEXT;
"""


def up(migrator: Any, db: Any) -> None:
    """Make the table and add the column."""
    run_ddl(db, UP)


def down(migrator: Any, db: Any) -> None:
    """Drop them; people's sessions end."""
    run_ddl(
        db, "DELETE FROM session WHERE person IS NOT NULL; ALTER TABLE session DROP COLUMN person; DROP TABLE person"
    )
