"""What a model costs on this device, beside its bare backend: latency, memory, processor, start-up."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, ModelError
from .loading import Options
from .package import Package
from .pipeline import Pipeline
from .types import Json
from .version import __version__

ROUNDS: Final = 20  # of both sides in turn: a slow moment of the machine hits both alike
BATCH_MAX: Final = 2_000  # calls a round
PACED_MIN: Final = 4  # calls, two of each side; also what bounds the time that a low rate takes
PACED_MAX: Final = 100_000
RATE_HZ: Final = 100.0
CHILD_TIMEOUT_S: Final = 120.0
_CHILD: Final = """
import json, sys, time
start = time.perf_counter()
import tinylcm
imported = time.perf_counter()
from pathlib import Path
from tinylcm.bench import open_model
pipeline, window = open_model(Path(sys.argv[1]), int(sys.argv[2]))
opened = time.perf_counter()
pipeline.infer(window)
first = time.perf_counter()
import psutil  # not ru_maxrss: a process that was started inherits the peak of the one that started it
rss = psutil.Process().memory_info().rss
print(json.dumps([imported - start, opened - imported, first - opened, rss]))
"""


@dataclass(frozen=True, slots=True)
class Timing:
    """Durations of calls in microseconds.

    Attributes:
        count: calls; p50, p95, p99: percentiles; mean: their mean.
        histogram: counts of the buckets that end at `tinylcm.metrics.BOUNDS_US`, for the picture.
    """

    count: int
    p50: float
    p95: float
    p99: float
    mean: float
    histogram: tuple[int, ...] = field(repr=False, default=())


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was measured.

    Attributes:
        model, version, format, monitors: what was measured.
        machine: system, processor, Python, TinyLCM.
        hot: calls back to back; `full` is `infer`, `bare` the backend's own call on the same tensors.
        paced: calls at `rate_hz`; the caches have cooled down between them, as in use.
        windows_per_s: that `infer` reaches hot.
        cpu_percent: of the process while paced, 100 is one core.
        rss_bytes: of a process that does nothing else, after its first prediction.
        import_s, open_s, first_s: from the start of Python to the import, the model, the first prediction.
        energy_uj: of one hot prediction, in microjoules, where the kernel counts it; None elsewhere.
    """

    model: str
    version: str
    format: str
    monitors: tuple[str, ...]
    machine: dict[str, str | int]
    rate_hz: float
    hot: dict[str, Timing]
    paced: dict[str, Timing]
    windows_per_s: float
    cpu_percent: float
    rss_bytes: int
    import_s: float
    open_s: float
    first_s: float
    energy_uj: float | None

    def to_json(self) -> dict[str, Json]:
        """As JSON, with what the runtime adds to the bare call."""
        document: dict[str, Any] = asdict(self)
        for name, pair in (("hot", self.hot), ("paced", self.paced)):
            document[name]["added_us"] = pair["full"].p50 - pair["bare"].p50
            document[name]["ratio"] = pair["full"].p50 / pair["bare"].p50 if pair["bare"].p50 else math.nan
        return document


def open_model(model: Package | Path, threads: int = 1) -> tuple[Pipeline, object]:
    """A pipeline with a window to run it on: the package's first golden one, or zeros."""
    if isinstance(model, Path) and model.suffix == ".tlm":
        from .package import load_package

        model = load_package(model, None)
    pipeline = Pipeline(model, options=Options(threads=threads))
    manifest = pipeline.manifest
    window: NDArray[np.float32] = np.zeros(manifest.window_shape, dtype=np.float32)
    if isinstance(model, Package) and manifest.golden is not None:
        window = np.ascontiguousarray(model.golden_inputs()[0])
    others = {spec.name: np.zeros(spec.shape[1:], dtype=spec.dtype) for spec in manifest.inputs}
    return pipeline, {manifest.input.name: window, **others} if others else window


