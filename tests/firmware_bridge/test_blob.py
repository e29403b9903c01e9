"""A board's model as bytes: what is written is read back, and nothing that breaks a rule is read at all."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from board_data import random_model
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylcm.errors import ModelError

from firmware_bridge.blob import HEADER, NODE, BoardModel, Feature, Trees, Vector, read_model, write_model
from firmware_bridge.interpreter import run_quantised

TREE = BoardModel(
    rows=2,
    hop=1,
    channels=1,
    classes=2,
    features=(Feature(1, 0, 0, 0.0, 1.0),),
    body=Trees(
        np.array([0], np.uint32),
        np.array([(0, 5, 1, 2), (-1, 0, 0, 0), (-1, 0, 1, 0)], NODE),
        np.array([[65535, 0], [0, 65535]], np.uint16),
    ),
    vectors=(Vector((5,), 0, 65535), Vector((6,), 1, 65535)),
)


@pytest.mark.parametrize("kind", ["trees", "network"])
def test_a_model_is_read_as_it_was_written(kind: str) -> None:
    for seed in range(40):
        data = write_model(random_model(seed, kind))
        assert write_model(read_model(data)) == data
        assert len(data) % 4 == 0 and HEADER.size == 36


def test_the_bytes_are_those_of_the_contract() -> None:
    expected = (
        b"TBM1" + struct.pack("<IHBBHHHBBIIII", 124, 1, 1, 2, 1, 2, 1, 1, 0, 36, 48, 104, 0)
        + struct.pack("<BBHff", 1, 0, 0, 0.0, 1.0)
        + struct.pack("<HHI", 1, 2, 3) + struct.pack("<I", 0)
        + struct.pack("<hhHH", 0, 5, 1, 2) + struct.pack("<hhHH", -1, 0, 0, 0) + struct.pack("<hhHH", -1, 0, 1, 0)
        + struct.pack("<4H", 65535, 0, 0, 65535) + bytes(12)
    )  # fmt: skip
    tests = struct.pack("<HH", 2, 0) + struct.pack("<hxxHH", 5, 0, 65535) + struct.pack("<hxxHH", 6, 1, 65535)
    expected = expected[:-12]
    at_tests = len(expected)
    expected = bytearray(expected + tests)
    struct.pack_into("<I", expected, 4, len(expected))
    struct.pack_into("<I", expected, 28, at_tests)
    assert write_model(TREE) == bytes(expected)


def nodes(*rows: tuple[int, int, int, int]) -> Trees:
    assert isinstance(TREE.body, Trees)
    return replace(TREE.body, nodes=np.array(list(rows), NODE))


LEAF = (-1, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"classes": 1}, "number of classes is 1, expected 2 to 32"),
        ({"channels": 0}, "number of channels is 0"),
        ({"rows": 0}, "rows is 0"),
        ({"hop": 0}, "hop is 0"),
        ({"hop": 70_000}, "does not fit its place"),
        ({"features": ()}, "number of features is 0"),
        ({"features": (Feature(6, 0, 0, 0.0, 1.0),)}, "op is 6"),
        ({"features": (Feature(0, 1, 0, 0.0, 1.0),)}, "channel is 1"),
        ({"features": (Feature(0, 0, 2, 0.0, 1.0),)}, "row is 2"),
        ({"features": (Feature(0, 0, 0, 0.0, 0.0),)}, "a scale above 0"),
        ({"features": (Feature(0, 0, 0, float("nan"), 1.0),)}, "offset nan"),
        ({"body": nodes((1, 0, 1, 2), LEAF, LEAF)}, "a feature that is none of the 1"),
        ({"body": nodes((0, 0, 0, 2), LEAF, LEAF)}, "left child does not lie after it"),
        ({"body": nodes((0, 0, 1, 3), LEAF, LEAF)}, "right child does not lie after it"),
        ({"body": nodes((0, 0, 1, 2), LEAF, (-1, 0, 2, 0))}, "a row that is none of the 2"),
        ({"vectors": (Vector((5,), 2, 0),)}, "self-test vector's class is 2"),
        ({"vectors": (Vector((5,), 0, 0),) * 65}, "self-test vectors is 65"),
    ],
)
def test_what_a_board_would_refuse_is_not_written(change: dict[str, object], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        write_model(replace(TREE, **change))


def test_other_bytes_are_refused_with_what_is_wrong() -> None:
    data = write_model(TREE)
    for bad, problem in [
        (b"", "does not begin with TBM1"),
        (b"ONNX" + data[4:], "does not begin with TBM1"),
        (data + b"\0", f"says that it has {len(data)} bytes, it has {len(data) + 1}"),
        (data[:-4], "it has"),
        (data[:8] + b"\x02\x00" + data[10:], "ABI 2, this program knows 1: convert it again"),
        (data[:10] + b"\x03" + data[11:], "kind 3 is not known"),
        (data[:20] + struct.pack("<I", 37) + data[24:], "feature table at offset 37"),
        (data[:24] + struct.pack("<I", len(data)) + data[28:], "the body ends 8 bytes too early"),
    ]:
        with pytest.raises(ModelError, match=problem):
            read_model(bad)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 9), st.sampled_from(["trees", "network"]), st.data())
def test_a_mutated_model_is_refused_or_runs(seed: int, kind: str, data: st.DataObject) -> None:
    mutated = bytearray(write_model(random_model(seed, kind)))
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    try:
        model = read_model(bytes(mutated))
    except ModelError:
        return
    outcome = run_quantised(model, np.array([[0] * len(model.features), [-32768] * len(model.features)], np.int16))
    assert ((outcome.labels >= 0) & (outcome.labels < model.classes)).all()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_end_in_a_model_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        read_model(b"TBM1" + data)
