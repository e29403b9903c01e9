"""Models: what is taken, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit
from models import make_package, make_signer
from tinylcm.errors import ModelError
from tinysphere import registry
from tinysphere.errors import ConflictError, InvalidError, NotFoundError


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


def test_an_upload_is_kept_by_its_hash_and_the_same_again_changes_nothing(kit: Kit) -> None:
    first, again = kit.upload(), kit.upload()
    assert first == again and first.version == "1.0.0"
    path = registry.package_path(kit.db, kit.store, first.sha256)
    assert path.read_bytes() == make_package()
    assert path.stat().st_mode & 0o077 == 0
    assert [model.name for model in registry.list_models(kit.db, None, 10).items] == ["gesture"]
    assert registry.get_version(kit.db, "gesture", "1.0.0").labels == ["class-0", "class-1"]


def test_another_file_for_a_version_is_a_conflict(kit: Kit) -> None:
    kit.upload()
    with pytest.raises(ConflictError):
        kit.upload(make_package(bias=2.0))
    kit.upload(make_package(version="1.1.0"))
    assert len(registry.get_model(kit.db, "gesture").versions) == 2


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (make_package(signer=make_signer(9)), "not trusted here"),
        (make_package(signer=make_signer(expires_s=int(NOW) - 1)), "expired"),
        (make_package()[:-1], "truncated"),
        (make_package().replace(b"class-0", b"class-9", 1), "signature"),
        (b"", "truncated"),
        (b"PK\x03\x04" + b"x" * 100, "not a model package"),
    ],
)
def test_what_is_not_sound_signed_and_trusted_is_refused_and_not_kept(kit: Kit, data: bytes, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        kit.upload(data)
    assert [path for path in (kit.folder / "blobs").rglob("*") if path.is_file()] == []


def test_a_package_of_another_model_and_what_was_never_uploaded(kit: Kit) -> None:
    with pytest.raises(InvalidError, match="is of model gesture"):
        kit.upload(name="other")
    for ask in (
        lambda: registry.get_model(kit.db, "x"),
        lambda: registry.get_version(kit.db, "gesture", "9"),
        lambda: registry.package_path(kit.db, kit.store, "0" * 64),
    ):
        with pytest.raises(NotFoundError):
            ask()
