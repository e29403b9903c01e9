"""Models as they were trained, read for conversion: scikit-learn's estimators, and ONNX files. No pickle is opened.

An `Original` is two things: its arithmetic as plain arrays (`Forest` or `Perceptron`), which is converted, and the
model itself (`classify`), with which the result is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from tinylcm.errors import ConfigError, DeviceError, ModelError

Floats: TypeAlias = NDArray[np.float64]
SUPPORTED: Final = (
    "scikit-learn's DecisionTreeClassifier, ExtraTreeClassifier, RandomForestClassifier, ExtraTreesClassifier and "
    "MLPClassifier (activation relu or identity), alone or in a Pipeline after a StandardScaler; ONNX files with a "
    "TreeEnsembleClassifier of probabilities, or with dense layers (Gemm, or MatMul and Add), Relu and Softmax"
)
MODEL_BYTES_MAX: Final = 64 << 20
_PICKLES: Final = (".pkl", ".pickle", ".joblib", ".dill", ".skops")


@dataclass(frozen=True, slots=True, eq=False)
class FloatTree:
    """One tree: a node with `feature` -1 is a leaf with class shares `value`; `x <= threshold` goes left."""

    feature: NDArray[np.int64]
    threshold: Floats
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Forest:
    """Trees whose class shares are averaged."""

    trees: tuple[FloatTree, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """`weights` `[outputs, inputs]`, `bias`, and whether a ReLU follows."""

    weights: Floats
    bias: Floats
    relu: bool


@dataclass(frozen=True, slots=True, eq=False)
class Perceptron:
    """Dense layers; the last one's outputs are logits, a softmax follows."""

    layers: tuple[Dense, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Original:
    """A trained classifier.

    Attributes:
        kind: what it is, for messages and the report.
        features, classes: how many it takes and knows.
        arithmetic: what it computes, as arrays; a scaling before it has been taken in.
        classify: class indexes for float32 features `[n, features]`, by the model itself.
    """

    kind: str
    features: int
    classes: int
    arithmetic: Forest | Perceptron
    classify: Callable[[NDArray[np.float32]], NDArray[np.int64]]


def read_original(source: object) -> Original:
    """Read an estimator, or an ONNX file by its path or bytes.

    Raises:
        ModelError: it is nothing that can be converted; the message lists what can.
        ConfigError: the file does not exist, or is a pickle.
    """
    if isinstance(source, bytes):
        return _read_onnx(source, "the ONNX model")
    if isinstance(source, str | Path):
        path = Path(source)
        if path.suffix.lower() in _PICKLES:
            raise ConfigError(
                f"{path} is a pickle, and reading one can run anybody's code: export the model with skl2onnx, or give "
                "the estimator itself to firmware_bridge.convert.convert"
            )
        if not path.is_file():
            raise ConfigError(f"the model {path} does not exist")
        if path.stat().st_size > MODEL_BYTES_MAX:
            raise ModelError(f"{path} has {path.stat().st_size} bytes, at most {MODEL_BYTES_MAX} are taken")
        try:
            return _read_onnx(path.read_bytes(), str(path))
        except OSError as error:
            raise DeviceError(f"{path} cannot be read: {error}") from error
    return _read_estimator(source)


def _unsupported(what: str) -> ModelError:
    return ModelError(f"{what} cannot be converted for boards; supported: {SUPPORTED}")


# scikit-learn ---------------------------------------------------------------------------------------------


def _read_estimator(estimator: Any) -> Original:
    try:
        from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
        from sklearn.neural_network import MLPClassifier
        from sklearn.pipeline import Pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.tree import DecisionTreeClassifier
    except ImportError as error:
        raise ModelError('converting an estimator needs scikit-learn: pip install "tinymlops[convert]"') from error
    kind = type(estimator).__name__
    whole, scaler = estimator, None
    if isinstance(estimator, Pipeline):
        steps = [step for _, step in estimator.steps if step not in (None, "passthrough")]
        if len(steps) == 2 and isinstance(steps[0], StandardScaler):
            scaler = steps[0]
        elif len(steps) != 1:
            raise _unsupported(f"a Pipeline of {', '.join(type(step).__name__ for step in steps)}")
        estimator = steps[-1]
        kind = type(estimator).__name__
    forests = (RandomForestClassifier, ExtraTreesClassifier)
    if not isinstance(estimator, (DecisionTreeClassifier, MLPClassifier, *forests)):
        raise _unsupported(f"{kind} of {type(estimator).__module__}")
    if not hasattr(estimator, "classes_"):
        raise ModelError(f"the {kind} is not fitted: call fit() first")
    if getattr(estimator, "n_outputs_", 1) != 1 and not isinstance(estimator, MLPClassifier):
        raise _unsupported(f"a {kind} of several outputs")
    known = np.asarray(estimator.classes_)
    if isinstance(estimator, MLPClassifier):
        arithmetic: Forest | Perceptron = _perceptron(estimator)
    elif isinstance(estimator, forests):
        arithmetic = Forest(tuple(_tree(one.tree_) for one in estimator.estimators_))
    else:
        arithmetic = Forest((_tree(estimator.tree_),))
    if scaler is not None:
        deviation = np.ones(scaler.n_features_in_) if scaler.scale_ is None else np.asarray(scaler.scale_)
        middle = np.zeros(scaler.n_features_in_) if scaler.mean_ is None else np.asarray(scaler.mean_)
        arithmetic = take_in(arithmetic, 1 / deviation, -middle / deviation)

    def classify(x: NDArray[np.float32]) -> NDArray[np.int64]:
        return np.asarray(np.searchsorted(known, np.asarray(whole.predict(x))), dtype=np.int64)

    return Original(kind, int(whole.n_features_in_), len(known), arithmetic, classify)


def _tree(tree: Any) -> FloatTree:
    leaf = np.asarray(tree.children_left) == -1
    value = np.asarray(tree.value, dtype=np.float64)[:, 0, :]
    total = value.sum(axis=1, keepdims=True)
    return FloatTree(
        np.where(leaf, -1, tree.feature).astype(np.int64),
        np.asarray(tree.threshold, dtype=np.float64),
        np.asarray(tree.children_left, dtype=np.int64),
        np.asarray(tree.children_right, dtype=np.int64),
        value / np.where(total > 0, total, 1),
    )


def _perceptron(estimator: Any) -> Perceptron:
    if estimator.activation not in ("relu", "identity"):
        raise _unsupported(f"an MLPClassifier with activation {estimator.activation!r}")
    if estimator.out_activation_ not in ("softmax", "logistic") or np.ndim(estimator.classes_) != 1:
        raise _unsupported("an MLPClassifier of several labels at once")
    last = len(estimator.coefs_) - 1
    layers = [
        Dense(np.asarray(w, np.float64).T, np.asarray(b, np.float64), estimator.activation == "relu" and i < last)
        for i, (w, b) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True))
    ]
    if estimator.out_activation_ == "logistic":
        if len(estimator.classes_) != 2:
            raise _unsupported("an MLPClassifier of several labels at once")
        layers[-1] = two_from_one(layers[-1])
    return Perceptron(tuple(layers))


