"""Fetching a package that the server wants: resumed by range, and only where the server resumes exactly there."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from .errors import ModelError, ServerError
from .files import device_error, read_bounded
from .http import HttpClient
from .manifest import PACKAGE_BYTES_MAX
from .store import SlotStore
from .sync import read_refusal
from .wire import DesiredModel

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


def download(client: HttpClient, store: SlotStore, wanted: DesiredModel, got_on: Callable[[], object]) -> bytes:
    """Fetch a package, going on where an earlier try stopped.

    Args:
        got_on: called after each piece, so that a slow download is told from a stuck one.

    Raises:
        ModelError: it is announced as larger than any package may be.
        DeviceError: no space or no permission; what is here stays.
        ServerError: it broke off or was refused; what came stays and is gone on from.
    """
    if not 0 < wanted.size <= PACKAGE_BYTES_MAX:
        raise ModelError(
            f"the server announces a package of {wanted.size} bytes, at most {PACKAGE_BYTES_MAX} are taken"
        )
    with store.part(wanted.sha256) as part:
        have = part.stat().st_size if part.exists() else 0
        if have > wanted.size:
            part.unlink()
            have = 0
        store.require_space(2 * wanted.size - have)
        if have < wanted.size:
            _fetch(client, wanted, part, have, got_on)
        data = read_bounded(part, wanted.size)
        if len(data) != wanted.size:
            raise ServerError(f"the package ended after {len(data)} of {wanted.size} bytes")
        part.unlink()
        return data


def _fetch(client: HttpClient, wanted: DesiredModel, part: Path, have: int, got_on: Callable[[], object]) -> None:
    with client.download(wanted.url, have) as (status, headers, pieces):
        resumed = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
        resumes = status == 206 and resumed is not None and (int(resumed[1]), int(resumed[3])) == (have, wanted.size)
        if status not in (200, 206) or (status == 206 and not resumes):
            raise read_refusal(status, headers, b"".join(_bounded(pieces, 4096)))
        try:
            with part.open("ab" if resumes else "wb") as file:
                for piece in _bounded(pieces, wanted.size - (have if resumes else 0)):
                    file.write(piece)
                    got_on()
        except OSError as error:
            raise device_error(error, "downloading to") from error


def _bounded(pieces: Iterator[bytes], bytes_max: int) -> Iterator[bytes]:
    """A body's pieces, up to a size: a peer that sends for ever is cut off."""
    left = bytes_max
    for piece in pieces:
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            return
