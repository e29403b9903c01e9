"""Keys and trust: a root key signs the set of release keys, a release key signs packages.

The root key may be kept offline. Devices and servers pin roots by fingerprint (SHA-256 of the 32-byte public key)
and learn the release keys from the signed key set that travels in each package, so a release key can be replaced
without touching a device. Signatures are Ed25519 (RFC 8032) over a domain prefix and the exact bytes that are
stored, so that a signature for one purpose never fits another. The ideas are TUF's, less its four roles.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from .checks import Fields
from .errors import ConfigError, ModelError
from .files import make_folder, read_bounded, write_atomic
from .wire import canonical_json

KEYSET_DOMAIN: Final = b"tinymlops key set v1\n"
PACKAGE_DOMAIN: Final = b"tinymlops package v1\n"
RELEASE_DAYS: Final = 365
_KEY_FILE_BYTES_MAX: Final = 4096
_KEYSET_BYTES_MAX: Final = 65536
_FINGERPRINT: Final = re.compile(r"sha256:[0-9a-f]{64}")


def fingerprint(public: bytes) -> str:
    """What people compare and devices pin: `sha256:` and the hash of the public key in hex."""
    return "sha256:" + hashlib.sha256(public).hexdigest()


def verify_signature(public: bytes, domain: bytes, message: bytes, signature: bytes) -> bool:
    """True when the holder of the key signed exactly this message for this purpose."""
    try:
        VerifyKey(public).verify(domain + message, signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A signing key as read from its file."""

    seed: bytes

    @property
    def public(self) -> bytes:
        """The 32 bytes that others verify with."""
        return bytes(SigningKey(self.seed).verify_key)

    def sign(self, domain: bytes, message: bytes) -> bytes:
        """The 64-byte detached signature."""
        return SigningKey(self.seed).sign(domain + message).signature


@dataclass(frozen=True, slots=True)
class ReleaseKey:
    """A key that may sign packages until `expires_s` (Unix time)."""

    public: bytes
    expires_s: int


@dataclass(frozen=True, slots=True)
class KeySet:
    """The release keys that one root vouches for, with the exact signed bytes."""

    root: bytes
    keys: tuple[ReleaseKey, ...]
    document: bytes
    signature: bytes

    @classmethod
    def sign(cls, root: PrivateKey, keys: tuple[ReleaseKey, ...]) -> KeySet:
        """Make the set that a root signs."""
        document = canonical_json(
            {
                "type": "tinymlops key set",
                "root": root.public.hex(),
                "keys": [{"public": key.public.hex(), "expires_s": key.expires_s} for key in keys],
            }
        )
        return cls(root.public, keys, document, root.sign(KEYSET_DOMAIN, document))

    @classmethod
    def parse(cls, document: bytes, signature: bytes) -> KeySet:
        """Read a key set and check the root's signature; whether the root is trusted is the caller's question.

        Raises:
            ModelError: it is damaged or was signed by another key.
        """
        try:
            fields = Fields(json.loads(document), "key set", ModelError)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"the key set is not JSON: {error}") from error
        root = _hex(fields, "root", 32)
        keys = tuple(ReleaseKey(_hex(key, "public", 32), key.natural("expires_s")) for key in fields.tables("keys"))
        if not verify_signature(root, KEYSET_DOMAIN, document, signature):
            raise ModelError("the key set's signature does not fit its root key: it was changed or never signed")
        return cls(root, keys, document, signature)

    def find(self, public: bytes) -> ReleaseKey:
        """The entry of a release key.

        Raises:
            ModelError: the root does not vouch for this key.
        """
        for key in self.keys:
            if key.public == public:
                return key
        raise ModelError(f"the release key {fingerprint(public)} is not in the root's key set")

    def to_json(self) -> bytes:
        """The form of `keyset.json`."""
        return canonical_json({"document": self.document.decode(), "signature": self.signature.hex()})

    @classmethod
    def from_json(cls, data: bytes) -> KeySet:
        """Read `keyset.json`."""
        try:
            fields = Fields(json.loads(data), "key set file", ModelError)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"the key set file is not JSON: {error}") from error
        document = fields.text("document", length_max=_KEYSET_BYTES_MAX).encode()
        return cls.parse(document, _hex(fields, "signature", 64))


