"""What a model costs: a whole report of a tiny model, its table and its picture. No figure's size is asserted."""

from __future__ import annotations

import itertools
import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from kinds import counter, packaged, pixels_model, two_inputs, windowed
from models import linear_model, log_model, make_package, make_signer, trust_of
from tinylcm import ConfigError, DeviceError, ModelError
from tinylcm.bench import PACED_MIN, RATE_HZ, Report, Timing, _Energy, bench, draw, open_model, summarise, timing_of
from tinylcm.metrics import BOUNDS_US
from tinylcm.package import Package, parse_package
from tinylcm.wire import finite

SECONDS = 0.05
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "linear.onnx"
    path.write_bytes(linear_model())
    return path


@pytest.fixture(scope="module")
def report(model: Path) -> Report:
    return bench(model, seconds=SECONDS, rate_hz=200)


def timing(p50: float, count: int = 100, place: int = 20) -> Timing:
    histogram = [0] * (len(BOUNDS_US) + 1)
    histogram[place] = count
    return Timing(count, p50, p50 * 2, p50 * 3, p50, tuple(histogram))


def made_up(**changes: object) -> Report:
    """A report of known figures."""
    whole = Report(
        model="gesture", version="1.2.3", format="onnx", monitors=("confidence",),
        machine={"system": "Linux", "machine": "aarch64", "cpus": 4, "python": "3.11.2", "tinylcm": "2.0"},
        rate_hz=50.0, hot={"full": timing(12.0), "bare": timing(8.0)},
        paced={"full": timing(60.0, place=30), "bare": timing(40.0, place=28)}, windows_per_s=83_333.3,
        cpu_percent=1.25, rss_bytes=64 << 20, import_s=0.125, open_s=0.0625, first_s=0.002, energy_uj=None,
    )  # fmt: skip
    return replace(whole, **changes)  # type: ignore[arg-type]


# measuring ------------------------------------------------------------------------------------------------


def test_a_report_says_everything(report: Report) -> None:
    assert (report.model, report.format, report.monitors, report.rate_hz) == ("linear", "onnx", (), 200)
    assert set(report.machine) == {"system", "machine", "cpus", "python", "tinylcm"}
    for pair in (report.hot, report.paced):
        assert set(pair) == {"full", "bare"}
        for found in pair.values():
            assert 0 < found.p50 <= found.p95 <= found.p99 and found.mean > 0
            assert sum(found.histogram) == found.count and len(found.histogram) == len(BOUNDS_US) + 1
    assert [report.paced[side].count for side in ("full", "bare")] == [5, 5]  # 0.05 s at 200 Hz, in turn
    assert report.windows_per_s == pytest.approx(1e6 / report.hot["full"].mean)
    assert min(report.import_s, report.open_s, report.first_s) > 0 and report.cpu_percent >= 0
    assert 10 << 20 < report.rss_bytes < 1 << 30


def test_a_report_is_json_with_what_the_runtime_adds(report: Report) -> None:
    document = report.to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == json.loads(json.dumps(finite(document)))
    for name, pair in (("hot", report.hot), ("paced", report.paced)):
        section = document[name]
        assert isinstance(section, dict)
        assert section["added_us"] == pair["full"].p50 - pair["bare"].p50
        assert section["ratio"] == pair["full"].p50 / pair["bare"].p50
    assert made_up().to_json()["hot"]["ratio"] == 1.5  # type: ignore[index, call-overload]


def test_memory_is_the_model_s_and_not_that_of_who_measures(model: Path) -> None:
    ballast = np.ones(400 << 17)  # 400 MiB: a child of this process inherits its peak, as getrusage tells it
    assert bench(model, seconds=SECONDS).rss_bytes < ballast.nbytes


def test_a_package_brings_its_name_monitors_rate_and_golden_window(activity: Path, tmp_path: Path) -> None:
    package = parse_package(make_package(), trust_of(make_signer()))
    found = bench(package, seconds=SECONDS)
    assert (found.model, found.version, found.rate_hz) == ("gesture", "1.0.0", RATE_HZ)
    path = tmp_path / "gesture.tlm"
    path.write_bytes(package.data)
    assert bench(path, seconds=SECONDS).version == "1.0.0"
    fast = windowed(8, 2, hop=2, window={"rate_hz": 400.0})
    assert bench(fast, seconds=SECONDS).rate_hz == 200


def test_a_slow_package_is_measured_in_the_time_that_is_given() -> None:
    slow = windowed(8, 2, window={"rate_hz": 0.001})  # a window in 8,000 s
    found = bench(slow, seconds=SECONDS)
    assert found.rate_hz == PACED_MIN / SECONDS
    assert [found.paced[side].count for side in ("full", "bare")] == [2, 2]


def image() -> Package:
    document = {
        "input": {"name": "x", "shape": [1, 4, 5, 3], "dtype": "uint8"},
        "labels": ["red", "green", "blue"],
        "preprocess": [{"op": "image", "height": 4, "width": 5}],
    }
    return packaged(document, {"model.onnx": pixels_model(4, 5)})


