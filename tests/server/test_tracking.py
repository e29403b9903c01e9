"""The mirror in MLflow: everything once, whatever breaks in between. The real MLflow server, both databases."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit import Kit, alarm, make_kit, record, summary
from mlflow_server import Cutting, MlflowServer, cutting, free_port
from models import make_package
from tinylcm.types import Json
from tinylcm.wire import Anchor
from tinysphere import tracking, versions
from tinysphere.db import rows
from tinysphere.errors import NotFoundError
from tinysphere.fleetmetrics import DAY_S, HOUR_S
from tinysphere.jobs import Lease, Work, Worker, claim, soon
from tinysphere.mlflowapi import Mlflow, MlflowError
from tinysphere.outbox import JOB
from tinysphere.tracking import FOREIGN, Move, Tracking, decide

BOOT_NS = 10_000_000_000


# Decided apart from done -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("here", "there", "agreed", "push", "promote"),
    [
        ("1", "1", "1", Move.NOTHING, Move.NOTHING),
        (None, None, None, Move.NOTHING, Move.NOTHING),
        ("1", "1", None, Move.AGREE, Move.AGREE),
        (None, None, "1", Move.AGREE, Move.AGREE),
        ("1", None, None, Move.TELL, Move.TELL),  # new here
        ("2", "1", "1", Move.TELL, Move.TELL),  # moved here
        (None, "1", "1", Move.TELL, Move.TELL),  # removed here
        ("1", "2", "1", Move.TELL, Move.TAKE),  # moved there
        (None, "1", None, Move.NOTHING, Move.TAKE),  # new there
        ("1", None, "1", Move.TELL, Move.TELL),  # gone there: an emptied MLflow takes nothing away here
        ("2", "3", "1", Move.TELL, Move.TELL),  # moved on both sides: this server wins
        (None, "3", "1", Move.TELL, Move.TELL),
        ("1", "2", None, Move.TELL, Move.TELL),
        ("1", FOREIGN, "1", Move.TELL, Move.NOTHING),  # to what is not of this server
        (None, FOREIGN, None, Move.NOTHING, Move.NOTHING),
        ("2", "2", "", Move.AGREE, Move.AGREE),  # told, and it is not known whether that arrived
        ("2", "1", "", Move.TELL, Move.TELL),
        (None, "1", "", Move.TELL, Move.TELL),
    ],
)
def test_what_becomes_of_an_alias(
    here: str | None, there: str | None, agreed: str | None, push: Move, promote: Move
) -> None:
    assert decide(here, there, agreed, promote=False) is push
    assert decide(here, there, agreed, promote=True) is promote


def test_no_alias_goes_to_and_fro() -> None:
    """Whatever both sides name, one look settles it: the next one does nothing."""
    names = (None, "1", "2", "3")
    for promote in (False, True):
        for here in names:
            for there in (*names, FOREIGN):
                for agreed in (*names, ""):
                    move = decide(here, there, agreed, promote=promote)
                    after = {
                        Move.NOTHING: (here, there, agreed),
                        Move.AGREE: (here, there, here),
                        Move.TELL: (here, here, here),
                        Move.TAKE: (there, there, there),
                    }[move]
                    assert decide(*after, promote=promote) is Move.NOTHING


# Done against the real one -----------------------------------------------------------------------------------


class Mirror:
    """A server's rooms and their mirror under a model's name that no other test has."""

    def __init__(self, kit: Kit, server: MlflowServer, url: str, *, promote: bool = False) -> None:
        self.kit, self.server = kit, server
        self.model = f"gesture-{secrets.token_hex(4)}"
        self.tracking = Tracking(Mlflow(url), kit.store, "https://sphere.example", kit.clock, promote, 0.0)
        work = {JOB: Work(self.tracking.run, 30.0)}
        Worker(kit.db, work)._make_known()
        kit.db.write(lambda connection: soon(connection, JOB))
        lease = claim(kit.db, work, threading.Event(), 600.0)
        assert lease is not None
        self.lease: Lease = lease
        kit.clock.jump_wall(DAY_S * 20_000 - kit.clock.wall_s())
        kit.pin()
        self.device = kit.enrol()
        self._seq = 0

    def round(self) -> None:
        self.tracking.run(self.lease)

    def upload(self, version: str = "1.0.0", metadata: dict[str, Json] | None = None, bias: float = 0.0) -> str:
        data = make_package(self.model, version, metadata=metadata, bias=bias)
        return self.kit.register(data, name=self.model).sha256

    def alias(self, name: str, version: str | None) -> None:
        now_s = self.kit.clock.wall_s()
        if version is None:
            versions.remove_alias(self.kit.db, self.model, name, "ada", now_s)
        else:
            versions.set_alias(self.kit.db, self.model, name, versions.AliasRequest(version), "ada", now_s)

    def here(self) -> dict[str, str]:
        return {item.alias: item.version for item in versions.list_aliases(self.kit.db, self.model, None, 100).items}

    def there(self) -> dict[str, str]:
        """MLflow's aliases, in our versions."""
        numbers = {v["version"]: name for name, found in self.server.versions(self.model).items() for v in found}
        return {alias: numbers[number] for alias, number in self.server.aliases(self.model).items()}

    def hour(self, version: str = "1.0.0", windows: int = 1, ago_s: float = 0.0) -> None:
        """A device tells of an hour, which then passes."""
        self._seq += 1
        body = summary([100.0] * windows, [0.5] * windows, model=self.model, version=version)
        self.kit.sync(
            self.device,
            anchor=Anchor(BOOT_NS + int(ago_s * 1e9), self.kit.clock.wall_s()),
            details=[record(self._seq, "summary", body, boot_ns=BOOT_NS)],
        )
        self.kit.clock.advance(HOUR_S)

    def windows(self, version: str = "1.0.0") -> dict[int, float]:
        """What MLflow says of each step: the newest value."""
        (run,) = self.server.runs(self.model)[version]
        return {step: value for step, _, value in self.server.history(run["info"]["run_id"], "windows")}

    def waiting(self) -> tracking.Status:
        return tracking.status(self.kit.db)


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    kit = make_kit(tmp_path)
    yield kit
    kit.db.close()


