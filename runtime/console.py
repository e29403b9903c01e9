"""What every command of `tinylcm` shares: its common options, its configuration, and how it shows what it found."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .config import DeviceConfig, load_config, parse_config
from .wire import finite

CONFIG: Final = "device.toml"


def print_result(arguments: argparse.Namespace, document: object, text: str) -> None:
    """Print the text for people, or with --json the document."""
    print(json.dumps(finite(document)) if arguments.json else text, flush=True)


def configuration(arguments: argparse.Namespace) -> DeviceConfig:
    """The configuration that --config names; without the option, ./device.toml if it is there, else defaults."""
    if arguments.config is not None:
        return load_config(arguments.config)
    return load_config(CONFIG) if Path(CONFIG).is_file() else parse_config({}, Path.cwd())


@contextmanager
def counter(what: str) -> Iterator[Callable[[int], None] | None]:
    """A counter on a terminal; silence in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    yield lambda count: print(f"\r{count} {what}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[float], None] | None]:
    """A progress bar on a terminal; silence in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    shown = -1

    def show(share: float) -> None:
        nonlocal shown
        percent = int(100 * min(max(share, 0.0), 1.0))
        if percent != shown:
            shown = percent
            print(f"\r{what} [{'#' * (percent // 4):<25}] {percent:>3} %", end="", file=sys.stderr, flush=True)

    yield show
    print(file=sys.stderr)


Handler = Callable[[argparse.Namespace], "int | None"]


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, handler: Handler, help: str
) -> argparse.ArgumentParser:
    """A command with the options that all have."""
    parser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(handler=handler)
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure and more log lines")
    parser.add_argument("--config", metavar="FILE", help=f"device configuration (default: {CONFIG}, if it is there)")
    return parser
