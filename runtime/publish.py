"""Making a package on the publisher's machine: the manifest is written by a person, the model is tried, then signed."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .backends import open_backend
from .checks import Fields
from .errors import ConfigError, ModelError
from .files import read_bounded
from .keys import Signer
from .package import (
    MODEL_MEMBERS,
    PACKAGE_BYTES_MAX,
    Golden,
    InputSpec,
    Manifest,
    build_package,
    parse_manifest,
)
from .pipeline import check_labels
from .window import load_window

GOLDEN_WINDOWS: Final = 4
GOLDEN_TOLERANCE: Final = 1e-3
GOLDEN_SEED: Final = 20_261_123
INPUT_KEYS: Final = ("name", "shape", "dtype", "channels", "units")
WINDOW_KEYS: Final = ("samples", "hop", "rate_hz")
_MANIFEST_BYTES_MAX: Final = 1 << 20


def read_manifest(path: Path) -> tuple[Manifest, float, Path | None]:
    """Read model.toml with the files that it names.

    Returns:
        The manifest, the golden tolerance and the file of golden windows, if it names one.

    Raises:
        ConfigError: the file is missing or no TOML.
        ModelError: a field is wrong.
    """
    if not path.is_file():
        raise ConfigError(f"the manifest {path} does not exist")
    try:
        document = tomllib.loads(read_bounded(path, _MANIFEST_BYTES_MAX).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
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
    Fields(document, "manifest", ModelError).refuse_unknown(
        "name", "version", "format", "input", "output", "labels", "window", "security_counter", "monitors",
        "reference", "correlation", "moments", "points", "embedding", "metadata",
    )  # fmt: skip
    for table, known in (("input", INPUT_KEYS), ("window", WINDOW_KEYS)):
        Fields(document.get(table, {}), f"manifest.{table}", ModelError).refuse_unknown(*known)
    manifest = parse_manifest(document)
    file = path.parent / golden.text("file", length_max=4096) if "file" in golden else None
    return manifest, golden.number("tolerance", GOLDEN_TOLERANCE, low=0.0, high=1.0), file


def _golden_windows(spec: InputSpec, manifest: Manifest, file: Path | None) -> NDArray[np.float32]:
    """Windows to try the model on: the publisher's, or drawn about the reference with a fixed seed."""
    if file is not None:
        try:
            windows = np.load(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ModelError(f"the golden windows {file} cannot be read: {error}") from error
        if not isinstance(windows, np.ndarray) or windows.ndim != len(spec.shape) or len(windows) < 1:
            raise ModelError(f"{file}: expected an array of windows [count, {', '.join(map(str, spec.shape[1:]))}]")
        return np.ascontiguousarray(windows[:1000], dtype=np.float32)
    rng = np.random.default_rng(GOLDEN_SEED)
    windows = rng.standard_normal((GOLDEN_WINDOWS, *spec.shape[1:]))
    channels = manifest.reference.get("input", ())
    if len(channels) == spec.shape[-1]:
        windows = windows * [channel.std for channel in channels] + [channel.mean for channel in channels]
    return windows.astype(np.float32)


def build(model_path: Path, manifest_path: Path, key_path: Path) -> bytes:
    """Build and sign a package from a model file, its model.toml and a release key.

    The model is loaded, run on the golden windows, and its scores are stored, so that a device can tell whether it
    computes the same.

    Raises:
        ConfigError: a file or key is missing, or the key has expired.
        ModelError: the model does not run or does not keep its manifest.
    """
    manifest, tolerance, golden_file = read_manifest(manifest_path)
    signer = Signer.load(key_path)
    if not model_path.is_file():
        raise ConfigError(f"the model {model_path} does not exist")
    model = read_bounded(model_path, PACKAGE_BYTES_MAX)
    backend = open_backend(
        manifest.format,
        model,
        output=manifest.output,
        shape=manifest.input.shape,
        embedding=manifest.embedding or None,
    )
    if backend.input_name != manifest.input.name:
        raise ModelError(f"the model's input is {backend.input_name!r}, the manifest says {manifest.input.name!r}")
    check_labels(manifest, backend)
    windows = _golden_windows(manifest.input, manifest, golden_file)
    scores = []
    for window in windows:
        load_window(manifest.input, window, backend.input)
        backend.run()
        if not np.isfinite(backend.scores).all():
            raise ModelError("the model gives NaN or infinite scores on a golden window")
        scores.append(tuple(backend.scores.tolist()))
    manifest = replace(manifest, golden=Golden(len(windows), tolerance, tuple(scores)))
    members = {MODEL_MEMBERS[manifest.format]: model, "golden.f32": windows.astype("<f4").tobytes()}
    return build_package(manifest, members, signer)
