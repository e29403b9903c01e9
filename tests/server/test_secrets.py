"""No secret in a log line, an answer, an error, an address, the audit, the feed or the database."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import make_keys, run, sphere
from kit import Web, alarm, make_web, record
from tinylcm.identity import Join
from tinysphere import people
from tinysphere.app import ROUTES
from tinysphere.client import Client, ClientError

PASSWORD = "a password that nobody else has 1"


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = make_web(tmp_path, failures_per_s=1000.0, burst=100_000)
    with made.client:
        yield made


def test_secrets_are_shown_once_and_are_nowhere_else(web: Web, caplog: pytest.LogCaptureFixture) -> None:
    """Every route is asked with every secret, rightly and wrongly; what is said and kept is searched for them."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("tinysphere").setLevel(logging.DEBUG)
    answers: list[Any] = []
    web.client.event_hooks["response"].append(answers.append)
    web.kit.pin()
    admin = web.kit.token("admin")
    device, key = web.enrol(secret="7e" * 32)
    headers = web.bearer(admin)
    join = web.client.post("/api/v1/join-tokens", json={"url": "https://h"}, headers=headers).json()["join"]
    token = web.client.post("/api/v1/tokens", json={"role": "viewer"}, headers=headers).json()["token"]
    people.create(web.kit.db, "ada", PASSWORD, "viewer", "test", 1.0)
    web.client.post("/login", data={"name": "ada", "password": PASSWORD}, headers={"Origin": "http://127.0.0.1"})
    cookie = web.client.cookies.get("tinysphere_session") or "no-session"
    shown, answers[:] = list(answers), []
    secrets = {
        "a user's token": admin.split("_", 2)[2],
        "a new token": token.split("_", 2)[2],
        "a join token": Join.parse(join).token.split("_", 2)[2],
        "a device's key": "7e" * 32,
        "a password": PASSWORD,
        "a session": cookie,
    }
    assert all(len(secret) > 8 for secret in secrets.values()) and len(shown) >= 2
    bodies = [
        {"token": Join.parse(join).token, "name": "n" * 500, "secret_sha256": "7e" * 32},
        {"token": token, "password": PASSWORD},
        [admin, token],
    ]
    for route in ROUTES:
        path = route.path
        for name in ("sha256", "id", "name", "version", "alias", "scope", "serial"):
            path = path.replace("{" + name + "}", {"sha256": "0" * 64, "id": "1"}.get(name, "x"))
        if path.endswith("/events"):
            continue  # a stream; what it tells is looked at below
        for who in (headers, key, web.bearer(token), {"Authorization": f"Basic {admin}"}, web.bearer(admin[:-1])):
            web.client.request(route.method, path, headers=who)
        if route.method != "GET":
            for body in bodies:
                web.client.request(route.method, path, json=body, headers=headers)
            broken = f'{{"token": "{admin}'.encode()
            web.client.request(route.method, path, content=broken, headers={**headers, "Content-Type": "text/csv"})
    web.kit.sync(device, events=[record(1, "alarm", alarm())])
    web.kit.db.write(lambda connection: connection.execute("DROP TABLE drift_event") and None)
    assert web.client.get("/api/v1/drift/events", headers=headers).status_code == 500
    kept = web.kit.db.read(lambda connection: repr([connection.rows(f"SELECT * FROM {table}") for table in TABLES]))
    said = "\n".join(
        [record.getMessage() + (record.exc_text or "") for record in caplog.records if "hook" not in record.name]
    )
    heard = "\n".join(f"{answer.text}\n{answer.headers}" for answer in answers)
    for what, secret in secrets.items():
        assert secret not in said, f"{what} is in the log"
        assert secret not in heard, f"{what} is in an answer"
        assert secret not in kept, f"{what} is in the database"
    assert len(answers) > 200 and "device.enrol" in kept and "drift_event" in said
    assert all("token=" not in str(answer.url) for answer in answers)


TABLES = ("audit", "feed", "user_token", "join_token", "session", "person", "device", "idempotency")


def test_a_real_server_logs_no_secret_and_its_commands_say_none(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    with sphere(tmp_path) as server:
        join = Join.parse(server.join(keys / "root.pub"))
        wrong = server.token[:-3] + "xyz"
        with Client(server.url, wrong) as client, pytest.raises(ClientError) as caught:
            client.devices()
        said = str(caught.value) + run("devices", "--server", server.url, "--token", wrong, code=1).stderr
        said += run("person", "create", "ada", "--role", "viewer", "--data", str(server.data), stdin=PASSWORD).stdout
        said += run("token", "list", "--data", str(server.data)).stdout
        said += run("join", "list", "--data", str(server.data)).stdout
        said += run("audit", "list", "--data", str(server.data)).stdout
        log = (server.data.parent / "server.log").read_text()
        for secret in (server.token.split("_", 2)[2], wrong.split("_", 2)[2], join.token.split("_", 2)[2], PASSWORD):
            assert secret not in said and secret not in log
