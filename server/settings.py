"""What the server sets of devices' configuration: numbered versions of scopes, and what each device made of them.

Scopes, each over the ones before it, key by key:
1. `all`: every device.
2. `model:NAME`: devices to which a version of the model is deployed; models in the order of their names.
3. `group:NAME`: devices in the group; groups in the order of their names.
4. `device:ID`: one device.

Versions are numbered over all scopes, so that what a device gets has one number whatever scopes it is made of: the
highest of theirs. The newest version of a scope counts; the earlier ones are kept, and can be compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec
from tinylcm.checks import Fields
from tinylcm.errors import ConfigError
from tinylcm.remote_config import check_settings
from tinylcm.types import Json

from .audit import audit
from .db import Connection, Database, Page, Row, decode_cursor, paged, raise_generation, row, rows
from .deployments import plan
from .errors import InvalidError, NotFoundError, PreconditionFailedError, PreconditionRequiredError
from .fleet import etag
from .groups import Groups, members

ALL: Final = "all"
STATES: Final = ("applied", "refused", "rolled_back")
REASON_CHARACTERS_MAX: Final = 1000
DEVICES_SHOWN_MAX: Final = 10_000
_DEVICES_A_QUERY: Final = 500
_NO_VERSION: Final = (1 << 31) - 1


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
    """The newest settings of a scope; version 0 stands for none yet. `devices` are those of the scope that answered."""

    scope: str
    version: int
    settings: dict[str, object]
    created_at: float
    created_by: str
    devices: list[DeviceSettings]


class ScopeView(msgspec.Struct, frozen=True):
    """A scope that was set at some time; `keys` is how many it sets now."""

    scope: str
    version: int
    keys: int
    created_at: float
    created_by: str


class VersionView(msgspec.Struct, frozen=True):
    """Settings that a scope had."""

    version: int
    settings: dict[str, object]
    created_at: float
    created_by: str


class KeyChange(msgspec.Struct, frozen=True):
    """A key that two versions say different things of; null is not set."""

    key: str
    before: object
    after: object


class SettingsDiff(msgspec.Struct, frozen=True):
    """What changed from one version of a scope to another; version 0 sets nothing."""

    scope: str
    before: int
    after: int
    changes: list[KeyChange]


class EffectiveSettings(msgspec.Struct, frozen=True):
    """What a device is sent, key by key with the scope that says so, and what it made of what it was sent last."""

    device_id: str
    version: int
    settings: dict[str, object]
    sources: dict[str, str]
    scopes: list[str]
    reported: DeviceSettings | None


# What a scope is ------------------------------------------------------------------------------------------


def _check_scope(connection: Connection, scope: str) -> None:
    """Refuse a scope that no device could be in.

    Raises:
        NotFoundError: it is none, or names what is not there.
    """
    kind, _, name = scope.partition(":")
    found = _LOOK.get(kind) if name else None
    if scope == ALL:
        return
    if found is None:
        raise NotFoundError(f"there is no scope {scope!r:.70}; there are all, model:NAME, group:NAME and device:ID")
    if row(connection, found, (name,)) is None:
        raise NotFoundError(f"there is no {kind} {name!r:.70}, so it has no scope")


_LOOK: Final[Mapping[str, str]] = {
    "model": "SELECT 1 FROM model_version WHERE model = ? LIMIT 1",
    "group": "SELECT 1 FROM device_group WHERE name = ?",
    "device": "SELECT 1 FROM device WHERE id = ? AND retired_at IS NULL",
}


def _devices_of(connection: Connection, scope: str) -> Sequence[str] | None:
    """The devices of a scope, or None for all."""
    kind, _, name = scope.partition(":")
    if kind == "device":
        return [name]
    if kind == "group":
        return members(connection, f"group={name}")
    if kind == "model":
        sql = (
            "SELECT DISTINCT s.device FROM device_deployment s JOIN deployment p ON p.id = s.deployment"
            " WHERE p.model = ? AND p.state = 'active' ORDER BY s.device LIMIT ?"
        )
        return [item["device"] for item in rows(connection, sql, (name, DEVICES_SHOWN_MAX))]
    return None


def leaves(settings: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Every key that settings set, with its tables before it, and its value."""
    for table, keys in settings.items():
        for key, value in keys.items() if isinstance(keys, dict) else ():
            if table == "models" and isinstance(value, dict):
                yield from ((f"{table}.{key}.{inner}", said) for inner, said in value.items())
            else:
                yield f"{table}.{key}", value


