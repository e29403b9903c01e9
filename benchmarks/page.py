"""Writes what was measured into docs/performance.md: each command its own sections, and no others.

A part of the benchmarks that is measured alone (`make bench WRITE=1 ARGS=benchmarks/test_knn.py`) leaves the other
sections as they were.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN: Final = "<!-- begin: make bench WRITE=1 -->"
END: Final = "<!-- end -->"
# Sections in their order, by the name that a benchmark gives as `table`: title and caption.
TABLES: Final = {
    "scalar": ("Value by value", "one call a value from Python; the loop is inside every figure"),
    "windowed": ("Windows, exact at every step", "the ratio is that of blocks of 1,024 to the peer"),
    "blocks": ("In blocks of 1,024", "nanoseconds a value"),
    "features": ("64 features a row", "nanoseconds a feature value; one call a row"),
    "inference": (
        "Inference",
        "`infer` beside the plain calls on a session of its own: copy the window in, run it as ONNX Runtime's "
        "documentation says (`run_with_iobinding`), copy the scores out; `run alone` is that run; `over short` is "
        "against the same calls with our backend's run. Microseconds, p50 unless p99 is said. Sides take turns in "
        "short rounds, and "
        "`added` is the median of the differences of neighbouring rounds: a slow moment of the machine hits both; "
        "calls in which the scheduler gave the processor away are left out. `own` is what of a call is not the "
        "backend's run: load, decision, monitors, metrics, the prediction. Paced is 100 Hz: the machine has slept "
        "before each call",
    ),
    "machine": ("An empty loop", "of Python, for the 99th percentiles above: what this machine does to any call"),
    "growth": ("Growth", "Python's memory blocks"),
    "engine": (
        "ONNX Runtime called from C",
        "the window is in its tensor. `C loop` calls the engine's C interface in a loop in C: nothing can be faster. "
        "Microseconds of the best of 40 rounds; paced: medians of single calls at 100 Hz",
    ),
    "reset": (
        "Beginning anew",
        "a TFLite model whose state lies in resource variables: the spare interpreter is swapped in, beside making "
        "another one. Microseconds",
    ),
    "knn": (
        "Nearest neighbours",
        "one query, the best of 30 rounds, numpy with one thread. `times the poc` is the proof of concept's time "
        "beside NumPy's where both were measured (7,493 us beside 216.7 us for n=1000 d=1280, 1,153 us beside 16.2 us "
        "for n=200 d=256), brought to NumPy's time here",
    ),
    "preprocess": ("Before the model", "one window, microseconds, the best of 42 rounds"),
    "poc": (
        "The proof of concept's pipeline",
        "`make bench-poc`: an image through MobileNetV2, scaler, PCA and kNN from one package, beside the plain calls "
        "of the engine with PCA and kNN in NumPy; what the proof of concept added on its device was 17.4 % without "
        "and 19.9 % with drift detection. Microseconds of the processor that the thread took, which other processes on "
        "the machine do not lengthen; `added` is the median of the differences of neighbouring calls",
    ),
    "device": (
        "A whole device",
        "`make bench-memory`: NumPy, one backend, pipeline, journal, sync with a real server, and monitors of 64 "
        "features in one process; resident memory after 20,000 windows, and the peak of the child that tries a package "
        "first. MB of 1,000,000 bytes",
    ),
    "import": ("Import", "`make bench-memory`: `import tinylcm` in fresh processes, milliseconds"),
    "journal": (
        "Journal",
        "records of about 200 bytes in groups of 100, beside SQLite (WAL, synchronous=FULL) on the same disk. Bytes of "
        "the files and bytes on the device (as the kernel counts what it sends to the disk) for a payload byte stored, "
        "and bytes on the device in a record's whole life: stored, read, acknowledged, deleted",
    ),
    "wear": (
        "Flash wear",
        "a commit a second, extrapolated from five minutes: what the kernel counts, which knows nothing of the file "
        "system's own journal, and what `tinylcm journal stat` estimates, with 4 KiB for each fsync",
    ),
    "wire": ("On the wire", "a batch of 500 records as a device makes them: bytes a record, and microseconds a record"),
    "sync": (
        "Sync",
        "100,000 queued records over loopback HTTPS to a real server that shares the machine's cores; the growth is "
        "the device's",
    ),
    "serial": (
        "Frames of the serial line",
        "microseconds of the processor a frame, 2,000 in one call; rows go into a block with the time of each, and "
        "gaps are counted",
    ),
    "pty": ("A port", "a pty whose other end writes as fast as it can; megabytes a second"),
    "chunk": (
        "A chunk of 512 bytes",
        "the share of the bytes on the wire that are the model's. Of SMP its own encoder is measured: smpclient needs "
        "a firmware that speaks SMP at the other end, which TinyBridge's does not",
    ),
    "memory": ("Memory", "bytes an instance adds to the process after 1,000 values, and of its state"),
}

Row = tuple[str, Mapping[str, object]]


def wanted() -> bool:
    """Whether `WRITE=1` asks for the page to be written."""
    return bool(os.environ.get("TINYMLOPS_WRITE"))


def table(name: str, rows: Sequence[Row]) -> str:
    """A section: its caption and a row for each measurement."""
    title, caption = TABLES[name]
    keys = list(dict.fromkeys(key for _, info in rows for key in info if key not in ("table", "peer")))
    lines = [f"### {title}", "", f"{caption[0].upper()}{caption[1:]}.", ""]
    lines.append(f"| | peer | {' | '.join(key.replace('_', ' ') for key in keys)} |")
    lines.append(f"|---|---|{'---|' * len(keys)}")
    for row, info in rows:
        cells = [str(info.get(key, "")) for key in keys]
        lines.append(f"| {row.replace('_', ' ')} | {info.get('peer', '')} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def write(rows: Sequence[Row]) -> None:
    """Put these rows' sections into the page, in place of what was measured before."""
    text = PAGE.read_text()
    before, rest = text.split(BEGIN)
    block, after = rest.split(END)
    _, *parts = block.split("### ")
    kept = {part.split("\n", 1)[0]: f"### {part.rstrip()}\n" for part in parts}
    for name, (title, _) in TABLES.items():
        if chosen := [row for row in rows if row[1]["table"] == name]:
            kept[title] = table(name, chosen)
    order = [title for title, _ in TABLES.values()]
    sections = [kept[title] for title in sorted(kept, key=order.index)]
    head = (
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores; {', '.join(_versions())}."
    )
    PAGE.write_text(f"{before}{BEGIN}\n{head}\n\n{chr(10).join(sections)}{END}{after}")


def _versions() -> Iterator[str]:
    for name in ("numpy", "onnxruntime", "ai-edge-litert", "river", "datasketches"):
        with suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"
