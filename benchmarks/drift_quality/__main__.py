"""Which detector finds a change soonest at the same measured rate of false alarms?

    python -m benchmarks.drift_quality            # or `make bench-drift`; `--quick` for a small run

Every detector sees the same streams: a reference, then a stretch without a change, then a change and a horizon. For
each family of streams its one tuned parameter is set, on tuning seeds, so that it alarms falsely once in `ARL0` values;
then everything is judged on other seeds: false alarms on control streams, delay after the change, misses counted as
the whole horizon. Our detectors that compare with a reference get it; the peers, which compare a stream with its own
past, are fed the reference first. All see values standardised by the reference, one detector a column; any alarm
counts.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
REFERENCE, BEFORE, HORIZON = 1000, 200, 1000
ARL0S: Final = (1_000.0, 5_000.0)
TUNING, JUDGED = 1_000, 9_000  # first seeds: never the same streams
Array = Any


# the streams ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """Streams of one kind of noise or data: `draw(rng, n)` gives rows `[n, d]` without a change."""

    name: str
    d: int
    draw: Callable[[np.random.Generator, int], Array]
    changes: dict[str, Callable[[np.random.Generator, Array], Array]]
    real: bool = False


def normal(d: int) -> Callable[[np.random.Generator, int], Array]:
    return lambda rng, n: rng.normal(0, 1, (n, d))


def autoregressive(coefficient: float) -> Callable[[np.random.Generator, int], Array]:
    scale = math.sqrt(1 - coefficient**2)

    def draw(rng: np.random.Generator, n: int) -> Array:
        noise = rng.normal(0, scale, n + 50)
        values = np.zeros(n + 50)
        for index in range(1, n + 50):
            values[index] = coefficient * values[index - 1] + noise[index]
        return values[50:, None]

    return draw


def shift(size: float, column: int = 0) -> Callable[[np.random.Generator, Array], Array]:
    def change(rng: np.random.Generator, rows: Array) -> Array:
        rows[:, column] += size * rows[:, column].std()
        return rows

    return change


def ramp(size: float, over: int) -> Callable[[np.random.Generator, Array], Array]:
    def change(rng: np.random.Generator, rows: Array) -> Array:
        rows[:, 0] += size * np.minimum(np.arange(len(rows)) / over, 1)
        return rows

    return change


def gradual(size: float, over: int) -> Callable[[np.random.Generator, Array], Array]:
    def change(rng: np.random.Generator, rows: Array) -> Array:
        rows[:, 0] += size * (rng.random(len(rows)) < np.arange(len(rows)) / over)
        return rows

    return change


def recurring(size: float, period: int) -> Callable[[np.random.Generator, Array], Array]:
    def change(rng: np.random.Generator, rows: Array) -> Array:
        rows[:, 0] += size * (np.arange(len(rows)) // period % 2 == 0)
        return rows

    return change


def scaled(factor: float) -> Callable[[np.random.Generator, Array], Array]:
    def change(rng: np.random.Generator, rows: Array) -> Array:
        middle = rows.mean(axis=0)
        return middle + (rows - middle) * factor

    return change


def bimodal(rng: np.random.Generator, rows: Array) -> Array:
    """Two humps with the mean and variance of before: only the shape changes."""
    return rng.choice([-1.0, 1.0], rows.shape) * math.sqrt(1 - 0.35**2) + rng.normal(0, 0.35, rows.shape)


def heavy(rng: np.random.Generator, rows: Array) -> Array:
    """Student's t of three degrees, with the variance of before."""
    return rng.standard_t(3, rows.shape) / math.sqrt(3)


def correlated(rho: float) -> Callable[[np.random.Generator, Array], Array]:
    def change(rng: np.random.Generator, rows: Array) -> Array:
        d = rows.shape[1]
        return rows @ np.linalg.cholesky((1 - rho) * np.eye(d) + rho).T

    return change


def rotated(rng: np.random.Generator, rows: Array) -> Array:
    """The watch worn differently: the sensor's axes turned by 40 degrees about x, for both sensors."""
    c, s = math.cos(math.radians(40)), math.sin(math.radians(40))
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    result = rows.copy()
    for first in range(0, rows.shape[1] - 2, 3):
        result[:, first : first + 3] = rows[:, first : first + 3] @ turn.T
    return result