# Changing and reading -------------------------------------------------------------------------------------


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
    if if_match is None:
        raise PreconditionRequiredError('send If-Match with the version of GET on this scope, "0" when there is none')
    try:
        check_settings(request.settings)
    except ConfigError as error:
        raise InvalidError(str(error)) from error
    text = json.dumps(request.settings, sort_keys=True)

    def job(connection: Connection) -> SettingsView:
        connection.lock("config")
        _check_scope(connection, scope)
        view = _get(connection, scope)
        if if_match not in ("*", etag(view.version)):
            raise PreconditionFailedError(
                f"the settings are now at {etag(view.version)}, the request changes {if_match:.40}; read them again"
            )
        if view.version and text == json.dumps(view.settings, sort_keys=True):
            return view
        version = 1 + _last(connection)
        connection.execute(
            "INSERT INTO config_version (version, scope, settings, created_at, created_by) VALUES (?, ?, ?, ?, ?)",
            (version, scope, text, now_s, who),
        )
        raise_generation(connection)
        audit(connection, who, "config.set", f"{scope} version {version}", now_s)
        return _get(connection, scope)

    return db.write(job)


def _last(connection: Connection) -> int:
    last = row(connection, "SELECT MAX(version) AS last FROM config_version")
    return int(last["last"] or 0) if last is not None else 0


def get(db: Database, scope: str) -> SettingsView:
    """A scope's settings, and what devices made of them.

    Raises:
        NotFoundError: there is no such scope.
    """

    def job(connection: Connection) -> SettingsView:
        _check_scope(connection, scope)
        return _get(connection, scope)

    return db.read(job)


def _get(connection: Connection, scope: str) -> SettingsView:
    found = row(connection, "SELECT * FROM config_version WHERE scope = ? ORDER BY version DESC LIMIT 1", (scope,))
    if found is None:
        return SettingsView(scope, 0, {}, 0.0, "", [])
    return SettingsView(
        scope=scope,
        version=found["version"],
        settings=json.loads(found["settings"]),
        created_at=found["created_at"],
        created_by=found["created_by"],
        devices=_answers(connection, _devices_of(connection, scope)),
    )


_ANSWERS: Final = (
    "SELECT s.device AS device_id, COALESCE(d.name, '') AS device_name, s.version, s.state, s.reason,"
    " s.updated_at FROM device_config s LEFT JOIN device d ON d.id = s.device"
)


def _answers(connection: Connection, devices: Sequence[str] | None) -> list[DeviceSettings]:
    if devices is None:
        found = rows(connection, f"{_ANSWERS} ORDER BY s.device LIMIT ?", (DEVICES_SHOWN_MAX,))
        return [DeviceSettings(**item) for item in found]
    answers: list[DeviceSettings] = []
    for start in range(0, min(len(devices), DEVICES_SHOWN_MAX), _DEVICES_A_QUERY):
        piece = devices[start : start + _DEVICES_A_QUERY]
        sql = f"{_ANSWERS} WHERE s.device IN ({', '.join('?' * len(piece))}) ORDER BY s.device"
        answers += [DeviceSettings(**item) for item in rows(connection, sql, piece)]
    return answers


def list_scopes(db: Database, cursor: str | None, limit: int) -> Page[ScopeView]:
    """Every scope that was set at some time, by name."""
    after = decode_cursor(cursor, str, "")
    sql = (
        "SELECT c.* FROM config_version c WHERE c.scope > ? AND c.version ="
        " (SELECT MAX(n.version) FROM config_version n WHERE n.scope = c.scope) ORDER BY c.scope LIMIT ?"
    )
    found = db.read(lambda connection: rows(connection, sql, (after, limit + 1)))
    views = [
        ScopeView(
            item["scope"],
            item["version"],
            sum(1 for _ in leaves(json.loads(item["settings"]))),
            item["created_at"],
            item["created_by"],
        )
        for item in found
    ]
    return paged(views, limit, lambda view: view.scope)


def list_versions(db: Database, scope: str, cursor: str | None, limit: int) -> Page[VersionView]:
    """The versions of a scope, newest first.

    Raises:
        NotFoundError: there is no such scope.
    """
    before = decode_cursor(cursor, int, _NO_VERSION)
    sql = "SELECT * FROM config_version WHERE scope = ? AND version < ? ORDER BY version DESC LIMIT ?"

    def job(connection: Connection) -> list[Row]:
        _check_scope(connection, scope)
        return rows(connection, sql, (scope, before, limit + 1))

    views = [
        VersionView(item["version"], json.loads(item["settings"]), item["created_at"], item["created_by"])
        for item in db.read(job)
    ]
    return paged(views, limit, lambda view: view.version)


