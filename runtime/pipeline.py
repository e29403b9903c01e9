"""The hot route: sample -> window -> input tensor -> backend -> prediction, monitors and metrics.

No file, no network, no server is needed. What happens is told to a sink that is passed in; the pipeline knows no
journal and no call here waits for a disk.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from tinylcm._ext.engine import Decider, Runner
from tinylcm._ext.ring import Reader

from .backends import Backend
from .capture import Capturer
from .clock import Clock, SystemClock
from .errors import ConfigError, InputError, ModelError, TinyLCMError
from .loading import LoadedModel, Options, make_decider, open_file, open_package
from .manifest import Manifest
from .metrics import Metrics
from .monitors import BUDGET, Detector, Monitor, watch
from .neighbours import Neighbours
from .package import Package
from .types import Alarm, Json, Payload, Prediction, Stream
from .window import Block, Lost, Windower

_log = logging.getLogger("tinylcm")
CHUNK_ROWS: Final = 64
BATCH_WINDOWS: Final = 64  # that `infer_many` computes together
SUMMARIES_MAX: Final = 8  # of models that swaps have replaced, until somebody takes them
ERRORS_LOGGED_MAX: Final = 5  # of a stream's bad samples; the rest are counted


class Sink(Protocol):
    """Where records go: a journal, or a list in a test. Must not block."""

    def emit(self, stream: Stream, type: str, payload: Payload) -> None:
        """Take a record."""
        ...


class Pipeline(Runner):
    """A model with its windowing, steps before and after it, monitors and metrics.

    Args:
        model: path of a model file that the application trusts, or a checked `Package`.
        labels: the classes in the order of the scores, by default their numbers. A package brings its own.
        monitors: detectors on the confidence, or `Monitor`s; for a package, beside the manifest's own.
        window, hop: samples a window and between windows, where no package says it. By default the second axis of
            an input of three and more axes, else 1; hop is the window.
        output: the output with the scores, when a plain model has several.
        shape: the input's shape with the batch axis, when a plain model leaves it open.
        format: a plain model's backend, where its file's name does not say it.
        sink: takes alarms as records.
        threads: compute threads of the backend; a short form of `options`.
        options: how the model runs on this machine: threads, arena, budgets.
        capture: keeps the inputs that its policy asks for.
        variant: of an experiment; predictions carry it.
        ring_samples: capacity of the sample ring; at least a window.
        clock: time, for the metrics' intervals.

    Raises:
        ConfigError: the arguments do not fit together.
        ModelError: the model cannot run here, or does not keep its manifest.
        DeviceError: the file cannot be read.

    Attributes:
        failures: windows on which the model itself failed.
        alarms: of drift, over all packages.
        sink_errors: exceptions of the sink; the first ones are logged.

    `infer`, `infer_many`, `stream` and `swap` may be called from several threads: a lock makes each prediction whole.
    A stream's samples belong to one thread. A model that keeps state between windows serves one stream at a time: a
    new one takes it over, and the older one ends with a ConfigError.
    """

    def __init__(
        self,
        model: str | Path | Package,
        *,
        labels: Sequence[str] | None = None,
        monitors: Sequence[Monitor | Detector] = (),
        window: int | None = None,
        hop: int | None = None,
        output: str | None = None,
        shape: tuple[int, ...] | None = None,
        format: str = "",
        sink: Sink | None = None,
        threads: int = 1,
        options: Options | None = None,
        capture: Capturer | None = None,
        variant: str = "",
        ring_samples: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._sink = sink
        self._capture = capture
        self._options = options or Options(threads=threads)
        self._ring_samples = ring_samples
        self._variant = variant
        self._extra = [
            monitor if isinstance(monitor, Monitor) else watch("confidence", monitor) for monitor in monitors
        ]
        self._owner: object = None
        self._session = secrets.token_hex(6)
        self._over_memory = False
        self._ended: deque[tuple[Manifest, Metrics]] = deque(maxlen=SUMMARIES_MAX)
        self.failures = self.alarms = self.sink_errors = 0
        if isinstance(model, Package):
            if any(given is not None for given in (labels, window, hop, output, shape)) or format:
                raise ConfigError(
                    "a package's manifest says its labels, window, output and shape; do not give them again"
                )
            self._adopt(self._load(model))
        else:
            manifest, backend = open_file(
                Path(model),
                self._options,
                format=format,
                output=output,
                shape=shape,
                labels=labels,
                window=window,
                hop=hop,
            )
            self._adopt(self._assemble(manifest, backend))
        self._connect(self._observe, self._count_failure, capture is not None)

    def _adopt(self, loaded: LoadedModel) -> None:
        """Let this be the model in use."""
        loaded.engine.observed = self._capture is not None
        self._model = loaded
        self._use(loaded.engine)

    def _load(self, package: Package) -> LoadedModel:
        return self._assemble(package.manifest, open_package(package, self._options))

    def _assemble(self, manifest: Manifest, backend: Backend) -> LoadedModel:
        loaded = LoadedModel(
            manifest,
            backend,
            extra_monitors=self._extra,
            clock=self._clock,
            options=self._options,
            session=self._session,
            variant=self._variant,
        )
        if loaded.streams:
            self._windower([loaded])  # refuses what does not fit
        return loaded

    @property
    def manifest(self) -> Manifest:
        """What the model in use says of itself."""
        return self._model.manifest

    @property
    def backend(self) -> Backend:
        """The engine of the model in use, with its tensors; not while another thread predicts."""
        return self._model.backend

    @property
    def neighbours(self) -> Neighbours:
        """What a model that ends in a kNN compares with: to add labelled windows to, to evict from, to condense."""
        return Neighbours(lambda: self._model, self._lock)

    @property
    def metrics(self) -> Metrics:
        """The counters of the model in use."""
        return self._model.metrics

    @property
    def priority(self) -> int:
        """The niceness that the options ask for, for a `Worker`."""
        return self._options.priority

    def count_overflow(self) -> None:
        """Count an item that was lost on its way here, such as in a worker's full queue."""
        self._model.metrics.totals["overflow"] += 1  # no lock: a sensor's loop must not wait for the model

    @property
    def predictions(self) -> int:
        """Made since the start, over all packages."""
        return self._model.engine.predictions

    def swap(self, package: Package, *, variant: str = "") -> None:
        """Replace the model between two predictions; what streams hold of a window begins anew.

        Raises:
            ModelError: the new package does not run; the old model stays.
        """
        loaded = self._load(package)
        loaded.engine.variant = variant
        with self._lock:
            self._ended.append((self.manifest, self.metrics))
            loaded.engine.follow(self._model.engine)  # ids go on; a stream may have windows of the old one due
            loaded.metrics.totals["swaps"] = self._model.metrics.totals["swaps"] + 1
            self._adopt(loaded)
            self._owner = None

    # One window -------------------------------------------------------------------------------------------

    def infer_many(self, windows: Sequence[object] | NDArray[Any]) -> list[Prediction]:
        """Predict several windows, in one call of the model where its batch axis is open.

        Args:
            windows: `[n, ...]`, or a list of windows as `infer` takes them.

        Raises:
            InputError: one of them does not fit, with its place; up to 64 of its neighbours are not predicted either.
            ModelError: the model gave no finite scores.
        """
        predictions: list[Prediction] = []
        for start in range(0, len(windows), BATCH_WINDOWS):
            with self._lock:
                self._infer_batch(windows[start : start + BATCH_WINDOWS], start, predictions)
        return predictions

    def _infer_batch(self, windows: Sequence[object] | NDArray[Any], start: int, predictions: list[Prediction]) -> None:
        model = self._model
        backend, engine, rows = model.backend, model.engine, model.engine.rows
        begin = time.perf_counter_ns()
        inputs = [np.empty((len(windows), *t.array.shape[1:]), dtype=t.array.dtype) for t in backend.inputs]
        kept = np.empty((len(windows), *rows.shape), dtype=np.float32)
        try:
            for index, window in enumerate(windows):
                try:
                    engine.load(window)
                except InputError as error:
                    raise InputError(f"window {start + index}: {error}") from error
                for tensor, batch in zip(backend.inputs, inputs, strict=True):
                    batch[index] = tensor.array[0]
                kept[index] = rows
            results = backend.run_many(inputs)
            share_ns = (time.perf_counter_ns() - begin) // max(1, len(windows))
            for index in range(len(windows)):
                rows[...] = kept[index]
                for tensor, result in zip(backend.outputs, results, strict=True):
                    tensor.array[0] = result[index]
                prediction = engine.conclude(None, share_ns)
                predictions.append(prediction)
                if prediction.drift or self._capture is not None:
                    self._observe(prediction)
        except TinyLCMError as error:
            self._count_failure(error)
            raise

    def _count_failure(self, error: Exception) -> None:
        """A window gave no prediction; the caller holds the lock."""
        self._model.metrics.count_error()
        if isinstance(error, ModelError):
            self.failures += 1

    def _observe(self, prediction: Prediction) -> None:
        """Tell the sink of alarms and the capture of the window; the caller holds the lock."""
        model = self._model
        self.alarms += len(prediction.drift)
        if self._sink is not None:
            for alarm in prediction.drift:
                self._tell(alarm, model.manifest)
        if self._capture is not None:
            self._capture.offer(model.engine.rows, prediction, prediction.drift)

    def _tell(self, alarm: Alarm, manifest: Manifest) -> None:
        """Hand an alarm to the sink; what a sink of the application raises must not cost the prediction."""
        if self._sink is None:
            return
        try:
            self._sink.emit("events", "alarm", alarm_payload(alarm, manifest))
        except Exception as error:
            self.sink_errors += 1
            if self.sink_errors <= ERRORS_LOGGED_MAX:
                _log.exception("the sink failed on an alarm of %s: %s", alarm.monitor, error)

    def keep_windows(self, capture: Capturer) -> None:
        """Offer the windows to this from now on."""
        with self._lock:
            self._capture = capture
            self._model.engine.observed = True
            self._connect(self._observe, self._count_failure, True)

    def reset(self) -> None:
        """Forget the windows before: the state of the model, smoothing and hysteresis. Monitors go on."""
        with self._lock:
            self._model.backend.reset()
            self._model.engine.decider.restart()

    # Streams ----------------------------------------------------------------------------------------------

    def stream(
        self, samples: Iterable[object], *, on_error: Callable[[TinyLCMError], object] | None = None
    ) -> Iterator[Prediction]:
        """Predict every window of a stream.

        Args:
            samples: rows (one sample each) or two-dimensional blocks of rows, in any mix, with or without times
                (`tinylcm.Sample`, `tinylcm.Block`); images for an image model.
            on_error: called with each bad sample's error; by default the first few are logged. The stream goes on:
                what stands in for a bad sample is the manifest's policy; by default the next window begins after it.

        Raises:
            ModelError: the model failed on a window and `on_error` was not given.
        """
        if self.manifest.image is not None:
            return self._stream_whole(samples, on_error)
        return stream(samples, [self], on_error=on_error)

    def _stream_whole(
        self, samples: Iterable[object], on_error: Callable[[TinyLCMError], object] | None
    ) -> Iterator[Prediction]:
        report = _judge(on_error)
        for item in samples:
            prediction = self._infer_whole(item, report)
            if prediction is not None:
                yield prediction

    def _infer_whole(self, item: object, report: Callable[[TinyLCMError], object]) -> Prediction | None:
        """Predict an item that is a window by itself; None when it was refused, and reported."""
        if isinstance(item, Lost):
            return None  # a picture stands for itself
        try:
            return self.infer(item)
        except TinyLCMError as error:
            report(error)
            return None

    async def astream(
        self,
        samples: AsyncIterable[object] | Iterable[object],
        *,
        on_error: Callable[[TinyLCMError], object] | None = None,
    ) -> AsyncIterator[Prediction]:
        """Predict every window of a stream without blocking the event loop: the model runs in a thread.

        Args:
            samples: as `stream` takes them, from an asynchronous iterator or a plain one.
            on_error: see `stream`.
        """
        source = samples if isinstance(samples, AsyncIterable) else _as_async(samples)
        if self.manifest.image is not None:
            report = _judge(on_error)
            async for item in source:
                found = await asyncio.to_thread(self._infer_whole, item, report)
                if found is not None:
                    yield found
            return
        feed = _Feed([self], on_error)
        async for item in source:
            for part in _parts(item):
                for due in feed.renewed().feed(part):
                    reader = feed.judge(due)
                    if reader is None:
                        continue
                    prediction = await asyncio.to_thread(feed.predict, reader)
                    if prediction is not None:
                        yield prediction
                feed.count()

    def _windower(self, models: Sequence[LoadedModel]) -> Windower:
        return make_windower([model.manifest for model in models], self._ring_samples)

    # Metrics ----------------------------------------------------------------------------------------------

    def monitors_state(self) -> bytes:
        """What the monitors have seen, for `restore_monitors` after a restart."""
        with self._lock:
            return self._model.monitors.to_state()

    def restore_monitors(self, state: bytes) -> list[str]:
        """Let the monitors go on where they were, bit for bit; the names of those that begin anew.

        Raises:
            InputError: the state is damaged; nothing was changed.
        """
        with self._lock:
            model = self._model
            anew = model.monitors.restore(state)
            model.bind_monitors()
            model.engine.set_watch(model.monitors.watch)
            return anew

    def take_summary(self) -> dict[str, Json] | None:
        """The metrics since the last call as a `summary` record's payload; None when nothing happened."""
        found = self.take_summaries(1)
        return found[0] if found else None

    def take_summaries(self, count_max: int = SUMMARIES_MAX + 1) -> list[dict[str, Json]]:
        """The metrics since the last call: first of models that a swap has replaced since then."""
        found: list[dict[str, Json]] = []
        with self._lock:
            while self._ended and len(found) < count_max:
                found += _summarise(*self._ended.popleft())
            if len(found) < count_max:
                now = _summarise(self.manifest, self.metrics)
                if now:
                    self._check_memory(self._model, now[0])
                found += now
        return found

    def _check_memory(self, model: LoadedModel, snapshot: dict[str, Json]) -> None:
        """Alarm once when the process has grown beyond its budget; armed again below 90 % of it."""
        limit, used = model.budget.memory_bytes, snapshot["rss_bytes"]
        if not limit or not isinstance(used, int):
            return
        if used > limit and not self._over_memory:
            self._over_memory = True
            window = model.engine.predictions
            alarm = Alarm(BUDGET, "Limit", "memory", float(used), float(limit), window, window)
            _log.warning("the process has %d bytes in memory, its budget is %d", used, limit)
            self._tell(alarm, model.manifest)
        elif used < 0.9 * limit:
            self._over_memory = False