@pytest.fixture
def mirror(kit: Kit, mlflow: MlflowServer) -> Mirror:
    return Mirror(kit, mlflow, mlflow.url)


@pytest.fixture
def cut(mlflow: MlflowServer) -> Iterator[Cutting]:
    with cutting(mlflow) as made:
        yield made


@pytest.mark.mlflow
def test_a_version_is_registered_with_its_hash_and_lineage(mirror: Mirror, mlflow: MlflowServer) -> None:
    trained = mlflow.ask("runs/create", {"experiment_id": "0", "start_time": 1})["run"]["info"]["run_id"]
    lineage: dict[str, Json] = {"run_id": trained, "data_sha256": "d" * 64, "git_commit": "c" * 40, "note": "mine"}
    sha256 = mirror.upload(metadata=lineage)
    mirror.upload("2.0.0", metadata={"run_id": "of another tracker"})
    for _ in range(2):
        mirror.round()
    found = mlflow.versions(mirror.model)
    ((first,), (second,)) = found["1.0.0"], found["2.0.0"]
    assert first["source"] == f"tinysphere://sphere.example/api/v1/packages/{sha256}"
    assert first["run_id"] == trained and not second.get("run_id")
    tags = first["tags"]
    assert tags["tinysphere.sha256"] == sha256 and tags["tinysphere.lineage.git_commit"] == "c" * 40
    assert tags["tinysphere.lineage.data_sha256"] == "d" * 64 and "tinysphere.lineage.note" not in tags
    assert tags["tinysphere.url"] == f"https://sphere.example/api/v1/packages/{sha256}"
    assert second["tags"]["tinysphere.lineage.run_id"] == "of another tracker"
    status = mirror.waiting()
    assert (status.versions, status.aliases, status.metrics, status.problem) == (0, 0, 0, "")


@pytest.mark.mlflow
@pytest.mark.parametrize(
    "word", [b"model-versions/create", b"runs/create", b"runs/log-batch", b"registered-models/alias"]
)
def test_an_answer_that_is_lost_doubles_nothing(kit: Kit, mlflow: MlflowServer, cut: Cutting, word: bytes) -> None:
    mirror = Mirror(kit, mlflow, cut.url)
    mirror.upload()
    mirror.alias("champion", "1.0.0")
    for _ in range(3):
        mirror.hour(windows=2)
    kit.clock.advance(600)
    cut.word = word
    with pytest.raises(MlflowError):
        mirror.round()
    assert cut.cut == 1 and cut.word == b""
    for _ in range(2):
        mirror.round()
    assert {name: len(found) for name, found in mlflow.versions(mirror.model).items()} == {"1.0.0": 1}
    (run,) = mlflow.runs(mirror.model)["1.0.0"]
    history = mlflow.history(run["info"]["run_id"], "windows")
    assert [value for _, _, value in history] == [2.0, 2.0, 2.0] and len({step for step, _, _ in history}) == 3
    assert mirror.there() == {"champion": "1.0.0"}


