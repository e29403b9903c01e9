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

import csv
import html
import math
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final, Literal, TextIO

import numpy as np
from numpy.typing import NDArray

from ._ext.windowed import kolmogorov, upper_gamma
from .calibration import holm_adjusted
from .checks import is_utf8
from .errors import ConfigError, InputError
from .types import HistogramPair

Column = NDArray[np.generic]
Array = NDArray[np.float64]
Verdict = Literal["drift", "changed slightly", "too little data", "no drift"]
Json = dict[str, object]

FEATURES_MAX: Final = 4096
FILE_BYTES_MAX: Final = 2_000_000_000
NAME_LENGTH_MAX: Final = 200
CATEGORY_LENGTH_MAX: Final = 200  # a text array is as wide as its longest cell: one novel must not fill the memory
LINE_LENGTH_MAX: Final = 4_000_000
ROWS_AT_A_TIME: Final = 20_000
BINS_MAX: Final = 20
SMOOTHING: Final = 0.5  # as tinylcm.drift.PSI
EFFECTIVE_MIN: Final = 20.0
EXPECTED_MIN: Final = 5.0  # below it a cell's share of chi-square is far from its asymptotic law (Cochran 1954)
PSI_MIN: Final = 0.1
KS_MIN: Final = 0.1
MISSING_CHANGE_MIN: Final = 0.05
CHARTS_MAX: Final = 200  # a page with thousands of charts opens in no browser
MISSING_WORDS: Final = frozenset({"", "na", "n/a", "nan", "null", "none"})
SEVERITY: Final[tuple[Verdict, ...]] = ("drift", "changed slightly", "too little data", "no drift")


# loading --------------------------------------------------------------------------------------------------


