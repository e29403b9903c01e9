"""The sync round trip as typed values, and the documents that stand for them: what JSON can say, in any encoding.

Reading a document checks every field: what comes out is what the types say, or a `WireError` names the place. Records
of a request stay unread (`list[object]`), because one bad record is refused alone: see `record_from_json`. Which
bytes a document becomes, `codec` knows.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Final, Literal, cast

from .._ext.jsonable import json_bytes_max
from .._ext.records import RecordReader, record_id
from ..checks import INTEGER_MAX, Fields
from ..errors import WireError
from ..types import Json, Record, Stream

WIRE_VERSION: Final = 1
SYNC_BYTES_MAX: Final = 1 << 20  # bytes of one request's body; the server's limit is larger
SYNC_RECORDS_MAX: Final = 5000  # records in one request, both streams together
RECORD_BYTES_MAX: Final = 256 << 10  # bytes of one record's JSON
BOARDS_MAX: Final = 1024  # boards in one request
BOARD_INFO_BYTES_MAX: Final = 4096  # bytes of the JSON of what else there is to know of a board
UID_CHARACTERS_MAX: Final = 64
DESIRED_UNCHANGED: Final = "unchanged"
STREAMS: Final[tuple[Stream, Stream]] = ("events", "details")
_STREAM_BY_NAME: Final[Mapping[str, Stream]] = {name: name for name in STREAMS}
EPOCH_CHARACTERS: Final = 16
TYPE_CHARACTERS_MAX: Final = 40
_EPOCH = re.compile(r"[0-9a-f]+")
_TYPE = re.compile(r"[a-z][a-z0-9_]*")
_UID = re.compile(r"[A-Za-z0-9_.:-]+")
_DEPTH_MAX: Final = 12
_PLAIN_CHARACTERS_MAX: Final = 200
_LONG_NUMBER = re.compile(rb"[0-9]{19}")  # an integer of more than 64 bits has at least as many digits


class WireVersionError(WireError):
    """A message of a version that is not spoken here; the message says which are."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """One moment on both clocks: nanoseconds since boot, and what the device believed the Unix time to be."""

    boot_ns: int
    wall_s: float


@dataclass(frozen=True, slots=True)
class RunningModel:
    """What a slot holds now: `state` is `trial`, `confirmed` or `empty`."""

    model: str
    version: str
    sha256: str
    state: str


@dataclass(frozen=True, slots=True)
class Board:
    """A board behind a device, as it is now.

    Attributes:
        uid: what tells it from all other boards of the device, for ever: letters, digits, `_ . : -`, at most 64.
        name: for people.
        fw: version of its firmware.
        model, model_version: what it runs; empty when it runs nothing.
        state: `online`, `away`, `updating` or `failed`; another word is shown as it is.
        last_seen_ms: milliseconds between the last time it was heard and the request's anchor; None: never.
        info: what else there is to know, such as counters of the link.
    """

    uid: str
    name: str = ""
    fw: str = ""
    model: str = ""
    model_version: str = ""
    state: str = ""
    last_seen_ms: int | None = None
    info: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """The device's half of the round trip. Who it is, its key says: no field here does.

    `downlink_cursor` is the id of the last downlink item that the device has stored. `boards` are all boards behind the
    device, as `Board`; a decoded request holds them unread, like its records: see `board_from_json`.
    """

    wire: int
    boot: str
    anchor: Anchor
    running: tuple[RunningModel, ...] = ()
    generation: int = 0
    server_instance: str = ""
    capabilities: Mapping[str, Json] = field(default_factory=dict)
    events: Sequence[object] = ()
    details: Sequence[object] = ()
    downlink_cursor: int = 0
    boards: Sequence[object] = ()


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """One model that the device should run; `url` is a path on the same server."""

    model: str
    version: str
    sha256: str
    size: int
    url: str
    deployment: int


@dataclass(frozen=True, slots=True)
class Desired:
    """State, not events: a device that was away for a month needs no special case."""

    generation: int
    models: tuple[DesiredModel, ...] = ()
    experiments: tuple[Json, ...] = ()
    config: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that was settled but not stored, and why. It is never sent again."""

    stream: Stream
    epoch: str
    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class SyncResponse:
    """The server's half. `acked` has the last committed (epoch, seq) a stream, or None where none was sent."""

    acked: Mapping[str, tuple[str, int] | None]
    server_instance: str
    server_time: float
    next_sync_s: float
    desired: Desired | Literal["unchanged"] = "unchanged"
    downlink: tuple[Json, ...] = ()
    refused: tuple[Refused, ...] = ()


