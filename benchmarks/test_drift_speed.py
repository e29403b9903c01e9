"""Statistics and detectors beside their peers in the same run: nanoseconds a value, one call or in blocks of 1,024.

Rounds of ours, the peer's and an empty compiled method follow each other, and the ratio is the median over rounds: on
a shared machine nothing else can be compared. `ns over floor` is what a call costs above the empty method. The Python
loop is inside every figure. `make bench WRITE=1` writes the tables into docs/performance.md.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import river.drift
import river.drift.binary
import river.stats
from pytest_benchmark.fixture import BenchmarkFixture
from tinylcm import drift, stats

from benchmarks.native import compiled

HERE = Path(__file__).parent
N = 1024
RNG = np.random.default_rng(1)
VALUES = RNG.normal(0, 1, N)
POSITIVE = RNG.lognormal(0, 1, N)
ERRORS = (RNG.random(N) < 0.2).astype(float)
CLASSES = RNG.integers(0, 4, N).astype(float)
REFERENCE = RNG.normal(0, 1, 1000)
ROUNDS = 15
Call = Callable[[], object]


@cache
def floor() -> Any:
    """The empty method, compiled with the same directives as the library's."""
    return compiled("floor").Floor()


def loop(update: Callable[[Any], object], values: list[Any]) -> Call:
    def run() -> None:
        for value in values:
            update(value)

    return run


