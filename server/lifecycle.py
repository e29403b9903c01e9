"""Keys that change, devices that are shut out, devices that go out of service."""

from __future__ import annotations

import msgspec

from .audit import audit
from .db import Connection, Database, raise_generation, row
from .errors import InvalidError
from .fleet import SHA256, DeviceView, etag, get_device
from .preconditions import check_match


class KeyRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The hash of a device's next secret."""

    secret_sha256: str


class KeyAnswer(msgspec.Struct, frozen=True):
    """The next key is known: it and the present one are valid until the next one is used first."""

    device_id: str


def change_key(db: Database, device_id: str, request: KeyRequest, now_s: float) -> KeyAnswer:
    """Let a device have another key. Asking again with the same hash changes nothing.

    Raises:
        InvalidError: the hash is malformed.
    """
    if not SHA256.fullmatch(request.secret_sha256):
        raise InvalidError("secret_sha256: expected 64 lower-case hexadecimal digits")

    def job(connection: Connection) -> KeyAnswer:
        changed = connection.execute(
            "UPDATE device SET next_secret_sha256 = ? WHERE id = ? AND secret_sha256 <> ?"
            " AND (next_secret_sha256 IS NULL OR next_secret_sha256 <> ?)",
            (request.secret_sha256, device_id, request.secret_sha256, request.secret_sha256),
        )
        if changed.rowcount:
            audit(connection, f"device:{device_id}", "device.key", device_id, now_s)
        return KeyAnswer(device_id)

    return db.write(job)


def revoke(db: Database, device_id: str, who: str, now_s: float, if_match: str | None = None) -> DeviceView:
    """Refuse a device's key from now on. It may enrol again, as another device.

    Raises:
        PreconditionFailedError: the device has changed since `if_match`.
        NotFoundError: there is no such device.
    """
    return _end(db, device_id, "revoked_at", "device.revoke", who, now_s, if_match)


def retire(db: Database, device_id: str, who: str, now_s: float, if_match: str | None = None) -> DeviceView:
    """Take a device out of service: its key is refused, it is in no list and no selector means it.

    What it has sent stays until retention removes it; its serial number may be enrolled again.

    Raises:
        PreconditionFailedError: the device has changed since `if_match`.
        NotFoundError: there is no such device.
    """
    return _end(db, device_id, "retired_at", "device.retire", who, now_s, if_match)


def _end(
    db: Database, device_id: str, column: str, what: str, who: str, now_s: float, if_match: str | None
) -> DeviceView:
    def job(connection: Connection) -> None:
        found = row(connection, "SELECT row_version FROM device WHERE id = ?", (device_id,))
        current = None if found is None else etag(found["row_version"])
        check_match(if_match, current, f"the device {device_id}", needed=False)
        changed = connection.execute(
            f"UPDATE device SET {column} = ?, next_secret_sha256 = NULL, row_version = row_version + 1"  # noqa: S608
            f" WHERE id = ? AND {column} IS NULL",
            (now_s, device_id),
        )
        if changed.rowcount:
            connection.execute("UPDATE expected_device SET device = NULL WHERE device = ?", (device_id,))
            raise_generation(connection)
            audit(connection, who, what, device_id, now_s)

    get_device(db, device_id, now_s)
    db.write(job)
    return get_device(db, device_id, now_s)
