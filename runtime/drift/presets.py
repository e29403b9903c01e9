"""Thresholds for a known reference and independent, roughly normal values; calibrate for anything else.

`benchmarks/drift_presets.py` finds and measures them; docs/drift-quality.md shows what was measured.
"""

from __future__ import annotations

from typing import Any, Final

from ..errors import ConfigError

PRESETS: Final[dict[str, tuple[tuple[dict[str, float], dict[int, float]], ...]]] = {
    "CUSUM": (
        ({"k": 0.5}, {10000: 8.22, 100000: 10.4, 1000000: 12.9}),
        ({"k": 0.25}, {10000: 15.0, 100000: 19.4, 1000000: 23.8}),
    ),
    "EWMAChart": (
        ({"lambda_val": 0.1}, {10000: 3.8, 100000: 4.36, 1000000: 4.87}),
    ),
    "PageHinkley": (
        ({"delta": 0.25}, {10000: 24.5, 100000: 255.0, 1000000: 442.0}),
    ),
    "ADWIN": (
        ({"clock": 32}, {10000: 0.189, 100000: 0.0303, 1000000: 0.00499}),
        ({"clock": 1}, {10000: 0.0975, 100000: 0.0136, 1000000: 0.00307}),
    ),
    "PSI": (
        ({"window": 200}, {10000: 0.189, 100000: 0.236, 1000000: 0.289}),
    ),
    "JensenShannon": (
        ({"window": 200}, {10000: 0.19, 100000: 0.208, 1000000: 0.227}),
    ),
    "IncrementalKS": (
        ({"window": 200}, {10000: 0.129, 100000: 0.154, 1000000: 0.171}),
    ),
    "FeatureDrift": (
        ({"window": 300}, {10000: 0.906, 100000: 1.1, 1000000: 1.35}),
    ),
}  # fmt: skip


def preset(detector: str, arl0: int, **parameters: float) -> dict[str, Any]:
    """Parameters of a detector for one false alarm in `arl0` values, for values standardised by their reference.

    Args:
        detector: class, such as `CUSUM`.
        arl0: 10,000, 100,000 or 1,000,000.
        parameters: of the variant wanted, such as `k=0.25`; the first variant otherwise.

    Raises:
        ConfigError: there is no such preset.

    >>> from tinylcm.drift import CUSUM
    >>> detector = CUSUM(mean=20.0, std=0.5, **preset("CUSUM", 100_000))
    >>> 9 < detector.threshold < 12
    True
    """
    for variant, values in PRESETS.get(detector, ()):
        if parameters.items() <= variant.items():
            if arl0 not in values:
                raise ConfigError(f"presets are for an arl0 of {', '.join(map(str, values))}, not {arl0}")
            return {**variant, _TUNED.get(detector, "threshold"): values[arl0]}
    raise ConfigError(
        f"no preset for {detector} {parameters or ''}; there are some for {', '.join(PRESETS)}: calibrate instead"
    )


_TUNED: Final = {"ADWIN": "delta"}
