"""A real TinySphere in a child process and real devices, for stories."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinylcm.config import DeviceConfig, ServerConfig, TrialConfig
from tinylcm.device import enrol
from tinylcm.keys import init_keys
from tinysphere.client import Client


def run_cli(module: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """Run one of our commands with --json; its answer."""
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert isinstance(answer, dict)
    return answer


def run(*arguments: str, code: int = 0, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `tinysphere` as a person does: its exit code must be the one given, and there is no traceback."""
    result = subprocess.run(
        [sys.executable, "-m", "tinysphere.cli", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    return result


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A server's certificate for this machine that is its own authority, and its key."""
    certificate, key = folder / "server.pem", folder / "server.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return certificate, key


@dataclass
class Sphere:
    """A server of our own on loopback; it can be killed and started again on the same folder and port."""

    data: Path
    port: int = 0
    url: str = ""
    token: str = ""
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    arguments: tuple[str, ...] = ()
    process: subprocess.Popen[str] | None = field(default=None, repr=False)
    _client: Client | None = field(default=None, repr=False)

    def start(self) -> Sphere:
        with (self.data.parent / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tinysphere.cli",
                    "serve",
                    "--port",
                    str(self.port),
                    "--data",
                    str(self.data),
                    *self.arguments,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **self.environment},
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("TinySphere listens on "), (self.data.parent / "server.log").read_text()
        self.url = line.split()[-1]
        self.port = int(self.url.rsplit(":", 1)[1])
        if not self.token:
            arguments = ("token", "create", "--data", str(self.data), "--role", "admin")
            self.token = run_cli("tinysphere.cli", *arguments, **self.environment)["token"]
        return self

    def kill(self) -> None:
        """As a power cut does it."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None

    def stop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = None

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.url, self.token)
        return self._client

    def trust(self, root: Path) -> None:
        """Let a publisher's packages be uploaded."""
        run_cli("tinysphere.cli", "trust", str(root), "--data", str(self.data), **self.environment)

    def join(self, root: Path, uses: int = 1) -> str:
        answer = run_cli(
            "tinysphere.cli", "join", "create", "--data", str(self.data), "--url", self.url,
            "--root", str(root), "--uses", str(uses), **self.environment,
        )  # fmt: skip
        return str(answer["join"])


@contextmanager
def sphere(folder: Path) -> Iterator[Sphere]:
    """Run a server until the end of the test."""
    server = Sphere(folder / "server").start()
    try:
        yield server
    finally:
        server.stop()


def make_keys(folder: Path) -> Path:
    """A publisher's keys; the folder."""
    init_keys(folder)
    return folder


def build_activity(activity: Path, keys: Path, output: Path) -> Path:
    """The example's package, signed."""
    run_cli(
        "tinylcm.cli", "package", "build", str(activity / "model.onnx"), "--manifest", str(activity / "model.toml"),
        "--key", str(keys / "release.key"), "-o", str(output),
    )  # fmt: skip
    return output


def device_config(folder: Path, **server: float) -> DeviceConfig:
    """A device that syncs when it is told to, unless an interval is given."""
    limits = {"sync_interval_s": 3600.0, "timeout_s": 10.0, "backoff_min_s": 0.05, "backoff_max_s": 0.2, **server}
    return DeviceConfig(
        folder,
        name="watch-01",
        metrics_interval_s=0.2,
        server=ServerConfig(**limits),  # type: ignore[arg-type]
        trial=TrialConfig(windows=5),
    )


__all__ = ["Sphere", "build_activity", "device_config", "enrol", "make_keys", "run_cli", "sphere"]
