"""Packages and files of every kind, as a user runs them."""

from __future__ import annotations

import asyncio
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from backend_cases import require
from kinds import counter, open_batch_model, packaged, pixels_model, save, two_inputs, value, windowed
from models import linear_model, make_signer, trust_of
from onnx import helper
from tflite_models import load
from tinylcm import ConfigError, InputError, ModelError, Options, Pipeline
from tinylcm.backends.knn import knn_arrays
from tinylcm.backends.linear import linear_arrays, pca_arrays, scaler_arrays
from tinylcm.drift import BinnedKS
from tinylcm.monitors import watch
from tinylcm.package import parse_package
from tinylcm.publish import build
from tinylcm.window import Lost


def test_a_model_of_several_inputs_takes_a_mapping_and_gives_further_outputs() -> None:
    pipeline = Pipeline(two_inputs())
    prediction = pipeline.infer({"a": [2.0], "b": [3.0]})
    assert prediction.scores == (50.0, -10.0)
    assert prediction.outputs is not None and prediction.outputs["product"].tolist() == [[6.0]]
    again = pipeline.infer({"a": [1.0], "b": [1.0]})
    assert prediction.outputs["product"].tolist() == [[6.0]]  # a copy, not the model's own memory
    assert again.scores == (20.0, 0.0)
    many = pipeline.infer_many([{"a": [float(i)], "b": [1.0]} for i in range(5)])
    assert [one.scores[0] for one in many] == [10.0 * (i + 1) for i in range(5)]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([2.0], "takes a mapping with a, b, got list"),
        ({"a": [2.0]}, "takes a mapping with a, b, got a mapping of a"),
        ({"a": [2.0], "b": [1.0], "c": [1.0]}, "a mapping of a, b, c"),
        ({"a": [2.0], "b": [1.0, 2.0]}, r"'b': expected shape \[1\]"),
        ({"a": [2.0], "b": [float("nan")]}, "'b': a value is NaN"),
        ({"a": [float("inf")], "b": [1.0]}, r"'a': the value at \[0\]"),
        ({"a": ["x"], "b": [1.0]}, "'a': expected float32"),
    ],
)
def test_wrong_inputs_are_named(x: object, message: str) -> None:
    pipeline = Pipeline(two_inputs())
    with pytest.raises(InputError, match=message):
        pipeline.infer(x)
    assert pipeline.infer({"a": [1], "b": [1]}).scores[0] == 20.0


def test_a_model_of_several_inputs_has_no_stream() -> None:
    with pytest.raises(ConfigError, match="takes several inputs"):
        list(Pipeline(two_inputs()).stream([[1.0]]))


def test_every_input_must_be_accounted_for() -> None:
    with pytest.raises(ModelError, match="also takes b: declare each"):
        Pipeline(two_inputs(inputs=[], outputs=[]))
    with pytest.raises(ModelError, match="no input 'z'"):
        Pipeline(two_inputs(inputs=[{"name": "b", "shape": [1, 1]}, {"name": "z", "shape": [1]}]))
    with pytest.raises(ModelError, match=r"'b' is float32 \[1, 1\] in the model"):
        Pipeline(two_inputs(inputs=[{"name": "b", "shape": [1, 1], "dtype": "int32"}]))
    with pytest.raises(ModelError, match="no output 'nowhere'"):
        Pipeline(two_inputs(outputs=["nowhere"]))


def test_explicit_state_goes_from_window_to_window_and_begins_anew_with_a_stream_and_after_a_gap() -> None:
    pipeline = Pipeline(counter())
    assert [pipeline.infer([1.0]).scores[0] for _ in range(3)] == [1.0, 2.0, 3.0]
    pipeline.reset()
    assert pipeline.infer([5.0]).scores[0] == 5.0
    rows: list[object] = [[1.0]] * 3 + [[float("nan")]] + [[1.0]] * 2
    sums = [p.scores[0] for p in pipeline.stream(rows, on_error=lambda error: None)]
    assert sums == [1.0, 2.0, 3.0, 1.0, 2.0]
    many = pipeline.infer_many([[1.0], [1.0]])
    assert [p.scores[0] for p in many] == [3.0, 4.0]


