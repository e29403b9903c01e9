"""The commands of `tinysphere` that read what the devices have said."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tinylcm.files import write_atomic

from .client import Fields
from .output import client_of, emit, table, when

_SHOWN = ("windows", "errors", "confidence_p50", "confidence_p5", "latency_p50_us", "latency_p99_us", "rss_bytes")


def _events(arguments: argparse.Namespace) -> None:
    rows = client_of(arguments).events(device=arguments.device, model=arguments.model)
    columns: dict[str, Callable[[Fields], object]] = {
        "id": lambda row: row["id"],
        "received (UTC)": lambda row: when(row["received_at"]),
        "device": lambda row: row["device_name"],
        "monitor": lambda row: row["monitor"],
        "signal": lambda row: row["signal"],
        "statistic": lambda row: f"{row['statistic']:.4g}" if isinstance(row["statistic"], float) else "-",
        "threshold": lambda row: f"{row['threshold']:.4g}" if isinstance(row["threshold"], float) else "-",
        "window": lambda row: row["window"],
    }
    emit(arguments, {"items": rows}, table(rows, columns, "no drift events"))


def _metrics(arguments: argparse.Namespace) -> None:
    client = client_of(arguments)
    names = ("device", "group", "model", "version", "since", "until", "step", "by", "aggregate", "limit")
    question = {name: getattr(arguments, name) for name in names}
    if arguments.csv:
        text = client.metrics_csv(**question)
        if arguments.csv == "-":
            print(text, end="")
        else:
            write_atomic(Path(arguments.csv), text.encode())
            emit(arguments, {"file": arguments.csv}, f"wrote {arguments.csv}")
        return
    points = client.metrics(**question)
    shown = [name for name in ("device", "model", "version") if any(name in point for point in points)]
    columns: dict[str, Callable[[Fields], object]] = {"at (UTC)": lambda row: when(row["at"])}
    for name in (*shown, *(arguments.aggregate or ",".join(_SHOWN)).split(",")):
        columns[name] = lambda row, name=name: _short(row.get(name))  # type: ignore[misc]
    emit(arguments, {"points": points}, table(points, columns, "no metrics"))


def _short(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else value


def add_commands(commands: Any, command_of: Callable[..., argparse.ArgumentParser]) -> None:
    """Put these commands into the parser."""
    command = command_of(commands, "events", _events, "drift events, newest first", http=True)
    command.add_argument("--device", help="of this device")
    command.add_argument("--model", help="of this model")
    command = command_of(commands, "metrics", _metrics, "what models did over time", http=True)
    command.add_argument("--device", help="of this device")
    command.add_argument("--group", help="of this group's devices")
    command.add_argument("--model", help="of this model")
    command.add_argument("--version", help="of this version")
    command.add_argument("--since", type=float, metavar="UNIX_S", help="from this time on")
    command.add_argument("--until", type=float, metavar="UNIX_S", help="up to this time")
    command.add_argument("--step", choices=("minute", "hour", "day"), help="add up (default: each device's intervals)")
    command.add_argument("--by", metavar="NAMES", help="keep apart in a step: device,model,version")
    command.add_argument("--aggregate", metavar="NAMES", help="only these, such as windows,latency_p99_us")
    command.add_argument("--limit", type=int, default=500, help="newest points (default 500)")
    command.add_argument("--csv", metavar="FILE", help="write CSV; - prints it")
