"""Print every benchmark's ratio to its peer: absolute times on a shared machine say little."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line a benchmark."""
    session = getattr(config, "_benchmarksession", None)
    rows = [bench for bench in (session.benchmarks if session is not None else []) if bench.extra_info.get("peer")]
    if not rows:
        return
    terminalreporter.section("beside the peer, in the same run")
    for bench in rows:
        info = dict(bench.extra_info)
        name, peer, ratio = bench.name.removeprefix("test_"), info.pop("peer"), info.pop("ratio", None)
        figures = "  ".join(f"{key}={value}" for key, value in info.items())
        terminalreporter.write_line(f"{name:<44} {ratio} x {peer}   {figures}")


TABLES = {
    "scalar": ("Value by value", "one call a value from Python; the loop is inside every figure"),
    "windowed": ("Windows, exact at every step", "the ratio is that of blocks of 1,024 to the peer"),
    "blocks": ("In blocks of 1,024", "nanoseconds a value"),
    "features": ("64 features a row", "nanoseconds a feature value; one call a row"),
    "inference": (
        "Inference",
        "infer beside the plain calls: copy the window in, run, copy the scores out; `run alone` is the backend's "
        "call. Microseconds, p50 unless p99 is said; paced is 100 Hz",
    ),
    "growth": ("Growth", "Python's memory blocks"),
    "knn": ("Nearest neighbours", "one query"),
    "preprocess": ("Before the model", "one window"),
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
    "memory": ("Memory", "bytes an instance adds to the process after 1,000 values, and of its state"),
}
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- begin: make bench WRITE=1 -->", "<!-- end -->"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the tables into the documentation when `WRITE=1` asks for it."""
    benchmarks = getattr(getattr(session.config, "_benchmarksession", None), "benchmarks", [])
    rows = [(bench.name.removeprefix("test_"), dict(bench.extra_info)) for bench in benchmarks]
    rows = [(name, info) for name, info in rows if info.get("table")]
    if not os.environ.get("TINYMLOPS_WRITE") or not rows:
        return
    lines = [
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores; "
        f"river {version('river')}, numpy {version('numpy')}, datasketches {version('datasketches')}.",
        "",
    ]
    for table, (title, caption) in TABLES.items():
        chosen = [(name, info) for name, info in rows if info["table"] == table]
        if not chosen:
            continue
        keys = list(dict.fromkeys(key for _, info in chosen for key in info if key not in ("table", "peer")))
        lines += [f"### {title}", "", f"{caption[0].upper()}{caption[1:]}.", ""]
        lines += [
            f"| | peer | {' | '.join(key.replace('_', ' ') for key in keys)} |",
            f"|---|---|{'---|' * len(keys)}",
        ]
        for name, info in chosen:
            shown = name.partition("[")[2].rstrip("]") or name
            cells = [str(info.get(key, "")) for key in keys]
            lines.append(f"| {shown.replace('_', ' ')} | {info['peer']} | {' | '.join(cells)} |")
        lines.append("")
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{chr(10).join(lines)}{END}{rest.split(END)[1]}")
