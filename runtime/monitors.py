"""Monitors join a detector to a signal of the model: what goes in, what comes out, how sure it is.

Signals
- `input`: the raw samples, channel by channel, against the package's reference histograms;
- `features`: mean and standard deviation of each channel over the window, against theirs;
- `prediction`: the mix of predicted labels, against the training mix;
- `confidence`: the winning score.

A monitor of several channels or features has one detector for each and raises one alarm: that of the worst.
Thresholds in a package are calibrated for the whole monitor on the publisher's training stream (windows overlap and
activities last, so a threshold made for independent samples misfires).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from tinylcm._ext.stats import window_moments

from .drift import ADWIN, PSI, BinnedKS, CategoricalPSI, Mahalanobis, PageHinkley
from .errors import ConfigError, ModelError
from .package import FeatureReference, Manifest, MonitorSpec
from .types import Alarm, HistogramPair

SIGNALS: Final = ("input", "features", "prediction", "confidence")


class Detector(Protocol):
    """What a monitor asks of a detector of numbers."""

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
    """What one window offers to its monitors; features are computed only when a monitor asks for them.

    Attributes:
        window: float32 `[samples, channels]`, valid during the call.
        hop: how many of its rows, the last ones, are new.
        label: index of the prediction.
        confidence: its score.
        index: which window this is, counted from 0.
    """

    __slots__ = ("_features", "_fresh", "confidence", "hop", "index", "label", "window")

    def __init__(self, channels: int, hop: int) -> None:
        self.window: NDArray[np.float32] = np.zeros((1, channels), dtype=np.float32)
        self.hop = hop
        self.label = 0
        self.confidence = 0.0
        self.index = -1
        self._features = np.zeros((1, 2 * channels))
        self._fresh = False

    def renew(self, window: NDArray[np.float32], label: int, confidence: float) -> None:
        """Begin the next window."""
        self.window, self.label, self.confidence = window, label, confidence
        self.index += 1
        self._fresh = False

    def features(self) -> NDArray[np.float64]:
        """Means, then standard deviations of the channels, `[1, 2 * channels]`."""
        if not self._fresh:
            channels = self._features.shape[1] // 2
            window_moments(self.window, self._features[0, :channels], self._features[0, channels:])
            self._fresh = True
        return self._features

    def new_rows(self) -> NDArray[np.float32]:
        """The samples that the window before did not have, all of them for the first window."""
        return self.window if self.index == 0 else self.window[-self.hop :]


class Monitor:
    """A detector joined to a signal: `update` takes what a window gives and says whether it alarms.

    Made by `watch`, or from a manifest by `build_monitors`.
    """

    def __init__(self, name: str, signal: str) -> None:
        if signal not in SIGNALS:
            raise ConfigError(f"monitor {name!r}: signal {signal!r} is not known; known: {', '.join(SIGNALS)}")
        self.name = name
        self.signal = signal

    def update(self, inputs: Inputs) -> Alarm | None:
        """Take one window; an alarm when this one raises it."""
        raise ConfigError(f"monitor {self.name!r} of class {type(self).__name__} has no update")


class ScalarMonitor(Monitor):
    """A detector of numbers on the confidence."""

    def __init__(self, name: str, signal: str, detector: Detector, update: Callable[[float], bool]) -> None:
        super().__init__(name, signal)
        if signal != "confidence":
            raise ConfigError(f"monitor {name!r}: a {type(detector).__name__} watches the confidence, not {signal!r}")
        self.detector = detector
        self._update = update

    def update(self, inputs: Inputs) -> Alarm | None:
        """Take the window's confidence."""
        if not self._update(inputs.confidence):
            return None
        detector = self.detector
        histogram = getattr(detector, "histogram", None)
        return Alarm(
            monitor=self.name,
            detector=type(detector).__name__,
            signal=self.signal,
            statistic=detector.statistic,
            threshold=detector.threshold,
            window=inputs.index,
            suspect=min(detector.suspect, inputs.index),  # one value a window: the detector's index is the window's
            histogram=histogram if isinstance(histogram, HistogramPair) else None,
        )