def load_table(path: Path) -> dict[str, Column]:
    """Features of a table by name, from `.npz` or `.csv`.

    In an .npz each 1-D array is a feature under its own name and each 2-D array `[n, d]` gives `name[0]` to
    `name[d-1]`; a 1-D text array `columns` names the columns of the one 2-D array instead. A .csv has a header line
    and commas; a column with anything but numbers holds categories, and empty cells, NA, NaN, null and None are
    missing values. Rows are expected in the order of time.

    Raises:
        InputError: there is no such file, it is too large or damaged, or it holds no table.
    """
    readers = {".npz": _load_npz, ".csv": _load_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: expected a table named *.npz or *.csv")
    try:
        if not path.is_file():
            raise InputError(f"{path}: there is no such file")
        if (size := path.stat().st_size) > FILE_BYTES_MAX:
            raise InputError(f"{path}: has {size:,} bytes, at most {FILE_BYTES_MAX:,} are read: take fewer rows")
        table = reader(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise InputError(f"{path}: does not fit into this machine's memory: take fewer rows") from None
    if not table:
        raise InputError(f"{path}: holds no features")
    if not any(column.size for column in table.values()):
        raise InputError(f"{path}: holds no rows")
    return table


def _put(table: dict[str, Column], path: Path, name: str, column: Column) -> None:
    if not is_utf8(name) or len(name) > NAME_LENGTH_MAX:
        raise InputError(
            f"{path}: {name!a:.60} is no name for a feature: expected at most {NAME_LENGTH_MAX} characters"
        )
    if name in table:
        raise InputError(f"{path}: two features are named {name!r}: rename one")
    if len(table) == FEATURES_MAX:
        raise InputError(f"{path}: has more than {FEATURES_MAX} features: compare fewer at a time")
    table[name] = column


def _load_npz(path: Path) -> dict[str, Column]:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: is no .npz archive: write it with numpy.savez(path, name=array)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            size = sum(entry.file_size for entry in archive.zip.infolist())
            if size > FILE_BYTES_MAX:
                raise InputError(f"{path}: unpacks to {size:,} bytes, at most {FILE_BYTES_MAX:,} are read")
            names = list(dict.fromkeys(archive.files))
            if len(names) > FEATURES_MAX + 1:
                raise InputError(f"{path}: has {len(names)} arrays, at most {FEATURES_MAX} features are compared")
            arrays = {name: _usable(archive[name], path, name) for name in names}
    except InputError:
        raise
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        if "allow_pickle" in str(error):
            raise InputError(
                f"{path}: holds Python objects, which are never unpickled: save numbers, or text with dtype=str"
            ) from None
        raise InputError(f"{path}: is damaged or no .npz archive: {error}") from None
    titles = _column_titles(arrays, path)
    table: dict[str, Column] = {}
    for name, array in arrays.items():
        if array.ndim == 1:
            _put(table, path, name, array)
        for index in range(array.shape[1] if array.ndim == 2 else 0):
            _put(table, path, titles[index] if titles else f"{name}[{index}]", array[:, index])
    return table


def _usable(array: object, path: Path, name: str) -> Column:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: its part {name!r} is no array: write the file with numpy.savez")
    if array.ndim not in (1, 2):
        raise InputError(
            f"{path}: array {name!r} has the shape {array.shape}, expected [n] or [n, d]: reshape it, or leave it out"
        )
    if array.ndim == 2 and array.shape[1] > FEATURES_MAX:
        raise InputError(f"{path}: array {name!r} has {array.shape[1]} columns, at most {FEATURES_MAX} are compared")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind == "U" and array.dtype.itemsize > 4 * CATEGORY_LENGTH_MAX:
        raise InputError(f"{path}: array {name!r} holds texts of over {CATEGORY_LENGTH_MAX} characters: leave it out")
    if array.dtype.kind not in "fiubU":
        raise InputError(f"{path}: array {name!r} has the type {array.dtype}, expected numbers or text")
    if array.dtype.kind == "U" and array.size:
        points = np.ascontiguousarray(array).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if points.max() > sys.maxunicode:  # numpy stores them, and fails later when it makes a str
            raise InputError(f"{path}: array {name!r} holds code points that Unicode does not have: it is damaged")
    return array


def _column_titles(arrays: dict[str, Column], path: Path) -> list[str]:
    """Take the array `columns` out when it names the columns of the one 2-D array; an empty list when it does not."""
    columns = arrays.get("columns")
    wide = [name for name, array in arrays.items() if array.ndim == 2]
    if columns is None or columns.ndim != 1 or columns.dtype.kind != "U" or not wide:
        return []
    if len(wide) > 1:
        raise InputError(f"{path}: `columns` names the columns of one 2-D array, but there are {len(wide)}: {wide}")
    if (width := arrays[wide[0]].shape[1]) != columns.size:
        raise InputError(f"{path}: `columns` has {columns.size} names, but {wide[0]!r} has {width} columns")
    del arrays["columns"]
    return [str(title) for title in columns.tolist()]


def _load_csv(path: Path) -> dict[str, Column]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names, rows = _csv_rows(file, path)
            numbers: list[list[Array] | None] = [[] for _ in names]  # None once a cell was no number
            while chunk := list(islice(rows, ROWS_AT_A_TIME)):
                for index, cells in enumerate(zip(*chunk, strict=True)):
                    if (parts := numbers[index]) is None:
                        continue
                    if (parsed := _parse_numbers(cells)) is None:
                        numbers[index] = None
                    else:
                        parts.append(parsed)
        # Whether a column is text shows at its last row only. A second reading is cheaper than keeping every cell.
        texts = _read_texts(path, [index for index, parts in enumerate(numbers) if parts is None])
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text ({error.reason}): save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}: is no CSV table: {error}") from None
    table: dict[str, Column] = {}
    for index, name in enumerate(names):
        parts = numbers[index]
        column: Column = texts[index] if parts is None else np.concatenate(parts) if parts else np.empty(0)
        _put(table, path, name, column)
    return table


def _csv_rows(file: TextIO, path: Path) -> tuple[list[str], Iterator[list[str]]]:
    """The names in the header and the rows below it, each as long as the header."""
    reader = csv.reader(_lines(file, path), strict=True)
    header = next(reader, None)
    if not header:
        raise InputError(f"{path}: is empty, expected a header line with the names of the columns")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise InputError(f"{path}: its columns are not separated by commas: save it with ',' between them")
    if len(header) > FEATURES_MAX:
        raise InputError(f"{path}: has {len(header)} columns, at most {FEATURES_MAX} are compared")
    names = [name.strip() or f"column {index + 1}" for index, name in enumerate(header)]

    def rows() -> Iterator[list[str]]:
        for row in reader:
            if row and len(row) != len(names):
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(row)} cells, expected {len(names)} as in the header"
                )
            if row:
                yield row

    return names, rows()


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(LINE_LENGTH_MAX):
        if len(line) == LINE_LENGTH_MAX and not line.endswith("\n"):
            raise InputError(f"{path}: a line is longer than {LINE_LENGTH_MAX:,} characters: is it a CSV table?")
        yield line


