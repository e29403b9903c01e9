"""Parts of files: what a Range header means, and what is answered."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st
from kit import Web, make_web
from models import make_package
from tinysphere.errors import RangeNotSatisfiableError
from tinysphere.routes.files import read_range
from weed import Weed


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("bytes=0-", (0, 10)), ("bytes=3-", (3, 7)), ("bytes=3-5", (3, 3)), ("bytes=3-99", (3, 7)),
        ("bytes=-4", (6, 4)), ("bytes=-99", (0, 10)), (" bytes=9-9 ", (9, 1)), ("", None), ("bytes=-", None),
        ("bytes=5-3", None), ("bytes=0-1,3-4", None), ("items=0-1", None), ("bytes=a-b", None),
        ("bytes=" + "9" * 40, None),
    ],
)  # fmt: skip
def test_a_range_means_a_part_or_the_whole(text: str, meant: tuple[int, int] | None) -> None:
    assert read_range(text, 10) == meant


@pytest.mark.parametrize(("text", "size"), [("bytes=10-", 10), ("bytes=99-100", 10), ("bytes=-0", 10), ("bytes=0-", 0)])
def test_a_range_behind_the_end_is_refused(text: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiableError) as caught:
        read_range(text, size)
    assert caught.value.size == size


@given(st.text(max_size=40) | st.from_regex(r"bytes=\d{0,18}-\d{0,18}"), st.integers(0, 1 << 40))
def test_whatever_is_asked_for_the_part_is_within_the_file(text: str, size: int) -> None:
    try:
        found = read_range(text, size)
    except RangeNotSatisfiableError:
        return
    if found is not None:
        assert 0 <= found[0] < size and 0 < found[1] <= size - found[0]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = make_web(tmp_path)
    with made.client:
        yield made


def test_a_package_is_served_in_parts(web: Web) -> None:
    sha256, data = web.kit.upload().sha256, make_package()
    ask = web.bearer(web.kit.token("viewer"))
    path = f"/api/v1/packages/{sha256}"
    whole = web.client.get(path, headers=ask)
    assert (whole.status_code, whole.content, whole.headers["ETag"]) == (200, data, f'"{sha256}"')
    assert whole.headers["Content-Length"] == str(len(data)) and whole.headers["Accept-Ranges"] == "bytes"
    part = web.client.get(path, headers={**ask, "Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, data[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(data)}"
    same = web.client.get(path, headers={**ask, "Range": "bytes=10-", "If-Range": f'"{sha256}"'})
    assert (same.status_code, same.content) == (206, data[10:])
    other = web.client.get(path, headers={**ask, "Range": "bytes=10-", "If-Range": '"other"'})
    assert (other.status_code, other.content) == (200, data)
    assert web.client.get(path, headers={**ask, "If-None-Match": f'"{sha256}"'}).status_code == 304
    behind = web.client.get(path, headers={**ask, "Range": f"bytes={len(data)}-"})
    assert behind.status_code == 416 and behind.headers["Content-Range"] == f"bytes */{len(data)}"
    assert behind.json()["type"] == "/problems/range-not-satisfiable"
    web.kit.store.delete(sha256)
    assert "restore the blobs" in web.client.get(path, headers=ask).json()["detail"]


def test_a_folder_has_no_address_for_others(web: Web) -> None:
    sha256, viewer = web.kit.upload().sha256, web.bearer(web.kit.token("viewer"))
    answer = web.client.get(f"/api/v1/packages/{sha256}/link", headers=viewer)
    assert answer.status_code == 409 and "folder" in answer.json()["detail"]
    assert web.client.get(f"/api/v1/packages/{'0' * 64}/link", headers=viewer).status_code == 404
    assert web.client.get(f"/api/v1/packages/{sha256}/link", headers=web.enrol()[1]).status_code == 403


def test_a_bucket_has_an_address_that_needs_no_token_for_a_while(
    tmp_path: Path, weed: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in weed.environment.items():
        monkeypatch.setenv(name, value)
    web = make_web(tmp_path, s3=weed.bucket(f"b-{uuid.uuid4().hex[:12]}"))
    with web.client:
        sha256, viewer = web.kit.upload().sha256, web.bearer(web.kit.token("viewer"))
        path = f"/api/v1/packages/{sha256}/link"
        found = web.client.get(path, headers=viewer).json()
        assert (found["sha256"], found["size"]) == (sha256, len(make_package()))
        assert found["expires_at"] == web.kit.clock.wall_s() + 900
        http = urllib3.PoolManager()
        assert http.request("GET", found["url"]).data == make_package()
        part = http.request("GET", found["url"], headers={"Range": "bytes=1-3"})
        assert (part.status, part.data) == (206, make_package()[1:4])
        assert http.request("PUT", found["url"], body=b"x").status == 403
        for wrong in ("0", "901", "x"):
            assert web.client.get(f"{path}?ttl_s={wrong}", headers=viewer).status_code == 400
        _, key = web.enrol()
        data = b"a captured window"
        name = hashlib.sha256(data).hexdigest()
        assert web.client.put(f"/api/v1/blobs/{name}", content=data, headers=key).status_code == 201
        blob = web.client.get(f"/api/v1/blobs/{name}/link?ttl_s=60", headers=viewer).json()
        assert http.request("GET", blob["url"]).data == data and "X-Amz-Expires=60" in blob["url"]