@pytest.mark.mlflow
def test_hours_are_logged_once_and_again_when_they_change(mirror: Mirror, mlflow: MlflowServer) -> None:
    mirror.upload()
    begin = int(mirror.kit.clock.wall_s()) // HOUR_S
    for windows in (1, 2, 3):
        mirror.hour(windows=windows)
        mirror.round()
    mirror.kit.clock.advance(600)
    mirror.round()
    assert mirror.windows() == {begin: 1.0, begin + 1: 2.0, begin + 2: 3.0}
    (run,) = mlflow.runs(mirror.model)["1.0.0"]
    assert len(mlflow.history(run["info"]["run_id"], "windows")) == 3, "each of them once"
    names = {item["key"] for item in run["data"]["metrics"]}
    assert {"latency_p99_us", "confidence_mean", "windows", "drift_events", "devices", "span_s"} <= names
    mirror.hour(windows=5, ago_s=3 * HOUR_S)  # of a device that was away
    mirror.kit.clock.advance(HOUR_S)
    mirror.round()
    assert mirror.windows() == {begin: 6.0, begin + 1: 2.0, begin + 2: 3.0}
    assert len(mlflow.history(run["info"]["run_id"], "windows")) == 4
    (version,) = mlflow.versions(mirror.model)["1.0.0"]
    assert version["tags"]["tinysphere.run"] == run["info"]["run_id"]


@pytest.mark.mlflow
def test_drift_and_accuracy_are_logged(mirror: Mirror, mlflow: MlflowServer) -> None:
    mirror.upload()
    now_s = mirror.kit.clock.wall_s()
    sample = {"prediction": "p", "model": mirror.model, "version": "1.0.0", "label": "a"}
    mirror.kit.sync(
        mirror.device,
        anchor=Anchor(BOOT_NS, now_s),
        details=[record(1, "sample", sample, boot_ns=BOOT_NS)],
        events=[
            record(1, "alarm", alarm(model=mirror.model)),
            record(2, "label", {"prediction": "p", "label": "a"}, boot_ns=BOOT_NS),
        ],
    )
    mirror.kit.clock.advance(2 * HOUR_S)
    mirror.round()
    (run,) = mlflow.runs(mirror.model)["1.0.0"]
    values = {item["key"]: item["value"] for item in run["data"]["metrics"]}
    assert values["drift_events"] == 1 and values["accuracy"] == 1.0 and values["labelled"] == 1


@pytest.mark.mlflow
def test_aliases_go_to_mlflow_and_what_is_moved_there_is_moved_back(mirror: Mirror, mlflow: MlflowServer) -> None:
    mirror.upload()
    mirror.upload("2.0.0", bias=1.0)
    mirror.alias("champion", "1.0.0")
    mirror.alias("next", "2.0.0")
    mirror.round()
    assert mirror.there() == {"champion": "1.0.0", "next": "2.0.0"}
    mlflow.set_alias(mirror.model, "champion", "2")
    mlflow.set_alias(mirror.model, "theirs", "1")
    mlflow.remove_alias(mirror.model, "next")
    mirror.round()
    assert mirror.there() == {"champion": "1.0.0", "next": "2.0.0", "theirs": "1.0.0"}
    assert mirror.here() == {"champion": "1.0.0", "next": "2.0.0"}
    mirror.alias("next", None)
    mirror.round()
    assert mirror.there() == {"champion": "1.0.0", "theirs": "1.0.0"}


@pytest.mark.mlflow
def test_a_promotion_in_mlflow_is_taken_when_that_is_on(kit: Kit, mlflow: MlflowServer) -> None:
    mirror = Mirror(kit, mlflow, mlflow.url, promote=True)
    mirror.upload()
    mirror.upload("2.0.0", bias=1.0)
    mirror.alias("champion", "1.0.0")
    mirror.round()
    numbers = {name: found[0]["version"] for name, found in mlflow.versions(mirror.model).items()}
    mlflow.set_alias(mirror.model, "champion", numbers["2.0.0"])
    mlflow.set_alias(mirror.model, "candidate", numbers["1.0.0"])
    mlflow.set_alias(mirror.model, "NotAName", numbers["1.0.0"])
    mirror.round()
    assert mirror.here() == {"champion": "2.0.0", "candidate": "1.0.0"}
    moved = {item.alias: item.changed_by for item in versions.list_aliases(kit.db, mirror.model, None, 100).items}
    assert moved == {"champion": "mlflow", "candidate": "mlflow"}
    audited = kit.db.read(lambda connection: rows(connection, "SELECT who, target FROM audit ORDER BY id DESC LIMIT 1"))
    assert audited[0]["who"] == "mlflow"
    for _ in range(3):
        mirror.round()
    assert mirror.there() == {"champion": "2.0.0", "candidate": "1.0.0", "NotAName": "1.0.0"}, "it stays so"
    # Moved on both sides while nobody looked: this server wins.
    mirror.alias("champion", "1.0.0")
    mirror.alias("candidate", "2.0.0")
    mlflow.set_alias(mirror.model, "candidate", numbers["2.0.0"])
    mirror.round()
    assert mirror.here() == {"champion": "1.0.0", "candidate": "2.0.0"}
    assert mirror.there() == {"champion": "1.0.0", "candidate": "2.0.0", "NotAName": "1.0.0"}
    with pytest.raises(NotFoundError):
        mirror.kit.deploy("@NotAName")


