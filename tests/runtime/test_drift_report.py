"""The drift report: tables that load or say why not, measures against scipy, verdicts, and a page that is safe."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import lfilter
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2_contingency, false_discovery_control, ks_2samp, kstwobign, wasserstein_distance
from tinylcm import drift_report
from tinylcm.drift import PSI, CategoricalPSI
from tinylcm.drift_report import Feature, Report, compare, holm_adjusted, load_table
from tinylcm.errors import ConfigError, InputError

HOSTILE = "<script>alert('x')</script>\"&\x00\u202e"
VOID = {"meta", "br", "img", "link", "input", "hr"}


def one(reference: object, current: object, **options: float) -> Feature:
    """The only feature of a comparison."""
    return compare({"x": np.asarray(reference)}, {"x": np.asarray(current)}, **options).features[0]


def ar1(rng: np.random.Generator, phi: float, n: int) -> np.ndarray:
    """A stationary stream of unit variance whose neighbours correlate by `phi`."""
    noise = rng.normal(0, math.sqrt(1 - phi * phi), n)
    noise[0] /= math.sqrt(1 - phi * phi)
    return lfilter([1.0], [1.0, -phi], noise)


def colours(scheme: str) -> dict[str, str]:
    return dict(re.findall(r"--(\w+): (#\w{6})", scheme))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


class Balance(HTMLParser):
    """Every element is closed in its order; keeps the tags, the attributes and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(42)


# loading --------------------------------------------------------------------------------------------------


def test_an_npz_gives_its_arrays_and_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    np.savez(path, a=np.arange(3), b=np.arange(6.0).reshape(3, 2), c=np.array(["x", "y", "x"]), d=np.array([b"u"]))
    table = load_table(path)
    assert list(table) == ["a", "b[0]", "b[1]", "c", "d"]
    assert table["b[1]"].tolist() == [1, 3, 5] and table["c"].tolist() == ["x", "y", "x"]
    assert table["d"].tolist() == ["u"]


def test_columns_name_the_columns_of_an_npz(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    np.savez_compressed(path, data=np.arange(6.0).reshape(3, 2), columns=np.array(["ax", HOSTILE]))
    assert {name: column.tolist() for name, column in load_table(path).items()} == {"ax": [0, 2, 4], HOSTILE: [1, 3, 5]}


def test_a_csv_gives_numbers_categories_and_missing_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_report, "ROWS_AT_A_TIME", 2)  # text turns up in a later part than numbers
    path = tmp_path / "table.csv"
    path.write_text('﻿a, b ,,"d,e"\n1,1.5,07,x\n,NaN,8,\n3,-2e3,old,N/A\n\n')
    table = load_table(path)
    assert list(table) == ["a", "b", "column 3", "d,e"]
    np.testing.assert_array_equal(table["a"], [1, np.nan, 3])
    np.testing.assert_array_equal(table["b"], [1.5, np.nan, -2000])
    assert table["column 3"].tolist() == ["07", "8", "old"] and table["d,e"].tolist() == ["x", "", ""]


def write_npz(**arrays: object) -> Callable[[Path], object]:
    return lambda path: np.savez(path, **arrays)  # type: ignore[arg-type]


def write_zip(name: str, content: bytes) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)

    return write


def bare_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.arange(3))


def damaged(path: Path) -> None:
    np.savez_compressed(path, a=np.arange(5000))
    data = bytearray(path.read_bytes())
    data[200:400] = b"\xff" * 200
    path.write_bytes(data)


