"""Thresholds for a wanted mean time between false alarms (ARL0), from reference data by block bootstrap.

Streams are autocorrelated and windows overlap, so a threshold made for independent samples misfires. Here the
reference is resampled in blocks (circular block bootstrap: Politis and Romano 1992; Künsch 1989) that are long beside
its autocorrelation time. For each replicate the detector learns a *resampled* reference and runs over streams from
the original one, so that the error of a short reference counts too: it is what a device meets. The threshold is found
by bisection on the alarms; the result is measured afterwards with other random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import drift
from .errors import ConfigError, InputError

Array = NDArray[np.float64]
Progress = Callable[[float], None]
CHUNK: Final = 32_768  # values of a stream at a time
REPLICATES: Final = 40
ALARMS: Final = 100  # expected while searching; their relative error is 1 / sqrt(100) = 10 %
BLOCK_TIMES: Final = 10  # block length in autocorrelation times
EFFECTIVE_MIN: Final = 50
# A reference of n independent values supports an ARL0 of 30 n. At 100 n up to one reference in twelve gives a tenth of
# what was wanted or less, at 1,000 n up to one in four (benchmarks/drift_calibration.py measures it).
SUPPORT: Final = 30
RIVER: Final = ("ADWIN", "PageHinkley", "KSWIN", "DDM", "EDDM", "HDDMA", "HDDMW", "FHDDM")


class Testing(Protocol):
    """What calibration asks of a detector."""

    def update_many(self, values: Array, /) -> list[int]:
        """Take a block; the indices of those that raised an alarm."""
        ...


Make = Callable[[Array, float], Testing]


@dataclass(frozen=True, slots=True)
class Tuned:
    """Which parameter of a detector decides how often it alarms.

    Attributes:
        name: the parameter.
        low, high: where its values make sense.
        rising: whether a larger value means fewer alarms.
        vector: whether the detector takes rows.
    """

    name: str
    low: float
    high: float
    rising: bool = True
    vector: bool = False


TUNED: Final[dict[str, Tuned]] = {
    "ADWIN": Tuned("delta", 1e-12, 0.9999, rising=False),
    "PageHinkley": Tuned("threshold", 1e-9, 1e9),
    "KSWIN": Tuned("alpha", 1e-15, 0.5, rising=False),
    "DDM": Tuned("drift_threshold", 0.01, 100.0),
    "EDDM": Tuned("beta", 0.01, 0.999, rising=False),
    "HDDMA": Tuned("drift_confidence", 1e-15, 0.9, rising=False),
    "HDDMW": Tuned("drift_confidence", 1e-15, 0.9, rising=False),
    "FHDDM": Tuned("confidence_level", 1e-15, 0.9, rising=False),
    "CUSUM": Tuned("threshold", 1e-3, 1e5),
    "EWMAChart": Tuned("threshold", 1e-3, 1e3),
    "PSI": Tuned("threshold", 1e-4, 1e3),
    "CategoricalPSI": Tuned("threshold", 1e-4, 1e3),
    "ChiSquare": Tuned("threshold", 1e-2, 1e6),
    "JensenShannon": Tuned("threshold", 1e-4, 0.9999),
    "IncrementalKS": Tuned("threshold", 1e-4, 0.9999),
    "Wasserstein1": Tuned("threshold", 1e-9, 1e9),
    "Mahalanobis": Tuned("threshold", 1e-3, 1e4, vector=True),
    "HotellingT2": Tuned("threshold", 1e-2, 1e7, vector=True),
    "KNNDistance": Tuned("threshold", 1e-3, 1e5, vector=True),
    "MMD": Tuned("threshold", 1e-4, 2.0, vector=True),
    "BinnedKS": Tuned("threshold", 1e-4, 0.9999, vector=True),
    "FeatureDrift": Tuned("threshold", 1e-2, 1e3, vector=True),
}


def make_detector(name: str, reference: Array, **parameters: Any) -> Any:
    """A detector by its class's name, with the statistics that it needs taken from reference values.

    Args:
        name: such as `CUSUM`.
        reference: `[n]`, or rows `[n, d]` for a detector of rows; categories as 0 to k - 1.
        parameters: of the class, without those that the reference gives.

    Raises:
        ConfigError: no such detector, or a parameter that it does not have or take.
    """
    if name not in TUNED:
        raise ConfigError(f"no detector {name!r} to calibrate; known: {', '.join(sorted(TUNED))}")
    kind = getattr(drift, name)
    values = np.asarray(reference, dtype=np.float64)
    try:
        match name:
            case "CUSUM" | "EWMAChart":
                return kind(float(values.mean()), float(values.std(ddof=1)), **parameters)
            case "PSI" | "JensenShannon" | "FeatureDrift":
                return kind.from_reference(values, **parameters)
            case "IncrementalKS" | "Wasserstein1":
                return kind(_thin(values, 65_536 if name == "Wasserstein1" else 4_096), **parameters)
            case "CategoricalPSI" | "ChiSquare":
                return kind(np.bincount(values.astype(np.int64), minlength=2), **parameters)
            case "KNNDistance" | "MMD":
                return kind(_thin(values, 2_000), **parameters)
            case "Mahalanobis" | "HotellingT2":
                return kind(*_scatter(values), **parameters)
            case "BinnedKS":
                bins = parameters.pop("bins", 16)
                histograms = [drift.PSI.from_reference(column, bins).histogram for column in values.T]
                edges = [pair.edges for pair in histograms if pair is not None]
                return kind(edges, [pair.reference for pair in histograms if pair is not None], **parameters)
        return kind(**parameters)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from error


def _thin(values: Array, most: int) -> Array:
    """At most so many values, evenly spread."""
    return values if len(values) <= most else values[np.linspace(0, len(values) - 1, most).astype(np.int64)]


def _scatter(rows: Array) -> tuple[Array, Array, Array]:
    d = rows.shape[1]
    return rows.mean(axis=0), rows.std(axis=0, ddof=1), np.corrcoef(rows.T).reshape(d, d)


# autocorrelation ------------------------------------------------------------------------------------------


def autocorrelation_time(values: ArrayLike) -> float:
    """Values of a stream that weigh as much as one independent value, 1 or more.

    1 + 2 times the sum of the autocorrelations, cut by Geyer's initial positive sequence (Statistical Science 1992);
    the larger of the values' own and of their absolute deviations', so that bursts of noise count.

    Args:
        values: `[n]`, finite.
    """
    x = np.asarray(values, dtype=np.float64)
    return max(_time(x), _time(np.abs(x - x.mean()))) if x.size > 3 else 1.0


def _time(x: Array) -> float:
    centred = x - x.mean()
    n = centred.size
    spectrum = np.fft.rfft(centred, 1 << (2 * n - 1).bit_length())
    correlations = np.fft.irfft(spectrum * np.conj(spectrum))[: n // 2]
    if not correlations[0] > 0:
        return 1.0
    correlations = correlations / correlations[0]
    pairs = correlations[: correlations.size // 2 * 2].reshape(-1, 2).sum(axis=1)
    negative = np.flatnonzero(pairs <= 0)
    return max(1.0, 2 * float(pairs[: negative[0] if negative.size else None].sum()) - 1)


# the bootstrap --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibrated threshold and how well it is known.

    Attributes:
        detector: class.
        parameter: what was tuned, such as `threshold`.
        value: what it was set to.
        arl0: wanted mean number of values between false alarms, for the whole set of monitors.
        monitors: how many monitors share it; this one got arl0 * monitors.
        measured: mean number of values between false alarms that was measured for this monitor.
        low, high: its 90 % interval over resampled references.
        samples: reference values.
        effective: as many independent ones.
        block: values in a block of the bootstrap.
        values: simulated values of the measurement.
    """

    detector: str
    parameter: str
    value: float
    arl0: float
    monitors: int
    measured: float
    low: float
    high: float
    samples: int
    effective: float
    block: int
    values: int

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Bootstrap:
    """Streams and references that are resampled from reference data in blocks.

    Args:
        reference: `[n]` or `[n, d]`, finite.
        block: values in a block; None: ten autocorrelation times.
        seed: of all random numbers.

    Raises:
        InputError: values that are not finite, or too few independent ones.
    """

    def __init__(self, reference: ArrayLike, block: int | None = None, seed: int = 0) -> None:
        try:
            values = np.ascontiguousarray(reference, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"the reference must be numbers: {error}") from error
        if values.ndim not in (1, 2) or not values.size:
            raise InputError(f"the reference has shape {list(values.shape)}, expected [n] or [n, d]")
        if not np.all(np.abs(values) <= 1e140):
            raise InputError("the reference has values that are not finite; leave these rows out")
        self.reference = values
        columns = values[:, None] if values.ndim == 1 else values
        if not np.all(columns.std(axis=0) > 0):
            raise InputError("the reference has a signal that never varies: nothing to calibrate on")
        self.time = max(autocorrelation_time(column) for column in columns.T)
        self.effective = len(values) / self.time
        if self.effective < EFFECTIVE_MIN:
            raise InputError(
                f"the reference's {len(values)} values are worth {self.effective:.0f} independent ones "
                f"(autocorrelation time {self.time:.0f}), expected {EFFECTIVE_MIN} or more: record longer"
            )
        self.block = block or (1 if self.time < 1.2 else min(len(values) // 8, math.ceil(BLOCK_TIMES * self.time)))
        if not 1 <= self.block <= len(values):
            raise ConfigError(f"block is {block}, expected 1 to {len(values)}")
        self._seed = seed

    def draw(self, rng: np.random.Generator, size: int) -> Array:
        """So many values, joined from blocks that begin anywhere."""
        n = len(self.reference)
        if self.block == 1:
            picked: Array = self.reference[rng.integers(0, n, size)]
            return picked
        starts = rng.integers(0, n, -(-size // self.block))
        joined: Array = self.reference[((starts[:, None] + np.arange(self.block)).ravel() % n)[:size]]
        return joined

    def run_lengths(
        self,
        make: Callable[[Array], Testing],
        values: int,
        *,
        replicates: int = REPLICATES,
        stage: int = 0,
        stop_at: float = math.inf,
        progress: Progress | None = None,
    ) -> tuple[Array, Array]:
        """False alarms and values of each replicate.

        Args:
            make: gives a detector for a resampled reference.
            values: to run over, all replicates together.
            replicates: resampled references.
            stage: another stage has other random numbers.
            stop_at: alarms at which it is plain that there are too many.
            progress: called with the share done.

        Returns:
            Alarms and values run, `[replicates]` each; the replicates that `stop_at` spared are left out.
        """
        each = max(1, -(-values // replicates))
        alarms, lengths = [], []
        total = 0
        for replicate in range(replicates):
            rng = np.random.default_rng([self._seed, stage, replicate])
            detector = make(self.draw(rng, len(self.reference)))
            found, done = 0, 0
            while done < each:
                size = min(CHUNK, each - done)
                found += len(detector.update_many(self.draw(rng, size)))
                done += size
                if total + found > stop_at:
                    break
                if progress:
                    progress((replicate + done / each) / replicates)
            alarms.append(found)
            lengths.append(done)
            total += found
            if total > stop_at:
                break
        return np.array(alarms, dtype=np.float64), np.array(lengths, dtype=np.float64)


def _search(
    bootstrap: Bootstrap, make: Make, tuned: Tuned, target: float, alarms: int, progress: Progress | None
) -> float:
    """The parameter's value at which `values / target` alarms come, by bisection with the same random numbers."""
    values = int(target * alarms)
    low, high = math.log(tuned.low), math.log(tuned.high)
    steps = max(10, math.ceil(math.log2((high - low) / 0.004)))

    def too_many(position: float, step: int) -> bool:
        def share(part: float) -> None:
            if progress:
                progress((step + part) / steps)

        found, lengths = bootstrap.run_lengths(
            lambda sample: make(sample, math.exp(position)), values, stop_at=alarms, progress=share
        )
        return bool(found.sum() > alarms * lengths.sum() / values)

    for step in range(steps):
        middle = (low + high) / 2
        if too_many(middle, step) == tuned.rising:
            low = middle
        else:
            high = middle
    # The side on which there are not too many.
    return float(math.exp(high if tuned.rising else low))


def calibrate(
    detector: str,
    reference: ArrayLike,
    arl0: float,
    *,
    monitors: int = 1,
    block: int | None = None,
    seed: int = 0,
    alarms: int = ALARMS,
    replicates: int = REPLICATES,
    progress: Progress | None = None,
    **parameters: Any,
) -> Calibration:
    """Set a detector for a wanted mean number of values between false alarms.

    Args:
        detector: class, such as `CUSUM`; see `TUNED` for the parameter that is set.
        reference: values without drift, `[n]`, or rows `[n, d]`; in the order in which they came.
        arl0: wanted mean number of values between false alarms of the whole set, 100 to 1e8.
        monitors: monitors in the set: each gets arl0 * monitors, so that together they keep arl0.
        block: values in a block of the bootstrap; None: ten autocorrelation times.
        seed: of all random numbers: the same seed gives the same result.
        alarms: false alarms to search with; more are slower and finer.
        replicates: resampled references.
        progress: called with the share done, 0 to 1.
        parameters: other parameters of the detector.

    Returns:
        The threshold, and the mean time that was measured for it with other random numbers, with its 90 % interval
        over resampled references.

    Raises:
        ConfigError: a parameter is out of range, or the reference cannot support this ARL0: of devices with a
            reference like this, one in twenty would alarm ten times as often as wanted.
        InputError: the reference is not finite, never varies or is too short.
    """
    if detector not in TUNED:
        raise ConfigError(f"no detector {detector!r} to calibrate; known: {', '.join(sorted(TUNED))}")
    if (
        not 100 <= arl0 <= 1e8
        or not 1 <= monitors <= 10_000
        or not 5 <= alarms <= 10_000
        or not 4 <= replicates <= 1000
    ):
        raise ConfigError("expected an arl0 of 100 to 1e8, 1 to 10000 monitors, 5 or more alarms, 4 or more replicates")
    tuned = TUNED[detector]
    if tuned.name in parameters:
        raise ConfigError(f"{tuned.name} is what calibration finds; leave it out")
    bootstrap = Bootstrap(reference, block, seed)
    if tuned.vector != (bootstrap.reference.ndim == 2):
        raise InputError(f"{detector} takes {'rows [n, d]' if tuned.vector else 'values [n]'} as reference")
    target = arl0 * monitors
    if target > SUPPORT * bootstrap.effective:
        raise ConfigError(
            f"the reference cannot support an ARL0 of {target:,.0f}: its {len(bootstrap.reference)} values are worth "
            f"{bootstrap.effective:.0f} independent ones, good for {SUPPORT * bootstrap.effective:,.0f}; record longer"
        )

    if detector not in RIVER:
        # A latched detector is silent as long as it is above half of its threshold: too low a one would look calm.
        parameters = {"policy": "reset", **parameters}

    def make(sample: Array, value: float) -> Testing:
        result: Testing = make_detector(detector, sample, **{**parameters, tuned.name: value})
        return result

    def part(first: float, size: float) -> Progress | None:
        return (lambda share: progress(first + size * share)) if progress else None

    value = _search(bootstrap, make, tuned, target, alarms, part(0.0, 0.6))
    found, lengths = bootstrap.run_lengths(
        lambda sample: make(sample, value),
        int(target * 10 * replicates),
        replicates=replicates,
        stage=1,
        stop_at=400 * replicates,
        progress=part(0.6, 0.4),
    )
    rates = found / lengths
    measured = float(lengths.sum() / max(found.sum(), 0.5))
    # A replicate without an alarm says "more than what was run"; half an alarm stands for it.
    times = lengths / np.maximum(found, 0.5)
    low, high = (float(bound) for bound in np.quantile(times, [0.05, 0.95]))
    if low < target / 10 or not rates.size:
        raise ConfigError(
            f"the reference cannot support an ARL0 of {target:,.0f}: with {bootstrap.effective:.0f} independent values "
            f"one reference in twenty would give {low:,.0f} or less; record longer"
        )
    return Calibration(
        detector=detector,
        parameter=tuned.name,
        value=float(f"{value:.4g}"),
        arl0=float(arl0),
        monitors=monitors,
        measured=measured,
        low=low,
        high=high,
        samples=len(bootstrap.reference),
        effective=bootstrap.effective,
        block=bootstrap.block,
        values=int(lengths.sum()),
    )


@dataclass(frozen=True, slots=True)
class SetCalibration:
    """A set of monitors on one stream that together keep an ARL0.

    Attributes:
        members: name of the signal -> its calibration.
        arl0: wanted for the whole set.
        measured: mean number of values between alarms of any member, all on the same streams.
        low, high: its 90 % interval over resampled references.
    """

    members: Mapping[str, Calibration]
    arl0: float
    measured: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "members": {name: member.to_json() for name, member in self.members.items()},
            "arl0": self.arl0,
            "measured": self.measured,
            "low": self.low,
            "high": self.high,
        }


class _Together:
    """Several detectors on the columns of one stream; an alarm of any of them is one."""

    def __init__(self, members: Sequence[tuple[int, Testing]]) -> None:
        self._members = members

    def update_many(self, values: Array, /) -> list[int]:
        found: set[int] = set()
        for column, detector in self._members:
            found.update(detector.update_many(np.ascontiguousarray(values[:, column])))
        return sorted(found)


def calibrate_set(
    detector: str,
    columns: Mapping[str, ArrayLike],
    arl0: float,
    *,
    seed: int = 0,
    block: int | None = None,
    replicates: int = REPLICATES,
    progress: Progress | None = None,
    **parameters: Any,
) -> SetCalibration:
    """Calibrate one detector for each signal of a stream so that all together keep `arl0`, and measure the set.

    Each of m monitors gets arl0 * m (Bonferroni for sequential tests: rates add up at most). Signals that move
    together alarm together, so the measured time of the set may be longer, never much shorter.

    Args:
        columns: name -> values `[n]`, as long as each other.
        detector, arl0, seed, block, replicates, progress, parameters: as for `calibrate`.

    Raises:
        ConfigError, InputError: as `calibrate`, or columns of different lengths.
    """
    names = list(columns)
    if not names or TUNED.get(detector, Tuned("", 0, 0)).vector:
        raise ConfigError("a set needs columns and a detector of single values")
    arrays = [np.asarray(columns[name], dtype=np.float64) for name in names]
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1:
        raise InputError("the columns of a set are as long as each other, [n]")
    members: dict[str, Calibration] = {}
    for index, name in enumerate(names):

        def part(share: float, index: int = index) -> None:
            if progress:
                progress(0.8 * (index + share) / len(names))

        members[name] = calibrate(
            detector,
            arrays[index],
            arl0,
            monitors=len(names),
            seed=seed,
            block=block,
            replicates=replicates,
            progress=part,
            **parameters,
        )
    bootstrap = Bootstrap(np.column_stack(arrays), block, seed)

    if detector not in RIVER:
        parameters = {"policy": "reset", **parameters}

    def together(sample: Array) -> Testing:
        return _Together(
            [
                (i, make_detector(detector, sample[:, i], **{**parameters, member.parameter: member.value}))
                for i, member in enumerate(members.values())
            ]
        )

    found, lengths = bootstrap.run_lengths(
        together,
        int(arl0 * 10 * replicates),
        replicates=replicates,
        stage=2,
        progress=(lambda share: progress(0.8 + 0.2 * share)) if progress else None,
    )
    times = lengths / np.maximum(found, 0.5)
    low, high = (float(bound) for bound in np.quantile(times, [0.05, 0.95]))
    return SetCalibration(members, float(arl0), float(lengths.sum() / max(found.sum(), 0.5)), low, high)


def holm_adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for their number (Holm, Scandinavian Journal of Statistics 1979); None stays and counts not.

    >>> holm_adjusted([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        adjusted[index] = highest
    return adjusted


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses fall at a family-wise level `alpha`, by Holm's procedure.

    Args:
        p_values: one a test, 0 to 1; NaN for a test that has none now, which never falls.
        alpha: 0 to 1.
    """
    adjusted = holm_adjusted([None if p != p else p for p in p_values])
    return [p is not None and p <= alpha for p in adjusted]
