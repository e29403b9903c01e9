"""The simulator: a port that appears, disappears and comes back elsewhere, with a board behind it."""

from __future__ import annotations

import os
from pathlib import Path

from firmware_bridge.link import open_link
from firmware_bridge.simboard import SimulatedBoard, synthetic
from firmware_bridge.simulator import Simulator
from firmware_bridge.slots import Slots


def test_a_link_follows_the_port(tmp_path: Path) -> None:
    board = SimulatedBoard("A1", Slots.in_folder(tmp_path / "slots", 8192), [synthetic()])
    with Simulator(board, link=tmp_path / "board") as simulator:
        assert os.path.realpath(tmp_path / "board") == simulator.path
        with open_link(str(tmp_path / "board")) as link:
            boot = link.caps.boot
        holder = os.open(simulator.path, os.O_RDWR | os.O_NOCTTY)  # keeps the name in use
        simulator.unplug()
        assert not (tmp_path / "board").is_symlink()
        simulator.plug()
        with open_link(str(tmp_path / "board")) as link:
            assert link.caps.boot == boot
        os.close(holder)
        simulator.restart()
        with open_link(simulator.path) as link:
            assert link.caps.boot != boot
    assert not (tmp_path / "board").is_symlink()


def test_what_nobody_reads_is_lost_and_not_kept(tmp_path: Path) -> None:
    board = SimulatedBoard("A1", Slots.in_folder(tmp_path, 8192), [synthetic()])
    simulator = Simulator(board)
    simulator.plug()
    for _ in range(50):
        board._out.append(bytes(60_000))
        simulator._step()
    assert len(simulator._out) <= 262_144
    simulator.unplug()
