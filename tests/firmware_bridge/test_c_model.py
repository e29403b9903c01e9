"""Models in C: features, trees and networks equal an oracle in plain Python; no blob is read outside of its bytes."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from board_oracle import Oracle, random_network, random_trees
from c_board import c_predict
from watch_model import converted, counts, windows

from firmware_bridge.blob import read_model
from firmware_bridge.interpreter import run_windows

MODEL, SELFTEST = -9, -10


def windows_of(oracle: Oracle, count: int, seed: int) -> np.ndarray:
    """Windows of every spread, some constant and some at the ends of the range."""
    rng = np.random.default_rng(seed)
    shape = (count, oracle.rows, oracle.channels)
    spread = 10 ** rng.uniform(0, 4.6, (count, 1, 1))
    values = rng.normal(0, 1, shape) * spread + rng.uniform(-3000, 3000, (count, 1, oracle.channels))
    windows = np.clip(values, -32768, 32767).astype(np.int16)
    windows[0], windows[1], windows[2, ::2] = -32768, 32767, -32768
    windows[2, 1::2] = 32767
    return windows


@pytest.mark.parametrize("make", [random_trees, random_network])
@pytest.mark.parametrize("seed", range(8))
def test_predictions_equal_the_oracles(make, seed: int) -> None:
    blob = make(seed)
    oracle = Oracle(blob)
    windows = windows_of(oracle, 60, seed)
    status, features, labels, scores = c_predict(blob, windows, oracle.feature_count, oracle.classes)
    assert status == 0
    for i, window in enumerate(windows):
        told = oracle.predict(window)
        assert told.features == features[i].tolist()
        assert (told.label, told.scores) == (labels[i], scores[i].tolist())


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_windows_of_any_length(rows: int) -> None:
    blob = random_trees(5, rows=rows, channels=3)
    oracle = Oracle(blob)
    windows = windows_of(oracle, 10, rows)
    status, features, labels, _ = c_predict(blob, windows, oracle.feature_count, oracle.classes)
    assert status == 0
    assert [(told.features, told.label) for told in map(oracle.predict, windows)] == [
        (row.tolist(), label) for row, label in zip(features, labels, strict=True)
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda: random_trees(1, trees=1, depth=0, classes=2, features=1, channels=1),
        lambda: random_trees(2, trees=40, depth=9, classes=32, features=256, channels=255),
        lambda: random_network(3, (1, 2), channels=1),
        lambda: random_network(4, (256, 256, 256, 256, 32)),
    ],
)
def test_the_smallest_and_the_largest(make) -> None:
    blob = make()
    oracle = Oracle(blob)
    windows = windows_of(oracle, 4, 1)
    status, features, labels, scores = c_predict(blob, windows, oracle.feature_count, oracle.classes)
    assert status == 0
    for i, window in enumerate(windows):
        told = oracle.predict(window)
        assert (told.features, told.label, told.scores) == (features[i].tolist(), labels[i], scores[i].tolist())


def test_a_selftest_that_comes_out_otherwise_is_refused() -> None:
    blob = bytearray(random_trees(3))
    blob[-2] ^= 1  # the score of the last vector
    assert c_predict(bytes(blob), np.zeros((0, 20, 2), np.int16), 12, 4)[0] == SELFTEST


def patched(blob: bytes, at: int, form: str, value: object) -> bytes:
    out = bytearray(blob)
    struct.pack_into("<" + form, out, at, value)
    return bytes(out)


TREES, NETWORK = random_trees(11), random_network(11)
T_FEATURES, T_BODY, T_TEST = struct.unpack_from("<III", TREES, 20)
N_BODY = struct.unpack_from("<I", NETWORK, 24)[0]
NODES = T_BODY + 8 + 4 * 9
SPLIT = next(at for at in range(NODES, len(TREES), 8) if struct.unpack_from("<h", TREES, at)[0] >= 0)


@pytest.mark.parametrize(
    ("why", "blob"),
    [
        ("empty", b""),
        ("cut short", TREES[:-1]),
        ("longer than it says", TREES + bytes(4)),
        ("magic", patched(TREES, 0, "B", 0x55)),
        ("another size", patched(TREES, 4, "I", len(TREES) + 1)),
        ("another ABI", patched(TREES, 8, "H", 2)),
        ("an unknown kind", patched(TREES, 10, "B", 3)),
        ("one class", patched(TREES, 11, "B", 1)),
        ("33 classes", patched(TREES, 11, "B", 33)),
        ("no features", patched(TREES, 12, "H", 0)),
        ("257 features", patched(TREES, 12, "H", 257)),
        ("no rows", patched(TREES, 14, "H", 0)),
        ("no hop", patched(TREES, 16, "H", 0)),
        ("no channels", patched(TREES, 18, "B", 0)),
        ("a byte that should be zero", patched(TREES, 19, "B", 1)),
        ("features behind the end", patched(TREES, 20, "I", len(TREES))),
        ("features at an odd place", patched(TREES, 20, "I", 38)),
        ("features in the header", patched(TREES, 20, "I", 32)),
        ("features at 2^32 - 4", patched(TREES, 20, "I", 2**32 - 4)),
        ("body behind the end", patched(TREES, 24, "I", len(TREES) + 4)),
        ("body at the end", patched(TREES, 24, "I", len(TREES) - 4)),
        ("self-test behind the end", patched(TREES, 28, "I", len(TREES))),
        ("no vectors", patched(TREES, T_TEST, "H", 0)),
        ("65 vectors", patched(TREES, T_TEST, "H", 65)),
        ("more vectors than there are", patched(TREES, T_TEST, "H", 4)),
        ("an unknown op", patched(TREES, T_FEATURES, "B", 6)),
        ("a channel that is not there", patched(TREES, T_FEATURES + 1, "B", 2)),
        ("a row behind the window", patched(patched(TREES, T_FEATURES, "B", 0), T_FEATURES + 2, "H", 20)),
        ("an offset that is no number", patched(TREES, T_FEATURES + 4, "f", float("nan"))),
        ("an infinite scale", patched(TREES, T_FEATURES + 8, "f", float("inf"))),
        ("a scale of 0", patched(TREES, T_FEATURES + 8, "f", 0.0)),
        ("a negative scale", patched(TREES, T_FEATURES + 8, "f", -1.0)),
        ("no trees", patched(TREES, T_BODY, "H", 0)),
        ("65535 trees", patched(TREES, T_BODY, "H", 65535)),
        ("no leaves", patched(TREES, T_BODY + 2, "H", 0)),
        ("65535 leaves", patched(TREES, T_BODY + 2, "H", 65535)),
        ("2^32 - 1 nodes", patched(TREES, T_BODY + 4, "I", 2**32 - 1)),
        ("a first tree that is not first", patched(TREES, T_BODY + 8, "I", 1)),
        ("trees that do not rise", patched(TREES, T_BODY + 12, "I", 0)),
        ("a tree behind the nodes", patched(TREES, T_BODY + 40, "I", 2**31)),
        ("a feature that is not there", patched(TREES, NODES, "h", 12)),
        ("a feature of -2", patched(TREES, NODES, "h", -2)),
        ("a child that is not behind its parent", patched(TREES, SPLIT + 4, "H", 0)),
        ("a child in the next tree", patched(TREES, SPLIT + 6, "H", 60000)),
        ("no layers", patched(NETWORK, N_BODY, "B", 0)),
        ("5 layers", patched(NETWORK, N_BODY, "B", 5)),
        ("more layers than there are", patched(NETWORK, N_BODY, "B", 3)),
        ("other inputs than features", patched(NETWORK, N_BODY + 12, "H", 11)),
        ("no outputs", patched(NETWORK, N_BODY + 14, "H", 0)),
        ("257 outputs", patched(NETWORK, N_BODY + 14, "H", 257)),
        ("a multiplier of 0", patched(NETWORK, N_BODY + 16, "i", 0)),
        ("a shift of 0", patched(NETWORK, N_BODY + 20, "B", 0)),
        ("a shift of 63", patched(NETWORK, N_BODY + 20, "B", 63)),
        ("an unknown activation", patched(NETWORK, N_BODY + 21, "B", 2)),
        ("a bias beyond 2^30", patched(NETWORK, N_BODY + 24, "i", 2**30 + 1)),
        ("fewer outputs than classes", patched(NETWORK, 11, "B", 6)),
    ],
)  # fmt: skip
def test_what_breaks_a_rule_is_refused(why: str, blob: bytes) -> None:
    assert c_predict(blob, np.zeros((0, 20, 2), np.int16), 12, 4)[0] == MODEL, why


def test_a_table_that_begins_with_nothing_is_refused() -> None:
    at = len(NETWORK) - struct.unpack_from("<I", NETWORK, 4)[0] + struct.unpack_from("<I", NETWORK, 28)[0] - 512
    assert c_predict(NETWORK, np.zeros((0, 20, 2), np.int16), 12, 5)[0] == 0
    assert c_predict(patched(NETWORK, at, "H", 0), np.zeros((0, 20, 2), np.int16), 12, 5)[0] == MODEL


def test_extremes_of_a_network_do_not_overflow() -> None:
    """The largest multiplier, bias, weights and inputs at once."""
    rng = random.Random(1)
    blob = bytearray(random_network(2, (256, 2), rows=2, vectors=0))
    body = struct.unpack_from("<I", blob, 24)[0]
    struct.pack_into("<HHiBBbb", blob, body + 12, 256, 2, 2**31 - 1, rng.choice([1, 62]), 0, 127, -128)
    struct.pack_into("<2i", blob, body + 24, 2**30, -(2**30))
    struct.pack_into("<256b256b", blob, body + 32, *[127] * 256, *[-128] * 256)
    for shift in (1, 30, 31, 62):
        struct.pack_into("<B", blob, body + 20, shift)
        oracle = Oracle(bytes(blob))
        windows = np.full((1, 2, 2), 32767, np.int16)
        status, features, labels, scores = c_predict(bytes(blob), windows, 256, 2)
        told = oracle.predict(windows[0])
        assert status == 0
        assert (told.features, told.label, told.scores) == (features[0].tolist(), labels[0], scores[0].tolist())


@pytest.mark.parametrize("blob", [random_trees(21), random_network(21), random_network(22, (30, 20, 10, 3))])
def test_the_package_reads_models_as_the_board_does(blob: bytes) -> None:
    """Three readings of one contract: the C code, the oracle above, and firmware_bridge.interpreter."""
    model = read_model(blob)
    oracle = Oracle(blob)
    windows = windows_of(oracle, 50, 9)
    status, _, labels, scores = c_predict(blob, windows, oracle.feature_count, oracle.classes)
    outcome = run_windows(model, windows)
    assert status == 0
    assert outcome.labels.tolist() == labels.tolist()
    assert outcome.scores.tolist() == scores.tolist()


def test_a_converted_forest_runs_in_c_as_it_was_measured(root: Path) -> None:
    """The example for boards on every window of the test recordings: C code, package and conversion say the same."""
    conversion = converted(root)
    played = counts(windows(root, "test"))
    model = conversion.model
    status, _, labels, scores = c_predict(conversion.blob, played, len(model.features), model.classes)
    outcome = run_windows(model, played)
    assert status == 0 and len(played) == 391
    assert labels.tolist() == outcome.labels.tolist()
    assert scores.tolist() == outcome.scores.tolist()
    assert conversion.report.agreement >= 0.98
