"""What a manifest may say beyond one plain model; tests/runtime/test_package.py has the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tinylcm import ModelError
from tinylcm.manifest import Budget, PostSpec, member_name, parse_manifest

PLAIN: dict[str, Any] = {
    "name": "m",
    "version": "1.0",
    "format": "onnx",
    "input": {"name": "x", "shape": [1, 20, 2], "channels": ["a", "b"]},
    "output": "scores",
    "labels": ["no", "yes"],
    "window": {"samples": 20, "hop": 5, "rate_hz": 10},
}
CHAIN: dict[str, Any] = {
    **PLAIN,
    "format": "chain",
    "stages": [
        {"name": "features", "format": "tflite"},
        {"name": "pca", "format": "pca"},
        {"name": "head", "format": "knn", "output": "scores"},
    ],
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**PLAIN, **changes}


def test_a_plain_manifest_stays_version_1_and_anything_beyond_is_2() -> None:
    assert parse_manifest(PLAIN).to_json()["manifest"] == 1
    beyond = [
        changed(postprocess={"smoothing": 3}),
        changed(budget={"latency_us": 500}),
        changed(preprocess=[{"op": "scale", "factor": 2}]),
        changed(outputs=["other"]),
        changed(constants={"sr": 16000}),
        changed(state=[{"input": "h", "output": "hn"}]),
        changed(inputs=[{"name": "y", "shape": [1, 4]}]),
        changed(format="tflite"),
        changed(window={**PLAIN["window"], "missing": "hold"}),
        changed(input={**PLAIN["input"], "dtype": "int8", "scale": 0.1, "zero_point": -3}),
        CHAIN,
    ]
    for document in beyond:
        manifest = parse_manifest(document)
        written = manifest.to_json()
        assert written["manifest"] == 2, document
        assert parse_manifest(json.loads(json.dumps(written))) == manifest


def test_seconds_are_samples_at_the_rate() -> None:
    manifest = parse_manifest(changed(window={"seconds": 2.0, "hop_seconds": 0.5, "rate_hz": 10}))
    assert (manifest.window.samples, manifest.window.hop) == (20, 5)


def test_without_a_window_the_whole_input_is_one() -> None:
    document = {key: value for key, value in PLAIN.items() if key != "window"}
    manifest = parse_manifest(document)
    assert (manifest.window.samples, manifest.window.hop, manifest.layout) == (20, 20, (20, 2))


def test_steps_make_the_window_another_one_than_the_input() -> None:
    manifest = parse_manifest(
        changed(
            input={"name": "x", "shape": [1, 4, 10]},
            window={"samples": 1600, "rate_hz": 16000, "channels": 1},
            preprocess=[{"op": "log_mel", "frame": 400, "mels": 10}],
        )
    )
    assert manifest.layout == manifest.window_shape == (1600, 1)


def test_an_image_has_its_own_window() -> None:
    document = changed(
        input={"name": "x", "shape": [1, 8, 9, 3], "dtype": "uint8"},
        preprocess=[{"op": "image", "height": 8, "width": 9}],
    )
    del document["window"]
    manifest = parse_manifest(document)
    assert manifest.window_shape == (8, 9, 3) and manifest.layout == (72, 3)


def test_the_files_of_a_chain_are_numbered() -> None:
    assert [name for _, name in parse_manifest(CHAIN).models()] == ["stage0.tflite", "stage1.npz", "stage2.npz"]
    assert member_name("onnx") == "model.onnx" and member_name("knn") == "model.npz"


def test_defaults_say_nothing() -> None:
    manifest = parse_manifest(PLAIN)
    assert (manifest.postprocess, manifest.budget) == (PostSpec(), Budget())
    assert not {"postprocess", "budget", "stages", "inputs"} & set(manifest.to_json())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": {"seconds": 2.0}}, "needs rate_hz"),
        ({"window": {"seconds": 0.33, "rate_hz": 10}}, r"seconds: is 3\.3 samples"),
        ({"window": {"seconds": 2.0, "samples": 20, "rate_hz": 10}}, "not both"),
        ({"window": {"samples": 20, "missing": "guess"}}, "expected drop, hold, interpolate, mark"),
        ({"window": {"samples": 20, "late": "hold"}}, "expected drop, mark"),
        ({"window": {"samples": 20, "channels": 3}}, "the model's input has 2"),
        ({"window": {"samples": 0}}, "expected 1"),
        ({"window": {"samples": 16}, "preprocess": [{"op": "flatten"}], "input": {"name": "x", "shape": [1, 7]}},
         "channels: is missing"),
        ({"format": "pickle"}, "format: is 'pickle'"),
        ({"format": "chain"}, "has stages"),
        ({"stages": [{"name": "a", "format": "onnx"}]}, "has stages"),
        ({"format": "chain", "stages": [{"name": "a", "format": "chain"}]}, "a backend's name"),
        ({"format": "chain", "stages": [{"name": "a", "format": "pca"}] * 2}, "a name twice"),
        ({"inputs": [{"name": "x", "shape": [1]}]}, "a name twice"),
        ({"constants": {"sr": "fast"}}, r"constants\.sr"),
        ({"constants": {"sr": float("nan")}}, r"constants\.sr"),
        ({"postprocess": {"smoothing": 0}}, r"postprocess\.smoothing"),
        ({"postprocess": {"smothing": 2}}, "is not known here"),
        ({"postprocess": {"activation": "tanh"}}, "expected none, softmax, sigmoid"),
        ({"postprocess": {"temperature": 2.0}}, "is for logits"),
        ({"postprocess": {"reject": "yes"}}, "is one of the labels"),
        ({"budget": {"latency_us": -1}}, r"budget\.latency_us"),
        ({"preprocess": [{"op": "frobnicate"}]}, r"preprocess\[0\]"),
        ({"input": {"name": "x", "shape": [1, 20, 2], "dtype": "float16"}}, "supported: float32"),
        ({"manifest": 3}, "is a version this program does not know"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_manifest(changed(**change))