def resampled(data: Array, block: int) -> Callable[[np.random.Generator, int], Array]:
    """Streams from recorded rows, in blocks."""

    def draw(rng: np.random.Generator, n: int) -> Array:
        starts = rng.integers(0, len(data), -(-n // block))
        return data[((starts[:, None] + np.arange(block)).ravel() % len(data))[:n]].astype(float)

    return draw


def families() -> list[Family]:
    with np.load(HERE / "real.npz", allow_pickle=False) as file:
        real = {name: file[name].astype(float) for name in file.files}
    moves = {"mean +0.5": shift(0.5), "mean +1": shift(1.0), "mean +2": shift(2.0)}
    one = moves | {
        "ramp to +1 in 500": ramp(1.0, 500),
        "gradual +1 in 500": gradual(1.0, 500),
        "recurring +1 each 200": recurring(1.0, 200),
        "spread x 2": scaled(2.0),
        "spread x 0.5": scaled(0.5),
        "shape: bimodal": bimodal,
        "shape: heavy tails": heavy,
    }
    many = {"one mean +1": shift(1.0), "spread x 1.5": scaled(1.5), "correlation 0.8": correlated(0.8)}
    tables = {"one mean +1": shift(1.0), "spread x 1.5": scaled(1.5)}
    return [
        Family("normal", 1, normal(1), one),
        Family("autocorrelated 0.5", 1, autoregressive(0.5), {**moves, "spread x 2": scaled(2.0)}),
        Family("normal, 3 columns", 3, normal(3), many),
        Family("watch (BasicMotions)", 6, resampled(real["motions"], 100), {"worn differently": rotated}, True),
        Family("walking (Daphnet)", 3, resampled(real["daphnet"], 128), {"turned": rotated, **tables}, True),
        Family("breast cancer (scikit-learn)", 4, resampled(real["breast_cancer"], 1), tables, True),
        Family("bananas (river)", 2, resampled(real["bananas"], 1), {**tables, "turned": swapped}, True),
    ]


def swapped(rng: np.random.Generator, rows: Array) -> Array:
    """Columns exchanged: the marginals change little."""
    return rows[:, ::-1].copy()


# the detectors --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """A detector with its one tuned parameter: `make(reference, value)` gives `run(rows) -> alarm indices`."""

    name: str
    kind: str  # ours or the peer's name
    low: float
    high: float
    rising: bool  # whether a larger value means fewer alarms
    make: Callable[[Array, float], Callable[[Array], list[int]]]
    columns_max: int = 100


def columns_of(detectors: Sequence[Any]) -> Callable[[Array], list[int]]:
    def run(rows: Array) -> list[int]:
        found: set[int] = set()
        for column, detector in enumerate(detectors):
            found.update(detector.update_many(np.ascontiguousarray(rows[:, column])))
        return sorted(found)

    return run


def one_by_one(detectors: Sequence[Any], step: Callable[[Any, float], bool]) -> Callable[[Array], list[int]]:
    def run(rows: Array) -> list[int]:
        found: set[int] = set()
        for column, detector in enumerate(detectors):
            for index, value in enumerate(rows[:, column].tolist()):
                if step(detector, value):
                    found.add(index)
        return sorted(found)

    return run


def warmed(run: Callable[[Array], list[int]], reference: Array) -> Callable[[Array], list[int]]:
    """A detector without a reference sees it as its past."""
    run(reference)
    return run


def ours(name: str, **parameters: Any) -> Callable[[Array, float], Callable[[Array], list[int]]]:
    from tinylcm.calibration import RIVER, TUNED, make_detector

    tuned = TUNED[name].name
    policy = {} if name in RIVER else {"policy": "reset"}

    def make(reference: Array, value: float) -> Callable[[Array], list[int]]:
        own = {**policy, **parameters, tuned: value}
        if TUNED[name].vector:
            run: Callable[[Array], list[int]] = make_detector(name, reference, **own).update_many
            return run
        run = columns_of([make_detector(name, column, **own) for column in reference.T])
        return warmed(run, reference) if name in RIVER else run

    return make


def of_river(kind: str, tuned: str, **parameters: Any) -> Callable[[Array, float], Callable[[Array], list[int]]]:
    import river.drift

    def step(detector: Any, value: float) -> bool:
        detector.update(value)
        return bool(detector.drift_detected)

    def make(reference: Array, value: float) -> Callable[[Array], list[int]]:
        detectors = [getattr(river.drift, kind)(**parameters, **{tuned: value}) for _ in reference.T]
        return warmed(one_by_one(detectors, step), reference)

    return make


def of_frouros(kind: str, tuned: str, **parameters: Any) -> Callable[[Array, float], Callable[[Array], list[int]]]:
    from frouros.detectors.concept_drift import streaming

    def step(detector: Any, value: float) -> bool:
        detector.update(value=value)
        if detector.drift:
            detector.reset()
            return True
        return False

    def make(reference: Array, value: float) -> Callable[[Array], list[int]]:
        config = getattr(streaming, f"{kind}Config")
        detectors = [getattr(streaming, kind)(config=config(**parameters, **{tuned: value})) for _ in reference.T]
        return warmed(one_by_one(detectors, step), reference)

    return make


def both_sides(make: Callable[[Array, float], Callable[[Array], list[int]]]) -> Any:
    """A peer that looks upwards only, twice: at the values and at their negatives."""

    def build(reference: Array, value: float) -> Callable[[Array], list[int]]:
        up, down = make(reference, value), make(-reference, value)
        return lambda rows: sorted({*up(rows), *down(-rows)})

    return build


def candidates(peers: bool = True) -> list[Candidate]:
    result = [
        Candidate("FeatureDrift (the default set)", "ours", 0.05, 50, True, ours("FeatureDrift")),
        Candidate("CUSUM", "ours", 0.5, 1000, True, ours("CUSUM")),
        Candidate("EWMAChart", "ours", 0.5, 50, True, ours("EWMAChart")),
        Candidate("IncrementalKS", "ours", 0.02, 0.99, True, ours("IncrementalKS")),
        Candidate("PSI", "ours", 0.005, 100, True, ours("PSI")),
        Candidate("Wasserstein1", "ours", 0.01, 10, True, ours("Wasserstein1")),
        Candidate("ADWIN clock=1", "ours", 1e-12, 0.9999, False, ours("ADWIN", clock=1)),
        Candidate("PageHinkley 0.25", "ours", 0.5, 1e4, True, ours("PageHinkley", delta=0.25)),
        Candidate("KSWIN", "ours", 1e-12, 0.5, False, ours("KSWIN")),
    ]
    if not peers:
        return result
    return [
        *result,
        Candidate("ADWIN", "river", 1e-12, 0.9999, False, of_river("ADWIN", "delta")),
        Candidate("ADWIN clock=1", "river", 1e-12, 0.9999, False, of_river("ADWIN", "delta", clock=1)),
        Candidate("PageHinkley", "river", 0.5, 1e4, True, of_river("PageHinkley", "threshold")),
        Candidate("PageHinkley 0.25", "river", 0.5, 1e4, True, of_river("PageHinkley", "threshold", delta=0.25)),
        Candidate("PageHinkley", "frouros", 0.5, 1e4, True, both_sides(of_frouros("PageHinkley", "lambda_"))),
        Candidate("CUSUM", "frouros", 0.5, 1e4, True, both_sides(of_frouros("CUSUM", "lambda_"))),
        Candidate(
            "GeometricMovingAverage", "frouros", 0.001, 50, True,
            both_sides(of_frouros("GeometricMovingAverage", "lambda_", alpha=0.9)),
        ),
    ]  # fmt: skip


# tuning and judging ---------------------------------------------------------------------------------------


def seeded(first: int, family: Family, seed: int) -> np.random.Generator:
    return np.random.default_rng([first, zlib.crc32(family.name.encode()), seed])


def standardised(reference: Array, rows: Array) -> tuple[Array, Array]:
    mean, std = reference.mean(axis=0), reference.std(axis=0, ddof=1)
    return (reference - mean) / std, (rows - mean) / std


def false_alarms(candidate: Candidate, family: Family, value: float, first: int, streams: int, length: int) -> float:
    """Alarms a value on streams without a change, each with a reference of its own."""
    found = 0
    for seed in range(streams):
        rng = seeded(first, family, seed)
        reference, rows = standardised(family.draw(rng, REFERENCE), family.draw(rng, length))
        found += len(candidate.make(reference, value)(rows))
    return found / (streams * length)


def tune(candidate: Candidate, family: Family, arl0: float, scale: float) -> float:
    """The parameter's value for one false alarm in `arl0` values, by bisection on the tuning seeds."""
    low, high = math.log(candidate.low), math.log(candidate.high)
    streams = max(4, int(20 * scale))
    length = max(1000, int(arl0))
    for _ in range(11):
        middle = (low + high) / 2
        many = false_alarms(candidate, family, math.exp(middle), TUNING, streams, length) > 1 / arl0
        if many == candidate.rising:
            low = middle
        else:
            high = middle
    return math.exp(high if candidate.rising else low)


def delays(candidate: Candidate, family: Family, value: float, change: Any, seeds: int) -> list[float]:
    """Values from the change to the first alarm after it; the horizon when there is none."""
    result = []
    for seed in range(seeds):
        rng = seeded(JUDGED, family, 100_000 + seed)
        reference, before = family.draw(rng, REFERENCE), family.draw(rng, BEFORE)
        after = change(rng, family.draw(rng, HORIZON))
        reference, rows = standardised(reference, np.concatenate([before, after]))
        later = [index - BEFORE for index in candidate.make(reference, value)(rows) if index >= BEFORE]
        result.append(float(min(later, default=HORIZON)))
    return result


def measure(task: tuple[str, str, str, float, float]) -> dict[str, Any]:
    """One detector on one family at one rate."""
    kind, name, family_name, arl0, scale = task
    start = time.perf_counter()
    family = next(family for family in families() if family.name == family_name)
    candidate = next(one for one in candidates() if (one.kind, one.name) == (kind, name))
    value = tune(candidate, family, arl0, scale)
    rate = false_alarms(candidate, family, value, JUDGED, max(6, int(30 * scale)), max(1000, int(arl0)))
    seeds = max(6, int(40 * scale))
    found = {label: delays(candidate, family, value, change, seeds) for label, change in family.changes.items()}
    return {
        "kind": kind,
        "name": name,
        "family": family_name,
        "arl0": arl0,
        "value": value,
        "false_per_10k": rate * 1e4,
        "delay": {label: float(np.mean(times)) for label, times in found.items()},
        "missed": {label: float(np.mean(np.array(times) >= HORIZON)) for label, times in found.items()},
        "seconds": time.perf_counter() - start,
    }


def pooled(rows: list[dict[str, Any]]) -> dict[tuple[str, str, float], tuple[float, float, float]]:
    """(kind, name, arl0) -> mean false alarms in 10,000 values, mean delay and missed share over all changes."""
    groups: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["name"], row["arl0"]), []).append(row)
    result = {}
    for key, members in groups.items():
        result[key] = (
            float(np.mean([row["false_per_10k"] for row in members])),
            float(np.mean([delay for row in members for delay in row["delay"].values()])),
            float(np.mean([missed for row in members for missed in row["missed"].values()])),
        )
    return result