def _parse_numbers(cells: Sequence[str]) -> Array | None:
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError:
        filled = ["nan" if cell.strip().lower() in MISSING_WORDS else cell for cell in cells]
    try:
        return np.array(filled, dtype=np.float64)
    except ValueError:
        return None


def _read_texts(path: Path, indexes: list[int]) -> dict[int, Column]:
    if not indexes:
        return {}
    parts: dict[int, list[Column]] = {index: [] for index in indexes}
    with path.open(encoding="utf-8-sig", newline="") as file:
        names, rows = _csv_rows(file, path)
        while chunk := list(islice(rows, ROWS_AT_A_TIME)):
            for index in indexes:
                cells = [row[index].strip() for row in chunk]
                if max(map(len, cells)) > CATEGORY_LENGTH_MAX:
                    raise InputError(
                        f"{path}: column {names[index]!r} has cells of over {CATEGORY_LENGTH_MAX} characters, which are"
                        " no categories: leave it out"
                    )
                parts[index].append(np.array(["" if cell.lower() in MISSING_WORDS else cell for cell in cells]))
    return {index: np.concatenate(found) for index, found in parts.items()}


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
        return _page(self)


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


# the page -------------------------------------------------------------------------------------------------

STYLE: Final = """
:root { color-scheme: light dark; --ground: #f6f7f8; --panel: #ffffff; --ink: #17212b; --quiet: #56636f;
  --line: #dde2e7; --link: #0b6e75; --bad: #b3261e; --warn: #9a5200; --good: #1a7f4b;
  --reference: #1d4e89; --current: #dd6b20; }
@media (prefers-color-scheme: dark) { :root { --ground: #10161c; --panel: #18212a; --ink: #e6ebf0; --quiet: #9aa8b5;
  --line: #2b3742; --link: #4fc0c8; --bad: #ff8078; --warn: #f0a04b; --good: #4cc38a; --reference: #9cc3f0;
  --current: #d9611a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 1.4rem 1rem 3rem; }
h1 { font-size: 1.4rem; margin: 0 0 .8rem; }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
a { color: var(--link); }
.panel { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 0 0 1rem; }
.lead { font-size: 1.1rem; margin: 0 0 .8rem; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); }
.scroll { overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; padding: .3rem .5rem; border-bottom: 1px solid var(--line); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { font-weight: 600; color: var(--quiet); font-size: .85rem; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child, .left { text-align: left; }
td.name { max-width: 18rem; overflow: hidden; text-overflow: ellipsis; }
tbody tr:last-child > * { border-bottom: 0; }
.verdict { font-weight: 600; white-space: nowrap; }
.verdict::before { content: ""; display: inline-block; width: .65rem; height: .65rem; border-radius: 50%;
  margin-right: .4rem; background: var(--quiet); }
.bad::before { background: var(--bad); }
.warn::before { background: var(--warn); }
.good::before { background: var(--good); }
.head { display: flex; flex-wrap: wrap; gap: .3rem 1rem; align-items: baseline; justify-content: space-between; }
.feature { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 1rem 1.5rem; align-items: start; }
@media (max-width: 820px) { .feature { grid-template-columns: minmax(0, 1fr); } }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .85rem; color: var(--quiet); margin: .5rem 0; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .35rem;
  vertical-align: -1px; }
i.r { background: var(--reference); } i.c { background: var(--current); }
svg { width: 100%; height: auto; display: block; overflow: visible; }
svg text { fill: var(--quiet); font-size: 11px; } svg line { stroke: var(--line); }
svg .r { fill: var(--reference); } svg .c { fill: var(--current); }
ul { margin: .3rem 0; padding-left: 1.2rem; } p { margin: .5rem 0; }
@media print { .panel { break-inside: avoid; } }
"""
# Nothing is fetched, whatever a name or a value smuggles in.
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
TONES: Final[dict[Verdict, str]] = {
    "drift": "bad", "changed slightly": "warn", "too little data": "none", "no drift": "good",
}  # fmt: skip
NAMES_SHOWN: Final = 12
CONTROLS: Final = dict.fromkeys((*range(32), *range(127, 160), *range(0xD800, 0xE000)), "\ufffd")
WIDTH: Final = 560
LEFT: Final = 44
PLOT_HEIGHT: Final = 170
TOP: Final = 10
LABEL_LENGTH_MAX: Final = 12
CHARACTER_WIDTH: Final = 6.4  # of the axis labels at 11 px


