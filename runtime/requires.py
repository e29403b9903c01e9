"""What a package asks of the device that runs it, and what a device falls short of.

The publisher writes it into the manifest; a server offers a package only to devices that meet it, and a device refuses
one that it does not meet, whoever sends it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

from .checks import Fields
from .types import Json

_VERSION: Final = re.compile(r"\d{1,6}(\.\d{1,6}){0,3}")
_NUMBERS: Final = re.compile(r"\d{1,6}")
KEYS: Final = ("ram_mb", "cpus", "machine", "system", "python", "tinylcm")


@dataclass(frozen=True, slots=True)
class Requires:
    """What a device must have; what is 0 or empty is not asked for.

    Attributes:
        ram_mb: memory of the machine, in MiB, at least.
        cpus: logical processors, at least.
        machine, system: one of these, as `platform.machine()` and `platform.system()` name them, in lower case.
        python, tinylcm: this version or a later one.
    """

    ram_mb: int = 0
    cpus: int = 0
    machine: tuple[str, ...] = ()
    system: tuple[str, ...] = ()
    python: str = ""
    tinylcm: str = ""

    def to_json(self) -> dict[str, object]:
        """What is asked for."""
        found = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in found.items() if value}


def parse_requires(place: Fields) -> Requires:
    """Read a manifest's `requires`.

    Raises:
        ModelError: with the place that is wrong.
    """
    place.refuse_unknown(*KEYS)
    versions = {name: place.text(name, "") for name in ("python", "tinylcm")}
    for name, version in versions.items():
        if version and not _VERSION.fullmatch(version):
            raise place.fail(name, "expected the least version, such as 3.11")
    return Requires(
        ram_mb=place.natural("ram_mb", 0, high=1 << 30),
        cpus=place.natural("cpus", 0, high=1 << 16),
        machine=tuple(name.lower() for name in place.texts("machine", [], length_max=16)),
        system=tuple(name.lower() for name in place.texts("system", [], length_max=16)),
        **versions,
    )


def _parts(version: object) -> tuple[int, ...]:
    return tuple(int(part) for part in _NUMBERS.findall(str(version).partition("+")[0])[:4])


def unmet(requires: Requires, formats: Sequence[str], capabilities: Mapping[str, Json]) -> list[str]:
    """Why a device cannot run a package, a sentence each; empty when it can.

    Args:
        formats: of the package's models.
        capabilities: what the device reported. What was asked for and is not in it counts as missing; only the
            backends of a device that names none are left to its probe.
    """
    problems = []
    ram = capabilities.get("ram_bytes")
    ram_mb = ram / (1 << 20) if isinstance(ram, int | float) else None
    cpus = capabilities.get("cpus")
    for name, wanted, found in (
        ("ram_mb", requires.ram_mb, ram_mb),
        ("cpus", requires.cpus, cpus if isinstance(cpus, int) else None),
    ):
        # A machine of 512 MB reports less: what firmware and graphics keep. A tenth is let go.
        if wanted and (found is None or found < (wanted * 0.9 if name == "ram_mb" else wanted)):
            problems.append(f"it needs {name} {wanted}, the device has {'not said' if found is None else round(found)}")
    for name, allowed in (("machine", requires.machine), ("system", requires.system)):
        has = capabilities.get(name, "not said")
        if allowed and str(has).lower() not in allowed:
            problems.append(f"it needs {name} {' or '.join(allowed)}, the device is {has}")
    for name, least in (("python", requires.python), ("tinylcm", requires.tinylcm)):
        if least and _parts(capabilities.get(name, "")) < _parts(least):
            problems.append(f"it needs {name} {least} or later, the device has {capabilities.get(name, 'not said')}")
    backends = capabilities.get("backends")
    if isinstance(backends, list) and backends:
        missing, there = sorted({name for name in formats if name not in backends}), ", ".join(map(str, backends))
        if missing:
            problems.append(f"it needs the backend {' and '.join(missing)}, the device has {there}")
    return problems
