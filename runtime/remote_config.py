"""The part of a device's configuration that its server sets: versioned, validated as a whole, taken back when it fails.

Rules
- The server may set the keys of `SETTABLE` and no other; how private captured windows are, it may only tighten.
- Settings count only if device.toml with them is a valid configuration as a whole. device.toml itself never changes.
- New settings are durable as a trial, beside the good ones, before they are applied. They become good when the device
  has run with them for `TRIAL_S`.
- An exception while they are applied, an unexpected one in the agent's loop while they are on trial, or more than
  `STARTS_MAX` starts in the trial that did not end well, bring the good ones back. What was refused or taken back is
  not tried again until the server sends something else.
- What became of them stays in the file until the journal has taken it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from .capture import PRIVACY, CapturePolicy
from .checks import Fields
from .clock import Clock
from .config import DeviceConfig, LogConfig, TrialConfig, parse_config
from .errors import ConfigError, DeviceError, TinyLCMError
from .files import read_bounded, write_atomic
from .types import Json
from .wire import canonical_json

_log = logging.getLogger("tinylcm")
CONFIG_RESULT: Final = "config_result"  # the type of the record that says what became of a version
STARTS_MAX: Final = 3
TRIAL_S: Final = 60.0
SETTINGS_BYTES_MAX: Final = 64 << 10
REPORTS_MAX: Final = 20
REASON_CHARACTERS_MAX: Final = 1000
_FILE_BYTES_MAX: Final = 4 * SETTINGS_BYTES_MAX
SETTABLE: Final[Mapping[str, frozenset[str]]] = {
    "device": frozenset({"metrics_interval_s"}),
    "server": frozenset({"sync_interval_s"}),
    "journal": frozenset({"commit_interval_s"}),
    "trial": frozenset(item.name for item in fields(TrialConfig)),
    "log": frozenset(item.name for item in fields(LogConfig)),
    "capture": frozenset(item.name for item in fields(CapturePolicy)),
}
SETTABLE_OF_MODEL: Final = frozenset({"latency_us", "memory_bytes"})

Settings = Mapping[str, Any]  # tables and keys as in device.toml


def check_settings(settings: object) -> None:
    """Refuse a key that a server may not set, and a value that no device can take.

    Raises:
        ConfigError: names the key.
    """
    places = Fields(settings, "settings", ConfigError)
    places.refuse_unknown(*SETTABLE, "models")
    for name in places.value:
        if name != "models":
            places.table(name).refuse_unknown(*sorted(SETTABLE[name]))
    models = places.table("models", {})
    for name in models.value:
        models.table(name).refuse_unknown(*sorted(SETTABLE_OF_MODEL))
    try:
        size = len(canonical_json(settings))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"settings: cannot be stored: {error}") from error
    if size > SETTINGS_BYTES_MAX:
        raise ConfigError(f"settings: have {size} bytes, at most {SETTINGS_BYTES_MAX} are taken")
    parse_config(settings, Path("/"))


def merge(base: DeviceConfig, settings: Settings) -> DeviceConfig:
    """A device's own configuration with a server's settings over it.

    Raises:
        ConfigError: it is none as a whole, or the server may not set that; names the key.
    """
    check_settings(settings)
    if not settings:
        return base
    document = _document(base)
    for name, table in settings.items():
        if name != "models":
            document[name] = {**document[name], **table}
    models = settings.get("models", {})
    for name, table in models.items():
        document["models"][name] = {**document["models"].get(name, {}), **table}
    merged = parse_config(document, Path("/"))
    if PRIVACY.index(merged.capture.privacy) < PRIVACY.index(base.capture.privacy):
        raise ConfigError(
            f"settings.capture.privacy: is {merged.capture.privacy!r}, this device keeps its windows "
            f"{base.capture.privacy!r}: a server may only tighten that"
        )
    return merged


def _document(config: DeviceConfig) -> dict[str, Any]:
    """The document that stands for a configuration, with every path absolute."""
    models = {}
    for name, model in config.models.items():
        models[name] = asdict(model)
        package = models[name].pop("package")
        if package is not None:
            models[name]["package"] = str(package.absolute())
    device = {"name": config.name, "data": str(config.data.absolute()), "threads": config.threads}
    ring = {} if config.ring_samples is None else {"ring_samples": config.ring_samples}
    return {
        "device": {**device, **ring, "metrics_interval_s": config.metrics_interval_s},
        "server": asdict(config.server),
        "journal": {**asdict(config.journal), "urgent": list(config.journal.urgent)},
        "trial": asdict(config.trial),
        "log": asdict(config.log),
        "capture": asdict(config.capture),
        "models": models,
    }


@dataclass(frozen=True, slots=True)
class Version:
    """Settings as the server numbered them; version 0 stands for none."""

    version: int
    settings: Settings

    @property
    def digest(self) -> str:
        """What tells it from another one, also from one of the same number of a restored server."""
        return hashlib.sha256(canonical_json([self.version, self.settings])).hexdigest()


NONE: Final = Version(0, {})


@dataclass(frozen=True, slots=True)
class _State:
    """What the file holds.

    Attributes:
        current: what is in force.
        good: what a failed trial brings back; None when `current` is good itself.
        starts: of the device in the trial that did not end well, the present one included.
        rejected: digest of what was refused or taken back last.
        reports: payloads that the journal has not taken yet, oldest first.
    """

    current: Version = NONE
    good: Version | None = None
    starts: int = 0
    rejected: str = ""
    reports: tuple[dict[str, Json], ...] = ()

    def reported(self, version: int, state: str, reason: str = "") -> _State:
        report: dict[str, Json] = {"version": version, "state": state, "reason": reason[:REASON_CHARACTERS_MAX]}
        return replace(self, reports=(*self.reports, report)[-REPORTS_MAX:])

    def rolled_back(self, reason: str) -> _State:
        assert self.good is not None
        after = replace(self, current=self.good, good=None, starts=0, rejected=self.current.digest)
        return after.reported(self.current.version, "rolled_back", reason)


class RemoteConfig:
    """A device's configuration with what its server set, in `remote.json`.

    Args:
        base: the device's own configuration, as device.toml says it.
        clock: for the length of the trial.

    Making one reads; nothing is written before `boot`, so that it can be made before the data folder is locked.
    Its caller takes care that one thread uses it at a time.
    """

    def __init__(self, base: DeviceConfig, clock: Clock) -> None:
        self._base, self._clock = base, clock
        self._path = base.data / "remote.json"
        self._since_s = clock.monotonic_s()
        self._config, self._state = base, _State()
        try:
            if self._path.exists():
                self._state = _state_from(json.loads(read_bounded(self._path, _FILE_BYTES_MAX)))
        except (ValueError, TinyLCMError) as error:
            _log.error("%s is damaged (%s): the device runs as device.toml says", self._path, error)
        self._start()

    def _start(self) -> None:
        """Count this start in a trial, and find settings that the device can run with."""
        state = self._state
        if state.good is not None:
            state = replace(state, starts=state.starts + 1)
            if state.starts > STARTS_MAX:
                state = state.rolled_back("the device restarted too often in its trial")
        try:
            self._config = merge(self._base, state.current.settings)
        except ConfigError as error:  # device.toml has changed since, or this version of the program is another one
            state = replace(state, good=state.good or NONE).rolled_back(str(error))
            try:
                self._config = merge(self._base, state.current.settings)
            except ConfigError as worse:
                state = replace(state, good=NONE).rolled_back(str(worse))
        self._state = state

    @property
    def version(self) -> int:
        """The version in force; 0: the device's own configuration alone."""
        return self._state.current.version

    @property
    def is_on_trial(self) -> bool:
        """Whether an earlier configuration may still come back."""
        return self._state.good is not None

    def merged(self) -> DeviceConfig:
        """The configuration in force."""
        return self._config

    def rebase(self, base: DeviceConfig) -> DeviceConfig:
        """Take device.toml as it is now, and return the configuration that is in force with it.

        Raises:
            ConfigError: what the server set does not fit it; nothing was changed.
        """
        self._config = merge(base, self._state.current.settings)
        self._base = base
        return self._config

    def boot(self) -> None:
        """Note this start; call it when the data folder is this process's own.

        Raises:
            DeviceError: it could not be noted.
        """
        if self.is_on_trial or self._state.reports:
            self._write(self._state)

    def offer(self, version: int, settings: object, apply: Callable[[DeviceConfig], object]) -> str:
        """Take a version that the server wants, or say why not.

        Args:
            version: its number.
            settings: tables and keys as in device.toml.
            apply: puts a configuration into force; called a second time, with the one before, when it raises.

        Returns:
            `unchanged`, `refused`, `applied` or `rolled_back`; see `take_reports` for the reason.

        Raises:
            DeviceError: it could not be stored; the configuration before is in force.
        """
        state = self._state
        try:
            merged = merge(self._base, settings)  # type: ignore[arg-type]  # checked in it
        except ConfigError as error:
            return self._refuse(version, settings, str(error))
        wanted = Version(version, settings)  # type: ignore[arg-type]
        if wanted.digest in (state.current.digest, state.rejected):
            return "unchanged"
        good = state.current if state.good is None else state.good
        trial = replace(state, current=wanted, good=good, starts=1)
        self._write(trial.reported(version, "applied"))  # true as well if it ends here: the next start runs with it
        self._since_s = self._clock.monotonic_s()
        try:
            apply(merged)
        except Exception as error:  # whatever it is: the device goes on as before
            _log.exception("configuration %d cannot be applied", version)
            return self._roll_back(trial, f"{type(error).__name__}: {error}", apply)
        self._config = merged
        return "applied"

    def _refuse(self, version: int, settings: object, reason: str) -> str:
        try:
            digest = Version(version, settings).digest  # type: ignore[arg-type]
        except (TypeError, ValueError):
            digest = f"version {version}"
        if digest == self._state.rejected:
            return "unchanged"
        _log.warning("configuration %d is refused: %s", version, reason)
        self._write(replace(self._state, rejected=digest).reported(version, "refused", reason))
        return "refused"

    def _roll_back(self, trial: _State, reason: str, apply: Callable[[DeviceConfig], object]) -> str:
        self._state = trial.rolled_back(reason)  # in memory also if the disk refuses it: the report writes it
        try:
            self._config = merge(self._base, self._state.current.settings)
            apply(self._config)
        except Exception:
            _log.exception("the configuration before cannot be applied either; it is in force from the next start on")
        self._write(self._state)
        return "rolled_back"

    def give_back(self, reason: str, apply: Callable[[DeviceConfig], object]) -> bool:
        """Bring the good settings back when those in force are on trial and the device has broken down with them.

        Args:
            reason: what happened.
            apply: puts a configuration into force.

        Returns:
            Whether there was a trial.

        Raises:
            DeviceError: it could not be noted; the configuration before is in force.
        """
        if not self.is_on_trial:
            return False
        _log.error("configuration %d is taken back: %s", self.version, reason)
        self._roll_back(self._state, reason, apply)
        return True

    def tick(self) -> None:
        """Keep what has run long enough.

        Raises:
            DeviceError: it could not be noted; the next call tries again.
        """
        if self.is_on_trial and self._clock.monotonic_s() - self._since_s >= TRIAL_S:
            self.confirm()

    def confirm(self) -> None:
        """The settings in force are good: nothing brings the ones before back."""
        if self.is_on_trial:
            self._write(replace(self._state, good=None, starts=0))

    def close(self) -> None:
        """Note that this start ended well: it does not count against a trial."""
        if self._state.starts:
            self._write(replace(self._state, starts=0))

    def take_reports(self, report: Callable[[dict[str, Json]], object]) -> int:
        """Hand over what became of the server's versions; returns how many there were.

        Args:
            report: takes the payload of a `config_result` record, and returns when that is durable.

        Raises:
            TinyLCMError: `report` failed, or the disk: what is left is handed over again.
        """
        count = 0
        while self._state.reports:
            report(self._state.reports[0])
            self._write(replace(self._state, reports=self._state.reports[1:]))
            count += 1
        return count

    def _write(self, state: _State) -> None:
        write_atomic(self._path, canonical_json(_state_to(state)) + b"\n", mode=0o600)
        self._state = state


def _state_to(state: _State) -> dict[str, Any]:
    return {
        "version": state.current.version,
        "settings": state.current.settings,
        "state": "good" if state.good is None else "trial",
        "previous": None if state.good is None else {"version": state.good.version, "settings": state.good.settings},
        "starts": state.starts,
        "rejected": state.rejected,
        "reports": list(state.reports),
    }


def _state_from(document: object) -> _State:
    found = Fields(document, "remote.json", DeviceError)
    good = None
    if found.text("state") == "trial":
        previous = found.table("previous")
        good = Version(previous.natural("version"), previous.typed("settings", dict))
    return _State(
        current=Version(found.natural("version"), found.typed("settings", dict)),
        good=good,
        starts=found.natural("starts"),
        rejected=found.text("rejected"),
        reports=tuple(item for item in found.items("reports", length_max=REPORTS_MAX) if isinstance(item, dict)),
    )
