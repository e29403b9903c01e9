"""What is done with versions of a model: names for them, two of them compared, one removed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Final

import msgspec
from tinylcm.types import Json

from . import outbox, removals
from .audit import audit
from .db import Connection, Database, Page, decode_cursor, paged, row, rows
from .errors import ConflictError, InvalidError, NotFoundError
from .preconditions import ANY, check_match, tag_of
from .registry import ModelVersionView, find_version, get_version, version_view
from .store import Store

ALIASES_MAX: Final = 100
_ALIAS: Final = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_SHOWN_MAX: Final = 200  # characters of a value in a comparison
_DIFFERENCES_MAX: Final = 1000


class AliasRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The version that an alias names from now on."""

    version: str


class AliasView(msgspec.Struct, frozen=True):
    """A name for a version of a model, such as `champion`."""

    model: str
    alias: str
    version: str
    changed_at: float
    changed_by: str


class Difference(msgspec.Struct, frozen=True):
    """One place of the manifests that differs; null is what only the other has."""

    place: str
    a: str | None
    b: str | None


class Comparison(msgspec.Struct, frozen=True):
    """Two versions of a model side by side."""

    a: ModelVersionView
    b: ModelVersionView
    same_package: bool
    differences: list[Difference]


def resolve(connection: Connection, model: str, version: str) -> str:
    """The version that is meant: itself, or what the alias `@NAME` names now.

    Raises:
        NotFoundError: there is no such alias.
    """
    if not version.startswith("@"):
        return version
    sql = "SELECT version FROM model_alias WHERE model = ? AND alias = ?"
    found = row(connection, sql, (model, version[1:]))
    if found is None:
        raise NotFoundError(f"model {model!r:.70} has no alias {version[1:]!r:.70}; see `tinysphere model {model:.64}`")
    return str(found["version"])


def get(db: Database, model: str, version: str) -> ModelVersionView:
    """One version; `@NAME` is what an alias names now.

    Raises:
        NotFoundError: there is no such version or alias.
    """
    return get_version(db, model, db.read(lambda connection: resolve(connection, model, version)))


def set_alias(
    db: Database,
    model: str,
    alias: str,
    request: AliasRequest,
    who: str,
    now_s: float,
    if_match: str | None = ANY,
) -> AliasView:
    """Have an alias name a version.

    Raises:
        PreconditionRequiredError: it names one already, and no If-Match was sent.
        PreconditionFailedError: it has changed since.
        InvalidError: it is no name for one, or there are too many.
        NotFoundError: there is no such version.
    """
    return db.write(
        lambda connection: set_alias_in(connection, model, alias, request.version, who, now_s, if_match=if_match)
    )


def set_alias_in(
    connection: Connection,
    model: str,
    alias: str,
    version: str,
    who: str,
    now_s: float,
    *,
    tell: bool = True,
    if_match: str | None = ANY,
) -> AliasView:
    """The body of `set_alias`, in a writing job; `tell` is False when it is MLflow that has moved the alias."""
    if not _ALIAS.fullmatch(alias):
        raise InvalidError("alias: expected a lower-case letter, then letters, digits, _ and -, at most 63")
    connection.lock(f"aliases {model}")
    _check_alias(connection, model, alias, if_match)
    if find_version(connection, model, version) is None:
        raise NotFoundError(f"there is no version {version!r:.50} of model {model!r:.70}")
    sql = "SELECT COUNT(*) AS n FROM model_alias WHERE model = ? AND alias <> ?"
    if rows(connection, sql, (model, alias))[0]["n"] >= ALIASES_MAX:
        raise InvalidError(f"the model has {ALIASES_MAX} aliases already, the most that are kept")
    connection.execute(
        "INSERT INTO model_alias (model, alias, version, changed_at, changed_by) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (model, alias) DO UPDATE SET version = excluded.version, changed_at = excluded.changed_at,"
        " changed_by = excluded.changed_by",
        (model, alias, version, now_s, who),
    )
    if tell:
        outbox.mark(connection, "alias", model, alias, now_s)
    audit(connection, who, "model.alias", f"{model} {alias} {version}", now_s)
    return AliasView(model, alias, version, now_s, who)


def _check_alias(connection: Connection, model: str, alias: str, if_match: str | None) -> None:
    """Refuse a change of an alias that somebody else has changed meanwhile."""
    found = row(connection, "SELECT * FROM model_alias WHERE model = ? AND alias = ?", (model, alias))
    check_match(if_match, None if found is None else alias_tag(AliasView(**found)), f"the alias {alias}")


def remove_alias(
    db: Database, model: str, alias: str, who: str, now_s: float, if_match: str | None = None
) -> AliasView:
    """Take a name away; the version stays.

    Raises:
        NotFoundError: there is no such alias.
        PreconditionFailedError: it names another version than the one who asks has seen.
    """

    def job(connection: Connection) -> AliasView:
        found = row(connection, "SELECT * FROM model_alias WHERE model = ? AND alias = ?", (model, alias))
        if found is None:
            raise NotFoundError(f"model {model!r:.70} has no alias {alias!r:.70}")
        check_match(if_match, alias_tag(AliasView(**found)), f"the alias {alias}", needed=False)
        connection.execute("DELETE FROM model_alias WHERE model = ? AND alias = ?", (model, alias))
        _tell_removed(connection, "alias", model, alias, now_s)
        audit(connection, who, "model.unalias", f"{model} {alias}", now_s)
        return AliasView(**found)

    return db.write(job)


