"""Steps before the model against numpy and scipy in float64, and what librosa wrote (scripts/mel_vectors.py)."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.fft
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tinylcm._ext.signal import Plan
from tinylcm.errors import ConfigError, InputError, ModelError
from tinylcm.preprocess import OPS, Step, describe_ops, load_image, make_plan, parse_steps

Image = pytest.importorskip("PIL.Image")

MEL = np.load(Path(__file__).parent.parent / "data" / "mel_librosa.npz")
ABOUT = json.loads(str(MEL["about"]))
INTEGERS = ("int8", "uint8", "int16")
FLOATS = st.floats(-100, 100, width=32)
INFINITE = float("inf")


def parse(*steps: dict[str, Any]) -> tuple[Step, ...]:
    return parse_steps(list(steps), "manifest.preprocess")


def run(steps: list[dict[str, Any]], window: NDArray[Any], rate_hz: float = 0.0, **options: Any) -> NDArray[Any]:
    """What a plan of these steps makes of a window."""
    window = np.ascontiguousarray(window, dtype=np.float32)
    plan = make_plan(parse(*steps), *window.shape, rate_hz, **options)
    out = np.zeros(plan.shape, plan.dtype)
    plan.apply(window, out)
    return out


def noise(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


# the manifest's tables ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"op": "blur"}, r"manifest\.preprocess\[1\]\.op: is 'blur', known: scale, centre, .*image"),
        ({}, r"manifest\.preprocess\[1\]\.op: is missing"),
        ("scale", r"manifest\.preprocess\[1\]: expected a table"),
        ({"op": "rms", "hop": 3}, r"manifest\.preprocess\[1\]\.frame: is missing: samples a frame"),
        ({"op": "rms", "frame": 8, "hopp": 4}, r"\[1\]\.hopp: is not known here; known: op, frame, hop"),
        ({"op": "rms", "frame": 65537}, r"\[1\]\.frame: is 65537, expected 1 to 65536"),
        ({"op": "rms", "frame": True}, r"\[1\]\.frame: expected int, got bool"),
        ({"op": "log_mel", "frame": 8, "mels": 4, "fft": 1 << 17}, r"\[1\]\.fft: is 131072, expected 0 to 65536"),
        ({"op": "log_mel", "frame": 8, "mels": 4, "mel": "bark"}, r"\[1\]\.mel: is 'bark', expected slaney, htk"),
        ({"op": "standardise", "std": 0}, r"\[1\]\.std: is 0, expected 1e-12 to"),
        ({"op": "standardise", "std": [1, 0]}, r"\[1\]\.std: expected numbers from 1e-12"),
        ({"op": "scale", "factor": []}, r"\[1\]\.factor: expected numbers"),
        ({"op": "scale", "factor": [1, "x"]}, r"\[1\]\.factor\.1: expected a finite number"),
        ({"op": "scale", "factor": float("nan")}, r"\[1\]\.factor: expected a finite number"),
        ({"op": "reshape", "shape": []}, r"\[1\]\.shape: is empty"),
        ({"op": "reshape", "shape": [2, 0]}, r"\[1\]\.shape\.1: is 0, expected 1"),
        ({"op": "image", "height": 8, "width": 8}, r"\[1\]\.op: an image must be the first step"),
    ],
)
def test_a_wrong_step_is_named_with_its_place(step: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        parse_steps([{"op": "flatten"}, step], "manifest.preprocess")


def test_mean_and_std_of_an_image_fit_its_channels() -> None:
    with pytest.raises(ModelError, match=r"\[0\]\.mean: has 3 numbers for 1 channels"):
        parse({"op": "image", "height": 8, "width": 8, "colour": "grey", "mean": [1, 2, 3]})


def test_steps_survive_the_manifest() -> None:
    steps = parse(
        {"op": "image", "height": 4, "width": 5, "mean": [1, 2, 3]},
        {"op": "standardise", "mean": [0.5, 1], "std": 2},
        {"op": "fft_magnitude", "frame": 8, "log": True},
        {"op": "reshape", "shape": [3, 2]},
    )
    assert parse_steps(json.loads(json.dumps([step.to_json() for step in steps])), "x") == steps
    assert steps[2].value("frame") == 8 and steps[2].value("window") == "hann"


def test_the_table_describes_every_parameter() -> None:
    text = describe_ops()
    for op, (about, parameters) in OPS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{op}` |"))
        assert about in row
        assert all(f"`{name}` (" in row for name in parameters)


def test_the_module_loads_neither_the_extension_nor_pillow() -> None:
    code = "import sys, tinylcm.preprocess; print({'tinylcm._ext.signal', 'PIL'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


# factors, offsets and bounds: one pass ----------------------------------------------------------------------

NUMBERS = st.one_of(FLOATS, st.lists(FLOATS, min_size=3, max_size=3))
POSITIVE = st.floats(0.01, 100)
AFFINE = st.one_of(
    st.builds(lambda factor: {"op": "scale", "factor": factor}, NUMBERS),
    st.builds(lambda mean: {"op": "centre", "mean": mean}, NUMBERS),
    st.builds(lambda mean, std: {"op": "standardise", "mean": mean, "std": std}, NUMBERS, POSITIVE),
    st.builds(lambda low, width: {"op": "clip", "low": low, "high": low + width}, FLOATS, POSITIVE),
)


def affine_oracle(steps: list[dict[str, Any]], window: NDArray[Any]) -> NDArray[np.float64]:
    x = window.astype(np.float64)
    for step in steps:
        if step["op"] == "clip":
            x = np.clip(x, step["low"], step["high"])
        else:
            x = (x * step.get("factor", 1) - np.array(step.get("mean", 0))) / step.get("std", 1)
    return x


@settings(deadline=None)
@given(steps=st.lists(AFFINE, max_size=6), rows=st.integers(1, 300), seed=st.integers(0, 9))
def test_folded_steps_equal_those_one_after_the_other(steps: list[dict[str, Any]], rows: int, seed: int) -> None:
    window = 30 * noise(rows, 3, seed=seed)
    expected = affine_oracle(steps, window)
    # What is left of a sum that vanishes is of the size of float64's rounding of its parts.
    parts = np.prod([np.max(np.abs(step.get("factor", 1))) / step.get("std", 1) for step in steps]) + 1
    np.testing.assert_allclose(run(steps, window), expected, rtol=1e-6, atol=1e-10 * max(parts, 1))


def test_a_large_mean_costs_no_digits() -> None:
    window = 101325 + noise(200, 1)
    steps = [{"op": "centre", "mean": 101325.1}, {"op": "scale", "factor": 1 / 3}]
    np.testing.assert_allclose(run(steps, window), affine_oracle(steps, window), rtol=1e-6)


def test_no_step_is_a_copy() -> None:
    window = noise(100, 6)
    plan = make_plan((), 100, 6)
    assert plan.identity and plan.shape == (100, 6) and (plan.size, plan.itemsize, plan.dtype) == (600, 4, "float32")
    assert np.array_equal(run([], window), window)
    assert not make_plan(parse({"op": "scale", "factor": 2}), 100, 6).identity
    assert not make_plan((), 100, 6, dtype="int8", scale=0.1).identity
    assert not make_plan(parse({"op": "flatten"}), 100, 6).identity


def quantised(x: NDArray[np.float32], dtype: str, scale: float, zero_point: int) -> NDArray[np.int64]:
    """TFLite's formula in float32: roundf(x / scale) + zero_point, saturated."""
    v = x / np.float32(scale)
    rounded = np.trunc(v + np.copysign(np.float32(0.5), v)).astype(np.int64) + zero_point
    bounds = np.iinfo(dtype)
    return np.clip(rounded, bounds.min, bounds.max)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
