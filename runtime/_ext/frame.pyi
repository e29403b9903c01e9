from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = bytes | bytearray | memoryview

PAYLOAD_BYTES_MAX: int
RUN_COLUMNS: int

def crc32c(data: Bytes, crc: int = 0, /) -> int: ...
def encode(type: int, seq: int, payload: Bytes, flags: int = 0, version: int = 1) -> bytes: ...

@final
class SensorBlock:
    rows: int
    runs: int
    channels: int
    frames: int
    rows_all: int
    frames_lost: int
    rows_lost: int
    repeated: int
    overflowed: int
    def __init__(
        self, values: NDArray[np.float32], times: NDArray[np.int64], runs: NDArray[np.int64], scale: float = 1.0
    ) -> None: ...
    def missing(self, seq: int, index: int) -> tuple[int, int]: ...
    def clear(self) -> None: ...
    def started(self) -> None: ...
    def joined(self) -> None: ...

@final
class FrameDecoder:
    frames: int
    bad: int
    too_long: int
    def __init__(self, payload_max: int = 1024) -> None: ...
    def bind(self, stream: int, block: SensorBlock | None) -> None: ...
    def reset(self) -> None: ...
    def feed(self, data: Bytes, /) -> list[tuple[int, int, int, bytes]]: ...