def finite(value: object) -> Json:
    """Make a value that JSON can carry: NaN and infinities become None, tuples lists, NumPy scalars numbers.

    Half a surrogate pair, which UTF-8 does not have, becomes a question mark.

    Raises:
        WireError: the value is of a type that has no JSON form, an integer of more than 64 bits, or nested too deep.
    """
    return _finite(value, 0)


def is_plain(value: object) -> bool:
    """Whether a value is JSON as it is, so that `finite` would give its copy."""
    return json_bytes_max(value, _DEPTH_MAX) >= 0


def _text(value: str) -> str:
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def _finite(value: object, depth: int) -> Json:
    # The most frequent types first: a record's payload is converted on the stream's own thread.
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        return _text(str(value))
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -INTEGER_MAX - 1 <= value <= INTEGER_MAX:
            raise WireError("a payload holds an integer of more than 64 bits")
        return int(value)
    if depth > _DEPTH_MAX:
        raise WireError(f"a payload is nested deeper than {_DEPTH_MAX} levels")
    if isinstance(value, dict | Mapping):
        return {_text(str(key)): _finite(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, depth + 1) for item in value]
    tolist = getattr(value, "tolist", None)  # NumPy arrays and scalars
    if callable(tolist):
        return _finite(tolist(), depth + 1)
    raise WireError(f"a payload holds a {type(value).__name__}, which has no JSON form")


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and no blanks: the same value always gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def document_of(message: SyncRequest | SyncResponse) -> dict[str, object]:
    """The document that stands for a message; records and other free values are taken as they are, not copied."""
    return {name: _plain(getattr(message, name)) for name in _names(cast("Hashable", type(message)))}


@functools.lru_cache(maxsize=64)
def _names(kind: Hashable) -> tuple[str, ...]:
    """The fields of a dataclass; of any other class none."""
    return tuple(item.name for item in fields(kind)) if isinstance(kind, type) and is_dataclass(kind) else ()


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if names := _names(cast("Hashable", type(value))):
        return {name: _plain(getattr(value, name)) for name in names}
    return value


def record_to_json(record: Record) -> dict[str, Json]:
    """A record in its envelope."""
    return {
        "type": record.type,
        "epoch": record.epoch,
        "seq": record.seq,
        "boot": record.boot,
        "boot_ns": record.boot_ns,
        "payload": dict(record.payload),
    }


# A request names the same few types and epochs thousands of times.
@functools.lru_cache(maxsize=256)
def _is_type(text: str) -> bool:
    return _TYPE.fullmatch(text) is not None


@functools.lru_cache(maxsize=256)
def _is_epoch(text: str) -> bool:
    return _EPOCH.fullmatch(text) is not None


def _checked(fields: Fields, key: str, value: object, bytes_max: int) -> None:
    if 0 <= json_bytes_max(value, _DEPTH_MAX) <= bytes_max:
        return
    # Each encoding can name what JSON cannot carry on: 1e999 is infinite, an escape can be half a surrogate pair,
    # msgpack has bytes and times.
    try:
        data = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        if data.count(b"[") + data.count(b"{") > _DEPTH_MAX or _LONG_NUMBER.search(data):
            finite(value)  # for the depth, and integers of more than 64 bits
    except (TypeError, ValueError, RecursionError) as error:
        raise fields.fail(key, "holds a number or a text that cannot be stored, or is nested too deep") from error
    except WireError as error:
        raise fields.fail(key, str(error)) from error
    if len(data) > bytes_max:
        raise fields.fail(key, f"has {len(data)} bytes, at most {bytes_max} are taken")