def _text(value: object, length_max: int = 120) -> str:
    """Text for the page, escaped, without control characters, and not longer than a person reads."""
    text = str(value).translate(CONTROLS)
    return html.escape(text if len(text) <= length_max else text[: length_max - 1] + "…")


def _name(value: str, length_max: int = 120) -> str:
    return f"<bdi>{_text(value, length_max)}</bdi>"  # a name written from right to left must not turn the line around


def _number(value: float | None, digits: int = 4) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:,.0f}" if 10**digits <= abs(value) < 1e7 else f"{value + 0.0:.{digits}g}"
    return text.replace("-", "−")


def _probability(p: float | None) -> str:
    return "–" if p is None else "&lt; 0.0001" if p < 1e-4 else f"{p:.2g}"


def _verdict(verdict: Verdict) -> str:
    return f'<span class="verdict {TONES[verdict]}">{verdict}</span>'


def _several(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(_name(name) for name in names[:NAMES_SHOWN])
    return shown + (f" and {len(names) - NAMES_SHOWN:,} more" if len(names) > NAMES_SHOWN else "")


def _page(report: Report) -> str:
    features = report.by_severity()
    title = f"Drift report: {_text(report.reference_name)} and {_text(report.current_name)}"
    left_out = len(features) - CHARTS_MAX
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>Drift report</h1>\n",
        _summary(report, features),
        _reading(report),
        _overview(features) if features else "",
        "<h2>Features</h2>\n" if features else "",
        *(_card(index, feature) for index, feature in enumerate(features[:CHARTS_MAX])),
        f'<p class="quiet">The other {_several(left_out, "feature")} have no chart here.</p>\n' if left_out > 0 else "",
        "</main>\n</body>\n</html>\n",
    ]
    return "".join(parts)


def _summary(report: Report, features: Sequence[Feature]) -> str:
    found = {verdict: [item.name for item in features if item.verdict == verdict] for verdict in SEVERITY}
    judged = len(features) - len(found["too little data"])
    if found["drift"]:
        lead = f"{len(found['drift']):,} of {_several(len(features), 'feature')} drifted: {_listed(found['drift'])}."
    elif not features:
        lead = "The tables have no feature in common, so nothing could be compared."
    elif not judged:
        lead = f"None of the {_several(len(features), 'feature')} has enough independent values for a judgement."
    else:
        lead = f"No drift was found in {_several(judged, 'feature')}."
    lines = [
        ("Changed, but by little", found["changed slightly"]),
        ("Not judged, too little data", found["too little data"]),
        ("Share of missing values changed", [item.name for item in features if _missing_changed(item)]),
        ("Only in the reference", report.missing),
        ("Only in the current table", report.new),
    ]
    more = "".join(f"<dt>{label}</dt><dd>{_listed(names)}</dd>" for label, names in lines if names)
    return (
        f'<section class="panel">\n<p class="lead">{_verdict(report.verdict)}. {lead}</p>\n<dl>'
        f"<dt>Reference</dt><dd>{_name(report.reference_name)}, {_several(report.reference_rows, 'row')}</dd>"
        f"<dt>Current</dt><dd>{_name(report.current_name)}, {_several(report.current_rows, 'row')}</dd>"
        f"<dt>Compared</dt><dd>{_several(len(features), 'feature')}</dd>{more}</dl>\n</section>\n"
    )


