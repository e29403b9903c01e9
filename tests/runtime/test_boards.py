"""A device's side of its boards: rows into models, predictions and alarms into the journal, slots settled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_data import CHANNELS, SCALE, board_package, counts_of, wave_model, windows
from models import make_signer, write_keys
from tinylcm.boards import BoardPrediction, Boards
from tinylcm.config import BoardConfig, DeviceConfig, TrialConfig
from tinylcm.device import Device
from tinylcm.errors import ConfigError
from tinylcm.slots import State
from tinylcm.store import SlotStore

from firmware_bridge.messages import I16, Drift, Sensor
from firmware_bridge.simboard import Mischief, SimulatedBoard, Source
from firmware_bridge.simulator import Simulator
from firmware_bridge.slots import Slots

COUNTS = counts_of(windows(20, seed=3)[0]).reshape(-1, 3)
SENSOR = Sensor(0, "imu", I16, CHANNELS, 200_000, "g", SCALE)


@dataclass
class Journal:
    """What was emitted."""

    records: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def emit(self, stream: str, type: str, payload: Any) -> None:
        self.records.append((stream, type, dict(payload)))


def board(folder: Path, uid: str = "A1", **changes: Any) -> SimulatedBoard:
    given: dict[str, Any] = {"trial_s": 30, "metrics_s": 0.3, **changes}
    return SimulatedBoard(uid, Slots.in_folder(folder / uid, 8192), [Source(SENSOR, COUNTS)], **given)


def wait(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s, "it did not come in time"
        time.sleep(0.02)


def steps_of(device: Device) -> list[Any]:
    """The steps of deployments that are in the journal."""
    device.journal.flush()
    records = device.journal.read("events", 100, 1 << 20)
    return [record.payload for record in records if record.type == "deployment"]


@pytest.fixture
def simulated(tmp_path: Path) -> Iterator[Simulator]:
    with Simulator(board(tmp_path)) as simulator:
        yield simulator


def config_of(folder: Path, *boards: BoardConfig) -> DeviceConfig:
    return DeviceConfig(folder, metrics_interval_s=0.2, trial=TrialConfig(windows=3), boards=boards)


def test_a_package_for_boards_reaches_the_board_and_its_slot_is_confirmed(tmp_path: Path, simulated: Simulator) -> None:
    write_keys(tmp_path / "data" / "trust", make_signer())
    said: list[object] = []
    with Device.open(config_of(tmp_path / "data", BoardConfig("A1", (simulated.path,), name="left"))) as device:
        assert device.boards is not None
        device.boards.on_prediction = said.append
        slot = device.agent.install(board_package(), deployment=7)
        assert slot.state is State.TRIAL
        wait(lambda: device.slots()["waves"].state is State.CONFIRMED)
        wait(lambda: len(said) > 5)
        (shown,) = device.boards.boards()
        assert (shown.uid, shown.name, shown.model, shown.model_version) == ("A1", "left", "waves", "1.0.0")
        assert shown.state == "online" and shown.last_seen_ms is not None and shown.last_seen_ms < 2000
        assert device.status()["boards"]["A1"]["model"] == "waves"  # type: ignore[index]
        device.agent.install(board_package(version="2.0.0", model=wave_model(1)), deployment=8)
        wait(lambda: device.slots()["waves"].state is State.CONFIRMED)
        assert device.boards.boards()[0].model_version == "2.0.0"
        device.agent.rollback("waves")
        wait(lambda: device.boards.boards()[0].model_version == "1.0.0")  # type: ignore[union-attr]
        wait(lambda: device.boards.boards()[0].state == "online")  # type: ignore[union-attr]
        time.sleep(0.5)
        device.agent.flush_metrics()
        device.journal.flush()
        events, details = device.journal.read("events", 100, 1 << 20), device.journal.read("details", 100, 1 << 20)
    steps = [record.payload for record in events if record.type == "deployment"]
    on_board = [(step["version"], step["state"]) for step in steps if step.get("board") == "A1"]
    assert on_board[:6] == [
        ("1.0.0", "staged"), ("1.0.0", "trial"), ("1.0.0", "confirmed"),
        ("2.0.0", "staged"), ("2.0.0", "trial"), ("2.0.0", "confirmed"),
    ]  # fmt: skip
    of_slot = [(step["version"], step["state"]) for step in steps if "board" not in step]
    assert of_slot == [
        ("1.0.0", "staged"), ("1.0.0", "trial"), ("1.0.0", "confirmed"),
        ("2.0.0", "staged"), ("2.0.0", "trial"), ("2.0.0", "confirmed"), ("2.0.0", "rolled_back"),
    ]  # fmt: skip
    summaries = [record.payload for record in details if record.type == "summary"]
    assert summaries and all(item["board"] == "A1" and item["model"] == "waves" for item in summaries)
    assert {item["version"] for item in summaries} == {"1.0.0", "2.0.0"}
    predictions = [item for item in said if isinstance(item, BoardPrediction)]
    assert {item.model for item in predictions} == {"waves"}
    assert {item.label for item in predictions} <= set("abcd")


def test_a_board_that_refuses_leaves_the_slot_as_it_was(tmp_path: Path) -> None:
    write_keys(tmp_path / "data" / "trust", make_signer())
    simulated = board(tmp_path)
    with (
        Simulator(simulated) as simulator,
        Device.open(config_of(tmp_path / "data", BoardConfig("A1", (simulator.path,)))) as device,
    ):
        device.agent.install(board_package(), deployment=1)
        wait(lambda: device.slots()["waves"].state is State.CONFIRMED)
        with simulator.lock:
            simulated._mischief = frozenset({Mischief.SELF_TEST})
        device.agent.install(board_package(version="2.0.0", model=wave_model(1)), deployment=2)
        wait(lambda: device.slots()["waves"].state is State.CONFIRMED)
        active = device.slots()["waves"].active
        assert active is not None and active.version == "1.0.0"
        assert (2, device.slots()["waves"].failed[-1][1]) == device.slots()["waves"].failed[-1]
        wait(lambda: device.boards.boards()[0].model_version == "1.0.0")  # type: ignore[union-attr]
        wait(lambda: [step for step in steps_of(device) if step["state"] == "rolled_back"])
        steps = steps_of(device)
    (refused,) = [step for step in steps if step["state"] == "refused"]
    assert refused["board"] == "A1" and "SELFTEST" in str(refused["reason"])
    (back,) = [step for step in steps if step["state"] == "rolled_back"]
    assert "board" not in back and "board A1: " in str(back["reason"])


def test_one_board_that_refuses_does_not_keep_the_others_from_it(tmp_path: Path) -> None:
    write_keys(tmp_path / "data" / "trust", make_signer())
    with (
        Simulator(board(tmp_path, "A1")) as good,
        Simulator(board(tmp_path, "B2", mischief=[Mischief.SELF_TEST])) as bad,
    ):
        boards = BoardConfig("A1", (good.path,)), BoardConfig("B2", (bad.path,))
        with Device.open(config_of(tmp_path / "data", *boards)) as device:
            wait(lambda: device.boards and {b.state for b in device.boards.boards()} == {"online"})
            device.agent.install(board_package(), deployment=1)
            wait(lambda: device.slots()["waves"].state is State.CONFIRMED)
            models = {shown.uid: shown.model for shown in device.boards.boards()}  # type: ignore[union-attr]
    assert models == {"A1": "waves", "B2": ""}


def test_a_package_that_no_board_here_takes_goes_back_with_the_reason(tmp_path: Path, simulated: Simulator) -> None:
    write_keys(tmp_path / "data" / "trust", make_signer())
    with Device.open(config_of(tmp_path / "data", BoardConfig("A1", (simulated.path,)))) as device:
        wait(lambda: device.boards and [b.state for b in device.boards.boards()] == ["online"])
        device.agent.install(board_package(channels=("gx", "gy", "gz")), deployment=1)
        wait(lambda: device.slots()["waves"].state is State.EMPTY)
        wait(lambda: steps_of(device)[-1]["state"] == "rolled_back")
        last = steps_of(device)[-1]
    assert last["state"] == "rolled_back" and "it takes gx, gy, gz at 0.01 a count" in str(last["reason"])


class Rows:
    """A model that keeps the rows it is given."""

    def __init__(self, channels: int = 3) -> None:
        self.taken: list[Any] = []
        self.lost = 0
        model = wave_model(channels=channels)
        self.manifest: Any = replace(_manifest(), window=replace(_manifest().window, channels=0))
        self.manifest = replace(self.manifest, input=replace(self.manifest.input, shape=(1, model.rows, channels)))

    def stream(self, samples: Iterator[object], *, on_error: Any = None) -> Iterator[Any]:
        for item in samples:
            self.taken.append(item)
        yield from ()

    def count_overflow(self) -> None:
        self.lost += 1


def _manifest() -> Any:
    from tinylcm.package import parse_package

    return parse_package(board_package(), None).manifest


def boards_with(tmp_path: Path, model: object, journal: Journal | None = None, **streams: str) -> Boards:
    def open_model(name: str) -> Any:
        if isinstance(model, Exception):
            raise model
        return model

    from tinylcm.clock import SystemClock

    return Boards(
        [BoardConfig("A1", (str(tmp_path / "none"),), streams=streams)],
        clock=SystemClock(),
        store=SlotStore(tmp_path / "data", tmp_path / "trust"),
        sink=journal or Journal(),
        open_model=open_model,
        trial=TrialConfig(),
    )


def test_rows_go_to_the_model_that_their_stream_is_configured_for(tmp_path: Path) -> None:
    model = Rows()
    boards = boards_with(tmp_path, model, imu="waves")
    times = np.arange(5) / 200
    boards.rows("A1", SENSOR, np.ones((5, 3), np.float32), times)
    boards.rows("A1", replace(SENSOR, stream=1, name="other"), np.ones((5, 1), np.float32), times)
    boards.lost("A1", SENSOR, 3)  # its times tell
    boards.lost("A1", replace(SENSOR, rate_mhz=0), 3)
    wait(lambda: len(model.taken) == 2)
    boards.close()
    assert model.taken[0].times_s.tolist() == times.tolist() and model.taken[1].rows == 3


def test_a_model_of_other_channels_or_none_takes_no_rows_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, (model, words) in enumerate(
        [(Rows(2), "takes 2 channels, stream 0 of board A1 has 3 (ax, ay, az)"), (ConfigError("no such"), "no such")]
    ):
        boards = boards_with(tmp_path / str(number), model, imu="waves")
        for _ in range(3):
            boards.rows("A1", SENSOR, np.ones((5, 3), np.float32), np.arange(5) / 200)
        wait(lambda words=words: words in caplog.text)  # type: ignore[misc]
        boards.close()
        assert caplog.text.count(words) == 1


def test_a_stream_at_another_rate_than_the_model_s_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = Rows()
    boards = boards_with(tmp_path, model, imu="waves")
    boards.rows("A1", SENSOR, np.ones((5, 3), np.float32), np.arange(5) / 200)
    wait(lambda: model.taken)
    boards.close()
    assert "waves was made for 50 Hz, stream 0 of board A1 comes at 200 Hz" in caplog.text


def test_an_alarm_of_a_board_is_journalled_with_its_evidence(tmp_path: Path) -> None:
    journal = Journal()
    boards = boards_with(tmp_path, Rows(), journal)
    message = Drift(5, 0, 1, 2, 3 << 16, 1 << 16, -(5 << 15), 9 << 16, 400, (1,) * 16)
    boards.drift("A1", "", SENSOR, message)
    boards.drift("A1", "", None, message)
    (stream, kind, payload), (_, _, bare) = journal.records
    assert (stream, kind, payload["board"], payload["signal"], payload["monitor"]) == (
        "events", "alarm", "A1", "ay", "imu",
    )  # fmt: skip
    assert (payload["statistic"], payload["threshold"], payload["mean"], payload["variance"]) == (3.0, 1.0, -2.5, 9.0)
    assert payload["direction"] == "down" and payload["count"] == 400 and payload["bins"] == [1] * 16
    assert (bare["monitor"], bare["signal"]) == ("board", "1")


def test_a_device_that_only_syncs_names_its_boards_as_away(tmp_path: Path) -> None:
    config = config_of(tmp_path / "data", BoardConfig("A1", name="left"), BoardConfig(ports=("/dev/none",)))
    with Device.open(config, background=False) as device:
        assert device.agent.boards is not None
        assert [(b.uid, b.name, b.state, b.last_seen_ms) for b in device.agent.boards()] == [
            ("A1", "left", "away", None)
        ]
