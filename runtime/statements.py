"""What a root key says, and how it is checked: key sets, revocations and its own replacement.

- A *key set* names the release keys that may sign packages, each with its expiry.
- A *revocation* raises the security floor of models and withdraws release keys. It is cumulative: the newest one
  holds everything that was ever revoked, so a device that was away for a year needs only that one.
- A *rotation* hands over from one root key to the next; both sign it.

Each is canonical JSON with an Ed25519 signature (RFC 8032) over a domain prefix and its exact bytes, so that a
signature for one purpose never fits another, and each can be checked alone, wherever it came from. Key sets and
revocations carry a serial that rises; of two, the one with the higher serial is believed. Whether a root is trusted
is the question of `keys.Trust`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from .checks import Fields
from .errors import ModelError
from .types import Json
from .wire import canonical_json

KEYSET_DOMAIN: Final = b"tinymlops key set v1\n"
REVOCATION_DOMAIN: Final = b"tinymlops revocation v1\n"
ROTATION_DOMAIN: Final = b"tinymlops root rotation v1\n"
STATEMENT_BYTES_MAX: Final = 65536
FINGERPRINT: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MODEL_CHARACTERS_MAX: Final = 64
_LISTED_MAX: Final = 1000


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
    serial: int = 0

    @classmethod
    def sign(cls, root: PrivateKey, keys: tuple[ReleaseKey, ...], *, serial: int = 0) -> KeySet:
        """Make the set that a root signs."""
        document = canonical_json(
            {
                "type": "tinymlops key set",
                "root": root.public.hex(),
                "serial": serial,
                "keys": [{"public": key.public.hex(), "expires_s": key.expires_s} for key in keys],
            }
        )
        return cls(root.public, keys, document, root.sign(KEYSET_DOMAIN, document), serial)

    @classmethod
    def parse(cls, document: bytes, signature: bytes) -> KeySet:
        """Read a key set and check the root's signature; whether the root is trusted is the caller's question.

        Raises:
            ModelError: it is damaged or was signed by another key.
        """
        fields = _fields(document, "key set")
        root = hex_field(fields, "root", 32)
        keys = tuple(
            ReleaseKey(hex_field(key, "public", 32), key.natural("expires_s")) for key in fields.tables("keys")
        )
        serial = fields.natural("serial", 0)  # the first sets had none
        if not verify_signature(root, KEYSET_DOMAIN, document, signature):
            raise ModelError("the key set's signature does not fit its root key: it was changed or never signed")
        return cls(root, keys, document, signature, serial)

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
        return _file(self.document, {"signature": self.signature})

    @classmethod
    def from_json(cls, data: bytes) -> KeySet:
        """Read `keyset.json`.

        Raises:
            ModelError: it is damaged or was signed by another key.
        """
        fields = _fields(data, "key set file")
        return cls.parse(_document(fields), hex_field(fields, "signature", 64))


@dataclass(frozen=True, slots=True)
class Revocation:
    """What one root has ever revoked, with the exact signed bytes.

    Attributes:
        floors: by model, the least `security_counter` that may run.
        revoked: fingerprints of release keys whose packages may not run, whatever a key set says.
    """

    root: bytes
    serial: int
    floors: Mapping[str, int]
    revoked: frozenset[str]
    document: bytes
    signature: bytes

    @classmethod
    def sign(cls, root: PrivateKey, floors: Mapping[str, int], revoked: frozenset[str], *, serial: int) -> Revocation:
        """Make the statement that a root signs."""
        document = canonical_json(
            {
                "type": "tinymlops revocation",
                "root": root.public.hex(),
                "serial": serial,
                "floors": dict(floors),
                "revoked": sorted(revoked),
            }
        )
        return cls(root.public, serial, dict(floors), revoked, document, root.sign(REVOCATION_DOMAIN, document))

    @classmethod
    def parse(cls, document: bytes, signature: bytes) -> Revocation:
        """Read a revocation and check the root's signature.

        Raises:
            ModelError: it is damaged or was signed by another key.
        """
        fields = _fields(document, "revocation")
        root, serial = hex_field(fields, "root", 32), fields.natural("serial")
        table = fields.table("floors")
        if len(table.value) > _LISTED_MAX or any(len(model) > _MODEL_CHARACTERS_MAX for model in table.value):
            raise fields.fail("floors", f"expected at most {_LISTED_MAX} names of models")
        floors = {model: table.natural(model) for model in table.value}
        revoked = frozenset(fields.texts("revoked", length_max=_LISTED_MAX))
        if not all(FINGERPRINT.fullmatch(key) for key in revoked):
            raise fields.fail("revoked", "expected fingerprints of release keys")
        if not verify_signature(root, REVOCATION_DOMAIN, document, signature):
            raise ModelError("the revocation's signature does not fit its root key: it was changed or never signed")
        return cls(root, serial, floors, revoked, document, signature)

    def takes_back(self, older: Revocation) -> str:
        """What an older one has revoked and this one has not, for a message; empty when nothing."""
        lost = [f"the floor {n} of {model}" for model, n in older.floors.items() if self.floors.get(model, 0) < n]
        return ", ".join([*lost, *sorted(older.revoked - self.revoked)])

    def to_json(self) -> bytes:
        """The form of `revocation.json`."""
        return _file(self.document, {"signature": self.signature})


@dataclass(frozen=True, slots=True)
class Rotation:
    """One root hands over to another, with the exact bytes that both signed."""

    old: bytes
    new: bytes
    document: bytes
    signature: bytes
    new_signature: bytes

    @classmethod
    def sign(cls, old: PrivateKey, new: PrivateKey) -> Rotation:
        """Make the statement that both sign."""
        document = canonical_json(
            {"type": "tinymlops root rotation", "root": old.public.hex(), "new": new.public.hex()}
        )
        return cls(
            old.public, new.public, document, old.sign(ROTATION_DOMAIN, document), new.sign(ROTATION_DOMAIN, document)
        )

    @classmethod
    def parse(cls, document: bytes, signature: bytes, new_signature: bytes) -> Rotation:
        """Read a rotation and check both signatures.

        Raises:
            ModelError: it is damaged, one of the signatures does not fit, or the two roots are one.
        """
        fields = _fields(document, "root rotation")
        old, new = hex_field(fields, "root", 32), hex_field(fields, "new", 32)
        if old == new:
            raise fields.fail("new", "is the old root")
        for key, signed, name in ((old, signature, "old"), (new, new_signature, "new")):
            if not verify_signature(key, ROTATION_DOMAIN, document, signed):
                raise ModelError(f"the root rotation is not signed by the {name} root: it was changed or never signed")
        return cls(old, new, document, signature, new_signature)

    def to_json(self) -> bytes:
        """The form of `rotation-OLD.json`."""
        return _file(self.document, {"signature": self.signature, "new_signature": self.new_signature})


Statement: TypeAlias = KeySet | Revocation | Rotation


def parse_statement(data: bytes) -> Statement:
    """Read the file of any statement and check its signatures.

    Raises:
        ModelError: it is none, damaged, or signed by another key.
    """
    fields = _fields(data, "signed statement")
    document, signature = _document(fields), hex_field(fields, "signature", 64)
    kind = _fields(document, "signed statement").text("type")
    if kind == "tinymlops key set":
        return KeySet.parse(document, signature)
    if kind == "tinymlops revocation":
        return Revocation.parse(document, signature)
    if kind == "tinymlops root rotation":
        return Rotation.parse(document, signature, hex_field(fields, "new_signature", 64))
    raise ModelError(f"{kind!r} is no statement of a root; expected a key set, a revocation or a root rotation")


def hex_field(fields: Fields, key: str, length: int) -> bytes:
    """A field of so many bytes in hex."""
    try:
        value = bytes.fromhex(fields.text(key))
    except ValueError as error:
        raise fields.fail(key, "expected hexadecimal digits") from error
    if len(value) != length:
        raise fields.fail(key, f"expected {length} bytes, got {len(value)}")
    return value


def _fields(data: bytes, what: str) -> Fields:
    try:
        return Fields(json.loads(data), what, ModelError)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"the {what} is not JSON: {error}") from error


def _document(fields: Fields) -> bytes:
    return fields.text("document", length_max=STATEMENT_BYTES_MAX).encode()


def _file(document: bytes, signatures: Mapping[str, bytes]) -> bytes:
    content: dict[str, Json] = {"document": document.decode()}
    content.update({name: signature.hex() for name, signature in signatures.items()})
    return canonical_json(content)
