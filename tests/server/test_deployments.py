"""Which device should run what."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit
from models import make_package
from tinysphere import deployments, fleet
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
