"""A stream of a board as a PNG: a curve for each channel over time, gaps left open. Needs Pillow (extra `image`)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .errors import BridgeError

WIDTH, HEIGHT = 1000, 160
"""Of each channel's field, in pixels."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 15, 26, 24
_INK, _FAINT, _PAPER = (34, 34, 34), (221, 221, 221), (255, 255, 255)
_CURVES: Final = ((31, 119, 180), (214, 39, 40), (44, 160, 44), (148, 103, 189), (255, 127, 14), (23, 190, 207))


def draw(
    title: str,
    channels: Sequence[str],
    unit: str,
    seconds: NDArray[np.float64],
    values: NDArray[np.float32],
    breaks: Sequence[int] = (),
) -> bytes:
    """The PNG.

    Args:
        seconds: of each row.
        values: [rows, channels].
        breaks: rows before which others are missing.

    Raises:
        BridgeError: there is nothing to draw, or Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise BridgeError("a picture needs Pillow: pip install 'tinymlops[image]'") from error
    if len(values) < 2:
        raise BridgeError(f"{len(values)} rows came: a curve needs two; listen longer, or look at `board listen`")
    image = Image.new("RGB", (WIDTH, _TOP + HEIGHT * len(channels) + _BOTTOM), _PAPER)
    pen = ImageDraw.Draw(image)
    pen.text((_LEFT, 7), title, fill=_INK)
    start, end = float(seconds[0]), float(seconds[-1])
    span = end - start or 1.0
    for i, name in enumerate(channels):
        top = _TOP + HEIGHT * i
        box = (_LEFT, top + 6, WIDTH - _RIGHT, top + HEIGHT - 8)
        pen.rectangle(box, outline=_FAINT)
        column = np.nan_to_num(values[:, i].astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = float(column.min()), float(column.max())
        room = (high - low) or 1.0
        pen.text((8, top + HEIGHT // 2 - 6), name[:12], fill=_INK)
        pen.text((8, top + HEIGHT // 2 + 8), unit[:12], fill=_INK)
        pen.text((_LEFT - 6, box[1]), f"{high:.4g}", fill=_INK, anchor="ra")
        pen.text((_LEFT - 6, box[3] - 10), f"{low:.4g}", fill=_INK, anchor="ra")
        x = box[0] + (seconds - start) / span * (box[2] - box[0])
        y = box[3] - 4 - (column - low) / room * (box[3] - box[1] - 8)
        edges = [0, *sorted(set(breaks)), len(values)]
        for first, last in pairwise(edges):
            points = list(zip(x[first:last].tolist(), y[first:last].tolist(), strict=True))
            if len(points) > 1:
                pen.line(points, fill=_CURVES[i % len(_CURVES)], width=1)
            elif points:
                pen.point(points, fill=_CURVES[i % len(_CURVES)])
    bottom = _TOP + HEIGHT * len(channels) + 4
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x_at = _LEFT + share * (WIDTH - _RIGHT - _LEFT)
        anchor = "la" if share == 0 else "ra" if share == 1 else "ma"
        pen.text((x_at, bottom), f"{share * span:.4g} s", fill=_INK, anchor=anchor)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()