def _tell_removed(connection: Connection, kind: outbox.Kind, model: str, name: str, now_s: float) -> None:
    """Have MLflow forget it; what MLflow never heard of need not be told."""
    sql = f"SELECT 1 AS one FROM mlflow_{kind} WHERE model = ? AND {kind} = ?"  # noqa: S608 (one of two words)
    if row(connection, sql, (model, name)) is None:
        outbox.forget(connection, kind, model, name)
    else:
        outbox.mark(connection, kind, model, name, now_s)


def list_aliases(db: Database, model: str, cursor: str | None, limit: int) -> Page[AliasView]:
    """The aliases of a model, by name."""
    after = decode_cursor(cursor, str, "")
    sql = "SELECT * FROM model_alias WHERE model = ? AND alias > ? ORDER BY alias LIMIT ?"
    found = db.read(lambda connection: rows(connection, sql, (model, after, limit + 1)))
    return paged([AliasView(**item) for item in found], limit, lambda alias: alias.alias)


def get_alias(db: Database, model: str, alias: str) -> AliasView:
    """An alias.

    Raises:
        NotFoundError: there is none of this name.
    """
    sql = "SELECT * FROM model_alias WHERE model = ? AND alias = ?"
    found = db.read(lambda connection: row(connection, sql, (model, alias)))
    if found is None:
        raise NotFoundError(f"model {model!r:.70} has no alias {alias!r:.70}")
    return AliasView(**found)


def alias_tag(view: AliasView) -> str:
    """The ETag of an alias."""
    return tag_of(view.model, view.alias, view.version, view.changed_at)


def compare(db: Database, model: str, a: str, b: str) -> Comparison:
    """Where the manifests of two versions differ, place by place; `@NAME` is an alias.

    Raises:
        NotFoundError: one of them was never uploaded.
    """

    def job(connection: Connection) -> tuple[str, str]:
        return resolve(connection, model, a), resolve(connection, model, b)

    names = db.read(job)
    first, second = (get_version(db, model, name) for name in names)
    left, right = (dict(_places(_manifest(db, model, name), "")) for name in names)
    places = sorted(place for place in left.keys() | right.keys() if left.get(place) != right.get(place))
    found = [Difference(place, left.get(place), right.get(place)) for place in places[:_DIFFERENCES_MAX]]
    return Comparison(first, second, first.sha256 == second.sha256, found)


def _manifest(db: Database, model: str, version: str) -> Json:
    sql = "SELECT manifest FROM model_version WHERE model = ? AND version = ?"
    found = db.read(lambda connection: row(connection, sql, (model, version)))
    manifest: Json = json.loads(found["manifest"]) if found is not None else None
    return manifest


def _places(value: Json, place: str) -> Iterator[tuple[str, str]]:
    """Every value of a manifest by its dotted place, shortened; lists of plain values are one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _places(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, inner in enumerate(value):
            yield from _places(inner, f"{place}[{index}]")
    else:
        text = json.dumps(value)
        yield place, text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}... ({len(text)} characters)"


def remove_version(db: Database, store: Store, model: str, version: str, who: str, now_s: float) -> ModelVersionView:
    """Remove a version that nobody runs or is to run, and its package.

    Raises:
        NotFoundError: there is none.
        ConflictError: a deployment is active, an alias names it, or a device or a board has reported that it runs it.
        BusyError, StorageError: the store refuses; the version is gone, its file will be removed by retention.
    """

    def job(connection: Connection) -> tuple[ModelVersionView, bool]:
        found = find_version(connection, model, version)
        if found is None:
            raise NotFoundError(f"there is no version {version!r:.50} of model {model!r:.70}; see `tinysphere models`")
        view = version_view(found)
        active = rows(
            connection,
            "SELECT id FROM deployment WHERE model = ? AND version = ? AND state = 'active' ORDER BY id LIMIT 10",
            (model, version),
        )
        if active:
            numbers = ", ".join(str(item["id"]) for item in active)
            raise ConflictError(f"{model} {version} is deployed ({numbers}); abort that first: `tinysphere abort`")
        names = rows(connection, "SELECT alias FROM model_alias WHERE model = ? AND version = ?", (model, version))
        if names:
            raise ConflictError(
                f"{model} {version} is {', '.join('@' + item['alias'] for item in names)}; move that first"
            )
        runs = rows(
            connection,
            "SELECT id FROM device WHERE retired_at IS NULL AND running LIKE ? ORDER BY id LIMIT 1",
            (f"%{view.sha256}%",),
        )
        if runs:
            raise ConflictError(
                f"{runs[0]['id']} runs {model} {version}, as it has said; have it run another version first"
            )
        board = row(
            connection,
            "SELECT device, uid FROM board WHERE model = ? AND model_version = ? AND gone_at IS NULL"
            " AND device IN (SELECT id FROM device WHERE retired_at IS NULL) ORDER BY device, uid LIMIT 1",
            (model, version),
        )
        if board is not None:
            raise ConflictError(
                f"the board {board['uid']} behind {board['device']} runs {model} {version}; have it run another first"
            )
        connection.execute("DELETE FROM model_version WHERE model = ? AND version = ?", (model, version))
        _tell_removed(connection, "version", model, version, now_s)
        audit(connection, who, "model.remove", f"{model} {version} {view.sha256}", now_s)
        return view, removals.mark(connection, view.sha256)

    view, last = db.write(job)
    if last:
        store.delete(view.sha256)
        db.write(lambda connection: removals.done(connection, view.sha256, now_s))
    return view
