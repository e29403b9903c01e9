"""A device: models from slots, a journal, sync, all behind a few calls that an application makes."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Final

from .agent import Agent
from .boards import Boards
from .capabilities import capabilities
from .capture import Capturer
from .checks import Fields
from .clock import Clock, SystemClock
from .commands import Args
from .config import DeviceConfig, ModelConfig, load_config
from .errors import ConfigError, DeviceError, ModelError, TinyLCMError, WireError
from .files import list_files, make_folder, read_bounded, write_atomic
from .http import HttpClient, check_url, fetch_ca
from .identity import Identity, Join, load_identity, new_identity, save_identity
from .journal import Journal, JournalLimits
from .keys import pin_fingerprint
from .loading import Options
from .manifest import PACKAGE_BYTES_MAX, Manifest
from .metrics import Metrics
from .pipeline import Pipeline
from .remote_config import RemoteConfig
from .slots import Slot
from .status import StatusServer
from .store import SlotStore
from .sync import read_refusal
from .system import SystemProbe
from .types import Json, Payload, Prediction, Stream
from .wire import Board, canonical_json, finite

_log = logging.getLogger("tinylcm")
CLOSE_TIMEOUT_S: Final = 10.0
STATES_BYTES_MAX: Final = 256 << 20  # of the monitors of one model


class _JournalSink:
    """What pipelines emit goes into the journal; a full journal is said once and never stops a prediction."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._warned = False

    def emit(self, stream: Stream, type: str, payload: Payload) -> None:
        try:
            future = self._journal.append(stream, type, payload)
            error = future.exception() if future.done() else None
        except TinyLCMError as refused:
            error = refused
        if error is not None and not self._warned:
            self._warned = True
            _log.error("the journal refuses records: %s", error)


