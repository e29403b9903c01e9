"""The demonstration's stream: test recordings joined in a shuffled order, then the watch worn differently."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

DATA: Final = Path(__file__).parent / "data" / "basic_motions.npz"
SHUFFLE_SEED: Final = 7  # any number, chosen before looking; in class order the stream would drift by itself
ADDED_M_S2: Final = 2.0


@dataclass(frozen=True)
class Recording:
    """Samples `[n, 6]` (ax ay az in m/s2, gx gy gz in rad/s at 10 Hz) with the activity of each."""

    samples: NDArray[np.float32]
    activities: NDArray[np.str_]


def load(part: str = "test", seed: int = SHUFFLE_SEED) -> Recording:
    """Join the recordings of a part (`train` or `test`) in an order shuffled by a seed."""
    with np.load(DATA, allow_pickle=False) as data:
        series, labels = data[f"x_{part}"], data[f"y_{part}"]
    order = np.random.default_rng(seed).permutation(len(series))
    samples = np.concatenate([series[index].T for index in order]).astype(np.float32)
    names = np.array([str(labels[index]).lower() for index in order])
    return Recording(np.ascontiguousarray(samples), np.repeat(names, series.shape[2]))


def wear_differently(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same movements with the watch turned by 90 degrees about z and 2 m/s2 added on the accelerometer."""
    turned = samples.copy()
    for x, y in ((0, 1), (3, 4)):
        turned[:, x], turned[:, y] = -samples[:, y], samples[:, x]
    turned[:, :3] += np.float32(ADDED_M_S2)
    return turned


def activity_of(recording: Recording, first_sample: int, last_sample: int) -> str | None:
    """The activity of a window that lies inside one, or None for a mixed window."""
    inside = recording.activities[first_sample : last_sample + 1]
    return str(inside[0]) if (inside == inside[0]).all() else None
