"""Where samples come from: files, standard input, a function that reads a sensor, and a thread in front of them."""

from __future__ import annotations

import csv
import json
import math
import sys
import threading
import time
import wave
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, InputError
from .window import Block, Lost, Sample

LINE_CHARACTERS_MAX: Final = 1 << 20
BLOCK_FRAMES_MAX: Final = 4096
FRAME_BYTES_MAX: Final = 1 << 20
RAW: Final = {"int16": "<i2", "float32": "<f4"}
KINDS: Final = ("json", *RAW)
TIME_COLUMNS: Final = ("time", "time_s", "timestamp")
OVERFLOWS: Final = ("block", "drop_oldest", "drop_newest")
_POLL_S: Final = (0.001, 0.02)  # least and most between two questions to a source that has nothing
_JOIN_S: Final = 2.0


def open_source(
    text: str, *, array: str = "", kind: str = "", channels: int = 0, rate_hz: float = 0.0
) -> Iterator[object]:
    """Open a source of samples.

    Args:
        text: path of a file, or `-` for standard input. `.npy` and `.npz` are arrays; a `.npz` of `values` and `time_s`
            has a time for each sample. So has a `.csv` whose header begins with `time`, `time_s` or `timestamp`, in
            seconds. `.wav` is 16-bit PCM and gives values from -1 to 1 with times at its own rate.
        array: the name of the array in a `.npz`; needed when there are several.
        kind: what comes on standard input: `json` (a list of numbers a line, one a channel), or raw little-endian
            frames of `int16` or `float32`, which are given as they are, unscaled.
        channels: values a raw frame.
        rate_hz: the rate of raw frames, which then carry times counted from 0; a `.wav` of another rate is refused.

    Yields:
        Rows, blocks, `Sample`s or `Block`s for `Pipeline.stream`. A line that is no list of numbers is yielded as it
        is, so that the stream can refuse it and go on.

    Raises:
        ConfigError: the source does not exist or is of a kind that is not known.
        InputError: while reading: raw input ended inside of a frame, or a CSV file cannot be taken apart.
    """
    if not 0 <= rate_hz < math.inf:
        raise ConfigError(f"rate_hz is {rate_hz}, expected a positive number, or 0 when it is not known")
    if text == "-":
        return _standard_input(kind or "json", channels, rate_hz)
    path = Path(text)
    if kind:
        raise ConfigError(f"kind {kind!r} is for standard input (-); what {path} is, its name says")
    if not path.is_file():
        raise ConfigError(f"the source {path} does not exist")
    if path.suffix == ".npz" and not array:
        timed = _timed_array(path)
        if timed is not None:
            return _blocks(*timed)
    if path.suffix in (".npy", ".npz"):
        return iter([load_array(path, array)])
    if path.suffix == ".csv":
        return _csv_rows(path)
    if path.suffix == ".wav":
        _check_wav(path, rate_hz)
        return _wav_blocks(path)
    raise ConfigError(f"{path}: expected .npy, .npz, .csv or .wav, or - for standard input")


# Arrays -----------------------------------------------------------------------------------------------------


def load_array(path: Path, name: str = "") -> NDArray[np.generic]:
    """Read an array; series `[n, channels, samples]` stay as they are.

    Raises:
        ConfigError: it cannot be read, or a `.npz` needs a name.
    """
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        names = list(loaded.files)
        if not name and len(names) == 1:
            name = names[0]
        if name not in names:
            raise ConfigError(f"{path} holds {', '.join(names)}; name one with --array")
        return _member(path, loaded, name)


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path} cannot be read as an array: {error}") from error


def _member(path: Path, loaded: Any, name: str) -> NDArray[np.generic]:
    try:
        return np.asarray(loaded[name])
    except (OSError, ValueError, EOFError) as error:  # damaged, or an array of objects
        raise ConfigError(f"{path}: {name} cannot be read as an array: {error}") from error


