"""The boards behind a device: their rows into pipelines, their predictions into the journal, packages onto them.

`firmware_bridge.gateway` keeps ports and threads, and is loaded when a board is configured; this is its owner. A
package for boards has a slot like any other. While it is on trial there, each board tries it; the slot is confirmed
when the boards that are here have decided and one has confirmed it, and goes back when none did.

What is called by a board's thread waits for nothing: disk and slots are looked at in `tick`, by the agent's thread.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from .clock import Clock
from .config import BoardConfig, TrialConfig
from .errors import ModelError, TinyLCMError
from .manifest import BOARD, Manifest, member_name
from .metrics import Metrics
from .slots import Held, Slot, State
from .store import SlotStore
from .types import Json, Payload, Prediction, Stream
from .window import Block, Lost
from .wire import Board

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from firmware_bridge.gateway import BoardStatus, Gateway, Wanted
    from firmware_bridge.messages import Caps, Drift, Result, Sensor

QUEUE_MAX: Final = 256  # blocks of rows that wait for a model; then the oldest give way
CLOSE_S: Final = 5.0
RATE_SLACK: Final = 0.1  # an RC oscillator is some percent off; half the rate is another sensor
REPORTS_MAX: Final = 1000  # steps of updates that wait for the agent
_log = logging.getLogger("tinylcm")
_Q16: Final = 65_536.0


class Model(Protocol):
    """What rows go into: a device's model."""

    @property
    def manifest(self) -> Manifest:
        """What it takes."""
        ...

    def stream(
        self, samples: Iterator[object], *, on_error: Callable[[TinyLCMError], object] | None = None
    ) -> Iterator[Prediction]:
        """Predict every window."""
        ...

    def count_overflow(self) -> None:
        """Something was lost on the way."""
        ...


@dataclass(frozen=True, slots=True)
class BoardPrediction:
    """A prediction that a board made itself; `at_s` is by the board's own clock."""

    board: str
    model: str
    label: str
    confidence: float
    latency_us: float
    at_s: float


@dataclass(frozen=True, slots=True)
class _Kept:
    """A package for boards that a slot holds."""

    state: State
    package: str
    manifest: Manifest
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class _Step:
    """What became of a package on a board."""

    uid: str
    wanted: Wanted
    state: str
    reason: str


class Sink(Protocol):
    """Where records go."""

    def emit(self, stream: Stream, type: str, payload: Payload) -> None:
        """Take one; never waits."""
        ...


class Settler(Protocol):
    """Who owns the slots; called by the agent's thread."""

    def report(self, model: str, held: Held, state: str, reason: str = "", board: str = "") -> None:
        """Say what became of a deployment on a board."""
        ...

    def settle(self, model: str, sha256: str, failure: str | None) -> None:
        """End a slot's trial: confirmed without a failure."""
        ...


