"""Keys and trust: a root key signs the set of release keys, a release key signs packages.

The root key may be kept offline. Devices and servers pin roots by fingerprint (SHA-256 of the 32-byte public key)
and learn what these roots say (`statements`: key sets, revocations, a new root) from each package, or from a file, so
that keys can be replaced and packages revoked without touching a device. The ideas are TUF's, less its four roles.

Rules of trust
- A package is taken when its root is pinned, or was replaced by one that is, and its release key is in the newest
  key set known of that root and was not revoked. A key that a newer key set leaves out signs nothing any more.
- What a device has installed it keeps: neither expiry nor a newer key set stops a package that is there. Only a
  revocation does, and the last package that runs is not taken away (see `slots`).
- Serials, floors and the list of revoked keys never fall: a revocation that takes something back is not believed.
- A root that was replaced says nothing new; what it said before stays.
- Expiry is judged by the latest time known, never by a clock alone, and a device only warns of it.
"""

from __future__ import annotations

import json
import logging
import stat
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from nacl.signing import SigningKey

from .checks import Fields
from .errors import ConfigError, DeviceError, ModelError
from .files import list_files, make_folder, read_bounded, write_atomic
from .statements import FINGERPRINT as _FINGERPRINT
from .statements import KEYSET_DOMAIN as KEYSET_DOMAIN
from .statements import KeySet as KeySet
from .statements import PrivateKey as PrivateKey
from .statements import ReleaseKey as ReleaseKey
from .statements import Revocation as Revocation
from .statements import Rotation as Rotation
from .statements import Statement as Statement
from .statements import fingerprint as fingerprint
from .statements import hex_field, parse_statement
from .statements import verify_signature as verify_signature
from .wire import canonical_json

