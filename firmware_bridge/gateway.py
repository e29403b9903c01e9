"""The gateway: each configured board is found, kept, listened to, and brought to the model that it should run.

It opens ports and keeps threads; what the device does with rows, predictions and models is the `Owner`'s. So it knows
no journal, no package and no pipeline.

Rules
- A thread a board. It is known by its uid: a port with another board is left alone, and another port is tried.
- Whatever breaks, it is tried again: after 1 s, then less and less often, at least every 30 s.
- A stream is turned on when the board's clock is known, so that its rows have times of the device; rows without are
  counted and dropped.
- What a board should run is asked every second. A model is sent, runs on trial, and is confirmed when enough windows
  came out, or taken back. One that a board refused, or that failed its trial, is not tried again on it.
- A line that loses an update is no fault of the model: it is begun again where it stopped.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from tinylcm.errors import TinyLCMError

from .blob import ABI, FORMAT
from .errors import HASH, MODEL, SELFTEST, SIZE, STORE, BridgeError, LinkError, RefusedError
from .link import Link
from .messages import (
    I16,
    TRIAL,
    Caps,
    Drift,
    HelloRequest,
    Log,
    Metrics,
    Result,
    RollbackRequest,
    Sensor,
    StreamRequest,
)
from .ports import BAUD, BAUDS, Port, expand
from .protocol import Answered, Event, Gap, Received, Refused, Restarted, Rows, Unanswered
from .transfer import State, Transfer

HELLO_S: Final = 4.0  # a board may be in its boot loader when its port is opened
HELLO_AGAIN_S: Final = 10.0  # what a board runs may change without us: a trial that ran out
WAIT_S: Final = (1.0, 30.0)  # between two tries to find a board
CLOCK_S: Final = 5.0  # after this a stream begins without the board's time: its rows wait for the first answer
POLL_S: Final = 0.1
WANTED_S: Final = 1.0
UPDATE_S: Final = 600.0
TRIES_MAX: Final = 5  # updates that the line broke, before the model is given up on this board
TRIAL_SHARE: Final = 0.8  # of a board's `trial_s`: until then the device has decided
SCALE_SLACK: Final = 1e-3
_FINAL: Final = frozenset({MODEL, SELFTEST, SIZE, HASH, STORE})
_log = logging.getLogger("tinylcm.board")


@dataclass(frozen=True, slots=True)
class BoardSpec:
    """A board as it is configured.

    Attributes:
        uid: whom to expect; empty: whoever answers on its ports.
        ports: paths, patterns and `socket://HOST:PORT`; empty: every serial port of this machine.
        baud: 0 tries the rates in use.
        streams: the sensors whose rows are wanted, by name or number.
    """

    uid: str = ""
    ports: tuple[str, ...] = ()
    baud: int = 0
    name: str = ""
    streams: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """A model that a board should run.

    Attributes:
        key: what tells this wish from another of the same model: a failure counts for one key alone.
        blob: the model's bytes; `rows`, `hop` and `channels` are what it takes, `scale` what one count is.
        windows: predictions in its trial; `confidence_min` is the least mean of their scores.
    """

    name: str
    version: str
    key: tuple[int, str]
    blob: bytes = field(repr=False)
    rows: int
    hop: int
    channels: tuple[str, ...]
    scale: float
    windows: int = 20
    confidence_min: float = 0.0

    @property
    def sha256(self) -> str:
        """Of the bytes that the board gets."""
        return hashlib.sha256(self.blob).hexdigest()


class Owner(Protocol):
    """What a device does with its boards. Everything is called in the board's own thread."""

    def rows(self, uid: str, sensor: Sensor, values: NDArray[np.float32], times_s: NDArray[np.float64]) -> None:
        """Rows of a stream in its unit, each with its time on this machine's monotonic clock."""

    def lost(self, uid: str, sensor: Sensor, rows: int) -> None:
        """So many rows of a stream are missing here."""

    def result(self, uid: str, model: str, message: Result) -> None:
        """The board predicted; `model` is the SHA-256 of what it runs."""

    def drift(self, uid: str, model: str, sensor: Sensor | None, message: Drift) -> None:
        """The board's own statistics raised an alarm."""

    def wanted(self, uid: str, caps: Caps) -> Wanted | None:
        """What the board should run; None: nothing of ours.

        Raises:
            TinyLCMError: it is not known now: nothing is changed on the board.
        """

    def stepped(self, uid: str, wanted: Wanted, state: str, reason: str = "") -> None:
        """An update has come to `staged`, `trial`, `confirmed`, `refused` or `rolled_back`."""


