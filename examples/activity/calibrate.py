"""Reference statistics and thresholds of the monitors, from the training recordings alone.

    python calibrate.py            # compute, compare with reference.json and model.toml; exit code 1 when they differ
    python calibrate.py --write    # and write reference.json

Windows overlap by 90 % and an activity lasts ten seconds, so a threshold for independent samples misfires. Here whole
recordings are the blocks of a bootstrap (Künsch, Annals of Statistics 1989): recordings of activities drawn at random
are joined to streams, the detectors run over them, and the threshold is the quantile of the streams' maxima that
gives the wanted mean time between false alarms, ARL0.

Ten recordings an activity are few, and new wearers differ from them. So each threshold is multiplied by a factor
that is measured, not guessed: the recordings are split in halves, the reference comes from one half, and the factor
is how much higher the other half reaches, at worst over all splits.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from stream import DATA
from tinylcm import Pipeline
from tinylcm.drift import BinnedKS, Mahalanobis
from tinylcm.keys import init_keys
from tinylcm.package import parse_package
from tinylcm.publish import build

HERE: Final = Path(__file__).parent
SEED: Final = 20_261_123
CHANNELS: Final = ("ax", "ay", "az", "gx", "gy", "gz")
WINDOW, HOP = 100, 10
INPUT_ROWS, FEATURE_WINDOWS, SHRINKAGE = 500, 50, 0.05
WINDOWS: Final = 1000  # of one bootstrap stream
STREAMS, HALF_STREAMS, SPLITS = 600, 200, 8
ARL0: Final = 100_000.0  # windows between false alarms, before the factor
CHECK_STREAMS: Final = 40
DIGITS: Final = 7
Array = NDArray[np.float64]


def load() -> tuple[Array, NDArray[np.str_]]:
    """Training recordings `[n, 100, 6]` and their activities."""
    with np.load(DATA, allow_pickle=False) as data:
        labels = np.array([str(label).lower() for label in data["y_train"]])
        return data["x_train"].transpose(0, 2, 1).astype(np.float64), labels


def join(series: Array, labels: NDArray[np.str_], count: int, rng: np.random.Generator) -> Array:
    """A stream of `count` recordings: an activity at random, then one of its recordings, again and again."""
    names = np.unique(labels)
    picks = [rng.choice(np.flatnonzero(labels == names[rng.integers(len(names))])) for _ in range(count)]
    return np.concatenate([series[pick] for pick in picks])


def features(samples: Array) -> Array:
    """Mean, then standard deviation of each channel, of every window: `[windows, 12]`."""
    windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW, axis=0)[::HOP]
    return np.concatenate([windows.mean(-1), windows.std(-1)], axis=1)


def short(value: float) -> float:
    """Few enough digits for a small, stable file."""
    return float(f"{value:.{DIGITS}g}")


def describe(name: str, values: Array, bins: int) -> dict[str, object]:
    """Moments and a histogram with edges at quantiles; a value on an edge counts below it."""
    inner = np.unique([short(edge) for edge in np.quantile(values, np.arange(1, bins) / bins)])
    low, high = short(values.min() - 1e-3), short(values.max() + 1e-3)
    edges = [low, *(edge for edge in inner.tolist() if low < edge < high), high]
    counts = np.bincount(np.searchsorted(edges[1:-1], values, side="left"), minlength=len(edges) - 1)
    return {
        "name": name,
        "mean": short(values.mean()),
        "std": short(values.std()),
        "edges": edges,
        "counts": counts.tolist(),
    }


def make_reference(series: Array, labels: NDArray[np.str_], rng: np.random.Generator) -> dict[str, Any]:
    """The statistics that travel in the package, but for the mix of predictions."""
    seen = features(join(series, labels, 2000, rng))
    names = [f"{kind} {channel}" for kind in ("mean", "std") for channel in CHANNELS]
    return {
        "reference": {
            "input": [describe(name, series[:, :, i].ravel(), 10) for i, name in enumerate(CHANNELS)],
            "features": [describe(name, seen[:, i], 8) for i, name in enumerate(names)],
        },
        "correlation": {"features": [[short(value) for value in row] for row in np.atleast_2d(np.corrcoef(seen.T))]},
    }


def maxima(reference: dict[str, Any], streams: Iterator[Array]) -> Array:
    """The greatest statistic of the input and the features monitor over each stream: `[streams, 2]`."""
    channels, kinds = reference["reference"]["input"], reference["reference"]["features"]
    result = []
    for samples in streams:
        rows = samples.astype(np.float32)
        ks = BinnedKS([c["edges"] for c in channels], [c["counts"] for c in channels], 0.999, INPUT_ROWS)
        distance = Mahalanobis(
            [k["mean"] for k in kinds],
            [k["std"] for k in kinds],
            reference["correlation"]["features"],
            1e9,
            FEATURE_WINDOWS,
            SHRINKAGE,
        )
        ks.update(rows[:WINDOW])
        greatest = [0.0, 0.0]
        for index, vector in enumerate(features(samples)):
            if index:
                end = WINDOW + index * HOP
                ks.update(rows[end - HOP : end])
            distance.update(vector)
            for place, statistic in enumerate((ks.statistic, distance.statistic)):
                if statistic > greatest[place]:  # NaN, before the window is full, is not
                    greatest[place] = statistic
        result.append(greatest)
    return np.array(result)


def threshold(greatest: Array, arl0: float) -> Array:
    """The level that a stream of `WINDOWS` stays below with probability exp(-WINDOWS / ARL0)."""
    return np.quantile(greatest, math.exp(-WINDOWS / arl0), axis=0)


class Progress:
    """A bar on a terminal, plain lines in a pipe."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._shown = total, 0, 0

    def streams(self, series: Array, labels: NDArray[np.str_], count: int, rng: np.random.Generator) -> Iterator[Array]:
        """Bootstrap streams, counted as they are used."""
        length = (WINDOW + (WINDOWS - 1) * HOP) // series.shape[1] + 1
        for _ in range(count):
            yield join(series, labels, length, rng)
            self._done += 1
            percent = 100 * self._done // self._total
            if sys.stdout.isatty():
                print(f"\r{percent:3d} %", end="\n" if self._done == self._total else "", flush=True)
            elif percent >= self._shown + 25:
                self._shown = percent
                print(f"{percent:3d} %", flush=True)


