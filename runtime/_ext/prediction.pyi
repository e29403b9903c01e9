from collections.abc import Iterable, Mapping
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray
from tinylcm.types import Alarm

FIELDS: Final[tuple[str, ...]]

@final
class Prediction:
    id: str
    label: str
    confidence: float
    scores: tuple[float, ...]
    latency_us: float
    load_us: float
    run_us: float
    post_us: float
    monitors_us: float
    timing: dict[str, float]
    drift: tuple[Alarm, ...]
    model: str
    version: str
    variant: str
    first_sample: int
    last_sample: int
    start_s: float
    end_s: float
    filled: int
    event: bool
    outputs: Mapping[str, NDArray[Any]] | None
    stages_us: tuple[float, ...] | None
    def __init__(
        self,
        id: str,
        label: str,
        confidence: float,
        scores: Iterable[float],
        latency_us: float,
        drift: Iterable[Alarm] = (),
        model: str = "",
        version: str = "",
        variant: str = "",
        first_sample: int = -1,
        last_sample: int = -1,
        start_s: float = ...,
        end_s: float = ...,
        filled: int = 0,
        event: bool = False,
        timing: Mapping[str, float] | None = None,
        labels: Iterable[str] = (),
        outputs: Mapping[str, NDArray[np.generic]] | None = None,
    ) -> None: ...
    def top(self, k: int = 5) -> list[tuple[str, float]]: ...
    def to_dict(self) -> dict[str, object]: ...
