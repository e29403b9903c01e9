"""Enrolment, devices and selectors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit
from tinysphere import fleet
from tinysphere.errors import (
    ForbiddenError,
    InvalidError,
    NotFoundError,
    PreconditionFailedError,
    PreconditionRequiredError,
)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def test_the_same_secret_gets_the_same_answer_even_from_a_used_token(kit: Kit) -> None:
    token = kit.join()
    request = fleet.EnrolRequest(token, "watch", digest("s"))
    first, new = fleet.enrol(kit.db, request, NOW)
    again, once_more = fleet.enrol(kit.db, request, NOW + 10**6)
    assert new and not once_more and first == again
    with pytest.raises(ForbiddenError, match="used 1 of 1 times"):
        fleet.enrol(kit.db, fleet.EnrolRequest(token, "other", digest("t")), NOW)


def test_tokens_that_expired_or_are_wrong_say_so(kit: Kit) -> None:
    with pytest.raises(ForbiddenError, match="expired"):
        fleet.enrol(kit.db, fleet.EnrolRequest(kit.join(ttl_s=10), "w", digest("s")), NOW + 11)
    for token in ("", "tj_00000000_x", "ts_00000000_x", kit.token()):
        with pytest.raises(ForbiddenError, match="not known here"):
            fleet.enrol(kit.db, fleet.EnrolRequest(token, "w", digest("s")), NOW)


@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": "x" * 101},
        {"name": "a\nb"},
        {"secret_sha256": "short"},
        {"capabilities": {"a": "x" * 70_000}},
    ],
)
def test_malformed_enrolments_are_refused(kit: Kit, fields: dict) -> None:
    request = fleet.EnrolRequest(**{"token": kit.join(), "name": "w", "secret_sha256": digest("s"), **fields})
    with pytest.raises(InvalidError):
        fleet.enrol(kit.db, request, NOW)


def test_devices_are_listed_in_pages(kit: Kit) -> None:
    token = kit.join(uses=5)
    ids = sorted(kit.enrol(f"w{index}", f"{index}" * 64, token) for index in range(5))
    first = fleet.list_devices(kit.db, None, 3, NOW)
    second = fleet.list_devices(kit.db, first.next, 3, NOW)
    assert [device.id for device in (*first.items, *second.items)] == ids and second.next is None
    with pytest.raises(NotFoundError):
        fleet.get_device(kit.db, "dnone", NOW)


def test_a_device_is_away_when_it_was_not_seen_for_three_syncs(kit: Kit) -> None:
    device = kit.enrol()
    assert not fleet.get_device(kit.db, device, NOW).online
    kit.sync(device)
    assert fleet.get_device(kit.db, device, NOW + 89).online
    assert not fleet.get_device(kit.db, device, NOW + 91).online


def test_a_change_must_name_the_state_it_is_based_on(kit: Kit) -> None:
    device = kit.enrol()
    patch = fleet.DevicePatch(labels={"site": "berlin"})
    with pytest.raises(PreconditionRequiredError):
        fleet.patch_device(kit.db, device, patch, None, "me", NOW)
    changed = fleet.patch_device(kit.db, device, patch, '"1"', "me", NOW)
    assert changed.labels == {"site": "berlin"} and changed.row_version == 2
    with pytest.raises(PreconditionFailedError, match=r'now at "2"'):
        fleet.patch_device(kit.db, device, patch, '"1"', "me", NOW)
    assert fleet.patch_device(kit.db, device, fleet.DevicePatch(name="n"), "*", "me", NOW).labels == {"site": "berlin"}


@pytest.mark.parametrize(
    "labels", [{"id": "x"}, {"a b": "x"}, {"a": "x,y"}, {"a": ""}, {f"k{i}": "v" for i in range(65)}]
)
def test_labels_that_no_selector_could_name_are_refused(kit: Kit, labels: dict) -> None:
    with pytest.raises(InvalidError, match="labels"):
        fleet.patch_device(kit.db, kit.enrol(), fleet.DevicePatch(labels=labels), "*", "me", NOW)


def test_a_place_is_set_and_taken_away_and_never_half(kit: Kit) -> None:
    device = kit.enrol()
    change = lambda **fields: fleet.patch_device(kit.db, device, fleet.DevicePatch(**fields), "*", "me", NOW)  # noqa: E731
    assert fleet.get_device(kit.db, device, NOW).latitude is None
    there = change(latitude=52.5, longitude=13)
    assert (there.latitude, there.longitude) == (52.5, 13.0)
    assert change(name="n").latitude == 52.5
    assert change(latitude=None, longitude=None).longitude is None
    for wrong in (
        {"latitude": 1.0},
        {"latitude": 1.0, "longitude": None},
        {"latitude": 90.1, "longitude": 0.0},
        {"latitude": float("nan"), "longitude": 0.0},
    ):
        with pytest.raises(InvalidError, match="latitude"):
            change(**wrong)
