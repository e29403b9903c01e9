"""From a model's output to a decision: activation, temperature, smoothing, threshold, hysteresis, refractory period."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylcm import ConfigError
from tinylcm._ext.engine import NOT_FINITE, REJECTED, Decider


def row(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=8), st.floats(0.1, 10))
def test_softmax_is_that_of_the_textbook(values: list[float], temperature: float) -> None:
    decider = Decider(len(values), "softmax", temperature)
    best = decider.update(row(*values))
    logits = np.array(values) / temperature
    expected = np.exp(logits - logits.max())
    expected /= expected.sum()
    assert decider.scores() == pytest.approx(expected, abs=2e-6)
    assert decider.scores()[best] == max(decider.scores())
    assert decider.confidence == pytest.approx(expected.max(), abs=2e-6)


def test_sigmoid_scores_each_label_for_itself() -> None:
    decider = Decider(2, "sigmoid", 2.0)
    assert decider.update(row(2.0, -2.0)) == 0
    assert decider.scores() == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))], abs=1e-6)


def test_a_greater_temperature_is_less_sure_and_decides_the_same() -> None:
    cold, warm = Decider(3, "softmax", 1.0), Decider(3, "softmax", 4.0)
    assert cold.update(row(1, 3, 2)) == warm.update(row(1, 3, 2)) == 1
    assert warm.confidence < cold.confidence


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_said_and_leaves_the_smoothing_as_it_was(bad: float) -> None:
    decider = Decider(2, smoothing=2)
    decider.update(row(0.2, 0.8))
    assert decider.update(row(bad, 0.5)) == NOT_FINITE
    decider.update(row(0.4, 0.6))
    assert decider.scores() == pytest.approx([0.3, 0.7])


def test_smoothing_is_the_mean_of_the_newest_windows() -> None:
    rng = np.random.default_rng(1)
    rows = rng.random((50, 3)).astype(np.float32)
    decider = Decider(3, smoothing=7)
    for index in range(50):
        decider.update(rows[index])
        assert decider.scores() == pytest.approx(rows[max(0, index - 6) : index + 1].mean(axis=0), abs=1e-6)
    decider.restart()
    decider.update(rows[0])
    assert decider.scores() == pytest.approx(rows[0])


def test_below_the_threshold_there_is_no_label_but_still_a_best_one() -> None:
    decider = Decider(2, threshold=0.7)
    assert decider.update(row(0.4, 0.6)) == REJECTED
    assert (decider.best, decider.confidence) == (1, pytest.approx(0.6))
    assert decider.update(row(0.2, 0.8)) == 1


def test_hysteresis_holds_a_label_until_another_is_clearly_better() -> None:
    decider = Decider(2, hysteresis=0.2)
    assert decider.update(row(0.6, 0.4)) == 0
    assert decider.update(row(0.45, 0.55)) == 0  # better by 0.1 only
    assert decider.confidence == pytest.approx(0.45)  # of the label that holds
    assert decider.update(row(0.3, 0.7)) == 1


def test_hysteresis_also_holds_below_the_threshold() -> None:
    decider = Decider(2, threshold=0.7, hysteresis=0.2)
    assert decider.update(row(0.3, 0.6)) == REJECTED
    assert decider.update(row(0.2, 0.75)) == 1
    assert decider.update(row(0.2, 0.55)) == 1
    assert decider.update(row(0.2, 0.45)) == REJECTED
    assert decider.update(row(0.2, 0.6)) == REJECTED  # it has to come over the threshold again


def test_an_event_is_the_first_window_of_a_label() -> None:
    decider = Decider(2, threshold=0.5)
    scores = [row(0.9, 0.1), row(0.8, 0.2), row(0.1, 0.9), row(0.4, 0.4), row(0.1, 0.9)]
    events = []
    for one in scores:
        decider.update(one)
        events.append(decider.event)
    assert events == [True, False, True, False, True]


def test_the_refractory_period_silences_the_same_label_only() -> None:
    decider = Decider(2, threshold=0.5, refractory=3)
    noise, word = row(0.9, 0.1), row(0.1, 0.9)
    events = []
    for one in (noise, word, noise, word, noise, noise, word):
        decider.update(one)
        events.append(decider.event)
    #                 first noise, word; both again too soon;  noise after four, word after five
    assert events == [True, True, False, False, True, False, True]


@pytest.mark.parametrize(
    "arguments",
    [(0,), (2, "none", 0.0), (2, "none", float("nan")), (2, "tanh"), (2, "none", 1.0, 0), (1 << 20, "none", 1.0, 1024)],
)
def test_parameters_out_of_their_range_are_refused(arguments: tuple) -> None:
    with pytest.raises(ConfigError):
        Decider(*arguments)
