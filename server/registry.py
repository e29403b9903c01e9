"""Models and their versions: uploads are verified against the pinned roots, stored by hash, registered once."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass
from typing import Final

import msgspec
from tinylcm.capabilities import capabilities
from tinylcm.files import read_bounded
from tinylcm.manifest import PACKAGE_BYTES_MAX
from tinylcm.package import Package, parse_package
from tinylcm.probe import probe
from tinylcm.types import Json

from . import outbox, removals, trust
from .audit import audit
from .db import Connection, Database, Page, Row, Value, decode_cursor, paged, row, rows
from .errors import BadRequestError, BusyError, ConflictError, InvalidError, NotFoundError
from .store import Store, Upload

LINEAGE: Final = ("run_id", "data_sha256", "git_commit", "parent", "trained_at", "framework")
PROBES_MAX: Final = 2  # children at once
_probing = threading.Semaphore(PROBES_MAX)


@dataclass(frozen=True, slots=True)
class ProbeLimits:
    """Of the child process that tries an upload: seconds, and bytes of address space."""

    timeout_s: float
    memory_bytes: int


class ModelVersionView(msgspec.Struct, frozen=True):
    """A registered package."""

    model: str
    version: str
    sha256: str
    size: int
    root: str
    release: str
    uploaded_at: float
    uploaded_by: str
    format: str
    labels: list[str]
    input_shape: list[int]
    window_samples: int
    monitors: list[str]
    metadata: dict[str, object]
    lineage: dict[str, object]
    probe: dict[str, object]


class ModelView(msgspec.Struct, frozen=True):
    """A model and its versions, newest first."""

    name: str
    versions: list[ModelVersionView]


class ModelSummary(msgspec.Struct, frozen=True):
    """A model in a list."""

    name: str
    versions: int
    latest: str


def version_view(found: Row) -> ModelVersionView:
    """A row as the API shows it."""
    manifest = json.loads(found["manifest"])
    return ModelVersionView(
        model=found["model"],
        version=found["version"],
        sha256=found["sha256"],
        size=found["size"],
        root=found["root"],
        release=found["release"],
        uploaded_at=found["uploaded_at"],
        uploaded_by=found["uploaded_by"],
        format=manifest["format"],
        labels=manifest["labels"],
        input_shape=manifest["input"]["shape"],
        window_samples=manifest["window"]["samples"],
        monitors=[monitor["name"] for monitor in manifest["monitors"]],
        metadata=manifest["metadata"],
        lineage={key: manifest["metadata"][key] for key in LINEAGE if key in manifest["metadata"]},
        probe=json.loads(found["probe"]),
    )


def add_version(
    db: Database, store: Store, limits: ProbeLimits | None, name: str, upload: Upload, who: str, now_s: float
) -> tuple[ModelVersionView, bool]:
    """Verify an uploaded package, try it in a child process, store and register it. The same file changes nothing.

    Args:
        limits: of the child; None leaves it out.

    Returns:
        The version, and whether it is new.

    Raises:
        ModelError: damaged, unsigned, untrusted or expired, or its model crashes or computes something else.
        BusyError: too many are being tried at once.
        InvalidError: it is a package of another model.
        ConflictError: the version exists with other content.
        StorageError: the disk refuses.
    """
    upload.finish()
    package = parse_package(
        read_bounded(upload.path, PACKAGE_BYTES_MAX), db.read(trust.load), expiry="refuse", now_s=now_s
    )
    manifest = package.manifest
    if manifest.name != name:
        raise InvalidError(f"the package is of model {manifest.name}, the address says {name:.64}; upload it there")
    known = db.read(lambda connection: find_version(connection, name, manifest.version))
    if known is not None:
        return _same(known, package), False
    found = _try(package, upload, limits)
    before = db.read(lambda connection: removals.rounds(connection, package.sha256))
    store.put(upload, package.sha256)

    def job(connection: Connection) -> tuple[ModelVersionView, bool]:
        removals.check_stored(connection, package.sha256, before)
        known = find_version(connection, name, manifest.version)
        if known is not None:
            return _same(known, package), False
        connection.execute(
            "INSERT INTO model_version"
            " (model, version, sha256, size, root, release, manifest, uploaded_at, uploaded_by, probe)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                name,
                manifest.version,
                package.sha256,
                package.size,
                package.root,
                package.release,
                json.dumps(manifest.to_json()),
                now_s,
                who,
                json.dumps(found),
            ),
        )
        trust.learn(connection, package.statements, now_s)
        outbox.mark(connection, "version", name, manifest.version, now_s)
        audit(connection, who, "model.upload", f"{name} {manifest.version} {package.sha256}", now_s)
        made = find_version(connection, name, manifest.version)
        assert made is not None
        return version_view(made), True

    return db.write(job)


def _try(package: Package, upload: Upload, limits: ProbeLimits | None) -> dict[str, Json]:
    """What a child process found of a package; nothing when this server has no engine for its format."""
    if limits is None:
        return {"skipped": "this server tries no uploads"}
    there = capabilities()["backends"]
    assert isinstance(there, list)
    missing = sorted({stage.format for stage, _ in package.manifest.models()} - set(map(str, there)))
    if missing:
        return {"skipped": f"this server has no engine for {', '.join(missing)}; each device tries it itself"}
    if not _probing.acquire(timeout=limits.timeout_s):
        raise BusyError("too many uploads are being tried; send it again", retry_after_s=10)
    try:
        return probe(upload.path, timeout_s=limits.timeout_s, memory_bytes=limits.memory_bytes)
    finally:
        _probing.release()


def find_version(connection: Connection, name: str, version: str) -> Row | None:
    """The row of a version, or None."""
    return row(connection, "SELECT * FROM model_version WHERE model = ? AND version = ?", (name, version))


def _same(known: Row, package: Package) -> ModelVersionView:
    if known["sha256"] != package.sha256:
        raise ConflictError(
            f"{known['model']} {known['version']} exists with sha256 {known['sha256'][:12]}, the upload has "
            f"{package.sha256[:12]}; a version never changes, build it under a new version"
        )
    return version_view(known)


def list_models(db: Database, cursor: str | None, limit: int) -> Page[ModelSummary]:
    """Models by name."""
    after = decode_cursor(cursor, str, "")
    sql = (
        "SELECT model, COUNT(*) AS versions, (SELECT n.version FROM model_version n WHERE n.model = m.model"
        " ORDER BY n.uploaded_at DESC, n.version DESC LIMIT 1) AS latest"
        " FROM model_version m WHERE model > ? GROUP BY model ORDER BY model LIMIT ?"
    )
    found = db.read(lambda connection: rows(connection, sql, (after, limit + 1)))
    items = [ModelSummary(item["model"], item["versions"], item["latest"]) for item in found]
    return paged(items, limit, lambda model: model.name)


def get_model(db: Database, name: str) -> ModelView:
    """A model with its newest 500 versions.

    Raises:
        NotFoundError: nothing was uploaded under this name.
    """
    sql = "SELECT * FROM model_version WHERE model = ? ORDER BY uploaded_at DESC LIMIT 500"
    found = db.read(lambda connection: rows(connection, sql, (name,)))
    if not found:
        raise NotFoundError(f"there is no model {name!r:.70}; see `tinysphere models`")
    return ModelView(name, [version_view(item) for item in found])


def list_versions(db: Database, name: str, cursor: str | None, limit: int) -> Page[ModelVersionView]:
    """The versions of a model, newest first.

    Raises:
        NotFoundError: nothing was uploaded under this name.
        BadRequestError: the cursor is none of this list.
    """
    after = decode_cursor(cursor, list, [])
    where = ""
    values: list[Value] = []
    if after:
        if len(after) != 2 or not isinstance(after[0], str) or not isinstance(after[1], str):
            raise BadRequestError("the cursor is of another list; begin without it")
        where, values = " AND (uploaded_at, version) < (?, ?)", [_time(after[0]), after[1]]
    sql = f"SELECT * FROM model_version WHERE model = ?{where} ORDER BY uploaded_at DESC, version DESC LIMIT ?"  # noqa: S608
    found = db.read(lambda connection: rows(connection, sql, (name, *values, limit + 1)))
    if not found and not after:
        raise NotFoundError(f"there is no model {name!r:.70}; see `tinysphere models`")
    return paged([version_view(item) for item in found], limit, lambda view: [repr(view.uploaded_at), view.version])


def _time(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise BadRequestError("the cursor is of another list; begin without it")
    return found


def get_version(db: Database, name: str, version: str) -> ModelVersionView:
    """One version.

    Raises:
        NotFoundError: it was never uploaded.
    """
    found = db.read(lambda connection: find_version(connection, name, version))
    if found is None:
        raise NotFoundError(f"there is no version {version!r:.50} of model {name!r:.70}; see `tinysphere models`")
    return version_view(found)


def check_package(db: Database, sha256: str) -> None:
    """Refuse a hash that is no registered package's.

    Raises:
        NotFoundError: no version has this hash.
    """
    sql = "SELECT 1 AS one FROM model_version WHERE sha256 = ?"
    if db.read(lambda connection: row(connection, sql, (sha256,))) is None:
        raise NotFoundError("there is no package of this hash")
