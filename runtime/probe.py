"""Try a package in a child process with limits, before it may enter this one.

A mutated model can crash its parser, so a model is first loaded where a crash harms nobody. A probe that passes says
that the package runs and gives its golden outputs here; it says nothing about who made it: the signature does.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .errors import ModelError, TinyLCMError
from .manifest import Manifest
from .package import Package, load_package
from .types import Json

_OUTPUT_BYTES_MAX: Final = 64 << 10


def check_golden(package: Package) -> dict[str, Json]:
    """Run a package's golden windows in this process.

    Returns:
        `windows` run, `latency_us` of the median window, `error_max` against the golden scores.

    Raises:
        ModelError: the model does not run, or its scores differ by more than the manifest's tolerance.
    """
    from .pipeline import Pipeline

    pipeline = Pipeline(package)
    golden = package.manifest.golden
    inputs = package.golden_inputs()
    if golden is None:
        inputs = np.zeros((1, *package.manifest.window_shape), dtype=np.float32)
    latencies, error_max = [], 0.0
    for index, window in enumerate(inputs):
        pipeline.reset()
        prediction = pipeline.infer(window if golden is not None else _zeros(package.manifest, window))
        latencies.append(prediction.latency_us)
        if golden is not None:
            difference = max(abs(a - b) for a, b in zip(prediction.scores, golden.scores[index], strict=True))
            error_max = max(error_max, difference)
            if difference > golden.tolerance:
                raise ModelError(
                    f"golden window {index}: a score differs by {difference:.3g} from the publisher's, "
                    f"at most {golden.tolerance:g} is allowed: this device computes something else"
                )
    return {
        "windows": len(latencies),
        "latency_us": float(np.median(latencies)),
        "error_max": error_max,
        "rss_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    """The most memory that this process ever had resident.

    Not `ru_maxrss`: a process that was started inherits the peak of the one that started it.
    """
    for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0  # no Linux


def _zeros(manifest: Manifest, window: NDArray[np.float32]) -> object:
    """A window of zeros, with the further inputs of a model that has some."""
    others = {spec.name: np.zeros(spec.shape[1:], dtype=spec.dtype) for spec in manifest.inputs}
    return {manifest.input.name: window, **others} if others else window


def probe(path: Path, *, timeout_s: float, memory_bytes: int) -> dict[str, Json]:
    """Run a package file's golden windows in a child process.

    Args:
        path: a package whose signature has been checked.
        timeout_s: wall time and, rounded up, CPU time of the child.
        memory_bytes: address space of the child.

    Returns:
        What `check_golden` returned there, and `seconds`.

    Raises:
        ModelError: it crashed, took too long or too much memory, or gave other outputs.
    """
    start = time.monotonic()
    try:
        result = subprocess.run(
            [sys.executable, "-m", "tinylcm.probe", str(path), str(memory_bytes), str(int(timeout_s) + 1)],
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"the model did not finish its probe within {timeout_s:g} s") from error
    if result.returncode < 0:
        raise ModelError(f"the model crashed its probe ({signal.Signals(-result.returncode).name})")
    try:
        answer = json.loads(result.stdout[-_OUTPUT_BYTES_MAX:])
    except ValueError as error:
        tail = result.stderr[-400:].decode("utf-8", "replace").strip().splitlines()
        raise ModelError(f"the model's probe failed: {tail[-1] if tail else 'no output'}") from error
    if "error" in answer:
        raise ModelError(str(answer["error"]))
    answer["seconds"] = round(time.monotonic() - start, 3)
    return dict(answer)


def main(arguments: list[str]) -> int:
    """The child: `python -m tinylcm.probe PACKAGE MEMORY_BYTES CPU_SECONDS`."""
    path, memory, cpu = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        answer = check_golden(load_package(path, None))
    except TinyLCMError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": f"the model needs more than the {memory} bytes of memory allowed to its probe"}
    sys.stdout.write(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
