"""Selectors with a name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit, make_web
from tinysphere import commands, fleet, groups
from tinysphere.errors import BadRequestError, InvalidError, NotFoundError
from tinysphere.groups import GroupRequest


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


def put(kit: Kit, name: str, selector: str) -> groups.GroupView:
    return groups.put(kit.db, name, GroupRequest(selector), "ada", NOW)


def two(kit: Kit) -> tuple[str, str]:
    token = kit.join(uses=2)
    one, other = kit.enrol("one", "1" * 64, token), kit.enrol("two", "2" * 64, token)
    fleet.patch_device(kit.db, one, fleet.DevicePatch(labels={"site": "berlin"}), "*", "ada", NOW)
    return one, other


def test_a_group_is_used_in_deployments_and_commands_and_follows_its_devices(kit: Kit) -> None:
    one, other = two(kit)
    kit.upload()
    assert put(kit, "north", "site=berlin").devices == 1
    kit.deploy("1.0.0", "group=north")
    runs = lambda device: [model.version for model in kit.sync(device).desired.models]  # type: ignore[union-attr] # noqa: E731
    assert (runs(one), runs(other)) == (["1.0.0"], [])
    put(kit, "north", "name=two")
    assert (runs(one), runs(other)) == ([], ["1.0.0"])
    request = commands.CommandRequest("group=north and not group=south", "ping")
    made = kit.db.write(lambda connection: commands.create_in(connection, request, "ada", NOW))
    assert [item.device_id for item in made.devices] == [other]
    (listed,) = groups.list_groups(kit.db, None, 10).items
    assert (listed.name, listed.selector, listed.devices, listed.changed_by) == ("north", "name=two", 1, "ada")
    assert groups.remove(kit.db, "north", "ada", NOW).devices == 1
    assert runs(other) == [] and groups.list_groups(kit.db, None, 10).items == []
    with pytest.raises(NotFoundError, match="no group"):
        groups.remove(kit.db, "north", "ada", NOW)


@pytest.mark.parametrize(
    ("name", "selector", "error", "said"),
    [
        ("a b", "all", InvalidError, "name"),
        ("", "all", InvalidError, "name"),
        ("x" * 64, "all", InvalidError, "name"),
        ("a", "site=", BadRequestError, "at character"),
        ("a", "group=b", InvalidError, "knows no groups"),
        ("a", "not (site=x or group in (a, b))", InvalidError, "knows no groups"),
    ],
)
def test_what_is_no_group_is_refused(kit: Kit, name: str, selector: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        put(kit, name, selector)
    assert groups.list_groups(kit.db, None, 10).items == []


def test_their_number_is_bounded(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "GROUPS_MAX", 2)
    put(kit, "a", "all")
    put(kit, "b", "all")
    put(kit, "b", "site=x")
    with pytest.raises(InvalidError, match="2 groups already"):
        put(kit, "c", "all")


def test_a_label_cannot_pretend_to_be_a_group(kit: Kit) -> None:
    with pytest.raises(InvalidError, match="group"):
        fleet.patch_device(kit.db, kit.enrol(), fleet.DevicePatch(labels={"group": "north"}), "*", "ada", NOW)


def test_a_group_is_changed_as_it_was_seen(tmp_path: Path) -> None:
    web = make_web(tmp_path)
    with web.client:
        headers = web.bearer(web.kit.token("operator"))
        path = "/api/v1/groups/north"
        made = web.client.put(path, json={"selector": "site=berlin"}, headers=headers)
        assert made.status_code == 200 and made.headers["etag"] == web.client.get(path, headers=headers).headers["etag"]
        assert web.client.put(path, json={"selector": "site=berlin"}, headers=headers).status_code == 200
        assert web.client.put(path, json={"selector": "site=bonn"}, headers=headers).status_code == 428
        matched = {**headers, "If-Match": made.headers["etag"]}
        web.kit.clock.advance(1)
        changed = web.client.put(path, json={"selector": "site=bonn"}, headers=matched)
        assert changed.status_code == 200 and changed.headers["etag"] != made.headers["etag"]
        assert web.client.put(path, json={"selector": "all"}, headers=matched).status_code == 412
        assert web.client.delete(path, headers=matched).status_code == 412
        assert web.client.delete(path, headers={**headers, "If-Match": changed.headers["etag"]}).status_code == 200
        assert web.client.get(path, headers=headers).status_code == 404
        for name in ("a", "b", "c"):
            web.client.put(f"/api/v1/groups/{name}", json={"selector": "all"}, headers=headers)
        page = web.client.get("/api/v1/groups?limit=2", headers=headers)
        assert [group["name"] for group in page.json()["items"]] == ["a", "b"] and "rel=" in page.headers["link"]
