"""`convert`: a trained classifier becomes a model for boards, measured against the original before it is handed out.

The board computes the features itself, from windows of counts. So the data are windows, and what is compared is the
whole way: the original on features of the windows as they were recorded, the board's model on their counts.

    from firmware_bridge.convert import convert

    result = convert(forest, features=["mean:*", "std:*"], channels=["ax", "ay", "az"], scale=0.01,
                     calibration=windows, held_out=others)
    result.report.agreement, result.report.flash_bytes, len(result.blob)

What needs keys and packages is not here: `tinylcm board convert` signs the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tinylcm.errors import ConfigError, InputError, ModelError
from tinylcm.types import Json

from .blob import (
    CLASSES_MAX,
    FEATURE,
    FEATURES_MAX,
    HEADER,
    NODE,
    OPS,
    BoardModel,
    Trees,
    Vector,
    write_model,
)
from .interpreter import features_of, quantise, run_quantised, run_windows
from .originals import Floats, Forest, Original, read_original, take_in
from .quantise import Column, network_features, quantise_forest, quantise_network, tree_features

AGREEMENT_MIN: Final = 0.98  # share of held-out windows on which board and original must say the same
CALIBRATION_MIN: Final = 16  # windows
HELD_OUT_MIN: Final = 50  # windows: with fewer, an agreement says little
VECTORS: Final = 8  # of the self-test
KEEP: Final = (100.0, 99.9, 99.0, 97.0)  # percentiles of calibration that an int8 may hold; the best is taken
CLIPPED_MAX: Final = 0.01  # share of values that do not fit int16 at the given scale
SCRATCH_BYTES: Final = 2 * 256 + 2 * 256 + 68  # tb_scratch and tb_prediction of firmware_bridge/c/src/tb_model.h
_INT16: Final = (-32_768, 32_767)

Counts = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Report:
    """What a conversion costs and keeps.

    Attributes:
        original: what was converted.
        agreement: share of `held_out` windows on which both say the same class; `agreed` is their number,
            `agreement_low` the lower end of its 95 % interval (Wilson's), `agreement_min` the bound that was set.
        accuracy_original, accuracy_board: against the truth, where it was given.
        flash_bytes: of the model; `tables` says of what.
        ram_bytes: what a board needs to run it: the window, and 1,092 bytes in which the C library works.
        clipped: share of the values that did not fit int16 at the scale.
    """

    original: str
    features: int
    classes: int
    agreement: float
    agreed: int
    held_out: int
    agreement_low: float
    agreement_min: float
    accuracy_original: float | None
    accuracy_board: float | None
    flash_bytes: int
    ram_bytes: int
    tables: dict[str, int]
    clipped: float

    def to_json(self) -> dict[str, Json]:
        """The report as JSON."""
        return dict(asdict(self))

    def __str__(self) -> str:
        lines = [
            f"{self.original}: {self.features} features, {self.classes} classes",
            f"agreement  {self.agreed} of {self.held_out} held-out windows ({self.agreement:.4f}; at 95 % above "
            f"{self.agreement_low:.4f}; bound {self.agreement_min:g})",
        ]
        if self.accuracy_original is not None and self.accuracy_board is not None:
            lines.append(f"accuracy   original {self.accuracy_original:.4f}, board {self.accuracy_board:.4f}")
        tables = ", ".join(f"{name} {size}" for name, size in self.tables.items())
        lines += [f"flash      {self.flash_bytes} bytes ({tables})", f"RAM        {self.ram_bytes} bytes to run it"]
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, eq=False)
class Conversion:
    """A model for boards: its bytes, what they mean, and the report."""

    blob: bytes
    model: BoardModel
    report: Report


def parse_features(features: Sequence[str], channels: Sequence[str], rows: int) -> tuple[Column, ...]:
    """Features as people write them: `mean:ax`, `std:*` (every channel), `value:3:ax` (the window's row 3).

    Raises:
        ConfigError: an operation, channel or row that does not exist.
    """
    columns: list[Column] = []
    for text in features:
        op, *where = text.split(":")
        if op not in OPS or len(where) != (2 if op == "value" else 1):
            known = ", ".join(f"{name}:CHANNEL" for name in OPS[1:])
            raise ConfigError(f"the feature {text!r} is not known; expected value:ROW:CHANNEL, {known}")
        row = 0
        if op == "value":
            if not where[0].isascii() or not where[0].isdigit() or int(where[0]) >= rows:
                raise ConfigError(f"the feature {text!r} asks for a row that is none of the window's {rows}")
            row = int(where[0])
        if where[-1] != "*" and where[-1] not in channels:
            raise ConfigError(f"the feature {text!r} asks for a channel that is none of {', '.join(channels)}")
        chosen = range(len(channels)) if where[-1] == "*" else (list(channels).index(where[-1]),)
        columns += [(OPS.index(op), channel, row) for channel in chosen]
    if not 1 <= len(columns) <= FEATURES_MAX:
        raise ConfigError(f"{len(columns)} features are named, a board's model takes 1 to {FEATURES_MAX}")
    return tuple(columns)


def original_features(columns: Sequence[Column], windows: Floats) -> Floats:
    """The same features of windows `[n, rows, channels]` of real values: what the original was trained on."""
    found = []
    for op, channel, row in columns:
        x = windows[:, :, channel]
        steps = np.abs(np.diff(x, axis=1))
        found.append(
            (
                lambda x=x, row=row: x[:, row],
                lambda x=x: x.mean(axis=1),
                lambda x=x: x.std(axis=1),
                lambda x=x: x.min(axis=1),
                lambda x=x: x.max(axis=1),
                lambda steps=steps: steps.sum(axis=1) / max(1, steps.shape[1]),
            )[op]()
        )
    return np.stack(found, axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class _Windows:
    """Windows in the sensor's unit and as counts; `clipped` is the share of values that did not fit."""

    real: Floats
    counts: Counts
    clipped: float


def _windows(name: str, given: ArrayLike | None, channels: int, scale: float) -> _Windows:
    if given is None:
        raise InputError(f"the {name} data are missing: give windows of shape [n, rows, {channels}]")
    try:
        windows = np.asarray(given)
    except ValueError as error:
        raise InputError(f"the {name} data are no array: {error}") from error
    if windows.dtype.kind not in "fiu" or windows.ndim != 3 or windows.shape[2] != channels:
        raise InputError(
            f"the {name} data are {windows.dtype} {list(windows.shape)}, expected numbers "
            f"[n, rows, {channels} channels]"
        )
    wanted = CALIBRATION_MIN if name == "calibration" else HELD_OUT_MIN
    if len(windows) < wanted:
        raise InputError(f"the {name} data have {len(windows)} windows, expected at least {wanted}")
    real = windows.astype(np.float64)
    if windows.dtype.kind != "f":
        real = real * scale  # integers are counts
    if not np.isfinite(real).all():
        bad = np.argwhere(~np.isfinite(real))[0]
        raise InputError(
            f"the {name} data hold NaN or infinity, first in window {bad[0]}, row {bad[1]}, channel {bad[2]}"
        )
    counts = np.floor(np.abs(real / scale) + 0.5) * np.sign(real)
    clipped = float(((counts < _INT16[0]) | (counts > _INT16[1])).mean())
    if clipped > CLIPPED_MAX:
        raise InputError(
            f"{clipped:.1%} of the {name} data do not fit int16 at a scale of {scale:g} a count: give the scale of the "
            "board's sensor, as its CAPS say it"
        )
    return _Windows(real, np.clip(counts, *_INT16).astype(np.int16), clipped)


def convert(
    original: object,
    *,
    features: Sequence[str],
    channels: Sequence[str],
    calibration: ArrayLike | None,
    held_out: ArrayLike | None,
    hop: int | None = None,
    scale: float = 1.0,
    truth: ArrayLike | None = None,
    agreement_min: float = AGREEMENT_MIN,
) -> Conversion:
    """Convert a trained classifier for boards.

    Args:
        original: a fitted estimator, or an ONNX file by its path or bytes; `originals.SUPPORTED` lists which.
        features: what the classifier was trained on, in this order: see `parse_features`.
        channels: names of the sensor's channels, in the order that it sends them.
        calibration: windows `[n, rows, channels]` that fix the ranges; integers are counts, floats real values.
        held_out: other windows, on which the agreement is measured. Those that are also among the calibration do
            not count.
        hop: rows from one window to the next; a whole window unless given.
        scale: one count of the sensor in the unit that the classifier was trained in.
        truth: class indexes of `held_out`, for the accuracies.
        agreement_min: below this share of equal classes nothing is handed out.

    Raises:
        ConfigError: a feature, channel or bound that cannot be.
        InputError: data that are missing, too few, NaN, or of another width.
        ModelError: an original that cannot be converted, or an agreement below the bound.
    """
    if not 0 <= agreement_min <= 1:
        raise ConfigError(f"agreement_min is {agreement_min}, expected 0 to 1")
    if not math.isfinite(scale) or scale <= 0:
        raise ConfigError(f"scale is {scale}, expected what one count is in the unit of the data, above 0")
    if not channels or len(channels) > 255 or len(set(channels)) != len(channels):
        raise ConfigError(f"expected 1 to 255 different channels, got {list(channels)}")
    taken = _windows("calibration", calibration, len(channels), scale)
    tried = _windows("held-out", held_out, len(channels), scale)
    rows = taken.counts.shape[1]
    if tried.counts.shape[1] != rows:
        raise InputError(f"calibration windows have {rows} rows, held-out windows {tried.counts.shape[1]}")
    columns = parse_features(features, channels, rows)
    source = read_original(original)
    _check_size(source, len(columns))
    built = _build(source, columns, taken, scale, rows if hop is None else hop)
    fresh = _fresh(taken.counts, tried.counts)
    report = _measure(source, built, columns, tried, fresh, truth, agreement_min)
    if report.agreement < agreement_min:
        raise ModelError(
            f"the board's model agrees with the original on {report.agreed} of {report.held_out} held-out windows "
            f"({report.agreement:.4f}), the bound is {agreement_min:g}: give calibration data that cover what the "
            "sensor sees, check that features and scale are those of the training, or state a lower bound"
        )
    return Conversion(write_model(built), built, report)


def _check_size(source: Original, columns: int) -> None:
    if source.features != columns:
        raise InputError(
            f"the {source.kind} takes {source.features} features, {columns} are named: name those that it was trained "
            "on, in their order"
        )
    if not 2 <= source.classes <= CLASSES_MAX:
        raise ModelError(f"the {source.kind} has {source.classes} classes, a board's model takes 2 to {CLASSES_MAX}")


def _build(source: Original, columns: Sequence[Column], data: _Windows, scale: float, hop: int) -> BoardModel:
    features_real = original_features(columns, data.real)
    in_counts = features_real / scale
    arithmetic = take_in(source.arithmetic, np.full(len(columns), scale), np.zeros(len(columns)))
    _, rows, channels = data.counts.shape
    frame: dict[str, Any] = {"rows": rows, "hop": hop, "channels": channels, "classes": source.classes}
    if isinstance(arithmetic, Forest):
        features = tree_features(columns, arithmetic, in_counts)
        model = BoardModel(**frame, features=features, body=quantise_forest(arithmetic, features))
    else:
        wanted = source.classify(features_real.astype(np.float32))
        candidates = []
        for keep in KEEP:
            features = network_features(columns, in_counts, keep)
            body = quantise_network(arithmetic, features, in_counts, keep)
            candidate = BoardModel(**frame, features=features, body=body)
            candidates.append((int((run_windows(candidate, data.counts).labels == wanted).sum()), candidate))
        model = max(candidates, key=lambda pair: pair[0])[1]
    return BoardModel(**frame, features=model.features, body=model.body, vectors=_vectors(model, data.counts))


def _vectors(model: BoardModel, counts: Counts) -> tuple[Vector, ...]:
    """Self-test vectors: the surest window of each class, windows from all over, and both ends of int16."""
    q = quantise(model, features_of(model, counts))
    found = run_quantised(model, q)
    sure = found.scores.max(axis=1).astype(np.int64)
    chosen = [int(np.where(found.labels == label, sure, -1).argmax()) for label in np.unique(found.labels)]
    chosen += np.linspace(0, len(q) - 1, VECTORS).astype(int).tolist()
    ends = [np.full((1, q.shape[1]), end, np.int16) for end in _INT16]
    picked = np.concatenate([*ends, q[list(dict.fromkeys(chosen))[:VECTORS]]])
    outcome = run_quantised(model, picked)
    return tuple(
        Vector(tuple(row.tolist()), int(label), int(scores[label]))
        for row, label, scores in zip(picked, outcome.labels, outcome.scores, strict=True)
    )


def _fresh(calibration: Counts, held_out: Counts) -> NDArray[np.bool_]:
    """Which held-out windows are not among the calibration's.

    Raises:
        InputError: too few are left.
    """
    seen = {window.tobytes() for window in calibration}
    fresh = np.array([window.tobytes() not in seen for window in held_out])
    if int(fresh.sum()) < HELD_OUT_MIN:
        raise InputError(
            f"only {int(fresh.sum())} of {len(held_out)} held-out windows are not calibration windows too, expected at "
            f"least {HELD_OUT_MIN}: agreement on what was used for the ranges says nothing"
        )
    return fresh


def _measure(
    source: Original,
    model: BoardModel,
    columns: Sequence[Column],
    data: _Windows,
    fresh: NDArray[np.bool_],
    truth: ArrayLike | None,
    agreement_min: float,
) -> Report:
    wanted = source.classify(original_features(columns, data.real[fresh]).astype(np.float32))
    found = run_windows(model, data.counts[fresh]).labels
    agreed, count = int((wanted == found).sum()), len(found)
    accuracies: tuple[float | None, float | None] = (None, None)
    if truth is not None:
        right = np.asarray(truth)
        if right.shape != (len(fresh),) or right.dtype.kind not in "iu":
            raise InputError(f"truth is {right.dtype} {list(right.shape)}, expected a class index for each window")
        accuracies = float((wanted == right[fresh]).mean()), float((found == right[fresh]).mean())
    tables = table_bytes(model)
    return Report(
        source.kind,
        len(model.features),
        model.classes,
        agreed / count,
        agreed,
        count,
        _wilson_low(agreed, count),
        agreement_min,
        *accuracies,
        flash_bytes=sum(tables.values()),
        ram_bytes=ram_bytes(model),
        tables=tables,
        clipped=data.clipped,
    )


def _wilson_low(agreed: int, count: int) -> float:
    z, share = 1.96, agreed / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - spread) / (1 + z * z / count)


def table_bytes(model: BoardModel) -> dict[str, int]:
    """The size of each part of a model, in bytes; their sum is the model's."""
    count = len(model.features)
    tables = {"header": HEADER.size, "features": FEATURE.size * count}
    if isinstance(model.body, Trees):
        trees, leaves = model.body, model.body.leaves.nbytes
        tables |= {"nodes": 8 + 4 * len(trees.first) + NODE.itemsize * len(trees.nodes)}
        tables |= {"leaves": leaves + -leaves % 4}
    else:
        layers = model.body.layers
        tables |= {"weights": sum(layer.weights.size + -layer.weights.size % 4 for layer in layers)}
        tables |= {"biases": 12 + sum(12 + 4 * layer.bias.size for layer in layers), "softmax": 512}
    if model.vectors:
        tables["self-test"] = 4 + len(model.vectors) * (2 * count + -2 * count % 4 + 4)
    return tables


def ram_bytes(model: BoardModel) -> int:
    """What a board holds to run a model: the window, and what the C library works in whatever the model."""
    return 2 * model.rows * model.channels + SCRATCH_BYTES
