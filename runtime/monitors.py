"""Monitors join a detector to a signal of the model: what goes in, what comes out, how sure it is, how it runs.

Any detector of `tinylcm.drift` may watch any signal that it fits: a detector of numbers a signal of numbers, or each
channel or feature of a signal of rows; a detector of rows a signal of rows. Monitors are declared in the package's
manifest, with reference statistics, or joined in Python with `watch`.

A set of monitors must not multiply false alarms: each of m gets m times the wanted mean time between them
(`tinylcm.calibration` does that), and those that compare p-values share one level by Holm's procedure.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol, runtime_checkable

import msgpack
import numpy as np
from numpy.typing import NDArray
from tinylcm._ext.engine import Member, Watch
from tinylcm._ext.stats import window_moments
from tinylcm._ext.vectors import Vector

from . import drift
from .calibration import holm
from .drift import PSI, BinnedKS, CategoricalPSI, ChiSquare
from .errors import ConfigError, InputError, ModelError, TinyLCMError
from .manifest import FeatureReference, Manifest, MonitorSpec
from .types import Alarm, HistogramPair

NUMBERS: Final = (
    "confidence", "entropy", "margin", "latency", "missing", "stuck", "saturated", "rate", "distance",
)  # fmt: skip
ROWS: Final = ("input", "features", "embedding")
SIGNALS: Final = (*ROWS, *NUMBERS, "prediction")
REFERENCE_POINTS: Final = 512  # drawn from a reference histogram for detectors that compare values
EVIDENCE_VALUES: Final = 200  # of a learned reference, and in the histogram beside it
BUDGET: Final = "budget"  # the monitor of what a prediction may take
ERRORS_LOGGED_MAX: Final = 5  # of monitors that an application wrote; the rest are counted
P_REARM: Final = 0.5  # exponent: a monitor of p-values is armed again above sqrt(alpha)

_log = logging.getLogger("tinylcm")
_CATEGORICAL: Final = {"PSI": "CategoricalPSI", "CategoricalPSI": "CategoricalPSI", "ChiSquare": "ChiSquare"}
_WITH_P: Final = ("IncrementalKS", "ChiSquare", "HotellingT2")
# What a manifest may set of each detector; the reference comes from the manifest's own tables. A `!` must be given:
# where a default would be right for nobody's data, there is none.
_LEARNED: Final = ("warm_up", "policy")
PARAMETERS: Final[dict[str, tuple[str, ...]]] = {
    "ADWIN": ("delta", "clock", "max_buckets", "min_window_length", "grace_period"),
    "PageHinkley": ("min_instances", "delta", "threshold", "alpha", "mode"),
    "KSWIN": ("alpha", "window_size", "stat_size", "seed"),
    "DDM": ("warm_start", "warning_threshold", "drift_threshold"),
    "EDDM": ("warm_start", "alpha", "beta"),
    "HDDMA": ("drift_confidence", "warning_confidence", "two_sided_test"),
    "HDDMW": ("drift_confidence", "warning_confidence", "lambda_val", "two_sided_test"),
    "FHDDM": ("sliding_window_size", "confidence_level", "short_window_size"),
    "CUSUM": ("k", "threshold", "clip", *_LEARNED),
    "EWMAChart": ("lambda_val", "threshold", "clip", *_LEARNED),
    "Limit": ("threshold!", "patience", "policy"),
    "PSI": ("threshold!", "window", "smoothing", "bins", *_LEARNED),
    "JensenShannon": ("threshold!", "window", "smoothing", "bins", *_LEARNED),
    "IncrementalKS": ("threshold!", "window", *_LEARNED),
    "Wasserstein1": ("threshold!", "window", *_LEARNED),
    "CategoricalPSI": ("threshold!", "window", "smoothing", *_LEARNED),
    "ChiSquare": ("threshold!", "window", *_LEARNED),
    "Mahalanobis": ("threshold!", "window", "shrinkage", "policy"),
    "HotellingT2": ("threshold!", "window", "shrinkage", "policy"),
    "KNNDistance": ("k", "threshold", "delta", "clip", "policy"),
    "MMD": ("threshold!", "window", "components", "bandwidth", "seed", "policy"),
    "BinnedKS": ("threshold!", "window", "policy"),
    "FeatureDrift": (
        "level", "spread", "shape", "joint", "k", "clip", "window", "shrinkage", "threshold", "policy",
    ),
}  # fmt: skip
_CLASSES: Final[dict[str, Any]] = {name: getattr(drift, name) for name in PARAMETERS}
_TEXT: Final = {"policy", "mode"}
_WHOLE: Final = {
    "clock", "max_buckets", "min_window_length", "grace_period", "min_instances", "window", "warm_up", "bins",
    "window_size", "stat_size", "seed", "warm_start", "sliding_window_size", "short_window_size", "components",
    "patience",
}  # fmt: skip


@runtime_checkable
class Detector(Protocol):
    """What a monitor asks of a detector; those of `tinylcm.drift` and your own."""

    @property
    def drift_detected(self) -> bool:
        """Whether the last value raised the alarm."""
        ...

    @property
    def statistic(self) -> float:
        """The value that is compared."""
        ...

    @property
    def threshold(self) -> float:
        """The limit that it is compared with."""
        ...

    @property
    def suspect(self) -> int:
        """Index of the first value that belongs to the change."""
        ...


class Inputs:
    """What one window offers to its monitors; what costs something is computed only when a monitor asks for it.

    Attributes:
        window: float32 `[samples, channels]`, valid during the call.
        hop: how many of its rows, the last ones, are new.
        scores: the model's, one a label.
        label: index of the prediction.
        confidence: its score.
        latency_us: time of this prediction up to here, in microseconds.
        missing: samples that were dropped since the window before.
        at_ns: when, on a clock that never jumps.
        embedding: float32 `[d]`, the model's second output; None when the manifest names none.
        index: which window this is, counted from 0.
        distance: mean distance to the neighbours of a kNN; NaN for other models.
    """

    __slots__ = (
        "_before_ns",
        "_features",
        "_fresh",
        "_moments",
        "at_ns",
        "confidence",
        "distance",
        "embedding",
        "hop",
        "index",
        "label",
        "latency_us",
        "missing",
        "scores",
        "window",
    )  # fmt: skip

    def __init__(self, channels: int, hop: int) -> None:
        self.window: NDArray[np.float32] = np.zeros((1, channels), dtype=np.float32)
        self.hop = hop
        self.scores: Sequence[float] = ()
        self.label = 0
        self.confidence = 0.0
        self.latency_us = math.nan
        self.missing = 0
        self.at_ns = self._before_ns = 0
        self.embedding: NDArray[np.float32] | None = None
        self.index = -1
        self.distance = math.nan
        self._features = np.zeros(2 * channels)
        self._moments = (self._features[:channels], self._features[channels:])
        self._fresh = False

    def renew(
        self,
        window: NDArray[np.float32],
        label: int,
        scores: Sequence[float],
        latency_us: float,
        missing: int,
        before_ns: int,
        at_ns: int,
        embedding: NDArray[np.float32] | None,
        index: int,
        distance: float = math.nan,
    ) -> None:
        """Begin the next window."""
        self.window, self.label, self.scores, self.confidence = window, label, scores, scores[label]
        self.latency_us, self.missing, self.embedding = latency_us, missing, embedding
        self._before_ns, self.at_ns, self.index, self.distance = before_ns, at_ns, index, distance
        self._fresh = False

    def features_array(self) -> NDArray[np.float64]:
        """Where `features` are kept."""
        return self._features

    def features(self) -> NDArray[np.float64]:
        """Means, then standard deviations of the channels, float64 `[2 * channels]`."""
        if not self._fresh:
            window_moments(self.window, *self._moments)
            self._fresh = True
        return self._features

    def new_rows(self) -> NDArray[np.float32]:
        """The samples that the window before did not have, all of them for the first window."""
        return self.window if self.index == 0 else self.window[-self.hop :]

    def rate(self) -> float:
        """Seconds a sample since the window before; NaN for the first."""
        return (self.at_ns - self._before_ns) / 1e9 / self.hop if self.index and self._before_ns else math.nan


def _entropy(inputs: Inputs) -> float:
    return -sum(p * math.log2(p) for p in inputs.scores if p > 0)


def _margin(inputs: Inputs) -> float:
    best = inputs.confidence
    return best - max((p for i, p in enumerate(inputs.scores) if i != inputs.label), default=0.0)


def _stuck(inputs: Inputs) -> float:
    window = inputs.window
    return float((window[1:] == window[:-1]).mean(axis=0).max()) if len(window) > 1 else 0.0


_NUMBER: Final[dict[str, Callable[[Inputs], float]]] = {
    "confidence": lambda inputs: inputs.confidence,
    "entropy": _entropy,
    "margin": _margin,
    "latency": lambda inputs: inputs.latency_us,
    "missing": lambda inputs: inputs.missing / (inputs.missing + inputs.hop),
    "stuck": _stuck,
    "rate": Inputs.rate,
    "distance": lambda inputs: inputs.distance,
    "prediction": lambda inputs: float(inputs.label),
}


def _rows(signal: str, inputs: Inputs) -> NDArray[Any]:
    if signal == "input":
        return inputs.new_rows()
    if signal == "features":
        return inputs.features()
    if inputs.embedding is None:
        raise ModelError("a monitor watches the embedding, but the manifest names no `embedding` output of the model")
    return inputs.embedding


class Monitor:
    """A detector joined to a signal: `update` takes what a window gives and says whether it alarms.

    Made by `watch`, or from a manifest by `build_monitors`.
    """

    p_value: float = math.nan  # of monitors that the set judges together
    alpha: float = 0.0
    arl0: float | None = None

    def __init__(self, name: str, signal: str) -> None:
        if signal not in SIGNALS:
            raise ConfigError(f"monitor {name!r}: signal {signal!r} is not known; known: {', '.join(SIGNALS)}")
        self.name = name
        self.signal = signal

    def update(self, inputs: Inputs) -> Alarm | None:
        """Take one window; an alarm when this one raises it."""
        raise ConfigError(f"monitor {self.name!r} of class {type(self).__name__} has no update")

    def alarm(self, inputs: Inputs) -> Alarm:
        """The present state as an alarm."""
        raise ConfigError(f"monitor {self.name!r} of class {type(self).__name__} raises no alarms")

    def states(self) -> list[bytes]:
        """The detectors' states, for a restart; empty when they have none."""
        return []

    def restore(self, states: Sequence[bytes]) -> bool:
        """Go on from states; False, and nothing changed, when they are not of these detectors and parameters."""
        return False

    def _alarm(
        self, inputs: Inputs, detector: Any, signal: str, values_back: int, histogram: HistogramPair | None
    ) -> Alarm:
        """An alarm of a detector; `values_back` of its values make a window."""
        index = getattr(detector, "index", inputs.index + 1)
        back = math.ceil(max(index - detector.suspect, 1) / values_back)
        return Alarm(
            monitor=self.name,
            detector="PSI" if isinstance(detector, CategoricalPSI) else type(detector).__name__,
            signal=signal,
            statistic=detector.statistic,
            threshold=detector.threshold,
            window=inputs.index,
            suspect=max(0, inputs.index + 1 - back),
            histogram=histogram,
            p_value=getattr(detector, "p_value", None),
        )


