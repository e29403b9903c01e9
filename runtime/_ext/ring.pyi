from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

OK: int
DUE: int
BAD_LENGTH: int
BAD_TYPE: int
NOT_FINITE: int

class Ring:
    capacity: int
    channels: int
    window: int
    hop: int
    bad_channel: int
    total: int
    due: bool
    def __init__(self, capacity: int, channels: int, window: int, hop: int) -> None: ...
    def push(self, row: Sequence[float], /) -> int: ...
    def push_block(self, block: NDArray[np.float32], start: int = 0, /) -> int: ...
    def restart(self) -> None: ...
    def copy_window(self, out: NDArray[np.float32], /) -> None: ...

def copy_finite(source: NDArray[np.float32], out: NDArray[np.float32], /) -> int: ...
