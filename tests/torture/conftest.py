"""What the torture tests measured, printed at the end and, when `WRITE=1` asks for it, put into docs/reliability.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent.parent / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: make torture WRITE=1 -->", "<!-- end -->"
ROWS = pytest.StashKey[list[tuple[str, dict[str, object]]]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of it is long, and runs one after the other: it keeps the machine busy, and some of it watches times."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.long)


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Call it with what was done and its figures; they are one row of the table."""
    rows = request.config.stash.setdefault(ROWS, [])

    def add(what: str, **figures: object) -> None:
        rows.append((what, figures))

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line a row."""
    rows = config.stash.get(ROWS, [])
    if not rows:
        return
    terminalreporter.section("torture")
    for what, figures in rows:
        terminalreporter.write_line(f"{what}: " + ", ".join(f"{name} {value}" for name, value in _shown(figures)))
    if os.environ.get("TINYMLOPS_WRITE"):
        PAGE.write_text(_renewed(PAGE.read_text(), rows))
        terminalreporter.write_line(f"wrote {PAGE}")


def _shown(figures: dict[str, object]) -> list[tuple[str, str]]:
    return [
        (name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
        for name, value in figures.items()
    ]


def _rows(table: str) -> list[tuple[str, str]]:
    """What stands in the table already, row by row."""
    cells = [line.strip("|").split(" | ", 1) for line in table.splitlines() if line.startswith("| ")][1:]
    return [(what.strip(), figures.strip()) for what, figures in cells]


def _renewed(page: str, rows: list[tuple[str, dict[str, object]]]) -> str:
    lines = [f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores.", ""]
    lines += ["| what | figures |", "|---|---|"]
    before, rest = page.split(BEGIN)
    found = dict(_rows(rest.split(END)[0])) if os.environ["TINYMLOPS_WRITE"] == "merge" else {}
    for what, figures in rows:
        found[what] = ", ".join(f"{value} {name}" for name, value in _shown(figures))
    lines += [f"| {what} | {figures} |" for what, figures in found.items()]
    return f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{rest.split(END)[1]}"