def _histogram_of(detector: object) -> HistogramPair | None:
    histogram = getattr(detector, "histogram", None)
    return histogram if isinstance(histogram, HistogramPair) else None


def _restored(detectors: Sequence[Any], states: Sequence[bytes]) -> list[Any] | None:
    """Detectors that go on from states; None when one is damaged, or was made with other parameters."""
    if len(detectors) != len(states):
        return None
    result = []
    for detector, state in zip(detectors, states, strict=True):
        try:
            # Class, version and parameters: those of the manifest decide, not those of an old state.
            if msgpack.unpackb(state)[:3] != msgpack.unpackb(detector.to_state())[:3]:
                return None
            result.append(type(detector).from_state(state))
        except (InputError, AttributeError, TypeError, ValueError, msgpack.UnpackException):
            return None
    return result


def _evidence_for(detector: object, reference: FeatureReference | None) -> PSI | None:
    """What shows the distribution for a detector that keeps none: histograms alone, whose index decides nothing."""
    if hasattr(detector, "histogram"):
        return None
    if reference is None:
        return PSI(threshold=1e300, window=EVIDENCE_VALUES, warm_up=EVIDENCE_VALUES)
    return PSI(reference.edges, reference.counts, threshold=1e300, window=EVIDENCE_VALUES)


