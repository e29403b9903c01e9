"""Steps before the model, as a manifest declares them: checked here, put together into one `Plan`.

[[preprocess]]
op = "log_mel"
frame = 640
hop = 320
mels = 40
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from .checks import Fields
from .errors import ConfigError, InputError, ModelError
from .types import Json

if TYPE_CHECKING:
    from tinylcm._ext.signal import Plan

FRAME_MAX: Final = 1 << 16
VALUES_MAX: Final = 1 << 24
IMAGE_PIXELS_MAX: Final = 64_000_000
IMAGE_BYTES_MAX: Final = 64 << 20
IMAGE_FORMATS: Final = ("JPEG", "PNG")  # Pillow reads many more: none is needed, each is one more way in
LIST_MAX: Final = 1 << 16
_LOGARITHMS: Final = ("none", "natural", "db")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a step.

    Attributes:
        kind: `number`, `numbers` (one, or one a channel), `natural`, `naturals` (a list), `flag` or `choice`.
        default: None when it must be given.
        about: what it is, for the documentation.
        choices: of a choice.
        low, high: bounds of a number, both allowed.
    """

    kind: str
    default: Any
    about: str
    choices: tuple[str, ...] = ()
    low: float = -1e30
    high: float = 1e30


def _natural(default: int | None, about: str, low: int = 1, high: int = FRAME_MAX) -> Parameter:
    return Parameter("natural", default, about, low=low, high=high)