def test_a_model_with_state_serves_the_stream_that_came_last() -> None:
    pipeline = Pipeline(counter())
    first = pipeline.stream([[1.0]] * 5)
    assert next(first).scores[0] == 1.0
    second = pipeline.stream([[1.0]] * 5)
    assert next(second).scores[0] == 1.0
    with pytest.raises(ConfigError, match="another stream has taken it over"):
        next(first)
    assert next(second).scores[0] == 2.0


def test_state_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match="no input 'k'"):
        Pipeline(counter(state=[{"input": "k", "output": "hn"}]))
    with pytest.raises(ModelError, match=r"state 'h' is float32 \[1, 1\]"):
        Pipeline(counter(state=[{"input": "h", "output": "scores"}]))


def test_an_open_batch_is_computed_in_one_call_and_gives_what_single_windows_give(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(open_batch_model())
    windows = np.random.default_rng(0).standard_normal((150, 3)).astype(np.float32)
    one, many = Pipeline(path), Pipeline(path)
    expected = [one.infer(window).scores for window in windows]
    found = many.infer_many(windows)
    assert np.allclose([p.scores for p in found], expected, atol=1e-6)
    assert many.predictions == 150 and len({p.id for p in found}) == 150
    assert many.infer_many([]) == []
    bad = windows.copy()
    bad[70, 1] = np.nan
    with pytest.raises(InputError, match=r"window 70: .*\[1\]"):
        many.infer_many(bad)


def test_infer_many_feeds_the_monitors_their_own_windows() -> None:
    rng = np.random.default_rng(2)
    reference = rng.normal(0, 1, 2000)
    edges = np.quantile(reference, np.linspace(0, 1, 9))
    edges[0], edges[-1] = -10, 10

    def make() -> Pipeline:
        detector = BinnedKS([edges] * 2, [[250] * 8] * 2, threshold=0.3, window=40)
        return Pipeline(windowed(5, 2), monitors=[watch("input", detector)])

    windows = np.concatenate([rng.normal(0, 1, (60, 5, 2)), rng.normal(3, 1, (60, 5, 2))]).astype(np.float32)
    one, many = make(), make()
    single = [len(one.infer(window).drift) for window in windows]
    assert [len(p.drift) for p in many.infer_many(windows)] == single
    assert sum(single) == 1 and single.index(1) >= 60


def chain_members(rng: np.random.Generator) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
    parts = {
        "mean": rng.standard_normal(6),
        "scale": rng.uniform(0.5, 2, 6),
        "pca_mean": rng.standard_normal(6),
        "components": rng.standard_normal((3, 6)),
        "vectors": rng.standard_normal((40, 3)),
        "labels": rng.integers(0, 2, 40),
    }
    members = {
        "stage0.onnx": save([helper.make_node("Relu", ["x"], ["y"])], [value("x", [1, 6])], [value("y", [1, 6])], {}),
        "stage1.npz": scaler_arrays(parts["mean"], parts["scale"]),
        "stage2.npz": pca_arrays(parts["pca_mean"], parts["components"]),
        "stage3.npz": knn_arrays(parts["vectors"], parts["labels"], k=5),
    }
    return members, parts


CHAIN = {
    "format": "chain",
    "input": {"name": "x", "shape": [1, 6]},
    "stages": [
        {"name": "features", "format": "onnx"},
        {"name": "scaler", "format": "scaler"},
        {"name": "pca", "format": "pca"},
        {"name": "head", "format": "knn"},
    ],
}


def test_a_chain_of_stages_is_one_package_and_one_prediction() -> None:
    rng = np.random.default_rng(5)
    members, parts = chain_members(rng)
    pipeline = Pipeline(packaged(CHAIN, members, embedding="pca", outputs=[]))
    for x in rng.standard_normal((30, 6)).astype(np.float32):
        projected = ((np.maximum(x, 0) - parts["mean"]) / parts["scale"] - parts["pca_mean"]) @ parts["components"].T
        nearest = np.argsort(np.linalg.norm(parts["vectors"] - projected, axis=1))[:5]
        votes = np.bincount(parts["labels"][nearest], minlength=2) / 5
        prediction = pipeline.infer(x)
        assert prediction.scores == pytest.approx(votes, abs=1e-6)
        assert prediction.stages_us is not None and len(prediction.stages_us) == 4
    assert [len(p.scores) for p in pipeline.infer_many(rng.standard_normal((7, 6)))] == [2] * 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": "nowhere"}, "no stage 'nowhere'"),
        ({"output": "votes"}, "stage 'head': .*no output 'votes'"),
        ({"stages": [CHAIN["stages"][0], CHAIN["stages"][2]]}, "the package has no|stage 'pca'"),
        ({"input": {"name": "x", "shape": [1, 5]}}, "shape"),
    ],
)  # type: ignore[index]
def test_a_chain_that_does_not_fit_together_says_where(change: dict, message: str) -> None:
    members, _ = chain_members(np.random.default_rng(5))
    with pytest.raises(ModelError, match=message):
        Pipeline(packaged(CHAIN, members, **change))


