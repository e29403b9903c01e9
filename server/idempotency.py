"""A creation that is sent twice with one Idempotency-Key happens once and is answered alike."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from .db import Connection, Database, row
from .errors import BadRequestError, ConflictError

KEEP_S: Final = 86400.0
KEY_CHARACTERS_MAX: Final = 200


def once(
    db: Database, who: str, key: str | None, request: bytes, now_s: float, create: Callable[[Connection], bytes]
) -> bytes:
    """Run a creation, or give the answer that it was given before.

    Args:
        who: whose key it is: two people's keys never meet.
        key: the Idempotency-Key; None runs it without protection.
        request: the request's canonical bytes: a key belongs to one request.
        create: the creation, in the writing job that also stores the answer.

    Raises:
        BadRequestError: the key is too long.
        ConflictError: the key was used for another request.
    """
    if key is None:
        return db.write(create)
    if not 0 < len(key) <= KEY_CHARACTERS_MAX:
        raise BadRequestError(f"the Idempotency-Key has more than {KEY_CHARACTERS_MAX} characters, or none")
    digest = hashlib.sha256(request).hexdigest()

    def job(connection: Connection) -> bytes:
        connection.lock(f"idempotency {who} {key}")
        connection.execute("DELETE FROM idempotency WHERE created_at < ?", (now_s - KEEP_S,))
        known = row(connection, "SELECT request_sha256, answer FROM idempotency WHERE who = ? AND key = ?", (who, key))
        if known is not None:
            if known["request_sha256"] != digest:
                raise ConflictError("this Idempotency-Key was used for another request; take a new key")
            return bytes(known["answer"])
        answer = create(connection)
        connection.execute(
            "INSERT INTO idempotency (key, who, request_sha256, status, answer, created_at)"
            " VALUES (?, ?, ?, 201, ?, ?)",
            (key, who, digest, answer, now_s),
        )
        return answer

    return db.write(job)
