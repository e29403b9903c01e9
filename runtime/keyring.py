"""What a publisher does with the folder of keys beyond making it: revoke, replace a release key, replace the root.

Every call needs `root.key`, which may otherwise be kept offline. Each writes one file after the other atomically and
can be repeated when it was cut off: nothing is signed with a key that was not stored before.
"""

from __future__ import annotations

import time
from pathlib import Path

from .errors import ConfigError
from .files import fsync_folder, write_atomic
from .keys import (
    RELEASE_DAYS,
    STATEMENTS_MAX,
    KeySet,
    PrivateKey,
    ReleaseKey,
    Revocation,
    Rotation,
    load_keyset,
    load_private,
    load_statements,
    new_key,
    next_serial,
    other_keys,
    short_name,
    sign_keyset,
    write_private,
    write_public,
)
from .manifest import NAME
from .statements import FINGERPRINT


def revoke(folder: Path, *, model: str = "", floor: int = 0, release: str = "") -> Revocation:
    """Raise the security floor of a model, or withdraw a release key, or both; all packages built from now on tell it.

    Args:
        folder: of the publisher's keys; `revocation.json` in it is replaced.
        model: whose packages with a `security_counter` below `floor` may not run any more.
        floor: at least 1, and not below the present one.
        release: fingerprint of a release key, as `tinylcm package show` names it.

    Raises:
        ConfigError: nothing to revoke was named, or a floor would fall.
    """
    if not (model or release):
        raise ConfigError("name what to revoke: --model with --floor, or --release-key with its fingerprint")
    known = _known_revocation(folder)
    floors = {} if known is None else dict(known.floors)
    revoked = frozenset() if known is None else known.revoked
    if model:
        if not NAME.fullmatch(model):
            raise ConfigError(f"{model!r:.80} is no model name: lower-case letters, digits, - and _, at most 64")
        if floor < max(1, floors.get(model, 0)):
            raise ConfigError(
                f"the floor of {model} is {floors.get(model, 0)} and never falls; expected at least "
                f"{max(1, floors.get(model, 0))}, got {floor}"
            )
        floors[model] = floor
    if release:
        if not FINGERPRINT.fullmatch(release):
            raise ConfigError(f"{release!r:.100} is no fingerprint; expected sha256: and 64 hexadecimal digits")
        revoked |= {release}
    root = load_private(folder / "root.key")
    return _sign(folder, root, floors, revoked, 0 if known is None else known.serial)


def rotate_release(folder: Path, *, days: int = RELEASE_DAYS) -> KeySet:
    """Make a new release key; the old one stays in the key set until it expires, and its file is kept aside.

    Raises:
        ConfigError: a key is missing.
    """
    root, old, now_s = load_private(folder / "root.key"), load_private(folder / "release.key"), time.time()
    new = _next_key(folder, "release")
    entry = ReleaseKey(new.public, int(now_s) + days * 86400)
    keyset = sign_keyset(folder, root, [entry, *other_keys(folder, root, new.public)], now_s)
    _replace_key(folder, "release", old)
    return keyset


def rotate_root(folder: Path) -> Rotation:
    """Make a new root key that takes over the key set and the revocation; the old and the new one sign the hand-over.

    Devices learn the new root from the next package, or from `rotation-OLD.json`.

    Raises:
        ConfigError: a key is missing, or packages could not carry another rotation.
    """
    old, now_s = load_private(folder / "root.key"), time.time()
    known, statements = load_keyset(folder), load_statements(folder)
    if len(statements) >= STATEMENTS_MAX - 1:
        raise ConfigError(f"{folder} holds {len(statements)} statements: remove the oldest rotation-*.json first")
    new = _next_key(folder, "root")
    rotation = Rotation.sign(old, new)
    write_atomic(folder / f"rotation-{short_name(old.public)}.json", rotation.to_json() + b"\n")
    revocation = _known_revocation(folder)
    if revocation is not None and revocation.root != new.public:
        _sign(folder, new, dict(revocation.floors), revocation.revoked, revocation.serial)
    if known.root != new.public:
        sign_keyset(folder, new, known.keys, now_s)
    write_public(folder / "root.pub", new.public)
    _replace_key(folder, "root", old)
    return rotation


def _sign(folder: Path, root: PrivateKey, floors: dict[str, int], revoked: frozenset[str], before: int) -> Revocation:
    revocation = Revocation.sign(root, floors, revoked, serial=next_serial(before, time.time()))
    write_atomic(folder / "revocation.json", revocation.to_json() + b"\n")
    return revocation


def _known_revocation(folder: Path) -> Revocation | None:
    return next((said for said in load_statements(folder) if isinstance(said, Revocation)), None)


def _next_key(folder: Path, name: str) -> PrivateKey:
    """The key that is about to take over; the same one when an earlier call was cut off."""
    path = folder / f"{name}.next.key"
    if not path.exists():
        write_private(path, new_key())
    return load_private(path)


def _replace_key(folder: Path, name: str, old: PrivateKey) -> None:
    """Put the old key aside under its fingerprint, and the next one in its place."""
    write_private(folder / f"{name}-{short_name(old.public)}.key", old)
    (folder / f"{name}.next.key").replace(folder / f"{name}.key")
    fsync_folder(folder)
