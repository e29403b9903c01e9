"""Every limit of the server, with its unit in its name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tinylcm.manifest import PACKAGE_BYTES_MAX

from .retention import Keep

DATABASE_FILE: Final = "tinysphere.db"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What `create_app` is built from.

    Attributes:
        data: folder of the database and the blobs; root keys in its `roots` are pinned at the start.
        database: address of a PostgreSQL database instead of SQLite's file in `data`; empty for that one.
        s3: address of a bucket for the blobs instead of a folder in `data`; empty for that one.
        insecure: the object store may be reached by plain http on another machine.
        alone: no other process uses `data` now, so what broken uploads have left there may be removed.
        writer_queue_max: jobs that may wait for the writer; more are answered with 503.
        writer_group_max: jobs in one commit.
        writer_timeout_s: how long a request waits for its commit.
        json_bytes_max, sync_bytes_max, package_bytes_max: bodies of ordinary requests, of syncs and of uploads.
        blob_bytes_max, device_blobs_bytes_max: one blob that a device uploads, and all of one device.
        device_requests_per_s, user_requests_per_s: how often one device and one person may ask, after `burst` requests.
        failures_per_s: how often an address may fail to say who it is, after a twentieth of `burst`, 5 at least.
        probe_timeout_s, probe_memory_bytes: of the child process that tries an upload; 0 seconds for none.
        next_sync_s: when devices are told to come back.
        session_s: life of a dashboard session.
        page_items_max: items in one page of a list.
        connections_max: open connections and tasks, as far as the process may open files; more are answered with 503.
        bodies_bytes_max: of all bodies that are being read into memory, without the first 16 KiB of each.
        keep_alive_s: how long an idle connection is kept.
        header_timeout_s: how long a request may take to send its line and headers; 408 and the end of it after that.
        body_timeout_s: how long a body may pause before its request is given up.
        stop_s: how long running requests may take after SIGTERM.
        keep: how long what the devices have told is kept, and how much of it.
        job_lease_s: how long a job may be silent until another process takes it up.
        retention_every_s: how often what is too old is looked for.
        events_connections_max, events_connections_each_max: streams of `GET /api/v1/events` of one process, and of one
            person; more are refused with 503 and 429.
        events_poll_s, events_heartbeat_s, events_life_s: how often a stream looks for news, says that it lives
            (and sees whether its token still holds), and ends, so that the follower comes again.
        mlflow: address of an MLflow server that mirrors this one; empty for none.
        mlflow_promote: whether an alias that is moved in MLflow moves here too.
        mlflow_every_s: how often MLflow is told what is new.
        url: where people reach this server; MLflow names packages by it that are in no bucket.
        ca_pem: PEM of the authority that devices pin, or None.
        secure_cookies: True when the server is reached by TLS.
    """

    data: Path
    database: str = ""
    alone: bool = True
    s3: str = ""
    insecure: bool = False
    writer_queue_max: int = 2000
    writer_group_max: int = 200
    writer_timeout_s: float = 30.0
    json_bytes_max: int = 1 << 20
    sync_bytes_max: int = 4 << 20
    package_bytes_max: int = PACKAGE_BYTES_MAX
    blob_bytes_max: int = 16 << 20
    device_blobs_bytes_max: int = 1 << 30
    device_requests_per_s: float = 50.0
    user_requests_per_s: float = 50.0
    failures_per_s: float = 1.0
    burst: int = 1000
    probe_timeout_s: float = 60.0
    probe_memory_bytes: int = 4 << 30
    next_sync_s: float = 30.0
    session_s: int = 12 * 3600
    page_items_max: int = 500
    connections_max: int = 20_000
    bodies_bytes_max: int = 64 << 20
    keep_alive_s: int = 75
    stop_s: int = 8
    header_timeout_s: float = 15.0
    body_timeout_s: float = 30.0
    keep: Keep = field(default_factory=Keep)
    job_lease_s: float = 20.0
    retention_every_s: float = 3600.0
    events_connections_max: int = 64
    events_connections_each_max: int = 8
    events_poll_s: float = 1.0
    events_heartbeat_s: float = 15.0
    events_life_s: float = 3600.0
    mlflow: str = ""
    mlflow_promote: bool = False
    mlflow_every_s: float = 30.0
    url: str = ""
    ca_pem: bytes | None = None
    secure_cookies: bool = False
