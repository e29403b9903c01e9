"""Thresholds for one false alarm in 10,000, 100,000 and 1,000,000 independent normal values, and how true they are.

    python benchmarks/drift_presets.py --write     # some minutes: runtime/drift/presets.py and docs/drift-quality.md

Each is found by bisection on simulated values against a reference of 50,000, then measured with other random numbers on
values that are what the preset assumes, on values with heavy tails, and on values with a memory.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from tinylcm.calibration import RIVER, TUNED, make_detector

ROOT: Final = Path(__file__).parent.parent
ARL0S: Final = (10_000, 100_000, 1_000_000)
ALARMS: Final = 60
CHUNK: Final = 1 << 16
Array = NDArray[np.float64]
CASES: Final[list[tuple[str, dict[str, Any]]]] = [
    ("CUSUM", {"k": 0.5}),
    ("CUSUM", {"k": 0.25}),
    ("EWMAChart", {"lambda_val": 0.1}),
    ("PageHinkley", {"delta": 0.25}),
    ("ADWIN", {"clock": 32}),
    ("ADWIN", {"clock": 1}),
    ("PSI", {"window": 200}),
    ("JensenShannon", {"window": 200}),
    ("IncrementalKS", {"window": 200}),
    ("FeatureDrift", {"window": 300}),
]
STREAMS: Final[dict[str, Callable[[np.random.Generator, int], Array]]] = {
    "independent normal": lambda rng, n: rng.normal(0, 1, n),
    "heavy tails, t(5)": lambda rng, n: rng.standard_t(5, n) / math.sqrt(5 / 3),
    "autocorrelation 0.5": lambda rng, n: np.asarray(lfilter([math.sqrt(0.75)], [1, -0.5], rng.normal(0, 1, n))),
}


def alarms(
    name: str, parameters: dict[str, Any], value: float, stream: str, values: int, seed: int, stop: int
) -> float:
    """Mean number of values between false alarms; at most `values` are run, or until there are `stop` alarms."""
    draw = STREAMS[stream]
    rng = np.random.default_rng(seed)
    reference = draw(np.random.default_rng(1), 50_000)
    vector = TUNED[name].vector
    policy = {} if name in RIVER else {"policy": "reset"}
    detector = make_detector(
        name, reference[:, None] if vector else reference, **parameters, **policy, **{TUNED[name].name: value}
    )
    found = done = 0
    while done < values and found < stop:
        rows = draw(rng, min(CHUNK, values - done))
        found += len(detector.update_many(rows[:, None] if vector else rows))
        done += len(rows)
    return done / max(found, 0.5)


def find(task: tuple[str, dict[str, Any], int]) -> tuple[float, dict[str, float], float]:
    """The preset, what is measured for each kind of stream, and the seconds it took."""
    name, parameters, arl0 = task
    start = time.perf_counter()
    tuned = TUNED[name]
    low, high = math.log(max(tuned.low, 1e-9)), math.log(tuned.high)
    for _ in range(14):
        middle = (low + high) / 2
        times = alarms(name, parameters, math.exp(middle), "independent normal", ALARMS * arl0, 2, 2 * ALARMS)
        if (times < arl0) == tuned.rising:
            low = middle
        else:
            high = middle
    value = float(f"{math.exp(high if tuned.rising else low):.3g}")
    measured = {
        stream: alarms(
            name, parameters, value, stream, (ALARMS if stream == "independent normal" else 20) * arl0, 3, 200
        )
        for index, stream in enumerate(STREAMS)
    }
    return value, measured, time.perf_counter() - start


BEGIN, END = "<!-- begin: drift_presets.py -->", "<!-- end: drift_presets.py -->"


def main() -> int:
    """Find and measure all presets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the module and the page")
    arguments = parser.parse_args()
    tasks = [(name, parameters, arl0) for name, parameters in CASES for arl0 in ARL0S]
    lines = [
        "| detector | promised | value | measured: " + " | ".join(STREAMS) + " |",
        "|---|---|---|" + "---|" * len(STREAMS),
    ]
    presets: dict[str, list[tuple[dict[str, Any], dict[int, float]]]] = {}
    with ProcessPoolExecutor(2) as pool:
        for (name, parameters, arl0), (value, measured, seconds) in zip(tasks, pool.map(find, tasks), strict=True):
            shown = ", ".join(f"{key}={item}" for key, item in parameters.items())
            cells = " | ".join(f"{number:,.0f}" for number in measured.values())
            lines.append(f"| {name}({shown}) | {arl0:,} | `{TUNED[name].name}` = {value:g} | {cells} |")
            print(f"{lines[-1]}  {seconds:.0f} s", flush=True)
            group = presets.setdefault(name, [])
            if not group or group[-1][0] != parameters:
                group.append((parameters, {}))
            group[-1][1][arl0] = value
    if arguments.write:
        page = ROOT / "docs" / "drift-quality.md"
        before, rest = page.read_text().split(BEGIN)
        page.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.split(END)[1]}")
        module = ROOT / "runtime" / "drift" / "presets.py"
        text = module.read_text()
        start, stop = text.index("PRESETS: Final"), text.index("\n\n\ndef preset")
        table = "".join(
            f"    {name!r}: (\n" + "".join(f"        ({one!r}, {values!r}),\n" for one, values in group) + "    ),\n"
            for name, group in presets.items()
        ).replace("'", '"')
        kind = "dict[str, tuple[tuple[dict[str, float], dict[int, float]], ...]]"
        module.write_text(f"{text[:start]}PRESETS: Final[{kind}] = {{\n{table}}}  # fmt: skip{text[stop:]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
