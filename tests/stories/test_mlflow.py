"""MLflow beside the server: the real one, with its artifacts in a real S3 server, stopped and started again."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fleet import Sphere, run_cli
from kit import Kit, make_web, record, summary
from mlflow_server import PYTHON, MlflowServer, installed
from models import make_package, make_signer
from tinylcm.keys import write_public
from tinylcm.wire import Anchor
from tinysphere import tracking
from tinysphere.db import rows
from tinysphere.fleetmetrics import DAY_S, HOUR_S
from weed import ACCESS, SECRET, Weed

pytestmark = [pytest.mark.mlflow, pytest.mark.source_tree]
BOOT_NS = 10_000_000_000


@pytest.fixture(scope="module")
def weed() -> Iterator[Weed]:
    with Weed() as running:
        yield running


@pytest.fixture(scope="module")
def mlflow(weed: Weed) -> Iterator[MlflowServer]:
    if not installed():
        assert os.environ.get("CI") != "true", "CI installs MLflow: see .ci/run"
        pytest.skip("MLflow's server is not installed: bash scripts/mlflow_server.sh install")
    weed.bucket("mlflow")
    with MlflowServer({**s3_of(weed), "MLFLOW_ARTIFACTS": "s3://mlflow/artifacts"}) as running:
        yield running


def s3_of(weed: Weed) -> dict[str, str]:
    return {
        "MLFLOW_S3_ENDPOINT_URL": f"http://{weed.host}",
        "AWS_ACCESS_KEY_ID": ACCESS,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def test_a_scientist_finds_the_version_in_mlflow_and_downloads_it_there(
    tmp_path: Path, weed: Weed, mlflow: MlflowServer
) -> None:
    """From `tinysphere upload` to MLflow's own `artifacts download`, and over a crash of MLflow."""
    bucket = weed.bucket("models-story")
    server = Sphere(tmp_path / "data", environment=weed.environment, arguments=("--s3", bucket, "--mlflow", mlflow.url))
    server.start()
    try:
        write_public(tmp_path / "root.pub", make_signer().keyset.root)
        server.trust(tmp_path / "root.pub")
        first = upload(server, tmp_path, "1.0.0")
        server.client.set_alias("story", "champion", "1.0.0")
        until(lambda: waiting(server) == 0, "it is told")
        (version,) = mlflow.versions("story")["1.0.0"]
        assert version["source"] == f"s3://models-story/{first[:2]}/{first}"
        assert version["tags"]["tinysphere.sha256"] == first and mlflow.aliases("story") == {"champion": "1"}
        assert hashlib.sha256(download(mlflow, tmp_path, version["source"])).hexdigest() == first
        mlflow.kill()
        upload(server, tmp_path, "2.0.0")
        server.client.set_alias("story", "champion", "2.0.0")
        until(lambda: bool(status(server)["problem"]), "the problem is told")
        assert waiting(server) == 2 and server.client.model("story")["name"] == "story"
        server.kill()  # and this one too, with what waits
        server.start()
        mlflow.start()
        until(lambda: waiting(server) == 0, "it is told after all")
        assert {name: len(found) for name, found in mlflow.versions("story").items()} == {"1.0.0": 1, "2.0.0": 1}
        assert mlflow.aliases("story") == {"champion": "2"}
    finally:
        server.stop()


def upload(server: Sphere, folder: Path, version: str) -> str:
    path = folder / f"story-{version}.tlm"
    path.write_bytes(make_package("story", version, bias=float(version[0])))
    answer = run_cli("tinysphere.cli", "upload", str(path), "--server", server.url, "--token", server.token)
    return str(answer["sha256"])


def status(server: Sphere) -> dict[str, object]:
    return run_cli("tinysphere.cli", "mlflow", "status", "--data", str(server.data))


def waiting(server: Sphere) -> int:
    found = status(server)
    return int(str(found["versions"])) + int(str(found["aliases"]))


