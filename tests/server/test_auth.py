"""Tokens, sessions and what they allow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit
from tinysphere import audit, auth
from tinysphere.db import rows
from tinysphere.errors import ForbiddenError, InvalidError, NotFoundError, UnauthorizedError


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


def test_a_token_speaks_for_its_role_until_it_is_revoked_or_expires(kit: Kit) -> None:
    token = kit.token("viewer", days=1)
    who = auth.authenticate(kit.db, token, NOW)
    assert who.kind == "user" and who.scopes == frozenset({"read"})
    with pytest.raises(UnauthorizedError):
        auth.authenticate(kit.db, token, NOW + 2 * 86400)
    auth.revoke_token(kit.db, who.id, "test", NOW)
    with pytest.raises(UnauthorizedError):
        auth.authenticate(kit.db, token, NOW)
    with pytest.raises(NotFoundError):
        auth.revoke_token(kit.db, who.id, "test", NOW)


@pytest.mark.parametrize("bearer", ["", "x", "ts_", "ts_12345678_wrong", "dabc.def", "tj_12345678_x", "ts_\u2603_x"])
def test_what_is_no_key_is_nobody(kit: Kit, bearer: str) -> None:
    with pytest.raises(UnauthorizedError):
        auth.authenticate(kit.db, bearer, NOW)


def test_a_wrong_secret_is_nobody_and_no_secret_is_stored(kit: Kit) -> None:
    token = kit.token()
    secret = token.split("_", 2)[2]
    with pytest.raises(UnauthorizedError):
        auth.authenticate(kit.db, token[:-1] + ("A" if token[-1] != "A" else "B"), NOW)
    kit.db.close()
    assert secret.encode() not in b"".join(path.read_bytes() for path in kit.folder.glob("tinysphere.db*"))


def test_scopes_deny_by_default(kit: Kit) -> None:
    viewer = auth.authenticate(kit.db, kit.token("viewer"), NOW)
    device = auth.authenticate(kit.db, f"{kit.enrol()}.{'11' * 32}", NOW)
    auth.require(viewer, "read")
    auth.require(device, "device")
    for who, scope in ((viewer, "admin"), (viewer, "models:write"), (viewer, "device"), (device, "read")):
        with pytest.raises(ForbiddenError):
            auth.require(who, scope)
    for role, scopes in auth.ROLES.items():
        assert scopes <= set(auth.SCOPES), role


@pytest.mark.parametrize(
    "request_", [auth.TokenRequest("king"), auth.TokenRequest("viewer", days=0), auth.TokenRequest("viewer", "n" * 300)]
)
def test_impossible_tokens_are_refused(kit: Kit, request_: auth.TokenRequest) -> None:
    with pytest.raises(InvalidError):
        auth.create_token(kit.db, request_, "test", NOW)


def test_a_session_ends_by_time_by_sign_out_and_with_its_token(kit: Kit) -> None:
    token = kit.token("viewer")
    session = auth.create_session(kit.db, token, 100, NOW)
    assert auth.authenticate_session(kit.db, session, NOW + 99).session
    with pytest.raises(UnauthorizedError):
        auth.authenticate_session(kit.db, session, NOW + 101)
    auth.end_session(kit.db, session)
    with pytest.raises(UnauthorizedError):
        auth.authenticate_session(kit.db, session, NOW)
    other = auth.create_session(kit.db, token, 100, NOW)
    auth.revoke_token(kit.db, token.split("_")[1], "test", NOW)
    with pytest.raises(UnauthorizedError):
        auth.authenticate_session(kit.db, other, NOW)


def test_changes_are_written_down(kit: Kit) -> None:
    kit.token("viewer")
    kit.join()
    entries = audit.list_audit(kit.db, 1 << 60, 10)
    assert [entry.what for entry in entries] == ["join.create", "token.create"]
    assert (
        kit.db.read(lambda connection: rows(connection, "SELECT secret_sha256 FROM join_token"))[0]["secret_sha256"]
        != ""
    )
    assert len(auth.list_tokens(kit.db)) == 1


def test_keys_that_were_right_are_remembered_until_they_are_forgotten_and_not_too_many() -> None:
    keys = auth.Keys(keys_max=2)
    for name in ("a", "b", "c"):
        keys.remember(auth.Principal("device", name, name, key_sha256=auth.hash_secret("secret")))
    keys.remember(auth.Principal("user", "u", "u"))
    assert keys.find("a.secret") is None and keys.find("u.") is None
    assert keys.find("c.wrong") is None and keys.find("c") is None
    found = keys.find("c.secret")
    assert found is not None and found.id == "c"
    keys.forget("c")
    assert keys.find("c.secret") is None
