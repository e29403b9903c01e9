"""A TinySphere in process, below and above HTTP, with what tests put into it."""

from __future__ import annotations

import functools
import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clocks import ManualClock
from models import make_package, make_signer
from starlette.testclient import TestClient
from tinylcm.wire import Anchor, SyncRequest, SyncResponse, encode
from tinysphere import auth, deployments, fleet, ingest, registry, trust
from tinysphere.app import create_app
from tinysphere.config import ServerConfig
from tinysphere.db import Database, close_database, open_database
from tinysphere.schema import Schema
from tinysphere.store import FolderStore

EPOCH = "00000000000000aa"
NOW = 1_800_000_000.0


class Switch:
    """Which database the rooms of the next test stand on: see tests/server/conftest.py."""

    def __init__(self) -> None:
        self.url: Callable[[], str] = lambda: ""  # SQLite, in the test's folder


DATABASE = Switch()


@functools.cache
def _migrated() -> bytes:
    """SQLite's file with the tables and nothing in them: taking every step anew for every test takes minutes."""
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(Path(folder) / "tinysphere.db")
        Schema(database).up()
        close_database(database)
        return (Path(folder) / "tinysphere.db").read_bytes()


def database_in(folder: Path) -> str:
    """The address of the database for a room; "" for SQLite's file in the folder, which is there then."""
    url, path = DATABASE.url(), folder / "tinysphere.db"
    if not url and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(_migrated())
    return url


@dataclass
class Kit:
    """One server's rooms on a folder."""

    folder: Path
    db: Database
    store: FolderStore
    clock: ManualClock

    def pin(self) -> str:
        """Trust the tests' publisher."""
        return trust.pin(self.db, make_signer().keyset.root, "test", NOW)

    def token(self, role: str = "admin", **changes: object) -> str:
        return auth.create_token(self.db, auth.TokenRequest(role, **changes), "test", self.clock.wall_s()).token  # type: ignore[arg-type]

    def join(self, uses: int = 1, ttl_s: int = 3600) -> str:
        return auth.create_join_token(self.db, uses, ttl_s, "test", self.clock.wall_s())

    def enrol(self, name: str = "watch", secret: str = "11" * 32, token: str | None = None) -> str:
        request = fleet.EnrolRequest(token or self.join(), name, hashlib.sha256(secret.encode()).hexdigest())
        return fleet.enrol(self.db, request, self.clock.wall_s())[0].device_id

    def upload(self, data: bytes | None = None, name: str = "gesture") -> registry.ModelVersionView:
        self.pin()
        return self.register(make_package() if data is None else data, name=name)

    def register(
        self, data: bytes, limits: registry.ProbeLimits | None = None, name: str = "gesture"
    ) -> registry.ModelVersionView:
        """Upload a package of whoever made it; by default it is not tried."""
        upload = self.store.begin(1 << 20)
        try:
            upload.write(data)
            return registry.add_version(self.db, self.store, limits, name, upload, "test", self.clock.wall_s())[0]
        finally:
            upload.close()

    def deploy(
        self, version: str = "1.0.0", selector: str = "all", model: str = "gesture"
    ) -> deployments.DeploymentView:
        request = deployments.DeploymentRequest(model, version, selector)
        now_s = self.clock.wall_s()
        return self.db.write(lambda connection: deployments.create_in(connection, request, "test", now_s))

    def sync(self, device: str, **changes: object) -> SyncResponse:
        return ingest.sync(self.db, device, request(**changes), self.clock.wall_s(), 30.0)


