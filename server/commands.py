"""Commands for devices: given to those that a selector matches now, delivered with their syncs, answered by records.

A command's id rises with the time it was given, also over a restored database, because a device never looks at an id
again that it has passed. Each device's state goes waiting -> sent -> received -> done, failed, expired, interrupted or
refused; what the device has not received when the time is over expires here. The first answer counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Final

import msgspec
from tinylcm.checks import Fields
from tinylcm.commands import COMMAND, EXPIRES_S_MAX, ITEMS_MAX, CommandState, check_args
from tinylcm.errors import WireError
from tinylcm.types import Json
from tinylcm.wire import finite

from . import selectors
from .audit import audit
from .db import Connection, Database, Page, Row, decode_cursor, paged, row, rows
from .errors import InvalidError, NotFoundError
from .groups import members
from .sql import rows_of

DEVICES_MAX: Final = 100_000  # that one command may mean
DEVICES_SHOWN_MAX: Final = 10_000
DETAIL_CHARACTERS_MAX: Final = 1000
_NO_ID: Final = (1 << 63) - 1


class CommandRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Ask the devices that a selector matches to do something within a time, in seconds."""

    selector: str
    name: str
    args: dict[str, object] = {}
    expires_in_s: float = 3600.0


class DeviceAnswer(msgspec.Struct, frozen=True):
    """How far a command has come on one device."""

    device_id: str
    device_name: str
    state: str
    detail: str
    result: object
    updated_at: float


class CommandView(msgspec.Struct, frozen=True):
    """A command; `devices` is filled for a single one and counted in `states` for all."""

    id: int
    selector: str
    name: str
    args: dict[str, object]
    created_at: float
    created_by: str
    expires_at: float
    states: dict[str, int]
    devices: list[DeviceAnswer]


def create_in(connection: Connection, request: CommandRequest, who: str, now_s: float) -> CommandView:
    """Give a command in a writing job.

    Raises:
        BadRequestError: the selector is malformed.
        InvalidError: there is no such command, an argument is wrong, or no device is meant.
    """
    selectors.parse(request.selector)
    if not 0.0 < request.expires_in_s <= EXPIRES_S_MAX:
        raise InvalidError(f"expires_in_s: is {request.expires_in_s:g}, expected more than 0 and {EXPIRES_S_MAX:g}")
    try:
        args = check_args(request.name, request.args)
    except WireError as error:
        raise InvalidError(str(error)) from error
    meant = members(connection, request.selector)
    if not meant:
        raise InvalidError(f"selector: {request.selector!r:.100} matches no device; see `tinysphere devices`")
    number = _next_id(connection, now_s)
    expires_at = now_s + request.expires_in_s
    connection.execute(
        "INSERT INTO command (id, selector, name, args, created_at, created_by, expires_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (number, request.selector, request.name, json.dumps(args), now_s, who, expires_at),
    )
    connection.executemany(
        "INSERT INTO device_command (command, device, state, detail, result, expires_at, updated_at)"
        " VALUES (?, ?, 'waiting', '', NULL, ?, ?)",
        [(number, device, expires_at, now_s) for device in meant],
    )
    audit(connection, who, "command.create", f"{number} {request.name} {request.selector}", now_s)
    return _get(connection, number, now_s)


def _next_id(connection: Connection, now_s: float) -> int:
    connection.lock("command")
    found = row(connection, "SELECT MAX(id) AS last FROM command")
    last = found["last"] if found is not None and found["last"] is not None else 0
    return max(int(last) + 1, int(now_s * 1000))


# The API ---------------------------------------------------------------------------------------------------

# What was not received in time has expired, although nobody has come to be told.
_STATE: Final = "CASE WHEN s.state IN ('waiting', 'sent') AND s.expires_at <= ? THEN 'expired' ELSE s.state END"


def _view(connection: Connection, found: Row, devices: list[DeviceAnswer], now_s: float) -> CommandView:
    sql = f"SELECT {_STATE} AS shown, COUNT(*) AS n FROM device_command s WHERE s.command = ? GROUP BY shown"  # noqa: S608
    return CommandView(
        id=found["id"],
        selector=found["selector"],
        name=found["name"],
        args=json.loads(found["args"]),
        created_at=found["created_at"],
        created_by=found["created_by"],
        expires_at=found["expires_at"],
        states={item["shown"]: item["n"] for item in rows(connection, sql, (now_s, found["id"]))},
        devices=devices,
    )


def _get(connection: Connection, number: int, now_s: float) -> CommandView:
    found = row(connection, "SELECT * FROM command WHERE id = ?", (number,))
    if found is None:
        raise NotFoundError(f"there is no command {number}; see `tinysphere commands`")
    sql = (
        f"SELECT s.device AS device_id, COALESCE(d.name, '') AS device_name, {_STATE} AS state, s.detail,"  # noqa: S608
        " s.result, s.updated_at FROM device_command s"
        " LEFT JOIN device d ON d.id = s.device WHERE s.command = ? ORDER BY s.device LIMIT ?"
    )
    devices = [
        DeviceAnswer(**{**item, "result": None if item["result"] is None else json.loads(item["result"])})
        for item in rows(connection, sql, (now_s, number, DEVICES_SHOWN_MAX))
    ]
    return _view(connection, found, devices, now_s)