_log = logging.getLogger("tinylcm")
PACKAGE_DOMAIN: Final = b"tinymlops package v1\n"
RELEASE_DAYS: Final = 365
BUILT_S: Final = 1_793_491_200  # 2026-11-01: no clock that is right shows an earlier time to this program
STATEMENTS_MAX: Final = 8  # beside the key set, in a package or a publisher's folder
_KEY_FILE_BYTES_MAX: Final = 4096
STATEMENT_FILE_BYTES_MAX: Final = 131072
_SUFFIXES: Final[Mapping[type, str]] = {Rotation: "rotation", KeySet: "keyset", Revocation: "revocation"}


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom this device, server or publisher believes, and the newest that they said.

    Attributes:
        roots: fingerprints of the roots in force.
        successors: by a root that was replaced, the one that replaced it.
        keysets, revocations: by root, the newest known.
    """

    roots: frozenset[str]
    successors: Mapping[str, str] = field(default_factory=dict)
    keysets: Mapping[str, KeySet] = field(default_factory=dict)
    revocations: Mapping[str, Revocation] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Trust:
        """Read a folder: `*.pub` and pinned fingerprints (`*.pin`), and the statements learnt since.

        A missing folder trusts nobody; a damaged statement is left out with a warning, as a device that refuses to
        start helps nobody: a package brings it again.
        """
        if not folder.is_dir():
            return cls(frozenset())
        roots = {fingerprint(load_public(path)) for path in list_files(folder, "*.pub")}
        roots |= {
            read_bounded(path, _KEY_FILE_BYTES_MAX).decode("ascii", "replace").strip()
            for path in list_files(folder, "*.pin")
        }
        trust = cls(frozenset(roots))
        rotations = list(_stored(folder, "rotation"))
        for _ in range(len(rotations)):  # a chain may lie here in any order
            for rotation in rotations:
                trust = trust._with(rotation)
        for suffix in ("keyset", "revocation"):
            for statement in _stored(folder, suffix):
                trust = trust._with(statement)
        return trust

    def current(self, root: str) -> str:
        """The root that is in force for one that may have been replaced."""
        for _ in range(len(self.successors)):
            root = self.successors.get(root, root)
        return root

    def check(self, root: bytes) -> None:
        """Refuse a root that is neither pinned nor was replaced by one that is.

        Raises:
            ModelError: with the fingerprint to compare and the command that would trust it.
        """
        if self.current(fingerprint(root)) not in self.roots:
            raise ModelError(
                f"the package comes from root key {fingerprint(root)}, which is not trusted here; if that "
                "fingerprint is the publisher's, pin it with `tinylcm keys trust ROOT.pub`"
            )

    def check_release(self, keyset: KeySet, release: bytes) -> None:
        """Refuse a release key that may not sign packages any more.

        Raises:
            ModelError: its root is not trusted, it was revoked, or the newest key set leaves it out.
        """
        self.check(keyset.root)
        if self.is_revoked(release):
            raise ModelError(f"the release key {fingerprint(release)} was revoked by its root")
        root = fingerprint(keyset.root)
        newest = self.keysets.get(self.current(root), keyset if root in self.roots else None)
        if newest is None or release not in {key.public for key in newest.keys}:
            raise ModelError(
                f"the release key {fingerprint(release)} is not in the newest key set of root {self.current(root)}: "
                "the publisher has replaced it; build the package again with the release key of today"
            )

    def is_revoked(self, release: bytes) -> bool:
        """Whether a trusted root has revoked a release key."""
        return any(fingerprint(release) in revocation.revoked for revocation in self.revocations.values())

    def floor(self, model: str) -> int:
        """The least `security_counter` that a model's package may have."""
        return max((revocation.floors.get(model, 0) for revocation in self.revocations.values()), default=0)

    def learn(self, statement: Statement) -> Trust:
        """Believe a statement; what is known already, older, or said by a root that was replaced, changes nothing.

        Raises:
            ModelError: its root is not trusted, has handed over to another one, or takes a revocation back.
        """
        root = fingerprint(statement.old if isinstance(statement, Rotation) else statement.root)
        if root in self.successors:
            if isinstance(statement, Rotation) and self.successors[root] != fingerprint(statement.new):
                raise ModelError(
                    f"the root {root} hands over to {fingerprint(statement.new)}, and did so before to "
                    f"{self.successors[root]}: the first one counts; its private key may have been stolen"
                )
            return self
        if root not in self.roots:
            raise ModelError(f"the root {root} is not trusted here; pin it with `tinylcm keys trust ROOT.pub`")
        if isinstance(statement, Revocation):
            known = self.revocations.get(root)
            if known is not None and statement.serial > known.serial and (lost := statement.takes_back(known)):
                raise ModelError(
                    f"the revocation {statement.serial} of root {root} takes back what {known.serial} revoked "
                    f"({lost}): a floor never falls"
                )
        return self._with(statement)

    def learn_all(self, statements: Collection[Statement]) -> tuple[Trust, list[Statement], list[ModelError]]:
        """Believe of several statements what can be believed, in whatever order they come.

        Returns:
            What is believed then, the statements that were news, in an order in which each is believed, and why the
            others are not believed.
        """
        trust, news = self, []
        waiting = sorted(statements, key=lambda statement: not isinstance(statement, Rotation))
        problems: list[ModelError] = []
        for _ in range(len(waiting)):  # each hand-over may be what the next one needs
            left, problems = [], []
            for statement in waiting:
                try:
                    after = trust.learn(statement)
                except ModelError as error:
                    left.append(statement)
                    problems.append(error)
                    continue
                if after is not trust:
                    news.append(statement)
                trust = after
            if len(left) == len(waiting):
                break
            waiting = left
        return trust, news, problems

    def _with(self, statement: Statement) -> Trust:
        """With what was believed when it came, from a root that may have been replaced since."""
        if isinstance(statement, Rotation):
            old, new = fingerprint(statement.old), fingerprint(statement.new)
            if old not in self.roots or new in self.successors:
                return self
            return replace(self, roots=self.roots - {old} | {new}, successors={**self.successors, old: new})
        root = fingerprint(statement.root)
        known = self.keysets if isinstance(statement, KeySet) else self.revocations
        if self.current(root) not in self.roots or (root in known and known[root].serial >= statement.serial):
            return self
        if isinstance(statement, KeySet):
            return replace(self, keysets={**self.keysets, root: statement})
        return replace(self, revocations={**self.revocations, root: statement})


def _stored(folder: Path, suffix: str) -> Iterable[Statement]:
    for path in list_files(folder, f"*.{suffix}"):
        try:
            statement = parse_statement(read_bounded(path, STATEMENT_FILE_BYTES_MAX))
        except (ModelError, DeviceError) as error:
            _log.warning("%s is left out, the next package brings it again: %s", path, error)
            continue
        if _SUFFIXES[type(statement)] == suffix:
            yield statement


