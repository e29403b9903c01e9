"""What waits to be mirrored into MLflow, what is there already, and predictions with their true labels."""

from __future__ import annotations

from typing import Any

from tinysphere.schema import run_ddl

UP = """
CREATE TABLE outbox (
    kind TEXT NOT NULL,
    model TEXT NOT NULL,
    name TEXT NOT NULL,
    marks BIGINT NOT NULL,
    queued_at DOUBLE PRECISION NOT NULL,
    tries INTEGER NOT NULL,
    retry_at DOUBLE PRECISION NOT NULL,
    problem TEXT NOT NULL,
    PRIMARY KEY (kind, model, name)
) {clustered};
CREATE INDEX outbox_retry_at ON outbox (retry_at);
CREATE TABLE mlflow_version (
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    number TEXT NOT NULL,
    run TEXT,
    PRIMARY KEY (model, version)
) {clustered};
CREATE TABLE mlflow_alias (
    model TEXT NOT NULL,
    alias TEXT NOT NULL,
    version TEXT NOT NULL,
    PRIMARY KEY (model, alias)
) {clustered};
CREATE TABLE fleet_point (
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    at BIGINT NOT NULL,
    span_s BIGINT NOT NULL,
    marks BIGINT NOT NULL,
    taken BIGINT NOT NULL,
    settled BIGINT NOT NULL,
    stamp_ms BIGINT NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY (model, version, at)
) {clustered};
CREATE INDEX fleet_point_waiting ON fleet_point (model, version, at) WHERE marks > settled;
CREATE TABLE judgement (
    device TEXT NOT NULL,
    prediction TEXT NOT NULL,
    model TEXT,
    version TEXT,
    predicted TEXT,
    truth TEXT,
    at DOUBLE PRECISION NOT NULL,
    changed_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (device, prediction)
) {clustered};
CREATE INDEX judgement_model_version_at ON judgement (model, version, at);
CREATE INDEX judgement_changed_at ON judgement (changed_at);
INSERT INTO outbox (kind, model, name, marks, queued_at, tries, retry_at, problem)
    SELECT 'version', model, version, 1, uploaded_at, 0, 0, '' FROM model_version;
INSERT INTO outbox (kind, model, name, marks, queued_at, tries, retry_at, problem)
    SELECT 'alias', model, alias, 1, changed_at, 0, 0, '' FROM model_alias;
"""


def up(migrator: Any, db: Any) -> None:
    """Make the tables; the versions and aliases that are there wait to be mirrored."""
    run_ddl(db, UP)


def down(migrator: Any, db: Any) -> None:
    """Drop them."""
    run_ddl(
        db,
        "DROP TABLE judgement; DROP TABLE fleet_point; DROP TABLE mlflow_alias; DROP TABLE mlflow_version;"
        " DROP TABLE outbox; DELETE FROM meta WHERE substr(key, 1, 6) = 'mlflow'",
    )