@pytest.mark.mlflow
def test_what_mlflow_refuses_waits_by_itself_and_says_why(
    mirror: Mirror, mlflow: MlflowServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    mirror.upload()
    mirror.alias("latest", "1.0.0")  # MLflow reserves the name
    mirror.alias("champion", "1.0.0")
    mirror.round()
    assert mirror.there() == {"champion": "1.0.0"}
    (waiting,) = mirror.waiting().waiting
    assert waiting.name == "latest" and "reserved" in waiting.problem and "reserved" in caplog.text
    before = waiting.retry_at
    mirror.round()
    assert mirror.waiting().waiting[0].retry_at == before, "not before its time"
    mirror.kit.clock.advance(60)
    mirror.round()
    assert mirror.waiting().waiting[0].tries == 2
    mirror.alias("latest", None)
    mirror.round()
    assert mirror.waiting().waiting == []


@pytest.mark.mlflow
def test_a_version_that_is_removed_is_marked_and_may_come_again(mirror: Mirror, mlflow: MlflowServer) -> None:
    mirror.upload()
    mirror.round()
    versions.remove_version(mirror.kit.db, mirror.kit.store, mirror.model, "1.0.0", "ada", mirror.kit.clock.wall_s())
    mirror.round()
    (gone,) = mlflow.versions(mirror.model)["1.0.0"]
    assert gone["tags"]["tinysphere.removed"].startswith("2024-")
    mirror.kit.clock.advance(1)
    mirror.upload()
    mirror.round()
    (again,) = mlflow.versions(mirror.model)["1.0.0"]
    assert again["version"] == gone["version"] and again["tags"]["tinysphere.removed"] == ""
    versions.remove_version(mirror.kit.db, mirror.kit.store, mirror.model, "1.0.0", "ada", mirror.kit.clock.wall_s())
    mirror.upload(bias=2.0)  # the same version with other content
    mirror.round()
    both = mlflow.versions(mirror.model)["1.0.0"]
    assert sorted(bool(item["tags"].get("tinysphere.removed")) for item in both) == [False, True]


@pytest.mark.mlflow
def test_what_mlflow_has_lost_comes_back(mirror: Mirror, mlflow: MlflowServer) -> None:
    mirror.upload()
    mirror.alias("champion", "1.0.0")
    for _ in range(3):
        mirror.hour()
    mirror.kit.clock.advance(600)
    mirror.round()
    before = mirror.windows()
    (run,) = mlflow.runs(mirror.model)["1.0.0"]
    mlflow.ask("runs/delete", {"run_id": run["info"]["run_id"]})
    mlflow.remove_alias(mirror.model, "champion")
    mirror.kit.db.write(lambda connection: tracking.resync(connection, mirror.kit.clock.wall_s()))
    assert mirror.waiting().versions == 1
    for _ in range(2):
        mirror.round()
    assert mirror.windows() == before and mirror.there() == {"champion": "1.0.0"}
    assert len(mlflow.versions(mirror.model)["1.0.0"]) == 1, "what was there is not made again"
    mirror.kit.db.write(lambda connection: tracking.resync(connection, mirror.kit.clock.wall_s()))
    mirror.kit.clock.advance(2 * HOUR_S)
    mirror.round()
    (run,) = mlflow.runs(mirror.model)["1.0.0"]
    assert len(mlflow.history(run["info"]["run_id"], "windows")) == len(before), "nothing is doubled by it"


def test_mlflow_away_is_a_failed_round_and_the_hours_are_noted_meanwhile(kit: Kit) -> None:
    mirror = Mirror(kit, None, f"http://127.0.0.1:{free_port()}")  # type: ignore[arg-type]
    mirror.upload()
    mirror.alias("champion", "1.0.0")
    for _ in range(5):
        mirror.hour()
        with pytest.raises(MlflowError):
            mirror.round()
    status = mirror.waiting()
    assert (status.versions, status.aliases, status.metrics, status.points) == (1, 1, 1, 5)
    assert status.oldest_at is not None and not status.full
