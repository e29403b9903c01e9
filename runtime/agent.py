"""The loop that joins disk, network and pipelines. `slots` and `sync` decide; only this does."""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import platform
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import psutil

from .backends import formats
from .checks import Fields
from .clock import Clock
from .commands import Args
from .config import DeviceConfig, TrialConfig
from .downlink import Downlink
from .errors import DeviceError, ModelError, ServerError, TinyLCMError, WireError
from .files import device_error, read_bounded, write_atomic
from .http import HttpClient
from .identity import Identity
from .journal import Journal
from .keys import BUILT_S
from .manifest import PACKAGE_BYTES_MAX
from .monitors import MonitorSet, build_monitors
from .package import Package
from .pipeline import Pipeline
from .probe import probe
from .remote_config import RemoteConfig
from .schedule import Schedule, parse_hours
from .slots import Event, Held, Slot, State, boot, check_rollback, mark_failed, revoke, step, unstage
from .store import SlotStore
from .sync import Known, Post, Sync, read_refusal
from .trial import PASSED, Counts, Trial, TrialBounds, p95
from .types import Json, Record
from .upload import Spool
from .version import __version__
from .wire import (
    SYNC_BYTES_MAX,
    SYNC_RECORDS_MAX,
    Anchor,
    Desired,
    DesiredModel,
    RunningModel,
    canonical_json,
)

_log = logging.getLogger("tinylcm")
ROUNDS_MAX: Final = 1000  # round trips of one sync while records are waiting
TICK_S: Final = 0.25
STALL_S: Final = 600.0  # a turn that takes longer is stuck: requests have their timeouts, and a download gets on
PERMANENT_ADVICE: Final = "the server does not know this device's key; enrol it again with a new join string"
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_KNOWN_BYTES_MAX: Final = 1 << 20


@functools.cache
def capabilities() -> dict[str, Json]:
    """What this machine is, as it is told to the server."""
    found = {"onnx": ("onnxruntime",), "tflite": ("ai_edge_litert", "tflite_runtime")}
    there = [name for name, modules in found.items() if any(map(importlib.util.find_spec, modules))]
    return {
        "machine": platform.machine(),
        "system": platform.system().lower(),
        "cpus": os.cpu_count() or 1,
        "ram_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "tinylcm": __version__,
        "backends": [*there, *(name for name in formats() if name not in found)],
    }


def _begin(sha256: str, pipeline: Pipeline, before_us: float = 0.0) -> Trial:
    return Trial(sha256, _counts(pipeline), before_us)


def _counts(pipeline: Pipeline) -> Counts:
    return Counts(pipeline.predictions, pipeline.failures, pipeline.alarms)