def _missing_changed(feature: Feature) -> bool:
    return abs(feature.reference.missing_share - feature.current.missing_share) >= MISSING_CHANGE_MIN


def _reading(report: Report) -> str:
    tests = sum(feature.p is not None for feature in report.features)
    return (
        '<section class="panel">\n<h3>How to read it</h3>\n'
        "<p>A <b>p-value</b> is the chance that two stretches of one unchanged process differ at least as much as these"
        " do. Neighbouring rows resemble each other, so the test counts <i>effective</i> values, which are as many"
        " independent ones as the rows are worth. The p-values are adjusted for"
        f" {_several(tests, 'test')} (Holm), so that the chance of even one false finding on this page is at most"
        f" {report.alpha:.3g}.</p>\n"
        "<p>It does <b>not</b> say how large a change is (PSI and KS do), whether it matters, or whether the model's"
        " predictions became worse. A high p-value does not prove that nothing changed. And it holds for rows in the"
        " order of time: shuffled rows hide how alike neighbours are, and make p-values too small.</p>\n<ul>"
        f"<li>{_verdict('drift')}: significant, and PSI is at least {PSI_MIN} or KS at least {KS_MIN}.</li>"
        f"<li>{_verdict('changed slightly')}: significant, but both are smaller.</li>"
        f"<li>{_verdict('no drift')}: two such tables may well come from one unchanged process.</li>"
        f"<li>{_verdict('too little data')}: fewer than {EFFECTIVE_MIN:.0f} effective values on a side.</li></ul>\n"
        "<p>PSI (population stability index) and JS (Jensen-Shannon distance, 0 to 1) compare the histograms; with few"
        " values both are large by chance alone (PSI by about 19 over the size of each side). KS is the largest gap"
        " between the cumulative shares, 0 to 1. W1 (Wasserstein distance) is how far the values moved on"
        " average, in standard deviations (sd) of the reference.</p>\n</section>\n"
    )


def _overview(features: Sequence[Feature]) -> str:
    rows = []
    for index, item in enumerate(features):
        name = f'<a href="#f{index}">{_name(item.name)}</a>' if index < CHARTS_MAX else _name(item.name)
        cells = (
            _number(item.psi, 3), _number(item.ks, 3), _number(item.js, 3), _number(item.wasserstein_scaled, 3),
            _number(item.mean_shift, 3), _probability(item.p_adjusted),
            f"{item.reference.missing_share:.1%} → {item.current.missing_share:.1%}",
        )  # fmt: skip
        rows.append(
            f'<tr><td class="name">{name}</td><td class="left">{_verdict(item.verdict)}</td>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>\n"
        )
    return (
        '<h2>All features, the worst first</h2>\n<div class="panel scroll">\n<table><thead><tr><th>Feature</th>'
        '<th class="left">Verdict</th><th>PSI</th><th>KS</th><th>JS</th><th>W1, sd</th><th>Mean shift, sd</th>'
        "<th>p, adjusted</th><th>Missing</th></tr></thead>\n<tbody>\n" + "".join(rows) + "</tbody></table>\n</div>\n"
    )


def _card(index: int, feature: Feature) -> str:
    left, right = feature.reference, feature.current
    rows = [
        ("values", f"{left.count:,}", f"{right.count:,}"),
        ("effective", f"{left.effective:,.0f}", f"{right.effective:,.0f}"),
        ("missing", f"{left.missing:,}", f"{right.missing:,}"),
    ]
    if feature.kind == "category":
        rows.append(("categories", f"{left.distinct or 0:,}", f"{right.distinct or 0:,}"))
    else:
        names = ("mean", "std", "min", "median", "max")
        rows += [(name, _number(getattr(left, name), 5), _number(getattr(right, name), 5)) for name in names]
    measures = [("PSI", _number(feature.psi, 3)), ("JS", _number(feature.js, 3))]
    if feature.kind == "number":
        measures += [("KS", _number(feature.ks, 3)), ("W1", _number(feature.wasserstein, 3))]
    measures += [("p", _probability(feature.p)), ("adjusted", _probability(feature.p_adjusted))]
    return (
        f'<section class="panel" id="f{index}">\n<div class="head"><h3>{_name(feature.name, 200)}</h3>'
        f"{_verdict(feature.verdict)}</div>\n"
        f'<p class="quiet">{" · ".join(f"{label} {value}" for label, value in measures)}</p>\n'
        + "".join(f"<p>{_text(note, 400)}</p>\n" for note in feature.notes)
        + f'<div class="feature"><div>{_chart(feature)}</div>\n<div class="scroll"><table><thead><tr>'
        f"<th></th><th>reference</th><th>current</th></tr></thead><tbody>"
        + "".join(f"<tr><td>{label}</td><td>{a}</td><td>{b}</td></tr>" for label, a, b in rows)
        + "</tbody></table></div></div>\n</section>\n"
    )


