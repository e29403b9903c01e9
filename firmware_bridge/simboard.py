"""A board in Python: the other end of the serial line, without a line. Bytes and times go in, bytes come out.

It keeps the whole protocol of docs/wire.md: sessions, streams with credit, TIME with a clock of its own, models in two
slots with trial and rollback, RESULT of the model that runs, METRICS, DRIFT until it is acknowledged, LOG, RESET. For
tests it can be told to misbehave (`Mischief`). `simulator.py` puts it behind a pty.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tinylcm.errors import ModelError

from .blob import BoardModel, read_model
from .errors import BUSY, MODEL, PAYLOAD, SELFTEST, STATE, STORE, TYPE, VERSION, MessageError, RefusedError
from .frames import ACKREQ, ERR, PAYLOAD_BYTES_MAX, PROTOCOL_VERSION, RESP, Decoder, Frame, encode
from .interpreter import predict, self_test
from .messages import (
    ALL_STREAMS,
    CHANGING,
    DOWN,
    ENDLESS,
    I16,
    NO_SLOT,
    REQUESTS,
    TRIAL,
    UP,
    AbortAnswer,
    BeginAnswer,
    BeginRequest,
    Caps,
    ChunkAnswer,
    ChunkRequest,
    CommitAnswer,
    CommitRequest,
    ConfirmAnswer,
    ConfirmRequest,
    Drift,
    HelloRequest,
    Log,
    Message,
    Metrics,
    Refusal,
    Request,
    ResetAnswer,
    Result,
    RollbackAnswer,
    RunningModel,
    Sensor,
    SensorRows,
    StreamAnswer,
    StreamRequest,
    TimeAnswer,
    TimeRequest,
    decode_request,
)
from .slots import Slots

DRIFT_REPEAT_S: Final = 0.2
DRIFT_TRIES: Final = 9
"""Sent once and repeated eight times."""
DRIFT_DELTA: Final = 0.2
DRIFT_THRESHOLD: Final = 1.0
"""Of means, in spreads of the rows: one block of rows that is off by more than a spread is an alarm."""
METRICS_S: Final = 5.0
BACKLOG_BYTES_MAX: Final = 65_536
"""What a board would keep for a line that takes nothing; then rows are dropped."""
ROWS_AT_ONCE_MAX: Final = 4096


class Mischief(StrEnum):
    """Ways to misbehave."""

    SAME_OFFSET = "same-offset"  # answers each chunk with the same offset, for ever
    BEYOND = "beyond"  # claims more bytes than it was sent
    WINDOW = "window"  # says a window of 16, and forgets all but the first chunk that comes at once
    SLOT = "slot"  # says that a slot takes 1 GiB
    ROT = "rot"  # writes other bytes than it was sent
    SILENT = "silent"  # answers HELLO, then nothing
    BUSY = "busy"  # is busy for ever
    LONG_FRAME = "long-frame"  # sends frames longer than agreed
    CLOCK = "clock"  # its clock jumps each second, to and fro
    RESETS = "resets"  # restarts at every tenth chunk
    NO_TRIAL = "no-trial"  # forgets the model when its trial begins
    SELF_TEST = "self-test"  # the model's vectors come out otherwise
    BABBLE = "babble"  # sends types that nobody knows, and payloads that mean nothing


@dataclass
class Source:
    """What a simulated sensor measures.

    Attributes:
        sensor: as CAPS tells of it.
        counts: [rows, channels], played again and again.
        drift_after_rows: from this row on, all counts are shifted by a quarter of their range; 0 for never.
    """

    sensor: Sensor
    counts: NDArray[np.int16]
    drift_after_rows: int = 0

    def rows(self, start: int, count: int) -> NDArray[np.int16]:
        """Rows by their number since the board started."""
        places = np.arange(start, start + count)
        rows = self.counts[places % len(self.counts)].astype(np.int32)
        if self.drift_after_rows:
            rows[places >= self.drift_after_rows] += 8192
        return np.clip(rows, -32768, 32767).astype(np.int16)


def synthetic(
    stream: int = 0, *, channels: int = 3, rate_hz: float = 50.0, drift_after_rows: int = 0, seed: int = 1
) -> Source:
    """Sines of different periods with some noise, 10 s of them."""
    rows = max(16, round(10 * rate_hz))
    at = np.arange(rows)[:, None] / rows
    noise = np.random.default_rng(seed).normal(0, 300, (rows, channels))
    waves = 6000 * np.sin(2 * np.pi * at * (5 + 3 * np.arange(channels))) + noise
    sensor = Sensor(
        stream, "synthetic", I16, tuple(f"c{i}" for i in range(channels)), round(rate_hz * 1000), "g", 1 / 4096
    )
    return Source(sensor, waves.astype(np.int16), drift_after_rows)


def recording(
    values: NDArray[np.float32], *, stream: int = 0, name: str = "recording", rate_hz: float = 10.0, unit: str = "",
    channels: Sequence[str] = (),
) -> Source:  # fmt: skip
    """A recording [rows, channels], in counts that use the whole range.

    Raises:
        ValueError: it is no table of finite numbers.
    """
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"the recording has the shape {values.shape}: expected finite numbers [rows, channels]")
    scale = float(np.abs(values).max()) / 32000 or 1.0
    names = tuple(channels) or tuple(f"c{i}" for i in range(values.shape[1]))
    sensor = Sensor(stream, name, I16, names, round(rate_hz * 1000), unit, scale)
    return Source(sensor, np.round(values / scale).astype(np.int16))


@dataclass
class _Playing:
    """A stream as it is played."""

    source: Source
    on: bool = False
    credit: int = 0
    seq: int = 0
    index: int = 0
    row: int = 0  # of the source, since the board started
    window: list[NDArray[np.int16]] = field(default_factory=list)
    recent: list[NDArray[np.int16]] = field(default_factory=list)
    mean: NDArray[np.float64] | None = None
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 1)))
    seen: int = 0


class SimulatedBoard:
    """A board.

    Args:
        uid: its name, at most 32 characters.
        slots: where its models are.
        sources: what its sensors measure.
        frame_max, window, align: as CAPS says.
        trial_s: a model that is not confirmed in this time is given up.
        clock_ppm, clock_us: how fast its clock runs beside the caller's, and what it began with.
        mischief: what it does wrong.
        seed: for what it draws.
        rows_per_frame: rows sent together.
    """

    def __init__(
        self,
        uid: str,
        slots: Slots,
        sources: Sequence[Source] = (),
        *,
        frame_max: int = PAYLOAD_BYTES_MAX,
        window: int = 8,
        align: int = 8,
        trial_s: int = 60,
        clock_ppm: float = 0.0,
        clock_us: int = 0,
        mischief: Sequence[Mischief] = (),
        seed: int = 0,
        rows_per_frame: int = 10,
        metrics_s: float = METRICS_S,
    ) -> None:
        self.uid, self.slots = uid, slots
        self.reset_reason = "power"
        self.restarts = 0
        self.results_sent = 0
        self.frames_sent: dict[int, int] = {}
        self._sources = list(sources)
        self._frame_max, self._window, self._align, self._trial_s = frame_max, window, align, trial_s
        self._clock_ppm, self._clock_us = clock_ppm, clock_us
        self._mischief = frozenset(mischief)
        self._random = random.Random(seed)  # noqa: S311
        self._rows_per_frame = rows_per_frame
        self._metrics_s = metrics_s
        self._start(0.0)

    # starting -----------------------------------------------------------------------------------------------

    def _start(self, now_s: float) -> None:
        self.boot = self._random.getrandbits(32)
        self._started_s = now_s
        self._decoder = Decoder(PAYLOAD_BYTES_MAX)
        self._out: list[bytes] = []
        self._backlog = 0
        self._session: int | None = None
        self._kept: tuple[int, int, bytes] | None = None
        self._seqs: dict[int, int] = {}
        self._playing = [_Playing(source) for source in self._sources]
        self._metrics = Metrics()
        self._drifts: list[tuple[Frame, float, int]] = []
        self._trial_until_s = 0.0
        self._metrics_due_s = now_s + self._metrics_s
        self._frozen = 0
        self._chunks = 0
        self._rx = self._tx = self._tx_drop = self._rows = self._rows_drop = 0
        self._infer = self._drift = self._drift_lost = 0
        self.slots.start()
        if self.slots.state == TRIAL:
            self._trial_until_s = now_s + self._trial_s
        self._load()

    def _load(self) -> None:
        self._model: BoardModel | None = None
        if self.slots.running is not None:
            try:
                self._model = read_model(self.slots.model(self.slots.running))
            except ModelError:
                self._model = None

    def restart(self, now_s: float, why: str = "reset") -> None:
        """As by power or a watchdog: what was in memory is gone."""
        self.reset_reason = why
        self.restarts += 1
        self._start(now_s)
        self._say(Log(20, self._us(now_s), f"{self.uid} started: {why}"))

    def _us(self, now_s: float) -> int:
        passed = (now_s - self._started_s) * (1 + self._clock_ppm / 1e6)
        jump = 3_600_000_000 if Mischief.CLOCK in self._mischief and int(passed) % 2 else 0
        return self._clock_us + max(0, round(passed * 1e6)) + jump

    @property
    def caps(self) -> Caps:
        """Who it is."""
        running = self.slots.running
        header = None if running is None else self.slots.header(running)
        model = RunningModel(
            header.sha256.hex() if header else "",
            NO_SLOT if running is None else running,
            self.slots.state,
            header.counter if header else 0,
        )
        return Caps(
            uid=self.uid,
            boot=self.boot,
            fw="simulator 1",
            frame_max=self._frame_max,
            window=16 if Mischief.WINDOW in self._mischief else self._window,
            slots=2,
            slot_bytes=1 << 30 if Mischief.SLOT in self._mischief else self.slots.model_bytes_max,
            align=self._align,
            abi=1,
            formats=(1,),
            reset=self.reset_reason,
            trial_s=self._trial_s,
            sensors=tuple(source.sensor for source in self._sources),
            model=model,
        )

    # bytes --------------------------------------------------------------------------------------------------

    def outgoing(self) -> bytes:
        """What it sends now."""
        data = b"".join(self._out)
        self._out.clear()
        self._backlog = 0
        return data

    def receive(self, data: bytes, now_s: float) -> None:
        """Bytes of the host."""
        self._frozen = 0
        for frame in self._decoder.feed(data):
            self._rx += 1
            self._frame(frame, now_s)

    def _put(self, frame: Frame) -> bool:
        data = encode(frame)
        if Mischief.LONG_FRAME in self._mischief and frame.type == SensorRows.TYPE:
            data = data[:-1] + bytes([7]) * 3000 + b"\0"
        if self._backlog + len(data) > BACKLOG_BYTES_MAX:
            self._tx_drop += 1
            return False
        self._out.append(data)
        self._backlog += len(data)
        self._tx += 1
        return True

    def _say(self, message: Message, flags: int = 0) -> Frame:
        seq = self._seqs.get(message.TYPE, 0)
        self._seqs[message.TYPE] = seq + 1 & 0xFFFF
        frame = Frame(message.TYPE, seq, message.encode(), flags)
        self._put(frame)
        return frame

    # requests -----------------------------------------------------------------------------------------------

    def _frame(self, frame: Frame, now_s: float) -> None:
        if frame.flags & RESP:
            self._drifts = [item for item in self._drifts if item[0].seq != frame.seq or frame.type != Drift.TYPE]
            return
        if not frame.flags & ACKREQ:
            return
        if frame.version != PROTOCOL_VERSION:
            refusal = Refusal(VERSION, f"this board speaks {PROTOCOL_VERSION}")
            self._put(Frame(frame.type, frame.seq, refusal.encode(), RESP | ERR))
            return
        if Mischief.SILENT in self._mischief and frame.type != HelloRequest.TYPE:
            return
        if self._kept is not None and frame.type in CHANGING and self._kept[:2] == (frame.seq, frame.type):
            self._out.append(self._kept[2])
            return
        flags = RESP
        try:
            answer: Message | Refusal | None = self._do(frame, now_s)
        except RefusedError as error:
            answer, flags = Refusal(error.code, error.text), RESP | ERR
        if answer is None:
            return
        reply = Frame(frame.type, frame.seq, answer.encode(), flags)
        if frame.type in CHANGING:
            self._kept = (frame.seq, frame.type, encode(reply))
        self._put(reply)
        if isinstance(answer, ResetAnswer):
            data = self._out
            self.restart(now_s, "asked")
            self._out = [*data, *self._out]

    def _do(self, frame: Frame, now_s: float) -> Message | None:
        if frame.type not in REQUESTS:
            raise RefusedError("a request", TYPE, f"type {frame.type:02x}")
        try:
            request = decode_request(frame.type, frame.payload)
        except MessageError as error:
            raise RefusedError("a request", PAYLOAD, str(error)) from error
        if isinstance(request, HelloRequest):
            return self._hello(request)
        if isinstance(request, TimeRequest):
            at_us = self._us(now_s)
            return TimeAnswer(request.t1_us, at_us, at_us)
        if isinstance(request, StreamRequest):
            return self._stream(request, now_s)
        if request.TYPE == Metrics.TYPE:
            return self.metrics(now_s)
        return self._of_model(request, now_s)

    def _hello(self, request: HelloRequest) -> Message:
        if not request.version_min <= PROTOCOL_VERSION <= request.version_max:
            raise RefusedError("HELLO", VERSION, f"this board speaks {PROTOCOL_VERSION}")
        if request.session != self._session:
            self._session, self._kept = request.session, None
            for playing in self._playing:
                playing.on = False
        return self.caps

    def _stream(self, request: StreamRequest, now_s: float) -> Message:
        chosen = [p for p in self._playing if request.stream in (ALL_STREAMS, p.source.sensor.stream)]
        if not chosen and request.stream != ALL_STREAMS:
            raise RefusedError("STREAM", PAYLOAD, f"no stream {request.stream}")
        for playing in chosen:
            if request.on and not playing.on:
                playing.seq = playing.index = 0
                playing.row = self._row(playing, now_s)
                playing.window.clear()
            playing.on, playing.credit = request.on, request.credit
        if request.stream == ALL_STREAMS:
            return StreamAnswer(ALL_STREAMS, request.on, request.credit, 0, 0)
        return StreamAnswer(request.stream, request.on, chosen[0].credit, chosen[0].seq, chosen[0].index)

    def _of_model(self, request: Request, now_s: float) -> Message | None:
        if Mischief.BUSY in self._mischief:
            raise RefusedError("a model", BUSY, "erasing")
        if isinstance(request, BeginRequest):
            if (request.format, request.abi) != (1, 1):
                raise RefusedError("MODEL_BEGIN", MODEL, "format 1 with ABI 1 runs here")
            return BeginAnswer(*self.slots.begin(request))
        if isinstance(request, ChunkRequest):
            return self._chunk(request, now_s)
        if isinstance(request, CommitRequest):
            return self._commit(request, now_s)
        if isinstance(request, ConfirmRequest):
            return self._confirm(request)
        if request.TYPE == AbortAnswer.TYPE:
            self.slots.abort()
            return AbortAnswer()
        if request.TYPE == RollbackAnswer.TYPE:
            self.slots.roll_back()
            self._load()
            return RollbackAnswer(NO_SLOT if self.slots.running is None else self.slots.running, self.slots.state)
        return ResetAnswer()

    def _chunk(self, request: ChunkRequest, now_s: float) -> Message | None:
        self._chunks += 1
        if Mischief.SAME_OFFSET in self._mischief:
            return ChunkAnswer(0)
        if Mischief.BEYOND in self._mischief:
            return ChunkAnswer(request.offset + 4 * len(request.data) + 4096)
        if Mischief.RESETS in self._mischief and self._chunks == 10:
            self.restart(now_s, "watchdog")
            return None
        if Mischief.WINDOW in self._mischief:
            self._frozen += 1
            if self._frozen > 1:
                return None
        data = request.data
        if Mischief.ROT in self._mischief:
            data = bytes([data[0] ^ 1]) + data[1:]
        if Mischief.SLOT in self._mischief and request.offset + len(data) > self.slots.model_bytes_max:
            raise RefusedError("MODEL_CHUNK", STORE, "the slot ends here")
        return ChunkAnswer(self.slots.chunk(request.offset, data))

    def _commit(self, request: CommitRequest, now_s: float) -> Message:
        running = self.slots.running
        header = None if running is None else self.slots.header(running)
        if running is not None and header is not None and header.sha256 == request.sha256:
            return CommitAnswer(running, self.slots.state)
        data = self.slots.arrived(request.sha256)
        try:
            model = read_model(data)
        except ModelError as error:
            self.slots.reject()
            raise RefusedError("MODEL_COMMIT", MODEL, str(error)) from error
        try:
            self_test(model)
            if Mischief.SELF_TEST in self._mischief:
                raise ModelError("a test vector came out otherwise")
        except ModelError as error:
            self.slots.reject()
            raise RefusedError("MODEL_COMMIT", SELFTEST, str(error)) from error
        slot = self.slots.try_out()
        self._model = model
        self._trial_until_s = now_s + self._trial_s
        if Mischief.NO_TRIAL in self._mischief:
            self.restart(now_s, "crash")
        return CommitAnswer(slot, TRIAL)

    def _confirm(self, request: ConfirmRequest) -> Message:
        running = self.slots.running
        header = None if running is None else self.slots.header(running)
        if header is None or header.sha256 != request.sha256:
            raise RefusedError("MODEL_CONFIRM", STATE, "that model does not run")
        return ConfirmAnswer(self.slots.confirm(), self.slots.state)

    def metrics(self, now_s: float) -> Metrics:
        """Its counters."""
        return Metrics(
            up_ms=int((now_s - self._started_s) * 1000),
            rx=self._rx,
            rx_bad=self._decoder.bad,
            tx=self._tx,
            tx_drop=self._tx_drop,
            rows=self._rows,
            rows_drop=self._rows_drop,
            infer=self._infer,
            drift=self._drift,
            drift_lost=self._drift_lost,
            credit=min((p.credit for p in self._playing if p.on), default=0),
        )

    # time ---------------------------------------------------------------------------------------------------

    def next_timeout(self) -> float:
        """When `tick` has something to do."""
        times = [self._metrics_due_s, *(due for _, due, _ in self._drifts)]
        for playing in self._playing:
            rate_hz = playing.source.sensor.rate_hz
            if rate_hz:
                times.append(self._started_s + (playing.row + self._rows_per_frame) / rate_hz)
        if self._trial_until_s:
            times.append(self._trial_until_s)
        return min(times)

    def tick(self, now_s: float) -> None:
        """Measure, infer, repeat, give up: what time asks for."""
        for playing in self._playing:
            self._measure(playing, now_s)
        self._repeat_alarms(now_s)
        if self.slots.state == TRIAL and self._trial_until_s and now_s >= self._trial_until_s:
            self._trial_until_s = 0.0
            self.slots.roll_back()
            self._load()
            self._say(Log(30, self._us(now_s), "the model was not confirmed in time"))
        if self.slots.state != TRIAL:
            self._trial_until_s = 0.0
        if now_s >= self._metrics_due_s:
            self._metrics_due_s = now_s + self._metrics_s
            if self._session is not None:
                self._say(self.metrics(now_s))
            if Mischief.BABBLE in self._mischief:
                self._babble()

    def _repeat_alarms(self, now_s: float) -> None:
        waiting = []
        for frame, due_s, tries in self._drifts:
            if due_s > now_s:
                waiting.append((frame, due_s, tries))
            elif tries < DRIFT_TRIES:
                self._put(frame)
                waiting.append((frame, now_s + DRIFT_REPEAT_S, tries + 1))
            else:
                self._drift_lost += 1
        self._drifts = waiting

    def _babble(self) -> None:
        for kind in (0x77, Log.TYPE, Result.TYPE, Metrics.TYPE, Drift.TYPE, SensorRows.TYPE):
            self._put(Frame(kind, self._random.getrandbits(16), self._random.randbytes(9), ACKREQ))

    def _row(self, playing: _Playing, now_s: float) -> int:
        return int((now_s - self._started_s) * playing.source.sensor.rate_hz)

    def _measure(self, playing: _Playing, now_s: float) -> None:
        due = self._row(playing, now_s)
        if due - playing.row > ROWS_AT_ONCE_MAX:  # the simulator itself was held up
            skipped = due - playing.row - ROWS_AT_ONCE_MAX
            playing.row += skipped
            if playing.on:
                playing.index += skipped
                self._rows_drop += skipped
        while due - playing.row >= self._rows_per_frame:
            rows = playing.source.rows(playing.row, self._rows_per_frame)
            start = playing.row
            playing.row += len(rows)
            self._rows += len(rows)
            self._watch(playing, rows, start)
            if playing.on:
                self._emit(playing, rows, start)
            self._infer_on(playing, rows)

    def _row_us(self, playing: _Playing, row: int) -> int:
        return self._us(self._started_s + row / playing.source.sensor.rate_hz)

    def _emit(self, playing: _Playing, rows: NDArray[np.int16], start: int) -> None:
        sensor = playing.source.sensor
        step_us = round(1e6 / sensor.rate_hz)
        message = SensorRows(sensor.stream, playing.index, self._row_us(playing, start), step_us, rows)
        playing.index += len(rows)
        if playing.credit == 0:
            self._rows_drop += len(rows)
            return
        if not self._put(Frame(SensorRows.TYPE, playing.seq, message.encode())):
            self._rows_drop += len(rows)
            return
        playing.seq = playing.seq + 1 & 0xFFFF
        playing.credit -= playing.credit != ENDLESS
        self.frames_sent[sensor.stream] = self.frames_sent.get(sensor.stream, 0) + 1

    def _infer_on(self, playing: _Playing, rows: NDArray[np.int16]) -> None:
        model = self._model
        if model is None or rows.shape[1] != model.channels or playing is not self._playing[0]:
            return
        playing.window.append(rows)
        together = np.concatenate(playing.window)
        while len(together) >= model.rows:
            label, score = predict(model, together[: model.rows])
            together = together[model.hop :]
            self._infer += 1
            running = self.caps.model
            at_us = self._row_us(playing, playing.row - len(together))
            if self._session is not None:
                self._say(Result(at_us, running.id, label, score, 0))
                self.results_sent += 1
        playing.window = [together]

    def _watch(self, playing: _Playing, rows: NDArray[np.int16], start: int) -> None:
        """A two-sided Page-Hinkley test a channel, of the means of as many rows as the source repeats after."""
        playing.recent.append(rows)
        if sum(map(len, playing.recent)) < max(100, len(playing.source.counts)):
            return
        block = np.concatenate(playing.recent).astype(np.float64)
        playing.recent.clear()
        mean, spread = block.mean(axis=0), np.maximum(block.std(axis=0), 1.0)
        if playing.mean is None:
            playing.mean, playing.sums, playing.seen = mean, np.zeros((2, len(mean))), 0
        playing.seen += len(block)
        off = (mean - playing.mean) / spread
        playing.sums = np.maximum(0, playing.sums + np.array((off, -off)) - DRIFT_DELTA)
        side, channel = np.unravel_index(int(np.argmax(playing.sums)), playing.sums.shape)
        height = float(playing.sums[side, channel])
        if height > DRIFT_THRESHOLD:
            at_us = self._row_us(playing, start + len(rows))
            found = (height, DRIFT_THRESHOLD, float(mean[channel]), float(spread[channel]) ** 2)
            self._alarm(playing, block[:, channel], int(channel), UP if side == 0 else DOWN, at_us, found)
            playing.mean = None

    def _alarm(
        self,
        playing: _Playing,
        counts: NDArray[np.float64],
        channel: int,
        direction: int,
        at_us: int,
        found: tuple[float, ...],
    ) -> None:
        self._drift += 1
        histogram = tuple(int(count) for count in np.histogram(counts, Drift.BINS, (-32768, 32768))[0])
        statistic, threshold, mean, variance = (min(max(round(x * 65536), -(2**31)), 2**31 - 1) for x in found)
        stream = playing.source.sensor.stream
        message = Drift(
            at_us, stream, channel, direction, statistic, threshold, mean, variance, playing.seen, histogram
        )
        seq = self._seqs.get(Drift.TYPE, 0)
        self._seqs[Drift.TYPE] = seq + 1 & 0xFFFF
        # The first sending is the next tick's: nothing is on the line before somebody has said HELLO.
        self._drifts.append((Frame(Drift.TYPE, seq, message.encode(), ACKREQ), 0.0, 0))
