"""The values that travel through TinyLCM: frozen, without behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tinylcm._ext.prediction import Prediction as Prediction

Stream: TypeAlias = Literal["events", "details"]
Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
Payload: TypeAlias = Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class HistogramPair:
    """A reference and a current histogram over the same bins.

    `edges` has one value more than the counts for numbers; for categories `labels` names each bin and `edges` is
    empty. The outermost bins also count what lies outside of them.
    """

    reference: tuple[float, ...]
    current: tuple[float, ...]
    edges: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Alarm:
    """One detector's statement that a signal no longer looks like its reference.

    Attributes:
        monitor: the monitor's name in the manifest, such as `input`.
        detector: the detector's class, such as `PSI`.
        signal: what was watched, such as `confidence` or a channel's name.
        statistic: the detector's value at the alarm.
        threshold: the limit it went over.
        window: index of the window at which it was raised, counted from 0 in this stream.
        suspect: index of the first window that belongs to the change, as the detector sees it.
        histogram: reference and current distribution, where the detector keeps one.
        p_value: of this one look at independent values, where the detector has one.
        arl0: mean number of windows between false alarms that the whole set of monitors was calibrated for; None when
            one of them does not say.
        monitors: how many monitors the set has.
    """

    monitor: str
    detector: str
    signal: str
    statistic: float
    threshold: float
    window: int
    suspect: int
    histogram: HistogramPair | None = None
    p_value: float | None = None
    arl0: float | None = None
    monitors: int = 1


@dataclass(frozen=True, slots=True)
class Record:
    """A journal entry in the envelope in which it travels.

    Its id is (device, stream, epoch, seq); `boot` and `boot_ns` say when it was made on a clock that never jumps.
    """

    type: str
    epoch: str
    seq: int
    boot: str
    boot_ns: int
    payload: Payload = field(default_factory=dict)
