"""The model package: one file (`.tlm`) that holds a signed manifest, the model and what belongs to it.

Layout, all integers little-endian:

    8 bytes   magic "TLMPKG1\\n"
    u32       length of the manifest        u32   length of the signature block
    manifest  canonical JSON; lists every member with its size and SHA-256
    signature JSON: the release key's signature over the manifest, and the root's signed key set
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
from .keys import PACKAGE_DOMAIN, KeySet, Signer, Trust, fingerprint, verify_signature
from .manifest import PACKAGE_BYTES_MAX, Manifest, Member, parse_manifest
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
        data: the whole file.
    """

    manifest: Manifest
    sha256: str
    size: int
    root: str
    release: str
    expired: bool
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
        ModelError: the manifest or a member's name is wrong.
    """
    listed = tuple(Member(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in members.items())
    document = canonical_json({**manifest.to_json(), "members": [finite_member(member) for member in listed]})
    parse_manifest(json.loads(document))
    block = canonical_json(
        {
            "release": signer.key.public.hex(),
            "signature": signer.key.sign(PACKAGE_DOMAIN, document).hex(),
            "keyset": signer.keyset.document.decode(),
            "keyset_signature": signer.keyset.signature.hex(),
        }
    )
    return b"".join((_HEADER.pack(MAGIC, len(document), len(block)), document, block, *members.values()))


def finite_member(member: Member) -> dict[str, Json]:
    """A member's entry in the manifest."""
    return {"name": member.name, "size": member.size, "sha256": member.sha256}


def _split(data: bytes) -> tuple[bytes, bytes, bytes]:
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
    return data[_HEADER.size : split], data[split:start], data[start:]


def _check_signature(document: bytes, block: bytes) -> tuple[KeySet, bytes]:
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
    return keyset, release


def parse_package(
    data: bytes, trust: Trust | None, *, expiry: Literal["refuse", "warn"] = "warn", now_s: float | None = None
) -> Package:
    """Check a package: structure, signature, trust, then the hash of every member. Nothing is run.

    Args:
        data: the whole file, at most `PACKAGE_BYTES_MAX`.
        trust: the pinned roots; None checks the signature but not who made it (`package verify` without a pin).
        expiry: `refuse` for publishers and servers; `warn` for devices, whose clock may be years off.
        now_s: Unix time to judge expiry by; the machine's clock unless given.

    Raises:
        ModelError: the first thing found wrong; nothing of the package may be used.
    """
    if len(data) > PACKAGE_BYTES_MAX:
        raise ModelError(f"the package has {len(data)} bytes, at most {PACKAGE_BYTES_MAX} are taken")
    document, block, body = _split(data)
    keyset, release = _check_signature(document, block)
    if trust is not None:
        trust.check(keyset.root)
    expired = keyset.find(release).expires_s < (time.time() if now_s is None else now_s)
    if expired and expiry == "refuse":
        raise ModelError(f"the release key {fingerprint(release)} that signed the package has expired")
    try:
        manifest = parse_manifest(json.loads(document))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"the manifest is not JSON: {error}") from error
    members = _read_members(manifest, body)
    return Package(
        manifest=manifest,
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        root=fingerprint(keyset.root),
        release=fingerprint(release),
        expired=expired,
        data=data,
        _members=members,
    )


def _read_members(manifest: Manifest, body: bytes) -> dict[str, bytes]:
    expected = sum(member.size for member in manifest.members)
    if len(body) != expected:
        raise ModelError(
            f"the package is {'truncated' if len(body) < expected else 'too long'}: "
            f"its members have {len(body)} bytes, the manifest lists {expected}"
        )
    members, offset = {}, 0
    for member in manifest.members:
        content = body[offset : offset + member.size]
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
