"""What waits to be told to MLflow: once a thing, until it was told as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import NOW, Kit, make_kit
from models import make_package
from tinysphere import outbox, versions
from tinysphere.errors import ConflictError
from tinysphere.outbox import Item


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


def due(kit: Kit, kind: outbox.Kind = "version", now_s: float = NOW) -> list[Item]:
    return list(kit.db.read(lambda connection: outbox.due(connection, kind, now_s, 10)))


def mark(kit: Kit, name: str, now_s: float = NOW, due_s: float | None = None) -> None:
    kit.db.write(lambda connection: outbox.mark(connection, "version", "gesture", name, now_s, due_s=due_s))


def settle(kit: Kit, item: Item) -> bool:
    return kit.db.write(lambda connection: outbox.settle(connection, item))


def test_a_thing_that_changes_often_waits_once(kit: Kit) -> None:
    for _ in range(3):
        mark(kit, "1.0.0")
    (item,) = due(kit)
    assert (item.model, item.name, item.marks) == ("gesture", "1.0.0", 3)
    assert settle(kit, item) and due(kit) == []


def test_what_changes_while_it_is_told_is_told_again(kit: Kit) -> None:
    mark(kit, "1.0.0")
    (item,) = due(kit)
    mark(kit, "1.0.0")
    assert not settle(kit, item)
    (again,) = due(kit)
    assert settle(kit, again)


def test_what_is_refused_waits_longer_each_time_and_holds_up_nobody(kit: Kit) -> None:
    mark(kit, "1.0.0")
    mark(kit, "2.0.0")
    waits = []
    now_s = NOW
    for _ in range(9):
        (item, *_) = [item for item in due(kit, now_s=now_s) if item.name == "1.0.0"]
        kit.db.write(lambda connection, item=item, at=now_s: outbox.postpone(connection, item, "no " * 500, at))  # type: ignore[misc]
        assert [item.name for item in due(kit, now_s=now_s)] == ["2.0.0"]
        waiting = kit.db.read(lambda connection: outbox.waiting(connection, 9))
        assert waiting[0].name == "1.0.0" and len(waiting[0].problem) == 500, "what was refused comes first"
        waits.append(waiting[0].retry_at - now_s)
        now_s = waiting[0].retry_at
    assert waits[:3] == [30.0, 60.0, 120.0] and waits[-1] == 3600.0
    mark(kit, "1.0.0")  # it changed: that may be what was wrong with it
    assert {item.name: item.tries for item in due(kit)} == {"1.0.0": 0, "2.0.0": 0}


def test_a_thing_can_rest_until_a_time(kit: Kit) -> None:
    mark(kit, "1.0.0", due_s=NOW + 50)
    assert due(kit) == []
    (item,) = due(kit, now_s=NOW + 50)
    kit.db.write(lambda connection: outbox.rest(connection, item, NOW + 90))
    assert due(kit, now_s=NOW + 60) == []
    mark(kit, "1.0.0", due_s=NOW + 70)  # the earlier time counts
    assert len(due(kit, now_s=NOW + 70)) == 1
    mark(kit, "1.0.0", due_s=NOW + 999)
    assert len(due(kit, now_s=NOW + 70)) == 1


def test_uploads_and_aliases_are_marked_in_their_own_transaction(kit: Kit) -> None:
    kit.upload()
    kit.upload()  # the same file changes nothing
    assert [(item.name, item.marks) for item in due(kit)] == [("1.0.0", 1)]
    with pytest.raises(ConflictError):
        kit.upload(make_package(bias=1.0))
    assert [(item.name, item.marks) for item in due(kit)] == [("1.0.0", 1)]
    versions.set_alias(kit.db, "gesture", "champion", versions.AliasRequest("1.0.0"), "ada", NOW)
    assert [(item.model, item.name) for item in due(kit, "alias")] == [("gesture", "champion")]


def test_what_mlflow_never_heard_of_is_not_told_to_be_gone(kit: Kit) -> None:
    kit.upload()
    versions.set_alias(kit.db, "gesture", "champion", versions.AliasRequest("1.0.0"), "ada", NOW)
    versions.remove_alias(kit.db, "gesture", "champion", "ada", NOW)
    versions.remove_version(kit.db, kit.store, "gesture", "1.0.0", "ada", NOW)
    counts = kit.db.read(outbox.counts)
    assert counts == {"version": 0, "alias": 0, "metrics": 0}


def test_what_mlflow_has_is_told_to_be_gone(kit: Kit) -> None:
    kit.upload()
    versions.set_alias(kit.db, "gesture", "champion", versions.AliasRequest("1.0.0"), "ada", NOW)
    kit.db.write(
        lambda connection: (
            connection.execute("DELETE FROM outbox"),
            connection.insert("mlflow_alias", ("model", "alias", "version"), [("gesture", "champion", "1.0.0")]),
            connection.insert(
                "mlflow_version", ("model", "version", "sha256", "number"), [("gesture", "1.0.0", "aa", "1")]
            ),
        )
    )
    versions.remove_alias(kit.db, "gesture", "champion", "ada", NOW)
    versions.remove_version(kit.db, kit.store, "gesture", "1.0.0", "ada", NOW)
    assert [item.name for item in due(kit)] == ["1.0.0"] and [item.name for item in due(kit, "alias")] == ["champion"]
