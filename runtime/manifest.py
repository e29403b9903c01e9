"""What a package says of itself: the manifest, as a person writes it (TOML) and as a package carries it (JSON).

Version 1 is one model without steps around it. Whatever goes beyond is version 2, so that a program which does not
know how to do it refuses the package instead of running half of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any, Final

from .checks import MISSING as _MISSING
from .checks import Fields
from .errors import ModelError, WireError
from .preprocess import Step, parse_steps
from .requires import Requires, parse_requires
from .types import Json
from .wire import finite

MANIFEST_VERSION: Final = 2
PACKAGE_BYTES_MAX: Final = 256 << 20
POINTS_MAX: Final = 2_000  # reference rows that a manifest may carry for distances
STAGES_MAX: Final = 8
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
VERSION: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}([-+][0-9A-Za-z.-]{1,40})?")
FORMAT: Final = re.compile(r"[a-z][a-z0-9_]{0,31}")
BOARD: Final = "board"  # the format of a package for the boards behind a device
CHAIN: Final = "chain"  # the format of a package of several stages
MEMBER: Final = re.compile(r"golden\.f32|(model|stage[0-7])\.([a-z][a-z0-9_]{0,31})")
REFUSED: Final = frozenset({"pickle", "pkl", "joblib", "dill", "py", "so", "sh"})  # reading them can run code
DTYPES: Final = ("float32", "int8", "uint8", "int16", "int32", "int64", "bool")
ACTIVATIONS: Final = ("none", "softmax", "sigmoid")
MISSING: Final = ("drop", "hold", "interpolate", "mark")
REPEATED: Final = ("drop", "mark")
_EXTENSIONS: Final = {"knn": "npz", "linear": "npz", "scaler": "npz", "pca": "npz", "reference": "npz"}
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_ELEMENTS_MAX: Final = 1 << 26
_CONSTANT_VALUES_MAX: Final = 1 << 16


def is_format(name: str) -> bool:
    """Whether a model's format may be called so."""
    return bool(FORMAT.fullmatch(name)) and name != CHAIN and name not in REFUSED


def member_name(format: str, stage: int | None = None) -> str:
    """The file of a model in its package: `model.onnx`, or `stage0.tflite` in a chain."""
    return f"{'model' if stage is None else f'stage{stage}'}.{_EXTENSIONS.get(format, format)}"


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The tensor that takes one window: `shape` with the batch axis first, `[1, samples, channels]`.

    `scale` and `zero_point` say how an integer tensor stores real values, real = scale * (stored - zero_point); a
    scale of 0 leaves it to the model file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    channels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    scale: float = 0.0
    zero_point: int = 0

    def layout(self, samples: int) -> tuple[int, int] | None:
        """How many (samples, channels) one window has, or None when `samples` does not fit the shape.

        `[1, s, ...]` is s samples; `[1, n]` is one sample of n channels, or n samples of one channel.
        """
        elements = math.prod(self.shape)
        if len(self.shape) > 2 and samples != self.shape[1]:
            return None
        if len(self.shape) <= 2 and samples not in (1, elements):
            return None
        return samples, elements // samples

    def channel(self, index: int) -> str:
        """A channel's name for messages: its own, or its number."""
        return self.channels[index] if index < len(self.channels) else f"channel {index}"


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """How the stream is cut: `samples` a window, a new one every `hop` samples; `rate_hz` is 0 when unknown.

    Attributes:
        channels: values a sample; 0 when the input's shape says it. Steps before the model make it necessary.
        missing: what stands in for samples that did not come: `drop` (the window begins anew), `hold`,
            `interpolate`, or `mark` (held, and the prediction says so).
        late, duplicate: samples whose time is not after the last one's: `drop`, or `mark` (taken and counted).
        gap_samples_max: more missing samples than these begin the window anew; 0 stands for one window.
    """

    samples: int
    hop: int
    rate_hz: float = 0.0
    channels: int = 0
    missing: str = "drop"
    late: str = "drop"
    duplicate: str = "drop"
    gap_samples_max: int = 0


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One model of a chain: it takes the stage before's output; `output` is needed when it has several."""

    name: str
    format: str
    output: str = ""