HUGE_SHAPE = (
    b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(118)
)
BAD_NPZ: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("hello"), "is no .npz archive"),
    "npy": (bare_array, "is no .npz archive"),
    "cut": (lambda path: path.write_bytes(b"PK\x03\x04"), "is no .npz archive"),
    "damaged": (damaged, "is damaged"),
    "no array": (write_zip("a.txt", b"hello"), "is no array"),
    "lying header": (write_zip("a.npy", HUGE_SHAPE), "fit into this machine's memory|is damaged"),
    "objects": (write_npz(a=np.array([{}], dtype=object)), "never unpickled"),
    "no features": (write_npz(), "holds no features"),
    "no rows": (write_npz(a=np.empty(0)), "holds no rows"),
    "scalar": (write_npz(a=np.float64(3)), r"shape \(\), expected \[n\]"),
    "three dimensions": (write_npz(a=np.zeros((2, 2, 2))), r"expected \[n\] or \[n, d\]"),
    "complex": (write_npz(a=np.zeros(3, dtype=complex)), "type complex128"),
    "not UTF-8": (write_npz(a=np.array([b"\xff"])), "is damaged"),
    "essay": (write_npz(a=np.array(["x" * 201])), "over 200 characters"),
    "wide": (write_npz(a=np.zeros((1, 4097))), "4097 columns"),
    "many": (write_npz(a=np.zeros((1, 4000)), b=np.zeros((1, 97))), "more than 4096 features"),
    "twice": (write_npz(**{"a": np.zeros((1, 2)), "a[1]": np.zeros(1)}), "two features"),
    "columns short": (write_npz(a=np.zeros((1, 2)), columns=np.array(["x"])), "1 names, but 'a' has 2 columns"),
    "columns of what": (write_npz(a=np.zeros((1, 1)), b=np.zeros((1, 1)), columns=np.array(["x"])), "there are 2"),
    "surrogate": (write_npz(a=np.zeros((1, 1)), columns=np.array(["\ud800"])), "no name for a feature"),
    "long name": (write_npz(a=np.zeros((1, 1)), columns=np.array(["x" * 201])), "over 200 characters"),
    "no Unicode": (
        write_npz(a=np.zeros((1, 1)), columns=np.array([0x7FFFFFFF], "<u4").view("<U1")),
        "code points that Unicode does not have",
    ),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_a_bad_npz_says_what_is_wrong(tmp_path: Path, case: str) -> None:
    write, message = BAD_NPZ[case]
    path = tmp_path / "table.npz"
    write(path)
    with pytest.raises(InputError, match=message) as caught:
        load_table(path)
    assert "table.npz" in str(caught.value)


