"""The shipped package on the test recordings, joined in many orders: false alarms, delay and accuracy.

    python evaluate.py --seeds 20

For each order the stream is played twice without a change (control), and once more with the watch worn differently in
its second half. Delays are counted in windows from the first that holds a changed sample.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Final

import numpy as np
from calibrate import build_package
from numpy.typing import NDArray
from stream import load, wear_differently
from tinylcm import Pipeline
from tinylcm.package import Package, parse_package

FIRST_CHANGED: Final = 391


def alarms_of(package: Package, samples: NDArray[np.float32]) -> dict[str, list[int]]:
    """Windows at which each monitor alarms."""
    found: dict[str, list[int]] = {monitor.name: [] for monitor in package.manifest.monitors}
    for prediction in Pipeline(package).stream([samples]):
        for alarm in prediction.drift:
            found[alarm.monitor].append(alarm.window)
    return found


def main() -> int:
    """Print the table; 0 when no control stream alarmed and no change was missed by input and features."""
    parser = argparse.ArgumentParser(description="Evaluate the monitors on the test recordings.")
    parser.add_argument("--seeds", type=int, default=20, help="orders of the test recordings")
    seeds = parser.parse_args().seeds
    with tempfile.TemporaryDirectory() as folder:
        package = parse_package(build_package(Path(folder)), None)
    names = [monitor.name for monitor in package.manifest.monitors]
    false_alarms = dict.fromkeys(names, 0)
    delays: dict[str, list[int]] = {name: [] for name in names}
    for seed in range(seeds):
        samples = load(seed=seed).samples
        control = alarms_of(package, np.concatenate([samples, samples]))
        changed = alarms_of(package, np.concatenate([samples, wear_differently(samples)]))
        for name in names:
            false_alarms[name] += bool(control[name])
            after = [window - FIRST_CHANGED + 1 for window in changed[name] if window >= FIRST_CHANGED]
            delays[name] += after[:1]
    print(f"{seeds} orders of the test recordings, 791 windows each, the change at window {FIRST_CHANGED}")
    print(
        f"{'monitor':<18} {'control streams with an alarm':>30} {'changes seen':>13} {'delay median':>13} {'worst':>6}"
    )
    for name in names:
        seen = delays[name]
        figures = f"{median(seen):13g} {max(seen):6d}" if seen else f"{'-':>13} {'-':>6}"
        print(f"{name:<18} {false_alarms[name]:>24} of {seeds:<2} {len(seen):>10} of {seeds:<2}{figures}")
    missed = any(len(delays[name]) < seeds for name in ("input", "features"))
    return int(missed or any(false_alarms.values()))


if __name__ == "__main__":
    sys.exit(main())
