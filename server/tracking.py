"""MLflow as a mirror of this server: versions, aliases and the fleet's metrics, from the outbox, beside the requests.

Rules
- This server's tables are the truth. MLflow being away fails no request: what it is to be told waits in the outbox.
- Every step may be done twice. A version and a run carry the tag `tinysphere.outbox`, which names them for good: what
  is there already is found by it and not made again. A metric's value at its time is kept once by MLflow.
- What becomes of an alias is decided from three things: what it names here, what it names there, and what it named when
  both last agreed. A side that still has the latter has not moved it. When both have moved it, this server wins: a
  change here was made by somebody who is known and is in the audit, and devices go by it.
- An alias that was moved in MLflow moves here too only if promotion is on; else it is moved back. One that is gone in
  MLflow is put there again: an MLflow that was emptied must not take the names away here.
- What MLflow has lost is made again when that is noticed, and at once with `tinysphere mlflow resync`.
"""

from __future__ import annotations

import enum
import json
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import msgspec
from tinylcm.clock import Clock

from . import fleetmetrics, outbox, versions
from .db import Connection, Database, Row, row, rows
from .errors import TinySphereError
from .jobs import Lease
from .mlflowapi import (
    BATCH_METRICS_MAX,
    Mlflow,
    MlflowMissingError,
    MlflowRefusedError,
    Point,
)
from .outbox import JOB, Item
from .registry import find_version, version_view
from .store import Store

EVERY_S: Final = 30.0
TAG: Final = "tinysphere.outbox"
WHO: Final = "mlflow"
ITEMS_A_ROUND: Final = 100
POINTS_A_BATCH: Final = 50
VALUE_CHARACTERS_MAX: Final = 1000
_RUN: Final = re.compile(r"[0-9a-f]{32}")
_log = logging.getLogger("tinysphere.mlflow")


# Aliases: decided apart from done ----------------------------------------------------------------------------


class Move(enum.Enum):
    """What to do about an alias."""

    NOTHING = "nothing"
    AGREE = "both have it: note that"
    TELL = "MLflow gets what this server has"
    TAKE = "this server gets what MLflow has"


FOREIGN: Final = "?"  # in MLflow, a version that is not of this server; no version has this name


def decide(here: str | None, there: str | None, agreed: str | None, *, promote: bool) -> Move:
    """What to do about an alias that names these versions, or nothing, here, there and when both last agreed."""
    if here == there:
        return Move.NOTHING if here == agreed else Move.AGREE
    if here != agreed:
        return Move.TELL  # also when it was moved there as well: this server wins
    if there is None:
        return Move.TELL  # gone there: put it back
    if promote:
        return Move.NOTHING if there == FOREIGN else Move.TAKE
    return Move.NOTHING if here is None else Move.TELL  # one that this server never had is somebody else's


# Status ------------------------------------------------------------------------------------------------------


class Status(msgspec.Struct, frozen=True):
    """How far the mirror is; `problem` is what the last round ended with, `full` that hours are no longer looked at."""

    versions: int
    aliases: int
    metrics: int
    points: int
    full: bool
    attempts: int
    problem: str
    finished_at: float | None
    oldest_at: float | None
    waiting: list[outbox.Waiting]


def status(db: Database, limit: int = 50) -> Status:
    """What waits, and why."""

    def job(connection: Connection) -> Status:
        counts, points = outbox.counts(connection), fleetmetrics.count_waiting(connection)
        last = row(connection, "SELECT attempts, problem, finished_at FROM job WHERE name = ?", (JOB,)) or {}
        oldest = row(connection, "SELECT MIN(queued_at) AS at FROM outbox") or {}
        return Status(
            versions=counts["version"],
            aliases=counts["alias"],
            metrics=counts["metrics"],
            points=points,
            full=points >= fleetmetrics.WAITING_MAX,
            attempts=int(last.get("attempts", 0)),
            problem=str(last.get("problem", "")),
            finished_at=last.get("finished_at"),
            oldest_at=oldest.get("at"),
            waiting=outbox.waiting(connection, limit),
        )

    return db.read(job)


