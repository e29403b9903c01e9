"""The simulated board keeps the protocol: sessions, kept answers, credit, results of its model, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from board_models import install, threshold_model
from serial_wire import Wire

from firmware_bridge import messages as m
from firmware_bridge.errors import PAYLOAD, STATE, TYPE, VERSION
from firmware_bridge.frames import ACKREQ, ERR, Decoder, Frame, encode
from firmware_bridge.protocol import Malformed, Protocol, Received, Unknown
from firmware_bridge.simboard import Mischief, SimulatedBoard, recording, synthetic
from firmware_bridge.slots import Slots


def board(folder: Path, **options: object) -> SimulatedBoard:
    return SimulatedBoard("A1", Slots.in_folder(folder, 8192), [synthetic(rate_hz=100)], **options)  # type: ignore[arg-type]


def ask(simulated: SimulatedBoard, kind: int, payload: bytes = b"", seq: int = 1, now_s: float = 1.0) -> list[Frame]:
    simulated.receive(encode(Frame(kind, seq, payload, ACKREQ)), now_s)
    return [frame for frame in Decoder().feed(simulated.outgoing()) if frame.type == kind]


@pytest.mark.parametrize(
    ("kind", "payload", "code"),
    [
        (0x99, b"", TYPE),
        (0x30, b"short", PAYLOAD),
        (0x12, m.StreamRequest(9, True).encode(), PAYLOAD),
        (0x01, m.HelloRequest(1, 2, 3).encode(), VERSION),
        (0x31, m.ChunkRequest(0, bytes(8)).encode(), STATE),
        (0x33, bytes(32), STATE),
        (0x35, b"", STATE),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_code(tmp_path: Path, kind: int, payload: bytes, code: int) -> None:
    (frame,) = ask(board(tmp_path), kind, payload)
    assert frame.flags & ERR and m.Refusal.decode(frame.payload).code == code


def test_a_repeated_request_is_done_once_and_a_new_session_forgets(tmp_path: Path) -> None:
    simulated = board(tmp_path)
    ask(simulated, 1, m.HelloRequest(1).encode())
    (first,) = ask(simulated, 0x12, m.StreamRequest(0, True, 5).encode(), seq=7)
    (again,) = ask(simulated, 0x12, m.StreamRequest(0, True, 9).encode(), seq=7)
    assert first == again
    ask(simulated, 1, m.HelloRequest(2).encode())
    (anew,) = ask(simulated, 0x12, m.StreamRequest(0, True, 9).encode(), seq=7)
    assert m.StreamAnswer.decode(anew.payload).credit == 9


def test_results_come_of_the_model_that_runs(tmp_path: Path) -> None:
    model = threshold_model(0)
    slots = Slots.in_folder(tmp_path, 8192)
    install(slots, model)
    values = np.repeat(np.array([[-50.0], [80.0]], np.float32), 10, axis=0) * np.ones((1, 3), np.float32)
    simulated = SimulatedBoard("A1", slots, [recording(values, rate_hz=100)])
    wire = Wire(Protocol(1), simulated)
    wire.write(wire.host.send(m.HelloRequest(1), 0.0))
    wire.run(2.05)
    found = [event.message for event in wire.of(Received) if isinstance(event.message, m.Result)]  # type: ignore[attr-defined]
    assert [result.label for result in found] == [0, 1] * 9 + [0, 1][: len(found) - 18]
    assert {result.model for result in found} == {simulated.caps.model.id}
    assert np.diff([result.time_us for result in found]).tolist() == [100_000] * (len(found) - 1)


def test_metrics_come_by_themselves_and_count(tmp_path: Path) -> None:
    wire = Wire(Protocol(1, time_interval_s=0), board(tmp_path))
    wire.write(wire.host.send(m.HelloRequest(1), 0.0))
    wire.run(11)
    found = [event.message for event in wire.of(Received) if isinstance(event.message, m.Metrics)]  # type: ignore[attr-defined]
    assert [round(metrics.up_ms / 1000) for metrics in found] == [5, 10]
    assert found[1].rows == 1000 and found[1].rx == 1


def test_reset_answers_and_then_restarts(tmp_path: Path) -> None:
    simulated = board(tmp_path)
    boot = simulated.boot
    assert ask(simulated, 0x41, b"\0")
    assert simulated.boot != boot and simulated.caps.reset == "asked"


def test_a_board_that_babbles_is_borne(tmp_path: Path) -> None:
    wire = Wire(Protocol(1, time_interval_s=0), board(tmp_path, mischief=[Mischief.BABBLE]))
    wire.write(wire.host.send(m.HelloRequest(1), 0.0))
    wire.run(12)
    assert len(wire.of(Unknown)) == 2 and len(wire.of(Malformed)) >= 6


def test_a_board_that_sends_longer_frames_than_agreed_is_borne(tmp_path: Path) -> None:
    wire = Wire(Protocol(1, time_interval_s=0), board(tmp_path, mischief=[Mischief.LONG_FRAME]))
    wire.write(wire.host.send(m.HelloRequest(1), 0.0))
    wire.write(wire.host.send(m.StreamRequest(0, True), 0.0))
    wire.run(3)
    assert wire.host.streams()[0].frames == 0 and wire.host.bad >= 28


def test_a_recording_uses_the_whole_range_and_must_be_numbers() -> None:
    source = recording(np.array([[0.5, -1.0], [0.25, 0.0]], np.float32))
    assert np.abs(source.counts).max() == 32000
    assert np.allclose(source.counts * source.sensor.scale, [[0.5, -1.0], [0.25, 0.0]], atol=1e-4)
    with pytest.raises(ValueError, match="finite numbers"):
        recording(np.array([[np.nan]], np.float32))
    with pytest.raises(ValueError, match="shape"):
        recording(np.zeros(5, np.float32))
