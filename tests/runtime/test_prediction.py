"""The value that a prediction is."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
from models import linear_model
from tinylcm import Pipeline, Prediction
from tinylcm._ext.prediction import FIELDS


@pytest.fixture
def prediction(tmp_path: Path) -> Prediction:
    path = tmp_path / "m.onnx"
    path.write_bytes(linear_model(3, 4))
    return Pipeline(path, labels=["a", "b", "c", "d"]).infer([1.0, 2.0, 3.0])


def test_it_cannot_be_changed(prediction: Prediction) -> None:
    for name in FIELDS:
        with pytest.raises(AttributeError):
            setattr(prediction, name, None)


def test_it_survives_copies_and_pickles(prediction: Prediction) -> None:
    for twin in (copy.deepcopy(prediction), pickle.loads(pickle.dumps(prediction))):
        assert twin == prediction and hash(twin) == hash(prediction)
        assert twin.scores == prediction.scores and twin.timing == prediction.timing
        assert twin.top(2) == prediction.top(2)
    assert prediction != "a" and prediction != Prediction("x", "a", 1.0, [1.0], 1.0)


def test_top_ranks_labels(prediction: Prediction) -> None:
    ranked = prediction.top(3)
    assert len(ranked) == 3 and ranked[0] == (prediction.label, prediction.confidence)
    assert [score for _, score in ranked] == sorted((score for _, score in ranked), reverse=True)
    assert Prediction("x", "b", 0.7, [0.3, 0.7], 1.0).top(1) == [("1", pytest.approx(0.7))]


def test_the_parts_of_the_latency_add_up(prediction: Prediction) -> None:
    assert set(prediction.timing) == {"load", "run", "post", "monitors"}
    assert sum(prediction.timing.values()) == pytest.approx(prediction.latency_us, rel=1e-6)
    assert prediction.timing["run"] > 0


def test_scores_stay_when_the_model_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(linear_model())
    pipeline = Pipeline(path)
    first = pipeline.infer([1.0, 2.0, 3.0])
    for value in np.linspace(-5, 5, 50):
        pipeline.infer([value, -value, 0.0])
    again = pipeline.infer([1.0, 2.0, 3.0])
    assert first.scores == again.scores and first.id != again.id


def test_a_dictionary_for_scripts(prediction: Prediction) -> None:
    document = prediction.to_dict()
    assert tuple(document) == FIELDS
    assert document["start_s"] is None and document["first_sample"] == -1
    assert "latency_us" in repr(prediction)