def test_integers_are_rounded_and_saturated_as_tflite_does(dtype: str, place: float) -> None:
    bounds = np.iinfo(dtype)
    zero_point = round(bounds.min + place * (bounds.max - bounds.min))
    scale = float(np.float32(8 / (bounds.max - bounds.min)))
    window = 2 * noise(4001, 3)
    out = run([], window, dtype=dtype, scale=scale, zero_point=zero_point)
    wrong = np.abs(out.astype(np.int64) - quantised(window, dtype, scale, zero_point))
    assert wrong.max() <= 1
    assert np.mean(wrong > 0) <= (1e-4 if dtype != "int16" else 5e-3)  # float32 has fewer digits to spare
    large = np.array([[-3e38, 3e38, 0]], dtype=np.float32)
    assert run([], large, dtype=dtype, scale=scale, zero_point=zero_point).tolist() == [
        [bounds.min, bounds.max, zero_point]
    ]


def test_halves_are_rounded_away_from_zero() -> None:
    window = np.array([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997]], dtype=np.float32)
    assert run([], window, dtype="int8", scale=1.0).tolist() == [[-3, -2, -1, 1, 2, 3, 0]]


@pytest.mark.parametrize(("low", "high", "expected"), [(-900, -800, -128), (800, 900, 127)])
def test_bounds_outside_the_integers_saturate(low: float, high: float, expected: int) -> None:
    step = {"op": "clip", "low": low, "high": high}
    for zero_point in (-128, 0, 127):
        assert run([step], noise(1, 4), dtype="int8", scale=1.0, zero_point=zero_point).tolist() == [[expected] * 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "float16 is not written by steps; known: float32, int8, uint8, int16"),
        ({"dtype": "int8"}, "needs a scale above 0"),
        ({"dtype": "int8", "scale": float("nan")}, "needs a scale above 0"),
        ({"dtype": "int8", "scale": 5e-324}, "not finite"),
        ({"dtype": "int8", "scale": 1.0, "zero_point": 128}, "zero point from -128 to 127"),
        ({"dtype": "uint8", "scale": 1.0, "zero_point": 10**30}, "zero point from 0 to 255"),
    ],
)
def test_a_tensor_that_cannot_be_written_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        make_plan((), 4, 1, **options)