BAD_CSV: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "header only": (b"a,b\n", "holds no rows"),
    "ragged": (b"a,b\n1,2\n3\n", "line 3 has 1 cells, expected 2"),
    "ragged wide": (b"a,b\n1,2,3\n", "line 2 has 3 cells"),
    "semicolons": (b"a;b\n1;2\n", "not separated by commas"),
    "twice": (b"a,a\n1,2\n", "two features are named 'a'"),
    "latin-1": (b"a\n\xfc\n", "no UTF-8"),
    "quote": (b'a\n"x\n', "no CSV table"),
    "essay": (b"a\n" + b"x" * 201 + b"\n", "over 200 characters"),
    "wide": (b",".join(b"%d" % i for i in range(4097)) + b"\n", "4097 columns"),
    "line": (b"a\n" + b"1" * 4_000_001, "longer than 4,000,000"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_a_bad_csv_says_what_is_wrong(tmp_path: Path, case: str) -> None:
    content, message = BAD_CSV[case]
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_table(path)


def test_a_file_that_is_not_there_not_a_table_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.npz"
    with pytest.raises(InputError, match="no such file"):
        load_table(path)
    with pytest.raises(InputError, match=r"\*.npz or \*.csv"):
        load_table(tmp_path / "table.parquet")
    with path.open("wb") as file:
        file.truncate(2_000_000_001)  # sparse
    with pytest.raises(InputError, match="at most 2,000,000,000"):
        load_table(path)
    np.savez_compressed(path, a=np.zeros(10_000))  # small until it is unpacked
    monkeypatch.setattr(drift_report, "FILE_BYTES_MAX", 50_000)
    with pytest.raises(InputError, match="unpacks to"):
        load_table(path)


@given(st.binary(max_size=300))
def test_random_bytes_are_a_table_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    for suffix in ("csv", "npz"):
        path = tmp_path_factory.getbasetemp() / f"random.{suffix}"
        path.write_bytes(data)
        with suppress(InputError):
            assert load_table(path)


# measures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", [12, 1, 0])
def test_ks_and_wasserstein_are_scipys_with_ties_and_unequal_sizes(rng: np.random.Generator, decimals: int) -> None:
    reference, current = rng.normal(0, 1, 700).round(decimals), rng.normal(0.2, 1.3, 431).round(decimals)
    feature = one(reference, current)
    assert feature.ks == pytest.approx(ks_2samp(reference, current).statistic, abs=1e-12)
    assert feature.wasserstein == pytest.approx(wasserstein_distance(reference, current), rel=1e-9)


def test_the_p_value_of_independent_values_is_kolmogorovs(rng: np.random.Generator) -> None:
    feature = one(rng.normal(0, 1, 5000), rng.normal(0.04, 1, 4000))
    n, m = feature.reference.effective, feature.current.effective
    assert n == pytest.approx(5000, rel=0.1) and m == pytest.approx(4000, rel=0.1)
    assert feature.p == pytest.approx(kstwobign.sf(math.sqrt(n * m / (n + m)) * feature.ks), rel=0.05)


@pytest.mark.parametrize("n", [40, 1000, 20_000])
def test_psi_is_the_detectors_and_js_scipys(rng: np.random.Generator, n: int) -> None:
    feature = one(rng.normal(0, 1, n), current := rng.normal(0.4, 1.5, 500))
    pair = feature.histogram
    detector = PSI(pair.edges, pair.reference, window=500, smoothing=0.5, threshold=1e9)
    detector.update_many(current)
    assert len(pair.reference) == 20 and pair.current == detector.histogram.current
    assert feature.psi == pytest.approx(detector.statistic, rel=1e-9)
    assert feature.js == pytest.approx(jensenshannon(pair.reference, pair.current, base=2), rel=1e-9)


def test_bins_hold_equal_shares_and_the_outermost_take_the_rest() -> None:
    feature = one(np.arange(1000.0), np.array([-1e6, 1e6, 1e6]))
    assert feature.histogram.reference == (50.0,) * 20
    assert feature.histogram.current == (1.0, *[0.0] * 18, 2.0)
    assert feature.histogram.edges[0] == 0 and feature.histogram.edges[-1] == 999


def test_few_distinct_numbers_stay_numbers_with_a_bin_each(rng: np.random.Generator) -> None:
    reference, current = rng.integers(3, 8, 900), rng.integers(4, 9, 800)
    feature = one(reference, current)
    assert feature.kind == "number" and feature.histogram.labels == ("3", "4", "5", "6", "7")
    assert feature.histogram.reference == tuple(float((reference == value).sum()) for value in range(3, 8))
    assert feature.histogram.current[-1] == (current >= 7).sum()
    detector = PSI(feature.histogram.edges, feature.histogram.reference, window=800, threshold=1e9)
    detector.update_many(current)
    assert feature.psi == pytest.approx(detector.statistic, rel=1e-9)


def test_a_constant_that_stays_is_no_drift_and_one_that_moves_is() -> None:
    assert one(np.full(100, 0.1), np.full(100, 0.1)).verdict == "no drift"
    moved = one(np.full(100, 5.0), np.full(100, 5.0001))
    assert moved.verdict == "drift" and moved.ks == 1 and moved.js == 1 and moved.psi > 1
    assert moved.histogram.reference == (0, 100, 0) and moved.histogram.current == (0, 0, 100)


def test_statistics_of_each_side_leave_out_what_is_missing() -> None:
    values = np.array([1.0, np.nan, 4.0, np.inf, 2.0, 9.0, -np.inf])
    side = one(values, np.arange(50.0)).reference
    assert (side.count, side.missing) == (4, 3)
    assert (side.mean, side.min, side.median, side.max) == (4.0, 1.0, 3.0, 9.0)
    assert side.std == pytest.approx(np.std([1, 4, 2, 9], ddof=1))


@given(st.lists(st.floats(width=64), max_size=40), st.lists(st.floats(width=64), max_size=40))
def test_any_floats_give_a_report_without_nan(reference: list[float], current: list[float]) -> None:
    report = compare({"x": np.array(reference, float)}, {"x": np.array(current, float)})
    json.dumps(report.to_json(), allow_nan=False)
    assert "nan" not in report.to_html() and "inf<" not in report.to_html()


def test_categories_are_compared_by_chi_square_and_the_detectors_psi(rng: np.random.Generator) -> None:
    names = np.array(["sit", "walk", "run"])
    reference = names[rng.choice(3, 3000, p=[0.5, 0.3, 0.2])]
    current = names[rng.choice(3, 2000, p=[0.4, 0.35, 0.25])]
    feature = one(reference, current)
    pair = feature.histogram
    assert feature.kind == "category" and pair.labels == ("sit", "walk", "run") and pair.edges == ()
    left, right = feature.reference, feature.current
    table = [np.array(pair.reference) * left.effective / 3000, np.array(pair.current) * right.effective / 2000]
    assert left.effective > 2500
    assert feature.p == pytest.approx(chi2_contingency(table, correction=False).pvalue, rel=1e-9)
    detector = CategoricalPSI(pair.reference, window=2000, threshold=1e9)
    detector.update_many([pair.labels.index(value) for value in current])
    assert feature.psi == pytest.approx(detector.statistic, rel=1e-9)
    assert feature.js == pytest.approx(jensenshannon(pair.reference, pair.current, base=2), rel=1e-9)
    assert feature.ks is None and feature.wasserstein is None


def test_a_new_frequent_category_is_seen_and_many_rare_ones_are_not_drift(rng: np.random.Generator) -> None:
    reference = rng.integers(0, 40, 3000).astype(str)
    same = one(reference, rng.integers(0, 40, 3000).astype(str))
    assert same.verdict == "no drift" and len(same.histogram.labels) == 21
    assert same.histogram.labels[-1] == "20 others" and same.reference.distinct == 40
    renamed = one(reference, np.where(rng.random(3000) < 0.3, "error", reference))
    assert renamed.verdict == "drift" and renamed.histogram.labels[0] == "error"
    identifiers = [np.array([f"{side}-{i}" for i in range(500)]) for side in "ab"]
    assert "identifier" in one(*identifiers).notes[-1]


def test_rare_categories_are_pooled_before_the_test() -> None:
    reference, current = ["a"] * 500 + ["b"] * 500 + ["r"] * 2, ["a"] * 250 + ["b"] * 250 + ["q", "s"]
    shuffled = [np.random.default_rng(3).permutation(values) for values in (reference, current)]
    feature = one(*shuffled)
    scale = [feature.reference.effective / 1002, feature.current.effective / 502]
    table = [[500 * scale[0], 500 * scale[0], 2 * scale[0]], [250 * scale[1], 250 * scale[1], 2 * scale[1]]]
    assert feature.p == pytest.approx(chi2_contingency(table, correction=False).pvalue, rel=1e-6)


def test_booleans_are_categories_and_a_column_without_values_fits_either_kind() -> None:
    flags = np.tile([True, False, False], 50)
    assert one(flags, flags).kind == "category"
    empty = np.full(150, np.nan)
    for column in (flags, np.arange(150.0)):
        assert one(column, empty).verdict == one(empty, column).verdict == "too little data"


# effective sizes and verdicts -----------------------------------------------------------------------------


@pytest.mark.parametrize("phi", [0.0, 0.5, 0.9])
def test_the_effective_size_of_an_autoregression_is_near_its_theory(rng: np.random.Generator, phi: float) -> None:
    sizes = [one(ar1(rng, phi, 20_000), np.zeros(20)).reference.effective for _ in range(5)]
    assert np.median(sizes) == pytest.approx(20_000 * (1 - phi) / (1 + phi), rel=0.2)


def test_the_effective_size_is_never_above_n_nor_below_2(rng: np.random.Generator) -> None:
    alternating = np.tile([1.0, -1.0], 500) + rng.normal(0, 0.1, 1000)
    assert one(alternating, np.arange(1000.0)).reference.effective <= 1000
    assert 2 <= one(np.arange(1000.0), alternating).reference.effective < 20
    bursts = rng.normal(0, 1, 20_000) * np.repeat(rng.choice([0.1, 3.0], 200), 100)
    assert one(bursts, bursts).reference.effective < 2000  # uncorrelated, but not independent


def test_autocorrelated_streams_of_one_distribution_are_not_called_drift(rng: np.random.Generator) -> None:
    pairs = [(ar1(rng, 0.97, 10_000), ar1(rng, 0.97, 10_000)) for _ in range(40)]
    naive = sum(ks_2samp(a, b).pvalue < 0.05 for a, b in pairs)
    found = sum(one(a, b).verdict in ("drift", "changed slightly") for a, b in pairs)
    assert naive > 30 and found <= 4
    together = compare({str(i): a for i, (a, _) in enumerate(pairs)}, {str(i): b for i, (_, b) in enumerate(pairs)})
    assert together.verdict == "no drift"


def test_categories_that_last_are_not_called_drift(rng: np.random.Generator) -> None:
    def stream() -> np.ndarray:
        return np.repeat(rng.choice(["sit", "walk", "run"], 100), 100)

    pairs = [(stream(), stream()) for _ in range(20)]
    naive = [chi2_contingency([[(s == c).sum() for c in ("sit", "walk", "run")] for s in p]).pvalue for p in pairs]
    assert sum(p < 0.05 for p in naive) > 15
    assert sum(one(a, b).p < 0.05 for a, b in pairs) <= 3


def test_independent_streams_that_shift_by_half_a_deviation_are_drift(rng: np.random.Generator) -> None:
    reference = {f"f{i}": rng.normal(0, 1, 1000) for i in range(20)}
    current = {name: rng.normal(0.5 * (name in ("f3", "f11")), 1, 1000) for name in reference}
    report = compare(reference, current)
    assert report.verdict == "drift" and report.drifted == ("f3", "f11")
    assert [feature.name for feature in report.by_severity()[:2]] in (["f3", "f11"], ["f11", "f3"])
    assert compare({"a": reference["f3"]}, {"a": current["f11"] * 0 + 9}).features[0].verdict == "drift"


def test_a_significant_but_small_change_is_only_slight(rng: np.random.Generator) -> None:
    report = compare({"x": rng.normal(0, 1, 50_000)}, {"x": rng.normal(0.06, 1, 50_000)})
    assert report.verdict == report.features[0].verdict == "changed slightly" and report.drifted == ()


def test_too_little_data_is_no_verdict(rng: np.random.Generator) -> None:
    few = one(rng.normal(0, 1, 1000), rng.normal(9, 1, 19))
    assert few.verdict == "too little data" and few.p_adjusted < 0.05
    assert one([], [1.0]).p is None
    stepping = one(rng.normal(0, 1, 2000), np.concatenate([rng.normal(0, 1, 1000), rng.normal(8, 1, 1000)]))
    assert stepping.verdict == "too little data" and "step or wander" in stepping.notes[0]


def test_a_change_of_missing_values_is_noted(rng: np.random.Generator) -> None:
    current = np.where(rng.random(1000) < 0.2, np.nan, rng.normal(0, 1, 1000))
    report = compare({"x": rng.normal(0, 1, 1000)}, {"x": current})
    assert report.features[0].notes[0].startswith("The share of missing values went from 0.0% to ")
    assert "Share of missing values changed" in report.to_html()


def test_features_of_one_side_are_reported_and_progress_is_told() -> None:
    steps: list[tuple[int, int]] = []
    column = np.arange(50.0)
    report = compare(
        {"a": column, "gone": column, "b": column}, {"b": column, "new": column[:9], "a": column},
        progress=lambda done, total: steps.append((done, total)),
    )  # fmt: skip
    assert (report.missing, report.new) == (("gone",), ("new",)) and steps == [(1, 2), (2, 2)]
    assert [feature.name for feature in report.features] == ["a", "b"] and report.reference_rows == 50
    apart = compare({"a": column}, {"b": column})
    assert apart.verdict == "too little data" and "no feature in common" in apart.to_html()


def test_holm_controls_all_features_together() -> None:
    assert holm_adjusted([0.01, None, 0.04, 0.03]) == [0.03, None, 0.06, 0.06]
    assert holm_adjusted([0.9, 0.8, 0.5]) == [1.0, 1.0, 1.0] and holm_adjusted([]) == []
    p_values = np.random.default_rng(1).random(50) ** 3
    assert np.all(np.array(holm_adjusted(list(p_values))) >= false_discovery_control(p_values) - 1e-12)
    expected = [
        min(1.0, max(p_values[p_values <= p] * (50 - np.arange((p_values <= p).sum())))) for p in [min(p_values)]
    ]
    assert min(holm_adjusted(list(p_values))) == pytest.approx(expected[0])


def test_columns_that_cannot_be_compared_are_refused() -> None:
    numbers = np.arange(3.0)
    with pytest.raises(InputError, match=r"'x'.*text such as 'error' in the current one"):
        one(numbers, np.array(["1", "", "error"]))
    with pytest.raises(InputError, match="in one dimension"):
        one(numbers, np.zeros((3, 1)))
    with pytest.raises(InputError, match="expected numbers or text"):
        one(numbers, np.array([None, 1, 2]))
    with pytest.raises(InputError, match="no features"):
        compare({}, {"x": numbers})
    for alpha in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match="alpha"):
            one(numbers, numbers, alpha=alpha)


