"""The earlier proof of concept's pipeline from one package, beside the plain calls that it is made of.

MobileNetV2 (uint8 `[1, 224, 224, 3]` -> 1280 features) -> StandardScaler -> PCA 256 -> kNN of 200 vectors. The plain
side is what anyone would write: set, invoke and get of the TFLite interpreter, projection and neighbours in NumPy.

    python -m benchmarks.poc --poc-model mobilenet_v2_features_u8.tflite [--seconds 20]
      [--other build/bench-poc/bin/python]

The model (2.7 MB; MobileNetV2 1.0-224 of lukasgro63/tinymlops-poc, Apache-2.0) is not in the repository. Scaler, PCA
and reference vectors are random: their cost does not depend on their values. It is run without
monitors and with three, one of them of the distance to the neighbours, as the proof of concept had. `--other` does the
same with another Python, whose TFLite engine is another one. `make bench-poc WRITE=1` writes the figures into
docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from tinylcm.backends.knn import knn_arrays
from tinylcm.backends.linear import pca_arrays, scaler_arrays
from tinylcm.keys import KeySet, PrivateKey, ReleaseKey, Signer
from tinylcm.manifest import parse_manifest
from tinylcm.package import Package, build_package, parse_package
from tinylcm.pipeline import Pipeline

from benchmarks import page

FEATURES, COMPONENTS, VECTORS, CLASSES, K = 1280, 256, 200, 4, 5


def interpreter_of(model: bytes) -> tuple[Any, str]:
    """The TFLite interpreter that the backend would take, and its name."""
    try:
        from ai_edge_litert.interpreter import Interpreter

        name = "ai_edge_litert"
    except ImportError:
        from tflite_runtime.interpreter import Interpreter

        name = "tflite_runtime"
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter, name


def make_package(model: bytes, parts: dict[str, np.ndarray], *, drift: bool) -> Package:
    """The pipeline as one signed package."""
    interpreter, _ = interpreter_of(model)
    taken = interpreter.get_input_details()[0]
    document: dict[str, Any] = {
        "name": "poc",
        "version": "1.0",
        "format": "chain",
        "labels": ["coin", "leaf", "lego", "stone"],
        "input": {"name": taken["name"], "shape": [int(n) for n in taken["shape"]], "dtype": "uint8"},
        "output": "scores",
        "stages": [
            {"name": "features", "format": "tflite"},
            {"name": "scaler", "format": "scaler"},
            {"name": "pca", "format": "pca"},
            {"name": "head", "format": "knn"},
        ],
    }
    if drift:
        params = {"threshold": 10.0, "delta": 2.0}  # as in the proof of concept's examples
        document["monitors"] = [
            {"name": "neighbours", "signal": "distance", "detector": "PageHinkley", "params": params},
            {"name": "confidence", "signal": "confidence", "detector": "PageHinkley"},
            {"name": "latency", "signal": "latency", "detector": "EWMAChart", "params": {"warm_up": 100}},
        ]
    members = {
        "stage0.tflite": model,
        "stage1.npz": scaler_arrays(parts["mean"], parts["scale"]),
        "stage2.npz": pca_arrays(parts["pca_mean"], parts["components"]),
        "stage3.npz": knn_arrays(parts["vectors"], parts["labels"], k=K, classes=CLASSES),
    }
    root, release = PrivateKey(bytes([1]) * 32), PrivateKey(bytes([2]) * 32)
    signer = Signer(release, KeySet.sign(root, (ReleaseKey(release.public, 4_102_444_800),)))
    return parse_package(build_package(parse_manifest(document), members, signer), None)


def measure(model: bytes, seconds: float, *, drift: bool) -> dict[str, Any]:
    """One run."""
    rng = np.random.default_rng(0)
    parts = {
        "mean": rng.standard_normal(FEATURES),
        "scale": rng.uniform(0.5, 2, FEATURES),
        "pca_mean": rng.standard_normal(FEATURES),
        "components": rng.standard_normal((COMPONENTS, FEATURES)) / 30,
        "vectors": rng.standard_normal((VECTORS, COMPONENTS)),
        "labels": rng.integers(0, CLASSES, VECTORS),
    }
    pipeline = Pipeline(make_package(model, parts, drift=drift))
    image = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)

    interpreter, provider = interpreter_of(model)
    taken, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    mean, factor = parts["mean"].astype(np.float32), (1 / parts["scale"]).astype(np.float32)
    matrix, pca_mean = (
        np.ascontiguousarray(parts["components"].T.astype(np.float32)),
        parts["pca_mean"].astype(np.float32),
    )
    vectors, labels = parts["vectors"].astype(np.float32), parts["labels"]
    batch = image[np.newaxis]

    def plain() -> int:
        interpreter.set_tensor(taken, batch)
        interpreter.invoke()
        features = interpreter.get_tensor(given)[0]
        projected = ((features - mean) * factor - pca_mean) @ matrix
        distances = np.sqrt(((vectors - projected) ** 2).sum(axis=1))
        nearest = np.argpartition(distances, K)[:K]
        return int(np.bincount(labels[nearest], minlength=CLASSES).argmax())

    prediction = pipeline.infer(image)
    assert prediction.label == pipeline.manifest.labels[plain()], "both sides must agree"
    sides: dict[str, list[float]] = {"plain": [], "package": []}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, call in (("plain", plain), ("package", lambda: pipeline.infer(image))):
            start = time.thread_time_ns()  # one thread computes; what others on the machine do is not its time
            call()
            sides[name].append((time.thread_time_ns() - start) / 1000)
    medians = {name: float(np.median(times)) for name, times in sides.items()}
    # Pairs taken one after the other: a slow moment of the machine hits both.
    differences = np.array(sides["package"]) - np.array(sides["plain"])
    prediction = pipeline.infer(image)
    names = [stage.name for stage in pipeline.manifest.stages]
    return {
        "provider": provider,
        "numpy": np.__version__,
        "calls": len(differences),
        "plain_us": round(medians["plain"], 1),
        "package_us": round(medians["package"], 1),
        "added_us": round(float(np.median(differences)), 1),
        "added_percent": round(100 * float(np.median(differences)) / medians["plain"], 2),
        "drift": drift,
        "stages_us": dict(zip(names, [round(us, 1) for us in prediction.stages_us or ()], strict=True)),
        "timing_us": {name: round(us, 1) for name, us in prediction.timing.items()},
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The proof of concept's pipeline beside its plain calls.")
    parser.add_argument("--poc-model", metavar="MODEL.tflite", help="MobileNetV2 features, uint8 in, 1280 floats out")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each run")
    parser.add_argument("--other", metavar="PYTHON", help="measure with the TFLite engine of this Python too")
    arguments = parser.parse_args()
    if not arguments.poc_model or not Path(arguments.poc_model).is_file():
        print(
            "needs the proof of concept's feature extractor: --poc-model mobilenet_v2_features_u8.tflite",
            file=sys.stderr,
        )
        return 2
    model = Path(arguments.poc_model).read_bytes()
    found = [measure(model, arguments.seconds, drift=drift) for drift in (False, True)]
    if arguments.other:
        command = [arguments.other, "-m", "benchmarks.poc", "--poc-model", arguments.poc_model]
        own = {name: value for name, value in os.environ.items() if name != "TINYMLOPS_WRITE"}
        answer = subprocess.run(
            [*command, "--seconds", str(arguments.seconds)], stdout=subprocess.PIPE, text=True, check=True, env=own
        )
        found += json.loads(answer.stdout)
    print(json.dumps(found, indent=2))
    if page.wanted():
        page.write([_row(one) for one in found])
    return 0


def _row(found: dict[str, Any]) -> page.Row:
    """What the page shows of a run."""
    figures = {name: found[name] for name in ("calls", "plain_us", "package_us", "added_us", "added_percent")}
    drift = "three monitors" if found["drift"] else "no monitors"
    peer = f"{found['provider'].replace('_', '-')}, numpy {found['numpy']}"
    return drift, {"table": "poc", "peer": peer, **figures, "wanted_percent": 1}


if __name__ == "__main__":
    sys.exit(main())