def time_of(call: Call, repeat: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(repeat):
        call()
    return (time.perf_counter_ns() - start) / repeat


def interleaved(calls: list[tuple[Call, int]]) -> list[list[float]]:
    """Nanoseconds of each call in each round; each is repeated so that a round lasts some milliseconds."""
    repeats = []
    for call, _ in calls:
        call()
        repeats.append(max(1, int(3e6 / max(time_of(call, 1), 1))))
    rounds: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for index, (call, count) in enumerate(calls):
            rounds[index].append(time_of(call, repeats[index]) / count)
    return rounds


def ratio(ours: list[float], theirs: list[float]) -> float:
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    ours: Callable[[], Any]
    peer: str
    theirs: Callable[[], Any] | None
    wanted: float
    values: Any = None
    few: int = N  # values that the peer gets, where it is slow

    def data(self) -> list[Any]:
        return list((VALUES if self.values is None else self.values).tolist())


def kll() -> Any:
    import datasketches

    return datasketches.kll_doubles_sketch(200)


def jensen_shannon() -> Any:
    return drift.JensenShannon.from_reference(REFERENCE, threshold=0.9, window=1000)


SCALAR = [
    Row("Mean", stats.Mean, "river Mean", river.stats.Mean, 0),
    Row("Var", stats.Var, "river Var", river.stats.Var, 10),
    Row("EWMean", lambda: stats.EWMean(0.1), "river EWMean", lambda: river.stats.EWMean(0.1), 0),
    Row("MinMax", stats.MinMax, "river Min", river.stats.Min, 0),
    Row("QuantileSketch", stats.QuantileSketch, "datasketches KLL", kll, 3, POSITIVE),
    Row("P2Quantile", stats.P2Quantile, "river Quantile", river.stats.Quantile, 0),
    Row(
        "RollingMinMax(1000)", lambda: stats.RollingMinMax(1000), "river RollingMax",
        lambda: river.stats.RollingMax(1000), 0,
    ),
    Row("ADWIN clock=32", drift.ADWIN, "river ADWIN", river.drift.ADWIN, 4),
    Row(
        "ADWIN clock=1", lambda: drift.ADWIN(clock=1), "river ADWIN clock=1", lambda: river.drift.ADWIN(clock=1), 1.5
    ),
    Row("PageHinkley", drift.PageHinkley, "river PageHinkley", river.drift.PageHinkley, 20),
    Row("DDM", drift.DDM, "river DDM", river.drift.binary.DDM, 12, ERRORS),
    Row("EDDM", drift.EDDM, "river EDDM", river.drift.binary.EDDM, 0, ERRORS),
    Row("HDDMA", drift.HDDMA, "river HDDMA", river.drift.binary.HDDMA, 50, ERRORS),
    Row("HDDMW", drift.HDDMW, "river HDDMW", river.drift.binary.HDDMW, 50, ERRORS),
    Row("FHDDM", drift.FHDDM, "river FHDDM", river.drift.binary.FHDDM, 0, ERRORS),
    Row("KSWIN", drift.KSWIN, "river KSWIN", river.drift.KSWIN, 100, None, 160),
    Row("CUSUM", lambda: drift.CUSUM(0.0, 1.0), "", None, 0),
    Row("EWMAChart", lambda: drift.EWMAChart(0.0, 1.0), "", None, 0),
    Row("Limit", lambda: drift.Limit(9.0), "", None, 0),
    Row("ChiSquare", lambda: drift.ChiSquare([25, 25, 25, 25], 99.0, window=1000), "", None, 0, CLASSES),
    Row("JensenShannon", jensen_shannon, "", None, 0),
    Row("Wasserstein1(1000, 1000)", lambda: drift.Wasserstein1(REFERENCE, 99.0, 1000), "", None, 0),
]  # fmt: skip


@pytest.mark.parametrize("row", SCALAR, ids=lambda row: row.name)
def test_scalar(benchmark: BenchmarkFixture, row: Row) -> None:
    data = row.data()
    ours = loop(row.ours().update, data)
    calls = [(ours, N), (loop(floor().update, data), N)]
    if row.theirs is not None:
        peer = row.theirs()
        few = data[: row.few]
        for value in data if row.few < N else []:  # its window fills before it is measured
            peer.update(value)
        calls.append((loop(peer.update, few), len(few)))
    rounds = interleaved(calls)
    over = statistics.median(a - b for a, b in zip(rounds[0], rounds[1], strict=True))
    info: dict[str, Any] = {
        "table": "scalar",
        "peer": row.peer or "-",
        "ours_ns": round(statistics.median(rounds[0]), 1),
        "over_floor_ns": round(over, 1),
        "wanted": row.wanted or "-",
    }
    if row.theirs is not None:
        info |= {"peer_ns": round(statistics.median(rounds[2]), 1), "ratio": round(ratio(rounds[0], rounds[2]), 1)}
    benchmark.extra_info |= info
    benchmark.pedantic(ours, rounds=3)


def scipy_ks(window: list[float]) -> Callable[[float], object]:
    from scipy.stats import ks_2samp

    def update(x: float) -> object:
        window.append(x)
        del window[0]
        return ks_2samp(REFERENCE, window).statistic

    return update


def river_ks() -> Callable[[float], object]:
    """River's treap with a fixed reference: a value in, the oldest out, the distance."""
    statistic = river.stats.KolmogorovSmirnov(statistic="ks")
    window = list(VALUES[:1000])
    for a, b in zip(REFERENCE, window, strict=True):
        statistic.update(float(a), float(b))

    def update(x: float) -> object:
        window.append(x)
        del window[0]
        statistic.update(float(REFERENCE[0]), x)
        return statistic.get()

    return update


def numpy_psi() -> Callable[[float], object]:
    edges = np.quantile(REFERENCE, np.linspace(0, 1, 17))
    q = (np.histogram(REFERENCE, edges)[0] + 0.5) / 1008
    window = list(VALUES[:1000])

    def update(x: float) -> object:
        window.append(x)
        del window[0]
        p = (np.histogram(np.clip(window, edges[0], edges[-1]), edges)[0] + 0.5) / 1008
        return float(((p - q) * np.log(p / q)).sum())

    return update


WINDOWED: list[tuple[str, Callable[[], Any], str, Callable[[], Callable[[float], object]], float, int]] = [
    ("IncrementalKS(1000, 1000)", lambda: drift.IncrementalKS(REFERENCE, 0.9, 1000), "river KolmogorovSmirnov",
     river_ks, 500, 64),
    ("PSI(16 bins, 1000)", lambda: drift.PSI.from_reference(REFERENCE, threshold=99.0, window=1000),
     "numpy, each step anew", numpy_psi, 1000, 64),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "ours", "peer", "theirs", "wanted", "few"), WINDOWED, ids=[row[0] for row in WINDOWED]
)
def test_windowed(
    benchmark: BenchmarkFixture,
    name: str,
    ours: Callable[[], Any],
    peer: str,
    theirs: Callable[[], Callable[[float], object]],
    wanted: float,
    few: int,
) -> None:
    data = VALUES.tolist()
    detector = ours()
    detector.update_many(VALUES)
    call = loop(detector.update, data)
    rounds = interleaved([(call, N), (loop(floor().update, data), N), (loop(theirs(), data[:few]), few)])
    block = [value / N for value in interleaved([(lambda: detector.update_many(VALUES), 1)])[0]]
    benchmark.extra_info |= {
        "table": "windowed",
        "peer": peer,
        "ours_ns": round(statistics.median(rounds[0]), 1),
        "over_floor_ns": round(statistics.median(a - b for a, b in zip(rounds[0], rounds[1], strict=True)), 1),
        "block_ns": round(statistics.median(block), 1),
        "peer_ns": round(statistics.median(rounds[2]), 1),
        "ratio": round(ratio(block, rounds[2]), 0),
        "wanted": wanted,
    }
    benchmark.pedantic(call, rounds=3)