class Boards:
    """What a device does for the boards behind it.

    Args:
        configured: the `[[board]]` sections.
        store: packages and slots; read in `tick` alone.
        sink: where records go.
        open_model: a model of this device by name, for a stream; raises when it is not there.
        trial: bounds of a trial.
        on_prediction: told what boards, and models on their streams, predict.
    """

    def __init__(
        self,
        configured: Sequence[BoardConfig],
        *,
        clock: Clock,
        store: SlotStore,
        sink: Sink,
        open_model: Callable[[str], Model],
        trial: TrialConfig,
    ) -> None:
        from firmware_bridge.gateway import BoardSpec, Gateway

        self._configured = tuple(configured)
        self._clock, self._store, self._sink, self._open_model = clock, store, sink, open_model
        self.trial = trial
        self.on_prediction: Callable[[Prediction | BoardPrediction], object] | None = None
        self._lock = threading.Lock()
        self._kept: Mapping[str, _Kept] = {}
        self._known: dict[str, tuple[Manifest, str]] = {}  # SHA-256 of a blob: what it is of
        self._metrics: dict[tuple[str, str], tuple[Manifest, Metrics]] = {}
        self._steps: queue.Queue[_Step] = queue.Queue(REPORTS_MAX)
        self._ends: dict[tuple[str, tuple[int, str]], _Step] = {}
        self._caps: dict[str, Caps] = {}
        self._said: dict[str, str] = {}
        self._streams: dict[tuple[str, int], _Stream] = {}
        self._others: set[tuple[int, str]] = set()  # packages that are not for boards
        specs = [
            BoardSpec(board.uid, board.ports, board.baud, board.name, tuple(board.streams)) for board in configured
        ]
        self._gateway: Gateway = Gateway(specs, self)

    def start(self) -> None:
        """Look for the boards."""
        self._look()
        self._gateway.start()

    def close(self) -> None:
        """Give the ports up; what waits in front of models is let go."""
        self._gateway.close(CLOSE_S)
        with self._lock:
            streams = list(self._streams.values())
        for stream in streams:
            stream.close()

    # for the agent --------------------------------------------------------------------------------------------

    def boards(self) -> list[Board]:
        """Every board, as a sync names it."""
        return [self._board(status) for status in self._gateway.statuses()]

    def status(self) -> dict[str, Json]:
        """Every board by its uid, for people."""
        found: dict[str, Json] = {}
        for board in self.boards():
            found[board.uid] = {
                "name": board.name,
                "state": board.state,
                "fw": board.fw,
                "model": board.model,
                "model_version": board.model_version,
                "last_seen_s": None if board.last_seen_ms is None else board.last_seen_ms / 1000,
                **board.info,
            }
        return found

    def _board(self, status: BoardStatus) -> Board:
        of = self._known.get(status.model)
        ago_ms = round(1000 * (time.monotonic() - status.heard_s)) if status.heard_s else None
        info: dict[str, Json] = {"port": status.port, "error": status.error[:500], **status.counters}
        return Board(
            uid=status.uid,
            name=status.name,
            fw=status.fw,
            model=status.model[:12] if of is None else of[0].name,
            model_version="" if of is None else of[0].version,
            state=status.state,
            last_seen_ms=ago_ms,
            info=info,
        )

    def tick(self, slots: Settler) -> None:
        """See what the slots hold, report what became of updates, and end trials that the boards have decided."""
        self._look()
        while True:
            try:
                step = self._steps.get_nowait()
            except queue.Empty:
                break
            deployment, package = step.wanted.key
            self._ends[(step.uid, step.wanted.key)] = step
            held = Held(package, step.wanted.version, deployment)
            slots.report(step.wanted.name, held, step.state, step.reason, step.uid)
        for name, kept in self._kept.items():
            if kept.state is State.TRIAL:
                self._decide(slots, name, kept)

    def _look(self) -> None:
        """Read the slots, and each package for boards that is news."""
        found: dict[str, _Kept] = {}
        for name in self._store.models():
            try:
                kept = self._keep(name, self._store.read(name))
            except TinyLCMError as error:
                if self._said.get(name) != str(error):
                    self._said[name] = str(error)
                    _log.error("%s cannot be given to boards: %s", name, error)
                kept = self._kept.get(name)  # what cannot be read now is no reason to take a board's model away
            if kept is not None:
                found[name] = kept
        self._kept = found

    def _keep(self, name: str, slot: Slot) -> _Kept | None:
        from firmware_bridge.blob import read_model
        from firmware_bridge.gateway import Wanted

        held = slot.active
        if held is None:
            return None
        state = slot.under if slot.state is State.STAGED else slot.state
        before = self._kept.get(name)
        key = (held.deployment, held.sha256)
        if before is not None and before.wanted.key == key and before.state is state:
            return before
        if key in self._others:
            return None
        package = self._store.load(held)
        manifest = package.manifest
        if manifest.format != BOARD:
            self._others.add(key)
            return None
        blob = package.read(member_name(BOARD))
        model = read_model(blob)
        channels = manifest.input.channels
        wanted = Wanted(
            manifest.name,
            manifest.version,
            key,
            blob,
            model.rows,
            model.hop,
            channels or tuple(str(index) for index in range(model.channels)),
            manifest.input.scale,
            self.trial.windows,
            self.trial.confidence_min,
        )
        self._known[wanted.sha256] = (manifest, held.sha256)
        return _Kept(state, held.sha256, manifest, wanted)

    def _decide(self, slots: Settler, name: str, kept: _Kept) -> None:
        states, reasons = [], []
        for status in self._gateway.statuses():
            caps = self._caps.get(status.uid)
            if status.state == "away" or caps is None or not self._means(status.uid, name):
                continue
            end = self._ends.get((status.uid, kept.wanted.key))
            states.append(end.state if end is not None else self._unfit(caps, kept) or "pending")
            if end is not None and end.reason:
                reasons.append(f"board {status.uid}: {end.reason}")
            elif states[-1] not in ("pending", "confirmed", "trial", "staged"):
                reasons.append(f"board {status.uid}: {states[-1]}")
        open_ones = {"pending", "staged", "trial"}
        if not states or open_ones & set(states):
            return
        slots.settle(name, kept.package, None if "confirmed" in states else "; ".join(reasons)[:2000])

    def _unfit(self, caps: Caps, kept: _Kept) -> str:
        """Why a board that may take any package does not take this one, although it was not asked to."""
        from firmware_bridge.gateway import why_not

        return why_not(kept.wanted, caps)

    def flush(self) -> None:
        """Journal a summary of what every board has predicted."""
        with self._lock:
            for (uid, _), (manifest, metrics) in self._metrics.items():
                snapshot = metrics.snapshot()
                if not snapshot["windows"]:
                    continue
                metrics.clear()
                payload = {**snapshot, "rss_bytes": None, "cpu_percent": None}
                self._sink.emit(
                    "details",
                    "summary",
                    {"model": manifest.name, "version": manifest.version, "board": uid, **payload},
                )

    # for the gateway, in a board's thread -------------------------------------------------------------------

    def _configured_for(self, uid: str) -> BoardConfig | None:
        known = [board for board in self._configured if board.uid == uid]
        return next(iter([*known, *(board for board in self._configured if not board.uid)]), None)

    def _means(self, uid: str, name: str) -> bool:
        board = self._configured_for(uid)
        return board is not None and board.model in ("", name)

    def wanted(self, uid: str, caps: Caps) -> Wanted | None:
        """The package that the board is configured for; without that the newest one that its sensors fit.

        Raises:
            ModelError: there are packages, and none fits: what the board runs stays.
        """
        from firmware_bridge.gateway import why_not

        self._caps[uid] = caps
        board = self._configured_for(uid)
        candidates = [kept.wanted for name, kept in self._kept.items() if self._means(uid, name)]
        if board is not None and board.model:
            return next(iter(candidates), None)
        fit = [wanted for wanted in candidates if not why_not(wanted, caps)]
        if candidates and not fit:
            raise ModelError(f"no package for boards fits it: {why_not(candidates[0], caps)}")
        return max(fit, key=lambda wanted: wanted.key[0], default=None)

    def stepped(self, uid: str, wanted: Wanted, state: str, reason: str = "") -> None:
        """Keep a step for the agent."""
        try:
            self._steps.put_nowait(_Step(uid, wanted, state, reason))
        except queue.Full:
            _log.error("board %s: %s %s: the agent does not turn, this is not reported", uid, wanted.name, state)

    def rows(self, uid: str, sensor: Sensor, values: NDArray[np.float32], times_s: NDArray[np.float64]) -> None:
        """Hand rows to the model of their stream."""
        stream = self._stream(uid, sensor)
        if stream is not None:
            stream.put(Block(values, times_s))

    def lost(self, uid: str, sensor: Sensor, rows: int) -> None:
        """Times tell of gaps where the rate is known; where not, this does."""
        stream = self._stream(uid, sensor)
        if stream is not None and not sensor.rate_mhz:
            stream.put(Lost(rows, f"rows of board {uid} were lost on the line"))

    def _stream(self, uid: str, sensor: Sensor) -> _Stream | None:
        board = self._configured_for(uid)
        if board is None:
            return None
        name = board.streams.get(sensor.name) or board.streams.get(str(sensor.stream))
        if name is None:
            return None
        with self._lock:
            stream = self._streams.get((uid, sensor.stream))
            if stream is None:
                stream = _Stream(uid, sensor, name, self._open_model, self._predicted)
                self._streams[(uid, sensor.stream)] = stream
        return stream

    def _predicted(self, prediction: Prediction | BoardPrediction) -> None:
        if self.on_prediction is not None:
            self.on_prediction(prediction)

    def result(self, uid: str, model: str, message: Result) -> None:
        """Count a board's prediction."""
        of = self._known.get(model)
        if of is None or message.label >= len(of[0].labels):
            return
        manifest, confidence = of[0], message.score / 65_535
        with self._lock:
            if (uid, model) not in self._metrics:
                self._metrics[(uid, model)] = manifest, Metrics(manifest.labels, self._clock)
            self._metrics[(uid, model)][1].update(float(message.infer_us), confidence, message.label)
        label = manifest.labels[message.label]
        self._predicted(
            BoardPrediction(uid, manifest.name, label, confidence, float(message.infer_us), message.time_us / 1e6)
        )

    def drift(self, uid: str, model: str, sensor: Sensor | None, message: Drift) -> None:
        """A board's alarm, with its evidence."""
        of = self._known.get(model)
        named = sensor is not None and message.channel < len(sensor.channels)
        signal = sensor.channels[message.channel] if named and sensor is not None else str(message.channel)
        payload: Payload = {
            "board": uid,
            "model": "board" if of is None else of[0].name,
            "version": "" if of is None else of[0].version,
            "monitor": "board" if sensor is None else sensor.name or f"stream {sensor.stream}",
            "detector": "PageHinkley",
            "signal": signal,
            "statistic": message.statistic / _Q16,
            "threshold": message.threshold / _Q16,
            "window": -1,
            "suspect": -1,
            "histogram": None,
            "direction": "up" if message.direction == 1 else "down",
            "mean": message.mean / _Q16,
            "variance": message.variance / _Q16,
            "count": message.count,
            "bins": list(message.histogram),
        }
        self._sink.emit("events", "alarm", payload)