class ScalarMonitor(Monitor):
    """A detector of numbers on a signal of one number a window."""

    def __init__(
        self,
        name: str,
        signal: str,
        detector: Any,
        value: Callable[[Inputs], float] | None = None,
        reference: FeatureReference | None = None,
    ) -> None:
        super().__init__(name, signal)
        self.detector = detector
        self.evidence = _evidence_for(detector, reference)
        self.plain = value is None  # the signal is one that the compiled loop knows
        self._value = value or _NUMBER[signal]

    def update(self, inputs: Inputs) -> Alarm | None:
        """Take the window's value."""
        value = self._value(inputs)
        if self.evidence is not None:
            self.evidence.update(value)
        return self.alarm(inputs) if self.detector.update(value) else None

    def alarm(self, inputs: Inputs) -> Alarm:
        """The detector's state as an alarm."""
        return self._alarm(inputs, self.detector, self.signal, 1, _histogram_of(self.evidence or self.detector))

    def states(self) -> list[bytes]:
        """The states of the detector and the evidence."""
        parts = [self.detector, self.evidence]
        return [part.to_state() for part in parts if hasattr(part, "to_state")]

    def restore(self, states: Sequence[bytes]) -> bool:
        """Go on from the states of the detector and the evidence."""
        restored = _restored([part for part in (self.detector, self.evidence) if part is not None], states)
        if restored is not None:
            self.detector, self.evidence = (*restored, None)[:2]
        return restored is not None


