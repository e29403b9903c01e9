"""Migrations on both databases: on data, undone, broken in the middle, and begun twice at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit import EPOCH, NOW, alarm, record, request, summary
from peewee import Model
from postgres import Cluster
from tinysphere import auth, fleet, ingest
from tinysphere.db import Database, close_database, open_database, rows
from tinysphere.errors import StartError
from tinysphere.models import TABLES
from tinysphere.schema import FOLDER, Schema, Step, kind_of

SECOND = """
from tinysphere.schema import run_ddl

def up(migrator, db):
    run_ddl(db, "ALTER TABLE label ADD COLUMN weight DOUBLE PRECISION NOT NULL DEFAULT 1")
    run_ddl(db, "UPDATE label SET weight = 2 WHERE label = 'walk'")

def down(migrator, db):
    run_ddl(db, "ALTER TABLE label DROP COLUMN weight")
"""
BROKEN = """
from tinysphere.schema import run_ddl

def up(migrator, db):
    run_ddl(db, "CREATE TABLE half (id {id}, picture {bytes}) {clustered}")
    run_ddl(db, "INSERT INTO nowhere (id) VALUES (1)")
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """An empty database."""
    if request.param == "sqlite":
        return tmp_path / "tinysphere.db"
    cluster: Cluster = request.getfixturevalue("cluster")
    return cluster.database()


