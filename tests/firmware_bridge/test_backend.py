"""The format `board` is a backend like any other: found by its entry point, tried before it travels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from blob_oracle import Oracle
from board_data import random_model
from tinylcm.backends import Backend, BackendSpec, find_backend, formats, open_backend
from tinylcm.capabilities import capabilities
from tinylcm.errors import ModelError

from firmware_bridge.backend import BoardBackend
from firmware_bridge.blob import BoardModel, Vector, write_model


@pytest.fixture(scope="module")
def model() -> BoardModel:
    return random_model(2, "trees")


def test_the_format_is_found_and_told_to_the_server() -> None:
    assert find_backend("board") is BoardBackend
    assert "board" in formats() and "board" in capabilities()["backends"]


def test_it_gives_what_the_oracle_gives(model: BoardModel) -> None:
    data = write_model(model)
    shape = (1, model.rows, model.channels)
    backend: Backend = open_backend("board", data, BackendSpec(shapes={"": shape}, outputs=("scores",)))
    window = np.arange(shape[1] * shape[2], dtype=np.int16).reshape(shape) * 100
    backend.inputs[0].array[...] = window
    backend.run()
    label, score = Oracle(data).predict(window[0].tolist())
    assert backend.outputs[0].array.argmax() == label
    assert backend.outputs[0].array[0, label] == pytest.approx(score / 65535)
    assert backend.run_many([np.repeat(window, 3, axis=0)])[0].tolist() == backend.outputs[0].array.tolist() * 3
    backend.reset()
    assert not backend.stateful


def test_a_model_whose_self_test_fails_does_not_open(model: BoardModel) -> None:
    q = tuple([0] * len(model.features))
    wrong = replace(model, vectors=(Vector(q, 0, 12345),))
    with pytest.raises(ModelError, match="self-test vector 0"):
        open_backend("board", write_model(wrong))


def test_what_it_does_not_have_is_refused(model: BoardModel) -> None:
    data = write_model(model)
    for spec, problem in [
        (BackendSpec(shapes={"": (1, 2, 99)}), r"input 'window' has shape .* \[1, 2, 99\] asked"),
        (BackendSpec(outputs=("label",)), "takes `window` and gives `scores`"),
        (BackendSpec(state=(("window", "scores"),)), "no state"),
    ]:
        with pytest.raises(ModelError, match=problem):
            open_backend("board", data, spec)
    with pytest.raises(ModelError, match="no model for boards"):
        open_backend("board", b"not one")