@pytest.mark.parametrize("make", [counter, two_inputs, image, lambda: windowed(8, 2)])
def test_every_kind_of_package_is_measured(make: Callable[[], Package]) -> None:
    found = bench(make(), seconds=SECONDS)
    assert found.hot["full"].count > 0 and found.hot["bare"].count > 0 and found.rss_bytes > 0


def test_the_window_is_the_golden_one_where_there_is_one(model: Path) -> None:
    golden = parse_package(make_package(wrong_golden=True), trust_of(make_signer()))
    _, window = open_model(golden)
    assert np.array_equal(window, np.ones(3))  # type: ignore[arg-type]
    pipeline, window = open_model(model)
    assert np.array_equal(window, np.zeros(3))  # type: ignore[arg-type]
    assert pipeline.infer(window).model == "linear"
    _, window = open_model(two_inputs())
    assert isinstance(window, dict) and set(window) == {"a", "b"}


def test_progress_grows_from_nothing_to_all(model: Path) -> None:
    shares: list[float] = []
    bench(model, seconds=SECONDS, progress=shares.append)
    assert shares[0] == 0 and shares[-1] == pytest.approx(1) and len(shares) > 10
    assert all(before <= after + 1e-9 for before, after in itertools.pairwise(shares))


@pytest.mark.parametrize("seconds", [0.0, 0.049, -1.0, 3601.0, math.nan, math.inf])
def test_seconds_out_of_range_are_refused(model: Path, seconds: float) -> None:
    with pytest.raises(ConfigError, match=r"seconds of 0\.05 to 3600"):
        bench(model, seconds=seconds)


@pytest.mark.parametrize("rate_hz", [-1.0, 1e6, math.nan, math.inf])
def test_a_rate_out_of_range_is_refused(model: Path, rate_hz: float) -> None:
    with pytest.raises(ConfigError, match="a rate_hz of 0 to 100000"):
        bench(model, seconds=SECONDS, rate_hz=rate_hz)


def test_a_rate_that_the_time_is_too_short_for_is_refused(model: Path) -> None:
    with pytest.raises(ConfigError, match=r"rate_hz=0\.1 gives fewer than 4 calls in 3 s: measure for at least 40 s"):
        bench(model, rate_hz=0.1)
    with pytest.raises(ConfigError, match="threads=0"):
        bench(model, seconds=SECONDS, threads=0)


def test_a_model_that_does_not_run_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "log.onnx"
    path.write_bytes(log_model())  # the logarithm of a window of zeros is no score
    with pytest.raises(ModelError, match="NaN or infinity"):
        bench(path, seconds=SECONDS)
    path.write_bytes(b"rot")
    with pytest.raises(ModelError):
        bench(path, seconds=SECONDS)
    with pytest.raises(DeviceError, match="No such file"):
        bench(tmp_path / "none.tlm", seconds=SECONDS)


def test_percentiles_and_histogram_of_durations() -> None:
    rng = np.random.default_rng(5)
    nanoseconds = rng.lognormal(10, 2, 5000).astype(np.int64)
    found = timing_of(nanoseconds)
    values = nanoseconds / 1000
    assert (found.p50, found.p95, found.p99) == pytest.approx(tuple(np.percentile(values, (50, 95, 99))))
    assert found.count == 5000 and found.mean == pytest.approx(values.mean())
    up_to = np.cumsum(found.histogram)
    assert up_to[-1] == 5000
    assert [int(count) for count in up_to[:-1]] == [int((values <= bound).sum()) for bound in BOUNDS_US]
    assert timing_of(np.array([10**12])).histogram[-1] == 1  # beyond the last bound


# energy ---------------------------------------------------------------------------------------------------


def rapl(root: Path, number: int = 0, joules: str = "0") -> Path:
    path = root / "class" / "powercap" / f"intel-rapl:{number}" / "energy_uj"
    path.parent.mkdir(parents=True)
    path.write_text(joules)
    return path


def power(root: Path, microwatts: str) -> Path:
    path = root / "class" / "hwmon" / "hwmon0" / "power1_input"
    path.parent.mkdir(parents=True)
    path.write_text(microwatts)
    return path


def counting(path: Path, step_uj: int) -> Callable[[], None]:
    """A call that takes energy, as the kernel would count it."""

    def call() -> None:
        path.write_text(str(int(path.read_text()) + step_uj))

    return call


def test_energy_is_what_a_call_takes_above_idle(tmp_path: Path) -> None:
    path = rapl(tmp_path)
    calls = 0
    step = counting(path, 1000)

    def call() -> None:
        nonlocal calls
        calls += 1
        step()

    found = _Energy(tmp_path).of(call, 50.0, 0.05)
    assert found is not None and int(path.read_text()) == 1000 * calls
    # Watts, joules over the seconds, times microseconds: the seconds are at least those asked for.
    assert 0 < found <= 1000 * calls / 1e6 / 0.05 * 50.0 * (1 + 1e-9)


