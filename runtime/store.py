"""Packages and slots on disk: whole files by hash, and one small state file a model, replaced atomically."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final

from .errors import DeviceError, ModelError
from .files import make_folder, read_bounded, read_verified, write_atomic
from .keys import Trust
from .manifest import NAME, PACKAGE_BYTES_MAX
from .package import Package, parse_package
from .slots import Held, Slot, slot_from_json, slot_to_json
from .wire import canonical_json

_SLOT_BYTES_MAX: Final = 64 << 10
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class SlotStore:
    """The folder that holds a device's packages and slots.

    Args:
        folder: made when missing; `packages/<sha256>.tlm` and `slots/<model>.json` inside.
        trust_folder: `*.pub` files of the roots that this device believes.

    Raises:
        DeviceError: the folder cannot be made.
    """

    def __init__(self, folder: Path, trust_folder: Path) -> None:
        self._packages = make_folder(folder / "packages")
        self._slots = make_folder(folder / "slots")
        self._trust_folder = trust_folder

    def trust(self) -> Trust:
        """The pinned roots as they are now."""
        return Trust.load(self._trust_folder)

    def models(self) -> list[str]:
        """Names of the models that have a slot."""
        return sorted(path.stem for path in self._slots.glob("*.json") if NAME.fullmatch(path.stem))

    def read(self, model: str) -> Slot:
        """A model's slot; an empty one when there is none.

        Raises:
            ModelError: the name is none, or the state file is damaged.
        """
        path = self._slot_path(model)
        if not path.exists():
            return Slot()
        try:
            return slot_from_json(json.loads(read_bounded(path, _SLOT_BYTES_MAX)))
        except ValueError as error:
            raise ModelError(f"{path} is damaged ({error}); install the model again") from error

    def write(self, model: str, slot: Slot) -> None:
        """Replace a model's slot atomically and drop packages that no slot holds any more."""
        write_atomic(self._slot_path(model), canonical_json(slot_to_json(slot)) + b"\n")
        self._collect()

    def _slot_path(self, model: str) -> Path:
        if not NAME.fullmatch(model):
            raise ModelError(f"{model!r} is no model name: lower-case letters, digits, - and _, at most 64")
        return self._slots / f"{model}.json"

    def package_path(self, sha256: str) -> Path:
        """Where a package is kept."""
        if not _SHA256.fullmatch(sha256):
            raise ModelError(f"{sha256!r:.80} is no sha256")
        return self._packages / f"{sha256}.tlm"

    def add(self, data: bytes) -> Package:
        """Check a package and keep it.

        Raises:
            ModelError: not sound, or its root is not trusted here.
            DeviceError: no space; nothing was changed.
        """
        package = parse_package(data, self.trust())
        path = self.package_path(package.sha256)
        if not path.exists():
            write_atomic(path, data)
        return package

    def load(self, held: Held) -> Package:
        """Read a kept package and check it again: hash, signature and trust.

        Raises:
            ModelError: it is missing or damaged, or its root is no longer trusted.
        """
        path = self.package_path(held.sha256)
        if not path.exists():
            raise ModelError(f"package {held.version} ({held.sha256[:12]}) is missing from this device")
        data = read_verified(path, held.sha256, PACKAGE_BYTES_MAX)
        return parse_package(data, self.trust())

    def _collect(self) -> None:
        kept = set()
        for model in self.models():
            try:
                slot = self.read(model)
            except (ModelError, DeviceError):
                return  # what a damaged slot holds is not known: keep everything
            kept |= {held.sha256 for held in (slot.active, slot.previous, slot.candidate) if held is not None}
        for path in self._packages.glob("*.tlm"):
            if path.stem not in kept:
                path.unlink(missing_ok=True)
