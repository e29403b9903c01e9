"""A link over a real pty to a simulated board: found at any rate, through banners and faults, gone when it is gone."""

from __future__ import annotations

import os
import pty
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path

import pytest
from board_models import threshold_model
from serial_wire import Faults, FaultyPty

from firmware_bridge import messages as m
from firmware_bridge.errors import LinkError, NoAnswerError, RefusedError, UpdateError
from firmware_bridge.link import Link, open_link
from firmware_bridge.ports import Port
from firmware_bridge.protocol import Gap, Received, Restarted, Rows
from firmware_bridge.simboard import Mischief, SimulatedBoard, synthetic
from firmware_bridge.simulator import Simulator
from firmware_bridge.slots import Slots
from firmware_bridge.transfer import State, Transfer

MODEL = threshold_model(5, filler=400)


def simulated(folder: Path, *mischief: Mischief, **options: object) -> SimulatedBoard:
    slots = Slots.in_folder(folder, 16_384)
    return SimulatedBoard("A1", slots, [synthetic(rate_hz=200)], mischief=mischief, **options)  # type: ignore[arg-type]


@pytest.fixture
def simulator(tmp_path: Path) -> Iterator[Simulator]:
    with Simulator(simulated(tmp_path)) as running:
        yield running


def test_a_board_answers_and_streams(simulator: Simulator) -> None:
    with open_link(simulator.path) as link:
        assert link.caps.uid == "A1"
        assert isinstance(link.ask(m.MetricsRequest()), m.Metrics)
        link.ask(m.StreamRequest(0, True))
        rows, until_s = 0, time.monotonic() + 20
        while rows < 100 and time.monotonic() < until_s:
            rows += sum(len(event.values) for event in link.poll(0.5) if isinstance(event, Rows))
        assert rows >= 100
        with pytest.raises(RefusedError, match="STATE"):
            link.ask(m.RollbackRequest())


def test_a_boot_banner_and_a_board_that_starts_late_are_waited_for(tmp_path: Path) -> None:
    simulator = Simulator(simulated(tmp_path), banner=b"ets Jun  8 2016 00:22:57\r\nrst:0x1 boot:0x13\r\n" * 20)
    simulator.plug()
    timer = threading.Timer(1.0, simulator._thread.start)
    timer.start()
    try:
        with open_link(simulator.path, baud=115_200) as link:
            assert link.caps.uid == "A1"
            assert link.protocol.bad >= 1
    finally:
        timer.join()
        simulator.stop()


@pytest.mark.parametrize("baud", [921_600, 57_600])
def test_the_rate_of_a_board_is_found(tmp_path: Path, baud: int) -> None:
    with Simulator(simulated(tmp_path), baud=baud) as simulator, open_link(simulator.path, hello_s=20) as link:
        assert link.caps.uid == "A1" and link.port.baud == baud


def test_the_wrong_rate_is_said(tmp_path: Path) -> None:
    with (
        Simulator(simulated(tmp_path), baud=921_600) as simulator,
        pytest.raises(NoAnswerError, match=r"at 9600 baud: .* is its firmware running"),
    ):
        open_link(simulator.path, baud=9600, hello_s=1)


def test_a_pty_whose_other_end_reads_nothing_is_said() -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    try:
        with pytest.raises(NoAnswerError, match="not a byte came"):
            open_link(os.ttyname(slave), baud=115_200, hello_s=0.5)
        link = Link(Port(os.ttyname(slave)), hello_s=60)
        link._out += bytes(200_000)
        started_s = time.monotonic()
        with pytest.raises(LinkError, match="takes no bytes"):
            while time.monotonic() - started_s < 30:
                link.poll(0.5)
        link.close()
    finally:
        os.close(master)
        os.close(slave)


def test_noise_for_ever_is_no_board() -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    stop = threading.Event()

    def babble() -> None:
        while not stop.is_set():
            os.write(master, os.urandom(500))
            time.sleep(0.005)

    thread = threading.Thread(target=babble, daemon=True)
    thread.start()
    try:
        with pytest.raises(NoAnswerError, match="bytes came, but none of them an answer"):
            open_link(os.ttyname(slave), hello_s=1.5)
    finally:
        stop.set()
        thread.join()
        os.close(slave)
        os.close(master)


def _until_link_error(link: Link, seconds: float) -> str:
    until_s = time.monotonic() + seconds
    with pytest.raises(LinkError) as caught:
        while time.monotonic() < until_s:
            link.poll(1)
    return str(caught.value)


