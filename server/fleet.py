"""Devices: enrolment, the registry, labels, and what a selector of devices means."""

from __future__ import annotations

import base64
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from tinylcm.checks import INTEGER_MAX

from .audit import audit
from .auth import same_secret, split_token
from .boards import BoardView, boards_of
from .db import Connection, Database, Page, Row, decode_cursor, paged, raise_generation, row, rows
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
SHA256: Final = re.compile(r"[0-9a-f]{64}")
_KEY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_VALUE: Final = re.compile(r"[^,=\s]{1,100}")
_SERIAL: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,100}")


class EnrolRequest(msgspec.Struct, frozen=True):
    """What a device sends to become known; it keeps its secret and sends the hash."""

    token: str
    name: str
    secret_sha256: str
    capabilities: dict[str, object] = {}
    serial: str = ""


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
    serial: str | None
    latitude: float | None
    longitude: float | None
    revoked_at: float | None
    retired_at: float | None
    boards: list[BoardView]


class DevicePatch(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A change of a device; what is left out stays. `labels` replaces all of them; null takes a place away.

    `latitude` and `longitude` are degrees of WGS 84, as somebody has set them: a place is never guessed.
    """

    name: str | None = None
    labels: dict[str, str] | None = None
    latitude: float | msgspec.UnsetType | None = msgspec.UNSET
    longitude: float | msgspec.UnsetType | None = msgspec.UNSET


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
    if not SHA256.fullmatch(request.secret_sha256):
        raise InvalidError("secret_sha256: expected 64 lower-case hexadecimal digits")
    check_name(request.name)
    capabilities = json.dumps(request.capabilities)
    if len(capabilities) > CAPABILITIES_BYTES_MAX:
        raise InvalidError(f"capabilities: more than {CAPABILITIES_BYTES_MAX} bytes of JSON")
    if request.serial:
        check_serial(request.serial)
    token_id, secret = split_token(request.token, "tj")

    def job(connection: Connection) -> tuple[Enrolled, bool]:
        connection.lock(f"join {token_id}")
        token = row(connection, "SELECT * FROM join_token WHERE id = ?", (token_id,))
        if token is None or not same_secret(secret, token["secret_sha256"]):
            raise ForbiddenError("the join token is not known here; make a join string with `tinysphere join create`")
        known = row(
            connection,
            "SELECT id, name FROM device WHERE secret_sha256 = ? AND join_token = ? AND retired_at IS NULL",
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
        expected = _expected(connection, request.serial, only=bool(token["expected_only"]))
        name, labels = (request.name, "{}") if expected is None else (expected["name"], expected["labels"])
        device_id = _new_device_id()
        if expected is not None:
            connection.execute("UPDATE expected_device SET device = ? WHERE serial = ?", (device_id, request.serial))
        connection.execute("UPDATE join_token SET uses = uses + 1 WHERE id = ?", (token_id,))
        connection.execute(
            "INSERT INTO device (id, name, secret_sha256, join_token, labels, capabilities, running, enrolled_at,"
            " next_sync_s, row_version, serial) VALUES (?, ?, ?, ?, ?, ?, '[]', ?, 30.0, 1, ?)",
            (device_id, name, request.secret_sha256, token_id, labels, capabilities, now_s, request.serial or None),
        )
        audit(connection, f"device:{device_id}", "device.enrol", f"{device_id} join token {token_id}", now_s)
        return Enrolled(device_id, name, db.instance), True

    return db.write(job)


def _expected(connection: Connection, serial: str, *, only: bool) -> Row | None:
    """What was announced of a serial number.

    Raises:
        ForbiddenError: it is enrolled already, or the token is for announced devices alone and this is none.
    """
    connection.lock(f"serial {serial}")
    found = row(connection, "SELECT * FROM expected_device WHERE serial = ?", (serial,)) if serial else None
    if found is None and only:
        raise ForbiddenError(
            "this join token is for devices that were announced by their serial number, and "
            + (
                f"{serial!r:.70} was not: `tinysphere expect add`"
                if serial
                else "none was sent: `tinylcm enrol --serial`"
            )
        )
    if found is not None and found["device"] is not None:
        raise ForbiddenError(f"the serial number is enrolled already, as {found['device']}; retire that device first")
    return found


def check_serial(serial: str) -> None:
    """Refuse what is no serial number.

    Raises:
        InvalidError: it is none.
    """
    if not _SERIAL.fullmatch(serial):
        raise InvalidError("serial: expected 1 to 64 letters, digits, _ . : and -")


def check_name(name: str) -> None:
    """Refuse a device's name that cannot be shown.

    Raises:
        InvalidError: it cannot.
    """
    if not _NAME.fullmatch(name) or not name.isprintable():
        raise InvalidError("name: expected 1 to 100 printable characters")


_VIEW: Final = """SELECT d.*,
 (SELECT COUNT(*) FROM drift_event e WHERE e.device = d.id) AS alarms,
 (SELECT SUM(CAST(g.count AS DOUBLE PRECISION)) FROM gap g WHERE g.device = d.id) AS gaps
 FROM device d"""


def _view(found: Row, now_s: float, boards: Mapping[str, list[BoardView]]) -> DeviceView:
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
        gaps=min(int(found["gaps"] or 0), INTEGER_MAX),
        row_version=found["row_version"],
        serial=found["serial"],
        latitude=found["latitude"],
        longitude=found["longitude"],
        revoked_at=found["revoked_at"],
        retired_at=found["retired_at"],
        boards=boards.get(found["id"], []),
    )


def _views(connection: Connection, found: Sequence[Row], now_s: float) -> list[DeviceView]:
    boards = boards_of(connection, [item["id"] for item in found])
    return [_view(item, now_s, boards) for item in found]


def list_devices(db: Database, cursor: str | None, limit: int, now_s: float) -> Page[DeviceView]:
    """Devices by id, without those that were retired.

    Raises:
        BadRequestError: the cursor is none of this list.
    """
    after = decode_cursor(cursor, str, "")
    sql = f"{_VIEW} WHERE d.id > ? AND d.retired_at IS NULL ORDER BY d.id LIMIT ?"
    found = db.read(lambda connection: _views(connection, rows(connection, sql, (after, limit + 1)), now_s))
    return paged(found, limit, lambda device: device.id)


def get_device(db: Database, device_id: str, now_s: float) -> DeviceView:
    """One device.

    Raises:
        NotFoundError: there is none of this id.
    """
    sql = f"{_VIEW} WHERE d.id = ?"
    found = db.read(lambda connection: _views(connection, rows(connection, sql, (device_id,)), now_s))
    if not found:
        raise NotFoundError(f"there is no device {device_id!r:.40}; see `tinysphere devices`")
    return found[0]


def etag(row_version: int) -> str:
    """The ETag of a row version."""
    return f'"{row_version}"'


def patch_device(
    db: Database, device_id: str, patch: DevicePatch, if_match: str | None, who: str, now_s: float
) -> DeviceView:
    """Change a device's name, labels or place.

    Raises:
        PreconditionRequiredError: no If-Match was sent.
        PreconditionFailedError: the device has changed since.
        InvalidError: a name, a label or the place is malformed.
        NotFoundError: there is no such device.
    """
    if if_match is None:
        raise PreconditionRequiredError("send If-Match with the ETag of GET on this device, so that no change is lost")
    db.write(lambda connection: patch_device_in(connection, device_id, patch, if_match, who, now_s))
    return get_device(db, device_id, now_s)


def patch_device_in(
    connection: Connection, device_id: str, patch: DevicePatch, if_match: str, who: str, now_s: float
) -> None:
    """The body of `patch_device`, in a writing job."""
    if patch.name is not None:
        check_name(patch.name)
    if patch.labels is not None:
        check_labels(patch.labels)
    place = _place(patch)
    found = row(connection, "SELECT * FROM device WHERE id = ?", (device_id,))
    if found is None:
        raise NotFoundError(f"there is no device {device_id!r:.40}; see `tinysphere devices`")
    if if_match not in ("*", etag(found["row_version"])):
        raise PreconditionFailedError(
            f"the device is now at {etag(found['row_version'])}, the request changes {if_match:.40}; read it again"
        )
    connection.execute(
        "UPDATE device SET name = ?, labels = ?, latitude = ?, longitude = ?, row_version = row_version + 1"
        " WHERE id = ?",
        (
            found["name"] if patch.name is None else patch.name,
            found["labels"] if patch.labels is None else json.dumps(patch.labels, sort_keys=True),
            *((found["latitude"], found["longitude"]) if place is None else place),
            device_id,
        ),
    )
    raise_generation(connection)
    audit(connection, who, "device.change", device_id, now_s)


def _place(patch: DevicePatch) -> tuple[float | None, float | None] | None:
    """Where a change puts the device; None when it says nothing of it.

    Raises:
        InvalidError: it is half a place, or none on this planet.
    """
    latitude, longitude = patch.latitude, patch.longitude
    if isinstance(latitude, msgspec.UnsetType) and isinstance(longitude, msgspec.UnsetType):
        return None
    if latitude is None and longitude is None:
        return None, None
    if not isinstance(latitude, float | int) or not isinstance(longitude, float | int):
        raise InvalidError("latitude, longitude: a place has both; null for both takes it away")
    if not -90 <= latitude <= 90 or not -180 <= longitude <= 180:
        raise InvalidError("latitude, longitude: expected degrees, -90 to 90 and -180 to 180")
    return float(latitude), float(longitude)


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse labels that no selector could name.

    Raises:
        InvalidError: with the one that is wrong.
    """
    if len(labels) > LABELS_MAX:
        raise InvalidError(f"labels: {len(labels)} are given, at most {LABELS_MAX} are taken")
    for key, value in labels.items():
        if not _KEY.fullmatch(key) or key in ("id", "name", "group"):
            raise InvalidError(f"labels.{key:.70}: expected letters, digits, _ . - and not `id`, `name` or `group`")
        if not _VALUE.fullmatch(value):
            raise InvalidError(f"labels.{key}: expected 1 to 100 characters without blanks, commas and =")
