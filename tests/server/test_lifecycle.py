"""Keys that change, devices that are shut out or go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, digest_of, make_kit
from tinysphere import audit, auth, fleet, groups, lifecycle
from tinysphere.errors import InvalidError, NotFoundError, UnauthorizedError
from tinysphere.lifecycle import KeyRequest


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


def may(kit: Kit, device: str, secret: str) -> bool:
    try:
        return auth.authenticate_device(kit.db, f"{device}.{secret}").id == device
    except UnauthorizedError:
        return False


def test_both_keys_hold_until_the_next_one_is_used(kit: Kit) -> None:
    device = kit.enrol(secret="old")
    for _ in range(2):  # an answer that was lost is asked for again
        assert lifecycle.change_key(kit.db, device, KeyRequest(digest_of("new")), NOW).device_id == device
    assert may(kit, device, "old") and not may(kit, device, "other")
    assert may(kit, device, "new")
    assert not may(kit, device, "old") and may(kit, device, "new")
    assert [entry.what for entry in audit.list_audit(kit.db, 1 << 60, 10)].count("device.key") == 1
    with pytest.raises(InvalidError):
        lifecycle.change_key(kit.db, device, KeyRequest("short"), NOW)


def test_a_next_key_that_was_never_used_gives_way_to_another(kit: Kit) -> None:
    device = kit.enrol(secret="old")
    for secret in ("lost", "new"):
        lifecycle.change_key(kit.db, device, KeyRequest(digest_of(secret)), NOW)
    assert may(kit, device, "old") and not may(kit, device, "lost") and may(kit, device, "new")


@pytest.mark.parametrize("end", [lifecycle.revoke, lifecycle.retire])
def test_a_device_that_is_shut_out_may_come_back_as_another(kit: Kit, end: object) -> None:
    token = kit.join(uses=2)
    device = kit.enrol(secret="old", token=token)
    lifecycle.change_key(kit.db, device, KeyRequest(digest_of("new")), NOW)
    view = end(kit.db, device, "ada", NOW + 5)  # type: ignore[operator]
    assert NOW + 5 in (view.revoked_at, view.retired_at)
    assert end(kit.db, device, "bob", NOW + 6) == view  # type: ignore[operator]
    assert not may(kit, device, "old") and not may(kit, device, "new")
    with pytest.raises(UnauthorizedError, match=r"was (revoked|retired)"):
        auth.authenticate_device(kit.db, f"{device}.old")
    assert kit.enrol(secret="fresh", token=token) != device
    with pytest.raises(NotFoundError):
        end(kit.db, "dnone", "ada", NOW)  # type: ignore[operator]


def test_a_retired_device_is_in_no_list_and_no_selector_means_it(kit: Kit) -> None:
    kit.upload()
    device = kit.enrol()
    kit.deploy()
    lifecycle.retire(kit.db, device, "ada", NOW)
    assert fleet.list_devices(kit.db, None, 10, NOW).items == []
    assert kit.db.read(lambda connection: groups.members(connection, "all")) == []
    assert fleet.get_device(kit.db, device, NOW).retired_at == NOW
