"""A model behind a bounded queue: what goes in comes out, or is counted."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from kinds import counter, windowed
from models import linear_model, log_model
from numpy.typing import NDArray
from tinylcm import (
    Alarm,
    CapturePolicy,
    Capturer,
    ConfigError,
    DeviceError,
    InputError,
    ModelError,
    Pipeline,
    Prediction,
    TinyLCMError,
)
from tinylcm.clock import SystemClock
from tinylcm.loading import Options
from tinylcm.worker import ERRORS_LOGGED_MAX, Overflow, Worker

WAIT_S = 20.0  # for what must come; no test passes or fails by how soon


class Gate:
    """A callback that holds the worker at the first prediction until a test lets it go on."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        self.sums: list[float] = []

    def __call__(self, prediction: Prediction) -> None:
        self.reached.set()
        assert self.open.wait(WAIT_S)
        self.sums.append(prediction.scores[0])


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear_model())
    return Pipeline(path, labels=["a", "b"])


@pytest.fixture
def logarithm(tmp_path: Path) -> Pipeline:
    """Its scores are the logarithms of the row, so they say which row came; a negative one is a model's failure."""
    path = tmp_path / "log.onnx"
    path.write_bytes(log_model())
    return Pipeline(path)


def row(number: int) -> list[float]:
    return [float(np.exp(number)), 1.0]


@pytest.fixture
def gated(logarithm: Pipeline) -> Iterator[Callable[..., tuple[Worker, Gate]]]:
    """Workers that hold row 0 in their callback, so that what is put next waits in the queue."""
    gates: list[Gate] = []

    def make(overflow: Overflow, queue_items: int = 2) -> tuple[Worker, Gate]:
        gate = Gate()
        gates.append(gate)
        worker = Worker(logarithm, on_prediction=gate, overflow=overflow, queue_items=queue_items)
        assert worker.put(row(0))
        assert gate.reached.wait(WAIT_S)
        return worker, gate

    yield make
    for gate in gates:
        gate.open.set()


def test_a_callback_gets_every_prediction_that_the_stream_would_give(pipeline: Pipeline) -> None:
    rows = np.random.default_rng(1).standard_normal((50, 3)).astype(np.float32)
    got: list[Prediction] = []
    threads: set[str] = set()

    def take(prediction: Prediction) -> None:
        got.append(prediction)
        threads.add(threading.current_thread().name)

    with Worker(pipeline, on_prediction=take) as worker:
        assert worker.put(rows[:20])  # a block and rows, as a stream takes them
        assert all(worker.put(values) for values in rows[20:])
    assert worker.dropped == 0 and pipeline.metrics.totals["overflow"] == 0
    assert [p.scores for p in got] == [p.scores for p in pipeline.stream(rows)]
    assert threads == {"tinylcm-worker"}


def test_an_iterator_gets_them_and_ends_with_the_worker(logarithm: Pipeline) -> None:
    worker = Worker(logarithm)
    for number in range(10):
        worker.put(row(number))
    predictions = worker.predictions(timeout_s=WAIT_S)
    first = [round(next(predictions).scores[0]) for _ in range(4)]
    worker.close()
    rest = [round(prediction.scores[0]) for prediction in predictions]
    assert first + rest == list(range(10))
    assert list(worker.predictions()) == []


def test_an_iterator_gives_up_after_its_timeout(pipeline: Pipeline) -> None:
    with Worker(pipeline) as worker:
        assert list(worker.predictions(timeout_s=0.01)) == []
        worker.put([1, 2, 3])
        assert len(list(worker.predictions(timeout_s=1.0))) == 1


def test_predictions_that_nobody_takes_are_bounded_and_the_newest_stay(logarithm: Pipeline) -> None:
    with Worker(logarithm, queue_items=4, overflow="block") as worker:
        for number in range(20):
            assert worker.put(row(number))
    assert [round(p.scores[0]) for p in worker.predictions()] == [16, 17, 18, 19]
    assert worker.untaken == 16


def test_a_sensors_buffer_may_be_used_again_at_once(gated: Callable[..., tuple[Worker, Gate]]) -> None:
    worker, gate = gated("block", 8)
    buffer = np.zeros(2, np.float32)
    for number in (1, 2, 3):
        buffer[:] = row(number)
        worker.put(buffer)
    gate.open.set()
    worker.close()
    assert [round(value) for value in gate.sums] == [0, 1, 2, 3]


@pytest.mark.parametrize(("overflow", "kept"), [("drop_oldest", [0, 4, 5]), ("drop_newest", [0, 1, 2])])
def test_a_full_queue_loses_the_named_end_and_counts_it(
    gated: Callable[..., tuple[Worker, Gate]], logarithm: Pipeline, overflow: Overflow, kept: list[int]
) -> None:
    worker, gate = gated(overflow)
    assert [worker.put(row(number)) for number in range(1, 6)] == [True, True, False, False, False]
    gate.open.set()
    worker.close()
    assert [round(score) for score in gate.sums] == kept
    assert worker.dropped == 3
    assert logarithm.metrics.totals["overflow"] == 3 and logarithm.metrics.rollup()["overflow"] == 3


