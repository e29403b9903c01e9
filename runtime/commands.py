"""Commands that come with a sync's answer: which there are, what they take, and the ledger that runs each at most once.

Rules
- A command that is not known here, or has wrong arguments, is answered `refused` with the reason; none is ignored.
- The cursor is the id of the last item that is stored. It goes up with each sync, so that a lost answer repeats, and
  what is not above it was seen before.
- That a command begins is durable before it begins: what a crash cut off is answered `interrupted`, never run again.
- Its outcome is durable before it is reported, and stays until the journal has taken it: an answer may be reported
  twice, with one id; the first counts.
- Expiry is relative, from receipt, by the time since boot. Over a restart of the machine a command keeps the time that
  it had left. No wall clock has a say.
- At most `WAITING_MAX` commands wait. The cursor does not pass what there is no room for: the server sends it again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from .checks import INTEGER_MAX, Fields
from .clock import Clock
from .errors import DeviceError, TinyLCMError, WireError
from .files import read_bounded, write_atomic
from .types import Json
from .wire import canonical_json, finite

_log = logging.getLogger("tinylcm")
COMMAND: Final = "command"  # the type of a downlink item
COMMAND_RESULT: Final = "command_result"  # the type of the record that answers it
ITEMS_MAX: Final = 100  # taken of one answer
WAITING_MAX: Final = 200
EXPIRES_S_MAX: Final = 30 * 86400.0
RESULT_BYTES_MAX: Final = 64 << 10
DETAIL_CHARACTERS_MAX: Final = 1000
LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_LEVEL_S_MAX: Final = 86400.0
CAPTURE_WINDOWS_MAX: Final = 256
_NAME_SHOWN_MAX: Final = 80
_LEDGER_BYTES_MAX: Final = 4 << 20

Args = Mapping[str, Json]
Handler = Callable[[Args], Json]


class CommandState(StrEnum):
    """How a command ended."""

    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"
    INTERRUPTED = "interrupted"
    REFUSED = "refused"


def _nothing(args: Fields) -> dict[str, Json]:
    args.refuse_unknown()
    return {}


def _model(args: Fields) -> dict[str, Json]:
    args.refuse_unknown("model")
    return {"model": args.text("model", length_min=1, length_max=64)}


def _capture(args: Fields) -> dict[str, Json]:
    args.refuse_unknown("model", "windows")
    return {
        "model": args.text("model", "", length_max=64),
        "windows": args.natural("windows", low=1, high=CAPTURE_WINDOWS_MAX),
    }


def _log_level(args: Fields) -> dict[str, Json]:
    args.refuse_unknown("level", "for_s")
    level = args.text("level")
    if level not in LOG_LEVELS:
        raise args.fail("level", f"is {level!r:.40}, expected one of {', '.join(LOG_LEVELS)}")
    return {"level": level, "for_s": args.number("for_s", low=1.0, high=LOG_LEVEL_S_MAX)}


# What each command takes.
COMMANDS: Final[Mapping[str, Callable[[Fields], dict[str, Json]]]] = {
    "ping": _nothing,
    "rotate_key": _nothing,
    "sync_now": _nothing,
    "flush": _nothing,
    "collect_status": _nothing,
    "rollback": _model,
    "reset_monitors": _model,
    "capture": _capture,
    "log_level": _log_level,
}


def check_args(name: str, args: object) -> dict[str, Json]:
    """A command's arguments, checked and complete.

    Raises:
        WireError: there is no such command, or an argument is wrong; says which.
    """
    if name not in COMMANDS:
        raise WireError(f"the command {name!r:.80} is not known here; known: {', '.join(COMMANDS)}")
    return COMMANDS[name](Fields(args, name, WireError))


@dataclass(slots=True)
class _Entry:
    """A command that waits, runs, or has ended and waits to be reported."""

    id: int
    name: str
    args: dict[str, Json]
    deadline_ns: int  # since this boot
    running: bool = False
    outcome: dict[str, Json] | None = None

    def end(self, state: CommandState, detail: str = "", result: Json = None) -> None:
        self.running = False
        self.outcome = {
            "command": self.id,
            "name": self.name,
            "state": str(state),
            "detail": finite(detail[:DETAIL_CHARACTERS_MAX]),  # an error's text can be no UTF-8
            "result": result,
        }


def _item_id(item: object) -> int | None:
    found = item.get("id") if isinstance(item, Mapping) else None
    return found if type(found) is int and 0 < found <= INTEGER_MAX else None


class Ledger:
    """What came down for a device and is not answered yet, in one small file.

    Args:
        path: the file; made with the first command.
        owner: the id of the device: what was meant for another one is forgotten.
        clock: the time since boot.

    One process writes; its caller takes care that one thread does at a time.
    """

    def __init__(self, path: Path, owner: str, clock: Clock) -> None:
        self._path, self._owner, self._clock = path, owner, clock
        self._entries: list[_Entry] = []
        self._is_saved = True
        self.cursor = 0
        try:
            if path.exists():
                self._load(json.loads(read_bounded(path, _LEDGER_BYTES_MAX)))
        except (ValueError, TinyLCMError) as error:
            # The server knows what was received before, and does not send that again.
            _log.error("%s is damaged (%s): commands that waited in it are not run", path, error)
            self._entries, self.cursor = [], 0

    @property
    def waiting(self) -> int:
        """Commands that are not answered yet."""
        return len(self._entries)

    # What came --------------------------------------------------------------------------------------------

    def receive(self, items: Sequence[object]) -> int:
        """Store the commands of an answer, in the order of their ids; returns how many were new.

        Args:
            items: of which the first `ITEMS_MAX` are looked at; a server sends them by rising id.

        Raises:
            DeviceError: they could not be stored; the cursor stays and the server sends them again.
        """
        news: dict[int, object] = {}
        for item in items[:ITEMS_MAX]:
            found = _item_id(item)
            if found is None:
                _log.warning("an item of the downlink has no id and is skipped: %.100r", item)
            elif found > self.cursor:
                news.setdefault(found, item)
        taken = sorted(news)[: WAITING_MAX - len(self._entries)]
        if not taken:
            return 0
        entries = [entry for number in taken if (entry := self._entry(number, news[number])) is not None]
        before = self._entries, self.cursor
        self._entries, self.cursor = [*self._entries, *entries], taken[-1]
        try:
            self._save()
        except DeviceError:
            self._entries, self.cursor = before
            raise
        return len(entries)

    def _entry(self, number: int, item: object) -> _Entry | None:
        fields = Fields(item, f"command {number}", WireError)
        kind = fields.value.get("type")
        if kind != COMMAND:
            _log.warning("an item %.40r of the downlink is not known here and is skipped", kind)
            return None
        name = fields.value.get("name")
        entry = _Entry(number, str(name)[:_NAME_SHOWN_MAX].encode("utf-8", "replace").decode(), {}, 0)
        try:
            expires_s = fields.number("expires_in_s", low=0.0, high=EXPIRES_S_MAX)
            entry.args = check_args(fields.text("name"), fields.value.get("args", {}))
            entry.deadline_ns = self._clock.boot_ns() + round(expires_s * 1e9)
        except WireError as error:
            entry.end(CommandState.REFUSED, str(error))
        return entry

    # What is done -----------------------------------------------------------------------------------------

    def run(self, handlers: Mapping[str, Handler], report: Callable[[dict[str, Json]], object]) -> int:
        """Run what waits, in order, and report each; returns how many were answered.

        Args:
            handlers: what to do for each name; a command without one is refused.
            report: takes the payload of a `command_result` record, and returns when that is durable.

        Raises:
            DeviceError: the disk refuses; what is left goes on with the next call.
            TinyLCMError: `report` failed; it is called again with the next call.
        """
        count = 0
        if not self._is_saved:
            self._save()
        for entry in list(self._entries):
            if entry.outcome is None:
                self._execute(entry, handlers)
            assert entry.outcome is not None
            try:
                report(entry.outcome)
            except WireError as error:  # more than this device's journal takes in one record
                entry.outcome |= {"detail": str(error)[:DETAIL_CHARACTERS_MAX], "result": None}
                report(entry.outcome)
            self._entries.remove(entry)
            self._save()
            count += 1
        return count

    def _execute(self, entry: _Entry, handlers: Mapping[str, Handler]) -> None:
        handler = handlers.get(entry.name)
        if self._clock.boot_ns() >= entry.deadline_ns:
            entry.end(CommandState.EXPIRED, "its time was over before it could run")
        elif handler is None:
            entry.end(CommandState.REFUSED, f"this device cannot {entry.name}")
        else:
            entry.running = True
            try:
                self._save()
            except DeviceError:
                entry.running = False
                raise
            _call(entry, handler)
        _log.info("command %d (%s): %s", entry.id, entry.name, (entry.outcome or {}).get("state"))
        self._save()

    # The file ---------------------------------------------------------------------------------------------

    def _save(self) -> None:
        now_ns = self._clock.boot_ns()
        self._is_saved = False
        document: dict[str, Json] = {
            "owner": self._owner,
            "cursor": self.cursor,
            "boot": self._clock.boot,
            "boot_ns": now_ns,
            "entries": [
                {
                    "id": entry.id,
                    "name": entry.name,
                    "args": entry.args,
                    "left_ns": max(0, entry.deadline_ns - now_ns),
                    "running": entry.running,
                    "outcome": entry.outcome,
                }
                for entry in self._entries
            ],
        }
        write_atomic(self._path, canonical_json(document) + b"\n", mode=0o600)
        self._is_saved = True

    def _load(self, document: object) -> None:
        fields = Fields(document, self._path.name, DeviceError)
        if fields.text("owner") != self._owner:
            return
        now_ns = self._clock.boot_ns()
        # In the same boot time went on; a machine that was off has not used up anybody's time.
        passed_ns = max(0, now_ns - fields.natural("boot_ns")) if fields.text("boot") == self._clock.boot else 0
        for item in fields.tables("entries", length_max=WAITING_MAX):
            entry = _Entry(
                id=item.natural("id", low=1),
                name=item.text("name"),
                args=item.typed("args", dict),
                deadline_ns=now_ns + item.natural("left_ns") - passed_ns,
                outcome=None if item.value.get("outcome") is None else item.typed("outcome", dict),
            )
            if item.typed("running", bool):
                entry.end(CommandState.INTERRUPTED, "the device stopped while it ran; it is not run again")
                self._is_saved = False
            self._entries.append(entry)
        self.cursor = fields.natural("cursor")


def _call(entry: _Entry, handler: Handler) -> None:
    """Run a command and note what became of it: nothing that it raises stops the agent."""
    try:
        result = finite(handler(entry.args))
        size = len(canonical_json(result))
    except TinyLCMError as error:
        entry.end(CommandState.FAILED, str(error))
    except Exception as error:
        _log.exception("command %d (%s) failed", entry.id, entry.name)
        entry.end(CommandState.FAILED, f"{type(error).__name__}: {error}")
    else:
        if size > RESULT_BYTES_MAX:
            entry.end(CommandState.DONE, f"its result has {size} bytes, at most {RESULT_BYTES_MAX} are sent")
        else:
            entry.end(CommandState.DONE, "", result)
