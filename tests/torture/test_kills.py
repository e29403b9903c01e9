"""A device is killed at random moments while it syncs through a proxy that does harm: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import victims
from chaos import ChaosProxy
from fleet import device_config, enrol, make_keys, sphere
from tinylcm.config import DeviceConfig

FULL = bool(os.environ.get("TINYMLOPS_TORTURE"))
KILLS = 1000 if FULL else 60
RESENDS_MIN = 50 if FULL else 5
WAIT_S = 60.0


class Zygote:
    """The process that forks the victims."""

    def __init__(self, config: Path, log: Path) -> None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, victims.__file__, str(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
        )
        self.acked: set[tuple[int, str, int]] = set()
        self._said: queue.Queue[list[str]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.wait_for("up")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            words = line.decode().split()
            if words[0] == "acked":
                self.acked.add((int(words[1]), words[2], int(words[3])))
            else:
                self._said.put(words)

    def ask(self, line: str) -> int:
        """Fork one; its process id."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        return int(self.wait_for("pid")[1])

    def wait_for(self, word: str, timeout_s: float = WAIT_S) -> list[str]:
        """The next line that begins so; others are passed over."""
        while True:
            words = self._said.get(timeout=timeout_s)
            if words[0] == word:
                return words

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        self._process.stdout.close()
        self._log.close()


@contextmanager
def zygote(config: Path, log: Path) -> Iterator[Zygote]:
    opened = Zygote(config, log)
    try:
        yield opened
    finally:
        opened.close()


def write_toml(config: DeviceConfig, path: Path) -> None:
    server = config.server
    path.write_text(
        f'[device]\nname = "victim"\ndata = "{config.data}"\n[server]\nsync_interval_s = 0.05\n'
        f"timeout_s = 1.0\nbackoff_min_s = {server.backoff_min_s}\nbackoff_max_s = {server.backoff_max_s}\n"
        "[journal]\ncommit_interval_s = 0.02\n"
    )


def stored(database: Path) -> Counter[tuple[int, str, int]]:
    """How often each record of a victim is on the server."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute(
            "SELECT stream, payload FROM record WHERE type = ?", (victims.RECORD_TYPE,)
        ).fetchall()
    found: Counter[tuple[int, str, int]] = Counter()
    for stream, payload in rows:
        values = json.loads(payload)
        found[(values["run"], stream, values["n"])] += 1
    return found


@pytest.mark.long
def test_no_kill_loses_or_doubles_a_record(tmp_path: Path, report: Callable[..., None]) -> None:
    keys, rng = make_keys(tmp_path / "keys"), random.Random(5)
    with sphere(tmp_path) as server, ChaosProxy(server.port, seed=6) as proxy:
        proxy.calm = True
        join = server.join(keys / "root.pub").replace(f":{server.port}", f":{proxy.port}")
        config = device_config(tmp_path / "device")
        enrol(config, join)
        write_toml(config, tmp_path / "device.toml")
        proxy.calm = False
        with zygote(tmp_path / "device.toml", tmp_path / "victims.log") as victim:
            for number in range(KILLS):
                pid = victim.ask(f"run {number}")
                if rng.random() < 0.8:
                    victim.wait_for("ready")
                    time.sleep(rng.uniform(0.0, 0.4))
                else:  # in the middle of opening
                    time.sleep(rng.uniform(0.0, 0.05))
                os.kill(pid, signal.SIGKILL)
                assert int(victim.wait_for("gone")[1]) == signal.SIGKILL, (tmp_path / "victims.log").read_text()
            proxy.calm = True
            victim.ask("drain")
            assert victim.wait_for("gone", 300)[1] == "0", (tmp_path / "victims.log").read_text()
        found = stored(server.data / "tinysphere.db")
        assert not proxy.errors
    lost, doubled = victim.acked - set(found), [key for key, count in found.items() if count > 1]
    report(
        "kill -9 of a device that syncs through a proxy that does harm",
        kills=KILLS,
        durable_records=len(victim.acked),
        lost=len(lost),
        doubled_in_the_database=len(doubled),
        answers_cut=proxy.answers_cut,
        requests_doubled=proxy.fates["duplicate"],
    )
    assert len(victim.acked) > 10 * KILLS
    assert lost == set()
    assert doubled == []
    assert proxy.answers_cut + proxy.fates["duplicate"] >= RESENDS_MIN, proxy.fates
