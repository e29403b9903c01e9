from typing import Any, Final, final

from numpy.typing import ArrayLike, NDArray

DTYPES: Final[dict[str, tuple[int, int, int, int]]]
VALUES_MAX: Final[int]
FFT_MAX: Final[int]
OPS: Final[dict[str, type]]

@final
class Plan:
    samples: int
    channels: int
    size: int
    itemsize: int
    shape: tuple[int, ...]
    dtype: str
    identity: bool
    def __init__(
        self,
        ops: list[tuple[str, tuple[Any, ...]]],
        samples: int,
        channels: int,
        gain: ArrayLike,
        offset: ArrayLike,
        low: float,
        high: float,
        dtype: str = "float32",
        scale: float = 0.0,
        zero_point: int = 0,
    ) -> None: ...
    def apply(self, window: NDArray[Any], out: NDArray[Any], tail: NDArray[Any] | None = None) -> None: ...
