"""Whose packages may be uploaded: the publishers' pinned roots and what those said, in the database.

What a package brings of its root's statements (key sets, revocations, a new root) is kept when the package is accepted,
so a release key that was withdrawn once signs no upload any more, whatever package is sent afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec
from tinylcm.errors import ModelError, TinyLCMError
from tinylcm.files import list_files
from tinylcm.keys import Trust, fingerprint, load_public
from tinylcm.statements import Statement, parse_statement

from .audit import audit
from .db import Connection, Database, rows

_log = logging.getLogger("tinysphere")


class RootView(msgspec.Struct, frozen=True):
    """A publisher's root key that is pinned here."""

    fingerprint: str
    pinned_at: float
    pinned_by: str


def load(connection: Connection) -> Trust:
    """Whom this server believes, and the newest that they said."""
    roots = frozenset(item["fingerprint"] for item in rows(connection, "SELECT fingerprint FROM trusted_root"))
    statements = []
    for item in rows(connection, "SELECT document FROM trust_statement"):
        try:
            statements.append(parse_statement(str(item["document"]).encode()))
        except ModelError as error:
            _log.error("a stored statement is damaged and left out: %s", error)
    return Trust(roots).learn_all(statements)[0]


def pin(db: Database, public: bytes, who: str, now_s: float) -> str:
    """Trust a root key from now on; returns its fingerprint. Again changes nothing."""
    name = fingerprint(public)

    def job(connection: Connection) -> str:
        known = rows(connection, "SELECT fingerprint FROM trusted_root WHERE fingerprint = ?", (name,))
        if not known:
            columns = ("fingerprint", "pinned_at", "pinned_by")
            connection.insert("trusted_root", columns, [(name, now_s, who)])
            audit(connection, who, "root.pin", name, now_s)
        return name

    return db.write(job)


def pin_folder(db: Database, folder: Path, now_s: float) -> None:
    """Pin every `*.pub` of a folder, as an operator may have put them there."""
    for path in list_files(folder, "*.pub") if folder.is_dir() else ():
        try:
            pin(db, load_public(path), "folder", now_s)
        except TinyLCMError as error:
            _log.error("%s is no root key and left out: %s", path, error)


def learn(connection: Connection, statements: Sequence[Statement], now_s: float) -> None:
    """Keep what is news of a package's statements, in the job that registers it."""
    connection.lock("trust")
    for statement in load(connection).learn_all(statements)[1]:
        document = statement.to_json().decode()
        columns = ("fingerprint", "document", "learnt_at")
        connection.insert("trust_statement", columns, [(fingerprint(document.encode()), document, now_s)])


def list_roots(db: Database) -> list[RootView]:
    """The pinned roots, oldest first."""
    sql = "SELECT fingerprint, pinned_at, pinned_by FROM trusted_root ORDER BY pinned_at, fingerprint LIMIT 1000"
    return [RootView(**item) for item in db.read(lambda connection: rows(connection, sql))]