def _summarise(manifest: Manifest, metrics: Metrics) -> list[dict[str, Json]]:
    """What a model has done since the last summary; empty for nothing."""
    snapshot = metrics.snapshot()
    if not (snapshot["windows"] or snapshot["errors"] or snapshot["dropped_samples"]):
        return []
    metrics.clear()
    return [{"model": manifest.name, "version": manifest.version, **snapshot}]


def make_windower(manifests: Sequence[Manifest], ring_samples: int | None) -> Windower:
    """One ring for the windows of several models.

    Raises:
        ConfigError: they do not take the same samples, or a window is larger than the ring.
    """
    first = manifests[0]
    for manifest in manifests[1:]:
        same = (manifest.layout[1], manifest.window.rate_hz) == (first.layout[1], first.window.rate_hz)
        if not same:
            raise ConfigError(
                f"models {first.name} and {manifest.name} do not take the same samples: {first.layout[1]} channels at "
                f"{first.window.rate_hz:g} Hz, and {manifest.layout[1]} at {manifest.window.rate_hz:g} Hz"
            )
    return Windower.of(manifests, ring_samples)


def stream(
    samples: Iterable[object],
    models: Sequence[Pipeline],
    *,
    on_error: Callable[[TinyLCMError], object] | None = None,
) -> Iterator[Prediction]:
    """Predict every window of one stream with one or several models, each at its own window and hop, over one ring.

    Args:
        samples: see `Pipeline.stream`.
        models: pipelines that take the same channels at the same rate; `Prediction.model` says whose it is.
        on_error: see `Pipeline.stream`.

    Raises:
        ConfigError: the models do not take the same samples, or a model with state was taken over by another stream.
        ModelError: a model failed on a window and `on_error` was not given.
    """
    feed = _Feed(models, on_error)
    for item in samples:
        for part in _parts(item):
            for due in feed.renewed().feed(part):
                reader = feed.judge(due)
                if reader is not None and (prediction := feed.predict(reader)) is not None:
                    yield prediction
            feed.count()


