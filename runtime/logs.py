"""What the library logs, as `log` records for the server: at a level, at most so many an hour, never a secret.

Rules
- A handler of the logger `tinylcm` keeps what it is given in a short queue; the agent's tick makes records of it. So
  nothing that logs waits, and the journal may log itself.
- The limit is a bucket of tokens. What is over it, or over the queue, is counted, and the next record says how many.
- Another level is given for a while by the command `log_level`, or by the configuration. The logger lets through what
  the records want; what the application had set comes back when the device is closed.
- Keys, tokens and passwords in addresses are blanked out, whoever put them there.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from .clock import Clock
from .config import LOG_OFF, LogConfig

LOG: Final = "log"  # the type of the records
QUEUE_MAX: Final = 200
MESSAGE_CHARACTERS_MAX: Final = 2000
_HOUR_S: Final = 3600.0
_logger: Final = logging.getLogger("tinylcm")
# Tokens of people and of enrolments, device keys, bearers, and passwords in addresses.
_SECRETS: Final = re.compile(
    r"\b(?:ts|tj)_[0-9a-f]{8}_[A-Za-z0-9_-]+|\bd[a-z2-7]{12}\.[0-9A-Za-z_-]{16,}|(?<=token=)[^&\s]+"
    r"|(?<=Bearer )\S+|(?<=://)[^/@\s:]*:[^/@\s]+(?=@)"
)


def blank(text: str) -> str:
    """A text without secrets."""
    return _SECRETS.sub("***", text)


class LogRecords(logging.Handler):
    """The library's log on its way to the server.

    Args:
        append: the journal's: stream, type, payload.
        clock: for the limit and for how long another level holds.
        config: level and limit.

    Any thread may log; one at a time calls the other methods.
    """

    def __init__(self, append: Callable[..., object], clock: Clock, config: LogConfig) -> None:
        super().__init__()
        self._append, self._clock, self._config = append, clock, config
        self._waiting: deque[tuple[str, str, str]] = deque()
        self._guard = threading.Lock()
        self._dropped = 0
        self._tokens, self._filled_s = float(config.per_hour), clock.monotonic_s()
        self._before: int | None = None
        self._until_s: float | None = None

    def start(self) -> None:
        """Begin to listen."""
        if self._before is None:
            self._before = _logger.level
            _logger.addHandler(self)
        self._set(self._config.level)

    def configure(self, config: LogConfig) -> None:
        """Another level and limit; while a command holds another level, that one stays."""
        self._config = config
        self._tokens = min(self._tokens, float(config.per_hour))
        if self._before is not None and self._until_s is None:
            self._set(config.level)

    def override(self, level: str, for_s: float) -> None:
        """Another level for a while."""
        if self._before is None:  # a device without a server: only what the application sees changes
            self._before = _logger.level
        self._until_s = self._clock.monotonic_s() + for_s
        self._set(level)

    def _set(self, level: str) -> None:
        """Let through what the records want, and never less than the application wanted."""
        if level == LOG_OFF:
            self.setLevel(logging.CRITICAL + 1)
            _logger.setLevel(self._before or logging.NOTSET)
            return
        self.setLevel(level.upper())
        wanted, before = self.level, self._before or logging.NOTSET
        is_held = self._until_s is not None
        parent = _logger.parent
        effective = before or (parent.getEffectiveLevel() if parent is not None else logging.WARNING)
        _logger.setLevel(wanted if is_held or wanted < effective else before)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line until the next tick."""
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                error = record.exc_info[1]
                text = f"{text}: {type(error).__name__}: {error}"
        except Exception:  # a wrong call of the logger must not break what it tells of
            text = str(record.msg)
        line = (record.levelname.lower(), record.name, blank(text)[:MESSAGE_CHARACTERS_MAX])
        with self._guard:
            if len(self._waiting) >= QUEUE_MAX:
                self._waiting.popleft()
                self._dropped += 1
            self._waiting.append(line)

    def tick(self) -> None:
        """Make records of what waits, within the limit."""
        now_s = self._clock.monotonic_s()
        if self._until_s is not None and now_s >= self._until_s:
            self._until_s = None
            self._set(self._config.level if self in _logger.handlers else LOG_OFF)
        limit = float(self._config.per_hour)
        self._tokens = min(limit, self._tokens + max(0.0, now_s - self._filled_s) * limit / _HOUR_S)
        self._filled_s = now_s
        while (line := self._take()) is not None:
            level, logger, message = line[0]
            payload: dict[str, Any] = {"level": level, "logger": logger, "message": message}
            if line[1]:
                payload["dropped"] = line[1]
            self._append("details", LOG, payload)

    def _take(self) -> tuple[tuple[str, str, str], int] | None:
        """The next line that may become a record, and how many before it may not."""
        with self._guard:
            if not self._waiting:
                return None
            if self._tokens < 1.0:
                self._dropped += len(self._waiting)
                self._waiting.clear()
                return None
            self._tokens -= 1.0
            dropped, self._dropped = self._dropped, 0
            return self._waiting.popleft(), dropped

    def close(self) -> None:
        """Make records of what waits, and stop to listen."""
        if self._before is not None:
            _logger.removeHandler(self)
            _logger.setLevel(self._before)
            self._before = self._until_s = None
            self.tick()
        super().close()
