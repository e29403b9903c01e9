"""The child process in which a package is tried."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kinds import packaged
from models import linear_model, make_package, unknown_operator_model
from tflite_models import load
from tinylcm.errors import ModelError
from tinylcm.package import parse_package
from tinylcm.probe import check_golden, peak_bytes, probe

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


def mutated(model: bytes, seed: int) -> bytes:
    """The model with some of its bytes changed, or its end cut off."""
    rng = np.random.default_rng(seed)
    data = bytearray(model)
    if seed % 4 == 3:
        return bytes(data[: int(rng.integers(1, len(data)))])
    for place in rng.integers(0, len(data), int(rng.integers(1, 12))):
        data[place] = int(rng.integers(0, 256))
    return bytes(data)


def try_mutations(kind: str, seeds: range, tmp_path: Path) -> None:
    """Every mutated model is refused with a reason, or runs; this process lives on."""
    if kind == "tflite":
        pytest.importorskip("ai_edge_litert")
    model = linear_model() if kind == "onnx" else load("fc_int8")
    document = (
        {"input": {"name": "x", "shape": [1, 3]}}
        if kind == "onnx"
        else {"input": {"name": "x:0", "shape": [1, 16], "dtype": "int8"}, "labels": ["a", "b", "c", "d"]}
    )
    whole = packaged(document, {f"model.{kind}": model}, format=kind)
    assert probe(write(tmp_path, whole.data), timeout_s=60, memory_bytes=2 << 30)["windows"] == 1
    for seed in seeds:
        package = packaged(document, {f"model.{kind}": mutated(model, seed)}, format=kind)
        try:
            answer = probe(write(tmp_path, package.data), timeout_s=60, memory_bytes=2 << 30)
        except ModelError as error:
            assert str(error)
        else:
            assert answer["windows"] == 1


@pytest.mark.long
@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_mutated_models_end_in_the_child(kind: str, tmp_path: Path) -> None:
    try_mutations(kind, range(8), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["onnx", "tflite"])
def test_many_mutated_models_end_in_the_child(kind: str, tmp_path: Path) -> None:
    try_mutations(kind, range(8, 80), tmp_path)


def test_a_child_that_dies_of_a_signal_is_named(tmp_path: Path) -> None:
    crash = "import os, signal\ndef open(model, spec):\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
    site = tmp_path / "site"
    (site / "crash-1.dist-info").mkdir(parents=True)
    (site / "crash_backend.py").write_text(crash)
    (site / "crash-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: crash\nVersion: 1\n")
    (site / "crash-1.dist-info" / "entry_points.txt").write_text("[tinylcm.backends]\ncrash = crash_backend:open\n")
    package = packaged({"input": {"name": "x", "shape": [1, 3]}, "format": "crash"}, {"model.crash": b"?"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(site))
        with pytest.raises(ModelError, match="crashed its probe \\(SIGSEGV\\)"):
            probe(write(tmp_path, package.data), **LIMITS)


def test_the_peak_is_this_processes_own_and_not_its_parents() -> None:
    ballast = bytearray(300 << 20)  # a child that was started inherits ru_maxrss from here
    code = "from tinylcm.probe import peak_bytes; print(peak_bytes())"
    child = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert len(ballast) < peak_bytes()
    assert 5 << 20 < child < 200 << 20
