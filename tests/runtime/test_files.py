"""Files: what a full, missing or foreign disk answers, and that a write is whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tinylcm.errors import DeviceError, ModelError
from tinylcm.files import (
    device_error,
    fsync_folder,
    list_files,
    make_folder,
    read_bounded,
    read_verified,
    write_atomic,
)

NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write everywhere, so its rights are laid down meanwhile."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@contextmanager
def full_disk() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder that an unprivileged user can see and not write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (28, "the disk is full"),
        (30, "read-only"),
        (13, f"no permission for user id {os.getuid()}"),
        (5, "check or replace it"),
        (122, "quota"),
        (36, "File name too long"),
    ],
)
def test_an_error_says_what_to_do(number: int, advice: str) -> None:
    error = device_error(OSError(number, os.strerror(number), "/x/y"), "writing")
    assert str(error).startswith("writing /x/y failed: ")
    assert advice in str(error)


def test_writing_without_permission_is_a_device_error(closed_folder: Path) -> None:
    with unprivileged(), pytest.raises(DeviceError, match="no permission"):
        write_atomic(closed_folder / "file", b"data")


def test_making_a_folder_without_permission_is_a_device_error(closed_folder: Path) -> None:
    with unprivileged(), pytest.raises(DeviceError, match="no permission"):
        make_folder(closed_folder / "a" / "b")


def test_a_folder_that_cannot_even_be_looked_for_is_a_device_error(closed_folder: Path) -> None:
    closed_folder.chmod(0o000)
    with unprivileged(), pytest.raises(DeviceError, match="no permission"):
        make_folder(closed_folder / "a")


@pytest.mark.parametrize("name", ["file", "file/below", "file/below/deeper"])
def test_a_file_in_the_way_of_a_folder_is_a_device_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DeviceError, match="a file, not a folder"):
        make_folder(tmp_path / name)


def test_a_full_disk_leaves_the_old_content_and_no_litter(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"old")
    with full_disk(), pytest.raises(DeviceError, match="writing"):
        write_atomic(tmp_path / "file", b"new" * 100)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_content_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def failing(*_: object) -> None:
        raise OSError(5, "Input/output error")

    write_atomic(tmp_path / "file", b"old")
    monkeypatch.setattr(os, call, failing)
    with pytest.raises(DeviceError, match=r"file failed: the disk reports"):
        write_atomic(tmp_path / "file", b"new")
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_missing_folder_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="none/file"):
        write_atomic(tmp_path / "none" / "file", b"")


def test_a_file_that_is_not_there_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="No such file"):
        read_bounded(tmp_path / "none", 9)


def test_a_file_over_its_bound_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(DeviceError, match="larger than the 4 bytes"):
        read_bounded(path, 4)


def test_changed_content_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    sha256 = hashlib.sha256(b"12345").hexdigest()
    assert read_verified(path, sha256, 100) == b"12345"
    path.write_bytes(b"12346")
    with pytest.raises(ModelError, match=f"expected {sha256}"):
        read_verified(path, sha256, 100)


def test_folders_are_made_with_their_parents_and_the_last_one_private(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a" / "b", private=True)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) & 0o055
    assert make_folder(folder) == folder


def test_a_write_has_its_mode_and_is_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    for call in ("fsync", "replace"):
        real = getattr(os, call)

        def recording(*values: object, call: str = call, real: object = real) -> None:
            steps.append(call)
            real(*values)  # type: ignore[operator]

        monkeypatch.setattr(os, call, recording)
    write_atomic(tmp_path / "file", b"data", mode=0o600)
    fsync_folder(tmp_path)
    assert steps == ["fsync", "replace", "fsync", "fsync"]
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_files_are_listed_in_order_and_a_failing_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.x", "a.x", "c.y"):
        (tmp_path / name).touch()
    assert [path.name for path in list_files(tmp_path, "*.x")] == ["a.x", "b.x"]
    assert list_files(tmp_path / "missing", "*") == []

    def broken(folder: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(folder))

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(DeviceError, match=r"listing.*input/output error"):
        list_files(tmp_path, "*.x")
