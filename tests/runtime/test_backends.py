"""The contract of `tinylcm.backends.Backend`, run over every backend: a new one adds its cases to
tests/support/backend_cases.py and gets these tests.

With TINYLCM_TFLITE set, the TFLite cases run on that provider or fail; scripts/tflite_runtime.sh does so.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from backend_cases import CASES, STATEFUL, Case, assert_close, equal, play, refused_without, require, run_child, windows
from tinylcm.backends import formats, open_backend
from tinylcm.errors import ModelError

WINDOWS = 7
MANY = 150  # more than any backend takes in one call
GROWTH_MAX = 8  # blocks between run 1,000 and run 10,000: free lists fill within the first hundreds
EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "backend"


@pytest.fixture(scope="session")
def plug_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example package, installed into a folder of its own."""
    pytest.importorskip("setuptools")
    source = tmp_path_factory.mktemp("source") / "backend"
    shutil.copytree(EXAMPLE, source)  # setuptools leaves its traces where it builds
    target = tmp_path_factory.mktemp("site")
    options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--no-index", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return target


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    found = CASES[request.param]
    require(found.needs)
    if "plug-in" in found.needs:
        monkeypatch.syspath_prepend(str(request.getfixturevalue("plug_in")))
    yield found


# the contract ---------------------------------------------------------------------------------------------


def test_tensors_are_contiguous_hold_one_window_and_begin_as_zeros(case: Case) -> None:
    backend = case.open()
    assert backend.inputs and backend.outputs
    for tensor in (*backend.inputs, *backend.outputs):
        assert tensor.name
        assert tensor.array.flags.c_contiguous and tensor.array.flags.writeable and tensor.array.shape[0] == 1
        assert tensor.scale >= 0
    assert not any(tensor.array.any() for tensor in backend.inputs)


def test_a_run_gives_what_the_oracle_gives_also_again_after_a_reset(case: Case) -> None:
    backend = case.open()
    inputs = windows(backend, WINDOWS)
    first = play(backend, inputs)
    assert_close(first, case.oracle(inputs), case.quanta)
    backend.reset()
    assert equal(play(backend, inputs), first)


def test_a_run_writes_into_the_arrays_that_were_bound(case: Case) -> None:
    backend = case.open()
    arrays = [tensor.array for tensor in (*backend.inputs, *backend.outputs)]
    inputs = windows(backend, 3)
    play(backend, inputs)
    backend.reset()
    results = play(backend, inputs)
    backend.run_many(inputs)
    assert all(tensor.array is array for tensor, array in zip((*backend.inputs, *backend.outputs), arrays, strict=True))
    backend.reset()
    play(backend, inputs)
    assert equal([array[0] for array in arrays[len(inputs) :]], [result[-1] for result in results])


def test_a_run_leaves_its_inputs_as_they_are(case: Case) -> None:
    backend = case.open()
    inputs = windows(backend, 1)
    play(backend, inputs)
    assert equal([tensor.array for tensor in backend.inputs], inputs)


@pytest.mark.parametrize("count", [1, 2, WINDOWS, MANY])
def test_many_windows_at_once_are_those_windows_one_by_one(case: Case, count: int) -> None:
    backend = case.open()
    inputs = windows(backend, count)
    expected = play(backend, inputs)
    for _ in range(2):
        backend.reset()
        found = backend.run_many(inputs)
        assert [result.dtype for result in found] == [tensor.array.dtype for tensor in backend.outputs]
        assert_close(found, expected, case.quanta)
    assert not any(np.shares_memory(result, tensor.array) for result in found for tensor in backend.outputs)


def test_no_windows_give_no_results(case: Case) -> None:
    backend = case.open()
    found = backend.run_many(windows(backend, 0))
    assert [result.shape for result in found] == [(0, *tensor.array.shape[1:]) for tensor in backend.outputs]


