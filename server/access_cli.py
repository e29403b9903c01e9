"""The commands of `tinysphere` about who may what: tokens, join strings, the audit.

On the server's own machine they work on its data (`--data`), which needs no token; from anywhere else over HTTP, with a
token of an admin.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from tinylcm.errors import ConfigError
from tinylcm.files import read_bounded
from tinylcm.keys import fingerprint, load_public

from . import audit, auth, joins, trust
from .client import Fields
from .errors import TinySphereError
from .host_cli import CA_BYTES_MAX, database_of
from .output import client_of, emit, table, when

JOINS_SHOWN_MAX: Final = 10_000


def _is_here(arguments: argparse.Namespace) -> bool:
    """Whether the command works on the data of this machine."""
    return bool(arguments.data)


def _token_create(arguments: argparse.Namespace) -> None:
    if _is_here(arguments):
        request = auth.TokenRequest(arguments.role, arguments.name, arguments.days)
        with database_of(arguments) as db:
            made: Fields = msgspec.to_builtins(auth.create_token(db, request, "cli", time.time()))
    else:
        made = client_of(arguments).create_token(arguments.role, name=arguments.name, days=arguments.days)
    emit(arguments, made, f"{made['token']}\nshown only now; role {made['role']}, id {made['id']}")


def _token_list(arguments: argparse.Namespace) -> None:
    if _is_here(arguments):
        with database_of(arguments) as db:
            found: list[Fields] = msgspec.to_builtins(auth.list_tokens(db))
    else:
        found = client_of(arguments).tokens()
    columns: dict[str, Callable[[Fields], object]] = {
        "id": lambda row: row["id"],
        "role": lambda row: row["role"],
        "name": lambda row: row["name"],
        "until (UTC)": lambda row: "revoked" if row["revoked_at"] else when(row["expires_at"]),
    }
    emit(arguments, found, table(found, columns, "no tokens"))


def _token_revoke(arguments: argparse.Namespace) -> None:
    if _is_here(arguments):
        with database_of(arguments) as db:
            auth.revoke_token(db, arguments.id, "cli", time.time())
    else:
        client_of(arguments).revoke_token(arguments.id)
    emit(arguments, {"id": arguments.id, "revoked": True}, f"token {arguments.id} is revoked")


def _join_create(arguments: argparse.Namespace) -> None:
    public = load_public(Path(arguments.root))
    if _is_here(arguments):
        ca_pem = read_bounded(Path(arguments.ca), CA_BYTES_MAX) if arguments.ca else None
        joins.join_string(arguments.url, "", "", ca_pem)  # before a token is made for nothing
        request = joins.JoinRequest(
            arguments.url, fingerprint(public), arguments.uses, arguments.ttl_s, arguments.expected_only
        )
        with database_of(arguments) as db:
            trust.pin(db, public, "cli", time.time())
            made: Fields = msgspec.to_builtins(joins.make(db, request, ca_pem, "cli", time.time()))
    else:
        if arguments.ca:
            raise ConfigError("--ca is for --data: over HTTP the server names its own authority, from `serve --tls-ca`")
        made = client_of(arguments).create_join(
            arguments.url,
            root=fingerprint(public),
            uses=arguments.uses,
            ttl_s=arguments.ttl_s,
            expected_only=arguments.expected_only,
        )
    emit(arguments, made, str(made["join"]))


def _join_list(arguments: argparse.Namespace) -> None:
    if _is_here(arguments):
        found: list[Fields] = []
        cursor: str | None = None
        with database_of(arguments) as db:
            while len(found) < JOINS_SHOWN_MAX:
                page = joins.list_joins(db, cursor, 500)
                found, cursor = [*found, *msgspec.to_builtins(page.items)], page.next
                if cursor is None:
                    break
    else:
        found = client_of(arguments).joins()
    columns: dict[str, Callable[[Fields], object]] = {
        "id": lambda row: row["id"],
        "uses": lambda row: f"{row['uses']} of {row['uses_max']}",
        "until (UTC)": lambda row: when(row["expires_at"]),
        "for": lambda row: "announced devices" if row["expected_only"] else "any device",
    }
    emit(arguments, found, table(found, columns, "no join tokens"))


def _join_revoke(arguments: argparse.Namespace) -> None:
    if _is_here(arguments):
        with database_of(arguments) as db:
            ended: Fields = msgspec.to_builtins(joins.revoke(db, arguments.id, "cli", time.time()))
    else:
        ended = client_of(arguments).revoke_join(arguments.id)
    emit(arguments, ended, f"nobody else enrols with {ended['id']}; {ended['uses']} devices have")


def _audit_list(arguments: argparse.Namespace) -> None:
    if _is_here(arguments):
        with database_of(arguments) as db:
            found: list[Fields] = msgspec.to_builtins(audit.list_audit(db, (1 << 63) - 1, arguments.limit - 1))
    else:
        found = client_of(arguments).audit(arguments.limit)
    columns: dict[str, Callable[[Fields], object]] = {
        "at (UTC)": lambda row: when(row["at"]),
        "who": lambda row: row["who"],
        "what": lambda row: row["what"],
        "of": lambda row: row["target"],
    }
    emit(arguments, {"items": found}, table(found, columns, "nothing was changed yet"))


def _audit_verify(arguments: argparse.Namespace) -> None:
    with database_of(arguments) as db:
        found = audit.verify(db, arguments.head)
    if found.broken_at is not None:
        raise TinySphereError(
            f"the audit is broken at entry {found.broken_at}: it, or the one before, was changed or removed; "
            f"{found.entries} entries before it are whole"
        )
    if not found.has_head:
        raise TinySphereError(
            f"the audit does not go through {arguments.head}: its end was cut off, or it is another's"
        )
    emit(
        arguments, msgspec.to_builtins(found), f"{found.entries} entries, whole; note the head elsewhere: {found.head}"
    )


def add_commands(commands: Any, command_of: Callable[..., argparse.ArgumentParser]) -> None:
    """Put these commands into the parser."""
    log = commands.add_parser("audit", help="who changed what").add_subparsers(required=True, metavar="ACTION")
    command = command_of(log, "list", _audit_list, "the changes, newest first", data=True, http=True)
    command.add_argument("--limit", type=int, default=100, help="entries (default 100)")
    command = command_of(log, "verify", _audit_verify, "see whether an entry was changed or removed", data=True)
    command.add_argument("--head", metavar="SHA256", help="a head that was noted earlier: the log must go through it")

    token = commands.add_parser("token", help="people's tokens").add_subparsers(required=True, metavar="ACTION")
    command = command_of(token, "create", _token_create, "make a token; it is shown once", data=True, http=True)
    command.add_argument("--role", required=True, choices=list(auth.ROLES), help="what it may do")
    command.add_argument("--name", default="", help="whose it is")
    command.add_argument("--days", type=int, help="how long it is valid (default: until revoked)")
    command_of(token, "list", _token_list, "the tokens, without their secrets", data=True, http=True)
    command = command_of(token, "revoke", _token_revoke, "end a token", data=True, http=True)
    command.add_argument("id", help="from `token list`")

    join = commands.add_parser("join", help="join strings for devices").add_subparsers(required=True, metavar="ACTION")
    command = command_of(
        join, "create", _join_create, "make the string that a device enrols with", data=True, http=True
    )
    command.add_argument("--url", required=True, help="the server's address as devices reach it")
    command.add_argument("--root", required=True, metavar="ROOT.pub", help="the publisher's root key that devices pin")
    command.add_argument("--uses", type=int, default=1, help="devices that may use it (default 1)")
    command.add_argument("--ttl-s", type=int, default=86400, help="seconds that it is valid (default a day)")
    command.add_argument("--ca", metavar="PEM", help="the authority that devices pin, with TLS; for --data")
    command.add_argument("--expected-only", action="store_true", help="for announced devices alone: tinysphere expect")
    command_of(join, "list", _join_list, "the join tokens, without their secrets", data=True, http=True)
    command = command_of(
        join, "revoke", _join_revoke, "end a join token; devices that have enrolled stay", data=True, http=True
    )
    command.add_argument("id", help="from `join list`")
