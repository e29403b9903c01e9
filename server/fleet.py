"""Devices: enrolment, the registry, labels, and what a selector of devices means."""

from __future__ import annotations

import base64
import json
import re
import secrets
import sqlite3
from collections.abc import Mapping
from typing import Final

import msgspec

from .auth import audit, same_secret, split_token
from .db import Connection, Database, Page, decode_cursor, paged, raise_generation, row, rows
from .errors import (
    ForbiddenError,
    InvalidError,
    NotFoundError,
    PreconditionFailedError,
    PreconditionRequiredError,
)

ONLINE_S_MIN: Final = 60.0
ONLINE_SYNCS: Final = 3
LABELS_MAX: Final = 64
CAPABILITIES_BYTES_MAX: Final = 64 << 10
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_KEY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_VALUE: Final = re.compile(r"[^,=\s]{1,100}")
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,100}")


class EnrolRequest(msgspec.Struct, frozen=True):
    """What a device sends to become known; it keeps its secret and sends the hash."""

    token: str
    name: str
    secret_sha256: str
    capabilities: dict[str, object] = {}


class Enrolled(msgspec.Struct, frozen=True):
    """The answer to an enrolment."""

    device_id: str
    name: str
    server_instance: str


class RunningView(msgspec.Struct, frozen=True):
    """What a slot of a device holds."""

    model: str
    version: str
    sha256: str
    state: str


class DeviceView(msgspec.Struct, frozen=True):
    """A device as the API and the pages show it."""

    id: str
    name: str
    labels: dict[str, str]
    enrolled_at: float
    last_seen_at: float | None
    online: bool
    clock_offset_s: float | None
    capabilities: dict[str, object]
    running: list[RunningView]
    alarms: int
    gaps: int
    row_version: int


