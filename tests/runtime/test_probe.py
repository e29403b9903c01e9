"""The child process in which a package is tried."""

from __future__ import annotations

from pathlib import Path

import pytest
from models import linear_model, make_package, unknown_operator_model
from tinylcm.errors import ModelError
from tinylcm.package import parse_package
from tinylcm.probe import check_golden, probe

LIMITS = {"timeout_s": 60.0, "memory_bytes": 2 << 30}


def write(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "p.tlm"
    path.write_bytes(data)
    return path


def test_a_good_package_passes_and_is_measured(tmp_path: Path) -> None:
    answer = probe(write(tmp_path, make_package()), **LIMITS)
    assert answer["windows"] == 1
    assert float(answer["latency_us"]) > 0  # type: ignore[arg-type]
    assert float(answer["seconds"]) < 60  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (make_package(wrong_golden=True), "golden window 0: a score differs"),
        (make_package(model=unknown_operator_model()), "Frobnicate"),
        (make_package(model=linear_model()[: len(linear_model()) // 2]), "cannot load the model"),
        (b"not a package", "truncated|not a model package"),
    ],
)
def test_what_does_not_run_right_says_why(data: bytes, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=problem):
        probe(write(tmp_path, data), **LIMITS)


def test_a_probe_that_takes_too_long_or_too_much_is_ended(tmp_path: Path) -> None:
    path = write(tmp_path, make_package())
    with pytest.raises(ModelError, match=r"did not finish its probe within 0.01 s"):
        probe(path, timeout_s=0.01, memory_bytes=2 << 30)
    with pytest.raises(ModelError):
        probe(path, timeout_s=60, memory_bytes=32 << 20)


def test_the_check_itself_compares_scores() -> None:
    with pytest.raises(ModelError, match="this device computes something else"):
        check_golden(parse_package(make_package(wrong_golden=True), None))