# windows ----------------------------------------------------------------------------------------------------

CHAINS: list[list[dict[str, Any]]] = [
    [],
    [{"op": "scale", "factor": [1, 2, 3]}],
    [{"op": "rms", "frame": 4, "hop": 2}, {"op": "clip", "low": 0.2, "high": 1}],
]


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("tail", [1, 7, 19])
def test_a_window_in_two_pieces_gives_the_same(chain: list[dict[str, Any]], dtype: str, tail: int) -> None:
    window = noise(20, 3)
    plan = make_plan(parse(*chain), 20, 3, dtype=dtype, scale=0.05)
    whole, parts = np.zeros((2, *plan.shape), plan.dtype)
    plan.apply(window, whole)
    plan.apply(window[: 20 - tail], parts, window[20 - tail :])
    assert np.array_equal(whole, parts) and whole.any()


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 17, 40, 59])
def test_a_value_that_is_not_finite_is_found(chain: list[dict[str, Any]], bad: float, place: int) -> None:
    window = noise(20, 3)
    window.reshape(-1)[place] = bad
    plan = make_plan(parse(*chain), 20, 3)
    out = np.zeros(plan.shape, np.float32)
    with pytest.raises(InputError, match=f"value {place} of the window is NaN or infinite"):
        plan.apply(window, out)
    with pytest.raises(InputError, match=f"value {place} of the window"):
        plan.apply(window[:12], out, window[12:])


def test_steps_that_leave_the_numbers_are_found() -> None:
    window = np.array([[1.0], [2.0], [1e30]], dtype=np.float32)
    with pytest.raises(InputError, match="steps before the model give NaN or infinity at value 2"):
        run([{"op": "scale", "factor": 1e20}], window)
    with pytest.raises(InputError, match="steps before the model give NaN or infinity at value 0"):
        run([{"op": "energy", "frame": 3}], window)


