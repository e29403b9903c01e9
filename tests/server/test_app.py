"""The API over HTTP: who may, what is too large, what is answered."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import EPOCH, Web, alarm, make_web, record, request, summary
from models import make_package, make_signer
from openapi_spec_validator import OpenAPIV31SpecValidator
from tinylcm import wire
from tinysphere.app import ROUTES
from tinysphere.db import rows
from tinysphere.routes.table import Route

PACKAGE = make_package()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = make_web(tmp_path, json_bytes_max=10_000, sync_bytes_max=50_000, package_bytes_max=100_000)
    made.kit.pin()
    with made.client:
        yield made


@pytest.fixture
def admin(web: Web) -> dict[str, str]:
    return web.bearer(web.kit.token("admin"))


def upload(web: Web, headers: dict[str, str], data: bytes = PACKAGE, name: str = "gesture") -> object:
    return web.client.post(f"/api/v1/models/{name}/versions", content=data, headers=headers)


def address(route: Route) -> str:
    return (
        route.path.replace("{sha256}", "0" * 64).replace("{id}", "1").replace("{name}", "n").replace("{version}", "1")
    )


def test_the_document_is_openapi_3_1_and_lists_every_route(web: Web) -> None:
    document = web.client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(document).validate()
    listed = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert listed == {(route.method, route.path) for route in ROUTES}


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.scope != "public"], ids=lambda r: f"{r.method} {r.path}"
)
def test_every_route_denies_by_default(web: Web, route: Route) -> None:
    url = address(route)
    for headers in ({}, {"Authorization": "Bearer ts_00000000_no"}, {"Authorization": "Basic eA=="}):
        answer = web.client.request(route.method, url, headers=headers)
        assert answer.status_code == 401, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
    _, device = web.enrol()
    viewer = web.bearer(web.kit.token("viewer"))
    if route.scope not in ("device", "any"):
        assert web.client.request(route.method, url, headers=device).status_code == 403
    if route.scope not in ("read", "any"):
        assert web.client.request(route.method, url, headers=viewer).status_code == 403


def test_enrol_upload_deploy_sync_fetch_and_see(web: Web, admin: dict[str, str]) -> None:
    body = {"token": web.kit.join(), "name": "w", "secret_sha256": __import__("hashlib").sha256(b"ab").hexdigest()}
    enrolled = web.client.post("/api/v1/devices/enrol", json=body)
    assert enrolled.status_code == 201 and web.client.post("/api/v1/devices/enrol", json=body).status_code == 200
    device = web.enrol()[1]
    assert upload(web, admin).status_code == 201 and upload(web, admin).status_code == 200  # type: ignore[attr-defined]
    made = web.client.post("/api/v1/deployments", json={"model": "gesture", "version": "1.0.0"}, headers=admin)
    assert made.status_code == 201
    body_bytes = web.sync_body(
        events=[record(1, "alarm", alarm())], details=[record(1, "summary", summary([5.0], [0.9]))]
    )
    headers = {**device, "Content-Type": "application/json"}
    answers = [web.client.post("/api/v1/sync", content=body_bytes, headers=headers).json() for _ in range(2)]
    assert answers[0]["acked"] == answers[1]["acked"] == {"events": [EPOCH, 1], "details": [EPOCH, 1]}
    wanted = answers[0]["desired"]["models"][0]
    whole = web.client.get(wanted["url"], headers=device)
    assert whole.content == PACKAGE and whole.headers["accept-ranges"] == "bytes"
    part = web.client.get(wanted["url"], headers={**device, "Range": "bytes=100-"})
    assert part.status_code == 206 and part.content == PACKAGE[100:]
    assert part.headers["content-range"] == f"bytes 100-{len(PACKAGE) - 1}/{len(PACKAGE)}"
    assert web.client.get(wanted["url"], headers={**device, "Range": f"bytes={len(PACKAGE)}-"}).status_code == 416
    stale = {**device, "Range": "bytes=100-", "If-Range": '"other"'}
    assert web.client.get(wanted["url"], headers=stale).status_code == 200
    events = web.client.get("/api/v1/drift/events", headers=admin).json()["items"]
    assert len(events) == 1
    assert web.client.get(f"/api/v1/drift/events/{events[0]['id']}", headers=admin).json()["signal"] == "x"
    assert len(web.client.get("/api/v1/metrics/query", headers=admin).json()["points"]) == 1
    assert "tinysphere_devices 2" in web.client.get("/metrics", headers=admin).text


def test_a_device_may_not_fetch_what_is_not_for_it(web: Web, admin: dict[str, str]) -> None:
    _, device = web.enrol()
    sha256 = upload(web, admin).json()["sha256"]  # type: ignore[attr-defined]
    assert web.client.get(f"/api/v1/packages/{sha256}", headers=device).status_code in (403, 404)
    assert web.client.get(f"/api/v1/packages/{sha256}", headers=admin).status_code == 200


@pytest.mark.parametrize(
    ("path", "limit"),
    [("/api/v1/sync", 50_000), ("/api/v1/deployments", 10_000), ("/api/v1/models/m/versions", 100_000)],
)
def test_a_large_body_is_refused_before_it_is_read(web: Web, admin: dict[str, str], path: str, limit: int) -> None:
    headers = web.enrol()[1] if path.endswith("sync") else admin
    headers = {**headers, "Content-Type": "application/json"}
    claimed = web.client.post(path, content=b"{}", headers={**headers, "Content-Length": str(1 << 30)})
    assert claimed.status_code == 413 and str(1 << 30) in claimed.json()["detail"]
    read = 0

    def stream() -> Iterator[bytes]:
        nonlocal read
        for _ in range(1 << 20):
            read += 1000
            yield b"x" * 1000

    sent = web.client.post(path, content=stream(), headers=headers)
    assert sent.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("POST", "/api/v1/deployments", b"{", 400, "not JSON"),
        ("POST", "/api/v1/deployments", b'{"model": 1, "version": "1"}', 422, "model"),
        ("POST", "/api/v1/deployments", b'{"model": "m", "version": "1", "wave": 1}', 422, "wave"),
        ("POST", "/api/v1/deployments", b'{"model": "m", "version": "1", "selector": "?"}', 400, "character 1"),
        ("POST", "/api/v1/tokens", b'{"role": "king"}', 422, "does not exist"),
        ("GET", "/api/v1/devices?cursor=xx", None, 400, "cursor"),
        ("GET", "/api/v1/devices?limit=0", None, 400, "limit"),
        ("GET", "/api/v1/devices?limit=many", None, 400, "limit"),
        ("GET", "/api/v1/metrics/query?since=nan", None, 400, "since"),
        ("GET", "/api/v1/drift/events/one", None, 400, "no number"),
        ("GET", "/api/v1/drift/events/99", None, 404, "no drift event"),
        ("GET", "/api/v1/nothing", None, 404, "openapi.json"),
        ("DELETE", "/api/v1/devices", None, 405, ""),
        ("POST", "/api/v1/models/gesture/versions", b"junk", 422, "truncated"),
    ],
)
def test_mistakes_are_problem_documents_that_say_what_to_do(
    web: Web, admin: dict[str, str], method: str, path: str, body: bytes | None, status: int, said: str
) -> None:
    answer = web.client.request(method, path, content=body, headers=admin)
    assert answer.status_code == status, answer.text
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["status"] == status and problem["type"].startswith("/problems/") and said in problem["detail"]


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{}", "", 415),
        (b"{}", "application/msgpack", 400),
        (b"{}", "application/x-protobuf", 400),
        (b"<html>", "application/json", 400),
        (b'{"wire": 99, "boot": "b", "anchor": {"boot_ns": 1, "wall_s": 1}}', "application/json", 400),
        (b"\x1f\x8b\x08garbage", "application/json", 400),
        (b'{"a":' * 5000, "application/json", 400),
    ],
)
def test_a_sync_that_is_none_is_refused_whole(web: Web, body: bytes, kind: str, status: int) -> None:
    _, device = web.enrol()
    answer = web.client.post("/api/v1/sync", content=body, headers={**device, "Content-Type": kind})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("format", wire.CONTENT_TYPES)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_sync_is_answered_in_its_own_format(web: Web, format: wire.Format, compressed: bool) -> None:
    _, key = web.enrol()
    events = [record(seq) for seq in range(1, 100)]
    body = wire.encode(request(events=events), format)
    headers = {**key, "Content-Type": wire.CONTENT_TYPES[format]}
    if compressed:
        packed = wire.compress(body)
        assert packed is not None
        body, headers["Content-Encoding"] = packed, "gzip"
    answer = web.client.post("/api/v1/sync", content=body, headers=headers)
    assert answer.status_code == 200 and answer.headers["content-type"] == wire.CONTENT_TYPES[format]
    assert wire.decode_response(answer.content, answer.headers["content-type"]).acked["events"] == (EPOCH, 99)
    assert "content-encoding" not in answer.headers  # so short an answer is not worth it


@pytest.mark.parametrize(
    ("accepted", "said"), [("gzip", "gzip"), ("br, gzip;q=0.5", "gzip"), ("gzip;q=0", None), ("identity", None)]
)
def test_a_long_answer_is_compressed_for_who_takes_it(web: Web, accepted: str, said: str | None) -> None:
    _, key = web.enrol()
    bad = [record(seq, "alarm", {"model": 3}) for seq in range(1, 100)]
    headers = {**key, "Content-Type": "application/json", "Accept-Encoding": accepted}
    answer = web.client.post("/api/v1/sync", content=web.sync_body(events=bad), headers=headers)
    assert answer.headers.get("content-encoding") == said and answer.headers["vary"] == "Accept-Encoding"
    assert len(answer.json()["refused"]) == 99


@pytest.mark.parametrize(
    ("body", "encoding", "status"),
    [
        (gzip.compress(b" " * (64 << 20)), "gzip", 413),
        (gzip.compress(b"{}")[:-1], "gzip", 400),
        (b"{}", "gzip", 400),
        (b"{}", "br", 415),
        (b"{}", "gzip, gzip", 415),
    ],
    ids=["a bomb", "cut off", "not packed", "another encoding", "packed twice"],
)
def test_a_hostile_compression_is_refused_with_its_reason(web: Web, body: bytes, encoding: str, status: int) -> None:
    _, key = web.enrol()
    headers = {**key, "Content-Type": "application/json", "Content-Encoding": encoding}
    answer = web.client.post("/api/v1/sync", content=body, headers=headers)
    assert answer.status_code == status and answer.json()["detail"]


def test_uploads_that_contradict_or_are_foreign(web: Web, admin: dict[str, str]) -> None:
    assert upload(web, admin).status_code == 201  # type: ignore[attr-defined]
    assert upload(web, admin, make_package(bias=3.0)).status_code == 409  # type: ignore[attr-defined]
    assert upload(web, admin, name="other").status_code == 422  # type: ignore[attr-defined]
    foreign = upload(web, admin, make_package(version="3.0", signer=make_signer(8)))
    assert foreign.status_code == 422 and "not trusted here" in foreign.json()["detail"]  # type: ignore[attr-defined]


def test_changes_need_if_match_and_creations_take_a_key(web: Web, admin: dict[str, str]) -> None:
    device, _ = web.enrol()
    url = f"/api/v1/devices/{device}"
    etag = web.client.get(url, headers=admin).headers["etag"]
    patch = {"labels": {"site": "berlin"}}
    assert web.client.patch(url, json=patch, headers=admin).status_code == 428
    assert web.client.patch(url, json=patch, headers={**admin, "If-Match": etag}).status_code == 200
    assert web.client.patch(url, json=patch, headers={**admin, "If-Match": etag}).status_code == 412
    upload(web, admin)
    body, keyed = {"model": "gesture", "version": "1.0.0"}, {**admin, "Idempotency-Key": "k1"}
    ids = {web.client.post("/api/v1/deployments", json=body, headers=keyed).json()["id"] for _ in range(3)}
    assert len(ids) == 1
    other = {**body, "selector": "name=x"}
    assert web.client.post("/api/v1/deployments", json=other, headers=keyed).status_code == 409


def test_lists_have_pages_with_links(web: Web, admin: dict[str, str]) -> None:
    token = web.kit.join(uses=3)
    for index in range(3):
        web.kit.enrol(f"w{index}", f"{index}" * 64, token)
    first = web.client.get("/api/v1/devices?limit=2", headers=admin)
    link = first.headers["link"]
    assert link.endswith('rel="next"')
    second = web.client.get(link.split(">")[0][1:], headers=admin)
    names = [item["name"] for item in (*first.json()["items"], *second.json()["items"])]
    assert len(set(names)) == 3 and second.json()["next"] is None and "link" not in second.headers


def test_a_signed_in_browser_reads_but_changes_only_with_its_header(web: Web) -> None:
    token = web.kit.token("admin")
    web.client.post("/login", data={"token": token})
    assert web.client.get("/api/v1/devices").status_code == 200
    body = json.dumps({"role": "viewer"})
    assert web.client.post("/api/v1/tokens", content=body).status_code == 403
    assert (
        web.client.post("/api/v1/tokens", content=body, headers={"X-Requested-With": "tinysphere"}).status_code == 201
    )


def test_every_answer_has_the_security_headers(web: Web, admin: dict[str, str]) -> None:
    for path in ("/healthz", "/login", "/static/app.js", "/api/v1/devices", "/nothing", "/api/v1/ca"):
        headers = web.client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
    assert web.client.get("/api/v1/devices", headers=admin).headers["cache-control"] == "no-store"


def test_alive_and_ready(web: Web) -> None:
    assert web.client.get("/healthz").json() == {"status": "ok", "checks": {}}
    looked = {"database": "ok", "writer": "ok", "store": "ok"}
    assert web.client.get("/readyz").json() == {"status": "ok", "checks": looked}


def test_audit_tells_who_did_what(web: Web, admin: dict[str, str]) -> None:
    upload(web, admin)
    page = web.client.get("/api/v1/audit?limit=2", headers=admin).json()
    assert any("model" in entry["what"] or "upload" in entry["what"] for entry in page["items"])
    assert all(entry["who"] for entry in page["items"])


def test_an_unexpected_error_is_ours_and_tells_no_detail(
    web: Web, admin: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    web.kit.db.write(lambda connection: connection.execute("DROP TABLE drift_event") and None)
    answer = web.client.get("/api/v1/drift/events", headers=admin)
    assert answer.status_code == 500
    assert "drift_event" not in answer.text and "the server's log has it" in answer.json()["detail"]
    assert "drift_event" in caplog.text


def test_a_device_is_who_its_key_says(web: Web, admin: dict[str, str]) -> None:
    """Whatever else the request names: the body, the address, a header."""
    one, key = web.enrol("one", "11" * 32)
    two, _ = web.enrol("two", "22" * 32)
    body = json.loads(web.sync_body(events=[{**record(1, "alarm", alarm()), "device": two}]))
    headers = {**key, "Content-Type": "application/json", "X-Device-ID": two}
    sent = web.client.post(
        f"/api/v1/sync?device={two}", json={**body, "device": two, "device_id": two}, headers=headers
    )
    assert sent.status_code == 200
    events = web.client.get("/api/v1/drift/events", headers=admin).json()["items"]
    assert [event["device_id"] for event in events] == [one]
    changed = web.client.post("/api/v1/devices/key", json={"secret_sha256": "ab" * 32, "device_id": two}, headers=key)
    assert changed.status_code == 422
    assert web.client.post(f"/api/v1/devices/{two}/retire", headers=key).status_code == 403


# What each kind of route has in common -----------------------------------------------------------------------

# Changes that need no If-Match: there is one way to end, and ending twice changes nothing.
ENDINGS = {
    "/api/v1/deployments/{id}/abort",
    "/api/v1/tokens/{id}",
    "/api/v1/join-tokens/{id}",
    "/api/v1/devices/expected/{serial}",
    "/api/v1/models/{name}/versions/{version}",
}
# Creations that are the same when they come again without a key: by the file's hash, by the secret's hash, by seq.
REPEATABLE = {
    "/api/v1/models/{name}/versions",
    "/api/v1/devices/enrol",
    "/api/v1/devices/key",
    "/api/v1/sync",
}


def test_every_list_has_pages_every_change_a_match_and_every_creation_a_key() -> None:
    for route in ROUTES:
        names = {param.name for param in route.query}
        if str(route.answer).startswith("tinysphere.db.Page"):
            assert {"cursor", "limit"} <= names, route.path
        else:
            fields = getattr(route.answer, "__struct_fields__", ())
            assert "items" not in fields or route.path == "/api/v1/usage", f"{route.path} is a list without pages"
        if route.method in ("PUT", "PATCH") and route.scope != "device":
            assert "If-Match" in route.headers and {412, 428} <= set(route.problems), route.path
        is_ending = route.method == "DELETE" or re.search(r"{id}/\w+$", route.path)
        if route.method in ("POST", "DELETE") and is_ending and route.path not in ENDINGS:
            assert "If-Match" in route.headers and 412 in route.problems, route.path
        if route.method == "POST" and not is_ending and route.path not in REPEATABLE:
            assert "Idempotency-Key" in route.headers and 409 in route.problems, route.path


def test_a_key_that_is_over_is_refused_at_once_also_where_it_was_right_before(web: Web) -> None:
    device, bearer = web.enrol()
    headers = {**bearer, "Content-Type": "application/json"}
    for _ in range(2):
        assert web.client.post("/api/v1/sync", content=web.sync_body(), headers=headers).status_code == 200
    sql = "UPDATE device SET revoked_at = 1 WHERE id = ?"
    web.kit.db.write(lambda connection: connection.execute(sql, (device,)) and None)
    for _ in range(2):
        answer = web.client.post("/api/v1/sync", content=web.sync_body(), headers=headers)
        assert answer.status_code == 401 and "revoked" in answer.json()["detail"]
    assert web.kit.db.read(lambda connection: rows(connection, "SELECT * FROM record")) == []


def test_an_error_of_a_direct_address_is_answered_as_all_are(web: Web) -> None:
    answer = web.client.post("/api/v1/devices/enrol", content=b"no json")
    assert answer.status_code == 400 and answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["cache-control"] == "no-store"
    assert web.client.put("/api/v1/sync").status_code == 405