def download(mlflow: MlflowServer, folder: Path, uri: str) -> bytes:
    """As a person does with MLflow's command."""
    done = subprocess.run(
        [PYTHON, "-m", "mlflow", "artifacts", "download", "--artifact-uri", uri, "--dst-path", str(folder / "got")],
        capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, **mlflow.environment, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (found,) = [path for path in (folder / "got").rglob("*") if path.is_file()]
    return found.read_bytes()


HOURS_BEFORE, HOURS_AWAY = 3, 4


def test_an_hour_without_mlflow_loses_nothing_and_doubles_nothing(
    tmp_path: Path, weed: Weed, mlflow: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server in process, so that its hours pass when the test says so; the tries are by the real clock."""
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    web = make_web(tmp_path, mlflow=mlflow.url, mlflow_every_s=0.3, s3=weed.bucket("models-hours"))
    kit = web.kit
    kit.clock.jump_wall(DAY_S * 20_000 - kit.clock.wall_s())
    kit.pin()
    begin, seq = int(kit.clock.wall_s()) // HOUR_S, iter(range(1, 1000))
    admin = web.bearer(kit.token())
    devices = [web.enrol(f"watch-{i}", f"{i}{i}" * 32) for i in (1, 2)]
    url = "/api/v1/models/hours"

    def hour(versions: list[str]) -> None:
        """An hour in which everything happens: every request of it succeeds."""
        for _, headers in devices:
            bodies = [summary([100.0] * 5, [0.5] * 5, model="hours", version=version) for version in versions]
            details = [record(next(seq), "summary", body, boot_ns=BOOT_NS) for body in bodies]
            sent = web.sync_body(anchor=Anchor(BOOT_NS, kit.clock.wall_s()), details=details)
            answer = web.client.post(
                "/api/v1/sync", content=sent, headers={**headers, "Content-Type": "application/json"}
            )
            assert answer.status_code == 200, answer.text
        kit.clock.advance(HOUR_S)

    def register(version: str) -> None:
        data = make_package("hours", version, bias=float(version[0]))
        assert web.client.post(f"{url}/versions", content=data, headers=admin).status_code == 201
        answer = web.client.put(  # it replaces what is there: said, as the server asks
            f"{url}/aliases/champion", json={"version": version}, headers={**admin, "If-Match": "*"}
        )
        assert answer.status_code == 200, answer.text

    with web.client:
        register("1.0.0")
        for _ in range(HOURS_BEFORE):
            hour(["1.0.0"])
        kit.clock.advance(600)
        until(lambda: points(mlflow, "1.0.0") == HOURS_BEFORE, "the hours are told")
        mlflow.kill()
        register("2.0.0")
        for _ in range(HOURS_AWAY):
            hour(["1.0.0", "2.0.0"])
        until(lambda: tracking.status(kit.db).points >= 2 * (HOURS_AWAY - 1), "the hours are noted")
        until(lambda: tracking.status(kit.db).attempts >= 2, "it is tried more than once")
        mlflow.start()
        kit.clock.advance(600)
        until(lambda: points(mlflow, "2.0.0") == HOURS_AWAY and not waits(kit), "all is told", 120.0)
        expected = {version: windows_of(kit, version) for version in ("1.0.0", "2.0.0")}

    for version, hours in (("1.0.0", HOURS_BEFORE + HOURS_AWAY), ("2.0.0", HOURS_AWAY)):
        (run,) = mlflow.runs("hours")[version]
        history = mlflow.history(run["info"]["run_id"], "windows")
        assert len(history) == hours, "each hour has one value"
        assert {step: value for step, _, value in history} == expected[version]
        assert sum(value for _, _, value in history) == hours * 10
    assert begin in expected["1.0.0"]
    registered = {name: len(found) for name, found in mlflow.versions("hours").items()}
    assert registered == {"1.0.0": 1, "2.0.0": 1} and mlflow.aliases("hours") == {"champion": "2"}


def points(mlflow: MlflowServer, version: str) -> int:
    """How many values MLflow has of a version's windows."""
    runs = mlflow.runs("hours").get(version, [])
    return sum(len(mlflow.history(run["info"]["run_id"], "windows")) for run in runs)


def waits(kit: Kit) -> bool:
    """Whether something waits still."""
    found = tracking.status(kit.db)
    return bool(found.points or found.versions or found.aliases)


def windows_of(kit: Kit, version: str) -> dict[int, float]:
    """What this server counted, by hours since 1970."""
    sql = "SELECT at, SUM(windows) AS n FROM rollup WHERE step = 3600 AND version = ? GROUP BY at"
    found = kit.db.read(lambda connection: rows(connection, sql, (version,)))
    return {item["at"] // HOUR_S: float(item["n"]) for item in found}
