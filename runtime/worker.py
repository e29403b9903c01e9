"""A model in a thread of its own, behind a bounded queue: the sensor's loop never waits for the model."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Literal, Protocol

import numpy as np

from .errors import ConfigError, DeviceError, TinyLCMError
from .sources import count_rows
from .types import Prediction
from .window import Lost

_log = logging.getLogger("tinylcm")
OVERFLOWS: Final = ("drop_oldest", "drop_newest", "block")
ERRORS_LOGGED_MAX: Final = 5
Overflow = Literal["drop_oldest", "drop_newest", "block"]


class Streams(Protocol):
    """What a worker runs: a `Pipeline`, or a device's `Model`."""

    @property
    def priority(self) -> int:
        """The niceness that the model's options ask for."""
        ...

    def count_overflow(self) -> None:
        """One item was lost on its way to the model."""
        ...

    def stream(self, samples: Iterator[object], *, on_error: Callable[[TinyLCMError], object]) -> Iterator[Prediction]:
        """Predict every window of a stream."""
        ...


class Worker:
    """Runs one model in a thread: samples are put in, predictions come out by a callback or an iterator.

    Args:
        model: a `Pipeline` or a device's model.
        on_prediction: called in the worker's thread; without it predictions wait for `predictions`, and the oldest
            are given up when nobody takes them. What it raises is logged and counted; the stream goes on.
        on_error: called with the errors of samples and windows; by default the first few are logged.
        queue_items: rows or blocks that may wait.
        overflow: when the queue is full: `drop_oldest` and `drop_newest` lose an item and count it, `block` lets
            `put` wait. The stream learns of what was lost, so that no window spans it unnoticed: the manifest's
            policy for missing samples decides.
        priority: niceness of the thread, -20 to 19; below 0 needs the right to. By default the model's own
            (`Options.priority`, `[models.NAME] priority`).

    Raises:
        ConfigError: an argument is out of its range.
        DeviceError: the priority is refused.

    Attributes:
        dropped: items that the queue has lost; the model's metrics count them too, as `overflow`.
        untaken: predictions that nobody took from `predictions` in time.
        callback_errors: exceptions of `on_prediction`.
    """

    def __init__(
        self,
        model: Streams,
        *,
        on_prediction: Callable[[Prediction], object] | None = None,
        on_error: Callable[[TinyLCMError], object] | None = None,
        queue_items: int = 256,
        overflow: Overflow = "drop_oldest",
        priority: int | None = None,
    ) -> None:
        priority = model.priority if priority is None else priority
        if overflow not in OVERFLOWS:
            raise ConfigError(f"overflow={overflow!r}: expected {', '.join(OVERFLOWS)}")
        if not 1 <= queue_items <= 1 << 20 or not -20 <= priority <= 19:
            raise ConfigError("expected 1 to 1048576 queue_items and a priority from -20 to 19")
        self._model, self._on_prediction, self._on_error = model, on_prediction, on_error
        self._overflow, self._size, self._priority = overflow, queue_items, priority
        self._waiting: deque[tuple[object, int]] = deque()  # with what was lost just before it, in samples
        self._lost = 0  # samples lost after the last one that waits, or, of `drop_oldest`, before the first
        self._ready: deque[Prediction] = deque(maxlen=queue_items)
        self._changed = threading.Condition()
        self._closing = False
        self._ended = False
        self._failure: BaseException | None = None
        self._trace: TracebackType | None = None
        self._started = threading.Event()
        self.dropped = self.untaken = 0
        self.callback_errors = 0
        self._errors = 0
        self._thread = threading.Thread(target=self._run, name="tinylcm-worker", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            raise DeviceError(f"a priority of {priority} is refused: {self._failure}") from self._failure

    def put(self, item: object, *, timeout_s: float | None = None) -> bool:
        """Hand over a row or a block; False when it, or an older one, was given up.

        An array is copied, so that a sensor's loop may use its buffer again; other items are kept as they are.

        Args:
            timeout_s: with `block`, wait at most this long for a place; None waits until there is one.

        Raises:
            ConfigError: the worker is closed.
            TinyLCMError: what ended the stream, such as a stateful model that another stream has taken over.
        """
        with self._changed:
            if self._overflow == "block" and len(self._waiting) >= self._size:
                self._changed.wait_for(lambda: len(self._waiting) < self._size or self._over, timeout_s)
            self._raise_failure()
            if self._closing:
                raise ConfigError("the worker is closed")
            full = len(self._waiting) >= self._size
            if full:
                self.dropped += 1
                self._model.count_overflow()
                if self._overflow != "drop_oldest":
                    self._lost += count_rows(item)
                    return False
                self._lost += count_rows(self._waiting.popleft()[0])
            before = 0 if self._overflow == "drop_oldest" else self._take_lost()
            self._waiting.append((item.copy() if isinstance(item, np.ndarray) else item, before))
            self._changed.notify_all()
            return not full

    @property
    def _over(self) -> bool:
        return self._closing or self._ended

    def _raise_failure(self) -> None:
        """Tell what ended the stream; each time with its own traceback only, which would grow with every telling."""
        if self._failure is not None:
            raise self._failure.with_traceback(self._trace)

    def predictions(self, *, timeout_s: float | None = None) -> Iterator[Prediction]:
        """Predictions as they come, until the worker is closed, or none has come for `timeout_s`.

        Raises:
            TinyLCMError: what ended the stream.
        """
        while True:
            with self._changed:
                there = self._changed.wait_for(lambda: self._ready or self._ended, timeout_s)
                if not self._ready:
                    if there:
                        self._raise_failure()
                    return
                prediction = self._ready.popleft()
            yield prediction

    def _items(self) -> Iterator[object]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                item, lost = self._waiting.popleft()
                lost += self._take_lost() if self._overflow == "drop_oldest" else 0
                self._changed.notify_all()
            if lost:
                yield Lost(lost, "the worker's queue was full")
            yield item

    def _take_lost(self) -> int:
        lost, self._lost = self._lost, 0
        return lost

    def _run(self) -> None:
        try:
            if self._priority:
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._priority)  # on Linux: of the thread
        except OSError as error:
            self._failure = error
            self._ended = True
            return
        finally:
            self._started.set()
        try:
            for prediction in self._model.stream(self._items(), on_error=self._report):
                self._hand_out(prediction)
        except BaseException as error:  # sys.exit() in a callback too: the caller of `put` must hear of it
            _log.error("the worker has ended: %s", error)
            self._failure, self._trace = error, error.__traceback__
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _hand_out(self, prediction: Prediction) -> None:
        if self._on_prediction is None:
            with self._changed:
                self.untaken += len(self._ready) == self._ready.maxlen
                self._ready.append(prediction)
                self._changed.notify_all()
            return
        try:
            self._on_prediction(prediction)
        except Exception as error:  # the application's own: it must not cost the windows that follow
            self.callback_errors += 1
            if self.callback_errors <= ERRORS_LOGGED_MAX:
                _log.exception("on_prediction failed on %s: %s", prediction.id, error)

    def _report(self, error: TinyLCMError) -> None:
        self._errors += 1
        if self._on_error is not None:
            try:
                self._on_error(error)
            except Exception as own:
                self.callback_errors += 1
                if self.callback_errors <= ERRORS_LOGGED_MAX:
                    _log.exception("on_error failed: %s", own)
        elif self._errors <= ERRORS_LOGGED_MAX:
            _log.warning("%s", error)

    def close(self, timeout_s: float = 10.0) -> None:
        """Let the worker finish what waits, and end.

        Raises:
            ConfigError: a callback calls it, and would wait for itself.
            DeviceError: it did not end in time; its thread is left behind.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is self._thread:
            raise ConfigError("close() waits for the worker's callbacks: call it from another thread, not from one")
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise DeviceError(f"the worker did not end within {timeout_s:g} s: the model or a callback hangs")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
