"""Groups of devices: a selector with a name, which other selectors use as `group=NAME`.

Who is in a group is found out when it matters, never stored: a device that changes is in or out at its next sync.
A group's own selector knows no groups, so they cannot go round in circles.
"""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec

from . import selectors
from .audit import audit
from .db import Connection, Database, Page, Row, decode_cursor, paged, raise_generation, row, rows
from .errors import InvalidError, NotFoundError
from .preconditions import ANY, check_match, tag_of
from .selectors import Facts

GROUPS_MAX: Final = 500
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")


class GroupRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The selector of a group."""

    selector: str


class GroupView(msgspec.Struct, frozen=True):
    """A group and how many devices are in it now."""

    name: str
    selector: str
    devices: int
    changed_at: float
    changed_by: str


class Groups:
    """The groups as they are now, to ask of several devices."""

    def __init__(self, connection: Connection) -> None:
        found = rows(connection, "SELECT name, selector FROM device_group ORDER BY name LIMIT ?", (GROUPS_MAX,))
        self._selectors = [(str(item["name"]), selectors.parse(item["selector"])) for item in found]

    def facts_of(self, device: Row) -> Facts:
        """What selectors know of a device: its id, name, labels, what it has reported, and its groups."""
        labels, capabilities = json.loads(device["labels"]), json.loads(device["capabilities"])
        facts = selectors.facts_of(device["id"], device["name"], labels, capabilities)
        return {**facts, "group": [name for name, selector in self._selectors if selector.matches(facts)]}


def members(connection: Connection, selector: str) -> list[str]:
    """The ids of the devices that a selector means; retired ones are never meant.

    Raises:
        BadRequestError: the selector is malformed.
    """
    parsed, groups = selectors.parse(selector), Groups(connection)
    sql = "SELECT id, name, labels, capabilities FROM device WHERE retired_at IS NULL ORDER BY id"
    return [item["id"] for item in rows(connection, sql) if parsed.matches(groups.facts_of(item))]


def _view(connection: Connection, found: Row) -> GroupView:
    return GroupView(**found, devices=len(members(connection, found["selector"])))


def tag(view: GroupView) -> str:
    """The ETag of a group; devices that come and go do not change it."""
    return tag_of(view.name, view.selector, view.changed_at)


def put(
    db: Database, name: str, request: GroupRequest, who: str, now_s: float, if_match: str | None = ANY
) -> GroupView:
    """Make a group, or give it another selector; the same again changes nothing.

    Raises:
        PreconditionRequiredError: it is there, and no If-Match was sent.
        PreconditionFailedError: it has changed since.
        InvalidError: the name is none, the selector names groups, or there are too many.
        BadRequestError: the selector is malformed.
    """
    if not _NAME.fullmatch(name):
        raise InvalidError("name: expected letters, digits, _ . and -, at most 63")
    if "group" in selectors.keys_of(selectors.parse(request.selector)):
        raise InvalidError("selector: a group's selector knows no groups; name what they have in common")

    def job(connection: Connection) -> GroupView:
        connection.lock("groups")
        known = row(connection, "SELECT * FROM device_group WHERE name = ?", (name,))
        view = None if known is None else _view(connection, known)
        if view is not None and view.selector == request.selector:
            return view
        check_match(if_match, None if view is None else tag(view), f"the group {name}")
        count = rows(connection, "SELECT COUNT(*) AS n FROM device_group WHERE name <> ?", (name,))[0]["n"]
        if count >= GROUPS_MAX:
            raise InvalidError(f"there are {GROUPS_MAX} groups already, the most that are kept")
        connection.execute(
            "INSERT INTO device_group (name, selector, changed_at, changed_by) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (name) DO UPDATE SET selector = excluded.selector, changed_at = excluded.changed_at,"
            " changed_by = excluded.changed_by",
            (name, request.selector, now_s, who),
        )
        raise_generation(connection)
        audit(connection, who, "group.set", f"{name} {request.selector}", now_s)
        return _get(connection, name)

    return db.write(job)


def _get(connection: Connection, name: str) -> GroupView:
    found = row(connection, "SELECT * FROM device_group WHERE name = ?", (name,))
    if found is None:
        raise NotFoundError(f"there is no group {name!r:.70}; see `tinysphere groups`")
    return _view(connection, found)


def get(db: Database, name: str) -> GroupView:
    """A group.

    Raises:
        NotFoundError: there is none of this name.
    """
    return db.read(lambda connection: _get(connection, name))


def remove(db: Database, name: str, who: str, now_s: float, if_match: str | None = None) -> GroupView:
    """Remove a group; what is meant by `group=NAME` is nobody then.

    Raises:
        PreconditionFailedError: it has changed since `if_match`.
        NotFoundError: there is none of this name.
    """

    def job(connection: Connection) -> GroupView:
        view = _get(connection, name)
        check_match(if_match, tag(view), f"the group {name}", needed=False)
        connection.execute("DELETE FROM device_group WHERE name = ?", (name,))
        raise_generation(connection)
        audit(connection, who, "group.remove", name, now_s)
        return view

    return db.write(job)


def list_groups(db: Database, cursor: str | None, limit: int) -> Page[GroupView]:
    """Groups, by name."""
    after = decode_cursor(cursor, str, "")

    def job(connection: Connection) -> list[GroupView]:
        sql = "SELECT * FROM device_group WHERE name > ? ORDER BY name LIMIT ?"
        return [_view(connection, item) for item in rows(connection, sql, (after, limit + 1))]

    return paged(db.read(job), limit, lambda group: group.name)