class PredictionMonitor(Monitor):
    """PSI of the predicted labels against the training mix."""

    def __init__(self, name: str, detector: CategoricalPSI) -> None:
        super().__init__(name, "prediction")
        self.detector = detector

    def update(self, inputs: Inputs) -> Alarm | None:
        """Take the window's label."""
        if not self.detector.update(inputs.label):
            return None
        return Alarm(
            monitor=self.name,
            detector="PSI",
            signal="prediction",
            statistic=self.detector.statistic,
            threshold=self.detector.threshold,
            window=inputs.index,
            suspect=max(0, inputs.index + 1 - self.detector.window),
            histogram=self.detector.histogram,
        )


class InputMonitor(Monitor):
    """Binned KS of the raw samples, channel by channel."""

    def __init__(self, name: str, detector: BinnedKS, references: Sequence[FeatureReference]) -> None:
        super().__init__(name, "input")
        self.detector = detector
        self._references = tuple(references)

    def update(self, inputs: Inputs) -> Alarm | None:
        """Take the window's new samples."""
        detector = self.detector
        if not detector.update(inputs.new_rows()):
            return None
        worst = detector.worst
        return Alarm(
            monitor=self.name,
            detector="BinnedKS",
            signal=self._references[worst].name,
            statistic=detector.statistic,
            threshold=detector.threshold,
            window=inputs.index,
            suspect=max(0, inputs.index + 1 - math.ceil(detector.window / inputs.hop)),
            histogram=detector.histogram(worst),
        )


class FeatureMonitor(Monitor):
    """Mahalanobis distance of the window features; the worst feature's histogram is the evidence."""

    def __init__(self, name: str, detector: Mahalanobis, references: Sequence[FeatureReference]) -> None:
        super().__init__(name, "features")
        self.detector = detector
        self._references = tuple(references)
        self._evidence = BinnedKS(
            [reference.edges for reference in references],
            [reference.counts for reference in references],
            threshold=0.999,  # it keeps the histograms; the distance decides
            window=detector.window,
        )

    def update(self, inputs: Inputs) -> Alarm | None:
        """Take the window's features."""
        detector, features = self.detector, inputs.features()
        self._evidence.update(features)
        if not detector.update(features[0]):
            return None
        worst = detector.worst
        reference = self._references[worst]
        return Alarm(
            monitor=self.name,
            detector="Mahalanobis",
            signal=reference.name,
            statistic=detector.statistic,
            threshold=detector.threshold,
            window=inputs.index,
            suspect=max(0, inputs.index + 1 - detector.window),
            histogram=self._evidence.histogram(worst),
        )


class MonitorSet:
    """All monitors of one model: one call a window.

    Args:
        manifest: for the number of channels and the hop.
        monitors: what to ask, in this order.
    """

    def __init__(self, manifest: Manifest, monitors: Sequence[Monitor]) -> None:
        layout = manifest.input.layout(manifest.window.samples)
        channels = 1 if layout is None else layout[1]
        self.monitors = tuple(monitors)
        self._inputs = Inputs(channels, min(manifest.window.hop, manifest.window.samples))

    def update(self, window: NDArray[np.float32], label: int, confidence: float) -> tuple[Alarm, ...]:
        """Take a window, `[samples, channels]`, with its prediction; the alarms that it raises."""
        if not self.monitors:
            return ()
        inputs = self._inputs
        inputs.renew(window, label, confidence)
        alarms = [alarm for monitor in self.monitors if (alarm := monitor.update(inputs)) is not None]
        return tuple(alarms)


def watch(signal: str, detector: Detector, name: str = "") -> Monitor:
    """Join a detector of numbers to the confidence, or a `CategoricalPSI` to the predictions.

    Raises:
        ConfigError: the signal is not known or does not fit the detector.
    """
    if isinstance(detector, CategoricalPSI) and not isinstance(detector, PSI) and signal == "prediction":
        return PredictionMonitor(name or signal, detector)
    update = getattr(detector, "update", None)
    if not callable(update):
        raise ConfigError(f"{type(detector).__name__} is no detector: it has no update(x)")
    return ScalarMonitor(name or signal, signal, detector, update)


