"""`tinylcm board` with a line, as a user types it, against simulated boards."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from board_models import install, threshold_model
from tinylcm.cli import main
from tinylcm.keys import init_keys
from tinylcm.line_cli import MISCHIEF
from tinylcm.publish import build

from firmware_bridge.link import open_link
from firmware_bridge.messages import CONFIRMED, FACTORY, TRIAL
from firmware_bridge.simboard import Mischief, SimulatedBoard, synthetic
from firmware_bridge.simulator import Simulator
from firmware_bridge.slots import Slots

MODEL = threshold_model(5, filler=300)
MANIFEST = """
name = "steps"
version = "1.0.0"
format = "board"
output = "scores"
labels = ["a", "b"]
[input]
name = "window"
dtype = "int16"
shape = [1, 10, 3]
scale = 0.01
channels = ["x", "y", "z"]
[window]
samples = 10
hop = 10
"""


@pytest.fixture
def simulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.bin").write_bytes(MODEL)
    slots = Slots.in_folder(tmp_path / "slots", 16_384)
    with Simulator(SimulatedBoard("A1", slots, [synthetic(rate_hz=200)], metrics_s=0.5)) as running:
        yield running


@pytest.fixture(scope="module")
def packages(activity: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with keys, a package for boards and one that is none."""
    folder = tmp_path_factory.mktemp("packages")
    init_keys(folder / "keys")
    (folder / "model.board").write_bytes(MODEL)
    (folder / "model.toml").write_text(MANIFEST)
    key = folder / "keys" / "release.key"
    (folder / "board.tlm").write_bytes(build(folder / "model.board", folder / "model.toml", key))
    (folder / "onnx.tlm").write_bytes(build(activity / "model.onnx", activity / "model.toml", key))
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["board", *arguments]) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out or captured.err


def test_ports_are_listed_and_asked(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "ports", "--port", simulator.path).strip() == simulator.path
    assert "board A1, simulator 1" in run(capsys, "ports", "--port", simulator.path, "--hello")
    found = json.loads(run(capsys, "ports", "--port", simulator.path, "--hello", "--json"))
    assert found[0]["uid"] == "A1"
    run(capsys, "ports")


def test_info_says_who_it_is(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "info", "--port", simulator.path)
    assert "board     A1" in text and "counters  up_ms" in text and "clock     known within" in text
    document = json.loads(run(capsys, "info", "--port", simulator.path, "--json"))
    assert document["uid"] == "A1" and document["metrics"]["rx"] >= 2


