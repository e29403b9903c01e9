"""Making a package on the publisher's machine: the manifest is written by a person, the model is tried, then signed."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .checks import Fields
from .clock import SystemClock
from .errors import ConfigError, InputError, ModelError
from .files import read_bounded
from .keys import Signer
from .loading import LoadedModel, Options, open_package
from .manifest import PACKAGE_BYTES_MAX, Golden, Manifest, parse_manifest
from .package import build_package, parse_package
from .types import Json

GOLDEN_WINDOWS: Final = 4
GOLDEN_TOLERANCE: Final = 1e-3
GOLDEN_SEED: Final = 20_261_123
GOLDEN_BYTES_MAX: Final = 4 << 20
INPUT_KEYS: Final = ("name", "shape", "dtype", "channels", "units", "scale", "zero_point")
WINDOW_KEYS: Final = (
    "samples", "seconds", "hop", "hop_seconds", "rate_hz", "channels", "missing", "late", "duplicate",
    "gap_samples_max",
)  # fmt: skip
MANIFEST_KEYS: Final = (
    "name", "version", "format", "input", "output", "labels", "window", "security_counter", "monitors",
    "reference", "correlation", "moments", "points", "embedding", "metadata", "inputs", "constants", "state",
    "outputs", "stages", "preprocess", "postprocess", "budget", "requires",
)  # fmt: skip
_MANIFEST_BYTES_MAX: Final = 1 << 20


def read_toml(path: Path) -> dict[str, object]:
    """Read model.toml, its fields unchecked.

    Raises:
        ConfigError: the file is missing or no TOML.
    """
    if not path.is_file():
        raise ConfigError(f"the manifest {path} does not exist")
    try:
        return tomllib.loads(read_bounded(path, _MANIFEST_BYTES_MAX).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error


def read_manifest(path: Path) -> tuple[Manifest, float, Path | None]:
    """Read model.toml with the files that it names.

    Returns:
        The manifest, the golden tolerance and the file of golden windows, if it names one.

    Raises:
        ConfigError: the file is missing or no TOML.
        ModelError: a field is wrong.
    """
    return check_document(read_toml(path), path)


def check_document(document: dict[str, Any], path: Path) -> tuple[Manifest, float, Path | None]:
    """What `read_manifest` does, for a document that was read already."""
    golden = Fields(document.pop("golden", {}), "manifest.golden", ModelError)
    golden.refuse_unknown("file", "tolerance")
    reference = Fields(document.get("reference", {}), "manifest.reference", ModelError)
    if "file" in reference:
        reference.refuse_unknown("file")
        name = path.parent / reference.text("file", length_max=4096)
        try:
            loaded = Fields(json.loads(read_bounded(name, _MANIFEST_BYTES_MAX)), str(name), ModelError)
            loaded.refuse_unknown("reference", "correlation", "moments", "points")
            document.update(loaded.value)
        except ValueError as error:
            raise ModelError(f"the reference {name} is not JSON: {error}") from error
    Fields(document, "manifest", ModelError).refuse_unknown(*MANIFEST_KEYS)
    for table, known in (("input", INPUT_KEYS), ("window", WINDOW_KEYS)):
        Fields(document.get(table, {}), f"manifest.{table}", ModelError).refuse_unknown(*known)
    manifest = parse_manifest(document)
    file = path.parent / golden.text("file", length_max=4096) if "file" in golden else None
    return manifest, golden.number("tolerance", GOLDEN_TOLERANCE, low=0.0, high=1.0), file


def _golden_windows(manifest: Manifest, file: Path | None, bounds: tuple[float, float] | None) -> NDArray[np.float32]:
    """Windows to try the model on: the publisher's, or drawn about the reference with a fixed seed."""
    shape = manifest.window_shape
    if file is not None:
        try:
            windows = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ModelError(f"the golden windows {file} cannot be read: {error}") from error
        if not isinstance(windows, np.ndarray) or windows.shape[1:] != shape or len(windows) < 1:
            raise ModelError(f"{file}: expected an array of windows [count, {', '.join(map(str, shape))}]")
        return np.ascontiguousarray(windows[:1000], dtype=np.float32)
    rng = np.random.default_rng(GOLDEN_SEED)
    count = max(1, min(GOLDEN_WINDOWS, GOLDEN_BYTES_MAX // (4 * math.prod(shape))))
    if manifest.image is not None:
        return rng.integers(0, 256, (count, *shape)).astype(np.float32)
    if bounds is not None and not manifest.preprocess:
        return rng.uniform(*bounds, (count, *shape)).astype(np.float32)
    windows = rng.standard_normal((count, *shape))
    channels = manifest.reference.get("input", ())
    if len(channels) == shape[-1]:
        windows = windows * [channel.std for channel in channels] + [channel.mean for channel in channels]
    return windows.astype(np.float32)


def build(
    model_path: Path, manifest_path: Path, key_path: Path, *, metadata: Mapping[str, Json] | None = None
) -> bytes:
    """Build and sign a package from a model file, or a folder of stages, its model.toml and a release key.

    The model is loaded, run on the golden windows, and its scores are stored, so that a device can tell whether it
    computes the same.

    Args:
        model_path: the model; for a chain, a folder with `stage0.tflite`, `stage1.npz` and so on, by their formats.
        metadata: what only this build knows, such as `run_id` and `git_commit`; it comes over the file's `[metadata]`.

    Raises:
        ConfigError: a file or key is missing, or the key has expired.
        ModelError: the model does not run or does not keep its manifest.
    """
    manifest, tolerance, golden_file = read_manifest(manifest_path)
    manifest = replace(manifest, metadata={**manifest.metadata, **(metadata or {})})
    signer = Signer.load(key_path)
    return build_from(manifest, _read_members(manifest, model_path), signer, tolerance=tolerance, file=golden_file)


def build_from(
    manifest: Manifest,
    members: dict[str, bytes],
    signer: Signer,
    *,
    tolerance: float = GOLDEN_TOLERANCE,
    file: Path | None = None,
    windows: NDArray[np.float32] | None = None,
) -> bytes:
    """Try a model whose files are at hand on its golden windows, then sign the package.

    Args:
        members: the model's files by their names in the package.
        tolerance: how far a device's scores may lie from those seen here.
        file: golden windows as `.npy`; else `windows`, else some are drawn.

    Raises:
        ModelError: the model does not run or does not keep its manifest.
    """
    package = parse_package(build_package(replace(manifest, golden=None), members, signer), None)
    model = LoadedModel(
        manifest,
        open_package(package, Options()),
        extra_monitors=(),
        clock=SystemClock(),
        options=Options(),
        session="golden",
    )
    if manifest.inputs:
        return build_package(manifest, members, signer)  # golden windows are of one input
    if windows is None:
        windows = _golden_windows(manifest, file, model.real_range)
    scores = []
    for window in windows:
        model.backend.reset()
        model.engine.decider.restart()
        try:
            scores.append(model.engine.infer(window).scores)
        except InputError as error:
            raise ModelError(f"a golden window does not fit the model: {error}") from error
        except ModelError as error:
            raise ModelError(f"the model fails on a golden window: {error}") from error
    manifest = replace(manifest, golden=Golden(len(windows), tolerance, tuple(scores)))
    return build_package(manifest, {**members, "golden.f32": windows.astype("<f4").tobytes()}, signer)


def _read_members(manifest: Manifest, model_path: Path) -> dict[str, bytes]:
    """The files of the package, as it names them."""
    if not manifest.stages:
        if not model_path.is_file():
            raise ConfigError(f"the model {model_path} does not exist")
        return {name: read_bounded(model_path, PACKAGE_BYTES_MAX) for _, name in manifest.models()}
    names = [name for _, name in manifest.models()]
    if not model_path.is_dir():
        raise ConfigError(f"a chain is built from a folder with {', '.join(names)}; {model_path} is none")
    missing = [name for name in names if not (model_path / name).is_file()]
    if missing:
        raise ConfigError(f"the folder {model_path} has no {', '.join(missing)}; it takes {', '.join(names)}")
    return {name: read_bounded(model_path / name, PACKAGE_BYTES_MAX) for name in names}
