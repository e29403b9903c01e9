"""From samples to windows: rows or blocks go into the ring, and a refused sample says why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

import numpy as np
from numpy.typing import NDArray
from tinylcm._ext.ring import BAD_LENGTH, BAD_TIME, NESTED, NOT_FINITE, OK, Reader, Ring, first_not_finite

from .errors import ConfigError, InputError
from .manifest import InputSpec, Manifest, WindowSpec

_BLOCK_KINDS: Final = "fiub"  # float, int, unsigned, bool
_FLOAT32: Final = np.dtype(np.float32)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample with its time.

    Attributes:
        time_s: when it was taken, in seconds on any clock that runs on: only differences count.
        values: a number a channel.
    """

    time_s: float
    values: Any


@dataclass(frozen=True, slots=True)
class Block:
    """Several samples with their times.

    Attributes:
        values: `[n, channels]`.
        times_s: `[n]`, or the time of the first when the rest follow at the declared rate.
    """

    values: Any
    times_s: Any


@dataclass(frozen=True, slots=True)
class Lost:
    """Said by a source in place of samples that it has lost, so that no window spans them unnoticed.

    Attributes:
        rows: how many; more than a gap may have count as one more than that.
        reason: why, for the message.
    """

    rows: int
    reason: str


@dataclass(frozen=True, slots=True)
class Counts:
    """What has happened to a stream's samples since it was last asked.

    Attributes:
        missing: samples that did not come, or came as something that cannot be used.
        dropped: samples that were given and not taken.
        filled: samples that others stand in for.
        late, duplicates: samples whose time was not after the one's before.
        gaps: stretches of missing samples after which windows began anew.
        restarts: how often a stream that had begun began anew.
    """

    missing: int
    dropped: int
    filled: int
    late: int
    duplicates: int
    gaps: int
    restarts: int


def _is_plain(array: NDArray[Any]) -> bool:
    """Float32 as the ring and the model read it."""
    return array.dtype is _FLOAT32 and array.flags.c_contiguous


