"""What commands print: text for people, one JSON document for scripts."""

from __future__ import annotations

import argparse
import json


def emit(arguments: argparse.Namespace, document: object, text: str) -> None:
    """Print the document with `--json`, the text otherwise."""
    print(json.dumps(document) if arguments.json else text, flush=True)
