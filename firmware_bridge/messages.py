"""What the payload of each frame means, in both directions. No state: that is for `protocol.py`.

A message has a `TYPE`, `encode()`, and `decode(payload)`, which raises `MessageError` and nothing else. Tables say what
may come: `REQUESTS` (type -> what is asked, what is answered), `UNASKED` (what a board sends by itself), and
`Refusal`, the answer with `ERR`. Text of a board is shown to people: what does not print is replaced on the way in.

>>> decode_request(0x12, StreamRequest(stream=0, on=True, credit=100).encode())
StreamRequest(stream=0, on=True, credit=100)
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol, Self, TypeAlias, TypeVar

import msgpack
import numpy as np
from numpy.typing import NDArray

from .errors import MessageError
from .frames import PAYLOAD_BYTES_MAX, PROTOCOL_VERSION

ALL_STREAMS: Final = 255
ENDLESS: Final = 0xFFFFFFFF
"""A credit without end."""
WINDOW_MAX: Final = 16
FRAME_MAX_LEAST: Final = 64
UID_CHARS_MAX: Final = 32
ERROR_TEXT_BYTES_MAX: Final = 96
I16, F32 = 1, 2
"""Formats of sensor values."""
FACTORY, TRIAL, CONFIRMED = 0, 1, 2
"""States of the model that a board runs."""
STATE_NAMES: Final = {FACTORY: "factory", TRIAL: "trial", CONFIRMED: "confirmed"}
NO_SLOT: Final = 255
"""The slot of the factory's model."""
UP, DOWN = 1, 2
LEVELS: Final = {10: "debug", 20: "info", 30: "warning", 40: "error"}


class Message(Protocol):
    """A payload with a meaning."""

    TYPE: ClassVar[int]

    def encode(self) -> bytes:
        """The payload."""
        ...

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload.

        Raises:
            MessageError: it is no such message.
        """
        ...


def printable(text: str) -> str:
    """Text that a terminal only shows."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _unpack(layout: struct.Struct, payload: bytes, what: str) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise MessageError(
            f"{what} has {len(payload)} bytes, expected {layout.size}: the board speaks another protocol"
        )
    return layout.unpack(payload)


