"""Names for versions, two compared, one removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit
from models import make_package
from tinylcm.requires import Requires
from tinylcm.wire import RunningModel
from tinysphere import deployments, registry, versions
from tinysphere.errors import ConflictError, InvalidError, NotFoundError, PreconditionFailedError
from tinysphere.versions import AliasRequest


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    made.upload()
    made.upload(make_package(version="2.0.0", bias=1.0, requires=Requires(ram_mb=64)))
    yield made
    made.db.close()


def alias(kit: Kit, name: str, version: str) -> versions.AliasView:
    return versions.set_alias(kit.db, "gesture", name, AliasRequest(version), "ada", NOW)


def test_an_alias_names_one_version_and_moves(kit: Kit) -> None:
    alias(kit, "champion", "1.0.0")
    assert kit.deploy("@champion").version == "1.0.0"
    moved = alias(kit, "champion", "2.0.0")
    assert (moved.version, moved.changed_by) == ("2.0.0", "ada")
    assert kit.deploy("@champion").version == "2.0.0"  # what was deployed before stays what it was
    assert [item.version for item in deployments.list_deployments(kit.db, None, 9).items] == ["2.0.0", "1.0.0"]
    assert versions.list_aliases(kit.db, "gesture", None, 50).items == [moved]
    with pytest.raises(PreconditionFailedError, match="the alias champion"):
        versions.remove_alias(kit.db, "gesture", "champion", "ada", NOW, '"what-was-seen-before"')
    seen = versions.alias_tag(moved)
    assert versions.remove_alias(kit.db, "gesture", "champion", "ada", NOW, seen).version == "2.0.0"
    for action in (
        lambda: kit.deploy("@champion"),
        lambda: versions.remove_alias(kit.db, "gesture", "champion", "ada", NOW),
        lambda: alias(kit, "champion", "9.9.9"),
        lambda: versions.compare(kit.db, "gesture", "@champion", "1.0.0"),
    ):
        with pytest.raises(NotFoundError):
            action()


@pytest.mark.parametrize("name", ["", "Champion", "1st", "a b", "x" * 64, "@a"])
def test_what_is_no_alias_is_refused(kit: Kit, name: str) -> None:
    with pytest.raises(InvalidError, match="alias"):
        alias(kit, name, "1.0.0")


def test_the_number_of_aliases_is_bounded(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "ALIASES_MAX", 1)
    alias(kit, "a", "1.0.0")
    alias(kit, "a", "2.0.0")
    with pytest.raises(InvalidError, match="1 aliases already"):
        alias(kit, "b", "1.0.0")


def test_two_versions_are_compared_place_by_place(kit: Kit) -> None:
    alias(kit, "next", "2.0.0")
    found = versions.compare(kit.db, "gesture", "1.0.0", "@next")
    assert (found.a.version, found.b.version, found.same_package) == ("1.0.0", "2.0.0", False)
    differences = {item.place: (item.a, item.b) for item in found.differences}
    assert differences["version"] == ('"1.0.0"', '"2.0.0"')
    assert differences["requires.ram_mb"] == (None, "64")
    assert "members[0].sha256" in differences and "name" not in differences
    assert versions.compare(kit.db, "gesture", "1.0.0", "1.0.0").differences == []


def test_a_version_goes_when_nobody_runs_or_is_to_run_it(kit: Kit) -> None:
    view = registry.get_version(kit.db, "gesture", "1.0.0")
    remove = lambda: versions.remove_version(kit.db, kit.store, "gesture", "1.0.0", "ada", NOW)  # noqa: E731
    deployment = kit.deploy("1.0.0")
    with pytest.raises(ConflictError, match="is deployed"):
        remove()
    deployments.abort(kit.db, deployment.id, "ada", NOW)
    alias(kit, "champion", "1.0.0")
    with pytest.raises(ConflictError, match="is @champion"):
        remove()
    versions.remove_alias(kit.db, "gesture", "champion", "ada", NOW)
    device = kit.enrol()
    kit.sync(device, running=(RunningModel("gesture", "1.0.0", view.sha256, "confirmed"),))
    with pytest.raises(ConflictError, match=f"{device} runs gesture"):
        remove()
    board = {"uid": "b1", "name": "belt", "fw": "1", "model": "gesture", "model_version": "1.0.0", "state": "running"}
    kit.sync(device, running=(), boards=(board,))
    with pytest.raises(ConflictError, match=f"board b1 behind {device}"):
        remove()
    kit.sync(device, running=(), boards=())
    assert remove() == view
    assert kit.store.size(view.sha256) is None
    with pytest.raises(NotFoundError):
        remove()
    assert [item.version for item in registry.get_model(kit.db, "gesture").versions] == ["2.0.0"]
    kit.upload()  # the same may come again


def test_an_alias_stands_for_its_version_where_one_is_asked_for(kit: Kit) -> None:
    alias(kit, "champion", "2.0.0")
    assert versions.get(kit.db, "gesture", "@champion") == registry.get_version(kit.db, "gesture", "2.0.0")
    assert versions.get(kit.db, "gesture", "1.0.0").version == "1.0.0"
    for wanted in ("@none", "9.9.9"):
        with pytest.raises(NotFoundError):
            versions.get(kit.db, "gesture", wanted)
