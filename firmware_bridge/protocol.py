"""The host's end of the serial line, without a line: bytes and times go in, events and bytes come out.

It owns frames, seqs, answers and their timeouts, retries, the acknowledgement of DRIFT, the count of what is missing,
and the board's clock. It opens no port and knows no clock of its own; `link.py` does that.

    host = Protocol(session=7)
    port.write(host.send(HelloRequest(session=7), now_s))
    events = host.receive(port.read(), now_s)      # -> [Answered(HelloRequest(...), Caps(...), ...), ...]
    events += host.tick(now_s)                     # when host.next_timeout() has come
    port.write(host.outgoing())

Whatever bytes come, `receive` raises nothing but `BridgeError`; anything else is a bug.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .clocks import ClockFit
from .errors import PAYLOAD, TYPE, BridgeError, MessageError, NoAnswerError, RefusedError
from .frames import ACKREQ, ERR, PAYLOAD_BYTES_MAX, PROTOCOL_VERSION, RESP, Block, Decoder, Frame, encode, pieces
from .messages import (
    ALL_STREAMS,
    UNASKED,
    Answer,
    Caps,
    ChunkRequest,
    Drift,
    HelloRequest,
    Metrics,
    Refusal,
    Request,
    SensorRows,
    StreamAnswer,
    StreamRequest,
    TimeAnswer,
    TimeRequest,
    Unasked,
    decode_answer,
    decode_unasked,
    name_of,
)

RETRY_S: Final = (0.15, 0.3, 0.6, 1.2)
"""A request is sent once for each; after the last it is given up."""
QUEUE_MAX: Final = 64
ANSWER_BYTES_MAX: Final = PAYLOAD_BYTES_MAX + 16
"""What may be on the line before an answer: a whole frame, with what is around it."""
RECENT_MAX: Final = 32
SUSPECT_S: Final = 1.0
"""A board that seems to have restarted is asked HELLO, once in this time at most."""
TIME_BURST: Final = 8
TIME_BURST_S: Final = 0.2
ACKS_MAX: Final = 256
"""Answers to a board that wait for the line; more are not kept: the board asks again."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A request was answered; `tries` is how often it was sent."""

    request: Request
    answer: Answer
    tries: int
    took_s: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A request was refused."""

    request: Request
    error: RefusedError
    tries: int


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A request was given up: nobody answered, or the board restarted under it."""

    request: Request
    error: NoAnswerError


@dataclass(frozen=True, slots=True)
class Restarted:
    """The board has another boot than before: it runs from its start again."""

    caps: Caps


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of one stream that follow on each other: values [rows, channels], and each row's time on the board."""

    stream: int
    index: int
    values: NDArray[np.float32]
    times_us: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Gap:
    """Here rows of a stream are missing: `frames` were lost on the line; `rows` also counts those never sent."""

    stream: int
    index: int
    frames: int
    rows: int


@dataclass(frozen=True, slots=True)
class Received:
    """The board said this by itself."""

    message: Unasked


@dataclass(frozen=True, slots=True)
class Lost:
    """So many messages of a type are missing before the one that came."""

    type: int
    count: int