def two_from_one(layer: Dense) -> Dense:
    """A logistic output as two for a softmax: softmax(-z / 2, z / 2) is (1 - s(z), s(z))."""
    weights, bias = layer.weights / 2, layer.bias / 2
    return Dense(np.concatenate([-weights, weights]), np.concatenate([-bias, bias]), False)


def take_in(arithmetic: Forest | Perceptron, factor: Floats, shift: Floats) -> Forest | Perceptron:
    """The same arithmetic on x, where it was on `factor * x + shift`."""
    if isinstance(arithmetic, Forest):
        return Forest(tuple(_shifted(tree, factor, shift) for tree in arithmetic.trees))
    first, *rest = arithmetic.layers
    return Perceptron((Dense(first.weights * factor, first.bias + first.weights @ shift, first.relu), *rest))


def _shifted(tree: FloatTree, factor: Floats, shift: Floats) -> FloatTree:
    if (factor <= 0).any():
        raise _unsupported("a scaling that turns a feature round")
    at = np.maximum(tree.feature, 0)
    threshold = np.where(tree.feature >= 0, (tree.threshold - shift[at]) / factor[at], 0.0)
    return FloatTree(tree.feature, threshold, tree.left, tree.right, tree.value)


# ONNX -----------------------------------------------------------------------------------------------------


def _read_onnx(data: bytes, name: str) -> Original:
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise ModelError('converting an ONNX file needs onnx: pip install "tinymlops[convert]"') from error
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's, the checker's and others share no base
        raise ModelError(f"{name} is no ONNX model: {str(error).strip().splitlines()[:1]}") from error
    graph = model.graph
    constants = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    inputs = [item for item in graph.input if item.name not in constants]
    if len(inputs) != 1:
        raise _unsupported(f"{name}, which has {len(inputs)} inputs,")
    walk = _Walk(graph, constants, inputs[0].name)
    try:
        arithmetic, kind = walk.follow()
    except (KeyError, IndexError, ValueError) as error:
        raise ModelError(f"{name} contradicts itself: {error!r}") from error
    if isinstance(arithmetic, Forest):
        classes = arithmetic.trees[0].value.shape[1]
        features = _width(inputs[0]) or 1 + max(int(tree.feature.max()) for tree in arithmetic.trees)
    else:
        classes, features = arithmetic.layers[-1].weights.shape[0], arithmetic.layers[0].weights.shape[1]
    return Original(kind, features, classes, arithmetic, _classifier(data, features, classes))


