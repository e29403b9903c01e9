"""Run the committed river vectors and hash the states of every detector and statistic: the same on every machine.

Prints JSON. Uses nothing but the compiled modules and numpy, so that it runs under an emulator (scripts/aarch64.sh).
"""

from __future__ import annotations

import hashlib
import json
import platform
import random
from pathlib import Path
from typing import Any

import numpy as np
from tinylcm import drift, stats
from tinylcm._ext.knn import KNN
from tinylcm.preprocess import make_plan, parse_steps

VECTORS = Path(__file__).parent.parent / "tests" / "data" / "drift_river.json"


def numbers(count: int, seed: int) -> list[float]:
    """Normal values by Python's own generator, whose arithmetic is the same everywhere."""
    rng = random.Random(seed)  # noqa: S311 - test data
    return [
        sum(rng.random() for _ in range(12)) - 6.0 + (1.0 if index > count * 2 // 3 else 0.0) for index in range(count)
    ]


def decisions() -> dict[str, Any]:
    """What loops decide whose last bits may differ: those of kNN and of mel bands run in vectors of any width."""
    rows = np.array(numbers(6000, 4), dtype=np.float32).reshape(-1, 60)
    found: dict[str, Any] = {}
    for metric in ("euclidean", "manhattan", "cosine"):
        for dtype in ("float32", "int8"):
            head = KNN(60, 3, metric=metric, dtype=dtype, capacity=80)
            head.add_many(rows[:80], np.arange(80) % 3)
            found[f"KNN {metric} {dtype}"] = [head.neighbours(row)[0].tolist() for row in rows[80:]]
    steps = parse_steps([{"op": "log_mel", "frame": 400, "hop": 160, "mels": 20}], "steps")
    plan = make_plan(steps, 1600, 1, 16000.0, dtype="int8", scale=0.25, zero_point=0)
    sound = np.zeros(plan.shape, dtype=np.int8)
    plan.apply(np.array(numbers(1600, 5), dtype=np.float32).reshape(-1, 1), sound)
    found["log_mel int8"] = sound.tolist()
    return found


def main() -> None:
    """Print what this machine decides."""
    cases = json.loads(VECTORS.read_text())["cases"]
    failed = []
    for case in cases:
        detector = getattr(drift, case["detector"])(**case["params"])
        if detector.update_many(np.array(case["values"], dtype=float)) != case["drift_at"]:
            failed.append(f"{case['detector']} {case['params']}")
    values, reference = numbers(3000, 1), numbers(400, 2)
    errors = [float(value > 0.8) for value in values]
    classes = [float(int(abs(value) * 2) % 4) for value in values]
    rows = np.array(numbers(3000, 3)).reshape(-1, 3)
    ours: dict[str, tuple[Any, Any]] = {
        "Mean": (stats.Mean(), values),
        "Var": (stats.Var(), values),
        "EWMean": (stats.EWMean(0.1), values),
        "EWVar": (stats.EWVar(0.1), values),
        "Moments": (stats.Moments(), values),
        "Covariance": (stats.Covariance(3), rows),
        "FeatureBlock": (stats.FeatureBlock(3), rows),
        "QuantileSketch": (stats.QuantileSketch(), values),
        "P2Quantile": (stats.P2Quantile(0.9), values),
        "RollingQuantile": (stats.RollingQuantile(0.9, 50), values),
        "Reservoir": (stats.Reservoir(50, 3), values),
        "ADWIN": (drift.ADWIN(clock=1), values),
        "PageHinkley": (drift.PageHinkley(threshold=20), values),
        "KSWIN": (drift.KSWIN(seed=1), values),
        "DDM": (drift.DDM(), errors),
        "EDDM": (drift.EDDM(), errors),
        "HDDMA": (drift.HDDMA(two_sided_test=True), errors),
        "HDDMW": (drift.HDDMW(two_sided_test=True), errors),
        "FHDDM": (drift.FHDDM(50, 0.01, 20), errors),
        "CUSUM": (drift.CUSUM(warm_up=500), values),
        "EWMAChart": (drift.EWMAChart(warm_up=500), values),
        "IncrementalKS": (drift.IncrementalKS(reference, 0.3, 100), values),
        "Wasserstein1": (drift.Wasserstein1(reference, 0.5, 100), values),
        "PSI": (drift.PSI(window=100, warm_up=500), values),
        "JensenShannon": (drift.JensenShannon(window=100, warm_up=500), values),
        "ChiSquare": (drift.ChiSquare(4, 20, window=100, warm_up=500), classes),
        "Mahalanobis": (drift.Mahalanobis([0.0] * 3, [1.0] * 3, None, 0.8, window=20), rows),
        "KNNDistance": (drift.KNNDistance(rows[:200]), rows),
        "BinnedKS": (drift.BinnedKS([[-3, -1, 0, 1, 3]] * 3, [[16, 34, 34, 16]] * 3, 0.3, window=100), rows),
        "FeatureDrift": (
            drift.FeatureDrift([0.0] * 3, [1.0] * 3, [[-3, -1, 0, 1, 3]] * 3, [[16, 34, 34, 16]] * 3),
            rows,
        ),
    }
    states = {}
    for name, (one, data) in ours.items():
        alarms = one.update_many(np.asarray(data, dtype=float))
        states[name] = [hashlib.sha256(one.to_state()).hexdigest(), alarms]
    answer = {"machine": platform.machine(), "cases": len(cases), "failed": failed, "states": states}
    print(json.dumps({**answer, "decisions": decisions()}))


if __name__ == "__main__":
    main()
