"""Named arrays in one file (`.npz`), read without trust: sizes are checked before memory is taken, and no pickle."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from .errors import ModelError

ARRAYS_MAX: Final = 64
ARRAYS_BYTES_MAX: Final = 256 << 20
_KINDS: Final = "fiub"


def read_arrays(data: bytes, what: str) -> dict[str, NDArray[Any]]:
    """The arrays of a `.npz` file.

    Args:
        data: the file's bytes.
        what: names the file in messages.

    Raises:
        ModelError: no such file, more than `ARRAYS_BYTES_MAX` unpacked, or an array that holds no numbers.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if len(entries) > ARRAYS_MAX or size > ARRAYS_BYTES_MAX:
                raise ModelError(
                    f"{what} unpacks to {len(entries)} arrays of {size} bytes, at most {ARRAYS_MAX} of together "
                    f"{ARRAYS_BYTES_MAX} bytes are taken"
                )
            return {entry.filename.removesuffix(".npy"): _read(archive, entry, what) for entry in entries}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        raise ModelError(f"{what} is no file of arrays (.npz): {error}") from error


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, what: str) -> NDArray[Any]:
    name = entry.filename.removesuffix(".npy")
    with archive.open(entry) as file:
        content = file.read(entry.file_size + 1)
    stream = io.BytesIO(content)
    try:
        version = npy.read_magic(stream)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read_header(stream)
    except (ValueError, KeyError, SyntaxError, TypeError) as error:
        raise ModelError(f"{what}: the array {name!r} is damaged: {error}") from error
    if dtype.kind not in _KINDS or dtype.hasobject:
        raise ModelError(f"{what}: the array {name!r} holds {dtype}, expected numbers")
    offset = stream.tell()
    if math.prod(shape) * dtype.itemsize != len(content) - offset:
        size = len(content) - offset
        raise ModelError(f"{what}: the array {name!r} says it is {dtype} {list(shape)}, but has {size} bytes")
    array = np.frombuffer(content, dtype=dtype, offset=offset).reshape(shape, order="F" if fortran else "C")
    if dtype.kind == "f" and not np.isfinite(array).all():
        raise ModelError(f"{what}: the array {name!r} holds NaN or infinity")
    return np.asarray(array, order="C")  # not ascontiguousarray: it makes [1] of a single number


def write_arrays(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """A `.npz` file of these arrays, the same bytes for the same arrays."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            npy.write_array(content, np.asarray(array, order="C"), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())  # ZipInfo: no time of day
    return buffer.getvalue()


def take(
    arrays: Mapping[str, NDArray[Any]], name: str, what: str, shape: tuple[int | None, ...], dtype: Any = np.float32
) -> NDArray[Any]:
    """One array of these, converted.

    Args:
        shape: expected; None stands for any length but 0.

    Raises:
        ModelError: it is missing, or of another shape.
    """
    if name not in arrays:
        raise ModelError(f"{what} has no array {name!r}; it has {', '.join(arrays) or 'none'}")
    array = arrays[name]
    fits = len(array.shape) == len(shape) and all(
        have == want if want is not None else have > 0 for have, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("n" if want is None else str(want) for want in shape)
        raise ModelError(f"{what}: the array {name!r} has shape {list(array.shape)}, expected [{wanted}]")
    return np.asarray(array, dtype=dtype, order="C")
