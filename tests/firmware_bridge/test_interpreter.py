"""The interpreter gives what an independent oracle, written from docs/wire.md alone, gives: bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from blob_oracle import Oracle
from board_data import random_model
from tinylcm.errors import ModelError

from firmware_bridge.blob import Feature, Vector, write_model
from firmware_bridge.interpreter import (
    features_of,
    predict,
    quantise,
    round_half_away,
    run_windows,
    scores_of,
    self_test,
)


def extreme_windows(rng: np.random.Generator, count: int, rows: int, channels: int) -> np.ndarray:
    """Small numbers, all of int16, and its ends."""
    spread = rng.choice([3, 300, 32768], (count, 1, 1))
    found = np.clip(rng.integers(-32768, 32768, (count, rows, channels)) % (2 * spread) - spread, -32768, 32767)
    return np.where(rng.random(found.shape) < 0.1, rng.choice([-32768, 32767], found.shape), found).astype(np.int16)


@pytest.mark.parametrize("kind", ["trees", "network"])
def test_every_window_of_every_model_gives_what_the_oracle_gives(kind: str) -> None:
    labels = set()
    for seed in range(60):
        model = random_model(seed, kind)
        oracle = Oracle(write_model(model))
        windows = extreme_windows(np.random.default_rng(seed), 20, model.rows, model.channels)
        q = quantise(model, features_of(model, windows))
        outcome = run_windows(model, windows)
        for index, window in enumerate(windows.tolist()):
            assert oracle.quantised(window) == q[index].tolist(), (seed, index)
            label = int(outcome.labels[index])
            assert oracle.predict(window) == (label, int(outcome.scores[index, label])), (seed, index)
            labels.add(label)
        assert predict(model, windows[0]) == oracle.predict(windows[0].tolist())
    assert len(labels) >= 5


def test_halves_are_rounded_away_from_zero_and_a_nan_is_the_lowest() -> None:
    x = np.array([0.5, -0.5, 1.5, 2.5, 0.49999997, -0.49999997, np.nan, np.inf, -np.inf, 1e30], np.float32)
    assert round_half_away(x, -32768, 32767).tolist() == [1, -1, 2, 3, 0, 0, -32768, 32767, -32768, 32767]


def test_features_of_extreme_windows_do_not_overflow() -> None:
    model = random_model(1, "trees")
    features = tuple(Feature(op, 0, 0, 0.0, 1.0) for op in range(6))
    rows = 65_535
    window = np.where(np.arange(rows) % 2, 32_767, -32_768).astype(np.int16).reshape(1, rows, 1)
    found = features_of(replace(model, rows=rows, channels=1, features=features), window)[0]
    assert found.tolist() == pytest.approx([-32768, -1.0, 32767.5, -32768, 32767, 65535], abs=0.6)


def test_a_self_test_that_comes_out_otherwise_is_told() -> None:
    model = random_model(3, "network")
    q = tuple([7] * len(model.features))
    label, score = Oracle(write_model(model)).classify(q)
    right = replace(model, vectors=(Vector(q, label, score),))
    assert self_test(right) == 1 and self_test(model) == 0
    wrong = replace(model, vectors=(Vector(q, label, score), Vector(q, label, (score + 1) % 65536)))
    with pytest.raises(ModelError, match=f"vector 1 gives class {label} with score {score}, expected"):
        self_test(wrong)


def test_scores_are_shares_of_one() -> None:
    model = random_model(5, "network")
    outcome = run_windows(model, np.zeros((3, model.rows, model.channels), np.int16))
    assert scores_of(outcome).sum(axis=1) == pytest.approx(1.0, abs=1e-3)
