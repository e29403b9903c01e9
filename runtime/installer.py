"""What each model's slots hold: packages in, trials judged, back when one fails. `slots` decides; this acts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from .capabilities import capabilities
from .config import TrialConfig
from .errors import DeviceError, ModelError
from .journal import Journal
from .package import Package
from .pipeline import Pipeline
from .probe import probe
from .requires import unmet
from .slots import Event, Held, Slot, State, boot, check_rollback, mark_failed, revoke, step, unstage
from .store import SlotStore
from .trial import PASSED, Counts, Trial, TrialBounds, p95
from .wire import RunningModel

_log = logging.getLogger("tinylcm")


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


class Installer:
    """Puts packages into slots and judges their trials.

    Args:
        trial: bounds of a trial and limits of a probe; may be set anew.
        journal: told of every state that a deployment reaches.
        store: packages and slots.
        pipelines: what is open now; their models are swapped.

    Its caller lets one thread in at a time.
    """

    def __init__(
        self, trial: TrialConfig, journal: Journal, store: SlotStore, pipelines: Mapping[str, Pipeline]
    ) -> None:
        self.trial = trial
        self._journal = journal
        self._store = store
        self._pipelines = pipelines
        self._trials: dict[str, Trial] = {}

    def boot(self) -> None:
        """Count this start in every trial, and end trials that crash the device."""
        for model in self._store.models():
            before = self._store.read(model)
            if before.state is State.STAGED:
                before = unstage(before)  # a power cut during the probe: the package is asked for again
                self._store.keep(model, before)
            after = boot(before)
            if after != before:
                self._store.keep(model, after)
            if before.state is State.TRIAL and after.state is not State.TRIAL and before.active is not None:
                self.report(model, before.active, "rolled_back", "the device restarted too often in its trial")
            self._enforce(model)

    def add(self, data: bytes) -> Package:
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
            self._store.keep(model, after, collect=False)
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
            self.report(model, before.active, "rolled_back", revoked[before.active.sha256])

    def stage(self, package: Package, deployment: int) -> Slot:
        """Probe a package that is kept and put it on trial.

        Raises:
            ModelError: it is below the security floor, or failed its probe; the old model stays.
            DeviceError: no space or no permission; the old model stays.
        """
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
            self.refuse(name, held, reason)
            raise ModelError(f"{name} {held.version} is refused: {reason}")
        formats = [stage.format for stage, _ in package.manifest.models()]
        if problems := unmet(package.manifest.requires, formats, capabilities()):
            self.refuse(name, held, "; ".join(problems))
            raise ModelError(f"{name} {held.version} is not for this device: {'; '.join(problems)}")
        slot = step(before, Event.STAGE, held)
        self._store.write(name, slot)
        self.report(name, held, "staged")
        try:
            probe(
                self._store.package_path(held.sha256),
                timeout_s=self.trial.probe_timeout_s,
                memory_bytes=self.trial.probe_memory_bytes,
            )
            trial = step(slot, Event.PROBE_PASSED)
            self._store.write(name, trial)
        except ModelError as error:
            self._store.keep(name, step(slot, Event.PROBE_FAILED))
            self.report(name, held, "refused", str(error))
            raise
        except DeviceError:
            self._store.keep(name, unstage(slot))  # it did not fail, and may come again
            raise
        try:
            self._activate(name, package)
        except ModelError as error:  # it ran in its probe and does not here
            self._store.keep(name, step(trial, Event.TRIAL_FAILED))
            self.report(name, held, "refused", str(error))
            raise
        self.report(name, held, "trial")
        return trial

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

    def judge(self) -> None:
        """Confirm trials that lasted, and leave those that failed for the package before.

        Raises:
            DeviceError: the disk still refuses an earlier change.
        """
        for model, pipeline in list(self._pipelines.items()):
            slot = self._store.read(model)
            if slot.state is not State.TRIAL or slot.active is None:
                continue
            trial = self._trials.get(model)
            if trial is None or trial.sha256 != slot.active.sha256:
                self._trials[model] = _begin(slot.active.sha256, pipeline)
                continue
            verdict = trial.judge(_bounds(self.trial), _counts(pipeline), pipeline.metrics.recent())
            if verdict == PASSED:
                self._store.keep(model, step(slot, Event.TRIAL_PASSED))
                self.report(model, slot.active, "confirmed")
                self._enforce(model)  # from now on nobody goes back to a package that was revoked
            elif verdict is not None:
                self._revert(model, slot, Event.TRIAL_FAILED, verdict)
        self._store.settle()

    def _revert(self, model: str, slot: Slot, event: Event, reason: str) -> Slot:
        after = step(slot, event)
        if after.active is not None:
            self._activate(model, self._store.load(after.active))
        self._store.keep(model, after)
        if slot.active is not None:
            self.report(model, slot.active, "rolled_back", reason)
        return after

    def rollback(self, model: str) -> Slot:
        """Go back to the previous package because a person says so.

        Raises:
            ModelError: there is none, or it was revoked.
            DeviceError: the disk does not take it: it holds as long as this process lives.
        """
        slot = self._store.read(model)
        check_rollback(slot, self._store.revoked(slot))
        after = self._revert(model, slot, Event.ROLLBACK, "rolled back by hand")
        self._store.settle()
        return after

    def settle(self, model: str, sha256: str, failure: str | None) -> None:
        """End the trial of a package that does not run in this process: confirmed without a failure."""
        slot = self._store.read(model)
        if slot.state is not State.TRIAL or slot.active is None or slot.active.sha256 != sha256:
            return
        if failure is not None:
            self._revert(model, slot, Event.TRIAL_FAILED, failure)
            return
        self._store.keep(model, step(slot, Event.TRIAL_PASSED))
        self.report(model, slot.active, "confirmed")
        self._enforce(model)

    def report(self, model: str, held: Held, state: str, reason: str = "", board: str = "") -> None:
        """Say in the log and in the journal what became of a deployment, on the device or on a board behind it."""
        where = f" on board {board}" if board else ""
        if reason:
            _log.warning("%s %s%s: %s: %s", model, held.version, where, state, reason)
        else:
            _log.info("%s %s%s: %s", model, held.version, where, state)
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
                **({"board": board} if board else {}),
            },
        )

    def adopt(self, model: str, slot: Slot, held: Held) -> None:
        """The package that runs already is wanted by another deployment: nothing to do but to say so."""
        self._store.write(model, replace(slot, active=held))
        self.report(model, held, str(slot.state))

    def running(self) -> list[RunningModel]:
        """What each model runs, as it is told to the server."""
        running = []
        for model in self._store.models():
            slot = self._store.read(model)
            if slot.active is not None:
                state = slot.under if slot.state is State.STAGED else slot.state
                running.append(RunningModel(model, slot.active.version, slot.active.sha256, str(state)))
        return running

    def refuse(self, model: str, held: Held, reason: str) -> None:
        """Note a package that cannot be taken: it is not fetched again for this deployment."""
        self._store.keep(model, mark_failed(self._store.read(model), held))
        self.report(model, held, "refused", reason)

    def close(self) -> None:
        """Note that this start ended well: only crashes count against one."""
        for model in self._store.models():
            slot = self._store.read(model)
            if slot.boots:
                self._store.keep(model, replace(slot, boots=0))
