"""`convert`: measured against the original on held-out windows, refused below the bound, and told what it costs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blob_oracle import Oracle
from board_data import CHANNELS, FEATURES, ROWS, SCALE, counts_of, windows
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tinylcm.errors import ConfigError, InputError, ModelError

import firmware_bridge
from firmware_bridge.convert import SCRATCH_BYTES, convert, original_features, parse_features, ram_bytes, table_bytes

COLUMNS = parse_features(FEATURES, CHANNELS, ROWS)
TRAIN, TRAIN_CLASS = windows(900, seed=0)
HELD_OUT, TRUTH = windows(400, seed=1)
X = original_features(COLUMNS, TRAIN.astype(float)).astype(np.float32)
FOREST = RandomForestClassifier(12, max_depth=7, random_state=0).fit(X, TRAIN_CLASS)
NETWORK = make_pipeline(StandardScaler(), MLPClassifier((12,), max_iter=3000, random_state=0)).fit(X, TRAIN_CLASS)


def converted(original: object, **changes: Any) -> Any:
    given = {
        "features": FEATURES,
        "channels": CHANNELS,
        "calibration": TRAIN,
        "held_out": HELD_OUT,
        "scale": SCALE,
        "hop": 10,
        **changes,
    }
    return convert(original, **given)


@pytest.mark.parametrize("original", [FOREST, NETWORK], ids=["forest", "network"])
def test_the_agreement_is_that_of_the_blob_by_an_independent_oracle(original: Any) -> None:
    result = converted(original, truth=TRUTH)
    oracle = Oracle(result.blob)
    found = np.array([oracle.predict(window)[0] for window in counts_of(HELD_OUT).tolist()])
    wanted = original.predict(original_features(COLUMNS, HELD_OUT.astype(float)).astype(np.float32))
    report = result.report
    assert report.agreed == (found == wanted).sum() and report.held_out == 400
    assert report.agreement == report.agreed / 400 >= 0.98
    assert report.agreement_low < report.agreement
    assert report.accuracy_board == (found == TRUTH).mean()
    assert report.accuracy_original == (wanted == TRUTH).mean()
    assert (oracle.rows, oracle.hop, oracle.channels, oracle.classes) == (ROWS, 10, 3, 4)


@pytest.mark.parametrize("original", [FOREST, NETWORK], ids=["forest", "network"])
def test_the_sizes_that_are_told_are_those_of_the_bytes(original: Any) -> None:
    result = converted(original)
    assert result.report.flash_bytes == len(result.blob) == sum(table_bytes(result.model).values())
    assert result.report.ram_bytes == ram_bytes(result.model) == 2 * ROWS * 3 + SCRATCH_BYTES
    assert f"flash      {len(result.blob)} bytes" in str(result.report)
    assert result.report.to_json()["tables"] == table_bytes(result.model)
    assert 3 <= len(result.model.vectors) <= 10


def test_the_memory_that_the_c_library_works_in_is_that_of_its_header() -> None:
    header = (Path(firmware_bridge.__file__).parent / "c" / "src" / "tb_model.h").read_text()
    most = {name: int(value) for name, value in re.findall(r"#define TB_(\w+)_MAX (\d+)", header)}
    assert "int16_t features[TB_FEATURES_MAX];\n  int8_t layers[2][TB_WIDTH_MAX];\n} tb_scratch;" in header
    assert "uint16_t scores[TB_CLASSES_MAX];\n} tb_prediction;" in header
    assert 2 * most["FEATURES"] + 2 * most["WIDTH"] + 4 + 2 * most["CLASSES"] == SCRATCH_BYTES


def test_an_onnx_file_gives_the_same_blob_as_its_estimator(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(to_onnx(FOREST, X[:1], options={"zipmap": False}).SerializeToString())
    from_file, from_estimator = converted(path), converted(FOREST)
    assert from_file.report.agreement >= 0.98
    assert abs(from_file.report.flash_bytes - from_estimator.report.flash_bytes) <= 0.02 * len(from_estimator.blob)


def test_counts_and_real_values_are_the_same_data() -> None:
    whole = counts_of(TRAIN), counts_of(HELD_OUT)
    real = tuple((part * SCALE).astype(np.float64) for part in whole)
    by_counts = converted(FOREST, calibration=whole[0], held_out=whole[1])
    by_values = converted(FOREST, calibration=real[0], held_out=real[1])
    assert by_counts.blob == by_values.blob
    assert by_counts.report == by_values.report


def test_an_agreement_below_the_bound_hands_nothing_out() -> None:
    with pytest.raises(ModelError, match=r"agrees with the original on \d+ of 400 held-out windows .* bound is 0.98"):
        converted(NETWORK, calibration=TRAIN * 0.01, held_out=HELD_OUT)
    assert converted(NETWORK, calibration=TRAIN * 0.01, agreement_min=0.0).report.agreement < 0.98


@pytest.mark.parametrize(
    ("changes", "error", "problem"),
    [
        ({"held_out": None}, InputError, "the held-out data are missing"),
        ({"calibration": None}, InputError, "the calibration data are missing"),
        ({"calibration": np.where(TRAIN > 3, np.nan, TRAIN)}, InputError, "NaN or infinity, first in window 0, row"),
        ({"calibration": TRAIN[:, :, :2]}, InputError, r"expected numbers \[n, rows, 3 channels\]"),
        ({"calibration": TRAIN[:5]}, InputError, "5 windows, expected at least 16"),
        ({"held_out": HELD_OUT[:49]}, InputError, "49 windows, expected at least 50"),
        ({"held_out": HELD_OUT[:, :10]}, InputError, "20 rows, held-out windows 10"),
        ({"held_out": TRAIN}, InputError, "only 0 of 900 held-out windows are not calibration windows too"),
        ({"calibration": TRAIN.astype(object)}, InputError, "are object"),
        ({"scale": 1e-5}, InputError, "do not fit int16 at a scale of 1e-05"),
        ({"scale": 0.0}, ConfigError, "scale is 0"),
        ({"agreement_min": 1.5}, ConfigError, "expected 0 to 1"),
        ({"truth": TRUTH[:5]}, InputError, "expected a class index for each window"),
        ({"features": ["mean:*"]}, InputError, "takes 16 features, 3 are named"),
        ({"features": ["median:ax"]}, ConfigError, "'median:ax' is not known; expected value:ROW:CHANNEL, mean:"),
        ({"features": ["mean:gx"]}, ConfigError, "none of ax, ay, az"),
        ({"features": ["value:20:ax"]}, ConfigError, "none of the window's 20"),
        ({"features": []}, ConfigError, "0 features"),
        ({"channels": ("a", "a", "b")}, ConfigError, "different channels"),
    ],
)
def test_bad_input_is_told(changes: dict[str, Any], error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=problem):
        converted(FOREST, **changes)


def test_thirty_three_classes_are_too_many() -> None:
    rng = np.random.default_rng(0)
    many = RandomForestClassifier(1, random_state=0).fit(X, rng.permutation(np.arange(len(X)) % 33))
    with pytest.raises(ModelError, match="33 classes, a board's model takes 2 to 32"):
        converted(many)
