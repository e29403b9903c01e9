"""The TFLite models of the tests, built from the schema without TensorFlow; tests/support/tflite_models.py says what
each computes.

    python scripts/make_tflite.py            # writes tests/data/*.tflite
    python scripts/make_tflite.py --check    # exits with 1 when the committed files are not what this would write

Needs `ai_edge_litert` and `flatbuffers`, which it brings.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "data"
TYPES = {
    "float16": schema.TensorType.FLOAT16,
    "float32": schema.TensorType.FLOAT32,
    "int32": schema.TensorType.INT32,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "resource": schema.TensorType.RESOURCE,
}
PLACEHOLDER = 127  # of operator codes that do not fit the old one-byte field


class Graph:
    """One subgraph: its tensors in the order in which they are added."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators = [], []
        self.graph.inputs, self.graph.outputs = [], []
        model.model.subgraphs.append(self.graph)

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str = "float32",
        *,
        data: NDArray[Any] | None = None,
        scale: float = 0.0,
        zero_point: int = 0,
        variable: bool = False,
    ) -> int:
        """Add a tensor; -1 in its shape is an open dimension. Returns its index."""
        tensor = schema.TensorT(name=name, type=TYPES[dtype], isVariable=variable)
        tensor.shape = [max(1, dim) for dim in shape]
        if -1 in shape:
            tensor.shapeSignature = list(shape)
        tensor.buffer = 0 if data is None else self._model.buffer(data)
        if scale:
            tensor.quantization = schema.QuantizationParametersT(scale=[scale], zeroPoint=[zero_point])
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def operator(self, name: str, inputs: Sequence[int], outputs: Sequence[int], options: Any = None) -> None:
        """Add an operator by its name in the schema."""
        operator = schema.OperatorT(opcodeIndex=self._model.code(name), inputs=list(inputs), outputs=list(outputs))
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self.graph.operators.append(operator)


