"""Each request has a name: in its answer, in the log lines that it causes, in the problem of an unexpected error."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kit import Web, make_web
from tinysphere import fleet
from tinysphere.requestid import HEADER, RequestIdFilter


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = make_web(tmp_path)
    with made.client:
        yield made


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(logging.Formatter("[%(request_id)s] %(message)s"))
    logger = logging.getLogger("tinysphere")
    logger.addHandler(handler)
    yield stream
    logger.removeHandler(handler)


def test_a_plain_name_is_taken_over_and_another_one_is_drawn(web: Web) -> None:
    assert web.client.get("/healthz", headers={HEADER: "proxy-7.a_B"}).headers[HEADER] == "proxy-7.a_B"
    names = {web.client.get("/healthz").headers[HEADER] for _ in range(5)}
    assert len(names) == 5 and all(re.fullmatch(r"[0-9a-f]{16}", name) for name in names)
    for odd in ("x" * 65, "a b", "<script>", ""):
        assert re.fullmatch(r"[0-9a-f]{16}", web.client.get("/healthz", headers={HEADER: odd}).headers[HEADER])


def test_problems_and_pages_have_it_too(web: Web) -> None:
    for path in ("/api/v1/devices", "/api/v1/nothing", "/", "/static/missing.js"):
        assert HEADER in web.client.get(path).headers


def test_an_unexpected_error_names_the_lines_of_the_log(
    web: Web, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(fleet, "list_devices", broken)
    headers = {**web.bearer(web.kit.token()), HEADER: "req-1"}
    answer = web.client.get("/api/v1/devices", headers=headers)
    assert answer.status_code == 500 and "log has it under req-1" in answer.json()["detail"]
    assert answer.headers[HEADER] == "req-1" and "secret" not in answer.text
    assert log.getvalue().startswith("[req-1] unexpected error in GET /api/v1/devices")


def test_requests_at_once_keep_their_names_and_outside_there_is_none(
    web: Web, log: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("tinysphere")
    real = fleet.list_devices

    def speaking(*arguments: object) -> object:
        logger.warning("listing")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fleet, "list_devices", speaking)
    bearer = web.bearer(web.kit.token())

    def ask(number: int) -> None:
        web.client.get("/api/v1/devices", headers={**bearer, HEADER: f"n{number}"})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(12)))
    logger.warning("outside")
    lines = log.getvalue().splitlines()
    assert sorted(lines[:-1]) == sorted(f"[n{number}] listing" for number in range(12))
    assert lines[-1] == "[-] outside"
