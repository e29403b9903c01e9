"""Fixtures that several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder that holds tests, examples and docs."""
    return ROOT


@pytest.fixture(scope="session")
def activity(root: Path) -> Path:
    """The example of the smart watch."""
    return root / "examples" / "activity"
