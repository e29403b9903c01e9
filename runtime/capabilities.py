"""What this machine is, as it is told to the server."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform

import psutil

from .backends import formats
from .files import device_error
from .types import Json
from .version import __version__


def capabilities() -> dict[str, Json]:
    """What this machine is, as it is told to the server.

    Raises:
        DeviceError: the system does not say.
    """
    try:
        return _capabilities()
    except OSError as error:
        raise device_error(error, "looking at this machine") from error


@functools.cache
def _capabilities() -> dict[str, Json]:
    found = {"onnx": ("onnxruntime",), "tflite": ("ai_edge_litert", "tflite_runtime")}
    there = [name for name, modules in found.items() if any(map(importlib.util.find_spec, modules))]
    return {
        "machine": platform.machine(),
        "system": platform.system().lower(),
        "cpus": os.cpu_count() or 1,
        "ram_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "tinylcm": __version__,
        "backends": [*there, *(name for name in formats() if name not in found)],
    }