@pytest.mark.parametrize("name", CASES)
def test_only_what_keeps_state_says_so_and_reset_makes_it_forget(
    name: str, plug_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require(CASES[name].needs)
    monkeypatch.syspath_prepend(str(plug_in))
    backend = CASES[name].open()
    assert backend.stateful == (name in STATEFUL)
    inputs = windows(backend, WINDOWS)
    first, second = play(backend, inputs), play(backend, inputs)
    assert equal(first, second) != backend.stateful
    for _ in range(3):
        backend.reset()
        assert equal(play(backend, inputs), first)


def test_outputs_come_by_name_and_in_the_order_asked_for(case: Case) -> None:
    backend = case.open()
    names = [tensor.name for tensor in backend.outputs]
    inputs = windows(backend, 2)
    results = dict(zip(names, play(backend, inputs), strict=True))
    for asked in (names[::-1], names[-1:]):
        other = case.open(outputs=tuple(asked))
        assert [tensor.name for tensor in other.outputs] == asked
        assert equal(play(other, inputs), [results[name] for name in asked])


def test_an_output_that_is_not_there_is_refused_with_those_that_are(case: Case) -> None:
    name = case.open().outputs[0].name
    with pytest.raises(ModelError, match="nothing_such") as refused:
        case.open(outputs=("nothing_such",))
    assert name.split(":")[0] in str(refused.value)


def test_inputs_that_are_not_there_are_refused(case: Case) -> None:
    for wrong in (
        {"shapes": {"nothing_such": (1, 3)}},
        {"constants": {"nothing_such": 1}},
        {"state": (("nothing_such", case.open().outputs[0].name),)},
    ):
        with pytest.raises(ModelError):
            case.open(**wrong)


def test_shapes_that_do_not_fit_are_refused(case: Case) -> None:
    for shape in case.wrong_shapes:
        with pytest.raises(ModelError):
            case.open(shapes={"": shape})


def test_the_shape_it_has_anyway_may_be_said(case: Case) -> None:
    backend = case.open()
    inputs = windows(backend, 2)
    said = case.open(shapes={"": backend.inputs[0].array.shape})
    assert equal(play(said, inputs), play(backend, inputs))


def test_bytes_that_are_no_whole_model_are_refused(case: Case) -> None:
    model = case.model()
    damaged = [b"", b"\0", b"junk" * 100, bytes(1000), np.random.default_rng(1).bytes(1000)]
    damaged += [model[: len(model) * part // 10] for part in range(1, 10)]
    for content in damaged:
        with pytest.raises(ModelError):
            open_backend(case.format, content, case.spec)


def test_ten_thousand_runs_leave_no_block_of_memory_behind(case: Case) -> None:
    backend = case.open()
    play(backend, windows(backend, 1))
    gc.collect()
    gc.disable()
    try:
        for _ in range(1_000):
            backend.run()
        before = sys.getallocatedblocks()
        for _ in range(9_000):
            backend.run()
        assert sys.getallocatedblocks() - before <= GROWTH_MAX
    finally:
        gc.enable()


def test_two_backends_of_one_model_share_nothing(case: Case) -> None:
    one, other = case.open(), case.open()
    inputs = windows(one, 2)
    first = play(one, inputs)
    assert not any(tensor.array.any() for tensor in other.inputs)
    play(one, inputs)
    assert equal(play(other, inputs), first)
    mine, yours = ([tensor.array for tensor in (*it.inputs, *it.outputs)] for it in (one, other))
    assert not any(np.shares_memory(a, b) for a in mine for b in yours)


def test_two_threads_compute_the_same(case: Case) -> None:
    one, two = case.open(), case.open(threads=2)
    inputs = windows(one, 3)
    assert_close(play(two, inputs), play(one, inputs), case.quanta)


# finding a backend ----------------------------------------------------------------------------------------


def test_a_missing_onnx_engine_names_the_extra() -> None:
    assert 'pip install "tinymlops[onnx]"' in run_child(refused_without("onnxruntime", format="onnx"))


def test_a_format_that_nobody_knows_is_refused_with_those_that_are() -> None:
    with pytest.raises(ModelError, match=r"'frobnicate' is not supported here; supported: .*onnx.*tflite"):
        open_backend("frobnicate", b"")


def test_an_installed_package_adds_its_format(plug_in: Path) -> None:
    code = """
import json
from tinylcm.backends import formats, open_backend
backend = open_backend("threshold", b'{"channel": 0, "threshold": 1, "labels": 2}')
backend.inputs[0].array[...] = 3
backend.run()
print(json.dumps([formats(), backend.outputs[0].array.tolist()]))
"""
    path = os.pathsep.join(filter(None, [str(plug_in), os.environ.get("PYTHONPATH")]))
    known, scores = json.loads(run_child(code, PYTHONPATH=path))
    assert "threshold" in known and scores == [[0, 1]]
    assert "threshold" not in formats()


def test_a_package_whose_backend_cannot_be_imported_is_a_model_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[tinylcm.backends]\nbroken = broken_backend:open\n")
    (tmp_path / "broken_backend.py").write_text("raise OSError('libengine.so: not found')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match=r"'broken'.*libengine\.so: not found"):
        open_backend("broken", b"")
