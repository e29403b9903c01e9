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
import re
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from .checks import Fields
from .errors import ModelError, WireError
from .files import device_error
from .keys import PACKAGE_DOMAIN, KeySet, Signer, Trust, fingerprint, verify_signature
from .types import Json
from .wire import canonical_json, finite

MAGIC: Final = b"TLMPKG1\n"
MANIFEST_VERSION: Final = 1
PACKAGE_BYTES_MAX: Final = 256 << 20
MANIFEST_BYTES_MAX: Final = 1 << 20
POINTS_MAX: Final = 2_000  # reference rows that a manifest may carry for distances
SIGNATURE_BYTES_MAX: Final = 128 << 10
MODEL_MEMBERS: Final = {"onnx": "model.onnx"}
MEMBERS: Final = frozenset({"model.onnx", "golden.f32"})
DTYPES: Final = ("float32",)
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
VERSION: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}([-+][0-9A-Za-z.-]{1,40})?")
_HEADER: Final = struct.Struct("<8sII")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_ELEMENTS_MAX: Final = 1 << 26


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The tensor that takes one window: `shape` with the batch axis first, `[1, samples, channels]`."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    channels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()

    def layout(self, samples: int) -> tuple[int, int] | None:
        """How many (samples, channels) one window has, or None when `samples` does not fit the shape.

        `[1, s, ...]` is s samples; `[1, n]` is one sample of n channels, or n samples of one channel.
        """
        elements = math.prod(self.shape)
        if len(self.shape) > 2 and samples != self.shape[1]:
            return None
        if len(self.shape) <= 2 and samples not in (1, elements):
            return None
        return samples, elements // samples

    def channel(self, index: int) -> str:
        """A channel's name for messages: its own, or its number."""
        return self.channels[index] if index < len(self.channels) else f"channel {index}"


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """How the stream is cut: `samples` a window, a new one every `hop` samples; `rate_hz` is 0 when unknown."""

    samples: int
    hop: int
    rate_hz: float = 0.0


