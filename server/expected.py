"""Devices that are announced by their serial number before they come, and the fleet as a table of CSV.

An announced device gets its name and labels when it enrols with that serial number; a join token may be for announced
devices alone.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from typing import Final

import msgspec

from .audit import audit
from .db import Connection, Database, Page, Row, decode_cursor, paged, row, rows
from .errors import BadRequestError, ConflictError, InvalidError, NotFoundError
from .fleet import DevicePatch, DeviceView, check_labels, check_name, check_serial, list_devices, patch_device_in

COLUMNS: Final = ("id", "serial", "name", "latitude", "longitude", "labels", "enrolled_at", "last_seen_at", "running")
ROWS_MAX: Final = 20_000
_PAGE: Final = 500


class ExpectedRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Announce a device."""

    serial: str
    name: str
    labels: dict[str, str] = {}


class ExpectedView(msgspec.Struct, frozen=True):
    """An announced device; `device_id` is null until it has come."""

    serial: str
    name: str
    labels: dict[str, str]
    device_id: str | None
    created_at: float
    created_by: str


class Imported(msgspec.Struct, frozen=True):
    """What a table has changed: rows without an id were announced, those with one changed."""

    announced: int
    changed: int


def _view(found: Row) -> ExpectedView:
    fields = {key: found[key] for key in ("serial", "name", "created_at", "created_by")}
    return ExpectedView(**fields, labels=json.loads(found["labels"]), device_id=found["device"])


def announce_in(connection: Connection, request: ExpectedRequest, who: str, now_s: float) -> ExpectedView:
    """Announce a device in a writing job; one that has not come yet may be announced anew.

    Raises:
        InvalidError: the serial number, the name or a label is malformed.
        ConflictError: it has come already.
    """
    check_serial(request.serial)
    check_name(request.name)
    check_labels(request.labels)
    connection.lock(f"serial {request.serial}")
    known = row(connection, "SELECT device FROM expected_device WHERE serial = ?", (request.serial,))
    if known is not None and known["device"] is not None:
        raise ConflictError(f"{request.serial} has enrolled already, as {known['device']}; change that device")
    connection.execute(
        "INSERT INTO expected_device (serial, name, labels, created_at, created_by) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (serial) DO UPDATE SET name = excluded.name, labels = excluded.labels,"
        " created_at = excluded.created_at, created_by = excluded.created_by",
        (request.serial, request.name, json.dumps(request.labels, sort_keys=True), now_s, who),
    )
    audit(connection, who, "device.announce", request.serial, now_s)
    return _get(connection, request.serial)


def _get(connection: Connection, serial: str) -> ExpectedView:
    found = row(connection, "SELECT * FROM expected_device WHERE serial = ?", (serial,))
    if found is None:
        raise NotFoundError(f"no device was announced with the serial number {serial!r:.70}")
    return _view(found)


def announce(db: Database, request: ExpectedRequest, who: str, now_s: float) -> ExpectedView:
    """Announce a device: see `announce_in`."""
    return db.write(lambda connection: announce_in(connection, request, who, now_s))


def withdraw(db: Database, serial: str, who: str, now_s: float) -> ExpectedView:
    """Take an announcement back; a device that has come stays.

    Raises:
        NotFoundError: there is none.
    """

    def job(connection: Connection) -> ExpectedView:
        view = _get(connection, serial)
        connection.execute("DELETE FROM expected_device WHERE serial = ?", (serial,))
        audit(connection, who, "device.withdraw", serial, now_s)
        return view

    return db.write(job)


def list_expected(db: Database, cursor: str | None, limit: int) -> Page[ExpectedView]:
    """Announced devices, by serial number."""
    after = decode_cursor(cursor, str, "")
    sql = "SELECT * FROM expected_device WHERE serial > ? ORDER BY serial LIMIT ?"
    found = db.read(lambda connection: rows(connection, sql, (after, limit + 1)))
    return paged([_view(item) for item in found], limit, lambda item: item.serial)


