"""Originals: what estimators and ONNX files compute, as arrays; and what cannot be converted, with what can."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.ensemble import ExtraTreesClassifier, GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier
from tinylcm.errors import ConfigError, ModelError

from firmware_bridge.originals import FloatTree, Forest, Original, Perceptron, read_original

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 5)).astype(np.float32)
LABELS = {4: (X[:, 0] > 0).astype(int) * 2 + (X[:, 1] + X[:, 2] > 0), 2: (X[:, 0] + X[:, 3] > 0).astype(int)}
ESTIMATORS = {
    "tree": lambda: DecisionTreeClassifier(max_depth=5, random_state=0),
    "extra tree": lambda: ExtraTreeClassifier(max_depth=5, random_state=0),
    "forest": lambda: RandomForestClassifier(7, max_depth=5, random_state=0),
    "extra trees": lambda: ExtraTreesClassifier(7, max_depth=5, random_state=0),
    "scaled forest": lambda: make_pipeline(StandardScaler(), RandomForestClassifier(3, random_state=0)),
    "mlp": lambda: MLPClassifier((8, 6), max_iter=2000, random_state=0),
    "scaled mlp": lambda: make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=2000, random_state=0)),
    "linear mlp": lambda: MLPClassifier((6,), activation="identity", max_iter=2000, random_state=0),
}


def classes_of(original: Original, x: np.ndarray) -> np.ndarray:
    """The class by the arithmetic alone, in float64."""
    arithmetic = original.arithmetic
    if isinstance(arithmetic, Perceptron):
        y = x.astype(float)
        for layer in arithmetic.layers:
            y = y @ layer.weights.T + layer.bias
            y = np.maximum(y, 0) if layer.relu else y
        return y.argmax(axis=1)
    return np.array([sum(leaf(tree, row) for tree in arithmetic.trees).argmax() for row in x])


def leaf(tree: FloatTree, row: np.ndarray) -> np.ndarray:
    at = 0
    while tree.feature[at] >= 0:
        at = tree.left[at] if row[tree.feature[at]] <= tree.threshold[at] else tree.right[at]
    return tree.value[at]


@pytest.mark.parametrize("classes", [4, 2])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_arithmetic_of_an_estimator_and_of_its_onnx_file_is_the_models(name: str, classes: int) -> None:
    estimator = ESTIMATORS[name]().fit(X, LABELS[classes])
    predicted = estimator.predict(X)
    exported = to_onnx(estimator, X[:1], options={"zipmap": False}).SerializeToString()
    for source in (estimator, exported):
        original = read_original(source)
        assert (original.features, original.classes) == (5, classes)
        assert (original.classify(X) == predicted).all()
        assert (classes_of(original, X) == predicted).mean() > 0.99  # a float32 next to a threshold may differ


def test_labels_of_text_become_indexes() -> None:
    names = np.array(["walk", "run", "sit", "lie"])[LABELS[4]]
    original = read_original(DecisionTreeClassifier(max_depth=4).fit(X, names))
    assert (np.sort(np.unique(names))[original.classify(X)] == names).mean() > 0.9


def gemm_model(*, softmax: bool = True, middle: str = "Relu") -> bytes:
    """As PyTorch exports it: Gemm with transB, Relu, Gemm."""
    rng = np.random.default_rng(1)
    arrays = {"w0": rng.normal(size=(6, 5)), "b0": rng.normal(size=6), "w1": rng.normal(size=(3, 6)), "b1": np.zeros(3)}
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"], transB=1),
        helper.make_node(middle, ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["logits"], transB=1),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor_value_info("scores" if softmax else "logits", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("softmax", [True, False])
def test_a_graph_of_gemm_and_relu_is_read_with_or_without_its_softmax(softmax: bool) -> None:
    original = read_original(gemm_model(softmax=softmax))
    assert (original.kind, original.features, original.classes) == ("MLP", 5, 3)
    assert (classes_of(original, X) == original.classify(X)).all()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (LogisticRegression().fit(X, LABELS[4]), "LogisticRegression of sklearn.* cannot be converted"),
        (make_pipeline(MinMaxScaler(), DecisionTreeClassifier()).fit(X, LABELS[4]), "Pipeline of MinMaxScaler"),
        (MLPClassifier((4,), activation="tanh", max_iter=9_000).fit(X, LABELS[2]), "activation 'tanh'"),
        (DecisionTreeClassifier(), "not fitted"),
        (DecisionTreeClassifier().fit(X, np.stack([LABELS[2], LABELS[2]], axis=1)), "several outputs"),
        (object(), "object of builtins cannot be converted"),
        (to_onnx(GradientBoostingClassifier(n_estimators=2).fit(X, LABELS[2]), X[:1]).SerializeToString(), "logits"),
        (to_onnx(LogisticRegression().fit(X, LABELS[4]), X[:1]).SerializeToString(), "LinearClassifier"),
        (gemm_model(middle="Tanh"), "the operation Tanh"),
        (b"not a model", "no ONNX model"),
    ],
)
def test_what_cannot_be_converted_is_told_with_what_can(source: object, problem: str) -> None:
    with pytest.raises(ModelError, match=problem) as caught:
        read_original(source)
    assert "supported: scikit-learn" in str(caught.value) or "no ONNX" in problem or "not fitted" in problem


def test_maps_of_scores_are_refused_with_the_option_to_use() -> None:
    exported = to_onnx(DecisionTreeClassifier(max_depth=3).fit(X, LABELS[4]), X[:1]).SerializeToString()
    with pytest.raises(ModelError, match="zipmap"):
        read_original(exported)


def test_no_pickle_is_opened(tmp_path: Path) -> None:
    for name in ("model.pkl", "model.joblib", "model.PICKLE"):
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
        with pytest.raises(ConfigError, match="is a pickle"):
            read_original(tmp_path / name)
    (tmp_path / "model.onnx").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(ModelError, match="no ONNX model"):
        read_original(tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match="does not exist"):
        read_original(str(tmp_path / "none.onnx"))


def test_a_forest_of_loops_is_no_forest() -> None:
    """Nodes that point back: read as they are, refused when they are laid out."""
    from firmware_bridge.blob import Feature
    from firmware_bridge.quantise import quantise_forest

    exported = to_onnx(DecisionTreeClassifier(max_depth=3).fit(X, LABELS[4]), X[:1], options={"zipmap": False})
    node = next(node for node in exported.graph.node if node.op_type == "TreeEnsembleClassifier")
    for attribute in node.attribute:
        if attribute.name == "nodes_truenodeids":
            del attribute.ints[:]
            count = next(len(item.ints) for item in node.attribute if item.name == "nodes_nodeids")
            attribute.ints.extend([0] * count)
    assert isinstance(exported, onnx.ModelProto)
    from firmware_bridge.originals import _ensemble

    forest = _ensemble(node)
    assert isinstance(forest, Forest)
    with pytest.raises(ModelError, match="a tree of the model is none"):
        quantise_forest(forest, [Feature(1, 0, 0, 0.0, 1.0)] * 5)
