from typing import Final, final

import numpy as np
from numpy.typing import NDArray

OK: Final[int]
BAD_LENGTH: Final[int]
BAD_TYPE: Final[int]
NOT_FINITE: Final[int]
BAD_TIME: Final[int]
NESTED: Final[int]
READERS_MAX: Final[int]
MISSING: Final[tuple[str, ...]]
REPEATED: Final[tuple[str, ...]]

@final
class Ring:
    capacity: int
    channels: int
    bad_channel: int
    total: int
    changes: int
    missing: int
    dropped: int
    filled: int
    late: int
    duplicates: int
    gaps: int
    restarts: int
    due: bool
    pending: bool
    readers: list[Reader]
    def __init__(
        self,
        capacity: int,
        channels: int,
        rate_hz: float = 0.0,
        missing: str = "drop",
        late: str = "drop",
        duplicate: str = "drop",
        gap_max: int = 0,
        jitter: float = 0.5,
    ) -> None: ...
    def push(self, row: object, /) -> int: ...
    def push_at(self, row: object, time: float, /) -> int: ...
    def push_block(
        self, block: NDArray[np.float32], times: NDArray[np.float64] | None = None, start: int = 0
    ) -> int: ...
    def advance(self) -> bool: ...
    def refuse(self) -> None: ...
    def restart(self) -> None: ...

@final
class Reader:
    ring: Ring
    window: int
    hop: int
    first_sample: int
    last_sample: int
    filled: int
    start_s: float
    end_s: float
    def __init__(self, ring: Ring, window: int, hop: int) -> None: ...
    def take(self) -> bool: ...
    def copy_window(self, out: NDArray[np.float32]) -> None: ...

def first_not_finite(values: NDArray[np.float32], /) -> int: ...