def resync(connection: Connection, now_s: float) -> None:
    """Have everything told again, in a writing job: what MLflow has stays single, what it has lost comes back."""
    connection.execute("DELETE FROM mlflow_version")
    connection.execute("DELETE FROM meta WHERE key IN ('mlflow_summary', 'mlflow_drift_event', 'mlflow_judgement')")
    for item in rows(connection, "SELECT model, version FROM model_version"):
        outbox.mark(connection, "version", item["model"], item["version"], now_s)
    for item in rows(connection, "SELECT model, alias FROM model_alias"):
        outbox.mark(connection, "alias", item["model"], item["alias"], now_s)
    fleetmetrics.send_again(connection, now_s)


# The mirror --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Tracking:
    """The job that tells MLflow.

    Args:
        api: of the MLflow server.
        store: of the packages.
        url: where people reach this server.
        clock: of this process.
        promote: whether an alias that is moved in MLflow moves here.
        looks_every_s: how often MLflow is asked for its aliases.
    """

    api: Mlflow
    store: Store
    url: str
    clock: Clock
    promote: bool = False
    looks_every_s: float = 60.0
    _looked_s: float = field(default=float("-inf"))
    _named: set[tuple[str, str]] = field(default_factory=set)  # aliases there that cannot be taken, said once

    def run(self, lease: Lease) -> None:
        """One round: as much as can be told now.

        Raises:
            MlflowError: it is away; the rest waits.
        """
        fleetmetrics.note(lease.write, self.clock.wall_s())  # also while MLflow is away
        self._each(lease, "version", self._version)
        self._aliases(lease)
        self._each(lease, "metrics", self._metrics)

    def _each(self, lease: Lease, kind: outbox.Kind, send: Callable[[Lease, Item, str], None]) -> None:
        source = lease.write(_source)
        while not lease.stopping.is_set():
            now_s = self.clock.wall_s()
            items = lease.db.read(partial(outbox.due, kind=kind, now_s=now_s, limit=ITEMS_A_ROUND))
            for item in items:
                if lease.stopping.is_set():
                    return
                lease.write(lambda connection: None)  # it is still ours, for another while
                try:
                    send(lease, item, source)
                except MlflowRefusedError as error:
                    self._refused(lease, item, error)
            if len(items) < ITEMS_A_ROUND:
                return

    def _refused(self, lease: Lease, item: Item, error: TinySphereError) -> None:
        now_s = self.clock.wall_s()
        _log.warning("%s %s %s waits: %s", item.kind, item.model, item.name, error)
        lease.write(lambda connection: outbox.postpone(connection, item, str(error), now_s))

    # Versions ---------------------------------------------------------------------------------------------

    def _version(self, lease: Lease, item: Item, source: str) -> None:
        found, known = lease.db.read(
            lambda connection: (
                find_version(connection, item.model, item.name),
                _known(connection, item.model, item.name),
            )
        )
        now_s = self.clock.wall_s()
        is_same = found is not None and known is not None and found["sha256"] == known["sha256"]
        if known is not None and not is_same:
            self._removed(item, known, source, now_s)
        number = None
        if found is not None and not (is_same and known and known["number"]):
            begun = found
            lease.write(lambda connection: _link(connection, begun, ""))  # from here on MLflow may have it
            number = self._register(found, source)

        def job(connection: Connection) -> None:
            still = find_version(connection, item.model, item.name)
            if number is not None and found is not None:
                _link(connection, found, number)
            elif found is None:
                _unlink(connection, item.model, item.name)
            if (still and still["sha256"]) != (found and found["sha256"]):
                outbox.mark(connection, "version", item.model, item.name, now_s)  # changed meanwhile
            else:
                outbox.settle(connection, item)

        lease.write(job)

    def _removed(self, item: Item, known: Row, source: str, now_s: float) -> None:
        """Say in MLflow that this server does not have it any more; nothing is deleted there."""
        name = _name_of(source, item.model, item.name, known["sha256"])
        number = known["number"] or self.api.find_version(item.model, TAG, name)
        if number is None:
            return
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))
        try:
            self.api.tag_version(item.model, number, {"tinysphere.removed": at})
        except MlflowMissingError:
            _log.info("%s %s is not in MLflow any more", item.model, item.name)

    def _register(self, found: Row, source: str) -> str:
        view = version_view(found)
        name = _name_of(source, view.model, view.version, view.sha256)
        number = self.api.find_version(view.model, TAG, name)
        if number is not None:
            self.api.tag_version(view.model, number, {"tinysphere.removed": ""})
            return number
        tags = {
            TAG: name,
            "tinysphere.version": view.version,
            "tinysphere.sha256": view.sha256,
            "tinysphere.size": str(view.size),
            "tinysphere.format": view.format,
            "tinysphere.root": view.root,
            "tinysphere.uploaded_by": view.uploaded_by,
            "tinysphere.url": self._url(view.sha256),
        }
        for key, value in view.lineage.items():
            tags[f"tinysphere.lineage.{key}"] = _text(value)
        run = str(view.lineage.get("run_id", ""))
        trained_by = run if _RUN.fullmatch(run) and self.api.has_run(run) else None
        self.api.add_model(view.model, "Deployed to devices by TinySphere.")
        described = f"TinySphere's {view.model} {view.version}"
        return self.api.add_version(view.model, self._address(view.sha256), tags, described, trained_by)

    def _url(self, sha256: str) -> str:
        return f"{self.url.rstrip('/')}/api/v1/packages/{sha256}"

    def _address(self, sha256: str) -> str:
        """Where MLflow has a package from: a bucket, or this server, under a scheme that MLflow does not look into.

        MLflow 3.17 takes no file of ours and no http(s) address: its server would have to fetch from there.
        """
        found = self.store.uri(sha256)
        return found if found.startswith("s3:") else f"tinysphere://{self._url(sha256).partition('://')[2]}"

    # Aliases ----------------------------------------------------------------------------------------------

    def _aliases(self, lease: Lease) -> None:
        now_s = self.clock.wall_s()
        waiting, is_due = lease.db.read(lambda connection: _waiting_aliases(connection, now_s))
        if not is_due and now_s - self._looked_s < self.looks_every_s:
            return
        lease.write(lambda connection: None)
        there = self.api.aliases()
        state = lease.db.read(_read_names)
        self._find_lost(lease, state, there)
        names = {*state.here, *state.agreed, *waiting}
        names |= {(model, name) for model in state.models for name in there.get(model, {})}
        for key in sorted(names):
            item = waiting.get(key)
            if item is not None and item.retry_at > now_s:
                continue  # refused a moment ago
            if lease.stopping.is_set():
                return
            number = there.get(key[0], {}).get(key[1])
            named = None if number is None else state.versions.get((key[0], number), FOREIGN)
            try:
                done = self._alias(lease, state, key, named)
            except MlflowRefusedError as error:
                marked = item.item if item is not None else self._noted(lease, key)
                self._refused(lease, marked, error)
                continue
            if done and item is not None:
                lease.write(lambda connection, item=item.item: outbox.settle(connection, item))  # type: ignore[misc]
        self._looked_s = now_s

    def _noted(self, lease: Lease, key: tuple[str, str]) -> Item:
        now_s = self.clock.wall_s()
        lease.write(lambda connection: outbox.mark(connection, "alias", *key, now_s))
        return lease.db.read(lambda connection: _waiting_aliases(connection, now_s))[0][key].item

    def _find_lost(self, lease: Lease, state: _Names, there: Mapping[str, object]) -> None:
        """Versions of a registered model that MLflow no longer has are to be made again."""
        now_s = self.clock.wall_s()
        for model in sorted(state.models - there.keys()):
            _log.warning("MLflow has lost the registered model %s: it is made again", model)

            def job(connection: Connection, model: str = model) -> None:
                for item in rows(connection, "SELECT version FROM mlflow_version WHERE model = ?", (model,)):
                    outbox.mark(connection, "version", model, item["version"], now_s)
                connection.execute("DELETE FROM mlflow_version WHERE model = ?", (model,))

            lease.write(job)

    def _alias(self, lease: Lease, state: _Names, key: tuple[str, str], there: str | None) -> bool:
        """Do what is to be done about an alias; whether nothing is left to do."""
        here, agreed = state.here.get(key), state.agreed.get(key)
        move = decide(here, there, agreed, promote=self.promote)
        if move is Move.NOTHING:
            return True
        if move is Move.TAKE:
            return self._take(lease, key, here, str(there))
        if move is Move.TELL:
            lease.write(lambda connection: _agree(connection, key, agreed or ""))  # from here on MLflow may have it
            if here is None:
                self.api.remove_alias(*key)
            elif (number := state.numbers.get((key[0], here))) is None:
                return False  # its version is not there yet
            else:
                self.api.set_alias(*key, number)
        now_s = self.clock.wall_s()

        def job(connection: Connection) -> None:
            _agree(connection, key, here)
            if _named_here(connection, key) != here:
                outbox.mark(connection, "alias", *key, now_s)  # moved meanwhile

        lease.write(job)
        return True

    def _take(self, lease: Lease, key: tuple[str, str], here: str | None, version: str) -> bool:
        """Move an alias as it was moved in MLflow, unless it was moved here meanwhile."""
        now_s = self.clock.wall_s()

        def job(connection: Connection) -> bool:
            if _named_here(connection, key) != here:
                return False
            versions.set_alias_in(connection, *key, version, WHO, now_s, tell=False)
            _agree(connection, key, version)
            return True

        try:
            done = lease.write(job)
        except TinySphereError as error:
            if key not in self._named:
                self._named.add(key)
                _log.warning("the alias %s of %s in MLflow is not taken: %s", key[1], key[0], error)
            return True
        if done:
            _log.info("%s @%s is %s now, as in MLflow", *key, version)
        return done

    # Metrics ----------------------------------------------------------------------------------------------

    def _metrics(self, lease: Lease, item: Item, source: str) -> None:
        while not lease.stopping.is_set() and self._some_metrics(lease, item, source):
            pass

    def _some_metrics(self, lease: Lease, item: Item, source: str) -> bool:
        """Send the next points of a version; whether there are more to be sent now."""
        key, now_s = (item.model, item.name), self.clock.wall_s()
        found, known = lease.db.read(lambda connection: (find_version(connection, *key), _known(connection, *key)))
        if found is None:
            lease.write(lambda connection: outbox.settle(connection, item))
            return False
        if known is None or not known["number"]:  # its version comes first; its own row says when
            lease.write(lambda connection: outbox.rest(connection, item, now_s + EVERY_S))
            return False
        made, next_s = lease.db.read(lambda connection: fleetmetrics.make(connection, *key, now_s, POINTS_A_BATCH))
        left = lease.write(lambda connection: fleetmetrics.take(connection, *key, made))
        if left and not self._log(lease, key, known["run"] or self._run(lease, found, source), left):
            return True
        if next_s is not None and next_s <= now_s:
            return True

        def job(connection: Connection) -> None:
            if next_s is None:
                outbox.settle(connection, item)
            else:
                outbox.rest(connection, item, next_s)

        lease.write(job)
        return False

    def _log(self, lease: Lease, key: tuple[str, str], run: str, made: list[fleetmetrics.Made]) -> bool:
        """Log points; False when the run is lost and all of them have to be sent again."""
        points = [
            Point(name, value, point.stamp_ms, point.at // fleetmetrics.HOUR_S)
            for point in made
            for name, value in point.values.items()
        ]
        now_s = self.clock.wall_s()
        try:
            for start in range(0, len(points), BATCH_METRICS_MAX):
                lease.write(lambda connection: None)
                self.api.log(run, points[start : start + BATCH_METRICS_MAX])
        except MlflowMissingError:
            _log.warning("MLflow has lost the run of %s %s: it is made again", *key)

            def lost(connection: Connection) -> None:
                connection.execute("UPDATE mlflow_version SET run = NULL WHERE model = ? AND version = ?", key)
                fleetmetrics.send_again(connection, now_s, *key)

            lease.write(lost)
            return False
        lease.write(lambda connection: fleetmetrics.settle(connection, *key, made))
        return True

    def _run(self, lease: Lease, found: Row, source: str) -> str:
        """The run of a version's metrics: that which is there, or a new one."""
        model, version, sha256 = found["model"], found["version"], found["sha256"]
        experiment = self.api.experiment(f"tinysphere/{model}")
        name = f"{source}/{model}/{version}/fleet"
        run = self.api.find_run(experiment, TAG, name)
        if run is None:
            tags = {
                TAG: name,
                "tinysphere.model": model,
                "tinysphere.version": version,
                "tinysphere.sha256": sha256,
                "mlflow.note.content": _NOTE,
            }
            run = self.api.add_run(experiment, f"{model} {version}", tags, int(found["uploaded_at"] * 1000))
        known = lease.db.read(lambda connection: _known(connection, model, version))
        if known is not None:
            self.api.tag_version(model, known["number"], {"tinysphere.run": run})
        made = run
        lease.write(
            lambda connection: connection.execute(
                "UPDATE mlflow_version SET run = ? WHERE model = ? AND version = ?", (made, model, version)
            )
        )
        return run


_NOTE: Final = (
    "Metrics of this version over the whole fleet. A step is an hour since 1970 (UTC), `span_s` how many seconds from "
    "there on a point sums. Of several values of one step the one with the newest time holds: devices that were away "
    "have told more since."
)


def _name_of(source: str, model: str, version: str, sha256: str) -> str:
    """The name of a version in MLflow for good."""
    return f"{source}/{model}/{version}/{sha256}"


def _text(value: object) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:VALUE_CHARACTERS_MAX]