_FRAME: Final = {
    "frame": _natural(None, "samples a frame"),
    "hop": _natural(0, "samples from frame to frame; 0: a frame", 0),
}
_MEL: Final = {
    **_FRAME,
    "mels": _natural(None, "bands", high=1024),
    "low_hz": Parameter("number", 0.0, "lower end of the first band", low=0.0, high=1e6),
    "high_hz": Parameter("number", 0.0, "upper end of the last band; 0: half the rate", low=0.0, high=1e6),
    "fft": _natural(0, "length of the transform; 0: the power of two from the frame on", 0),
    "mel": Parameter("choice", "slaney", "formula of the mel scale", ("slaney", "htk")),
    "norm": Parameter("choice", "slaney", "area of each band: 1, or as its triangle is", ("slaney", "none")),
    "power": Parameter("number", 2.0, "of the magnitudes: 1 or 2", low=1.0, high=2.0),
    "floor": Parameter("number", 1e-10, "least value before the logarithm", low=1e-30, high=1.0),
}
OPS: Final[dict[str, tuple[str, dict[str, Parameter]]]] = {
    "scale": ("times a factor", {"factor": Parameter("numbers", None, "a number, or one a channel")}),
    "centre": (
        "less a mean",
        {
            "mean": Parameter("numbers", 0.0, "a number, or one a channel"),
            "per_window": Parameter("flag", False, "the window's own mean of each channel instead"),
        },
    ),
    "standardise": (
        "less a mean, divided by a standard deviation",
        {
            "mean": Parameter("numbers", 0.0, "a number, or one a channel"),
            "std": Parameter("numbers", 1.0, "a number, or one a channel", low=1e-12),
            "per_window": Parameter("flag", False, "the window's own of each channel instead"),
        },
    ),
    "clip": (
        "within two bounds",
        {
            "low": Parameter("number", None, "the least value"),
            "high": Parameter("number", None, "the greatest value"),
        },
    ),
    "resample": (
        "linear interpolation to another number of samples",
        {
            "samples": _natural(0, "how many; or give rate_hz", 0),
            "rate_hz": Parameter("number", 0.0, "the rate that they stand for", low=0.0, high=1e9),
        },
    ),
    "moving_average": (
        "mean of the last samples; of those there are for the first ones",
        {"samples": _natural(None, "how many")},
    ),
    "rms": ("root of the mean square of each frame", _FRAME),
    "energy": ("mean square of each frame", _FRAME),
    "fft_magnitude": (
        "magnitudes of the Fourier transform of each frame",
        {
            "frame": _natural(0, "samples a frame; 0: the window", 0),
            "hop": _natural(0, "samples from frame to frame; 0: a frame", 0),
            "window": Parameter("choice", "hann", "weights of a frame", ("hann", "none")),
            "bins": _natural(0, "keep the first ones; 0: all, frame / 2 + 1", 0),
            "log": Parameter("flag", False, "natural logarithm, of at least 1e-10"),
        },
    ),
    "log_mel": (
        "energies in mel bands of each frame of one channel, and their logarithm",
        {
            **_MEL,
            "log": Parameter("choice", "natural", "which logarithm", _LOGARITHMS),
            "top_db": Parameter("number", 0.0, "nothing lower than this below the greatest; 0: no limit", low=0.0),
        },
    ),
    "mfcc": (
        "mel-frequency cepstral coefficients of each frame of one channel: the orthonormal DCT-II of log_mel",
        {
            **_MEL,
            "coefficients": _natural(None, "the first ones", high=1024),
            "log": Parameter("choice", "db", "of which the DCT is taken", _LOGARITHMS[1:]),
            "lifter": Parameter("number", 0.0, "weights 1 + lifter / 2 sin(pi (n + 1) / lifter); 0: none", low=0.0),
            "top_db": Parameter("number", 80.0, "nothing lower than this below the greatest; 0: no limit", low=0.0),
        },
    ),
    "transpose": ("samples and channels change places", {}),
    "flatten": ("one row of values", {}),
    "reshape": (
        "the same values under another shape",
        {"shape": Parameter("naturals", None, "lengths of the axes, without the batch", low=1, high=VALUES_MAX)},
    ),
    "image": (
        "an image, brought to a size: numbers from 0 to 255, or less a mean and divided by std; must be the first step",
        {
            "height": _natural(None, "pixels", high=8192),
            "width": _natural(None, "pixels", high=8192),
            "colour": Parameter("choice", "rgb", "order of the channels", ("rgb", "bgr", "grey")),
            "resample": Parameter("choice", "bilinear", "how pixels are made", ("bilinear", "nearest")),
            "crop": Parameter("choice", "none", "cut to the shape first, about the centre", ("none", "centre")),
            "mean": Parameter("numbers", 0.0, "of the numbers from 0 to 255: one, or one a channel"),
            "std": Parameter("numbers", 1.0, "one, or one a channel", low=1e-12),
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Step:
    """One step, with every parameter that it was given; `value` gives the others' defaults."""

    op: str
    params: Mapping[str, Any] = field(default_factory=dict)

    def value(self, name: str) -> Any:
        """A parameter, or its default."""
        return self.params.get(name, OPS[self.op][1][name].default)

    def to_json(self) -> dict[str, Json]:
        """As a manifest has it."""
        return {"op": self.op, **self.params}


def _checked(fields: Fields, name: str, parameter: Parameter) -> Any:
    match parameter.kind:
        case "natural":
            return fields.natural(name, low=int(parameter.low), high=int(parameter.high))
        case "flag":
            return fields.typed(name, bool)
        case "choice":
            value = fields.text(name)
            if value not in parameter.choices:
                raise fields.fail(name, f"is {value!r}, expected {', '.join(parameter.choices)}")
            return value
        case "naturals":
            items = fields.items(name, length_max=8)
            places = Fields({str(i): item for i, item in enumerate(items)}, f"{fields.where}.{name}", ModelError)
            if not items:
                raise fields.fail(name, "is empty, expected at least one length")
            return [places.natural(place, low=int(parameter.low), high=int(parameter.high)) for place in places.value]
        case "numbers" if isinstance(fields.value.get(name), list):
            values = list(fields.numbers(name, length_max=LIST_MAX))
            if not values or not all(parameter.low <= value <= parameter.high for value in values):
                raise fields.fail(name, f"expected numbers from {parameter.low:g} to {parameter.high:g}")
            return values
    return fields.number(name, low=parameter.low, high=parameter.high)


def parse_steps(tables: list[object], where: str) -> tuple[Step, ...]:
    """Check the steps of a manifest, each for itself; `make_plan` checks that they fit each other.

    Args:
        tables: what was parsed, a table a step.
        where: the place that messages begin with, such as `manifest.preprocess`.

    Raises:
        ModelError: with the place that is wrong.
    """
    steps = []
    for index, item in enumerate(tables):
        fields = Fields(item, f"{where}[{index}]", ModelError)
        op = fields.text("op")
        if op not in OPS:
            raise fields.fail("op", f"is {op!r}, known: {', '.join(OPS)}")
        known = OPS[op][1]
        fields.refuse_unknown("op", *known)
        missing = [name for name, parameter in known.items() if parameter.default is None and name not in fields]
        if missing:
            raise fields.fail(missing[0], f"is missing: {known[missing[0]].about}")
        if op == "image" and index:
            raise fields.fail("op", "an image must be the first step")
        step = Step(op, {name: _checked(fields, name, known[name]) for name in known if name in fields})
        if op == "image":
            _check_image(fields, step)
        steps.append(step)
    return tuple(steps)


def _check_image(fields: Fields, step: Step) -> None:
    channels = _image_shape(step)[2]
    for name in ("mean", "std"):
        if np.size(step.value(name)) not in (1, channels):
            raise fields.fail(name, f"has {np.size(step.value(name))} numbers for {channels} channels")


def _image_shape(step: Step) -> tuple[int, int, int]:
    return step.value("height"), step.value("width"), 1 if step.value("colour") == "grey" else 3


_KINDS: Final = {
    "number": "number",
    "numbers": "number or list",
    "natural": "integer",
    "naturals": "list of integers",
    "flag": "boolean",
    "choice": "string",
}


def describe_ops() -> str:
    """The steps and their parameters as Markdown, for the documentation."""
    lines = ["| op | what it does | parameters |", "|---|---|---|"]
    for op, (about, parameters) in OPS.items():
        shown = []
        for name, parameter in parameters.items():
            default = "required" if parameter.default is None else f"default {_shown(parameter.default)}"
            choices = (
                f", one of {', '.join(f'`{choice}`' for choice in parameter.choices)}" if parameter.choices else ""
            )
            shown.append(f"`{name}` ({_KINDS[parameter.kind]}, {default}): {parameter.about}{choices}")
        lines.append(f"| `{op}` | {about} | {'<br>'.join(shown)} |")
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


# the plan -------------------------------------------------------------------------------------------------


class _Builder:
    """Collects compiled steps; what is a factor and an offset waits, to be part of the pass that follows."""

    def __init__(self, samples: int, channels: int, rate_hz: float) -> None:
        self.shape: tuple[int, ...] = (samples, channels)
        self.rate_hz = rate_hz
        self.ops: list[tuple[str, tuple[Any, ...]]] = []
        self._clear()

    def _clear(self) -> None:
        self.gain, self.offset = np.ones(1), np.zeros(1)  # one, or one a column
        self.low, self.high = np.full(1, -np.inf), np.full(1, np.inf)

    @property
    def rows(self) -> int:
        return math.prod(self.shape) // self.shape[-1]

    def affine(self, gain: Any, offset: Any) -> None:
        """gain x + offset on top of what waits."""
        columns = self.shape[-1]
        gain, offset = np.atleast_1d(gain).astype(float), np.atleast_1d(offset).astype(float)
        for value in (gain, offset):
            if value.size not in (1, columns):
                raise ModelError(f"has {value.size} numbers for {columns} channels")
        with np.errstate(invalid="ignore", over="ignore"):
            self.gain, self.offset = self.gain * gain, self.offset * gain + offset
            low, high = self.low * gain + offset, self.high * gain + offset
        low, high = np.where(gain == 0, -np.inf, low), np.where(gain == 0, np.inf, high)
        self.low, self.high = np.minimum(low, high), np.maximum(low, high)

    def clip(self, low: float, high: float) -> None:
        """Bounds on top of what waits."""
        if not low < high:
            raise ModelError(f"low {low:g} is not below high {high:g}")
        self.low, self.high = np.clip(self.low, low, high), np.clip(self.high, low, high)

    def one_clip(self) -> tuple[float, float]:
        """The bounds, the same for every column; a step of its own where they differ."""
        if (self.low != self.low[0]).any() or (self.high != self.high[0]).any():
            self.flush()
        return float(self.low[0]), float(self.high[0])

    def flush(self) -> None:
        """Let what waits be a step of its own."""
        waits = (self.gain != 1).any() or (self.offset != 0).any() or (self.low > -np.inf).any()
        if waits or (self.high < np.inf).any():
            waiting = (self.gain, self.offset, self.low, self.high)
            tables = [np.broadcast_to(values, self.shape[-1]) for values in waiting]
            self.ops.append(("affine", (self.rows, self.shape[-1], self.shape, *tables)))
        self._clear()

    def add(self, name: str, shape: tuple[int, ...], *arguments: Any) -> None:
        """A compiled step that gives `shape`."""
        self.flush()
        if min(shape) < 1 or math.prod(shape) > VALUES_MAX:
            raise ModelError(f"would give {list(shape)}, expected 1 to {VALUES_MAX} values")
        self.ops.append((name, arguments))
        self.shape = shape

    def series(self) -> tuple[int, int]:
        """(samples, channels) as long as there are such."""
        if len(self.shape) != 2:
            raise ModelError(f"needs samples and channels, there is {list(self.shape)}")
        return self.shape[0], self.shape[1]

    def frames(self, step: Step) -> tuple[int, int, int]:
        """(frame, hop, how many)."""
        rows, _ = self.series()
        frame = step.value("frame") or rows
        hop = step.value("hop") or frame
        if frame > rows:
            raise ModelError(f"frame {frame} is longer than the {rows} samples there are")
        if frame > FRAME_MAX:
            raise ModelError(f"a frame of {frame} samples is too long: give frame, at most {FRAME_MAX}")
        return frame, hop, 1 + (rows - frame) // hop


def _centre(build: _Builder, step: Step) -> None:
    if not step.value("per_window"):
        mean = np.asarray(step.value("mean"), float)
        std = np.asarray(step.value("std"), float) if step.op == "standardise" else np.ones(())
        build.affine(1 / std, -mean / std)
        return
    build.add("per_window", build.shape, build.rows, build.shape[-1], build.shape, step.op == "standardise")


def _resample(build: _Builder, step: Step) -> None:
    count, rate_hz = step.value("samples"), step.value("rate_hz")
    rows, columns = build.series()
    if bool(count) == bool(rate_hz):
        raise ModelError("give samples or rate_hz")
    if rate_hz:
        if not build.rate_hz:
            raise ModelError("rate_hz needs the window's own rate_hz")
        count = round(rows * rate_hz / build.rate_hz)
    build.add("resample", (count, columns), rows, columns, count)
    build.rate_hz *= count / rows


def _moving_average(build: _Builder, step: Step) -> None:
    build.add("moving_average", build.series(), *build.series(), step.value("samples"))


def _power(build: _Builder, step: Step) -> None:
    frame, hop, frames = build.frames(step)
    rows, columns = build.series()
    build.add("power", (frames, columns), rows, columns, frame, hop, step.op == "rms")
    build.rate_hz /= hop


def _spectrum(build: _Builder, step: Step) -> None:
    frame, hop, frames = build.frames(step)
    rows, columns = build.series()
    bins = step.value("bins") or frame // 2 + 1
    if bins > frame // 2 + 1:
        raise ModelError(f"bins {bins} is more than the {frame // 2 + 1} there are")
    shape = (frames, bins, columns) if frames > 1 else (bins, columns)
    window = hann(frame) if step.value("window") == "hann" else np.ones(frame)
    build.add("spectrum", shape, rows, columns, frame, hop, bins, window, step.value("log"))
    build.rate_hz = 0.0


def _mel(build: _Builder, step: Step) -> None:
    frame, hop, frames = build.frames(step)
    rows, channels = build.series()
    if channels != 1:
        raise ModelError(f"takes one channel, there are {channels}")
    fft = step.value("fft") or 1 << (frame - 1).bit_length()
    if fft < frame:
        raise ModelError(f"fft {fft} is shorter than the frame {frame}")
    if step.value("power") not in (1.0, 2.0):
        raise ModelError("power is 1 or 2")
    bands = _bands(build.rate_hz, fft, step)
    cosines, columns = None, step.value("mels")
    if step.op == "mfcc":
        columns = step.value("coefficients")
        if columns > step.value("mels"):
            raise ModelError(f"coefficients {columns} is more than the {step.value('mels')} mels")
        cosines = cosine_matrix(columns, step.value("mels")) * _lifter(columns, step.value("lifter"))[:, np.newaxis]
    first, lengths = [begin for begin, _ in bands], [len(weights) for _, weights in bands]
    rest = (np.concatenate([weights for _, weights in bands]), _LOGARITHMS.index(step.value("log")))
    limits = (step.value("floor"), step.value("top_db"), step.value("power") == 1.0, cosines)
    build.add("mel", (frames, columns), rows, frame, hop, fft, hann(frame), first, lengths, *rest, *limits)
    build.rate_hz /= hop


def _bands(rate_hz: float, fft: int, step: Step) -> list[tuple[int, NDArray[np.float64]]]:
    if not rate_hz:
        raise ModelError("needs the window's rate_hz")
    high_hz = step.value("high_hz") or rate_hz / 2
    if not step.value("low_hz") < high_hz <= rate_hz / 2:
        raise ModelError(f"expected low_hz < high_hz <= {rate_hz / 2:g}, half the rate")
    htk, unit_area = step.value("mel") == "htk", step.value("norm") == "slaney"
    return mel_bands(rate_hz, fft, step.value("mels"), step.value("low_hz"), high_hz, htk=htk, unit_area=unit_area)


def _transpose(build: _Builder, step: Step) -> None:
    if len(build.shape) != 2:
        raise ModelError(f"needs two axes, there is {list(build.shape)}")
    rows, columns = build.shape
    build.add("transpose", (columns, rows), rows, columns)
    build.rate_hz = 0.0


def _reshape(build: _Builder, step: Step) -> None:
    size = math.prod(build.shape)
    shape = (size,) if step.op == "flatten" else tuple(step.value("shape"))
    if math.prod(shape) != size:
        raise ModelError(f"to {list(shape)} does not fit the {size} values of {list(build.shape)}")
    build.add("reshape", shape, size, shape)
    build.rate_hz = 0.0


def _image(build: _Builder, step: Step) -> None:
    """`load_image` did it; the window is its pixels."""
    height, width, channels = _image_shape(step)
    if build.shape != (height * width, channels):
        raise ModelError(f"gives {height * width} pixels of {channels} channels, the window is {list(build.shape)}")


_BUILD: Final[dict[str, Callable[[_Builder, Step], None]]] = {
    "scale": lambda build, step: build.affine(step.value("factor"), 0.0),
    "centre": _centre,
    "standardise": _centre,
    "clip": lambda build, step: build.clip(step.value("low"), step.value("high")),
    "resample": _resample,
    "moving_average": _moving_average,
    "rms": _power,
    "energy": _power,
    "fft_magnitude": _spectrum,
    "log_mel": _mel,
    "mfcc": _mel,
    "transpose": _transpose,
    "flatten": _reshape,
    "reshape": _reshape,
    "image": _image,
}


def make_plan(
    steps: list[Step] | tuple[Step, ...],
    samples: int,
    channels: int,
    rate_hz: float = 0.0,
    *,
    dtype: str = "float32",
    scale: float = 0.0,
    zero_point: int = 0,
) -> Plan:
    """Put steps together, from a window `[samples, channels]` to a tensor of `dtype`.

    Args:
        rate_hz: samples a second, for steps that speak of Hz; 0: not known.
        scale, zero_point: of an integer tensor.

    Raises:
        ModelError: a step does not fit what the one before gives.
    """
    from tinylcm._ext.signal import Plan

    build = _Builder(samples, channels, rate_hz)
    for index, step in enumerate(steps):
        try:
            _BUILD[step.op](build, step)
        except ModelError as error:
            raise ModelError(f"step {index} before the model, {step.op}: {error}") from error
    low, high = build.one_clip()
    try:
        return Plan(build.ops, samples, channels, build.gain, build.offset, low, high, dtype, scale, zero_point)
    except ConfigError as error:
        raise ModelError(f"the steps before the model: {error}") from error


def hann(n: int) -> NDArray[np.float64]:
    """The periodic Hann window, as spectral analysis has it."""
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n) / n))