class ChannelMonitor(Monitor):
    """A detector of numbers for each channel of the raw input, each feature or each value of the embedding.

    Its alarm is that of the channel whose statistic is farthest above its threshold.
    """

    def __init__(
        self,
        name: str,
        signal: str,
        detectors: Sequence[Any],
        channels: Sequence[str],
        references: Sequence[FeatureReference] = (),
    ) -> None:
        super().__init__(name, signal)
        self.detectors = tuple(detectors)
        known: Sequence[FeatureReference | None] = references or [None] * len(self.detectors)
        self._evidence = [_evidence_for(one, reference) for one, reference in zip(self.detectors, known, strict=True)]
        self._channels = tuple(channels)
        self._worst = 0
        self._per_window = 1

    def update(self, inputs: Inputs) -> Alarm | None:
        """Take the window's rows."""
        rows = _rows(self.signal, inputs)
        columns = (rows[None] if rows.ndim == 1 else rows).T
        if len(columns) != len(self.detectors):
            raise ModelError(
                f"monitor {self.name!r} watches {len(self.detectors)} values, the model has {len(columns)}"
            )
        self._per_window = inputs.hop if self.signal == "input" else 1
        greatest, found = 0.0, None
        for index, (detector, column) in enumerate(zip(self.detectors, columns, strict=True)):
            if (evidence := self._evidence[index]) is not None:
                evidence.update_many(column)
            for value in column.tolist():
                # The evidence is taken at once: the next value may begin a new test.
                if detector.update(value) and (ratio := detector.statistic / detector.threshold) >= greatest:
                    greatest, self._worst = ratio, index
                    found = self.alarm(inputs)
        return found

    def alarm(self, inputs: Inputs) -> Alarm:
        """The worst channel's state as an alarm."""
        detector, evidence = self.detectors[self._worst], self._evidence[self._worst]
        shown = _histogram_of(evidence or detector)
        return self._alarm(inputs, detector, self._channels[self._worst], self._per_window, shown)

    def _parts(self) -> list[Any]:
        return [*self.detectors, *(evidence for evidence in self._evidence if evidence is not None)]

    def states(self) -> list[bytes]:
        """The states of the detectors and the evidence."""
        return [part.to_state() for part in self._parts() if hasattr(part, "to_state")]

    def restore(self, states: Sequence[bytes]) -> bool:
        """Go on from these."""
        restored = _restored(self._parts(), states)
        if restored is None:
            return False
        count = len(self.detectors)
        self.detectors, evidence = tuple(restored[:count]), iter(restored[count:])
        self._evidence = [None if one is None else next(evidence) for one in self._evidence]
        return True


class RowMonitor(Monitor):
    """A detector of rows on the raw input, the features or the embedding; the worst channel is named and shown."""

    def __init__(
        self,
        name: str,
        signal: str,
        detector: Any,
        references: Sequence[FeatureReference] = (),
        names: Sequence[str] = (),
    ) -> None:
        super().__init__(name, signal)
        self.detector = detector
        self._names = tuple(names) or tuple(reference.name for reference in references)
        # One call a window: it looks once after all of its rows, or there is but one row.
        self.whole = isinstance(detector, BinnedKS) or (signal != "input" and isinstance(detector, drift.Detector))
        self.evidence = None
        if references and not hasattr(detector, "histogram"):
            self.evidence = BinnedKS(
                [reference.edges for reference in references],
                [reference.counts for reference in references],
                threshold=0.999,  # it keeps the histograms; the detector decides
                window=getattr(detector, "window", 100),
            )

    def update(self, inputs: Inputs) -> Alarm | None:
        """Take the window's rows."""
        rows = _rows(self.signal, inputs)
        if self.evidence is not None:
            self.evidence.update(rows)
        if self.whole or rows.ndim == 1:
            return self.alarm(inputs) if self.detector.update(rows) else None
        found = None
        for row in rows:
            if self.detector.update(row) and found is None:
                found = self.alarm(inputs)  # at once: the next row may begin a new test
        return found

    def alarm(self, inputs: Inputs) -> Alarm:
        """The detector's state as an alarm."""
        worst = getattr(self.detector, "worst", None)
        signal, histogram = self.signal, None
        if worst is not None:
            signal = self._names[worst] if worst < len(self._names) else f"{self.signal}[{worst}]"
            shown = self.detector if hasattr(self.detector, "histogram") else self.evidence
            histogram = shown.histogram(worst) if shown is not None else None
        member = getattr(self.detector, "member", None)
        return self._alarm(
            inputs,
            self.detector,
            f"{signal} {member}" if member else signal,
            inputs.hop if self.signal == "input" else 1,
            histogram,
        )

    def states(self) -> list[bytes]:
        """The detector's state, and that of the evidence."""
        parts = [self.detector, self.evidence]
        return [part.to_state() for part in parts if hasattr(part, "to_state")]

    def restore(self, states: Sequence[bytes]) -> bool:
        """Go on from the states of the detector and the evidence."""
        parts = [part for part in (self.detector, self.evidence) if part is not None]
        restored = _restored(parts, states)
        if restored is not None:
            self.detector, self.evidence = (*restored, None)[:2]
        return restored is not None


