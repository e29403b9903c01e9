"""What a bucket can do beyond a folder, on the real server; and the server when the bucket is away."""

from __future__ import annotations

import hashlib
import time
import uuid
from pathlib import Path

import pytest
import urllib3
from tinysphere import s3store
from tinysphere.errors import BusyError, NotFoundError, StartError
from tinysphere.s3store import S3Store
from weed import Weed


@pytest.fixture(autouse=True)
def credentials(weed: Weed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def url(weed: Weed) -> str:
    return weed.bucket(f"b-{uuid.uuid4().hex[:12]}")


@pytest.fixture
def store(url: str, tmp_path: Path) -> S3Store:
    return S3Store(url, tmp_path / "spool", "instance-1")


def keep(store: S3Store, data: bytes) -> str:
    upload = store.begin(len(data))
    upload.write(data)
    sha256 = upload.finish()
    store.put(upload, sha256)
    upload.close()
    return sha256


def test_a_link_fetches_and_stores_one_blob_for_a_quarter_of_an_hour_at_most(store: S3Store) -> None:
    sha256 = keep(store, b"abcdef")
    http = urllib3.PoolManager()
    link = store.link(sha256)
    assert "X-Amz-Expires=900" in link and http.request("GET", link).data == b"abcdef"
    part = http.request("GET", link, headers={"Range": "bytes=2-3"})
    assert (part.status, part.data) == (206, b"cd")
    assert http.request("PUT", link, body=b"other").status == 403  # a link is for its method alone
    other = hashlib.sha256(b"xyz").hexdigest()
    assert http.request("GET", link.replace(sha256, other)).status == 403
    assert http.request("PUT", store.link(other, 60, "PUT"), body=b"xyz").status == 200
    assert store.size(other) == 3 and store.verify(other)
    short = store.link(sha256, 1)
    time.sleep(2.5)
    assert http.request("GET", short).status == 403
    for wrong in (0, -1, 901, 86_400):
        with pytest.raises(ValueError, match="900"):
            store.link(sha256, wrong)


def test_bytes_that_are_not_those_of_their_name_are_found(store: S3Store) -> None:
    sha256 = keep(store, b"abcdef")
    name = hashlib.sha256(b"expected").hexdigest()
    urllib3.PoolManager().request("PUT", store.link(name, 60, "PUT"), body=b"something else")
    assert store.verify(sha256) and not store.verify(name)


def test_one_bucket_has_one_server_and_a_prefix_parts_them(url: str, store: S3Store, tmp_path: Path) -> None:
    assert S3Store(url, tmp_path / "b", "instance-1").bucket == store.bucket  # a second process of the same
    with pytest.raises(StartError, match="belongs to the server with the database instance-1"):
        S3Store(url, tmp_path / "c", "instance-2")
    S3Store(f"{url}/second", tmp_path / "d", "instance-2")
    assert not store.put_new("owner", b"again")


def test_mistakes_are_said_at_the_start(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, said in (
        ("ftp://127.0.0.1/b", "https://host:port/bucket"),
        ("https://127.0.0.1:1", "https://host:port/bucket"),
        ("https://key:secret@127.0.0.1/bucket", "without credentials"),
        ("http://store.example/bucket", "in the clear"),
        (url.rpartition("/")[0] + "/no-such-bucket", "there is no bucket no-such-bucket"),
        (url.rpartition("/")[0] + "/ab", "cannot be used"),
        ("http://127.0.0.1:9/bucket", "cannot be reached"),
    ):
        with pytest.raises(StartError, match=said):
            S3Store(wrong, tmp_path / "spool", "i")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StartError, match=r"cannot be used") as caught:
        S3Store(url, tmp_path / "spool", "i")
    assert "wrong" not in str(caught.value)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StartError, match="AWS_ACCESS_KEY_ID"):
        S3Store(url, tmp_path / "spool", "i")


@pytest.mark.long
def test_a_store_that_is_away_costs_no_upload_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3store, "_TIMEOUT", urllib3.Timeout(connect=2.0, read=5.0))
    with Weed() as own:
        store = S3Store(own.bucket("models"), tmp_path / "spool", "instance-1")
        sha256 = keep(store, b"before")
        own.kill()
        upload = store.begin(100)
        upload.write(b"during")
        name = upload.finish()
        for action in (
            lambda: store.put(upload, name),
            lambda: store.size(sha256),
            lambda: list(store.read(sha256)),
            lambda: store.delete(sha256),
            lambda: list(store.names()),
            store.check,
        ):
            with pytest.raises(BusyError, match="cannot be reached"):
                action()
        assert upload.path.read_bytes() == b"during"
        own.start()
        store.put(upload, name)
        upload.close()
        assert b"".join(store.read(name)) == b"during" and b"".join(store.read(sha256)) == b"before"
        with pytest.raises(NotFoundError):
            list(store.read("0" * 64))