class Model:
    """One of a device's models, whatever package is active: it changes between two predictions, not in one."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    @property
    def manifest(self) -> Manifest:
        """What the active package says of itself."""
        return self._pipeline.manifest

    @property
    def metrics(self) -> Metrics:
        """The counters of the active package."""
        return self._pipeline.metrics

    def infer(self, x: object) -> Prediction:
        """Predict one window: see `Pipeline.infer`."""
        return self._pipeline.infer(x)

    def stream(
        self, samples: Iterable[object], *, on_error: Callable[[TinyLCMError], object] | None = None
    ) -> Iterator[Prediction]:
        """Predict every window of a stream: see `Pipeline.stream`."""
        return self._pipeline.stream(samples, on_error=on_error)

    def infer_many(self, windows: Sequence[object]) -> list[Prediction]:
        """Predict several windows: see `Pipeline.infer_many`."""
        return self._pipeline.infer_many(windows)

    def astream(
        self,
        samples: AsyncIterable[object] | Iterable[object],
        *,
        on_error: Callable[[TinyLCMError], object] | None = None,
    ) -> AsyncIterator[Prediction]:
        """Predict every window of a stream without blocking the event loop: see `Pipeline.astream`."""
        return self._pipeline.astream(samples, on_error=on_error)

    @property
    def priority(self) -> int:
        """The niceness that the configuration asks for, for a `Worker`."""
        return self._pipeline.priority

    def count_overflow(self) -> None:
        """Count an item that was lost on its way to the model."""
        self._pipeline.count_overflow()

    @property
    def pipeline(self) -> Pipeline:
        """What runs the model, for `tinylcm.stream` of several models over one ring, and for `tinylcm.Worker`."""
        return self._pipeline


def journal_bytes(data: Path) -> dict[str, int]:
    """Bytes of the journal on disk, by stream."""
    sizes = {"events": 0, "details": 0}
    for stream in sizes:
        for path in list_files(data / "journal" / stream, "*.seg"):
            with suppress(FileNotFoundError):  # a running device gives segments back meanwhile
                sizes[stream] += path.stat().st_size
    return sizes


class Device:
    """Everything a device keeps, opened; made by `Device.open`."""

    def __init__(self, config: DeviceConfig, clock: Clock) -> None:
        make_folder(config.data)
        remote = RemoteConfig(config, clock)
        self.config = config = remote.merged()
        limits = config.journal
        self._store = SlotStore(config.data, config.data / "trust", clock.wall_s)
        self._pipelines: dict[str, Pipeline] = {}
        self._models: dict[str, Model] = {}
        self._clock = clock
        self.identity = load_identity(config.data / "identity.json")
        self.journal = Journal.open(
            config.data / "journal",
            JournalLimits(**{**asdict(limits), "urgent": frozenset(limits.urgent)}),
            clock,
        )
        try:
            self._sink = _JournalSink(self.journal)
            self._capturer = self._make_capturer() if self.config.capture.active else None
            self.agent = Agent(config, clock, self.journal, self._store, self._pipelines, self.identity, remote)
            self.agent.reconfigured = self._reconfigure
            self.agent.downlink.handlers |= {"collect_status": self._collect_status, "capture": self._capture}
            self.agent.start()
            self._install_configured()
        except BaseException:
            self.journal.close(CLOSE_TIMEOUT_S)
            raise
        self.agent.also = self.flush_capture
        self.boards: Boards | None = None
        if config.boards:  # until they are looked for: none that is configured is gone
            away = [Board(uid=board.uid, name=board.name, state="away") for board in config.boards if board.uid]
            self.agent.boards = lambda: away
        self._opening = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._system = SystemProbe(config.data, clock)
        self._status = StatusServer(config.data, self.status)

    @classmethod
    def open(cls, config: str | Path | DeviceConfig, *, clock: Clock | None = None, background: bool = True) -> Device:
        """Open a device.

        Args:
            config: path of device.toml, or the configuration itself.
            clock: time, by default the machine's.
            background: run the agent in a thread of its own; otherwise the application calls `agent.tick`.

        Raises:
            ConfigError: the configuration is wrong.
            DeviceError: the data folder cannot be written, or another process has it open.
        """
        loaded = config if isinstance(config, DeviceConfig) else load_config(config)
        device = cls(loaded, clock or SystemClock())
        if background:
            device._start()
        return device

    def _start(self) -> None:
        if self.config.boards:
            self._open_boards()
        self._thread = threading.Thread(target=self.agent.run, args=(self._stop,), name="tinylcm-agent", daemon=True)
        self._thread.start()
        self._status.start()

    def _open_boards(self) -> None:
        """Look for the boards behind this device, from threads of theirs."""
        self.boards = Boards(
            self.config.boards,
            clock=self._clock,
            store=self._store,
            sink=self._sink,
            open_model=self.model,
            trial=self.config.trial,
        )
        self.agent.boards, self.agent.behind = self.boards.boards, self.boards
        self.boards.start()

    def _make_capturer(self) -> Capturer:
        """What keeps inputs; its budget goes on over restarts."""
        key = b"" if self.identity is None else self.identity.key.encode()
        salt = hashlib.blake2b(key, person=b"tinylcm-capture").digest()
        capturer = Capturer(
            self.config.capture,
            lambda payload: self._sink.emit("details", "sample", payload),
            self._clock,
            salt=salt,
            keep_blob=self._keep_blob,
        )
        path = self.config.data / "capture.json"
        if path.is_file():
            try:
                capturer.restore(json.loads(read_bounded(path, 1 << 16)))
            except (ValueError, TinyLCMError) as error:
                _log.warning("%s is damaged (%s): nothing is kept until its budget has grown again", path, error)
                capturer.restore(None)
        return capturer

    def _keep_blob(self, data: bytes) -> bool:
        """Put the bytes of a window that no record can hold where the agent uploads them from."""
        try:
            self.agent.blobs.keep(data)
        except DeviceError as error:
            _log.warning("a captured window is not kept: %s", error)
            return False
        return True

    def flush_capture(self, *, force: bool = False) -> None:
        """Journal the inputs that wait to be kept, and note what is left of their budget."""
        if self._capturer is not None and self._capturer.flush(force=force):
            write_atomic(self.config.data / "capture.json", canonical_json(self._capturer.state()) + b"\n")

    def _install_configured(self) -> None:
        for name, model in self.config.models.items():
            if model.package is None or self._store.read(name).active is not None:
                continue
            data = read_bounded(model.package, PACKAGE_BYTES_MAX)
            try:
                self.agent.install(data, model=name)
            except DeviceError as error:
                if all(slot.active is None for slot in self.slots().values()):
                    raise
                self.agent.last_error = str(error)
                _log.error("%s is not installed, the other models run: %s", name, error)

    def model(self, name: str) -> Model:
        """The model that the active slot holds.

        Raises:
            ConfigError: no package of this name is on the device yet.
            ModelError: the package is damaged and there is no earlier one.
        """
        with self._opening:
            return self._model(name)

    def _model(self, name: str) -> Model:
        if name not in self._models:
            slot = self._store.read(name)
            if slot.active is None:
                known = ", ".join(self._store.models()) or "none"
                raise ConfigError(
                    f"there is no model {name!r} on this device (there is: {known}); deploy it from the server and "
                    "sync, or install a package with `tinylcm package install`"
                )
            try:
                package = self._store.load(slot.active)
            except ModelError as error:
                _log.error("%s; going back to the earlier package", error)
                slot = self.agent.rollback(name)
                if slot.active is None:
                    raise
                package = self._store.load(slot.active)
            pipeline = Pipeline(
                package,
                sink=self._sink,
                options=self._options(name),
                capture=self._capturer,
                ring_samples=self.config.ring_samples,
                clock=self._clock,
            )
            self._restore_monitors(name, pipeline)
            self._pipelines[name] = pipeline
            self.agent.watch(name, pipeline)
            self._models[name] = Model(pipeline)
        return self._models[name]

    def _options(self, name: str) -> Options:
        model = self.config.models.get(name, ModelConfig())
        return Options(
            threads=model.threads or self.config.threads,
            spinning=model.spinning,
            arena=model.arena,
            priority=model.priority,
            latency_us=model.latency_us,
            memory_bytes=model.memory_bytes,
        )

    def _monitors_file(self, name: str) -> Path:
        return self.config.data / "monitors" / f"{name}.state"

    def _restore_monitors(self, name: str, pipeline: Pipeline) -> None:
        """Let the monitors go on where the last close left them; whatever is wrong with that, they can begin anew."""
        path = self._monitors_file(name)
        if not path.is_file():
            return
        try:
            anew = pipeline.restore_monitors(read_bounded(path, STATES_BYTES_MAX))
        except TinyLCMError as error:
            _log.warning("the monitors of %s begin anew: %s", name, error)
            return
        if anew:
            _log.info("monitors of %s that begin anew: %s", name, ", ".join(anew))

    def _keep_monitors(self) -> None:
        for name, pipeline in self._pipelines.items():
            try:
                make_folder(self._monitors_file(name).parent)
                write_atomic(self._monitors_file(name), pipeline.monitors_state())
            except (OSError, TinyLCMError) as error:
                _log.warning("the monitors of %s will begin anew: %s", name, error)

    def wait_for_model(self, name: str, timeout_s: float) -> Model:
        """Wait until a deployment has brought a model.

        Raises:
            ConfigError: it did not come in time.
        """
        deadline = self._clock.monotonic_s() + timeout_s
        while self._store.read(name).active is None and self._clock.monotonic_s() < deadline:
            if self._stop.wait(0.05):
                break
        return self.model(name)

    def status(self) -> dict[str, object]:
        """What this device does now: open models' metrics since their start, the machine, the journal, the capture."""
        self._system.clock_offset_s = self.agent.clock_offset_s
        models = {}
        for name, pipeline in list(self._pipelines.items()):
            models[name] = {"version": pipeline.manifest.version, **pipeline.metrics.rollup()}
        return {
            "models": models,
            "system": asdict(self._system.read()),
            "journal_bytes": journal_bytes(self.config.data),
            "journal": asdict(self.journal.stats()),
            "capture": None if self._capturer is None else self._capturer.stats(),
            "boards": {} if self.boards is None else self.boards.status(),
            "last_error": self.agent.last_error,
        }

    def reload(self, config: DeviceConfig) -> None:
        """Take another configuration of its own while it runs, as far as a server may set one; the rest counts from the
        next start on.

        Raises:
            ConfigError: with what the server has set it is none; the one before is in force.
        """
        self.agent.rebase(config)

    @property
    def is_well(self) -> bool:
        """Whether its agent and its journal turn; what a watchdog wants to know."""
        agent = self._thread is None or (self._thread.is_alive() and self.agent.is_turning)
        return agent and self.journal.is_running

    def _reconfigure(self, config: DeviceConfig) -> None:
        """Take what the server set; the budgets of models at the next start."""
        self.config = config
        if self.boards is not None:
            self.boards.trial = config.trial
        self.journal.commit_within(config.journal.commit_interval_s)
        if config.capture.active or self._capturer is not None:
            self._open_capturer().change(config.capture)

    def _open_capturer(self) -> Capturer:
        if self._capturer is None:
            self._capturer = self._make_capturer()
            for pipeline in list(self._pipelines.values()):
                pipeline.keep_windows(self._capturer)
        return self._capturer

    def _capture(self, args: Args) -> Json:
        self._open_capturer().ask(int(str(args["windows"])), str(args["model"]))
        return None

    def _collect_status(self, args: Args) -> Json:
        return finite(self.status())

    def slots(self) -> dict[str, Slot]:
        """Every model's slot."""
        return {name: self._store.read(name) for name in self._store.models()}

    def label(self, prediction_id: str, label: str) -> None:
        """Tell the ground truth of a prediction when it comes; it is journalled at once and synced.

        Raises:
            DeviceError: the journal refuses it: its budget for events is used up.
            WireError: one of the texts is too long.
        """
        future = self.journal.append("events", "label", {"prediction": prediction_id, "label": label})
        if future.done():  # only a refusal is known at once; being durable takes the disk's time
            future.result()

    def sync(self, *, progress: Callable[[int], object] | None = None) -> int:
        """Sync now; returns the number of records that the server acknowledged.

        Raises:
            ServerError: unreachable or refused; the records stay in the journal.
            WireError: what answered is no TinySphere.
        """
        self.agent.flush_metrics()
        self.journal.flush(CLOSE_TIMEOUT_S)
        return self.agent.sync_now(progress=progress)

    def close(self) -> None:
        """Stop the agent, journal the last metrics and close; bounded in time."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)
            self._thread = None
        self._status.close()
        if self.boards is not None:
            self.boards.close()
        try:
            self._keep_monitors()
            self.flush_capture(force=True)
            self.agent.flush_metrics()
        finally:
            self.agent.close()
            self.journal.close(CLOSE_TIMEOUT_S)

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def enrol(config: DeviceConfig, join_string: str, *, serial: str = "", insecure: bool = False) -> Identity:
    """Make this device known to a server.

    The secret is made and stored before the server hears of it, so a call that was cut off can be repeated with the
    same join string and gives the same device.

    Args:
        serial: by which the device may have been announced to the server, or empty.

    Raises:
        ConfigError: the string is no join string, or the device is enrolled elsewhere.
        ServerError: the server refused the token, with its reason, or cannot be reached.
        DeviceError: the identity cannot be stored.
    """
    join = Join.parse(join_string)
    check_url(join.url, insecure=insecure or config.server.insecure)
    make_folder(config.data)
    path = config.data / "identity.json"
    identity = load_identity(path)
    if identity is not None and identity.device_id and identity.url != join.url:
        raise ConfigError(f"this device is {identity.device_id} of {identity.url}; remove {path} to enrol it elsewhere")
    if identity is None or identity.url != join.url:
        ca_file = config.server.ca_file
        if join.ca and not ca_file:
            ca_path = config.data / "ca.pem"
            write_atomic(ca_path, fetch_ca(join.url, join.ca, config.server))
            ca_file = str(ca_path.resolve())
        identity = new_identity(join, ca_file)
        save_identity(path, identity)
    identity = identity.enrolled(_ask(config, join, identity, serial, insecure))
    pin_fingerprint(config.data / "trust", join.root)
    save_identity(path, identity)
    return identity


def _ask(config: DeviceConfig, join: Join, identity: Identity, serial: str, insecure: bool) -> str:
    server = replace(config.server, insecure=insecure or config.server.insecure)
    client = HttpClient(join.url, server, ca_file=identity.ca_file)
    body = canonical_json(
        {
            "token": join.token,
            "name": config.name or socket.gethostname(),
            "secret_sha256": identity.secret_sha256,
            "capabilities": capabilities(),
            **({"serial": serial} if serial else {}),
        }
    )
    try:
        answer = client.request("POST", "/api/v1/devices/enrol", body, {"Content-Type": "application/json"})
    finally:
        client.close()
    if answer.status not in (200, 201):
        raise read_refusal(answer.status, answer.headers, answer.body)
    try:
        return Fields(json.loads(answer.body), "enrolment", WireError).text("device_id", length_min=1)
    except ValueError as error:
        raise WireError(f"the answer to the enrolment is not JSON: {error}") from error
