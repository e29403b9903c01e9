"""The chain of the audit: what was changed, removed or cut off is found."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit
from tinysphere import audit
from tinysphere.db import Connection


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


def note(kit: Kit, target: str) -> None:
    kit.db.write(lambda connection: audit.audit(connection, "ada", "test", target, NOW))


def run(kit: Kit, sql: str) -> None:
    kit.db.write(lambda connection: connection.execute(sql) and None)


def test_the_chain_goes_through_every_entry_also_of_many_writers(kit: Kit) -> None:
    assert audit.verify(kit.db).entries == 0 and audit.verify(kit.db).head == audit.START
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: note(kit, f"ü {number}"), range(50)))
    found = audit.verify(kit.db)
    assert (found.entries, found.broken_at, found.has_head) == (50, None, True)
    newest = audit.list_audit(kit.db, 1 << 60, 1)[0]
    assert newest.sha256 == found.head
    assert audit.verify(kit.db, newest.sha256).has_head and not audit.verify(kit.db, "f" * 64).has_head


@pytest.mark.parametrize(
    ("sql", "broken"),
    [
        ("UPDATE audit SET target = 'other' WHERE id = 3", 3),
        ("UPDATE audit SET who = 'bob' WHERE id = 5", 5),
        ("UPDATE audit SET at = at + 0.001 WHERE id = 1", 1),
        ("DELETE FROM audit WHERE id = 2", 3),
        ("DELETE FROM audit WHERE id = 1", 2),
    ],
)
def test_an_entry_that_was_changed_or_removed_is_found(kit: Kit, sql: str, broken: int) -> None:
    for number in range(1, 6):
        note(kit, str(number))
    run(kit, sql)
    assert audit.verify(kit.db).broken_at == broken


def test_an_end_that_was_cut_off_is_found_by_a_head_that_was_noted(kit: Kit) -> None:
    for number in range(1, 6):
        note(kit, str(number))
    head = audit.verify(kit.db).head
    run(kit, "DELETE FROM audit WHERE id = 5")
    assert audit.verify(kit.db).broken_at is None and not audit.verify(kit.db, head).has_head


def test_a_change_that_fails_leaves_no_entry(kit: Kit) -> None:
    def job(connection: Connection) -> None:
        audit.audit(connection, "ada", "test", "x", NOW)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        kit.db.write(job)
    assert audit.verify(kit.db).entries == 0