class PValueMonitor(Monitor):
    """A monitor whose p-value the set judges together with the others', by Holm's procedure.

    It alarms once and is armed again when its p-value has risen above the square root of `alpha`.
    """

    def __init__(self, inner: ScalarMonitor | RowMonitor, alpha: float) -> None:
        super().__init__(inner.name, inner.signal)
        if not 0 < alpha < 1:
            raise ConfigError(f"monitor {inner.name!r}: alpha is {alpha}, expected 0 < alpha < 1")
        self.inner = inner
        self.alpha = alpha
        self._latched = False

    def update(self, inputs: Inputs) -> Alarm | None:
        """Take the window; the set decides."""
        self.inner.update(inputs)
        p_value = self.inner.detector.p_value
        self.p_value = math.nan if p_value is None else p_value
        if self._latched and self.p_value > self.alpha**P_REARM:
            self._latched = False
        return None

    def fall(self, inputs: Inputs) -> Alarm | None:
        """Holm's procedure has rejected it: an alarm, if it is armed."""
        if self._latched:
            return None
        self._latched = True
        return self.inner.alarm(inputs)

    def states(self) -> list[bytes]:
        """Whether it is latched, and the detector's states."""
        return [b"latched" if self._latched else b"armed", *self.inner.states()]

    def restore(self, states: Sequence[bytes]) -> bool:
        """Go on from these."""
        if not states or not self.inner.restore(states[1:]):
            return False
        self._latched = states[0] == b"latched"
        return True


class MonitorSet:
    """All monitors of one model: one call a window.

    Args:
        manifest: for the number of channels and the hop.
        monitors: what to ask, in this order.

    Attributes:
        arl0: mean number of windows between false alarms of the whole set, as its monitors were calibrated: rates add
            up, so it is at least 1 / sum(1 / arl0). None when one of them does not say.
    """

    def __init__(self, manifest: Manifest, monitors: Sequence[Monitor]) -> None:
        self.monitors = tuple(monitors)
        self._version = f"{manifest.name} {manifest.version}"
        self._p_monitors = tuple(monitor for monitor in self.monitors if isinstance(monitor, PValueMonitor))
        self._alpha = min((monitor.alpha for monitor in self._p_monitors), default=0.0)
        self._inputs = Inputs(manifest.layout[1], min(manifest.window.hop, manifest.window.samples))
        self._errors = 0
        self.watch = self._join()
        judged = [monitor for monitor in self.monitors if monitor.name != BUDGET]  # a budget is no test
        self._count = len(judged)
        times = [monitor.arl0 for monitor in judged]
        stated = [time for time in times if time is not None]
        self.arl0 = 1 / sum(1 / time for time in stated) if stated and len(stated) == len(times) else None

    def _join(self) -> Watch:
        """The compiled loop over the monitors as they are now."""
        inputs = self._inputs
        watch = Watch(
            [_member(monitor) for monitor in self.monitors],
            inputs,
            self._finish,
            bool(self._p_monitors),
            self._report,
            len(inputs.features_array()) // 2,
            inputs.hop,
        )
        watch.index = inputs.index
        return watch

    def _report(self, monitor: Monitor, error: Exception) -> None:
        """An application's own monitor has raised: say it a few times, and go on."""
        if isinstance(error, TinyLCMError):
            raise error
        self._errors += 1
        if self._errors <= ERRORS_LOGGED_MAX:
            _log.error("monitor %r failed: %s: %s", monitor.name, type(error).__name__, error)

    def update(
        self,
        window: NDArray[np.float32],
        label: int,
        scores: Sequence[float],
        latency_us: float = math.nan,
        missing: int = 0,
        at_ns: int = 0,
        embedding: NDArray[np.float32] | None = None,
    ) -> tuple[Alarm, ...]:
        """Take a window, `[samples, channels]`, with its prediction; the alarms that it raises."""
        if not self.monitors:
            return ()
        return self.watch.update(window, label, scores, latency_us, missing, at_ns, embedding)

    def _finish(self, alarms: list[Alarm]) -> tuple[Alarm, ...]:
        """Judge those with p-values together, and say what the set as a whole promises."""
        if self._p_monitors:
            fallen = holm([monitor.p_value for monitor in self._p_monitors], self._alpha)
            for monitor, falls in zip(self._p_monitors, fallen, strict=True):
                if falls and (alarm := monitor.fall(self._inputs)) is not None:
                    alarms.append(alarm)
        return tuple(replace(alarm, arl0=self.arl0, monitors=self._count) for alarm in alarms)

    def to_state(self) -> bytes:
        """All monitors' states, for `restore` after a restart."""
        states = {key: monitor.states() for key, monitor in self._keyed()}
        packed: bytes = msgpack.packb([1, self._version, self.watch.index, states])
        return packed

    def restore(self, state: bytes) -> list[str]:
        """Go on from a state, bit for bit.

        Returns:
            Names of the monitors that begin anew because the state does not fit them: their parameters have changed.

        Raises:
            InputError: the state is damaged; nothing was changed.
        """
        try:
            layout, version, index, states = msgpack.unpackb(state)
            if layout != 1 or type(index) is not int or not isinstance(states, dict) or index < -1:
                raise ValueError("unknown layout")
        except (TypeError, ValueError, msgpack.UnpackException) as error:
            raise InputError(f"the monitors' state is damaged ({error}); they begin anew") from error
        if version != self._version:
            return [monitor.name for monitor in self.monitors]  # another model's scores are another signal
        self._inputs.index = index
        anew = [monitor.name for key, monitor in self._keyed() if not monitor.restore(states.get(key, ()))]
        self.watch = self._join()
        return anew

    def _keyed(self) -> list[tuple[str, Monitor]]:
        """Monitors under their names, numbered where an application has joined several of one name."""
        seen: dict[str, int] = {}
        result = []
        for monitor in self.monitors:
            seen[monitor.name] = seen.get(monitor.name, 0) + 1
            result.append((f"{monitor.name}#{seen[monitor.name]}", monitor))
        return result