def _chart(feature: Feature) -> str:
    """The histogram as bars in pairs, of equal width: with equal shares a bin, a wide one says little by its width."""
    pair = feature.histogram
    if not pair.reference:
        return '<p class="quiet">The reference has no values to draw.</p>'
    sides = [[count / (sum(counts) or 1) for count in counts] for counts in (pair.reference, pair.current)]
    step = _round_step(max(map(max, sides)) / 4)
    ticks = math.ceil(max(map(max, sides)) / step - 1e-9)
    scale, slot = PLOT_HEIGHT / (ticks * step), (WIDTH - LEFT - 10) / len(pair.reference)
    floor = TOP + PLOT_HEIGHT
    axis, height = _axis(pair, slot, floor)
    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{i * step * 100:.3g} %</text>'
        for i in range(ticks + 1)
        for y in [floor - i * step * scale]
    )
    bars = "".join(
        f"<g><title>{_bin_title(pair, i)}: reference {a:.1%}, current {b:.1%}</title>"
        + "".join(
            f'<rect class="{tone}" x="{LEFT + slot * (i + at):.1f}" y="{floor - share * scale:.1f}"'
            f' width="{slot * 0.4:.1f}" height="{share * scale:.1f}"/>'
            for tone, at, share in (("r", 0.1, a), ("c", 0.5, b))
            if share
        )
        + "</g>"
        for i, (a, b) in enumerate(zip(*sides, strict=True))
    )
    single = "category" if feature.kind == "category" else "value"
    caption = single if pair.labels else "edges of bins that hold equal shares of the reference, ties aside"
    return (
        '<div class="legend"><span><i class="r"></i>reference</span><span><i class="c"></i>current</span>'
        f"<span>share of values, by {caption}</span></div>\n"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Reference and current histogram of'
        f' {_text(feature.name)}">{grid}{bars}{axis}</svg>\n'
    )


def _round_step(wanted: float) -> float:
    """1, 2 or 5 times a power of ten, `wanted` or a little more."""
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * (1 - 1e-9))


def _axis(pair: HistogramPair, slot: float, floor: int) -> tuple[str, int]:
    """Labels below the bars, and how high the chart is with them."""
    if pair.labels:
        # Long names often differ at their end, so it is the middle that goes.
        cut = [label if len(label) <= LABEL_LENGTH_MAX else f"{label[:6]}…{label[-5:]}" for label in pair.labels]
        places = [LEFT + slot * (i + 0.5) for i in range(len(cut))]
    else:
        cut = [_number(edge, 3) for edge in pair.edges]
        places = [LEFT + slot * i for i in range(len(cut))]
    longest = max(map(len, cut)) * CHARACTER_WIDTH
    if longest + 6 <= slot:
        marks = [
            f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{_text(label)}</text>'
            for x, label in zip(places, cut, strict=True)
        ]
        return "".join(marks), floor + 24
    marks = [
        f'<text transform="translate({x + 3:.1f} {floor + 14}) rotate(-50)" text-anchor="end">{_text(label)}</text>'
        for x, label in zip(places, cut, strict=True)
    ]
    return "".join(marks), floor + 22 + round(longest * 0.77)


def _bin_title(pair: HistogramPair, index: int) -> str:
    if pair.labels:
        return _text(pair.labels[index])
    low, high = _number(pair.edges[index]), _number(pair.edges[index + 1])
    if index == 0:
        return f"up to {high}"
    return f"above {low}" if index == len(pair.reference) - 1 else f"above {low}, up to {high}"