@pytest.mark.long
def test_a_board_that_falls_silent_is_said(tmp_path: Path) -> None:
    board = simulated(tmp_path, metrics_s=1000)
    with Simulator(board) as simulator, open_link(simulator.path, time_interval_s=0.5) as link:
        board.receive = lambda data, now_s: None  # type: ignore[method-assign]
        assert "stopped answering" in _until_link_error(link, 30)


def test_a_question_without_an_answer_is_given_up(tmp_path: Path) -> None:
    board = simulated(tmp_path, Mischief.SILENT)
    with Simulator(board) as simulator, open_link(simulator.path, time_interval_s=0) as link:
        with pytest.raises(NoAnswerError, match="no answer to METRICS after 4 tries"):
            link.ask(m.MetricsRequest())
        link.ask(m.HelloRequest(link.session))


@pytest.mark.long
def test_a_board_that_does_not_hear_is_said(tmp_path: Path) -> None:
    board = simulated(tmp_path, metrics_s=0.2)
    with Simulator(board) as simulator, open_link(simulator.path, time_interval_s=0.5) as link:
        board.receive = lambda data, now_s: None  # type: ignore[method-assign]
        assert "sends, but does not hear" in _until_link_error(link, 60)


def test_an_unplugged_board_is_said(simulator: Simulator) -> None:
    with open_link(simulator.path) as link:
        simulator.unplug()
        with pytest.raises(LinkError, match="broke off"):
            for _ in range(100):
                link.poll(0.1)


def test_a_restart_is_told(simulator: Simulator) -> None:
    with open_link(simulator.path, time_interval_s=0.5) as link:
        link.poll(1)
        time.sleep(0.3)
        simulator.restart("watchdog")
        until_s, found = time.monotonic() + 20, []
        while not found and time.monotonic() < until_s:
            found = [event for event in link.poll(0.5) if isinstance(event, Restarted)]
        assert found[0].caps.reset == "watchdog"


def test_a_model_goes_over(simulator: Simulator) -> None:
    seen: list[float] = []
    with open_link(simulator.path) as link:
        link.update(transfer := Transfer(MODEL, session=link.session), timeout_s=30, progress=seen.append)
        assert transfer.state is State.DONE
        link.ask(m.HelloRequest(link.session))
        assert link.caps.model.sha256 == transfer.sha256.hex()
        with pytest.raises(UpdateError, match="longer than"):
            link.update(Transfer(threshold_model(1)), timeout_s=0)
    assert seen[-1] == 1.0 and seen == sorted(seen)


@pytest.mark.long
def test_through_a_faulty_line_models_arrive_and_gaps_are_exact(tmp_path: Path) -> None:
    board = simulated(tmp_path)
    with (
        Simulator(board) as simulator,
        FaultyPty(simulator.path, Faults.each(1e-3, 1), Faults.each(1e-3, 2)) as proxy,
        open_link(proxy.path, hello_s=30, time_interval_s=0) as link,
    ):
        link.update(transfer := Transfer(MODEL, session=link.session), timeout_s=120)
        assert board.slots.model(transfer.slot or 0) == MODEL
        _persist(link, m.StreamRequest(0, True))
        rows = lost = 0
        until_s = time.monotonic() + 8
        while time.monotonic() < until_s:
            for event in link.poll(0.2):
                rows += len(event.values) if isinstance(event, Rows) else 0
                lost += event.rows if isinstance(event, Gap) else 0
        _persist(link, m.StreamRequest(0, False))
        counts = link.protocol.streams()[0]
        assert counts.frames + counts.frames_lost == board.frames_sent[0] > 100
        assert counts.frames_lost > 0 and counts.rows + counts.rows_lost == 10 * board.frames_sent[0]


def _persist(link: Link, request: m.Request) -> None:
    for _ in range(10):
        try:
            link.ask(request)
            return
        except NoAnswerError:
            continue
    raise AssertionError("ten times no answer")


def test_alarms_reach_the_caller_of_poll(tmp_path: Path) -> None:
    source = synthetic(rate_hz=2000, drift_after_rows=60_000, channels=1)
    source.counts = source.counts[:2000]
    board = SimulatedBoard("A1", Slots.in_folder(tmp_path, 4096), [source], metrics_s=0.5)
    with Simulator(board) as simulator, open_link(simulator.path) as link:
        simulator._origin_s -= 29  # almost as far as the change
        until_s, kinds = time.monotonic() + 20, set()
        while m.Drift not in kinds and time.monotonic() < until_s:
            kinds |= {type(event.message) for event in link.poll(0.5) if isinstance(event, Received)}
        assert {m.Drift, m.Metrics} <= kinds
