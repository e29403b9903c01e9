"""What comes down with a sync's answer, joined: the ledger of commands, the server's configuration, and their answers.

The agent gives it each answer (`receive`, `configure`) and time (`tick`); what a command does, the agent and the device
say in `handlers`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import partial
from typing import Final

from .checks import Fields
from .clock import Clock
from .commands import COMMAND_RESULT, Args, Handler, Ledger
from .config import DeviceConfig
from .errors import DeviceError, TinyLCMError, WireError
from .journal import Journal
from .remote_config import CONFIG_RESULT, RemoteConfig
from .types import Json, Record

_log = logging.getLogger("tinylcm")
REPORT_TIMEOUT_S: Final = 2.0


class Downlink:
    """The device's side of commands and configuration.

    Args:
        config: whose `data` folder has the files.
        clock: time.
        journal: takes the answers, as records of the stream `events`.
        remote: the server's configuration, made before the device was opened.
        owner: the device's id.
        apply: puts a configuration into force, or raises.

    Attributes:
        handlers: what each command does; `ping` is there.
        answered: commands and configurations answered since the start.
    """

    def __init__(
        self,
        config: DeviceConfig,
        clock: Clock,
        journal: Journal,
        remote: RemoteConfig,
        owner: str,
        apply: Callable[[DeviceConfig], object],
    ) -> None:
        self._clock, self._journal, self._remote, self._apply = clock, journal, remote, apply
        self._ledger = Ledger(config.data / "commands.json", owner, clock)
        self.handlers: dict[str, Handler] = {"ping": self._ping}
        self.answered = 0
        self._reporting: tuple[dict[str, Json], Future[Record]] | None = None

    def boot(self) -> None:
        """Note this start.

        Raises:
            DeviceError: it could not be noted.
        """
        self._remote.boot()

    @property
    def cursor(self) -> int:
        """The last item that is stored here, for the next request."""
        return self._ledger.cursor

    def receive(self, items: Sequence[object]) -> None:
        """Store the commands of an answer.

        Raises:
            DeviceError: the disk refuses; the server sends them again.
        """
        self._ledger.receive(items)

    def configure(self, config: Mapping[str, Json]) -> None:
        """Take the configuration of a desired state; an empty one says nothing.

        Raises:
            DeviceError: the disk refuses; the configuration before is in force.
        """
        if not config:
            return
        fields = Fields(config, "desired.config", WireError)
        try:
            version, settings = fields.natural("version", low=1), fields.value.get("settings")
        except WireError as error:
            _log.warning("%s: it is not taken", error)
            return
        self._remote.offer(version, settings, self._apply)

    def rebase(self, base: DeviceConfig) -> None:
        """Take another configuration of the device's own, with what the server has set over it.

        Raises:
            ConfigError: together they are none; nothing was changed.
        """
        self._apply(self._remote.rebase(base))

    def give_back(self, reason: str) -> None:
        """The agent broke down: settings that are still on trial give way to those before.

        Raises:
            DeviceError: it could not be noted; those before are in force.
        """
        self._remote.give_back(reason, self._apply)

    def tick(self) -> None:
        """Run what waits, and journal the answers.

        Raises:
            DeviceError: the disk refuses; what is left goes on with the next tick.
        """
        self._remote.tick()
        self.answered += self._remote.take_reports(partial(self._report, CONFIG_RESULT))
        self.answered += self._ledger.run(self.handlers, partial(self._report, COMMAND_RESULT))

    def close(self) -> None:
        """Note that this start ended well.

        Raises:
            DeviceError: it could not be noted.
        """
        self._remote.close()

    def _report(self, type: str, payload: dict[str, Json]) -> None:
        """Journal an answer and wait until it is durable; what the disk has not taken yet is not appended again."""
        if self._reporting is None or self._reporting[0] != payload:
            self._reporting = payload, self._journal.append("events", type, payload)
        try:
            self._reporting[1].result(REPORT_TIMEOUT_S)
        except FutureTimeoutError:
            raise DeviceError(f"the disk has not taken a {type} within {REPORT_TIMEOUT_S:g} s") from None
        except TinyLCMError:
            self._reporting = None
            raise
        self._reporting = None

    def _ping(self, args: Args) -> Json:
        return {"boot": self._clock.boot, "boot_ns": self._clock.boot_ns(), "wall_s": self._clock.wall_s()}
