"""Several boards: each found by its uid wherever it is, found again, with its streams and its model on the way."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from board_models import threshold_model

from firmware_bridge import messages as m
from firmware_bridge.boards import Board, BoardEvent, Boards, Found, Gone, Updated, Wanted
from firmware_bridge.errors import BridgeError, LinkError
from firmware_bridge.ports import Port
from firmware_bridge.protocol import Gap, Restarted, Rows
from firmware_bridge.simboard import Mischief, SimulatedBoard, synthetic
from firmware_bridge.simulator import Simulator
from firmware_bridge.slots import Slots
from firmware_bridge.transfer import State, Transfer

MODEL = threshold_model(5, filler=1500)


@pytest.fixture
def plugged(tmp_path: Path) -> Iterator[Callable[..., Simulator]]:
    """Plug in a simulated board whose port has a link in the folder `dev`."""
    (tmp_path / "dev").mkdir()
    with ExitStack() as stack:

        def plug(uid: str, *mischief: Mischief) -> Simulator:
            slots = Slots.in_folder(tmp_path / uid, 32_768)
            board = SimulatedBoard(uid, slots, [synthetic(rate_hz=200)], mischief=mischief)
            return stack.enter_context(Simulator(board, link=tmp_path / "dev" / f"tty-{uid}"))

        yield plug


def anywhere(tmp_path: Path, *uids: str, **options: float) -> Boards:
    ports = (str(tmp_path / "dev" / "*"),)
    return Boards([Wanted(uid, ports) for uid in uids], scan_s=0.2, rest_s=0.5, **options)  # type: ignore[arg-type]


def poll_until(boards: Boards, done: Callable[[list[tuple[Board, BoardEvent]]], bool], timeout_s: float = 20.0) -> list[
    tuple[Board, BoardEvent]
]:  # fmt: skip
    seen: list[tuple[Board, BoardEvent]] = []
    until_s = time.monotonic() + timeout_s
    while not done(seen):
        assert time.monotonic() < until_s, f"it did not happen: {seen[-20:]}"
        seen += boards.poll(0.2)
    return seen


def rows_of(seen: list[tuple[Board, BoardEvent]], board: Board) -> int:
    return sum(len(event.values) for whose, event in seen if whose is board and isinstance(event, Rows))


def test_boards_are_found_by_their_uid_whatever_their_ports(tmp_path: Path, plugged: Callable[..., Simulator]) -> None:
    simulators = {uid: plugged(uid) for uid in ("C", "A", "B")}
    with anywhere(tmp_path, "A", "B") as boards:
        boards.wait_for_all(20)
        for board in boards.boards:
            assert board.link is not None and board.link.port.url == simulators[board.uid].path
            board.stream(0)
        first, second = boards.boards
        poll_until(boards, lambda seen: rows_of(seen, first) > 50 and rows_of(seen, second) > 50)
        Port(simulators["C"].path).close()  # the one that nobody wants was let go of


def test_any_board_will_do_and_from_then_on_it_is_that_one(tmp_path: Path, plugged: Callable[..., Simulator]) -> None:
    simulator = plugged("A")
    with anywhere(tmp_path, "") as boards:
        boards.wait_for_all(20)
        (board,) = boards.boards
        assert board.uid == "A"
        simulator.unplug()
        plugged("B")
        poll_until(boards, lambda seen: any(isinstance(event, Gone) for _, event in seen))
        for _ in range(10):
            boards.poll(0.1)
        assert board.link is None
        simulator.plug()
        poll_until(boards, lambda seen: any(isinstance(event, Found) for _, event in seen))


def test_a_board_comes_back_under_another_name_with_its_stream(
    tmp_path: Path, plugged: Callable[..., Simulator]
) -> None:
    simulator = plugged("A")
    before = simulator.path
    with anywhere(tmp_path, "A") as boards:
        boards.wait_for_all(20)
        (board,) = boards.boards
        board.stream(0)
        poll_until(boards, lambda seen: rows_of(seen, board) > 50)
        holder = os.open(before, os.O_RDWR | os.O_NOCTTY)  # keeps the old name in use
        simulator.unplug()
        simulator.plug()
        seen = poll_until(boards, lambda seen: rows_of(seen, board) > 50)
        os.close(holder)
        kinds = [type(event) for _, event in seen]
        assert kinds.index(Gone) < kinds.index(Found) < kinds.index(Rows)
        assert board.link is not None and board.link.port.url == simulator.path != before
        assert not any(isinstance(event, Gap) for _, event in seen)


def test_a_board_that_restarts_streams_again(tmp_path: Path, plugged: Callable[..., Simulator]) -> None:
    simulator = plugged("A")
    with anywhere(tmp_path, "A", time_interval_s=0.3) as boards:
        boards.wait_for_all(20)
        (board,) = boards.boards
        board.stream(0)
        poll_until(boards, lambda seen: rows_of(seen, board) > 50)
        simulator.restart("watchdog")
        seen = poll_until(
            boards,
            lambda seen: any(isinstance(event, Restarted) for _, event in seen) and rows_of(seen, board) > 100,
        )
        assert board.caps is not None and board.caps.reset == "watchdog"
        assert not any(isinstance(event, Gone) for _, event in seen)


def test_a_stream_that_is_turned_off_stays_off(tmp_path: Path, plugged: Callable[..., Simulator]) -> None:
    simulator = plugged("A")
    with anywhere(tmp_path, "A", time_interval_s=0.3) as boards:
        boards.wait_for_all(20)
        (board,) = boards.boards
        board.stream(0)
        board.stream(7)  # there is none: refused, and not asked for again
        poll_until(boards, lambda seen: rows_of(seen, board) > 20)
        board.stream(0, 0)
        for _ in range(5):
            boards.poll(0.1)
        simulator.restart()
        seen = poll_until(boards, lambda seen: any(isinstance(event, Restarted) for _, event in seen))
        seen += [item for _ in range(5) for item in boards.poll(0.1)]
        assert rows_of(seen, board) == 0


def test_a_model_survives_unplugging_on_its_way(tmp_path: Path, plugged: Callable[..., Simulator]) -> None:
    simulator = plugged("A")
    with anywhere(tmp_path, "A") as boards:
        boards.wait_for_all(20)
        (board,) = boards.boards
        transfer = Transfer(MODEL, chunk_bytes=64)
        board.update(transfer, 60)
        with pytest.raises(BridgeError, match="on its way"):
            board.update(Transfer(MODEL), 60)
        for share in (0.2, 0.5, 0.8):
            poll_until(boards, lambda _, share=share: transfer.acknowledged > share * len(MODEL))  # type: ignore[misc]
            simulator.unplug()
            poll_until(boards, lambda seen: any(isinstance(event, Gone) for _, event in seen))
            simulator.plug()
        poll_until(boards, lambda seen: any(isinstance(event, Updated) for _, event in seen))
        assert transfer.state is State.DONE, transfer.error
        assert simulator.board.slots.model(transfer.slot or 0) == MODEL


def test_a_model_on_trial_is_told_once_and_again_when_it_is_judged(
    tmp_path: Path, plugged: Callable[..., Simulator]
) -> None:
    plugged("A")
    with anywhere(tmp_path, "A") as boards:
        boards.wait_for_all(20)
        (board,) = boards.boards
        transfer = Transfer(MODEL, confirm=False)
        board.update(transfer, 60)
        seen = poll_until(boards, lambda seen: any(isinstance(event, Updated) for _, event in seen))
        seen += [item for _ in range(5) for item in boards.poll(0.05)]
        assert sum(isinstance(event, Updated) for _, event in seen) == 1 and transfer.waits
        transfer.confirm()
        poll_until(boards, lambda seen: any(isinstance(event, Updated) for _, event in seen))
        assert transfer.state is State.DONE


def test_a_model_for_a_board_that_does_not_come_back_ends_in_time(
    tmp_path: Path, plugged: Callable[..., Simulator]
) -> None:
    simulator = plugged("A")
    with anywhere(tmp_path, "A") as boards:
        boards.wait_for_all(20)
        (board,) = boards.boards
        simulator.unplug()
        transfer = Transfer(MODEL)
        board.update(transfer, 1)
        poll_until(boards, lambda seen: any(isinstance(event, Updated) for _, event in seen))
        assert "time was up" in str(transfer.error)
        with pytest.raises(LinkError, match="not there"):
            board.send(m.MetricsRequest())


def test_what_is_missing_and_what_was_found_instead_is_said(tmp_path: Path, plugged: Callable[..., Simulator]) -> None:
    plugged("B")
    taken = plugged("C")
    port = Port(taken.path)
    with anywhere(tmp_path, "A", hello_s=1.0) as boards, pytest.raises(LinkError) as caught:
        boards.wait_for_all(2)
    port.close()
    text = str(caught.value)
    assert "not found: A;" in text and "board B answers, which is not one" in text and "in use by another" in text
    nowhere = Wanted("A", (str(tmp_path / "nothing*"),))
    with Boards([nowhere]) as boards, pytest.raises(LinkError, match="no port to look at"):
        boards.wait_for_all(0.1)