@dataclass(frozen=True, slots=True)
class PostSpec:
    """From the model's output to a decision.

    Attributes:
        activation: `none` (the output is the scores), `softmax` or `sigmoid` over logits.
        temperature: logits are divided by it before the activation (Guo et al., ICML 2017): above 1 less confident.
        smoothing: the scores are the mean over so many windows.
        threshold: below it the label is `reject`.
        reject: the label of windows that are not sure enough.
        hysteresis: another label wins only by more than this; and a label that holds, holds until it has fallen by
            this below the threshold.
        refractory: windows after an event in which there is no other.
    """

    activation: str = "none"
    temperature: float = 1.0
    smoothing: int = 1
    threshold: float = 0.0
    reject: str = ""
    hysteresis: float = 0.0
    refractory: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """What one prediction and the process may take; 0 is no limit. More raises an alarm of the monitor `budget`."""

    latency_us: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MonitorSpec:
    """One monitor as declared: which signal, which detector, its parameters."""

    name: str
    signal: str
    detector: str
    params: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FeatureReference:
    """What a signal looked like in training: moments and a histogram."""

    name: str
    mean: float
    std: float
    edges: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside the package."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs with the outputs that the publisher saw: `count` windows in `golden.f32`, scores here."""

    count: int
    tolerance: float
    scores: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a package says of itself; everything a device needs to run the model without asking.

    Attributes:
        format: a backend's name, or `chain` for several `stages`.
        input: the tensor that takes the window. `inputs` are further ones, which the application gives with each
            window; `constants` never change; `state` pairs (input, output) carry over from window to window.
        output: the one with the scores; `outputs` are handed out with each prediction, as they are; `embedding` is
            one that monitors watch: an output's name, in a chain a stage's.
        preprocess, postprocess: the steps before and after the model.
        requires: what a device must have to run it.
    """

    name: str
    version: str
    format: str
    input: InputSpec
    output: str
    labels: tuple[str, ...]
    window: WindowSpec
    security_counter: int = 0
    monitors: tuple[MonitorSpec, ...] = ()
    reference: Mapping[str, tuple[FeatureReference, ...]] = field(default_factory=dict)
    correlation: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    moments: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    points: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    embedding: str = ""
    golden: Golden | None = None
    members: tuple[Member, ...] = ()
    metadata: Mapping[str, Json] = field(default_factory=dict)
    inputs: tuple[InputSpec, ...] = ()
    constants: Mapping[str, Json] = field(default_factory=dict)
    state: tuple[tuple[str, str], ...] = ()
    outputs: tuple[str, ...] = ()
    stages: tuple[StageSpec, ...] = ()
    preprocess: tuple[Step, ...] = ()
    postprocess: PostSpec = PostSpec()
    budget: Budget = Budget()
    requires: Requires = field(default_factory=Requires)

    @property
    def layout(self) -> tuple[int, int]:
        """(samples, channels) of one window, as it comes from the stream."""
        if self.image is not None:
            return self.image[0] * self.image[1], self.image[2]
        if self.window.channels:
            return self.window.samples, self.window.channels
        layout = self.input.layout(self.window.samples)
        if layout is None:
            raise ModelError(
                f"manifest.window.samples: {self.window.samples} does not fit the input {list(self.input.shape)}"
            )
        return layout

    @property
    def window_shape(self) -> tuple[int, ...]:
        """What `infer` takes: the input's shape without the batch axis, an image's, or the layout before steps."""
        return self.image or (self.layout if self.preprocess else self.input.shape[1:])

    @property
    def image(self) -> tuple[int, ...] | None:
        """The shape to which images are brought, `(height, width, channels)`, when the first step is `image`."""
        if not self.preprocess or self.preprocess[0].op != "image":
            return None
        params = self.preprocess[0].params
        return int(params["height"]), int(params["width"]), 1 if params.get("colour") == "grey" else 3

    def _simple_input(self) -> bool:
        return self.format == "onnx" and self.input.dtype == "float32" and not self.input.scale

    def models(self) -> list[tuple[StageSpec, str]]:
        """Every model with its file's name: one, or the stages of a chain."""
        if not self.stages:
            return [(StageSpec("model", self.format, self.output), member_name(self.format))]
        return [(stage, member_name(stage.format, index)) for index, stage in enumerate(self.stages)]

    def to_json(self) -> dict[str, Json]:
        """The manifest as it is signed."""
        document: dict[str, object] = {
            "manifest": 1,
            "name": self.name,
            "version": self.version,
            "format": self.format,
            "security_counter": self.security_counter,
            "input": _input_json(self.input),
            "output": self.output,
            "labels": self.labels,
            "window": {
                "samples": self.window.samples,
                "hop": self.window.hop,
                "rate_hz": self.window.rate_hz,
                **_changed(self.window, WindowSpec(1, 1), "samples", "hop", "rate_hz"),
            },
            "monitors": [
                {"name": m.name, "signal": m.signal, "detector": m.detector, "params": m.params} for m in self.monitors
            ],
            "reference": {
                signal: [
                    {"name": f.name, "mean": f.mean, "std": f.std, "edges": f.edges, "counts": f.counts}
                    for f in features
                ]
                for signal, features in self.reference.items()
            },
            "correlation": self.correlation,
            "moments": self.moments,
            "points": self.points,
            "embedding": self.embedding,
            "members": [{"name": m.name, "size": m.size, "sha256": m.sha256} for m in self.members],
            "metadata": self.metadata,
        }
        if self.golden is not None:
            document["golden"] = {
                "count": self.golden.count,
                "tolerance": self.golden.tolerance,
                "scores": self.golden.scores,
            }
        beyond: dict[str, object] = {
            "inputs": [_input_json(spec) for spec in self.inputs],
            "constants": self.constants,
            "state": [{"input": taken, "output": given} for taken, given in self.state],
            "outputs": self.outputs,
            "stages": [{"name": s.name, "format": s.format, "output": s.output} for s in self.stages],
            "preprocess": [step.to_json() for step in self.preprocess],
            "postprocess": _changed(self.postprocess, PostSpec()),
            "budget": _changed(self.budget, Budget()),
            "requires": self.requires.to_json(),
        }
        document.update({key: value for key, value in beyond.items() if value})
        if (
            any(beyond.values())
            or self.window != WindowSpec(self.window.samples, self.window.hop, self.window.rate_hz)
            or not self._simple_input()
        ):
            document["manifest"] = MANIFEST_VERSION
        result = finite(document)
        assert isinstance(result, dict)
        return result


