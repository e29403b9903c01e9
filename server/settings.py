"""What the server sets of devices' configuration: numbered versions of a scope, and what each device made of them.

There is one scope so far, `all`. Versions are numbered over all scopes, so that what a device gets has one number
whatever scopes it is made of: the highest of theirs. The newest version of a scope counts; the earlier ones are kept.
"""

from __future__ import annotations

import json
from typing import Final

import msgspec
from tinylcm.checks import Fields
from tinylcm.errors import ConfigError
from tinylcm.remote_config import check_settings
from tinylcm.types import Json

from .audit import audit
from .db import Connection, Database, raise_generation, row, rows
from .errors import InvalidError, NotFoundError, PreconditionFailedError, PreconditionRequiredError
from .fleet import etag

SCOPES: Final = ("all",)  # of devices; a scope of one device or a group is one more name and one more row
STATES: Final = ("applied", "refused", "rolled_back")
REASON_CHARACTERS_MAX: Final = 1000
DEVICES_SHOWN_MAX: Final = 10_000


class SettingsRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Tables and keys as in device.toml; they replace all that the scope had."""

    settings: dict[str, object]


class DeviceSettings(msgspec.Struct, frozen=True):
    """What a device made of the version that it was sent last."""

    device_id: str
    device_name: str
    version: int
    state: str
    reason: str
    updated_at: float


class SettingsView(msgspec.Struct, frozen=True):
    """The newest settings of a scope; version 0 stands for none yet."""

    scope: str
    version: int
    settings: dict[str, object]
    created_at: float
    created_by: str
    devices: list[DeviceSettings]


def _check_scope(scope: str) -> None:
    if scope not in SCOPES:
        raise NotFoundError(f"there is no scope {scope!r:.70}; there is: {', '.join(SCOPES)}")


def put(
    db: Database, scope: str, request: SettingsRequest, if_match: str | None, who: str, now_s: float
) -> SettingsView:
    """Set a scope's settings; the same again changes nothing.

    Raises:
        NotFoundError: there is no such scope.
        InvalidError: a key that a server may not set, or a value that no device takes.
        PreconditionRequiredError: no If-Match was sent.
        PreconditionFailedError: the scope has changed since.
    """
    _check_scope(scope)
    if if_match is None:
        raise PreconditionRequiredError('send If-Match with the version of GET on this scope, "0" when there is none')
    try:
        check_settings(request.settings)
    except ConfigError as error:
        raise InvalidError(str(error)) from error
    text = json.dumps(request.settings, sort_keys=True)

    def job(connection: Connection) -> SettingsView:
        connection.lock("config")
        view = _get(connection, scope)
        if if_match not in ("*", etag(view.version)):
            raise PreconditionFailedError(
                f"the settings are now at {etag(view.version)}, the request changes {if_match:.40}; read them again"
            )
        if view.version and text == json.dumps(view.settings, sort_keys=True):
            return view
        last = row(connection, "SELECT MAX(version) AS last FROM config_version")
        version = 1 + int(last["last"] or 0 if last is not None else 0)
        connection.execute(
            "INSERT INTO config_version (version, scope, settings, created_at, created_by) VALUES (?, ?, ?, ?, ?)",
            (version, scope, text, now_s, who),
        )
        raise_generation(connection)
        audit(connection, who, "config.set", f"{scope} version {version}", now_s)
        return _get(connection, scope)

    return db.write(job)


def get(db: Database, scope: str) -> SettingsView:
    """A scope's settings, and what devices made of them.

    Raises:
        NotFoundError: there is no such scope.
    """
    _check_scope(scope)
    return db.read(lambda connection: _get(connection, scope))


def _get(connection: Connection, scope: str) -> SettingsView:
    found = row(connection, "SELECT * FROM config_version WHERE scope = ? ORDER BY version DESC LIMIT 1", (scope,))
    if found is None:
        return SettingsView(scope, 0, {}, 0.0, "", [])
    devices = rows(
        connection,
        "SELECT s.device AS device_id, COALESCE(d.name, '') AS device_name, s.version, s.state, s.reason,"
        " s.updated_at FROM device_config s LEFT JOIN device d ON d.id = s.device ORDER BY s.device LIMIT ?",
        (DEVICES_SHOWN_MAX,),
    )
    return SettingsView(
        scope=scope,
        version=found["version"],
        settings=json.loads(found["settings"]),
        created_at=found["created_at"],
        created_by=found["created_by"],
        devices=[DeviceSettings(**item) for item in devices],
    )


def desired_for(connection: Connection, device: str) -> dict[str, Json]:
    """The `config` of a device's desired state; empty when nothing was ever set."""
    sql = "SELECT version, settings FROM config_version WHERE scope = 'all' ORDER BY version DESC LIMIT 1"
    found = row(connection, sql)
    return {} if found is None else {"version": found["version"], "settings": json.loads(found["settings"])}


def note_result(connection: Connection, device: str, fields: Fields, now_s: float) -> None:
    """Store what a `config_result` record says.

    Raises:
        WireError: it says nothing that can be.
    """
    version, state = fields.natural("version"), fields.text("state")
    if state not in STATES:
        raise fields.fail("state", f"is {state!r:.40}; expected one of {', '.join(STATES)}")
    reason = fields.text("reason", "", length_max=10_000)[:REASON_CHARACTERS_MAX]
    connection.execute(
        "INSERT INTO device_config (device, version, state, reason, updated_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (device) DO UPDATE SET version = excluded.version, state = excluded.state,"
        " reason = excluded.reason, updated_at = excluded.updated_at",
        (device, version, state, reason, now_s),
    )
