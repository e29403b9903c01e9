"""A model's way onto a board: it arrives, from anywhere it was cut, or ends in a sentence; every loop ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from board_models import board_model, threshold_model, trees
from serial_wire import CLEAN, Faults, Wire

from firmware_bridge import messages as m
from firmware_bridge.errors import UpdateError
from firmware_bridge.protocol import Answered, Protocol, Refused, Restarted, Unanswered
from firmware_bridge.simboard import Mischief, SimulatedBoard
from firmware_bridge.slots import Slots
from firmware_bridge.transfer import ENDED, TRANSITIONS, Happening, State, Transfer

MODEL = threshold_model(5, filler=400)
OTHER = threshold_model(9, filler=420)
SLOT_BYTES = 16_384
SESSIONS = itertools.count(1)


def board(folder: Path, *mischief: Mischief, **options: object) -> SimulatedBoard:
    return SimulatedBoard("A1", Slots.in_folder(folder, SLOT_BYTES), mischief=mischief, **options)  # type: ignore[arg-type]


def carry(
    transfer: Transfer,
    simulated: SimulatedBoard,
    faults: Faults = CLEAN,
    *,
    stop: Callable[[Wire], bool] = lambda wire: False,
    timeout_s: float = 900.0,
) -> Wire:
    """Drive a transfer until it is over, waits for a judgement, or `stop` says so."""
    session = next(SESSIONS)
    wire = Wire(Protocol(session, time_interval_s=0), simulated, faults)
    transfer.reconnected(session)
    while wire.now_s < timeout_s and not transfer.ended and not transfer.waits and not stop(wire):
        for request in transfer.requests(wire.now_s):
            wire.write(wire.host.send(request, wire.now_s))
        for event in wire.step():
            if isinstance(event, (Answered, Refused, Unanswered, Restarted)):
                transfer.take(event, wire.now_s)
    assert wire.now_s < timeout_s, "the transfer has no end"
    return wire


def failure(folder: Path, *mischief: Mischief, blob: bytes = MODEL, faults: Faults = CLEAN) -> str:
    transfer = Transfer(blob)
    carry(transfer, board(folder, *mischief), faults)
    assert transfer.state is State.FAILED and isinstance(transfer.error, UpdateError)
    return str(transfer.error)


def test_a_model_arrives_runs_on_trial_and_is_confirmed(tmp_path: Path) -> None:
    transfer, simulated = Transfer(MODEL, confirm=False), board(tmp_path)
    carry(transfer, simulated)
    assert transfer.waits and simulated.slots.state == m.TRIAL
    assert simulated.slots.model(transfer.slot or 0) == MODEL
    transfer.confirm()
    carry(transfer, simulated)
    assert transfer.state is State.DONE and simulated.slots.state == m.CONFIRMED
    assert simulated.caps.model.sha256 == transfer.sha256.hex()


def test_a_clean_line_carries_full_chunks_and_nothing_twice(tmp_path: Path) -> None:
    transfer = Transfer(MODEL)
    wire = carry(transfer, board(tmp_path))
    assert transfer.chunk_bytes == 512 and transfer.repeated_bytes == 0 and wire.host.retries == 0
    assert wire.now_s < 2


def test_the_same_model_again_costs_one_question(tmp_path: Path) -> None:
    simulated = board(tmp_path)
    carry(Transfer(MODEL), simulated)
    transfer = Transfer(MODEL)
    wire = carry(transfer, simulated)
    assert transfer.state is State.DONE
    assert [event.request.TYPE for event in wire.of(Answered)] == [m.HelloRequest.TYPE]  # type: ignore[attr-defined]


def test_the_slots_take_turns_and_a_rollback_finds_the_one_before(tmp_path: Path) -> None:
    simulated = board(tmp_path)
    for blob in (MODEL, OTHER):
        carry(Transfer(blob), simulated)
    assert simulated.slots.model(simulated.slots.running or 0) == OTHER
    simulated.slots.roll_back()
    assert simulated.slots.model(simulated.slots.running or 0) == MODEL


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rate", [3e-4, 1e-3])
def test_on_a_bad_line_it_arrives_whole(tmp_path: Path, rate: float, seed: int) -> None:
    transfer, simulated = Transfer(MODEL), board(tmp_path)
    carry(transfer, simulated, Faults.each(rate, seed))
    assert transfer.state is State.DONE, transfer.error
    assert simulated.slots.model(transfer.slot or 0) == MODEL
    if rate == 1e-3:
        assert transfer.chunk_bytes <= 128


def test_on_a_line_that_carries_nothing_it_ends_in_a_sentence(tmp_path: Path) -> None:
    assert "had no answer" in failure(tmp_path, faults=Faults.each(0.2, 1))


def test_cut_at_each_chunk_by_the_host_it_goes_on_where_it_was(tmp_path: Path) -> None:
    simulated, reached = board(tmp_path, window=1), 0
    for _ in range(30):
        transfer = Transfer(MODEL)  # a host that begins anew knows nothing
        further = reached

        def cut(_wire: Wire, transfer: Transfer = transfer, further: int = further) -> bool:
            return transfer.acknowledged > further

        carry(transfer, simulated, stop=cut)
        if transfer.ended:
            break
        assert transfer.acknowledged == reached + 512 or transfer.acknowledged == len(MODEL)
        reached = transfer.acknowledged
    assert transfer.state is State.DONE, transfer.error
    assert simulated.slots.model(transfer.slot or 0) == MODEL


def test_a_board_restarted_at_every_chunk_still_gets_it(tmp_path: Path) -> None:
    for chunk in range(len(MODEL) // 512 + 1):
        folder = tmp_path / str(chunk)
        simulated, transfer = board(folder), Transfer(MODEL)
        wire = carry(transfer, simulated, stop=lambda wire, t=transfer, c=chunk: t.acknowledged > c * 512)  # type: ignore[misc]
        if not transfer.ended:
            simulated.restart(wire.now_s, "power")
            carry(transfer, simulated)
        assert transfer.state is State.DONE, transfer.error
        assert simulated.slots.model(transfer.slot or 0) == MODEL


def test_a_board_that_restarts_now_and_then_still_gets_it(tmp_path: Path) -> None:
    transfer, simulated = Transfer(MODEL, chunk_bytes=64), board(tmp_path, Mischief.RESETS)
    carry(transfer, simulated)
    assert transfer.state is State.DONE and simulated.restarts > 3


def test_a_smaller_window_than_said_costs_time_only(tmp_path: Path) -> None:
    transfer, simulated = Transfer(MODEL), board(tmp_path, Mischief.WINDOW)
    carry(transfer, simulated)
    assert transfer.state is State.DONE and simulated.slots.model(transfer.slot or 0) == MODEL


@pytest.mark.parametrize(
    ("mischief", "words"),
    [
        (Mischief.SAME_OFFSET, "never got beyond byte 0"),
        (Mischief.BEYOND, "it was sent"),
        (Mischief.SILENT, "had no answer"),
        (Mischief.BUSY, "was busy 40 times"),
        (Mischief.ROT, "arrived damaged 3 times"),
        (Mischief.SELF_TEST, "test vectors came out otherwise"),
        (Mischief.NO_TRIAL, "failed its trial"),
    ],
    ids=str,
)
def test_a_board_that_misbehaves_ends_it_in_a_sentence(tmp_path: Path, mischief: Mischief, words: str) -> None:
    assert words in failure(tmp_path, mischief)


def test_a_slot_that_is_smaller_than_said_ends_it_in_a_sentence(tmp_path: Path) -> None:
    big = threshold_model(filler=4000)
    assert "takes 16256" in failure(tmp_path / "a", blob=big)
    assert "SIZE" in failure(tmp_path / "b", Mischief.SLOT, blob=big)


def test_what_is_no_model_or_for_another_board_is_refused(tmp_path: Path) -> None:
    assert "MODEL" in failure(tmp_path / "a", blob=b"text, not a model" * 10)
    wrong = board_model(1, trees([0], [(-1, 0, 0, 0)], [(1, 1)]), [(1, 0, 0, 0.0, 1.0)], abi=2)
    assert "another ABI" in failure(tmp_path / "b", blob=wrong)
    transfer = Transfer(MODEL, abi=3)
    carry(transfer, board(tmp_path / "c"))
    assert "runs formats 1 with ABI 1: convert it" in str(transfer.error)


def test_an_empty_model_is_refused_at_once() -> None:
    with pytest.raises(UpdateError, match="no bytes"):
        Transfer(b"")


def test_another_model_on_trial_is_said(tmp_path: Path) -> None:
    simulated = board(tmp_path)
    carry(Transfer(OTHER, confirm=False), simulated)
    transfer = Transfer(MODEL)
    carry(transfer, simulated)
    assert "is on trial on the board" in str(transfer.error)


def test_a_trial_that_is_not_confirmed_in_time_is_told(tmp_path: Path) -> None:
    simulated = board(tmp_path, trial_s=3)
    transfer = Transfer(MODEL, confirm=False)
    wire = carry(transfer, simulated)
    wire.run(5)
    transfer.confirm()
    for _ in range(400):
        for request in transfer.requests(wire.now_s):
            wire.write(wire.host.send(request, wire.now_s))
        for event in wire.step():
            transfer.take(event, wire.now_s)
    assert "not confirmed in time" in str(transfer.error)
    assert simulated.slots.state == m.FACTORY


def test_chunks_are_multiples_of_what_the_board_writes(tmp_path: Path) -> None:
    for align in (1, 4, 48, 200, 508):
        simulated, transfer = board(tmp_path / str(align), align=align, frame_max=512), Transfer(MODEL)
        simulated.slots._align = align
        wire = carry(transfer, simulated)
        assert transfer.state is State.DONE, transfer.error
        sizes = {len(event.request.data) for event in wire.of(Answered) if isinstance(event.request, m.ChunkRequest)}  # type: ignore[attr-defined]
        assert sorted(size % align for size in sizes)[:-1] in ([], [0])


def test_cancelling_ends_it() -> None:
    transfer = Transfer(MODEL)
    transfer.cancel("the port is gone")
    transfer.cancel("twice")
    assert "the port is gone" in str(transfer.error)
    assert transfer.requests(0.0) == [] and transfer.next_timeout() is None


def test_the_table_leads_out_of_every_state_and_nowhere_out_of_the_last() -> None:
    for state in State:
        leaves = {target for (source, _), target in TRANSITIONS.items() if source is state}
        assert bool(leaves) is (state not in ENDED)
    assert {happening for _, happening in TRANSITIONS} == set(Happening)
    reached = {State.ASKING}
    for _ in State:
        reached |= {target for (source, _), target in TRANSITIONS.items() if source in reached}
    assert reached == set(State)