def diff(db: Database, scope: str, before: int | None, after: int | None) -> SettingsDiff:
    """What changed from one version of a scope to another; by default from the one before the newest to the newest.

    Raises:
        NotFoundError: there is no such scope, or it never had a version of that number.
    """

    def job(connection: Connection) -> SettingsDiff:
        _check_scope(connection, scope)
        sql = "SELECT version FROM config_version WHERE scope = ? ORDER BY version DESC LIMIT 2"
        newest = [item["version"] for item in rows(connection, sql, (scope,))]
        to = after if after is not None else (newest[0] if newest else 0)
        since = before if before is not None else (newest[1] if len(newest) > 1 else 0)
        old, new = dict(leaves(_version(connection, scope, since))), dict(leaves(_version(connection, scope, to)))
        changes = [
            KeyChange(key, old.get(key), new.get(key))
            for key in sorted(old.keys() | new.keys())
            if (key in old) != (key in new) or old.get(key) != new.get(key)
        ]
        return SettingsDiff(scope, since, to, changes)

    return db.read(job)


def _version(connection: Connection, scope: str, version: int) -> dict[str, object]:
    if version == 0:
        return {}
    sql = "SELECT settings FROM config_version WHERE scope = ? AND version = ?"
    found = row(connection, sql, (scope, version)) if version <= _NO_VERSION else None
    if found is None:
        raise NotFoundError(f"{scope} has no version {version}; see `tinysphere config history`")
    settings: dict[str, object] = json.loads(found["settings"])
    return settings


# What a device gets ---------------------------------------------------------------------------------------


def _scopes_of(connection: Connection, device: Row, models: Sequence[str]) -> list[str]:
    """The scopes that a device is in and that were ever set, the strongest last."""
    found = [ALL, *(f"model:{name}" for name in sorted(models))]
    sql = "SELECT 1 FROM config_version WHERE scope LIKE 'group:%' LIMIT 1"
    if row(connection, sql) is not None:
        groups = Groups(connection).facts_of(device)["group"]
        assert isinstance(groups, list)
        found += [f"group:{name}" for name in sorted(map(str, groups))]
    return [*found, f"device:{device['id']}"]


def _merged(connection: Connection, scopes: Sequence[str]) -> tuple[int, dict[str, Json], dict[str, str]]:
    """The newest settings of scopes over each other: the highest version, the settings, and whose each key is."""
    marks = ", ".join("?" * len(scopes))
    sql = (
        f"SELECT c.scope, c.version, c.settings FROM config_version c WHERE c.scope IN ({marks})"  # noqa: S608
        " AND c.version = (SELECT MAX(n.version) FROM config_version n WHERE n.scope = c.scope)"
    )
    newest = {item["scope"]: item for item in rows(connection, sql, scopes)}
    version, merged, sources = 0, dict[str, Json](), dict[str, str]()
    for scope in scopes:
        if scope not in newest:
            continue
        version = max(version, newest[scope]["version"])
        settings = json.loads(newest[scope]["settings"])
        for table, keys in settings.items():
            known = merged.setdefault(table, {})
            assert isinstance(known, dict)
            if table == "models":
                for model, inner in keys.items():
                    known[model] = {**known.get(model, {}), **inner}  # type: ignore[dict-item]
            else:
                known |= keys
        sources |= {key: scope for key, _ in leaves(settings)}
    return version, merged, sources


def desired_for(connection: Connection, device_id: str, models: Sequence[str]) -> dict[str, Json]:
    """The `config` of a device's desired state; empty when nothing was ever set for it.

    Args:
        models: what is deployed to it.
    """
    device = _device(connection, device_id)
    if device is None:
        return {}
    version, settings, _ = _merged(connection, _scopes_of(connection, device, models))
    if version == 0:
        # It may have left the scope whose settings it has: those have to go, by a number of their own.
        taken = row(connection, "SELECT 1 FROM device_config WHERE device = ?", (device_id,))
        version = 0 if taken is None else _last(connection)
    return {} if version == 0 else {"version": version, "settings": settings}


def _device(connection: Connection, device_id: str) -> Row | None:
    return row(connection, "SELECT id, name, labels, capabilities FROM device WHERE id = ?", (device_id,))


def effective(db: Database, device_id: str) -> EffectiveSettings:
    """What a device is sent, and why.

    Raises:
        NotFoundError: there is no such device.
    """

    def job(connection: Connection) -> EffectiveSettings:
        device = _device(connection, device_id)
        if device is None:
            raise NotFoundError(f"there is no device {device_id!r:.40}; see `tinysphere devices`")
        models = [model.model for model in plan(connection, device_id).desired.models]
        scopes = _scopes_of(connection, device, models)
        version, settings, sources = _merged(connection, scopes)
        answers = _answers(connection, [device_id])
        return EffectiveSettings(device_id, version, dict(settings), sources, scopes, answers[0] if answers else None)

    return db.read(job)


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