@pytest.fixture
def opened(where: Path | str) -> Iterator[Any]:
    database = open_database(where)
    yield database
    close_database(database)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The steps, to which a test adds its own."""
    made = tmp_path / "steps"
    shutil.copytree(FOLDER, made, ignore=shutil.ignore_patterns("__pycache__"))
    return made


def columns_of(database: Any, table: type[Model]) -> list[tuple[str, bool, bool]]:
    name = table._meta.table_name  # type: ignore[attr-defined]
    return sorted((column.name, column.null, column.primary_key) for column in database.get_columns(name))


def test_the_steps_make_what_the_models_say(opened: Any) -> None:
    taken = Schema(opened).up()
    assert taken[0] == "0001_first" and Schema(opened).pending() == [] and Schema(opened).up() == []
    with opened.connection_context():
        assert set(opened.get_tables()) == {table._meta.table_name for table in TABLES} | {"schema_migration"}  # type: ignore[attr-defined]
        for table in TABLES:
            meta = table._meta  # type: ignore[attr-defined]
            keys = {field.column_name for field in meta.get_primary_keys()}
            said = sorted((f.column_name, f.null, f.column_name in keys) for f in meta.sorted_fields)
            assert columns_of(opened, table) == said, table
            wanted = {tuple(index[0]) for index in meta.indexes}
            wanted |= {(f.name,) for f in meta.sorted_fields if f.index and not f.primary_key}
            there = {tuple(index.columns) for index in opened.get_indexes(meta.table_name)}
            assert wanted <= there, table


def test_a_step_changes_data_and_gives_it_back(where: Path | str, opened: Any, folder: Path) -> None:
    Schema(opened).up()
    db = Database(where)
    sql = "INSERT INTO label (device, prediction, label, received_at) VALUES ('d', 'p', ?, 1)"
    db.write(lambda connection: connection.executemany(sql, [("walk",), ("run",)]))
    db.close()
    (folder / "9000_weights.py").write_text(SECOND)
    schema = Schema(opened, folder)
    assert schema.pending() == ["9000_weights"] == schema.up()
    with opened.connection_context():
        assert sorted(opened.execute_sql("SELECT label, weight FROM label").fetchall()) == [("run", 1), ("walk", 2)]
    with pytest.raises(StartError, match="9000_weights"):
        Database(where)  # a program that does not know the step
    assert schema.down() == ["9000_weights"] and schema.pending() == ["9000_weights"]
    db = Database(where)
    found = db.read(lambda connection: rows(connection, "SELECT * FROM label ORDER BY label"))
    assert [item["label"] for item in found] == ["run", "walk"] and "weight" not in found[0]
    db.close()


def test_a_step_that_breaks_leaves_nothing(opened: Any, folder: Path) -> None:
    Schema(opened).up()
    (folder / "9000_broken.py").write_text(BROKEN)
    schema = Schema(opened, folder)
    with pytest.raises(StartError, match="nowhere"):
        schema.up()
    with opened.connection_context():
        assert not opened.table_exists("half")
    assert schema.pending() == ["9000_broken"]
    with pytest.raises(StartError, match="unknown"):
        schema.up("9001_other")


def test_processes_that_begin_at_once_take_each_step_once(where: Path | str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tinysphere.cli", "migrate", "up", "--data", str(tmp_path)]
    if isinstance(where, str):
        command += ["--database", where]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    printed = [process.communicate(timeout=60) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0, 0], printed
    assert sorted(out.startswith("up    0001_first") for out, _ in printed) == [False, False, False, True]


def test_a_database_of_before_the_steps_has_taken_the_first(where: Path | str, opened: Any) -> None:
    Schema(opened).up()
    with opened.connection_context():
        opened.execute_sql("INSERT INTO audit (at, who, what, target) VALUES (1, 'me', 'note', 'kept')")
        opened.execute_sql("INSERT INTO meta (key, value) VALUES ('schema', '3')")
        opened.execute_sql("DROP TABLE schema_migration")
    assert "0001_first" not in Schema(opened, only_first(where)).up()
    with opened.connection_context():
        assert opened.execute_sql("SELECT target FROM audit").fetchall() == [("kept",)]


def only_first(where: Path | str) -> Path:
    """The first step alone: what came after it is not in such a database."""
    import tempfile

    folder = Path(tempfile.mkdtemp())
    shutil.copy(FOLDER / "0001_first.py", folder)
    return folder


def test_postgresql_is_migrated_by_a_command_and_not_by_the_server(cluster: Cluster) -> None:
    with pytest.raises(StartError, match="run `tinysphere migrate up`"):
        Database(cluster.database())
    with pytest.raises(StartError, match="postgresql://user@host/name"):
        Database("mysql://somewhere/else")
    with pytest.raises(StartError, match="cannot be opened"):
        Database(cluster.url("nowhere"))


def test_a_kind_is_known_and_a_step_is_a_value(opened: Any, where: Path | str) -> None:
    assert kind_of(opened) == ("sqlite" if isinstance(where, Path) else "postgresql")
    assert Schema(opened).status()[0] == Step("0001_first", None)


KEPT = ("record", "summary")  # of the first step


def test_every_step_is_undone_and_taken_again_on_data(where: Path | str) -> None:
    """What a step has made goes with it; what was there before it stays, on the way down and up again."""
    database = open_database(where)
    Schema(database).up()
    close_database(database)
    db = Database(where)
    secret = "ab" * 32
    enrolled = fleet.enrol(db, fleet.EnrolRequest(auth.create_join_token(db, 1, 60, "me", NOW), "w", secret), NOW)[0]
    events = [record(1, "alarm", alarm()), record(2)]
    details = [record(1, "summary", summary([5.0], [0.5])), record(2, "log", {"level": "info", "message": "x"})]
    board = {"uid": "a1", "state": "online"}
    ingest.sync(db, enrolled.device_id, request(events=events, details=details, boards=[board]), NOW, 30.0)
    kept = [db.read(lambda connection, name=name: rows(connection, f"SELECT * FROM {name}")) for name in KEPT]
    db.close()
    database = open_database(where)
    try:
        schema = Schema(database)
        names = [step.name for step in schema.status()]
        assert len(names) >= 10
        for name in reversed(names[1:]):
            assert schema.down() == [name]
        assert schema.pending() == names[1:] and schema.up() == names[1:]
    finally:
        close_database(database)
    db = Database(where)
    try:
        again = db.read(
            lambda connection: [rows(connection, f"SELECT * FROM {name}") for name in ("record", "summary")]
        )
        assert again == kept and len(kept[0]) == 4
        found = fleet.get_device(db, enrolled.device_id, NOW)
        assert (found.name, found.boards) == ("w", [])
        answer = ingest.sync(db, enrolled.device_id, request(boards=[board], details=details), NOW, 30.0)
        assert answer.acked["details"] == (EPOCH, 2)
        assert fleet.get_device(db, enrolled.device_id, NOW).boards[0].uid == "a1"
    finally:
        db.close()