def numpy_moments() -> object:
    return VALUES.mean(), VALUES.var()


BLOCKS: list[tuple[str, Callable[[], Any], str, Callable[[], Call], float]] = [
    ("Var", stats.Var, "numpy mean + var", lambda: numpy_moments, 10),
    ("ADWIN clock=32", drift.ADWIN, "river ADWIN, one by one",
     lambda: loop(river.drift.ADWIN().update, VALUES.tolist()), 6),
    ("PageHinkley", drift.PageHinkley, "river PageHinkley, one by one",
     lambda: loop(river.drift.PageHinkley().update, VALUES.tolist()), 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "ours", "peer", "theirs", "wanted"), BLOCKS, ids=[row[0] for row in BLOCKS])
def test_blocks(
    benchmark: BenchmarkFixture,
    name: str,
    ours: Callable[[], Any],
    peer: str,
    theirs: Callable[[], Call],
    wanted: float,
) -> None:
    statistic = ours()

    def call() -> None:
        statistic.update_many(VALUES)

    rounds = interleaved([(call, N), (theirs(), N)])
    benchmark.extra_info |= {
        "table": "blocks",
        "peer": peer,
        "ours_ns": round(statistics.median(rounds[0]), 2),
        "peer_ns": round(statistics.median(rounds[1]), 1),
        "ratio": round(ratio(*rounds), 1),
        "wanted": wanted or "-",
    }
    benchmark.pedantic(call, rounds=3)


def test_features(benchmark: BenchmarkFixture) -> None:
    """64 features a row: statistics, and the whole default set of monitors."""
    rows = RNG.normal(0, 1, (1000, 64))
    row = rows[0].copy()
    block, monitors = stats.FeatureBlock(64), drift.FeatureDrift.from_reference(rows, threshold=99.0)
    block.update(row)
    peers = [river.stats.Var() for _ in range(64)]
    values = row.tolist()

    def river_row() -> None:
        for peer, value in zip(peers, values, strict=True):
            peer.update(value)

    rounds = interleaved([(lambda: block.update(row), 64), (lambda: monitors.update(row), 64), (river_row, 64)])
    benchmark.extra_info |= {
        "table": "features",
        "peer": "river, 64 x Var",
        "statistics_ns": round(statistics.median(rounds[0]), 2),
        "monitors_ns": round(statistics.median(rounds[1]), 1),
        "peer_ns": round(statistics.median(rounds[2]), 1),
        "ratio": round(ratio(rounds[0], rounds[2]), 1),
        "wanted": "6 ns",
    }
    benchmark.pedantic(lambda: block.update(row), rounds=5)


