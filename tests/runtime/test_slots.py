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
    check_rollback,
    revoke,
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


TRIAL_OF_TWO = run((Event.STAGE, TWO), Event.PROBE_PASSED, slot=CONFIRMED)
CONFIRMED_TWO = run(Event.TRIAL_PASSED, slot=TRIAL_OF_TWO)


def test_a_revoked_package_gives_way_to_the_one_before() -> None:
    for slot in (TRIAL_OF_TWO, CONFIRMED_TWO):
        after = revoke(slot, {TWO.sha256})
        assert (after.state, after.active, after.previous) == (State.CONFIRMED, ONE, None)
        assert not after.wants(TWO)


def test_the_last_package_is_never_taken_away() -> None:
    assert revoke(CONFIRMED, {ONE.sha256}) == CONFIRMED
    both = {ONE.sha256, TWO.sha256}
    assert revoke(TRIAL_OF_TWO, both) == TRIAL_OF_TWO
    assert revoke(CONFIRMED_TWO, both) == CONFIRMED_TWO
    assert revoke(Slot(), both) == Slot()
    # A revoked package that ran before the trial is better than none if the trial fails.
    assert revoke(TRIAL_OF_TWO, {ONE.sha256}) == TRIAL_OF_TWO


def test_nobody_goes_back_to_a_revoked_package() -> None:
    assert revoke(CONFIRMED_TWO, {ONE.sha256}).previous is None
    with pytest.raises(ModelError, match=r"version 1\.0 is not rolled back to: below the floor"):
        check_rollback(CONFIRMED_TWO, {ONE.sha256: "below the floor"})
    check_rollback(CONFIRMED_TWO, {TWO.sha256: "below the floor"})


def test_a_revoked_candidate_is_forgotten_and_the_rest_judged_too() -> None:
    staged = run((Event.STAGE, THREE), slot=CONFIRMED_TWO)
    assert revoke(staged, {THREE.sha256}).active == TWO
    assert revoke(staged, {THREE.sha256, TWO.sha256}).active == ONE
    assert not revoke(staged, {THREE.sha256}).wants(THREE)
    assert revoke(staged, {TWO.sha256}) == staged  # the probe under way decides first


@given(
    st.sampled_from([CONFIRMED, TRIAL_OF_TWO, CONFIRMED_TWO, run((Event.STAGE, THREE), slot=TRIAL_OF_TWO)]),
    st.sets(st.sampled_from([ONE.sha256, TWO.sha256, THREE.sha256])),
)
def test_revoking_leaves_a_package_that_ran_and_a_sound_one_if_there_is_any(slot: Slot, revoked: set[str]) -> None:
    after = revoke(slot, revoked)
    assert after.active is not None and after.active in (slot.active, slot.previous)
    if after.state is not State.STAGED and after.active.sha256 in revoked:
        assert after.active == slot.active and (slot.previous is None or slot.previous.sha256 in revoked)
    assert revoke(after, revoked) == after


@given(st.lists(st.tuples(st.sampled_from(Event), st.sampled_from([ONE, TWO, THREE])), max_size=30))
def test_whatever_happens_what_runs_was_probed_and_the_state_survives_the_disk(steps: list) -> None:
    slot, probed = Slot(), set()
    for event, held in steps:
        if (slot.state, event) not in TRANSITIONS or (
            slot.previous is None
            and (event, slot.state)
            in {
                (Event.ROLLBACK, State.CONFIRMED),
                (Event.REVOKED, State.CONFIRMED),
                (Event.REVOKED, State.TRIAL),
            }
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