def _member(monitor: Monitor) -> Member:
    """A monitor as the compiled loop takes it; what it does not know is called in Python."""
    if type(monitor) is ScalarMonitor and monitor.plain and type(monitor.detector).update is drift.Detector.update:
        return Member(monitor, monitor.signal, monitor.detector, monitor.evidence)
    if type(monitor) is RowMonitor and monitor.whole:
        return Member(monitor, monitor.signal, monitor.detector, monitor.evidence)
    return Member(monitor)


def watch(
    signal: str, detector: Any, name: str = "", *, arl0: float | None = None, alpha: float | None = None
) -> Monitor:
    """Join a detector to a signal.

    Args:
        signal: one of `SIGNALS`. `input`, `features` and `embedding` are rows: they take a detector of rows, or a
            list of detectors of numbers, one for each channel or feature. The others are one number a window.
        detector: an object with `update(value) -> bool`, or a list of them.
        name: what alarms call it; the signal when empty.
        arl0: mean number of windows between false alarms that it was calibrated for.
        alpha: for a detector with p-values: let the set compare these by Holm's procedure at this level, instead of
            the statistic with the threshold.

    Raises:
        ConfigError: the detector does not fit the signal.
    """
    monitor = _join(name or signal, signal, detector, alpha)
    monitor.arl0 = arl0
    return monitor


def _join(name: str, signal: str, detector: Any, alpha: float | None) -> Monitor:
    if signal not in SIGNALS:
        raise ConfigError(f"monitor {name!r}: signal {signal!r} is not known; known: {', '.join(SIGNALS)}")
    if isinstance(detector, list | tuple):
        if signal not in ROWS or not detector or alpha is not None:
            raise ConfigError(f"monitor {name!r}: a list of detectors watches the input, the features or the embedding")
        return ChannelMonitor(name, signal, detector, [f"{signal}[{i}]" for i in range(len(detector))])
    kind = type(detector).__name__
    if not callable(getattr(detector, "update", None)):
        raise ConfigError(f"{kind} is no detector: it has no update(x)")
    inner: ScalarMonitor | RowMonitor
    if isinstance(detector, Vector):
        if signal not in ROWS:
            raise ConfigError(f"monitor {name!r}: a {kind} takes rows: {', '.join(ROWS)}, not {signal!r}")
        inner = RowMonitor(name, signal, detector)
    else:
        if signal in ROWS:
            raise ConfigError(f"monitor {name!r}: {signal!r} is rows; give a list with one {kind} for each channel")
        if isinstance(detector, CategoricalPSI | ChiSquare) != (signal == "prediction"):
            raise ConfigError(f"monitor {name!r}: a {kind} does not fit the signal {signal!r}")
        if signal == "saturated":
            raise ConfigError(f"monitor {name!r}: 'saturated' needs the sensor's range: declare it in a manifest")
        inner = ScalarMonitor(name, signal, detector)
    if alpha is None:
        return inner
    if kind not in _WITH_P:
        raise ConfigError(f"monitor {name!r}: a {kind} has no p-value to share by Holm's procedure")
    return PValueMonitor(inner, alpha)


# from a manifest ------------------------------------------------------------------------------------------