@dataclass(frozen=True, slots=True)
class ClockJumped:
    """The board's clock jumped: times before and after do not compare."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """A frame was whole but does not keep the protocol."""

    type: int
    error: MessageError


@dataclass(frozen=True, slots=True)
class Unknown:
    """A frame of a type or protocol version that this host does not know."""

    type: int
    version: int


Event: TypeAlias = (
    "Answered | Refused | Unanswered | Restarted | Rows | Gap | Received | Lost | ClockJumped | Malformed | Unknown"
)


@dataclass(slots=True)
class _Asked:
    request: Request
    seq: int
    tries: int
    sent_s: float
    due_s: float


@dataclass(slots=True)
class StreamCounts:
    """What came of one stream since the session began."""

    frames: int = 0
    rows: int = 0
    frames_lost: int = 0
    rows_lost: int = 0
    repeated: int = 0


class _Stream:
    """A block of rows, whether its stream is on, and what was lost beside what the block counts."""

    def __init__(self, channels: int, scale: float) -> None:
        self.block = Block(channels, scale)
        self.on = False
        self.sure = False  # the board answered that it is on
        self.tail_frames = 0
        self.tail_rows = 0

    def counts(self) -> StreamCounts:
        core = self.block.core
        return StreamCounts(
            core.frames,
            core.rows_all,
            core.frames_lost + self.tail_frames,
            core.rows_lost + self.tail_rows,
            core.repeated,
        )


class Protocol:
    """One session with one board.

    Args:
        session: any number that differs from the last session's; a board ends what an earlier host left.
        byte_s: how long a byte takes on the line; timeouts wait for what is under way. 0 where the line is no UART.
        units: rows come in the stream's unit; else as the board counts.
        time_interval_s: how often TIME is asked, after a burst at the start; 0 for never.
        payload_max: the longest payload taken.
    """

    def __init__(
        self,
        session: int,
        *,
        byte_s: float = 0.0,
        units: bool = True,
        time_interval_s: float = 10.0,
        payload_max: int = PAYLOAD_BYTES_MAX,
    ) -> None:
        self.session = session & 0xFFFFFFFF
        self.caps: Caps | None = None
        self.clock = ClockFit()
        self.stale = 0
        self.unknown = 0
        self.malformed = 0
        self.retries = 0
        self.lost: dict[int, int] = {}
        self._payload_max = payload_max
        self._byte_s = byte_s
        self._units = units
        self._time_interval_s = time_interval_s
        self._time_due_s: float | None = None
        self._time_burst = 0
        self._decoder = Decoder(payload_max)
        self._streams: dict[int, _Stream] = {}
        self._queue: deque[Request] = deque()
        self._asked: dict[int, _Asked] = {}
        self._seq = 0
        self._out: list[bytes] = []
        self._line_free_s = 0.0
        self._seqs: dict[int, int] = {}
        self._recent: deque[int] = deque(maxlen=RECENT_MAX)
        self._up_ms = 0
        self._hello_s = float("-inf")
        self._repeated = 0
        self._suspected = False

    # what goes out ------------------------------------------------------------------------------------------

    def send(self, request: Request, now_s: float) -> bytes:
        """Ask the board; what is to be written now. A request waits while another is under way.

        Raises:
            BridgeError: too many requests wait, or this one is longer than the board takes.
        """
        frame_max = PAYLOAD_BYTES_MAX if self.caps is None else self.caps.frame_max
        if len(request.encode()) > frame_max:
            raise BridgeError(f"{name_of(request.TYPE)} has {len(request.encode())} bytes; the board takes {frame_max}")
        if len(self._queue) >= QUEUE_MAX:
            raise BridgeError(f"{QUEUE_MAX} requests wait for the board already: wait for their answers")
        self._queue.append(request)
        self._start(now_s)
        return self.outgoing()

    def outgoing(self) -> bytes:
        """What is to be written now: requests, repetitions, acknowledgements."""
        data = b"".join(self._out)
        self._out.clear()
        return data

    @property
    def under_way(self) -> int:
        """Requests sent and not answered."""
        return len(self._asked)

    @property
    def waiting(self) -> int:
        """Requests not yet sent."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Nothing is asked."""
        return not self._asked and not self._queue

    def _start(self, now_s: float) -> None:
        while self._queue and self._may_start(self._queue[0]):
            request = self._queue.popleft()
            self._seq = self._seq + 1 & 0xFFFF
            while self._seq in self._asked:
                self._seq = self._seq + 1 & 0xFFFF
            asked = _Asked(request, self._seq, 0, now_s, now_s)
            self._asked[self._seq] = asked
            if isinstance(request, StreamRequest):
                self._before_stream(request)
            self._transmit(asked, now_s)

    def _may_start(self, request: Request) -> bool:
        if not self._asked:
            return True
        if not isinstance(request, ChunkRequest) or self.caps is None or len(self._asked) >= self.caps.window:
            return False
        return all(isinstance(asked.request, ChunkRequest) for asked in self._asked.values())

    def _transmit(self, asked: _Asked, now_s: float) -> None:
        if isinstance(asked.request, TimeRequest):
            asked.request = replace(asked.request, t1_us=_us(now_s))
        data = encode(Frame(asked.request.TYPE, asked.seq, asked.request.encode(), ACKREQ))
        self._out.append(data)
        self._line_free_s = max(now_s, self._line_free_s) + len(data) * self._byte_s
        asked.sent_s = now_s
        asked.due_s = self._line_free_s + RETRY_S[asked.tries] + ANSWER_BYTES_MAX * self._byte_s
        asked.tries += 1

    def _before_stream(self, request: StreamRequest) -> None:
        for stream in self._of(request.stream):
            if request.on and not stream.on:
                stream.block.core.started()
                stream.on = True

    def _of(self, number: int) -> list[_Stream]:
        if number == ALL_STREAMS:
            return list(self._streams.values())
        return [self._streams[number]] if number in self._streams else []

    # time ---------------------------------------------------------------------------------------------------

    def next_timeout(self) -> float | None:
        """When `tick` has something to do; None when nothing is waited for."""
        times = [asked.due_s for asked in self._asked.values()]
        if self._time_due_s is not None:
            times.append(self._time_due_s)
        if self._suspected and self.caps is not None:
            times.append(self._hello_s + SUSPECT_S)
        return min(times, default=None)

    def tick(self, now_s: float) -> list[Event]:
        """Repeat what was not answered in time, give up what was repeated often enough, ask for the time."""
        events: list[Event] = []
        for asked in [asked for asked in self._asked.values() if asked.due_s <= now_s]:
            if asked.tries < len(RETRY_S):
                self.retries += 1
                self._transmit(asked, now_s)
                continue
            del self._asked[asked.seq]
            name = name_of(asked.request.TYPE)
            error = NoAnswerError(
                f"no answer to {name} after {asked.tries} tries: is the board running, and its line whole?"
            )
            events.append(Unanswered(asked.request, error))
            self._suspected = True
        if self._time_due_s is not None and now_s >= self._time_due_s:
            self._time_burst -= 1
            self._time_due_s = now_s + (TIME_BURST_S if self._time_burst > 0 else self._time_interval_s)
            asks = any(isinstance(asked.request, TimeRequest) for asked in self._asked.values())
            if not asks and not any(isinstance(request, TimeRequest) for request in self._queue):
                self._queue.appendleft(TimeRequest(0))
        self._ask_who(now_s)
        self._start(now_s)
        return events

    def _ask_who(self, now_s: float) -> None:
        """The board may have restarted: ask who it is, unless that was done just now."""
        if not self._suspected or self.caps is None or now_s - self._hello_s < SUSPECT_S:
            return
        self._hello_s = now_s
        waits = [*self._queue, *(asked.request for asked in self._asked.values())]
        if not any(isinstance(request, HelloRequest) for request in waits):
            # Behind what waits: on a line that loses most answers to HELLO, which are long, others still get through.
            self._queue.append(HelloRequest(self.session, payload_max=self._payload_max))

    # what comes in ------------------------------------------------------------------------------------------

    def receive(self, data: bytes | bytearray | memoryview, now_s: float) -> list[Event]:
        """What these bytes, and those before, say.

        Raises:
            BridgeError: never for bytes of any kind; the promise is that nothing else is raised.
        """
        events: list[Event] = []
        for piece in pieces(data):
            frames = self._decoder.feed(piece)
            for number, stream in self._streams.items():
                if stream.block.core.rows:
                    self._rows(number, stream, events)
            for frame in frames:
                self._frame(frame, now_s, events)
        repeated = sum(stream.block.core.repeated for stream in self._streams.values())
        if repeated != self._repeated:
            self._repeated = repeated
            self._suspected = True
        self._ask_who(now_s)
        self._start(now_s)
        return events

    def _rows(self, number: int, stream: _Stream, events: list[Event]) -> None:
        for run in stream.block.take():
            if run.frames_lost or run.rows_lost:
                events.append(Gap(number, run.first - run.rows_lost, run.frames_lost, run.rows_lost))
            events.append(Rows(number, run.first, run.values, run.times_us))

    def _frame(self, frame: Frame, now_s: float, events: list[Event]) -> None:
        if frame.version != PROTOCOL_VERSION and not frame.flags & ERR:
            self.unknown += 1
            events.append(Unknown(frame.type, frame.version))
            return
        try:
            if frame.flags & (RESP | ERR):
                self._answer(frame, now_s, events)
            else:
                self._unasked(frame, now_s, events)
        except MessageError as error:
            self.malformed += 1
            events.append(Malformed(frame.type, error))

    def _answer(self, frame: Frame, now_s: float, events: list[Event]) -> None:
        asked = self._asked.get(frame.seq)
        if asked is None or frame.type != asked.request.TYPE:
            self.stale += 1
            return
        request = asked.request
        if frame.flags & ERR:
            refusal = Refusal.decode(frame.payload)
            del self._asked[frame.seq]
            error = RefusedError(name_of(frame.type), refusal.code, refusal.text)
            events.append(Refused(request, error, asked.tries))
            return
        answer = decode_answer(frame.type, frame.payload)  # a damaged one leaves the request under way
        del self._asked[frame.seq]
        if isinstance(answer, Caps):
            self._hello(answer, now_s, events)
        elif isinstance(answer, TimeAnswer):
            self._time(answer, now_s, events)
        elif isinstance(request, StreamRequest) and isinstance(answer, StreamAnswer):
            self._stream(request, answer, events)
        elif isinstance(answer, Metrics):
            self._up(answer, now_s)
        events.append(Answered(request, answer, asked.tries, now_s - asked.sent_s))

    def _hello(self, caps: Caps, now_s: float, events: list[Event]) -> None:
        before, self.caps = self.caps, caps
        self._hello_s = now_s
        self._suspected = False
        if before is not None and before.boot == caps.boot and before.uid == caps.uid:
            if before.sensors != caps.sensors:
                self._bind(caps)
            return
        self._bind(caps)
        self._seqs.clear()
        self._recent.clear()
        self._up_ms = 0
        self.clock.reset()
        if self._time_interval_s:
            self._time_due_s, self._time_burst = now_s, TIME_BURST
        if before is None:
            return
        events.append(Restarted(caps))
        error = NoAnswerError("the board restarted before it answered: ask again")
        ended = [asked.request for asked in self._asked.values()] + list(self._queue)
        self._asked.clear()
        self._queue.clear()
        events.extend(Unanswered(request, error) for request in ended)

    def _bind(self, caps: Caps) -> None:
        """Blocks for the board's streams, all of them off; what was counted stays counted."""
        known = self._streams
        self._streams = {}
        for number in known:
            self._decoder.bind(number, None)
        for sensor in caps.sensors:
            stream = _Stream(len(sensor.channels), sensor.scale if self._units else 1.0)
            before = known.get(sensor.stream)
            if before is not None and before.block.core.channels == len(sensor.channels):
                stream = before
                stream.on = stream.sure = False
                stream.block.core.joined()
            self._streams[sensor.stream] = stream
            self._decoder.bind(sensor.stream, stream.block)

    def _time(self, answer: TimeAnswer, now_s: float, events: list[Event]) -> None:
        if not self.clock.add(answer.t1_us, answer.t2_us, answer.t3_us, _us(now_s)):
            events.append(ClockJumped())
            self._suspected = True

    def _stream(self, request: StreamRequest, answer: StreamAnswer, events: list[Event]) -> None:
        if not request.on and request.stream in self._streams and self._streams[request.stream].sure:
            stream = self._streams[request.stream]
            frames, rows = stream.block.core.missing(answer.seq, answer.index)
            if frames or rows:
                stream.tail_frames += frames
                stream.tail_rows += rows
                events.append(Gap(request.stream, answer.index - rows, frames, rows))
        for stream in self._of(request.stream):
            stream.sure = request.on
            if not request.on:
                stream.on = False
                stream.block.core.joined()

    def _up(self, metrics: Metrics, now_s: float) -> None:
        if metrics.up_ms < self._up_ms:
            self._suspected = True
        self._up_ms = metrics.up_ms

    def _unasked(self, frame: Frame, now_s: float, events: list[Event]) -> None:
        kind = UNASKED.get(frame.type)
        if kind is None:
            self.unknown += 1
            events.append(Unknown(frame.type, frame.version))
            if frame.flags & ACKREQ:
                self._refuse(frame, TYPE, "this host does not know the type")
            return
        try:
            message = decode_unasked(frame.type, frame.payload)
        except MessageError:
            if frame.flags & ACKREQ:
                self._refuse(frame, PAYLOAD, "this host cannot read it")
            raise
        if frame.flags & ACKREQ:
            self._reply(Frame(frame.type, frame.seq, b"", RESP))
        if isinstance(message, SensorRows):
            raise MessageError(f"rows of stream {message.stream} do not fit what the board said of its sensors")
        if isinstance(message, Drift):
            if frame.seq in self._recent:
                return  # the acknowledgement was lost: it came before
            self._recent.append(frame.seq)
        self._count(frame, events)
        if isinstance(message, Metrics):
            self._up(message, now_s)
        events.append(Received(message))

    def _count(self, frame: Frame, events: list[Event]) -> None:
        expected = self._seqs.get(frame.type)
        ahead = 0 if expected is None else frame.seq - expected & 0xFFFF
        if ahead >= 0x8000:  # an earlier one, repeated by its sender
            return
        self._seqs[frame.type] = frame.seq + 1 & 0xFFFF
        if ahead:
            self.lost[frame.type] = self.lost.get(frame.type, 0) + ahead
            events.append(Lost(frame.type, ahead))

    def _refuse(self, frame: Frame, code: int, text: str) -> None:
        self._reply(Frame(frame.type, frame.seq, Refusal(code, text).encode(), RESP | ERR))

    def _reply(self, frame: Frame) -> None:
        if len(self._out) < ACKS_MAX:
            self._out.append(encode(frame))

    # what was counted ---------------------------------------------------------------------------------------

    @property
    def frames(self) -> int:
        """Whole frames that came."""
        return self._decoder.frames

    @property
    def bad(self) -> int:
        """Frames that were dropped: damaged, or longer than agreed."""
        return self._decoder.bad

    def streams(self) -> Mapping[int, StreamCounts]:
        """What came of each stream, and what is missing of it."""
        return {number: stream.counts() for number, stream in self._streams.items()}


def _us(seconds: float) -> int:
    return int(seconds * 1e6)


__all__ = [
    "RETRY_S", "Answered", "ClockJumped", "Event", "Gap", "Lost", "Malformed", "Protocol", "Received", "Refused",
    "Restarted", "Rows", "StreamCounts", "Unanswered", "Unknown",
]  # fmt: skip
