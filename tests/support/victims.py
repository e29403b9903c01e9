"""Devices that are killed: forked from one process that has everything imported, so that a start costs little.

    python victims.py DEVICE_TOML

It reads lines from standard input: `run N` forks a device that appends records numbered (N, 1), (N, 2), ... and syncs
until somebody kills it; `drain` forks one that syncs what is left, and ends. It writes `pid P` for each, `ready N` when
the device is open, `acked N STREAM I` for each record whose future has resolved, and `gone STATUS` when it has ended.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from concurrent.futures import Future

import tinylcm.device
from tinylcm import Device, Record, ServerError, WireError
from tinylcm.config import load_config
from tinylcm.types import Stream

RECORD_TYPE = "torture"
DRAIN_TRIES = 200


def say(*words: object) -> None:
    """One line in one write: whole, whoever is killed."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def run(path: str, number: int) -> None:
    """Append for ever."""
    with Device.open(path, background=False) as device:
        # The agent's own loop turns four times a second; this one as often as it can, to be killed in the middle.
        threading.Thread(target=tick, args=(device,), daemon=True).start()
        say("ready", number)
        for index in range(1, 1_000_000):
            stream: Stream = "events" if index % 3 == 0 else "details"
            future = device.journal.append(stream, RECORD_TYPE, {"run": number, "n": index, "pad": "x" * 40})

            def told(done: Future[Record], stream: Stream = stream, index: int = index) -> None:
                if done.exception() is None:
                    say("acked", number, stream, index)

            future.add_done_callback(told)
            time.sleep(0.002)


def tick(device: Device) -> None:
    """Let the agent do what is due."""
    while True:
        device.agent.tick()
        time.sleep(0.005)


def drain(path: str) -> None:
    """Sync until nothing is left."""
    with Device.open(path, background=False) as device:
        for _ in range(DRAIN_TRIES):
            try:
                device.sync()
            except (ServerError, WireError):
                time.sleep(0.05)
                continue
            stats = device.journal.stats()
            if not (stats.events.unacknowledged or stats.details.unacknowledged):
                return
    raise SystemExit("the journal does not become empty")


def main() -> None:
    """Fork what standard input asks for, one at a time."""
    path = sys.argv[1]
    load_config(path)
    tinylcm.device.capabilities()  # everything that is imported late is imported now
    say("up")
    for line in sys.stdin:
        words = line.split()
        pid = os.fork()
        if not pid:
            try:
                run(path, int(words[1])) if words[0] == "run" else drain(path)
            except BaseException as error:
                os.write(2, f"{type(error).__name__}: {error}\n".encode())
                os._exit(1)
            os._exit(0)
        say("pid", pid)
        say("gone", os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    main()
