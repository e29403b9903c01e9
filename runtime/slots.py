"""Which package of a model is staged, on trial, confirmed: a pure state machine, written as a table.

Rules
- A failure anywhere leaves, or brings back, the package that ran before.
- A package runs only after it was staged and probed in a child process; it is confirmed only by its trial.
- A package that was revoked (below the security floor, or signed by a revoked key) is refused, also by a rollback.
  The floor rises by a signed revocation, never by installing, and never falls.
- A package that runs when it is revoked gives way to the earlier one. Where that one is revoked too, or there is
  none, it runs on, because a device without a model helps nobody; the device says so until a better one came.
- A package that failed here is not tried again for the same deployment.
- A trial that the machine did not survive `BOOTS_MAX` times has failed.

Nothing here touches a disk or a clock: `SlotStore` keeps the state, `agent.py` acts on it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from .checks import Fields
from .errors import ModelError
from .types import Json

BOOTS_MAX: Final = 3
FAILED_MAX: Final = 20


class State(StrEnum):
    """What a slot holds."""

    EMPTY = "empty"
    STAGED = "staged"
    TRIAL = "trial"
    CONFIRMED = "confirmed"


class Event(StrEnum):
    """What can happen to a slot."""

    STAGE = "stage"
    PROBE_PASSED = "probe_passed"
    PROBE_FAILED = "probe_failed"
    TRIAL_PASSED = "trial_passed"
    TRIAL_FAILED = "trial_failed"
    ROLLBACK = "rollback"
    REVOKED = "revoked"


# (state, event) -> next state; BACK stands for what the slot held before: confirmed, or empty.
BACK: Final = "back"
TRANSITIONS: Final[Mapping[tuple[State, Event], State | str]] = {
    (State.EMPTY, Event.STAGE): State.STAGED,
    (State.CONFIRMED, Event.STAGE): State.STAGED,
    (State.STAGED, Event.STAGE): State.STAGED,
    (State.TRIAL, Event.STAGE): State.STAGED,
    (State.STAGED, Event.PROBE_PASSED): State.TRIAL,
    (State.STAGED, Event.PROBE_FAILED): BACK,
    (State.TRIAL, Event.TRIAL_PASSED): State.CONFIRMED,
    (State.TRIAL, Event.TRIAL_FAILED): BACK,
    (State.TRIAL, Event.ROLLBACK): BACK,
    (State.CONFIRMED, Event.ROLLBACK): BACK,
    (State.STAGED, Event.REVOKED): BACK,
    (State.TRIAL, Event.REVOKED): BACK,
    (State.CONFIRMED, Event.REVOKED): BACK,
}


@dataclass(frozen=True, slots=True)
class Held:
    """A package in a slot."""

    sha256: str
    version: str
    deployment: int = 0


@dataclass(frozen=True, slots=True)
class Slot:
    """One model's slot.

    Attributes:
        active: what runs now, on trial or confirmed.
        previous: the package that a failed trial or a rollback brings back.
        candidate: what is staged and runs nowhere yet.
        under: the state of `active` while a candidate is staged.
        floor: least `security_counter` that may run; it rises by a signed revocation, never by installing.
        boots: starts of the device during the present trial that did not end well.
        failed: (deployment, sha256) pairs that failed here, newest last.
    """

    state: State = State.EMPTY
    active: Held | None = None
    previous: Held | None = None
    candidate: Held | None = None
    under: State = State.EMPTY
    floor: int = 0
    boots: int = 0
    failed: tuple[tuple[int, str], ...] = ()

    def wants(self, held: Held) -> bool:
        """Whether a desired package is news: neither running, nor failed before for this deployment."""
        if (held.deployment, held.sha256) in self.failed:
            return False
        return all(known is None or known.sha256 != held.sha256 for known in (self.active, self.candidate))


def step(slot: Slot, event: Event, held: Held | None = None) -> Slot:
    """Apply an event.

    Args:
        slot: the present state.
        event: what happened.
        held: the package, for `STAGE`.

    Raises:
        ModelError: the table has no such transition, or there is nothing to go back to.
    """
    target = TRANSITIONS.get((slot.state, event))
    if target is None:
        raise ModelError(f"a slot that is {slot.state} cannot {event}")
    if event is Event.STAGE:
        if held is None:
            raise ModelError("staging needs a package")
        under = slot.under if slot.state is State.STAGED else slot.state
        return replace(slot, state=State.STAGED, under=under, candidate=held)
    if event is Event.PROBE_PASSED:
        # A package that was itself still on trial is no place to fall back to, unless there is nothing better.
        safe = slot.active if slot.under is State.CONFIRMED else slot.previous or slot.active
        return Slot(State.TRIAL, active=slot.candidate, previous=safe, floor=slot.floor, failed=slot.failed)
    if event is Event.TRIAL_PASSED:
        return replace(slot, state=State.CONFIRMED, boots=0)
    return _back(slot, event)


def mark_failed(slot: Slot, held: Held) -> Slot:
    """Note that a package failed here for its deployment."""
    return replace(slot, failed=(*slot.failed, (held.deployment, held.sha256))[-FAILED_MAX:])


def _back(slot: Slot, event: Event) -> Slot:
    culprit = slot.candidate or slot.active
    if culprit is not None:
        slot = mark_failed(slot, culprit)
    if slot.state is State.STAGED:
        return replace(slot, state=slot.under, under=State.EMPTY, candidate=None)
    if slot.previous is None and (slot.state is State.CONFIRMED or event is Event.REVOKED):
        raise ModelError("there is no earlier package to roll back to")
    state = State.CONFIRMED if slot.previous is not None else State.EMPTY
    return Slot(state=state, active=slot.previous, floor=slot.floor, failed=slot.failed)


def unstage(slot: Slot) -> Slot:
    """Forget a candidate whose probe never ended; it did not fail and may come again."""
    return replace(slot, state=slot.under, under=State.EMPTY, candidate=None) if slot.state is State.STAGED else slot


def revoke(slot: Slot, revoked: Collection[str]) -> Slot:
    """Act on what may not run any more, as far as something else can run instead.

    Args:
        slot: the present state.
        revoked: sha256 of those of its packages that may not run.

    Returns:
        The slot without a revoked candidate, gone back from a revoked package to one that is not, and without an
        earlier package that nobody may go back to. What is left of `revoked` in `active` has no alternative.
    """
    if slot.candidate is not None and slot.candidate.sha256 in revoked:
        slot = step(slot, Event.REVOKED)
    if slot.state not in (State.TRIAL, State.CONFIRMED) or slot.active is None:
        return slot
    useless = slot.previous is None or slot.previous.sha256 in revoked
    if slot.active.sha256 in revoked:
        return slot if useless else step(slot, Event.REVOKED)
    # In a trial even a revoked package is a place to fall back to: it ran before, and nothing else is known to run.
    return replace(slot, previous=None) if useless and slot.state is State.CONFIRMED else slot


def check_rollback(slot: Slot, revoked: Mapping[str, str]) -> None:
    """Refuse to go back by hand to a package that may not run any more.

    Args:
        slot: the present state.
        revoked: reason by sha256.

    Raises:
        ModelError: with the reason.
    """
    if slot.previous is not None and slot.previous.sha256 in revoked:
        raise ModelError(
            f"version {slot.previous.version} is not rolled back to: {revoked[slot.previous.sha256]}; "
            "install a package at or above the security floor"
        )


def boot(slot: Slot) -> Slot:
    """The device starts: count it in a trial, and end a trial that it did not survive too often."""
    if slot.state is not State.TRIAL:
        return slot
    counted = replace(slot, boots=slot.boots + 1)
    return step(counted, Event.TRIAL_FAILED) if counted.boots > BOOTS_MAX else counted


def _held_json(held: Held | None) -> Json:
    return None if held is None else {"sha256": held.sha256, "version": held.version, "deployment": held.deployment}


def slot_to_json(slot: Slot) -> dict[str, Json]:
    """A slot as it is stored."""
    return {
        "state": str(slot.state),
        "active": _held_json(slot.active),
        "previous": _held_json(slot.previous),
        "candidate": _held_json(slot.candidate),
        "under": str(slot.under),
        "floor": slot.floor,
        "boots": slot.boots,
        "failed": [[deployment, sha256] for deployment, sha256 in slot.failed],
    }


def _held(fields: Fields, key: str) -> Held | None:
    if fields.value.get(key) is None:
        return None
    held = fields.table(key)
    return Held(held.text("sha256"), held.text("version"), held.natural("deployment"))


def slot_from_json(document: object) -> Slot:
    """Read a stored slot.

    Raises:
        ModelError: it is damaged.
    """
    fields = Fields(document, "slot", ModelError)
    try:
        state, under = State(fields.text("state")), State(fields.text("under", str(State.EMPTY)))
    except ValueError as error:
        raise fields.fail("state", "is none that a slot has") from error
    failed = []
    for item in fields.items("failed", []):
        if not (isinstance(item, list) and len(item) == 2 and type(item[0]) is int and type(item[1]) is str):
            raise fields.fail("failed", "expected pairs of deployment and sha256")
        failed.append((item[0], item[1]))
    return Slot(
        state=state,
        active=_held(fields, "active"),
        previous=_held(fields, "previous"),
        candidate=_held(fields, "candidate"),
        under=under,
        floor=fields.natural("floor", 0),
        boots=fields.natural("boots", 0),
        failed=tuple(failed),
    )