@pytest.mark.parametrize(
    ("overflow", "missing", "spans"),
    [
        ("drop_oldest", "drop", [[0, 1], [8, 9]]),  # 2 to 7 were lost, and 1.5 began a window
        ("drop_newest", "drop", [[0, 1], [1.5, 2], [10, 11]]),  # 4 to 9 were, and 3 began one
        ("drop_oldest", "hold", [[0, 1], [1.5, 1.5], [1.5, 1.5], [1.5, 1.5], [1.5, 8]]),
    ],
)
def test_no_window_spans_what_the_queue_has_lost(overflow: Overflow, missing: str, spans: list[list[float]]) -> None:
    model = Pipeline(windowed(2, window={"missing": missing, "gap_samples_max": 100}), capture=(kept := _Windows()))
    gate, errors = Gate(), list[TinyLCMError]()
    worker = Worker(model, on_prediction=gate, on_error=errors.append, overflow=overflow, queue_items=2)
    worker.put([[0.0], [1.0], [1.5]])
    assert gate.reached.wait(WAIT_S)
    for number in range(2, 10):
        worker.put([float(number)])
    gate.open.set()
    if overflow == "drop_newest":
        until(lambda: len(kept.windows) == 2)
        worker.put([[10.0], [11.0]])
    worker.close()
    assert kept.windows == spans
    assert worker.dropped == 6 and "lost 6 samples: the worker's queue was full" in str(errors[0])


class _Windows(Capturer):
    """Sees every window."""

    def __init__(self) -> None:
        super().__init__(CapturePolicy(every_nth=1), lambda payload: None, SystemClock())
        self.windows: list[list[float]] = []

    def offer(self, window: NDArray[np.float32], prediction: Prediction, alarms: Sequence[Alarm] = ()) -> bool:
        self.windows.append(window[:, 0].tolist())
        return True


def test_block_waits_for_a_place_and_no_longer_than_its_timeout(gated: Callable[..., tuple[Worker, Gate]]) -> None:
    worker, gate = gated("block", 1)
    assert worker.put(row(1), timeout_s=0.0)  # there is a place: no wait
    assert not worker.put(row(2), timeout_s=0.01)
    assert worker.dropped == 1
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(worker.put(row(3))))
    thread.start()
    thread.join(0.05)
    assert thread.is_alive() and not results  # it waits
    gate.open.set()
    thread.join(WAIT_S)
    worker.close()
    assert results == [True] and worker.dropped == 1
    assert [round(score) for score in gate.sums] == [0, 1, 3]


def test_closing_frees_who_waits_for_a_place(gated: Callable[..., tuple[Worker, Gate]]) -> None:
    worker, gate = gated("block", 1)
    worker.put(row(1))
    errors: list[Exception] = []

    def wait() -> None:
        try:
            worker.put(row(2))
        except ConfigError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    with pytest.raises(DeviceError):
        worker.close(0.05)
    thread.join(WAIT_S)
    assert not thread.is_alive() and "closed" in str(errors[0])
    gate.open.set()
    worker.close()
    assert [round(score) for score in gate.sums] == [0, 1]


def test_close_finishes_what_waits_and_put_after_it_is_refused(gated: Callable[..., tuple[Worker, Gate]]) -> None:
    worker, gate = gated("drop_oldest", 8)
    for number in range(1, 6):
        worker.put(row(number))
    gate.open.set()
    worker.close()
    assert [round(score) for score in gate.sums] == list(range(6))
    with pytest.raises(ConfigError, match="the worker is closed"):
        worker.put(row(6))
    worker.close()  # twice does no harm


def test_a_callback_that_hangs_is_said_in_close(gated: Callable[..., tuple[Worker, Gate]]) -> None:
    worker, gate = gated("drop_oldest")
    with pytest.raises(DeviceError, match=r"did not end within 0\.05 s: the model or a callback hangs"):
        worker.close(0.05)
    gate.open.set()
    worker.close()
    assert len(gate.sums) == 1