def _input_json(spec: InputSpec) -> dict[str, object]:
    document: dict[str, object] = {
        "name": spec.name,
        "shape": spec.shape,
        "dtype": spec.dtype,
        "channels": spec.channels,
        "units": spec.units,
    }
    return {**document, "scale": spec.scale, "zero_point": spec.zero_point} if spec.scale else document


def _changed(value: Any, default: Any, *without: str) -> dict[str, object]:
    """The attributes that are not at their default."""
    names = [item.name for item in fields(value) if item.name not in without]
    return {name: getattr(value, name) for name in names if getattr(value, name) != getattr(default, name)}


def _input(place: Fields) -> InputSpec:
    shape = tuple(place.items("shape", length_max=8))
    if not shape or not all(type(n) is int and 0 < n <= _ELEMENTS_MAX for n in shape) or shape[0] != 1:
        raise place.fail("shape", "expected positive integers with the batch axis first, such as [1, 100, 6]")
    numbers = tuple(n for n in shape if isinstance(n, int))
    if math.prod(numbers) > _ELEMENTS_MAX:
        raise place.fail("shape", f"has more than {_ELEMENTS_MAX} elements")
    dtype = place.text("dtype", "float32")
    if dtype not in DTYPES:
        raise place.fail("dtype", f"is {dtype!r}; supported: {', '.join(DTYPES)}")
    return InputSpec(
        name=place.text("name", length_min=1),
        shape=numbers,
        dtype=dtype,
        channels=place.texts("channels", []),
        units=place.texts("units", []),
        scale=place.number("scale", 0.0, low=0.0, high=1e9),
        zero_point=int(place.number("zero_point", 0, low=-32768, high=32767)),
    )