def _width(value: Any) -> int:
    dims = value.type.tensor_type.shape.dim
    return int(dims[-1].dim_value) if len(dims) == 2 else 0


def _classifier(data: bytes, features: int, classes: int) -> Callable[[NDArray[np.float32]], NDArray[np.int64]]:
    """Class indexes by ONNX Runtime, from the model's scores."""
    from tinylcm.backends import BackendSpec, open_backend

    backend = open_backend("onnx", data, BackendSpec(shapes={"": (1, features)}))
    scores = [i for i, one in enumerate(backend.outputs) if one.array.dtype.kind == "f"]
    widths = [backend.outputs[i].array.shape for i in scores]
    if len(scores) != 1 or widths[0] not in ((1, classes), (1, 1)):
        raise ModelError(
            f"the ONNX model gives {[list(width) for width in widths]} as scores, expected one output [1, {classes}]; "
            "with skl2onnx convert with options={'zipmap': False}"
        )

    def classify(x: NDArray[np.float32]) -> NDArray[np.int64]:
        found = np.asarray(backend.run_many([x])[scores[0]])
        if found.shape[1] == 1:
            return np.asarray(found[:, 0] > 0.5, dtype=np.int64)
        return np.asarray(found.argmax(axis=1), dtype=np.int64)

    return classify


class _Walk:
    """Follows the one tensor that matters from a graph's input to its scores."""

    def __init__(self, graph: Any, constants: dict[str, NDArray[Any]], start: str) -> None:
        self._users: dict[str, list[Any]] = {}
        for node in graph.node:
            for taken in node.input:
                self._users.setdefault(taken, []).append(node)
        self._constants = constants
        self._at = start
        self._layers: list[Dense] = []
        self._scaling: tuple[Floats, Floats] | None = None

    def follow(self) -> tuple[Forest | Perceptron, str]:
        """The arithmetic, and what it is called.

        Raises:
            ModelError: an operation that no board does.
        """
        for _ in range(1_000):  # more operations than any such graph has
            node = self._next()
            if node is None:
                break
            if node.op_type == "TreeEnsembleClassifier":
                if self._layers:
                    raise _unsupported("a graph with dense layers before its trees")
                return self._scaled(_ensemble(node)), "TreeEnsembleClassifier"
            if node.op_type == "Softmax":
                break
            if node.op_type == "Sigmoid":
                if not self._layers or self._layers[-1].weights.shape[0] != 1:
                    raise _unsupported("a graph with a Sigmoid anywhere but after one output")
                self._layers[-1] = two_from_one(self._layers[-1])
                break
            self._take(node)
            self._at = node.output[0]
        if not self._layers:
            raise _unsupported("a graph without trees or dense layers")
        return self._scaled(Perceptron(tuple(self._layers))), "MLP"

    def _next(self) -> Any:
        users = self._users.get(self._at, [])
        for name in ("TreeEnsembleClassifier", "Softmax", "Sigmoid"):  # before an ArgMax or a Cast beside them
            for node in users:
                if node.op_type == name:
                    return node
        useful = [node for node in users if node.op_type not in ("ArgMax", "ArrayFeatureExtractor")]
        if len(useful) > 1:
            raise _unsupported(f"a graph that branches into {' and '.join(node.op_type for node in useful)}")
        return useful[0] if useful else None

    def _scaled(self, arithmetic: Forest | Perceptron) -> Forest | Perceptron:
        return arithmetic if self._scaling is None else take_in(arithmetic, *self._scaling)

    def _take(self, node: Any) -> None:
        kind = node.op_type
        attributes = {item.name: item for item in node.attribute}
        others = [self._constants.get(name) for name in node.input if name != self._at]
        if kind in ("Cast", "Identity", "Flatten", "Reshape", "Dropout"):
            return
        if kind == "Relu" and self._layers and not self._layers[-1].relu:
            last = self._layers[-1]
            self._layers[-1] = Dense(last.weights, last.bias, True)
        elif kind == "Scaler" and not self._layers:
            factor = np.array(attributes["scale"].floats, dtype=np.float64)
            self._scale(factor, -np.array(attributes["offset"].floats, dtype=np.float64) * factor)
        elif any(value is None for value in others) or not others:
            raise _unsupported(f"a graph with the operation {kind}")
        elif kind == "MatMul" and node.input[0] == self._at:
            weights = np.asarray(others[0], np.float64)
            self._dense(weights.T, np.zeros(weights.shape[1]))
        elif kind == "Gemm" and node.input[0] == self._at and not getattr(attributes.get("transA"), "i", 0):
            weights = np.asarray(others[0], np.float64) * getattr(attributes.get("alpha"), "f", 1.0)
            weights = weights if getattr(attributes.get("transB"), "i", 0) else weights.T
            bias = np.zeros(len(weights)) if len(others) < 2 else np.asarray(others[1], np.float64).reshape(-1)
            self._dense(weights, np.broadcast_to(bias * getattr(attributes.get("beta"), "f", 1.0), (len(weights),)))
        elif (kind in ("Add", "Sub", "Mul", "Div") and node.input[0] == self._at) or kind in ("Add", "Mul"):
            self._elementwise(kind, np.asarray(others[0], np.float64).reshape(-1))
        else:
            raise _unsupported(f"a graph with the operation {kind} there")

    def _dense(self, weights: Floats, bias: Floats) -> None:
        if self._layers and self._layers[-1].weights.shape[0] != weights.shape[1]:
            raise _unsupported("a graph whose layers do not fit each other")
        self._layers.append(Dense(weights, bias, False))

    def _elementwise(self, kind: str, value: Floats) -> None:
        if self._layers and kind == "Add" and not self._layers[-1].relu:
            last = self._layers[-1]
            self._layers[-1] = Dense(last.weights, last.bias + value, False)
        elif not self._layers:
            one, zero = np.ones_like(value), np.zeros_like(value)
            with np.errstate(divide="ignore"):
                self._scale(
                    {"Mul": value, "Div": 1 / value}.get(kind, one), {"Add": value, "Sub": -value}.get(kind, zero)
                )
        else:
            raise _unsupported(f"a graph with the operation {kind} between its layers")

    def _scale(self, factor: Floats, shift: Floats) -> None:
        if not np.isfinite(factor).all() or not np.isfinite(shift).all():
            raise _unsupported("a graph that scales by numbers that are not finite")
        before = (np.ones_like(factor), np.zeros_like(shift)) if self._scaling is None else self._scaling
        self._scaling = (before[0] * factor, before[1] * factor + shift)