def _timed_array(path: Path) -> tuple[NDArray[np.generic], NDArray[np.float64]] | None:
    """`values` and `time_s` of a `.npz`; None when it has no times."""
    loaded = _load(path)
    if isinstance(loaded, np.ndarray):
        return None
    with loaded:
        if not {"values", "time_s"} <= set(loaded.files):
            return None
        values, times = _member(path, loaded, "values"), _member(path, loaded, "time_s")
    if values.ndim not in (1, 2) or times.shape != values.shape[:1] or times.dtype.kind not in "fiu":
        raise ConfigError(
            f"{path}: expected values [n, channels] and a number time_s [n], "
            f"got {list(values.shape)} and {times.dtype} {list(times.shape)}"
        )
    return values if values.ndim == 2 else values[:, np.newaxis], times.astype(np.float64)


def _blocks(values: NDArray[np.generic], times: NDArray[np.float64]) -> Iterator[object]:
    for start in range(0, len(values), BLOCK_FRAMES_MAX):
        end = start + BLOCK_FRAMES_MAX
        yield Block(values[start:end], times[start:end])


# Files ------------------------------------------------------------------------------------------------------


def _csv_rows(path: Path) -> Iterator[object]:
    timed = False
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(iter(lambda: file.readline(LINE_CHARACTERS_MAX), ""))
        try:
            for index, row in enumerate(reader):
                if not row:
                    continue
                values = [_number(text) for text in row]
                if index == 0 and any(isinstance(value, str) for value in values):  # a header
                    timed = row[0].strip().lower() in TIME_COLUMNS
                elif timed:
                    yield Sample(math.nan if isinstance(values[0], str) else values[0], values[1:])
                else:
                    yield values
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: {error}") from error


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _check_wav(path: Path, rate_hz: float) -> None:
    try:
        with wave.open(str(path), "rb") as file:
            width, rate = file.getsampwidth(), file.getframerate()
    except (OSError, EOFError, wave.Error) as error:
        raise ConfigError(f"{path} cannot be read as PCM WAV: {error}") from error
    if width != 2 or rate < 1:
        raise ConfigError(f"{path} has {8 * width} bits a value at {rate} Hz, expected 16 bits and at least 1 Hz")
    if rate_hz and rate != rate_hz:
        raise ConfigError(f"{path} has {rate} samples/s, expected {rate_hz:g}: resample it first")


def _wav_blocks(path: Path) -> Iterator[object]:
    with wave.open(str(path), "rb") as file:
        channels, rate, frame = file.getnchannels(), file.getframerate(), 0
        while data := file.readframes(BLOCK_FRAMES_MAX):
            whole = len(data) // (2 * channels)
            stored = np.frombuffer(data, dtype="<i2", count=whole * channels)
            yield Block(stored.reshape(whole, channels) * np.float32(1 / 32768), (frame + np.arange(whole)) / rate)
            frame += whole
            if len(data) % (2 * channels):
                raise InputError(f"{path} ends inside of frame {frame}")


# Standard input ---------------------------------------------------------------------------------------------


