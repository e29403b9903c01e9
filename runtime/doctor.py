"""What this machine lacks for TinyMLOps, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import psutil

BUILD_YEAR: Final = 2026
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: `ok`, `missing` (something works without it) or `fail` (nothing works)."""

    name: str
    state: Literal["ok", "missing", "fail"]
    found: str
    advice: str = ""


def _python() -> Check:
    found = f"Python {platform.python_version()} on {platform.machine()}"
    return Check("python", "ok", found)


def _extension() -> Check:
    try:
        from tinylcm._ext.frame import crc32c
    except ImportError as error:
        return Check("extensions", "fail", str(error), "build them: make build, or pip install -e .")
    right = crc32c(b"123456789") == 0xE3069283
    return Check(
        "extensions", "ok" if right else "fail", "compiled" if right else "miscompiled", "" if right else "make build"
    )


def _extra(name: str, module: str, extra: str, what: str) -> Check:
    if importlib.util.find_spec(module) is not None:
        return Check(name, "ok", f"{module} is installed")
    return Check(name, "missing", f"{module} is not installed: no {what}", f'pip install "tinymlops[{extra}]"')


def _compiler() -> Check:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler:
        return Check("compiler", "ok", compiler)
    return Check(
        "compiler", "missing", "no C compiler: only ready-made wheels install", "apt-get install gcc python3-dev"
    )


def _clock(wall_s: float) -> Check:
    year = time.gmtime(wall_s).tm_year
    found = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(wall_s))
    if year < BUILD_YEAR or year > BUILD_YEAR + 30:
        return Check(
            "clock",
            "missing",
            f"{found} cannot be right; nothing is lost by it, but TLS certificates will seem invalid",
            "set up network time: timedatectl set-ntp true",
        )
    return Check("clock", "ok", found)


def _folder(folder: Path) -> Check:
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            "data folder",
            "fail",
            f"{existing} is not writable for user id {os.getuid()}",
            f"chown it to this user, or set device.data elsewhere (now {folder})",
        )
    free = psutil.disk_usage(str(existing)).free
    if free < 128 * _MIB:
        return Check(
            "data folder", "fail", f"{free // _MIB} MiB free at {existing}", "free some space: 128 MiB at least"
        )
    return Check("data folder", "ok", f"{folder} is writable, {free // _MIB} MiB free")


def _memory() -> Check:
    total = psutil.virtual_memory().total
    state: Literal["ok", "missing"] = "ok" if total >= 120 * _MIB else "missing"
    return Check(
        "memory", state, f"{total // _MIB} MiB", "" if state == "ok" else "128 MiB is the least that is supported"
    )


def examine(data: Path, *, wall_s: float | None = None) -> list[Check]:
    """Look at everything that a device needs.

    Args:
        data: the folder that the device would write to.
        wall_s: Unix time to judge the clock by, in tests.
    """
    return [
        _python(),
        _extension(),
        _extra("onnx", "onnxruntime", "onnx", "ONNX models"),
        _extra("tflite", "ai_edge_litert", "litert", "TFLite models"),
        _extra("image", "PIL", "image", "images as inputs"),
        _extra("bridge", "serial", "bridge", "boards on serial ports"),
        _extra("server", "starlette", "server", "TinySphere server on this machine"),
        _compiler(),
        _clock(time.time() if wall_s is None else wall_s),
        _memory(),
        _folder(data),
    ]
