"""From samples to windows: rows or blocks go into the ring, and a refused sample says why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tinylcm._ext.ring import BAD_LENGTH, DUE, NOT_FINITE, OK, Ring, copy_finite

from .errors import ConfigError, InputError
from .package import InputSpec, WindowSpec

_BLOCK_KINDS: Final = "fiub"  # float, int, unsigned, bool


def describe_value(value: object) -> str:
    """A short word for what was given instead."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array {list(value.shape)}"
    return type(value).__name__


class Windower:
    """Collects samples and says when a window is due.

    Args:
        spec: the model's input.
        window: samples a window, hop.
        ring_samples: capacity of the ring, by default just a window.

    Raises:
        ConfigError: the window is larger than the ring, or does not fit the input.
    """

    def __init__(self, spec: InputSpec, window: WindowSpec, ring_samples: int | None = None) -> None:
        layout = spec.layout(window.samples)
        if layout is None:
            raise ConfigError(f"a window of {window.samples} samples does not fit the input {list(spec.shape)}")
        self.samples, self.channels = layout
        capacity = self.samples if ring_samples is None else ring_samples
        if capacity < self.samples:
            raise ConfigError(f"the window has {self.samples} samples, the ring only {capacity}: raise ring_samples")
        try:
            self.ring = Ring(capacity, self.channels, self.samples, window.hop)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self._spec = spec
        self.offered = 0  # samples given, refused ones included

    def feed(self, item: object) -> Iterator[InputError | None]:
        """Take a row or a block of rows; yields None for each window that is due and an error for each bad sample.

        The caller reads the window (`copy_into`) before it asks for the next. A bad sample is dropped and the ring
        begins anew, so that no window spans the gap.
        """
        if type(item) is list or type(item) is tuple:
            status = self.ring.push(item)
            if status == DUE:
                self.offered += 1
                yield None
                return
            if status == OK:
                self.offered += 1
                return
            if not (item and isinstance(item[0], list | tuple | np.ndarray)):
                yield self._refuse(status, item)
                return
        yield from self._feed_block(item)

    def _feed_block(self, item: object) -> Iterator[InputError | None]:
        block = self._as_block(item)
        if isinstance(block, InputError):
            self.offered += 1
            self.ring.restart()
            yield block
            return
        start = 0
        while start < len(block):
            taken = self.ring.push_block(block, start)
            self.offered += taken - start
            start = taken
            if self.ring.due:
                yield None
            elif start < len(block):
                yield self._refuse(NOT_FINITE, None)
                start += 1

    def _as_block(self, item: object) -> NDArray[np.float32] | InputError:
        try:
            array = np.asarray(item)
        except (ValueError, TypeError) as error:
            return InputError(f"{self._place()}: not an array of numbers: {error}")
        if array.dtype.kind not in _BLOCK_KINDS:
            return InputError(f"{self._place()}: expected numbers, got {describe_value(item)}")
        if array.ndim == 1:
            array = array[np.newaxis, :] if self.channels > 1 or array.size == 1 else array[:, np.newaxis]
        if array.ndim != 2 or array.shape[1] != self.channels:
            return InputError(
                f"{self._place()}: expected rows of {self.channels} channels, got {describe_value(array)}"
            )
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, dtype=np.float32)

    def _place(self) -> str:
        return f"input {self._spec.name!r}, sample {self.offered}"

    def _refuse(self, status: int, item: object) -> InputError:
        channel = self.ring.bad_channel
        if status == BAD_LENGTH:
            problem = f"expected {self.channels} channels, got {channel}"
        elif status == NOT_FINITE:
            problem = f"{self._spec.channel(channel)} is NaN, infinite or too large for float32"
        else:
            what = describe_value(item[channel]) if isinstance(item, list | tuple) else describe_value(item)
            problem = f"{self._spec.channel(channel)} is no number but {what}"
        error = InputError(f"{self._place()}: {problem}")
        self.offered += 1
        self.ring.restart()
        return error


def load_window(spec: InputSpec, x: object, tensor: NDArray[np.float32]) -> None:
    """Check one whole window (without the batch axis) and copy it into the input tensor.

    Raises:
        InputError: wrong dtype, shape or a value that is not finite; the tensor is then not to be used.
    """
    array: NDArray[np.generic] = x if isinstance(x, np.ndarray) else _to_array(spec, x)
    if array.dtype.kind not in _BLOCK_KINDS:
        raise InputError(f"input {spec.name!r}: expected float32 or numbers that convert to it, got {array.dtype}")
    if array.shape != tensor.shape[1:]:
        raise InputError(f"input {spec.name!r}: expected shape {list(tensor.shape[1:])}, got {list(array.shape)}")
    with np.errstate(over="ignore"):
        window = np.ascontiguousarray(array, dtype=np.float32)  # the same array when nothing has to change
    bad = copy_finite(window.reshape(-1), tensor.reshape(-1))
    if bad >= 0:
        place = ", ".join(str(int(i)) for i in np.unravel_index(bad, array.shape))
        raise InputError(f"input {spec.name!r}: the value at [{place}] is NaN, infinite or too large for float32")


def _to_array(spec: InputSpec, x: object) -> NDArray[np.generic]:
    try:
        return np.asarray(x)
    except (ValueError, TypeError) as error:
        raise InputError(f"input {spec.name!r}: expected an array of numbers: {error}") from error
