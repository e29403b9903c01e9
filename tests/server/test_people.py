"""People with passwords: what is kept, who gets in, and that nothing is told apart from outside."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import argon2
import pytest
from kit import NOW, Kit, Web, make_kit, make_web
from tinysphere import audit, auth, people
from tinysphere.db import rows
from tinysphere.errors import BusyError, ConflictError, InvalidError, NotFoundError, UnauthorizedError

PASSWORD = "correct horse battery"


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


def create(kit: Kit, name: str = "ada", password: str = PASSWORD, role: str = "operator") -> people.PersonView:
    return people.create(kit.db, name, password, role, "root", NOW)


def enter(kit: Kit, name: str, password: str = PASSWORD, now_s: float = NOW) -> auth.Principal:
    secret = people.sign_in(kit.db, name, password, 100, now_s)
    return auth.authenticate_session(kit.db, secret, now_s)


def test_a_person_signs_in_with_the_role_that_was_given(kit: Kit) -> None:
    create(kit)
    who = enter(kit, " Ada ")
    assert (who.kind, who.id, who.session) == ("user", "ada", True) and who.scopes == auth.ROLES["operator"]
    (kept,) = kit.db.read(lambda connection: rows(connection, "SELECT * FROM person"))
    assert kept["password"].startswith("$argon2id$") and PASSWORD not in str(kept)
    assert PASSWORD not in str(audit.list_audit(kit.db, 1 << 60, 10))


@pytest.mark.parametrize(
    ("name", "password"), [("ada", "wrong horse battery"), ("bob", PASSWORD), ("", ""), ("ada", "x" * 300)]
)
def test_a_wrong_name_and_a_wrong_password_are_answered_alike(kit: Kit, name: str, password: str) -> None:
    create(kit)
    with pytest.raises(UnauthorizedError, match="the name or the password is not right"):
        enter(kit, name, password)


def test_another_password_and_disabling_end_every_session(kit: Kit) -> None:
    create(kit)
    secret = people.sign_in(kit.db, "ada", PASSWORD, 100, NOW)
    people.set_password(kit.db, "ada", "another horse entirely", "root", NOW)
    for session in (secret, people.sign_in(kit.db, "ada", "another horse entirely", 100, NOW)):
        if session != secret:
            assert people.disable(kit.db, "ada", "root", NOW).disabled_at == NOW
        with pytest.raises(UnauthorizedError):
            auth.authenticate_session(kit.db, session, NOW)
    with pytest.raises(UnauthorizedError):
        enter(kit, "ada", "another horse entirely")
    people.set_password(kit.db, "ada", PASSWORD, "root", NOW)  # may come back
    assert enter(kit, "ada").id == "ada"
    with pytest.raises(UnauthorizedError):
        auth.authenticate_session(kit.db, people.sign_in(kit.db, "ada", PASSWORD, 100, NOW), NOW + 101)


@pytest.mark.parametrize(
    ("name", "password", "role"),
    [
        ("", PASSWORD, "viewer"), ("Ada", PASSWORD, "viewer"), ("a b", PASSWORD, "viewer"),
        ("x" * 101, PASSWORD, "viewer"),
        ("ada", "short", "viewer"), ("ada", "x" * 257, "viewer"), ("ada", "abababababab", "viewer"),
        ("ada", "my name is ada lovelace", "viewer"), ("ada", PASSWORD, "king"),
    ],
)  # fmt: skip
def test_what_is_too_weak_or_malformed_is_refused(kit: Kit, name: str, password: str, role: str) -> None:
    with pytest.raises(InvalidError):
        create(kit, name, password, role)
    assert people.list_people(kit.db) == []


def test_names_are_there_once(kit: Kit) -> None:
    create(kit)
    with pytest.raises(ConflictError, match="already"):
        create(kit)
    for action in (people.disable,):
        with pytest.raises(NotFoundError):
            action(kit.db, "bob", "root", NOW)
    with pytest.raises(NotFoundError):
        people.set_password(kit.db, "bob", PASSWORD, "root", NOW)


def test_a_hash_of_old_parameters_is_made_anew_at_a_sign_in(kit: Kit) -> None:
    create(kit)
    weak = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(PASSWORD)
    kit.db.write(lambda connection: connection.execute("UPDATE person SET password = ?", (weak,)) and None)
    assert enter(kit, "ada").id == "ada"
    (kept,) = kit.db.read(lambda connection: rows(connection, "SELECT password FROM person"))
    assert kept["password"] != weak and not argon2.PasswordHasher().check_needs_rehash(kept["password"])


def test_only_a_few_are_hashed_at_once(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    create(kit)
    with ThreadPoolExecutor(6) as pool:
        assert [who.id for who in pool.map(lambda _: enter(kit, "ada"), range(6))] == ["ada"] * 6
    monkeypatch.setattr(people, "HASH_WAIT_S", 0.01)
    held = [people._hashing.acquire() for _ in range(people.HASHES_MAX)]
    try:
        with pytest.raises(BusyError, match="too many people"):
            enter(kit, "ada")
    finally:
        people._hashing.release(len(held))


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = make_web(tmp_path, failures_per_s=0.001, burst=100)
    with made.client:
        create(made.kit)
        yield made


def post(web: Web, **headers: str) -> int:
    form = {"name": "ada", "password": PASSWORD, "next": "/devices"}
    return int(web.client.post("/login", data=form, headers=headers, follow_redirects=False).status_code)


def test_the_page_signs_a_person_in(web: Web) -> None:
    assert post(web) == 303
    assert "ada" in web.client.get("/devices").text
    assert web.client.get("/api/v1/devices").status_code == 200
    denied = web.client.post("/api/v1/commands", json={"selector": "all", "name": "ping"})
    assert denied.status_code == 403 and "X-Requested-With" in denied.json()["detail"]


def test_a_form_of_another_site_signs_nobody_in(web: Web) -> None:
    for headers in (
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
    ):
        assert post(web, **headers) == 403
    assert post(web, **{"Sec-Fetch-Site": "same-origin"}) == 303
    assert post(web, Origin="http://127.0.0.1") == 303


def test_who_tries_passwords_is_slowed_down(web: Web) -> None:
    form = {"name": "ada", "password": "wrong horse battery"}
    statuses = [web.client.post("/login", data=form).status_code for _ in range(8)]
    assert statuses[0] == 401 and statuses[-1] == 429
    answer = web.client.post("/login", data={"name": "ada", "password": PASSWORD})
    assert answer.status_code == 429 and int(answer.headers["Retry-After"]) > 0
