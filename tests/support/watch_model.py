"""The forest of examples/board_activity, converted for the smart watch, and the recordings as the watch counts them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from firmware_bridge.convert import Conversion, convert

COUNTS_PER_UNIT = 100


def windows(root: Path, part: str) -> NDArray[np.float64]:
    """Ten-second windows, one a second, of the recordings of a part one after another: `[n, 100, 6]`."""
    with np.load(root / "examples" / "activity" / "data" / "basic_motions.npz", allow_pickle=False) as data:
        rows = np.concatenate([series.T for series in data[f"x_{part}"]]).astype(np.float64)
    return np.stack([rows[at : at + 100] for at in range(0, len(rows) - 99, 10)])


def counts(readings: NDArray[np.float64]) -> NDArray[np.int16]:
    """Readings as the watch sends them."""
    return np.round(readings * COUNTS_PER_UNIT).astype(np.int16)


def converted(root: Path) -> Conversion:
    """As `tinylcm board convert` makes it."""
    example = root / "examples" / "board_activity"
    manifest = tomllib.loads((example / "model.toml").read_text())
    return convert(
        str(example / "model.onnx"),
        features=manifest["board"]["features"],
        channels=manifest["input"]["channels"],
        calibration=windows(root, "train"),
        held_out=windows(root, "test"),
        hop=manifest["window"]["hop"],
        scale=manifest["input"]["scale"],
    )