def _unpack_map(payload: bytes, what: str) -> dict[str, object]:
    try:
        found = msgpack.unpackb(payload, raw=False)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise MessageError(f"{what} is no msgpack: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise MessageError(f"{what} is {type(found).__name__}, expected a map with names")
    return found


def _pack_map(values: Mapping[str, object], what: str) -> bytes:
    payload: bytes = msgpack.packb(values)
    if len(payload) > PAYLOAD_BYTES_MAX:
        raise MessageError(f"{what} has {len(payload)} bytes, a frame takes {PAYLOAD_BYTES_MAX}: shorten its names")
    return payload


def _int(values: Mapping[str, object], key: str, low: int, high: int, default: int | None = None) -> int:
    value = values.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise MessageError(f"{key} is {printable(repr(value))}, expected a whole number from {low} to {high}")
    return value


def _text(values: Mapping[str, object], key: str, chars_max: int, default: str | None = None) -> str:
    value = values.get(key, default)
    if not isinstance(value, str) or len(value) > chars_max:
        raise MessageError(f"{key} is {printable(repr(value)[:80])}, expected text of at most {chars_max} characters")
    return printable(value)


_Item = TypeVar("_Item")


def _list(
    values: Mapping[str, object], key: str, kind: type[_Item], count_max: int, default: list[_Item] | None = None
) -> list[_Item]:
    value = values.get(key, default)
    if not isinstance(value, list) or len(value) > count_max or not all(type(item) is kind for item in value):
        raise MessageError(
            f"{key} is {printable(repr(value)[:80])}, expected a list of at most {count_max} {kind.__name__}"
        )
    return value


# what the host asks ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HelloRequest:
    """Who are you?"""

    TYPE: ClassVar[int] = 0x01
    _LAYOUT: ClassVar = struct.Struct("<BBHI")
    session: int
    version_min: int = PROTOCOL_VERSION
    version_max: int = PROTOCOL_VERSION
    payload_max: int = PAYLOAD_BYTES_MAX

    def encode(self) -> bytes:
        """The payload."""
        return self._LAYOUT.pack(self.version_min, self.version_max, self.payload_max, self.session)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        low, high, payload_max, session = _unpack(cls._LAYOUT, payload, "HELLO")
        return cls(session, low, high, payload_max)


@dataclass(frozen=True, slots=True)
class TimeRequest:
    """What is the time?"""

    TYPE: ClassVar[int] = 0x02
    _LAYOUT: ClassVar = struct.Struct("<Q")
    t1_us: int

    def encode(self) -> bytes:
        """The payload."""
        return self._LAYOUT.pack(self.t1_us)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        return cls(*_unpack(cls._LAYOUT, payload, "TIME"))


@dataclass(frozen=True, slots=True)
class StreamRequest:
    """Turn a stream on or off; so many of its frames may be sent."""

    TYPE: ClassVar[int] = 0x12
    _LAYOUT: ClassVar = struct.Struct("<BBI")
    stream: int
    on: bool
    credit: int = ENDLESS

    def encode(self) -> bytes:
        """The payload."""
        return self._LAYOUT.pack(self.stream, self.on, self.credit)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        stream, on, credit = _unpack(cls._LAYOUT, payload, "STREAM")
        if on > 1:
            raise MessageError(f"STREAM turns a stream {on}, expected 0 or 1")
        return cls(stream, bool(on), credit)


@dataclass(frozen=True, slots=True)
class Empty:
    """A payload of nothing."""

    TYPE: ClassVar[int]

    def encode(self) -> bytes:
        """The payload."""
        return b""

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        if payload:
            raise MessageError(f"{cls.__name__} has {len(payload)} bytes, expected none")
        return cls()


class MetricsRequest(Empty):
    """How are you?"""

    __slots__ = ()
    TYPE: ClassVar[int] = 0x20


@dataclass(frozen=True, slots=True)
class BeginRequest:
    """A model is coming."""

    TYPE: ClassVar[int] = 0x30
    _LAYOUT: ClassVar = struct.Struct("<I32sHH")
    size: int
    sha256: bytes
    format: int
    abi: int

    def encode(self) -> bytes:
        """The payload."""
        return self._LAYOUT.pack(self.size, self.sha256, self.format, self.abi)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        if len(payload) != cls._LAYOUT.size:
            raise MessageError(f"MODEL_BEGIN has {len(payload)} bytes, expected {cls._LAYOUT.size}")
        return cls(*cls._LAYOUT.unpack(payload))


@dataclass(frozen=True, slots=True)
class ChunkRequest:
    """Bytes of the model."""

    TYPE: ClassVar[int] = 0x31
    HEAD_BYTES: ClassVar[int] = 4
    offset: int
    data: bytes

    def encode(self) -> bytes:
        """The payload."""
        return self.offset.to_bytes(4, "little") + self.data

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        if len(payload) <= cls.HEAD_BYTES:
            raise MessageError(f"MODEL_CHUNK has {len(payload)} bytes, expected more than {cls.HEAD_BYTES}")
        return cls(int.from_bytes(payload[:4], "little"), payload[4:])


@dataclass(frozen=True, slots=True)
class _OfModel:
    TYPE: ClassVar[int]
    sha256: bytes

    def encode(self) -> bytes:
        """The payload."""
        return self.sha256

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        if len(payload) != 32:
            raise MessageError(f"a SHA-256 has {len(payload)} bytes, expected 32")
        return cls(payload)


class CommitRequest(_OfModel):
    """That was the model: check it and run it, on trial."""

    __slots__ = ()
    TYPE: ClassVar[int] = 0x32


class ConfirmRequest(_OfModel):
    """The model passed its trial."""

    __slots__ = ()
    TYPE: ClassVar[int] = 0x33


class AbortRequest(Empty):
    """Erase what was received."""

    __slots__ = ()
    TYPE: ClassVar[int] = 0x34


class RollbackRequest(Empty):
    """Run the earlier confirmed model."""

    __slots__ = ()
    TYPE: ClassVar[int] = 0x35


@dataclass(frozen=True, slots=True)
class ResetRequest:
    """Start anew."""

    TYPE: ClassVar[int] = 0x41
    _LAYOUT: ClassVar = struct.Struct("<B")
    mode: int = 0

    def encode(self) -> bytes:
        """The payload."""
        return self._LAYOUT.pack(self.mode)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        return cls(*_unpack(cls._LAYOUT, payload, "RESET"))


# what the board answers ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sensor:
    """One stream of a board.

    Attributes:
        format: `I16` or `F32`.
        rate_mhz: rows in 1,000 s.
        scale: one count in the unit.
    """

    stream: int
    name: str
    format: int
    channels: tuple[str, ...]
    rate_mhz: int
    unit: str = ""
    scale: float = 1.0

    @property
    def rate_hz(self) -> float:
        """Rows a second."""
        return self.rate_mhz / 1000

    def to_map(self) -> dict[str, object]:
        """As it travels."""
        return {
            "stream": self.stream,
            "name": self.name,
            "format": self.format,
            "channels": list(self.channels),
            "rate_mhz": self.rate_mhz,
            "unit": self.unit,
            "scale": self.scale,
        }

    @classmethod
    def from_map(cls, values: Mapping[str, object]) -> Self:
        """Read it.

        Raises:
            MessageError: it is no sensor.
        """
        names = tuple(printable(name) for name in _list(values, "channels", str, 64))
        scale = values.get("scale", 1.0)
        if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale) or scale == 0:
            raise MessageError(f"scale is {printable(repr(scale))}, expected a number other than 0")
        if not names:
            raise MessageError("a sensor has no channels, expected 1 to 64")
        return cls(
            stream=_int(values, "stream", 0, ALL_STREAMS - 1),
            name=_text(values, "name", 64, ""),
            format=_int(values, "format", I16, F32),
            channels=names,
            rate_mhz=_int(values, "rate_mhz", 0, 0xFFFFFFFF, 0),
            unit=_text(values, "unit", 32, ""),
            scale=float(scale),
        )


