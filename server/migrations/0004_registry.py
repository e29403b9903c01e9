"""What a probe of an upload found, and names for versions."""

from __future__ import annotations

from typing import Any

from tinysphere.schema import run_ddl

UP = """
ALTER TABLE model_version ADD COLUMN probe TEXT NOT NULL DEFAULT '{}';
CREATE TABLE model_alias (
    model TEXT NOT NULL,
    alias TEXT NOT NULL,
    version TEXT NOT NULL,
    changed_at DOUBLE PRECISION NOT NULL,
    changed_by TEXT NOT NULL,
    PRIMARY KEY (model, alias)
);
"""


def up(migrator: Any, db: Any) -> None:
    """Add the column and make the table."""
    run_ddl(db, UP)


def down(migrator: Any, db: Any) -> None:
    """Drop them."""
    run_ddl(db, "DROP TABLE model_alias; ALTER TABLE model_version DROP COLUMN probe")
