"""Train a forest for a microcontroller on the smart watch's recordings: `model.onnx`, and windows to convert it with.

    python examples/board_activity/train_board.py [--output model.onnx] [--windows windows.npz]
    tinylcm board convert model.onnx --manifest examples/board_activity/model.toml --data windows.npz --key release.key

The watch counts in hundredths of its units, as int16. The forest is trained on features of the readings as they were
recorded; what the counts lose is part of what the conversion measures.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from skl2onnx import to_onnx
from sklearn.ensemble import RandomForestClassifier

from firmware_bridge.convert import original_features, parse_features

HERE: Final = Path(__file__).resolve().parent
DATA: Final = HERE.parent / "activity" / "data" / "basic_motions.npz"
LABELS: Final = ("badminton", "running", "standing", "walking")
CHANNELS: Final = ("ax", "ay", "az", "gx", "gy", "gz")
FEATURES: Final = ("mean:*", "std:*", "min:*", "max:*", "mean_abs_diff:*")
SAMPLES: Final = 100
TREES: Final = 12
DEPTH: Final = 6
SEED: Final = 2018
JOINS: Final = 12  # random orders in which the recordings of a class are joined
OPSET: Final = {"": 17, "ai.onnx.ml": 3}
IR_VERSION: Final = 8


def recordings(part: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Recordings `[n, SAMPLES, 6]` of `train` or `test`, and the class of each."""
    with np.load(DATA, allow_pickle=False) as data:
        series = np.ascontiguousarray(data[f"x_{part}"].transpose(0, 2, 1), dtype=np.float32)
        return series, np.searchsorted([name.capitalize() for name in LABELS], data[f"y_{part}"]).astype(np.int64)


def windows_of(part: str, joins: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Windows cut at random phases from the recordings of one class after another, and their classes."""
    rng = np.random.default_rng(seed)
    series, classes = recordings(part)
    windows, labels = [], []
    for _ in range(joins):
        for label in range(len(LABELS)):
            stream = rng.permutation(series[classes == label]).reshape(-1, series.shape[2])
            starts = np.arange(int(rng.integers(20)), len(stream) - SAMPLES + 1, 50)
            windows.append(stream[starts[:, None] + np.arange(SAMPLES)])
            labels.append(np.full(len(starts), label))
    return np.concatenate(windows), np.concatenate(labels)


def features_of(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the forest is trained on."""
    columns = parse_features(FEATURES, CHANNELS, SAMPLES)
    return original_features(columns, windows.astype(np.float64)).astype(np.float32)


def train() -> tuple[RandomForestClassifier, dict[str, NDArray[Any]]]:
    """The forest, and the windows: calibration from the training recordings, held out from the test recordings."""
    calibration, classes = windows_of("train", JOINS, SEED)
    held_out, truth = windows_of("test", JOINS, SEED + 1)
    forest = RandomForestClassifier(TREES, max_depth=DEPTH, random_state=SEED).fit(features_of(calibration), classes)
    return forest, {"calibration": calibration, "held_out": held_out, "truth": truth}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, export, and say how well it does before anything is converted."""
    parser = argparse.ArgumentParser(description="Train a forest for a board and export it to ONNX.")
    parser.add_argument("--output", type=Path, default=HERE / "model.onnx")
    parser.add_argument("--windows", type=Path, default=Path("windows.npz"))
    options = parser.parse_args(arguments)
    forest, windows = train()
    exported = to_onnx(
        forest, features_of(windows["calibration"][:1]), options={"zipmap": False}, target_opset=OPSET, name="forest"
    )
    exported.ir_version = IR_VERSION
    options.output.write_bytes(exported.SerializeToString(deterministic=True))
    np.savez_compressed(
        options.windows, calibration=windows["calibration"], held_out=windows["held_out"], truth=windows["truth"]
    )
    right = float((forest.predict(features_of(windows["held_out"])) == windows["truth"]).mean())
    print(f"{len(windows['truth'])} held-out windows of the test recordings: {right:.4f} right by the forest")
    print(f"{options.output}: {options.output.stat().st_size} bytes; windows to convert with: {options.windows}")


if __name__ == "__main__":
    main()