# the page -------------------------------------------------------------------------------------------------


@pytest.fixture
def report(rng: np.random.Generator) -> Report:
    reference = {
        "shifted": rng.normal(0, 1, 500),
        HOSTILE: rng.normal(0, 1, 500),
        "kinds": rng.choice(["a", HOSTILE], 500),
        "empty": np.full(500, np.nan),
        "one": np.full(500, 3.0),
        "gone": rng.normal(0, 1, 500),
    }
    current = {**reference, "shifted": reference["shifted"] + 1, f"new {HOSTILE}": np.zeros(3)}
    del current["gone"]
    return compare(reference, current, names=(HOSTILE, "current.npz"))


def test_the_page_is_balanced_escaped_and_needs_nothing_else(report: Report) -> None:
    page = report.to_html()
    parsed = Balance(page)
    assert parsed.open == [] and page.startswith("<!doctype html>")
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(parsed.tags)
    assert "http://" not in page and "https://" not in page and "src=" not in page and "url(" not in page
    assert "@import" not in page and "\x00" not in page
    assert all(value.startswith("#") for name, value in parsed.attributes if name in ("href", "xlink:href"))
    assert not any(name.startswith("on") or name == "src" for name, _ in parsed.attributes)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'") in (
        parsed.attributes
    )
    shown = HOSTILE.replace("\x00", "\ufffd")
    assert parsed.text.count(shown) >= 4 and "prefers-color-scheme: dark" in page
    page.encode()


