"""What machines ask: ready, and the counters."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from kit import Web, alarm, make_web, record
from tinysphere.errors import StorageError
from tinysphere.routes import machines
from tinysphere.sql import Connection

LINE = re.compile(r'(# (HELP|TYPE) [a-z_]+ .+|[a-z_]+({[a-z]+="[^"]*"(,[a-z]+="[^"]*")*})? -?[0-9.e+-]+)')


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = make_web(tmp_path, writer_queue_max=10)
    with made.client:
        yield made


def ready(web: Web) -> tuple[int, str]:
    """What `readyz` says when it looks again."""
    web.client.app.state.server.remembered.clear()  # type: ignore[attr-defined]
    answer = web.client.get("/readyz")
    return answer.status_code, answer.json().get("detail", "")


def test_a_server_whose_store_fails_is_not_ready(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ready(web) == (200, "")

    def fail() -> None:
        raise StorageError("the folder cannot be written")

    monkeypatch.setattr(web.kit.store, "check", fail)
    assert web.client.get("/readyz").status_code == 200  # a look stands for a moment
    assert ready(web) == (507, "the folder cannot be written")
    assert web.client.get("/readyz").status_code == 507
    assert web.client.get("/healthz").status_code == 200


def test_a_server_whose_writer_is_behind_is_not_ready(web: Web) -> None:
    """The queue is filled while the writer holds one job."""
    go, running = threading.Event(), threading.Event()

    def slow(connection: Connection) -> None:
        running.set()
        go.wait(20)

    waiting: list[Future[None]] = [web.kit.db.submit(slow)]
    try:
        assert running.wait(20)
        waiting += [web.kit.db.submit(lambda connection: None) for _ in range(10)]
        status, detail = ready(web)
        assert status == 503 and detail == "10 of at most 10 changes wait for the writer"
        body = {"secret_sha256": "0" * 64, "name": "x", "token": "tj_0_0"}
        busy = web.client.post("/api/v1/devices/enrol", json=body)
        assert busy.status_code == 503 and busy.headers["retry-after"] == "2"
    finally:
        go.set()
    for job in waiting:
        job.result(20)
    assert ready(web)[0] == 200


def test_a_server_that_stops_is_not_ready(web: Web) -> None:
    web.client.app.state.server.stopping.set()  # type: ignore[attr-defined]
    answer = web.client.get("/readyz")
    assert answer.status_code == 503 and "stopping" in answer.json()["detail"]


def test_the_counters_are_prometheus_text_and_name_no_device(web: Web) -> None:
    device, key = web.enrol("a name to look for")
    web.kit.sync(device, events=[record(1, "alarm", alarm()), record(2)])
    viewer = web.bearer(web.kit.token("viewer"))
    web.client.get(f"/api/v1/devices/{device}", headers=viewer)
    web.client.get("/api/v1/devices/dnone", headers=viewer)
    web.client.get("/api/v1/devices", headers=web.bearer("ts_0_0"))
    answer = web.client.get("/metrics", headers=viewer)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.splitlines()
    assert [line for line in lines if not LINE.fullmatch(line)] == []
    where = 'method="GET",route="/api/v1/devices/{id}"'
    for expected in (
        "tinysphere_devices 1",
        "tinysphere_devices_online 1",
        'tinysphere_devices_failing{check="drift"} 1',
        'tinysphere_devices_failing{check="lost"} 0',
        "tinysphere_drift_events_total 1",
        "tinysphere_records_total 2",
        "tinysphere_writer_queue_max 10",
        f'tinysphere_requests_total{{{where},status="200"}} 1',
        f'tinysphere_requests_total{{{where},status="404"}} 1',
        'tinysphere_requests_total{method="GET",route="/api/v1/devices",status="401"} 1',
        f"tinysphere_request_seconds_count{{{where}}} 2",
    ):
        assert expected in lines, expected
    assert device not in answer.text and "a name to look for" not in answer.text
    assert web.client.get("/metrics", headers=key).status_code == 403
    assert web.client.get("/metrics").status_code == 401


def test_what_the_database_counts_stands_for_a_moment(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = web.bearer(web.kit.token("viewer"))
    assert "tinysphere_devices 0" in web.client.get("/metrics", headers=viewer).text
    web.enrol()
    assert "tinysphere_devices 0" in web.client.get("/metrics", headers=viewer).text
    web.client.app.state.server.remembered.clear()  # type: ignore[attr-defined]
    assert "tinysphere_devices 1" in web.client.get("/metrics", headers=viewer).text
    assert machines.COUNTED_S == 15
