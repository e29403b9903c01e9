"""The server's limits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tinysphere.config import ServerConfig


def test_every_limit_is_positive_and_none_can_be_changed_later() -> None:
    config = ServerConfig(Path("d"))
    numbers = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.type in ("int", "float")}
    assert len(numbers) >= 10 and all(value > 0 for value in numbers.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.json_bytes_max = 1  # type: ignore[misc]
    assert config.json_bytes_max < config.sync_bytes_max < config.package_bytes_max
