"""`tinysphere mlflow`: what waits and why, for people and for scripts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import run
from kit import Kit, make_kit
from tinysphere import outbox, versions
from tinysphere.outbox import Item


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    kit.upload()
    now_s = kit.clock.wall_s()
    versions.set_alias(kit.db, "gesture", "latest", versions.AliasRequest("1.0.0"), "ada", now_s)
    refused = Item("alias", "gesture", "latest", 1, 0)
    kit.db.write(lambda connection: outbox.postpone(connection, refused, "MLflow reserves the name", now_s))
    yield kit
    kit.db.close()


def mlflow(kit: Kit, *arguments: str) -> str:
    if kit.db.kind == "postgresql":
        arguments = (*arguments, "--database", str(kit.db.where))
    return run("mlflow", *arguments, "--data", str(kit.folder)).stdout


def test_status_says_what_waits_and_why(kit: Kit) -> None:
    text = mlflow(kit, "status")
    assert "1 versions, 1 aliases, 0 points" in text and "MLflow reserves the name" in text
    found = json.loads(mlflow(kit, "status", "--json"))
    assert found["versions"] == found["aliases"] == 1 and found["problem"] == "" and not found["full"]
    assert {(item["kind"], item["name"]): item["problem"] for item in found["waiting"]} == {
        ("alias", "latest"): "MLflow reserves the name",
        ("version", "1.0.0"): "",
    }
    kit.db.write(
        lambda connection: connection.execute(
            "INSERT INTO job (name, run_at, attempts, problem) VALUES ('mlflow', ?, 7, 'it is away')", (time.time(),)
        )
    )
    assert "the last 7 rounds did not: it is away" in mlflow(kit, "status")


def test_resync_has_all_told_again(kit: Kit) -> None:
    kit.db.write(lambda connection: connection.execute("DELETE FROM outbox"))
    assert "0 versions, 0 aliases" in mlflow(kit, "status")
    assert json.loads(mlflow(kit, "resync", "--json"))["versions"] == 1
    assert "1 versions, 1 aliases" in mlflow(kit, "status")


@pytest.mark.parametrize(
    ("url", "message"),
    [("mlflow:5000", "expected the address"), ("http://mlflow.example.org", "--insecure")],
)
def test_serve_refuses_an_address_that_is_none(tmp_path: Path, url: str, message: str) -> None:
    for arguments, environment in ((("--mlflow", url), {}), ((), {"TINYSPHERE_MLFLOW": url})):
        done = run("serve", "--port", "0", "--data", str(tmp_path), *arguments, code=2, **environment)
        assert message in done.stderr and "TinySphere listens" not in done.stdout
