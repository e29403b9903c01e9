"""From floats to integers: trees lose nothing on counts; int8 networks stay near."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.neural_network import MLPClassifier
from tinylcm.errors import ModelError

from firmware_bridge.blob import BoardModel, Feature
from firmware_bridge.interpreter import round_half_away, run_quantised
from firmware_bridge.originals import Dense, Perceptron, read_original
from firmware_bridge.quantise import (
    _fixed_point,
    network_features,
    quantise_forest,
    quantise_network,
    tree_features,
)

DIGITS, DIGIT = load_digits(return_X_y=True)
COLUMNS = [(0, 0, row) for row in range(64)]


def board_classes(body: object, features: tuple[Feature, ...], x: np.ndarray) -> np.ndarray:
    model = BoardModel(64, 64, 1, 10, features, body)  # type: ignore[arg-type]
    offset = np.array([feature.offset for feature in features], np.float32)
    scale = np.array([feature.scale for feature in features], np.float32)
    q = round_half_away((x.astype(np.float32) - offset) * scale, -32768, 32767).astype(np.int16)
    return run_quantised(model, q).labels


def test_a_forest_on_whole_numbers_decides_every_input_as_before() -> None:
    """The digits' pixels are 0 to 16: thresholds truncated to whole numbers cost emlearn a sixth of its accuracy."""
    forest = RandomForestClassifier(10, max_depth=8, random_state=0).fit(DIGITS[:1000], DIGIT[:1000])
    original = read_original(forest)
    features = tree_features(COLUMNS, original.arithmetic, DIGITS[:1000])
    trees = quantise_forest(original.arithmetic, features)
    assert (board_classes(trees, features, DIGITS) == forest.predict(DIGITS)).all()
    assert all(feature.scale >= 256 and feature.offset == round(feature.offset) for feature in features)


def test_thresholds_on_a_count_itself_go_the_same_way() -> None:
    from firmware_bridge.originals import FloatTree, Forest

    tree = FloatTree(
        np.array([0, -1, -1]), np.array([7.0, 0, 0]), np.array([1, 0, 0]), np.array([2, 0, 0]),
        np.array([[0, 0], [1, 0], [0, 1.0]]),
    )  # fmt: skip
    for low, high in [(0, 16), (-32768, 32767), (6, 8)]:
        features = tree_features([(0, 0, 0)], Forest((tree,)), np.linspace(low, high, 100)[:, None])
        body = quantise_forest(Forest((tree,)), features)
        model = BoardModel(1, 1, 1, 2, features, body)
        x = np.arange(0, 15)
        q = round_half_away(
            (x.astype(np.float32)[:, None] - np.float32(features[0].offset)) * np.float32(features[0].scale),
            -32768, 32767,
        )  # fmt: skip
        assert run_quantised(model, q.astype(np.int16)).labels.tolist() == (x > 7).astype(int).tolist()


def test_an_int8_network_agrees_with_the_float_one() -> None:
    network = MLPClassifier((32,), max_iter=800, random_state=0).fit(DIGITS[:1000], DIGIT[:1000])
    arithmetic = read_original(network).arithmetic
    assert isinstance(arithmetic, Perceptron)
    features = network_features(COLUMNS, DIGITS[:1000], 100.0)
    body = quantise_network(arithmetic, features, DIGITS[:1000], 100.0)
    wanted = network.predict(DIGITS[1000:])
    assert (board_classes(body, features, DIGITS[1000:]) == wanted).mean() > 0.98


@pytest.mark.parametrize("factor", [1e-9, 1e-3, 0.5, 0.999999999999, 1.0, 3.7, 1e6])
def test_a_factor_in_fixed_point_is_that_factor(factor: float) -> None:
    multiplier, shift = _fixed_point(factor)
    assert 1 <= multiplier < 1 << 31 and 1 <= shift <= 62
    assert multiplier / 2**shift == pytest.approx(factor, rel=1e-6)


def test_what_does_not_fit_a_board_is_told() -> None:
    wide = Perceptron((Dense(np.zeros((257, 4)), np.zeros(257), True), Dense(np.zeros((2, 257)), np.zeros(2), False)))
    features = network_features([(0, 0, 0)] * 4, np.random.default_rng(0).normal(size=(20, 4)), 100.0)
    with pytest.raises(ModelError, match="layers 4-257, 257-2; at most 4 of 256"):
        quantise_network(wide, features, np.zeros((20, 4)), 100.0)
    with pytest.raises(ModelError, match="scales by"):
        _fixed_point(1e12)
