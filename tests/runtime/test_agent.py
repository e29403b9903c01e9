"""The agent against servers that break the rules: the old model runs on and nothing is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from clocks import ManualClock
from models import make_package, make_signer
from peer import BETTER, GOOD, Peer
from scripted import Reply, scripted_server
from tinylcm import Device, ServerError, WireError
from tinylcm.config import DeviceConfig
from tinylcm.identity import Identity, save_identity
from tinylcm.slots import State
from tinylcm.wire import SyncResponse, encode


def test_a_deployment_is_fetched_probed_tried_and_confirmed(peer: Peer, device: Device) -> None:
    peer.offer(GOOD)
    device.sync()
    assert device.slots()["gesture"].state is State.TRIAL
    model = device.model("gesture")
    device.agent.tick()
    for _ in range(5):
        assert model.infer([1, 2, 3]).version == "1.0.0"
    device.agent.tick()
    assert device.slots()["gesture"].state is State.CONFIRMED
    peer.offer(BETTER, 2)
    device.sync()
    assert model.infer([1, 2, 3]).version == "2.0.0"  # swapped while the application holds the model
    device.sync()
    assert peer.states() == ["staged", "trial", "confirmed", "staged", "trial"]


@pytest.mark.parametrize(
    ("package", "changes", "problem"),
    [
        (GOOD[:-1], {}, "truncated"),
        (GOOD.replace(b"1.0.0", b"1.0.1", 1), {}, "signature"),
        (make_package(signer=make_signer(9)), {}, "not trusted here"),
        (make_package("other"), {"model": "gesture"}, "expected gesture"),
        (make_package(wrong_golden=True), {}, "golden window 0"),
        (make_package(model=b"garbage"), {}, "cannot load the model"),
        (GOOD, {"size": 1 << 40}, "at most"),
    ],
)
def test_a_bad_package_is_refused_with_its_reason_and_not_fetched_again(
    package: bytes, changes: dict, problem: str, peer: Peer, device: Device
) -> None:
    device.agent.install(BETTER)
    before = device.slots()["gesture"].active
    peer.offer(GOOD, **{"size": len(package), **changes})
    peer.package = package
    if changes.get("model") or problem in ("golden window 0", "cannot load the model", "not trusted here"):
        peer.offer(package, **changes)
    device.sync()
    device.sync()
    reasons = [r["payload"]["reason"] for r in peer.records if r["payload"].get("state") == "refused"]
    assert len(reasons) == 1 and problem in reasons[0]
    assert device.slots()["gesture"].active == before
    assert device.model("gesture").infer([1, 2, 3]).version == "2.0.0"


@pytest.mark.parametrize(
    ("reply", "error", "problem"),
    [
        (Reply(200, b"<html>Sign in to the airport</html>"), WireError, "captive portal"),
        (Reply(200, b'{"acked": {"events": ["0123456789abcdef", 9]}}'), WireError, "server_instance"),
        (Reply(503, b'{"detail": "later"}', {"Retry-After": "30"}), ServerError, "later"),
        (Reply(401, b'{"detail": "unknown"}'), ServerError, "unknown"),
        (Reply(200, b"{", cut_after=0), ServerError, "cannot be reached"),
    ],
)
def test_a_bad_answer_loses_no_record(
    reply: Reply, error: type[Exception], problem: str, peer: Peer, device: Device
) -> None:
    device.label("p-1", "walking")
    peer.sync = reply
    with pytest.raises(error, match=problem):
        device.sync()
    peer.sync = None
    assert device.sync() == 1
    assert [record["payload"] for record in peer.records] == [{"prediction": "p-1", "label": "walking"}]


def test_an_acknowledgement_of_something_else_deletes_nothing(peer: Peer, device: Device) -> None:
    device.label("p-1", "walking")
    body = encode(SyncResponse({"events": ("f" * 16, 99), "details": None}, "instance", 1.0, 0.0))
    peer.sync = Reply(body=body)
    with pytest.raises(WireError, match="was not sent"):
        device.sync()
    peer.sync = None
    assert device.sync() == 1


def test_ticks_do_what_is_due_and_no_failure_escapes(peer: Peer, device: Device, clock: ManualClock) -> None:
    device.agent.install(GOOD)
    model = device.model("gesture")
    peer.sync = Reply(500, b"{}")
    model.infer([1, 2, 3])
    clock.advance(61)
    device.agent.tick()
    assert "answered 500" in device.agent.last_error
    peer.sync = None
    clock.advance(2000)
    device.agent.tick()
    device.journal.flush(5)
    clock.advance(2000)
    device.agent.tick()
    assert device.agent.last_error == ""
    assert [record["type"] for record in peer.records].count("summary") == 1


def test_a_clock_that_jumps_ten_years_blocks_nothing(peer: Peer, device: Device, clock: ManualClock) -> None:
    peer.offer(GOOD)
    for years in (10, -20):
        clock.jump_wall(years * 365 * 86400.0)
        device.label("p", "x")
        assert device.sync() >= 1
    assert device.slots()["gesture"].state is State.TRIAL


def test_on_a_metered_link_events_go_and_details_wait_but_not_for_a_person(
    peer: Peer, config: DeviceConfig, clock: ManualClock
) -> None:
    server = replace(config.server, metered=True, details_interval_s=1000.0, sync_interval_s=10.0)
    with scripted_server(peer.answer) as (url, _):
        save_identity(config.data / "identity.json", Identity("s" * 64, url, "sha256:" + "0" * 64, "d" + "a" * 12))
        with Device.open(replace(config, server=server), clock=clock, background=False) as device:

            def turn(seconds: float) -> list[str]:
                peer.records.clear()
                for stream in ("events", "details"):
                    device.journal.append(stream, "note", {})  # type: ignore[arg-type]
                device.journal.flush()
                clock.advance(seconds)
                device.agent.tick()
                return [record["type"] for record in peer.records if record["type"] == "note"]

            assert turn(60.0) == ["note", "note"]  # nothing went before: details may go
            assert turn(60.0) == turn(60.0) == ["note"]
            device.sync()
            assert len(peer.records) >= 3  # a person asked for it
            assert turn(60.0) == ["note"]
            assert turn(1000.0) == ["note"] * 3