@dataclass(frozen=True, slots=True)
class BoardStatus:
    """A board as it is now; `heard_s` is by the monotonic clock, 0 for never."""

    uid: str
    name: str
    state: str
    fw: str = ""
    model: str = ""
    port: str = ""
    heard_s: float = 0.0
    error: str = ""
    counters: Mapping[str, int] = field(default_factory=dict)


def why_not(wanted: Wanted, caps: Caps) -> str:
    """Why a board cannot run a model; empty when it can."""
    if caps.abi != ABI or FORMAT not in caps.formats:
        formats = ", ".join(map(str, caps.formats)) or "none"
        return f"it has format {FORMAT} and ABI {ABI}, the board runs formats {formats} with ABI {caps.abi}"
    if len(wanted.blob) > caps.slot_bytes:
        return f"it has {len(wanted.blob)} bytes, a slot of the board takes {caps.slot_bytes}"
    if any(_suits(wanted, sensor) for sensor in caps.sensors):
        return ""
    there = "; ".join(
        f"{', '.join(sensor.channels)} at {sensor.scale:g} a count" for sensor in caps.sensors if sensor.format == I16
    )
    takes = f"{', '.join(wanted.channels)} at {wanted.scale:g} a count"
    return f"it is for another board: it takes {takes}, this one's sensors give {there or 'no counts'}"


def _suits(wanted: Wanted, sensor: Sensor) -> bool:
    same = math.isclose(sensor.scale, wanted.scale, rel_tol=SCALE_SLACK)
    return sensor.format == I16 and sensor.channels == wanted.channels and same


@dataclass(slots=True)
class Trial:
    """A model on trial on a board: how many predictions it takes, and until when."""

    needed: int
    until_s: float
    confidence_min: float
    windows: int = 0
    scores: float = 0.0

    @classmethod
    def begin(cls, wanted: Wanted, caps: Caps, now_s: float) -> Trial:
        """A board decides by itself after `trial_s`: no more windows are waited for than fit in before."""
        time_s = TRIAL_SHARE * caps.trial_s
        rates = [sensor.rate_hz for sensor in caps.sensors if _suits(wanted, sensor) and sensor.rate_hz]
        possible = math.floor((time_s * rates[0] - wanted.rows) / wanted.hop) if rates else wanted.windows
        return cls(max(1, min(wanted.windows, possible)), now_s + time_s, wanted.confidence_min)

    def count(self, score: int) -> None:
        """A prediction came."""
        self.windows += 1
        self.scores += score / 65_535

    def verdict(self, now_s: float) -> str | None:
        """Empty: it passed; a reason: it failed; None: not yet."""
        if self.windows >= self.needed:
            mean = self.scores / self.windows
            passed = mean >= self.confidence_min
            return "" if passed else f"its mean confidence was {mean:.3f}, at least {self.confidence_min:g} is asked"
        if now_s >= self.until_s:
            return f"{self.windows} predictions came in its trial, {self.needed} were expected"
        return None