def _params(spec: MonitorSpec, known: Mapping[str, float | None]) -> dict[str, float]:
    """A monitor's parameters with defaults filled in; None marks one that must be given."""
    for key in spec.params:
        if key not in known:
            raise ModelError(
                f"monitor {spec.name!r}: {spec.detector} has no parameter {key!r}; it has {', '.join(known)}"
            )
    result = {key: spec.params.get(key, default) for key, default in known.items()}
    missing = [key for key, value in result.items() if value is None]
    if missing:
        raise ModelError(f"monitor {spec.name!r}: {spec.detector} needs {', '.join(missing)}")
    return {key: value for key, value in result.items() if value is not None}


def _references(spec: MonitorSpec, manifest: Manifest, count: int) -> tuple[FeatureReference, ...]:
    references = manifest.reference.get(spec.signal, ())
    if len(references) != count:
        raise ModelError(
            f"monitor {spec.name!r}: the manifest has reference statistics of {len(references)} {spec.signal} signals, "
            f"expected {count}"
        )
    return references


def _build(spec: MonitorSpec, manifest: Manifest) -> Monitor:
    layout = manifest.input.layout(manifest.window.samples)
    channels = 0 if layout is None else layout[1]
    match spec.signal, spec.detector:
        case "input", "BinnedKS":
            params = _params(spec, {"threshold": None, "window": 500.0})
            references = _references(spec, manifest, channels)
            detector = BinnedKS(
                [reference.edges for reference in references],
                [reference.counts for reference in references],
                params["threshold"],
                int(params["window"]),
            )
            return InputMonitor(spec.name, detector, references)
        case "features", "Mahalanobis":
            params = _params(spec, {"threshold": None, "window": 50.0, "shrinkage": 0.05})
            references = _references(spec, manifest, 2 * channels)
            distance = Mahalanobis(
                [reference.mean for reference in references],
                [reference.std for reference in references],
                manifest.correlation.get("features"),
                params["threshold"],
                int(params["window"]),
                params["shrinkage"],
            )
            return FeatureMonitor(spec.name, distance, references)
        case "prediction", "PSI":
            params = _params(spec, {"threshold": None, "window": 200.0, "smoothing": 0.5})
            mix = _references(spec, manifest, 1)[0].counts
            if len(mix) != len(manifest.labels):
                raise ModelError(
                    f"monitor {spec.name!r}: the mix has {len(mix)} classes for {len(manifest.labels)} labels"
                )
            psi = CategoricalPSI(mix, params["threshold"], int(params["window"]), params["smoothing"], manifest.labels)
            return PredictionMonitor(spec.name, psi)
        case "confidence", "PageHinkley":
            params = _params(
                spec, {"min_instances": 30.0, "delta": 0.005, "threshold": 50.0, "alpha": 1 - 0.0001, "down_only": 0.0}
            )
            return watch(
                "confidence",
                PageHinkley(
                    int(params["min_instances"]),
                    params["delta"],
                    params["threshold"],
                    params["alpha"],
                    "down" if params["down_only"] else "both",
                ),
                spec.name,
            )
        case "confidence", "ADWIN":
            params = _params(
                spec,
                {"delta": 0.002, "clock": 32.0, "max_buckets": 5.0, "min_window_length": 5.0, "grace_period": 10.0},
            )
            return watch(
                "confidence",
                ADWIN(
                    params["delta"],
                    int(params["clock"]),
                    int(params["max_buckets"]),
                    int(params["min_window_length"]),
                    int(params["grace_period"]),
                ),
                spec.name,
            )
    raise ModelError(
        f"monitor {spec.name!r}: detector {spec.detector!r} on signal {spec.signal!r} is not known; known: "
        "BinnedKS on input, Mahalanobis on features, PSI on prediction, PageHinkley and ADWIN on confidence"
    )


def build_monitors(manifest: Manifest) -> list[Monitor]:
    """The monitors that a manifest declares.

    Raises:
        ModelError: a detector, signal, parameter or reference is missing or not known.
    """
    if len({spec.name for spec in manifest.monitors}) != len(manifest.monitors):
        raise ModelError("the manifest has two monitors of one name")
    try:
        return [_build(spec, manifest) for spec in manifest.monitors]
    except ConfigError as error:
        raise ModelError(f"the manifest's monitors: {error}") from error
