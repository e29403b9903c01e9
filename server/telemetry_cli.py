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
        _write_csv(arguments, client.metrics_csv(**question))
        return
    points = client.metrics(**question)
    shown = [name for name in ("device", "model", "version") if any(name in point for point in points)]
    columns: dict[str, Callable[[Fields], object]] = {"at (UTC)": lambda row: when(row["at"])}
    for name in (*shown, *(arguments.aggregate or ",".join(_SHOWN)).split(",")):
        columns[name] = lambda row, name=name: _short(row.get(name))  # type: ignore[misc]
    emit(arguments, {"points": points}, table(points, columns, "no metrics"))


def _usage(arguments: argparse.Namespace) -> None:
    client = client_of(arguments)
    names = ("device", "group", "model", "version", "since", "until", "by")
    question = {name: getattr(arguments, name) for name in names}
    if arguments.csv:
        _write_csv(arguments, client.usage_csv(**question))
        return
    found = client.usage(**question)
    items = _rows(found, "items")
    shown = ("day", "model", "version", "label", "predictions", "errors", "devices")
    columns: dict[str, Callable[[Fields], object]] = {
        name: lambda row, name=name: row[name]  # type: ignore[misc]
        for name in shown
        if items and name in items[0]
    }
    total = f"{found['predictions']} predictions from {found['since']} to {found['until']}, {found['errors']} errors"
    emit(arguments, found, f"{table(items, columns, 'no predictions')}\n{total}")


def _write_csv(arguments: argparse.Namespace, text: str) -> None:
    if arguments.csv == "-":
        print(text, end="")
        return
    write_atomic(Path(arguments.csv), text.encode())
    emit(arguments, {"file": arguments.csv}, f"wrote {arguments.csv}")


def _rows(found: Fields, key: str) -> list[Fields]:
    items = found[key]
    assert isinstance(items, list)
    return items


def _health(arguments: argparse.Namespace) -> None:
    client = client_of(arguments)
    if arguments.device is not None:
        found = client.device_health(arguments.device)
        columns: dict[str, Callable[[Fields], object]] = {
            "check": lambda row: row["check"],
            "level": lambda row: row["level"],
            "": lambda row: row["detail"],
        }
        seen = when(found["last_seen_at"])
        head = f"{found['device_name']} ({found['device_id']}): {found['status']}, last seen {seen} UTC"
        emit(arguments, found, f"{head}\n{table(_rows(found, 'checks'), columns, '')}")
        return
    found = client.fleet_health(arguments.limit)
    lines = [
        f"{found['status']}: {found['devices']} devices, {found['online']} online, {found['failing']} fail a check"
    ]
    for check in _rows(found, "checks"):
        if check["devices"]:
            lines.append(f"{check['level']:<8} {check['check']:<11} {check['devices']:>6}  {check['about']}")
            lines += [f"  {one['device_id']}  {one['device_name']}: {one['detail']}" for one in _rows(check, "named")]
    emit(arguments, found, "\n".join(lines))


def _performance(arguments: argparse.Namespace) -> None:
    found = client_of(arguments).performance(
        arguments.model, group=arguments.group, since=arguments.since, until=arguments.until
    )
    names = (
        "version", "devices", "running", "windows", "errors", "drift_events", "accuracy", "labelled",
        "confidence_p50", "confidence_p5",
        "latency_p50_us", "latency_p99_us", "rss_bytes",
    )  # fmt: skip
    columns: dict[str, Callable[[Fields], object]] = {
        name: lambda row, name=name: _short(row[name])  # type: ignore[misc]
        for name in names
    }
    emit(arguments, found, table(_rows(found, "versions"), columns, "no device has said anything of it in this time"))


def _logs(arguments: argparse.Namespace) -> None:
    asked = {name: getattr(arguments, name) for name in ("device", "level", "logger", "since", "until")}
    found = client_of(arguments).logs(most=arguments.limit, **asked)
    lines = []
    for line in reversed(found):
        dropped = f" (and {line['dropped']} lines before it that were over the limit)" if line["dropped"] else ""
        at = when(line["at"] if line["at"] is not None else line["received_at"])
        lines.append(f"{at}  {line['level']:<8} {line['device_name']}  {line['logger']}: {line['message']}{dropped}")
    emit(arguments, {"items": found}, "\n".join(lines) or "no device has logged anything of this")


def _follow(arguments: argparse.Namespace) -> None:
    client = client_of(arguments)
    asked = {name: getattr(arguments, name) for name in ("types", "device", "model", "after")}
    for count, event in enumerate(client.follow(**asked), start=1):
        body = event.get("body")
        told = " ".join(f"{key}={value}" for key, value in body.items()) if isinstance(body, dict) else ""
        where = f"{event.get('device') or '-':<14} {event.get('model') or '-'}"
        text = f"{when(event.get('at'))}  {event['event']:<10} {where}  {told or event.get('detail', '')}"
        emit(arguments, event, text.rstrip())
        if arguments.count and count > arguments.count:  # the first says that the stream is ready
            return


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
    command = command_of(commands, "usage", _usage, "predictions by day, model, version and label", http=True)
    command.add_argument("--device", help="of this device")
    command.add_argument("--group", help="of this group's devices")
    command.add_argument("--model", help="of this model")
    command.add_argument("--version", help="of this version")
    _add_times(command, "the last 30 days")
    command.add_argument("--by", metavar="NAMES", help="keep apart: day,model,version,label (default: all of them)")
    command.add_argument("--csv", metavar="FILE", help="write CSV; - prints it")
    command = command_of(commands, "health", _health, "what is wrong in the fleet, or with one device", http=True)
    command.add_argument("device", nargs="?", help="the id of one device")
    command.add_argument("--limit", type=int, default=20, help="devices named of each check (default 20)")
    command = command_of(commands, "performance", _performance, "how a model's versions do in the field", http=True)
    command.add_argument("model", help="the model's name")
    command.add_argument("--group", help="on this group's devices")
    _add_times(command, "the last 7 days")
    command = command_of(commands, "logs", _logs, "what devices have logged, the newest last", http=True)
    command.add_argument("--device", help="of this device's id")
    command.add_argument("--level", choices=("debug", "info", "warning", "error", "critical"), help="the least")
    command.add_argument("--logger", help="of this logger")
    command.add_argument("--since", type=float, metavar="UNIX_S", help="received from this time on")
    command.add_argument("--until", type=float, metavar="UNIX_S", help="received before this time")
    command.add_argument("--limit", type=int, default=200, help="newest lines (default 200)")
    command = command_of(commands, "follow", _follow, "what happens, as it happens", http=True)
    command.add_argument("--types", metavar="NAMES", help="only these: drift,deployment,command,config,board,change")
    command.add_argument("--device", help="only of this device's id")
    command.add_argument("--model", help="only of this model")
    command.add_argument("--after", metavar="ID", help="go on behind this event (default: from now on)")
    command.add_argument("--count", type=int, metavar="N", help="end after so many events (default: never)")


def _add_times(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--since", type=float, metavar="UNIX_S", help=f"from this time on (default: {default})")
    command.add_argument("--until", type=float, metavar="UNIX_S", help="up to this time (default: now)")
