"""Building a package from files, as a data scientist does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from models import linear_model, unknown_operator_model
from tinylcm.errors import ConfigError, ModelError
from tinylcm.keys import init_keys
from tinylcm.package import parse_package
from tinylcm.probe import check_golden
from tinylcm.publish import build

MANIFEST = """
name = "gesture"
version = "1.2.0"
format = "onnx"
output = "scores"
labels = ["left", "right"]
[input]
name = "x"
shape = [1, 3]
[window]
samples = 1
[metadata]
data = "none"
"""


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    init_keys(tmp_path / "keys")
    (tmp_path / "model.onnx").write_bytes(linear_model())
    (tmp_path / "model.toml").write_text(MANIFEST)
    return {
        "model_path": tmp_path / "model.onnx",
        "manifest_path": tmp_path / "model.toml",
        "key_path": tmp_path / "keys" / "release.key",
    }


def test_a_package_holds_golden_outputs_that_this_machine_gives(files: dict[str, Path]) -> None:
    package = parse_package(build(**files), None)
    assert package.manifest.metadata == {"data": "none"}
    assert check_golden(package)["windows"] == 4


def test_golden_windows_of_ones_own_are_used(files: dict[str, Path], tmp_path: Path) -> None:
    np.save(tmp_path / "golden.npy", np.ones((2, 3), dtype=np.float32))
    files["manifest_path"].write_text(MANIFEST + '[golden]\nfile = "golden.npy"\ntolerance = 1e-5\n')
    package = parse_package(build(**files), None)
    assert package.manifest.golden is not None and package.manifest.golden.count == 2
    np.testing.assert_array_equal(package.golden_inputs(), np.ones((2, 3)))
    np.save(tmp_path / "golden.npy", np.ones(3, dtype=np.float32))
    with pytest.raises(ModelError, match="expected an array of windows"):
        build(**files)


def test_the_reference_comes_from_its_file(files: dict[str, Path], tmp_path: Path) -> None:
    feature = {"name": "a", "mean": 0.0, "std": 1.0, "edges": [0, 1, 2], "counts": [1, 1]}
    (tmp_path / "reference.json").write_text(json.dumps({"reference": {"input": [feature] * 3}}))
    files["manifest_path"].write_text(MANIFEST + '[reference]\nfile = "reference.json"\n')
    assert len(parse_package(build(**files), None).manifest.reference["input"]) == 3
    (tmp_path / "reference.json").write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        build(**files)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('name = "gesture"', 'name = "Gesture!"', "manifest.name"),
        ('version = "1.2.0"', 'version = "new"', "manifest.version"),
        ('["left", "right"]', '["left"]', "1 labels for 2 scores"),
        ("shape = [1, 3]", "shape = [1, 4]", r"has shape \[1, 3\] in the model, \[1, 4\] in the manifest"),
        ("shape = [1, 3]", "shape = [2, 3]", "batch axis first"),
        ('output = "scores"', 'output = "logits"', "no output 'logits'"),
        ("samples = 1", "samples = 7", "does not fit the model's input"),
        ("samples = 1", "samples = 1\nstride = 2", "stride: is not known here"),
        ('format = "onnx"', 'format = "pickle"', "is 'pickle', expected a backend's name"),
        ("[metadata]", "[metadatta]", "metadatta: is not known here"),
    ],
)
def test_a_manifest_that_is_wrong_is_refused_with_the_place(
    files: dict[str, Path], old: str, new: str, problem: str
) -> None:
    text = MANIFEST.replace(old, new)
    assert text != MANIFEST
    files["manifest_path"].write_text(text)
    with pytest.raises(ModelError, match=problem):
        build(**files)


def test_missing_files_and_bad_models_are_named(files: dict[str, Path]) -> None:
    for key in files:
        with pytest.raises(ConfigError, match="does not exist"):
            build(**{**files, key: Path("nowhere")})
    files["model_path"].write_bytes(unknown_operator_model())
    with pytest.raises(ModelError, match="Frobnicate"):
        build(**files)
    files["manifest_path"].write_text("= 1")
    with pytest.raises(ConfigError, match="is not TOML"):
        build(**files)
