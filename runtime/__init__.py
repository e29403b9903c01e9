"""TinyLCM: the whole life of a model on a small device, in the application's own process.

The public names load on first use (PEP 562), so that `import tinylcm` costs little and loads no backend.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from .errors import ConfigError, DeviceError, InputError, ModelError, ServerError, TinyLCMError, WireError
from .types import Alarm, Prediction, Record
from .version import __version__

if TYPE_CHECKING:
    from . import drift, monitors, stats
    from .capture import CapturePolicy, Capturer, decode_sample
    from .device import Device
    from .loading import Options
    from .pipeline import Pipeline, stream
    from .window import Block, Sample
    from .worker import Worker

_LAZY = {
    "Block": ("window", "Block"),
    "CapturePolicy": ("capture", "CapturePolicy"),
    "Capturer": ("capture", "Capturer"),
    "Device": ("device", "Device"),
    "Options": ("loading", "Options"),
    "Pipeline": ("pipeline", "Pipeline"),
    "Sample": ("window", "Sample"),
    "Worker": ("worker", "Worker"),
    "stream": ("pipeline", "stream"),
    "decode_sample": ("capture", "decode_sample"),
    "drift": ("drift", None),
    "monitors": ("monitors", None),
    "stats": ("stats", None),
}

__all__ = [
    "Alarm",
    "Block",
    "CapturePolicy",
    "Capturer",
    "ConfigError",
    "Device",
    "DeviceError",
    "InputError",
    "ModelError",
    "Options",
    "Pipeline",
    "Prediction",
    "Record",
    "Sample",
    "ServerError",
    "TinyLCMError",
    "WireError",
    "Worker",
    "__version__",
    "decode_sample",
    "drift",
    "monitors",
    "stats",
    "stream",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'tinylcm' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(f".{module}", __name__)
    value = loaded if attribute is None else getattr(loaded, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
