"""A blob as an answer: whole, or the part that a Range asks for (RFC 9110, 14). Both stores are served alike."""

from __future__ import annotations

import re
from typing import Final

import msgspec
from starlette.responses import Response, StreamingResponse

from ..errors import BadRequestError, ConflictError, NotFoundError, RangeNotSatisfiableError
from ..s3store import LINK_S_MAX
from ..store import Linking
from .table import Answer, Call, Param

MEDIA: Final = "application/octet-stream"
_RANGE: Final = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


def read_range(text: str, size: int) -> tuple[int, int] | None:
    """The first byte and the number of bytes that a Range header means, or None for the whole.

    Several ranges at once, and what is no range of bytes, mean the whole, as the standard allows.

    Raises:
        RangeNotSatisfiableError: it begins behind the end.
    """
    found = _RANGE.fullmatch(text.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:  # the last so many bytes
        length = min(int(found[2]), size)
        first = size - length
    else:
        first = int(found[1])
        last = min(int(found[2]), size - 1) if found[2] else size - 1
        if found[2] and int(found[2]) < first:
            return None
        length = last - first + 1
    if first >= size or length <= 0:
        raise RangeNotSatisfiableError(f"the file has {size} bytes, the range begins behind them", size=size)
    return first, length


TTL: Final = Param("ttl_s", "integer", f"seconds that it holds, at most {LINK_S_MAX}, which is the default")


class FileLink(msgspec.Struct, frozen=True):
    """An address of a file in the object store that needs no token until `expires_at`: treat it as a secret."""

    url: str
    sha256: str
    size: int
    expires_at: float


async def link(call: Call, sha256: str) -> Answer:
    """Answer with an address in the object store.

    Raises:
        NotFoundError: the store has lost it.
        ConflictError: the files lie in a folder of the server, which nobody else reaches.
        BadRequestError: a time that no link lives.
    """
    store, ttl_s = call.server.store, call.natural("ttl_s")
    if not isinstance(store, Linking):
        raise ConflictError("the files of this server lie in a folder of its own; fetch them from the server itself")
    if ttl_s is not None and not 1 <= ttl_s <= LINK_S_MAX:
        raise BadRequestError(f"the query's ttl_s: expected 1 to {LINK_S_MAX}")
    size = await call.run(store.size, sha256)
    if size is None:
        raise NotFoundError("its file is missing on the server; restore the blobs or upload it again")
    expires_at = call.now_s + (ttl_s or LINK_S_MAX)
    url = await call.run(store.link, sha256, ttl_s or LINK_S_MAX)
    return Answer(FileLink(url, sha256, size, expires_at))


async def send(call: Call, sha256: str) -> Answer:
    """Answer with a stored blob.

    Raises:
        NotFoundError: the store has lost it.
        RangeNotSatisfiableError: the range begins behind its end.
        BusyError: the store cannot be reached.
    """
    store, headers, etag = call.server.store, call.request.headers, f'"{sha256}"'
    size = await call.run(store.size, sha256)
    if size is None:
        raise NotFoundError("its file is missing on the server; restore the blobs or upload it again")
    given = {"ETag": etag, "Accept-Ranges": "bytes"}
    if headers.get("if-none-match") in (etag, "*"):
        return Answer(response=Response(status_code=304, headers=given))
    wanted = read_range(headers.get("range", ""), size) if headers.get("if-range", etag) == etag else None
    first, length = wanted or (0, size)
    given["Content-Length"] = str(length)
    if wanted is not None:
        given["Content-Range"] = f"bytes {first}-{first + length - 1}/{size}"
    pieces = await call.run(store.read, sha256, first, length)
    return Answer(response=StreamingResponse(pieces, 200 if wanted is None else 206, given, media_type=MEDIA))
