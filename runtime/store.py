"""Packages and slots on disk: whole files by hash, and one small state file a model, replaced atomically.

Rules
- A package is durable before a slot names it, and a slot is durable before a package that it no longer names goes.
- What a package brings of its root's statements is durable before anything of the package is: a floor that it raises
  holds from then on, whatever becomes of the package.
- Nothing that a slot holds, and no download under way, is ever deleted; of downloads that were cut off the newest
  `PARTS_MAX` stay to be resumed. A deletion that fails is tried again at the next change.
- One process writes; others may read.
- A change that has taken effect in memory and that the disk refuses (`keep`) counts in this process, and is written
  with the next change or `settle`: a full disk must not make the device believe what is no longer so.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from .checks import Fields
from .errors import DeviceError, ModelError
from .files import device_error, list_files, make_folder, read_bounded, read_verified, write_atomic
from .keys import BUILT_S, Trust, learn_statements
from .manifest import NAME, PACKAGE_BYTES_MAX
from .package import Package, load_head, parse_package
from .slots import Held, Slot, slot_from_json, slot_to_json
from .wire import canonical_json

PARTS_MAX: Final = 4
DISK_RESERVE_BYTES: Final = 1 << 20  # left for the slot's state and the journal
SEEN_STEP_S: Final = 86400  # the latest time seen is stored once a day at most
_SLOT_BYTES_MAX: Final = 64 << 10
_SEEN_BYTES_MAX: Final = 4096
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger("tinylcm")


class SlotStore:
    """The folder that holds a device's packages and slots.

    Args:
        folder: made when missing; `packages/<sha256>.tlm` and `slots/<model>.json` inside.
        trust_folder: `*.pub` files of the roots that this device believes, and what they said.
        wall_s: Unix time as this machine's clock shows it, which may be years off.

    Raises:
        DeviceError: the folder cannot be made.
    """

    def __init__(self, folder: Path, trust_folder: Path, wall_s: Callable[[], float] = time.time) -> None:
        self._packages = make_folder(folder / "packages")
        self._slots = make_folder(folder / "slots")
        self._trust_folder = trust_folder
        self._wall_s = wall_s
        self._seen_path = folder / "seen.json"
        self._under_way: set[str] = set()
        self._unwritten: dict[str, Slot] = {}
        self._trust = Trust.load(trust_folder)

    def trust(self) -> Trust:
        """The pinned roots and what they said, as they are on the disk now."""
        self._trust = Trust.load(self._trust_folder)
        return self._trust

    def now_s(self) -> float:
        """The time to judge expiry by: this machine's clock, unless it shows less than what has been before."""
        wall_s, known_s = self._wall_s(), max(self._seen_s(), float(BUILT_S))
        if wall_s >= known_s:
            return wall_s
        _log.warning(
            "this device's clock shows %s, which was before %s: keys are judged by the later of the two",
            *(time.strftime("%Y-%m-%d", time.gmtime(min(max(0.0, at_s), 4e9))) for at_s in (wall_s, known_s)),
        )
        return known_s

    def _seen_s(self) -> float:
        try:
            document = json.loads(read_bounded(self._seen_path, _SEEN_BYTES_MAX)) if self._seen_path.exists() else {}
            return Fields(document, "seen.json", DeviceError).number("wall_s", 0.0)
        except (ValueError, DeviceError):
            return 0.0  # it only makes warnings better

    # Slots ------------------------------------------------------------------------------------------------

    def models(self) -> list[str]:
        """Names of the models that have a slot."""
        return [path.stem for path in list_files(self._slots, "*.json") if NAME.fullmatch(path.stem)]

    def read(self, model: str) -> Slot:
        """A model's slot, with the floor that the statements say; an empty one when there is none.

        Raises:
            ModelError: the name is none, or the state file is damaged.
        """
        path = self._slot_path(model)
        slot = self._unwritten.get(model)
        try:
            if slot is None:
                slot = slot_from_json(json.loads(read_bounded(path, _SLOT_BYTES_MAX))) if path.exists() else Slot()
        except ValueError as error:
            raise ModelError(f"{path} is damaged ({error}); install the model again") from error
        return replace(slot, floor=max(slot.floor, self._trust.floor(model)))

    def write(self, model: str, slot: Slot, *, collect: bool = True) -> None:
        """Replace a model's slot atomically, then drop what no slot holds any more.

        Args:
            model: its name.
            slot: its new state.
            collect: False while a package that was added still waits for its slot.

        Raises:
            DeviceError: the old state is still in place.
        """
        write_atomic(self._slot_path(model), canonical_json(slot_to_json(slot)) + b"\n")
        self._unwritten.pop(model, None)
        if collect:
            self._collect()

    def keep(self, model: str, slot: Slot, *, collect: bool = True) -> None:
        """As `write`, for what has happened already: what the disk refuses holds in memory until it is written."""
        try:
            self.write(model, slot, collect=collect)
        except DeviceError as error:
            if model not in self._unwritten:
                _log.error("the state of %s is held in memory: %s", model, error)
            self._unwritten[model] = slot

    def settle(self) -> None:
        """Write what the disk has refused before.

        Raises:
            DeviceError: it refuses again; it still holds in memory.
        """
        for model, slot in list(self._unwritten.items()):
            self.write(model, slot)

    def revoked(self, slot: Slot) -> dict[str, str]:
        """Which of a slot's packages may not run any more: the reason by sha256."""
        reasons = {}
        for held in (slot.active, slot.previous, slot.candidate):
            if held is not None and (reason := self._why_not(held, slot.floor)):
                reasons[held.sha256] = reason
        return reasons

    def _why_not(self, held: Held, floor: int) -> str:
        path = self.package_path(held.sha256)
        try:
            if not path.exists():
                return f"package {held.version} ({held.sha256[:12]}) is missing from this device"
            head = load_head(path)
            counter = head.manifest().security_counter
        except ModelError as error:
            return str(error)
        except DeviceError as error:
            _log.warning("%s", error)  # a disk that does not answer now revokes nothing
            return ""
        if counter < floor:
            return (
                f"its security counter is {counter}, this device takes {floor} and above: the publisher has revoked it"
            )
        return "the key that signed it was revoked" if self._trust.is_revoked(head.release) else ""

    def _slot_path(self, model: str) -> Path:
        if not NAME.fullmatch(model):
            raise ModelError(f"{model!r} is no model name: lower-case letters, digits, - and _, at most 64")
        return self._slots / f"{model}.json"

    # Packages ---------------------------------------------------------------------------------------------

    def package_path(self, sha256: str) -> Path:
        """Where a package is kept."""
        if not _SHA256.fullmatch(sha256):
            raise ModelError(f"{sha256!r:.80} is no sha256")
        return self._packages / f"{sha256}.tlm"

    @contextmanager
    def part(self, sha256: str) -> Iterator[Path]:
        """Where a package is downloaded to; nothing deletes it meanwhile."""
        path = self.package_path(sha256).with_suffix(".part")
        self._under_way.add(sha256)
        try:
            yield path
        finally:
            self._under_way.discard(sha256)

    def require_space(self, bytes_needed: int) -> None:
        """Make sure of disk space before it is used up half-way.

        Raises:
            DeviceError: there is too little.
        """
        try:
            found = os.statvfs(self._packages)
        except OSError as error:
            raise device_error(error, "looking at the disk of") from error
        free = found.f_bavail * found.f_frsize
        if free < bytes_needed + DISK_RESERVE_BYTES:
            raise DeviceError(
                f"the package needs {bytes_needed} bytes of disk and {DISK_RESERVE_BYTES} in reserve, {free} are free: "
                "free some space"
            )

    def add(self, data: bytes) -> Package:
        """Check a package, learn what its root says, and keep it.

        Raises:
            ModelError: not sound, or not trusted here; nothing was changed.
            DeviceError: no space; what it said of its root may have been learnt.
        """
        now_s = self.now_s()
        package = parse_package(data, self.trust(), now_s=now_s)
        if learn_statements(self._trust_folder, package.statements):
            self.trust()
        if now_s > self._seen_s() + SEEN_STEP_S:
            with suppress(DeviceError):  # what follows says it, if the disk is full
                write_atomic(self._seen_path, canonical_json({"wall_s": int(now_s)}) + b"\n")
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
        return parse_package(data, self.trust(), now_s=self.now_s(), installed=True)

    def _collect(self) -> None:
        """Delete packages that no slot holds, old unfinished downloads, and what a cut left of atomic writes."""
        kept = set()
        if self._unwritten:
            return  # what the disk says of these may be wanted again after a power cut
        try:
            for model in self.models():
                slot = self.read(model)
                kept |= {held.sha256 for held in (slot.active, slot.previous, slot.candidate) if held is not None}
            packages, parts = (list_files(self._packages, pattern) for pattern in ("*.tlm", "*.part"))
            left = [path for folder in (self._packages, self._slots) for path in list_files(folder, ".*")]
        except (ModelError, DeviceError):
            return  # what a damaged slot holds is not known: keep everything
        parts = [path for path in parts if path.stem not in self._under_way]
        for path in (
            *(path for path in packages if path.stem not in kept),
            *sorted(parts, key=_modified, reverse=True)[PARTS_MAX:],
            *left,
        ):
            _delete(path)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _delete(path: Path) -> None:
    with suppress(OSError):  # it is tried again at the next change; a full or failing disk stops nothing here
        path.unlink(missing_ok=True)
