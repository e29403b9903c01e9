"""Windows of an invented sensor, and models for boards of every kind: what the tests of the bridge share."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any, Final

import numpy as np
from models import make_signer
from tinylcm.keys import Signer
from tinylcm.manifest import InputSpec, Manifest, WindowSpec
from tinylcm.publish import build_from

from firmware_bridge.blob import (
    BIAS_MAX,
    NODE,
    ONE,
    OPS,
    BoardModel,
    Feature,
    Layer,
    Network,
    Trees,
    Vector,
    write_model,
)
from firmware_bridge.interpreter import run_quantised

CHANNELS: Final = ("ax", "ay", "az")
FEATURES: Final = ("mean:*", "std:*", "min:*", "max:*", "mean_abs_diff:*", "value:3:ay")
ROWS: Final = 20
SCALE: Final = 0.01


def windows(count: int, seed: int, classes: int = 4, noise: float = 0.8) -> tuple[Any, Any]:
    """Float32 windows `[count, ROWS, 3]` of oscillations, and the class of each."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, count)
    pace = (0.3 + 0.2 * label)[:, None, None] * np.arange(ROWS)[None, :, None]
    wave = (1 + label)[:, None, None] * np.sin(pace + rng.uniform(0, 6, (count, 1, 1)))
    found = rng.normal(0, noise, (count, ROWS, len(CHANNELS))) + 0.3 * label[:, None, None] + wave
    return found.astype(np.float32), label


def counts_of(real: Any) -> Any:
    """Windows as the sensor counts them."""
    return np.clip(np.floor(np.abs(real.astype(float) / SCALE) + 0.5) * np.sign(real), -32768, 32767).astype(np.int16)


def random_model(seed: int, kind: str) -> BoardModel:
    """A sound model of random numbers, each in all the range that the format gives it."""
    rng = np.random.default_rng(seed)
    rows, channels = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    classes, count = int(rng.integers(2, 7)), int(rng.integers(1, 9))
    features = tuple(
        Feature(
            int(rng.integers(len(OPS))),
            int(rng.integers(channels)),
            int(rng.integers(rows)),
            float(np.float32(rng.normal(0, 10 ** rng.uniform(0, 5)))),
            float(np.float32(10 ** rng.uniform(-4, 3))),
        )
        for _ in range(count)
    )
    body = _random_trees(rng, count, classes) if kind == "trees" else _random_network(rng, count, classes)
    return BoardModel(rows, int(rng.integers(1, 9)), channels, classes, features, body)


def _random_trees(rng: Any, features: int, classes: int) -> Trees:
    first, nodes = [], []
    leaves = rng.integers(0, ONE + 1, (int(rng.integers(1, 9)), classes)).astype(np.uint16)
    for _ in range(int(rng.integers(1, 6))):
        first.append(len(nodes))
        size = 2 * int(rng.integers(0, 12)) + 1
        inner = size // 2
        for place in range(size):
            if place < inner:
                ways = 2 * place + 1, 2 * place + 2
                nodes.append((int(rng.integers(features)), int(rng.integers(-32768, 32768)), *ways))
            else:
                nodes.append((-1, 0, int(rng.integers(len(leaves))), 0))
    return Trees(np.array(first, np.uint32), np.array(nodes, NODE), leaves)


def _random_network(rng: Any, features: int, classes: int) -> Network:
    widths = [features, *rng.integers(1, 9, int(rng.integers(0, 4))).tolist(), classes]
    layers = tuple(
        Layer(
            rng.integers(-128, 128, (outputs, inputs)).astype(np.int8),
            rng.integers(-BIAS_MAX, BIAS_MAX + 1, outputs).astype(np.int32) >> int(rng.integers(0, 31)),
            int(rng.integers(1, 1 << 31)),
            int(rng.integers(1, 63)) if rng.random() < 0.3 else int(rng.integers(34, 44)),
            bool(rng.integers(2)),
            int(rng.integers(-128, 128)),
            int(rng.integers(-128, 128)),
        )
        for inputs, outputs in itertools.pairwise(widths)
    )
    table = np.sort(rng.integers(0, ONE + 1, 256).astype(np.uint16))[::-1].copy()
    table[0] = max(1, table[0])
    return Network(float(np.float32(rng.normal(0, 1e4))), float(np.float32(10 ** rng.uniform(-4, 1))), layers, table)


def wave_model(seed: int = 0, *, channels: int = 3, rows: int = ROWS, hop: int = 10) -> BoardModel:
    """A forest of random trees on means and spreads of the waves: four classes, and a self-test that holds."""
    rng = np.random.default_rng(seed)
    features = tuple(Feature(op, channel, 0, 0.0, 16.0) for op in (1, 2) for channel in range(channels))
    first, nodes = [], []
    leaves = rng.dirichlet(np.ones(4), 16)
    for _ in range(8):
        first.append(len(nodes))
        for place in range(3):
            ways = 2 * place + 1, 2 * place + 2
            nodes.append((int(rng.integers(len(features))), int(rng.integers(-500, 6000)), *ways))
        nodes += [(-1, 0, int(rng.integers(len(leaves))), 0) for _ in range(4)]
    table = (leaves * ONE).astype(np.uint16)
    body = Trees(np.array(first, np.uint32), np.array(nodes, NODE), table)
    model = BoardModel(rows, hop, channels, 4, features, body)
    q = rng.integers(-800, 8000, (4, len(features))).astype(np.int16)
    found = run_quantised(model, q)
    vectors = tuple(
        Vector(tuple(row.tolist()), int(label), int(scores[label]))
        for row, label, scores in zip(q, found.labels, found.scores, strict=True)
    )
    return replace(model, vectors=vectors)


def board_package(
    name: str = "waves",
    version: str = "1.0.0",
    *,
    model: BoardModel | None = None,
    channels: tuple[str, ...] = CHANNELS,
    scale: float = SCALE,
    signer: Signer | None = None,
    security_counter: int = 0,
) -> bytes:
    """A signed package for boards."""
    model = wave_model(channels=len(channels)) if model is None else model
    manifest = Manifest(
        name=name,
        version=version,
        format="board",
        input=InputSpec("window", (1, model.rows, model.channels), "int16", channels, scale=scale),
        output="scores",
        labels=tuple("abcdefgh"[: model.classes]),
        window=WindowSpec(model.rows, model.hop, 50.0),
        security_counter=security_counter,
    )
    return build_from(manifest, {"model.board": write_model(model)}, signer or make_signer())