@dataclass(frozen=True, slots=True)
class RunningModel:
    """The model that a board runs; `sha256` in hex, as far as the board says it."""

    sha256: str
    slot: int
    state: int
    counter: int

    @property
    def id(self) -> int:
        """What RESULT names it by: the first four bytes of its SHA-256."""
        return int.from_bytes(bytes.fromhex(self.sha256[:8]), "little") if len(self.sha256) >= 8 else 0


@dataclass(frozen=True, slots=True)
class Caps:
    """Who a board is and what it can."""

    TYPE: ClassVar[int] = 0x01
    uid: str
    boot: int
    fw: str
    frame_max: int
    window: int
    slots: int
    slot_bytes: int
    align: int
    abi: int
    formats: tuple[int, ...]
    reset: str
    trial_s: int
    sensors: tuple[Sensor, ...]
    model: RunningModel

    def encode(self) -> bytes:
        """The payload."""
        model = {
            "sha": self.model.sha256,
            "slot": self.model.slot,
            "state": self.model.state,
            "counter": self.model.counter,
        }
        names = ("uid", "boot", "fw", "frame_max", "window", "slots", "slot_bytes", "align", "abi", "reset", "trial_s")
        values: dict[str, object] = {name: getattr(self, name) for name in names}
        values |= {"formats": list(self.formats), "sensors": [sensor.to_map() for sensor in self.sensors]}
        return _pack_map({**values, "model": model}, "CAPS")

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        values = _unpack_map(payload, "CAPS")
        frame_max = min(_int(values, "frame_max", FRAME_MAX_LEAST, 0xFFFF), PAYLOAD_BYTES_MAX)
        sensors = tuple(Sensor.from_map(_named(item, "a sensor")) for item in _list(values, "sensors", dict, 64, []))
        if len({sensor.stream for sensor in sensors}) != len(sensors):
            raise MessageError("two sensors have the same stream, expected one each")
        model = _named(values.get("model", {}), "model")
        sha256 = _text(model, "sha", 64, "").lower()
        if not set(sha256) <= set("0123456789abcdef") or len(sha256) % 2:
            raise MessageError(f"model's sha is {sha256!r}, expected a SHA-256 in hex")
        uid = _text(values, "uid", UID_CHARS_MAX)
        if not uid:
            raise MessageError("uid is empty, expected 1 to 32 characters")
        return cls(
            uid=uid,
            boot=_int(values, "boot", 0, 0xFFFFFFFF),
            fw=_text(values, "fw", 64, ""),
            frame_max=frame_max,
            window=_int(values, "window", 1, WINDOW_MAX),
            slots=_int(values, "slots", 0, 255, 2),
            slot_bytes=_int(values, "slot_bytes", 0, 0xFFFFFFFF, 0),
            align=_int(values, "align", 1, frame_max - ChunkRequest.HEAD_BYTES, 1),
            abi=_int(values, "abi", 0, 0xFFFF, 0),
            formats=tuple(_list(values, "formats", int, 32, [])),
            reset=_text(values, "reset", 64, ""),
            trial_s=_int(values, "trial_s", 0, 0xFFFFFFFF, 0),
            sensors=sensors,
            model=RunningModel(
                sha256,
                _int(model, "slot", 0, 255, 0),
                _int(model, "state", FACTORY, CONFIRMED, FACTORY),
                _int(model, "counter", 0, 0xFFFFFFFF, 0),
            ),
        )

    def sensor(self, stream: int) -> Sensor | None:
        """The sensor of a stream."""
        return next((sensor for sensor in self.sensors if sensor.stream == stream), None)


