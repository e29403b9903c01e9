"""People who sign in with a name and a password; programs use tokens.

Passwords are stored as Argon2id (RFC 9106) with the parameters that the library recommends, and hashed anew at a
sign-in when those have risen. Hashing takes 64 MiB and a moment on purpose, so only a few are hashed at once.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from .audit import audit
from .auth import ROLES, hash_secret
from .db import Connection, Database, row, rows
from .errors import BusyError, ConflictError, InvalidError, NotFoundError, UnauthorizedError

PASSWORD_MIN: Final = 12  # characters; length is what counts (NIST SP 800-63B)
PASSWORD_MAX: Final = 256
HASHES_MAX: Final = 2  # at once
HASH_WAIT_S: Final = 10.0
PEOPLE_MAX: Final = 10_000
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,99}")
_hashing = threading.Semaphore(HASHES_MAX)


class PersonView(msgspec.Struct, frozen=True):
    """A person without the password."""

    name: str
    role: str
    created_at: float
    created_by: str
    disabled_at: float | None


@contextmanager
def _hasher() -> Iterator[Any]:
    import argon2

    if not _hashing.acquire(timeout=HASH_WAIT_S):
        raise BusyError("too many people sign in at once; try again", retry_after_s=5)
    try:
        yield argon2.PasswordHasher()
    finally:
        _hashing.release()


def _check_password(name: str, password: str) -> None:
    if not PASSWORD_MIN <= len(password) <= PASSWORD_MAX:
        raise InvalidError(f"password: expected {PASSWORD_MIN} to {PASSWORD_MAX} characters; several words are good")
    if name in password.lower() or len(set(password)) < 5:
        raise InvalidError("password: too easy to guess: it holds the name, or the same few characters")


def _hash(password: str) -> str:
    with _hasher() as hasher:
        return str(hasher.hash(password))


def create(db: Database, name: str, password: str, role: str, who: str, now_s: float) -> PersonView:
    """Let a person sign in.

    Raises:
        InvalidError: the name, the password or the role is none.
        ConflictError: there is a person of this name.
    """
    if not _NAME.fullmatch(name):
        raise InvalidError("name: expected lower-case letters, digits, . _ @ + and -, at most 100")
    if role not in ROLES:
        raise InvalidError(f"role: {role!r:.40} is none; expected one of {', '.join(ROLES)}")
    _check_password(name, password)
    hashed = _hash(password)

    def job(connection: Connection) -> PersonView:
        connection.lock("people")
        if row(connection, "SELECT name FROM person WHERE name = ?", (name,)) is not None:
            raise ConflictError(f"there is a person {name} already; `tinysphere person password` sets another password")
        if rows(connection, "SELECT COUNT(*) AS n FROM person")[0]["n"] >= PEOPLE_MAX:
            raise InvalidError(f"there are {PEOPLE_MAX} people already, the most that are kept")
        connection.execute(
            "INSERT INTO person (name, password, role, created_at, created_by) VALUES (?, ?, ?, ?, ?)",
            (name, hashed, role, now_s, who),
        )
        audit(connection, who, "person.create", f"{name} {role}", now_s)
        return PersonView(name, role, now_s, who, None)

    return db.write(job)


def set_password(db: Database, name: str, password: str, who: str, now_s: float) -> PersonView:
    """Give a person another password, and end what sessions there are. One that was disabled may sign in again.

    Raises:
        InvalidError: the password is none.
        NotFoundError: there is no such person.
    """
    _check_password(name, password)
    hashed = _hash(password)

    def job(connection: Connection) -> PersonView:
        _get(connection, name)
        connection.execute("UPDATE person SET password = ?, disabled_at = NULL WHERE name = ?", (hashed, name))
        connection.execute("DELETE FROM session WHERE person = ?", (name,))
        audit(connection, who, "person.password", name, now_s)
        return _get(connection, name)

    return db.write(job)


def disable(db: Database, name: str, who: str, now_s: float) -> PersonView:
    """Let a person sign in no more, and end what sessions there are.

    Raises:
        NotFoundError: there is no such person.
    """

    def job(connection: Connection) -> PersonView:
        _get(connection, name)
        sql = "UPDATE person SET disabled_at = ? WHERE name = ? AND disabled_at IS NULL"
        if connection.execute(sql, (now_s, name)).rowcount:
            connection.execute("DELETE FROM session WHERE person = ?", (name,))
            audit(connection, who, "person.disable", name, now_s)
        return _get(connection, name)

    return db.write(job)


def _get(connection: Connection, name: str) -> PersonView:
    sql = "SELECT name, role, created_at, created_by, disabled_at FROM person WHERE name = ?"
    found = row(connection, sql, (name,))
    if found is None:
        raise NotFoundError(f"there is no person {name!r:.100}; see `tinysphere person list`")
    return PersonView(**found)


def list_people(db: Database) -> list[PersonView]:
    """Everybody, by name."""
    sql = "SELECT name, role, created_at, created_by, disabled_at FROM person ORDER BY name LIMIT ?"
    return [PersonView(**item) for item in db.read(lambda connection: rows(connection, sql, (PEOPLE_MAX,)))]


_nobody: list[str] = []  # the hash that is tried for names that are not there, so that those take as long


def sign_in(db: Database, name: str, password: str, session_s: int, now_s: float) -> str:
    """Begin a session; returns the secret for its cookie.

    Raises:
        UnauthorizedError: name or password is wrong, or the person was disabled: which of them is not said.
        BusyError: too many sign in at once.
    """
    import argon2

    wrong = UnauthorizedError("the name or the password is not right")
    if len(password) > PASSWORD_MAX:
        raise wrong
    if not _nobody:
        _nobody.append(_hash(secrets.token_hex(16)))
    sql = "SELECT password FROM person WHERE name = ? AND disabled_at IS NULL"
    found = db.read(lambda connection: row(connection, sql, (name.strip().lower()[:100],)))
    stored = _nobody[0] if found is None else str(found["password"])
    with _hasher() as hasher:
        try:
            hasher.verify(stored, password)
        except argon2.exceptions.VerificationError:
            raise wrong from None
        renewed = hasher.hash(password) if hasher.check_needs_rehash(stored) else None
    if found is None:
        raise wrong
    secret = secrets.token_urlsafe(32)

    def job(connection: Connection) -> None:
        connection.execute("DELETE FROM session WHERE expires_at <= ?", (now_s,))
        connection.execute(
            "INSERT INTO session (id_sha256, token_id, expires_at, person) VALUES (?, '', ?, ?)",
            (hash_secret(secret), now_s + session_s, name.strip().lower()),
        )
        if renewed is not None:
            sql = "UPDATE person SET password = ? WHERE name = ? AND password = ?"
            connection.execute(sql, (renewed, name.strip().lower(), stored))

    db.write(job)
    return secret