def test_buffers_are_checked() -> None:
    plan = make_plan((), 4, 2, dtype="int8", scale=1.0)
    window, out = noise(4, 2), np.zeros(8, np.int8)
    for wrong in (window.astype(np.float64), window[:3], window[:, :1], window.T[:, ::2], [0.0] * 8, b"x" * 32):
        with pytest.raises(InputError, match="expected"):
            plan.apply(wrong, out)  # type: ignore[arg-type]
    frozen = np.zeros(8, np.int8)
    frozen.flags.writeable = False
    for wrong in (out[:7], out.astype(np.uint8), out.astype(np.float32), out[::2], frozen):
        with pytest.raises(InputError, match="expected"):
            plan.apply(window, wrong)
    for tail in (window, window[:0], window[:1].astype(np.int32)):
        with pytest.raises(InputError, match="expected"):
            plan.apply(window[:3], out, tail)


@pytest.mark.parametrize(
    "ops",
    [
        [("transpose", (5, 3))],
        [("affine", (4, 3, (4, 3), [1.0], [0.0], [0.0], [1.0]))],
        [("affine", (4, 3, (4, 3), [1.0, 1.0, np.nan], [0.0] * 3, [0.0] * 3, [1.0] * 3))],
        [("moving_average", (4, 3, 0))],
        [("power", (4, 3, 5, 1, True))],
        [("power", (4, 3, 2, 0, True))],
        [("spectrum", (4, 3, 4, 4, 4, np.ones(4), False))],
        [("spectrum", (4, 3, 4, 4, 3, np.ones(5), False))],
        [("mel", (12, 4, 4, 4, np.ones(4), [0, 2], [2, 2], np.ones(4), 1, 1e-10, 0.0, False, None))],
        [("mel", (12, 4, 4, 4, np.ones(4), [0, 1], [2, 2], np.ones(3), 1, 1e-10, 0.0, False, None))],
        [("resample", (4, 3, 1 << 24))],
    ],
)
def test_the_extension_refuses_what_would_read_outside(ops: list[tuple[str, tuple[Any, ...]]]) -> None:
    with pytest.raises(ConfigError):
        Plan(ops, 4, 3, 1.0, 0.0, -INFINITE, INFINITE)


# the other steps --------------------------------------------------------------------------------------------


