"""Keys and trust: what is refused, and by which sentence; then that signing and verifying agree."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylcm.errors import ConfigError, DeviceError, ModelError
from tinylcm.keys import (
    KEYSET_DOMAIN,
    PACKAGE_DOMAIN,
    KeySet,
    PrivateKey,
    ReleaseKey,
    Revocation,
    Rotation,
    Signer,
    Trust,
    accept_statement,
    fingerprint,
    init_keys,
    learn_statements,
    load_private,
    load_public,
    pin_root,
    renew_keys,
    verify_signature,
)

ROOT = PrivateKey(bytes(range(32)))
RELEASE = PrivateKey(bytes(range(1, 33)))
KEYSET = KeySet.sign(ROOT, (ReleaseKey(RELEASE.public, 2_000_000_000),))


def edit(path: Path, **change: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    path.chmod(0o600)


# Key files


def test_a_missing_key_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tinylcm keys init"):
        load_private(tmp_path / "root.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_private_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    init_keys(tmp_path)
    (tmp_path / "root.key").chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_private(tmp_path / "root.key")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a key file"),
        (b"\xff\xfe", "not a key file"),
        (b"[" * 4096, "not a key file"),
        (b"[]", "expected a table"),
        (b"{}", "type: is missing"),
        (b'{"type": "tinymlops public key"}', "is not a private key"),
        (b'{"type": "tinymlops private key"}', "seed: is missing"),
        (b'{"type": "tinymlops private key", "seed": "zz"}', "expected hexadecimal digits"),
        (b'{"type": "tinymlops private key", "seed": "00ff"}', "expected 32 bytes, got 2"),
    ],
)
def test_a_malformed_key_file_is_a_config_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=message):
        load_private(path)


def test_an_endless_key_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.pub").write_bytes(b" " * 5000)
    with pytest.raises(DeviceError, match="larger than the 4096 bytes"):
        load_public(tmp_path / "x.pub")


@pytest.mark.parametrize("name", ["root.key", "release.key"])
def test_keys_are_never_overwritten(tmp_path: Path, name: str) -> None:
    init_keys(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    other = "release.key" if name == "root.key" else "root.key"
    (tmp_path / other).unlink()
    with pytest.raises(ConfigError, match=f"{name} exists already"):
        init_keys(tmp_path)
    assert (tmp_path / name).read_bytes() == before[name]


# Key sets


def test_a_key_set_signed_by_another_key_is_refused() -> None:
    with pytest.raises(ModelError, match="does not fit its root key"):
        KeySet.parse(KEYSET.document, RELEASE.sign(KEYSET_DOMAIN, KEYSET.document))


def test_a_signature_for_another_purpose_is_refused() -> None:
    with pytest.raises(ModelError, match="does not fit its root key"):
        KeySet.parse(KEYSET.document, ROOT.sign(PACKAGE_DOMAIN, KEYSET.document))


def test_an_edited_byte_anywhere_in_a_key_set_is_refused() -> None:
    for place in range(len(KEYSET.document)):
        changed = bytearray(KEYSET.document)
        changed[place] ^= 1
        with pytest.raises(ModelError):
            KeySet.parse(bytes(changed), KEYSET.signature)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_key_set_or_a_model_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        KeySet.from_json(data)
    with pytest.raises(ModelError):
        KeySet.parse(data, data)


@pytest.mark.parametrize("data", [b"[" * 100_000, b'{"document": "\\ud800", "signature": "00"}', b'{"document": "{}"}'])
def test_a_hostile_key_set_file_is_a_model_error(data: bytes) -> None:
    with pytest.raises(ModelError):
        KeySet.from_json(data)


def test_a_key_that_the_root_does_not_vouch_for_is_not_found() -> None:
    with pytest.raises(ModelError, match="is not in the root's key set"):
        KEYSET.find(ROOT.public)
    assert KEYSET.find(RELEASE.public).expires_s == 2_000_000_000


# Signatures


@given(st.binary(max_size=50), st.integers(0, 63), st.integers(1, 255))
def test_a_changed_signature_or_message_does_not_verify(message: bytes, place: int, flip: int) -> None:
    signature = ROOT.sign(PACKAGE_DOMAIN, message)
    changed = bytearray(signature)
    changed[place] ^= flip
    assert verify_signature(ROOT.public, PACKAGE_DOMAIN, message, signature)
    assert not verify_signature(ROOT.public, PACKAGE_DOMAIN, message, bytes(changed))
    assert not verify_signature(ROOT.public, PACKAGE_DOMAIN, message + b"x", signature)
    assert not verify_signature(ROOT.public, KEYSET_DOMAIN, message, signature)
    assert not verify_signature(RELEASE.public, PACKAGE_DOMAIN, message, signature)


@given(st.binary(max_size=40), st.binary(max_size=70))
def test_keys_and_signatures_of_any_length_do_not_verify(public: bytes, signature: bytes) -> None:
    assert not verify_signature(public, PACKAGE_DOMAIN, b"message", signature)


def test_the_signature_is_the_one_of_rfc_8032() -> None:
    # Test 1 of section 7.1: an empty message.
    key = PrivateKey(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert key.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert key.sign(b"", b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )


# Trust and signers


def test_a_root_that_is_not_pinned_is_refused_with_its_fingerprint(tmp_path: Path) -> None:
    assert Trust.load(tmp_path / "none") == Trust(frozenset())
    with pytest.raises(ModelError, match=f"{fingerprint(ROOT.public)}.*tinylcm keys trust"):
        Trust.load(tmp_path / "none").check(ROOT.public)


def test_a_pinned_root_is_trusted_and_pinning_again_changes_nothing(tmp_path: Path) -> None:
    name = pin_root(tmp_path / "trust", ROOT.public)
    assert pin_root(tmp_path / "trust", ROOT.public) == name == fingerprint(ROOT.public)
    trust = Trust.load(tmp_path / "trust")
    assert trust.roots == {name}
    trust.check(ROOT.public)


def test_keys_are_made_private_and_sign(tmp_path: Path) -> None:
    keyset = init_keys(tmp_path / "keys")
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    for name in ("root.key", "release.key"):
        assert stat.S_IMODE((tmp_path / "keys" / name).stat().st_mode) == 0o600
    signer = Signer.load(tmp_path / "keys" / "release.key")
    assert signer.keyset == keyset == KeySet.from_json(keyset.to_json())
    assert load_public(tmp_path / "keys" / "root.pub") == keyset.root
    assert [key.public for key in keyset.keys] == [signer.key.public]


def test_an_expired_release_key_does_not_sign_until_it_is_renewed(tmp_path: Path) -> None:
    init_keys(tmp_path, days=-1)
    with pytest.raises(ConfigError, match=r"expired on \d{4}-\d\d-\d\d.*tinylcm keys renew"):
        Signer.load(tmp_path / "release.key")
    renewed = renew_keys(tmp_path, days=2)
    assert Signer.load(tmp_path / "release.key").keyset == renewed


def test_a_release_key_without_its_key_set_does_not_sign(tmp_path: Path) -> None:
    init_keys(tmp_path)
    (tmp_path / "keyset.json").unlink()
    with pytest.raises(ConfigError, match="belongs beside the release key"):
        Signer.load(tmp_path / "release.key")


def test_a_release_key_beside_anothers_key_set_does_not_sign(tmp_path: Path) -> None:
    init_keys(tmp_path / "a")
    init_keys(tmp_path / "b")
    (tmp_path / "a" / "keyset.json").write_bytes((tmp_path / "b" / "keyset.json").read_bytes())
    with pytest.raises(ModelError, match="not in the root's key set"):
        Signer.load(tmp_path / "a" / "release.key")


def test_a_private_key_whose_seed_was_edited_is_another_key(tmp_path: Path) -> None:
    init_keys(tmp_path)
    edit(tmp_path / "release.key", seed="00" * 32)
    with pytest.raises(ModelError, match="not in the root's key set"):
        Signer.load(tmp_path / "release.key")


# What roots say over time

NEXT = PrivateKey(bytes(range(2, 34)))
OTHER = PrivateKey(bytes(range(3, 35)))
PINNED = Trust(frozenset({fingerprint(ROOT.public)}))


def set_of(serial: int, *keys: PrivateKey, root: PrivateKey = ROOT) -> KeySet:
    return KeySet.sign(root, tuple(ReleaseKey(key.public, 2_000_000_000) for key in keys), serial=serial)


def revocation(serial: int, floor: int, *keys: PrivateKey, root: PrivateKey = ROOT) -> Revocation:
    return Revocation.sign(root, {"m": floor}, frozenset(fingerprint(key.public) for key in keys), serial=serial)


def test_a_key_that_the_newest_key_set_leaves_out_signs_nothing_any_more() -> None:
    old, new = set_of(1, RELEASE), set_of(2, OTHER)
    trust = PINNED.learn(old)
    trust.check_release(old, RELEASE.public)
    trust = trust.learn(new)
    assert trust.learn(old) is trust  # serials never fall
    with pytest.raises(ModelError, match="is not in the newest key set"):
        trust.check_release(old, RELEASE.public)
    trust.learn(set_of(3, OTHER, RELEASE)).check_release(old, RELEASE.public)  # an older set, a key that is still good


def test_a_floor_never_falls_and_a_revoked_key_stays_revoked() -> None:
    trust = PINNED.learn(revocation(2, 5, OTHER))
    assert trust.floor("m") == 5 and trust.floor("unknown") == 0 and trust.is_revoked(OTHER.public)
    assert trust.learn(revocation(1, 9)) is trust
    for lower in (revocation(3, 4, OTHER), revocation(3, 9)):
        with pytest.raises(ModelError, match=r"takes back what 2 revoked .*a floor never falls"):
            trust.learn(lower)
    assert trust.learn(revocation(3, 6, OTHER)).floor("m") == 6


def test_a_root_that_is_not_pinned_revokes_nothing() -> None:
    for statement in (revocation(1, 5, root=OTHER), set_of(1, OTHER, root=OTHER), Rotation.sign(OTHER, NEXT)):
        with pytest.raises(ModelError, match="not trusted here"):
            PINNED.learn(statement)


def test_a_root_that_was_replaced_says_nothing_new_and_what_it_said_stays() -> None:
    rotation = Rotation.sign(ROOT, NEXT)
    trust = PINNED.learn(revocation(1, 5)).learn(rotation)
    assert trust.roots == {fingerprint(NEXT.public)} and trust.floor("m") == 5
    trust.check(ROOT.public)
    for statement in (rotation, revocation(9, 50), set_of(9, OTHER)):
        assert trust.learn(statement) is trust
    with pytest.raises(ModelError, match="the first one counts"):
        trust.learn(Rotation.sign(ROOT, OTHER))
    with pytest.raises(ModelError, match="newest key set"):
        trust.check_release(KEYSET, RELEASE.public)  # who stole the old root signs nothing
    trust.learn(set_of(1, RELEASE, root=NEXT)).check_release(KEYSET, RELEASE.public)


def test_roots_that_hand_over_in_a_circle_do_not_hang() -> None:
    trust = PINNED.learn(Rotation.sign(ROOT, NEXT))
    assert trust.learn(Rotation.sign(NEXT, ROOT)) is trust


def test_what_was_learnt_lies_in_the_folder_and_a_damaged_file_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pin_root(tmp_path, ROOT.public)
    news = [
        revocation(1, 5, root=OTHER),
        set_of(1, RELEASE, root=OTHER),
        Rotation.sign(NEXT, OTHER),
        Rotation.sign(ROOT, NEXT),
    ]
    # In whatever order they come: NEXT is known only after ROOT's hand-over.
    assert learn_statements(tmp_path, news[3:]) == (news[3],)
    assert learn_statements(tmp_path, news) == (news[2], news[0], news[1])
    assert learn_statements(tmp_path, news) == ()
    trust = Trust.load(tmp_path)
    assert trust.roots == {fingerprint(OTHER.public)} and trust.floor("m") == 5 and len(trust.keysets) == 1
    next(tmp_path.glob("*.revocation")).write_bytes(b"{")
    assert Trust.load(tmp_path).floor("m") == 0
    assert "is left out" in caplog.text


def test_a_device_without_a_server_takes_statements_from_files(tmp_path: Path) -> None:
    pin_root(tmp_path, ROOT.public)
    said = revocation(1, 5)
    assert accept_statement(tmp_path, said.to_json() + b"\n") == (said, True)
    assert accept_statement(tmp_path, said.to_json()) == (said, False)
    assert Trust.load(tmp_path).floor("m") == 5
    for data in (revocation(2, 4).to_json(), revocation(2, 6, root=OTHER).to_json(), b"x"):
        with pytest.raises(ModelError):
            accept_statement(tmp_path, data)


def test_serials_rise_also_when_the_last_file_was_lost(tmp_path: Path) -> None:
    first = init_keys(tmp_path)
    assert renew_keys(tmp_path).serial > first.serial > 1_700_000_000
    (tmp_path / "keyset.json").unlink()
    assert renew_keys(tmp_path).serial >= first.serial
