"""Deployments: which version the devices that a selector matches should run.

What a device should run of a model is the newest active deployment whose selector matches it and whose package it has
what it takes to run: others are never offered, and the reason is kept. Whatever may change
that raises the server's generation, so that a sync can answer "unchanged" by comparing two numbers.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec
from tinylcm.manifest import BOARD, parse_manifest
from tinylcm.requires import Requires, unmet
from tinylcm.wire import Desired, DesiredModel

from . import selectors
from .audit import audit
from .boards import BoardState, states_of
from .db import Connection, Database, Page, Row, decode_cursor, meta, paged, raise_generation, row, rows
from .errors import ForbiddenError, NotFoundError
from .groups import Groups
from .versions import resolve

ACTIVE_MAX: Final = 10_000
DEVICES_SHOWN_MAX: Final = 10_000
_NO_ID: Final = (1 << 63) - 1


class DeploymentRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Ask for a version, or what the alias `@NAME` names now, on the devices that a selector matches."""

    model: str
    version: str
    selector: str = "all"


class DeviceState(msgspec.Struct, frozen=True):
    """How far a deployment has come on one device."""

    device_id: str
    device_name: str
    state: str
    reason: str
    updated_at: float
    boards: list[BoardState] = []


class DeploymentView(msgspec.Struct, frozen=True):
    """A deployment; `devices` is filled for a single one and counted in `states` for all."""

    id: int
    model: str
    version: str
    sha256: str
    selector: str
    state: str
    created_at: float
    created_by: str
    states: dict[str, int]
    devices: list[DeviceState]


def create_in(connection: Connection, request: DeploymentRequest, who: str, now_s: float) -> DeploymentView:
    """Make a deployment in a writing job.

    Raises:
        BadRequestError: the selector is malformed.
        NotFoundError: the version was never uploaded.
    """
    selectors.parse(request.selector)
    meant = resolve(connection, request.model, request.version)
    version = row(
        connection, "SELECT sha256 FROM model_version WHERE model = ? AND version = ?", (request.model, meant)
    )
    if version is None:
        raise NotFoundError(
            f"there is no version {request.version!r:.50} of model {request.model!r:.70}; upload it first"
        )
    made = row(
        connection,
        "INSERT INTO deployment (model, version, sha256, selector, state, created_at, created_by)"
        " VALUES (?, ?, ?, ?, 'active', ?, ?) RETURNING id",
        (request.model, meant, version["sha256"], request.selector, now_s, who),
    )
    assert made is not None
    deployment = int(made["id"])
    raise_generation(connection)
    audit(connection, who, "deployment.create", str(deployment), now_s)
    return _get(connection, deployment)


def abort(db: Database, deployment: int, who: str, now_s: float) -> DeploymentView:
    """End a deployment: the devices go back to the newest other one that matches. Aborting again changes nothing.

    Raises:
        NotFoundError: there is none of this number.
    """

    def job(connection: Connection) -> DeploymentView:
        changed = connection.execute(
            "UPDATE deployment SET state = 'aborted' WHERE id = ? AND state = 'active'", (deployment,)
        )
        if changed.rowcount:
            raise_generation(connection)
            audit(connection, who, "deployment.abort", str(deployment), now_s)
        return _get(connection, deployment)

    return db.write(job)


def _view(connection: Connection, found: Row, devices: list[DeviceState]) -> DeploymentView:
    counts = rows(
        connection,
        "SELECT state, COUNT(*) AS n FROM device_deployment WHERE deployment = ? GROUP BY state",
        (found["id"],),
    )
    return DeploymentView(
        id=found["id"],
        model=found["model"],
        version=found["version"],
        sha256=found["sha256"],
        selector=found["selector"],
        state=found["state"],
        created_at=found["created_at"],
        created_by=found["created_by"],
        states={item["state"]: item["n"] for item in counts},
        devices=devices,
    )


def _get(connection: Connection, deployment: int) -> DeploymentView:
    found = row(connection, "SELECT * FROM deployment WHERE id = ?", (deployment,))
    if found is None:
        raise NotFoundError(f"there is no deployment {deployment}; see `tinysphere deployments`")
    states = rows(
        connection,
        "SELECT s.device AS device_id, COALESCE(d.name, '') AS device_name, s.state, s.reason, s.updated_at"
        " FROM device_deployment s"
        " LEFT JOIN device d ON d.id = s.device WHERE s.deployment = ? ORDER BY s.device LIMIT ?",
        (deployment, DEVICES_SHOWN_MAX),
    )
    on_boards = states_of(connection, deployment)
    devices = [DeviceState(**state, boards=on_boards.get(state["device_id"], [])) for state in states]
    return _view(connection, found, devices)


def get_deployment(db: Database, deployment: int) -> DeploymentView:
    """One deployment with the state of each device.

    Raises:
        NotFoundError: there is none of this number.
    """
    return db.read(lambda connection: _get(connection, deployment))


