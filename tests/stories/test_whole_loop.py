"""The whole loop, with a real server process and a real device: nothing is lost, nothing comes twice."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from fleet import Sphere, build_activity, device_config, enrol, make_keys, sphere
from tinylcm import ConfigError, Device, ServerError
from tinylcm.slots import State
from tinysphere.client import ClientError


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return make_keys(tmp_path / "keys")


def recording(activity: Path, *, changed: bool) -> np.ndarray:
    series = np.load(activity / "data" / "basic_motions.npz")["x_test"]
    order = np.random.default_rng(7).permutation(len(series))
    samples = np.concatenate([series[index].T for index in order]).astype(np.float32)
    if changed:
        turned = samples.copy()
        for x, y in ((0, 1), (3, 4)):
            turned[:, x], turned[:, y] = -samples[:, y], samples[:, x]
        turned[:, :3] += 2
        samples = np.concatenate([samples, turned])
    return samples


def settled(server: Sphere) -> dict[str, list[tuple[str, int]]]:
    """The ids of every record on the server, by stream."""
    with sqlite3.connect(f"file:{server.data / 'tinysphere.db'}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT stream, epoch, seq FROM record ORDER BY stream, epoch, seq").fetchall()
    found: dict[str, list[tuple[str, int]]] = {"events": [], "details": []}
    for stream, epoch, seq in rows:
        found[stream].append((epoch, seq))
    return found


def test_a_person_sees_drift(tmp_path: Path, keys: Path, activity: Path) -> None:
    package = build_activity(activity, keys, tmp_path / "activity.tlm")
    with sphere(tmp_path) as server:
        join = server.join(keys / "root.pub")
        client = server.client
        assert client.upload(package, "activity")["version"] == "1.0.0"
        assert client.deploy("activity", "1.0.0", "name=watch-01")["state"] == "active"
        config = device_config(tmp_path / "device")
        identity = enrol(config, join)
        assert enrol(config, join) == identity  # a used token, but the same device
        with Device.open(config, background=False) as device:
            device.sync()
            model = device.model("activity")
            device.agent.tick()
            alarms = []
            for prediction in model.stream(recording(activity, changed=True)):
                alarms += prediction.drift
                if prediction.last_sample == 999:
                    device.agent.tick()
            assert {alarm.monitor for alarm in alarms} >= {"input", "features"}
            assert min(alarm.window for alarm in alarms) >= 391  # none before the change
            device.label(prediction.id, "walking")
            device.sync()
            assert device.slots()["activity"].state is State.CONFIRMED
            events = client.events(device=identity.device_id)
            shown = client.device(identity.device_id)
            points = client.metrics(device=identity.device_id)
            deployment = client.deployment(1)
    assert {event["monitor"] for event in events} >= {"input", "features"}
    assert all(len(event["histogram"]["reference"]) == len(event["histogram"]["current"]) for event in events)  # type: ignore[index, arg-type]
    assert shown["online"] and shown["running"][0]["state"] == "confirmed"  # type: ignore[index]
    assert sum(point["windows"] for point in points) == 791  # type: ignore[misc]
    assert deployment["states"] == {"confirmed": 1}


@pytest.mark.long
def test_a_server_killed_in_the_middle_of_syncs_loses_and_doubles_nothing(tmp_path: Path, keys: Path) -> None:
    """SIGKILL while requests are on their way, again and again; at the end every record is there once."""
    config = device_config(tmp_path / "device", timeout_s=2.0)
    with sphere(tmp_path) as server:
        enrol(config, server.join(keys / "root.pub"))
        written = {"events": 0, "details": 0}
        with Device.open(config, background=False) as device:
            stop = threading.Event()
            failures = 0

            def keep_syncing() -> None:
                nonlocal failures
                while not stop.is_set():
                    try:
                        device.agent.sync_now()
                    except ServerError:
                        failures += 1
                        time.sleep(0.01)

            thread = threading.Thread(target=keep_syncing)
            thread.start()
            try:
                for round_number in range(4):
                    for index in range(300):
                        stream = "events" if index % 3 == 0 else "details"
                        kind = "label" if stream == "events" else "note"
                        payload = {"prediction": f"{round_number}-{index}", "label": "x" * 200}
                        device.journal.append(stream, kind, payload)  # type: ignore[arg-type]
                        written[stream] += 1
                    device.journal.flush(10)
                    time.sleep(0.02 * round_number)
                    server.kill()
                    time.sleep(0.1)
                    server.start()
            finally:
                stop.set()
                thread.join(30)
            assert failures > 0  # the kills were felt
            device.journal.flush(10)
            device.agent.sync_now()
            assert device.journal.read("events", 10, 1 << 20) == device.journal.read("details", 10, 1 << 20) == []
        ids = settled(server)
        for stream, count in written.items():
            assert len(ids[stream]) == count
            assert len(set(ids[stream])) == count
            assert {seq for _, seq in ids[stream]} == set(range(1, count + 1))


def test_a_device_works_without_its_server_and_delivers_when_it_is_back(
    tmp_path: Path, keys: Path, activity: Path
) -> None:
    package = build_activity(activity, keys, tmp_path / "activity.tlm")
    config = device_config(tmp_path / "device")
    with sphere(tmp_path) as server:
        enrol(config, server.join(keys / "root.pub"))
        server.client.upload(package, "activity")
        server.client.deploy("activity", "1.0.0")
        with Device.open(config, background=False) as device:
            device.sync()
        server.kill()
        with Device.open(config, background=False) as device:
            predictions = list(device.model("activity").stream(recording(activity, changed=False)))
            assert len(predictions) == 391
            with pytest.raises(ServerError, match="cannot be reached"):
                device.sync()
        server.start()
        with Device.open(config, background=False) as device:  # restarted in between, too
            device.sync()
        points = server.client.metrics()
        assert sum(point["windows"] for point in points) == 391  # type: ignore[misc]


def test_a_restored_server_gets_its_desired_state_again(tmp_path: Path, keys: Path, activity: Path) -> None:
    package = build_activity(activity, keys, tmp_path / "activity.tlm")
    config = device_config(tmp_path / "device")
    with sphere(tmp_path) as server:
        enrol(config, server.join(keys / "root.pub"))
        server.client.upload(package, "activity")
        server.client.deploy("activity", "1.0.0")
        with Device.open(config, background=False) as device:
            device.sync()
            with sqlite3.connect(server.data / "tinysphere.db") as connection:
                connection.execute("UPDATE meta SET value = 'another' WHERE key = 'instance'")
            connection.close()
            server.stop()
            server.start()
            device.sync()
            assert device.agent.sync.known.server_instance == "another"
            assert device.slots()["activity"].state is State.TRIAL


def test_wrong_and_reused_join_tokens_are_refused(tmp_path: Path, keys: Path) -> None:
    with sphere(tmp_path) as server:
        join = server.join(keys / "root.pub")
        enrol(device_config(tmp_path / "one"), join)
        with pytest.raises(ServerError, match="used 1 of 1 times"):
            enrol(device_config(tmp_path / "two"), join)
        with pytest.raises(ServerError, match="not known here"):
            enrol(device_config(tmp_path / "three"), join.replace("token=tj_", "token=tj_0000"))
        with pytest.raises(ConfigError, match="enrol it elsewhere"):
            enrol(device_config(tmp_path / "one"), join.replace("127.0.0.1", "localhost"))


def test_a_package_of_a_stranger_reaches_no_device(tmp_path: Path, keys: Path, activity: Path) -> None:
    stranger = make_keys(tmp_path / "stranger")
    package = build_activity(activity, stranger, tmp_path / "foreign.tlm")
    with sphere(tmp_path) as server:
        server.join(keys / "root.pub")
        with pytest.raises(ClientError, match="not trusted here"):
            server.client.upload(package, "activity")
        with pytest.raises(ClientError, match="upload it first"):
            server.client.deploy("activity", "1.0.0")


def test_a_server_whose_package_was_tampered_with_harms_no_device(tmp_path: Path, keys: Path, activity: Path) -> None:
    package = build_activity(activity, keys, tmp_path / "activity.tlm")
    config = device_config(tmp_path / "device")
    with sphere(tmp_path) as server:
        enrol(config, server.join(keys / "root.pub"))
        sha256 = str(server.client.upload(package, "activity")["sha256"])
        server.client.deploy("activity", "1.0.0")
        blob = server.data / "blobs" / sha256[:2] / sha256
        data = bytearray(blob.read_bytes())
        data[-100] ^= 1
        blob.write_bytes(data)
        with Device.open(config, background=False) as device:
            device.sync()
            device.sync()
            assert device.slots()["activity"].active is None
        states = server.client.deployment(1)["devices"]
    assert states[0]["state"] == "refused" and "damaged" in states[0]["reason"]  # type: ignore[index]
