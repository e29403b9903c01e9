"""Probes many packages fast: forked from one process that has the engines imported; see `tinylcm.probe`.

    python prober.py MEMORY_BYTES CPU_SECONDS

It reads a path a line, runs the child's side of the probe in a fork, and answers with a line of JSON: `signal` that
ended the child, or 0; `status` it exited with; and `answer`, what it printed.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

ENGINES = ("tinylcm.backends.onnx", "tinylcm.backends.tflite", "tinylcm.pipeline")


def probe_in_a_fork(path: str, memory_bytes: str, cpu_s: str) -> dict[str, object]:
    """What became of the child, and what it said."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)
        os.dup2(writer, 1)
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 2)  # the engines complain there
        status = 70
        try:
            from tinylcm.probe import main

            status = main([path, memory_bytes, cpu_s])
            sys.stdout.flush()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read(1 << 16)
    _, ended = os.waitpid(pid, 0)
    try:
        answer = json.loads(said) if said else {}
    except ValueError:  # the engine wrote there too, which the device's own probe takes for a refusal as well
        answer = {"error": f"no answer: {said[:80]!r}"}
    return {"signal": ended & 0x7F, "status": ended >> 8, "answer": answer}


class Prober:
    """The process that forks the probes; the test's own end of it."""

    def __init__(self, memory_bytes: int = 2 << 30, cpu_s: int = 20) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(memory_bytes), str(cpu_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def probe(self, path: Path) -> dict[str, object]:
        """Ask; a host that has died raises."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the host of the probes is gone: {self._process.wait()}"
        found: dict[str, object] = json.loads(line)
        return found

    def close(self) -> int:
        """Its exit status: 0 when no model has harmed it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        status = self._process.wait(30)
        self._process.stdout.close()
        return status


def main() -> None:
    """Fork what standard input asks for, one at a time."""
    for name in ENGINES:
        importlib.import_module(name)
    importlib.import_module("onnxruntime")
    importlib.import_module("ai_edge_litert.interpreter")
    for line in sys.stdin:
        os.write(1, json.dumps(probe_in_a_fork(line.strip(), *sys.argv[1:3])).encode() + b"\n")


if __name__ == "__main__":
    main()
