"""The example of a board's model: its numbers come out, and the package is one."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blob_oracle import Oracle
from tinylcm.cli import main
from tinylcm.keys import init_keys
from tinylcm.package import load_package
from tinylcm.pipeline import Pipeline
from tinylcm.probe import probe

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "board_activity"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE / "train_board.py"))


@pytest.fixture(scope="module")
def windows(example: dict[str, Any]) -> dict[str, np.ndarray]:
    return dict(example["train"]()[1])


@pytest.fixture(scope="module")
def converted(windows: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("board")
    init_keys(folder / "keys")
    np.savez(folder / "windows.npz", **windows)
    package, key = str(folder / "board.tlm"), str(folder / "keys" / "release.key")
    command = ["board", "convert", str(EXAMPLE / "model.onnx"), "--manifest", str(EXAMPLE / "model.toml")]
    assert main([*command, "--data", str(folder / "windows.npz"), "--key", key, "-o", package]) == 0
    return folder / "board.tlm"


def test_the_numbers_of_the_readme_come_out(converted: Path) -> None:
    report = load_package(converted, None).manifest.metadata["board"]["conversion"]
    readme = " ".join((EXAMPLE / "README.md").read_text().split())
    assert f"{report['agreed']} of {report['held_out']} |" in readme
    assert f"| flash | {report['flash_bytes']} bytes, of which nodes {report['tables']['nodes']}," in readme
    assert f"| RAM to run it | {report['ram_bytes']} bytes" in readme
    assert report["agreement"] == 1.0 and report["accuracy_board"] == 1.0


def test_training_again_gives_a_forest_that_decides_the_same(example: dict[str, Any]) -> None:
    import onnxruntime

    forest, windows = example["train"]()
    features = example["features_of"](windows["held_out"])
    session = onnxruntime.InferenceSession((EXAMPLE / "model.onnx").read_bytes())
    (scores,) = session.run(["probabilities"], {session.get_inputs()[0].name: features})
    assert (scores.argmax(axis=1) == forest.predict(features)).mean() > 0.99


def test_the_package_runs_here_and_in_its_probe_as_the_oracle_says(
    converted: Path, windows: dict[str, np.ndarray]
) -> None:
    package = load_package(converted, None)
    assert (package.manifest.format, package.manifest.window_shape) == ("board", (100, 6))
    answer = probe(converted, timeout_s=60, memory_bytes=4 << 30)
    assert answer["windows"] == 8 and answer["error_max"] == 0.0
    pipeline, oracle = Pipeline(package), Oracle(package.read("model.board"))
    for window in windows["held_out"][::40]:
        counts = np.rint(window.astype(np.float64) / 0.01).astype(np.int16)
        prediction = pipeline.infer(counts)
        label, score = oracle.predict(counts.tolist())
        assert (prediction.label, prediction.confidence) == (
            package.manifest.labels[label], pytest.approx(score / 65535)
        )  # fmt: skip
        assert pipeline.infer((counts * 0.01).astype(np.float32)).label == prediction.label


def test_it_says_as_json_what_it_costs(
    converted: Path, windows: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init_keys(tmp_path / "keys")
    np.savez(tmp_path / "w.npz", **windows)
    command = ["board", "convert", str(EXAMPLE / "model.onnx"), "--manifest", str(EXAMPLE / "model.toml"), "--json"]
    out = str(tmp_path / "x.tlm")
    assert (
        main([*command, "--data", str(tmp_path / "w.npz"), "--key", str(tmp_path / "keys/release.key"), "-o", out]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["flash_bytes"] == sum(found["tables"].values()) == len(load_package(out, None).read("model.board"))
    assert found["path"] == out and found["size"] == Path(out).stat().st_size