def test_stages_of_different_sizes_are_refused() -> None:
    members, _ = chain_members(np.random.default_rng(5))
    members["stage1.npz"] = scaler_arrays(np.zeros(5), np.ones(5))
    with pytest.raises(ModelError, match=r"'features' gives \[1, 6\], stage 'scaler' takes \[1, 5\]"):
        Pipeline(packaged(CHAIN, members))


def test_a_chain_is_built_from_a_folder_and_checks_itself_against_golden_windows(tmp_path: Path) -> None:
    from tinylcm.keys import init_keys

    members, _ = chain_members(np.random.default_rng(5))
    folder = tmp_path / "stages"
    folder.mkdir()
    for name, data in members.items():
        (folder / name).write_bytes(data)
    init_keys(tmp_path / "keys")
    stages = "".join(f'[[stages]]\nname = "{s["name"]}"\nformat = "{s["format"]}"\n' for s in CHAIN["stages"])  # type: ignore[index]
    (tmp_path / "model.toml").write_text(
        'name = "c"\nversion = "1"\nformat = "chain"\noutput = "scores"\nlabels = ["a", "b"]\n'
        f'{stages}[input]\nname = "x"\nshape = [1, 6]\n[window]\nsamples = 1\n'
    )
    package = parse_package(build(folder, tmp_path / "model.toml", tmp_path / "keys" / "release.key"), None)
    assert package.manifest.golden is not None and package.manifest.golden.count == 4
    (folder / "stage2.npz").unlink()
    with pytest.raises(ConfigError, match=r"has no stage2\.npz"):
        build(folder, tmp_path / "model.toml", tmp_path / "keys" / "release.key")
    with pytest.raises(ConfigError, match="from a folder"):
        build(folder / "stage0.onnx", tmp_path / "model.toml", tmp_path / "keys" / "release.key")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (knn_arrays(np.eye(4), [0, 1, 0, 1], k=1), "knn"),
        (linear_arrays(np.eye(4), np.zeros(4)), "linear"),
    ],
)
def test_plain_files_of_arrays_say_what_they_are(tmp_path: Path, data: bytes, kind: str) -> None:
    (tmp_path / "head.npz").write_bytes(data)
    pipeline = Pipeline(tmp_path / "head.npz")
    assert pipeline.manifest.format == kind
    assert pipeline.infer([0.0, 1.0, 0.0, 0.0]).label == "1"


def test_plain_files_of_no_known_kind_say_so(tmp_path: Path) -> None:
    (tmp_path / "what.npz").write_bytes(scaler_arrays([0.0], [1.0]))
    with pytest.raises(ConfigError, match="name its `format`"):
        Pipeline(tmp_path / "what.npz")
    assert Pipeline(tmp_path / "what.npz", format="scaler").infer([3.0]).scores == (3.0,)
    (tmp_path / "p.tlm").write_bytes(b"")
    with pytest.raises(ConfigError, match="load_package"):
        Pipeline(tmp_path / "p.tlm")
    (tmp_path / "m.onnx").write_bytes(linear_model())
    with pytest.raises(ModelError, match=r"'frob' is not supported here; supported: .*onnx"):
        Pipeline(tmp_path / "m.onnx", format="frob")