def _ensemble(node: Any) -> Forest:
    import onnx

    given = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if given.get("post_transform", b"NONE") != b"NONE" or given.get("base_values"):
        raise _unsupported("a TreeEnsembleClassifier whose trees vote in logits, as gradient boosting does,")
    modes = {mode.decode() for mode in given["nodes_modes"]}
    if modes - {"BRANCH_LEQ", "LEAF"}:
        raise _unsupported(f"a TreeEnsembleClassifier with {', '.join(sorted(modes - {'BRANCH_LEQ', 'LEAF'}))}")
    classes = len(given.get("classlabels_int64s") or given.get("classlabels_strings") or ())
    tree_ids = np.array(given["nodes_treeids"])
    trees = sorted(set(tree_ids.tolist()))
    voted = set(given["class_ids"])
    leaf_trees, leaf_nodes = np.array(given["class_treeids"]), np.array(given["class_nodeids"])
    weights, ids = np.array(given["class_weights"], np.float64), np.array(given["class_ids"])
    result = []
    for tree in trees:
        rows = np.flatnonzero(tree_ids == tree)
        numbers = {int(given["nodes_nodeids"][row]): place for place, row in enumerate(rows)}
        leaf = np.array([given["nodes_modes"][row] == b"LEAF" for row in rows])
        value = np.zeros((len(rows), classes))
        for vote in np.flatnonzero(leaf_trees == tree):
            value[numbers[int(leaf_nodes[vote])], ids[vote]] += weights[vote] * len(trees)
        if classes == 2 and len(voted) == 1:  # then it is the second class's share, whatever its number says
            share = value.sum(axis=1)
            value = np.stack([1 - share, share], axis=1)
        if ((value[leaf] < -1e-3) | (value[leaf] > 1 + 1e-3)).any():
            raise _unsupported("a TreeEnsembleClassifier whose leaves are no probabilities")
        left, right = (
            np.where(leaf, -1, [numbers.get(int(given[name][row]), -1) for row in rows]).astype(np.int64)
            for name in ("nodes_truenodeids", "nodes_falsenodeids")
        )
        result.append(
            FloatTree(
                np.where(leaf, -1, [given["nodes_featureids"][row] for row in rows]).astype(np.int64),
                np.array([given["nodes_values"][row] for row in rows], dtype=np.float64),
                left,
                right,
                np.clip(value, 0, 1),
            )
        )
    return Forest(tuple(result))
