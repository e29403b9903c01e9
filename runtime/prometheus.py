"""Metrics as Prometheus reads them: text format 0.0.4, units in the names, counters that only grow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final

from .metrics import BOUNDS_US, SAMPLE_COUNTS, STAGES
from .system import SystemReading

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_EVERY: Final = 4  # of the fine buckets one is shown: a doubling
_GAUGES: Final = {
    "rss_bytes": ("resident_memory_bytes", "Resident memory of the process."),
    "threads": ("threads", "Threads of the process."),
    "open_files": ("open_files", "Open file descriptors of the process."),
    "cpu_percent": ("cpu_percent", "Processor time of the process since the reading before, 100 is one core."),
    "cpu_temperature_c": ("cpu_temperature_celsius", "Temperature of the processor."),
    "throttled": ("throttled", "1 while the processor is held back by heat or voltage."),
    "throttled_since_boot": ("throttled_since_boot", "1 if it was at some time since the boot."),
    "cpu_frequency_hz": ("cpu_frequency_hertz", "Frequency of the first core."),
    "load1": ("load1", "Load of the machine over a minute."),
    "memory_available_bytes": ("memory_available_bytes", "Memory that the machine can still give."),
    "uptime_s": ("uptime_seconds", "Time since the machine started."),
    "disk_free_bytes": ("disk_free_bytes", "Free space where the data folder lies."),
    "disk_total_bytes": ("disk_total_bytes", "Space where the data folder lies."),
    "clock_offset_s": ("clock_offset_seconds", "The server's time less this machine's, at the last sync."),
}


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _series(name: str, labels: Mapping[str, str], value: float) -> str:
    inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{inside}}} {_number(value)}" if inside else f"{name} {_number(value)}"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


class _Page:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def family(self, name: str, kind: str, about: str, series: Iterable[str]) -> None:
        """One metric with all its series; nothing when there are none."""
        rows = list(series)
        if rows:
            self.lines += [f"# HELP tinylcm_{name} {about}", f"# TYPE tinylcm_{name} {kind}", *rows]


def render(models: Mapping[str, Mapping[str, Any]], system: SystemReading, journal: Mapping[str, int]) -> str:
    """The page.

    Args:
        models: `Metrics.rollup` with `model` and `version` added, by name.
        system: a look at the machine.
        journal: bytes on disk by stream.
    """
    page = _Page()
    names = {name: {"model": name, "version": str(rollup.get("version", ""))} for name, rollup in models.items()}

    def each(key: str, family: str) -> list[str]:
        return [_series(f"tinylcm_{family}", names[name], rollup[key]) for name, rollup in models.items()]

    page.family("predictions_total", "counter", "Windows that were predicted.", each("windows", "predictions_total"))
    page.family("errors_total", "counter", "Windows that gave no prediction.", each("errors", "errors_total"))
    page.family("swaps_total", "counter", "Models exchanged while running.", each("swaps", "swaps_total"))
    page.family(
        "queue_dropped_total", "counter", "Items that a worker's queue lost.", each("overflow", "queue_dropped_total")
    )
    page.family(
        "label_predictions_total",
        "counter",
        "Windows that were predicted, by label.",
        [
            _series("tinylcm_label_predictions_total", {**names[name], "label": label}, count)
            for name, rollup in models.items()
            for label, count in rollup["labels"].items()
        ],
    )
    page.family(
        "samples_total",
        "counter",
        f"What happened to samples: {', '.join(SAMPLE_COUNTS)}.",
        [
            _series("tinylcm_samples_total", {**names[name], "what": what}, count)
            for name, rollup in models.items()
            for what, count in rollup["samples"].items()
        ],
    )
    page.family(
        "latency_seconds",
        "histogram",
        "Time of a prediction by stage: load, run, post, monitors and total.",
        [line for name, rollup in models.items() for line in _histograms(names[name], rollup["latency"])],
    )
    values = asdict(system)
    for key, (name, about) in _GAUGES.items():
        if values[key] is not None:
            page.family(name, "gauge", about, [_series(f"tinylcm_{name}", {}, float(values[key]))])
    page.family(
        "journal_bytes",
        "gauge",
        "Bytes of the journal on disk.",
        [_series("tinylcm_journal_bytes", {"stream": stream}, size) for stream, size in journal.items()],
    )
    return "\n".join(page.lines) + "\n"


def _histograms(labels: Mapping[str, str], latency: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    for stage in STAGES:
        counts, seen = latency[stage]["counts"], 0
        inside = {**labels, "stage": stage}
        for index, bound in enumerate(BOUNDS_US):
            seen += counts[index]
            if index % _EVERY == 0:
                edge = {**inside, "le": repr(bound / 1e6)}
                yield _series("tinylcm_latency_seconds_bucket", edge, seen)
        total = seen + counts[-1]
        yield _series("tinylcm_latency_seconds_bucket", {**inside, "le": "+Inf"}, total)
        yield _series("tinylcm_latency_seconds_sum", inside, latency[stage]["sum_us"] / 1e6)
        yield _series("tinylcm_latency_seconds_count", inside, total)
