"""One message, three encodings: which bytes a document becomes, and back.

Rules
- The same message in each encoding decodes to equal values, and the same bounds hold: on the depth, on sizes, on 64-bit
  integers, on numbers that are finite and texts that are UTF-8.
- Any bytes at all decode to a message or raise `WireError`.
- What begins with `<` is a web page, whatever its type claims: no message of ours begins so.
- Protobuf is an extra: its code is imported when it is first used.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import threading
from collections.abc import Callable, Mapping
from typing import Final, Literal

import msgpack

from ..errors import ConfigError, WireError
from .messages import (
    RECORD_BYTES_MAX,
    SyncRequest,
    SyncResponse,
    document_of,
    request_from,
    response_from,
)

Format = Literal["json", "msgpack", "protobuf"]
CONTENT_TYPES: Final[Mapping[Format, str]] = {
    "json": "application/json",
    "msgpack": "application/msgpack",
    "protobuf": "application/x-protobuf",
}
# Each costs its two bytes on the wire 70 in memory or more. A full request of an honest device has some 50,000.
CONTAINERS_MAX: Final = 1 << 19
# A claimed length is believed, and room made for it, before the items come: bound it by what a record can hold.
_ITEMS_MAX: Final = RECORD_BYTES_MAX // 2
# All bytes but those that begin a list or a map: fixmap, fixarray, array 16 and 32, map 16 and 32.
_NO_CONTAINERS: Final = bytes(byte for byte in range(256) if not (0x80 <= byte < 0xA0 or 0xDC <= byte < 0xE0))
_What = Literal["request", "response"]
_packers: Final = threading.local()


@functools.cache
def _has_protobuf() -> bool:
    return bool(importlib.util.find_spec("google") and importlib.util.find_spec("google.protobuf"))


def formats() -> tuple[Format, ...]:
    """The encodings that this installation can speak."""
    try:
        there = _has_protobuf()
    except OSError:  # a disk that does not answer now: looked for again the next time
        there = False
    return tuple(CONTENT_TYPES) if there else ("json", "msgpack")


def check_format(name: str) -> Format:
    """A format by its name in a configuration.

    Raises:
        ConfigError: there is none of this name, or it needs an extra that is not installed.
    """
    for format in CONTENT_TYPES:
        if name == format:
            if format not in formats():
                raise ConfigError(f"the format {name!r} needs an extra: pip install 'tinymlops[protobuf]'")
            return format
    raise ConfigError(f"the format {name!r} is not known; expected one of {', '.join(CONTENT_TYPES)}")


def format_of(content_type: str) -> Format | None:
    """The format that a Content-Type names, or None when it is none that this installation can speak."""
    return _format_among(content_type, formats())


@functools.lru_cache(maxsize=64)
def _format_among(content_type: str, there: tuple[Format, ...]) -> Format | None:
    name = content_type.partition(";")[0].strip().lower()
    return next((format for format in there if CONTENT_TYPES[format] == name), None)


def is_web_page(body: bytes, content_type: str = "") -> bool:
    """Whether something else than our peer answered: a proxy, or a captive portal that wants somebody to log in."""
    return body[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<" or "html" in content_type.lower()


def encode(message: SyncRequest | SyncResponse, format: Format = "json") -> bytes:
    """A message as bytes.

    Raises:
        WireError: a record or a value in it does not fit the schema.
    """
    document = document_of(message)
    try:
        if format == "json":
            return json.dumps(document, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()
        if format == "msgpack":
            return _pack(document)
        from . import protobuf

        return protobuf.dump(document, _what(message))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise WireError(f"the {_what(message)} cannot be sent as {format}: {error}") from error


def _pack(document: object) -> bytes:
    # A packer begins with a large buffer: each thread keeps one, which is not safe for two at once.
    packer = getattr(_packers, "packer", None) or msgpack.Packer()
    _packers.packer = None  # after an error its buffer holds half a message
    packed: bytes = packer.pack(document)
    _packers.packer = packer
    return packed


def decode_request(body: bytes, content_type: str = "application/json") -> SyncRequest:
    """Read a device's request; its records stay unchecked.

    Raises:
        WireVersionError: it is of a version that is not spoken here.
        WireError: the request as a whole cannot be served.
    """
    return request_from(_load(body, content_type, "request"))


def decode_response(body: bytes, content_type: str = "application/json") -> SyncResponse:
    """Read a server's answer.

    Raises:
        WireError: it is no answer of a TinySphere; nothing may be deleted on its word.
    """
    return response_from(_load(body, content_type, "response"))


def _what(message: SyncRequest | SyncResponse) -> _What:
    return "request" if isinstance(message, SyncRequest) else "response"


def _load(body: bytes, content_type: str, what: _What) -> object:
    if is_web_page(body, content_type):
        raise WireError(f"{what} is a web page, not a message: a proxy or a captive portal answered")
    format = format_of(content_type)
    if format is None:
        raise WireError(
            f"{what} is {content_type[:100] or 'of no Content-Type'!r}, "
            f"expected one of {', '.join(CONTENT_TYPES[each] for each in formats())}"
        )
    try:
        return _LOADERS[format](body, what)
    except (ValueError, RecursionError) as error:
        raise WireError(f"{what} is not {_NAMES[format]}: {str(error)[:200]}") from error


def _load_json(body: bytes, what: _What) -> object:
    return json.loads(body, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> object:
    raise WireError(f"the message holds {name}, which JSON does not have")


def _load_msgpack(body: bytes, what: _What) -> object:
    # Counting costs a call a container. Without it: no message has more of them than bytes that could begin one.
    may_be_many = len(body) > CONTAINERS_MAX and len(body.translate(None, _NO_CONTAINERS)) > CONTAINERS_MAX
    counted = _Counted() if may_be_many else None
    # Bytes that are no UTF-8 become half surrogates, and extensions bytes: the record that holds them is refused where
    # it is read, and the others are kept.
    return msgpack.unpackb(
        body,
        unicode_errors="surrogateescape",
        ext_hook=lambda _, data: data,
        list_hook=counted,
        object_hook=counted,
        max_array_len=min(len(body), _ITEMS_MAX),
        max_map_len=min(len(body), _ITEMS_MAX),
    )


class _Counted:
    """Called with every list and map of a message: bounds how many there are."""

    def __init__(self) -> None:
        self._left = CONTAINERS_MAX

    def __call__(self, container: object) -> object:
        self._left -= 1
        if self._left < 0:
            raise WireError(f"the message holds more than {CONTAINERS_MAX} lists and maps")
        return container


def _load_protobuf(body: bytes, what: _What) -> object:
    from . import protobuf

    return protobuf.load(body, what)


_LOADERS: Final[Mapping[Format, Callable[[bytes, _What], object]]] = {
    "json": _load_json,
    "msgpack": _load_msgpack,
    "protobuf": _load_protobuf,
}
_NAMES: Final[Mapping[Format, str]] = {"json": "JSON", "msgpack": "msgpack", "protobuf": "Protobuf"}