def _standard_input(kind: str, channels: int, rate_hz: float) -> Iterator[object]:
    if kind not in KINDS:
        raise ConfigError(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    if kind == "json":
        return _json_lines(sys.stdin)
    dtype = np.dtype(RAW[kind])
    if not 1 <= channels <= FRAME_BYTES_MAX // dtype.itemsize:
        raise ConfigError(f"{kind} frames of {channels} channels: say how many values a frame has, at least 1")
    file: Any = sys.stdin.buffer  # its type does not tell of `read1`
    return _raw_blocks(file, dtype, channels, rate_hz)


def _json_lines(file: IO[str]) -> Iterator[object]:
    while line := file.readline(LINE_CHARACTERS_MAX):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            yield line


class _Reads(Protocol):
    def read1(self, size: int = -1, /) -> bytes: ...


def _raw_blocks(file: _Reads, dtype: np.dtype[Any], channels: int, rate_hz: float) -> Iterator[object]:
    """Blocks of what has come so far: waiting for a full one would hold slow sensors back."""
    size = dtype.itemsize * channels
    read_bytes = size * max(1, min(BLOCK_FRAMES_MAX, FRAME_BYTES_MAX // size))
    rest, frame = b"", 0
    while data := file.read1(read_bytes - len(rest)):
        rest += data
        whole = len(rest) // size
        if not whole:
            continue
        values = np.frombuffer(rest, dtype=dtype, count=whole * channels).reshape(whole, channels)
        rest = rest[whole * size :]
        yield Block(values, (frame + np.arange(whole)) / rate_hz) if rate_hz else values
        frame += whole
    if rest:
        raise InputError(f"standard input ended inside of frame {frame}: {len(rest)} of {size} bytes")


# Live sources -----------------------------------------------------------------------------------------------


def paced(samples: Iterable[object], rate_hz: float) -> Iterator[object]:
    """Give out one row after another at a rate, by a clock that does not drift.

    A `Block` with only its first time is given out whole, when its first row is due.

    Raises:
        InputError: the rate is not positive.
    """
    if not rate_hz > 0:
        raise InputError(f"a rate of {rate_hz} samples/s is not positive")
    start, count = time.monotonic(), 0
    for item in samples:
        for row in _rows_of(item):
            wait = start + count / rate_hz - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            count += count_rows(row)
            yield row


def _rows_of(item: object) -> Iterable[object]:
    if isinstance(item, np.ndarray) and item.ndim == 2:
        return item
    if isinstance(item, Block):
        try:
            return [Sample(at, row) for at, row in zip(item.times_s, item.values, strict=True)]
        except (TypeError, ValueError):  # one time for all, or none that fit: the stream says what is wrong
            return [item]
    return [item]


def count_rows(item: object) -> int:
    """How many samples an item is; one that cannot be used is one."""
    values = item.values if isinstance(item, Block) else item
    if isinstance(values, np.ndarray):
        return len(values) if values.ndim == 2 else 1
    nested = isinstance(values, list | tuple) and values and isinstance(values[0], list | tuple | np.ndarray)
    return len(values) if nested else 1  # type: ignore[arg-type]


def from_callable(read: Callable[[], object], *, rate_hz: float = 0.0, stall_s: float = 5.0) -> Iterator[object]:
    """Samples from a function that reads a sensor.

    Args:
        read: gives a row, a block or a `Sample`, or None when there is nothing now. `StopIteration` or `EOFError` ends
            the stream; any other exception goes to whoever iterates.
        rate_hz: call it at most so often; 0 for as often as it gives something. Calls that were missed are not made
            up for: a sensor would only give the same value again.
        stall_s: the longest time without a sample.

    Raises:
        ConfigError: the rate or the time is not a positive number.
        InputError: while reading: nothing came for `stall_s`.
    """
    if not 0 <= rate_hz < math.inf:
        raise ConfigError(f"rate_hz is {rate_hz}, expected a positive number, or 0 for no pace")
    _check_stall(stall_s)
    return _called(read, 1 / rate_hz if rate_hz else 0.0, stall_s)


def _check_stall(stall_s: float) -> None:
    if not 0 < stall_s < threading.TIMEOUT_MAX:
        raise ConfigError(f"stall_s is {stall_s}, expected a positive number of seconds")


def _called(read: Callable[[], object], period_s: float, stall_s: float) -> Iterator[object]:
    poll_s = min(max(period_s / 4, _POLL_S[0]), _POLL_S[1])
    due = heard = time.monotonic()
    while True:
        try:
            item = read()
        except (StopIteration, EOFError):
            return
        now = time.monotonic()
        if item is None:
            if now - heard > stall_s:
                raise InputError(f"the source has given no sample for {now - heard:.1f} s; stall_s is {stall_s:g}")
            time.sleep(min(poll_s, stall_s))
            continue
        yield item
        heard = time.monotonic()  # the time that the consumer took is not the source's
        due = max(due + period_s, heard) if period_s else heard
        if due > heard:
            time.sleep(due - heard)
            heard = due


class Background:
    """Reads a source in a thread of its own, so that it is not kept waiting while the model runs.

    Args:
        source: any iterable of samples; one that blocks is fine.
        queue_rows: samples that wait at most. An item of more than that waits alone.
        overflow: when the queue is full, `block` lets the source wait, `drop_oldest` and `drop_newest` lose samples:
            they are counted, and the stream learns of them (`Lost`), so that no window spans them unnoticed.
        stall_s: the longest time without a sample.

    Raises:
        ConfigError: an argument is out of range.

    Attributes:
        dropped: samples lost because the queue was full.

    Iterating starts the thread. It raises what the source raised, once the samples before are consumed, and an
    InputError when nothing came for `stall_s`. `close`, or leaving a `with` block, ends the thread; one that
    hangs in its source is a daemon and does not keep the process alive.
    """

    def __init__(
        self, source: Iterable[object], *, queue_rows: int = 1024, overflow: str = "block", stall_s: float = 5.0
    ) -> None:
        if queue_rows < 1:
            raise ConfigError(f"queue_rows is {queue_rows}, expected at least 1")
        if overflow not in OVERFLOWS:
            raise ConfigError(f"overflow is {overflow!r}, expected one of {', '.join(OVERFLOWS)}")
        _check_stall(stall_s)
        self.dropped = 0
        self._source = source
        self._queue_rows = queue_rows
        self._overflow = overflow
        self._stall_s = stall_s
        self._queue: deque[tuple[object, int]] = deque()
        self._waiting = 0  # rows in the queue
        self._lost = 0  # rows dropped, of which the stream has not learned yet
        self._changed = threading.Condition()
        self._ended = self._closed = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[object]:
        return self

    def __next__(self) -> object:
        self._start()
        with self._changed:
            if not self._changed.wait_for(lambda: self._queue or self._ended or self._closed, self._stall_s):
                raise InputError(f"the source has given no sample for {self._stall_s:g} s")
            if self._closed or not self._queue:
                failure, self._failure = self._failure, None
                if failure is not None and not self._closed:
                    raise failure
                raise StopIteration
            if self._lost and self._overflow == "drop_oldest":
                return self._take_lost()
            item, rows = self._queue.popleft()
            self._waiting -= rows
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Stop reading; samples that wait are let go. May be called more than once."""
        with self._changed:
            self._closed = True
            self._queue.clear()
            self._waiting = 0
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_S)

    def _start(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._read, name="tinylcm-source", daemon=True)
            self._thread.start()

    def _read(self) -> None:
        try:
            iterator = iter(self._source)
            for item in iterator:
                if not self._put(item):
                    break
            close = getattr(iterator, "close", None)
            if self._closed and close is not None:
                close()
        except BaseException as error:  # the consumer raises it
            self._failure = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _put(self, item: object) -> bool:
        """Queue an item, or lose one; False when nobody wants any more."""
        rows = min(count_rows(item), self._queue_rows)
        with self._changed:
            if self._overflow == "block":
                self._changed.wait_for(lambda: self._closed or self._waiting + rows <= self._queue_rows)
            if self._closed:
                return False
            if self._waiting + rows > self._queue_rows and self._overflow == "drop_newest":
                self._drop(count_rows(item))
                return True
            while self._waiting + rows > self._queue_rows:
                oldest, size = self._queue.popleft()
                self._waiting -= size
                self._drop(count_rows(oldest))
            if self._lost and self._overflow == "drop_newest":
                self._queue.append((self._take_lost(), 0))
            self._queue.append((item, rows))
            self._waiting += rows
            self._changed.notify_all()
            return True

    def _drop(self, rows: int) -> None:
        self.dropped += rows
        self._lost += rows

    def _take_lost(self) -> Lost:
        lost, self._lost = Lost(self._lost, "the queue was full"), 0
        return lost
