"""The slot's table, walked at random and by its rules."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylcm.errors import ModelError
from tinylcm.slots import (
    BOOTS_MAX,
    FAILED_MAX,
    TRANSITIONS,
    Event,
    Held,
    Slot,
    State,
    boot,
    slot_from_json,
    slot_to_json,
    step,
    unstage,
)

ONE, TWO, THREE = (Held(str(digit) * 64, f"{digit}.0", digit) for digit in (1, 2, 3))


def run(*events: tuple[Event, Held | None] | Event, slot: Slot | None = None) -> Slot:
    slot = slot or Slot()
    for event in events:
        slot = step(slot, *event) if isinstance(event, tuple) else step(slot, event)
    return slot


CONFIRMED = run((Event.STAGE, ONE), Event.PROBE_PASSED, Event.TRIAL_PASSED)


def test_the_good_way_leads_from_empty_to_confirmed() -> None:
    assert run((Event.STAGE, ONE)).active is None
    trial = run((Event.STAGE, ONE), Event.PROBE_PASSED)
    assert (trial.state, trial.active, trial.previous) == (State.TRIAL, ONE, None)
    assert (CONFIRMED.state, CONFIRMED.active, CONFIRMED.candidate) == (State.CONFIRMED, ONE, None)


def test_a_failed_probe_or_trial_brings_the_old_package_back() -> None:
    probed = run((Event.STAGE, TWO), Event.PROBE_FAILED, slot=CONFIRMED)
    tried = run((Event.STAGE, TWO), Event.PROBE_PASSED, Event.TRIAL_FAILED, slot=CONFIRMED)
    for slot in (probed, tried):
        assert (slot.state, slot.active) == (State.CONFIRMED, ONE)
        assert not slot.wants(TWO)
        assert slot.wants(Held(TWO.sha256, TWO.version, 9))  # another deployment may try again
    first = run((Event.STAGE, ONE), Event.PROBE_PASSED, Event.TRIAL_FAILED)
    assert (first.state, first.active) == (State.EMPTY, None)


def test_a_package_that_comes_in_a_trial_replaces_the_one_on_trial() -> None:
    slot = run((Event.STAGE, TWO), Event.PROBE_PASSED, (Event.STAGE, THREE), slot=CONFIRMED)
    assert (slot.state, slot.active, slot.candidate) == (State.STAGED, TWO, THREE)
    assert run(Event.PROBE_PASSED, Event.TRIAL_FAILED, slot=slot).active == ONE
    refused = run(Event.PROBE_FAILED, slot=slot)
    assert (refused.state, refused.active, refused.previous) == (State.TRIAL, TWO, ONE)
    assert unstage(slot) == run((Event.STAGE, TWO), Event.PROBE_PASSED, slot=CONFIRMED)


def test_rollback_goes_one_step_back_and_no_further() -> None:
    slot = run((Event.STAGE, TWO), Event.PROBE_PASSED, Event.TRIAL_PASSED, Event.ROLLBACK, slot=CONFIRMED)
    assert (slot.state, slot.active) == (State.CONFIRMED, ONE)
    with pytest.raises(ModelError, match="no earlier package"):
        step(slot, Event.ROLLBACK)


def test_a_trial_that_crashes_the_device_ends() -> None:
    slot = run((Event.STAGE, TWO), Event.PROBE_PASSED, slot=CONFIRMED)
    for _ in range(BOOTS_MAX):
        slot = boot(slot)
        assert slot.state is State.TRIAL
    assert boot(slot).active == ONE
    assert boot(CONFIRMED) == CONFIRMED


@given(st.lists(st.tuples(st.sampled_from(Event), st.sampled_from([ONE, TWO, THREE])), max_size=30))
def test_whatever_happens_what_runs_was_probed_and_the_state_survives_the_disk(steps: list) -> None:
    slot, probed = Slot(), set()
    for event, held in steps:
        if (slot.state, event) not in TRANSITIONS or (
            event is Event.ROLLBACK and slot.previous is None and slot.state is State.CONFIRMED
        ):
            with pytest.raises(ModelError):
                step(slot, event, held)
            continue
        before = slot
        slot = step(slot, event, held)
        if event is Event.PROBE_PASSED and slot.active is not None:
            probed.add(slot.active)
        assert slot.active is None or slot.active in probed
        assert slot.state is not State.CONFIRMED or slot.active is not None
        if event in (Event.TRIAL_FAILED, Event.PROBE_FAILED):
            assert slot.active in (before.active, before.previous)
        assert len(slot.failed) <= FAILED_MAX
        assert slot_from_json(json.loads(json.dumps(slot_to_json(slot)))) == slot


@pytest.mark.parametrize(
    "document", [None, {}, {"state": "flying"}, {"state": "trial", "active": {}}, {"state": "empty", "failed": [[1]]}]
)
def test_a_damaged_slot_is_refused(document: object) -> None:
    with pytest.raises(ModelError):
        slot_from_json(document)
