"""A file leaves the store while the same bytes come again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit
from tinysphere import removals
from tinysphere.errors import BusyError

SHA = "ab" * 32


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


def rounds(kit: Kit) -> int:
    return kit.db.read(lambda connection: removals.rounds(connection, SHA))


def finish(kit: Kit, before: int) -> None:
    kit.db.write(lambda connection: removals.check_stored(connection, SHA, before))


def test_an_upload_between_mark_and_removal_is_to_come_again(kit: Kit) -> None:
    before = rounds(kit)
    finish(kit, before)
    assert kit.db.write(lambda connection: removals.mark(connection, SHA))
    assert kit.db.read(lambda connection: removals.marked(connection, 10)) == [SHA]
    with pytest.raises(BusyError):
        finish(kit, before)
    with pytest.raises(BusyError):
        finish(kit, rounds(kit))  # began after the mark: the file may go any moment
    kit.db.write(lambda connection: removals.done(connection, SHA, NOW))
    with pytest.raises(BusyError):
        finish(kit, before)  # it was stored before it was removed
    finish(kit, rounds(kit))
    assert kit.db.read(lambda connection: removals.marked(connection, 10)) == []


def test_what_a_row_names_is_not_marked(kit: Kit) -> None:
    kit.db.write(
        lambda connection: connection.execute(
            "INSERT INTO blob (device, sha256, size, created_at) VALUES ('d', ?, 1, 0)", (SHA,)
        )
    )
    assert not kit.db.write(lambda connection: removals.mark(connection, SHA))
    sha256 = kit.upload().sha256
    assert not kit.db.write(lambda connection: removals.mark(connection, sha256))


def test_removals_are_forgotten_after_a_day(kit: Kit) -> None:
    kit.db.write(lambda connection: removals.mark(connection, SHA))
    kit.db.write(lambda connection: removals.forget(connection, NOW + 1e9))
    assert rounds(kit) == 1, "one under way is never forgotten"
    kit.db.write(lambda connection: removals.done(connection, SHA, NOW))
    kit.db.write(lambda connection: removals.forget(connection, NOW + removals.KEEP_S + 1))
    assert rounds(kit) == 0