def halves(series: Array, labels: NDArray[np.str_], rng: np.random.Generator, progress: Progress) -> Array:
    """How much higher recordings that the reference never saw reach than its own: `[splits, 2]`."""
    ratios = []
    for _ in range(SPLITS):
        first = np.zeros(len(series), dtype=bool)
        for name in np.unique(labels):
            mine = rng.permutation(np.flatnonzero(labels == name))
            first[mine[: len(mine) // 2]] = True
        reference = make_reference(series[first], labels[first], rng)
        own, other = (
            threshold(maxima(reference, progress.streams(series[part], labels[part], HALF_STREAMS, rng)), 10_000)
            for part in (first, ~first)
        )
        ratios.append(other / own)
    return np.array(ratios)


def predict(package: bytes, streams: Iterator[Array]) -> tuple[dict[str, int], dict[str, int]]:
    """The real model on bootstrap streams: predictions a label, alarms a monitor."""
    parsed = parse_package(package, None)
    labels: dict[str, int] = dict.fromkeys(parsed.manifest.labels, 0)
    alarms: dict[str, int] = {monitor.name: 0 for monitor in parsed.manifest.monitors}
    for samples in streams:
        for prediction in Pipeline(parsed).stream([samples.astype(np.float32)]):
            labels[prediction.label] += 1
            for alarm in prediction.drift:
                alarms[alarm.monitor] += 1
    return labels, alarms


def build_package(folder: Path) -> bytes:
    """The example's package, signed by keys of no importance."""
    init_keys(folder / "keys")
    return build(HERE / "model.onnx", HERE / "model.toml", folder / "keys" / "release.key")


def round_up(value: float) -> float:
    """Two significant digits, upwards."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return round(math.ceil(value / unit - 1e-9) * unit, 10)


def declared() -> dict[str, float]:
    """The thresholds that model.toml ships."""
    monitors: Sequence[dict[str, Any]] = tomllib.loads((HERE / "model.toml").read_text())["monitors"]
    return {monitor["name"]: monitor["params"]["threshold"] for monitor in monitors if "threshold" in monitor["params"]}


def main() -> int:
    """Calibrate; 0 when what is committed is what comes out."""
    parser = argparse.ArgumentParser(description="Calibrate the monitors on the training recordings.")
    parser.add_argument("--write", action="store_true", help="write reference.json")
    arguments = parser.parse_args()
    series, labels = load()
    rng = np.random.default_rng(SEED)
    reference = make_reference(series, labels, rng)
    progress = Progress(STREAMS + SPLITS * 2 * HALF_STREAMS + CHECK_STREAMS)
    greatest = maxima(reference, progress.streams(series, labels, STREAMS, rng))
    factors = np.maximum(1.0, halves(series, labels, rng, progress).max(axis=0))
    levels = threshold(greatest, ARL0) * factors
    with tempfile.TemporaryDirectory() as folder:
        mix, alarms = predict(build_package(Path(folder)), progress.streams(series, labels, CHECK_STREAMS, rng))
    total = sum(mix.values())
    reference["reference"]["prediction"] = [
        {
            "name": "prediction",
            "mean": short(sum(i * n for i, n in enumerate(mix.values())) / total),
            "std": 1.0,
            "edges": list(range(len(mix) + 1)),
            "counts": [short(count / total) for count in mix.values()],
        }
    ]
    text = json.dumps(reference, separators=(",", ":")) + "\n"
    path = HERE / "reference.json"
    if arguments.write:
        path.write_text(text)
    shipped, wrong = declared(), 0
    print(f"\n{STREAMS} streams of {WINDOWS} windows; factor: worst of {SPLITS} half splits")
    print(f"{'monitor':<10} {'ARL0 10k':>9} {'ARL0 100k':>10} {'factor':>7} {'threshold':>10} {'shipped':>8}")
    for place, name in enumerate(("input", "features")):
        at_10k, at_100k = (float(threshold(greatest, arl0)[place]) for arl0 in (10_000.0, ARL0))
        level = round_up(float(levels[place]))
        wrong += level != shipped[name]
        print(f"{name:<10} {at_10k:9.3f} {at_100k:10.3f} {factors[place]:7.2f} {level:10g} {shipped[name]:8g}")
    print(f"alarms of the whole package in {total} windows of bootstrap streams: {alarms}")
    if text != path.read_text():
        print("reference.json is not what comes out; run with --write")
        wrong += 1
    if wrong:
        print("what is committed differs from what comes out")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