# The tables --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Names:
    """The aliases by model and name, and the versions by model and number."""

    here: Mapping[tuple[str, str], str]
    agreed: Mapping[tuple[str, str], str]
    versions: Mapping[tuple[str, str], str]
    numbers: Mapping[tuple[str, str], str]
    models: frozenset[str]


@dataclass(frozen=True, slots=True)
class _WaitingAlias:
    item: Item
    retry_at: float


def _source(connection: Connection) -> str:
    """The name under which this server's things are in MLflow; it outlives a restore from a backup."""
    connection.insert("meta", ("key", "value"), [("mlflow_source", secrets.token_hex(8))])
    found = row(connection, "SELECT value FROM meta WHERE key = 'mlflow_source'")
    assert found is not None
    return str(found["value"])


def _known(connection: Connection, model: str, version: str) -> Row | None:
    """What is noted of a version in MLflow; its number is empty while it is not known whether MLflow has it."""
    sql = "SELECT sha256, number, run FROM mlflow_version WHERE model = ? AND version = ?"
    return row(connection, sql, (model, version))


def _link(connection: Connection, found: Row, number: str) -> None:
    connection.execute(
        "INSERT INTO mlflow_version (model, version, sha256, number) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (model, version) DO UPDATE SET sha256 = excluded.sha256, number = excluded.number",
        (found["model"], found["version"], found["sha256"], number),
    )


