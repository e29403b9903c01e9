"""What a reference supports: calibrate on many short references, measure the true rate on endless fresh streams.

    python benchmarks/drift_calibration.py --write     # ten minutes; the table goes into docs/drift-quality.md

For references of n independent values and wanted times of 10 n to 1,000 n between false alarms: the quantiles
over references of measured / wanted. `tinylcm.calibration.SUPPORT` is where nearly none is off by ten.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from tinylcm import calibration
from tinylcm.calibration import calibrate, make_detector
from tinylcm.errors import ConfigError, InputError

PAGE: Final = Path(__file__).parent.parent / "docs" / "drift-quality.md"
BEGIN, END = "<!-- begin: drift_calibration.py -->", "<!-- end: drift_calibration.py -->"
REFERENCES: Final = 25
FRESH: Final = 8_000_000


def stream(rng: np.random.Generator, n: int, coefficient: float) -> NDArray[np.float64]:
    """Normal values of unit variance with this autocorrelation."""
    noise = rng.normal(0, math.sqrt(1 - coefficient**2), n + 500)
    return np.asarray(lfilter([1.0], [1.0, -coefficient], noise), dtype=np.float64)[500:]


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the page")
    arguments = parser.parse_args()
    calibration.SUPPORT = 10**9  # type: ignore[misc]  # what lies beyond the limit is to be seen here
    rng = np.random.default_rng(1)
    lines = [
        "| values | autocorrelation | independent, n | wanted | refused | measured/wanted: median | 5 % | below 0.1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for coefficient in (0.0, 0.8):
        time = (1 + coefficient) / (1 - coefficient)
        fresh = stream(rng, FRESH, coefficient)
        for independent in (100, 400):
            size = round(independent * time)
            for multiple in (10, 30, 100, 1000):
                wanted, shares, refused = independent * multiple, [], 0
                for seed in range(REFERENCES):
                    reference = stream(rng, size, coefficient)
                    try:
                        found = calibrate("CUSUM", reference, wanted, replicates=20, alarms=40, seed=seed)
                    except (ConfigError, InputError):
                        refused += 1
                        continue
                    detector = make_detector("CUSUM", reference, threshold=found.value)
                    run = min(FRESH, wanted * 40)
                    shares.append(run / max(len(detector.update_many(fresh[:run])), 0.5) / wanted)
                lines.append(
                    f"| {size:,} | {coefficient} | {independent} | {multiple:,} n | {refused} of {REFERENCES} | "
                    f"{np.median(shares):.2f} | {np.quantile(shares, 0.05):.2f} | "
                    f"{np.mean(np.array(shares) < 0.1):.0%} |"
                )
                print(lines[-1], flush=True)
    if arguments.write:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.split(END)[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
