"""The dashboard's pages, in process."""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import alarm, record, request
from starlette.testclient import TestClient
from tinysphere import auth, fleet, ingest
from tinysphere.app import create_app
from tinysphere.config import ServerConfig
from tinysphere.drifthub import DriftEventView, HistogramView
from tinysphere.routes.pages import ago, draw, explain, figure, offset, utc, watched


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with TestClient(create_app(ServerConfig(tmp_path)), base_url="http://127.0.0.1:8080") as found:
        yield found


@pytest.fixture
def token(client: TestClient) -> str:
    request = auth.TokenRequest("viewer", "Ada")
    return auth.create_token(client.app.state.server.db, request, "test", 0.0).token  # type: ignore[attr-defined]


def sign_in(client: TestClient, token: str, target: str = "/devices") -> object:
    return client.post("/login", data={"token": token, "next": target}, follow_redirects=False)


def event(**changes: object) -> DriftEventView:
    fields: dict[str, object] = {
        "id": 1, "device_id": "d", "device_name": "watch", "model": "activity", "version": "1.0.0",
        "monitor": "input", "detector": "BinnedKS", "signal": "ax", "statistic": 0.6, "threshold": 0.5,
        "window": 5, "suspect": 2, "at": None, "at_known": False, "received_at": 10.0, "histogram": None,
    }  # fmt: skip
    return DriftEventView(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/devices", "/devices/dabc", "/events/1"])
def test_a_stranger_is_sent_to_the_sign_in(client: TestClient, path: str) -> None:
    answer = client.get(path, follow_redirects=False)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login?next=")


def test_signing_in_shows_an_empty_fleet_that_says_what_to_do(client: TestClient, token: str) -> None:
    answer = sign_in(client, token)
    cookie = answer.headers["set-cookie"]  # type: ignore[attr-defined]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    page = client.get("/devices")
    assert page.status_code == 200
    assert "No devices yet" in page.text and "tinysphere join create" in page.text and "Ada" in page.text
    assert client.post("/logout", follow_redirects=False).status_code == 303
    assert client.get("/devices", follow_redirects=False).status_code == 303


def test_a_wrong_token_stays_outside_and_a_foreign_target_is_ignored(client: TestClient, token: str) -> None:
    wrong = client.post("/login", data={"token": "ts_00000000_no", "next": "/devices"})
    assert wrong.status_code == 401 and 'role="alert"' in wrong.text
    for target in ("https://evil.example", "//evil.example", "/\\evil.example", ""):
        assert sign_in(client, token, target).headers["location"] == "/devices"  # type: ignore[attr-defined]


def test_a_device_shows_the_boards_behind_it(client: TestClient, token: str) -> None:
    db = client.app.state.server.db  # type: ignore[attr-defined]
    secret = fleet.EnrolRequest(auth.create_join_token(db, 1, 60, "test", 0.0), "gateway", "1" * 64)
    device = fleet.enrol(db, secret, 0.0)[0].device_id
    boards = [
        {"uid": "n-7", "name": "left <wrist>", "fw": "1.2", "model": "waves", "model_version": "3.0.0",
         "state": "online", "last_seen_ms": 10},
        {"uid": "n-8", "state": "away"},
    ]  # fmt: skip
    ingest.sync(db, device, request(boards=boards), 100.0, 30.0)
    sign_in(client, token)
    page = client.get(f"/devices/{device}").text
    assert "Boards behind it" in page and "left &lt;wrist&gt;" in page and "waves 3.0.0" in page
    assert re.search(r'state bad">away', page) and re.search(r'state good">online', page)
    said = alarm(board="n-7", window=-1, suspect=-1, histogram=None, monitor="imu", signal="ay")
    ingest.sync(db, device, request(boards=boards[:1], events=[record(1, "alarm", said)]), 200.0, 30.0)
    page = client.get(f"/devices/{device}").text
    assert "imu of board n-7" in page and ">-1<" not in page
    event = client.get("/events/1").text
    assert "n-7, by its own statistics" in event and "at window" not in event
    assert re.search(r'state bad">gone', client.get(f"/devices/{device}").text)


def test_what_is_not_there_is_a_page_too(client: TestClient, token: str) -> None:
    sign_in(client, token)
    for path in ("/devices/dnone", "/events/77", "/events/x"):
        answer = client.get(path)
        assert answer.status_code in (400, 404) and "All devices" in answer.text


def test_no_page_has_inline_code_or_reaches_outside(client: TestClient, token: str) -> None:
    sign_in(client, token)
    for path in ("/login", "/devices"):
        answer = client.get(path)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert not re.search(r"<script>|\son\w+=|style=", answer.text)
        assert not re.search(r'(?:src|href)="(?:https?:)?//', answer.text)


def test_third_party_files_are_the_ones_that_were_pinned() -> None:
    folder = Path(str(importlib.resources.files("tinysphere") / "static" / "third_party"))
    readme = Path(__file__).parent.parent.parent / "server" / "static" / "third_party" / "README.md"
    listing = (readme if readme.exists() else folder / "README.md").read_text()
    rows = re.findall(r"^\| (\S+) \| \S+ \S+ \| \S+ \| ([0-9a-f]{64}) \|$", listing, re.MULTILINE)
    assert len(rows) == 3
    for name, sha256 in rows:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
        assert (folder / name).parent.joinpath("LICENSE").exists()


def test_a_histogram_is_drawn_to_scale() -> None:
    bars = draw(HistogramView([1.0, 3.0], [10.0, 0.0], [0.0, 1.0, 2.0], []))
    assert bars is not None
    reference, current = ([bar for bar in bars.bars if bar.kind == kind] for kind in ("reference", "current"))
    assert [round(bar.height / current[0].height, 2) for bar in reference] == [0.25, 0.75]
    assert current[1].height == 0
    assert all(bar.x >= 0 and bar.x + bar.width <= bars.width and bar.y >= 0 for bar in bars.bars)
    assert [row.name for row in bars.rows] == ["0 to 1", "1 to 2"]
    assert [row.current for row in bars.rows] == ["100.0%", "0.0%"]


def test_a_lying_histogram_draws_nothing_and_an_empty_one_no_bars() -> None:
    assert draw(None) is None
    assert draw(HistogramView([1.0], [1.0, 2.0], [], [])) is None
    empty = draw(HistogramView([0.0, 0.0], [0.0, 0.0], [], ["a", "b"]))
    assert empty is not None and all(bar.height == 0 for bar in empty.bars)
    assert [row.name for row in empty.rows] == ["a", "b"]


def test_words_for_times_and_numbers() -> None:
    assert utc(0) == "1970-01-01 00:00:00 UTC"
    assert [ago(0, seconds) for seconds in (5, 300, 8000, 300_000)] == ["5 s ago", "5 min ago", "2 h ago", "3 d ago"]
    assert offset(1) == "right to 2 s"
    assert offset(-315_360_000).startswith("3650 d slow")
    assert (figure(None), figure(0.123456)) == ("–", "0.1235")


def test_an_event_is_told_in_plain_words() -> None:
    assert watched(event()) == "input ax"
    assert watched(event(monitor="prediction", signal="prediction")) == "mix of predictions"
    assert watched(event(monitor="mine", signal="mine")) == "mine"
    for detector in ("BinnedKS", "Mahalanobis", "PSI", "PageHinkley", "ADWIN", "CUSUM", "FeatureDrift", "Other"):
        assert len(explain(event(detector=detector))) > 40