def _unlink(connection: Connection, model: str, version: str) -> None:
    connection.execute("DELETE FROM mlflow_version WHERE model = ? AND version = ?", (model, version))


def _read_names(connection: Connection) -> _Names:
    here = rows(connection, "SELECT model, alias, version FROM model_alias")
    agreed = rows(connection, "SELECT model, alias, version FROM mlflow_alias")
    known = rows(connection, "SELECT model, version, number FROM mlflow_version WHERE number <> ''")
    return _Names(
        {(item["model"], item["alias"]): item["version"] for item in here},
        {(item["model"], item["alias"]): item["version"] for item in agreed},
        {(item["model"], item["number"]): item["version"] for item in known},
        {(item["model"], item["version"]): item["number"] for item in known},
        frozenset(item["model"] for item in known),
    )


def _waiting_aliases(connection: Connection, now_s: float) -> tuple[dict[tuple[str, str], _WaitingAlias], bool]:
    """The aliases that wait, and whether one of them may be sent now."""
    sql = "SELECT kind, model, name, marks, tries, retry_at FROM outbox WHERE kind = 'alias'"
    found = {
        (item["model"], item["name"]): _WaitingAlias(
            Item("alias", item["model"], item["name"], item["marks"], item["tries"]), item["retry_at"]
        )
        for item in rows(connection, sql)
    }
    return found, any(item.retry_at <= now_s for item in found.values())


def _named_here(connection: Connection, key: tuple[str, str]) -> str | None:
    found = row(connection, "SELECT version FROM model_alias WHERE model = ? AND alias = ?", key)
    return None if found is None else str(found["version"])


def _agree(connection: Connection, key: tuple[str, str], version: str | None) -> None:
    if version is None:
        connection.execute("DELETE FROM mlflow_alias WHERE model = ? AND alias = ?", key)
        return
    connection.execute(
        "INSERT INTO mlflow_alias (model, alias, version) VALUES (?, ?, ?)"
        " ON CONFLICT (model, alias) DO UPDATE SET version = excluded.version",
        (*key, version),
    )
