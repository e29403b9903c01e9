"""Devices that are expected, revoked, retired or somewhere; keys that change; groups."""

from __future__ import annotations

from typing import Any

from tinysphere.schema import run_ddl

COLUMNS = {
    "serial": "TEXT",
    "latitude": "DOUBLE PRECISION",
    "longitude": "DOUBLE PRECISION",
    "next_secret_sha256": "TEXT",
    "revoked_at": "DOUBLE PRECISION",
    "retired_at": "DOUBLE PRECISION",
}
UP = """
CREATE INDEX device_serial ON device (serial);
CREATE TABLE expected_device (
    serial TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    labels TEXT NOT NULL,
    device TEXT,
    created_at DOUBLE PRECISION NOT NULL,
    created_by TEXT NOT NULL
);
CREATE TABLE device_group (
    name TEXT NOT NULL PRIMARY KEY,
    selector TEXT NOT NULL,
    changed_at DOUBLE PRECISION NOT NULL,
    changed_by TEXT NOT NULL
);
ALTER TABLE join_token ADD COLUMN expected_only BIGINT NOT NULL DEFAULT 0;
"""


def up(migrator: Any, db: Any) -> None:
    """Add the columns and make the tables."""
    for name, kind in COLUMNS.items():
        run_ddl(db, f"ALTER TABLE device ADD COLUMN {name} {kind}")
    run_ddl(db, UP)


def down(migrator: Any, db: Any) -> None:
    """Drop them; devices that were revoked or retired are known again."""
    run_ddl(db, "DROP INDEX device_serial; DROP TABLE device_group; DROP TABLE expected_device")
    run_ddl(db, "ALTER TABLE join_token DROP COLUMN expected_only")
    for name in COLUMNS:
        run_ddl(db, f"ALTER TABLE device DROP COLUMN {name}")
