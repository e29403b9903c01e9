"""The few things that are asked of MLflow, through mlflow-skinny's client, and what its errors mean.

The client's fluent functions (`mlflow.set_experiment` and the like) change the whole process, so only `MlflowClient`
is used, with the id of everything named. It is imported when it is first asked: 1 s and 50 MB that a server without
MLflow does not pay.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from .errors import StartError, TinySphereError

# Shorter than the lease of a job: a request that is not answered has ended before another process takes the job up.
REQUEST_TIMEOUT_S: Final = 10
BATCH_METRICS_MAX: Final = 1000  # of MLflow's log-batch
_PAGE: Final = 1000
_PAGES_MAX: Final = 100
_SETTINGS: Final = {
    # Each request once: what waits is in our table, and the next round comes by itself.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_TIMEOUT_S),
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}
# What MLflow says of the one thing that it was sent; everything else is said of MLflow itself.
_OF_THE_THING: Final = frozenset(
    {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE", "MALFORMED_REQUEST"}
)
_MISSING: Final = frozenset({"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"})


class MlflowError(TinySphereError):
    """MLflow cannot be reached, is failing, or lets nobody in: nothing can be sent now."""


class MlflowRefusedError(TinySphereError):
    """MLflow refuses this one thing."""


class MlflowMissingError(MlflowRefusedError):
    """MLflow does not have what this is about."""


@dataclass(frozen=True, slots=True)
class Point:
    """A metric's value at a time."""

    key: str
    value: float
    timestamp_ms: int
    step: int


def check_url(url: str, *, insecure: bool) -> None:
    """Refuse what is no address of an MLflow server, and a way to one that others can read.

    Raises:
        StartError: it is none, or the client is not installed.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StartError(f"--mlflow {url!r:.100}: expected the address of an MLflow server, as http://host:5000")
    if parts.username or parts.password:
        raise StartError("--mlflow: give the password in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")
    if parts.scheme == "http" and not insecure and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise StartError(f"--mlflow: {parts.hostname} is not this machine; use https, or name the choice: --insecure")
    if importlib.util.find_spec("mlflow") is None:
        raise StartError("--mlflow needs MLflow's client: pip install 'tinymlops[mlflow]'")


class Mlflow:
    """One MLflow server.

    Args:
        url: its address; who we are is in the client's own variables, MLFLOW_TRACKING_TOKEN and the like.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._made: Any = None

    @property
    def _client(self) -> Any:
        if self._made is None:
            os.environ.update(_SETTINGS)
            from mlflow.tracking import MlflowClient

            self._made = MlflowClient(tracking_uri=self.url, registry_uri=self.url)
        return self._made

    # Versions ---------------------------------------------------------------------------------------------

    def find_version(self, model: str, tag: str, value: str) -> str | None:
        """The number of the version with a tag. Of several, of which a cut connection can be the cause, the first."""
        with _told():
            found = self._client.search_model_versions(f"name = '{model}' and tag.`{tag}` = '{value}'", _PAGE)
        return min((str(item.version) for item in found), key=int, default=None)

    def add_model(self, model: str, description: str) -> None:
        """Make a registered model, if there is none of this name."""
        try:
            with _told():
                self._client.create_registered_model(model, description=description)
        except MlflowRefusedError as error:
            if "RESOURCE_ALREADY_EXISTS" not in str(error):
                raise

    def add_version(self, model: str, source: str, tags: Mapping[str, str], description: str, run: str | None) -> str:
        """Register what is at an address as the next version; its number."""
        with _told():
            made = self._client.create_model_version(
                model, source, run_id=run, tags=dict(tags), description=description, await_creation_for=0
            )
        return str(made.version)

    def tag_version(self, model: str, number: str, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            with _told():
                self._client.set_model_version_tag(model, number, key, value)

    def has_run(self, run: str) -> bool:
        """Whether there is such a run, of a training for instance."""
        try:
            with _told():
                self._client.get_run(run)
        except MlflowRefusedError:
            return False
        return True

    # Aliases ----------------------------------------------------------------------------------------------

    def aliases(self) -> dict[str, dict[str, str]]:
        """The aliases of every registered model: the number that each names."""
        found: dict[str, dict[str, str]] = {}
        token: str | None = None
        for _ in range(_PAGES_MAX):
            with _told():
                page = self._client.search_registered_models(max_results=_PAGE, page_token=token)
            for item in page:
                found[str(item.name)] = {str(name): str(number) for name, number in dict(item.aliases or {}).items()}
            token = page.token
            if not token:
                break
        return found

    def alias(self, model: str, name: str) -> str | None:
        """The number that an alias names now, or None."""
        with _told():
            found = self._client.get_registered_model(model)
        number = dict(found.aliases or {}).get(name)
        return None if number is None else str(number)

    def set_alias(self, model: str, name: str, number: str) -> None:
        """Have an alias name a version."""
        with _told():
            self._client.set_registered_model_alias(model, name, number)

    def remove_alias(self, model: str, name: str) -> None:
        """Take an alias away; one that is not there is gone already."""
        try:
            with _told():
                self._client.delete_registered_model_alias(model, name)
        except MlflowMissingError:
            return

    # Runs -------------------------------------------------------------------------------------------------

    def experiment(self, name: str) -> str:
        """The id of an experiment, which is made if there is none.

        Raises:
            MlflowRefusedError: somebody has deleted it in MLflow.
        """
        with _told():
            found = self._client.get_experiment_by_name(name)
            if found is None:
                return str(self._client.create_experiment(name))
        if found.lifecycle_stage != "active":
            raise MlflowRefusedError(f"the experiment {name} was deleted in MLflow; restore it there")
        return str(found.experiment_id)

    def find_run(self, experiment: str, tag: str, value: str) -> str | None:
        """The run with a tag; of several the first."""
        with _told():
            found = self._client.search_runs(
                [experiment], f"tags.`{tag}` = '{value}'", max_results=1, order_by=["attributes.start_time ASC"]
            )
        return str(found[0].info.run_id) if found else None

    def add_run(self, experiment: str, name: str, tags: Mapping[str, str], start_ms: int) -> str:
        """Make a run; its id."""
        with _told():
            made = self._client.create_run(experiment, start_time=start_ms, tags=dict(tags), run_name=name)
        return str(made.info.run_id)

    def log(self, run: str, points: Sequence[Point]) -> None:
        """Log points, at most `BATCH_METRICS_MAX`. MLflow keeps a point that it has already only once."""
        from mlflow.entities import Metric

        metrics = [Metric(point.key, point.value, point.timestamp_ms, point.step) for point in points]
        with _told():
            self._client.log_batch(run, metrics=metrics, synchronous=True)


@contextmanager
def _told() -> Iterator[None]:
    """Errors of the client and of what it stands on, as ours."""
    try:
        yield
    except Exception as error:
        code = getattr(error, "error_code", None)
        said = " ".join(str(error).split())[:300]
        if code in _MISSING:
            raise MlflowMissingError(f"MLflow does not have it: {said}") from error
        if code in _OF_THE_THING:
            raise MlflowRefusedError(f"MLflow refuses it: {said}") from error
        if code is None and not isinstance(error, OSError):
            raise
        raise MlflowError(f"MLflow cannot be used now: {said}") from error
