"""Settings for devices: numbered, checked before any device hears of them, and what became of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit, make_web, record
from tinylcm.remote_config import check_settings
from tinysphere import groups, settings
from tinysphere.errors import InvalidError, NotFoundError, PreconditionFailedError, PreconditionRequiredError
from tinysphere.settings import SettingsRequest, SettingsView

FAST: dict[str, object] = {"server": {"sync_interval_s": 5.0}}


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


def put(kit: Kit, wanted: dict[str, object], if_match: str | None = "*", scope: str = "all") -> SettingsView:
    return settings.put(kit.db, scope, SettingsRequest(wanted), if_match, "user:me", NOW)


def test_settings_come_with_the_desired_state_of_a_new_generation(kit: Kit) -> None:
    device = kit.enrol()
    first = kit.sync(device)
    assert not isinstance(first.desired, str) and first.desired.config == {}
    known = {"generation": first.desired.generation, "server_instance": first.server_instance}
    assert put(kit, FAST, '"0"').version == 1
    news = kit.sync(device, **known).desired
    assert not isinstance(news, str) and news.config == {"version": 1, "settings": FAST}
    check_settings(news.config["settings"])
    assert kit.sync(device, **{**known, "generation": news.generation}).desired == "unchanged"


def test_the_same_again_changes_nothing_and_somebody_elses_change_is_not_lost(kit: Kit) -> None:
    assert settings.get(kit.db, "all").version == 0
    assert put(kit, FAST).version == put(kit, FAST, '"1"').version == 1
    assert put(kit, {}, '"1"').version == 2 and put(kit, FAST, '"2"').version == 3
    with pytest.raises(PreconditionFailedError, match='at "3"'):
        put(kit, {}, '"2"')
    with pytest.raises(PreconditionRequiredError):
        put(kit, {}, None)
    assert settings.get(kit.db, "all").settings == FAST


@pytest.mark.parametrize(
    "wanted", [{"server": {"insecure": True}}, {"device": {"data": "/"}}, {"server": {"sync_interval_s": "soon"}}]
)
def test_what_no_device_may_take_is_refused_here(kit: Kit, wanted: dict[str, object]) -> None:
    with pytest.raises(InvalidError, match=next(iter(wanted))):
        put(kit, wanted)
    with pytest.raises(NotFoundError, match="no group 'kitchen'"):
        put(kit, FAST, scope="group:kitchen")
    for scope in ("kitchen", "group:", "planet:earth", "all:", ":", "model:none", "device:dnone"):
        with pytest.raises(NotFoundError, match=r"there (is no scope|is no (model|device))"):
            settings.get(kit.db, scope)


def test_what_devices_made_of_them_is_shown(kit: Kit) -> None:
    device = kit.enrol()
    put(kit, FAST)
    said = [
        record(1, "config_result", {"version": 1, "state": "applied", "reason": ""}),
        record(2, "config_result", {"version": 1, "state": "rolled_back", "reason": "it restarted too often"}),
        record(3, "config_result", {"version": 1, "state": "liked", "reason": ""}),
    ]
    assert [item.seq for item in kit.sync(device, events=said).refused] == [3]
    (found,) = settings.get(kit.db, "all").devices
    assert (found.device_id, found.version, found.state) == (device, 1, "rolled_back")
    assert found.reason == "it restarted too often"


def config_of(kit: Kit, device: str) -> object:
    desired = kit.sync(device).desired
    assert not isinstance(desired, str)
    return desired.config


def test_each_scope_lies_over_the_ones_before_it_key_by_key(kit: Kit) -> None:
    one, two = kit.enrol("one", "11" * 32), kit.enrol("two", "22" * 32)
    kit.upload()
    kit.deploy(selector="name=one")
    groups.put(kit.db, "beta", groups.GroupRequest("name=one"), "me", NOW)
    groups.put(kit.db, "alpha", groups.GroupRequest("all"), "me", NOW)
    put(kit, {"server": {"sync_interval_s": 1.0}, "device": {"metrics_interval_s": 1.0}, "trial": {"windows": 1}})
    put(kit, {"server": {"sync_interval_s": 2.0}, "models": {"gesture": {"latency_us": 2.0, "memory_bytes": 2}}},
        scope="model:gesture")  # fmt: skip
    put(kit, {"server": {"sync_interval_s": 3.0}, "trial": {"windows": 3}}, scope="group:beta")
    put(kit, {"server": {"sync_interval_s": 4.0}, "trial": {"windows": 4}}, scope="group:alpha")
    assert config_of(kit, one) == {
        "version": 4,
        "settings": {
            "server": {"sync_interval_s": 3.0},
            "device": {"metrics_interval_s": 1.0},
            "trial": {"windows": 3},
            "models": {"gesture": {"latency_us": 2.0, "memory_bytes": 2}},
        },
    }
    put(kit, {"models": {"gesture": {"latency_us": 5.0}}}, scope=f"device:{one}")
    found = settings.effective(kit.db, one)
    assert found.version == 5 and found.settings["models"] == {"gesture": {"latency_us": 5.0, "memory_bytes": 2}}
    assert found.sources == {
        "server.sync_interval_s": "group:beta",
        "device.metrics_interval_s": "all",
        "trial.windows": "group:beta",
        "models.gesture.latency_us": f"device:{one}",
        "models.gesture.memory_bytes": "model:gesture",
    }
    assert found.scopes == ["all", "model:gesture", "group:alpha", "group:beta", f"device:{one}"]
    check_settings(found.settings)
    assert config_of(kit, two) == {
        "version": 4,
        "settings": {
            "server": {"sync_interval_s": 4.0}, "device": {"metrics_interval_s": 1.0}, "trial": {"windows": 4},
        },
    }  # fmt: skip
    with pytest.raises(NotFoundError, match="no device"):
        settings.effective(kit.db, "dnone")


def test_a_device_that_leaves_a_group_loses_what_the_group_set(kit: Kit) -> None:
    device = kit.enrol("one")
    groups.put(kit.db, "beta", groups.GroupRequest("name=one"), "me", NOW)
    put(kit, FAST, scope="group:beta")
    assert config_of(kit, device) == {"version": 1, "settings": FAST}
    kit.sync(device, events=[record(1, "config_result", {"version": 1, "state": "applied", "reason": ""})])
    groups.remove(kit.db, "beta", "me", NOW)
    assert config_of(kit, device) == {"version": 1, "settings": {}}
    assert config_of(kit, kit.enrol("other", "22" * 32)) == {}


def test_the_devices_of_a_scope_are_shown_with_it(kit: Kit) -> None:
    one, two = kit.enrol("one", "11" * 32), kit.enrol("two", "22" * 32)
    kit.upload()
    kit.deploy(selector="name=two")
    groups.put(kit.db, "beta", groups.GroupRequest("name=one"), "me", NOW)
    for scope in ("all", "group:beta", "model:gesture", f"device:{two}"):
        put(kit, FAST, scope=scope)
    for device in (one, two):
        kit.sync(device, events=[record(1, "config_result", {"version": 4, "state": "applied", "reason": ""})])
    shown = {scope: {item.device_id for item in settings.get(kit.db, scope).devices} for scope in (
        "all", "group:beta", "model:gesture", f"device:{two}")}  # fmt: skip
    assert shown == {"all": {one, two}, "group:beta": {one}, "model:gesture": {two}, f"device:{two}": {two}}
    listed = [(item.scope, item.version, item.keys) for item in settings.list_scopes(kit.db, None, 10).items]
    assert listed == [("all", 1, 1), (f"device:{two}", 4, 1), ("group:beta", 2, 1), ("model:gesture", 3, 1)]


def test_versions_are_kept_and_compared(kit: Kit) -> None:
    put(kit, {"server": {"sync_interval_s": 5.0}, "trial": {"windows": 3}})
    put(kit, {"server": {"sync_interval_s": 7.0}, "models": {"a": {"latency_us": 1.0}}})
    put(kit, {})
    changes = settings.diff(kit.db, "all", 1, 2).changes
    assert [(item.key, item.before, item.after) for item in changes] == [
        ("models.a.latency_us", None, 1.0), ("server.sync_interval_s", 5.0, 7.0), ("trial.windows", 3, None),
    ]  # fmt: skip
    newest = settings.diff(kit.db, "all", None, None)
    assert (newest.before, newest.after, len(newest.changes)) == (2, 3, 2)
    assert [item.key for item in settings.diff(kit.db, "all", 0, 1).changes] == [
        "server.sync_interval_s", "trial.windows",
    ]  # fmt: skip
    with pytest.raises(NotFoundError, match="no version 9"):
        settings.diff(kit.db, "all", 9, None)
    page = settings.list_versions(kit.db, "all", None, 2)
    assert [item.version for item in page.items] == [3, 2]
    assert [item.version for item in settings.list_versions(kit.db, "all", page.next, 2).items] == [1]


def test_over_http_with_its_etag(tmp_path: Path) -> None:
    web = make_web(tmp_path)
    with web.client:
        headers = web.bearer(web.kit.token("operator"))
        none = web.client.get("/api/v1/config/all", headers=headers)
        assert none.json()["version"] == 0 and none.headers["etag"] == '"0"'
        body = {"settings": FAST}
        assert web.client.put("/api/v1/config/all", json=body, headers=headers).status_code == 428
        done = web.client.put("/api/v1/config/all", json=body, headers={**headers, "If-Match": '"0"'})
        assert done.status_code == 200 and done.headers["etag"] == '"1"' and done.json()["settings"] == FAST
        late = web.client.put("/api/v1/config/all", json={"settings": {}}, headers={**headers, "If-Match": '"0"'})
        assert late.status_code == 412
        assert web.client.get("/api/v1/config/none", headers=headers).status_code == 404
        device, _ = web.enrol()
        scope = f"device:{device}"
        put_one = web.client.put(f"/api/v1/config/{scope}", json=body, headers={**headers, "If-Match": '"0"'})
        assert put_one.json()["version"] == 2
        assert web.client.get(f"/api/v1/devices/{device}/config", headers=headers).json()["sources"] == {
            "server.sync_interval_s": scope
        }
        listed = web.client.get("/api/v1/config", headers=headers).json()["items"]
        assert [item["scope"] for item in listed] == ["all", scope]
        history = web.client.get(f"/api/v1/config/{scope}/versions?limit=1", headers=headers)
        assert [item["version"] for item in history.json()["items"]] == [2] and "link" not in history.headers
        diff = web.client.get(f"/api/v1/config/{scope}/diff?from=0&to=2", headers=headers).json()
        assert diff["changes"] == [{"key": "server.sync_interval_s", "before": None, "after": 5.0}]
        assert web.client.get("/api/v1/config/all/diff?from=x", headers=headers).status_code == 400