class _Feed:
    """Samples of one stream in, due windows out, for `stream` and `astream`."""

    def __init__(self, models: Sequence[Pipeline], on_error: Callable[[TinyLCMError], object] | None) -> None:
        if not models:
            raise ConfigError("a stream needs at least one model")
        self._pipelines = list(models)
        self._strict = on_error is None
        self._report = on_error or _LogErrors()
        self._models: list[LoadedModel] = []
        self._deciders: list[Decider] = []
        self._begin()

    def _begin(self) -> None:
        """Take the models as they are now; the ring stays when a swap has left the windows as they were."""
        current = [pipeline._model for pipeline in self._pipelines]
        for pipeline, model in zip(self._pipelines, current, strict=True):
            if not model.streams:
                raise ConfigError(
                    f"model {model.manifest.name} takes several inputs, or no samples: call `infer` for each window"
                )
            with pipeline._lock:
                pipeline._owner = self
                model.backend.reset()
        cut = [(model.manifest.layout, model.manifest.window) for model in current]
        if cut != [(model.manifest.layout, model.manifest.window) for model in self._models]:
            self._windower = make_windower([model.manifest for model in current], self._pipelines[0]._ring_samples)
        self._models = current
        self._deciders = [make_decider(model.manifest) for model in current]
        self._places = dict(
            zip(self._windower.readers, zip(self._pipelines, current, self._deciders, strict=True), strict=True)
        )

    def renewed(self) -> Windower:
        """The windower of the models as they are now."""
        for pipeline, model in zip(self._pipelines, self._models, strict=True):
            if pipeline._model is not model:
                self._begin()
                break
        return self._windower

    def judge(self, due: Reader | InputError) -> Reader | None:
        """A reader whose window is due; None for an error, which is reported."""
        self.count()
        if isinstance(due, InputError):
            self._report(due)
            return None
        return due

    def count(self) -> None:
        """Hand the windower's counts on to the metrics; let go of what models and deciders remember before a gap."""
        counts = self._windower.take_counts()
        if counts is None:
            return
        for pipeline, model, decider in zip(self._pipelines, self._models, self._deciders, strict=True):
            pipeline._model.metrics.count_samples(astuple(counts))  # a model that was swapped out says no more
            model.engine.missing += counts.missing
            if counts.restarts:
                decider.restart()
                with pipeline._lock:
                    model.backend.reset()

    def predict(self, reader: Reader) -> Prediction | None:
        """Predict the window that a reader has due; None when the model failed on it."""
        pipeline, model, decider = self._places[reader]
        with pipeline._lock:
            if model.stateful and pipeline._owner is not self:
                raise ConfigError(
                    f"model {model.manifest.name} keeps state between windows, and another stream has taken it over"
                )
            try:
                prediction = model.engine.infer_reader(reader, decider)
            except ModelError as error:
                pipeline._count_failure(error)
                if self._strict:
                    raise
                failure = error
            else:
                if prediction.drift or pipeline._capture is not None:
                    pipeline._observe(prediction)
                return prediction
        self._report(failure)
        return None


