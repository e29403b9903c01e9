"""`tinylcm board`: microcontrollers behind this device, and models for them.

The bridge (`firmware_bridge`) is loaded when a command asks for it. It knows neither keys nor packages, so a conversion
becomes a signed package here.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .arrays import read_arrays
from .checks import Fields
from .console import add_command, print_result
from .errors import ConfigError, InputError, ModelError
from .files import read_bounded, write_atomic
from .line_cli import add_line_commands
from .manifest import BOARD
from .types import Json

AGREEMENT_MIN: Final = 0.98  # as `firmware_bridge.convert` has it; it is not loaded for --help
GOLDEN_WINDOWS: Final = 8
GOLDEN_TOLERANCE: Final = 1e-6  # the model is in integers: every machine computes the same
_DATA_BYTES_MAX: Final = 256 << 20


def _convert(arguments: argparse.Namespace) -> None:
    from dataclasses import replace

    from firmware_bridge.convert import convert

    from .keys import Signer
    from .manifest import member_name
    from .package import parse_package
    from .publish import build_from, check_document

    path = Path(arguments.manifest)
    document, features, channels = _read_board_manifest(path)
    arrays = _read_data(Path(arguments.data))
    signer = Signer.load(Path(arguments.key))
    spec = Fields(document["input"], "manifest.input", ModelError)
    window = Fields(document.get("window", {}), "manifest.window", ModelError)
    scale = spec.number("scale", low=1e-30, high=1e9)
    result = convert(
        arguments.model,
        features=features,
        channels=channels,
        calibration=arrays.get("calibration"),
        held_out=arrays.get("held_out"),
        truth=arrays.get("truth"),
        hop=window.natural("hop", 0, high=65_535) or None,
        scale=scale,
        agreement_min=arguments.agreement_min,
    )
    model = result.model
    document["input"] = {**spec.value, "shape": [1, model.rows, model.channels]}
    document["window"] = {**window.value, "samples": model.rows, "hop": model.hop}
    manifest, _, golden = check_document(document, path)
    if len(manifest.labels) != model.classes:
        raise ModelError(f"manifest.labels: {len(manifest.labels)} labels are named, the model has {model.classes}")
    facts: dict[str, Json] = {"features": list(features), "conversion": result.report.to_json()}
    data = build_from(
        replace(manifest, metadata={**manifest.metadata, BOARD: facts}),
        {member_name(BOARD): result.blob},
        signer,
        tolerance=GOLDEN_TOLERANCE,
        file=golden,
        windows=_golden(arrays["held_out"], scale) if golden is None else None,
    )
    package = parse_package(data, None)
    output = Path(arguments.output or f"{manifest.name}-{manifest.version}.tlm")
    write_atomic(output, data)
    print_result(
        arguments,
        {
            "name": manifest.name,
            "version": manifest.version,
            "sha256": package.sha256,
            "size": package.size,
            "path": str(output),
            **result.report.to_json(),
        },
        f"{result.report}\n{output}  {manifest.name} {manifest.version}  {package.size} bytes\nsha256 {package.sha256}",
    )


def _read_board_manifest(path: Path) -> tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]:
    """model.toml of a board's model: the manifest with what all of them share, the features, the channels."""
    from .publish import read_toml

    document: dict[str, Any] = dict(read_toml(path))
    board = Fields(document.pop(BOARD, {}), "manifest.board", ModelError)
    board.refuse_unknown("features")
    features = board.texts("features")
    for key, value in (("format", BOARD), ("output", "scores")):
        if document.setdefault(key, value) != value:
            raise ConfigError(f"{path}: {key} is {document[key]!r}, a model for boards has {value!r}")
    spec = Fields(document.get("input", {}), "manifest.input", ModelError)
    channels = spec.texts("channels", length_max=255)
    document["input"] = {"name": "window", "dtype": "int16", **spec.value}
    return document, features, channels


def _read_data(path: Path) -> Mapping[str, NDArray[Any]]:
    if not path.is_file():
        raise ConfigError(f"the data {path} do not exist: give a .npz with the arrays calibration and held_out")
    arrays = read_arrays(read_bounded(path, _DATA_BYTES_MAX), str(path))
    for name in ("calibration", "held_out"):
        if name not in arrays:
            raise InputError(f"{path} has no array {name!r}; it has {', '.join(arrays) or 'none'}")
    return arrays


def _golden(held_out: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """Some held-out windows, as real values that are whole counts."""
    chosen = held_out[np.linspace(0, len(held_out) - 1, GOLDEN_WINDOWS).astype(int)].astype(np.float64)
    if held_out.dtype.kind == "f":
        chosen = np.rint(chosen / scale)
    return np.asarray(np.clip(chosen, -32_768, 32_767) * scale, dtype=np.float32)


def add_board_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`convert`, and those with a line."""
    board = commands.add_parser("board", help="microcontrollers behind this device").add_subparsers(
        required=True, metavar="ACTION"
    )
    command = add_command(board, "convert", _convert, "make a signed package for boards from a trained model")
    command.add_argument("model", help="model.onnx with decision trees, or dense layers and ReLU")
    command.add_argument("--manifest", required=True, metavar="model.toml", help="labels, channels, scale, features")
    command.add_argument(
        "--data", required=True, metavar="WINDOWS.npz", help="windows: arrays calibration, held_out, if known truth"
    )
    command.add_argument("--key", required=True, metavar="release.key", help="signs the package")
    command.add_argument("-o", "--output", metavar="FILE.tlm", help="the package (default NAME-VERSION.tlm)")
    command.add_argument(
        "--agreement-min",
        type=float,
        default=AGREEMENT_MIN,
        metavar="SHARE",
        help="refuse below this share of held-out windows with the original's class (default 0.98)",
    )
    add_line_commands(board)