class _Stream:
    """Rows of one stream on their way to one model, in a thread of their own."""

    def __init__(
        self,
        uid: str,
        sensor: Sensor,
        name: str,
        open_model: Callable[[str], Model],
        predicted: Callable[[Prediction], object],
    ) -> None:
        self._uid, self._sensor, self._name = uid, sensor, name
        self._open_model, self._predicted = open_model, predicted
        self._items: queue.Queue[object] = queue.Queue(QUEUE_MAX)
        self._model: Model | None = None
        self._said = ""
        self._thread = threading.Thread(target=self._run, name=f"tinylcm-stream-{uid}", daemon=True)
        self._thread.start()

    def put(self, item: object) -> None:
        """Rows, or that some are lost; the oldest give way when the model does not keep up."""
        while True:
            try:
                return self._items.put_nowait(item)
            except queue.Full:
                try:
                    self._items.get_nowait()
                except queue.Empty:
                    continue
                if self._model is not None:
                    self._model.count_overflow()

    def close(self) -> None:
        """End; what waits is let go. Nothing may be put any more."""
        while not self._items.empty():
            with suppress(queue.Empty):
                self._items.get_nowait()
        self._items.put_nowait(None)
        self._thread.join(CLOSE_S)

    def _given(self) -> Iterator[object]:
        while (item := self._items.get()) is not None:
            yield item

    def _run(self) -> None:
        for item in self._given():
            try:
                if self._model is None:
                    model = self._open_model(self._name)
                    self._check(model)
                    self._model = model
                for prediction in self._model.stream(self._from(item), on_error=self._warn):
                    self._predicted(prediction)
                return
            except TinyLCMError as error:
                self._warn(error)

    def _from(self, first: object) -> Iterator[object]:
        yield first
        yield from self._given()

    def _check(self, model: Model) -> None:
        manifest = model.manifest
        channels = manifest.layout[1]
        if channels != len(self._sensor.channels):
            raise TinyLCMError(
                f"model {self._name} takes {channels} channels, stream {self._sensor.stream} of board {self._uid} has "
                f"{len(self._sensor.channels)} ({', '.join(self._sensor.channels)})"
            )
        told, comes = manifest.window.rate_hz, self._sensor.rate_hz
        if told and comes and not math.isclose(told, comes, rel_tol=RATE_SLACK):
            _log.warning(
                "model %s was made for %g Hz, stream %d of board %s comes at %g Hz: what it says means little",
                *(self._name, told, self._sensor.stream, self._uid, comes),
            )

    def _warn(self, error: TinyLCMError) -> None:
        if str(error) != self._said:
            self._said = str(error)
            _log.warning("board %s, stream %d: %s", self._uid, self._sensor.stream, error)