def export_csv(db: Database, now_s: float) -> Iterator[str]:
    """Every device, a line each; labels as `key=value` with semicolons. What `import_csv` reads again."""
    yield _line(COLUMNS)
    cursor: str | None = None
    while True:
        page = list_devices(db, cursor, _PAGE, now_s)
        for device in page.items:
            yield _line(_cells(device))
        cursor = page.next
        if cursor is None:
            return


def _cells(device: DeviceView) -> list[object]:
    labels = ";".join(f"{key}={value}" for key, value in sorted(device.labels.items()))
    running = ";".join(f"{item.model} {item.version}" for item in device.running)
    known = {**{name: getattr(device, name, None) for name in COLUMNS}, "labels": labels, "running": running}
    return [_safe(known[name]) for name in COLUMNS]


def _safe(value: object) -> object:
    """A cell that no spreadsheet takes for a formula (CWE-1236)."""
    if value is None:
        return ""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" and value else value


def _line(cells: Iterable[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def import_csv(db: Database, text: str, who: str, now_s: float) -> Imported:
    """Announce and change devices by a table: see `import_in`."""
    return db.write(lambda connection: import_in(connection, text, who, now_s))


def import_in(connection: Connection, text: str, who: str, now_s: float) -> Imported:
    """Announce and change devices by a table with a header: all of its rows or none.

    A row with an `id` changes that device's name, labels and place; one without announces the `serial`. Other columns
    are not read; an empty cell changes nothing.

    Raises:
        BadRequestError: the header is missing, or there are too many rows.
        InvalidError: with the line that is wrong.
    """
    lines = csv.DictReader(io.StringIO(text, newline=""))
    if not lines.fieldnames or not {"id", "serial"} & set(lines.fieldnames):
        raise BadRequestError(f"the first line names the columns, `id` or `serial` among them: {', '.join(COLUMNS)}")
    try:
        found = [(lines.line_num, cells) for cells in lines]
    except csv.Error as error:
        raise BadRequestError(f"line {lines.line_num}: {error}") from error
    if len(found) > ROWS_MAX:
        raise BadRequestError(f"the table has {len(found)} rows, at most {ROWS_MAX} are taken at once")

    announced = changed = 0
    for number, cells in found:
        try:
            if cells.get("id"):
                _change(connection, cells, who, now_s)
                changed += 1
            else:
                labels = _labels(cells.get("labels") or "")
                request = ExpectedRequest(cells.get("serial") or "", _plain(cells.get("name")), labels)
                announce_in(connection, request, who, now_s)
                announced += 1
        except (InvalidError, ConflictError, NotFoundError) as error:
            raise InvalidError(f"line {number}: {error}; nothing was changed") from error
    return Imported(announced, changed)


def _plain(value: str | None) -> str:
    """A cell as it was before it was made safe."""
    text = (value or "").strip()
    return text[1:] if len(text) > 1 and text[0] == "'" and text[1] in "=+-@" else text


def _labels(text: str) -> dict[str, str]:
    labels = {}
    for part in filter(None, (item.strip() for item in _plain(text).split(";"))):
        key, equals, value = part.partition("=")
        if not equals:
            raise InvalidError(f"labels: {part!r:.70} is no key=value")
        labels[key.strip()] = value.strip()
    return labels


def _degrees(cells: dict[str, str], name: str) -> float:
    try:
        return float(_plain(cells.get(name)))
    except ValueError:
        raise InvalidError(f"{name}: {cells.get(name)!r:.40} is no number of degrees") from None


def _change(connection: Connection, cells: dict[str, str], who: str, now_s: float) -> None:
    changes: dict[str, object] = {}
    if cells.get("name"):
        changes["name"] = _plain(cells["name"])
    if cells.get("labels"):
        changes["labels"] = _labels(cells["labels"])
    if cells.get("latitude") or cells.get("longitude"):
        changes |= {name: _degrees(cells, name) for name in ("latitude", "longitude")}
    patch_device_in(connection, cells["id"], DevicePatch(**changes), "*", who, now_s)  # type: ignore[arg-type]
