"""A publisher's folder of keys: revoking, a new release key, a new root, cut off at any point and repeated."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from models import linear_model, manifest_of
from tinylcm.errors import ConfigError, ModelError
from tinylcm.keyring import revoke, rotate_release, rotate_root
from tinylcm.keys import Signer, Trust, fingerprint, init_keys, load_private, load_public, pin_root, renew_keys
from tinylcm.package import build_package, parse_package


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    init_keys(tmp_path / "keys")
    return tmp_path / "keys"


def build(folder: Path, counter: int = 9) -> bytes:
    from dataclasses import replace

    manifest = replace(manifest_of(), security_counter=counter)
    return build_package(manifest, {"model.onnx": linear_model()}, Signer.load(folder / "release.key"))


def trust_in(public: bytes) -> Trust:
    return Trust(frozenset({fingerprint(public)}))


def test_a_floor_rises_and_never_falls(folder: Path) -> None:
    first = revoke(folder, model="gesture", floor=3)
    second = revoke(folder, model="other", floor=1)
    assert (first.floors, second.floors) == ({"gesture": 3}, {"gesture": 3, "other": 1})
    assert second.serial > first.serial
    for floor in (0, 2):
        with pytest.raises(ConfigError, match=f"the floor of gesture is 3 and never falls.*got {floor}"):
            revoke(folder, model="gesture", floor=floor)
    assert Signer.load(folder / "release.key").statements == (second,)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({}, "name what to revoke"),
        ({"floor": 3}, "name what to revoke"),
        ({"model": "../x", "floor": 1}, "no model name"),
        ({"model": "gesture"}, "expected at least 1, got 0"),
        ({"release": "sha256:12"}, "is no fingerprint"),
    ],
)
def test_what_cannot_be_revoked_is_refused(folder: Path, arguments: dict, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        revoke(folder, **arguments)
    assert not (folder / "revocation.json").exists()


def test_packages_below_the_own_floor_are_not_built(folder: Path) -> None:
    revoke(folder, model="gesture", floor=3)
    with pytest.raises(ModelError, match="security_counter 2, your revocation asks for 3"):
        build(folder, 2)
    assert parse_package(build(folder, 3), trust_in(load_public(folder / "root.pub"))).manifest.security_counter == 3


def test_a_revoked_release_key_signs_no_more_and_its_packages_are_refused(folder: Path) -> None:
    trust = trust_in(load_public(folder / "root.pub"))
    package = build(folder)
    old = fingerprint(load_private(folder / "release.key").public)
    revocation = revoke(folder, release=old)
    with pytest.raises(ConfigError, match="was revoked; make one with `tinylcm keys rotate-release"):
        Signer.load(folder / "release.key")
    with pytest.raises(ModelError, match=f"release key {old} was revoked"):
        parse_package(package, trust.learn(revocation))
    rotate_release(folder)
    parse_package(build(folder), trust.learn(revocation))


def test_a_new_release_key_leaves_the_old_one_valid_until_it_expires(folder: Path) -> None:
    trust = trust_in(load_public(folder / "root.pub"))
    old, before = load_private(folder / "release.key"), build(folder)
    keyset = rotate_release(folder)
    new = load_private(folder / "release.key")
    assert [key.public for key in keyset.keys] == [new.public, old.public]
    kept = next(folder.glob("release-*.key"))
    assert load_private(kept) == old and stat.S_IMODE(kept.stat().st_mode) == 0o600
    parse_package(before, trust.learn(keyset))
    assert [key.public for key in renew_keys(folder).keys] == [new.public, old.public]


def test_a_new_root_is_believed_by_whoever_trusted_the_old_one(folder: Path, tmp_path: Path) -> None:
    revoke(folder, model="gesture", floor=3)
    old, before = load_private(folder / "root.key"), build(folder)
    trust = trust_in(old.public)
    rotation = rotate_root(folder)
    after = build(folder)
    assert (rotation.old, rotation.new) == (old.public, load_private(folder / "root.key").public)
    assert load_public(folder / "root.pub") == rotation.new
    parse_package(after, trust)  # it brings the hand-over itself
    parse_package(after, trust_in(rotation.new))
    with pytest.raises(ModelError, match="not trusted here"):
        parse_package(after, trust_in(bytes(32)))
    moved = trust
    for statement in (rotation, *parse_package(after, None).statements):
        moved = moved.learn(statement)
    assert moved.roots == {fingerprint(rotation.new)} and moved.floor("gesture") == 3
    parse_package(before, moved)  # its release key is in the new root's key set
    pin_root(tmp_path / "trust", rotation.new)


@pytest.mark.parametrize("left", ["root.next.key", "rotation", "revocation.json", "keyset.json", "root.pub"])
def test_a_change_of_root_that_was_cut_off_is_finished_by_repeating_it(folder: Path, left: str) -> None:
    revoke(folder, model="gesture", floor=3)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    rotate_root(folder)
    done = {path.name: path.read_bytes() for path in folder.iterdir()}
    # Go back to what lay there when the power went after writing the file `left`.
    order = [
        "root.next.key",
        next(n for n in done if n.startswith("rotation")),
        "revocation.json",
        "keyset.json",
        "root.pub",
    ]
    written = order[: [name.startswith(left) for name in order].index(True) + 1]
    for path in folder.iterdir():
        path.unlink()
    done["root.next.key"] = done["root.key"]
    for name, content in {**before, **{name: done[name] for name in written}}.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
    if left in ("rotation", "revocation.json"):
        with pytest.raises(ConfigError, match="was cut off: repeat `tinylcm keys rotate-root`"):
            build(folder)
    rotate_root(folder)
    assert (folder / "root.key").read_bytes() == done["root.key"] and not (folder / "root.next.key").exists()
    parse_package(build(folder), trust_in(load_private(next(folder.glob("root-*.key"))).public))


def test_a_chain_of_roots_is_followed_and_bounded(folder: Path) -> None:
    first = load_public(folder / "root.pub")
    for _ in range(7):
        rotate_root(folder)
    parse_package(build(folder), trust_in(first))
    with pytest.raises(ConfigError, match="remove the oldest"):
        rotate_root(folder)
