"""Blobs in a folder."""

from __future__ import annotations

import hashlib
import shutil
import stat
from pathlib import Path

import pytest
from tinysphere.errors import TooLargeError
from tinysphere.store import FolderStore


def test_a_blob_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "blobs")
    upload = store.begin(100)
    upload.write(b"abc")
    upload.write(b"def")
    sha256 = upload.finish()
    assert sha256 == hashlib.sha256(b"abcdef").hexdigest() and not store.path(sha256).exists()
    store.put(upload, sha256)
    upload.close()
    assert store.path(sha256).read_bytes() == b"abcdef"
    assert stat.S_IMODE(store.path(sha256).stat().st_mode) == 0o600


def test_too_much_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "blobs")
    upload = store.begin(5)
    with pytest.raises(TooLargeError):
        upload.write(b"123456")
    upload.close()
    assert list((tmp_path / "blobs").iterdir()) == []


def test_what_a_power_cut_left_is_removed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "blobs")
    upload = store.begin(10)
    upload.write(b"half")
    shutil.copy(upload.path, upload.path.with_name(upload.path.name + "left"))
    upload.close()
    assert len(list((tmp_path / "blobs").iterdir())) == 1
    FolderStore(tmp_path / "blobs").clean()
    assert list((tmp_path / "blobs").iterdir()) == []