def mel_bands(
    rate_hz: float, fft: int, mels: int, low_hz: float, high_hz: float, *, htk: bool, unit_area: bool
) -> list[tuple[int, NDArray[np.float64]]]:
    """Triangles on the mel scale over the bins of a transform: of each the first bin and the weights from there on.

    The scale is O'Shaughnessy's (`htk`: 2595 log10(1 + f / 700)), or that of Slaney's Auditory Toolbox (1998): linear
    below 1 kHz, logarithmic above. `unit_area` divides each triangle by half its width in Hz.
    """
    edges = _from_mel(np.linspace(_to_mel(low_hz, htk), _to_mel(high_hz, htk), mels + 2), htk)
    bins = np.arange(fft // 2 + 1) * rate_hz / fft
    bands = []
    for low, centre, high in zip(edges[:-2], edges[1:-1], edges[2:], strict=True):
        begin, end = np.searchsorted(bins, low, "right"), np.searchsorted(bins, high, "left")
        inside = bins[begin:end]
        weights = np.maximum(0, np.minimum((inside - low) / (centre - low), (high - inside) / (high - centre)))
        bands.append((int(begin), weights * (2 / (high - low)) if unit_area else weights))
    return bands


def _to_mel(hz: float, htk: bool) -> float:
    if htk:
        return 2595 * math.log10(1 + hz / 700)
    return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def _from_mel(mel: NDArray[np.float64], htk: bool) -> NDArray[np.float64]:
    if htk:
        return np.asarray(700 * (10 ** (mel / 2595) - 1))
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) / 27 * math.log(6.4)))


