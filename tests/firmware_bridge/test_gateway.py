"""The gateway against simulated boards: found by uid, streamed, updated, tried, left alone when they are wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blob_oracle import Oracle
from board_data import CHANNELS, ROWS, SCALE, counts_of, wave_model, windows

from firmware_bridge.blob import write_model
from firmware_bridge.gateway import BoardSpec, BoardStatus, Gateway, Trial, Wanted, why_not
from firmware_bridge.link import open_link
from firmware_bridge.messages import I16, Drift, Result, Sensor
from firmware_bridge.simboard import Mischief, SimulatedBoard, Source
from firmware_bridge.simulator import Simulator
from firmware_bridge.slots import Slots
from firmware_bridge.transfer import Transfer

RATE_HZ = 200.0
COUNTS = counts_of(windows(20, seed=3)[0]).reshape(-1, 3)
SENSOR = Sensor(0, "imu", I16, CHANNELS, round(1000 * RATE_HZ), "g", SCALE)


@dataclass
class Device:
    """An owner that keeps what it is told."""

    wish: Wanted | None = None
    values: list[Any] = field(default_factory=list)
    times: list[Any] = field(default_factory=list)
    gaps: int = 0
    results: list[tuple[str, Result]] = field(default_factory=list)
    alarms: list[tuple[Sensor | None, Drift]] = field(default_factory=list)
    steps: list[tuple[str, str, str]] = field(default_factory=list)

    def rows(self, uid: str, sensor: Sensor, values: Any, times_s: Any) -> None:
        self.values.append(values)
        self.times.append(times_s)

    def lost(self, uid: str, sensor: Sensor, rows: int) -> None:
        self.gaps += rows

    def result(self, uid: str, model: str, message: Result) -> None:
        self.results.append((model, message))

    def drift(self, uid: str, model: str, sensor: Sensor | None, message: Drift) -> None:
        self.alarms.append((sensor, message))

    def wanted(self, uid: str, caps: Any) -> Wanted | None:
        return self.wish

    def stepped(self, uid: str, wanted: Wanted, state: str, reason: str = "") -> None:
        self.steps.append((wanted.version, state, reason))

    def states(self) -> list[tuple[str, str]]:
        return [(version, state) for version, state, _ in self.steps]


def wish(seed: int = 0, version: str = "1.0.0", deployment: int = 1, **changes: Any) -> Wanted:
    model = wave_model(seed)
    made = Wanted(
        "waves", version, (deployment, f"{seed:064x}"), write_model(model), ROWS, model.hop, CHANNELS, SCALE, windows=5
    )
    return replace(made, **changes)


def board(folder: Path, uid: str = "A1", **changes: Any) -> SimulatedBoard:
    given: dict[str, Any] = {"trial_s": 30, "metrics_s": 0.3, **changes}
    return SimulatedBoard(uid, Slots.in_folder(folder / uid, 8192), [Source(SENSOR, COUNTS)], **given)


@contextmanager
def gateway(device: Device, *specs: BoardSpec) -> Iterator[Gateway]:
    made = Gateway(specs, device)
    made.start()
    try:
        yield made
    finally:
        made.close(10.0)


def wait(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it did not come in time"
        time.sleep(0.02)


def only(gateway: Gateway) -> BoardStatus:
    (status,) = gateway.statuses()
    return status


def test_rows_come_in_their_unit_and_with_times_of_this_machine(tmp_path: Path) -> None:
    device = Device()
    simulated = board(tmp_path, clock_ppm=200.0, clock_us=5_000_000_000)
    with Simulator(simulated) as simulator:
        begun_s = time.monotonic()
        with gateway(device, BoardSpec("A1", (simulator.path,), streams=("imu",))) as running:
            wait(lambda: sum(map(len, device.values)) >= 400)
            status = only(running)
    values, times = np.concatenate(device.values), np.concatenate(device.times)
    assert (status.state, status.fw, status.port) == ("online", "simulator 1", simulator.path)
    assert begun_s - 1 < times[0] < times[-1] <= time.monotonic() + 0.05
    assert np.median(np.diff(times)) == pytest.approx(1 / RATE_HZ, rel=0.05)
    counts = np.rint(values / SCALE).astype(int)
    start = next(i for i in range(len(COUNTS)) if (np.roll(COUNTS, -i, axis=0)[:50] == counts[:50]).all())
    assert (np.tile(np.roll(COUNTS, -start, axis=0), (5, 1))[: len(counts)] == counts).all()
    assert device.gaps == 0


def test_a_model_is_brought_tried_and_confirmed_and_predicts_as_the_oracle_says(tmp_path: Path) -> None:
    device = Device(wish())
    simulated = board(tmp_path)
    with Simulator(simulated) as simulator, gateway(device, BoardSpec("A1", (simulator.path,))) as running:
        wait(lambda: ("1.0.0", "confirmed") in device.states())
        wait(lambda: len(device.results) > 12)
        wait(lambda: only(running).counters.get("infer", 0) > 0)
        assert only(running).model == device.wish.sha256  # type: ignore[union-attr]
    assert device.states() == [("1.0.0", "staged"), ("1.0.0", "trial"), ("1.0.0", "confirmed")]
    assert simulated.slots.model(simulated.slots.running or 0) == device.wish.blob  # type: ignore[union-attr]
    oracle = Oracle(device.wish.blob)  # type: ignore[union-attr]
    doubled = np.concatenate([COUNTS, COUNTS])
    possible = {oracle.predict(doubled[i : i + ROWS].tolist()) for i in range(len(COUNTS))}
    assert {(message.label, message.score) for _, message in device.results} <= possible
    assert {model for model, _ in device.results} == {device.wish.sha256}  # type: ignore[union-attr]


def test_another_model_replaces_it_and_a_rollback_brings_it_back(tmp_path: Path) -> None:
    device = Device(wish())
    with Simulator(board(tmp_path)) as simulator, gateway(device, BoardSpec("", (simulator.path,))) as running:
        wait(lambda: ("1.0.0", "confirmed") in device.states())
        device.wish = wish(1, "2.0.0", 2)
        wait(lambda: ("2.0.0", "confirmed") in device.states())
        assert only(running).model == device.wish.sha256
        device.wish = wish(0, "1.0.0", 3)  # as the device's slot says after a rollback
        wait(lambda: device.states()[-1] == ("1.0.0", "confirmed") and len(device.steps) >= 7)
        assert only(running).model == device.wish.sha256
        device.wish = None  # nothing of ours any more: back to what the board had before it
        wait(lambda: only(running).model == "")


@pytest.mark.parametrize(
    ("mischief", "state", "words"),
    [
        (Mischief.SELF_TEST, "refused", "SELFTEST"),
        (Mischief.ROT, "refused", "HASH"),
        (Mischief.NO_TRIAL, "rolled_back", "went back"),
    ],
)
def test_a_bad_board_keeps_what_it_ran_and_is_not_asked_again(
    tmp_path: Path, mischief: Mischief, state: str, words: str
) -> None:
    device = Device(wish())
    simulated = board(tmp_path, mischief=[mischief])
    with Simulator(simulated) as simulator, gateway(device, BoardSpec("A1", (simulator.path,))) as running:
        wait(lambda: device.steps and device.steps[-1][1] == state)
        time.sleep(2.5)
        assert only(running).state == "online"
    assert words in device.steps[-1][2]
    assert [item for _, item in device.states()].count(state) == 1
    assert simulated.slots.running is None


def test_a_model_for_another_board_is_not_even_sent(tmp_path: Path) -> None:
    device = Device(wish(channels=("gx", "gy", "gz")))
    with Simulator(board(tmp_path)) as simulator, gateway(device, BoardSpec("A1", (simulator.path,))):
        wait(lambda: device.steps)
        assert device.steps[0][1] == "refused" and "it takes gx, gy, gz at 0.01" in device.steps[0][2]
        device.wish = wish(2, "1.1.0", 2, scale=0.02)
        wait(lambda: len(device.steps) == 2)
        assert "at 0.02 a count, this one's sensors give ax, ay, az at 0.01" in device.steps[1][2]


def test_without_enough_predictions_a_trial_ends_badly(tmp_path: Path) -> None:
    device = Device(wish(confidence_min=1.0))
    simulated = board(tmp_path)
    with Simulator(simulated) as simulator, gateway(device, BoardSpec("A1", (simulator.path,))):
        wait(lambda: device.steps and device.steps[-1][1] == "rolled_back")
        assert "its mean confidence was" in device.steps[-1][2]
        wait(lambda: simulated.slots.running is None)
    trial = Trial(needed=5, until_s=10.0, confidence_min=0.0, windows=3)
    assert trial.verdict(9.0) is None
    assert trial.verdict(10.0) == "3 predictions came in its trial, 5 were expected"


def test_boards_are_told_apart_by_their_uid_not_by_their_port(tmp_path: Path) -> None:
    device = Device()
    with Simulator(board(tmp_path, "A1")) as one, Simulator(board(tmp_path, "B2")) as two:
        ports = (one.path, two.path)
        specs = BoardSpec("B2", ports, name="right"), BoardSpec("A1", ports, name="left")
        with gateway(device, *specs) as running:
            wait(lambda: all(status.state == "online" for status in running.statuses()))
            found = {status.uid: (status.name, status.port) for status in running.statuses()}
    assert found == {"A1": ("left", one.path), "B2": ("right", two.path)}


def test_a_board_that_is_unplugged_comes_back_under_another_name(tmp_path: Path) -> None:
    device = Device(wish())
    link = tmp_path / "port"
    simulated = board(tmp_path)
    with (
        Simulator(simulated, link=link) as simulator,
        gateway(device, BoardSpec("A1", (str(link),), streams=("0",))) as running,
    ):
        wait(lambda: ("1.0.0", "confirmed") in device.states())
        simulator.unplug()
        wait(lambda: only(running).state == "away")
        assert only(running).error
        simulator.plug()
        before = len(device.values)
        wait(lambda: only(running).state == "online" and len(device.values) > before + 5)
        simulator.restart()
        before = len(device.values)
        wait(lambda: only(running).counters["restarts"] == 1 and len(device.values) > before + 5)
    assert device.states().count(("1.0.0", "staged")) == 1, "it runs the model already"


def test_a_port_without_a_uid_takes_whoever_is_there_but_nobody_else_s_board(tmp_path: Path) -> None:
    device = Device(wish())
    link = tmp_path / "port"
    with gateway(
        device, BoardSpec("", (str(link),), name="any"), BoardSpec("B2", (str(tmp_path / "other"),))
    ) as running:
        with Simulator(board(tmp_path, "A1"), link=link):
            wait(lambda: device.states()[-1:] == [("1.0.0", "confirmed")])
        with Simulator(board(tmp_path, "C3"), link=link):
            wait(lambda: device.states().count(("1.0.0", "confirmed")) == 2)
            assert {status.uid for status in running.statuses()} == {"C3", "B2"}
        with Simulator(board(tmp_path, "B2"), link=link):
            wait(lambda: any("is board B2" in status.error for status in running.statuses()))


def test_what_is_on_trial_from_a_life_before_gives_way(tmp_path: Path) -> None:
    simulated = board(tmp_path)
    with Simulator(simulated) as simulator:
        with open_link(simulator.path) as link:
            link.update(Transfer(wish(5).blob, session=link.session, confirm=False), timeout_s=20)
        device = Device(wish())
        with gateway(device, BoardSpec("A1", (simulator.path,))):
            wait(lambda: ("1.0.0", "confirmed") in device.states())
    assert simulated.slots.model(simulated.slots.running or 0) == device.wish.blob  # type: ignore[union-attr]


def test_nobody_there_is_told_and_costs_nothing(tmp_path: Path) -> None:
    with gateway(Device(), BoardSpec("A1", (str(tmp_path / "none*"),))) as running:
        wait(lambda: only(running).error)
        assert only(running).state == "away" and "the board is not on" in only(running).error


def test_what_a_board_can_take_is_told(tmp_path: Path) -> None:
    caps = board(tmp_path).caps
    assert why_not(wish(), caps) == ""
    assert "ABI 1, the board runs formats 1 with ABI 2" in why_not(wish(), replace(caps, abi=2))
    assert "a slot of the board takes 100" in why_not(wish(), replace(caps, slot_bytes=100))
    assert "give no counts" in why_not(wish(), replace(caps, sensors=()))