def always(period: float) -> tuple[float, float]:
    """The baseline that looks at nothing and fires every `period` values: its false alarms and mean delay."""
    return 1e4 / period, min(float(HORIZON), (period - 1) / 2)


def table(rows: list[dict[str, Any]]) -> str:
    """The pages' tables."""
    points = pooled(rows)
    lines = []
    for arl0 in ARL0S:
        lines += [
            f"### One false alarm in {arl0:,.0f} values",
            "",
            "| detector | from | false alarms in 10,000, measured | mean delay | missed |",
            "|---|---|---|---|---|",
        ]
        chosen = sorted((point, key) for key, point in points.items() if key[2] == arl0)
        for (rate, delay, missed), (kind, name, _) in sorted(chosen, key=lambda item: item[0][1]):
            lines.append(f"| {name} | {kind} | {rate:.2f} | {delay:.0f} | {missed:.1%} |")
        rate, delay = always(arl0)
        lines += [f"| fires every {arl0:,.0f} values | baseline | {rate:.2f} | {delay:.0f} | - |", ""]
    rate, delay = always(100)
    lines += [
        f"For scale: firing every 100 values gives {rate:.0f} false alarms in 10,000 and a delay of {delay:.0f}.",
        "",
    ]
    lines += ["### By change", "", "Mean delay at one false alarm in 5,000 values; the horizon is 1,000.", ""]
    names = list(dict.fromkeys((row["kind"], row["name"]) for row in rows))
    best = {"ours": [n for k, n in names if k == "ours"], "peers": [f"{k} {n}" for k, n in names if k != "ours"]}
    assert best["ours"]
    lines += [
        "| family | change | the default set | our best single | best peer |",
        "|---|---|---|---|---|",
    ]
    at = [row for row in rows if row["arl0"] == ARL0S[-1]]
    for family in dict.fromkeys(row["family"] for row in at):
        here = [row for row in at if row["family"] == family]
        for change in here[0]["delay"]:
            default = next(row for row in here if row["name"].startswith("FeatureDrift"))["delay"][change]
            mine = min(
                (row["delay"][change], row["name"])
                for row in here
                if row["kind"] == "ours" and "default" not in row["name"]
            )
            peer = min((row["delay"][change], f"{row['kind']} {row['name']}") for row in here if row["kind"] != "ours")
            lines.append(
                f"| {family} | {change} | {default:.0f} | {mine[0]:.0f} ({mine[1]}) | {peer[0]:.0f} ({peer[1]}) |"
            )
    return "\n".join([*lines, ""])


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """False alarms against delay, pooled: left and low is better."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.5, 5.5), dpi=110)
    points = pooled(rows)
    colours = {"ours": "#0b6e4f", "river": "#c1440e", "frouros": "#5b4b8a"}
    marks = "osD^vP*Xh<>"
    for kind, colour in colours.items():
        names = list(dict.fromkeys(name for k, name, _ in points if k == kind))
        for index, name in enumerate(names):
            line = sorted(points[kind, name, arl0][:2] for arl0 in ARL0S if (kind, name, arl0) in points)
            bold = name.startswith("FeatureDrift")
            axes.plot(
                *zip(*line, strict=True), marker=marks[index % len(marks)], color=colour, label=f"{name} ({kind})",
                linewidth=2.5 if bold else 0.8, markersize=9 if bold else 5, zorder=3 if bold else 2,
            )  # fmt: skip
    periods = np.geomspace(400, 20_000, 50)
    axes.plot(*zip(*[always(period) for period in periods], strict=True), "k:", label="fires every n values (baseline)")
    axes.set_xscale("log")
    axes.set_xlabel("false alarms in 10,000 values, measured on other seeds (log)")
    axes.set_ylabel("mean delay in values, a miss counts 1,000")
    axes.set_title("Delay at the same rate of false alarms, all changes pooled: left and low is better", fontsize=10)
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


BEGIN, END = "<!-- begin: make bench-drift -->", "<!-- end -->"


def main() -> int:
    """Run everything; write docs/drift-quality.md and its picture, and the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few seeds, print only")
    parser.add_argument("--only", default="", help="only families whose name holds this")
    arguments = parser.parse_args()
    scale = 0.15 if arguments.quick else 1.0
    tasks = [
        (one.kind, one.name, family.name, arl0, scale)
        for arl0 in (ARL0S[:1] if arguments.quick else ARL0S)
        for family in families()
        if arguments.only in family.name
        for one in candidates()
    ]
    rows: list[dict[str, Any]] = []
    start = time.perf_counter()
    with ProcessPoolExecutor(2) as pool:
        for row in pool.map(measure, tasks):
            rows.append(row)
            done = len(rows) / len(tasks)
            print(
                f"\r{100 * done:3.0f} % {time.perf_counter() - start:5.0f} s  {row['kind']} {row['name']} on "
                f"{row['family']}: {row['seconds']:.0f} s          ",
                end="\n" if arguments.quick else "", file=sys.stderr, flush=True,
            )  # fmt: skip
    print(file=sys.stderr)
    text = table(rows) if not arguments.quick else json.dumps([
        {**row, "delay": {k: round(v) for k, v in row["delay"].items()}} for row in rows
    ])  # fmt: skip
    print(text if not arguments.quick else "")
    points = pooled(rows)
    for arl0 in ARL0S if not arguments.quick else ARL0S[:1]:
        mine = next(point for key, point in points.items() if key[1].startswith("FeatureDrift") and key[2] == arl0)
        better = [
            f"{kind} {name}"
            for (kind, name, at), point in points.items()
            if kind != "ours" and at == arl0 and point[0] < mine[0] and point[1] < mine[1]
        ]
        print(
            f"ARL0 {arl0:,.0f}: default set {mine[0]:.2f} false in 10,000, delay {mine[1]:.0f}; peers better in both: "
            f"{', '.join(better) or 'none'}"
        )
    if arguments.quick or arguments.only:
        for key, point in sorted(points.items(), key=lambda item: item[1][1]):
            print(f"{key[0]:8} {key[1]:32} {key[2]:6.0f}  {point[0]:6.2f}  {point[1]:6.0f}  {point[2]:.1%}")
        return 0
    page = ROOT / "docs" / "drift-quality.md"
    before, rest = page.read_text().split(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{text}{END}{rest.split(END)[1]}")
    picture(rows, ROOT / "docs" / "drift-quality.png")
    (HERE / "result.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