def _samples(place: Fields, key: str, seconds: str, rate_hz: float, default: int | None = None) -> int:
    """A length in samples, or in seconds at the window's rate."""
    if seconds not in place:
        return place.natural(key, *(() if default is None else (default,)), low=1, high=_ELEMENTS_MAX)
    if key in place:
        raise place.fail(seconds, f"give {key} or {seconds}, not both")
    if not rate_hz:
        raise place.fail(seconds, "needs rate_hz")
    exact = place.number(seconds, low=0.0, high=1e9) * rate_hz
    if round(exact) < 1 or abs(exact - round(exact)) > 1e-6:
        raise place.fail(seconds, f"is {exact:g} samples at {rate_hz:g} Hz, expected a whole number of at least 1")
    return round(exact)


def _whole(spec: InputSpec, steps: tuple[Step, ...]) -> object:
    """The window of a manifest that does not speak of one: all that the input takes."""
    if steps and steps[0].op != "image":
        return _MISSING
    return {"samples": 1 if steps or len(spec.shape) < 3 else spec.shape[1]}


def _window(place: Fields, spec: InputSpec, steps: tuple[Step, ...]) -> WindowSpec:
    rate_hz = place.number("rate_hz", 0.0, low=0.0, high=1e9)
    samples = _samples(place, "samples", "seconds", rate_hz)
    hop = _samples(place, "hop", "hop_seconds", rate_hz, samples)
    channels = place.natural("channels", 0, high=1 << 16)
    layout = spec.layout(samples)
    if steps and steps[0].op == "image":
        return WindowSpec(1, 1, rate_hz)
    if not steps:
        if layout is None:
            raise place.fail("samples", f"is {samples}, which does not fit the model's input {list(spec.shape)}")
        if channels not in (0, layout[1]):
            raise place.fail("channels", f"is {channels}, the model's input has {layout[1]}")
        channels = 0
    elif not channels:
        channels = len(spec.channels) or (0 if layout is None else layout[1])
        if not channels:
            raise place.fail("channels", "is missing: steps before the model do not say how many there are")
    if samples * (channels or 1) > _ELEMENTS_MAX:
        raise place.fail("samples", f"times channels is more than {_ELEMENTS_MAX}")
    width = channels or (layout[1] if layout else 1)
    for key, names in (("channels", spec.channels), ("units", spec.units)):
        if names and len(names) != width:
            raise place.fail(f"samples (input.{key})", f"{len(names)} {key} are named for {width} channels")
    return WindowSpec(
        samples,
        hop,
        rate_hz,
        channels,
        missing=_choice(place, "missing", MISSING),
        late=_choice(place, "late", REPEATED),
        duplicate=_choice(place, "duplicate", REPEATED),
        gap_samples_max=place.natural("gap_samples_max", 0, high=_ELEMENTS_MAX),
    )


def _choice(place: Fields, key: str, allowed: tuple[str, ...]) -> str:
    value = place.text(key, allowed[0])
    if value not in allowed:
        raise place.fail(key, f"is {value!r}, expected {', '.join(allowed)}")
    return value


def _state(place: Fields) -> tuple[str, str]:
    return place.text("input", length_min=1), place.text("output", length_min=1)


def _stages(document: Fields, format: str) -> tuple[StageSpec, ...]:
    stages = []
    for place in document.tables("stages", [], length_max=STAGES_MAX):
        kind = place.text("format")
        if not is_format(kind):
            raise place.fail("format", f"is {kind!r}, expected a backend's name such as tflite")
        stages.append(StageSpec(place.text("name", length_min=1), kind, place.text("output", "")))
    if (format == CHAIN) != bool(stages):
        raise document.fail("stages", f"a package of format {CHAIN!r} has stages, and no other has")
    if len({stage.name for stage in stages}) != len(stages):
        raise document.fail("stages", "has a name twice")
    return tuple(stages)


