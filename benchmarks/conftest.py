"""Print every benchmark's ratio to its peer: absolute times on a shared machine say little."""

from __future__ import annotations

import pytest

from benchmarks import page


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


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the tables into the documentation when `WRITE=1` asks for it."""
    benchmarks = getattr(getattr(session.config, "_benchmarksession", None), "benchmarks", [])
    rows = [(bench.name.removeprefix("test_"), dict(bench.extra_info)) for bench in benchmarks]
    rows = [(_row(name, str(info["table"])), info) for name, info in rows if info.get("table")]
    if page.wanted() and rows:
        page.write(rows)


def _row(name: str, table: str) -> str:
    """What a row is called: the case, where it says enough."""
    test, _, case = name.rstrip("]").partition("[")
    return f"{test}, {case}" if case and table == "preprocess" else case or test
