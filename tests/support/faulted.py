"""A device's short life for fault injection: everything that touches the disk, once, in one order.

    python faulted.py DEVICE_TOML SECOND_PACKAGE

Everything is imported first; then it says `up` and waits for a line, so that strace can come and count the calls of the
device alone. It prints with writev, which nobody injects faults into: `acked STREAM EPOCH SEQ N` for a durable record,
`settled STREAM EPOCH SEQ` for one that is acknowledged now, `predicted I of N`, `installed VERSION`, `error TYPE:
MESSAGE` for errors of ours, `bug ...` for any other, and `end`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import TypeVar

import tinylcm.device
import tinylcm.sources
from tinylcm import Device, TinyLCMError
from tinylcm.backends.linear import LinearBackend
from tinylcm.files import read_bounded
from tinylcm.journal import Journal
from tinylcm.manifest import PACKAGE_BYTES_MAX
from tinylcm.types import Stream

RECORD_TYPE = "torture"
STEPS = 4
FUTURE_S = 3.0
T = TypeVar("T")


def say(*words: object) -> None:
    """One line, by a system call of its own."""
    os.writev(1, [(" ".join(map(str, words)) + "\n").encode()])


def attempt(action: Callable[[], T]) -> T | None:
    """Do it; errors are said and life goes on, as in an application that handles them."""
    try:
        return action()
    except (TinyLCMError, FutureTimeoutError) as error:
        say("error", f"{type(error).__name__}: {error}".replace("\n", " "))
    except BaseException as error:
        say("bug", f"{type(error).__name__}: {error}".replace("\n", " "))
    return None


def append(journal: Journal, stream: Stream, number: int) -> None:
    future = journal.append(stream, RECORD_TYPE, {"n": number, "pad": "x" * 100})
    record = future.result(FUTURE_S)
    say("acked", stream, record.epoch, record.seq, number)


def settle(journal: Journal, stream: Stream) -> None:
    records = journal.read(stream, 2, 1 << 20)
    if not records:
        return
    # Said before: the journal's thread may write it, and be killed in that, before this one comes to say anything.
    say("settled", stream, records[-1].epoch, records[-1].seq)
    if not journal.acknowledge(stream, records[-1].epoch, records[-1].seq):
        say("settled", stream, records[0].epoch, records[0].seq - 1)
    journal.flush(FUTURE_S)


def live(config: str, second: str) -> None:
    """Install, predict, journal, acknowledge, update, close."""
    device = attempt(lambda: Device.open(config, background=False))
    if device is None:
        return
    model = attempt(lambda: device.model("gesture"))
    if model is not None:
        say("installed", model.manifest.version)
    predicted = 0
    for number in range(STEPS):
        for stream in ("events", "details"):
            attempt(lambda stream=stream, number=number: append(device.journal, stream, number))  # type: ignore[misc]
        if model is not None and attempt(lambda: model.infer([1.0, 2.0, 3.0])) is not None:
            predicted += 1
        attempt(lambda: settle(device.journal, "events"))
    attempt(lambda: settle(device.journal, "details"))
    if (
        model is not None
        and attempt(lambda: device.agent.install(read_bounded(Path(second), PACKAGE_BYTES_MAX))) is not None
    ):
        say("installed", model.manifest.version)
    for number in range(STEPS, 2 * STEPS):
        attempt(lambda number=number: append(device.journal, "events", number))  # type: ignore[misc]
        if model is not None and attempt(lambda: model.infer([1.0, 2.0, 3.0])) is not None:
            predicted += 1
        device.agent.tick()
    say("predicted", predicted, "of", 2 * STEPS if model is not None else 0)
    attempt(device.close)


def main() -> None:
    """Lead the life in a thread."""
    tinylcm.device.CLOSE_TIMEOUT_S = 1.0  # type: ignore[misc]  # a full disk stays full here: do not wait for it
    assert LinearBackend and tinylcm.sources  # imported before anything is counted
    say("up")
    sys.stdin.readline()  # until strace has come
    thread = threading.Thread(target=live, args=(sys.argv[1], sys.argv[2]))
    thread.start()
    thread.join()
    say("end")


if __name__ == "__main__":
    main()
