"""Summaries of metrics that become one: what two neighbours in time say together.

It owns the arithmetic and nothing else: no files, no ids. The journal uses it when its budget is full; what comes out
says the same of the whole interval as the summaries that went in, only not of its parts any more.

Rules
- Only summaries of one boot, model and version are merged, and only when their intervals do not overlap.
- What is nearest in time is merged first, and no more of it than the room asks for.
- Counts, labels and sketch buckets are added, so their sums are the same before and after. Mean and M2 follow Chan's
  formula, minimum, maximum and memory are the extremes, and the processor's load is weighted by time.
- `merged` counts the summaries that one was made of, and `covered_ns` is the time that they covered: less than the
  interval from `start_ns` to `end_ns` when something between them was lost or is stored elsewhere.
- A field that is not known here must be equal in both, or they stay apart: nothing is thrown away unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from .types import Json

BUCKETS_MAX: Final = 2048  # of a merged sketch; a server takes twice as many
_COUNT_MAX: Final = 1 << 53
_DOUBLINGS_MAX: Final = 64  # of a span in nanoseconds
_SUMS: Final = ("windows", "errors", "dropped_samples")
_STATISTICS: Final = ("latency_us", "confidence")
_MADE: Final = ("merged", "covered_ns")
_MOMENTS: Final = {"count", "mean", "m2", "min", "max", "sketch"}
_KNOWN: Final = frozenset({*_SUMS, *_STATISTICS, "start_ns", "end_ns", "labels", "rss_bytes", "cpu_percent", *_MADE})


@dataclass(frozen=True, slots=True)
class Summary:
    """A summary record, and the ids (epoch, seq) of the records that it stands for."""

    boot: str
    boot_ns: int
    payload: dict[str, Json]
    ids: tuple[tuple[str, int], ...]


def condense(summaries: Iterable[Summary], bytes_max: int, size_of: Callable[[Summary], int]) -> list[Summary]:
    """Merge as much as it takes to fit, and what is nearest in time first.

    Args:
        summaries: mergeable ones.
        bytes_max: which all of them should take at most; what is left may take more when nothing more can be merged.
        size_of: bytes that one takes.

    Returns:
        By model, version and boot, and in the order of time within each.
    """
    runs: dict[tuple[str, Json, Json], list[Summary]] = {}
    for summary in summaries:
        key = (summary.boot, summary.payload["model"], summary.payload["version"])
        runs.setdefault(key, []).append(summary)
    for run in runs.values():
        run.sort(key=lambda summary: _interval(summary.payload))
    excess = sum(size_of(summary) for run in runs.values() for summary in run) - bytes_max
    spans = [_span_ns(*pair) for run in runs.values() for pair in pairwise(run)]
    span_ns = max(1, min(spans, default=1))
    for _ in range(_DOUBLINGS_MAX):
        if excess <= 0 or span_ns > 2 * sum(spans):
            break
        for key, run in runs.items():
            runs[key], excess = _halve(run, span_ns, excess, size_of)
        span_ns *= 2
    return [summary for run in runs.values() for summary in run]


def _halve(
    run: list[Summary], span_ns: int, excess: int, size_of: Callable[[Summary], int]
) -> tuple[list[Summary], int]:
    """One pass over a run: neighbours that together span at most so much become one, until nothing is in excess."""
    halved: list[Summary] = []
    items = iter(run)
    last = next(items)
    for summary in items:
        payload = None
        if excess > 0 and _span_ns(last, summary) <= span_ns:
            payload = merge(last.payload, summary.payload)
        if payload is None:
            halved.append(last)
            last = summary
            continue
        whole = Summary(last.boot, max(last.boot_ns, summary.boot_ns), payload, last.ids + summary.ids)
        excess += size_of(whole) - size_of(last) - size_of(summary)
        last = whole
    return [*halved, last], excess


def _span_ns(first: Summary, second: Summary) -> int:
    return _interval(second.payload)[1] - _interval(first.payload)[0]


def merge(first: Mapping[str, Json], second: Mapping[str, Json]) -> dict[str, Json] | None:
    """The payload that says what both say; None when they stay apart.

    Args:
        first, second: mergeable payloads of one boot, the earlier interval first.
    """
    if _interval(first)[1] > _interval(second)[0]:
        return None
    if (first.keys() ^ second.keys()).difference(_MADE):
        return None
    if any(first.get(key) != value for key, value in second.items() if key not in _KNOWN):
        return None
    payload: dict[str, Any] = dict(second)
    for key in _STATISTICS:
        payload[key] = _statistic(first[key], second[key])
        if payload[key] is None:
            return None
    for key in _SUMS:
        payload[key] = first[key] + second[key]  # type: ignore[operator]
    payload["start_ns"] = first["start_ns"]
    payload["labels"] = _added(first["labels"], second["labels"])
    payload["merged"] = first.get("merged", 1) + second.get("merged", 1)  # type: ignore[operator]
    payload["covered_ns"] = _covered_ns(first) + _covered_ns(second)
    payload["rss_bytes"] = _extreme(max, first.get("rss_bytes"), second.get("rss_bytes"))
    payload["cpu_percent"] = _weighted(
        (first.get("cpu_percent"), _covered_ns(first)), (second.get("cpu_percent"), _covered_ns(second))
    )
    return payload


def is_mergeable(payload: Mapping[str, Json]) -> bool:
    """Whether a payload has the form of a summary, so that its parts can be added."""
    if not all(isinstance(payload.get(key), str) for key in ("model", "version")):
        return False
    if not all(_is_count(payload.get(key)) for key in _SUMS) or not all(
        _is_count(payload.get(key, 1)) for key in _MADE
    ):
        return False
    if not all(type(payload.get(key)) is int for key in ("start_ns", "end_ns")):
        return False
    if not all(_is_number(payload.get(key)) or payload.get(key) is None for key in ("rss_bytes", "cpu_percent")):
        return False
    labels = payload.get("labels")
    if not isinstance(labels, dict) or not all(map(_is_count, labels.values())):
        return False
    return all(_is_statistic(payload.get(key)) for key in _STATISTICS)


def _is_statistic(value: Json) -> bool:
    if not isinstance(value, dict) or value.keys() != _MOMENTS or not _is_count(value.get("count")):
        return False
    sketch, empty = value.get("sketch"), value["count"] == 0
    for key in ("mean", "m2", "min", "max"):
        if not (_is_number(value[key]) or (empty and value[key] is None)):
            return False
    if not isinstance(sketch, dict) or not _is_number(sketch.get("accuracy")) or not _is_count(sketch.get("zeros")):
        return False
    buckets = sketch.get("buckets")
    return isinstance(buckets, list) and all(
        isinstance(item, list) and len(item) == 2 and type(item[0]) is int and _is_count(item[1]) for item in buckets
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _COUNT_MAX


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _interval(payload: Mapping[str, Any]) -> tuple[int, int]:
    return payload["start_ns"], payload["end_ns"]


def _covered_ns(payload: Mapping[str, Any]) -> int:
    return max(0, int(payload.get("covered_ns", payload["end_ns"] - payload["start_ns"])))


def _statistic(first: Any, second: Any) -> dict[str, Json] | None:
    sketches = first["sketch"], second["sketch"]
    if sketches[0]["accuracy"] != sketches[1]["accuracy"]:
        return None
    buckets = _added(*(dict(sketch["buckets"]) for sketch in sketches))
    if len(buckets) > BUCKETS_MAX:
        return None
    count = first["count"] + second["count"]
    if not (first["count"] and second["count"]):
        whole = dict(first if first["count"] else second)
    else:
        distance, share = second["mean"] - first["mean"], second["count"] / count
        whole = {
            "count": count,
            "mean": first["mean"] + distance * share,
            "m2": first["m2"] + second["m2"] + distance * distance * share * first["count"],
            "min": min(first["min"], second["min"]),
            "max": max(first["max"], second["max"]),
        }
    whole["sketch"] = {
        "accuracy": sketches[0]["accuracy"],
        "zeros": sketches[0]["zeros"] + sketches[1]["zeros"],
        "buckets": [[index, buckets[index]] for index in sorted(buckets)],
    }
    return whole


def _added(first: Any, second: Any) -> dict[Any, int]:
    return {key: first.get(key, 0) + second.get(key, 0) for key in {**first, **second}}


def _extreme(choose: Any, *values: Any) -> Any:
    known = [value for value in values if value is not None]
    return choose(known) if known else None


def _weighted(*pairs: tuple[Any, int]) -> float | None:
    known = [(value, max(weight, 1)) for value, weight in pairs if value is not None]
    if not known:
        return None
    return float(sum(value * weight for value, weight in known) / sum(weight for _, weight in known))