def _hex(fields: Fields, key: str, length: int) -> bytes:
    try:
        value = bytes.fromhex(fields.text(key))
    except ValueError as error:
        raise fields.fail(key, "expected hexadecimal digits") from error
    if len(value) != length:
        raise fields.fail(key, f"expected {length} bytes, got {len(value)}")
    return value


@dataclass(frozen=True, slots=True)
class Trust:
    """The roots that this device, server or publisher believes, by fingerprint."""

    roots: frozenset[str]

    @classmethod
    def load(cls, folder: Path) -> Trust:
        """Read every `*.pub` and every pinned fingerprint (`*.pin`) of a folder; a missing folder trusts nobody."""
        if not folder.is_dir():
            return cls(frozenset())
        roots = {fingerprint(load_public(path)) for path in sorted(folder.glob("*.pub"))}
        roots |= {
            read_bounded(path, _KEY_FILE_BYTES_MAX).decode("ascii", "replace").strip() for path in folder.glob("*.pin")
        }
        return cls(frozenset(roots))

    def check(self, root: bytes) -> None:
        """Refuse a root that is not pinned.

        Raises:
            ModelError: with the fingerprint to compare and the command that would trust it.
        """
        if fingerprint(root) not in self.roots:
            raise ModelError(
                f"the package comes from root key {fingerprint(root)}, which is not trusted here; if that "
                "fingerprint is the publisher's, pin it with `tinylcm keys trust ROOT.pub`"
            )


def _write_private(path: Path, key: PrivateKey) -> None:
    document = {"type": "tinymlops private key", "seed": key.seed.hex(), "public": key.public.hex()}
    write_atomic(path, canonical_json(document) + b"\n", mode=0o600)


def _write_public(path: Path, public: bytes) -> None:
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
    return PrivateKey(_hex(fields, "seed", 32))


def load_public(path: Path) -> bytes:
    """Read a public key file.

    Raises:
        ConfigError: missing or malformed.
    """
    return _hex(_read_key_file(path, "public"), "public", 32)


def pin_root(folder: Path, public: bytes) -> str:
    """Trust a root from now on; returns its fingerprint."""
    name = fingerprint(public)
    make_folder(folder)
    _write_public(folder / f"{name.removeprefix('sha256:')[:16]}.pub", public)
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
    """What a publisher signs packages with: a release key and the root's word for it."""

    key: PrivateKey
    keyset: KeySet

    @classmethod
    def load(cls, path: Path) -> Signer:
        """Read `release.key` and the `keyset.json` beside it.

        Raises:
            ConfigError: a file is missing, or the key has expired.
            ModelError: the key set does not vouch for the key.
        """
        key = load_private(path)
        keyset_path = path.parent / "keyset.json"
        if not keyset_path.is_file():
            raise ConfigError(f"{keyset_path} is missing: the root's key set belongs beside the release key")
        keyset = KeySet.from_json(read_bounded(keyset_path, 2 * _KEYSET_BYTES_MAX))
        expires_s = keyset.find(key.public).expires_s
        if expires_s < time.time():
            raise ConfigError(
                f"the release key {path} expired on {time.strftime('%Y-%m-%d', time.gmtime(expires_s))}; "
                "sign a new key set with the root key: `tinylcm keys renew FOLDER`"
            )
        return cls(key, keyset)


def _release(folder: Path, root: PrivateKey, key: PrivateKey, days: int, now_s: float) -> KeySet:
    keyset = KeySet.sign(root, (ReleaseKey(key.public, int(now_s) + days * 86400),))
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
    root, release = PrivateKey(bytes(SigningKey.generate())), PrivateKey(bytes(SigningKey.generate()))
    _write_private(folder / "root.key", root)
    _write_public(folder / "root.pub", root.public)
    _write_private(folder / "release.key", release)
    return _release(folder, root, release, days, time.time())


def renew_keys(folder: Path, *, days: int = RELEASE_DAYS) -> KeySet:
    """Sign the folder's release key again with a later expiry."""
    return _release(folder, load_private(folder / "root.key"), load_private(folder / "release.key"), days, time.time())