def list_states(db: Database, deployment: int, state: str | None, cursor: str | None, limit: int) -> Page[DeviceState]:
    """The devices of a deployment, by id; with a state only those.

    Raises:
        NotFoundError: there is no such deployment.
    """
    after = decode_cursor(cursor, str, "")
    sql = (
        "SELECT s.device AS device_id, COALESCE(d.name, '') AS device_name, s.state, s.reason, s.updated_at"
        " FROM device_deployment s LEFT JOIN device d ON d.id = s.device WHERE s.deployment = ? AND s.device > ?"
        " AND (CAST(? AS TEXT) IS NULL OR s.state = ?) ORDER BY s.device LIMIT ?"
    )

    def job(connection: Connection) -> list[Row]:
        if row(connection, "SELECT 1 FROM deployment WHERE id = ?", (deployment,)) is None:
            raise NotFoundError(f"there is no deployment {deployment}; see `tinysphere deployments`")
        return rows(connection, sql, (deployment, after, state, state, limit + 1))

    return paged([DeviceState(**item) for item in db.read(job)], limit, lambda item: item.device_id)


def list_deployments(db: Database, cursor: str | None, limit: int) -> Page[DeploymentView]:
    """Deployments, newest first."""
    before = decode_cursor(cursor, int, _NO_ID)

    def job(connection: Connection) -> list[DeploymentView]:
        sql = "SELECT * FROM deployment WHERE id < ? ORDER BY id DESC LIMIT ?"
        return [_view(connection, found, []) for found in rows(connection, sql, (before, limit + 1))]

    return paged(db.read(job), limit, lambda deployment: deployment.id)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a device should run, and why it is not offered what a deployment means for it, by deployment."""

    desired: Desired
    unfit: Mapping[int, str]


class Planner:
    """Says what devices should run, in one transaction: what is the same for all of them is read once."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.generation: Final = int(meta(connection, "generation"))
        self._shared: tuple[Groups, list[Row]] | None = None

    def plan(self, device_id: str) -> Plan:
        """Of each model the newest active deployment that means the device and that it is fit for."""
        sql = "SELECT id, name, labels, capabilities, boards FROM device WHERE id = ? AND retired_at IS NULL"
        device = row(self._connection, sql, (device_id,))
        if device is None:
            return Plan(Desired(self.generation), {})
        if self._shared is None:
            active = rows(
                self._connection,
                "SELECT d.id, d.model, d.version, d.sha256, d.selector, v.size, v.manifest FROM deployment d"
                " JOIN model_version v ON v.model = d.model AND v.version = d.version"
                " WHERE d.state = 'active' ORDER BY d.id DESC LIMIT ?",
                (ACTIVE_MAX,),
            )
            self._shared = Groups(self._connection), active
        groups, active = self._shared
        facts, chosen = groups.facts_of(device), {}
        capabilities = json.loads(device["capabilities"])
        unfit: dict[int, str] = {}
        for found in active:
            if found["model"] in chosen or not selectors.parse(found["selector"]).matches(facts):
                continue
            requires, formats = _asked(found["manifest"])
            problems = unmet(requires, formats, capabilities)
            if BOARD in formats and not device["boards"]:
                problems.append("it is for boards, and there is none behind the device")
            if problems:
                unfit[found["id"]] = "; ".join(problems)
                continue
            chosen[found["model"]] = DesiredModel(
                model=found["model"],
                version=found["version"],
                sha256=found["sha256"],
                size=found["size"],
                url=f"/api/v1/packages/{found['sha256']}",
                deployment=found["id"],
            )
        return Plan(Desired(self.generation, tuple(chosen[name] for name in sorted(chosen))), unfit)


def plan(connection: Connection, device_id: str) -> Plan:
    """What a device should run: of each model the newest active deployment that means it and that it is fit for."""
    return Planner(connection).plan(device_id)


@functools.lru_cache(256)
def _asked(manifest: str) -> tuple[Requires, tuple[str, ...]]:
    """What a stored manifest asks of a device, and the formats of its models."""
    parsed = parse_manifest(json.loads(manifest))
    return parsed.requires, tuple(stage.format for stage, _ in parsed.models())


def desired_of(connection: Connection, device_id: str) -> Desired:
    """What a device should run."""
    return plan(connection, device_id).desired


def offer(connection: Connection, device_id: str, planned: Plan, now_s: float) -> None:
    """Note what was offered, and what was not and why; what the device has said of a deployment stays."""
    stated = [(model.deployment, device_id, "offered", "", now_s) for model in planned.desired.models]
    stated += [(number, device_id, "unfit", reason[:1000], now_s) for number, reason in planned.unfit.items()]
    connection.executemany(
        "INSERT INTO device_deployment (deployment, device, state, reason, updated_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (deployment, device) DO UPDATE SET state = excluded.state, reason = excluded.reason,"
        " updated_at = excluded.updated_at WHERE device_deployment.state IN ('offered', 'unfit')"
        " AND (device_deployment.state, device_deployment.reason) <> (excluded.state, excluded.reason)",
        stated,
    )


def check_may_fetch(db: Database, device_id: str, sha256: str) -> None:
    """Refuse a device a package that it is not meant to run.

    Raises:
        ForbiddenError: no active deployment means this device.
    """
    desired = db.read(lambda connection: desired_of(connection, device_id))
    if all(model.sha256 != sha256 for model in desired.models):
        raise ForbiddenError("no active deployment means this device to run this package; sync again")