def test_energy_that_is_all_idle_is_none_of_the_call_s(tmp_path: Path) -> None:
    rapl(tmp_path, joules="5000")
    assert _Energy(tmp_path).of(lambda: None, 50.0, 0.05) == 0.0


def test_the_power_sensor_of_a_board_is_read_where_there_is_no_counter(tmp_path: Path) -> None:
    path = power(tmp_path, "2000000")
    busy = _Energy(tmp_path).of(lambda: path.write_text("5000000"), 100.0, 0.05)
    assert busy == pytest.approx(300.0)  # 3 W above idle for 100 us


@pytest.mark.parametrize("text", ["", "watts", "1e"])
def test_energy_that_nothing_counts_is_none(tmp_path: Path, text: str) -> None:
    assert _Energy(tmp_path).of(lambda: None, 50.0, 0.05) is None
    rapl(tmp_path, joules=text)
    assert _Energy(tmp_path).of(lambda: None, 50.0, 0.05) is None


def test_a_counter_that_wraps_gives_no_figure(tmp_path: Path) -> None:
    path = rapl(tmp_path, joules="4000000000")
    assert _Energy(tmp_path).of(lambda: path.write_text("5"), 50.0, 0.05) is None


def test_a_counter_inside_of_another_is_not_counted_twice(tmp_path: Path) -> None:
    rapl(tmp_path, joules="3000000")
    rapl(tmp_path, 1, "2000000")
    inside = tmp_path / "class" / "powercap" / "intel-rapl:0:0" / "energy_uj"
    inside.parent.mkdir()
    inside.write_text("1000000")
    assert _Energy(tmp_path)._joules() == 5.0


# for people -----------------------------------------------------------------------------------------------


def test_the_table_tells_the_figures() -> None:
    text = summarise(made_up())
    for figure in (
        "gesture 1.2.3 (onnx) on aarch64, 4 cores; monitors: confidence", "at 50 Hz, infer", "83,333 windows/s",
        "1.2 % of a core", "memory 64.0 MiB", "import 125 ms", "model 62 ms", "first prediction 2.0 ms",
    ):  # fmt: skip
        assert figure in text
    rows = {line[:24].strip(): line[24:].split() for line in text.splitlines()}
    assert rows["hot, infer"] == ["12.0", "24.0", "36.0"] and rows["hot, bare backend"] == ["8.0", "16.0", "24.0"]
    assert rows["hot, added"] == ["4.0", "50.0", "%"] and rows["at 50 Hz, added"] == ["20.0", "50.0", "%"]
    assert "energy" not in text and "energy 1,250 uJ" in summarise(made_up(energy_uj=1250.0))
    assert "monitors: none" in summarise(made_up(monitors=()))


def texts(picture: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(picture).iter(f"{SVG}text")]


def test_the_picture_is_well_formed_and_shows_both_panels(report: Report) -> None:
    found = texts(draw(report))
    assert {"back to back", "at 200 Hz"} <= set(found)
    for pair in (report.hot, report.paced):
        for name, label in (("full", "infer"), ("bare", "bare backend")):
            side = pair[name]
            assert f"{label}: p50 {side.p50:.1f}, p95 {side.p95:.1f}, p99 {side.p99:.1f} us" in found


def test_the_bars_stand_for_the_shares_inside_of_the_frame() -> None:
    root = ElementTree.fromstring(draw(made_up()))
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    bars = [rect.attrib for rect in root.iter(f"{SVG}rect") if "fill-opacity" in rect.attrib]
    assert len(bars) == 4  # two sides in two panels, each all in one bucket
    for bar in bars:
        assert left <= float(bar["x"]) and float(bar["x"]) + float(bar["width"]) <= width
        assert top <= float(bar["y"]) and float(bar["y"]) + float(bar["height"]) <= height
    assert len({bar["height"] for bar in bars}) == 1
    assert bars[0]["x"] == bars[1]["x"] and float(bars[2]["x"]) < float(bars[3]["x"])  # 28 lies before 30


@pytest.mark.parametrize(("place", "drawn"), [(0, 4), (1, 4), (len(BOUNDS_US) - 1, 4), (len(BOUNDS_US), 0)])
def test_durations_at_the_ends_of_the_scale_are_drawn_and_those_beyond_are_left_out(place: int, drawn: int) -> None:
    far = {"full": timing(1.0, place=place), "bare": timing(1.0, place=place)}
    root = ElementTree.fromstring(draw(made_up(hot=far, paced=far)))
    bars = [rect for rect in root.iter(f"{SVG}rect") if "fill-opacity" in rect.attrib]
    assert len(bars) == drawn


def test_a_name_is_text_and_no_markup() -> None:
    (title,) = [text for text in texts(draw(made_up(model="<b>&amp;", version='"1"'))) if "share of calls" in text]
    assert title.startswith('<b>&amp; "1": ')
