"""The hot route: sample -> window -> input tensor -> backend -> prediction, monitors and metrics.

No file, no network, no server is needed. What happens is told to a sink that is passed in; the pipeline knows no
journal and no call here waits for a disk.
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from tinylcm._ext.stats import top

from .backends import Backend, open_backend
from .clock import Clock, SystemClock
from .errors import ConfigError, InputError, ModelError, TinyLCMError
from .files import read_bounded
from .metrics import Metrics
from .monitors import Detector, Monitor, MonitorSet, build_monitors, watch
from .package import PACKAGE_BYTES_MAX, InputSpec, Manifest, Package, WindowSpec
from .types import Alarm, Json, Payload, Prediction, Stream
from .window import Windower, load_window

_log = logging.getLogger("tinylcm")
CHUNK_ROWS: Final = 64
ERRORS_LOGGED_MAX: Final = 5  # of a stream's bad samples; the rest are counted


class Sink(Protocol):
    """Where records go: a journal, or a list in a test. Must not block."""

    def emit(self, stream: Stream, type: str, payload: Payload) -> None:
        """Take a record."""
        ...


class _Engine:
    """A model that is ready to run: what a hot swap exchanges as a whole."""

    def __init__(
        self, manifest: Manifest, backend: Backend, monitors: MonitorSet, metrics: Metrics, ring_samples: int | None
    ) -> None:
        self.manifest = manifest
        self.backend = backend
        self.monitors = monitors
        self.metrics = metrics
        windower = Windower(manifest.input, manifest.window, ring_samples)  # refuses what does not fit
        self.samples = windower.samples
        self.tensor = backend.input.reshape(windower.samples, windower.channels)
        self.missing = 0  # samples that were dropped up to the last window


def _plain_manifest(
    backend: Backend, labels: Sequence[str] | None, window: int | None, hop: int | None, name: str
) -> Manifest:
    count = backend.scores.size
    names = tuple(str(index) for index in range(count)) if labels is None else tuple(labels)
    spec = InputSpec(backend.input_name, tuple(backend.input.shape))
    samples = (spec.shape[1] if len(spec.shape) > 2 else 1) if window is None else window
    if spec.layout(samples) is None:
        raise ConfigError(f"window={samples} does not fit the model's input {list(spec.shape)}")
    step = samples if hop is None else hop
    if step < 1:
        raise ConfigError(f"hop={step}: expected at least 1 sample")
    return Manifest(name, "", "onnx", spec, backend.output_name, names, WindowSpec(samples, step))


def check_labels(manifest: Manifest, backend: Backend) -> None:
    """Refuse labels that do not fit the scores.

    Raises:
        ConfigError: a label occurs twice.
        ModelError: there are more or fewer labels than scores.
    """
    if len(set(manifest.labels)) != len(manifest.labels):
        raise ConfigError(f"a label occurs twice in {list(manifest.labels)}")
    if backend.scores.size != len(manifest.labels):
        raise ModelError(
            f"labels do not match the output: {len(manifest.labels)} labels for {backend.scores.size} scores "
            f"of output {backend.output_name!r}"
        )


class Pipeline:
    """A model with its windowing, monitors and metrics.

    Args:
        model: path of a model file that the application trusts, or a checked `Package`.
        labels: the classes in the order of the scores, by default their numbers. A package brings its own.
        monitors: detectors on the confidence, or `Monitor`s; for a package, beside the manifest's own.
        window, hop: samples a window and between windows, where no package says it. By default the second axis of
            an input of three and more axes, else 1; hop is the window.
        output: the output with the scores, when a plain model has several.
        shape: the input's shape with the batch axis, when a plain model leaves it open.
        sink: takes alarms as records.
        threads: compute threads of the backend.
        ring_samples: capacity of the sample ring; at least a window.
        clock: time, for the metrics' intervals.

    Raises:
        ConfigError: the arguments do not fit together.
        ModelError: the model cannot run here, or does not keep its manifest.
        DeviceError: the file cannot be read.

    Attributes:
        predictions: made since the start, over all packages.
        failures: windows on which the model itself failed.

    `infer`, `stream` and `swap` may be called from several threads: a lock makes each prediction whole. A stream's
    samples belong to one thread.
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
        sink: Sink | None = None,
        threads: int = 1,
        ring_samples: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._sink = sink
        self._threads = threads
        self._ring_samples = ring_samples
        self._extra = [
            monitor if isinstance(monitor, Monitor) else watch("confidence", monitor) for monitor in monitors
        ]
        self._lock = threading.Lock()
        self._session = secrets.token_hex(6)
        self.predictions = 0
        self.failures = 0
        if isinstance(model, Package):
            if labels is not None or window is not None or hop is not None:
                raise ConfigError("a package's manifest says its labels, window and hop; do not give them again")
            self._engine = self._load(model)
        else:
            path = Path(model)
            if path.suffix != ".onnx":
                raise ConfigError(f"{path}: expected a model file *.onnx; load a package (.tlm) with load_package")
            backend = open_backend(
                "onnx", read_bounded(path, PACKAGE_BYTES_MAX), output=output, shape=shape, threads=threads
            )
            manifest = _plain_manifest(backend, labels, window, hop, path.stem)
            check_labels(manifest, backend)
            self._engine = self._assemble(manifest, backend)

    def _load(self, package: Package) -> _Engine:
        manifest = package.manifest
        backend = open_backend(
            manifest.format,
            package.model,
            output=manifest.output,
            shape=manifest.input.shape,
            threads=self._threads,
            embedding=manifest.embedding or None,
        )
        if backend.input_name != manifest.input.name:
            raise ModelError(f"the model's input is {backend.input_name!r}, the manifest says {manifest.input.name!r}")
        check_labels(manifest, backend)
        return self._assemble(manifest, backend)

    def _assemble(self, manifest: Manifest, backend: Backend) -> _Engine:
        monitors = MonitorSet(manifest, [*build_monitors(manifest), *self._extra])
        return _Engine(manifest, backend, monitors, Metrics(manifest.labels, self._clock), self._ring_samples)

    @property
    def manifest(self) -> Manifest:
        """What the model in use says of itself."""
        return self._engine.manifest

    @property
    def metrics(self) -> Metrics:
        """The counters of the model in use."""
        return self._engine.metrics

    def swap(self, package: Package) -> None:
        """Replace the model between two predictions; what streams hold of a window begins anew.

        Raises:
            ModelError: the new package does not run; the old model stays.
        """
        engine = self._load(package)
        with self._lock:
            self._engine = engine

    def infer(self, x: object) -> Prediction:
        """Predict one window, given without the batch axis as nested lists or an array.

        Raises:
            InputError: wrong shape, dtype, or a value that is NaN or infinite; nothing was changed.
            ModelError: the model gave no finite scores.
        """
        start = time.perf_counter_ns()
        with self._lock:
            engine = self._engine
            try:
                load_window(engine.manifest.input, x, engine.backend.input)
            except InputError:
                engine.metrics.errors += 1
                raise
            return self._predict(engine, start, -1)

    def _predict(self, engine: _Engine, start_ns: int, last_sample: int) -> Prediction:
        backend, manifest = engine.backend, engine.manifest
        try:
            backend.run()
            best = top(backend.scores)
            if best < 0:
                raise ModelError(f"output {backend.output_name!r} of model {manifest.name} holds NaN or infinity")
        except ModelError:
            engine.metrics.errors += 1
            self.failures += 1
            raise
        scores = tuple(backend.scores.tolist())
        now_ns = time.perf_counter_ns()
        missing = engine.metrics.dropped_samples
        alarms = engine.monitors.update(
            engine.tensor,
            best,
            scores,
            (now_ns - start_ns) / 1000,
            max(0, missing - engine.missing),  # the metrics begin anew with every summary
            now_ns,
            backend.embedding,
        )
        engine.missing = missing
        self.predictions += 1
        latency_us = (time.perf_counter_ns() - start_ns) / 1000
        engine.metrics.update(latency_us, scores[best], best)
        if alarms and self._sink is not None:
            for alarm in alarms:
                self._sink.emit("events", "alarm", alarm_payload(alarm, manifest))
        return Prediction(
            id=f"{self._session}-{self.predictions}",
            label=manifest.labels[best],
            confidence=scores[best],
            scores=scores,
            latency_us=latency_us,
            drift=alarms,
            model=manifest.name,
            version=manifest.version,
            first_sample=-1 if last_sample < 0 else last_sample - engine.samples + 1,
            last_sample=last_sample,
        )

    def stream(
        self, samples: Iterable[object], *, on_error: Callable[[TinyLCMError], object] | None = None
    ) -> Iterator[Prediction]:
        """Predict every window of a stream.

        Args:
            samples: rows (one sample each) or two-dimensional blocks of rows, in any mix.
            on_error: called with each bad sample's error; by default the first few are logged. The stream goes on:
                a bad sample is dropped and counted, and the next window begins after it.

        Raises:
            ModelError: the model failed on a window and `on_error` was not given.
        """
        report = on_error or _LogErrors()
        engine = self._engine
        # Each stream has a window of its own: two streams of one pipeline must not mix their samples.
        windower = Windower(engine.manifest.input, engine.manifest.window, self._ring_samples)
        for item in _chunks(samples):
            current = self._engine
            if current is not engine:
                if (current.manifest.input, current.manifest.window) != (engine.manifest.input, engine.manifest.window):
                    windower = Windower(current.manifest.input, current.manifest.window, self._ring_samples)
                engine = current
            for error in windower.feed(item):
                if error is not None:
                    engine.metrics.dropped_samples += 1
                    report(error)
                    continue
                start = time.perf_counter_ns()
                try:
                    with self._lock:
                        windower.ring.copy_window(engine.tensor)
                        prediction = self._predict(engine, start, windower.ring.total - 1)
                except ModelError as failure:
                    if on_error is None:
                        raise
                    on_error(failure)
                    continue
                yield prediction

    def monitors_state(self) -> bytes:
        """What the monitors have seen, for `restore_monitors` after a restart."""
        with self._lock:
            return self._engine.monitors.to_state()

    def restore_monitors(self, state: bytes) -> list[str]:
        """Let the monitors go on where they were, bit for bit; the names of those that begin anew.

        Raises:
            InputError: the state is damaged; nothing was changed.
        """
        with self._lock:
            return self._engine.monitors.restore(state)

    def take_summary(self) -> dict[str, Json] | None:
        """The metrics since the last call as a `summary` record's payload; None when nothing happened."""
        with self._lock:
            engine = self._engine
            snapshot = engine.metrics.snapshot()
            if not (snapshot["windows"] or snapshot["errors"] or snapshot["dropped_samples"]):
                return None
            engine.metrics.clear()
        return {"model": engine.manifest.name, "version": engine.manifest.version, **snapshot}


def _chunks(samples: Iterable[object]) -> Iterator[object]:
    """Cut large blocks, so that a swap takes effect inside of them."""
    for item in samples:
        if isinstance(item, np.ndarray) and item.ndim == 2 and len(item) > CHUNK_ROWS:
            for start in range(0, len(item), CHUNK_ROWS):
                yield item[start : start + CHUNK_ROWS]
        else:
            yield item


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
