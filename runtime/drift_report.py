"""Whether a current table looks like a reference one, feature by feature, as a page that a person reads.

For data at rest: two recordings, a training set and last week. Streams are watched by `tinylcm.drift`. This module
loads the tables, measures and judges; the command line names the files and writes the page.

Sensor values resemble their neighbours, so n of them are no n independent observations, and the textbook p-value of
two unchanged recordings is often tiny. Every test here counts effective sizes instead: n over the autocorrelation
time, cut by Geyer's initial positive sequence (Statistical Science 1992). The p-values of all features are adjusted
together (Holm, Scandinavian Journal of Statistics 1979), and a feature drifted only when the effect is not negligible
besides.

>>> import numpy as np
>>> rng = np.random.default_rng(1)
>>> before = {"ax": rng.normal(0, 1, 2000), "ay": rng.normal(0, 1, 2000)}
>>> after = {"ax": rng.normal(0, 1, 2000), "ay": rng.normal(0.5, 1, 2000)}
>>> report = compare(before, after)
>>> report.verdict, report.drifted
('drift', ('ay',))
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from ._ext.windowed import kolmogorov, upper_gamma
from .calibration import holm_adjusted
from .errors import ConfigError, InputError
from .tables import MISSING_WORDS, Column
from .types import HistogramPair

Array = NDArray[np.float64]
Verdict = Literal["drift", "changed slightly", "too little data", "no drift"]
Json = dict[str, object]

BINS_MAX: Final = 20
SMOOTHING: Final = 0.5  # as tinylcm.drift.PSI
EFFECTIVE_MIN: Final = 20.0
EXPECTED_MIN: Final = 5.0  # below it a cell's share of chi-square is far from its asymptotic law (Cochran 1954)
PSI_MIN: Final = 0.1
KS_MIN: Final = 0.1
MISSING_CHANGE_MIN: Final = 0.05
SEVERITY: Final[tuple[Verdict, ...]] = ("drift", "changed slightly", "too little data", "no drift")


# what a report says ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Side:
    """One feature in one table.

    Attributes:
        count: values, without the missing ones.
        missing: NaN, infinite or empty.
        effective: as many independent values.
        mean, std, min, median, max: of numbers; None for categories and where there are too few values.
        distinct: how many categories there are; None for numbers.
    """

    count: int
    missing: int
    effective: float
    mean: float | None = None
    std: float | None = None
    min: float | None = None
    median: float | None = None
    max: float | None = None
    distinct: int | None = None

    @property
    def missing_share(self) -> float:
        """Missing values among all, 0 to 1."""
        total = self.count + self.missing
        return self.missing / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Feature:
    """What a comparison found for one feature; measures are None where a side has no values.

    Attributes:
        name: as in the tables.
        kind: `number` or `category`.
        reference, current: each side.
        histogram: both over the same bins; `labels` where a bin stands for one value.
        psi: population stability index over the histogram, both sides smoothed.
        js: Jensen-Shannon distance over the histogram, base 2, 0 to 1.
        wasserstein: in the feature's units; None for categories.
        ks: Kolmogorov-Smirnov distance, 0 to 1; None for categories.
        p: of the KS distance or of chi-square, for effective sizes.
        p_adjusted: the same after Holm's correction over all features.
        verdict: see `Report`.
        notes: sentences on what the numbers do not show.
    """

    name: str
    kind: Literal["number", "category"]
    reference: Side
    current: Side
    histogram: HistogramPair
    psi: float | None = None
    js: float | None = None
    wasserstein: float | None = None
    ks: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    verdict: Verdict = "too little data"
    notes: tuple[str, ...] = ()

    @property
    def mean_shift(self) -> float | None:
        """Current mean minus reference mean, in standard deviations of the reference."""
        reference, current = self.reference, self.current
        if reference.mean is None or current.mean is None or not reference.std:
            return None
        return _finite((current.mean - reference.mean) / reference.std)

    @property
    def wasserstein_scaled(self) -> float | None:
        """Wasserstein distance in standard deviations of the reference."""
        if self.wasserstein is None or not self.reference.std:
            return None
        return _finite(self.wasserstein / self.reference.std)


@dataclass(frozen=True, slots=True)
class Report:
    """A comparison of two tables.

    A feature's verdict is `drift` when its adjusted p-value is below `alpha` and PSI or KS is 0.1 or more,
    `changed slightly` when it is significant but smaller, `no drift` when it is not significant, and
    `too little data` when a side is worth fewer than 20 independent values.

    Attributes:
        verdict: `drift` when a feature drifted, else `changed slightly` when one did, else `no drift`;
            `too little data` when no feature could be judged.
        features: those of both tables, in the reference's order.
        missing: names that only the reference has.
        new: names that only the current table has.
        alpha: level of significance for all features together.
        reference_name, current_name: what the tables are called on the page.
        reference_rows, current_rows: length of the longest column.
    """

    verdict: Verdict
    features: tuple[Feature, ...]
    missing: tuple[str, ...]
    new: tuple[str, ...]
    alpha: float
    reference_name: str
    current_name: str
    reference_rows: int
    current_rows: int

    @property
    def drifted(self) -> tuple[str, ...]:
        """Names of the features whose verdict is `drift`."""
        return tuple(feature.name for feature in self.features if feature.verdict == "drift")

    def by_severity(self) -> list[Feature]:
        """The features, the worst first."""
        return sorted(self.features, key=lambda feature: (SEVERITY.index(feature.verdict), -(feature.psi or 0.0)))

    def to_json(self) -> Json:
        """All of it as plain types; what is not known or not finite is None."""
        return {
            "verdict": self.verdict,
            "alpha": self.alpha,
            "reference": {"name": self.reference_name, "rows": self.reference_rows},
            "current": {"name": self.current_name, "rows": self.current_rows},
            "drifted": list(self.drifted),
            "missing": list(self.missing),
            "new": list(self.new),
            "features": [_feature_json(feature) for feature in self.features],
        }

    def to_html(self) -> str:
        """One page without scripts that needs nothing from anywhere else."""
        from .drift_page import page

        return page(self)


def _feature_json(feature: Feature) -> Json:
    pair = feature.histogram
    return {
        "name": feature.name,
        "kind": feature.kind,
        "verdict": feature.verdict,
        "reference": _side_json(feature.reference),
        "current": _side_json(feature.current),
        "histogram": {
            "reference": [int(count) for count in pair.reference],
            "current": [int(count) for count in pair.current],
            "edges": [_finite(edge) for edge in pair.edges],
            "labels": list(pair.labels),
        },
        **{name: _finite(getattr(feature, name)) for name in ("psi", "js", "wasserstein", "ks", "p", "p_adjusted")},
        "notes": list(feature.notes),
    }


def _side_json(side: Side) -> Json:
    numbers = {name: _finite(getattr(side, name)) for name in ("effective", "mean", "std", "min", "median", "max")}
    return {"count": side.count, "missing": side.missing, "distinct": side.distinct, **numbers}


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


# comparing ------------------------------------------------------------------------------------------------


def compare(
    reference: Mapping[str, Column],
    current: Mapping[str, Column],
    *,
    alpha: float = 0.05,
    names: tuple[str, str] = ("reference", "current"),
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Compare each feature that both tables have; the others are reported as missing or new.

    Args:
        reference, current: 1-D arrays by name, in the order of time: numbers, or text and booleans as categories.
        alpha: chance of even one finding among all features when nothing changed.
        names: what the two tables are called in the report.
        progress: called with (features done, all features) after each.

    Raises:
        ConfigError: `alpha` is not between 0 and 1.
        InputError: a column is not 1-D, or holds numbers in one table and text in the other.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is {alpha}, expected a level of significance between 0 and 1, such as 0.05")
    if not reference or not current:
        raise InputError("a table holds no features: there is nothing to compare")
    shared = [name for name in reference if name in current]
    measured = []
    for done, name in enumerate(shared, 1):
        with np.errstate(all="ignore"):  # what overflows becomes None
            measured.append(_measure(name, np.asarray(reference[name]), np.asarray(current[name])))
        if progress is not None:
            progress(done, len(shared))
    features = tuple(
        replace(feature, p_adjusted=adjusted, verdict=_judge(feature, adjusted, alpha))
        for feature, adjusted in zip(measured, holm_adjusted([feature.p for feature in measured]), strict=True)
    )
    verdicts = {feature.verdict for feature in features}
    order: tuple[Verdict, ...] = ("drift", "changed slightly", "no drift")
    return Report(
        verdict=next((verdict for verdict in order if verdict in verdicts), "too little data"),
        features=features,
        missing=tuple(name for name in reference if name not in current),
        new=tuple(name for name in current if name not in reference),
        alpha=alpha,
        reference_name=names[0],
        current_name=names[1],
        reference_rows=max(np.size(column) for column in reference.values()),
        current_rows=max(np.size(column) for column in current.values()),
    )


def _judge(feature: Feature, adjusted: float | None, alpha: float) -> Verdict:
    if adjusted is None or min(feature.reference.effective, feature.current.effective) < EFFECTIVE_MIN:
        return "too little data"
    if adjusted >= alpha:
        return "no drift"
    negligible = (feature.psi or 0.0) < PSI_MIN and (feature.ks or 0.0) < KS_MIN
    return "changed slightly" if negligible else "drift"


def _measure(name: str, reference: Column, current: Column) -> Feature:
    kinds = [_kind(name, column) for column in (reference, current)]
    if kinds[0] and kinds[1] and kinds[0] != kinds[1]:
        text, side = (reference, "reference") if kinds[0] == "category" else (current, "current")
        sample = next((str(value) for value in text.tolist() if not _is_number(str(value))), str(text[0]))
        raise InputError(
            f"feature {name!r}: numbers in one table, but text such as {sample!r:.60} in the {side} one: make it the"
            " same in both; a missing value is an empty cell or NaN"
        )
    feature = (_categories if "category" in kinds else _numbers)(name, reference, current)
    return replace(feature, notes=_notes(feature))


def _kind(name: str, column: Column) -> Literal["number", "category"] | None:
    """What a column holds; None when it holds nothing but missing values, which may stand for either."""
    if column.ndim != 1 or column.dtype.kind not in "fiubU":
        raise InputError(
            f"feature {name!r}: got an array of {column.dtype} with the shape {column.shape}, expected numbers or text"
            " in one dimension"
        )
    if column.dtype.kind in "bU":
        return "category"
    empty = column.dtype.kind == "f" and not np.isfinite(column.astype(np.float64)).any()
    return None if empty or not column.size else "number"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.strip().lower() in MISSING_WORDS
    return True


def _notes(feature: Feature) -> tuple[str, ...]:
    notes = []
    reference, current = feature.reference, feature.current
    if abs(reference.missing_share - current.missing_share) >= MISSING_CHANGE_MIN:
        notes.append(
            f"The share of missing values went from {reference.missing_share:.1%} to {current.missing_share:.1%}."
        )
    for here, there, word in ((current, reference, "current"), (reference, current, "reference")):
        # A step or a trend inside a table looks like dependence, and few independent values are left to test with.
        like_the_other = here.count * there.effective / max(1, there.count)
        if here.effective < EFFECTIVE_MIN <= min(like_the_other, there.effective):
            notes.append(
                f"The {word} values step or wander: {here.count:,} of them are worth {here.effective:.0f} independent"
                " ones. Look at them over time, and compare shorter periods."
            )
    if reference.distinct is not None and reference.distinct == reference.count > BINS_MAX:
        notes.append("Every value of the reference is distinct: an identifier or a time rather than a category.")
    return tuple(notes)


# numbers --------------------------------------------------------------------------------------------------


def _numbers(name: str, reference: Column, current: Column) -> Feature:
    values = [np.asarray(column, dtype=np.float64) for column in (reference, current)]
    values = [column[np.isfinite(column)] for column in values]
    orders = [np.argsort(column) for column in values]
    a, b = (column[order] for column, order in zip(values, orders, strict=True))
    left, right = (
        _describe(ordered, order, column.size - ordered.size)
        for ordered, order, column in zip((a, b), orders, (reference, current), strict=True)
    )
    if not a.size:
        return Feature(name, "number", left, right, HistogramPair((), ()))
    pair = _histogram(a, b)
    feature = Feature(name, "number", left, right, pair)
    if not b.size:
        return feature
    ks, wasserstein = _distances(a, b)
    p = kolmogorov(ks, left.effective, right.effective)
    psi, js = _divergences(pair)
    return replace(feature, psi=psi, js=js, ks=ks, wasserstein=_finite(wasserstein), p=p)


def _describe(ordered: Array, order: NDArray[np.intp], missing: int) -> Side:
    n = ordered.size
    if n == 0:
        return Side(0, missing, 0.0)
    middle = ordered[(n - 1) // 2] / 2 + ordered[n // 2] / 2
    return Side(
        count=n,
        missing=missing,
        effective=_effective(_ranked(ordered, order)),
        mean=_finite(float(ordered.mean())),
        std=_finite(float(ordered.std(ddof=1))) if n > 1 else None,
        min=float(ordered[0]),
        median=float(middle),
        max=float(ordered[-1]),
    )


def _ranked(ordered: Array, order: NDArray[np.intp]) -> Array:
    """Two rows over time: mid-ranks, and how far they are from the middle.

    KS sees ranks only, so it is their dependence that counts: an outlier does not hide it. The second row sees bursts
    of noise, whose values are uncorrelated but come in clusters.
    """
    n = ordered.size
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    lengths = np.diff(np.append(starts, n))
    ranks = np.empty(n)
    ranks[order] = np.repeat(starts + (lengths - 1) / 2, lengths)
    ranks -= (n - 1) / 2
    return np.stack((ranks, np.abs(ranks)))


def _effective(rows: Array) -> float:
    """Size of an independent sample that is worth as much, judged by the row that is worth least."""
    return _effective_size(rows.shape[1], max(_autocorrelation_time(row[np.newaxis]) for row in rows))


def _effective_size(n: int, time: float) -> float:
    return min(float(n), max(2.0, n / time))


def _autocorrelation_time(rows: Array) -> float:
    """1 + 2 times the sum of the autocorrelations of one signal in several rows, cut by Geyer's sequence."""
    n = rows.shape[1]
    lags = n // 2
    if lags < 2:
        return 1.0
    length = _fft_length(n + lags)  # so that no lag in use wraps around
    power = np.zeros(length // 2 + 1)
    for row in rows:
        centred = row - row.mean()
        if np.abs(centred).max() <= 1e-9 * np.abs(row).max():
            continue  # constant: what is left is rounding, which correlates with itself perfectly
        spectrum = np.fft.rfft(centred, length)
        power += spectrum.real**2 + spectrum.imag**2
    correlations = np.fft.irfft(power, length)[: lags // 2 * 2]
    if not correlations[0] > 0:
        return 1.0
    pairs = correlations.reshape(-1, 2).sum(axis=1) / correlations[0]
    ends = np.flatnonzero(pairs <= 0)
    return max(1.0, 2 * float(pairs[: ends[0] if ends.size else None].sum()) - 1)


def _fft_length(n: int) -> int:
    """Smallest even number that has no prime factor above 5 and is n or more."""
    best = 1 << max(1, (n - 1).bit_length())
    five = 2
    while five < best:
        three = five
        while three < best:
            two = three << max(0, (-(-n // three) - 1).bit_length())
            best = min(best, two)
            three *= 3
        five *= 5
    return best


def _distances(a: Array, b: Array) -> tuple[float, float]:
    """KS and Wasserstein-1 distance of two sorted samples, exactly, ties included."""
    both = np.sort(np.concatenate((a, b)), kind="stable")  # merges two runs
    gap = np.abs(np.searchsorted(a, both, side="right") / a.size - np.searchsorted(b, both, side="right") / b.size)
    return float(gap.max()), float(np.dot(gap[:-1], np.diff(both)))


def _histogram(a: Array, b: Array) -> HistogramPair:
    """Both over bins that hold equal shares of the reference; a bin each when it has few distinct values.

    Bins are open on the left and closed on the right, and the outermost take what lies outside, as in
    `tinylcm.drift.PSI`.
    """
    distinct = a[np.concatenate(([True], a[1:] != a[:-1]))]
    labels: tuple[str, ...] = ()
    if distinct.size == 1:  # the bin of a constant is as narrow as can be: a sensor that is stuck elsewhere leaves it
        value = float(distinct[0])
        inner = np.array([np.nextafter(value, -np.inf), value])
        step = max(1.0, abs(value)) * 1e-3
        edges = np.array([value - step, *inner, value + step])
        labels = (f"below {value:.6g}", f"{value:.6g}", f"above {value:.6g}")
    elif distinct.size <= BINS_MAX:
        low, high = distinct[:-1], distinct[1:]
        middle = low / 2 + high / 2
        inner = np.where(middle < high, middle, low)
        edges = np.array([2 * low[0] - inner[0], *inner, 2 * high[-1] - inner[-1]])
        labels = tuple(f"{value:.6g}" for value in distinct)
    else:
        cuts = np.unique(a[np.arange(1, BINS_MAX) * a.size // BINS_MAX - 1])
        inner = cuts[cuts < a[-1]]
        edges = np.array([a[0], *inner, a[-1]])
    counts = [np.diff(np.searchsorted(side, inner, side="right"), prepend=0, append=side.size) for side in (a, b)]
    return _pair(counts[0], counts[1], tuple(edges.tolist()), labels)


def _pair(
    reference: NDArray[np.intp], current: NDArray[np.intp], edges: tuple[float, ...], labels: tuple[str, ...]
) -> HistogramPair:
    return HistogramPair(
        tuple(float(count) for count in reference), tuple(float(count) for count in current), edges, labels
    )


def _divergences(pair: HistogramPair) -> tuple[float, float]:
    """PSI and Jensen-Shannon distance of a histogram with values on both sides."""
    reference, current = np.array(pair.reference), np.array(pair.current)
    size, scale = current.sum(), 1 / (current.sum() + current.size * SMOOTHING)
    p = (current + SMOOTHING) * scale
    q = (reference / reference.sum() * size + SMOOTHING) * scale  # the current size: both are smoothed alike
    psi = float(np.sum((p - q) * (np.log(p) - np.log(q))))
    p, q = current / size, reference / reference.sum()
    middle = (p + q) / 2
    total = 0.0
    for share in (p, q):
        seen = share > 0
        total += float(np.sum(share[seen] * np.log2(share[seen] / middle[seen]))) / 2
    return psi, math.sqrt(min(1.0, max(0.0, total)))


# categories -----------------------------------------------------------------------------------------------


def _categories(name: str, reference: Column, current: Column) -> Feature:
    texts = [_texts(column) for column in (reference, current)]
    counters = [Counter(values) for values in texts]
    n, m = (len(values) for values in texts)
    shares: dict[str, float] = {}
    for counter, size in zip(counters, (n, m), strict=True):
        for value, count in counter.items():
            shares[value] = shares.get(value, 0.0) + count / size
    ranked = sorted(shares, key=lambda value: (-shares[value], value))
    kept = ranked[:BINS_MAX]
    labels = (*kept, f"{len(ranked) - len(kept)} others") if len(ranked) > len(kept) else tuple(kept)
    place = {value: min(index, BINS_MAX) for index, value in enumerate(ranked)}
    codes = [np.fromiter(map(place.__getitem__, values), np.intp, len(values)) for values in texts]
    counts = [np.bincount(found, minlength=len(labels)) for found in codes]
    left, right = (
        Side(len(values), column.size - len(values), _effective_codes(found, counted), distinct=len(counter))
        for values, column, found, counted, counter in zip(
            texts, (reference, current), codes, counts, counters, strict=True
        )
    )
    pair = _pair(counts[0], counts[1], (), labels)
    feature = Feature(name, "category", left, right, pair)
    if not n or not m:
        return feature
    scaled = ((pair.reference, left), (pair.current, right))
    p = _chi_square(*(np.array(row) / sum(row) * side.effective for row, side in scaled))
    psi, js = _divergences(pair)
    return replace(feature, psi=psi, js=js, p=p)


def _texts(column: Column) -> list[str]:
    """The values as text, without the missing ones."""
    if column.dtype.kind == "f":
        return []  # a column of nothing but NaN beside one of categories
    return [text for text in map(str, column.tolist()) if text]


def _effective_codes(codes: NDArray[np.intp], counts: NDArray[np.intp]) -> float:
    """Effective size from how often two values of a given distance in time are of the same category."""
    if not codes.size:
        return 0.0
    present = np.flatnonzero(counts)
    rows = (codes == present[:, np.newaxis]).astype(np.float64)
    return _effective_size(codes.size, _autocorrelation_time(rows))


def _chi_square(reference: Array, current: Array) -> float:
    """P-value that both rows of a table come from the same shares."""
    smaller = min(reference.sum(), current.sum()) / (reference.sum() + current.sum())
    rare = (reference + current) * smaller < EXPECTED_MIN
    table = np.stack((reference, current))
    table = np.column_stack((table[:, ~rare], table[:, rare].sum(axis=1)))
    table = table[:, table.sum(axis=0) > 0]
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    statistic = float(np.sum((table - expected) ** 2 / expected))
    degrees = table.shape[1] - 1
    return upper_gamma(degrees / 2, statistic / 2) if degrees else 1.0
