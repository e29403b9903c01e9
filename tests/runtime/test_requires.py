"""What packages ask of devices."""

from __future__ import annotations

import pytest
from tinylcm.checks import Fields
from tinylcm.errors import ModelError
from tinylcm.requires import Requires, parse_requires, unmet

PI = {
    "machine": "aarch64", "system": "linux", "cpus": 4, "ram_bytes": 430 << 20, "python": "3.11.2",
    "tinylcm": "0.1.0", "backends": ["tflite", "linear", "knn"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("document", "formats", "said"),
    [
        ({}, ["tflite"], None),
        ({"ram_mb": 430, "cpus": 4, "machine": ["AArch64", "x86_64"], "system": ["linux"]}, ["tflite"], None),
        ({"ram_mb": 477}, [], None),  # 430 is 0.9 of it: what firmware keeps
        ({"ram_mb": 512}, [], "it needs ram_mb 512, the device has 430"),
        ({"cpus": 8}, [], "it needs cpus 8, the device has 4"),
        ({"machine": ["x86_64", "amd64"]}, [], "it needs machine x86_64 or amd64, the device is aarch64"),
        ({"system": ["darwin"]}, [], "it needs system darwin, the device is linux"),
        ({"python": "3.11"}, [], None),
        ({"python": "3.9.18"}, [], None),
        ({"python": "3.12"}, [], "it needs python 3.12 or later, the device has 3.11.2"),
        ({"tinylcm": "0.2"}, [], "it needs tinylcm 0.2 or later, the device has 0.1.0"),
        ({}, ["onnx", "knn"], "it needs the backend onnx, the device has tflite, linear, knn"),
    ],
)
def test_a_device_meets_it_or_is_told_why_not(document: dict, formats: list[str], said: str | None) -> None:
    requires = parse_requires(Fields(document, "manifest.requires", ModelError))
    assert unmet(requires, formats, PI) == ([said] if said else [])
    assert parse_requires(Fields(requires.to_json() | {
        name: list(value) for name, value in requires.to_json().items() if isinstance(value, tuple)
    }, "again", ModelError)) == requires  # fmt: skip


def test_what_a_device_has_not_said_counts_as_missing_but_for_its_backends() -> None:
    everything = Requires(1, 1, ("x86_64",), ("linux",), "3", "0")
    assert len(unmet(everything, ["onnx"], {})) == 6
    assert all("not said" in problem for problem in unmet(everything, [], {}))
    assert unmet(Requires(), ["onnx"], {}) == []
    assert len(unmet(Requires(ram_mb=1, cpus=1), [], {"ram_bytes": "much", "cpus": None})) == 2


@pytest.mark.parametrize(
    ("document", "place"),
    [
        ({"ram_mb": -1}, "ram_mb"), ({"python": "three"}, "python"), ({"machine": "arm"}, "machine"),
        ({"gpu": 1}, "gpu"), ({"cpus": 1.5}, "cpus"), ({"machine": ["x"] * 17}, "machine"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_named(document: dict, place: str) -> None:
    with pytest.raises(ModelError, match=place):
        parse_requires(Fields(document, "manifest.requires", ModelError))
