"""Models and their versions: uploads are verified against the pinned roots, stored by hash, registered once."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import msgspec
from tinylcm.files import read_bounded
from tinylcm.keys import Trust
from tinylcm.manifest import PACKAGE_BYTES_MAX
from tinylcm.package import Package, parse_package

from .auth import audit
from .db import Connection, Database, Page, decode_cursor, paged, row, rows
from .errors import ConflictError, InvalidError, NotFoundError
from .store import FolderStore, Upload


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


class ModelView(msgspec.Struct, frozen=True):
    """A model and its versions, newest first."""

    name: str
    versions: list[ModelVersionView]


class ModelSummary(msgspec.Struct, frozen=True):
    """A model in a list."""

    name: str
    versions: int
    latest: str


def _view(found: sqlite3.Row) -> ModelVersionView:
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
    )


def add_version(
    db: Database, store: FolderStore, roots: Path, name: str, upload: Upload, who: str, now_s: float
) -> tuple[ModelVersionView, bool]:
    """Verify an uploaded package, store and register it. The same file again changes nothing.

    Returns:
        The version, and whether it is new.

    Raises:
        ModelError: damaged, unsigned, untrusted or expired.
        InvalidError: it is a package of another model.
        ConflictError: the version exists with other content.
        StorageError: the disk refuses.
    """
    upload.finish()
    package = parse_package(
        read_bounded(upload.path, PACKAGE_BYTES_MAX), Trust.load(roots), expiry="refuse", now_s=now_s
    )
    manifest = package.manifest
    if manifest.name != name:
        raise InvalidError(f"the package is of model {manifest.name}, the address says {name:.64}; upload it there")
    known = db.read(lambda connection: _find(connection, name, manifest.version))
    if known is not None:
        return _same(known, package), False
    store.put(upload, package.sha256)

    def job(connection: Connection) -> tuple[ModelVersionView, bool]:
        known = _find(connection, name, manifest.version)
        if known is not None:
            return _same(known, package), False
        connection.execute(
            "INSERT INTO model_version"
            " (model, version, sha256, size, root, release, manifest, uploaded_at, uploaded_by)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
            ),
        )
        audit(connection, who, "model.upload", f"{name} {manifest.version} {package.sha256}", now_s)
        found = _find(connection, name, manifest.version)
        assert found is not None
        return _view(found), True

    return db.write(job)


def _find(connection: Connection, name: str, version: str) -> sqlite3.Row | None:
    return row(connection, "SELECT * FROM model_version WHERE model = ? AND version = ?", (name, version))


def _same(known: sqlite3.Row, package: Package) -> ModelVersionView:
    if known["sha256"] != package.sha256:
        raise ConflictError(
            f"{known['model']} {known['version']} exists with sha256 {known['sha256'][:12]}, the upload has "
            f"{package.sha256[:12]}; a version never changes, build it under a new version"
        )
    return _view(known)


def list_models(db: Database, cursor: str | None, limit: int) -> Page[ModelSummary]:
    """Models by name."""
    after = decode_cursor(cursor, str, "")
    sql = (
        "SELECT model, COUNT(*) AS versions, version AS latest, MAX(uploaded_at) FROM model_version WHERE model > ?"
        " GROUP BY model ORDER BY model LIMIT ?"
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
    return ModelView(name, [_view(item) for item in found])


def get_version(db: Database, name: str, version: str) -> ModelVersionView:
    """One version.

    Raises:
        NotFoundError: it was never uploaded.
    """
    found = db.read(lambda connection: _find(connection, name, version))
    if found is None:
        raise NotFoundError(f"there is no version {version!r:.50} of model {name!r:.70}; see `tinysphere models`")
    return _view(found)


def package_path(db: Database, store: FolderStore, sha256: str) -> Path:
    """The file of a registered package.

    Raises:
        NotFoundError: no version has this hash.
    """
    sql = "SELECT 1 FROM model_version WHERE sha256 = ?"
    if db.read(lambda connection: row(connection, sql, (sha256,))) is None:
        raise NotFoundError("there is no package of this hash")
    return store.path(sha256)
