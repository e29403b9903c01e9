"""Memory of a whole device process, and what an import costs.

A real TinySphere runs in a process of its own. The measured process enrols, installs a signed package with one model
and a `FeatureDrift` monitor over 64 features (32 channels), streams windows through it, journals, and syncs: NumPy, one
backend, pipeline, journal, sync and monitors together.

    python -m benchmarks.memory [--windows 20000]

`make bench-memory WRITE=1` writes the figures into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import page

CHANNELS, SAMPLES, IMPORTS = 32, 10, 15
ROOT = Path(__file__).resolve().parent.parent


def rss_bytes() -> int:
    """Resident memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def device(folder: Path, windows: int) -> dict[str, Any]:
    """The measured process: everything that a device does, then its memory."""
    import numpy as np
    from tinylcm.config import load_config
    from tinylcm.device import Device, enrol
    from tinylcm.probe import peak_bytes, probe

    config = load_config(folder / "device.toml")
    enrol(config, (folder / "join").read_text())
    rng = np.random.default_rng(0)
    with Device.open(config) as opened:
        model = opened.model("memory")
        block = rng.standard_normal((SAMPLES * 50, CHANNELS)).astype(np.float32)
        count = 0
        for _ in model.stream(block for _ in range(windows // 50)):
            count += 1
        settled = opened.sync()
        (package,) = (folder / "data" / "packages").glob("*.tlm")
        backends = [name for name in ("onnxruntime", "ai_edge_litert", "tflite_runtime") if name in sys.modules]
        return {
            "windows": count,
            "records_synced": settled,
            "backends": backends,
            "rss_bytes": rss_bytes(),
            "peak_bytes": peak_bytes(),
            "probe_peak_bytes": probe(package, timeout_s=60, memory_bytes=2 << 30)["rss_bytes"],
        }


def imports() -> dict[str, Any]:
    """Time of `import tinylcm` in fresh processes, and what it loads."""
    code = (
        "import time, sys; start = time.perf_counter(); import tinylcm; "
        "loaded = [name for name in ('onnxruntime', 'ai_edge_litert', 'numpy') if name in sys.modules]; "
        "print(time.perf_counter() - start, ','.join(loaded))"
    )
    taken, loaded = [], ""
    for _ in range(IMPORTS):
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        seconds, _, loaded = answer.strip().partition(" ")
        taken.append(1000 * float(seconds))
    taken.sort()
    return {
        "import_ms_min": round(taken[0], 1),
        "import_ms_median": round(taken[IMPORTS // 2], 1),
        "import_ms_max": round(taken[-1], 1),
        "loads": loaded,
    }


def package(kind: str, keys: Path) -> bytes:
    """A linear model of 32 channels as ONNX or TFLite, with 64 watched features."""
    import numpy as np
    from tinylcm.keys import Signer
    from tinylcm.manifest import parse_manifest
    from tinylcm.package import build_package

    edges = np.linspace(-4, 4, 17).tolist()
    reference = [
        {"name": f"f{i}", "mean": 0.0 if i < CHANNELS else 1.0, "std": 0.3, "edges": edges, "counts": [1.0] * 16}
        for i in range(2 * CHANNELS)
    ]
    document = {
        "name": "memory",
        "version": "1.0",
        "format": kind,
        "input": {"name": "x", "shape": [1, SAMPLES, CHANNELS]},
        "window": {"samples": SAMPLES},
        "output": "scores",
        "labels": ["a", "b"],
        "reference": {"features": reference},
        "monitors": [
            {"name": "features", "signal": "features", "detector": "FeatureDrift", "params": {"threshold": 1e6}},
            {"name": "confidence", "signal": "confidence", "detector": "PageHinkley"},
        ],
    }
    model = _onnx() if kind == "onnx" else _tflite()
    return build_package(parse_manifest(document), {f"model.{kind}": model}, Signer.load(keys / "release.key"))


def _onnx() -> bytes:
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from models import linear_model

    return linear_model(CHANNELS, samples=SAMPLES)


def _tflite() -> bytes:
    """softmax(x W) over the flattened window, by the schema that the engine's wheel brings."""
    sys.path.insert(0, str(ROOT / "scripts"))
    import make_tflite

    return bytes(make_tflite.flat_classifier(SAMPLES, CHANNELS, 2))


def measure(kind: str, windows: int) -> dict[str, Any]:
    """Start the server, let the child be a device, and read what it says."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from fleet import make_keys, sphere

    with tempfile.TemporaryDirectory(prefix="tinylcm-memory-") as name:
        folder = Path(name)
        keys = make_keys(folder / "keys")
        (folder / "memory.tlm").write_bytes(package(kind, keys))
        (folder / "device.toml").write_text(
            '[device]\ndata = "data"\nmetrics_interval_s = 0.2\n[models.memory]\npackage = "memory.tlm"\n'
        )
        with sphere(folder) as server:
            (folder / "join").write_text(server.join(keys / "root.pub"))
            result = subprocess.run(
                [sys.executable, "-m", "benchmarks.memory", "--device", name, "--windows", str(windows)],
                capture_output=True,
                text=True,
                check=False,
                cwd=ROOT,
                timeout=600,
                env={**os.environ, "MALLOC_ARENA_MAX": "2"},
            )
        if result.returncode:
            raise SystemExit(result.stderr)
        answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
        return answer


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Memory of a whole device process.")
    parser.add_argument("--windows", type=int, default=20_000)
    parser.add_argument("--device", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.device:
        print(json.dumps(device(Path(arguments.device), arguments.windows)))
        return 0
    start = time.monotonic()
    report: dict[str, Any] = {"import tinylcm": imports()}
    for kind in ("tflite", "onnx"):
        found = measure(kind, arguments.windows)
        for key in ("rss_bytes", "peak_bytes", "probe_peak_bytes"):
            found[key.replace("_bytes", "_mb")] = round(found.pop(key) / 1e6, 1)
        report[kind] = found
    report["seconds"] = round(time.monotonic() - start, 1)
    print(json.dumps(report, indent=2))
    if page.wanted():
        page.write(_rows(report))
    return 0


def _rows(report: dict[str, Any]) -> list[page.Row]:
    """What the page shows."""
    found = report["import tinylcm"]
    rows: list[page.Row] = [
        (
            "import tinylcm",
            {
                "table": "import",
                "peer": f"loads of NumPy and the backends: {found['loads'] or 'none'}",
                "best_ms": found["import_ms_min"],
                "median_ms": found["import_ms_median"],
                "max_ms": found["import_ms_max"],
                "wanted_ms": 150,
            },
        )
    ]
    for kind, wanted_mb in (("tflite", 80), ("onnx", 95)):
        one = report[kind]
        figures = {name: one[name] for name in ("rss_mb", "probe_peak_mb", "windows", "records_synced")}
        rows.append((kind, {"table": "device", "peer": ", ".join(one["backends"]), "wanted_mb": wanted_mb, **figures}))
    return rows


if __name__ == "__main__":
    sys.exit(main())
