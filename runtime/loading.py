"""From a package, or a plain model file, to an engine that is ready to run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from tinylcm._ext.engine import Decider, Engine

from .arrays import read_arrays
from .backends import Backend, BackendSpec, Tensor, open_backend
from .backends.chain import ChainBackend
from .clock import Clock
from .drift import Limit
from .errors import ConfigError, InputError, ModelError
from .files import read_bounded
from .manifest import PACKAGE_BYTES_MAX, Budget, InputSpec, Manifest, PostSpec, WindowSpec
from .metrics import Metrics
from .monitors import BUDGET, Monitor, MonitorSet, ScalarMonitor, build_monitors
from .package import Package
from .preprocess import load_image, make_plan
from .window import load_window

if TYPE_CHECKING:
    from .backends.knn import KNNBackend

BUDGET_PATIENCE: Final = 3  # predictions in a row over the latency budget: one slow one is the machine's
DISTANCE: Final = "distance"  # the signal, and the kNN's output that it is
PLANNED: Final = ("float32", "int8", "uint8", "int16")  # input types that are written in one pass
_FORMATS: Final = {".onnx": "onnx", ".tflite": "tflite"}
_ARRAYS: Final = {"vectors": "knn", "weights": "linear", "w0": "reference"}


@dataclass(frozen=True, slots=True)
class Options:
    """How a model runs on this machine.

    Attributes:
        threads: compute threads of the backend.
        spinning: let its threads spin between windows: microseconds faster, a third of a core at sensor rates.
        arena: keep the backend's memory arena; off saves a little memory and costs time.
        latency_us: budget of one prediction; more, three times in a row, is an alarm. 0: the manifest's.
        memory_bytes: budget of the process's resident memory, looked at with every summary. 0: the manifest's.
        priority: niceness of the thread that a `Worker` runs the model in, -20 to 19; below 0 needs the right to.
    """

    threads: int = 1
    spinning: bool = False
    arena: bool = True
    latency_us: float = 0.0
    memory_bytes: int = 0
    priority: int = 0

    def __post_init__(self) -> None:
        if not -20 <= self.priority <= 19:
            raise ConfigError(f"priority={self.priority}: expected -20 to 19")
        if not 1 <= self.threads <= 1024:
            raise ConfigError(f"threads={self.threads}: expected 1 to 1024")
        if not self.latency_us >= 0 or self.memory_bytes < 0:
            raise ConfigError("a budget of latency_us or memory_bytes is not negative")

    def spec(self, **changes: Any) -> BackendSpec:
        """What a backend is opened with."""
        return BackendSpec(threads=self.threads, spinning=self.spinning, arena=self.arena, **changes)


class LoadedModel:
    """A model with everything around it: what a hot swap exchanges as a whole.

    Raises:
        ConfigError, ModelError: the parts do not fit together.

    Attributes:
        engine: the compiled hot route.
        backend: the model, or the chain of stages.
        budget: of the manifest and the options, the tighter of both.
    """

    def __init__(
        self,
        manifest: Manifest,
        backend: Backend,
        *,
        extra_monitors: Sequence[Monitor],
        clock: Clock,
        options: Options,
        session: str,
        variant: str = "",
    ) -> None:
        self.manifest, self.backend = manifest, backend
        self.stateful = backend.stateful
        self.budget = _tighter(manifest.budget, options)
        self._tensor = _main_input(manifest, backend)
        self._others = {tensor.name: tensor for tensor in backend.inputs if tensor.name != self._tensor.name}
        _check_others(manifest, self._others)
        samples, channels = manifest.layout
        steps = [step for step in manifest.preprocess if step.op != "image"]
        plan = None
        if self._tensor.array.dtype.name in PLANNED:
            plan = make_plan(
                steps,
                samples,
                channels,
                manifest.window.rate_hz,
                dtype=self._tensor.array.dtype.name,
                scale=self._tensor.scale or float(self._tensor.array.dtype.kind in "iu"),
                zero_point=self._tensor.zero_point,
            )
            if plan.size != self._tensor.array.size:
                raise ModelError(
                    f"the steps before the model give {list(plan.shape)}, its input {self._tensor.name!r} takes "
                    f"{list(self._tensor.array.shape[1:])}"
                )
        elif steps:
            raise ModelError(f"steps before the model cannot write its {self._tensor.array.dtype} input")
        self.streams = plan is not None and not self._others and manifest.image is None
        same = plan is not None and plan.identity
        rows = self._tensor.array.reshape(samples, channels) if same else np.zeros((samples, channels), np.float32)
        output = _find(backend.outputs, manifest.output, "output")
        check_labels(manifest, output)
        monitors = [*build_monitors(manifest), *extra_monitors]
        if self.budget.latency_us:
            limit = Limit(self.budget.latency_us, BUDGET_PATIENCE)
            monitors.append(ScalarMonitor(BUDGET, "latency", limit))
        self.monitors = MonitorSet(manifest, monitors)
        watched = _find(backend.outputs, manifest.embedding, "embedding") if manifest.embedding else None
        self._embedding = None if watched is None else watched.array.reshape(-1)
        self._rows = rows
        far = next((tensor for tensor in backend.outputs if tensor.name == DISTANCE), None)
        self._distance = None if far is None else far.array.reshape(-1)
        self.bind_monitors()
        self.metrics = Metrics(manifest.labels, clock)
        self._plan = plan
        self._session, self._variant = session, variant
        self._output = output
        self.engine = self._make_engine()

    @property
    def real_range(self) -> tuple[float, float] | None:
        """The least and greatest real value that an integer input can store; None for a float one."""
        if self._tensor.array.dtype.kind not in "iu":
            return None
        bounds, scale = np.iinfo(self._tensor.array.dtype), self._tensor.scale or 1.0
        return scale * (bounds.min - self._tensor.zero_point), scale * (bounds.max - self._tensor.zero_point)

    @property
    def knn(self) -> KNNBackend | None:
        """The kNN that the model is or ends in."""
        from .backends.knn import KNNBackend  # a pipeline without one does not need it

        last = self.backend.stages[-1] if isinstance(self.backend, ChainBackend) else self.backend
        return last if isinstance(last, KNNBackend) else None

    def bind_monitors(self) -> None:
        """Show the monitors where windows lie; anew after their restart."""
        self.monitors.watch.bind(self._rows, self._embedding, self._distance)

    def _make_engine(self) -> Engine:
        manifest = self.manifest
        extra = [(name, _find(self.backend.outputs, name, "output").array) for name in manifest.outputs]
        stages = self.backend.times_us if isinstance(self.backend, ChainBackend) else None
        return Engine(
            self._plan if not self._others else None,
            self.convert,
            self._tensor.array,
            self._output.array,
            self._output.scale,
            self._output.zero_point,
            self._rows,
            manifest.window_shape,
            self.backend.run,
            self.monitors.watch,
            self.metrics.ring,
            make_decider(manifest),
            extra or None,
            stages,
            manifest.labels,
            manifest.postprocess.reject,
            manifest.name,
            manifest.version,
            self._variant,
            self._session,
        )

    def convert(self, x: object) -> NDArray[np.float32] | None:
        """Bring what an application gives to float32 of the window's shape; None when the tensor has been written.

        Raises:
            InputError: wrong shape, dtype, or a value that is NaN or infinite.
        """
        spec = self.manifest.input
        if self._others:
            x = self._take_others(x)
        if self.manifest.image is not None and not _is_window(x, self.manifest.image):
            x = load_image(x, self.manifest.preprocess[0])
        array = x if isinstance(x, np.ndarray) else _to_array(spec, x)
        tensor = self._tensor.array
        if array.dtype == tensor.dtype and array.dtype.kind in "iub" and not self.manifest.preprocess:
            _check_shape(spec, array, tensor.shape[1:])
            tensor[0] = array  # an integer tensor's own type: the values are stored as they are
            if self.engine.observed or self.monitors.watch.needs_rows:
                self._rows[...] = array.reshape(self._rows.shape)
            return None
        if self._plan is None:
            self._store(spec, tensor, array)
            return None
        window = load_window(spec, array, self.manifest.window_shape)
        if not self._others:
            return window
        rows = window.reshape(self._rows.shape)
        self._plan.apply(rows, tensor.reshape(-1))
        if self._rows.base is not tensor:
            self._rows[...] = rows
        return None

    def _take_others(self, x: object) -> object:
        """Write the further inputs; the main one's value."""
        names = [self.manifest.input.name, *self._others]
        if not isinstance(x, Mapping) or set(x) != set(names):
            given = f"a mapping of {', '.join(map(str, x))}" if isinstance(x, Mapping) else type(x).__name__
            raise InputError(f"this model takes a mapping with {', '.join(names)}, got {given}")
        for name, tensor in self._others.items():
            spec = next((one for one in self.manifest.inputs if one.name == name), InputSpec(name, tensor.array.shape))
            self._store(spec, tensor.array, _to_array(spec, x[name]))
        return x[self.manifest.input.name]

    def _store(self, spec: InputSpec, tensor: NDArray[Any], array: NDArray[Any]) -> None:
        """Write a tensor as it is: no steps, no quantisation."""
        _check_shape(spec, array, tensor.shape[1:])
        if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and tensor.dtype.kind != "f"):
            raise InputError(f"input {spec.name!r}: expected {tensor.dtype}, got {array.dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"input {spec.name!r}: a value is NaN or infinite")
        tensor[0] = array


def make_decider(manifest: Manifest) -> Decider:
    """What turns this model's output into decisions."""
    post: PostSpec = manifest.postprocess
    return Decider(
        len(manifest.labels),
        post.activation,
        post.temperature,
        post.smoothing,
        post.threshold,
        post.hysteresis,
        post.refractory,
    )


def check_labels(manifest: Manifest, output: Tensor) -> None:
    """Refuse labels that do not fit the scores.

    Raises:
        ConfigError: a label occurs twice.
        ModelError: there are more or fewer labels than scores.
    """
    if len(set(manifest.labels)) != len(manifest.labels):
        raise ConfigError(f"a label occurs twice in {list(manifest.labels)}")
    if output.array.size != len(manifest.labels):
        raise ModelError(
            f"labels do not match the output: {len(manifest.labels)} labels for {output.array.size} scores "
            f"of output {output.name!r}"
        )


def _tighter(budget: Budget, options: Options) -> Budget:
    return Budget(
        min(filter(None, (budget.latency_us, options.latency_us)), default=0.0),
        min(filter(None, (budget.memory_bytes, options.memory_bytes)), default=0),
    )


def _find(tensors: Sequence[Tensor], name: str, what: str) -> Tensor:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    known = ", ".join(f"{tensor.name} {tensor.array.dtype} {list(tensor.array.shape)}" for tensor in tensors)
    raise ModelError(f"the model has no {what} {name!r}; it has {known}")


def _main_input(manifest: Manifest, backend: Backend) -> Tensor:
    """The tensor that takes the window, checked against what the manifest says of it."""
    spec = manifest.input
    if spec.name not in [tensor.name for tensor in backend.inputs]:
        names = ", ".join(repr(tensor.name) for tensor in backend.inputs)
        raise ModelError(f"the model's input is {names}, the manifest says {spec.name!r}")
    tensor = _find(backend.inputs, spec.name, "input")
    if tensor.array.shape != spec.shape:
        raise ModelError(
            f"input {spec.name!r} has shape {list(tensor.array.shape)} in the model, {list(spec.shape)} in the manifest"
        )
    if tensor.array.dtype.name != spec.dtype:
        raise ModelError(f"input {spec.name!r} is {tensor.array.dtype} in the model, {spec.dtype} in the manifest")
    if spec.scale and tensor.scale:
        same = math.isclose(spec.scale, tensor.scale, rel_tol=1e-5) and spec.zero_point == tensor.zero_point
        if not same:
            raise ModelError(
                f"input {spec.name!r} is quantised by {tensor.scale:g} and {tensor.zero_point} in the model, by "
                f"{spec.scale:g} and {spec.zero_point} in the manifest"
            )
    elif spec.scale:
        tensor = Tensor(tensor.name, tensor.array, spec.scale, spec.zero_point)
    return tensor


def _check_others(manifest: Manifest, others: Mapping[str, Tensor]) -> None:
    declared = {spec.name: spec for spec in manifest.inputs}
    if missing := set(others) - set(declared):
        raise ModelError(
            f"the model also takes {', '.join(sorted(missing))}: declare each under `inputs`, `constants` or `state`"
        )
    for name, spec in declared.items():
        array = _find(tuple(others.values()), name, "input").array
        if array.shape != spec.shape or array.dtype.name != spec.dtype:
            raise ModelError(
                f"input {name!r} is {array.dtype} {list(array.shape)} in the model, {spec.dtype} {list(spec.shape)} "
                "in the manifest"
            )


def _is_window(x: object, shape: tuple[int, ...]) -> bool:
    return isinstance(x, np.ndarray) and x.shape == shape and x.dtype.kind == "f"


def _to_array(spec: InputSpec, x: object) -> NDArray[Any]:
    try:
        return np.asarray(x)
    except (ValueError, TypeError) as error:
        raise InputError(f"input {spec.name!r}: expected an array of numbers: {error}") from error


def _check_shape(spec: InputSpec, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise InputError(f"input {spec.name!r}: expected shape {list(shape)}, got {list(array.shape)}")


# backends -------------------------------------------------------------------------------------------------


def open_package(package: Package, options: Options) -> Backend:
    """The backend of a package: its model, or its stages as a chain.

    Raises:
        ModelError: a model cannot run here.
    """
    manifest = package.manifest
    # A kNN's distance to its neighbours is an output that it gives when a monitor watches it.
    far = [DISTANCE] if any(monitor.signal == DISTANCE for monitor in manifest.monitors) else []
    first = {
        # By name: a TFLite tensor answers to several, and takes the one that it was asked for by.
        "shapes": {spec.name: spec.shape for spec in (manifest.input, *manifest.inputs)},
        "state": manifest.state,
        "constants": manifest.constants,
    }
    models = manifest.models()
    if not manifest.stages:
        wanted = dict.fromkeys(filter(None, (manifest.output, manifest.embedding, *manifest.outputs, *far)))
        ((_, name),) = models
        return open_backend(manifest.format, package.read(name), options.spec(outputs=tuple(wanted), **first))
    stages = []
    for index, (stage, name) in enumerate(models):
        last = index == len(models) - 1
        outputs = tuple(dict.fromkeys((manifest.output, *manifest.outputs, *far))) if last else ()
        outputs = outputs or ((stage.output,) if stage.output else ())
        spec = options.spec(outputs=outputs, **({} if index else first))
        try:
            stages.append((stage.name, open_backend(stage.format, package.read(name), spec)))
        except ModelError as error:
            raise ModelError(f"stage {stage.name!r}: {error}") from error
    return ChainBackend(stages, manifest.embedding)


def open_file(
    path: Path,
    options: Options,
    *,
    format: str = "",
    output: str | None = None,
    shape: tuple[int, ...] | None = None,
    labels: Sequence[str] | None = None,
    window: int | None = None,
    hop: int | None = None,
) -> tuple[Manifest, Backend]:
    """The backend of a plain model file, with a manifest made of what the file itself says.

    Raises:
        ConfigError: the file's kind is not known, or window and hop do not fit it.
        ModelError: it cannot run here.
        DeviceError: it cannot be read.
    """
    if path.suffix == ".tlm":
        raise ConfigError(f"{path} is a package: load it with tinylcm.package.load_package")
    if not format and path.suffix not in (*_FORMATS, ".npz"):
        raise ConfigError(f"{path}: expected a model file *.onnx, *.tflite or *.npz; or name its `format`")
    data = read_bounded(path, PACKAGE_BYTES_MAX)
    kind = format or _FORMATS.get(path.suffix) or _kind_of_arrays(path, data)
    shapes = {} if shape is None else {"": tuple(shape)}
    backend = open_backend(kind, data, options.spec(shapes=shapes, outputs=() if output is None else (output,)))
    scores = _choose_scores(backend)
    main, *others = (
        InputSpec(t.name, t.array.shape, t.array.dtype.name, scale=t.scale, zero_point=t.zero_point)
        for t in backend.inputs
    )
    count = scores.array.size
    names = tuple(str(index) for index in range(count)) if labels is None else tuple(labels)
    samples = (main.shape[1] if len(main.shape) > 2 else 1) if window is None else window
    if main.layout(samples) is None:
        raise ConfigError(f"window={samples} does not fit the model's input {list(main.shape)}")
    step = samples if hop is None else hop
    if step < 1:
        raise ConfigError(f"hop={step}: expected at least 1 sample")
    manifest = Manifest(path.stem, "", kind, main, scores.name, names, WindowSpec(samples, step), inputs=tuple(others))
    return manifest, backend


def _kind_of_arrays(path: Path, data: bytes) -> str:
    found = [kind for name, kind in _ARRAYS.items() if name in read_arrays(data, str(path))]
    if len(found) != 1:
        raise ConfigError(f"{path} holds the arrays of no model that is known; name its `format`, such as knn")
    return found[0]


def _choose_scores(backend: Backend) -> Tensor:
    """The one output that can be scores."""
    floats = [tensor for tensor in backend.outputs if tensor.array.dtype.kind == "f" or tensor.scale]
    candidates = floats or list(backend.outputs)
    if len(candidates) != 1:
        known = ", ".join(f"{t.name} {t.array.dtype} {list(t.array.shape)}" for t in backend.outputs)
        raise ModelError(f"the model has {len(candidates)} float outputs ({known}); name one with `output`")
    return candidates[0]