def _table(fields: Fields, key: str) -> dict[str, Json]:
    value: dict[str, Json] = fields.typed(key, dict, {})
    _checked(fields, key, value, RECORD_BYTES_MAX)
    return value


def _items(fields: Fields, key: str) -> tuple[Json, ...]:
    value = fields.items(key, [])
    for index, item in enumerate(value):
        _checked(fields, f"{key}[{index}]", item, RECORD_BYTES_MAX)
    return tuple(value)  # type: ignore[arg-type]


def record_from_json(value: object) -> Record:
    """Check one record of a request.

    Raises:
        WireError: what is wrong with it, for the answer's `refused`.
    """
    fields = Fields(value, "record", WireError)
    kind = fields.typed("type", str)
    if len(kind) > TYPE_CHARACTERS_MAX or not _is_type(kind):
        raise fields.fail("type", "expected a lower-case word of at most 40 characters")
    epoch = fields.typed("epoch", str)
    if len(epoch) != EPOCH_CHARACTERS or not _is_epoch(epoch):
        raise fields.fail("epoch", "expected 16 hexadecimal digits")
    payload: dict[str, Json] = fields.typed("payload", dict)
    _checked(fields, "payload", payload, RECORD_BYTES_MAX)
    return Record(
        type=kind,
        epoch=epoch,
        seq=fields.natural("seq", low=1),
        boot=fields.text("boot"),
        boot_ns=fields.natural("boot_ns"),
        payload=payload,
    )


def _read(value: object) -> tuple[str, str, int, dict[str, Json]]:
    record = record_from_json(value)
    return record.type, record.boot, record.boot_ns, cast("dict[str, Json]", record.payload)


def record_reader() -> RecordReader:
    """A reader for the records of some requests; it takes and refuses what `record_from_json` does."""
    return RecordReader(_read, _DEPTH_MAX, RECORD_BYTES_MAX)


def _plain_request(document: object) -> SyncRequest | None:
    """A request of the usual form, checked as `request_from` does it but quicker; None leaves it to that."""
    if type(document) is not dict:
        return None
    get = document.get
    anchor, running, boards, capabilities = (
        get("anchor"),
        get("running", []),
        get("boards", []),
        get("capabilities", {}),
    )
    if type(anchor) is not dict or type(capabilities) is not dict or running != [] or boards != []:
        return None
    wire, boot, boot_ns, wall_s = get("wire"), get("boot"), anchor.get("boot_ns"), anchor.get("wall_s")
    generation, instance, cursor = get("generation", 0), get("server_instance", ""), get("downlink_cursor", 0)
    events, details = get("events", []), get("details", [])
    if (
        type(wire) is int
        and 1 <= wire <= WIRE_VERSION
        and type(boot) is type(instance) is str
        and len(boot) <= _PLAIN_CHARACTERS_MAX
        and len(instance) <= _PLAIN_CHARACTERS_MAX
        and boot.isascii()
        and instance.isascii()
        and "\0" not in boot
        and "\0" not in instance
        and type(boot_ns) is type(generation) is type(cursor) is int
        and 0 <= boot_ns <= INTEGER_MAX
        and 0 <= generation <= INTEGER_MAX
        and 0 <= cursor <= INTEGER_MAX
        and type(wall_s) is float
        and math.isfinite(wall_s)
        and type(events) is type(details) is list
        and len(events) + len(details) <= SYNC_RECORDS_MAX
        and (not capabilities or 0 <= json_bytes_max(capabilities, _DEPTH_MAX) <= RECORD_BYTES_MAX)
    ):
        return SyncRequest(
            wire, boot, Anchor(boot_ns, wall_s), (), generation, instance, capabilities, events, details, cursor
        )
    return None


