"""What makes `tinylcm run` a well-behaved service: signals, systemd's notifications, its watchdog, and log lines.

It knows nothing of models and journals: who uses it says whether it is well, and how to reload.

    with Daemon(is_well=lambda: device.is_well, reload=reload) as daemon:
        daemon.ready("predicting")
        ...

Rules
- SIGTERM and SIGINT end the program by a KeyboardInterrupt, once, so that everything closes in order. After
  `stop_timeout_s`, or at a second signal, it ends at once: the journal and the slots bear that.
- SIGHUP reloads on the watching thread; what fails there is logged and changes nothing.
- systemd is told READY, RELOADING, STOPPING and a status, and the watchdog only while `is_well` says so
  (sd_notify(3)). Without systemd all of this does nothing.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Final, Literal, Self, TextIO

_log = logging.getLogger("tinylcm")
LogFormat = Literal["text", "json"]
LOG_FORMATS: Final[tuple[LogFormat, ...]] = ("text", "json")
STOP_TIMEOUT_S: Final = 20.0
KILLED_STATUS: Final = 1
_LOOK_S: Final = 1.0  # how often the watching thread looks, at the least
_PRIORITIES: Final = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))  # syslog(3)


class Notifier:
    """systemd's notification socket; without one, nothing happens.

    Args:
        environ: where `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID` stand.

    Attributes:
        watchdog_s: within which the watchdog wants to hear of us, or None.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        is_ours = pid in ("", str(os.getpid()))
        self.watchdog_s = int(usec) / 1e6 if usec.isdigit() and int(usec) > 0 and is_ours and address else None

    def send(self, *lines: str) -> None:
        """Tell systemd; a line is `KEY=value`. What cannot be told is not worth an error."""
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            channel.sendto("\n".join(lines).encode(), self._address)


class Daemon:
    """See the module's text. Only the main thread may enter it, because only that one gets signals.

    Args:
        is_well: whether the watchdog may be told so; called once a second at most.
        reload: what SIGHUP does.
        notifier: systemd's; by default that of the environment.
        stop_timeout_s: how long an orderly end may take.
    """

    def __init__(
        self,
        *,
        is_well: Callable[[], bool],
        reload: Callable[[], object],
        notifier: Notifier | None = None,
        stop_timeout_s: float = STOP_TIMEOUT_S,
    ) -> None:
        self._is_well, self._reload, self._stop_timeout_s = is_well, reload, stop_timeout_s
        self._notifier = notifier or Notifier(os.environ)
        self._before: dict[signal.Signals, object] = {}
        self._hangup, self._ended = threading.Event(), threading.Event()
        self._status = ""
        self._is_stopping = False
        self._thread = threading.Thread(target=self._watch, name="tinylcm-daemon", daemon=True)

    def __enter__(self) -> Self:
        for number, handler in (
            (signal.SIGTERM, self._on_stop),
            (signal.SIGINT, self._on_stop),
            (signal.SIGHUP, self._on_hangup),
        ):
            self._before[number] = signal.signal(number, handler)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._hangup.set()
        self._thread.join(self._stop_timeout_s)
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def ready(self, status: str) -> None:
        """It runs; systemd starts what waits for it."""
        self._status = status
        self._notifier.send("READY=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """What `systemctl status` shows."""
        if status != self._status:
            self._status = status
            self._notifier.send(f"STATUS={status}")

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        if self._is_stopping:
            os._exit(128 + number)
        self._is_stopping = True
        self._notifier.send("STOPPING=1", "STATUS=stopping")
        threading.Thread(target=self._limit, name="tinylcm-stop", daemon=True).start()
        raise KeyboardInterrupt

    def _limit(self) -> None:
        # Not ended by leaving the daemon: what is closed after it counts too. The process's end is its end.
        time.sleep(self._stop_timeout_s)
        _log.error("did not stop in order within %g s: ended now; what is durable stays so", self._stop_timeout_s)
        os._exit(KILLED_STATUS)

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        self._hangup.set()

    def _watch(self) -> None:
        watchdog_s = self._notifier.watchdog_s
        wait_s = _LOOK_S if watchdog_s is None else min(_LOOK_S, watchdog_s / 2)
        told_s = -float("inf")
        while not self._ended.is_set():
            if self._hangup.wait(wait_s) and not self._ended.is_set():
                self._hangup.clear()
                self._reloaded()
            now_s = time.monotonic()
            if watchdog_s is not None and now_s - told_s >= watchdog_s / 2.5 and self._is_well():
                told_s = now_s
                self._notifier.send("WATCHDOG=1")

    def _reloaded(self) -> None:
        self._notifier.send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._reload()
        except Exception as error:  # whatever it is, the program runs on as it was
            _log.error("nothing was reloaded: %s", error)
        else:
            _log.info("reloaded")
        self._notifier.send("READY=1", f"STATUS={self._status}")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: `time` (ISO 8601, UTC), `level`, `logger`, `thread`, `message`, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "thread": record.threadName,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _PriorityFormatter(logging.Formatter):
    """Lines with the level in front, as journald reads it (sd-daemon(3))."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        priority = next((priority for level, priority in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in self._inner.format(record).splitlines())


def log_to(stream: TextIO, format: LogFormat, level: int, environ: Mapping[str, str]) -> None:
    """Send the log of the program to a stream, unless it goes somewhere already; to journald with its priorities."""
    formatter = JsonFormatter() if format == "json" else logging.Formatter("%(name)s: %(message)s")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_PriorityFormatter(formatter) if _is_journal(stream, environ) else formatter)
    logging.basicConfig(level=level, handlers=[handler])


def _is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether a stream is the one that JOURNAL_STREAM names as device:inode (systemd.exec(5))."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return environ.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"
