"""The loop that joins disk, network and pipelines."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from .capabilities import capabilities
from .checks import Fields
from .clock import Clock
from .commands import Args
from .config import DeviceConfig
from .downlink import Downlink
from .download import download
from .errors import DeviceError, ModelError, ServerError, TinyLCMError, WireError
from .files import read_bounded, write_atomic
from .http import HttpClient
from .identity import Identity
from .installer import Installer
from .journal import Journal
from .keys import BUILT_S
from .logs import LogRecords
from .monitors import MonitorSet, build_monitors
from .pipeline import Pipeline
from .rekey import rekey
from .remote_config import RemoteConfig
from .schedule import Schedule, parse_hours
from .slots import Held, Slot
from .store import SlotStore
from .sync import Known, Post, Sync, read_refusal
from .types import Json, Record
from .upload import Spool
from .wire import (
    SYNC_BYTES_MAX,
    SYNC_RECORDS_MAX,
    Anchor,
    Board,
    Desired,
    DesiredModel,
    canonical_json,
)

_log = logging.getLogger("tinylcm")
ROUNDS_MAX: Final = 1000  # round trips of one sync while records are waiting
TICK_S: Final = 0.25
STALL_S: Final = 600.0  # a turn that takes longer is stuck: requests have their timeouts, and a download gets on
PERMANENT_ADVICE: Final = "the server does not know this device's key; enrol it again with a new join string"
_KNOWN_BYTES_MAX: Final = 1 << 20


class Behind(Protocol):
    """Whoever is the gateway of boards: see `tinylcm.boards`. Called by the agent, one call at a time."""

    def tick(self, slots: Installer) -> None:
        """Look at the slots, and settle what the boards have decided."""
        ...

    def flush(self) -> None:
        """Journal what the boards have predicted."""
        ...


class Agent:
    """Metrics into the journal, the journal to the server, packages from it.

    Args:
        config: limits and intervals.
        clock: time.
        journal: the durable store.
        store: packages and slots.
        pipelines: what is open now; the agent swaps their models.
        identity: who this device is, or None when it never enrolled: then nothing is sent.
        remote: what the server set of the configuration; by default what `config.data` has of it.

    `tick` and `sync_now` may be called from any thread; a lock makes each whole.
    """

    def __init__(
        self,
        config: DeviceConfig,
        clock: Clock,
        journal: Journal,
        store: SlotStore,
        pipelines: Mapping[str, Pipeline],
        identity: Identity | None,
        remote: RemoteConfig | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._journal = journal
        self._store = store
        self._pipelines = pipelines
        self._identity = identity
        self._lock = threading.RLock()
        self._known_path = config.data / "server.json"
        self._installer = Installer(config.trial, journal, store, pipelines)
        self._next_metrics_s = clock.monotonic_s() + config.metrics_interval_s
        self._http: HttpClient | None = None
        self.also: Callable[[], object] | None = None  # what a device does with every tick
        self.boards: Callable[[], Sequence[Board]] | None = None  # the boards behind this device, as they are now
        self.behind: Behind | None = None  # what brings packages to them, and their predictions here
        self.logs = LogRecords(journal.append, clock, config.log)
        self.clock_offset_s: float | None = None
        self.last_error = ""
        self.last_sync_s: float | None = None
        self.sync = Sync(
            interval_s=config.server.sync_interval_s,
            backoff_min_s=config.server.backoff_min_s,
            backoff_max_s=config.server.backoff_max_s,
            known=self._load_known(),
            format=config.server.format,
            gzip=config.server.gzip,
        )
        self.blobs = Spool(config.data / "blobs")
        self.schedule = Schedule(
            metered=config.server.metered,
            details_interval_s=config.server.details_interval_s,
            details_hours=parse_hours(config.server.details_hours),
            bytes_per_day=config.server.bytes_per_day,
        )
        self._turned_s = clock.monotonic_s()
        self.reconfigured: Callable[[DeviceConfig], object] | None = None  # what a device does with a new configuration
        owner = "" if identity is None else identity.device_id
        remote = remote or RemoteConfig(config, clock)
        self.downlink = Downlink(config, clock, journal, remote, owner, self._reconfigure)
        self.downlink.handlers |= {
            "sync_now": self._sync_soon,
            "flush": self._flush,
            "rollback": self._rollback,
            "reset_monitors": self._reset_monitors,
            "rotate_key": lambda args: self.rotate_key(),
            "log_level": self._log_level,
        }

    # Slots ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Count this start in every trial, and end trials that crash the device."""
        with self._lock:
            if self._identity is not None and self._identity.device_id:
                self.logs.start()  # of a device without a server nobody would read them
            self._attempt(self.downlink.boot)
            self._installer.boot()

    def install(self, data: bytes, *, deployment: int = 0, model: str | None = None) -> Slot:
        """Stage, probe and put a package on trial.

        Raises:
            ModelError: it is not trusted, below the security floor, or failed its probe; the old model stays.
            DeviceError: no space or no permission; the old model stays.
        """
        with self._lock:
            package = self._installer.add(data)
            name = package.manifest.name
            if model is not None and name != model:
                raise ModelError(f"the package is for model {name!r}, expected {model!r}")
            return self._installer.stage(package, deployment)

    def watch(self, model: str, pipeline: Pipeline) -> None:
        """Count a pipeline that has just been opened from its first window on, if its package is on trial."""
        self._installer.watch(model, pipeline)

    def rollback(self, model: str) -> Slot:
        """Go back to the previous package because a person says so.

        Raises:
            ModelError: there is none, or it was revoked.
        """
        with self._lock:
            return self._installer.rollback(model)

    # Metrics ----------------------------------------------------------------------------------------------

    def flush_metrics(self) -> None:
        """Journal a summary of every pipeline that did something."""
        for pipeline in list(self._pipelines.values()):
            for summary in pipeline.take_summaries():
                self._journal.append("details", "summary", summary)
        if self.behind is not None:
            self.behind.flush()

    # Commands and configuration -----------------------------------------------------------------------------

    def rebase(self, config: DeviceConfig) -> None:
        """Take another device.toml, with what the server has set over it.

        Raises:
            ConfigError: together they are no configuration; nothing was changed.
        """
        with self._lock:
            self.downlink.rebase(config)

    def _reconfigure(self, config: DeviceConfig) -> None:
        now_s = self._clock.monotonic_s()
        self._config, self.sync.interval_s = config, config.server.sync_interval_s
        self._installer.trial = config.trial
        self.logs.configure(config.log)
        self.sync.next_s = min(self.sync.next_s, now_s + config.server.sync_interval_s)
        self._next_metrics_s = min(self._next_metrics_s, now_s + config.metrics_interval_s)
        if self.reconfigured is not None:
            self.reconfigured(config)

    def _sync_soon(self, args: Args) -> Json:
        self.flush_metrics()
        self.sync.next_s = self._clock.monotonic_s()
        return None

    def _log_level(self, args: Args) -> Json:
        level, for_s = str(args["level"]), float(str(args["for_s"]))
        self.logs.override(level, for_s)
        return {"level": level, "for_s": for_s}

    def _flush(self, args: Args) -> Json:
        self.flush_metrics()
        self.logs.tick()
        self._journal.flush()
        return None

    def _rollback(self, args: Args) -> Json:
        slot = self.rollback(str(args["model"]))
        return {"version": None if slot.active is None else slot.active.version}

    def rotate_key(self) -> None:
        """Have another key for the server.

        Raises:
            ServerError: it cannot be reached, refuses, or this device is not enrolled; the present key stays.
            DeviceError: the identity cannot be stored; the present key stays.
        """
        with self._lock:
            client = self._client()
            assert self._identity is not None
            self._identity = rekey(self._config.data / "identity.json", self._identity, client)
            self._http = None
            client.close()
            _log.info("this device has another key")

    def _reset_monitors(self, args: Args) -> Json:
        pipeline = self._pipelines.get(str(args["model"]))
        if pipeline is None:
            raise ModelError(f"model {args['model']!r} is not open on this device")
        manifest = pipeline.manifest
        pipeline.restore_monitors(MonitorSet(manifest, build_monitors(manifest)).to_state())
        return {"version": manifest.version}

    # Sync -------------------------------------------------------------------------------------------------

    def _load_known(self) -> Known:
        if not self._known_path.exists():
            return Known()
        try:
            fields = Fields(json.loads(read_bounded(self._known_path, _KNOWN_BYTES_MAX)), "server.json", DeviceError)
            return Known(fields.text("server_instance"), fields.natural("generation"))
        except (ValueError, TinyLCMError) as error:
            _log.warning("%s is damaged (%s); the server is asked for the whole desired state", self._known_path, error)
            return Known()

    def _save_known(self, known: Known) -> None:
        document = {"server_instance": known.server_instance, "generation": known.generation}
        write_atomic(self._known_path, canonical_json(document) + b"\n", mode=0o600)

    def _client(self) -> HttpClient:
        if self._identity is None or not self._identity.device_id:
            raise ServerError("this device is not enrolled; run `tinylcm enrol JOIN_STRING`", permanent=True)
        if self._http is None:
            self._http = HttpClient(
                self._identity.url, self._config.server, key=self._identity.key, ca_file=self._identity.ca_file
            )
        return self._http

    def sync_now(self, *, progress: Callable[[int], object] | None = None, everything: bool = True) -> int:
        """Sync until nothing is waiting; returns the number of records that the server acknowledged.

        Args:
            progress: told the records acknowledged so far.
            everything: details too when their schedule lets them wait, because a person wants it so.

        Raises:
            ServerError: it could not be reached or refused; nothing is lost, the records stay.
            WireError: what answered is no TinySphere.
        """
        settled = 0
        for _ in range(ROUNDS_MAX):
            with self._lock:
                count, waiting = self._round_trip(everything)
            settled += count
            if progress is not None:
                progress(settled)
            if not waiting:
                break
        if everything or self.schedule.allows_details(self._clock.monotonic_s(), self._minute()):
            self._send_blobs()
        return settled

    def _send_blobs(self) -> None:
        """Upload what no record can hold. Its failure is not that of the sync: the records are settled."""
        if not self.blobs.pending():
            return
        try:
            now_s = self._clock.monotonic_s()
            self.blobs.send(
                self._client(), progress=lambda count: self.schedule.note(now_s, count, details_ended=False)
            )
        except (ServerError, DeviceError) as error:
            self.last_error = f"a blob could not be uploaded and waits: {error}"
            _log.warning("%s", self.last_error)

    def _batch(self, has_details: bool, now_s: float) -> tuple[Post, int]:
        """What to post next, and how many records it carries."""
        bytes_max = self.sync.batch_bytes
        events = self._journal.read("events", SYNC_RECORDS_MAX // 2, bytes_max // 2)
        details = []
        if has_details:
            rest = bytes_max // 2 if events else bytes_max
            details = self._journal.read("details", SYNC_RECORDS_MAX - len(events), rest)
        post = self._request(events, details, now_s)
        while len(post.body) > SYNC_BYTES_MAX and len(events) + len(details) > 1:
            # JSON can be several times what the journal counts: send the older half.
            events, details = events[: (len(events) + 1) // 2], details[: len(details) // 2]
            post = self._request(events, details, now_s)
        return post, len(events) + len(details)

    def _round_trip(self, everything: bool) -> tuple[int, bool]:
        now_s = self._clock.monotonic_s()
        has_details = everything or self.schedule.allows_details(now_s, self._minute())
        post, sent = self._batch(has_details, now_s)
        try:
            answer = self._client().request("POST", "/api/v1/sync", post.body, post.headers)
            if answer.status != 200:
                raise read_refusal(answer.status, answer.headers, answer.body)
        except ServerError as error:
            self.sync.failed(now_s, error)
            self.last_error = f"{error}; {PERMANENT_ADVICE}" if error.permanent else str(error)
            raise
        known = self.sync.known
        self.schedule.note(now_s, len(post.body) + len(answer.body), details_ended=False)
        try:
            outcome = self.sync.receive(answer.body, answer.headers, now_s)
        except WireError as error:
            self.last_error = str(error)
            raise
        for stream, (epoch, seq) in outcome.acked.items():
            self._journal.acknowledge(stream, epoch, seq)
        for refused in outcome.refused:
            _log.warning(
                "the server refused %s record %s-%d: %s", refused.stream, refused.epoch, refused.seq, refused.reason
            )
        self.last_error, self.last_sync_s = "", now_s
        self.clock_offset_s = outcome.server_time - self._clock.wall_s()
        answered = self.downlink.answered
        self._attempt(lambda: self.downlink.receive(outcome.downlink))
        if outcome.desired is not None:
            try:
                self._apply(outcome.desired)
            except TinyLCMError:
                # Not applied: ask for it again, from the state that was applied last.
                self.sync.known = Known(
                    outcome.known.server_instance, known.generation if not outcome.server_changed else 0
                )
                raise
        if self.sync.known != known:
            self._save_known(self.sync.known)
        self._attempt(self.downlink.tick)
        if not outcome.acked and self.downlink.answered == answered:
            return 0, False
        is_over = has_details and not self._journal.read("details", 1, 1)
        if is_over:
            self.schedule.note(now_s, 0, details_ended=True)
        waiting = bool(self._journal.read("events", 1, 1)) or (has_details and not is_over)
        return sent if outcome.acked else 0, waiting

    def _minute(self) -> int | None:
        """Of the local day, by this machine's clock as the server corrected it; None while neither is believed."""
        wall_s = self._clock.wall_s() + (self.clock_offset_s or 0.0)
        if self.clock_offset_s is None and wall_s < BUILT_S:
            return None
        local = time.localtime(wall_s)
        return 60 * local.tm_hour + local.tm_min

    def _request(self, events: list[Record], details: list[Record], now_s: float) -> Post:
        return self.sync.request(
            boot=self._clock.boot,
            anchor=Anchor(self._clock.boot_ns(), self._clock.wall_s()),
            running=self._installer.running(),
            capabilities=capabilities(),
            events=events,
            details=details,
            now_s=now_s,
            downlink_cursor=self.downlink.cursor,
            boards=() if self.boards is None else self.boards(),
        )

    def _apply(self, desired: Desired) -> None:
        failure: TinyLCMError | None = None
        try:
            self.downlink.configure(desired.config)
        except DeviceError as error:
            failure = error
        for wanted in desired.models:
            slot = self._store.read(wanted.model)
            held = Held(wanted.sha256, wanted.version, wanted.deployment)
            try:
                if slot.wants(held):
                    self._install_desired(wanted)
                elif slot.active is not None and slot.active.sha256 == held.sha256 and slot.active != held:
                    self._installer.adopt(wanted.model, slot, held)
            except ModelError as error:
                # The package is at fault: it is noted as failed and not fetched again for this deployment.
                _log.warning("deployment %d of %s: %s", wanted.deployment, wanted.model, error)
            except (DeviceError, ServerError, WireError) as error:
                failure = error  # to be tried again; the other models are still looked at
        if failure is not None:
            raise failure

    def _install_desired(self, wanted: DesiredModel) -> None:
        held = Held(wanted.sha256, wanted.version, wanted.deployment)
        path = self._store.package_path(wanted.sha256)
        if path.exists():
            self._installer.stage(self._store.load(held), wanted.deployment)
            return
        try:
            data = download(self._client(), self._store, wanted, self._got_on)
            package = self._installer.add(data)
            if (package.manifest.name, package.sha256) != (wanted.model, wanted.sha256):
                raise ModelError(
                    f"the server sent {package.manifest.name} ({package.sha256[:12]}), "
                    f"expected {wanted.model} ({wanted.sha256[:12]})"
                )
        except ModelError as error:
            self._installer.refuse(wanted.model, held, str(error))
            raise
        self._installer.stage(package, wanted.deployment)

    # The loop ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due: trials, metrics, sync. Failures are noted, logged and tried again; none escapes."""
        with self._lock:
            now_s = self._clock.monotonic_s()
            self._attempt(self._installer.judge)
            if self.behind is not None:
                self._attempt(partial(self.behind.tick, self._installer))
            if now_s >= self._next_metrics_s:
                self._next_metrics_s = now_s + self._config.metrics_interval_s
                self._attempt(self.flush_metrics)
            self._attempt(self.downlink.tick)
            self._attempt(self.logs.tick)
            if self.also is not None:
                self._attempt(self.also)
        if self._identity is not None and self._identity.device_id and now_s >= self.sync.next_s:
            self._attempt(lambda: self.sync_now(everything=False))

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except TinyLCMError as error:
            if str(error) != self.last_error:
                _log.warning("%s", error)
            self.last_error = str(error)
            self.sync.next_s = max(self.sync.next_s, self._clock.monotonic_s() + TICK_S)

    def run(self, stop: threading.Event) -> None:
        """Tick until told to stop."""
        while not stop.wait(TICK_S):
            try:
                self.tick()
            except Exception as error:  # a bug of ours must not silence a device for weeks
                _log.exception("unexpected error; the agent goes on")
                with self._lock:
                    self._attempt(partial(self.downlink.give_back, f"{type(error).__name__}: {error}"))
            self._got_on()

    def _got_on(self) -> None:
        self._turned_s = self._clock.monotonic_s()

    @property
    def is_turning(self) -> bool:
        """Whether `run` has come round, or a download got on, within `STALL_S`."""
        return self._clock.monotonic_s() - self._turned_s < STALL_S

    def close(self) -> None:
        """Judge trials a last time, note that this start ended well (only crashes count against one), disconnect."""
        with self._lock:
            self._attempt(self._installer.judge)
            self._installer.close()
            self._attempt(self.downlink.close)
            self.logs.close()
        if self._http is not None:
            self._http.close()