def cosine_matrix(coefficients: int, mels: int) -> NDArray[np.float64]:
    """The first rows of the orthonormal DCT-II, `[coefficients, mels]`."""
    n = np.arange(coefficients)[:, None]
    matrix = np.cos(np.pi * n * (2 * np.arange(mels)[None, :] + 1) / (2 * mels)) * math.sqrt(2 / mels)
    matrix[0] /= math.sqrt(2)
    return np.asarray(matrix)


def _lifter(coefficients: int, lifter: float) -> NDArray[np.float64]:
    if not lifter:
        return np.ones(coefficients)
    return np.asarray(1 + lifter / 2 * np.sin(np.pi * np.arange(1, coefficients + 1) / lifter))


# images ---------------------------------------------------------------------------------------------------


def load_image(x: object, step: Step) -> NDArray[np.float32]:
    """An image as the model takes it, float32 `[height, width, channels]`.

    Pixels are from 0 to 255, less `mean` and divided by `std` where the step has them. Bilinear is Pillow's: when it
    makes smaller it averages over all the pixels that it covers. Orientation marks of cameras are not followed.

    Args:
        x: a path, the bytes of a JPEG or PNG, a Pillow image, or a uint8 array `[height, width]`, `[height, width, 1]`
            or `[height, width, 3]` in RGB.
        step: the `image` step.

    Raises:
        InputError: it is no image, or has more than 64 million pixels.
        ModelError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ModelError('images need Pillow: pip install "tinymlops[image]"') from error
    broken = (Image.DecompressionBombError, Image.DecompressionBombWarning, OSError, ValueError, SyntaxError)
    try:
        image = _open_image(x)
        if image.width * image.height > IMAGE_PIXELS_MAX:
            raise InputError(f"an image of {image.width} x {image.height} pixels is more than {IMAGE_PIXELS_MAX}")
        return _fit(image.convert("L" if step.value("colour") == "grey" else "RGB"), step)
    except InputError:
        raise
    except (*broken, EOFError, struct.error) as error:
        raise InputError(f"the image cannot be read: {error}") from error


def _open_image(x: object) -> Any:
    """A Pillow image; from bytes its header alone is read."""
    from PIL import Image

    if isinstance(x, Image.Image):
        return x
    if isinstance(x, np.ndarray):
        if x.dtype != np.uint8 or x.ndim not in (2, 3) or (x.ndim == 3 and x.shape[2] not in (1, 3)) or not x.size:
            raise InputError(f"an image is uint8 [height, width, 3] or [height, width], got {x.dtype} {list(x.shape)}")
        return Image.fromarray(np.ascontiguousarray(x[:, :, 0] if x.ndim == 3 and x.shape[2] == 1 else x))
    if isinstance(x, str | Path):
        with Path(x).open("rb") as file:
            x = file.read(IMAGE_BYTES_MAX + 1)
    if not isinstance(x, bytes | bytearray | memoryview):
        raise InputError(f"an image is a path, bytes, a Pillow image or an array, got {type(x).__name__}")
    if len(x) > IMAGE_BYTES_MAX:
        raise InputError(f"an image of more than {IMAGE_BYTES_MAX} bytes is not read")
    return Image.open(io.BytesIO(x), formats=IMAGE_FORMATS)


def _fit(image: Any, step: Step) -> NDArray[np.float32]:
    """Cut and resize a decoded image, and make numbers of it."""
    from PIL import Image

    height, width, channels = _image_shape(step)
    if step.value("crop") == "centre":
        share = min(image.width / width, image.height / height)
        cut = max(1, round(share * width)), max(1, round(share * height))
        left, top = (image.width - cut[0]) // 2, (image.height - cut[1]) // 2
        image = image.crop((left, top, left + cut[0], top + cut[1]))
    if image.size != (width, height):
        kind = Image.Resampling.BILINEAR if step.value("resample") == "bilinear" else Image.Resampling.NEAREST
        image = image.resize((width, height), kind)
    pixels = np.asarray(image, dtype=np.float32).reshape(height, width, channels)
    if step.value("colour") == "bgr":
        pixels = pixels[:, :, ::-1]
    if "mean" in step.params or "std" in step.params:
        mean, std = np.float32(step.value("mean")), np.float32(step.value("std"))
        pixels = (pixels - mean) / std
    return np.ascontiguousarray(pixels)
