"""Packages in, trials judged, back when one fails."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from clocks import ManualClock
from models import make_package
from peer import GOOD, Peer
from tinylcm import Device, ModelError
from tinylcm.config import DeviceConfig
from tinylcm.requires import Requires
from tinylcm.slots import BOOTS_MAX, State
from tinylcm.store import SlotStore


def log_model_of_three() -> bytes:
    import onnx
    from onnx import TensorProto, helper

    # log of the first two of three inputs: fine on the golden zeros' probe? No: log(0) is infinite, so add 1 first.
    nodes = [
        helper.make_node("Constant", [], ["one"], value=helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])),
        helper.make_node("Add", ["x", "one"], ["y"]),
        helper.make_node("Log", ["y"], ["z"]),
        helper.make_node("Split", ["z"], ["scores", "rest"], axis=1),
    ]
    initializer = helper.make_tensor("split", TensorProto.INT64, [2], [2, 1])
    nodes[-1].input.append("split")
    graph = helper.make_graph(
        nodes,
        "log3",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2])],
        [initializer],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def test_a_model_that_fails_in_its_trial_gives_way_to_the_old_one(peer: Peer, device: Device) -> None:
    device.agent.install(GOOD)
    model = device.model("gesture")
    device.agent.tick()
    for _ in range(5):
        model.infer([1, 2, 3])
    device.agent.tick()
    bad = make_package(version="3.0.0", model=log_model_of_three())
    peer.offer(bad)
    device.sync()
    device.agent.tick()
    with pytest.raises(ModelError, match="NaN"):
        model.infer([-1, 2, 3])
    device.agent.tick()
    assert model.infer([-1, 2, 3]).version == "1.0.0"
    device.sync()
    assert peer.states()[-1] == "rolled_back"
    device.agent.sync.known = replace(device.agent.sync.known, generation=0)
    device.sync()  # offered again for the same deployment: not tried again
    assert model.infer([-1, 2, 3]).version == "1.0.0"


def test_a_trial_that_keeps_crashing_the_device_is_given_up(
    peer: Peer, config: DeviceConfig, clock: ManualClock
) -> None:
    with Device.open(config, clock=clock, background=False) as first:
        first.agent.install(GOOD)
    for _ in range(5):  # starts that end well do not count
        with Device.open(config, clock=clock, background=False) as again:
            assert again.slots()["gesture"].state is State.TRIAL
    store = SlotStore(config.data, config.data / "trust")
    store.write("gesture", replace(store.read("gesture"), boots=BOOTS_MAX))
    with Device.open(config, clock=clock, background=False) as last:
        assert last.slots()["gesture"].state is State.EMPTY
        last.journal.flush(5)
        events = last.journal.read("events", 100, 1 << 20)
    assert events[-1].payload["state"] == "rolled_back"
    assert "restarted too often" in str(events[-1].payload["reason"])


def test_a_start_that_is_killed_counts_against_the_trial(config: DeviceConfig) -> None:
    with Device.open(config, background=False) as device:
        device.agent.install(GOOD)
    child = (
        "import os, sys, pathlib; from tinylcm import Device; from tinylcm.config import DeviceConfig;"
        "Device.open(DeviceConfig(pathlib.Path(sys.argv[1])), background=False); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", child, str(config.data)], check=False, timeout=60)
    assert SlotStore(config.data, config.data / "trust").read("gesture").boots == 1


def test_a_package_below_the_security_floor_is_refused(peer: Peer, device: Device) -> None:
    device.agent.install(make_package(version="2.0.0", security_counter=3))
    store = SlotStore(device.config.data, device.config.data / "trust")
    store.write("gesture", replace(store.read("gesture"), floor=3))
    with pytest.raises(ModelError, match="security counter is 2, this device takes 3"):
        device.agent.install(make_package(version="1.0.0", security_counter=2))
    device.agent.install(make_package(version="1.5.0", security_counter=3))  # older, but not revoked
    assert device.slots()["gesture"].active.version == "1.5.0"  # type: ignore[union-attr]
    assert device.slots()["gesture"].floor == 3


def test_a_short_run_confirms_its_trial(config: DeviceConfig) -> None:
    with Device.open(config, background=False) as device:
        device.agent.install(GOOD)
        for _ in range(5):
            device.model("gesture").infer([1, 2, 3])
    assert SlotStore(config.data, config.data / "trust").read("gesture").state is State.CONFIRMED


def test_a_package_that_asks_for_another_device_is_refused_and_the_old_one_runs_on(peer: Peer, device: Device) -> None:
    device.agent.install(GOOD)
    peer.offer(make_package(version="2.0.0", requires=Requires(ram_mb=1 << 29, machine=("pdp11",))), 2)
    device.sync()
    device.sync()
    reasons = [r["payload"]["reason"] for r in peer.records if r["payload"].get("state") == "refused"]
    assert len(reasons) == 1 and "needs ram_mb" in reasons[0] and "pdp11" in reasons[0]
    assert device.slots()["gesture"].active.version == "1.0.0"  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="is not for this device"):
        device.agent.install(make_package(version="3.0.0", requires=Requires(python="99")))
