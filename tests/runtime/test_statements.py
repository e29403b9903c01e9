"""What roots say: every statement alone, damaged, signed by others, and for other purposes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylcm.errors import ModelError
from tinylcm.statements import (
    KEYSET_DOMAIN,
    REVOCATION_DOMAIN,
    ROTATION_DOMAIN,
    KeySet,
    PrivateKey,
    ReleaseKey,
    Revocation,
    Rotation,
    fingerprint,
    parse_statement,
)
from tinylcm.wire import canonical_json

ROOT, NEXT, RELEASE = (PrivateKey(bytes([seed]) * 32) for seed in (1, 2, 3))
KEYSET = KeySet.sign(ROOT, (ReleaseKey(RELEASE.public, 2_000_000_000),), serial=4)
REVOCATION = Revocation.sign(ROOT, {"gesture": 3}, frozenset({fingerprint(RELEASE.public)}), serial=7)
ROTATION = Rotation.sign(ROOT, NEXT)
ALL = (KEYSET, REVOCATION, ROTATION)


@pytest.mark.parametrize("statement", ALL, ids=lambda statement: type(statement).__name__)
def test_a_statement_is_read_back_as_it_was_signed(statement: KeySet | Revocation | Rotation) -> None:
    assert parse_statement(statement.to_json()) == statement
    assert parse_statement(statement.to_json() + b"\n") == statement


@pytest.mark.parametrize("statement", ALL, ids=lambda statement: type(statement).__name__)
def test_an_edited_byte_anywhere_is_refused(statement: KeySet | Revocation | Rotation) -> None:
    data = statement.to_json()
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(ModelError):
            parse_statement(bytes(changed))


def test_a_rotation_needs_both_signatures() -> None:
    by_old, by_new = (key.sign(ROTATION_DOMAIN, ROTATION.document) for key in (ROOT, NEXT))
    assert Rotation.parse(ROTATION.document, by_old, by_new) == ROTATION
    with pytest.raises(ModelError, match="not signed by the new root"):
        Rotation.parse(ROTATION.document, by_old, by_old)
    with pytest.raises(ModelError, match="not signed by the old root"):
        Rotation.parse(ROTATION.document, by_new, by_new)
    with pytest.raises(ModelError, match="is the old root"):
        Rotation.parse(Rotation.sign(ROOT, ROOT).document, by_old, by_old)


def test_a_signature_for_another_purpose_is_refused() -> None:
    for domain in (KEYSET_DOMAIN, ROTATION_DOMAIN, b""):
        with pytest.raises(ModelError, match="does not fit its root key"):
            Revocation.parse(REVOCATION.document, ROOT.sign(domain, REVOCATION.document))
    for domain in (REVOCATION_DOMAIN, ROTATION_DOMAIN, b""):
        with pytest.raises(ModelError, match="does not fit its root key"):
            KeySet.parse(KEYSET.document, ROOT.sign(domain, KEYSET.document))


def test_a_key_set_from_before_there_were_serials_has_serial_0() -> None:
    document = canonical_json({key: value for key, value in json.loads(KEYSET.document).items() if key != "serial"})
    assert KeySet.parse(document, ROOT.sign(KEYSET_DOMAIN, document)).serial == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"serial": -1}, "serial: is -1"),
        ({"serial": None}, "serial"),
        ({"floors": []}, "expected a table"),
        ({"floors": {"gesture": -1}}, "floors.gesture"),
        ({"floors": {"gesture": 1.5}}, "floors.gesture"),
        ({"floors": {"x" * 65: 1}}, "names of models"),
        ({"floors": {f"m{n}": 1 for n in range(1001)}}, "at most 1000"),
        ({"revoked": ["sha256:0"]}, "expected fingerprints"),
        ({"revoked": [1]}, "expected a string"),
        ({"root": "00"}, "expected 32 bytes"),
    ],
)
def test_a_signed_revocation_that_makes_no_sense_is_refused(change: dict[str, object], problem: str) -> None:
    document = canonical_json({**json.loads(REVOCATION.document), **change})
    with pytest.raises(ModelError, match=problem):
        Revocation.parse(document, ROOT.sign(REVOCATION_DOMAIN, document))


def test_what_a_newer_revocation_takes_back_is_named() -> None:
    kept = Revocation.sign(ROOT, {"gesture": 3, "other": 1}, REVOCATION.revoked, serial=8)
    assert kept.takes_back(REVOCATION) == ""
    assert REVOCATION.takes_back(kept) == "the floor 1 of other"
    lower = Revocation.sign(ROOT, {"gesture": 2}, frozenset(), serial=9)
    assert lower.takes_back(REVOCATION) == f"the floor 3 of gesture, {fingerprint(RELEASE.public)}"


@given(st.binary(max_size=300))
def test_any_bytes_are_a_statement_or_a_model_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        parse_statement(data)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "expected a table"),
        (canonical_json({"document": "{}", "signature": "00" * 64}), "type: is missing"),
        (
            canonical_json({"document": '{"type": "tinymlops package"}', "signature": "00" * 64}),
            "no statement of a root",
        ),
        (canonical_json({"document": "x" * 65537, "signature": "00" * 64}), "has 65537 characters"),
        (canonical_json({"document": ROTATION.document.decode(), "signature": "00" * 64}), "new_signature: is missing"),
    ],
)
def test_a_hostile_statement_is_a_model_error(data: bytes, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        parse_statement(data)
