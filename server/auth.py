"""Who is asking: user tokens with roles, join tokens, device keys, dashboard sessions; and the audit of changes.

Secrets are 256 random bits, stored as SHA-256 and compared in constant time. What is not granted is refused.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from .audit import audit
from .db import Connection, Database, Page, Row, decode_cursor, paged, row, rows
from .errors import ConflictError, ForbiddenError, InvalidError, NotFoundError, UnauthorizedError
from .idempotency import once

SCOPES: Final = ("read", "models:write", "deployments:write", "devices:write", "labels:write", "admin")
ROLES: Final[Mapping[str, frozenset[str]]] = {
    "viewer": frozenset({"read"}),
    "scientist": frozenset({"read", "models:write", "labels:write"}),
    "engineer": frozenset({"read", "models:write", "deployments:write", "devices:write", "labels:write"}),
    "operator": frozenset({"read", "deployments:write", "devices:write", "labels:write"}),
    "admin": frozenset(SCOPES),
}
_DAY_S: Final = 86400
_TOKENS_LISTED_MAX: Final = 10_000
KEYS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a `user` with scopes, or a `device`, with the hash of its key."""

    kind: str
    id: str
    name: str
    scopes: frozenset[str] = frozenset()
    session: bool = False
    key_sha256: str = ""

    @property
    def who(self) -> str:
        """The form in the audit."""
        return f"{self.kind}:{self.id}"


class NewToken(msgspec.Struct, frozen=True):
    """A token just made; its secret is never shown again."""

    token: str
    id: str
    name: str
    role: str
    expires_at: float | None


class TokenView(msgspec.Struct, frozen=True):
    """A user token without its secret."""

    id: str
    name: str
    role: str
    created_at: float
    expires_at: float | None
    revoked_at: float | None


class TokenRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Ask for a user token."""

    role: str
    name: str = ""
    days: int | None = None


def hash_secret(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def create_token(db: Database, request: TokenRequest, who: str, now_s: float, key: str | None = None) -> NewToken:
    """Make a user token.

    Args:
        key: an Idempotency-Key.

    Raises:
        ConflictError: the key made a token before; its secret was shown only then.
        InvalidError: the role does not exist, or the days are not positive.
    """
    if request.role not in ROLES:
        raise InvalidError(f"role: {request.role!r} does not exist; there are {', '.join(ROLES)}")
    if request.days is not None and not 0 < request.days <= 36500:
        raise InvalidError(f"days: is {request.days}, expected 1 to 36500")
    if len(request.name) > 200:
        raise InvalidError("name: has more than 200 characters")
    token_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    expires_at = now_s + request.days * _DAY_S if request.days is not None else None

    def create(connection: Connection) -> None:
        connection.execute(
            "INSERT INTO user_token (id, secret_sha256, name, role, created_at, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
            (token_id, hash_secret(secret), request.name, request.role, now_s, expires_at),
        )
        audit(connection, who, "token.create", f"{token_id} {request.role}", now_s)

    _create_secret(db, who, key, f"POST tokens {request.role} {request.name} {request.days}", now_s, token_id, create)
    return NewToken(f"ts_{token_id}_{secret}", token_id, request.name, request.role, expires_at)


def _create_secret(
    db: Database,
    who: str,
    key: str | None,
    request: str,
    now_s: float,
    token_id: str,
    create: Callable[[Connection], None],
) -> None:
    """Create what has a secret: the answer is not kept, so a key that comes again cannot be answered alike.

    Raises:
        ConflictError: the key made something before.
    """

    def job(connection: Connection) -> bytes:
        create(connection)
        return token_id.encode()

    made = once(db, who, key, request.encode(), now_s, job).decode()
    if made != token_id:
        raise ConflictError(
            f"this Idempotency-Key made the token {made}, whose secret was shown only then: revoke it if it was lost, "
            "and make another with a new key"
        )


def page_tokens(db: Database, cursor: str | None, limit: int) -> Page[TokenView]:
    """User tokens by id."""
    after = decode_cursor(cursor, str, "")
    sql = "SELECT id, name, role, created_at, expires_at, revoked_at FROM user_token WHERE id > ? ORDER BY id LIMIT ?"
    found = db.read(lambda connection: rows(connection, sql, (after, limit + 1)))
    return paged([TokenView(**item) for item in found], limit, lambda token: token.id)


def get_token(db: Database, token_id: str) -> TokenView:
    """A user token without its secret.

    Raises:
        NotFoundError: there is none of this id.
    """
    sql = "SELECT id, name, role, created_at, expires_at, revoked_at FROM user_token WHERE id = ?"
    found = db.read(lambda connection: row(connection, sql, (token_id,)))
    if found is None:
        raise NotFoundError(f"there is no token {token_id!r:.40}; see `tinysphere token list`")
    return TokenView(**found)


def list_tokens(db: Database) -> list[TokenView]:
    """Every user token, oldest first."""
    sql = "SELECT id, name, role, created_at, expires_at, revoked_at FROM user_token ORDER BY created_at LIMIT ?"
    return [TokenView(**found) for found in db.read(lambda connection: rows(connection, sql, (_TOKENS_LISTED_MAX,)))]


def revoke_token(db: Database, token_id: str, who: str, now_s: float) -> None:
    """End a user token and its sessions.

    Raises:
        NotFoundError: there is no such token.
    """

    def job(connection: Connection) -> None:
        changed = connection.execute(
            "UPDATE user_token SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (now_s, token_id)
        )
        if changed.rowcount == 0:
            raise NotFoundError(f"there is no live token {token_id!r:.40}; see `tinysphere token list`")
        connection.execute("DELETE FROM session WHERE token_id = ?", (token_id,))
        audit(connection, who, "token.revoke", token_id, now_s)

    db.write(job)


def create_join_token(
    db: Database,
    uses_max: int,
    ttl_s: int,
    who: str,
    now_s: float,
    *,
    expected_only: bool = False,
    key: str | None = None,
) -> str:
    """Make a token that `uses_max` devices may enrol with during `ttl_s` seconds; announced ones alone if told.

    Raises:
        InvalidError: a bound is not positive.
    """
    if not 0 < uses_max <= 1_000_000 or not 0 < ttl_s <= 3650 * _DAY_S:
        raise InvalidError("uses and ttl_s must be positive: at most 1000000 uses and ten years")
    token_id, secret = secrets.token_hex(4), secrets.token_urlsafe(32)

    def create(connection: Connection) -> None:
        connection.execute(
            "INSERT INTO join_token (id, secret_sha256, uses, uses_max, created_at, expires_at, expected_only)"
            " VALUES (?, ?, 0, ?, ?, ?, ?)",
            (token_id, hash_secret(secret), uses_max, now_s, now_s + ttl_s, int(expected_only)),
        )
        audit(connection, who, "join.create", token_id, now_s)

    asked = f"POST join-tokens {uses_max} {ttl_s} {expected_only}"
    _create_secret(db, who, key, asked, now_s, token_id, create)
    return f"tj_{token_id}_{secret}"


def split_token(token: str, prefix: str) -> tuple[str, str]:
    """A token's id and secret; empty when it is none of this kind."""
    found, _, rest = token.partition("_")
    token_id, _, secret = rest.partition("_")
    return (token_id, secret) if found == prefix and len(token) <= 200 else ("", "")


