"""What commands share: text for people, one JSON document for scripts, and the client that the options name."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence

from tinylcm.errors import ConfigError

from .client import Client, Fields


def emit(arguments: argparse.Namespace, document: object, text: str) -> None:
    """Print the document with `--json`, the text otherwise."""
    print(json.dumps(document) if arguments.json else text, flush=True)


def client_of(arguments: argparse.Namespace) -> Client:
    """The client of the server that the options or the environment name.

    Raises:
        ConfigError: they name none.
    """
    url = arguments.server or os.environ.get("TINYSPHERE_URL", "")
    token = arguments.token or os.environ.get("TINYSPHERE_TOKEN", "")
    if not url or not token:
        raise ConfigError("name the server with --server and --token, or by TINYSPHERE_URL and TINYSPHERE_TOKEN")
    return Client(url, token, ca_file=arguments.ca_file, insecure=arguments.insecure)


def table(rows: Sequence[Fields], columns: Mapping[str, Callable[[Fields], object]], empty: str) -> str:
    """Rows under the names of their columns, or what to say when there are none."""
    if not rows:
        return empty
    cells = [[str(column(row)) for column in columns.values()] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(columns)]
    lines = [list(columns), *cells]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def when(value: object) -> str:
    """A time in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(value)) if isinstance(value, int | float) else "-"