def _named(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise MessageError(f"{what} is {printable(repr(value)[:80])}, expected a map with names")
    return value


@dataclass(frozen=True, slots=True)
class TimeAnswer:
    """The board's clock when the question came and when this left."""

    TYPE: ClassVar[int] = 0x02
    _LAYOUT: ClassVar = struct.Struct("<QQQ")
    t1_us: int
    t2_us: int
    t3_us: int

    def encode(self) -> bytes:
        """The payload."""
        return self._LAYOUT.pack(self.t1_us, self.t2_us, self.t3_us)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        return cls(*_unpack(cls._LAYOUT, payload, "TIME"))


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """The stream as it is now.

    Attributes:
        credit: frames that may still be sent.
        seq, index: of its next frame and row; what is turned off has come so far.
    """

    TYPE: ClassVar[int] = 0x12
    _LAYOUT: ClassVar = struct.Struct("<BBIHI")
    stream: int
    on: bool
    credit: int
    seq: int
    index: int

    def encode(self) -> bytes:
        """The payload."""
        return self._LAYOUT.pack(self.stream, self.on, self.credit, self.seq, self.index & 0xFFFFFFFF)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        stream, on, credit, seq, index = _unpack(cls._LAYOUT, payload, "STREAM")
        if on > 1:
            raise MessageError(f"STREAM says that a stream is {on}, expected 0 or 1")
        return cls(stream, bool(on), credit, seq, index)


@dataclass(frozen=True, slots=True)
class Metrics:
    """A board's counters since its start. What is not known to this version is in `more`."""

    TYPE: ClassVar[int] = 0x20
    NAMES: ClassVar = (
        "up_ms", "rx", "rx_bad", "rx_drop", "tx", "tx_drop", "rows", "rows_drop", "infer", "infer_us", "drift",
        "drift_lost", "credit",
    )  # fmt: skip
    up_ms: int = 0
    rx: int = 0
    rx_bad: int = 0
    rx_drop: int = 0
    tx: int = 0
    tx_drop: int = 0
    rows: int = 0
    rows_drop: int = 0
    infer: int = 0
    infer_us: int = 0
    drift: int = 0
    drift_lost: int = 0
    credit: int = 0
    more: Mapping[str, int] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The payload."""
        return _pack_map({**{name: getattr(self, name) for name in self.NAMES}, **self.more}, "METRICS")

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        values = _unpack_map(payload, "METRICS")
        known = {name: _int(values, name, 0, 2**64 - 1, 0) for name in cls.NAMES}
        more = {
            printable(key): value
            for key, value in values.items()
            if key not in cls.NAMES and isinstance(value, int) and not isinstance(value, bool)
        }
        return cls(**known, more=more)


@dataclass(frozen=True, slots=True)
class BeginAnswer:
    """The slot that takes the model, and where to go on."""

    TYPE: ClassVar[int] = 0x30
    _LAYOUT: ClassVar = struct.Struct("<BI")
    slot: int
    offset: int

    def encode(self) -> bytes:
        """The payload."""
        return self._LAYOUT.pack(self.slot, self.offset)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        return cls(*_unpack(cls._LAYOUT, payload, "MODEL_BEGIN"))


@dataclass(frozen=True, slots=True)
class ChunkAnswer:
    """Where to go on."""

    TYPE: ClassVar[int] = 0x31
    _LAYOUT: ClassVar = struct.Struct("<I")
    offset: int

    def encode(self) -> bytes:
        """The payload."""
        return self._LAYOUT.pack(self.offset)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        return cls(*_unpack(cls._LAYOUT, payload, "MODEL_CHUNK"))


@dataclass(frozen=True, slots=True)
class _SlotAnswer:
    TYPE: ClassVar[int]
    _LAYOUT: ClassVar = struct.Struct("<BB")
    slot: int
    state: int

    def encode(self) -> bytes:
        """The payload."""
        return self._LAYOUT.pack(self.slot, self.state)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        slot, state = _unpack(cls._LAYOUT, payload, cls.__name__)
        if state not in STATE_NAMES:
            raise MessageError(f"the state of slot {slot} is {state}, expected {', '.join(map(str, STATE_NAMES))}")
        return cls(slot, state)


class CommitAnswer(_SlotAnswer):
    """The model runs, on trial."""

    __slots__ = ()
    TYPE: ClassVar[int] = 0x32


class ConfirmAnswer(_SlotAnswer):
    """The model stays."""

    __slots__ = ()
    TYPE: ClassVar[int] = 0x33


class AbortAnswer(Empty):
    """Nothing is half there any more."""

    __slots__ = ()
    TYPE: ClassVar[int] = 0x34


class RollbackAnswer(_SlotAnswer):
    """The earlier model runs."""

    __slots__ = ()
    TYPE: ClassVar[int] = 0x35


class ResetAnswer(Empty):
    """The board restarts now."""

    __slots__ = ()
    TYPE: ClassVar[int] = 0x41


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer with `ERR`."""

    code: int
    text: str = ""

    def encode(self) -> bytes:
        """The payload."""
        return bytes([self.code]) + self.text.encode()[:ERROR_TEXT_BYTES_MAX]

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        if not payload:
            raise MessageError("a refusal has no code, expected at least one byte")
        return cls(payload[0], printable(payload[1 : 1 + ERROR_TEXT_BYTES_MAX].decode("utf-8", "replace")))


# what the board sends by itself ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SensorRows:
    """Rows of a stream, as a board sends them; the host reads them in `tinylcm._ext.frame`."""

    TYPE: ClassVar[int] = 0x10
    _LAYOUT: ClassVar = struct.Struct("<BBHIQI")
    stream: int
    index: int
    t0_us: int
    dt_us: int
    values: NDArray[np.int16] | NDArray[np.float32]

    def encode(self) -> bytes:
        """The payload."""
        kind = I16 if self.values.dtype == np.int16 else F32
        head = self._LAYOUT.pack(self.stream, kind, len(self.values), self.index & 0xFFFFFFFF, self.t0_us, self.dt_us)
        return head + self.values.astype("<i2" if kind == I16 else "<f4", copy=False).tobytes()

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        if len(payload) < cls._LAYOUT.size:
            raise MessageError(f"SENSOR has {len(payload)} bytes, expected at least {cls._LAYOUT.size}")
        stream, kind, rows, index, t0_us, dt_us = cls._LAYOUT.unpack_from(payload)
        width = {I16: 2, F32: 4}.get(kind, 0)
        data = payload[cls._LAYOUT.size :]
        if not width or not rows or not data or len(data) % (rows * width):
            raise MessageError(f"SENSOR of stream {stream}: {len(data)} bytes are no {rows} rows of format {kind}")
        values = np.frombuffer(data, "<i2" if kind == I16 else "<f4").reshape(rows, -1)
        return cls(stream, index, t0_us, dt_us, values)


@dataclass(frozen=True, slots=True)
class Result:
    """A prediction made on the board; `score` of 65,535 is 1."""

    TYPE: ClassVar[int] = 0x11
    _LAYOUT: ClassVar = struct.Struct("<QIHHI")
    time_us: int
    model: int
    label: int
    score: int
    infer_us: int

    def encode(self) -> bytes:
        """The payload."""
        return self._LAYOUT.pack(self.time_us, self.model, self.label, self.score, self.infer_us)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        return cls(*_unpack(cls._LAYOUT, payload, "RESULT"))


@dataclass(frozen=True, slots=True)
class Drift:
    """An alarm of the statistics on the board; statistic, threshold, mean and variance are Q16.16."""

    TYPE: ClassVar[int] = 0x21
    _LAYOUT: ClassVar = struct.Struct("<QBBBBiiiiI16H")
    BINS: ClassVar[int] = 16
    time_us: int
    stream: int
    channel: int
    direction: int
    statistic: int
    threshold: int
    mean: int
    variance: int
    count: int
    histogram: tuple[int, ...]

    def encode(self) -> bytes:
        """The payload."""
        values = (self.statistic, self.threshold, self.mean, self.variance, self.count)
        head = (self.time_us, self.stream, self.channel, self.direction, 0)
        return self._LAYOUT.pack(*head, *values, *self.histogram)

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        found = _unpack(cls._LAYOUT, payload, "DRIFT")
        if found[3] not in (UP, DOWN):
            raise MessageError(f"DRIFT has the direction {found[3]}, expected {UP} or {DOWN}")
        return cls(
            found[0], found[1], found[2], found[3], found[5], found[6], found[7], found[8], found[9], tuple(found[10:])
        )


@dataclass(frozen=True, slots=True)
class Log:
    """A line of the firmware's log."""

    TYPE: ClassVar[int] = 0x40
    _LAYOUT: ClassVar = struct.Struct("<BQ")
    level: int
    time_us: int
    text: str

    def encode(self) -> bytes:
        """The payload."""
        return self._LAYOUT.pack(self.level, self.time_us) + self.text.encode()

    @classmethod
    def decode(cls, payload: bytes) -> Self:
        """Read a payload."""
        if len(payload) < cls._LAYOUT.size:
            raise MessageError(f"LOG has {len(payload)} bytes, expected at least {cls._LAYOUT.size}")
        level, time_us = cls._LAYOUT.unpack_from(payload)
        return cls(level, time_us, printable(payload[cls._LAYOUT.size :].decode("utf-8", "replace")))

    @property
    def level_name(self) -> str:
        """The level as a word."""
        return LEVELS.get(self.level, str(self.level))


Request: TypeAlias = (
    "HelloRequest | TimeRequest | StreamRequest | MetricsRequest | BeginRequest | ChunkRequest | CommitRequest"
    " | ConfirmRequest | AbortRequest | RollbackRequest | ResetRequest"
)
Answer: TypeAlias = (
    "Caps | TimeAnswer | StreamAnswer | Metrics | BeginAnswer | ChunkAnswer | CommitAnswer | ConfirmAnswer"
    " | AbortAnswer | RollbackAnswer | ResetAnswer"
)
Unasked: TypeAlias = "SensorRows | Result | Metrics | Drift | Log"

REQUESTS: Final[Mapping[int, tuple[type[Request], type[Answer]]]] = {
    HelloRequest.TYPE: (HelloRequest, Caps),
    TimeRequest.TYPE: (TimeRequest, TimeAnswer),
    StreamRequest.TYPE: (StreamRequest, StreamAnswer),
    MetricsRequest.TYPE: (MetricsRequest, Metrics),
    BeginRequest.TYPE: (BeginRequest, BeginAnswer),
    ChunkRequest.TYPE: (ChunkRequest, ChunkAnswer),
    CommitRequest.TYPE: (CommitRequest, CommitAnswer),
    ConfirmRequest.TYPE: (ConfirmRequest, ConfirmAnswer),
    AbortRequest.TYPE: (AbortRequest, AbortAnswer),
    RollbackRequest.TYPE: (RollbackRequest, RollbackAnswer),
    ResetRequest.TYPE: (ResetRequest, ResetAnswer),
}
UNASKED: Final[Mapping[int, type[Unasked]]] = {
    kind.TYPE: kind for kind in (SensorRows, Result, Metrics, Drift, Log)
}  # fmt: skip
NAMES: Final = {
    0x01: "HELLO",
    0x02: "TIME",
    0x10: "SENSOR",
    0x11: "RESULT",
    0x12: "STREAM",
    0x20: "METRICS",
    0x21: "DRIFT",
    0x30: "MODEL_BEGIN",
    0x31: "MODEL_CHUNK",
    0x32: "MODEL_COMMIT",
    0x33: "MODEL_CONFIRM",
    0x34: "MODEL_ABORT",
    0x35: "MODEL_ROLLBACK",
    0x40: "LOG",
    0x41: "RESET",
}
CHANGING: Final = frozenset({0x12, 0x30, 0x32, 0x33, 0x34, 0x35, 0x41})
"""Requests that change something: a board does one of a seq once. A MODEL_CHUNK is told by its offset."""


def name_of(kind: int) -> str:
    """The name of a type."""
    return NAMES.get(kind, f"type {kind:02x}")


def _named_error(kind: int, error: MessageError) -> MessageError:
    return MessageError(f"{name_of(kind)}: {error}")


def decode_request(kind: int, payload: bytes) -> Request:
    """What is asked.

    Raises:
        MessageError: the payload does not keep the protocol.
        KeyError: nobody asks this type.
    """
    try:
        return REQUESTS[kind][0].decode(payload)
    except MessageError as error:
        raise _named_error(kind, error) from error


def decode_answer(kind: int, payload: bytes) -> Answer:
    """What is answered.

    Raises:
        MessageError: the payload does not keep the protocol.
        KeyError: nobody asks this type.
    """
    try:
        return REQUESTS[kind][1].decode(payload)
    except MessageError as error:
        raise _named_error(kind, error) from error


def decode_unasked(kind: int, payload: bytes) -> Unasked:
    """What a board sent by itself.

    Raises:
        MessageError: the payload does not keep the protocol.
        KeyError: no board sends this type.
    """
    try:
        return UNASKED[kind].decode(payload)
    except MessageError as error:
        raise _named_error(kind, error) from error