def learn_statements(folder: Path, statements: Collection[Statement]) -> tuple[Statement, ...]:
    """Store what is news in a trust folder, each atomically, hand-overs first; returns it.

    Statements that are not believed are left out with a warning.

    Raises:
        DeviceError: the folder cannot be written; what is stored so far stays.
    """
    _, news, problems = Trust.load(folder).learn_all(statements)
    for problem in problems:
        _log.warning("%s", problem)
    for statement in news:
        _store(folder, statement)
    return tuple(news)


def accept_statement(folder: Path, data: bytes) -> tuple[Statement, bool]:
    """Learn the file of one statement, for a device without a server.

    Returns:
        The statement, and whether it was news.

    Raises:
        ModelError: it is damaged, or not believed: see `Trust.learn`.
    """
    statement, trust = parse_statement(data), Trust.load(folder)
    if trust.learn(statement) is trust:
        return statement, False
    _store(folder, statement)
    return statement, True


def _store(folder: Path, statement: Statement) -> None:
    root = statement.old if isinstance(statement, Rotation) else statement.root
    name = f"{short_name(root)}.{_SUFFIXES[type(statement)]}"
    write_atomic(folder / name, statement.to_json() + b"\n")


def short_name(public: bytes) -> str:
    """The first digits of a fingerprint, for names of files."""
    return fingerprint(public).removeprefix("sha256:")[:16]


def write_private(path: Path, key: PrivateKey) -> None:
    """Store a signing key, readable by its owner only."""
    document = {"type": "tinymlops private key", "seed": key.seed.hex(), "public": key.public.hex()}
    write_atomic(path, canonical_json(document) + b"\n", mode=0o600)


def write_public(path: Path, public: bytes) -> None:
    """Store what others verify with."""
    document = {"type": "tinymlops public key", "public": public.hex(), "fingerprint": fingerprint(public)}
    write_atomic(path, canonical_json(document) + b"\n")


def _read_key_file(path: Path, kind: str) -> Fields:
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; make keys with `tinylcm keys init FOLDER`")
    try:
        fields = Fields(json.loads(read_bounded(path, _KEY_FILE_BYTES_MAX)), str(path), ConfigError)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not a key file: {error}") from error
    if fields.text("type") != f"tinymlops {kind} key":
        raise ConfigError(f"{path} is not a {kind} key: its type is {fields.text('type')!r}")
    return fields


def load_private(path: Path) -> PrivateKey:
    """Read a private key; one that others can read is refused, as ssh does.

    Raises:
        ConfigError: missing, malformed, or readable by group or others.
    """
    fields = _read_key_file(path, "private")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise ConfigError(f"{path} can be read by others; run `chmod 600 {path}`")
    return PrivateKey(hex_field(fields, "seed", 32))


def load_public(path: Path) -> bytes:
    """Read a public key file.

    Raises:
        ConfigError: missing or malformed.
    """
    return hex_field(_read_key_file(path, "public"), "public", 32)


def pin_root(folder: Path, public: bytes) -> str:
    """Trust a root from now on; returns its fingerprint."""
    name = fingerprint(public)
    make_folder(folder)
    write_public(folder / f"{short_name(public)}.pub", public)
    return name


def pin_fingerprint(folder: Path, root: str) -> None:
    """Trust a root of which only the fingerprint is known, as from a join string.

    Raises:
        ConfigError: it is no fingerprint.
    """
    if not _FINGERPRINT.fullmatch(root):
        raise ConfigError(f"{root!r:.100} is no fingerprint; expected sha256: and 64 hexadecimal digits")
    make_folder(folder)
    write_atomic(folder / f"{root.removeprefix('sha256:')[:16]}.pin", root.encode() + b"\n")


