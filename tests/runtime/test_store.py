"""Packages and slots on a real disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import make_package, make_signer, write_keys
from tinylcm.errors import ModelError
from tinylcm.slots import Event, Held, Slot, State, step
from tinylcm.store import SlotStore


@pytest.fixture
def store(tmp_path: Path) -> SlotStore:
    return SlotStore(tmp_path, write_keys(tmp_path / "trust", make_signer()))


def test_a_package_is_kept_and_read_back_checked(store: SlotStore) -> None:
    data = make_package()
    package = store.add(data)
    held = Held(package.sha256, "1.0.0")
    assert store.load(held) == package
    path = store.package_path(package.sha256)
    path.write_bytes(data[:-1] + b"\0")
    with pytest.raises(ModelError, match="damaged"):
        store.load(held)
    path.unlink()
    with pytest.raises(ModelError, match="missing from this device"):
        store.load(held)


def test_a_foreign_package_is_not_kept(store: SlotStore, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not trusted here"):
        store.add(make_package(signer=make_signer(7)))
    assert list((tmp_path / "packages").iterdir()) == []


def test_packages_that_no_slot_holds_are_dropped(store: SlotStore) -> None:
    one, two = (store.add(make_package(version=version)) for version in ("1.0", "2.0"))
    slot = step(Slot(), Event.STAGE, Held(one.sha256, "1.0"))
    store.write("gesture", slot)
    assert store.package_path(one.sha256).exists() and not store.package_path(two.sha256).exists()
    assert store.read("gesture") == slot and store.models() == ["gesture"]
    assert store.read("unknown").state is State.EMPTY


def test_a_damaged_slot_says_so_and_nothing_is_dropped(store: SlotStore, tmp_path: Path) -> None:
    package = store.add(make_package())
    (tmp_path / "slots" / "gesture.json").write_text('{"state": ')
    with pytest.raises(ModelError, match="damaged"):
        store.read("gesture")
    store.write("other", Slot())
    assert store.package_path(package.sha256).exists()


@pytest.mark.parametrize("name", ["../etc", "", "A", "a/b", "x" * 65])
def test_names_that_are_no_names_touch_no_file(store: SlotStore, name: str) -> None:
    with pytest.raises(ModelError, match="no model name"):
        store.read(name)
    with pytest.raises(ModelError, match="no sha256"):
        store.package_path(name)
