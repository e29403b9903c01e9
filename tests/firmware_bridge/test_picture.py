"""The picture is a PNG with ink where the curve is, and none across a gap."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
from PIL import Image

from firmware_bridge.errors import BridgeError
from firmware_bridge.picture import HEIGHT, WIDTH, draw


def picture(values: np.ndarray, breaks: tuple[int, ...] = ()) -> np.ndarray:
    seconds = np.arange(len(values)) / 50
    data = draw("board", [f"c{i}" for i in range(values.shape[1])], "g", seconds, values, breaks)
    assert data.startswith(b"\x89PNG")
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def coloured(pixels: np.ndarray) -> np.ndarray:
    """Columns of pixels that a curve goes through."""
    return (pixels.max(axis=2) - pixels.min(axis=2) > 60).any(axis=0)


def test_each_channel_has_a_curve_from_end_to_end() -> None:
    waves = np.sin(np.arange(400)[:, None] / [5, 20, 50]).astype(np.float32)
    pixels = picture(waves)
    assert pixels.shape == (26 + 3 * HEIGHT + 24, WIDTH, 3)
    for i in range(3):
        columns = coloured(pixels[26 + i * HEIGHT : 26 + (i + 1) * HEIGHT])
        assert columns[95:980].all()


def test_a_gap_is_left_open() -> None:
    values = np.arange(10, dtype=np.float32)[:, None]
    assert coloured(picture(values))[95:980].all()
    assert not coloured(picture(values, (5,)))[95:980].all()


def test_values_that_are_no_numbers_and_flat_curves_are_borne() -> None:
    assert coloured(picture(np.array([[np.nan], [np.inf], [1.0]], np.float32))).any()
    assert coloured(picture(np.ones((50, 1), np.float32))).any()


def test_too_little_to_draw_and_a_missing_extra_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BridgeError, match="needs two"):
        picture(np.zeros((1, 1), np.float32))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(BridgeError, match=r"tinymlops\[image\]"):
        picture(np.zeros((9, 1), np.float32))
