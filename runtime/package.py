"""The model package: one file (`.tlm`) that holds a signed manifest, the model and what belongs to it.

Layout, all integers little-endian:

    8 bytes   magic "TLMPKG1\\n"
    u32       length of the manifest        u32   length of the signature block
    manifest  canonical JSON; lists every member with its size and SHA-256
    signature JSON: the release key's signature over the manifest, the root's signed key set, and what else the root
              says (`statements`: revocations, a new root), if anything
    members   in the manifest's order, without padding; the file ends with the last one

There is nothing to extract and no path inside: member names come from an allow-list, sizes are known before a byte
is read, and one byte too many or too few refuses the file. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from .checks import Fields
from .errors import ModelError
from .files import device_error
from .keys import PACKAGE_DOMAIN, STATEMENTS_MAX, KeySet, Signer, Statement, Trust, fingerprint, verify_signature
from .manifest import PACKAGE_BYTES_MAX, Manifest, Member, parse_manifest
from .statements import parse_statement
from .types import Json
from .wire import canonical_json

MAGIC: Final = b"TLMPKG1\n"
MANIFEST_BYTES_MAX: Final = 1 << 20
SIGNATURE_BYTES_MAX: Final = 128 << 10
_HEADER: Final = struct.Struct("<8sII")


@dataclass(frozen=True, slots=True)
class Package:
    """A package whose structure, hashes and signature have been checked.

    Attributes:
        sha256: of the whole file, in hex: the name under which it is stored and deployed.
        root: fingerprint of the root key that vouches for it.
        release: fingerprint of the release key that signed it.
        expired: the release key's expiry has passed by this machine's clock; publishers refuse, devices warn.
        statements: of the root that the package carries, its key set among them: signed, not yet believed.
        data: the whole file.
    """

    manifest: Manifest
    sha256: str
    size: int
    root: str
    release: str
    expired: bool
    statements: tuple[Statement, ...] = field(repr=False)
    data: bytes = field(repr=False)
    _members: Mapping[str, bytes] = field(repr=False)

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            ModelError: the package has no such member.
        """
        if name not in self._members:
            raise ModelError(f"package {self.manifest.name} {self.manifest.version} has no {name}")
        return self._members[name]

    def golden_inputs(self) -> NDArray[np.float32]:
        """The golden windows, `[count, *manifest.window_shape]`; empty when there are none."""
        shape = self.manifest.window_shape
        if self.manifest.golden is None:
            return np.empty((0, *shape), dtype=np.float32)
        flat = np.frombuffer(self.read("golden.f32"), dtype="<f4")
        return flat.reshape((self.manifest.golden.count, *shape)).astype(np.float32)


