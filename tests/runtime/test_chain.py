"""Stages in a row; tests/runtime/test_loading.py has them as packages."""

from __future__ import annotations

import numpy as np
import pytest
from tinylcm import ModelError
from tinylcm.backends import Backend, BackendSpec, Tensor, open_backend
from tinylcm.backends.chain import ChainBackend
from tinylcm.backends.linear import linear_arrays, scaler_arrays


class Bytes:
    """An integer stage: gives twice what it takes, in units of its scales."""

    stateful = True

    def __init__(self, taken: tuple[float, int], given: tuple[float, int], size: int = 3) -> None:
        self.inputs = (Tensor("x", np.zeros((1, size), np.int8), *taken),)
        self.outputs = (Tensor("y", np.zeros((1, size), np.int8), *given),)
        self.resets = 0

    def run(self) -> None:
        self.outputs[0].array[...] = self.inputs[0].array

    def run_many(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        return [inputs[0].copy()]

    def reset(self) -> None:
        self.resets += 1


def scaler(size: int = 3, factor: float = 1.0) -> Backend:
    return open_backend("scaler", scaler_arrays(np.zeros(size), np.full(size, factor)), BackendSpec())


def test_quantised_and_real_stages_understand_each_other() -> None:
    chain = ChainBackend([("real", scaler()), ("bytes", Bytes((0.5, 3), (0.25, -1))), ("again", scaler())])
    values = np.array([[0.0, 1.2, -100.0]], dtype=np.float32)
    chain.inputs[0].array[...] = values
    chain.run()
    # Stored 3, 5 (of 5.4) and -128 (saturated); read back in the other units.
    expected = [[(3 + 1) * 0.25, (5 + 1) * 0.25, (-128 + 1) * 0.25]]
    assert chain.outputs[0].array.tolist() == expected
    assert chain.run_many([np.repeat(values, 4, axis=0)])[0].tolist() == expected * 4


def test_equal_units_are_copied() -> None:
    chain = ChainBackend([("a", Bytes((0.5, 0), (0.5, 0))), ("b", Bytes((0.5, 0), (0.5, 0)))])
    chain.inputs[0].array[...] = [[1, -2, 127]]
    chain.run()
    assert chain.outputs[0].array.tolist() == [[1, -2, 127]]


def test_times_names_state_and_reset() -> None:
    inner = Bytes((1.0, 0), (1.0, 0))
    chain = ChainBackend([("a", scaler()), ("b", inner)])
    assert chain.stateful and not ChainBackend([("a", scaler())]).stateful
    chain.run()
    assert chain.times_us.shape == (2,) and (chain.times_us > 0).all()
    chain.reset()
    assert inner.resets == 1 and chain.names == ("a", "b")


def test_a_stages_output_can_be_watched() -> None:
    head = open_backend("linear", linear_arrays(np.ones((2, 3)), np.zeros(2), "raw"), BackendSpec())
    chain = ChainBackend([("a", scaler(3, 2.0)), ("head", head)], "a")
    chain.inputs[0].array[...] = [[2.0, 4.0, 6.0]]
    chain.run()
    assert [tensor.name for tensor in chain.outputs] == ["scores", "a"]
    assert chain.outputs[1].array.tolist() == [[1.0, 2.0, 3.0]]
    many = chain.run_many([np.ones((5, 3), dtype=np.float32)])
    assert [one.shape for one in many] == [(5, 2), (5, 3)]


def test_what_does_not_fit_names_both_stages() -> None:
    with pytest.raises(ModelError, match=r"'a' gives \[1, 3\], stage 'b' takes \[1, 4\]"):
        ChainBackend([("a", scaler(3)), ("b", scaler(4))])
    with pytest.raises(ModelError, match="no stage 'c'"):
        ChainBackend([("a", scaler())], "c")
