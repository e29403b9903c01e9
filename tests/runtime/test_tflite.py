"""The TFLite backend beside the contract of all backends (test_backends.py), on whichever provider there is."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import tflite_models
from backend_cases import assert_close, fail_on_one_window, play, refused_without, require, run_child, windows
from hypothesis import given
from hypothesis import strategies as st
from tinylcm.backends import BackendSpec, open_backend
from tinylcm.backends.tflite_file import find_state
from tinylcm.errors import ModelError

TFLITE_MODELS = ("fc_int8", "fc_float", "two_by_two", "counter", "recurrent", "carried", "image_uint8")


@pytest.fixture
def tflite_engine() -> None:
    require(("tflite",))


def open_tflite(name: str, **spec: Any) -> Any:
    return open_backend("tflite", tflite_models.load(name), BackendSpec(**spec))


def test_the_tflite_provider_is_the_one_that_was_asked_for(tflite_engine: None) -> None:
    wanted = {"litert": "ai_edge_litert 2", "tflite_runtime": "tflite_runtime 2.14"}
    forced = os.environ.get("TINYLCM_TFLITE")
    provider = open_tflite("fc_int8").provider
    assert provider.startswith(wanted[forced] if forced else tuple(wanted.values()))


@pytest.mark.parametrize(
    ("asked", "column"),
    [("StatefulPartitionedCall:1", 1), ("StatefulPartitionedCall", 0), ("scores", 1), ("z", 0)],
)
def test_tflite_outputs_answer_to_short_names_and_to_the_signatures(
    asked: str, column: int, tflite_engine: None
) -> None:
    backend = open_tflite("fc_float", outputs=(asked,))
    inputs = windows(backend, 2)
    assert backend.outputs[0].name == asked
    assert_close(play(backend, inputs), [tflite_models.fc_float(inputs)[column]], 0)


def test_tflite_inputs_answer_to_the_signatures_names(tflite_engine: None) -> None:
    assert open_tflite("fc_float").inputs[0].name == "serving_default_x:0"
    assert open_tflite("fc_float", shapes={"x": (1, 3)}).inputs[0].name == "x"


def test_an_unknown_tflite_output_is_answered_with_names_types_and_shapes(tflite_engine: None) -> None:
    with pytest.raises(ModelError, match=r"no output 'other'; it has scores:0 int8 \[1, 4\]"):
        open_tflite("fc_int8", outputs=("other",))


def test_tflite_quantisation_is_the_models(tflite_engine: None) -> None:
    backend = open_tflite("fc_int8")
    assert (backend.inputs[0].scale, backend.inputs[0].zero_point) == (pytest.approx(0.05), -3)
    assert (backend.outputs[0].scale, backend.outputs[0].zero_point) == (pytest.approx(0.25), 5)
    assert open_tflite("fc_float").inputs[0].scale == 0


def test_a_tflite_input_without_open_dimensions_may_be_resized(tflite_engine: None) -> None:
    backend = open_tflite("two_by_two", shapes={"": (1, 6), "b": (1, 6)})
    inputs = windows(backend, 2)
    assert inputs[0].shape == (2, 6)
    assert_close(play(backend, inputs), tflite_models.two_by_two(inputs), 0)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("open_length", r"open shape \[-1, -1, 2\]; give `shape`"),
        ("batch_of_four", r"shape \[4, 3\], expected one window"),
        ("half", "'x' is float16, expected one of float32, int8"),
    ],
)
def test_a_tflite_input_that_cannot_hold_one_window_is_refused(name: str, why: str, tflite_engine: None) -> None:
    with pytest.raises(ModelError, match=why):
        open_tflite(name)


@pytest.mark.parametrize("value", [[1.0, 2.0], "text", [[1.0, 2.0, 3.0, "four"]]])
def test_a_tflite_constant_that_does_not_fit_is_refused(value: Any, tflite_engine: None) -> None:
    with pytest.raises(ModelError, match="constant 'b'"):
        open_tflite("two_by_two", constants={"b": value})


def test_tflite_state_that_is_stored_otherwise_is_refused(tflite_engine: None) -> None:
    with pytest.raises(ModelError, match=r"scale 0\.05, zero -3"):
        open_tflite("fc_int8", state=(("x", "scores"),))


def test_many_resets_of_a_tflite_stream_in_a_row(tflite_engine: None) -> None:
    backend = open_tflite("counter")
    for _ in range(50):
        backend.inputs[0].array[...] = 1
        backend.run()
        backend.run()
        assert backend.outputs[0].array.tolist() == [[2, 2]]
        backend.reset()


def test_a_tflite_stream_that_is_dropped_takes_its_thread_along(tflite_engine: None) -> None:
    threads = set(threading.enumerate())
    backends = [open_tflite("counter") for _ in range(3)]
    begun = set(threading.enumerate()) - threads
    assert len(begun) == 3
    del backends
    for thread in begun:
        thread.join(10)
        assert not thread.is_alive()


def test_a_tflite_model_that_the_engine_cannot_run_is_refused_in_one_line(tflite_engine: None) -> None:
    with pytest.raises(ModelError, match="Frobnicate") as refused:
        open_tflite("unknown_operator")
    assert "\n" not in str(refused.value)


def test_a_window_that_tflite_fails_on_is_a_model_error_and_the_next_one_runs(tflite_engine: None) -> None:
    fail_on_one_window(open_tflite("lookup"), 20)


def test_a_tflite_output_that_changes_its_shape_is_refused_and_not_repeated_to_fit(tflite_engine: None) -> None:
    backend = open_tflite("growing")
    assert backend.outputs[0].array.shape == (1, 3)
    backend.inputs[0].array[...] = [[0, -2]]
    with pytest.raises(ModelError, match=r"shape \[1, 1\] now, \[1, 3\] on zeros"):
        backend.run()


@pytest.mark.parametrize("forced", ["litert", "tflite_runtime", ""])
def test_a_missing_tflite_engine_names_the_extra(forced: str) -> None:
    print_error = refused_without("ai_edge_litert", "tflite_runtime", format="tflite")
    assert 'pip install "tinymlops[tflite]"' in run_child(print_error, TINYLCM_TFLITE=forced)


def test_an_unknown_tflite_provider_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYLCM_TFLITE", "tensorflow")
    with pytest.raises(ModelError, match="expected litert or tflite_runtime"):
        open_tflite("fc_int8")


def test_tflite_runtime_is_not_even_imported_under_numpy_2(tmp_path: Path) -> None:
    package = tmp_path / "tflite_runtime"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemError('imported')")
    code = "import numpy; numpy.__version__ = '2.4.6'" + refused_without("ai_edge_litert", format="tflite")
    said = run_child(code, TINYLCM_TFLITE="", PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert "numpy < 2" in said and 'pip install "tinymlops[litert]"' in said


@given(st.sampled_from(TFLITE_MODELS), st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), max_size=20))
def test_damage_to_a_tflite_file_is_refused_or_goes_unseen_but_never_runs_away(
    name: str, damage: list[tuple[int, int]]
) -> None:
    content = bytearray(tflite_models.load(name))
    for place, value in damage:
        content[8 + place % (len(content) - 8)] = value
    with contextlib.suppress(ModelError):
        find_state(bytes(content))


@pytest.mark.parametrize("name", TFLITE_MODELS)
def test_a_tflite_file_that_is_cut_off_anywhere_is_refused_before_an_engine_sees_it(name: str) -> None:
    content = tflite_models.load(name)
    for size in range(len(content)):
        with pytest.raises(ModelError, match=r"no TFLite model|damaged or cut off"):
            find_state(content[:size])


def tflite_of(count: int) -> bytes:
    """A file with `count` subgraphs, all of them the same one, with `count` tensors, all of them the same one."""

    def vector(gap: int) -> bytes:
        return struct.pack(f"<{count + 1}I", count, *(gap + 4 * (count - index) for index in range(count)))

    # Before each table (its distance to the layout, and an offset) lies its layout: sizes of both, places of fields.
    model = struct.pack("<I4s5H2xiI", 20, b"TFL3", 10, 8, 0, 0, 4, 12, 4) + vector(gap=8)
    graph = struct.pack("<3H2xiI", 6, 8, 4, 8, 4) + vector(gap=4)
    return model + graph + struct.pack("<2Hi", 4, 4, 4)


def test_a_tflite_file_that_goes_in_circles_is_refused() -> None:
    assert find_state(tflite_of(1)) == (False, False)
    with pytest.raises(ModelError, match="more tables than it has room for"):
        find_state(tflite_of(100))


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        (20, 1000, "before the file, to -978"),  # the root table's layout
        (24, 10_000, "unpack_from requires"),  # its vector of subgraphs
        (28, 1 << 30, "items at 28 end after the file"),  # their number
    ],
)
def test_a_tflite_file_that_points_astray_is_refused(place: int, value: int, why: str) -> None:
    content = bytearray(tflite_of(1))
    struct.pack_into("<I", content, place, value)
    with pytest.raises(ModelError, match=why):
        find_state(bytes(content))


def test_a_tflite_constant_that_ends_after_the_file_is_refused() -> None:
    content = tflite_models.load("fc_int8")
    weights = struct.pack("<I", 64) + struct.pack("<2b", -50, -13)
    assert content.count(weights) == 1
    with pytest.raises(ModelError, match="4096 items"):
        find_state(content.replace(weights, struct.pack("<I", 4096) + weights[4:]))


@pytest.mark.source_tree
def test_the_committed_tflite_models_are_what_their_script_writes(root: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("flatbuffers")
    script = root / "scripts" / "make_tflite.py"
    result = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
