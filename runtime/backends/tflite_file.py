"""What the interpreters do not tell of a TFLite file: whether it keeps state, and whether it is whole.

A reader of the few fields that are asked for, with every offset checked against the file's end. All numbers are from
TensorFlow's schema.fbs, version 3, and from FlatBuffers' binary format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from ..errors import ModelError

_VAR_HANDLE: Final = 142  # BuiltinOperator
_CODES: Final = 1  # fields of Model
_SUBGRAPHS: Final = 2
_BUFFERS: Final = 4
_BUILTIN_CODE: Final = 3  # of OperatorCode
_TENSORS: Final = 0  # of SubGraph
_IS_VARIABLE: Final = 5  # of Tensor
_DATA: Final = 0  # of Buffer


def find_state(model: bytes) -> tuple[bool, bool]:
    """Whether a model has resource variables, and whether it has variable tensors.

    Raises:
        ModelError: the bytes are no TFLite file, or a part of one is missing: tflite_runtime would read past the end.
    """
    if len(model) < 8 or model[4:8] != b"TFL3":
        raise ModelError(f"{len(model)} bytes are no TFLite model: it begins with {model[:8].hex(' ') or 'nothing'}")
    file = _FlatBuffer(model)
    try:
        root = file.read("<I", 0)
        codes = [file.field(code, _BUILTIN_CODE) for code in file.tables(root, _CODES)]
        resources = any(file.read("<i", place) == _VAR_HANDLE for place in codes if place)
        graphs = list(file.tables(root, _SUBGRAPHS))
        flags = [file.field(tensor, _IS_VARIABLE) for graph in graphs for tensor in file.tables(graph, _TENSORS)]
        variables = any(file.read("<?", place) for place in flags if place)
        for buffer in file.tables(root, _BUFFERS):
            file.vector(buffer, _DATA, 1)
    except struct.error as error:
        raise ModelError(f"the TFLite model is damaged or cut off after {len(model)} bytes: {error}") from error
    return resources, variables


class _FlatBuffer:
    """A file of tables that point to each other. Every method raises struct.error for what lies outside of it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._tables_left = len(data) // 4  # each has an offset of its own: more are a file that goes in circles

    def read(self, kind: str, at: int) -> int:
        """A number."""
        if at < 0:  # struct would count from the end
            raise struct.error(f"an offset points before the file, to {at}")
        return int(struct.unpack_from(kind, self._data, at)[0])

    def field(self, table: int, number: int) -> int:
        """Where a table keeps a field; 0 when it has its default."""
        layout = table - self.read("<i", table)
        if table + self.read("<H", layout + 2) > len(self._data):
            raise struct.error(f"the table at {table} ends after the file")
        slot = 4 + 2 * number
        if slot + 2 > self.read("<H", layout):
            return 0
        offset = self.read("<H", layout + slot)
        return table + offset if offset else 0

    def vector(self, table: int, number: int, width: int) -> tuple[int, int]:
        """Start and length of a field that is a vector of items of `width` bytes."""
        place = self.field(table, number)
        if not place:
            return 0, 0
        start = place + self.read("<I", place)
        count = self.read("<I", start)
        if start + 4 + count * width > len(self._data):
            raise struct.error(f"{count} items at {start} end after the file")
        return start + 4, count

    def tables(self, table: int, number: int) -> Iterator[int]:
        """The tables of a field that is a vector of them."""
        start, count = self.vector(table, number, 4)
        self._tables_left -= count
        if self._tables_left < 0:
            raise struct.error("it has more tables than it has room for")
        for place in range(start, start + 4 * count, 4):
            yield place + self.read("<I", place)