def _constants(place: Fields) -> dict[str, Json]:
    constants: dict[str, Json] = {}
    for name, value in place.value.items():
        try:
            checked = finite(value)
        except WireError as error:
            raise place.fail(name, str(error)) from error
        if _numbers_in(checked, 8) > _CONSTANT_VALUES_MAX:
            raise place.fail(name, "expected a number or nested lists of numbers")
        constants[name] = checked
    return constants


def _numbers_in(value: Json, depth: int) -> int:
    """How many numbers nested lists hold; too many when there is anything else."""
    if isinstance(value, list) and depth:
        return sum(_numbers_in(item, depth - 1) for item in value)
    return 1 if isinstance(value, int | float) else _CONSTANT_VALUES_MAX + 1


def _postprocess(place: Fields, labels: tuple[str, ...]) -> PostSpec:
    place.refuse_unknown(*(item.name for item in fields(PostSpec)))
    spec = PostSpec(
        activation=_choice(place, "activation", ACTIVATIONS),
        temperature=place.number("temperature", 1.0, low=1e-3, high=1e3),
        smoothing=place.natural("smoothing", 1, low=1, high=10_000),
        threshold=place.number("threshold", 0.0),
        reject=place.text("reject", ""),
        hysteresis=place.number("hysteresis", 0.0, low=0.0),
        refractory=place.natural("refractory", 0, high=1 << 31),
    )
    if spec.temperature != 1.0 and spec.activation == "none":
        raise place.fail("temperature", "is for logits: give an activation, softmax or sigmoid")
    if spec.reject in labels:
        raise place.fail("reject", f"{spec.reject!r} is one of the labels")
    return spec


def _budget(place: Fields) -> Budget:
    place.refuse_unknown("latency_us", "memory_bytes")
    return Budget(place.number("latency_us", 0.0, low=0.0), place.natural("memory_bytes", 0))


def _monitor(place: Fields) -> MonitorSpec:
    params = place.table("params", {})
    return MonitorSpec(
        name=place.text("name", length_min=1),
        signal=place.text("signal", length_min=1),
        detector=place.text("detector", length_min=1),
        params={
            key: params.text(key) if isinstance(value, str) else params.number(key)
            for key, value in params.value.items()
        },
    )


def _feature(place: Fields) -> FeatureReference:
    edges, counts = place.numbers("edges", length_max=1025), place.numbers("counts", length_max=1024)
    if len(edges) != len(counts) + 1 or any(b <= a for a, b in pairwise(edges)):
        raise place.fail("edges", "must rise, and have one value more than there are counts")
    if any(count < 0 for count in counts) or sum(counts) <= 0:
        raise place.fail("counts", "must not be negative, nor all zero")
    return FeatureReference(place.text("name"), place.number("mean"), place.number("std", low=0.0), edges, counts)


def _matrix(place: Fields, key: str) -> tuple[tuple[float, ...], ...]:
    rows = place.items(key, length_max=256)
    matrix = tuple(Fields({"row": row}, f"{place.where}.{key}", ModelError).numbers("row") for row in rows)
    if any(len(row) != len(matrix) for row in matrix):
        raise place.fail(key, "expected a square matrix")
    return matrix


def _rows(place: Fields, key: str) -> tuple[tuple[float, ...], ...]:
    rows = place.items(key, length_max=POINTS_MAX)
    table = tuple(Fields({"row": row}, f"{place.where}.{key}", ModelError).numbers("row") for row in rows)
    if not table or len({len(row) for row in table}) != 1 or not table[0]:
        raise place.fail(key, "expected rows that are as long as each other")
    return table


def _member(place: Fields) -> Member:
    name = place.text("name")
    found = MEMBER.fullmatch(name)
    if not found or found[2] in REFUSED:
        raise place.fail("name", f"{name!r} is not a member a package may have, such as model.onnx or golden.f32")
    sha256 = place.text("sha256")
    if not _SHA256.fullmatch(sha256):
        raise place.fail("sha256", "expected 64 hexadecimal digits")
    return Member(name, place.natural("size", high=PACKAGE_BYTES_MAX), sha256)


