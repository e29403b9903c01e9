"""Blobs of devices: in pieces, by their hash, within their quota, and visible only when they are whole."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from httpx2 import Response
from kit import Web, make_web
from tinysphere.blobs import PARTS_MAX, read_range
from tinysphere.errors import BadRequestError

DATA = random.Random(2).randbytes(5000)
NAME = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = make_web(tmp_path, blob_bytes_max=6000, device_blobs_bytes_max=9000)
    with made.client:
        yield made


@pytest.fixture
def key(web: Web) -> dict[str, str]:
    return web.enrol()[1]


def put(web: Web, key: dict[str, str], first: int, last: int, data: bytes = DATA, size: int | None = None) -> Response:
    name = hashlib.sha256(data).hexdigest()
    headers = {**key, "Content-Range": f"bytes {first}-{last - 1}/{len(data) if size is None else size}"}
    answer: Response = web.client.put(f"/api/v1/blobs/{name}", content=data[first:last], headers=headers)
    return answer


def look(web: Web, key: dict[str, str], name: str = NAME) -> tuple[int, str]:
    answer = web.client.head(f"/api/v1/blobs/{name}", headers=key)
    assert answer.status_code == 200
    return int(answer.headers["upload-offset"]), answer.headers["upload-complete"]


def fetch(web: Web, name: str = NAME) -> Response:
    answer: Response = web.client.get(f"/api/v1/blobs/{name}", headers=web.bearer(web.kit.token()))
    return answer


def test_a_blob_comes_in_pieces_and_is_seen_when_it_is_whole(web: Web, key: dict[str, str]) -> None:
    assert look(web, key) == (0, "?0")
    assert put(web, key, 0, 2000).status_code == 202
    assert look(web, key) == (2000, "?0") and fetch(web).status_code == 404
    assert put(web, key, 2000, 4000).headers["upload-offset"] == "4000"
    assert put(web, key, 4000, 5000).status_code == 201
    assert look(web, key) == (5000, "?1") and fetch(web).content == DATA
    assert put(web, key, 0, 5000).status_code == 200  # once more: nothing happens
    part = web.client.get(f"/api/v1/blobs/{NAME}", headers={**web.bearer(web.kit.token()), "Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == DATA[10:20]


def test_a_piece_that_does_not_fit_is_refused_and_changes_nothing(web: Web, key: dict[str, str]) -> None:
    put(web, key, 0, 2000)
    for first in (0, 1999, 2001):
        answer = put(web, key, first, 3000)
        assert answer.status_code == 409 and "2000 bytes of this blob are here" in answer.json()["detail"]
    assert look(web, key) == (2000, "?0")


def test_what_has_another_hash_is_not_kept(web: Web, key: dict[str, str]) -> None:
    headers = {**key, "Content-Range": "bytes 0-4999/5000"}
    answer = web.client.put(f"/api/v1/blobs/{NAME}", content=DATA[::-1], headers=headers)
    assert answer.status_code == 422 and "another SHA-256" in answer.json()["detail"]
    assert look(web, key) == (0, "?0") and fetch(web).status_code == 404
    assert put(web, key, 0, 5000).status_code == 201


def test_all_of_it_without_a_check_begins_anew(web: Web, key: dict[str, str]) -> None:
    put(web, key, 0, 4999)
    part = next((web.kit.store.folder / ".parts").rglob(NAME))
    part.write_bytes(DATA)  # the server ended between the last byte and its check
    assert put(web, key, 0, 5000).status_code == 201


def test_a_body_that_is_longer_or_shorter_than_it_says(web: Web, key: dict[str, str]) -> None:
    headers = {**key, "Content-Range": "bytes 0-99/5000"}
    answer = web.client.put(f"/api/v1/blobs/{NAME}", content=bytes(6000), headers=headers)
    assert answer.status_code == 413
    assert look(web, key)[0] <= 5000
    whole = web.client.put(f"/api/v1/blobs/{hashlib.sha256(b'abc').hexdigest()}", content=b"abc", headers=key)
    assert whole.status_code == 201  # without a range it is the whole


def test_size_and_quota_are_bounds(web: Web, key: dict[str, str]) -> None:
    assert put(web, key, 0, 100, bytes(6001)).status_code == 413
    assert put(web, key, 0, 5000).status_code == 201
    other = random.Random(3).randbytes(5000)
    answer = put(web, key, 0, 5000, other)
    assert answer.status_code == 507 and "5000 more are beyond its 9000" in answer.json()["detail"]
    _, second = web.enrol("other", "33" * 32)
    assert put(web, second, 0, 5000, other).status_code == 201
    assert put(web, second, 0, 5000).status_code == 507  # counted for both, stored once


def test_unfinished_ones_are_few_and_the_oldest_give_way(web: Web, key: dict[str, str]) -> None:
    blobs = [bytes([n]) * 50 for n in range(PARTS_MAX + 2)]
    for blob in blobs:
        assert put(web, key, 0, 10, blob).status_code == 202
    left = [look(web, key, hashlib.sha256(blob).hexdigest())[0] for blob in blobs]
    assert left == [0, 0, *[10] * PARTS_MAX]


def test_who_may(web: Web, key: dict[str, str]) -> None:
    put(web, key, 0, 5000)
    path = f"/api/v1/blobs/{NAME}"
    assert web.client.put(path, content=b"x").status_code == 401
    assert web.client.put(path, content=b"x", headers=web.bearer(web.kit.token())).status_code == 403
    assert web.client.get(path, headers=key).status_code == 403  # devices have no use for those of others
    _, second = web.enrol("other", "33" * 32)
    assert look(web, second) == (0, "?0")


@pytest.mark.parametrize("name", ["x", "A" * 64, "..%2F" + "0" * 60, "0" * 63])
def test_a_name_that_is_none(web: Web, key: dict[str, str], name: str) -> None:
    assert web.client.put(f"/api/v1/blobs/{name}", content=b"x", headers=key).status_code in (400, 404)


@pytest.mark.parametrize(
    ("content_range", "length"), [("", ""), ("", "x"), ("bytes 5-4/10", ""), ("bytes 0-10/10", ""), ("lines 0-1/2", "")]
)
def test_ranges_that_are_none(content_range: str, length: str) -> None:
    with pytest.raises(BadRequestError, match="expected"):
        read_range(content_range, length)
    assert read_range("bytes 5-9/10", "") == (5, 10) and read_range("", "7") == (0, 7)