def bench(
    model: Package | Path,
    *,
    seconds: float = 3.0,
    rate_hz: float = 0.0,
    threads: int = 1,
    progress: Callable[[float], None] | None = None,
) -> Report:
    """Measure a model.

    Args:
        model: a checked package, or a plain model file that is trusted.
        seconds: of the hot and of the paced measurement, each, 0.05 to 3600.
        rate_hz: of the paced one, at least four calls in these seconds; 0: as often as the package's windows come,
            else 100.
        threads: compute threads.
        progress: called with the share that is done.

    Raises:
        ConfigError: seconds or rate are out of their range.
        ModelError: the model does not run.
    """
    if not 0.05 <= seconds <= 3600 or not 0 <= rate_hz <= 1e5:
        raise ConfigError("expected seconds of 0.05 to 3600 and a rate_hz of 0 to 100000")
    step = progress or (lambda share: None)
    slowest_hz = PACED_MIN / seconds
    if 0 < rate_hz < slowest_hz:
        raise ConfigError(
            f"rate_hz={rate_hz:g} gives fewer than {PACED_MIN} calls in {seconds:g} s: measure for at least "
            f"{PACED_MIN / rate_hz:g} s"
        )
    pipeline, window = open_model(model, threads)
    manifest = pipeline.manifest
    if not rate_hz:
        own_hz = manifest.window.rate_hz / manifest.window.hop if manifest.window.rate_hz else RATE_HZ
        rate_hz = max(own_hz, slowest_hz)
    run = pipeline.backend.run

    def full() -> object:
        return pipeline.infer(window)

    step(0.0)
    import_s, open_s, first_s, rss = _start_up(model, threads)
    step(0.15)
    energy = _Energy()
    hot = _hot({"full": full, "bare": run}, seconds, lambda share: step(0.15 + 0.4 * share))
    energy_uj = energy.of(full, hot["full"].mean)
    cpu = time.process_time()
    begin = time.monotonic()
    paced = _paced({"full": full, "bare": run}, seconds, rate_hz, lambda share: step(0.55 + 0.45 * share))
    cpu_percent = 100 * (time.process_time() - cpu) / max(time.monotonic() - begin, 1e-9)
    step(1.0)
    return Report(
        model=manifest.name,
        version=manifest.version,
        format=manifest.format,
        monitors=tuple(monitor.name for monitor in manifest.monitors),
        machine=_machine(),
        rate_hz=rate_hz,
        hot=hot,
        paced=paced,
        windows_per_s=1e6 / hot["full"].mean,
        cpu_percent=cpu_percent,
        rss_bytes=rss,
        import_s=import_s,
        open_s=open_s,
        first_s=first_s,
        energy_uj=energy_uj,
    )


def _machine() -> dict[str, str | int]:
    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count() or 1,
        "python": platform.python_version(),
        "tinylcm": __version__,
    }


def timing_of(nanoseconds: NDArray[np.int64]) -> Timing:
    """Percentiles and histogram of durations."""
    from .metrics import BOUNDS_US

    values = np.asarray(nanoseconds, dtype=np.float64) / 1000
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    places = np.searchsorted(BOUNDS_US, values)
    counts = np.bincount(places, minlength=len(BOUNDS_US) + 1)
    return Timing(len(values), float(p50), float(p95), float(p99), float(values.mean()), tuple(map(int, counts)))