class _Runner:
    """One board's thread."""

    def __init__(self, spec: BoardSpec, owner: Owner, taken: _Taken, stop: threading.Event) -> None:
        self._spec, self._owner, self._taken, self._stop = spec, owner, taken, stop
        self._uid = spec.uid
        self._caps: Caps | None = None
        self._model = ""  # SHA-256 of what it runs, as far as it is known
        self._port = ""
        self._error = self._said = ""
        self._state = "away"
        self._heard_s = 0.0
        self._lost_rows = self._timeless = self._restarts = self._reopened = 0
        self._board_counts: dict[str, int] = {}
        self._transfer: Transfer | None = None
        self._wish: Wanted | None = None
        self._trial: Trial | None = None
        self._failed: set[tuple[int, str]] = set()
        self._told: dict[tuple[int, str], str] = {}
        self._tries = 0
        self._update_until_s = self._again_s = 0.0
        self._ours: set[str] = set()
        self._waiting: set[int] = set()
        self._thread = threading.Thread(target=self._run, name=f"tinylcm-board-{spec.uid or spec.name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def status(self) -> BoardStatus | None:
        """None as long as nobody knows who it is."""
        if not self._uid:
            return None
        counters = {
            "lost_rows": self._lost_rows,
            "rows_without_time": self._timeless,
            "restarts": self._restarts,
            "reopened": self._reopened,
            **self._board_counts,
        }
        return BoardStatus(
            self._uid,
            self._spec.name,
            self._state,
            "" if self._caps is None else self._caps.fw,
            self._model,
            self._port,
            self._heard_s,
            self._error,
            counters,
        )

    # finding it -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait_s = WAIT_S[0]
        while not self._stop.is_set():
            try:
                with self._find() as link:
                    wait_s = WAIT_S[0]
                    self._serve(link)
            except BridgeError as error:
                if str(error) != self._error:
                    _log.warning("board %s: %s", self._name, error)
                self._error = str(error)
            except Exception:  # a bug of ours, or of the owner's, must not end a board for weeks
                _log.exception("board %s: unexpected error; it is opened anew", self._name)
                self._error = "unexpected error, see the log"
            finally:
                self._taken.release(self)
            self._state = "away"
            self._stop.wait(wait_s)
            wait_s = min(2 * wait_s, WAIT_S[1])

    @property
    def _name(self) -> str:
        return self._uid or self._spec.name or ", ".join(self._spec.ports) or "without a port"

    def _find(self) -> Link:
        """The link to the board.

        Raises:
            LinkError: it is on none of its ports.
        """
        problems = []
        paths = expand(self._spec.ports)
        if self._port in paths:  # where it was last
            paths.remove(self._port)
            paths.insert(0, self._port)
        for path in paths:
            if self._stop.is_set() or not self._taken.claim(self, path):
                continue
            try:
                link = self._open(path)
            except BridgeError as error:
                problems.append(str(error))
                continue
            uid = link.caps.uid
            if self._spec.uid in ("", uid) and self._taken.name(self, uid):
                if uid != self._uid:
                    self._forget(uid)
                self._port = path
                return link
            problems.append(f"{path} is board {uid}")
            link.close()
        where = ", ".join(self._spec.ports) or "the serial ports of this machine"
        raise LinkError(f"the board is not on {where}" + (f": {'; '.join(problems)}" if problems else ""))

    def _forget(self, uid: str) -> None:
        """Another board has come in the place of the one before: nothing that was known holds for it."""
        self._uid = uid
        self._transfer = self._trial = self._wish = None
        self._failed.clear()
        self._told.clear()
        self._ours.clear()
        self._board_counts = {}
        self._tries, self._again_s = 0, 0.0

    def _open(self, path: str) -> Link:
        baud = self._spec.baud
        link = Link(Port(path, baud or BAUD), bauds=(baud,) if baud else BAUDS, hello_s=HELLO_S)
        try:
            link.open()
        except BaseException:
            link.close()
            raise
        return link

    # serving it -----------------------------------------------------------------------------------------------

    def _serve(self, link: Link) -> None:
        self._reopened += 1
        self._error = ""
        self._know(link.caps)
        self._waiting = {sensor.stream for sensor in self._chosen(link.caps)}
        _log.info("board %s is on %s: firmware %s", self._uid, self._port, link.caps.fw or "unnamed")
        if self._transfer is not None:
            self._transfer.reconnected(link.session)
        opened_s = now_s = time.monotonic()
        hello_s, asked_s = now_s + HELLO_AGAIN_S, 0.0
        while not self._stop.is_set():
            now_s = time.monotonic()
            if now_s >= asked_s:
                asked_s = now_s + WANTED_S
                self._look(link, now_s)
            self._drive(link, now_s)
            if self._waiting and (link.protocol.clock.known or now_s > opened_s + CLOCK_S):
                for stream in sorted(self._waiting):
                    link.send(StreamRequest(stream=stream, on=True))
                self._waiting.clear()
            if now_s >= hello_s and link.protocol.idle:
                hello_s = now_s + HELLO_AGAIN_S
                link.send(HelloRequest(link.session))
            for event in link.poll(POLL_S):
                if self._transfer is not None:
                    self._transfer.take(event, time.monotonic())
                self._hear(link, event)

    def _chosen(self, caps: Caps) -> list[Sensor]:
        wanted = set(self._spec.streams)
        found = [sensor for sensor in caps.sensors if sensor.name in wanted or str(sensor.stream) in wanted]
        missing = wanted - {sensor.name for sensor in found} - {str(sensor.stream) for sensor in found}
        if missing:
            names = ", ".join(f"{sensor.name} ({sensor.stream})" for sensor in caps.sensors) or "none"
            _log.warning("board %s has no stream %s; it has %s", self._uid, ", ".join(sorted(missing)), names)
        return found

    def _know(self, caps: Caps) -> None:
        self._caps, self._model = caps, caps.model.sha256
        self._heard_s = time.monotonic()
        if self._state != "updating":
            self._state = "online"

    def _hear(self, link: Link, event: Event) -> None:
        self._heard_s = time.monotonic()
        if isinstance(event, Rows):
            self._rows(link, event)
        elif isinstance(event, Gap):
            self._lost_rows += event.rows
            sensor = link.caps.sensor(event.stream)
            if sensor is not None:
                self._owner.lost(self._uid, sensor, event.rows)
        elif isinstance(event, Received):
            self._received(link, event.message)
        elif isinstance(event, Restarted):
            self._restarts += 1
            _log.warning("board %s has restarted: %s", self._uid, event.caps.reset or "it does not say why")
            self._know(event.caps)
            self._waiting = {sensor.stream for sensor in self._chosen(event.caps)}
        elif isinstance(event, Answered) and isinstance(event.answer, Caps):
            self._know(event.answer)
        elif isinstance(event, Refused) and isinstance(event.request, StreamRequest):
            _log.warning("board %s: stream %d is refused: %s", self._uid, event.request.stream, event.error)
        elif isinstance(event, Unanswered) and isinstance(event.request, StreamRequest):
            self._waiting.add(event.request.stream)

    def _rows(self, link: Link, event: Rows) -> None:
        sensor = link.caps.sensor(event.stream)
        if sensor is None:
            return
        if not link.protocol.clock.known:
            self._timeless += len(event.values)
            return
        times_s = np.asarray(link.protocol.clock.host_us(event.times_us), dtype=np.float64) / 1e6
        self._owner.rows(self._uid, sensor, event.values, times_s)

    def _received(self, link: Link, message: object) -> None:
        if isinstance(message, Result):
            if self._model[:8] == message.model.to_bytes(4, "little").hex():
                if self._trial is not None:
                    self._trial.count(message.score)
                self._owner.result(self._uid, self._model, message)
        elif isinstance(message, Drift):
            self._owner.drift(self._uid, self._model, link.caps.sensor(message.stream), message)
        elif isinstance(message, Metrics):
            self._board_counts = {name: getattr(message, name) for name in Metrics.NAMES}
        elif isinstance(message, Log):
            _log.log(min(message.level, logging.ERROR), "board %s says: %s", self._uid, message.text)

    # its model ------------------------------------------------------------------------------------------------

    def _look(self, link: Link, now_s: float) -> None:
        """Compare what it runs with what it should run."""
        try:
            wanted = self._owner.wanted(self._uid, link.caps)
        except TinyLCMError as error:
            if str(error) != self._said:
                _log.warning("board %s keeps what it runs: %s", self._uid, error)
            self._said = str(error)
            return
        self._said = ""
        if self._transfer is not None:
            if wanted is not None and self._wish is not None and wanted.key == self._wish.key:
                return
            self._leave(link, "something else is wanted now")
        if wanted is None:
            if self._model and self._model in self._ours:
                self._ours.discard(self._model)
                link.send(RollbackRequest())
                link.send(HelloRequest(link.session))
            return
        if wanted.key in self._failed or now_s < self._again_s:
            return
        if reason := why_not(wanted, link.caps):
            self._failed.add(wanted.key)
            self._tell(wanted, "refused", reason)
            return
        self._ours.add(wanted.sha256)
        if self._model == wanted.sha256 and self._told.get(wanted.key) == "confirmed":
            return
        if link.caps.model.state == TRIAL and self._model != wanted.sha256:
            link.send(RollbackRequest())  # somebody else's, or of a life before: until it ends nothing is taken
            link.send(HelloRequest(link.session))
            self._again_s = now_s + WAIT_S[0]
            return
        self._wish = wanted
        self._transfer = Transfer(wanted.blob, session=link.session, confirm=False)
        self._update_until_s = now_s + UPDATE_S

    def _leave(self, link: Link, why: str) -> None:
        """Give up an update for another; what is on trial goes first, or the board takes nothing."""
        if self._trial is not None:
            link.send(RollbackRequest())
            link.send(HelloRequest(link.session))
        if self._transfer is not None:
            self._transfer.cancel(why)
        self._transfer = self._trial = self._wish = None
        self._state = "online"

    def _drive(self, link: Link, now_s: float) -> None:
        transfer, wanted = self._transfer, self._wish
        if transfer is None or wanted is None:
            return
        if now_s > self._update_until_s:
            transfer.cancel(f"it took longer than {UPDATE_S:g} s")
        link.drive(transfer)
        if transfer.state in (State.SENDING, State.BEGINNING) and self._state != "updating":
            self._state = "updating"
            self._tell(wanted, "staged")
        if transfer.waits and self._trial is None:
            self._model = wanted.sha256
            self._trial = Trial.begin(wanted, link.caps, now_s)
            self._update_until_s = self._trial.until_s + UPDATE_S
            self._tell(wanted, "trial")
        if self._trial is not None and transfer.waits:
            self._judge(link, transfer, wanted, now_s)
        if transfer.error is not None:
            self._failed_with(transfer.error, wanted, now_s)
        elif transfer.ended:
            self._model = wanted.sha256
            self._tell(wanted, "confirmed")
            self._tries = 0
        if transfer.ended:
            self._transfer = self._trial = self._wish = None
            self._state = "online"

    def _judge(self, link: Link, transfer: Transfer, wanted: Wanted, now_s: float) -> None:
        assert self._trial is not None
        verdict = self._trial.verdict(now_s)
        if verdict == "":
            transfer.confirm()
            link.drive(transfer)
        elif verdict is not None:
            self._failed.add(wanted.key)
            self._tell(wanted, "rolled_back", verdict)
            self._leave(link, verdict)

    def _failed_with(self, error: BridgeError, wanted: Wanted, now_s: float) -> None:
        cause = error.__cause__
        if self._trial is not None:
            self._failed.add(wanted.key)
            self._tell(wanted, "rolled_back", str(error))
        elif (isinstance(cause, RefusedError) and cause.code in _FINAL) or self._tries + 1 >= TRIES_MAX:
            self._failed.add(wanted.key)
            self._tell(wanted, "refused", str(error))
        else:
            self._tries += 1
            self._again_s = now_s + min(WAIT_S[0] * 2.0**self._tries, WAIT_S[1])
            _log.warning("board %s: %s; it is tried again", self._uid, error)

    def _tell(self, wanted: Wanted, state: str, reason: str = "") -> None:
        if self._told.get(wanted.key) != state:
            self._told[wanted.key] = state
            self._owner.stepped(self._uid, wanted, state, reason)


class _Taken:
    """Which port and which board is whose: two entries of a configuration never open the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ports: dict[str, object] = {}
        self._uids: dict[str, object] = {}

    def claim(self, who: object, port: str) -> bool:
        """Whether the port is free for one who has no other any more."""
        with self._lock:
            for mine in [path for path, owner in self._ports.items() if owner is who]:
                del self._ports[mine]
            return self._ports.setdefault(port, who) is who

    def name(self, who: object, uid: str) -> bool:
        """Whether nobody else has the board; then it is theirs, and no other is."""
        with self._lock:
            if self._uids.setdefault(uid, who) is not who:
                return False
            for mine in [name for name, owner in self._uids.items() if owner is who and name != uid]:
                del self._uids[mine]
            return True

    def reserve(self, who: object, uid: str) -> None:
        """A board that is configured by its uid is nobody else's."""
        with self._lock:
            self._uids[uid] = who

    def release(self, who: object) -> None:
        """Whoever it is has no port now; the board stays its own."""
        with self._lock:
            for mine in [path for path, owner in self._ports.items() if owner is who]:
                del self._ports[mine]


class Gateway:
    """All boards of a device.

    Args:
        specs: the boards as they are configured.
        owner: what the device does with them.
    """

    def __init__(self, specs: Sequence[BoardSpec], owner: Owner) -> None:
        self._stop = threading.Event()
        taken = _Taken()
        self._runners = [_Runner(spec, owner, taken, self._stop) for spec in specs]
        for spec, runner in zip(specs, self._runners, strict=True):
            if spec.uid:
                taken.reserve(runner, spec.uid)

    def start(self) -> None:
        """Look for the boards, in threads."""
        for runner in self._runners:
            runner.start()

    def statuses(self) -> list[BoardStatus]:
        """Every board that is known by its uid."""
        found = (runner.status() for runner in self._runners)
        return [status for status in found if status is not None]

    def close(self, timeout_s: float) -> None:
        """End the threads and give the ports up."""
        self._stop.set()
        until_s = time.monotonic() + timeout_s
        for runner in self._runners:
            runner.join(max(0.0, until_s - time.monotonic()))
