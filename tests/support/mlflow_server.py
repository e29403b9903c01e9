"""A real `mlflow server` on a free port of this machine, from the environment that scripts/mlflow_server.sh installs.

It is asked over its own REST interface here, never through the client that the server under test uses.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "scripts" / "mlflow_server.sh"
PYTHON = ROOT / "build" / "mlflow-env" / "bin" / "python"
READY_S = 120.0


def installed() -> bool:
    """Whether the environment is there."""
    return (PYTHON.parent.parent / ".ready").is_file()


def free_port() -> int:
    """A port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class MlflowServer:
    """An MLflow server with a database of its own; it can be killed and started again.

    Args:
        environment: for its artifacts: MLFLOW_ARTIFACTS, MLFLOW_S3_ENDPOINT_URL and AWS_*.
    """

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="tinymlops-mlflow-"))
        self.environment = dict(environment or {})
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, also after `kill`, and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["bash", str(SCRIPT), str(self.port), str(self._folder)],
                stdout=log, stderr=log, env={**os.environ, **self.environment},
                start_new_session=True,  # it starts processes of its own, which end with it
            )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/health", timeout=2).close()
                return
            time.sleep(0.2)
        raise TimeoutError((self._folder / "log").read_text()[-5000:])

    def kill(self) -> None:
        """End it, and all that it started, as a crash would."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)

    def close(self) -> None:
        """Stop it and remove its folder."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> MlflowServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # What is there ----------------------------------------------------------------------------------------

    def ask(self, path: str, body: dict[str, object] | None = None, **query: object) -> dict[str, Any]:
        """GET, or POST with a body."""
        url = f"{self.url}/api/2.0/mlflow/{path}"
        if query:
            url += f"?{urllib.parse.urlencode(query)}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.loads(answer.read())
        assert isinstance(found, dict)
        return found

    def versions(self, model: str) -> dict[str, list[dict[str, Any]]]:
        """The versions of a registered model, by TinySphere's name of them; each with its tags as a table."""
        found: dict[str, list[dict[str, Any]]] = {}
        for item in self.ask("model-versions/search", filter=f"name='{model}'", max_results=1000).get(
            "model_versions", []
        ):
            item["tags"] = {tag["key"]: tag["value"] for tag in item.get("tags", [])}
            found.setdefault(item["tags"].get("tinysphere.version", ""), []).append(item)
        return found

    def aliases(self, model: str) -> dict[str, str]:
        """The aliases of a registered model."""
        found = self.ask("registered-models/get", name=model)["registered_model"].get("aliases", [])
        return {item["alias"]: item["version"] for item in found}

    def set_alias(self, model: str, alias: str, number: str) -> None:
        """As a person does in MLflow's pages."""
        self.ask("registered-models/alias", {"name": model, "alias": alias, "version": number})

    def remove_alias(self, model: str, alias: str) -> None:
        """As a person does in MLflow's pages."""
        url = f"{self.url}/api/2.0/mlflow/registered-models/alias"
        data = json.dumps({"name": model, "alias": alias}).encode()
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method="DELETE")
        urllib.request.urlopen(request, timeout=30).close()

    def runs(self, model: str) -> dict[str, list[dict[str, Any]]]:
        """The runs of a model's metrics, by version."""
        try:
            experiment = self.ask("experiments/get-by-name", experiment_name=f"tinysphere/{model}")["experiment"]
        except urllib.error.HTTPError as error:
            error.close()
            assert error.code == 404
            return {}
        runs = self.ask("runs/search", {"experiment_ids": [experiment["experiment_id"]], "max_results": 1000})
        found: dict[str, list[dict[str, Any]]] = {}
        for item in runs.get("runs", []):
            tags = {tag["key"]: tag["value"] for tag in item["data"].get("tags", [])}
            found.setdefault(tags["tinysphere.version"], []).append(item)
        return found

    def history(self, run: str, metric: str) -> list[tuple[int, int, float]]:
        """Every value of a metric: (step, time, value)."""
        found = self.ask("metrics/get-history", run_id=run, metric_key=metric, max_results=25000).get("metrics", [])
        return sorted((int(item["step"]), int(item["timestamp"]), float(item["value"])) for item in found)


class Cutting:
    """A proxy before a server that loses what it is told to: the answer of the next request whose address has a word.

    The request arrives, its answer does not: what a connection that breaks in between looks like to who asked.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.word = b""
        self.cut = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(peer,), daemon=True).start()

    def _pass(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            head = self._read_request(peer)
            is_cut = bool(self.word) and self.word in head.split(b"\r\n", 1)[0]
            if is_cut:
                self.word = b""
            # One request a connection: what is asked next comes anew.
            head = head.replace(b"Connection: keep-alive", b"Connection: close")
            with socket.create_connection(("127.0.0.1", self._to), timeout=30) as server:
                server.sendall(head)
                while piece := server.recv(65536):
                    if not is_cut:
                        peer.sendall(piece)
            self.cut += is_cut

    @staticmethod
    def _read_request(peer: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = peer.recv(65536)
            if not piece:
                raise OSError("no request")
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
        while len(body) < int(lengths[0] if lengths else 0):
            body += peer.recv(65536)
        return head + b"\r\n\r\n" + body

    def close(self) -> None:
        """End it."""
        self._listener.close()


@contextlib.contextmanager
def cutting(server: MlflowServer) -> Iterator[Cutting]:
    """A proxy before a server."""
    made = Cutting(server.port)
    try:
        yield made
    finally:
        made.close()
