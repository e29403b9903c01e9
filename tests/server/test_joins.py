"""Join strings: made, listed without their secrets, ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, Web, make_kit, make_web
from tinylcm.errors import ConfigError
from tinylcm.identity import Join
from tinysphere import auth, joins, trust
from tinysphere.errors import ConflictError, ForbiddenError, InvalidError, NotFoundError
from tinysphere.joins import JoinRequest

URL = "https://sphere.example:8443"


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


def test_a_join_string_names_the_server_the_root_and_a_token_that_enrols(kit: Kit) -> None:
    root = kit.pin()
    made = joins.make(kit.db, JoinRequest(URL, uses=2, ttl_s=60), None, "ada", NOW)
    read = Join.parse(made.join)
    assert (read.url, read.root) == (URL, root) == (URL, made.root)
    assert made.expires_at == NOW + 60 and auth.split_token(read.token, "tj")[0] == made.id
    kit.enrol(token=read.token)
    (listed,) = joins.list_joins(kit.db, None, 10).items
    assert (listed.id, listed.uses, listed.uses_max, listed.expected_only) == (made.id, 1, 2, False)


def test_an_ended_join_token_enrols_nobody_else(kit: Kit) -> None:
    kit.pin()
    made = joins.make(kit.db, JoinRequest(URL, uses=9), None, "ada", NOW)
    token = Join.parse(made.join).token
    first = kit.enrol(token=token)
    assert joins.revoke(kit.db, made.id, "ada", NOW).uses == 1
    assert kit.enrol(token=token) == first  # the same device with the same secret may ask again
    with pytest.raises(ForbiddenError, match="expired"):
        kit.enrol("other", "22" * 32, token=token)
    with pytest.raises(NotFoundError, match="no join token"):
        joins.revoke(kit.db, "none", "ada", NOW)


def test_what_is_wrong_is_named_and_nothing_is_made(kit: Kit) -> None:
    with pytest.raises(InvalidError, match="none; `tinysphere trust`"):
        joins.make(kit.db, JoinRequest(URL), None, "ada", NOW)
    root = kit.pin()
    for request, said in (
        (JoinRequest("ftp://x"), "no http"),
        (JoinRequest("https://h/#x"), "no http"),
        (JoinRequest(URL, root="sha256:00"), root),
        (JoinRequest(URL, uses=0), "positive"),
        (JoinRequest(URL, ttl_s=0), "positive"),
    ):
        with pytest.raises(InvalidError, match=said):
            joins.make(kit.db, request, None, "ada", NOW)
    trust.pin(kit.db, b"\x01" * 32, "ada", NOW)
    with pytest.raises(InvalidError, match="expected the fingerprint"):
        joins.make(kit.db, JoinRequest(URL), None, "ada", NOW)
    assert joins.list_joins(kit.db, None, 10).items == []
    with pytest.raises(ConfigError, match="no PEM"):
        joins.join_string(URL, "t", "r", b"-----")


def test_a_key_that_comes_again_makes_no_second_token(kit: Kit) -> None:
    kit.pin()
    made = joins.make(kit.db, JoinRequest(URL), None, "ada", NOW, "once")
    with pytest.raises(ConflictError, match=made.id):
        joins.make(kit.db, JoinRequest(URL), None, "ada", NOW, "once")
    token = auth.create_token(kit.db, auth.TokenRequest("viewer"), "ada", NOW, "twice")
    with pytest.raises(ConflictError, match=token.id):
        auth.create_token(kit.db, auth.TokenRequest("viewer"), "ada", NOW, "twice")
    with pytest.raises(ConflictError, match="another request"):
        auth.create_token(kit.db, auth.TokenRequest("admin"), "ada", NOW, "twice")
    assert len(joins.list_joins(kit.db, None, 10).items) == len(auth.list_tokens(kit.db)) == 1


def test_admins_manage_tokens_over_http(tmp_path: Path) -> None:
    web: Web = make_web(tmp_path)
    web.kit.pin()
    with web.client:
        admin = web.bearer(web.kit.token("admin"))
        made = web.client.post("/api/v1/join-tokens", json={"url": URL}, headers={**admin, "Idempotency-Key": "k"})
        assert made.status_code == 201 and made.json()["join"].startswith(f"tinysphere+{URL}/join#token=tj_")
        listed = web.client.get("/api/v1/join-tokens", headers=admin)
        assert listed.json()["items"][0]["id"] == made.json()["id"] and "tj_" not in listed.text
        assert web.client.delete(f"/api/v1/join-tokens/{made.json()['id']}", headers=admin).status_code == 200
        token = web.client.post("/api/v1/tokens", json={"role": "viewer"}, headers=admin).json()
        shown = web.client.get("/api/v1/tokens", headers=admin)
        assert {item["role"] for item in shown.json()["items"]} == {"admin", "viewer"}
        assert token["token"] not in shown.text and "secret" not in shown.text
        ended = web.client.delete(f"/api/v1/tokens/{token['id']}", headers=admin)
        assert ended.json()["revoked_at"] is not None
        assert web.client.get("/api/v1/devices", headers=web.bearer(token["token"])).status_code == 401
        assert web.client.delete(f"/api/v1/tokens/{token['id']}", headers=admin).status_code == 404
