"""Whose packages are taken: pinned roots, what they have said, and that it is never forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit
from models import linear_model, make_signer, manifest_of
from tinylcm.errors import ModelError
from tinylcm.keyring import revoke, rotate_release, rotate_root
from tinylcm.keys import Signer, fingerprint, init_keys, load_private, load_public, write_public
from tinylcm.package import build_package
from tinysphere import trust


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    init_keys(tmp_path / "keys")
    return tmp_path / "keys"


def build(keys: Path, version: str) -> bytes:
    manifest = replace(manifest_of(version=version), security_counter=9)
    return build_package(manifest, {"model.onnx": linear_model()}, Signer.load(keys / "release.key"))


def test_a_root_is_pinned_once_and_listed(kit: Kit, keys: Path) -> None:
    with pytest.raises(ModelError, match="not trusted here"):
        kit.register(build(keys, "1.0.0"))
    name = trust.pin(kit.db, load_public(keys / "root.pub"), "ada", NOW)
    assert trust.pin(kit.db, load_public(keys / "root.pub"), "bob", NOW + 1) == name
    (listed,) = trust.list_roots(kit.db)
    assert (listed.fingerprint, listed.pinned_by, listed.pinned_at) == (name, "ada", NOW)
    kit.register(build(keys, "1.0.0"))


def test_a_release_key_that_was_revoked_once_signs_no_upload_any_more(kit: Kit, keys: Path) -> None:
    trust.pin(kit.db, load_public(keys / "root.pub"), "ada", NOW)
    stolen = build(keys, "6.6.6")
    kit.register(build(keys, "1.0.0"))
    old = fingerprint(load_private(keys / "release.key").public)
    revoke(keys, release=old)
    rotate_release(keys)
    kit.register(build(keys, "2.0.0"))  # brings the revocation
    with pytest.raises(ModelError, match=f"release key {old} was revoked"):
        kit.register(stolen)


def test_a_new_root_takes_over_for_good(kit: Kit, keys: Path) -> None:
    trust.pin(kit.db, load_public(keys / "root.pub"), "ada", NOW)
    kit.register(build(keys, "1.0.0"))
    rotate_root(keys)
    kit.register(build(keys, "2.0.0"))
    believed = kit.db.read(trust.load)
    assert believed.roots == {fingerprint(load_public(keys / "root.pub"))}
    kit.register(build(keys, "3.0.0"))


def test_a_package_that_is_refused_teaches_nothing(kit: Kit, keys: Path) -> None:
    trust.pin(kit.db, load_public(keys / "root.pub"), "ada", NOW)
    kit.register(build(keys, "1.0.0"))
    before = kit.db.read(trust.load)
    revoke(keys, model="gesture", floor=3)
    with pytest.raises(Exception, match="a version never changes"):
        kit.register(build(keys, "1.0.0"))
    assert kit.db.read(trust.load) == before


def test_a_damaged_statement_is_left_out_and_said(kit: Kit, keys: Path, caplog: pytest.LogCaptureFixture) -> None:
    trust.pin(kit.db, load_public(keys / "root.pub"), "ada", NOW)
    kit.register(build(keys, "1.0.0"))
    kit.db.write(lambda connection: connection.execute("UPDATE trust_statement SET document = 'x'") and None)
    assert len(kit.db.read(trust.load).roots) == 1 and "damaged" in caplog.text
    kit.register(build(keys, "2.0.0"))


def test_keys_that_an_operator_put_into_the_folder_are_pinned(kit: Kit, tmp_path: Path) -> None:
    folder = tmp_path / "roots"
    trust.pin_folder(kit.db, folder, NOW)  # there is none
    folder.mkdir()
    write_public(folder / "publisher.pub", make_signer().keyset.root)
    (folder / "noise.pub").write_text("noise")
    trust.pin_folder(kit.db, folder, NOW)
    assert [root.fingerprint for root in trust.list_roots(kit.db)] == [fingerprint(make_signer().keyset.root)]