def test_the_page_says_what_was_found_and_draws_it(report: Report) -> None:
    page = report.to_html()
    text = Balance(page).text
    assert "1 of 5 features drifted: shifted." in text and "p-value" in text and "does not" in text
    assert "current.npz, 500 rows" in text and "Only in the referencegone" in text
    assert page.count("<svg") == 4 and page.count('<rect class="r"') >= 20 and "has no values to draw" in page
    order = [page.index(f'id="f{index}"') for index in range(5)]
    assert order == sorted(order) and page.index('id="f0"') < page.index("<bdi>shifted</bdi></h3>") < order[1]


def test_the_page_escapes_what_xml_and_utf_8_cannot_hold(report: Report) -> None:
    strange = replace(report.features[0], name="a\ud800\x1b<b>", notes=("<i>\x07",))
    page = replace(report, features=(strange,)).to_html()
    assert "a\ufffd\ufffd&lt;b&gt;" in page and "&lt;i&gt;\ufffd" in page
    page.encode()


def test_the_json_holds_plain_types_and_no_nan(report: Report) -> None:
    found = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert found["verdict"] == "drift" and found["drifted"] == ["shifted"] and found["missing"] == ["gone"]
    features = {feature["name"]: feature for feature in found["features"]}
    assert features["empty"]["psi"] is None and features["empty"]["reference"]["mean"] is None
    assert features["empty"]["reference"]["missing"] == 500 and features["shifted"]["ks"] > 0.3
    assert len(features["shifted"]["histogram"]["edges"]) == 21 and features["kinds"]["reference"]["distinct"] == 2


def test_64_features_fit_into_a_megabyte_and_thousands_keep_their_table(rng: np.random.Generator) -> None:
    reference = {f"sensor_{i}_a_name_of_usual_length": rng.normal(0, 1e-3, 300) for i in range(64)}
    page = compare(reference, {name: column * 1.7 for name, column in reference.items()}).to_html()
    assert len(page.encode()) < 1_000_000 and page.count("<svg") == 64
    column = rng.normal(0, 1, 30)
    many = {str(i): column for i in range(300)}
    page = compare(many, many).to_html()
    assert page.count("<svg") == 200 and "The other 100 features have no chart" in page and ">299<" in page
    assert len(Balance(page).open) == 0


def test_the_two_colours_stand_out_from_the_panel_and_from_each_other() -> None:
    light, dark = drift_report.STYLE.split("@media (prefers-color-scheme: dark)")
    for scheme in (colours(light), colours(dark.split("} }")[0])):
        assert contrast(scheme["reference"], scheme["panel"]) >= 3 and contrast(scheme["current"], scheme["panel"]) >= 3
        assert contrast(scheme["reference"], scheme["current"]) >= 1.9
        for words in ("ink", "quiet", "link"):
            assert contrast(scheme[words], scheme["panel"]) >= 4.5