def digest_of(secret: str) -> str:
    """What the server keeps of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def request(**changes: object) -> SyncRequest:
    """A sync request with these fields."""
    fields: dict[str, object] = {"wire": 1, "boot": "b1", "anchor": Anchor(10_000_000_000, NOW), **changes}
    return SyncRequest(**fields)  # type: ignore[arg-type]


def record(
    seq: int, type: str = "label", payload: Mapping[str, object] | None = None, **changes: object
) -> dict[str, Any]:
    """A record in its envelope."""
    body = {"prediction": f"p-{seq}", "label": "walking"} if payload is None else dict(payload)
    return {
        "type": type, "epoch": EPOCH, "seq": seq, "boot": "b1", "boot_ns": 4_000_000_000, "payload": body, **changes,
    }  # fmt: skip


def alarm(**changes: object) -> dict[str, object]:
    """The payload of an alarm."""
    return {
        "model": "gesture", "version": "1.0.0", "monitor": "input", "detector": "BinnedKS", "signal": "x",
        "statistic": 0.6, "threshold": 0.5, "window": 40, "suspect": 10,
        "histogram": {"reference": [1, 1], "current": [0, 2], "edges": [0, 1, 2], "labels": []}, **changes,
    }  # fmt: skip


def signal(values: list[float], accuracy: float = 0.01) -> dict[str, object]:
    """A signal's summary as a device makes it."""
    from tinylcm.stats import Summary

    summary = Summary(accuracy)
    for value in values:
        summary.update(value)
    buckets = [list(item) for item in summary.sketch.items()]
    return {
        "count": summary.moments.count, "mean": summary.moments.mean, "m2": summary.moments.m2,
        "min": min(values), "max": max(values),
        "sketch": {"accuracy": accuracy, "zeros": summary.sketch.zeros, "buckets": buckets},
    }  # fmt: skip


def summary(latency: list[float], confidence: list[float], **changes: object) -> dict[str, object]:
    """The payload of a summary."""
    return {
        "model": "gesture", "version": "1.0.0", "start_ns": 1, "end_ns": 2, "windows": len(latency),
        "latency_us": signal(latency), "confidence": signal(confidence), "labels": {"a": len(latency)},
        "errors": 0, "dropped_samples": 1, "rss_bytes": 1000, "cpu_percent": 1.5, **changes,
    }  # fmt: skip


MINUTE_NS = 60_000_000_000


def minute(number: int, values: list[float], **changes: object) -> dict[str, object]:
    """The payload of a summary of one minute since boot, which may have seen no window."""
    times = {"start_ns": number * MINUTE_NS, "end_ns": (number + 1) * MINUTE_NS, **changes}
    if values:
        return summary(values, [value / 1000 for value in values], **times)
    nothing = {"count": 0, "mean": None, "m2": 0.0, "min": None, "max": None}
    signals = {
        key: {**nothing, "sketch": {"accuracy": 0.01, "zeros": 0, "buckets": []}}
        for key in ("latency_us", "confidence")
    }
    return {**summary([1.0], [1.0], **times), "windows": 0, "labels": {"a": 0}, **signals}


def make_kit(folder: Path, **limits: object) -> Kit:
    """Open the rooms on a folder."""
    db = Database(database_in(folder) or folder / "tinysphere.db", **limits)  # type: ignore[arg-type]
    return Kit(folder, db, FolderStore(folder / "blobs"), ManualClock(wall_s=NOW - 1000))


@dataclass
class Web:
    """The application in process, with its rooms."""

    client: TestClient
    kit: Kit

    def bearer(self, token: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {token}"}

    def enrol(self, name: str = "watch", secret: str = "22" * 32) -> tuple[str, dict[str, str]]:
        device = self.kit.enrol(name, secret)
        return device, self.bearer(f"{device}.{secret}")

    def sync_body(self, **changes: object) -> bytes:
        return encode(request(**changes))


def make_web(folder: Path, **changes: object) -> Web:
    """An application on a folder; use its client as a context manager."""
    clock = ManualClock(wall_s=NOW - 1000)
    app = create_app(ServerConfig(folder, database=database_in(folder), **changes), clock)  # type: ignore[arg-type]
    server = app.state.server
    kit = Kit(folder, server.db, server.store, clock)
    return Web(TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False), kit)
