from collections.abc import Callable, Container
from typing import Any, final

from tinylcm.types import Json

def record_id(value: object) -> tuple[str, int] | None: ...
def with_ids(records: list[object]) -> tuple[list[tuple[tuple[str, int], object]], set[str]]: ...

@final
class RecordReader:
    def __init__(
        self, slowly: Callable[[object], tuple[str, str, int, dict[str, Json]]], depth_max: int, bytes_max: int
    ) -> None: ...
    def read(self, value: object) -> tuple[str, str, int, dict[str, Json]]: ...
    def rows(
        self,
        named: list[tuple[tuple[str, int], object]],
        start: int,
        last: int,
        device: str,
        stream: str,
        special: Container[str],
        boot: str,
        anchor_ns: int,
        anchor_s: float,
        now_s: float,
        encode: Callable[[Any], bytes],
        rows: list[tuple[Any, ...]],
    ) -> int: ...
