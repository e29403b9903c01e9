"""What is told to the server of this machine."""

from __future__ import annotations

import errno

import psutil
import pytest
from tinylcm import capabilities
from tinylcm.errors import DeviceError
from tinylcm.version import __version__


def test_a_machine_says_what_it_is() -> None:
    found = capabilities.capabilities()
    assert found["ram_bytes"] == psutil.virtual_memory().total
    assert found["tinylcm"] == __version__
    assert {"onnx", "linear", "knn"} <= set(found["backends"])  # type: ignore[arg-type]


def test_a_system_that_does_not_answer_is_an_error_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error")

    capabilities._capabilities.cache_clear()
    monkeypatch.setattr(psutil, "virtual_memory", fail)
    with pytest.raises(DeviceError, match="looking at this machine"):
        capabilities.capabilities()
    monkeypatch.undo()
    assert capabilities.capabilities()["ram_bytes"]  # a failure is not remembered