@dataclass(frozen=True, slots=True)
class MonitorSpec:
    """One monitor as declared: which signal, which detector, its parameters."""

    name: str
    signal: str
    detector: str
    params: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FeatureReference:
    """What a signal looked like in training: moments and a histogram."""

    name: str
    mean: float
    std: float
    edges: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """A file inside the package."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs with the outputs that the publisher saw: `count` windows in `golden.f32`, scores here."""

    count: int
    tolerance: float
    scores: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a package says of itself; everything a device needs to run the model without asking."""

    name: str
    version: str
    format: str
    input: InputSpec
    output: str
    labels: tuple[str, ...]
    window: WindowSpec
    security_counter: int = 0
    monitors: tuple[MonitorSpec, ...] = ()
    reference: Mapping[str, tuple[FeatureReference, ...]] = field(default_factory=dict)
    correlation: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    moments: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    points: Mapping[str, tuple[tuple[float, ...], ...]] = field(default_factory=dict)
    embedding: str = ""
    golden: Golden | None = None
    members: tuple[Member, ...] = ()
    metadata: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """The manifest as it is signed."""
        document: dict[str, object] = {
            "manifest": MANIFEST_VERSION,
            "name": self.name,
            "version": self.version,
            "format": self.format,
            "security_counter": self.security_counter,
            "input": {
                "name": self.input.name,
                "shape": self.input.shape,
                "dtype": self.input.dtype,
                "channels": self.input.channels,
                "units": self.input.units,
            },
            "output": self.output,
            "labels": self.labels,
            "window": {
                "samples": self.window.samples,
                "hop": self.window.hop,
                "rate_hz": self.window.rate_hz,
            },
            "monitors": [
                {"name": m.name, "signal": m.signal, "detector": m.detector, "params": m.params} for m in self.monitors
            ],
            "reference": {
                signal: [
                    {"name": f.name, "mean": f.mean, "std": f.std, "edges": f.edges, "counts": f.counts}
                    for f in features
                ]
                for signal, features in self.reference.items()
            },
            "correlation": self.correlation,
            "moments": self.moments,
            "points": self.points,
            "embedding": self.embedding,
            "members": [{"name": m.name, "size": m.size, "sha256": m.sha256} for m in self.members],
            "metadata": self.metadata,
        }
        if self.golden is not None:
            document["golden"] = {
                "count": self.golden.count,
                "tolerance": self.golden.tolerance,
                "scores": self.golden.scores,
            }
        result = finite(document)
        assert isinstance(result, dict)
        return result


def _input(fields: Fields) -> InputSpec:
    shape = tuple(fields.items("shape", length_max=8))
    if not shape or not all(type(n) is int and 0 < n <= _ELEMENTS_MAX for n in shape) or shape[0] != 1:
        raise fields.fail("shape", "expected positive integers with the batch axis first, such as [1, 100, 6]")
    if math.prod(n for n in shape if isinstance(n, int)) > _ELEMENTS_MAX:
        raise fields.fail("shape", f"has more than {_ELEMENTS_MAX} elements")
    dtype = fields.text("dtype", "float32")
    if dtype not in DTYPES:
        raise fields.fail("dtype", f"is {dtype!r}; supported: {', '.join(DTYPES)}")
    channels, units = fields.texts("channels", []), fields.texts("units", [])
    numbers = tuple(n for n in shape if isinstance(n, int))
    return InputSpec(fields.text("name", length_min=1), numbers, dtype, channels, units)


def _window(fields: Fields, spec: InputSpec) -> WindowSpec:
    samples = fields.natural("samples", low=1, high=_ELEMENTS_MAX)
    layout = spec.layout(samples)
    if layout is None:
        raise fields.fail("samples", f"is {samples}, which does not fit the model's input {list(spec.shape)}")
    for key, names in (("channels", spec.channels), ("units", spec.units)):
        if names and len(names) != layout[1]:
            raise fields.fail(f"samples (input.{key})", f"{len(names)} {key} are named for {layout[1]} channels")
    hop = fields.natural("hop", samples, low=1, high=_ELEMENTS_MAX)
    return WindowSpec(samples, hop, fields.number("rate_hz", 0.0, low=0.0, high=1e9))


def _monitor(fields: Fields) -> MonitorSpec:
    params = fields.table("params", {})
    return MonitorSpec(
        name=fields.text("name", length_min=1),
        signal=fields.text("signal", length_min=1),
        detector=fields.text("detector", length_min=1),
        params={
            key: params.text(key) if isinstance(value, str) else params.number(key)
            for key, value in params.value.items()
        },
    )


def _feature(fields: Fields) -> FeatureReference:
    edges, counts = fields.numbers("edges", length_max=1025), fields.numbers("counts", length_max=1024)
    if len(edges) != len(counts) + 1 or any(b <= a for a, b in pairwise(edges)):
        raise fields.fail("edges", "must rise, and have one value more than there are counts")
    if any(count < 0 for count in counts) or sum(counts) <= 0:
        raise fields.fail("counts", "must not be negative, nor all zero")
    return FeatureReference(fields.text("name"), fields.number("mean"), fields.number("std", low=0.0), edges, counts)


def _matrix(fields: Fields, key: str) -> tuple[tuple[float, ...], ...]:
    rows = fields.items(key, length_max=256)
    matrix = tuple(Fields({"row": row}, f"{fields.where}.{key}", ModelError).numbers("row") for row in rows)
    if any(len(row) != len(matrix) for row in matrix):
        raise fields.fail(key, "expected a square matrix")
    return matrix


def _rows(fields: Fields, key: str) -> tuple[tuple[float, ...], ...]:
    rows = fields.items(key, length_max=POINTS_MAX)
    table = tuple(Fields({"row": row}, f"{fields.where}.{key}", ModelError).numbers("row") for row in rows)
    if not table or len({len(row) for row in table}) != 1 or not table[0]:
        raise fields.fail(key, "expected rows that are as long as each other")
    return table


def _member(fields: Fields) -> Member:
    name = fields.text("name")
    if name not in MEMBERS:
        raise fields.fail("name", f"{name!r} is not a member a package may have: {', '.join(sorted(MEMBERS))}")
    sha256 = fields.text("sha256")
    if not _SHA256.fullmatch(sha256):
        raise fields.fail("sha256", "expected 64 hexadecimal digits")
    return Member(name, fields.natural("size", high=PACKAGE_BYTES_MAX), sha256)


def _golden(fields: Fields, labels: int) -> Golden:
    count = fields.natural("count", low=1, high=1000)
    scores = []
    for row in fields.items("scores", length_max=1000):
        values = Fields({"row": row}, f"{fields.where}.scores", ModelError).numbers("row")
        if len(values) != labels:
            raise fields.fail("scores", f"has rows of {len(values)} scores for {labels} labels")
        scores.append(values)
    if len(scores) != count:
        raise fields.fail("scores", f"has {len(scores)} rows for {count} golden inputs")
    return Golden(count, fields.number("tolerance", low=0.0, high=1.0), tuple(scores))


def _metadata(fields: Fields) -> dict[str, Json]:
    try:
        metadata = finite(fields.typed("metadata", dict, {}))
    except WireError as error:
        raise fields.fail("metadata", str(error)) from error
    assert isinstance(metadata, dict)
    return metadata


def parse_manifest(document: object) -> Manifest:
    """Check a manifest, whether a person wrote it (TOML) or a package carries it (JSON).

    Raises:
        ModelError: with the place that is wrong.
    """
    fields = Fields(document, "manifest", ModelError)
    if fields.natural("manifest", MANIFEST_VERSION) != MANIFEST_VERSION:
        raise fields.fail("manifest", f"is a version this program does not know; it knows {MANIFEST_VERSION}")
    name, version, kind = fields.text("name"), fields.text("version"), fields.text("format")
    if not NAME.fullmatch(name):
        raise fields.fail("name", "expected lower-case letters, digits, - and _, at most 64")
    if not VERSION.fullmatch(version):
        raise fields.fail("version", "expected numbers with dots, such as 1.0.0")
    if kind not in MODEL_MEMBERS:
        raise fields.fail("format", f"is {kind!r}; supported: {', '.join(MODEL_MEMBERS)}")
    labels = fields.texts("labels")
    if not labels or len(set(labels)) != len(labels):
        raise fields.fail("labels", "expected at least one label, each only once")
    spec = _input(fields.table("input"))
    reference, correlation = fields.table("reference", {}), fields.table("correlation", {})
    moments, points = fields.table("moments", {}), fields.table("points", {})
    members = tuple(_member(member) for member in fields.tables("members", [], length_max=len(MEMBERS)))
    if len({member.name for member in members}) != len(members):
        raise fields.fail("members", "has a name twice")
    return Manifest(
        name=name,
        version=version,
        format=kind,
        input=spec,
        output=fields.text("output", length_min=1),
        labels=labels,
        window=_window(fields.table("window"), spec),
        security_counter=fields.natural("security_counter", 0),
        monitors=tuple(_monitor(monitor) for monitor in fields.tables("monitors", [], length_max=64)),
        reference={
            signal: tuple(_feature(feature) for feature in reference.tables(signal)) for signal in reference.value
        },
        correlation={signal: _matrix(correlation, signal) for signal in correlation.value},
        moments={signal: _rows(moments, signal) for signal in moments.value},
        points={signal: _rows(points, signal) for signal in points.value},
        embedding=fields.text("embedding", ""),
        golden=_golden(fields.table("golden"), len(labels)) if "golden" in fields else None,
        members=members,
        metadata=_metadata(fields),
    )


@dataclass(frozen=True, slots=True)
class Package:
    """A package whose structure, hashes and signature have been checked.

    Attributes:
        sha256: of the whole file, in hex: the name under which it is stored and deployed.
        root: fingerprint of the root key that vouches for it.
        release: fingerprint of the release key that signed it.
        expired: the release key's expiry has passed by this machine's clock; publishers refuse, devices warn.
    """

    manifest: Manifest
    sha256: str
    size: int
    root: str
    release: str
    expired: bool
    _members: Mapping[str, bytes] = field(repr=False)

    def read(self, name: str) -> bytes:
        """The bytes of a member.

        Raises:
            ModelError: the package has no such member.
        """
        if name not in self._members:
            raise ModelError(f"package {self.manifest.name} {self.manifest.version} has no {name}")
        return self._members[name]

    @property
    def model(self) -> bytes:
        """The model's bytes."""
        return self.read(MODEL_MEMBERS[self.manifest.format])

    def golden_inputs(self) -> NDArray[np.float32]:
        """The golden windows, `[count, *input shape without the batch axis]`; empty when there are none."""
        shape = self.manifest.input.shape[1:]
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
    if MODEL_MEMBERS[manifest.format] not in members:
        raise ModelError(f"the package has no {MODEL_MEMBERS[manifest.format]}")
    if manifest.golden is not None:
        needed = manifest.golden.count * math.prod(manifest.input.shape) * 4
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
