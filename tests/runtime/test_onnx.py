"""What only the ONNX backend has: the engine's own call, and what becomes of its errors."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import onnx
from backend_cases import fail_on_one_window
from models import linear_model
from onnx import TensorProto, helper, numpy_helper
from tinylcm.backends import BackendSpec, open_backend
from tinylcm.backends import onnx as backends_onnx


def lookup_model() -> bytes:
    """Rows of a table of four: an index beyond is the engine's error at that window."""
    table = numpy_helper.from_array(np.arange(0, 40, 10, dtype=np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["scores"])],
        "lookup",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [1, 2])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 2])],
        [table],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def test_a_window_that_onnx_fails_on_is_a_model_error_and_the_next_one_runs() -> None:
    fail_on_one_window(open_backend("onnx", lookup_model(), BackendSpec()), 10)


def test_the_documented_call_serves_where_the_short_one_is_not_found() -> None:
    called = []

    class Session:
        def run_with_iobinding(self, binding: object) -> None:
            called.append(binding)

    backends_onnx._call_of(Session(), "binding")()  # type: ignore[arg-type]
    assert called == ["binding"]


def test_this_version_of_the_engine_has_the_short_call() -> None:
    backend = open_backend("onnx", linear_model(), BackendSpec())
    assert isinstance(backend, backends_onnx.OnnxBackend)
    assert hasattr(backend._session._sess, "run_with_iobinding")
    assert hasattr(backend._binding, "_iobinding")


def test_a_session_goes_with_its_last_user_and_needs_no_collection() -> None:
    gc.collect()
    gc.disable()
    try:
        backend = open_backend("onnx", linear_model(), BackendSpec())
        backend.run()
        gone = weakref.ref(backend)
        del backend
        assert gone() is None
    finally:
        gc.enable()