def _hot(calls: dict[str, Callable[[], object]], seconds: float, step: Callable[[float], None]) -> dict[str, Timing]:
    """Both sides in turn, each call timed, until the time is over."""
    clock = time.perf_counter_ns
    taken: dict[str, list[int]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(20):
            call()
    slice_s = seconds / ROUNDS / len(calls)
    for index in range(ROUNDS):
        for name, call in calls.items():
            times, end = taken[name], time.monotonic() + slice_s
            for _ in range(BATCH_MAX):
                before = clock()
                call()
                times.append(clock() - before)
                if time.monotonic() >= end:
                    break
        step((index + 1) / ROUNDS)
    return {name: timing_of(np.array(times)) for name, times in taken.items()}


def _paced(
    calls: dict[str, Callable[[], object]], seconds: float, rate_hz: float, step: Callable[[float], None]
) -> dict[str, Timing]:
    """Both sides at a rate, one call after the other's, by a clock that does not drift."""
    taken: dict[str, list[int]] = {name: [] for name in calls}
    sides, start = list(calls.items()), time.monotonic()
    total = max(PACED_MIN, min(PACED_MAX, round(seconds * rate_hz)))
    for index in range(total):
        wait = start + index / rate_hz - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        name, call = sides[index % len(sides)]
        before = time.perf_counter_ns()
        call()
        taken[name].append(time.perf_counter_ns() - before)
        step((index + 1) / total)
    return {name: timing_of(np.array(times)) for name, times in taken.items()}


def _start_up(model: Package | Path, threads: int) -> tuple[float, float, float, int]:
    """Import, opening, first prediction and memory of a process of its own."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="tinylcm-bench-") as folder:
        path = model if isinstance(model, Path) else Path(folder) / "model.tlm"
        if isinstance(model, Package):
            path.write_bytes(model.data)
        result = subprocess.run(
            [sys.executable, "-c", _CHILD, str(path), str(threads)],
            capture_output=True,
            text=True,
            check=False,
            timeout=CHILD_TIMEOUT_S,
        )
    if result.returncode:
        tail = result.stderr.strip().splitlines()
        raise ModelError(f"the model does not start in a process of its own: {tail[-1] if tail else 'no output'}")
    import_s, open_s, first_s, rss = json.loads(result.stdout)
    return float(import_s), float(open_s), float(first_s), int(rss)


class _Energy:
    """The kernel's energy counters: RAPL of a PC, INA219 or INA3221 of a board."""

    def __init__(self, root: Path = Path("/sys")) -> None:
        found = sorted(root.glob("class/powercap/intel-rapl:*/energy_uj"))
        self._counters = [path for path in found if path.parent.name.count(":") == 1 and _read(path) is not None]
        self._powers = sorted(root.glob("class/hwmon/hwmon*/power1_input"))

    def of(self, call: Callable[[], object], mean_us: float, seconds: float = 1.0) -> float | None:
        """Microjoules of one call, less what the machine takes idle; None where nothing counts."""
        if not self._counters and not self._powers:
            return None
        idle = self._watts(lambda: time.sleep(0.01), seconds)
        busy = self._watts(call, seconds)
        return None if idle is None or busy is None else max(0.0, busy - idle) * mean_us

    def _watts(self, call: Callable[[], object], seconds: float) -> float | None:
        readings: list[float] = []
        before, start = self._joules(), time.monotonic()
        while time.monotonic() - start < seconds:
            call()
            if self._powers and len(readings) < 1000:
                readings.append(sum(_read(path) or 0.0 for path in self._powers) / 1e6)
        after, taken = self._joules(), time.monotonic() - start
        if before is not None and after is not None:
            return (after - before) / taken if after >= before else None  # the counter has wrapped
        return float(np.mean(readings)) if readings else None

    def _joules(self) -> float | None:
        values = [_read(path) for path in self._counters]
        return sum(value for value in values if value is not None) / 1e6 if values else None


def _read(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


# for people -----------------------------------------------------------------------------------------------


def _title(report: Report) -> str:
    return f"{report.model} {report.version}".strip()


def summarise(report: Report) -> str:
    """The figures as a table."""
    lines = [
        f"{_title(report)} ({report.format}) on {report.machine['machine']}, "
        f"{report.machine['cpus']} cores; monitors: {', '.join(report.monitors) or 'none'}",
        f"{'':<24} {'p50':>10} {'p95':>10} {'p99':>10}  us",
    ]
    for title, pair in (("hot", report.hot), (f"at {report.rate_hz:g} Hz", report.paced)):
        for name, label in (("full", "infer"), ("bare", "bare backend")):
            timing = pair[name]
            lines.append(f"{title + ', ' + label:<24} {timing.p50:>10.1f} {timing.p95:>10.1f} {timing.p99:>10.1f}")
        added = pair["full"].p50 - pair["bare"].p50
        lines.append(f"{title + ', added':<24} {added:>10.1f} {100 * added / pair['bare'].p50:>9.1f} %")
    lines += [
        f"throughput {report.windows_per_s:,.0f} windows/s; {report.cpu_percent:.1f} % of a core when paced",
        f"memory {report.rss_bytes / 2**20:.1f} MiB; import {1000 * report.import_s:.0f} ms, "
        f"model {1000 * report.open_s:.0f} ms, first prediction {1000 * report.first_s:.1f} ms",
    ]
    if report.energy_uj is not None:
        lines.append(f"energy {report.energy_uj:,.0f} uJ a prediction above idle")
    return "\n".join(lines)


_INK, _OURS, _BARE = "#333", "#1f77b4", "#ff7f0e"
_WIDTH, _HEIGHT, _MARGIN = 760, 230, 46


def draw(report: Report) -> str:
    """The distributions of the latencies as SVG: hot above, paced below, logarithmic in time."""
    from .metrics import BOUNDS_US

    panels = [("back to back", report.hot), (f"at {report.rate_hz:g} Hz", report.paced)]
    used = [i for _, pair in panels for t in pair.values() for i, count in enumerate(t.histogram) if count]
    first, last = max(0, min(used) - 2), min(len(BOUNDS_US) - 1, max(used) + 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {2 * _HEIGHT + 40}" '
        f'font-family="sans-serif" font-size="12" fill="{_INK}">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{_MARGIN}" y="22" font-size="15">{_escape(_title(report))}: '
        "time of a prediction, share of calls</text>",
    ]
    for row, (title, pair) in enumerate(panels):
        parts += _panel(title, pair, 40 + row * _HEIGHT, BOUNDS_US[first : last + 1], first)
    return "\n".join([*parts, "</svg>", ""])


def _panel(title: str, pair: dict[str, Timing], top: int, bounds: tuple[float, ...], first: int) -> list[str]:
    base, high, wide = top + _HEIGHT - 40, _HEIGHT - 70, (_WIDTH - 2 * _MARGIN) / len(bounds)
    shares = {
        name: [count / timing.count for count in timing.histogram[first : first + len(bounds)]]
        for name, timing in pair.items()
    }
    most = max(max(share) for share in shares.values()) or 1.0
    parts = [f'<text x="{_MARGIN}" y="{top + 14}">{_escape(title)}</text>']
    for place, (name, label, colour) in enumerate((("bare", "bare backend", _BARE), ("full", "infer", _OURS))):
        for index, share in enumerate(shares[name]):
            if share:
                height = high * share / most
                parts.append(
                    f'<rect x="{_MARGIN + index * wide:.1f}" y="{base - height:.1f}" width="{wide:.1f}" '
                    f'height="{height:.1f}" fill="{colour}" fill-opacity="0.55"/>'
                )
        timing = pair[name]
        text = f"{label}: p50 {timing.p50:.1f}, p95 {timing.p95:.1f}, p99 {timing.p99:.1f} us"
        parts.append(
            f'<text x="{_WIDTH - _MARGIN}" y="{top + 14 + 16 * place}" text-anchor="end" fill="{colour}">{text}</text>'
        )
    parts.append(f'<line x1="{_MARGIN}" y1="{base}" x2="{_WIDTH - _MARGIN}" y2="{base}" stroke="{_INK}"/>')
    for index, bound in enumerate(bounds):
        if index % max(4, 4 * (len(bounds) // 40)) == 0:
            x = _MARGIN + (index + 1) * wide
            parts.append(f'<text x="{x:.1f}" y="{base + 16}" text-anchor="middle">{_time(bound)}</text>')
    return parts


def _time(us: float) -> str:
    for limit, unit in ((1e6, "s"), (1e3, "ms")):
        if us >= limit:
            return f"{us / limit:.3g} {unit}"
    return f"{us:.3g} us"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
