"""What devices have logged, and the boards behind them."""

from __future__ import annotations

from typing import Any

from tinysphere.schema import run_ddl

UP = """
CREATE TABLE log (
    id {id},
    device TEXT NOT NULL,
    level INTEGER NOT NULL,
    logger TEXT NOT NULL,
    message TEXT NOT NULL,
    dropped BIGINT NOT NULL,
    at DOUBLE PRECISION,
    received_at DOUBLE PRECISION NOT NULL
);
CREATE INDEX log_device_id ON log (device, id);
CREATE INDEX log_received_at ON log (received_at);
CREATE TABLE board (
    device TEXT NOT NULL,
    uid TEXT NOT NULL,
    name TEXT NOT NULL,
    fw TEXT NOT NULL,
    model TEXT NOT NULL,
    model_version TEXT NOT NULL,
    state TEXT NOT NULL,
    info TEXT NOT NULL,
    first_seen_at DOUBLE PRECISION NOT NULL,
    last_seen_at DOUBLE PRECISION,
    reported_at DOUBLE PRECISION NOT NULL,
    gone_at DOUBLE PRECISION,
    PRIMARY KEY (device, uid)
) {clustered};
ALTER TABLE device ADD COLUMN boards BIGINT NOT NULL DEFAULT 0;
"""


def up(migrator: Any, db: Any) -> None:
    """Make the tables."""
    run_ddl(db, UP)


def down(migrator: Any, db: Any) -> None:
    """Drop them."""
    run_ddl(db, "ALTER TABLE device DROP COLUMN boards; DROP TABLE board; DROP TABLE log")
