"""`tinylcm journal`: what is in the journal, also while the device runs."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from .console import add_command, configuration, counter, print_result
from .errors import ConfigError
from .types import Json, Record
from .wire import STREAMS, record_to_json


def _folder(arguments: argparse.Namespace) -> Path:
    return Path(arguments.folder) if arguments.folder else configuration(arguments).data / "journal"


def _stat(arguments: argparse.Namespace) -> None:
    from .journal_tools import stat

    found: dict[str, Any] = stat(_folder(arguments))
    lines = []
    for stream in STREAMS:
        state = found[stream]
        lines.append(
            f"{stream}: {state['waiting']} records wait; {state['bytes']} bytes in {state['segments']} segments"
        )
        lines += [f"  {count:>8} {kind}" for kind, count in sorted(state["records"].items())]
        lines += [f"  {count:>8} lost: {reason}" for reason, count in sorted(state["lost"].items())]
    wear = found["wear"]
    if wear is not None:
        lines.append(
            f"disk: about {wear['device_bytes_estimate']} bytes in {wear['measured_s'] / 3600:.0f} h and the last hour "
            f"begun ({wear['written_bytes']} written, {wear['syncs']} fsyncs)"
        )
    print_result(arguments, found, "\n".join(lines))


def _tail(arguments: argparse.Namespace) -> None:
    from .journal_tools import tail

    if arguments.count < 0:
        raise ConfigError(f"-n is {arguments.count}, expected 0 or more")
    for record in tail(_folder(arguments), arguments.stream, arguments.count, follow=arguments.follow, wait=time.sleep):
        print_result(arguments, record_to_json(record), _line(record))


def _line(record: Record) -> str:
    payload = json.dumps(record.payload, ensure_ascii=False)
    text = payload if len(payload) <= 160 else f"{payload[:157]}..."
    return f"{record.epoch}/{record.seq} {record.boot_ns / 1e9:.3f} s after boot {record.type} {text}"


def _verify(arguments: argparse.Namespace) -> int:
    from .journal_tools import verify

    lines = []
    checks: list[Json] = []
    for check in verify(_folder(arguments)):
        name = f"{check.stream}/{check.path.name}"
        found = f"{check.state:<8}{name}  {check.records} records, {check.bytes} bytes"
        if check.bad_bytes:
            found += f", {check.bad_bytes} of them unreadable"
        if check.missing:
            found += f", {check.missing} records missing"
        lines.append(found)
        checks.append(
            {
                "segment": name,
                "state": check.state,
                "records": check.records,
                "bytes": check.bytes,
                "bad_bytes": check.bad_bytes,
                "missing": check.missing,
            }
        )
    print_result(arguments, checks, "\n".join(lines) or "no segments")
    return int(any(line.startswith("damaged") for line in lines))


def _export(arguments: argparse.Namespace) -> None:
    from .journal_tools import export

    streams = (arguments.stream,) if arguments.stream else STREAMS
    lines = export(_folder(arguments), "csv" if arguments.csv else "jsonl", streams)
    if not arguments.output:
        for line in lines:
            print(line)
        return
    path, count = Path(arguments.output), 0
    if path.exists():
        raise ConfigError(f"{path} exists already and is not overwritten")
    with path.open("x", encoding="utf-8") as file, counter("records") as progress:
        for line in lines:
            file.write(line + "\n")
            count += 1
            if progress is not None and count % 1000 == 0:
                progress(count)
    count -= int(arguments.csv)  # the line of names
    print_result(arguments, {"records": count, "path": str(path)}, f"{count} records: {path}")


def add_journal_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`stat`, `tail`, `verify` and `export`."""
    journal = commands.add_parser("journal", help="the stored records").add_subparsers(required=True, metavar="ACTION")
    command = add_command(journal, "stat", _stat, "what the journal holds, what waits and what was lost")
    _add_folder(command)
    command = add_command(journal, "tail", _tail, "the newest records")
    _add_folder(command)
    command.add_argument("--stream", choices=STREAMS, default="events", help="which (default events)")
    command.add_argument("-n", "--count", type=int, default=10, help="how many (default 10)")
    command.add_argument("-f", "--follow", action="store_true", help="go on with new ones until interrupted")
    command = add_command(journal, "verify", _verify, "check every byte; exit code 1 when something is damaged")
    _add_folder(command)
    command = add_command(journal, "export", _export, "every record as a line of JSON, or as CSV")
    _add_folder(command)
    command.add_argument("--stream", choices=STREAMS, help="only this one")
    command.add_argument("--csv", action="store_true", help="CSV with a first line of names")
    command.add_argument("-o", "--output", default="", metavar="FILE", help="write here (default: standard output)")


def _add_folder(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", nargs="?", default="", help="the journal's folder (default: this device's)")
