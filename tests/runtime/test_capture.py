"""Which inputs are kept: rules, budget, privacy, and what reaches the journal."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clocks import ManualClock
from kinds import packaged
from models import linear_model, make_package, make_signer, write_keys
from tinylcm import Alarm, CapturePolicy, Capturer, ConfigError, Device, InputError, Prediction, decode_sample
from tinylcm.capture import SAMPLE_BYTES_MAX, WAITING_MAX, parse_capture
from tinylcm.checks import Fields
from tinylcm.config import DeviceConfig, ModelConfig, parse_config
from tinylcm.package import Package
from tinylcm.pipeline import Pipeline
from tinylcm.types import Json, Payload

WINDOW = np.arange(6, dtype=np.float32).reshape(3, 2) + 0.5
ALARM = Alarm("confidence", "PageHinkley", "confidence", 1.0, 0.5, 0, 0)


def predicted(number: int = 0, label: str = "a", scores: tuple[float, ...] = (0.9, 0.1)) -> Prediction:
    return Prediction(f"s-{number}", label, max(scores), scores, 10.0, model="m", version="1")


class Kept:
    """A capturer with what it handed over."""

    def __init__(self, policy: CapturePolicy, clock: ManualClock | None = None, **arguments: object) -> None:
        self.clock = clock or ManualClock()
        self.payloads: list[Payload] = []
        self.capturer = Capturer(policy, self.payloads.append, self.clock, **arguments)  # type: ignore[arg-type]

    def reasons(self) -> list[list[Json]]:
        self.capturer.flush(force=True)
        return [list(payload["reasons"]) for payload in self.payloads]  # type: ignore[arg-type]

    def numbers(self) -> list[int]:
        self.capturer.flush(force=True)
        return [int(str(payload["prediction"]).rpartition("-")[2]) for payload in self.payloads]


def test_every_nth_window() -> None:
    kept = Kept(CapturePolicy(every_nth=3))
    answers = [kept.capturer.offer(WINDOW, predicted(number)) for number in range(1, 10)]
    assert answers == [number % 3 == 0 for number in range(1, 10)]
    assert kept.numbers() == [3, 6, 9] and kept.reasons() == [["every_nth"]] * 3


@pytest.mark.parametrize(
    ("policy", "reason", "wanted", "not_wanted"),
    [
        (CapturePolicy(confidence_below=0.6), "confidence", (0.59, 0.41), (0.6, 0.4)),
        (CapturePolicy(entropy_above=0.9), "entropy", (0.5, 0.5), (0.9, 0.1)),
        (CapturePolicy(margin_below=0.25), "margin", (0.6, 0.4), (0.7, 0.3)),
    ],
)
def test_rules_of_the_scores(
    policy: CapturePolicy, reason: str, wanted: tuple[float, ...], not_wanted: tuple[float, ...]
) -> None:
    kept = Kept(policy)
    assert kept.capturer.offer(WINDOW, predicted(1, scores=wanted))
    assert not kept.capturer.offer(WINDOW, predicted(2, scores=not_wanted))
    assert kept.reasons() == [[reason]] and kept.numbers() == [1]


def test_a_model_of_one_score_has_no_margin() -> None:
    assert not Kept(CapturePolicy(margin_below=0.5)).capturer.offer(WINDOW, predicted(scores=(0.5,)))


def test_a_window_that_several_rules_want_is_kept_once_with_all_reasons() -> None:
    kept = Kept(CapturePolicy(every_nth=1, confidence_below=1.0, margin_below=1.0, per_class=1))
    kept.capturer.offer(WINDOW, predicted())
    assert kept.reasons() == [["every_nth", "confidence", "margin", "per_class"]]
    assert kept.capturer.stats()["kept"] == {"every_nth": 1, "confidence": 1, "margin": 1, "per_class": 1}


def test_an_alarm_keeps_what_came_before_it_and_after_it_in_order() -> None:
    kept = Kept(CapturePolicy(around_alarm=True, pre_roll=3, post_roll=2))
    windows = [WINDOW + number for number in range(12)]
    for number, window in enumerate(windows):
        kept.capturer.offer(window, predicted(number), (ALARM,) if number == 6 else ())
    assert kept.numbers() == [3, 4, 5, 6, 7, 8]
    assert kept.reasons() == [["pre_roll"]] * 3 + [["alarm"]] * 3
    for payload, number in zip(kept.payloads, range(3, 9), strict=True):
        np.testing.assert_array_equal(decode_sample(payload), windows[number])


def test_a_second_alarm_keeps_nothing_twice() -> None:
    kept = Kept(CapturePolicy(around_alarm=True, pre_roll=4, post_roll=1))
    for number in range(10):
        kept.capturer.offer(WINDOW, predicted(number), (ALARM,) if number in (4, 5, 7) else ())
    assert kept.numbers() == [0, 1, 2, 3, 4, 5, 6, 7, 8]


def test_an_alarm_before_the_roll_is_full_keeps_what_there_is() -> None:
    kept = Kept(CapturePolicy(around_alarm=True, pre_roll=8, post_roll=0))
    for number in range(3):
        kept.capturer.offer(WINDOW, predicted(number), (ALARM,) if number == 2 else ())
    assert kept.numbers() == [0, 1, 2]


def test_a_window_of_another_shape_begins_the_roll_anew() -> None:
    kept = Kept(CapturePolicy(around_alarm=True, pre_roll=4, post_roll=0))
    kept.capturer.offer(WINDOW, predicted(0))
    kept.capturer.offer(WINDOW[:2], predicted(1))
    kept.capturer.offer(WINDOW[:2], predicted(2), (ALARM,))
    assert kept.numbers() == [1, 2]


def test_per_class_is_a_quota_of_each_label_a_day_and_no_wall_clock_ends_the_day() -> None:
    kept = Kept(CapturePolicy(per_class=2))
    for number in range(10):
        kept.capturer.offer(WINDOW, predicted(number, label="ab"[number % 2]))
    assert kept.numbers() == [0, 1, 2, 3]
    kept.clock.jump_wall(400 * 86_400)
    assert not kept.capturer.offer(WINDOW, predicted(10))
    kept.clock.advance(86_400)
    assert kept.capturer.offer(WINDOW, predicted(11))


def test_the_reservoir_is_uniform() -> None:
    counts: Counter[int] = Counter()
    for seed in range(2000):
        kept = Kept(CapturePolicy(reservoir=4, bytes_per_day=1 << 40), seed=seed)
        for number in range(20):
            kept.capturer.offer(WINDOW, predicted(number))
        numbers = kept.numbers()
        assert len(set(numbers)) == 4
        counts.update(numbers)
    expected = 2000 * 4 / 20
    chi_square = sum((counts[number] - expected) ** 2 / expected for number in range(20))
    assert chi_square < 43.8  # the 0.999 quantile with 19 degrees of freedom; seeds are fixed


def test_the_reservoir_is_handed_over_when_the_day_ends_and_replaced_windows_cost_nothing() -> None:
    kept = Kept(CapturePolicy(reservoir=2, bytes_per_day=1 << 20), seed=1)
    before = int(str(kept.capturer.stats()["budget_bytes"]))
    for number in range(500):
        kept.capturer.offer(WINDOW, predicted(number))
    assert kept.capturer.flush() == 0 and kept.capturer.stats()["kept"] == {"reservoir": 2}
    assert before - int(str(kept.capturer.stats()["budget_bytes"])) < 1000
    kept.clock.advance(86_400)
    kept.capturer.offer(WINDOW, predicted(500))
    assert kept.capturer.flush() == 2


def test_the_budget_refuses_and_counts_and_only_time_that_never_jumps_refills_it() -> None:
    kept = Kept(CapturePolicy(every_nth=1, bytes_per_day=1000))
    for number in range(10):
        kept.capturer.offer(WINDOW, predicted(number))
    first = len(kept.numbers())
    assert 1 <= first < 10 and kept.capturer.refused == 10 - first
    kept.clock.jump_wall(10 * 365 * 86_400)
    assert not kept.capturer.offer(WINDOW, predicted(11))
    kept.clock.advance(86_400 / 2)
    assert kept.capturer.offer(WINDOW, predicted(12))
    kept.clock.advance(86_400 * 30)  # a month's worth does not pile up
    assert sum(kept.capturer.offer(WINDOW, predicted(number)) for number in range(20, 40)) == first


def test_a_window_too_large_for_a_record_is_refused_and_counted() -> None:
    kept = Kept(CapturePolicy(every_nth=1, bytes_per_day=1 << 30))
    noise = np.random.default_rng(0).normal(size=(224 * 224, 3)).astype(np.float32)
    assert not kept.capturer.offer(noise, predicted())
    assert kept.capturer.refused == 1


def test_an_image_is_kept_in_a_quarter_of_the_bytes() -> None:
    kept = Kept(CapturePolicy(every_nth=1, bytes_per_day=1 << 30))
    image = np.random.default_rng(0).integers(0, 256, (224 * 224, 3)).astype(np.float32)
    assert kept.capturer.offer(image, predicted())
    kept.capturer.flush(force=True)
    assert kept.payloads[0]["encoding"] == "zlib+base64 of uint8"
    assert len(json.dumps(kept.payloads[0])) < SAMPLE_BYTES_MAX
    np.testing.assert_array_equal(decode_sample(kept.payloads[0]), image)


def test_flush_is_no_more_often_than_the_flash_allows() -> None:
    kept = Kept(CapturePolicy(every_nth=1, writes_per_hour=60))
    kept.capturer.offer(WINDOW, predicted(0))
    assert kept.capturer.flush() == 1
    kept.capturer.offer(WINDOW, predicted(1))
    assert kept.capturer.flush() == 0
    kept.clock.advance(59)
    assert kept.capturer.flush() == 0
    kept.clock.advance(2)
    assert kept.capturer.flush() == 1
    kept.capturer.offer(WINDOW, predicted(2))
    assert kept.capturer.flush(force=True) == 1


def test_what_nobody_fetches_is_bounded_and_counted() -> None:
    kept = Kept(CapturePolicy(every_nth=1, bytes_per_day=1 << 40))
    for number in range(WAITING_MAX + 7):
        kept.capturer.offer(WINDOW, predicted(number))
    assert kept.capturer.lost == 7
    assert kept.numbers() == list(range(7, WAITING_MAX + 7))


def one_payload(privacy: str, **arguments: object) -> Payload:
    kept = Kept(CapturePolicy(every_nth=1, privacy=privacy), **arguments)
    kept.capturer.offer(WINDOW, predicted(scores=(0.7, 0.3)))
    kept.capturer.flush(force=True)
    return kept.payloads[0]


def test_in_full_the_window_comes_back_bit_for_bit() -> None:
    payload = one_payload("full")
    np.testing.assert_array_equal(decode_sample(payload), WINDOW)
    assert payload["prediction"] == "s-0" and payload["label"] == "a" and payload["confidence"] == 0.7
    assert (payload["model"], payload["version"], payload["shape"]) == ("m", "1", [3, 2])


def test_features_say_mean_and_deviation_and_nothing_else() -> None:
    payload = one_payload("features")
    assert payload["mean"] == pytest.approx(WINDOW.mean(axis=0).tolist())
    assert payload["std"] == pytest.approx(WINDOW.std(axis=0).tolist())
    assert not {"data", "hash"} & set(payload)
    with pytest.raises(InputError, match="holds no window: privacy 'features'"):
        decode_sample(payload)


def test_a_hash_recognises_a_window_only_with_the_devices_salt() -> None:
    first, same, other = (one_payload("hashed", salt=salt)["hash"] for salt in (b"1", b"1", b"2"))
    assert first == same != other
    assert not {"data", "mean", "std"} & set(one_payload("hashed"))


def test_none_keeps_nothing() -> None:
    kept = Kept(CapturePolicy(every_nth=1, around_alarm=True, privacy="none"))
    assert not kept.capturer.offer(WINDOW, predicted(), (ALARM,))
    assert kept.capturer.flush(force=True) == 0 and not kept.capturer.policy.active


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data": "!"}, "damaged"),
        ({"data": base64.b64encode(b"no zlib").decode()}, "damaged"),
        ({"data": base64.b64encode(zlib.compress(b"1234")).decode()}, "needs 24 bytes"),
        ({"data": base64.b64encode(zlib.compress(bytes(10_000_000))).decode()}, "needs 24 bytes"),
        ({"shape": [1 << 40, 2]}, "a sample of shape"),
        ({"shape": [1 << 20, 1 << 20]}, "more than"),
        ({"shape": "3x2"}, "a sample of shape"),
        ({"encoding": "gif"}, "encoding 'gif'"),
        ({"data": None}, "holds no window"),
    ],
)
def test_a_damaged_sample_is_refused(changes: dict[str, Json], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        decode_sample({**one_payload("full"), **changes})


def test_the_budget_goes_on_over_a_restart_and_a_damaged_state_leaves_none() -> None:
    kept = Kept(CapturePolicy(every_nth=1, bytes_per_day=1000))
    while kept.capturer.offer(WINDOW, predicted()):
        pass
    again = Kept(kept.capturer.policy)
    again.capturer.restore(json.loads(json.dumps(kept.capturer.state())))
    assert not again.capturer.offer(WINDOW, predicted())
    for state in (None, [], {"budget_bytes": "much"}, {"budget_bytes": float("nan")}, {"budget_bytes": -5}):
        damaged = Kept(kept.capturer.policy)
        damaged.capturer.restore(state)
        assert not damaged.capturer.offer(WINDOW, predicted())
    rich = Kept(kept.capturer.policy)
    rich.capturer.restore({"budget_bytes": 1e30})
    assert int(str(rich.capturer.stats()["budget_bytes"])) == 1000


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"every": 3}, "every"),
        ({"every_nth": -1}, "every_nth"),
        ({"confidence_below": "low"}, "confidence_below"),
        ({"privacy": "secret"}, "privacy is 'secret', expected full, features, hashed, none"),
        ({"pre_roll": 5000}, "pre_roll <= 4096"),
        ({"reservoir": 10_000}, "reservoir <= 256"),
        ({"writes_per_hour": 0}, "writes_per_hour >= 1"),
        ({"around_alarm": 1}, "around_alarm"),
    ],
)
def test_a_wrong_policy_names_its_key(table: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_config({"capture": table}, Path())
    with pytest.raises(ConfigError, match=problem):
        parse_capture(Fields(table, "capture", ConfigError))


def test_a_policy_is_read_with_every_key() -> None:
    policy = CapturePolicy(5, 0.4, 0.9, 0.1, True, 3, 4, 2, 7, 12345, 6, "features")
    table = {name: getattr(policy, name) for name in policy.__slots__}
    assert parse_capture(Fields(table, "capture", ConfigError)) == policy


def test_nothing_is_lost_between_two_threads() -> None:
    kept = Kept(CapturePolicy(every_nth=1, bytes_per_day=1 << 40))
    done = threading.Event()

    def fetch() -> None:
        while not done.is_set():
            kept.capturer.flush(force=True)

    thread = threading.Thread(target=fetch)
    thread.start()
    for number in range(5000):
        kept.capturer.offer(WINDOW, predicted(number))
    done.set()
    thread.join()
    numbers = kept.numbers()
    assert len(numbers) + kept.capturer.lost == 5000 and numbers == sorted(set(numbers))


@pytest.fixture
def config(tmp_path: Path) -> DeviceConfig:
    data = tmp_path / "data"
    write_keys(data / "trust", make_signer())
    package = tmp_path / "gesture.tlm"
    package.write_bytes(make_package())
    return DeviceConfig(
        data, models={"gesture": ModelConfig(package)}, capture=CapturePolicy(every_nth=2, bytes_per_day=2000)
    )


def test_a_device_journals_what_it_keeps_and_its_budget_survives_a_restart(config: DeviceConfig) -> None:
    with Device.open(config, background=False) as device:
        model = device.model("gesture")
        predictions = [model.infer([float(number), 2.5, 3.0]) for number in range(4)]
    with Device.open(config, background=False) as again:
        found = [record for record in again.journal.read("details", 100, 1 << 20) if record.type == "sample"]
        assert [record.payload["prediction"] for record in found] == [predictions[1].id, predictions[3].id]
        np.testing.assert_array_equal(decode_sample(found[1].payload).reshape(-1), np.float32([3, 2.5, 3]))
        left = again.status()["capture"]
        assert isinstance(left, dict) and 0 < left["budget_bytes"] < 2000
        model = again.model("gesture")
        for _ in range(40):
            model.infer([1, 2.5, 3])
        stats = again.status()["capture"]
        assert isinstance(stats, dict) and stats["refused"] > 0


def test_a_damaged_state_of_the_budget_is_said_and_leaves_none(
    config: DeviceConfig, caplog: pytest.LogCaptureFixture
) -> None:
    config.data.mkdir(exist_ok=True)
    (config.data / "capture.json").write_bytes(b"{\xff")
    with Device.open(config, background=False) as device:
        device.model("gesture").infer([1, 2, 3])
        device.model("gesture").infer([1, 2, 3])
        assert device.status()["capture"]["refused"] == 1  # type: ignore[index]
    assert "capture.json is damaged" in caplog.text


def stepped(version: str = "1.0") -> Package:
    """A model whose input tensor does not hold the window, and that no monitor of windows watches."""
    document = {
        "version": version,
        "input": {"name": "x", "shape": [1, 2, 2]},
        "window": {"samples": 8, "channels": 2},
        "preprocess": [{"op": "centre", "mean": [1.0, -1.0]}, {"op": "rms", "frame": 4}],
    }
    return packaged(document, {"model.onnx": linear_model(2, samples=2)})


def test_what_is_kept_is_the_window_before_the_steps_and_quantisation() -> None:
    kept: list[Any] = []
    capturer = Capturer(CapturePolicy(every_nth=1), kept.append, ManualClock())
    windows = np.random.default_rng(0).standard_normal((5, 8, 2)).astype(np.float32)
    pipeline = Pipeline(stepped(), capture=capturer)
    assert len(list(pipeline.stream([windows[0]]))) == 1
    pipeline.infer(windows[1])
    pipeline.infer_many(windows[2:4])
    pipeline.swap(stepped("2.0"))
    pipeline.infer(windows[4])
    capturer.flush(force=True)
    assert np.array_equal([decode_sample(sample) for sample in kept], windows)


def test_a_capture_that_begins_later_keeps_the_next_window() -> None:
    kept: list[Any] = []
    capturer = Capturer(CapturePolicy(every_nth=1), kept.append, ManualClock())
    pipeline = Pipeline(stepped())
    window = np.ones((8, 2), np.float32)
    pipeline.infer(window)
    pipeline.keep_windows(capturer)
    pipeline.infer(2 * window)
    capturer.flush(force=True)
    assert [decode_sample(sample).tolist() for sample in kept] == [(2 * window).tolist()]


def test_a_device_without_a_policy_keeps_nothing(config: DeviceConfig) -> None:
    with Device.open(replace(config, capture=CapturePolicy()), background=False) as device:
        device.model("gesture").infer([1, 2, 3])
        assert device.status()["capture"] is None
    assert not (config.data / "capture.json").exists()


# Windows that no record can hold

LARGE = np.random.default_rng(1).normal(size=(40_000, 3)).astype(np.float32)


def test_a_window_that_no_record_can_hold_is_kept_beside_its_record() -> None:
    blobs: list[bytes] = []
    policy = CapturePolicy(every_nth=1, bytes_per_day=10 << 20)
    kept = Kept(policy, keep_blob=lambda data: blobs.append(data) is None)
    assert kept.capturer.offer(LARGE, predicted())
    assert blobs == []  # nothing is written before it is flushed
    kept.capturer.flush()
    payload = kept.payloads[0]
    assert payload["blob"] == hashlib.sha256(blobs[0]).hexdigest() and "data" not in payload
    assert np.array_equal(decode_sample(dict(payload), blobs[0]), LARGE)
    with pytest.raises(InputError, match="fetch it and give it"):
        decode_sample(dict(payload))
    with pytest.raises(InputError, match="not the one that the sample names"):
        decode_sample(dict(payload), blobs[0][:-1])
    small = Kept(policy, keep_blob=lambda data: pytest.fail("a small window is no blob"))
    assert small.capturer.offer(WINDOW, predicted()) and small.capturer.flush() == 1


def test_without_a_place_for_it_a_large_window_is_refused_and_a_failing_place_loses_it() -> None:
    policy = CapturePolicy(every_nth=1, bytes_per_day=10 << 20)
    without = Kept(policy)
    assert not without.capturer.offer(LARGE, predicted()) and without.capturer.refused == 1
    failing = Kept(policy, keep_blob=lambda data: False)
    assert failing.capturer.offer(LARGE, predicted())
    failing.capturer.flush()
    assert failing.payloads == [] and failing.capturer.lost == 1


def test_large_windows_that_wait_are_bounded_and_paid_from_the_budget() -> None:
    budget = CapturePolicy(every_nth=1, bytes_per_day=600_000)
    kept = Kept(budget, keep_blob=lambda data: True)
    assert [kept.capturer.offer(LARGE, predicted(n)) for n in range(3)] == [True, False, False]
    many = Kept(CapturePolicy(every_nth=1, bytes_per_day=1 << 30), keep_blob=lambda data: True)
    answers = [many.capturer.offer(LARGE, predicted(n)) for n in range(60)]
    assert 10 < sum(answers) < 60 and not answers[-1]
    many.capturer.flush(force=True)
    assert many.capturer.offer(LARGE, predicted(61))
