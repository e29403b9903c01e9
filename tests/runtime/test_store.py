"""Packages and slots on a real disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from models import make_package, make_signer, write_keys
from tinylcm.errors import DeviceError, ModelError
from tinylcm.keys import BUILT_S, KeySet, PrivateKey, ReleaseKey, Revocation, Signer, accept_statement, fingerprint
from tinylcm.slots import Event, Held, Slot, State, step
from tinylcm.store import PARTS_MAX, SlotStore


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


# Revocation: make_signer's root has the seed 1, its release key 101.

ROOT, RELEASE = PrivateKey(bytes([1]) * 32), PrivateKey(bytes([101]) * 32)


def revoking(floor: int, *keys: PrivateKey, serial: int = 1) -> Signer:
    revoked = frozenset(fingerprint(key.public) for key in keys)
    said = Revocation.sign(ROOT, {"gesture": floor}, revoked, serial=serial)
    return replace(make_signer(), statements=(said,))


def test_a_package_that_tells_of_a_floor_raises_it_before_it_is_kept(store: SlotStore, tmp_path: Path) -> None:
    old = store.add(make_package(version="1.0", security_counter=2))
    slot = step(Slot(), Event.STAGE, Held(old.sha256, "1.0"))
    store.write("gesture", slot)
    assert store.revoked(store.read("gesture")) == {}
    store.add(make_package(version="2.0", signer=revoking(3), security_counter=3))
    assert store.read("gesture").floor == 3
    assert "security counter is 2, this device takes 3" in store.revoked(store.read("gesture"))[old.sha256]
    again = SlotStore(tmp_path, tmp_path / "trust")
    assert again.read("gesture").floor == 3 and again.read("other").floor == 0
    assert again.load(Held(old.sha256, "1.0")) == old  # it can still be read: the slot decides
    store.write("gesture", store.read("gesture"))
    next((tmp_path / "trust").glob("*.revocation")).unlink()
    assert SlotStore(tmp_path, tmp_path / "trust").read("gesture").floor == 3  # the slot remembers it too


def test_a_package_of_a_revoked_key_is_not_taken_and_one_that_is_there_is_named(
    store: SlotStore, tmp_path: Path
) -> None:
    data = make_package()
    package = store.add(data)
    slot = step(Slot(), Event.STAGE, Held(package.sha256, "1.0.0"))
    accept_statement(tmp_path / "trust", revoking(0, RELEASE).statements[0].to_json())
    with pytest.raises(ModelError, match="was revoked by its root"):
        store.add(data)
    assert store.revoked(slot) == {package.sha256: "the key that signed it was revoked"}
    assert store.load(Held(package.sha256, "1.0.0")) == package


def test_what_is_missing_or_damaged_is_no_place_to_go_back_to(store: SlotStore) -> None:
    one, two = (store.add(make_package(version=version)) for version in ("1.0", "2.0"))
    slot = Slot(State.CONFIRMED, active=Held(one.sha256, "1.0"), previous=Held(two.sha256, "2.0"))
    store.package_path(one.sha256).write_bytes(b"TLMPKG1\n" + bytes(50))
    store.package_path(two.sha256).unlink()
    reasons = store.revoked(slot)
    assert set(reasons) == {one.sha256, two.sha256} and "missing" in reasons[two.sha256]


def test_a_key_set_that_is_older_than_the_newest_seen_is_judged_by_the_newest(store: SlotStore) -> None:
    def signer(serial: int, *keys: PrivateKey) -> Signer:
        listed = tuple(ReleaseKey(key.public, 4_000_000_000) for key in keys)
        return Signer(keys[0], KeySet.sign(ROOT, listed, serial=serial))

    new = PrivateKey(bytes([7]) * 32)
    installed = store.add(make_package(version="1.0", signer=signer(1, RELEASE)))
    store.add(make_package(version="2.0", signer=signer(2, new, RELEASE)))
    store.add(make_package(version="1.5", signer=signer(1, RELEASE)))  # still listed
    store.add(make_package(version="3.0", signer=signer(3, new)))
    with pytest.raises(ModelError, match="is not in the newest key set"):
        store.add(make_package(version="1.6", signer=signer(1, RELEASE)))
    assert store.load(Held(installed.sha256, "1.0")) == installed
    assert store.revoked(Slot(State.CONFIRMED, active=Held(installed.sha256, "1.0"))) == {}


# Clocks


@pytest.mark.parametrize("wall_s", [0.0, -1e12, BUILT_S - 1.0])
def test_a_clock_that_shows_the_past_warns_and_bricks_nothing(
    tmp_path: Path, wall_s: float, caplog: pytest.LogCaptureFixture
) -> None:
    store = SlotStore(tmp_path, write_keys(tmp_path / "trust", make_signer()), lambda: wall_s)
    assert store.now_s() == BUILT_S
    assert "which was before 2026-11-01" in caplog.text
    assert store.add(make_package(signer=make_signer(expires_s=BUILT_S - 1))).expired
    assert not store.add(make_package(version="2.0")).expired


def test_the_latest_time_seen_counts_also_after_a_restart(tmp_path: Path) -> None:
    trust = write_keys(tmp_path / "trust", make_signer())
    SlotStore(tmp_path, trust, lambda: BUILT_S + 9e6).add(make_package())
    later = SlotStore(tmp_path, trust, lambda: BUILT_S + 1.0)
    assert later.now_s() == BUILT_S + 9e6
    assert later.add(make_package(signer=make_signer(expires_s=BUILT_S + 8_000_000))).expired
    (tmp_path / "seen.json").write_text("damaged")
    assert later.now_s() == BUILT_S + 1.0


# Garbage and space


def test_of_downloads_that_were_cut_off_the_newest_stay_and_one_under_way_always(store: SlotStore) -> None:
    shas = [f"{number:064x}" for number in range(PARTS_MAX + 3)]
    for number, sha256 in enumerate(shas):
        path = store.package_path(sha256).with_suffix(".part")
        path.write_bytes(b"x")
        os.utime(path, ns=(number, number))
    with store.part(shas[0]) as under_way:
        store.write("gesture", Slot())
        left = {path.stem for path in under_way.parent.glob("*.part")}
    assert left == {shas[0], *shas[-PARTS_MAX:]}
    store.write("gesture", Slot())
    assert not under_way.exists()


def test_what_a_cut_left_of_atomic_writes_goes(store: SlotStore, tmp_path: Path) -> None:
    for folder in ("packages", "slots"):
        (tmp_path / folder / ".gesture.json.abc123").write_bytes(b"half")
    store.write("gesture", Slot())
    assert [path.name for path in (tmp_path / "slots").iterdir()] == ["gesture.json"]
    assert list((tmp_path / "packages").iterdir()) == []


def full(path: Path) -> None:
    raise OSError(5, "Input/output error", str(path))


def test_a_deletion_that_fails_changes_nothing_and_is_tried_again(
    store: SlotStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = store.add(make_package())
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", lambda path, **_: full(path))
        store.write("gesture", Slot())
    assert store.package_path(package.sha256).exists()
    store.write("gesture", Slot())
    assert not store.package_path(package.sha256).exists()


@pytest.mark.parametrize("after", [False, True])
def test_a_cut_around_the_change_of_a_slot_leaves_what_the_slot_names(
    store: SlotStore, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    one, two = (store.add(make_package(version=version)) for version in ("1.0", "2.0"))
    slots = [Slot(State.CONFIRMED, active=Held(package.sha256, "x")) for package in (one, two)]
    store.write("gesture", slots[0])
    two = store.add(make_package(version="2.0"))
    real: Callable[..., None] = os.replace

    class Cut(BaseException):
        pass

    def replacing(source: Path, target: Path) -> None:
        if after:
            real(source, target)
        raise Cut

    with monkeypatch.context() as patched, pytest.raises(Cut):
        patched.setattr(os, "replace", replacing)
        store.write("gesture", slots[1])
    found = store.read("gesture")
    assert found == slots[after]
    assert found.active is not None and store.load(found.active)
    assert store.package_path(one.sha256).exists() and store.package_path(two.sha256).exists()
    store.write("gesture", found)
    assert store.package_path(one.sha256).exists() is not after


def test_too_little_space_is_said_before_it_is_used_up(store: SlotStore) -> None:
    store.require_space(1)
    with pytest.raises(DeviceError, match=r"needs 1152921504606846976 bytes of disk and .* are free: free some space"):
        store.require_space(1 << 60)