def request_from(document: object) -> SyncRequest:
    """Read a device's request; its records stay unchecked.

    Raises:
        WireVersionError: it is of a version that is not spoken here.
        WireError: the request as a whole cannot be served.
    """
    if (plain := _plain_request(document)) is not None:
        return plain
    fields = Fields(document, "request", WireError)
    wire = fields.natural("wire")
    if not 1 <= wire <= WIRE_VERSION:
        raise WireVersionError(f"request.wire: this side speaks versions 1 to {WIRE_VERSION}, got {wire}")
    anchor = fields.table("anchor")
    events, details = (fields.items(stream, [], length_max=SYNC_RECORDS_MAX) for stream in STREAMS)
    if len(events) + len(details) > SYNC_RECORDS_MAX:
        raise WireError(f"request: {len(events) + len(details)} records, at most {SYNC_RECORDS_MAX} are taken at once")
    return SyncRequest(
        wire=wire,
        boot=fields.text("boot"),
        anchor=Anchor(anchor.natural("boot_ns"), anchor.number("wall_s")),
        running=tuple(
            RunningModel(*(model.text(key) for key in ("model", "version", "sha256", "state")))
            for model in fields.tables("running", [], length_max=100)
        ),
        generation=fields.natural("generation", 0),
        server_instance=fields.text("server_instance", ""),
        capabilities=_table(fields, "capabilities"),
        events=events,
        details=details,
        downlink_cursor=fields.natural("downlink_cursor", 0),
        boards=tuple(fields.items("boards", [], length_max=BOARDS_MAX)),
    )


def board_from_json(value: object) -> Board:
    """Check one board of a request.

    Raises:
        WireError: what is wrong with it.
    """
    fields = Fields(value, "board", WireError)
    uid = fields.text("uid", length_max=UID_CHARACTERS_MAX)
    if not _UID.fullmatch(uid):
        raise fields.fail("uid", f"expected 1 to {UID_CHARACTERS_MAX} letters, digits, _ . : and -")
    info: dict[str, Json] = fields.typed("info", dict, {})
    _checked(fields, "info", info, BOARD_INFO_BYTES_MAX)
    seen = fields.value.get("last_seen_ms")
    return Board(
        uid=uid,
        name=fields.text("name", ""),
        fw=fields.text("fw", ""),
        model=fields.text("model", ""),
        model_version=fields.text("model_version", ""),
        state=fields.text("state", ""),
        last_seen_ms=None if seen is None else fields.natural("last_seen_ms"),
        info=info,
    )


def _acked(fields: Fields, stream: str) -> tuple[str, int] | None:
    value = fields.value.get(stream)
    if value is None:
        return None
    found = record_id({"epoch": value[0], "seq": value[1]}) if isinstance(value, list) and len(value) == 2 else None
    if found is None:
        raise fields.fail(stream, "expected [epoch, seq] or null")
    return found


def _desired(fields: Fields) -> Desired | Literal["unchanged"]:
    if fields.value.get("desired", DESIRED_UNCHANGED) == DESIRED_UNCHANGED:
        return "unchanged"
    desired = fields.table("desired")
    models = tuple(
        DesiredModel(
            model=model.text("model"),
            version=model.text("version"),
            sha256=model.text("sha256"),
            size=model.natural("size"),
            url=model.text("url"),
            deployment=model.natural("deployment"),
        )
        for model in desired.tables("models", [])
    )
    return Desired(
        generation=desired.natural("generation"),
        models=models,
        experiments=_items(desired, "experiments"),
        config=_table(desired, "config"),
    )


def response_from(document: object) -> SyncResponse:
    """Read a server's answer.

    Raises:
        WireError: it is no answer of a TinySphere; nothing may be deleted on its word.
    """
    fields = Fields(document, "response", WireError)
    acked = fields.table("acked")
    refused = []
    for item in fields.tables("refused", [], length_max=SYNC_RECORDS_MAX):
        stream = _STREAM_BY_NAME.get(item.text("stream"))
        if stream is None:
            raise item.fail("stream", "expected events or details")
        refused.append(Refused(stream, item.text("epoch"), item.natural("seq"), item.text("reason", length_max=2000)))
    return SyncResponse(
        acked={stream: _acked(acked, stream) for stream in STREAMS},
        server_instance=fields.text("server_instance"),
        server_time=fields.number("server_time"),
        next_sync_s=fields.number("next_sync_s", low=0.0),
        desired=_desired(fields),
        downlink=_items(fields, "downlink"),
        refused=tuple(refused),
    )