async def _as_async(samples: Iterable[object]) -> AsyncIterator[object]:
    """A plain iterator as an asynchronous one: each item is waited for in a thread, since a source may block."""
    iterator, end = iter(samples), object()
    while (item := await asyncio.to_thread(next, iterator, end)) is not end:
        yield item


def _judge(on_error: Callable[[TinyLCMError], object] | None) -> Callable[[TinyLCMError], object]:
    """What is called with errors: without `on_error` samples' errors are logged, and others end the stream."""
    log = _LogErrors()

    def strict(error: TinyLCMError) -> None:
        if not isinstance(error, InputError):
            raise error
        log(error)

    return on_error or strict


def _parts(item: object) -> Iterable[object]:
    """Cut large blocks, so that a swap takes effect inside of them."""
    if isinstance(item, np.ndarray) and item.ndim == 2 and len(item) > CHUNK_ROWS:
        return [item[start : start + CHUNK_ROWS] for start in range(0, len(item), CHUNK_ROWS)]
    if type(item) is Block and np.shape(item.times_s) == np.shape(item.values)[:1]:
        places = range(0, len(item.values), CHUNK_ROWS)
        return [Block(item.values[i : i + CHUNK_ROWS], item.times_s[i : i + CHUNK_ROWS]) for i in places]
    return (item,)