def describe_value(value: object) -> str:
    """A short word for what was given instead."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array {list(value.shape)}"
    return type(value).__name__


class Windower:
    """Collects samples for one or several models and says whose window is due.

    Args:
        specs: each model's input and window; the first one's names and policy for missing samples hold for all.
        channels: values a sample.
        ring_samples: capacity of the ring, by default just the largest window.

    Raises:
        ConfigError: a window is larger than the ring, or does not fit its input.

    Attributes:
        readers: one a model, in their order.
        offered: samples given, refused ones included.
    """

    def __init__(
        self, specs: Sequence[tuple[InputSpec, WindowSpec]], channels: int, ring_samples: int | None = None
    ) -> None:
        self._spec, policy = specs[0]
        largest = max(window.samples for _, window in specs)
        capacity = largest if ring_samples is None else ring_samples
        if capacity < largest:
            raise ConfigError(f"the window has {largest} samples, the ring only {capacity}: raise ring_samples")
        try:
            self.ring = Ring(
                capacity,
                channels,
                policy.rate_hz,
                policy.missing,
                policy.late,
                policy.duplicate,
                policy.gap_samples_max or policy.samples,
            )
            self.readers = [Reader(self.ring, window.samples, window.hop) for _, window in specs]
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.channels = channels
        self._row = (channels,)
        self._rate_hz = policy.rate_hz
        self._gap_max = policy.gap_samples_max or policy.samples
        self._counted = self._totals()
        self._changes = 0
        self.offered = 0

    @classmethod
    def of(cls, manifests: Sequence[Manifest], ring_samples: int | None = None) -> Windower:
        """The ring that these models read together."""
        specs = [(manifest.input, manifest.window) for manifest in manifests]
        return cls(specs, manifests[0].layout[1], ring_samples)

    def _totals(self) -> tuple[int, ...]:
        ring = self.ring
        return ring.missing, ring.dropped, ring.filled, ring.late, ring.duplicates, ring.gaps, ring.restarts

    def take_counts(self) -> Counts | None:
        """What has happened since the last call; None when nothing has."""
        if self.ring.changes == self._changes:
            return None
        self._changes = self.ring.changes
        totals = self._totals()
        counts = Counts(*(now - before for now, before in zip(totals, self._counted, strict=True)))
        self._counted = totals
        return counts

    def feed(self, item: object) -> Iterator[Reader | InputError]:
        """Take a row, a block of rows, a `Sample` or a `Block`.

        Yields:
            The reader of each window that is due, to be read before the next is asked for, and an error for each bad
            sample, whose place is filled as the window's policy says.
        """
        if type(item) is list or type(item) is tuple:
            status = self.ring.push(item)  # as `_feed_row`, without its generator: most samples come this way
            if status == NESTED:
                yield from self._feed_block(item, None)
                return
            if status != OK:
                yield self._refusal(status, item)
            self.offered += 1
            if self.ring.due:
                yield from self._due()
        elif type(item) is np.ndarray and item.shape == self._row and item.dtype.kind in _BLOCK_KINDS:
            yield from self._feed_row(item.tolist(), math.nan)
        elif _is_block(item, self.channels):
            ring, readers, start, rows = self.ring, self.readers, 0, len(item)
            while start < rows:  # the common case, without a generator in a generator
                taken = ring.push_block(item, None, start)
                self.offered += taken - start
                start = taken
                if ring.bad_channel >= 0:
                    yield self._refuse_row()
                while ring.due:
                    for reader in readers:
                        if reader.take():
                            yield reader
                    ring.advance()
        elif type(item) is Sample:
            yield from self._feed_sample(item)
        elif type(item) is Block:
            yield from self._feed_block(item.values, item.times_s)
        elif type(item) is Lost:
            yield from self._feed_lost(item)
        else:
            yield from self._feed_block(item, None)

    def _due(self) -> Iterator[Reader]:
        """The readers that are due, and those that will be when what waits has been taken."""
        ring = self.ring
        while ring.due:
            for reader in self.readers:
                if reader.take():
                    yield reader
            ring.advance()

    def _feed_row(self, row: Any, time_s: float) -> Iterator[Reader | InputError]:
        status = self.ring.push_at(row, time_s)
        if status != OK:
            yield self._refusal(status, row)
        self.offered += 1
        if self.ring.due:
            yield from self._due()

    def _feed_sample(self, sample: Sample) -> Iterator[Reader | InputError]:
        values, time_s = sample.values, sample.time_s
        try:
            usable = math.isfinite(time_s)
        except (TypeError, OverflowError):
            usable = False
        if not usable:
            self.ring.refuse()
            yield self._refusal(BAD_TIME, time_s)
            self.offered += 1
            yield from self._due()
            return
        if not isinstance(values, list | tuple):
            values = np.asarray(values).tolist()
        yield from self._feed_row(values if isinstance(values, list | tuple) else [values], float(time_s))

    def _feed_lost(self, lost: Lost) -> Iterator[Reader | InputError]:
        for _ in range(min(lost.rows, self._gap_max + 1)):
            self.ring.refuse()
            yield from self._due()
        yield InputError(f"{self._place()}: the source has lost {lost.rows} samples: {lost.reason}")

    def _feed_block(self, item: object, times: object) -> Iterator[Reader | InputError]:
        try:
            block = self._as_block(item)
            at = None if times is None else self._as_times(times, len(block))
        except InputError as error:
            self.ring.refuse()
            self.offered += 1
            yield error
            yield from self._due()
            return
        start = 0
        while start < len(block):
            taken = self.ring.push_block(block, at, start)
            self.offered += taken - start
            start = taken
            if self.ring.bad_channel >= 0:
                yield self._refuse_row()
            if self.ring.due:
                yield from self._due()

    def _refuse_row(self) -> InputError:
        """The error for the row of a block that was taken last."""
        self.offered -= 1
        error = self._refusal(BAD_TIME if self.ring.bad_channel == self.channels else NOT_FINITE, None)
        self.offered += 1
        return error

    def _as_block(self, item: object) -> NDArray[np.float32]:
        if _is_block(item, self.channels):
            return item
        try:
            array = np.asarray(item)
        except (ValueError, TypeError) as error:
            raise InputError(f"{self._place()}: not an array of numbers: {error}") from error
        if array.dtype.kind not in _BLOCK_KINDS:
            raise InputError(f"{self._place()}: expected numbers, got {describe_value(item)}")
        if array.ndim == 1:
            array = array[np.newaxis, :] if self.channels > 1 or array.size == 1 else array[:, np.newaxis]
        if array.ndim != 2 or array.shape[1] != self.channels:
            raise InputError(f"{self._place()}: expected rows of {self.channels} channels, got {describe_value(array)}")
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(array, dtype=np.float32)

    def _as_times(self, times: object, rows: int) -> NDArray[np.float64]:
        try:
            array = np.asarray(times, dtype=np.float64)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(f"{self._place()}: the times are no numbers: {error}") from error
        if array.ndim == 0:
            if not self._rate_hz:
                raise InputError(f"{self._place()}: one time for a block needs the window's rate_hz")
            return np.asarray(array + np.arange(rows) / self._rate_hz)
        if array.shape != (rows,):
            raise InputError(f"{self._place()}: expected {rows} times, got shape {list(array.shape)}")
        return np.ascontiguousarray(array)

    def _place(self) -> str:
        return f"input {self._spec.name!r}, sample {self.offered}"

    def _refusal(self, status: int, item: object) -> InputError:
        channel = self.ring.bad_channel
        if status == BAD_LENGTH:
            problem = f"expected {self.channels} channels, got {channel}"
        elif status == BAD_TIME:
            problem = "its time is no finite number of seconds"
        elif status == NOT_FINITE:
            problem = f"{self._spec.channel(channel)} is NaN, infinite or too large for float32"
        else:
            what = describe_value(item[channel]) if isinstance(item, list | tuple) else describe_value(item)
            problem = f"{self._spec.channel(channel)} is no number but {what}"
        return InputError(f"{self._place()}: {problem}")


def _is_block(item: object, channels: int) -> TypeGuard[NDArray[np.float32]]:
    """Whether it can be taken as it is."""
    return type(item) is np.ndarray and _is_plain(item) and item.ndim == 2 and item.shape[1] == channels


def load_window(spec: InputSpec, x: object, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """One whole window as contiguous float32, checked: the same array when nothing has to change.

    Raises:
        InputError: wrong dtype, shape or a value that is not finite.
    """
    array: NDArray[Any] = x if isinstance(x, np.ndarray) else _to_array(spec, x)
    if array.dtype.kind not in _BLOCK_KINDS:
        raise InputError(f"input {spec.name!r}: expected float32 or numbers that convert to it, got {array.dtype}")
    if array.shape != shape:
        raise InputError(f"input {spec.name!r}: expected shape {list(shape)}, got {list(array.shape)}")
    if _is_plain(array):
        window = array
    else:
        with np.errstate(over="ignore"):
            window = np.ascontiguousarray(array, dtype=np.float32)
    bad = first_not_finite(window.reshape(-1))
    if bad >= 0:
        place = ", ".join(str(int(i)) for i in np.unravel_index(bad, array.shape))
        raise InputError(f"input {spec.name!r}: the value at [{place}] is NaN, infinite or too large for float32")
    return window


def _to_array(spec: InputSpec, x: object) -> NDArray[Any]:
    try:
        return np.asarray(x)
    except (ValueError, TypeError) as error:
        raise InputError(f"input {spec.name!r}: expected an array of numbers: {error}") from error
