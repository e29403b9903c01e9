"""Settings for devices: numbered, checked before any device hears of them, and what became of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit, make_web, record
from tinylcm.remote_config import check_settings
from tinysphere import settings
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
    with pytest.raises(NotFoundError, match="there is: all"):
        put(kit, FAST, scope="group:kitchen")
    with pytest.raises(NotFoundError):
        settings.get(kit.db, "kitchen")


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
