"""The newest summary of each model on each device, and sums by minute, hour and day."""

from __future__ import annotations

from typing import Any

from tinysphere.schema import run_ddl

UP = """
CREATE TABLE latest (
    device TEXT NOT NULL,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    at DOUBLE PRECISION NOT NULL,
    received_at DOUBLE PRECISION NOT NULL,
    windows BIGINT NOT NULL,
    confidence_mean DOUBLE PRECISION,
    confidence_p5 DOUBLE PRECISION,
    confidence_p50 DOUBLE PRECISION,
    latency_p50_us DOUBLE PRECISION,
    latency_p95_us DOUBLE PRECISION,
    latency_p99_us DOUBLE PRECISION,
    rss_bytes BIGINT,
    cpu_percent DOUBLE PRECISION,
    labels TEXT NOT NULL,
    errors BIGINT NOT NULL,
    dropped_samples BIGINT NOT NULL,
    PRIMARY KEY (device, model)
) {clustered};
CREATE TABLE rollup (
    device TEXT NOT NULL,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    step INTEGER NOT NULL,
    at BIGINT NOT NULL,
    windows BIGINT NOT NULL,
    errors BIGINT NOT NULL,
    dropped_samples BIGINT NOT NULL,
    labels TEXT NOT NULL,
    body {bytes} NOT NULL,
    PRIMARY KEY (device, model, version, step, at)
) {clustered};
CREATE INDEX rollup_step_at ON rollup (step, at, device, model, version);
CREATE INDEX summary_received_at ON summary (received_at);
CREATE INDEX record_received_at ON record (received_at);
"""


def up(migrator: Any, db: Any) -> None:
    """Make the tables; what came before is not added up."""
    run_ddl(db, UP)


def down(migrator: Any, db: Any) -> None:
    """Drop them."""
    run_ddl(
        db,
        "DROP INDEX record_received_at; DROP INDEX summary_received_at; DROP TABLE rollup; DROP TABLE latest",
    )