def test_listen_prints_lines_in_a_pipe_and_documents(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    lines = run(capsys, "listen", "--port", simulator.path, "--seconds", "1.5").splitlines()
    kinds = {line.split(",")[0] for line in lines}
    assert {"sensor", "metrics"} <= kinds
    rows = [line.split(",") for line in lines if line.startswith("sensor")]
    assert [int(row[3]) for row in rows] == list(range(len(rows))) and len(rows) > 100
    text = run(capsys, "listen", "--port", simulator.path, "--rows", "50", "--counts", "--json")
    documents = [json.loads(line) for line in text.splitlines()]
    values = np.concatenate([item["values"] for item in documents if item["event"] == "rows"])
    assert len(values) >= 50 and np.array_equal(values, np.round(values))


def test_listen_draws_a_page_on_a_terminal(simulator: Simulator) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-c", "import sys; from tinylcm.cli import main; sys.exit(main(sys.argv[1:]))"]
    child = subprocess.Popen(
        [*command, "board", "listen", "--port", simulator.path, "--seconds", "2"], stdout=slave, stderr=slave
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # its other end is closed
            break
        if not data:
            break
        shown += data
    os.close(master)
    assert child.wait(20) == 0, shown
    text = shown.decode()
    assert "stream 0 synthetic:" in text and "\x1b[2K" in text and "▁" in text


def test_plot_writes_a_picture(simulator: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "plot", "--port", simulator.path, "--seconds", "1", "-o", "curve.png")
    assert text.startswith("curve.png  ") and (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "has no stream 9; it has 0" in run(
        capsys, "plot", "--port", simulator.path, "--stream", "9", "-o", "x.png", code=2
    )


def test_flash_brings_a_model_and_rollback_takes_it_away(
    simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    slots = simulator.board.slots
    text = run(capsys, "flash", "model.bin", "--port", simulator.path)
    assert "board A1 runs" in text and "confirmed" in text
    assert slots.state == CONFIRMED and slots.model(slots.running or 0) == MODEL
    document = json.loads(run(capsys, "info", "--port", simulator.path, "--json"))
    assert document["model"]["state"] == CONFIRMED
    assert "factory model" in run(capsys, "rollback", "--port", simulator.path)
    assert slots.state == FACTORY
    assert "refused MODEL_ROLLBACK: STATE" in run(capsys, "rollback", "--port", simulator.path, code=1)


def test_flash_on_trial(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    assert "on trial" in run(capsys, "flash", "model.bin", "--port", simulator.path, "--no-confirm")
    assert simulator.board.slots.state == TRIAL
    assert "restarts" in run(capsys, "reset", "--port", simulator.path)
    assert simulator.board.slots.state == FACTORY
    document = json.loads(run(capsys, "flash", "model.bin", "--port", simulator.path, "--trial-s", "1", "--json"))
    assert document["state"] == "confirmed" and document["results"] >= 10


def test_a_package_is_flashed_when_its_publisher_is_trusted(
    simulator: Simulator, packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ("flash", str(packages / "board.tlm"), "--port", simulator.path)
    assert "trust" in run(capsys, *at, code=1)
    assert main(["keys", "trust", str(packages / "keys" / "root.pub")]) == 0
    assert "board A1 runs" in run(capsys, *at)
    assert simulator.board.slots.model(simulator.board.slots.running or 0) == MODEL


def test_what_cannot_be_flashed_is_said(
    simulator: Simulator, tmp_path: Path, packages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("not a model" * 20)
    at = ("--port", simulator.path)
    assert "refused MODEL_COMMIT: MODEL" in run(capsys, "flash", "text.txt", *at, code=1)
    onnx = str(packages / "onnx.tlm")
    assert "of format 'onnx', boards run 'board'" in run(capsys, "flash", onnx, "--any-root", *at, code=1)
    assert "nothing.bin" in run(capsys, "flash", "nothing.bin", *at, code=1)


def test_bench_prints_figures(simulator: Simulator, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(run(capsys, "bench", "--port", simulator.path, "--count", "20", "--seconds", "1", "--json"))
    assert document["rows_lost"] == 0 and document["rows_per_s"] > 100 and document["chunk_efficiency"] >= 0.95
    assert "round trip" in run(capsys, "bench", "--port", simulator.path, "--count", "5", "--seconds", "0.5")


def test_a_board_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = ("--port", str(tmp_path / "tty*"), "--find-s", "0.3")
    assert "there is no port to look at" in run(capsys, "info", *at, code=1)
    for wrong in (("listen", "--seconds", "-1"), ("listen", "--rows", "0"), ("info", "--baud", "fast")):
        with pytest.raises(SystemExit) as caught:
            main(["board", *wrong])
        assert caught.value.code == 2


def test_a_recording_is_played_by_a_simulated_board(tmp_path: Path) -> None:
    np.savez(tmp_path / "waves.npz", waves=np.sin(np.arange(600)).astype(np.float32).reshape(5, 2, 60))
    link = tmp_path / "board"
    command = [sys.executable, "-c", "import sys; from tinylcm.cli import main; sys.exit(main(sys.argv[1:]))"]
    options = [
        "--uid",
        "S7",
        "--link",
        str(link),
        "--play",
        str(tmp_path / "waves.npz"),
        "--slots",
        str(tmp_path / "s"),
    ]
    with subprocess.Popen([*command, "board", "simulate", *options, "--json"], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        document = json.loads(child.stdout.readline())
        assert document["channels"] == ["c0", "c1"]
        with open_link(str(link)) as opened:
            assert opened.caps.uid == "S7" and opened.caps.sensors[0].name == "waves"
        child.send_signal(signal.SIGTERM)
        assert child.wait(10) == 0
    assert not link.is_symlink() and (tmp_path / "s" / "slot0.bin").exists()


def test_simulate_refuses_what_is_no_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", a=np.full((3, 2), np.nan, np.float32))
    at = ("simulate", "--seconds", "1", "--play", str(tmp_path / "a.npz"))
    assert "holds NaN or infinity" in run(capsys, *at, code=1)
    np.savez(tmp_path / "b.npz", b=np.zeros((3, 2), np.float32))
    at = ("simulate", "--seconds", "1", "--play", str(tmp_path / "b.npz"))
    assert "no array 'c'; it has b" in run(capsys, *at, "--array", "c", code=1)


def test_every_kind_of_mischief_can_be_asked_for() -> None:
    assert set(MISCHIEF) == {str(kind) for kind in Mischief}


def test_two_boards_are_listened_to_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    boards = [SimulatedBoard(uid, Slots.in_folder(tmp_path / uid, 8192), [synthetic()]) for uid in ("A", "B")]
    install(boards[0].slots, threshold_model(1))
    with Simulator(boards[0]) as first, Simulator(boards[1]) as second:
        time.sleep(0.1)
        at = ("--port", first.path, "--port", second.path, "--uid", "A", "--uid", "B")
        lines = run(capsys, "listen", *at, "--seconds", "1.5").splitlines()
    assert {line.split(",")[1] for line in lines if line.startswith("sensor")} == {"A", "B"}