def same_secret(secret: str, stored_sha256: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(hash_secret(secret), stored_sha256)


def _user(db: Database, token_id: str, now_s: float, *, session: bool) -> tuple[Principal, str]:
    found = db.read(lambda connection: row(connection, "SELECT * FROM user_token WHERE id = ?", (token_id,)))
    if found is None:
        raise UnauthorizedError("the token is not known here; make one with `tinysphere token create`")
    if found["revoked_at"] is not None or (found["expires_at"] is not None and found["expires_at"] <= now_s):
        raise UnauthorizedError("the token has expired or was revoked; make one with `tinysphere token create`")
    scopes = ROLES.get(found["role"], frozenset())
    return Principal("user", token_id, found["name"], scopes, session), str(found["secret_sha256"])


def authenticate_user(db: Database, token: str, now_s: float) -> Principal:
    """Who holds a user token.

    Raises:
        UnauthorizedError: it is not known, has expired or was revoked.
    """
    token_id, secret = split_token(token, "ts")
    principal, stored = _user(db, token_id, now_s, session=False)
    if not same_secret(secret, stored):
        raise UnauthorizedError("the token is not known here; make one with `tinysphere token create`")
    return principal


def authenticate_device(db: Database, key: str) -> Principal:
    """Which device holds a key `<device id>.<secret>`.

    Raises:
        UnauthorizedError: no device has it.
    """
    device_id, _, secret = key.partition(".")
    secret_sha256 = hash_secret(secret)
    found = db.read(
        lambda connection: row(
            connection,
            "SELECT name, secret_sha256, next_secret_sha256, revoked_at, retired_at FROM device WHERE id = ?",
            (device_id,),
        )
    )
    if _check_device(found, secret_sha256):
        db.write(lambda connection: _take_next_key(connection, device_id, secret_sha256))
    assert found is not None
    return Principal("device", device_id, found["name"], key_sha256=secret_sha256)


def _check_device(found: Row | None, secret_sha256: str | None) -> bool:
    """Whether the key is the next one, whose use ends the one before."""
    is_next = False
    if found is not None and secret_sha256 is not None:
        following = found["next_secret_sha256"]
        is_next = bool(following) and hmac.compare_digest(secret_sha256, following)
    is_now = found is not None and (secret_sha256 is None or hmac.compare_digest(secret_sha256, found["secret_sha256"]))
    if found is None or not (is_next or is_now):
        raise UnauthorizedError("the device key is not known here; enrol the device again with a new join string")
    if found["retired_at"] is not None or found["revoked_at"] is not None:
        ended = "retired" if found["retired_at"] is not None else "revoked"
        raise UnauthorizedError(f"the device was {ended}; enrol it again with a new join string if it may come back")
    return is_next


def check_device(connection: Connection, device_id: str, found: Row | None, secret_sha256: str | None) -> None:
    """Check a device's key in a writing job, by the device's row there; None asks whether the device may do anything.

    Raises:
        UnauthorizedError: it is not its key any more.
    """
    if _check_device(found, secret_sha256):
        assert secret_sha256 is not None
        _take_next_key(connection, device_id, secret_sha256)


class Keys:
    """Device keys that were right a moment ago, so that not every request asks the database.

    Only for requests whose own transaction asks again, with `check_device`: what was revoked is refused there.
    One thread uses it: the event loop's.
    """

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._keys_max = keys_max
        self._known: OrderedDict[str, Principal] = OrderedDict()

    def find(self, bearer: str) -> Principal | None:
        """Whose key it was a moment ago."""
        device_id, _, secret = bearer.partition(".")
        found = self._known.get(device_id)
        if found is None or not hmac.compare_digest(hash_secret(secret), found.key_sha256):
            return None
        self._known.move_to_end(device_id)
        return found

    def remember(self, principal: Principal) -> None:
        """Note whose key was right now."""
        if principal.kind == "device":
            self._known[principal.id] = principal
            self._known.move_to_end(principal.id)
            if len(self._known) > self._keys_max:
                self._known.popitem(last=False)

    def forget(self, device_id: str) -> None:
        """Note that the key is over."""
        self._known.pop(device_id, None)


def _take_next_key(connection: Connection, device_id: str, secret_sha256: str) -> None:
    """The next key was used: the one before is over."""
    connection.execute(
        "UPDATE device SET secret_sha256 = next_secret_sha256, next_secret_sha256 = NULL"
        " WHERE id = ? AND next_secret_sha256 = ?",
        (device_id, secret_sha256),
    )


def authenticate(db: Database, bearer: str, now_s: float) -> Principal:
    """Who holds a bearer key of either kind.

    Raises:
        UnauthorizedError: nobody.
    """
    if bearer.startswith("ts_"):
        return authenticate_user(db, bearer, now_s)
    if "." in bearer:
        return authenticate_device(db, bearer)
    raise UnauthorizedError("send `Authorization: Bearer` with a user token (ts_...) or a device key")


def create_session(db: Database, token: str, session_s: int, now_s: float) -> str:
    """Sign in with a user token; returns the secret for the cookie.

    Raises:
        UnauthorizedError: the token is not valid.
    """
    principal, secret = authenticate_user(db, token, now_s), secrets.token_urlsafe(32)

    def job(connection: Connection) -> None:
        connection.execute("DELETE FROM session WHERE expires_at <= ?", (now_s,))
        connection.execute(
            "INSERT INTO session (id_sha256, token_id, expires_at) VALUES (?, ?, ?)",
            (hash_secret(secret), principal.id, now_s + session_s),
        )

    db.write(job)
    return secret


def authenticate_session(db: Database, secret: str, now_s: float) -> Principal:
    """Who is signed in with a cookie.

    Raises:
        UnauthorizedError: nobody any more.
    """
    sql = (
        "SELECT s.token_id, s.person, p.role FROM session s"
        " LEFT JOIN person p ON p.name = s.person AND p.disabled_at IS NULL WHERE s.id_sha256 = ? AND s.expires_at > ?"
    )
    found = db.read(lambda connection: row(connection, sql, (hash_secret(secret), now_s)))
    if found is None or (found["person"] is not None and found["role"] is None):
        raise UnauthorizedError("the session has ended; sign in again at /login")
    if found["person"] is not None:
        return Principal("user", found["person"], found["person"], ROLES.get(found["role"], frozenset()), session=True)
    return _user(db, found["token_id"], now_s, session=True)[0]


def end_session(db: Database, secret: str) -> None:
    """Sign out."""
    db.write(lambda connection: connection.execute("DELETE FROM session WHERE id_sha256 = ?", (hash_secret(secret),)))


def require(principal: Principal, scope: str) -> None:
    """Refuse what is not granted: `device`, or a scope of users.

    Raises:
        ForbiddenError: with what is missing.
    """
    if scope == "device":
        if principal.kind != "device":
            raise ForbiddenError("only devices may do this, with their own key")
    elif principal.kind != "user" or scope not in principal.scopes:
        raise ForbiddenError(f"this needs the scope {scope}; ask for a token of a role that has it")
