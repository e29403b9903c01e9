"""The page that Prometheus scrapes, read back with its own parser."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import pytest
from clocks import ManualClock
from hypothesis import given, settings
from hypothesis import strategies as st
from models import linear_model
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from tinylcm import InputError, Pipeline
from tinylcm.metrics import BOUNDS_US, SAMPLE_COUNTS, STAGES, Metrics
from tinylcm.prometheus import CONTENT_TYPE, render
from tinylcm.system import SystemReading
from tinylcm.types import Json
from tinylcm.wire import canonical_json, finite

JOURNAL = {"events": 4096, "details": 0}


def reading(**changes: object) -> SystemReading:
    """A machine that says everything."""
    whole = SystemReading(
        rss_bytes=50_000_000, threads=4, open_files=12, cpu_percent=3.25, cpu_temperature_c=61.5, throttled=True,
        throttled_since_boot=False, cpu_frequency_hz=1.5e9, load1=0.5, memory_available_bytes=1 << 30,
        uptime_s=1234.5, disk_free_bytes=1 << 33, disk_total_bytes=1 << 34, clock_offset_s=-0.25,
    )  # fmt: skip
    return replace(whole, **changes)  # type: ignore[arg-type]


def metrics_of(labels: tuple[str, ...], latencies_us: tuple[float, ...] = (1.0, 20.0, 20.0, 350.0)) -> Metrics:
    metrics = Metrics(labels, ManualClock())
    for index, latency in enumerate(latencies_us):
        metrics.update(latency, 0.9, index % len(labels))
    return metrics


def rollup_of(metrics: Metrics, version: str = "1.0.0") -> dict[str, Json]:
    return {"version": version, **metrics.rollup()}


def parse(text: str) -> dict[str, Metric]:
    """Families by name; each may come once, and each series too."""
    families = list(text_string_to_metric_families(text))
    names = Counter(family.name for family in families)
    assert max(names.values()) == 1
    series = Counter((s.name, tuple(sorted(s.labels.items()))) for family in families for s in family.samples)
    assert max(series.values()) == 1
    return {family.name: family for family in families}


def one(family: Metric, **labels: str) -> Sample:
    (found,) = [sample for sample in family.samples if labels.items() <= sample.labels.items()]
    return found


def test_counters_carry_model_and_version() -> None:
    metrics = metrics_of(("a", "b"))
    metrics.count_error()
    metrics.count_samples((1, 2, 3, 4, 5, 6, 7))
    metrics.totals["overflow"], metrics.totals["swaps"] = 8, 9
    families = parse(render({"gesture": rollup_of(metrics)}, reading(), JOURNAL))
    expected = {"predictions": 4, "errors": 1, "queue_dropped": 8, "swaps": 9}
    for name, count in expected.items():
        family = families[f"tinylcm_{name}"]
        (sample,) = family.samples
        assert family.type == "counter" and sample.name == f"tinylcm_{name}_total"
        assert sample.value == count and sample.labels == {"model": "gesture", "version": "1.0.0"}
    labels = families["tinylcm_label_predictions"]
    assert [one(labels, label=label).value for label in ("a", "b")] == [2, 2]
    samples = families["tinylcm_samples"]
    assert [one(samples, what=what).value for what in SAMPLE_COUNTS] == [1, 2, 3, 4, 5, 6, 7]


def test_counters_only_grow_when_a_summary_is_taken() -> None:
    metrics = metrics_of(("a", "b"))

    def counters() -> dict[tuple[str, str], float]:
        page = parse(render({"gesture": rollup_of(metrics)}, reading(), JOURNAL))
        rows = [s for family in page.values() if family.type != "gauge" for s in family.samples]
        return {(row.name, str(sorted(row.labels.items()))): row.value for row in rows}

    before = counters()
    metrics.clear()
    assert counters() == before
    metrics.update(20.0, 0.5, 1)
    after = counters()
    assert after.keys() == before.keys() and all(after[key] >= before[key] for key in before)
    assert sum(after.values()) > sum(before.values())


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_whole_histogram(tmp_path: Path, stage: str) -> None:
    path = tmp_path / "linear.onnx"
    path.write_bytes(linear_model())
    pipeline = Pipeline(path)
    for _ in range(30):
        pipeline.infer([1, 2, 3])
    with pytest.raises(InputError):
        pipeline.infer([1])
    family = parse(render({"linear": rollup_of(pipeline.metrics)}, reading(), {}))["tinylcm_latency_seconds"]
    assert family.type == "histogram" and {s.labels["stage"] for s in family.samples} == set(STAGES)
    rows = [sample for sample in family.samples if sample.labels["stage"] == stage]
    buckets = [(float(row.labels["le"]), row.value) for row in rows if row.name.endswith("_bucket")]
    assert buckets == sorted(buckets) and [count for _, count in buckets] == sorted(count for _, count in buckets)
    assert buckets[-1] == (math.inf, 30)
    (count,) = [row.value for row in rows if row.name.endswith("_count")]
    (total,) = [row.value for row in rows if row.name.endswith("_sum")]
    assert count == 30
    assert total == pytest.approx(pipeline.metrics.histogram(stage).sum_us / 1e6)


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1e9) | st.sampled_from(BOUNDS_US), min_size=1, max_size=60))
def test_a_bucket_counts_all_values_up_to_its_edge(latencies_us: list[float]) -> None:
    metrics = metrics_of(("a",), tuple(latencies_us))
    family = parse(render({"m": rollup_of(metrics)}, reading(), {}))["tinylcm_latency_seconds"]
    rows = {s.labels["le"]: s.value for s in family.samples if s.labels["stage"] == "total" and "le" in s.labels}
    assert rows.pop("+Inf") == len(latencies_us)
    edges = BOUNDS_US[::4]
    assert [float(edge) for edge in rows] == pytest.approx([edge / 1e6 for edge in edges])
    assert list(rows.values()) == [sum(value <= edge for value in latencies_us) for edge in edges]


@pytest.mark.parametrize(
    "label", ['say "hi"', "two\nlines", "back\\slash", "\\n", 'all\\"\n', "{a=b},c", "späť 🛠", "", " "]
)
def test_a_label_s_text_comes_back_whatever_it_holds(label: str) -> None:
    metrics = metrics_of((label, "other"))
    families = parse(render({"m": rollup_of(metrics, version=label)}, reading(), JOURNAL))
    assert one(families["tinylcm_label_predictions"], label=label).value == 2
    assert families["tinylcm_predictions"].samples[0].labels["version"] == label


def test_several_models_share_one_family() -> None:
    models = {name: rollup_of(metrics_of(("a", "b")), version) for name, version in (("one", "1"), ("two", "2"))}
    families = parse(render(models, reading(), JOURNAL))
    assert {s.labels["model"]: s.labels["version"] for s in families["tinylcm_predictions"].samples} == {
        "one": "1",
        "two": "2",
    }
    assert one(families["tinylcm_label_predictions"], model="two", label="b").value == 2


def test_gauges_are_in_base_units() -> None:
    families = parse(render({}, reading(), JOURNAL))
    values = {
        "resident_memory_bytes": 5e7, "threads": 4, "open_files": 12, "cpu_percent": 3.25,
        "cpu_temperature_celsius": 61.5, "throttled": 1, "throttled_since_boot": 0, "cpu_frequency_hertz": 1.5e9,
        "load1": 0.5, "memory_available_bytes": 1 << 30, "uptime_seconds": 1234.5, "disk_free_bytes": 1 << 33,
        "disk_total_bytes": 1 << 34, "clock_offset_seconds": -0.25,
    }  # fmt: skip
    assert len(values) == len(fields(SystemReading))
    for name, value in values.items():
        family = families[f"tinylcm_{name}"]
        assert family.type == "gauge" and family.samples[0].value == value and not family.samples[0].labels
    assert {s.labels["stream"]: s.value for s in families["tinylcm_journal_bytes"].samples} == JOURNAL
    assert families.keys() == {f"tinylcm_{name}" for name in (*values, "journal_bytes")}  # without a model, no others


def test_what_the_machine_does_not_say_is_left_out() -> None:
    silent = reading(
        open_files=None, cpu_temperature_c=None, throttled=None, throttled_since_boot=None, cpu_frequency_hz=None,
        load1=None, disk_free_bytes=None, disk_total_bytes=None, clock_offset_s=None,
    )  # fmt: skip
    text = render({}, silent, {})
    assert set(parse(text)) == {
        f"tinylcm_{name}"
        for name in ("resident_memory_bytes", "threads", "cpu_percent", "memory_available_bytes", "uptime_seconds")
    }
    assert "None" not in text
    assert "tinylcm_clock_offset_seconds 0\n" in render({}, reading(clock_offset_s=0.0), {})  # zero is not silence


def test_the_page_keeps_the_format() -> None:
    text = render({"m": rollup_of(metrics_of(("a",)))}, reading(), JOURNAL)
    assert text.endswith("\n") and "\n\n" not in text and "version=0.0.4" in CONTENT_TYPE
    lines = text.splitlines()
    helps = [line.split()[2] for line in lines if line.startswith("# HELP ")]
    types = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
    assert helps == types and all(re.fullmatch(r"tinylcm_[a-z0-9_]+", name) for name in helps)
    assert all(name.endswith("_total") for name in helps if _kind(lines, name) == "counter")


def _kind(lines: list[str], name: str) -> str:
    return next(line.split()[3] for line in lines if line.startswith(f"# TYPE {name} "))


@pytest.mark.parametrize(("value", "shown"), [(1e15, "1000000000000000.0"), (123456789, "123456789"), (0.1, "0.1")])
def test_numbers_keep_their_digits(value: float, shown: str) -> None:
    text = render({}, reading(uptime_s=value), {})
    assert f"tinylcm_uptime_seconds {shown}\n" in text
    assert parse(text)["tinylcm_uptime_seconds"].samples[0].value == value


def test_a_rollup_that_came_over_the_status_socket_gives_the_same_page() -> None:
    models = {"m": rollup_of(metrics_of(("a", "b")))}
    travelled = json.loads(canonical_json(finite(models)))
    pages = [render(each, reading(), JOURNAL).splitlines() for each in (models, travelled)]
    assert sorted(pages[0]) == sorted(pages[1])  # JSON orders the keys
