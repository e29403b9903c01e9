"""Parts of files: what a Range header means, and what is answered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import Web, make_web
from models import make_package
from tinysphere.errors import RangeNotSatisfiableError
from tinysphere.routes.files import read_range


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
