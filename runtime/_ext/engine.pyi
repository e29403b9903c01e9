from collections.abc import Callable, Sequence
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray
from tinylcm.types import Alarm

from .prediction import Prediction
from .ring import Reader
from .signal import Plan
from .stats import MetricsRing

REJECTED: Final[int]
NOT_FINITE: Final[int]
ACTIVATIONS: Final[tuple[str, ...]]
SIGNALS: Final[dict[str, int]]

@final
class Decider:
    count: int
    smoothing: int
    best: int
    confidence: float
    event: bool
    def __init__(
        self,
        count: int,
        activation: str = "none",
        temperature: float = 1.0,
        smoothing: int = 1,
        threshold: float = 0.0,
        hysteresis: float = 0.0,
        refractory: int = 0,
    ) -> None: ...
    def restart(self) -> None: ...
    def update(self, output: NDArray[np.float32]) -> int: ...
    def scores(self) -> list[float]: ...

@final
class BoundCall:
    def __init__(
        self, call: Callable[..., object], arguments: tuple[Any, ...], translate: Callable[[Exception], Exception]
    ) -> None: ...
    def __call__(self) -> None: ...

@final
class Member:
    def __init__(self, monitor: Any, signal: str | None = None, detector: Any = None, evidence: Any = None) -> None: ...

@final
class Watch:
    channels: int
    hop: int
    index: int
    needs_rows: bool
    def __init__(
        self,
        members: list[Member],
        inputs: Any,
        finish: Callable[[list[Alarm]], tuple[Alarm, ...]],
        judge: bool,
        report: Callable[[Any, Exception], object],
        channels: int,
        hop: int,
    ) -> None: ...
    def bind(
        self,
        rows: NDArray[np.float32],
        embedding: NDArray[np.float32] | None,
        distance: NDArray[np.float32] | None = None,
    ) -> None: ...
    def update(
        self,
        rows: NDArray[np.float32],
        label: int,
        scores: Sequence[float],
        latency_us: float = ...,
        missing: int = 0,
        at_ns: int = 0,
        embedding: NDArray[np.float32] | None = None,
    ) -> tuple[Alarm, ...]: ...

@final
class Guard:
    def __enter__(self) -> Guard: ...
    def __exit__(self, *error: object) -> None: ...

class Runner:
    _lock: Guard
    def _connect(
        self, observe: Callable[[Prediction], object], failed: Callable[[Exception], object], watched: bool
    ) -> None: ...
    def _use(self, engine: Engine) -> None: ...
    def infer(self, x: object) -> Prediction: ...

@final
class Count:
    value: int

@final
class Engine:
    rows: NDArray[np.float32]
    variant: str
    observed: bool
    @property
    def predictions(self) -> int: ...
    missing: int
    decider: Decider
    def __init__(
        self,
        plan: Plan | None,
        convert: Callable[[object], NDArray[np.float32] | None],
        tensor: NDArray[Any],
        output: NDArray[Any],
        scale: float,
        zero_point: int,
        rows: NDArray[np.float32],
        shape: tuple[int, ...],
        run: Callable[[], object],
        watch: Watch,
        metrics: MetricsRing,
        decider: Decider,
        extra: Sequence[tuple[str, NDArray[Any]]] | None,
        stages: NDArray[np.float64] | None,
        labels: tuple[str, ...],
        reject: str,
        model: str,
        version: str,
        variant: str,
        session: str,
    ) -> None: ...
    def follow(self, other: Engine) -> None: ...
    def set_watch(self, watch: Watch) -> None: ...
    def infer(self, x: object, decider: Decider | None = None) -> Prediction: ...
    def infer_reader(self, reader: Reader, decider: Decider) -> Prediction: ...
    def load(self, x: object) -> None: ...
    def conclude(self, decider: Decider | None = None, elapsed_ns: int = 0) -> Prediction: ...
