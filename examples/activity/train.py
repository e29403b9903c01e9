"""Train the activity model and write `model.onnx`: a window of a smart watch's readings in, class probabilities out.

    python examples/activity/train.py [--output model.onnx]

The graph holds everything between raw samples and probabilities: per-channel features, their scaling, the classifier.
The features exist once, as an ONNX graph: training runs that very graph, so a device cannot compute them differently.

Every choice is made on the training series alone; the test series are looked at once, at the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

HERE: Final = Path(__file__).resolve().parent
LABELS: Final = ("badminton", "running", "standing", "walking")
CHANNELS: Final = ("ax", "ay", "az", "gx", "gy", "gz")
FEATURES: Final = ("mean", "std", "min", "max", "step")  # `step`: mean absolute difference of neighbouring samples
SAMPLES: Final = 100
HOP: Final = 10
MIXED: Final = -1  # the label of a window that holds two activities
OPSET: Final = 17
OPSET_ML: Final = 1
IR_VERSION: Final = 8  # what onnxruntime 1.20 and older still read
SEED: Final = 2018
STREAM_SEED: Final = 7  # the order of the test series in the demo's stream
JOINS: Final = 30  # random orders in which the training series are joined
PENALTIES: Final = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # scikit-learn's C: the smaller, the simpler
LOSS_MAX: Final = 0.05  # held-out log loss that is good enough: the simplest model below it keeps its doubt measurable


@dataclass(frozen=True, slots=True)
class Recordings:
    """Series of shape [n, SAMPLES, channels], each with the index of its class."""

    series: Floats
    classes: Ints

    def take(self, rows: Ints) -> Recordings:
        """The chosen recordings, in this order."""
        return Recordings(self.series[rows], self.classes[rows])

    def join(self) -> tuple[Floats, Ints]:
        """One long stream [n * SAMPLES, channels], and the class of every sample."""
        return self.series.reshape(-1, self.series.shape[-1]), np.repeat(self.classes, SAMPLES)


def load(path: Path) -> tuple[Recordings, Recordings]:
    """The training and the test recordings."""
    with np.load(path, allow_pickle=False) as data:
        names = np.array([name.capitalize() for name in LABELS])
        train, test = (
            Recordings(
                np.ascontiguousarray(data[f"x_{part}"].transpose(0, 2, 1), dtype=np.float32),
                np.searchsorted(names, data[f"y_{part}"]).astype(np.int64),
            )
            for part in ("train", "test")
        )
    return train, test


def test_stream(test: Recordings) -> tuple[Floats, Ints]:
    """The test recordings, joined in the order that the demo plays them."""
    return test.take(np.random.default_rng(STREAM_SEED).permutation(len(test.classes))).join()


def worn_differently(samples: Floats) -> Floats:
    """The same readings from a watch turned by 90 degrees about z, its accelerometer 2 m/s2 off on each axis."""
    ax, ay, az, gx, gy, gz = samples.T
    return np.stack([2 - ay, 2 + ax, 2 + az, -gy, gx, gz], axis=1).astype(np.float32)


def cut(stream: Floats, classes: Ints, hop: int = HOP) -> tuple[Floats, Ints]:
    """Windows [n, SAMPLES, channels] as the runtime cuts them, and the class of each, or MIXED."""
    starts = np.arange(0, len(stream) - SAMPLES + 1, hop)
    rows = starts[:, None] + np.arange(SAMPLES)
    seen = classes[rows]
    pure = (seen == seen[:, :1]).all(axis=1)
    return stream[rows], np.where(pure, seen[:, 0], MIXED)


def training_windows(train: Recordings, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """Pure windows from random joins.

    Within a join the classes stay together, so that most windows straddle two recordings of one class, cut at a
    random phase: a device's windows do not know where a recording began.
    """
    windows, classes = [], []
    for _ in range(JOINS):
        order = rng.permutation(len(train.classes))
        stream, labels = train.take(order[np.argsort(train.classes[order], kind="stable")]).join()
        phase = int(rng.integers(HOP))
        cuts, found = cut(stream[phase:], labels[phase:], hop=2 * HOP)
        windows.append(cuts[found != MIXED])
        classes.append(found[found != MIXED])
    whole, labels = cut(*train.join(), hop=SAMPLES)
    return np.concatenate([whole, *windows]), np.concatenate([labels, *classes])


def feature_graph(batch: int | str) -> onnx.ModelProto:
    """`window` [batch, SAMPLES, channels] -> `features` [batch, features * channels], feature by feature."""
    channels = len(CHANNELS)
    nodes = [
        helper.make_node("ReduceMean", ["window"], ["kept_mean"], axes=[1], keepdims=1),
        helper.make_node("Squeeze", ["kept_mean", "axis"], ["mean"]),
        helper.make_node("Sub", ["window", "kept_mean"], ["centred"]),
        helper.make_node("Mul", ["centred", "centred"], ["squared"]),
        helper.make_node("ReduceMean", ["squared"], ["variance"], axes=[1], keepdims=0),
        helper.make_node("Sqrt", ["variance"], ["std"]),
        helper.make_node("ReduceMin", ["window"], ["min"], axes=[1], keepdims=0),
        helper.make_node("ReduceMax", ["window"], ["max"], axes=[1], keepdims=0),
        helper.make_node("Slice", ["window", "one", "end", "axis"], ["later"]),
        helper.make_node("Slice", ["window", "zero", "last", "axis"], ["earlier"]),
        helper.make_node("Sub", ["later", "earlier"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("ReduceMean", ["distance"], ["step"], axes=[1], keepdims=0),
        helper.make_node("Concat", list(FEATURES), ["features"], axis=1),
    ]
    constants = {"axis": 1, "zero": 0, "one": 1, "last": SAMPLES - 1, "end": SAMPLES}
    graph = helper.make_graph(
        nodes,
        "activity_features",
        [helper.make_tensor_value_info("window", TensorProto.FLOAT, [batch, SAMPLES, channels])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, len(FEATURES) * channels])],
        [helper.make_tensor(name, TensorProto.INT64, [1], [value]) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def run(model: onnx.ModelProto, windows: Floats) -> Floats:
    """The model's one output for many windows, whether it takes one at a time or all at once."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    if session.get_inputs()[0].shape[0] == 1:
        return np.concatenate([session.run(None, {"window": window[None]})[0] for window in windows])
    return np.asarray(session.run(None, {"window": windows})[0])


