"""Model packages: everything that must be refused, then what a sound one gives."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylcm import package
from tinylcm.errors import DeviceError, ModelError
from tinylcm.keys import (
    PACKAGE_DOMAIN,
    KeySet,
    PrivateKey,
    ReleaseKey,
    Revocation,
    Rotation,
    Signer,
    Trust,
    fingerprint,
)
from tinylcm.manifest import FeatureReference, Golden, InputSpec, Manifest, WindowSpec, parse_manifest
from tinylcm.package import build_package, load_head, load_package, parse_package
from tinylcm.wire import canonical_json

ROOT, RELEASE = PrivateKey(bytes(range(32))), PrivateKey(bytes(range(1, 33)))
EXPIRES_S = 2_000_000_000
NOW_S = 1_800_000_000.0
SIGNER = Signer(RELEASE, KeySet.sign(ROOT, (ReleaseKey(RELEASE.public, EXPIRES_S),)))
TRUST = Trust(frozenset({fingerprint(ROOT.public)}))
GOLDEN = np.arange(12, dtype="<f4").reshape(2, 3, 2)
FEATURE = FeatureReference("x", 0.5, 0.1, (0.0, 0.5, 1.0), (3.0, 4.0))
MANIFEST = Manifest(
    name="activity",
    version="1.2.0",
    format="onnx",
    input=InputSpec("window", (1, 3, 2), channels=("x", "y"), units=("m/s2", "m/s2")),
    output="scores",
    labels=("rest", "run"),
    window=WindowSpec(3, 1, 10.0),
    security_counter=4,
    reference={"input": (FEATURE,)},
    golden=Golden(2, 0.01, ((0.5, 0.5), (0.1, 0.9))),
    metadata={"made": "here"},
)
MEMBERS = {"model.onnx": b"not really a model" * 10, "golden.f32": GOLDEN.tobytes()}
GOOD = build_package(MANIFEST, MEMBERS, SIGNER)
HEADER = struct.Struct("<8sII")
MANIFEST_SIZE, BLOCK_SIZE = HEADER.unpack_from(GOOD)[1:]
BODY_AT = HEADER.size + MANIFEST_SIZE + BLOCK_SIZE


def parse(data: bytes, trust: Trust | None = TRUST) -> package.Package:
    return parse_package(data, trust, expiry="refuse", now_s=NOW_S)


def resign(change: Callable[[dict[str, Any]], object], body: bytes = GOOD[BODY_AT:]) -> bytes:
    """The package with an edited manifest, signed by the true key: what a careless publisher could make."""
    document = json.loads(GOOD[HEADER.size : HEADER.size + MANIFEST_SIZE])
    change(document)
    return sign(canonical_json(document), body)


def sign(document: bytes, body: bytes = GOOD[BODY_AT:], signer: Signer = SIGNER) -> bytes:
    block = canonical_json(
        {
            "release": signer.key.public.hex(),
            "signature": signer.key.sign(PACKAGE_DOMAIN, document).hex(),
            "keyset": signer.keyset.document.decode(),
            "keyset_signature": signer.keyset.signature.hex(),
        }
    )
    return HEADER.pack(package.MAGIC, len(document), len(block)) + document + block + body


def manifest_json() -> dict[str, Any]:
    return json.loads(canonical_json(MANIFEST.to_json()))  # type: ignore[no-any-return]


# Damage


def test_truncation_at_every_byte_is_refused() -> None:
    for size in range(len(GOOD)):
        with pytest.raises(ModelError):
            parse(GOOD[:size])


def test_an_edited_byte_anywhere_is_refused() -> None:
    for place in range(len(GOOD)):
        with pytest.raises(ModelError):
            parse(GOOD[:place] + bytes([GOOD[place] ^ 1]) + GOOD[place + 1 :])


def test_random_edits_are_refused() -> None:
    chance = random.Random(7)
    for _ in range(300):
        data = bytearray(GOOD)
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if bytes(data) != GOOD:
            with pytest.raises(ModelError):
                parse(bytes(data))


@pytest.mark.parametrize("extra", [b"\0", b"more", GOOD])
def test_extra_bytes_are_refused(extra: bytes) -> None:
    with pytest.raises(ModelError, match="too long"):
        parse(GOOD + extra)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_model_error(data: bytes) -> None:
    for start in (b"", package.MAGIC, HEADER.pack(package.MAGIC, 10, 10)):
        with pytest.raises(ModelError):
            parse(start + data)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_any_claimed_sizes_are_a_model_error_without_the_memory(manifest_size: int, block_size: int) -> None:
    if (manifest_size, block_size) != (MANIFEST_SIZE, BLOCK_SIZE):
        tracemalloc.start()
        with pytest.raises(ModelError):
            parse(HEADER.pack(package.MAGIC, manifest_size, block_size) + GOOD[HEADER.size :])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()


@pytest.mark.parametrize(
    "block", [b"", b"[]", b"[" * 100_000, b'{"release": "zz"}', b'{"release": "\\ud800"}', b"\xff", b"1"]
)
def test_a_hostile_signature_block_is_a_model_error(block: bytes) -> None:
    with pytest.raises(ModelError):
        parse(HEADER.pack(package.MAGIC, MANIFEST_SIZE, len(block)) + GOOD[16 : 16 + MANIFEST_SIZE] + block)


@pytest.mark.parametrize("keyset", ["\ud800", "[" * 60_000, "{}", "", "\x00"])
def test_a_hostile_key_set_in_the_block_is_a_model_error(keyset: str) -> None:
    document = GOOD[HEADER.size : HEADER.size + MANIFEST_SIZE]
    block = json.dumps({"release": "00", "signature": "00", "keyset": keyset, "keyset_signature": "00"}).encode()
    with pytest.raises(ModelError):
        parse(HEADER.pack(package.MAGIC, len(document), len(block)) + document + block)


# Trust


def test_a_package_of_an_unknown_root_is_refused() -> None:
    with pytest.raises(ModelError, match=r"not trusted here.*tinylcm keys trust"):
        parse(GOOD, Trust(frozenset({"sha256:" + "0" * 64})))
    with pytest.raises(ModelError, match="not trusted here"):
        parse(GOOD, Trust(frozenset()))
    assert parse(GOOD, None).root == fingerprint(ROOT.public)


def test_a_key_that_the_root_does_not_vouch_for_is_refused() -> None:
    thief = Signer(PrivateKey(b"t" * 32), SIGNER.keyset)
    with pytest.raises(ModelError, match="not in the root's key set"):
        parse(build_package(MANIFEST, MEMBERS, thief))


def test_a_key_set_that_vouches_for_itself_is_refused() -> None:
    thief = PrivateKey(b"t" * 32)
    own = Signer(thief, KeySet.sign(thief, (ReleaseKey(thief.public, EXPIRES_S),)))
    with pytest.raises(ModelError, match="not trusted here"):
        parse(build_package(MANIFEST, MEMBERS, own))


def test_the_signature_of_another_manifest_is_refused() -> None:
    other = build_package(replace(MANIFEST, version="9.9.9"), MEMBERS, SIGNER)
    size, block = HEADER.unpack_from(other)[1:]
    mixed = GOOD[: HEADER.size + MANIFEST_SIZE] + other[HEADER.size + size : HEADER.size + size + block]
    with pytest.raises(ModelError, match="does not fit its manifest"):
        parse(mixed + GOOD[BODY_AT:])


def test_an_expired_key_is_refused_by_publishers_and_noted_by_devices() -> None:
    with pytest.raises(ModelError, match="has expired"):
        parse_package(GOOD, TRUST, expiry="refuse", now_s=EXPIRES_S + 1.0)
    assert parse_package(GOOD, TRUST, now_s=EXPIRES_S + 1.0).expired
    assert not parse_package(GOOD, TRUST, now_s=EXPIRES_S - 1.0).expired


# What even the right key cannot make acceptable


@pytest.mark.parametrize(
    "name", ["../etc/passwd", "/etc/passwd", "model.onnx/../x", "model.pkl", "", "MODEL.ONNX", "model.onnx\0", "."]
)
def test_a_member_that_is_not_on_the_list_is_refused_by_name(name: str) -> None:
    said = "holds a NUL character" if "\0" in name else "is not a member a package may have"
    with pytest.raises(ModelError, match=said):
        parse(resign(lambda document: document["members"][0].update(name=name)))
    with pytest.raises(ModelError, match=said):
        build_package(MANIFEST, {name: b""}, SIGNER)


def swap_members(document: dict[str, Any]) -> None:
    document["members"].reverse()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["members"].append(d["members"][0]), "has a name twice|at most"),
        (lambda d: d.update(members=[d["members"][0]] * 2), "has a name twice"),
        (lambda d: d["members"][0].update(size=1 << 40), "expected 0 to"),
        (lambda d: d["members"][0].update(size=-1), "expected 0 to"),
        (lambda d: d["members"][0].update(size=10), "too long"),
        (lambda d: d["members"][0].update(size=181), "truncated"),
        (lambda d: d["members"][0].update(sha256="0" * 64), "model.onnx in the package is damaged"),
        (lambda d: d["members"][0].update(sha256="x"), "64 hexadecimal digits"),
        (swap_members, "damaged"),
        (lambda d: d["golden"].update(count=3), "has 2 rows for 3"),
        (lambda d: d["input"].update(shape=[1, 3, 2, 2], channels=[], units=[]), "golden.f32 has 48 bytes"),
        (lambda d: d.update(manifest=3), "is a version this program does not know"),
    ],
)
def test_a_signed_package_that_contradicts_itself_is_refused(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        parse(resign(change))


def test_a_package_without_its_model_is_refused() -> None:
    data = resign(lambda document: document.update(members=document["members"][1:]), GOLDEN.tobytes())
    with pytest.raises(ModelError, match=r"has no model\.onnx"):
        parse(data)


@pytest.mark.parametrize("document", [b"", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b"{", b"1" * 5000])
def test_a_signed_document_that_is_no_manifest_is_refused(document: bytes) -> None:
    with pytest.raises(ModelError):
        parse(sign(document))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(name="Activity"), "manifest.name"),
        (lambda d: d.update(name="../x"), "manifest.name"),
        (lambda d: d.update(version="1.0/../2"), "manifest.version"),
        (lambda d: d.update(format="pickle"), "format: is 'pickle'"),
        (lambda d: d.update(labels=[]), "at least one label"),
        (lambda d: d.update(labels=["a", "a"]), "each only once"),
        (lambda d: d.update(output=""), "output"),
        (lambda d: d.update(security_counter=-1), "security_counter"),
        (lambda d: d["input"].update(shape=[3, 2]), "batch axis first"),
        (lambda d: d["input"].update(shape=[1, 0, 2]), "batch axis first"),
        (lambda d: d["input"].update(shape=[1, True, 2]), "batch axis first"),
        (lambda d: d["input"].update(shape=[1, 1 << 26, 2]), "has more than"),
        (lambda d: d["input"].update(shape=[1] * 9), "at most 8"),
        (lambda d: d["input"].update(dtype="object"), "supported: float32"),
        (lambda d: d["input"].update(channels=["x"]), "1 channels are named for 2 channels"),
        (lambda d: d["window"].update(samples=4), "does not fit the model's input"),
        (lambda d: d["window"].update(hop=0), "hop"),
        (lambda d: d["window"].update(rate_hz=-1), "rate_hz"),
        (lambda d: d["reference"]["input"][0].update(edges=[0, 1]), "one value more than"),
        (lambda d: d["reference"]["input"][0].update(edges=[0, 1, 1]), "must rise"),
        (lambda d: d["reference"]["input"][0].update(counts=[0, 0]), "nor all zero"),
        (lambda d: d["reference"]["input"][0].update(counts=[-1, 5]), "must not be negative"),
        (lambda d: d["golden"].update(scores=[[1.0], [1.0]]), "rows of 1 scores for 2 labels"),
        (lambda d: d["golden"].update(tolerance=2), "tolerance"),
        (lambda d: d.update(metadata={"n": 1 << 80}), "manifest.metadata: a payload holds an integer"),
        (
            lambda d: d.update(monitors=[{"name": "m", "signal": "s", "detector": "d", "params": {"a": [1]}}]),
            "params.a",
        ),
    ],
)
def test_a_wrong_manifest_is_refused_at_its_place(change: Callable[[dict[str, Any]], object], message: str) -> None:
    document = manifest_json()
    change(document)
    with pytest.raises(ModelError, match=message):
        parse_manifest(document)


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@given(st.sampled_from(sorted(manifest_json())), VALUE)
@settings(max_examples=300)
def test_any_value_in_a_manifest_gives_one_that_can_be_signed_or_a_model_error(key: str, value: object) -> None:
    try:
        manifest = parse_manifest({**manifest_json(), key: value})
    except ModelError as error:
        assert str(error).startswith("manifest")
        return
    assert parse_manifest(json.loads(canonical_json(manifest.to_json()))) == manifest


# Files


def test_a_missing_package_file_is_a_device_error(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="No such file"):
        load_package(tmp_path / "none.tlm", TRUST)


def test_a_file_over_the_bound_is_refused_before_it_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big.tlm"
    path.write_bytes(GOOD)
    monkeypatch.setattr(package, "PACKAGE_BYTES_MAX", 100)
    with pytest.raises(ModelError, match="has 101 bytes, at most 100"):
        load_package(path, TRUST)


# What a sound package gives


def test_a_sound_package_says_what_was_built(tmp_path: Path) -> None:
    path = tmp_path / "activity.tlm"
    path.write_bytes(GOOD)
    loaded = load_package(path, TRUST, now_s=NOW_S)
    assert replace(loaded.manifest, members=()) == MANIFEST
    assert [(member.name, member.size) for member in loaded.manifest.members] == [
        ("model.onnx", 180),
        ("golden.f32", 48),
    ]
    assert (loaded.sha256, loaded.size) == (hashlib.sha256(GOOD).hexdigest(), len(GOOD))
    assert (loaded.root, loaded.release) == (fingerprint(ROOT.public), fingerprint(RELEASE.public))
    assert loaded.read("model.onnx") == MEMBERS["model.onnx"]
    assert np.array_equal(loaded.golden_inputs(), GOLDEN)
    with pytest.raises(ModelError, match="has no head"):
        loaded.read("head")


def test_building_twice_gives_the_same_bytes() -> None:
    assert build_package(MANIFEST, MEMBERS, SIGNER) == GOOD


def test_without_golden_inputs_there_are_none() -> None:
    data = build_package(replace(MANIFEST, golden=None), {"model.onnx": b"m"}, SIGNER)
    assert parse(data).golden_inputs().shape == (0, 3, 2)


# What roots say travels along


SAID = (
    Revocation.sign(ROOT, {"activity": 4}, frozenset(), serial=2),
    Rotation.sign(PrivateKey(bytes(range(3, 35))), ROOT),
)


def with_statements(*statements: object) -> bytes:
    document, block = GOOD[HEADER.size : HEADER.size + MANIFEST_SIZE], json.loads(GOOD[BODY_AT - BLOCK_SIZE : BODY_AT])
    changed = canonical_json({**block, "statements": list(statements)})
    return HEADER.pack(package.MAGIC, len(document), len(changed)) + document + changed + GOOD[BODY_AT:]


def test_a_package_carries_its_roots_statements() -> None:
    data = build_package(MANIFEST, MEMBERS, replace(SIGNER, statements=SAID))
    assert data == with_statements(*(said.to_json().decode() for said in SAID))
    assert parse(data).statements == (SIGNER.keyset, *SAID)
    assert parse(GOOD).statements == (SIGNER.keyset,)


@pytest.mark.parametrize("statement", [1, None, [], "", "{}", "x", "[" * 10_000, GOOD[:50].decode("latin-1")])
def test_a_statement_that_is_none_refuses_the_package(statement: object) -> None:
    with pytest.raises(ModelError):
        parse(with_statements(statement))


def test_more_statements_than_may_be_are_not_even_looked_at() -> None:
    with pytest.raises(ModelError, match="has 9 items, at most 8"):
        parse(with_statements(*["x"] * 9))
    long = Revocation.sign(ROOT, {f"m{number:060}": 1 for number in range(900)}, frozenset(), serial=1)
    with pytest.raises(ModelError, match="at most 131072 fit a package"):
        build_package(MANIFEST, MEMBERS, replace(SIGNER, statements=(long, long, long)))


def test_the_head_says_what_the_whole_says_without_its_members(tmp_path: Path) -> None:
    path = tmp_path / "activity.tlm"
    path.write_bytes(GOOD[:BODY_AT])
    head = load_head(path)
    assert head.manifest() == parse(GOOD).manifest and (head.release, head.body) == (RELEASE.public, BODY_AT)
    path.write_bytes(GOOD[: BODY_AT - 1])
    with pytest.raises(ModelError, match="truncated"):
        load_head(path)
    with pytest.raises(DeviceError, match="No such file"):
        load_head(tmp_path / "none.tlm")
