"""The contract of stores, kept by a folder and by a bucket of a real S3 server."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from tinysphere.errors import NotFoundError, TooLargeError
from tinysphere.s3store import S3Store
from tinysphere.store import FolderStore, Store
from weed import Weed


@pytest.fixture(params=["folder", "bucket", "versioned bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "blobs")
    weed: Weed = request.getfixturevalue("weed")
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    url = weed.bucket(f"b-{uuid.uuid4().hex[:12]}", versioned=request.param.startswith("versioned"))
    return S3Store(f"{url}/some/prefix", tmp_path / "blobs", "instance-1")


def keep(store: Store, data: bytes) -> str:
    upload = store.begin(len(data))
    for start in range(0, len(data), 1 << 20):
        upload.write(data[start : start + (1 << 20)])
    sha256 = upload.finish()
    store.put(upload, sha256)
    upload.close()
    return sha256


def files(store: Store) -> list[Path]:
    return [path for path in store.folder.rglob("*") if path.is_file()]


def test_a_blob_is_there_whole_or_not_at_all(store: Store) -> None:
    upload = store.begin(100)
    upload.write(b"abc")
    upload.write(b"def")
    sha256 = upload.finish()
    assert sha256 == hashlib.sha256(b"abcdef").hexdigest() and store.size(sha256) is None
    with pytest.raises(NotFoundError):
        list(store.read(sha256))
    store.put(upload, sha256)
    upload.close()
    assert b"".join(store.read(sha256)) == b"abcdef" and store.size(sha256) == 6
    assert list(store.names()) == [sha256]
    left = [path for path in files(store) if path != store.local(sha256)]
    assert left == []


def test_a_part_of_a_blob_is_read(store: Store) -> None:
    data = os.urandom(700_000)
    sha256 = keep(store, data)
    for first, length in ((0, 1), (0, 700_000), (123_456, 400_000), (699_999, 1), (10, None)):
        wanted = data[first:] if length is None else data[first : first + length]
        assert b"".join(store.read(sha256, first, length)) == wanted


def test_a_large_blob_goes_in_parts_and_the_same_again_changes_nothing(store: Store) -> None:
    data = os.urandom(1 << 20) * 40
    sha256 = keep(store, data)
    assert keep(store, data) == sha256 and store.size(sha256) == len(data)
    digest = hashlib.sha256()
    for piece in store.read(sha256):
        digest.update(piece)
    assert digest.hexdigest() == sha256


def test_a_blob_that_was_removed_is_gone_with_its_versions(store: Store) -> None:
    sha256, other = keep(store, b"one"), keep(store, b"two")
    store.delete(sha256)
    store.delete(sha256)
    assert store.size(sha256) is None and list(store.names()) == [other]
    if isinstance(store, S3Store):
        kept = store._client.list_objects(store.bucket, recursive=True, include_version=True)
        assert not [item for item in kept if sha256 in str(item.object_name) and not item.is_delete_marker]
    assert keep(store, b"one") == sha256 and b"".join(store.read(sha256)) == b"one"


def test_the_address_is_one_for_other_programs(store: Store) -> None:
    sha256 = keep(store, b"abc")
    uri = store.uri(sha256)
    assert uri.startswith(("s3://b-", "file:///")) and uri.endswith(sha256)
    store.check()


def test_too_much_is_refused_and_leaves_nothing(store: Store) -> None:
    upload = store.begin(5)
    with pytest.raises(TooLargeError):
        upload.write(b"123456")
    upload.close()
    assert files(store) == [] == list(store.names())


def test_what_a_power_cut_left_is_removed(store: Store) -> None:
    upload = store.begin(10)
    upload.write(b"half")
    shutil.copy(upload.path, upload.path.with_name(upload.path.name + "left"))
    upload.close()
    assert len(files(store)) == 1
    store.clean()
    assert files(store) == []


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[FolderStore]:
    yield FolderStore(tmp_path / "blobs")


def test_files_are_for_the_servers_user_alone(folder: FolderStore) -> None:
    assert stat.S_IMODE(folder.local(keep(folder, b"abc")).stat().st_mode) == 0o600