def get_command(db: Database, number: int, now_s: float) -> CommandView:
    """One command with each device's answer.

    Raises:
        NotFoundError: there is none of this id.
    """
    return db.read(lambda connection: _get(connection, number, now_s))


def list_answers(
    db: Database, number: int, state: str | None, cursor: str | None, limit: int, now_s: float
) -> Page[DeviceAnswer]:
    """The devices of a command, by id; with a state only those.

    Raises:
        NotFoundError: there is no such command.
    """
    after = decode_cursor(cursor, str, "")
    sql = (
        f"SELECT s.device AS device_id, COALESCE(d.name, '') AS device_name, {_STATE} AS state, s.detail,"  # noqa: S608
        " s.result, s.updated_at FROM device_command s LEFT JOIN device d ON d.id = s.device"
        f" WHERE s.command = ? AND s.device > ? AND (CAST(? AS TEXT) IS NULL OR {_STATE} = ?) ORDER BY s.device LIMIT ?"
    )

    def job(connection: Connection) -> list[Row]:
        if row(connection, "SELECT 1 FROM command WHERE id = ?", (number,)) is None:
            raise NotFoundError(f"there is no command {number}; see `tinysphere commands`")
        return rows(connection, sql, (now_s, number, after, state, now_s, state, limit + 1))

    answers = [
        DeviceAnswer(**{**item, "result": None if item["result"] is None else json.loads(item["result"])})
        for item in db.read(job)
    ]
    return paged(answers, limit, lambda answer: answer.device_id)


def list_commands(db: Database, cursor: str | None, limit: int, now_s: float) -> Page[CommandView]:
    """Commands, newest first."""
    before = decode_cursor(cursor, int, _NO_ID)

    def job(connection: Connection) -> list[CommandView]:
        sql = "SELECT * FROM command WHERE id < ? ORDER BY id DESC LIMIT ?"
        return [_view(connection, found, [], now_s) for found in rows(connection, sql, (before, limit + 1))]

    return paged(db.read(job), limit, lambda command: command.id)


# The syncs -------------------------------------------------------------------------------------------------


def waiting_for(connection: Connection, devices: Sequence[str]) -> set[str]:
    """Those of the devices that a command waits for: the others need not be asked about one by one."""
    keys, waits = [(device,) for device in devices], "AND state IN ('waiting', 'sent')"
    return {found["device"] for found in rows_of(connection, "device_command", ("device",), ("device",), keys, waits)}


def deliver(connection: Connection, device: str, cursor: int, now_s: float) -> tuple[Json, ...]:
    """The commands for a device's answer, oldest first, and a note of what it has received.

    Args:
        cursor: id of the last item that the device has stored.
    """
    open_ones = "device = ? AND state IN ('waiting', 'sent')"
    if row(connection, f"SELECT 1 FROM device_command WHERE {open_ones} LIMIT 1", (device,)) is None:  # noqa: S608
        return ()
    connection.execute(
        "UPDATE device_command SET state = 'received', updated_at = ?"
        " WHERE device = ? AND state = 'sent' AND command <= ?",
        (now_s, device, cursor),
    )
    connection.execute(
        f"UPDATE device_command SET state = 'expired', updated_at = ? WHERE {open_ones} AND expires_at <= ?",  # noqa: S608
        (now_s, device, now_s),
    )
    found = rows(
        connection,
        "SELECT c.id, c.name, c.args, c.expires_at FROM device_command s JOIN command c ON c.id = s.command"
        " WHERE s.device = ? AND s.state IN ('waiting', 'sent') AND s.command > ? ORDER BY s.command LIMIT ?",
        (device, cursor, ITEMS_MAX),
    )
    connection.executemany(
        "UPDATE device_command SET state = 'sent', updated_at = ? WHERE command = ? AND device = ?",
        [(now_s, item["id"], device) for item in found],
    )
    return tuple(
        {
            "id": item["id"],
            "type": COMMAND,
            "name": item["name"],
            "args": json.loads(item["args"]),
            "expires_in_s": item["expires_at"] - now_s,
        }
        for item in found
    )


def note_result(connection: Connection, device: str, fields: Fields, now_s: float) -> None:
    """Store what a `command_result` record says.

    Raises:
        WireError: it says nothing that can be.
    """
    number, state = fields.natural("command"), fields.text("state")
    if state not in set(CommandState):
        raise fields.fail("state", f"is {state!r:.40}; expected one of {', '.join(CommandState)}")
    detail = fields.text("detail", "", length_max=10_000)[:DETAIL_CHARACTERS_MAX]
    result = json.dumps(finite(fields.value.get("result")))
    connection.execute(
        "UPDATE device_command SET state = ?, detail = ?, result = ?, updated_at = ?"
        " WHERE command = ? AND device = ? AND state IN ('waiting', 'sent', 'received')",
        (state, detail, result, now_s, number, device),
    )