class _LogErrors:
    """Log the first errors of a stream, so that a broken sensor does not fill a disk."""

    def __init__(self) -> None:
        self._count = 0

    def __call__(self, error: TinyLCMError) -> None:
        self._count += 1
        if self._count <= ERRORS_LOGGED_MAX:
            _log.warning("%s", error)
        if self._count == ERRORS_LOGGED_MAX:
            _log.warning("further bad samples of this stream are counted, not logged")


def alarm_payload(alarm: Alarm, manifest: Manifest) -> dict[str, Json]:
    """An alarm as the payload of an `alarm` record."""
    histogram: Json = None
    if alarm.histogram is not None:
        histogram = {
            "reference": list(alarm.histogram.reference),
            "current": list(alarm.histogram.current),
            "edges": list(alarm.histogram.edges),
            "labels": list(alarm.histogram.labels),
        }
    return {
        "model": manifest.name,
        "version": manifest.version,
        "monitor": alarm.monitor,
        "detector": alarm.detector,
        "signal": alarm.signal,
        "statistic": alarm.statistic if math.isfinite(alarm.statistic) else None,
        "threshold": alarm.threshold if math.isfinite(alarm.threshold) else None,
        "window": alarm.window,
        "suspect": alarm.suspect,
        "p_value": alarm.p_value,
        "arl0": alarm.arl0,
        "monitors": alarm.monitors,
        "histogram": histogram,
    }