def test_per_window_steps_take_the_windows_own_moments() -> None:
    window = 5 + 3 * noise(50, 4)
    x = window.astype(np.float64)
    np.testing.assert_allclose(run([{"op": "centre", "per_window": True}], window), x - x.mean(0), atol=1e-6)
    expected = (x - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(run([{"op": "standardise", "per_window": True}], window), expected, atol=1e-6)
    assert not run([{"op": "standardise", "per_window": True}], np.full((50, 1), 0.1)).any()


@given(rows=st.integers(1, 40), count=st.integers(1, 90))
def test_resample_is_linear_interpolation(rows: int, count: int) -> None:
    window = noise(rows, 2)
    out = run([{"op": "resample", "samples": count}], window)
    at = np.linspace(0, rows - 1, count) if count > 1 else np.zeros(1)
    expected = np.stack([np.interp(at, np.arange(rows), window[:, j].astype(float)) for j in range(2)], axis=1)
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_resample_by_rate_counts_the_samples_and_moves_the_rate() -> None:
    window = noise(800, 1)
    halved = run([{"op": "resample", "rate_hz": 8000}], window, 16000)
    assert halved.shape == (400, 1)
    mel = {"op": "log_mel", "frame": 128, "mels": 8}
    for step in ({"op": "resample", "rate_hz": 8000}, {"op": "resample", "samples": 400}):
        assert np.array_equal(run([step, mel], window, 16000), run([mel], halved, 8000))


@given(rows=st.integers(1, 60), n=st.integers(1, 70))
def test_moving_average_is_the_mean_of_the_last_rows(rows: int, n: int) -> None:
    window = noise(rows, 2)
    expected = [window[max(0, i - n + 1) : i + 1].astype(float).mean(0) for i in range(rows)]
    np.testing.assert_allclose(run([{"op": "moving_average", "samples": n}], window), expected, atol=1e-6)


@given(rows=st.integers(1, 60), frame=st.integers(1, 60), hop=st.integers(0, 70))
def test_rms_and_energy_of_frames(rows: int, frame: int, hop: int) -> None:
    frame = min(frame, rows)
    window = noise(rows, 3)
    squares = window.astype(float) ** 2
    starts = range(0, rows - frame + 1, hop or frame)
    expected = np.array([squares[i : i + frame].mean(0) for i in starts])
    step = {"frame": frame, "hop": hop}
    np.testing.assert_allclose(run([{"op": "energy", **step}], window), expected, rtol=1e-6)
    np.testing.assert_allclose(run([{"op": "rms", **step}], window), np.sqrt(expected), rtol=1e-6)


@pytest.mark.parametrize("n", [*range(1, 34), 97, 100, 127, 250, 255, 640, 997, 1000, 1024, 2048, 4099])
def test_spectrum_of_a_whole_window(n: int) -> None:
    window = noise(n, 2, seed=n)
    expected = np.abs(scipy.fft.rfft(window.astype(float), axis=0))
    out = run([{"op": "fft_magnitude", "window": "none"}], window)
    assert out.shape == (n // 2 + 1, 2)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6 * expected.max())


@pytest.mark.parametrize(("frame", "hop", "bins"), [(64, 16, 0), (50, 50, 10), (33, 20, 17)])
def test_spectrum_of_frames(frame: int, hop: int, bins: int) -> None:
    window = noise(200, 2)
    weights = scipy.signal.get_window("hann", frame)[:, None]
    starts = range(0, 200 - frame + 1, hop)
    expected = np.array([np.abs(scipy.fft.rfft(window[i : i + frame] * weights, axis=0)) for i in starts])
    expected = expected[:, : bins or None]
    step = {"op": "fft_magnitude", "frame": frame, "hop": hop, "bins": bins}
    np.testing.assert_allclose(run([step], window), expected, rtol=1e-5, atol=1e-5)
    logarithms = run([{**step, "log": True}], window)
    np.testing.assert_allclose(logarithms, np.log(np.maximum(expected, 1e-10)), atol=1e-3)
    assert run([{**step, "log": True}], np.zeros((200, 1))).min() == pytest.approx(np.log(1e-10))


@pytest.mark.parametrize("index", range(len(ABOUT["steps"])))
def test_mel_bands_and_mfcc_are_librosas(index: int) -> None:
    expected = MEL[f"case{index}"]
    out = run([ABOUT["steps"][index]], MEL["signal"][:, None], ABOUT["rate_hz"])
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max() / 100)


def test_mfcc_is_the_orthonormal_dct_of_log_mel() -> None:
    window = noise(2000, 1)
    mel: dict[str, Any] = {"frame": 400, "hop": 160, "mels": 26, "low_hz": 50, "high_hz": 7000}
    for log in ("natural", "db"):
        bands = run([{"op": "log_mel", "log": log, **mel}], window, 16000)
        expected = scipy.fft.dct(bands.astype(float), type=2, norm="ortho", axis=1)[:, :12]
        out = run([{"op": "mfcc", "coefficients": 12, "log": log, **mel}], window, 16000)
        np.testing.assert_allclose(out, expected, atol=1e-4)


def test_bands_that_lie_between_two_bins_are_empty_and_not_an_error() -> None:
    out = run([{"op": "log_mel", "frame": 16, "mels": 60, "log": "none"}], noise(64, 1), 16000)
    assert out.shape == (4, 60) and np.isfinite(out).all() and (out == 0).all(axis=0).any()


def test_shapes() -> None:
    window = noise(4, 6)
    assert np.array_equal(run([{"op": "transpose"}], window), window.T)
    assert np.array_equal(run([{"op": "flatten"}], window), window.reshape(-1))
    assert np.array_equal(run([{"op": "reshape", "shape": [2, 3, 4]}], window), window.reshape(2, 3, 4))


def test_a_chain_of_everything() -> None:
    window = 3 + noise(100, 3)
    steps = [
        {"op": "clip", "low": -1, "high": 5},
        {"op": "scale", "factor": [1, -2, 0]},
        {"op": "moving_average", "samples": 5},
        {"op": "centre", "mean": [1, 2, 3]},
        {"op": "transpose"},
        {"op": "flatten"},
        {"op": "scale", "factor": 0.5},
    ]
    x = np.clip(window.astype(float), -1, 5) * [1, -2, 0]
    x = np.array([x[max(0, i - 4) : i + 1].mean(0) for i in range(100)]) - [1, 2, 3]
    expected = 0.5 * x.T.reshape(-1)
    np.testing.assert_allclose(run(steps, window), expected, atol=1e-6)
    out = run(steps, window, dtype="int8", scale=0.03, zero_point=-5)
    assert np.abs(out - np.clip(np.round(expected / 0.03) - 5, -128, 127)).max() <= 1


def test_bounds_that_differ_by_channel() -> None:
    window = 3 * noise(50, 3)
    steps = [{"op": "clip", "low": -1, "high": 2}, {"op": "scale", "factor": [1, -2, 0]}, {"op": "centre", "mean": 1}]
    np.testing.assert_allclose(run(steps, window), affine_oracle(steps, window), rtol=1e-6)


@pytest.mark.parametrize(
    ("steps", "shape", "rate_hz", "message"),
    [
        (
            [{"op": "flatten"}, {"op": "scale", "factor": [1, 2]}],
            (8, 3),
            0,
            "step 1 before the model, scale: has 2",
        ),
        ([{"op": "standardise", "mean": [1, 2]}], (8, 3), 0, "standardise: has 2 numbers for 3 channels"),
        ([{"op": "clip", "low": 1, "high": 1}], (8, 3), 0, "clip: low 1 is not below high 1"),
        ([{"op": "rms", "frame": 9}], (8, 3), 0, "rms: frame 9 is longer than the 8 samples there are"),
        ([{"op": "fft_magnitude"}], (70000, 1), 0, "a frame of 70000 samples is too long"),
        ([{"op": "fft_magnitude", "bins": 6}], (8, 1), 0, "bins 6 is more than the 5 there are"),
        ([{"op": "fft_magnitude", "frame": 4}, {"op": "rms", "frame": 2}], (8, 1), 0, "needs samples and channels"),
        ([{"op": "resample"}], (8, 1), 10, "give samples or rate_hz"),
        ([{"op": "resample", "samples": 4, "rate_hz": 5}], (8, 1), 10, "give samples or rate_hz"),
        ([{"op": "resample", "rate_hz": 5}], (8, 1), 0, "needs the window's own rate_hz"),
        ([{"op": "resample", "rate_hz": 0.1}], (8, 1), 100, r"would give \[0, 1\]"),
        ([{"op": "resample", "rate_hz": 1e9}], (8, 1), 1, "expected 1 to 16777216 values"),
        ([{"op": "log_mel", "frame": 8, "mels": 4}], (8, 2), 16000, "log_mel: takes one channel, there are 2"),
        ([{"op": "log_mel", "frame": 8, "mels": 4}], (8, 1), 0, "log_mel: needs the window's rate_hz"),
        ([{"op": "log_mel", "frame": 8, "mels": 4, "fft": 4}], (8, 1), 16000, "fft 4 is shorter than the frame 8"),
        ([{"op": "log_mel", "frame": 8, "mels": 4, "power": 1.5}], (8, 1), 16000, "power is 1 or 2"),
        ([{"op": "log_mel", "frame": 8, "mels": 4, "high_hz": 9000}], (8, 1), 16000, "high_hz <= 8000"),
        ([{"op": "mfcc", "frame": 8, "mels": 4, "coefficients": 5}], (8, 1), 16000, "5 is more than the 4 mels"),
        ([{"op": "transpose"}, {"op": "reshape", "shape": [5, 5]}], (8, 3), 0, r"to \[5, 5\] does not fit the 24"),
        ([{"op": "reshape", "shape": [2, 2, 6]}, {"op": "transpose"}], (8, 3), 0, "needs two axes"),
        ([{"op": "scale", "factor": 1e30}] * 12, (8, 3), 0, "not finite"),
        ([{"op": "image", "height": 2, "width": 3}], (8, 3), 0, "gives 6 pixels of 3 channels"),
    ],
)
def test_steps_that_do_not_fit_each_other(
    steps: list[dict[str, Any]], shape: tuple[int, int], rate_hz: float, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        make_plan(parse(*steps), *shape, rate_hz)


# images -----------------------------------------------------------------------------------------------------


def image_step(**params: Any) -> Step:
    return parse({"op": "image", "height": 4, "width": 6, **params})[0]


def pixels(height: int = 4, width: int = 6) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(array: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    target = io.BytesIO()
    Image.fromarray(array).save(target, kind)
    return target.getvalue()


def test_an_image_of_the_right_size_is_taken_as_it_is(tmp_path: Path) -> None:
    array = pixels()
    path = tmp_path / "x.png"
    path.write_bytes(encoded(array))
    for given_ in (array, Image.fromarray(array), encoded(array), memoryview(encoded(array)), path, str(path)):
        out = load_image(given_, image_step())
        assert out.dtype == np.float32 and out.flags.c_contiguous and np.array_equal(out, array)


def test_colours_and_normalisation() -> None:
    array = pixels()
    assert np.array_equal(load_image(array, image_step(colour="bgr")), array[:, :, ::-1])
    grey = load_image(array, image_step(colour="grey"))
    assert grey.shape == (4, 6, 1) and np.abs(grey[:, :, 0] - array @ [0.299, 0.587, 0.114]).max() <= 1
    assert np.array_equal(load_image(array[:, :, :1], image_step()), np.repeat(array[:, :, :1], 3, axis=2))
    mean, std = [10.0, 20.0, 30.0], [1.0, 2.0, 4.0]
    np.testing.assert_allclose(load_image(array, image_step(mean=mean, std=std)), (array - np.array(mean)) / std)
    np.testing.assert_allclose(load_image(array, image_step(std=255)), array / 255, rtol=1e-6)


def test_sizes_and_crops() -> None:
    flat = np.full((40, 90, 3), 77, np.uint8)
    flat[:, :15], flat[:, 75:] = 0, 255
    whole, cut = (load_image(flat, image_step(crop=crop)) for crop in ("none", "centre"))
    assert whole.shape == cut.shape == (4, 6, 3)
    assert (cut == 77).all() and whole.min() < 20 and whole.max() > 220
    blocks = np.kron(pixels(), np.ones((3, 3, 1), np.uint8))
    assert np.array_equal(load_image(blocks, image_step(resample="nearest")), pixels())
    assert np.abs(load_image(blocks, image_step()) - pixels()).max() > 0


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize("side", [9000, 11000, 20000])
def test_a_decompression_bomb_is_refused_from_its_header(side: int) -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(100))) + png_chunk(b"IEND", b"")
    with pytest.raises(InputError, match="pixels"):
        load_image(data, image_step())


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"no image",
        encoded(pixels())[:60],
        encoded(pixels(), "GIF"),
        "/nowhere/x.png",
        None,
        [[1, 2], [3, 4]],
        np.zeros((4, 6, 3)),
        np.zeros((4, 6, 4), np.uint8),
        np.zeros((0, 6, 3), np.uint8),
        b"x" * ((64 << 20) + 1),
    ],
    ids=lambda x: f"{type(x).__name__}{len(x) if isinstance(x, bytes) else ''}",
)
def test_what_is_no_image_is_refused(wrong: object) -> None:
    with pytest.raises(InputError):
        load_image(wrong, image_step())


@settings(deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG"]),
    place=st.floats(0, 0.999),
    junk=st.binary(min_size=1, max_size=6),
    keep=st.floats(0.1, 1),
)
def test_damaged_images_give_an_image_or_an_input_error(kind: str, place: float, junk: bytes, keep: float) -> None:
    data = bytearray(encoded(pixels(), kind))
    at = int(place * len(data))
    data[at : at + len(junk)] = junk
    with contextlib.suppress(InputError):
        assert load_image(bytes(data[: int(keep * len(data))]), image_step()).shape == (4, 6, 3)


def test_without_pillow_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ModelError, match=r'pip install "tinymlops\[image\]"'):
        load_image(pixels(), image_step())