def _bounds(trial: TrialConfig) -> TrialBounds:
    return TrialBounds(
        windows=trial.windows,
        errors_max=trial.errors_max,
        latency_p95_us=trial.latency_p95_us,
        latency_factor=trial.latency_factor,
        confidence_min=trial.confidence_min,
        alarms_max=trial.alarms_max,
    )


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
        self._trials: dict[str, Trial] = {}
        self._next_metrics_s = clock.monotonic_s() + config.metrics_interval_s
        self._http: HttpClient | None = None
        self.also: Callable[[], object] | None = None  # what a device does with every tick
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
        }

    # Slots ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Count this start in every trial, and end trials that crash the device."""
        with self._lock:
            self._attempt(self.downlink.boot)
            for model in self._store.models():
                before = self._store.read(model)
                if before.state is State.STAGED:
                    before = unstage(before)  # a power cut during the probe: the package is asked for again
                    self._store.write(model, before)
                after = boot(before)
                if after != before:
                    self._store.write(model, after)
                if before.state is State.TRIAL and after.state is not State.TRIAL and before.active is not None:
                    self._report(model, before.active, "rolled_back", "the device restarted too often in its trial")
                self._enforce(model)

    def install(self, data: bytes, *, deployment: int = 0, model: str | None = None) -> Slot:
        """Stage, probe and put a package on trial.

        Raises:
            ModelError: it is not trusted, below the security floor, or failed its probe; the old model stays.
            DeviceError: no space or no permission; the old model stays.
        """
        with self._lock:
            package = self._add(data)
            name = package.manifest.name
            if model is not None and name != model:
                raise ModelError(f"the package is for model {name!r}, expected {model!r}")
            return self._stage(package, deployment)

    def _add(self, data: bytes) -> Package:
        """Keep a package, and act at once on what it says was revoked."""
        package = self._store.add(data)
        for model in self._store.models():
            self._enforce(model)
        return package

    def _enforce(self, model: str) -> None:
        """Leave a package that may not run any more for the one before, or say that there is no other."""
        before = self._store.read(model)
        revoked = self._store.revoked(before)
        if before.active is not None and before.active.sha256 in revoked and before.previous is not None:
            try:
                self._store.load(before.previous)
            except ModelError as error:  # what cannot run is no place to go back to
                revoked[before.previous.sha256] = str(error)
        after = revoke(before, revoked)
        if after.active is not None and after.active != before.active:
            self._activate(model, self._store.load(after.active))
        if after != before:
            self._store.write(model, after, collect=False)
        if before.active is None or before.active.sha256 not in revoked:
            return
        if after.active == before.active:
            _log.error(
                "%s %s runs on although it must not (%s): nothing else is here that may; install a newer package",
                model,
                before.active.version,
                revoked[before.active.sha256],
            )
        else:
            self._report(model, before.active, "rolled_back", revoked[before.active.sha256])

    def _stage(self, package: Package, deployment: int) -> Slot:
        name = package.manifest.name
        held = Held(package.sha256, package.manifest.version, deployment)
        if package.expired:
            _log.warning("the key that signed %s %s has expired by this device's clock", name, held.version)
        before = self._store.read(name)
        if package.manifest.security_counter < before.floor:
            reason = (
                f"its security counter is {package.manifest.security_counter}, this device takes {before.floor} and "
                "above: the publisher has revoked it"
            )
            self._store.write(name, mark_failed(before, held))
            self._report(name, held, "refused", reason)
            raise ModelError(f"{name} {held.version} is refused: {reason}")
        slot = step(before, Event.STAGE, held)
        self._store.write(name, slot)
        self._report(name, held, "staged")
        try:
            probe(
                self._store.package_path(held.sha256),
                timeout_s=self._config.trial.probe_timeout_s,
                memory_bytes=self._config.trial.probe_memory_bytes,
            )
            self._activate(name, package)
        except ModelError as error:
            self._store.write(name, step(slot, Event.PROBE_FAILED))
            self._report(name, held, "refused", str(error))
            raise
        slot = step(slot, Event.PROBE_PASSED)
        self._store.write(name, slot)
        self._report(name, held, "trial")
        return slot

    def _activate(self, model: str, package: Package) -> None:
        pipeline = self._pipelines.get(model)
        if pipeline is not None:
            before_us = p95([latency for latency, _, _ in pipeline.metrics.recent()])
            pipeline.swap(package)
            self._trials[model] = _begin(package.sha256, pipeline, before_us)

    def watch(self, model: str, pipeline: Pipeline) -> None:
        """Count a pipeline that has just been opened from its first window on, if its package is on trial."""
        slot = self._store.read(model)
        if slot.state is State.TRIAL and slot.active is not None:
            self._trials[model] = _begin(slot.active.sha256, pipeline)

    def _judge_trials(self) -> None:
        for model, pipeline in list(self._pipelines.items()):
            slot = self._store.read(model)
            if slot.state is not State.TRIAL or slot.active is None:
                continue
            trial = self._trials.get(model)
            if trial is None or trial.sha256 != slot.active.sha256:
                self._trials[model] = _begin(slot.active.sha256, pipeline)
                continue
            verdict = trial.judge(_bounds(self._config.trial), _counts(pipeline), pipeline.metrics.recent())
            if verdict == PASSED:
                self._store.write(model, step(slot, Event.TRIAL_PASSED))
                self._report(model, slot.active, "confirmed")
                self._enforce(model)  # from now on nobody goes back to a package that was revoked
            elif verdict is not None:
                self._revert(model, slot, Event.TRIAL_FAILED, verdict)

    def _revert(self, model: str, slot: Slot, event: Event, reason: str) -> Slot:
        after = step(slot, event)
        if after.active is not None:
            self._activate(model, self._store.load(after.active))
        self._store.write(model, after)
        if slot.active is not None:
            self._report(model, slot.active, "rolled_back", reason)
        return after

    def rollback(self, model: str) -> Slot:
        """Go back to the previous package because a person says so.

        Raises:
            ModelError: there is none, or it was revoked.
        """
        with self._lock:
            slot = self._store.read(model)
            check_rollback(slot, self._store.revoked(slot))
            return self._revert(model, slot, Event.ROLLBACK, "rolled back by hand")

    def _report(self, model: str, held: Held, state: str, reason: str = "") -> None:
        if reason:
            _log.warning("%s %s: %s: %s", model, held.version, state, reason)
        else:
            _log.info("%s %s: %s", model, held.version, state)
        self._journal.append(
            "events",
            "deployment",
            {
                "deployment": held.deployment,
                "model": model,
                "version": held.version,
                "sha256": held.sha256,
                "state": state,
                "reason": reason,
            },
        )

    # Metrics ----------------------------------------------------------------------------------------------

    def flush_metrics(self) -> None:
        """Journal a summary of every pipeline that did something."""
        for pipeline in list(self._pipelines.values()):
            summary = pipeline.take_summary()
            if summary is not None:
                self._journal.append("details", "summary", summary)

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
        self.sync.next_s = min(self.sync.next_s, now_s + config.server.sync_interval_s)
        self._next_metrics_s = min(self._next_metrics_s, now_s + config.metrics_interval_s)
        if self.reconfigured is not None:
            self.reconfigured(config)

    def _sync_soon(self, args: Args) -> Json:
        self.flush_metrics()
        self.sync.next_s = self._clock.monotonic_s()
        return None

    def _flush(self, args: Args) -> Json:
        self.flush_metrics()
        self._journal.flush()
        return None

    def _rollback(self, args: Args) -> Json:
        slot = self.rollback(str(args["model"]))
        return {"version": None if slot.active is None else slot.active.version}

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
            running=self._running(),
            capabilities=capabilities(),
            events=events,
            details=details,
            now_s=now_s,
            downlink_cursor=self.downlink.cursor,
        )

    def _running(self) -> list[RunningModel]:
        running = []
        for model in self._store.models():
            slot = self._store.read(model)
            if slot.active is not None:
                state = slot.under if slot.state is State.STAGED else slot.state
                running.append(RunningModel(model, slot.active.version, slot.active.sha256, str(state)))
        return running

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
                    self._adopt(wanted.model, slot, held)
            except ModelError as error:
                # The package is at fault: it is noted as failed and not fetched again for this deployment.
                _log.warning("deployment %d of %s: %s", wanted.deployment, wanted.model, error)
            except (DeviceError, ServerError, WireError) as error:
                failure = error  # to be tried again; the other models are still looked at
        if failure is not None:
            raise failure

    def _adopt(self, model: str, slot: Slot, held: Held) -> None:
        """The package that runs already is wanted by another deployment: nothing to do but to say so."""
        self._store.write(model, replace(slot, active=held))
        self._report(model, held, str(slot.state))

    def _install_desired(self, wanted: DesiredModel) -> None:
        held = Held(wanted.sha256, wanted.version, wanted.deployment)
        path = self._store.package_path(wanted.sha256)
        if path.exists():
            self._stage(self._store.load(held), wanted.deployment)
            return
        try:
            data = self._download(wanted)
            package = self._add(data)
            if (package.manifest.name, package.sha256) != (wanted.model, wanted.sha256):
                raise ModelError(
                    f"the server sent {package.manifest.name} ({package.sha256[:12]}), "
                    f"expected {wanted.model} ({wanted.sha256[:12]})"
                )
        except ModelError as error:
            self._store.write(wanted.model, mark_failed(self._store.read(wanted.model), held))
            self._report(wanted.model, held, "refused", str(error))
            raise
        self._stage(package, wanted.deployment)

    def _download(self, wanted: DesiredModel) -> bytes:
        """Fetch a package, going on where an earlier try stopped."""
        if not 0 < wanted.size <= PACKAGE_BYTES_MAX:
            raise ModelError(
                f"the server announces a package of {wanted.size} bytes, at most {PACKAGE_BYTES_MAX} are taken"
            )
        with self._store.part(wanted.sha256) as part:
            have = part.stat().st_size if part.exists() else 0
            if have > wanted.size:
                part.unlink()
                have = 0
            self._store.require_space(2 * wanted.size - have)
            if have < wanted.size:
                self._fetch(wanted, part, have)
            data = read_bounded(part, wanted.size)
            part.unlink()
        if len(data) != wanted.size:
            raise ServerError(f"the package ended after {len(data)} of {wanted.size} bytes")
        return data

    def _fetch(self, wanted: DesiredModel, part: Path, have: int) -> None:
        with self._client().download(wanted.url, have) as (status, headers, pieces):
            resumed = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
            resumes = (
                status == 206 and resumed is not None and (int(resumed[1]), int(resumed[3])) == (have, wanted.size)
            )
            if status not in (200, 206) or (status == 206 and not resumes):
                raise read_refusal(status, headers, b"".join(_bounded(pieces, 4096)))
            try:
                with part.open("ab" if resumes else "wb") as file:
                    for piece in _bounded(pieces, wanted.size - (have if resumes else 0)):
                        file.write(piece)
                        self._turned_s = self._clock.monotonic_s()
            except OSError as error:
                raise device_error(error, "downloading to") from error

    # The loop ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Do what is due: trials, metrics, sync. Failures are noted, logged and tried again; none escapes."""
        with self._lock:
            now_s = self._clock.monotonic_s()
            self._attempt(self._judge_trials)
            if now_s >= self._next_metrics_s:
                self._next_metrics_s = now_s + self._config.metrics_interval_s
                self._attempt(self.flush_metrics)
            self._attempt(self.downlink.tick)
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
            self.tick()
            self._turned_s = self._clock.monotonic_s()

    @property
    def is_turning(self) -> bool:
        """Whether `run` has come round, or a download got on, within `STALL_S`."""
        return self._clock.monotonic_s() - self._turned_s < STALL_S

    def close(self) -> None:
        """Judge trials a last time, note that this start ended well (only crashes count against one), disconnect."""
        with self._lock:
            self._attempt(self._judge_trials)
            for model in self._store.models():
                slot = self._store.read(model)
                if slot.boots:
                    self._store.write(model, replace(slot, boots=0))
            self._attempt(self.downlink.close)
        if self._http is not None:
            self._http.close()


def _bounded(pieces: Iterator[bytes], bytes_max: int) -> Iterator[bytes]:
    """A body's pieces, up to a size: a peer that sends for ever is cut off."""
    left = bytes_max
    for piece in pieces:
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            return