def _golden(place: Fields, labels: int) -> Golden:
    count = place.natural("count", low=1, high=1000)
    scores = []
    for row in place.items("scores", length_max=1000):
        values = Fields({"row": row}, f"{place.where}.scores", ModelError).numbers("row")
        if len(values) != labels:
            raise place.fail("scores", f"has rows of {len(values)} scores for {labels} labels")
        scores.append(values)
    if len(scores) != count:
        raise place.fail("scores", f"has {len(scores)} rows for {count} golden inputs")
    return Golden(count, place.number("tolerance", low=0.0, high=1.0), tuple(scores))


def _metadata(place: Fields) -> dict[str, Json]:
    try:
        metadata = finite(place.typed("metadata", dict, {}))
    except WireError as error:
        raise place.fail("metadata", str(error)) from error
    assert isinstance(metadata, dict)
    return metadata


def parse_manifest(document: object) -> Manifest:
    """Check a manifest, whether a person wrote it (TOML) or a package carries it (JSON).

    Raises:
        ModelError: with the place that is wrong.
    """
    place = Fields(document, "manifest", ModelError)
    if place.natural("manifest", MANIFEST_VERSION) not in (1, MANIFEST_VERSION):
        raise place.fail("manifest", f"is a version this program does not know; it knows 1 to {MANIFEST_VERSION}")
    name, version, kind = place.text("name"), place.text("version"), place.text("format")
    if not NAME.fullmatch(name):
        raise place.fail("name", "expected lower-case letters, digits, - and _, at most 64")
    if not VERSION.fullmatch(version):
        raise place.fail("version", "expected numbers with dots, such as 1.0.0")
    if not is_format(kind) and kind != CHAIN:
        raise place.fail("format", f"is {kind!r}, expected a backend's name such as onnx, or {CHAIN}")
    labels = place.texts("labels")
    if not labels or len(set(labels)) != len(labels):
        raise place.fail("labels", "expected at least one label, each only once")
    spec = _input(place.table("input"))
    steps = parse_steps(place.items("preprocess", [], length_max=32), "manifest.preprocess")
    reference, correlation = place.table("reference", {}), place.table("correlation", {})
    moments, points = place.table("moments", {}), place.table("points", {})
    members = tuple(_member(member) for member in place.tables("members", [], length_max=STAGES_MAX + 1))
    if len({member.name for member in members}) != len(members):
        raise place.fail("members", "has a name twice")
    inputs = tuple(_input(item) for item in place.tables("inputs", [], length_max=16))
    if len({spec.name, *(item.name for item in inputs)}) != 1 + len(inputs):
        raise place.fail("inputs", "has a name twice")
    return Manifest(
        name=name,
        version=version,
        format=kind,
        input=spec,
        output=place.text("output", length_min=1),
        labels=labels,
        window=_window(place.table("window", _whole(spec, steps)), spec, steps),
        security_counter=place.natural("security_counter", 0),
        monitors=tuple(_monitor(monitor) for monitor in place.tables("monitors", [], length_max=64)),
        reference={
            signal: tuple(_feature(feature) for feature in reference.tables(signal)) for signal in reference.value
        },
        correlation={signal: _matrix(correlation, signal) for signal in correlation.value},
        moments={signal: _rows(moments, signal) for signal in moments.value},
        points={signal: _rows(points, signal) for signal in points.value},
        embedding=place.text("embedding", ""),
        golden=_golden(place.table("golden"), len(labels)) if "golden" in place else None,
        members=members,
        metadata=_metadata(place),
        inputs=inputs,
        constants=_constants(place.table("constants", {})),
        state=tuple(_state(item) for item in place.tables("state", [], length_max=64)),
        outputs=place.texts("outputs", [], length_max=32),
        stages=_stages(place, kind),
        preprocess=steps,
        postprocess=_postprocess(place.table("postprocess", {}), labels),
        budget=_budget(place.table("budget", {})),
        requires=parse_requires(place.table("requires", {})),
    )