def build_package(manifest: Manifest, members: Mapping[str, bytes], signer: Signer) -> bytes:
    """Put a package together and sign it.

    Args:
        manifest: its `members` are replaced by what is given here.
        members: content by allow-listed name.
        signer: the release key with the root's word for it.

    Raises:
        ModelError: the manifest or a member's name is wrong, or the signer's own revocation refuses the package.
    """
    if manifest.security_counter < (floor := signer.floor(manifest.name)):
        raise ModelError(
            f"{manifest.name} {manifest.version} has security_counter {manifest.security_counter}, your revocation "
            f"asks for {floor}: no device would take it; raise security_counter in model.toml"
        )
    listed = tuple(Member(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in members.items())
    document = canonical_json({**manifest.to_json(), "members": [finite_member(member) for member in listed]})
    parse_manifest(json.loads(document))
    signature: dict[str, Json] = {
        "release": signer.key.public.hex(),
        "signature": signer.key.sign(PACKAGE_DOMAIN, document).hex(),
        "keyset": signer.keyset.document.decode(),
        "keyset_signature": signer.keyset.signature.hex(),
    }
    if signer.statements:
        signature["statements"] = [said.to_json().decode() for said in signer.statements]
    block = canonical_json(signature)
    if len(block) > SIGNATURE_BYTES_MAX:
        raise ModelError(f"key set and statements have {len(block)} bytes, at most {SIGNATURE_BYTES_MAX} fit a package")
    return b"".join((_HEADER.pack(MAGIC, len(document), len(block)), document, block, *members.values()))


def finite_member(member: Member) -> dict[str, Json]:
    """A member's entry in the manifest."""
    return {"name": member.name, "size": member.size, "sha256": member.sha256}


def _split(data: bytes) -> tuple[bytes, bytes]:
    if len(data) < _HEADER.size:
        raise ModelError(f"the package is truncated: {len(data)} bytes hold not even its header")
    magic, manifest_size, block_size = _HEADER.unpack_from(data)
    if magic != MAGIC:
        raise ModelError("this is not a model package (.tlm): it does not begin with TLMPKG1")
    if manifest_size > MANIFEST_BYTES_MAX or block_size > SIGNATURE_BYTES_MAX:
        raise ModelError("the package claims a manifest or signature larger than any may be: it is damaged")
    start = _HEADER.size + manifest_size + block_size
    if len(data) < start:
        raise ModelError(f"the package is truncated: {len(data)} bytes, its manifest alone needs {start}")
    split = _HEADER.size + manifest_size
    return data[_HEADER.size : split], data[split:start]


@dataclass(frozen=True, slots=True)
class Head:
    """What stands before the members, its signature checked; whom to trust is the caller's question.

    Attributes:
        document: the signed manifest, not yet parsed.
        release: the public key that signed it.
        body: where the members begin, in bytes from the start of the file.
    """

    document: bytes = field(repr=False)
    keyset: KeySet
    release: bytes
    statements: tuple[Statement, ...]
    body: int

    def manifest(self) -> Manifest:
        """What the package says of itself.

        Raises:
            ModelError: it contradicts itself, or this program does not know it.
        """
        try:
            return parse_manifest(json.loads(self.document))
        except (ValueError, RecursionError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(f"the manifest is not JSON: {error}") from error


def _parse_head(data: bytes) -> Head:
    document, block = _split(data)
    try:
        fields = Fields(json.loads(block), "signature", ModelError)
        release, signature, keyset_signature = (
            bytes.fromhex(fields.text(key)) for key in ("release", "signature", "keyset_signature")
        )
    except (ValueError, RecursionError) as error:
        raise ModelError("the package's signature block is damaged") from error
    keyset = KeySet.parse(fields.text("keyset", length_max=SIGNATURE_BYTES_MAX).encode(), keyset_signature)
    keyset.find(release)
    if not verify_signature(release, PACKAGE_DOMAIN, document, signature):
        raise ModelError("the package's signature does not fit its manifest: it was changed after it was signed")
    said = fields.items("statements", [], length_max=STATEMENTS_MAX)
    if not all(isinstance(item, str) for item in said):
        raise fields.fail("statements", "expected a list of texts")
    statements = (keyset, *(parse_statement(str(item).encode("utf-8", "replace")) for item in said))
    return Head(document, keyset, release, statements, _HEADER.size + len(document) + len(block))


def _check_trust(head: Head, trust: Trust, installed: bool) -> None:
    """A package may itself bring the news that its root has changed, or that a key was revoked."""
    if installed:
        trust.check(head.keyset.root)
        return
    trust, _, _ = trust.learn_all(head.statements)  # what is not believed counts for nothing
    trust.check_release(head.keyset, head.release)


def parse_package(
    data: bytes,
    trust: Trust | None,
    *,
    expiry: Literal["refuse", "warn"] = "warn",
    now_s: float | None = None,
    installed: bool = False,
) -> Package:
    """Check a package: structure, signature, trust, then the hash of every member. Nothing is run.

    Args:
        data: the whole file, at most `PACKAGE_BYTES_MAX`.
        trust: the pinned roots; None checks the signature but not who made it (`package verify` without a pin).
        expiry: `refuse` for publishers and servers; `warn` for devices, whose clock may be years off.
        now_s: Unix time to judge expiry by; the machine's clock unless given.
        installed: it was taken before: its root must be trusted, but neither a newer key set nor a revoked key keeps
            it from being read, as a device would rather run what it has than nothing.

    Raises:
        ModelError: the first thing found wrong; nothing of the package may be used.
    """
    if len(data) > PACKAGE_BYTES_MAX:
        raise ModelError(f"the package has {len(data)} bytes, at most {PACKAGE_BYTES_MAX} are taken")
    head = _parse_head(data)
    if trust is not None:
        _check_trust(head, trust, installed)
    expired = head.keyset.find(head.release).expires_s < (time.time() if now_s is None else now_s)
    if expired and expiry == "refuse":
        raise ModelError(f"the release key {fingerprint(head.release)} that signed the package has expired")
    manifest = head.manifest()
    members = _read_members(manifest, memoryview(data)[head.body :])
    return Package(
        manifest=manifest,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        root=fingerprint(head.keyset.root),
        release=fingerprint(head.release),
        expired=expired,
        statements=head.statements,
        data=data,
        _members=members,
    )


def load_head(path: Path) -> Head:
    """Read what a package file says of itself, without its members; at most 1.2 MB are read.

    Raises:
        ModelError: it is no package, or its signature does not fit.
        DeviceError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _parse_head(file.read(_HEADER.size + MANIFEST_BYTES_MAX + SIGNATURE_BYTES_MAX))
    except OSError as error:
        raise device_error(error, "reading the package") from error


def _read_members(manifest: Manifest, body: memoryview) -> dict[str, bytes]:
    expected = sum(member.size for member in manifest.members)
    if len(body) != expected:
        raise ModelError(
            f"the package is {'truncated' if len(body) < expected else 'too long'}: "
            f"its members have {len(body)} bytes, the manifest lists {expected}"
        )
    members, offset = {}, 0
    for member in manifest.members:
        content = bytes(body[offset : offset + member.size])
        offset += member.size
        if hashlib.sha256(content).hexdigest() != member.sha256:
            raise ModelError(f"{member.name} in the package is damaged: its hash is not the signed one")
        members[member.name] = content
    for _, name in manifest.models():
        if name not in members:
            raise ModelError(f"the package has no {name}")
    if manifest.golden is not None:
        needed = manifest.golden.count * math.prod(manifest.window_shape) * 4
        if len(members.get("golden.f32", b"")) != needed:
            raise ModelError(f"golden.f32 has {len(members.get('golden.f32', b''))} bytes, expected {needed}")
    return members


def load_package(
    path: Path | str, trust: Trust | None, *, expiry: Literal["refuse", "warn"] = "warn", now_s: float | None = None
) -> Package:
    """Read and check a package file: see `parse_package`.

    Raises:
        ModelError: it is no sound, trusted package.
        DeviceError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(PACKAGE_BYTES_MAX + 1)
    except OSError as error:
        raise device_error(error, "reading the package") from error
    return parse_package(data, trust, expiry=expiry, now_s=now_s)