def _references(spec: MonitorSpec, manifest: Manifest, signal: str, count: int) -> tuple[FeatureReference, ...]:
    references = manifest.reference.get(signal, ())
    if len(references) != count:
        raise ModelError(
            f"monitor {spec.name!r}: the manifest has reference statistics of {len(references)} {signal} signals, "
            f"expected {count}"
        )
    return references


def _expand(reference: FeatureReference) -> NDArray[np.float64]:
    """Values whose histogram is the reference's: evenly spread within each bin."""
    shares = np.cumsum(reference.counts) / sum(reference.counts)
    places = (np.arange(REFERENCE_POINTS) + 0.5) / REFERENCE_POINTS
    return np.interp(places, np.concatenate([[0.0], shares]), reference.edges)


def _given(kind: str, references: Sequence[FeatureReference]) -> list[dict[str, Any]]:
    """What the manifest's statistics give to a detector of numbers for each signal."""
    match kind:
        case "CUSUM" | "EWMAChart":
            return [{"mean": r.mean, "std": r.std} for r in references]
        case "PSI" | "JensenShannon":
            return [{"edges": r.edges, "counts": r.counts} for r in references]
        case "IncrementalKS" | "Wasserstein1":
            return [{"reference": _expand(r)} for r in references]
    return [{} for _ in references]


def _checked(spec: MonitorSpec, kind: str, extra: Iterable[str] = ()) -> dict[str, Any]:
    """A monitor's own parameters, of the right kinds."""
    known = {name.rstrip("!") for name in PARAMETERS[kind]}
    shared = {"arl0", *extra} | ({"alpha"} if kind in _WITH_P else set())
    result: dict[str, Any] = {}
    for key, value in spec.params.items():
        if key not in known | shared:
            raise ModelError(
                f"monitor {spec.name!r}: {kind} has no parameter {key!r}; it has {', '.join(sorted(known | shared))}"
            )
        if isinstance(value, str) != (key in _TEXT):
            wanted = "a text" if key in _TEXT else "a number"
            raise ModelError(f"monitor {spec.name!r}: {key} is {value!r}, expected {wanted}")
        if key not in shared:
            whole = key in _WHOLE or (key == "k" and kind == "KNNDistance")
            result[key] = int(value) if whole and float(value).is_integer() else value
    if "alpha" in spec.params and kind in _WITH_P:
        if "threshold" in spec.params:
            raise ModelError(f"monitor {spec.name!r}: give a threshold or an alpha, not both")
        result["threshold"] = 0.999 if kind == "IncrementalKS" else 1e300  # the p-value decides
    missing = [name[:-1] for name in PARAMETERS[kind] if name.endswith("!") and name[:-1] not in result]
    if missing:
        raise ModelError(f"monitor {spec.name!r}: {kind} needs {', '.join(missing)}")
    return result


def _with_alpha(spec: MonitorSpec, inner: ScalarMonitor | RowMonitor) -> Monitor:
    shared = "alpha" in spec.params and type(inner.detector).__name__ in _WITH_P
    return PValueMonitor(inner, float(spec.params["alpha"])) if shared else inner


def _names_of(signal: str, manifest: Manifest, count: int) -> list[str]:
    channels = manifest.input.channels
    if signal == "input" and len(channels) == count:
        return list(channels)
    if signal == "features" and 2 * len(channels) == count:
        return [f"{kind} {channel}" for kind in ("mean", "std") for channel in channels]
    return [f"{signal}[{i}]" for i in range(count)]


def _row_detector(spec: MonitorSpec, kind: str, manifest: Manifest, count: int | None) -> Monitor:
    signal = spec.signal
    names = _names_of(signal, manifest, count or 0)
    if kind in ("KNNDistance", "MMD"):
        points = manifest.points.get(signal)
        if points is None:
            raise ModelError(
                f"monitor {spec.name!r}: {kind} needs the reference rows `points.{signal}` in the manifest"
            )
        if count is not None and len(points[0]) != count:
            raise ModelError(f"monitor {spec.name!r}: points.{signal} has rows of {len(points[0])}, expected {count}")
        detector = _CLASSES[kind](np.array(points), **_checked(spec, kind))
        return RowMonitor(spec.name, signal, detector, names=names)
    references = _references(
        spec, manifest, signal, len(manifest.reference.get(signal, ())) if count is None else count
    )
    if not references:
        raise ModelError(f"monitor {spec.name!r}: {kind} needs reference statistics of the {signal}")
    given: dict[str, Any] = {}
    if kind in ("BinnedKS", "FeatureDrift"):
        given = {"edges": [r.edges for r in references], "counts": [r.counts for r in references]}
    if kind in ("Mahalanobis", "HotellingT2", "FeatureDrift"):
        given |= {"mean": [r.mean for r in references], "std": [r.std for r in references]}
        given["correlation"] = manifest.correlation.get(signal)
    if kind == "FeatureDrift":
        given["moments"] = manifest.moments.get(signal)
    detector = _CLASSES[kind](**given, **_checked(spec, kind))
    return _with_alpha(spec, RowMonitor(spec.name, signal, detector, references))


