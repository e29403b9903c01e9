"""A creation sent twice happens once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit
from tinysphere.db import Connection
from tinysphere.errors import BadRequestError, ConflictError
from tinysphere.idempotency import KEEP_S, once


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


def counter() -> tuple[list[int], Callable[[Connection], bytes]]:
    made: list[int] = []

    def create(connection: Connection) -> bytes:
        made.append(1)
        return str(len(made)).encode()

    return made, create


def test_a_repeated_key_gets_the_first_answer(kit: Kit) -> None:
    made, create = counter()
    answers = [once(kit.db, "ada", "k", b"request", NOW, create) for _ in range(3)]
    assert answers == [b"1"] * 3 and len(made) == 1
    assert once(kit.db, "bob", "k", b"request", NOW, create) == b"2"  # another person's key is another key
    assert once(kit.db, "ada", None, b"request", NOW, create) == b"3"


def test_a_key_belongs_to_one_request_and_is_forgotten_after_a_day(kit: Kit) -> None:
    made, create = counter()
    once(kit.db, "ada", "k", b"request", NOW, create)
    with pytest.raises(ConflictError):
        once(kit.db, "ada", "k", b"another", NOW, create)
    assert once(kit.db, "ada", "k", b"another", NOW + KEEP_S + 1, create) == b"2" and len(made) == 2


@pytest.mark.parametrize("key", ["", "k" * 201])
def test_impossible_keys_are_refused(kit: Kit, key: str) -> None:
    with pytest.raises(BadRequestError, match="Idempotency-Key"):
        once(kit.db, "ada", key, b"r", NOW, counter()[1])


def test_a_failed_creation_keeps_nothing(kit: Kit) -> None:
    def fail(connection: Connection) -> bytes:
        raise BadRequestError("no")

    with pytest.raises(BadRequestError):
        once(kit.db, "ada", "k", b"r", NOW, fail)
    assert once(kit.db, "ada", "k", b"r", NOW, counter()[1]) == b"1"