@dataclass(frozen=True, slots=True)
class Signer:
    """What a publisher signs packages with: a release key, the root's word for it, and what else the root says."""

    key: PrivateKey
    keyset: KeySet
    statements: tuple[Statement, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Signer:
        """Read `release.key` and, beside it, `keyset.json`, `revocation.json` and `rotation-*.json`.

        Raises:
            ConfigError: a file is missing, the key has expired or was revoked, or a change of root was cut off.
            ModelError: the key set does not vouch for the key, or a statement is damaged.
        """
        key = load_private(path)
        keyset = load_keyset(path.parent)
        expires_s = keyset.find(key.public).expires_s
        if expires_s < time.time():
            raise ConfigError(
                f"the release key {path} expired on {time.strftime('%Y-%m-%d', time.gmtime(expires_s))}; "
                "sign a new key set with the root key: `tinylcm keys renew FOLDER`"
            )
        statements = load_statements(path.parent)
        if any(isinstance(said, Revocation) and fingerprint(key.public) in said.revoked for said in statements):
            raise ConfigError(f"the release key {path} was revoked; make one with `tinylcm keys rotate-release FOLDER`")
        if any(isinstance(said, Rotation) and said.old == keyset.root for said in statements):
            raise ConfigError(f"the change of root in {path.parent} was cut off: repeat `tinylcm keys rotate-root`")
        return cls(key, keyset, statements)

    def floor(self, model: str) -> int:
        """The security floor of a model that the packages made here tell of."""
        return max((said.floors.get(model, 0) for said in self.statements if isinstance(said, Revocation)), default=0)


def load_keyset(folder: Path) -> KeySet:
    """A publisher's key set.

    Raises:
        ConfigError: it is missing.
        ModelError: it is damaged.
    """
    path = folder / "keyset.json"
    if not path.is_file():
        raise ConfigError(f"{path} is missing: the root's key set belongs beside the release key")
    return KeySet.from_json(read_bounded(path, STATEMENT_FILE_BYTES_MAX))


def load_statements(folder: Path) -> tuple[Statement, ...]:
    """A publisher's rotations and revocation, as packages carry them.

    Raises:
        ConfigError: there are more than packages can carry.
        ModelError: one is damaged.
    """
    paths = [*list_files(folder, "rotation-*.json"), *list_files(folder, "revocation.json")]
    if len(paths) > STATEMENTS_MAX:
        raise ConfigError(
            f"{folder} holds {len(paths)} statements, at most {STATEMENTS_MAX}: remove old rotation files"
        )
    return tuple(parse_statement(read_bounded(path, STATEMENT_FILE_BYTES_MAX)) for path in paths)


def next_serial(before: int, now_s: float) -> int:
    """One above the last; the time where that is more, so that a publisher who lost the last file still rises."""
    return max(before + 1, int(now_s))


def sign_keyset(folder: Path, root: PrivateKey, keys: Iterable[ReleaseKey], now_s: float) -> KeySet:
    """Sign and store a folder's key set, with a serial above the last one's."""
    known = load_keyset(folder).serial if (folder / "keyset.json").is_file() else 0
    keyset = KeySet.sign(root, tuple(keys), serial=next_serial(known, now_s))
    write_atomic(folder / "keyset.json", keyset.to_json() + b"\n")
    return keyset


def init_keys(folder: Path, *, days: int = RELEASE_DAYS) -> KeySet:
    """Make a root key, a release key and the signed key set in a folder.

    Raises:
        ConfigError: the folder has keys already; they are never overwritten.
    """
    make_folder(folder, private=True)
    for name in ("root.key", "release.key"):
        if (folder / name).exists():
            raise ConfigError(f"{folder / name} exists already and is never overwritten; choose another folder")
    root, release = new_key(), new_key()
    write_private(folder / "root.key", root)
    write_public(folder / "root.pub", root.public)
    write_private(folder / "release.key", release)
    now_s = time.time()
    return sign_keyset(folder, root, [ReleaseKey(release.public, int(now_s) + days * 86400)], now_s)


def new_key() -> PrivateKey:
    """A fresh signing key."""
    return PrivateKey(bytes(SigningKey.generate()))


def renew_keys(folder: Path, *, days: int = RELEASE_DAYS) -> KeySet:
    """Sign the folder's release key again with a later expiry; other keys of the set stay as they are."""
    root, release, now_s = load_private(folder / "root.key"), load_private(folder / "release.key"), time.time()
    others = other_keys(folder, root, release.public)
    return sign_keyset(folder, root, [ReleaseKey(release.public, int(now_s) + days * 86400), *others], now_s)


def other_keys(folder: Path, root: PrivateKey, public: bytes) -> list[ReleaseKey]:
    """The entries of a folder's key set, without one key; none when there is no key set of this root."""
    if not (folder / "keyset.json").is_file():
        return []
    keyset = load_keyset(folder)
    return [key for key in keyset.keys if key.public != public] if keyset.root == root.public else []
