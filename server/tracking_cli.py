"""The commands of `tinysphere` about the mirror in MLflow, on the server's own machine or beside its database."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import msgspec

from . import tracking
from .host_cli import database_of
from .output import emit, table, when


def _status(arguments: argparse.Namespace) -> None:
    with database_of(arguments) as db:
        found = tracking.status(db)
    lines = [
        f"waiting: {found.versions} versions, {found.aliases} aliases, {found.points} points of metrics"
        + (f"; the oldest since {when(found.oldest_at)} UTC" if found.oldest_at is not None else ""),
        f"last round that ended well: {when(found.finished_at)} UTC",
    ]
    if found.problem:
        lines.append(f"the last {found.attempts} rounds did not: {found.problem}")
    if found.full:
        lines.append("so many points wait that what comes is not looked at for now; it is in the records meanwhile")
    refused = [msgspec.to_builtins(item) for item in found.waiting if item.problem]
    columns: dict[str, Callable[[dict[str, object]], object]] = {
        "refused": lambda row: f"{row['kind']} {row['model']} {row['name']}",
        "again (UTC)": lambda row: when(row["retry_at"]),
        "why": lambda row: row["problem"],
    }
    if refused:
        lines.append(table(refused, columns, ""))
    emit(arguments, msgspec.to_builtins(found), "\n".join(lines))


def _resync(arguments: argparse.Namespace) -> None:
    with database_of(arguments) as db:
        db.write(lambda connection: tracking.resync(connection, time.time()))
        found = tracking.status(db)
    emit(
        arguments,
        msgspec.to_builtins(found),
        f"{found.versions} versions, {found.aliases} aliases and {found.points} points of metrics wait now; a server "
        "with --mlflow tells them, what MLflow has already stays as it is",
    )


def add_commands(commands: Any, command_of: Callable[..., argparse.ArgumentParser]) -> None:
    """Put these commands into the parser."""
    mlflow = commands.add_parser("mlflow", help="the mirror in MLflow: tinysphere serve --mlflow URL").add_subparsers(
        required=True, metavar="ACTION"
    )
    command_of(mlflow, "status", _status, "what waits to be told to MLflow, and why", data=True)
    command_of(mlflow, "resync", _resync, "tell MLflow everything again, as after it was emptied", data=True)
