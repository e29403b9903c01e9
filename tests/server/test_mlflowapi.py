"""What is asked of MLflow, and what its answers mean: against the real server."""

from __future__ import annotations

import secrets
import subprocess
import sys

import pytest
from mlflow_server import MlflowServer, free_port
from tinysphere.errors import StartError
from tinysphere.mlflowapi import Mlflow, MlflowError, MlflowMissingError, MlflowRefusedError, Point, check_url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mlflow.example.org:5000", "expected the address"),
        ("sqlite:///mlflow.db", "expected the address"),
        ("http://", "expected the address"),
        ("https://ada:secret@host", "MLFLOW_TRACKING_USERNAME"),
        ("http://mlflow.example.org", "--insecure"),
    ],
)
def test_an_address_that_is_none_or_not_safe_is_refused(url: str, message: str) -> None:
    with pytest.raises(StartError, match=message) as caught:
        check_url(url, insecure=False)
    assert "secret" not in str(caught.value)


def test_good_addresses_are_taken() -> None:
    for url, insecure in (("http://127.0.0.1:5000", False), ("https://h", False), ("http://h", True)):
        check_url(url, insecure=insecure)


def test_a_client_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StartError, match=r"tinymlops\[mlflow\]"):
        check_url("https://h", insecure=False)


def test_a_server_without_mlflow_does_not_load_its_client() -> None:
    code = "import sys, tinysphere.app, tinysphere.tracking; print('mlflow' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "False\n"


def test_a_server_that_is_away_is_told_apart_from_a_refusal() -> None:
    with pytest.raises(MlflowError, match="cannot be used now"):
        Mlflow(f"http://127.0.0.1:{free_port()}").aliases()


@pytest.fixture
def name() -> str:
    return f"model-{secrets.token_hex(4)}"


@pytest.mark.mlflow
def test_a_version_is_found_by_its_tag(mlflow: MlflowServer, name: str) -> None:
    api = Mlflow(mlflow.url)
    assert api.find_version(name, "tinysphere.outbox", "a") is None
    for _ in range(2):
        api.add_model(name, "text")
    numbers = [api.add_version(name, "s3://b/x", {"tinysphere.outbox": tag}, "text", None) for tag in ("a", "b", "a")]
    assert numbers == ["1", "2", "3"] and api.find_version(name, "tinysphere.outbox", "a") == "1"
    api.tag_version(name, "2", {"more": "yes"})
    assert mlflow.versions(name)[""][0]["tags"].keys() >= {"tinysphere.outbox"}
    with pytest.raises(MlflowMissingError):
        api.tag_version(name, "9", {"more": "yes"})


@pytest.mark.mlflow
def test_aliases_are_set_read_and_removed(mlflow: MlflowServer, name: str) -> None:
    api = Mlflow(mlflow.url)
    api.add_model(name, "text")
    api.add_version(name, "s3://b/x", {}, "text", None)
    api.set_alias(name, "champion", "1")
    assert api.aliases()[name] == {"champion": "1"} == mlflow.aliases(name)
    for _ in range(2):
        api.remove_alias(name, "champion")
    assert api.aliases()[name] == {}
    with pytest.raises(MlflowRefusedError, match="reserved"):
        api.set_alias(name, "latest", "1")
    with pytest.raises(MlflowMissingError):
        api.set_alias(name, "champion", "7")


@pytest.mark.mlflow
def test_a_point_is_kept_once_and_the_newest_of_a_step_holds(mlflow: MlflowServer, name: str) -> None:
    api = Mlflow(mlflow.url)
    experiment = api.experiment(name)
    assert api.experiment(name) == experiment and api.find_run(experiment, "tinysphere.outbox", "k") is None
    run = api.add_run(experiment, name, {"tinysphere.outbox": "k"}, 1000)
    assert api.find_run(experiment, "tinysphere.outbox", "k") == run and api.has_run(run)
    for _ in range(2):
        api.log(run, [Point("windows", 3.0, 1000, 5), Point("predictions/a b", 1.0, 1000, 5)])
    api.log(run, [Point("windows", 4.0, 2000, 5)])
    assert mlflow.history(run, "windows") == [(5, 1000, 3.0), (5, 2000, 4.0)]
    assert not api.has_run("f" * 32)
    with pytest.raises(MlflowMissingError):
        api.log("f" * 32, [Point("windows", 3.0, 1000, 5)])


@pytest.mark.mlflow
def test_what_somebody_deleted_in_mlflow_is_not_brought_back(mlflow: MlflowServer, name: str) -> None:
    api = Mlflow(mlflow.url)
    experiment = api.experiment(name)
    run = api.add_run(experiment, name, {}, 1000)
    mlflow.ask("runs/delete", {"run_id": run})
    with pytest.raises(MlflowRefusedError, match="active"):
        api.log(run, [Point("windows", 3.0, 1000, 5)])
    mlflow.ask("experiments/delete", {"experiment_id": experiment})
    with pytest.raises(MlflowRefusedError, match="restore it there"):
        api.experiment(name)


@pytest.mark.mlflow
@pytest.mark.parametrize("source", ["file:///x/y", "http://127.0.0.1/x", "https://host/x"])
def test_mlflow_takes_no_file_and_no_http_address(mlflow: MlflowServer, name: str, source: str) -> None:
    """Why packages in a folder have an address of their own scheme there: see Tracking._address."""
    api = Mlflow(mlflow.url)
    api.add_model(name, "text")
    with pytest.raises(MlflowRefusedError):
        api.add_version(name, source, {}, "text", None)
    assert api.add_version(name, "tinysphere://host:8080/api/v1/packages/aa", {}, "text", None) == "1"
