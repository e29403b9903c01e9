"""Real servers for the tests: in process, and as a child process on a loopback socket."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
from clocks import ManualClock
from starlette.testclient import TestClient
from tinylcm import wire
from tinylcm.types import Record
from tinysphere import auth
from tinysphere.app import create_app
from tinysphere.config import ServerConfig

COMMAND = (sys.executable, "-m", "tinysphere.cli")
START_S = 30
STOP_S = 20


def run_cli(
    *arguments: object, timeout_s: float = 60, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `tinysphere` as a person would."""
    command = [*COMMAND, *(str(item) for item in arguments)]
    known = {name: value for name, value in os.environ.items() if not name.startswith("TINYSPHERE_")}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False, env={**known, **(environment or {})}
    )


def make_token(data: Path, role: str = "admin") -> str:
    """A user token, made at the command line."""
    result = run_cli("token", "create", "--data", data, "--role", role, "--json")
    assert result.returncode == 0, result.stderr
    return str(json.loads(result.stdout)["token"])


@dataclass
class Child:
    """A running `tinysphere serve`."""

    url: str
    token: str
    data: Path
    process: subprocess.Popen[str]
    log: Path

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def stop(self) -> int:
        """Send SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


@contextmanager
def served(data: Path, *options: str, role: str = "admin") -> Iterator[Child]:
    """Serve a folder by a child process on a free port; its stderr goes to a file beside the folder."""
    token, log = make_token(data, role), data.parent / f"{data.name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--data", str(data), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("TinySphere listens on "), (line, log.read_text())
            yield Child(line.split()[-1], token, data, process, log)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            assert process.stdout is not None
            process.stdout.close()


@dataclass
class Inside:
    """An application in this process."""

    http: TestClient
    clock: ManualClock
    data: Path
    config: ServerConfig
    _tokens: dict[str, str] = field(default_factory=dict)

    @property
    def db(self) -> Any:
        """Its database."""
        return self.http.app.state.server.db  # type: ignore[attr-defined]

    def token(self, role: str = "admin") -> str:
        """The token of a user with this role, the same one each time."""
        if role not in self._tokens:
            request = auth.TokenRequest(role, role)
            self._tokens[role] = auth.create_token(self.db, request, "test", self.clock.wall_s()).token
        return self._tokens[role]

    def as_user(self, role: str = "admin", **more: str) -> dict[str, str]:
        """Headers of that user."""
        return {"Authorization": f"Bearer {self.token(role)}", **{k.replace("_", "-"): v for k, v in more.items()}}

    def join_token(self, uses: int = 1, ttl_s: int = 3600) -> str:
        """A token that devices enrol with."""
        return auth.create_join_token(self.db, uses, ttl_s, "test", self.clock.wall_s())

    def enrol(self, name: str = "watch", secret: str = "s" * 43) -> tuple[str, dict[str, str]]:
        """A new device: its id and its headers."""
        body = enrol_body(self.join_token(), name, secret)
        answer = self.http.post("/api/v1/devices/enrol", json=body)
        assert answer.status_code == 201, answer.text
        device = answer.json()["device_id"]
        return device, {"Authorization": f"Bearer {device}.{secret}"}

    def upload(self, package: bytes, name: str = "gesture", role: str = "admin") -> Any:
        """Upload a package."""
        headers = self.as_user(role, Content_Type="application/octet-stream")
        return self.http.post(f"/api/v1/models/{name}/versions", content=package, headers=headers)


def enrol_body(token: str, name: str = "watch", secret: str = "s" * 43) -> dict[str, object]:
    """The body of an enrolment."""
    digest = hashlib.sha256(secret.encode()).hexdigest()
    return {"token": token, "name": name, "secret_sha256": digest, "capabilities": {}}


def record(seq: int, *, epoch: str = "0" * 16, kind: str = "label", **payload: object) -> dict[str, object]:
    """The JSON of a record of a device."""
    values = payload or {"prediction": seq, "label": "walk"}
    made = Record(kind, epoch, seq, "boot-1", seq * 1000, values)
    return dict(wire.record_to_json(made))


def sync_body(events: Sequence[object] = (), **more: Any) -> bytes:
    """The body of a sync."""
    anchor = wire.Anchor(1_000_000, 1_800_000_000.0)
    return wire.encode(wire.SyncRequest(wire.WIRE_VERSION, "boot-1", anchor, events=tuple(events), **more))


@contextmanager
def inside(data: Path, *, raises: bool = True, **config: Any) -> Iterator[Inside]:
    """An application in this process, its publisher `models.make_signer()` trusted."""
    settings, clock = ServerConfig(data, **config), ManualClock()
    models.write_keys(data / "roots", models.make_signer())
    app = create_app(settings, clock)
    with TestClient(app, base_url="http://127.0.0.1:8080", raise_server_exceptions=raises) as http:
        yield Inside(http, clock, data, settings)