def uint8_package(**changes: object) -> object:
    document = {
        "input": {"name": "x", "shape": [1, 4, 5, 3], "dtype": "uint8"},
        "labels": ["r", "g", "b"],
        "preprocess": [{"op": "image", "height": 4, "width": 5}],
    }
    return packaged({**document, **changes}, {"model.onnx": pixels_model(4, 5)})


def test_an_image_is_taken_as_array_bytes_path_or_picture(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pipeline = Pipeline(uint8_package())  # type: ignore[arg-type]
    array = np.zeros((4, 5, 3), dtype=np.uint8)
    array[..., 1] = 255
    picture = image.fromarray(array).resize((50, 40))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    (tmp_path / "g.png").write_bytes(buffer.getvalue())
    for x in (array, picture, buffer.getvalue(), tmp_path / "g.png", str(tmp_path / "g.png")):
        assert pipeline.infer(x).scores == pytest.approx((0.0, 1.0, 0.0), abs=1e-6)
    labels = [p.label for p in pipeline.stream([array, b"no image", array], on_error=lambda error: None)]
    assert labels == ["g", "g"]
    with pytest.raises(InputError, match="image"):
        pipeline.infer(b"no image")


def test_images_stream_under_asyncio_too() -> None:
    pytest.importorskip("PIL.Image")
    pipeline, errors = Pipeline(uint8_package()), list[Exception]()  # type: ignore[arg-type]
    array = np.zeros((4, 5, 3), dtype=np.uint8)
    array[..., 2] = 255

    async def labels() -> list[str]:
        items = [array, b"no image", array]
        return [found.label async for found in pipeline.astream(items, on_error=errors.append)]

    assert asyncio.run(labels()) == ["b", "b"]
    assert len(errors) == 1 and "image" in str(errors[0])


def test_lost_images_are_no_error(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    array = np.zeros((4, 5, 3), dtype=np.uint8)
    found = list(Pipeline(uint8_package()).stream([Lost(3, "the queue was full"), array]))  # type: ignore[arg-type]
    assert len(found) == 1


def test_an_integer_tensor_takes_stored_values_as_they_are_and_quantises_real_ones() -> None:
    document = {
        "input": {"name": "x", "shape": [1, 2, 2, 3], "dtype": "uint8", "scale": 1 / 255, "zero_point": 0},
        "labels": ["r", "g", "b"],
    }
    pipeline = Pipeline(packaged(document, {"model.onnx": pixels_model(2, 2)}))
    stored = np.full((2, 2, 3), 51, dtype=np.uint8)
    assert pipeline.infer(stored).scores == pytest.approx((0.2,) * 3)
    assert pipeline.infer(stored.astype(np.float32) / 255).scores == pytest.approx((0.2,) * 3)
    assert pipeline.infer(np.full((2, 2, 3), 7.0)).scores == pytest.approx((1.0,) * 3)  # saturated
    with pytest.raises(InputError, match=r"expected shape \[2, 2, 3\]"):
        pipeline.infer(stored[:1])


def test_a_manifest_that_contradicts_the_model_is_refused() -> None:
    member = {"model.onnx": pixels_model(2, 2)}
    base = {"labels": ["r", "g", "b"]}
    with pytest.raises(ModelError, match="is uint8 in the model, float32 in the manifest"):
        Pipeline(packaged({**base, "input": {"name": "x", "shape": [1, 2, 2, 3]}}, member))
    with pytest.raises(ModelError, match=r"has shape \[1, 2, 2, 3\]"):
        Pipeline(packaged({**base, "input": {"name": "x", "shape": [1, 2, 3, 3], "dtype": "uint8"}}, member))


@pytest.mark.parametrize(("scale", "zero_point"), [(0.06, -3), (0.05, -4)])
def test_a_quantisation_that_is_not_the_model_s_is_refused(scale: float, zero_point: int) -> None:
    require(("tflite",))
    quantised = {"name": "x", "shape": [1, 16], "dtype": "int8", "scale": scale, "zero_point": zero_point}
    package = packaged(
        {"input": quantised, "labels": list("abcd"), "format": "tflite"}, {"model.tflite": load("fc_int8")}
    )
    with pytest.raises(ModelError, match=rf"by 0.05 and -3 in the model, by {scale:g} and {zero_point} in"):
        Pipeline(package)


def test_steps_stand_between_the_stream_and_the_model() -> None:
    document = {
        "input": {"name": "x", "shape": [1, 2, 2]},
        "window": {"samples": 8, "hop": 4, "channels": 2},
        "preprocess": [{"op": "centre", "mean": [1.0, -1.0]}, {"op": "rms", "frame": 4}],
    }
    member = {"model.onnx": linear_model(2, samples=2)}
    pipeline, bare = Pipeline(packaged(document, member)), Pipeline(windowed(2, 2))
    rows = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)
    found = list(pipeline.stream(rows.tolist()))
    assert len(found) == 9
    for index, prediction in enumerate(found):
        part = rows[4 * index : 4 * index + 8] - [1.0, -1.0]
        frames = np.sqrt((part.reshape(2, 4, 2) ** 2).mean(axis=1))
        assert prediction.scores == pytest.approx(bare.infer(frames).scores, abs=1e-5)
        assert pipeline.infer(rows[4 * index : 4 * index + 8]).scores == prediction.scores


def test_steps_that_give_another_size_than_the_model_takes_are_refused() -> None:
    document = {
        "input": {"name": "x", "shape": [1, 2, 2]},
        "window": {"samples": 8, "channels": 2},
        "preprocess": [{"op": "rms", "frame": 2}],
    }
    with pytest.raises(ModelError, match=r"give \[4, 2\], its input 'x' takes \[2, 2\]"):
        Pipeline(packaged(document, {"model.onnx": linear_model(2, samples=2)}))


def test_options_reach_the_backend_and_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(linear_model())
    options = Options(threads=2, spinning=True, arena=False)
    assert Pipeline(path, options=options).infer([1, 2, 3]).scores == Pipeline(path).infer([1, 2, 3]).scores
    for wrong in ({"threads": 0}, {"latency_us": -1.0}, {"memory_bytes": -1}, {"latency_us": float("nan")}):
        with pytest.raises(ConfigError):
            Options(**wrong)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: it lists a process's threads")
def test_an_onnx_model_has_the_threads_that_the_options_say(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(linear_model())
    code = """
import os, sys
from tinylcm import Options, Pipeline
Pipeline(sys.argv[1])
before = len(os.listdir("/proc/self/task"))
kept = [Pipeline(sys.argv[1], options=Options(threads=int(count))) for count in sys.argv[2:]]
print(len(os.listdir("/proc/self/task")) - before)
"""

    def begun(*counts: str) -> int:
        command = [sys.executable, "-c", code, str(path), *counts]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert begun("1") == 0 and begun("2") == 1 and begun("2", "4") == 4


def test_a_backend_that_is_not_installed_names_its_extra(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(linear_model())
    code = (
        f"import sys; sys.modules['onnxruntime'] = None\nimport tinylcm\ntinylcm.Pipeline({str(tmp_path / 'm.onnx')!r})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'pip install "tinymlops[onnx]"' in result.stderr.splitlines()[-1]


def test_a_package_for_a_format_that_nobody_here_knows_is_refused_with_what_is_known() -> None:
    signer = make_signer()
    package = packaged({"input": {"name": "x", "shape": [1, 3]}, "format": "frob"}, {"model.frob": b"?"})
    assert package.root and trust_of(signer)
    with pytest.raises(ModelError, match="'frob' is not supported here"):
        Pipeline(package)