def _saturation(spec: MonitorSpec, manifest: Manifest, channels: int) -> Callable[[Inputs], float]:
    """Share of a window's values at the ends of the sensor's range, of the worst channel."""
    low, high = spec.params.get("low"), spec.params.get("high")
    if low is None or high is None:
        references = _references(spec, manifest, "input", channels)
        lows = np.array([r.edges[0] for r in references], dtype=np.float32)
        highs = np.array([r.edges[-1] for r in references], dtype=np.float32)
    else:
        lows, highs = np.full(channels, low, dtype=np.float32), np.full(channels, high, dtype=np.float32)

    def share(inputs: Inputs) -> float:
        window = inputs.window
        return float(((window <= lows) | (window >= highs)).mean(axis=0).max())

    return share


def _build(spec: MonitorSpec, manifest: Manifest) -> Monitor:
    channels = manifest.layout[1]
    signal, kind = spec.signal, spec.detector
    if signal not in SIGNALS or kind not in _CLASSES:
        raise ModelError(
            f"monitor {spec.name!r}: detector {kind!r} on signal {signal!r} is not known; signals: "
            f"{', '.join(SIGNALS)}; detectors: {', '.join(sorted(_CLASSES))}"
        )
    if signal == "prediction":
        if kind not in _CATEGORICAL:
            raise ModelError(f"monitor {spec.name!r}: the prediction is a category: PSI or ChiSquare, not {kind}")
        kind = _CATEGORICAL[kind]
        mix: Any = len(manifest.labels)  # learned on the device
        if "warm_up" not in spec.params:
            mix = _references(spec, manifest, signal, 1)[0].counts
            if len(mix) != len(manifest.labels):
                raise ModelError(
                    f"monitor {spec.name!r}: the mix has {len(mix)} classes for {len(manifest.labels)} labels"
                )
        categories = _CLASSES[kind](mix, **_checked(spec, kind), labels=manifest.labels)
        return _with_alpha(spec, ScalarMonitor(spec.name, signal, categories))
    if kind in ("CategoricalPSI", "ChiSquare"):
        raise ModelError(f"monitor {spec.name!r}: a {kind} watches the prediction, not {signal!r}")
    if issubclass(_CLASSES[kind], Vector):
        if signal not in ROWS:
            raise ModelError(f"monitor {spec.name!r}: a {kind} takes rows: {', '.join(ROWS)}, not {signal!r}")
        return _row_detector(spec, kind, manifest, {"input": channels, "features": 2 * channels}.get(signal))
    extra = ("low", "high") if signal == "saturated" else ()
    references = manifest.reference.get(signal, ())
    if signal in ROWS:
        count = {"input": channels, "features": 2 * channels}.get(signal, len(references))
        if not count:
            raise ModelError(f"monitor {spec.name!r}: the embedding needs reference statistics")
        if "alpha" in spec.params and kind in _WITH_P:
            raise ModelError(f"monitor {spec.name!r}: alpha is for a signal of one number or a detector of rows")
        if references:
            _references(spec, manifest, signal, count)
        given = _given(kind, references) if references else [{}] * count
        own = _checked(spec, kind)
        detectors = [_CLASSES[kind](**one, **own) for one in given]
        names = [r.name for r in references] or _names_of(signal, manifest, count)
        return ChannelMonitor(spec.name, signal, detectors, names, references)
    one = _given(kind, references[:1])[0] if references else {}
    value = _saturation(spec, manifest, channels) if signal == "saturated" else None
    detector = _CLASSES[kind](**one, **_checked(spec, kind, extra))
    reference = references[0] if references else None
    return _with_alpha(spec, ScalarMonitor(spec.name, signal, detector, value, reference))


def build_monitors(manifest: Manifest) -> list[Monitor]:
    """The monitors that a manifest declares.

    Raises:
        ModelError: a detector, signal, parameter or reference is missing or not known.
    """
    if len({spec.name for spec in manifest.monitors}) != len(manifest.monitors):
        raise ModelError("the manifest has two monitors of one name")
    monitors = []
    for spec in manifest.monitors:
        try:
            monitor = _build(spec, manifest)
        except (ConfigError, TypeError, OverflowError) as error:
            raise ModelError(f"the manifest's monitor {spec.name!r}: {error}") from error
        if "arl0" in spec.params:
            monitor.arl0 = float(spec.params["arl0"])
            if not monitor.arl0 > 0:
                raise ModelError(f"monitor {spec.name!r}: arl0 is {monitor.arl0}, expected more than 0")
        monitors.append(monitor)
    return monitors