class Model:
    """A model under construction."""

    def __init__(self) -> None:
        self.model = schema.ModelT(version=3, operatorCodes=[], subgraphs=[], buffers=[schema.BufferT()])
        self.model.signatureDefs = []

    def buffer(self, data: NDArray[Any]) -> int:
        """Add a constant's bytes."""
        content = np.frombuffer(np.ascontiguousarray(data).tobytes(), dtype=np.uint8)
        self.model.buffers.append(schema.BufferT(data=content))
        return len(self.model.buffers) - 1

    def code(self, name: str) -> int:
        """Index of an operator's code, added when it is new."""
        wanted = getattr(schema.BuiltinOperator, name)
        for index, code in enumerate(self.model.operatorCodes):
            if code.builtinCode == wanted:
                return index
        code = schema.OperatorCodeT(builtinCode=wanted, deprecatedBuiltinCode=min(wanted, PLACEHOLDER))
        self.model.operatorCodes.append(code)
        return len(self.model.operatorCodes) - 1

    def sign(self, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> None:
        """Add the signature by which converters name inputs and outputs."""
        taken = [schema.TensorMapT(name=name, tensorIndex=index) for name, index in inputs.items()]
        given = [schema.TensorMapT(name=name, tensorIndex=index) for name, index in outputs.items()]
        self.model.signatureDefs.append(schema.SignatureDefT(taken, given, "serving_default", 0))

    def pack(self) -> bytes:
        """The file's bytes."""
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def fc_int8() -> bytes:
    """A quantised dense layer, int8 `[1, 16]` to int8 `[1, 4]`."""
    model = Model()
    graph = Graph(model)
    weights = (np.arange(64).reshape(4, 16) * 37 % 101 - 50).astype(np.int8)
    x = graph.tensor("x:0", [1, 16], "int8", scale=0.05, zero_point=-3)
    w = graph.tensor("w", [4, 16], "int8", data=weights, scale=0.02)
    bias = np.array([100, -200, 300, -400], dtype=np.int32)
    b = graph.tensor("b", [4], "int32", data=bias, scale=0.05 * 0.02)
    y = graph.tensor("scores:0", [1, 4], "int8", scale=0.25, zero_point=5)
    graph.operator("FULLY_CONNECTED", [x, w, b], [y], schema.FullyConnectedOptionsT())
    graph.graph.inputs, graph.graph.outputs = [x], [y]
    return model.pack()


def fc_float() -> bytes:
    """softmax(x W + b) with an open batch axis, float32 `[?, 3]` to `[?, 2]`; also its logits."""
    model = Model()
    graph = Graph(model)
    weights = np.random.default_rng(3).standard_normal((3, 2)).astype(np.float32)
    x = graph.tensor("serving_default_x:0", [-1, 3])
    w = graph.tensor("w", [2, 3], data=weights.T)
    b = graph.tensor("b", [2], data=np.zeros(2, dtype=np.float32))
    z = graph.tensor("StatefulPartitionedCall:0", [-1, 2])
    y = graph.tensor("StatefulPartitionedCall:1", [-1, 2])
    graph.operator("FULLY_CONNECTED", [x, w, b], [z], schema.FullyConnectedOptionsT())
    graph.operator("SOFTMAX", [z], [y], schema.SoftmaxOptionsT(beta=1.0))
    graph.graph.inputs, graph.graph.outputs = [x], [z, y]
    model.sign({"x": x}, {"z": z, "scores": y})
    return model.pack()


def flat_classifier(samples: int, channels: int, labels: int) -> bytes:
    """softmax(W x) of a flattened window, float32 `[1, samples, channels]` to `[1, labels]`; for the benchmarks."""
    model = Model()
    graph = Graph(model)
    weights = np.random.default_rng(4).standard_normal((labels, samples * channels)).astype(np.float32)
    x = graph.tensor("x", [1, samples, channels])
    w = graph.tensor("w", weights.shape, data=weights)
    b = graph.tensor("b", [labels], data=np.zeros(labels, dtype=np.float32))
    z, y = graph.tensor("z", [1, labels]), graph.tensor("scores", [1, labels])
    graph.operator("FULLY_CONNECTED", [x, w, b], [z], schema.FullyConnectedOptionsT())
    graph.operator("SOFTMAX", [z], [y], schema.SoftmaxOptionsT(beta=1.0))
    graph.graph.inputs, graph.graph.outputs = [x], [y]
    return model.pack()


def two_by_two() -> bytes:
    """Sum and difference of two inputs float32 `[1, 4]`."""
    model = Model()
    graph = Graph(model)
    a, b, total, difference = (graph.tensor(name, [1, 4]) for name in ("a", "b", "sum", "difference"))
    graph.operator("ADD", [a, b], [total], schema.AddOptionsT())
    graph.operator("SUB", [a, b], [difference], schema.SubOptionsT())
    graph.graph.inputs, graph.graph.outputs = [a, b], [total, difference]
    return model.pack()


def counter() -> bytes:
    """Sum of all windows so far in a resource variable, as streaming models keep theirs; float32 `[1, 2]`."""
    model = Model()
    main, start = Graph(model), Graph(model)
    options = schema.VarHandleOptionsT(container="", sharedName="total")
    zeros = start.tensor("zeros", [1, 2], data=np.zeros((1, 2), dtype=np.float32))
    handle = start.tensor("handle", [], "resource")
    start.operator("VAR_HANDLE", [], [handle], options)
    start.operator("ASSIGN_VARIABLE", [handle, zeros], [], schema.AssignVariableOptionsT())
    x = main.tensor("x", [1, 2])
    handle = main.tensor("handle", [], "resource")
    before, after = main.tensor("before", [1, 2]), main.tensor("total", [1, 2])
    main.operator("CALL_ONCE", [], [], schema.CallOnceOptionsT(initSubgraphIndex=1))
    main.operator("VAR_HANDLE", [], [handle], options)
    main.operator("READ_VARIABLE", [handle], [before], schema.ReadVariableOptionsT())
    main.operator("ADD", [before, x], [after], schema.AddOptionsT())
    main.operator("ASSIGN_VARIABLE", [handle, after], [], schema.AssignVariableOptionsT())
    main.graph.inputs, main.graph.outputs = [x], [after]
    return model.pack()


def recurrent() -> bytes:
    """The same sum in a variable tensor, as a fused recurrent layer keeps its state; float32 `[1, 1, 2]`."""
    model = Model()
    graph = Graph(model)
    unit = np.eye(2, dtype=np.float32)
    x = graph.tensor("x", [1, 1, 2])
    weights, recurrence = (graph.tensor(name, [2, 2], data=unit) for name in ("weights", "recurrence"))
    bias = graph.tensor("bias", [2], data=np.zeros(2, dtype=np.float32))
    state = graph.tensor("state", [1, 2], variable=True)
    y = graph.tensor("total", [1, 1, 2])
    inputs = [x, weights, recurrence, bias, state]
    graph.operator("UNIDIRECTIONAL_SEQUENCE_RNN", inputs, [y], schema.SequenceRNNOptionsT())
    graph.graph.inputs, graph.graph.outputs = [x], [y]
    return model.pack()


def carried() -> bytes:
    """The same sum with its state as input and output, int8 with a zero point of 10; `[?, 2]`."""
    model = Model()
    graph = Graph(model)
    x, state, total = (
        graph.tensor(name, [-1, 2], "int8", scale=0.5, zero_point=10) for name in ("x", "state", "total")
    )
    graph.operator("ADD", [x, state], [total], schema.AddOptionsT())
    graph.graph.inputs, graph.graph.outputs = [x, state], [total]
    return model.pack()


def image_uint8() -> bytes:
    """Mean colour of an image, uint8 `[1, 8, 8, 3]` to `[1, 3]`."""
    model = Model()
    graph = Graph(model)
    scale = 1 / 255
    x = graph.tensor("image", [1, 8, 8, 3], "uint8", scale=scale)
    pooled = graph.tensor("pooled", [1, 1, 1, 3], "uint8", scale=scale)
    shape = graph.tensor("shape", [2], "int32", data=np.array([1, 3], dtype=np.int32))
    y = graph.tensor("colour", [1, 3], "uint8", scale=scale)
    options = schema.Pool2DOptionsT(padding=schema.Padding.VALID, strideW=8, strideH=8, filterWidth=8, filterHeight=8)
    graph.operator("AVERAGE_POOL_2D", [x], [pooled], options)
    graph.operator("RESHAPE", [pooled, shape], [y], schema.ReshapeOptionsT(newShape=[1, 3]))
    graph.graph.inputs, graph.graph.outputs = [x], [y]
    return model.pack()


def fixed_inside() -> bytes:
    """An open batch axis outside and a reshape to one window inside, as some converters leave it; `[?, 3]`."""
    model = Model()
    graph = Graph(model)
    x, y = graph.tensor("x", [-1, 3]), graph.tensor("y", [1, 3])
    shape = graph.tensor("shape", [2], "int32", data=np.array([1, 3], dtype=np.int32))
    graph.operator("RESHAPE", [x, shape], [y], schema.ReshapeOptionsT(newShape=[1, 3]))
    graph.graph.inputs, graph.graph.outputs = [x], [y]
    return model.pack()


def open_length() -> bytes:
    """Twice the input, of any number of samples of 2 channels; float32 `[?, ?, 2]`."""
    model = Model()
    graph = Graph(model)
    x, y = graph.tensor("x", [-1, -1, 2]), graph.tensor("y", [-1, -1, 2])
    graph.operator("ADD", [x, x], [y], schema.AddOptionsT())
    graph.graph.inputs, graph.graph.outputs = [x], [y]
    return model.pack()


def batch_of_four() -> bytes:
    """Twice the input, of four windows and no fewer; float32 `[4, 3]`."""
    model = Model()
    graph = Graph(model)
    x, y = graph.tensor("x", [4, 3]), graph.tensor("y", [4, 3])
    graph.operator("ADD", [x, x], [y], schema.AddOptionsT())
    graph.graph.inputs, graph.graph.outputs = [x], [y]
    return model.pack()


def half() -> bytes:
    """An input of a type that windows are not kept in; float16 `[1, 2]`."""
    model = Model()
    graph = Graph(model)
    x, y = graph.tensor("x", [1, 2], "float16"), graph.tensor("y", [1, 2])
    options = schema.CastOptionsT(inDataType=TYPES["float16"], outDataType=TYPES["float32"])
    graph.operator("CAST", [x], [y], options)
    graph.graph.inputs, graph.graph.outputs = [x], [y]
    return model.pack()


def lookup() -> bytes:
    """10, 20, 30 or 40 by indices int32 `[1, 2]`; others make it fail while it runs."""
    model = Model()
    graph = Graph(model)
    table = graph.tensor("table", [4], data=np.array([10, 20, 30, 40], dtype=np.float32))
    x, y = graph.tensor("x", [1, 2], "int32"), graph.tensor("y", [1, 2])
    graph.operator("GATHER", [table, x], [y], schema.GatherOptionsT(axis=0))
    graph.graph.inputs, graph.graph.outputs = [x], [y]
    return model.pack()


def growing() -> bytes:
    """A value repeated 3 + n times for n in an input int32 `[1, 2]`, `[0, n]`: the output's shape depends on it."""
    model = Model()
    graph = Graph(model)
    value = graph.tensor("value", [1, 1], data=np.array([[7]], dtype=np.float32))
    shape = graph.tensor("shape", [1], "int32", data=np.array([2], dtype=np.int32))
    least = graph.tensor("least", [2], "int32", data=np.array([1, 3], dtype=np.int32))
    x, flat = graph.tensor("x", [1, 2], "int32"), graph.tensor("flat", [2], "int32")
    times, y = graph.tensor("times", [2], "int32"), graph.tensor("y", [1, 1])
    graph.operator("RESHAPE", [x, shape], [flat], schema.ReshapeOptionsT(newShape=[2]))
    graph.operator("ADD", [flat, least], [times], schema.AddOptionsT())
    graph.operator("TILE", [value, times], [y], schema.TileOptionsT())
    graph.graph.inputs, graph.graph.outputs = [x], [y]
    return model.pack()


def unknown_operator() -> bytes:
    """A model that no runtime knows how to run."""
    model = Model()
    graph = Graph(model)
    x, y = graph.tensor("x", [1, 3]), graph.tensor("y", [1, 3])
    graph.operator("CUSTOM", [x], [y])
    model.model.operatorCodes[0].customCode = "Frobnicate"
    graph.graph.inputs, graph.graph.outputs = [x], [y]
    return model.pack()


MODELS = (
    fc_int8,
    fc_float,
    two_by_two,
    counter,
    recurrent,
    carried,
    image_uint8,
    fixed_inside,
    open_length,
    batch_of_four,
    half,
    lookup,
    growing,
    unknown_operator,
)


def main(arguments: Sequence[str]) -> int:
    """Write the models, or compare them with what is there."""
    different = []
    for make in MODELS:
        path, content = FOLDER / f"{make.__name__}.tflite", make()
        if "--check" not in arguments:
            path.write_bytes(content)
        elif not path.exists() or path.read_bytes() != content:
            different.append(path.name)
    if different:
        print(f"not what scripts/make_tflite.py writes: {', '.join(different)}", file=sys.stderr)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
