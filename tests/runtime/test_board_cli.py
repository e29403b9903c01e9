"""`tinylcm board convert`: what it refuses, and with which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from board_data import CHANNELS, FEATURES, ROWS, counts_of, windows
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier
from tinylcm.cli import main
from tinylcm.keys import init_keys
from tinylcm.package import load_package

from firmware_bridge.convert import original_features, parse_features

MANIFEST = f"""
name = "waves"
version = "1.0.0"
labels = ["a", "b", "c", "d"]

[input]
channels = {list(CHANNELS)}
scale = 0.01

[window]
hop = 5
rate_hz = 50

[board]
features = {list(FEATURES)}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert")
    init_keys(folder / "keys")
    train, label = windows(500, seed=0)
    x = original_features(parse_features(FEATURES, CHANNELS, ROWS), train.astype(float)).astype(np.float32)
    forest = RandomForestClassifier(5, max_depth=5, random_state=0).fit(x, label)
    exported = to_onnx(forest, x[:1], options={"zipmap": False})
    (folder / "model.onnx").write_bytes(exported.SerializeToString())
    np.savez(folder / "windows.npz", calibration=train, held_out=windows(200, seed=1)[0])
    np.savez(folder / "counts.npz", calibration=counts_of(train), held_out=counts_of(windows(200, seed=1)[0]))
    np.savez(folder / "nan.npz", calibration=np.where(train > 3, np.nan, train), held_out=train)
    np.savez(folder / "only.npz", calibration=train)
    np.savez(folder / "narrow.npz", calibration=train[:, :, :2], held_out=train[:, :, :2])
    np.savez(folder / "far.npz", calibration=train, held_out=windows(200, seed=1)[0] * 3e3)
    return folder


def run(folder: Path, text: str = MANIFEST, **options: str) -> int:
    (folder / "model.toml").write_text(text)
    given = {"data": "windows.npz", "key": "keys/release.key", "output": "out.tlm", "manifest": "model.toml", **options}
    model = given.pop("model", "model.onnx")
    flags = [
        part
        for name, value in given.items()
        for part in (f"--{name}", value if name == "agreement-min" else str(folder / value))
    ]
    return main(["board", "convert", str(folder / model), *flags])


def test_a_package_comes_of_real_values_or_of_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder) == 0
    first = load_package(folder / "out.tlm", None)
    assert run(folder, data="counts.npz") == 0
    second = load_package(folder / "out.tlm", None)
    assert "held-out windows" in capsys.readouterr().out
    manifest = first.manifest
    assert (manifest.window.samples, manifest.window.hop, manifest.window.rate_hz) == (ROWS, 5, 50)
    assert (manifest.input.dtype, manifest.input.scale, manifest.input.channels) == ("int16", 0.01, CHANNELS)
    assert manifest.metadata["board"]["features"] == list(FEATURES)
    assert manifest.members[0].name == "model.board" and manifest.to_json()["manifest"] == 2
    assert second.manifest.input == manifest.input


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"data": "nan.npz"}, 1, "holds NaN or infinity"),
        ({"data": "only.npz"}, 1, "has no array 'held_out'; it has calibration"),
        ({"data": "narrow.npz"}, 1, "[n, rows, 3 channels]"),
        ({"data": "far.npz"}, 1, "do not fit int16 at a scale of 0.01"),
        ({"data": "none.npz"}, 2, "do not exist: give a .npz"),
        ({"data": "model.onnx"}, 1, "no file of arrays"),
        ({"model": "model.pkl"}, 2, "is a pickle"),
        ({"model": "windows.npz"}, 1, "no ONNX model"),
        ({"agreement-min": "1.01"}, 2, "expected 0 to 1"),
        ({"key": "none.key"}, 2, "none.key"),
        ({"manifest": "none.toml"}, 2, "does not exist"),
        ({"manifest_text": MANIFEST.replace("scale = 0.01", "")}, 1, "manifest.input.scale: is missing"),
        (
            {"manifest_text": MANIFEST.replace('labels = ["a", ', "labels = [")},
            1,
            "3 labels are named, the model has 4",
        ),
        ({"manifest_text": MANIFEST.replace("'mean:*'", "'median:*'")}, 2, "'median:*' is not known"),
        ({"manifest_text": MANIFEST.split("[board]")[0]}, 1, "manifest.board.features: is missing"),
        ({"manifest_text": 'format = "onnx"\n' + MANIFEST}, 2, "format is 'onnx', a model for boards has 'board'"),
        ({"manifest_text": MANIFEST + "colour = 1\n"}, 1, "manifest.board.colour: is not known here"),
    ],
)
def test_bad_input_is_told_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: dict[str, str], code: int, words: str
) -> None:
    text = options.pop("manifest_text", MANIFEST)
    (folder / "out.tlm").unlink(missing_ok=True)
    assert run(folder, text, **options) == code
    shown = capsys.readouterr()
    assert words in shown.err and shown.err.startswith("tinylcm: ") and shown.err.count("\n") == 1
    assert not (folder / "out.tlm").exists()


def test_below_the_bound_no_package_is_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, _ = windows(500, seed=0)
    (folder / "out.tlm").unlink(missing_ok=True)
    np.savez(folder / "coarse.npz", calibration=train, held_out=windows(200, seed=1)[0])
    coarse = MANIFEST.replace("scale = 0.01", "scale = 5.0")
    (folder / "out.tlm").unlink(missing_ok=True)
    assert run(folder, coarse, data="coarse.npz") == 1
    assert "the bound is 0.98" in capsys.readouterr().err and not (folder / "out.tlm").exists()
    assert run(folder, coarse, data="coarse.npz", **{"agreement-min": "0.1"}) == 0