MEMORY = """
import gc, os, sys
import numpy as np
module, name, argument, kind = sys.argv[1:]
__import__(module)
make = eval(name, {"m": sys.modules[module], "np": np})
data = np.random.default_rng(1).random(1000)
data = (data < 0.2).astype(float).tolist() if kind == "errors" else data.tolist()
def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
def filled():
    thing = make()
    for value in data[:int(argument)]:
        thing.update(value)
    return thing
keep = [filled() for _ in range(20)]
gc.collect()
before = rss()
count = 400
keep += [filled() for _ in range(count)]
gc.collect()
state = len(keep[0].to_state()) if hasattr(keep[0], "to_state") else 0
print((rss() - before) / count, state)
"""


def memory_of(module: str, make: str, values: int, kind: str) -> tuple[float, int]:
    """Bytes that an instance adds to the process after so many values, and those of its state."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, module, make, str(values), kind], check=True, capture_output=True, text=True
    )
    size, state = done.stdout.split()
    return float(size), int(state)


FOOTPRINTS = [
    ("Var", "m.Var", "river.stats", "m.Var", "values", 1000),
    ("ADWIN", "m.ADWIN", "river.drift", "m.ADWIN", "values", 1000),
    ("PageHinkley", "m.PageHinkley", "river.drift", "m.PageHinkley", "values", 1000),
    ("DDM", "m.DDM", "river.drift.binary", "m.DDM", "errors", 1000),
    ("EDDM", "m.EDDM", "river.drift.binary", "m.EDDM", "errors", 1000),
    ("HDDMA", "m.HDDMA", "river.drift.binary", "m.HDDMA", "errors", 1000),
    ("HDDMW", "m.HDDMW", "river.drift.binary", "m.HDDMW", "errors", 1000),
    ("FHDDM", "m.FHDDM", "river.drift.binary", "m.FHDDM", "errors", 1000),
    ("KSWIN", "m.KSWIN", "river.drift", "m.KSWIN", "values", 100),
    ("IncrementalKS(1000, 1000)", "lambda: m.IncrementalKS(np.arange(1000.0) / 1000, 0.9, 1000)",
     "", "", "values", 1000),
    ("PSI(16 bins, 1000)", "lambda: m.PSI.from_reference(np.arange(1000.0) / 1000, threshold=99.0, window=1000)",
     "", "", "values", 1000),
    ("CUSUM", "lambda: m.CUSUM(0.5, 0.3)", "", "", "values", 1000),
    ("QuantileSketch", "m.QuantileSketch", "", "", "values", 1000),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "ours", "module", "theirs", "kind", "values"), FOOTPRINTS, ids=[row[0] for row in FOOTPRINTS]
)
def test_memory(
    benchmark: BenchmarkFixture, name: str, ours: str, module: str, theirs: str, kind: str, values: int
) -> None:
    where = "tinylcm.stats" if name in ("Var", "QuantileSketch") else "tinylcm.drift"
    size, state = memory_of(where, ours, values, kind)
    info: dict[str, Any] = {"table": "memory", "peer": "-", "ours_bytes": round(size), "state_bytes": state}
    if module:
        theirs_size, _ = memory_of(module, theirs, values, kind)
        info |= {"peer": "river", "peer_bytes": round(theirs_size), "ratio": round(theirs_size / size, 1)}
    benchmark.extra_info |= info
    benchmark.pedantic(lambda: None, rounds=1)


def test_memory_of_64_features(benchmark: BenchmarkFixture) -> None:
    make = "lambda: (m.FeatureDrift.from_reference(np.random.default_rng(1).normal(size=(600, 64))))"
    script = MEMORY.replace("thing.update(value)", "thing.update(np.full(64, value))").replace(
        "count = 400", "count = 40"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "tinylcm.drift", make, "600", "values"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    size, state = done.stdout.split()
    benchmark.extra_info |= {
        "table": "memory",
        "peer": "-",
        "ours_bytes": round(float(size)),
        "state_bytes": int(state),
        "wanted": "262144",
    }
    benchmark.pedantic(lambda: None, rounds=1)
