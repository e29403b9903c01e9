"""What this process counts of itself, and the text format of Prometheus (0.0.4).

Labels are routes, methods, statuses and names of checks: a fixed, small number of series. No device, model or person is
ever a label.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Final

BUCKETS_S: Final = (0.005, 0.025, 0.1, 0.5, 2.5)
MEDIA: Final = "text/plain; version=0.0.4"


class Requests:
    """Answers by route and status, and how long they took.

    One thread uses it: the event loop's.
    """

    def __init__(self) -> None:
        self.answers: dict[tuple[str, str, int], int] = {}
        self.seconds: dict[tuple[str, str], list[float]] = {}  # a count for each bucket and above all, and the sum

    def note(self, method: str, path: str, status: int, took_s: float) -> None:
        """Count an answer; `path` is the route's, with names in braces."""
        self.answers[method, path, status] = self.answers.get((method, path, status), 0) + 1
        counts = self.seconds.setdefault((method, path), [0.0] * (len(BUCKETS_S) + 2))
        counts[bisect_left(BUCKETS_S, took_s)] += 1
        counts[-1] += took_s

    def families(self) -> Iterable[str]:
        """The lines of the two metrics."""
        yield from family(
            "requests_total",
            "counter",
            "answers to requests",
            {
                (("method", method), ("route", path), ("status", str(status))): count
                for (method, path, status), count in sorted(self.answers.items())
            },
        )
        yield "# HELP tinysphere_request_seconds time until an answer begins"
        yield "# TYPE tinysphere_request_seconds histogram"
        for (method, path), counts in sorted(self.seconds.items()):
            labels, total = (("method", method), ("route", path)), 0.0
            for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), counts, strict=False):
                total += count
                yield series("request_seconds_bucket", (*labels, ("le", bound)), total)
            yield series("request_seconds_sum", labels, counts[-1])
            yield series("request_seconds_count", labels, total)


Labels = tuple[tuple[str, str], ...]


def series(name: str, labels: Labels, value: float) -> str:
    """One line."""
    inside = ",".join(f'{key}="{_escape(text)}"' for key, text in labels)
    shown = str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
    return f"tinysphere_{name}{{{inside}}} {shown}" if inside else f"tinysphere_{name} {shown}"


def family(name: str, kind: str, about: str, values: Mapping[Labels, float] | float) -> list[str]:
    """A metric with all of its series."""
    found: Mapping[Labels, float] = values if isinstance(values, Mapping) else {(): values}
    lines = [series(name, labels, value) for labels, value in found.items()]
    return [f"# HELP tinysphere_{name} {about}", f"# TYPE tinysphere_{name} {kind}", *lines]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
