"""Join strings: what a device enrols with. Their tokens are made here, listed without their secrets, and ended."""

from __future__ import annotations

import hashlib
import ssl
from typing import Final

import msgspec
from tinylcm.errors import ConfigError

from . import auth, trust
from .audit import audit
from .db import Connection, Database, Page, decode_cursor, paged, row, rows
from .errors import InvalidError, NotFoundError

URL_CHARACTERS_MAX: Final = 500


class JoinRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Ask for a join string.

    `url` is the server's address as devices reach it. `root` is the fingerprint of a root key that is trusted here; it
    may be left out when there is one alone.
    """

    url: str
    root: str = ""
    uses: int = 1
    ttl_s: int = 86400
    expected_only: bool = False


class NewJoin(msgspec.Struct, frozen=True):
    """A join string just made; it is never shown again."""

    join: str
    id: str
    root: str
    uses: int
    expires_at: float
    expected_only: bool


class JoinView(msgspec.Struct, frozen=True):
    """A join token without its secret; `uses` of `uses_max` devices have enrolled with it."""

    id: str
    uses: int
    uses_max: int
    created_at: float
    expires_at: float
    expected_only: bool


def join_string(url: str, token: str, root: str, ca_pem: bytes | None) -> str:
    """Everything that a device has to know, in one line.

    Raises:
        ConfigError: the address or the certificate is none.
    """
    if not url.startswith(("http://", "https://")) or len(url) > URL_CHARACTERS_MAX or any(c in url for c in "# \n"):
        raise ConfigError(f"{url!r:.200} is no http(s) address that devices could reach")
    join = f"tinysphere+{url.rstrip('/')}/join#token={token}&root={root}"
    if ca_pem is None:
        return join
    try:
        der = ssl.PEM_cert_to_DER_cert(ca_pem.decode("ascii", "replace").strip())
    except ValueError as error:
        raise ConfigError(f"the authority that devices are to pin is no PEM certificate: {error}") from error
    return f"{join}&ca=sha256:{hashlib.sha256(der).hexdigest()}"


def make(
    db: Database, request: JoinRequest, ca_pem: bytes | None, who: str, now_s: float, key: str | None = None
) -> NewJoin:
    """Make a join string.

    Args:
        ca_pem: the authority that devices are to pin, if the server has one.
        key: an Idempotency-Key.

    Raises:
        InvalidError: the address, the root or a bound is wrong.
        ConflictError: the key made a token before; its secret was shown only then.
    """
    roots = [root.fingerprint for root in trust.list_roots(db)]
    root = request.root or (roots[0] if len(roots) == 1 else "")
    if root not in roots:
        known = ", ".join(roots) or "none; `tinysphere trust` pins one on the server's machine"
        raise InvalidError(f"root: expected the fingerprint of a root that is trusted here: {known}")
    try:
        join_string(request.url, "", root, ca_pem)
    except ConfigError as error:
        raise InvalidError(f"url: {error}") from error
    token = auth.create_join_token(
        db, request.uses, request.ttl_s, who, now_s, expected_only=request.expected_only, key=key
    )
    join = join_string(request.url, token, root, ca_pem)
    token_id = auth.split_token(token, "tj")[0]
    return NewJoin(join, token_id, root, request.uses, now_s + request.ttl_s, request.expected_only)


def list_joins(db: Database, cursor: str | None, limit: int) -> Page[JoinView]:
    """Join tokens by id, also those that are over."""
    after = decode_cursor(cursor, str, "")
    sql = "SELECT * FROM join_token WHERE id > ? ORDER BY id LIMIT ?"
    found = db.read(lambda connection: rows(connection, sql, (after, limit + 1)))
    views = [
        JoinView(
            item["id"],
            item["uses"],
            item["uses_max"],
            item["created_at"],
            item["expires_at"],
            bool(item["expected_only"]),
        )
        for item in found
    ]
    return paged(views, limit, lambda join: join.id)


def revoke(db: Database, token_id: str, who: str, now_s: float) -> JoinView:
    """End a join token: no other device enrols with it. Those that have stay.

    Raises:
        NotFoundError: there is none of this id.
    """

    def job(connection: Connection) -> JoinView:
        found = row(connection, "SELECT * FROM join_token WHERE id = ?", (token_id,))
        if found is None:
            raise NotFoundError(f"there is no join token {token_id!r:.40}; see `tinysphere join list`")
        expires_at = min(found["expires_at"], now_s)
        connection.execute("UPDATE join_token SET expires_at = ? WHERE id = ?", (expires_at, token_id))
        audit(connection, who, "join.revoke", token_id, now_s)
        return JoinView(
            token_id,
            found["uses"],
            found["uses_max"],
            found["created_at"],
            expires_at,
            bool(found["expected_only"]),
        )

    return db.write(job)