def test_a_callback_that_raises_costs_its_own_window_only(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def fail(prediction: Prediction) -> None:
        seen.append(prediction.id)
        raise KeyError("application")

    with Worker(pipeline, on_prediction=fail) as worker:
        for _ in range(ERRORS_LOGGED_MAX + 3):
            worker.put([1, 2, 3])
    assert len(seen) == worker.callback_errors == ERRORS_LOGGED_MAX + 3
    logged = [record for record in caplog.records if "on_prediction failed" in record.message]
    assert len(logged) == ERRORS_LOGGED_MAX and "application" in logged[0].message


def test_errors_of_samples_and_of_the_model_are_reported_and_the_stream_goes_on(logarithm: Pipeline) -> None:
    errors: list[TinyLCMError] = []
    got: list[float] = []
    with Worker(logarithm, on_prediction=lambda p: got.append(p.scores[0]), on_error=errors.append) as worker:
        for item in (row(0), [1.0], [-1.0, 1.0], row(2)):  # a short row; the logarithm of a negative value
            worker.put(item)
    assert [type(error) for error in errors] == [InputError, ModelError]
    assert [round(score) for score in got] == [0, 2]
    assert logarithm.metrics.totals["errors"] >= 1 and logarithm.failures == 1
    assert worker.callback_errors == 0


def test_an_on_error_that_raises_is_counted_and_the_stream_goes_on(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[Prediction] = []

    def fail(error: TinyLCMError) -> None:
        raise ZeroDivisionError("own")

    with Worker(pipeline, on_prediction=got.append, on_error=fail) as worker:
        worker.put([1.0])
        worker.put([1, 2, 3])
    assert worker.callback_errors == 1 and len(got) == 1
    assert "on_error failed: own" in caplog.text


def test_without_on_error_the_first_errors_are_logged(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    with Worker(pipeline) as worker:
        for _ in range(ERRORS_LOGGED_MAX + 5):
            worker.put([1.0])
    assert sum("expected" in record.message for record in caplog.records) == ERRORS_LOGGED_MAX


def test_a_stream_that_another_one_takes_over_is_said_in_put_and_predictions() -> None:
    pipeline = Pipeline(counter())
    with Worker(pipeline) as worker:
        worker.put([1.0])
        assert next(worker.predictions(timeout_s=WAIT_S)).scores[0] == 1.0
        assert [p.scores[0] for p in pipeline.stream([[5.0]])] == [5.0]
        worker.put([1.0])
        with pytest.raises(ConfigError, match="another stream has taken it over"):
            list(worker.predictions())
        depths = []
        for _ in range(3):
            with pytest.raises(ConfigError, match="another stream has taken it over") as told:
                worker.put([1.0])
            depths.append(len(traceback.extract_tb(told.value.__traceback__)))
        assert depths[0] == depths[2]  # an application that goes on asking does not fill its memory


def test_a_callback_that_exits_ends_the_worker_and_is_heard_of(pipeline: Pipeline) -> None:
    with Worker(pipeline, on_prediction=lambda prediction: sys.exit("enough")) as worker:
        worker.put([1, 2, 3])
        with pytest.raises(SystemExit, match="enough"):
            list(worker.predictions(timeout_s=WAIT_S))
        with pytest.raises(SystemExit, match="enough"):
            worker.put([1, 2, 3])


def test_a_callback_that_closes_is_told_so(pipeline: Pipeline) -> None:
    errors: list[Exception] = []

    def close(prediction: Prediction) -> None:
        try:
            worker.close()
        except ConfigError as error:
            errors.append(error)

    worker = Worker(pipeline, on_prediction=close)
    worker.put([1, 2, 3])
    until(lambda: errors)
    worker.close()
    assert "from another thread" in str(errors[0])


@pytest.mark.parametrize(("options", "given", "expected"), [(0, 5, 5), (7, None, 7), (7, 3, 3), (0, None, 0)])
def test_the_priority_is_of_the_worker_s_thread_alone(
    tmp_path: Path, options: int, given: int | None, expected: int
) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear_model())
    pipeline = Pipeline(path, options=Options(priority=options))
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    seen: list[int] = []

    def look(prediction: Prediction) -> None:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    with Worker(pipeline, on_prediction=look, priority=given) as worker:
        worker.put([1, 2, 3])
    assert seen == [expected or own]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


UNPRIVILEGED = """
import os, sys
from pathlib import Path
from tinylcm import DeviceError, Pipeline
from tinylcm.worker import Worker
pipeline = Pipeline(Path(sys.argv[1]))
if os.geteuid() == 0:
    os.setuid(65534)
try:
    Worker(pipeline, priority=-20)
except DeviceError as error:
    print(error)
"""


def test_a_priority_that_is_refused_is_an_error_at_once(tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear_model())
    result = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "a priority of -20 is refused" in result.stdout and "Permission" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"overflow": "drop"}, "expected drop_oldest, drop_newest, block"),
        ({"queue_items": 0}, "1 to 1048576 queue_items"),
        ({"queue_items": (1 << 20) + 1}, "1 to 1048576 queue_items"),
        ({"priority": 20}, "priority from -20 to 19"),
        ({"priority": -21}, "priority from -20 to 19"),
    ],
)
def test_arguments_out_of_range_are_refused(pipeline: Pipeline, arguments: dict[str, object], problem: str) -> None:
    before = threading.active_count()
    with pytest.raises(ConfigError, match=problem):
        Worker(pipeline, **arguments)  # type: ignore[arg-type]
    assert threading.active_count() == before
