"""The process that forks the victims, and what of theirs is on the server."""

from __future__ import annotations

import json
import os
import queue
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import victims

WAIT_S = 60.0


class Zygote:
    """The process that forks the victims."""

    def __init__(self, config: Path, log: Path, prefix: Sequence[str] = ()) -> None:
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [*prefix, sys.executable, victims.__file__, str(config)],
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
