"""A backup of a server that runs, and what becomes of it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fleet import run
from kit import NOW, Kit, alarm, make_kit, record, summary
from postgres import Cluster
from tinysphere import backup as backups
from tinysphere.audit import verify
from tinysphere.backup import BackupError, inspect
from tinysphere.db import Database, rows
from tinysphere.models import TABLES
from tinysphere.store import FolderStore
from weed import Weed


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    folder = tmp_path / "before"
    folder.mkdir()
    kit = make_kit(folder)
    yield kit
    kit.db.close()


def lived_in(kit: Kit) -> str:
    """A server with a model, a deployment, a device, what it told, and a blob; the device."""
    kit.upload()
    kit.deploy()
    device = kit.enrol()
    items = [record(i, "summary", summary([float(i)], [0.5])) for i in range(1, 30)]
    kit.sync(device, events=[record(1, "alarm", alarm())], details=items)
    data = b"captured"
    upload = kit.store.begin(100)
    upload.write(data)
    sha256 = upload.finish()
    kit.store.put(upload, sha256)
    kit.db.write(
        lambda connection: connection.execute(
            "INSERT INTO blob (device, sha256, size, created_at) VALUES (?, ?, ?, ?)", (device, sha256, len(data), NOW)
        )
    )
    return device


def contents(db: Database) -> dict[str, list[object]]:
    """Every table as it is, with the keys that differ in a restored server left out."""

    def read(table: str) -> list[object]:
        found = db.read(lambda connection: rows(connection, f"SELECT * FROM {table}"))
        plain = [
            {key: bytes(value) if isinstance(value, memoryview) else value for key, value in item.items()}
            for item in found
        ]
        return sorted((item for item in plain if item.get("key") != "instance"), key=repr)

    names = [table._meta.table_name for table in TABLES]  # type: ignore[attr-defined]
    return {name: read(name) for name in names if name not in ("job", "session", "feed")}


def save(kit: Kit, path: Path) -> backups.Manifest:
    from tinysphere.schema import Schema

    steps = [step.name for step in Schema(kit.db._database).status()]
    return backups.backup(kit.db, kit.store, path, steps, NOW, lambda what: None)


@contextmanager
def opened(where: Path | str) -> Iterator[Database]:
    db = Database(where)
    try:
        yield db
    finally:
        db.close()


@pytest.mark.parametrize("to", ["sqlite", "postgresql"])
def test_a_restored_server_knows_what_the_former_knew_on_either_database(
    kit: Kit, to: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    device = lived_in(kit)
    made = save(kit, tmp_path / "b.tar")
    assert made.blobs == 2 and not made.missing and (tmp_path / "b.tar").stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.glob(".*unfinished")) == []
    data, environment = tmp_path / "after", {}
    where: Path | str = data / "tinysphere.db"
    if to == "postgresql":
        cluster: Cluster = request.getfixturevalue("cluster")
        cluster.sql("CREATE DATABASE restored_" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8], "postgres")
        where = cluster.url("restored_" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8])
        environment = {"TINYSPHERE_DATABASE": where}
    answer = run("restore", str(tmp_path / "b.tar"), "--data", str(data), "--json", **environment)
    assert json.loads(answer.stdout) == {"rows": made.rows, "blobs": 2, "made_at": NOW}
    again = run("restore", str(tmp_path / "b.tar"), "--data", str(data), code=2, **environment)
    assert "used already" in again.stderr
    with opened(where) as db:
        assert contents(db) == contents(kit.db)
        assert db.instance != kit.db.instance and verify(db, None).broken_at is None
        store = FolderStore(data / "blobs")
        assert sorted(store.names()) == sorted(kit.store.names())
        after = Kit(data, db, store, kit.clock)
        # The device goes on: what was settled stays settled, numbers go on, and it is told everything.
        told = after.sync(device, details=[record(29, "summary", summary([1.0], [0.5])), record(30)], generation=1)
        assert told.acked["details"] is not None and told.acked["details"][1] == 30 and told.desired != "unchanged"
        after.sync(device, events=[record(2, "alarm", alarm())])
        numbers = db.read(lambda connection: rows(connection, "SELECT id FROM drift_event ORDER BY id"))
        assert [item["id"] for item in numbers] == [1, 2]


def test_a_backup_is_of_one_moment(kit: Kit, tmp_path: Path) -> None:
    """What is written while it is made is all in it or not at all."""
    device, told = lived_in(kit), 0

    def meanwhile(what: str) -> None:
        nonlocal told
        told += 1
        kit.sync(device, details=[record(100 + told, "summary", summary([1.0], [0.5]))])

    from tinysphere.schema import Schema

    steps = [step.name for step in Schema(kit.db._database).status()]
    made = backups.backup(kit.db, kit.store, tmp_path / "b.tar", steps, NOW, meanwhile)
    assert told > 20
    counts = dict.fromkeys(("record", "summary", "watermark"), 0)
    for part in made.parts:
        name = part.name.split("/")[1]
        if name in counts:
            counts[name] += part.rows
    # The first was told before the moment, which is that of the first table.
    assert counts == {"record": 31, "summary": 30, "watermark": 2}


@pytest.mark.parametrize("damage", ["cut", "flipped", "emptied", "foreign", "renamed", "bomb", "newer"])
def test_a_damaged_backup_restores_nothing(kit: Kit, tmp_path: Path, damage: str) -> None:
    lived_in(kit)
    path, data = tmp_path / "b.tar", tmp_path / "after"
    save(kit, path)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[: len(whole) * 2 // 3])
    elif damage == "flipped":
        position = whole.index(b"captured")
        path.write_bytes(whole[:position] + b"C" + whole[position + 1 :])
    elif damage == "emptied":
        path.write_bytes(b"")
    else:
        with tarfile.open(path, "w") as tar:
            with tarfile.open(fileobj=io.BytesIO(whole)) as before:
                for member in before:
                    content = before.extractfile(member).read()  # type: ignore[union-attr]
                    if damage == "renamed" and member.name.startswith("blobs/"):
                        member.name = "blobs/../../etc/passwd"
                    if member.name == "manifest.json" and damage == "newer":
                        content = content.replace(b'"0001_first"', b'"0000_other"')
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
            if damage in ("foreign", "bomb"):
                info = tarfile.TarInfo("tables/record/000009.msgpack.gz" if damage == "bomb" else "hello.txt")
                info.size = 3
                tar.addfile(info, io.BytesIO(b"abc"))
    refused = run("restore", str(path), "--data", str(data), code=1)
    assert str(path) in refused.stderr or "schema" in refused.stderr
    assert not (data / "tinysphere.db").exists() or damage == "newer"
    if damage != "newer":
        with pytest.raises(BackupError):
            inspect(path, lambda what: None)


def test_every_byte_of_a_backup_counts(kit: Kit, tmp_path: Path) -> None:
    """A flip anywhere is found, or changes nothing that is read."""
    kit.enrol()
    path = tmp_path / "b.tar"
    made = save(kit, path)
    whole = path.read_bytes()
    for position in range(0, len(whole), max(1, len(whole) // 300)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            found = inspect(path, lambda what: None)
        except BackupError:
            continue
        assert found.parts == made.parts, position


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    data = tmp_path / "data"
    run("token", "create", "--role", "admin", "--data", str(data))
    (tmp_path / "there.tar").write_text("precious")
    assert "--force" in run("backup", str(tmp_path / "there.tar"), "--data", str(data), code=2).stderr
    assert (tmp_path / "there.tar").read_text() == "precious"
    run("backup", str(tmp_path / "there.tar"), "--data", str(data), "--force")
    assert "No such file" in run("backup", str(tmp_path / "no" / "b.tar"), "--data", str(data), code=1).stderr
    assert "no server's database" in run("backup", "x.tar", "--data", str(tmp_path / "empty"), code=2).stderr
    run("restore", str(tmp_path / "none.tar"), "--data", str(tmp_path / "new"), code=1)


def test_a_blob_that_is_not_there_is_named(kit: Kit, tmp_path: Path) -> None:
    lived_in(kit)
    gone = next(iter(kit.store.names()))
    kit.store.delete(gone)
    assert save(kit, tmp_path / "b.tar").missing == [gone]


@pytest.mark.long
def test_a_bucket_changes_hands_with_a_restore(weed: Weed, tmp_path: Path) -> None:
    url = weed.bucket(f"b-{uuid.uuid4().hex[:12]}")
    environment = {**weed.environment, "TINYSPHERE_S3": url}
    before, after = str(tmp_path / "before"), str(tmp_path / "after")
    run("token", "create", "--role", "admin", "--data", before)
    run("backup", str(tmp_path / "b.tar"), "--data", before, **environment)
    run("restore", str(tmp_path / "b.tar"), "--data", after, **environment)
    refused = run("backup", str(tmp_path / "c.tar"), "--data", before, code=2, **environment)
    assert "belongs to" in refused.stderr, "the former server has lost it"
    run("backup", str(tmp_path / "c.tar"), "--data", after, **environment)
    third = str(tmp_path / "third")
    assert "belongs to" in run("restore", str(tmp_path / "b.tar"), "--data", third, code=2, **environment).stderr
    run("restore", str(tmp_path / "b.tar"), "--data", third, "--take-bucket", **environment)
    assert (Path(third) / "tinysphere.db").exists()