class DevicePatch(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A change of a device; what is left out stays. `labels` replaces all of them."""

    name: str | None = None
    labels: dict[str, str] | None = None


def _new_device_id() -> str:
    return "d" + base64.b32encode(secrets.token_bytes(10)).decode().lower()[:12]


def enrol(db: Database, request: EnrolRequest, now_s: float) -> tuple[Enrolled, bool]:
    """Make a device known. The same secret with the same token gets the same answer, whenever it asks.

    Returns:
        The answer, and whether the device is new.

    Raises:
        InvalidError: the name or the hash is malformed.
        ForbiddenError: the token is not known, used up or expired.
    """
    if not _SHA256.fullmatch(request.secret_sha256):
        raise InvalidError("secret_sha256: expected 64 lower-case hexadecimal digits")
    _check_name(request.name)
    capabilities = json.dumps(request.capabilities)
    if len(capabilities) > CAPABILITIES_BYTES_MAX:
        raise InvalidError(f"capabilities: more than {CAPABILITIES_BYTES_MAX} bytes of JSON")
    token_id, secret = split_token(request.token, "tj")

    def job(connection: Connection) -> tuple[Enrolled, bool]:
        token = row(connection, "SELECT * FROM join_token WHERE id = ?", (token_id,))
        if token is None or not same_secret(secret, token["secret_sha256"]):
            raise ForbiddenError("the join token is not known here; make a join string with `tinysphere join create`")
        known = row(
            connection,
            "SELECT id, name FROM device WHERE secret_sha256 = ? AND join_token = ?",
            (request.secret_sha256, token_id),
        )
        if known is not None:
            return Enrolled(known["id"], known["name"], db.instance), False
        if token["expires_at"] <= now_s:
            raise ForbiddenError("the join token has expired; make a new join string with `tinysphere join create`")
        if token["uses"] >= token["uses_max"]:
            raise ForbiddenError(
                f"the join token was used {token['uses']} of {token['uses_max']} times; "
                "make a new join string with `tinysphere join create`"
            )
        device_id = _new_device_id()
        connection.execute("UPDATE join_token SET uses = uses + 1 WHERE id = ?", (token_id,))
        connection.execute(
            "INSERT INTO device (id, name, secret_sha256, join_token, labels, capabilities, running, enrolled_at,"
            " next_sync_s, row_version) VALUES (?, ?, ?, ?, '{}', ?, '[]', ?, 30.0, 1)",
            (device_id, request.name, request.secret_sha256, token_id, capabilities, now_s),
        )
        raise_generation(connection)
        audit(connection, f"device:{device_id}", "device.enrol", f"{device_id} join token {token_id}", now_s)
        return Enrolled(device_id, request.name, db.instance), True

    return db.write(job)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or not name.isprintable():
        raise InvalidError("name: expected 1 to 100 printable characters")


_VIEW: Final = """SELECT d.*,
 (SELECT COUNT(*) FROM drift_event e WHERE e.device = d.id) AS alarms,
 (SELECT CAST(TOTAL(g.count) AS INTEGER) FROM gap g WHERE g.device = d.id) AS gaps
 FROM device d"""


def _view(found: sqlite3.Row, now_s: float) -> DeviceView:
    seen = found["last_seen_at"]
    return DeviceView(
        id=found["id"],
        name=found["name"],
        labels=json.loads(found["labels"]),
        enrolled_at=found["enrolled_at"],
        last_seen_at=seen,
        online=seen is not None and now_s - seen <= max(ONLINE_S_MIN, ONLINE_SYNCS * found["next_sync_s"]),
        clock_offset_s=found["clock_offset_s"],
        capabilities=json.loads(found["capabilities"]),
        running=[RunningView(**item) for item in json.loads(found["running"])],
        alarms=found["alarms"],
        gaps=found["gaps"],
        row_version=found["row_version"],
    )


def list_devices(db: Database, cursor: str | None, limit: int, now_s: float) -> Page[DeviceView]:
    """Devices by id.

    Raises:
        BadRequestError: the cursor is none of this list.
    """
    after = decode_cursor(cursor, str, "")
    sql = f"{_VIEW} WHERE d.id > ? ORDER BY d.id LIMIT ?"
    found = db.read(lambda connection: rows(connection, sql, (after, limit + 1)))
    return paged([_view(item, now_s) for item in found], limit, lambda device: device.id)


def get_device(db: Database, device_id: str, now_s: float) -> DeviceView:
    """One device.

    Raises:
        NotFoundError: there is none of this id.
    """
    found = db.read(lambda connection: row(connection, f"{_VIEW} WHERE d.id = ?", (device_id,)))
    if found is None:
        raise NotFoundError(f"there is no device {device_id!r:.40}; see `tinysphere devices`")
    return _view(found, now_s)


def etag(row_version: int) -> str:
    """The ETag of a row version."""
    return f'"{row_version}"'


def patch_device(
    db: Database, device_id: str, patch: DevicePatch, if_match: str | None, who: str, now_s: float
) -> DeviceView:
    """Change a device's name or labels.

    Raises:
        PreconditionRequiredError: no If-Match was sent.
        PreconditionFailedError: the device has changed since.
        InvalidError: a name or a label is malformed.
        NotFoundError: there is no such device.
    """
    if if_match is None:
        raise PreconditionRequiredError("send If-Match with the ETag of GET on this device, so that no change is lost")
    if patch.name is not None:
        _check_name(patch.name)
    if patch.labels is not None:
        _check_labels(patch.labels)

    def job(connection: Connection) -> None:
        found = row(connection, "SELECT name, labels, row_version FROM device WHERE id = ?", (device_id,))
        if found is None:
            raise NotFoundError(f"there is no device {device_id!r:.40}; see `tinysphere devices`")
        if if_match not in ("*", etag(found["row_version"])):
            raise PreconditionFailedError(
                f"the device is now at {etag(found['row_version'])}, the request changes {if_match:.40}; read it again"
            )
        connection.execute(
            "UPDATE device SET name = ?, labels = ?, row_version = row_version + 1 WHERE id = ?",
            (
                found["name"] if patch.name is None else patch.name,
                found["labels"] if patch.labels is None else json.dumps(patch.labels, sort_keys=True),
                device_id,
            ),
        )
        raise_generation(connection)
        audit(connection, who, "device.change", device_id, now_s)

    db.write(job)
    return get_device(db, device_id, now_s)


def _check_labels(labels: Mapping[str, str]) -> None:
    if len(labels) > LABELS_MAX:
        raise InvalidError(f"labels: {len(labels)} are given, at most {LABELS_MAX} are taken")
    for key, value in labels.items():
        if not _KEY.fullmatch(key) or key in ("id", "name"):
            raise InvalidError(f"labels.{key:.70}: expected letters, digits, _ . - and not `id` or `name`")
        if not _VALUE.fullmatch(value):
            raise InvalidError(f"labels.{key}: expected 1 to 100 characters without blanks, commas and =")
