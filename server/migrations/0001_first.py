"""Devices, records, models, deployments, commands, settings, blobs: what TinySphere began with."""

from __future__ import annotations

from typing import Any

from tinysphere.schema import run_ddl

UP = """
CREATE TABLE meta (
    key TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
CREATE TABLE user_token (
    id TEXT NOT NULL PRIMARY KEY,
    secret_sha256 TEXT NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    expires_at DOUBLE PRECISION,
    revoked_at DOUBLE PRECISION
);
CREATE TABLE join_token (
    id TEXT NOT NULL PRIMARY KEY,
    secret_sha256 TEXT NOT NULL,
    uses BIGINT NOT NULL,
    uses_max BIGINT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL
);
CREATE TABLE session (
    id_sha256 TEXT NOT NULL PRIMARY KEY,
    token_id TEXT NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL
);
CREATE TABLE audit (
    id {id},
    at DOUBLE PRECISION NOT NULL,
    who TEXT NOT NULL,
    what TEXT NOT NULL,
    target TEXT NOT NULL
);
CREATE TABLE idempotency (
    key TEXT NOT NULL,
    who TEXT NOT NULL,
    request_sha256 TEXT NOT NULL,
    status BIGINT NOT NULL,
    answer {bytes} NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (who, key)
);
CREATE INDEX idempotency_created_at ON idempotency (created_at);
CREATE TABLE device (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    secret_sha256 TEXT NOT NULL,
    join_token TEXT NOT NULL,
    labels TEXT NOT NULL,
    capabilities TEXT NOT NULL,
    running TEXT NOT NULL,
    enrolled_at DOUBLE PRECISION NOT NULL,
    last_seen_at DOUBLE PRECISION,
    next_sync_s DOUBLE PRECISION NOT NULL,
    clock_offset_s DOUBLE PRECISION,
    row_version BIGINT NOT NULL
);
CREATE INDEX device_secret_sha256 ON device (secret_sha256);
CREATE TABLE anchor (
    device TEXT NOT NULL,
    boot TEXT NOT NULL,
    boot_ns BIGINT NOT NULL,
    device_wall_s DOUBLE PRECISION NOT NULL,
    received_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (device, boot)
) {clustered};
CREATE TABLE watermark (
    device TEXT NOT NULL,
    stream TEXT NOT NULL,
    epoch TEXT NOT NULL,
    seq BIGINT NOT NULL,
    PRIMARY KEY (device, stream, epoch)
) {clustered};
CREATE TABLE record (
    device TEXT NOT NULL,
    stream TEXT NOT NULL,
    epoch TEXT NOT NULL,
    seq BIGINT NOT NULL,
    type TEXT NOT NULL,
    boot TEXT NOT NULL,
    boot_ns BIGINT NOT NULL,
    at DOUBLE PRECISION,
    received_at DOUBLE PRECISION NOT NULL,
    payload TEXT NOT NULL,
    PRIMARY KEY (device, stream, epoch, seq)
) {clustered};
CREATE TABLE refused_record (
    device TEXT NOT NULL,
    stream TEXT NOT NULL,
    epoch TEXT NOT NULL,
    seq BIGINT NOT NULL,
    reason TEXT NOT NULL,
    received_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (device, stream, epoch, seq)
) {clustered};
CREATE TABLE gap (
    device TEXT NOT NULL,
    stream TEXT NOT NULL,
    epoch TEXT NOT NULL,
    from_seq BIGINT NOT NULL,
    to_seq BIGINT NOT NULL,
    reason TEXT,
    count BIGINT NOT NULL,
    received_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (device, stream, epoch, from_seq, to_seq)
) {clustered};
CREATE TABLE drift_event (
    id {id},
    device TEXT NOT NULL,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    monitor TEXT NOT NULL,
    detector TEXT NOT NULL,
    signal TEXT NOT NULL,
    statistic DOUBLE PRECISION,
    threshold DOUBLE PRECISION,
    "window" BIGINT NOT NULL,
    suspect BIGINT NOT NULL,
    at DOUBLE PRECISION,
    received_at DOUBLE PRECISION NOT NULL,
    histogram TEXT,
    p_value DOUBLE PRECISION,
    arl0 DOUBLE PRECISION,
    monitors BIGINT NOT NULL
);
CREATE INDEX driftevent_device_id ON drift_event (device, id);
CREATE INDEX driftevent_model_id ON drift_event (model, id);
CREATE TABLE summary (
    id {id},
    device TEXT NOT NULL,
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    at DOUBLE PRECISION,
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
    payload TEXT NOT NULL
);
CREATE INDEX summary_device_model_id ON summary (device, model, id);
CREATE TABLE label (
    id {id},
    device TEXT NOT NULL,
    prediction TEXT NOT NULL,
    label TEXT NOT NULL,
    at DOUBLE PRECISION,
    received_at DOUBLE PRECISION NOT NULL
);
CREATE INDEX label_device_prediction ON label (device, prediction);
CREATE TABLE model_version (
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size BIGINT NOT NULL,
    root TEXT NOT NULL,
    release TEXT NOT NULL,
    manifest TEXT NOT NULL,
    uploaded_at DOUBLE PRECISION NOT NULL,
    uploaded_by TEXT NOT NULL,
    PRIMARY KEY (model, version)
);
CREATE INDEX modelversion_sha256 ON model_version (sha256);
CREATE TABLE deployment (
    id {id},
    model TEXT NOT NULL,
    version TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    selector TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    created_by TEXT NOT NULL
);
CREATE INDEX deployment_model_state ON deployment (model, state);
CREATE TABLE device_deployment (
    deployment BIGINT NOT NULL,
    device TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (deployment, device)
) {clustered};
CREATE TABLE command (
    id BIGINT NOT NULL PRIMARY KEY,
    selector TEXT NOT NULL,
    name TEXT NOT NULL,
    args TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    created_by TEXT NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL
);
CREATE TABLE device_command (
    command BIGINT NOT NULL,
    device TEXT NOT NULL,
    state TEXT NOT NULL,
    detail TEXT NOT NULL,
    result TEXT,
    expires_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (command, device)
) {clustered};
CREATE INDEX devicecommand_device_state_command ON device_command (device, state, command);
CREATE TABLE config_version (
    version BIGINT NOT NULL PRIMARY KEY,
    scope TEXT NOT NULL,
    settings TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    created_by TEXT NOT NULL
);
CREATE INDEX configversion_scope_version ON config_version (scope, version);
CREATE TABLE device_config (
    device TEXT NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL
);
CREATE TABLE blob (
    device TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size BIGINT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (device, sha256)
) {clustered};
CREATE INDEX blob_sha256 ON blob (sha256);
"""
TABLES = (
    "blob",
    "device_config",
    "config_version",
    "device_command",
    "command",
    "device_deployment",
    "deployment",
    "model_version",
    "label",
    "summary",
    "drift_event",
    "gap",
    "refused_record",
    "record",
    "watermark",
    "anchor",
    "device",
    "idempotency",
    "audit",
    "session",
    "join_token",
    "user_token",
    "meta",
)


def up(migrator: Any, db: Any) -> None:
    """Make the tables."""
    run_ddl(db, UP)


def down(migrator: Any, db: Any) -> None:
    """Drop them, with everything in them."""
    for table in TABLES:
        run_ddl(db, f"DROP TABLE {table}")
