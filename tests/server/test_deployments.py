"""Which device should run what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from board_data import board_package
from kit import NOW, Kit, make_kit, record
from models import make_package
from tinylcm.requires import Requires
from tinysphere import boards, deployments, fleet
from tinysphere.errors import BadRequestError, ForbiddenError, NotFoundError


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    made.upload()
    made.upload(make_package(version="2.0.0"))
    yield made
    made.db.close()


def desired(kit: Kit, device: str) -> list[str]:
    found = kit.db.read(lambda connection: deployments.desired_of(connection, device))
    return [model.version for model in found.models]


def test_the_newest_deployment_that_matches_counts(kit: Kit) -> None:
    token = kit.join(uses=2)
    one, two = kit.enrol("one", "1" * 64, token), kit.enrol("two", "2" * 64, token)
    assert desired(kit, one) == []
    kit.deploy("1.0.0")
    second = kit.deploy("2.0.0", "name=two")
    assert (desired(kit, one), desired(kit, two)) == (["1.0.0"], ["2.0.0"])
    deployments.abort(kit.db, second.id, "me", NOW)
    assert desired(kit, two) == ["1.0.0"]
    assert deployments.abort(kit.db, second.id, "me", NOW).state == "aborted"


def test_labels_decide_when_they_change(kit: Kit) -> None:
    device = kit.enrol()
    kit.deploy("1.0.0", "site=berlin")
    assert desired(kit, device) == []
    fleet.patch_device(kit.db, device, fleet.DevicePatch(labels={"site": "berlin"}), "*", "me", NOW)
    assert desired(kit, device) == ["1.0.0"]


def test_a_device_may_fetch_what_it_is_to_run_and_nothing_else(kit: Kit) -> None:
    device = kit.enrol()
    view = kit.upload()
    other = kit.upload(make_package(version="2.0.0"))
    deployment = kit.deploy("1.0.0")
    deployments.check_may_fetch(kit.db, device, view.sha256)
    for sha256 in (other.sha256, "0" * 64):
        with pytest.raises((ForbiddenError, NotFoundError)):
            deployments.check_may_fetch(kit.db, device, sha256)
    assert deployments.get_deployment(kit.db, deployment.id).version == "1.0.0"


def test_what_cannot_be_deployed_says_why(kit: Kit) -> None:
    with pytest.raises(NotFoundError, match="upload it first"):
        kit.deploy("9.9.9")
    with pytest.raises(BadRequestError, match="selector"):
        kit.deploy("1.0.0", "everywhere")
    with pytest.raises(NotFoundError):
        deployments.get_deployment(kit.db, 77)
    with pytest.raises(NotFoundError):
        deployments.abort(kit.db, 77, "me", NOW)


def test_deployments_are_listed_newest_first(kit: Kit) -> None:
    numbers = [kit.deploy().id for _ in range(3)]
    page = deployments.list_deployments(kit.db, None, 2)
    rest = deployments.list_deployments(kit.db, page.next, 2)
    assert [item.id for item in (*page.items, *rest.items)] == numbers[::-1]


def state_of(kit: Kit, deployment: int) -> list[tuple[str, str]]:
    return [(item.state, item.reason) for item in deployments.get_deployment(kit.db, deployment).devices]


def test_a_package_is_never_offered_to_a_device_that_cannot_run_it_and_the_reason_is_shown(kit: Kit) -> None:
    kit.upload(make_package(version="3.0.0", requires=Requires(ram_mb=512, machine=("aarch64",))))
    device = kit.enrol()
    first, third = kit.deploy("1.0.0"), kit.deploy("3.0.0")
    small = {"ram_bytes": 128 << 20, "machine": "armv7l", "backends": ["onnx"]}
    answer = kit.sync(device, capabilities=small)
    assert [model.version for model in answer.desired.models] == ["1.0.0"]  # type: ignore[union-attr]
    assert state_of(kit, first.id) == [("offered", "")]
    ((state, reason),) = state_of(kit, third.id)
    assert state == "unfit" and "ram_mb 512, the device has 128" in reason and "machine aarch64" in reason
    with pytest.raises(ForbiddenError):
        deployments.check_may_fetch(kit.db, device, deployments.get_deployment(kit.db, third.id).sha256)
    large = {"ram_bytes": 1 << 30, "machine": "aarch64", "backends": ["onnx"]}
    answer = kit.sync(device, capabilities=large)  # more memory was put in
    assert [model.version for model in answer.desired.models] == ["3.0.0"]  # type: ignore[union-attr]
    assert state_of(kit, third.id) == [("offered", "")]
    kit.sync(device, capabilities={**large, "backends": ["tflite"]})
    assert "backend onnx" in state_of(kit, third.id)[0][1]


def test_what_a_device_has_said_of_a_deployment_stays(kit: Kit) -> None:
    device = kit.enrol()
    kit.upload(make_package(version="3.0.0", requires=Requires(cpus=2)))
    third = kit.deploy("3.0.0")
    kit.sync(device, capabilities={"cpus": 4})
    said = {"deployment": third.id, "state": "confirmed", "model": "gesture", "version": "3.0.0"}
    kit.sync(device, events=[record(1, "deployment", said)])
    kit.sync(device, capabilities={"cpus": 1})
    assert state_of(kit, third.id) == [("confirmed", "")]


def test_a_package_for_boards_is_offered_to_devices_with_boards_and_says_how_far_each_came(kit: Kit) -> None:
    kit.upload(board_package(), name="waves")
    one, other = kit.enrol("one", "1" * 64), kit.enrol("other", "2" * 64)
    deployment = kit.deploy(model="waves")
    able = {"backends": ["board", "onnx"]}
    kit.sync(other, capabilities=able)
    assert state_of(kit, deployment.id) == [("unfit", "it is for boards, and there is none behind the device")]
    kit.sync(one, capabilities=able)
    two = [{"uid": "b-1"}, {"uid": "b-2"}]
    generation = {"generation": kit.sync(one).desired.generation, "server_instance": kit.db.instance}  # type: ignore[union-attr]
    answer = kit.sync(one, capabilities=able, boards=two, **generation)
    assert [model.model for model in answer.desired.models] == ["waves"], "a first board is news"  # type: ignore[union-attr]
    deployments.check_may_fetch(kit.db, one, deployment.sha256)
    said = {"deployment": deployment.id, "model": "waves", "version": "1.0.0", "sha256": deployment.sha256}
    kit.sync(
        one,
        boards=two,
        events=[
            record(1, "deployment", {**said, "board": "b-1", "state": "trial", "reason": ""}),
            record(2, "deployment", {**said, "board": "b-2", "state": "refused", "reason": "its self-test failed"}),
            record(3, "deployment", {**said, "board": "b-1", "state": "confirmed", "reason": ""}),
            record(4, "deployment", {**said, "state": "confirmed", "reason": ""}),
        ],
    )
    found = {item.device_id: item for item in deployments.get_deployment(kit.db, deployment.id).devices}
    assert [(b.uid, b.state, b.reason) for b in found[one].boards] == [
        ("b-1", "confirmed", ""), ("b-2", "refused", "its self-test failed"),
    ]  # fmt: skip
    assert found[one].state == "confirmed" and found[other].boards == []


def test_a_state_of_a_board_that_cannot_be_is_refused_alone(kit: Kit) -> None:
    device, deployment = kit.enrol(), kit.deploy()
    said = {"deployment": deployment.id, "model": "gesture", "state": "confirmed"}
    answer = kit.sync(
        device,
        events=[record(1, "deployment", {**said, "board": "x" * 65}), record(2, "deployment", {**said, "board": 7})],
    )
    assert [refused.seq for refused in answer.refused] == [1, 2]
    assert kit.db.read(lambda connection: boards.states_of(connection, deployment.id)) == {}
