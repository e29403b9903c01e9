"""Models: what is taken, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit
from models import linear_model, make_package, make_signer, manifest_of
from tinylcm.errors import ModelError
from tinylcm.package import build_package
from tinysphere import registry
from tinysphere.db import encode_cursor
from tinysphere.errors import BadRequestError, ConflictError, InvalidError, NotFoundError


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


def test_an_upload_is_kept_by_its_hash_and_the_same_again_changes_nothing(kit: Kit) -> None:
    first, again = kit.upload(), kit.upload()
    assert first == again and first.version == "1.0.0"
    path = kit.store.local(first.sha256)
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
        lambda: registry.check_package(kit.db, "0" * 64),
    ):
        with pytest.raises(NotFoundError):
            ask()


LIMITS = registry.ProbeLimits(60.0, 4 << 30)


def upload(kit: Kit, data: bytes, limits: registry.ProbeLimits | None = LIMITS) -> registry.ModelVersionView:
    kit.pin()
    return kit.register(data, limits)


def test_an_upload_is_tried_in_a_child_process_before_it_is_accepted(kit: Kit) -> None:
    view = upload(kit, make_package(version="1.0.0"))
    assert float(str(view.probe["latency_us"])) > 0 and view.probe["windows"] == 1
    with pytest.raises(ModelError, match="golden window 0"):
        upload(kit, make_package(version="2.0.0", wrong_golden=True))
    with pytest.raises(ModelError, match="cannot load the model"):
        upload(kit, make_package(version="3.0.0", model=b"\x08\x08" + b"\xff" * 300))
    with pytest.raises(ModelError, match=r"probe within|memory|probe failed|crashed"):
        upload(kit, make_package(version="4.0.0"), registry.ProbeLimits(60.0, 64 << 20))
    assert [item.version for item in registry.get_model(kit.db, "gesture").versions] == ["1.0.0"]
    assert "no uploads" in str(upload(kit, make_package(version="5.0.0"), None).probe)


def test_a_server_without_the_engine_says_so_and_takes_it(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "capabilities", lambda: {"backends": ["linear"]})
    view = upload(kit, make_package())
    assert "no engine for onnx" in str(view.probe["skipped"])


def test_the_lineage_is_what_the_publisher_has_said(kit: Kit) -> None:
    lineage = {"run_id": "r1", "git_commit": "abc", "data_sha256": "0" * 64}
    manifest = replace(manifest_of(), metadata={**lineage, "note": "x"})
    view = upload(kit, build_package(manifest, {"model.onnx": linear_model()}, make_signer()))
    assert view.lineage == lineage and view.metadata["note"] == "x"


def test_the_versions_of_a_model_come_in_pages_newest_first(kit: Kit) -> None:
    for number in range(5):  # two of one moment
        upload(kit, make_package(version=f"1.{number}.0", bias=float(number)), None)
        kit.clock.advance(number % 2)
    found: list[str] = []
    cursor: str | None = None
    for _ in range(3):
        page = registry.list_versions(kit.db, "gesture", cursor, 2)
        found += [item.version for item in page.items]
        cursor = page.next
    assert found == ["1.4.0", "1.3.0", "1.2.0", "1.1.0", "1.0.0"] and cursor is None
    with pytest.raises(NotFoundError):
        registry.list_versions(kit.db, "none", None, 2)
    for wrong in (["x", "1"], ["nan", "1"], ["1"], [1.0, "1"], ["1", 2]):
        with pytest.raises(BadRequestError):
            registry.list_versions(kit.db, "gesture", encode_cursor(wrong), 2)  # type: ignore[arg-type]