def features_of(windows: Floats) -> Floats:
    """The features of many windows, by the graph that the device runs."""
    return run(feature_graph("n"), windows)


def classifier(penalty: float) -> Pipeline:
    """Scaling and multinomial logistic regression: few numbers, and probabilities that mean something."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=5000, tol=1e-8))


def cross_validate(train: Recordings, penalty: float, folds: int = 5) -> tuple[float, float]:
    """Accuracy and log loss on the pure windows of held-out recordings; a recording is never on both sides."""
    accuracies, losses = [], []
    splitter = StratifiedKFold(folds, shuffle=True, random_state=SEED)
    for fold, (kept, held_out) in enumerate(splitter.split(train.classes, train.classes)):
        windows, classes = training_windows(train.take(kept), np.random.default_rng([SEED, fold]))
        fitted = classifier(penalty).fit(features_of(windows), classes)
        rng = np.random.default_rng([SEED, folds, fold])
        windows, classes = training_windows(train.take(held_out), rng)
        scores = fitted.predict_proba(features_of(windows))
        accuracies.append(float((scores.argmax(axis=1) == classes).mean()))
        losses.append(float(log_loss(classes, scores, labels=range(len(LABELS)))))
    return float(np.mean(accuracies)), float(np.mean(losses))


def build_model(fitted: Pipeline) -> onnx.ModelProto:
    """The features' graph and the fitted classifier as one graph: `window` [1, 100, 6] -> `scores` [1, 4]."""
    width = len(FEATURES) * len(CHANNELS)
    head = to_onnx(
        fitted,
        initial_types=[("features", FloatTensorType([1, width]))],
        target_opset={"": OPSET, "ai.onnx.ml": OPSET_ML},
        options={LogisticRegression: {"zipmap": False}},
    )
    head.ir_version = IR_VERSION
    model = compose.merge_models(
        feature_graph(1),
        compose.add_prefix(head, "head_"),
        io_map=[("features", "head_features")],
        outputs=["head_probabilities"],  # not the label: names are the manifest's
        name="activity",
    )
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "head_probabilities" else name for name in node.output]
    model.graph.output[0].name = "scores"
    del model.graph.value_info[:]
    del model.opset_import[:]  # merging leaves duplicates
    model.opset_import.extend([helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", OPSET_ML)])
    model.producer_name, model.producer_version, model.domain, model.doc_string = "tinymlops", "1.0.0", "", ""
    onnx.checker.check_model(model, full_check=True)
    return model


def report(title: str, scores: Floats, classes: Ints) -> None:
    """Print how a stream went. A mixed window has no right answer: for those, only the confidence is of interest."""
    pure = classes != MIXED
    right = scores.argmax(axis=1) == classes
    confidence = scores.max(axis=1)
    print(
        f"{title}: {right[pure].sum()} of {pure.sum()} pure windows right ({right[pure].mean():.3f}), "
        f"mean confidence {confidence[pure].mean():.3f}; "
        f"{(~pure).sum()} mixed windows, mean confidence {confidence[~pure].mean():.3f}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Choose the penalty by cross-validation, fit, export, and say how well it does."""
    parser = argparse.ArgumentParser(description="Train the activity model and export it to ONNX.")
    parser.add_argument("--data", type=Path, default=HERE / "data" / "basic_motions.npz")
    parser.add_argument("--output", type=Path, default=HERE / "model.onnx")
    options = parser.parse_args(arguments)
    train, test = load(options.data)

    found = {penalty: cross_validate(train, penalty) for penalty in PENALTIES}
    for penalty, (accuracy, loss) in found.items():
        print(f"cross-validation on the training recordings, C={penalty}: accuracy {accuracy:.3f}, log loss {loss:.3f}")
    penalty = min(candidate for candidate, (_, loss) in found.items() if loss <= LOSS_MAX)
    windows, classes = training_windows(train, np.random.default_rng(SEED))
    model = build_model(classifier(penalty).fit(features_of(windows), classes))
    options.output.write_bytes(model.SerializeToString(deterministic=True))
    print(f"C={penalty}: accuracy {found[penalty][0]:.3f} in cross-validation; {options.output.stat().st_size} bytes")

    stream, labels = test_stream(test)
    for title, samples in (("test stream", stream), ("test stream, watch worn differently", worn_differently(stream))):
        windows, classes = cut(samples, labels)
        report(title, run(model, windows), classes)


if __name__ == "__main__":
    main()
