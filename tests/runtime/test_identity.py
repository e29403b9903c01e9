"""Join strings and the identity file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from tinylcm.errors import ConfigError, DeviceError
from tinylcm.identity import Identity, Join, load_identity, new_identity, save_identity

ROOT = "sha256:" + "a" * 64


def test_a_join_string_survives_the_round_trip() -> None:
    for url in ("http://127.0.0.1:8080", "https://fleet.example:8443/tinysphere"):
        for ca in ("", "sha256:" + "b" * 64):
            join = Join(url, "tj_x_y", ROOT, ca)
            assert Join.parse(join.format()) == join
    assert Join("https://h", "t", ROOT).format() == f"tinysphere+https://h/join#token=t&root={ROOT}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no join string"),
        ("https://host/join#token=secret", "no join string"),
        ("tinysphere+https://host/join#root=" + ROOT, "has no token"),
        ("tinysphere+https://host/join#token=secret", "has no root"),
        ("tinysphere+https://host/join#token=secret&root=md5:1", "no sha256: fingerprint"),
    ],
)
def test_a_wrong_join_string_is_refused_without_repeating_its_secret(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        Join.parse(text)
    assert "secret" not in str(caught.value)


def test_the_identity_is_private_and_survives(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    assert load_identity(path) is None
    identity = new_identity(Join("http://127.0.0.1", "t", ROOT)).enrolled("d123")
    save_identity(path, identity)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_identity(path) == identity
    assert identity.key == f"d123.{identity.secret}" and len(identity.secret) == 64
    assert identity.secret not in identity.secret_sha256


def test_a_damaged_identity_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    path.write_text('{"secret": 1}')
    with pytest.raises(DeviceError, match=r"identity.json\.secret"):
        load_identity(path)
    path.write_text("{")
    with pytest.raises(DeviceError, match="enrol again"):
        load_identity(path)


def test_each_identity_has_a_secret_of_its_own() -> None:
    join = Join("http://127.0.0.1", "t", ROOT)
    assert isinstance(new_identity(join), Identity)
    assert new_identity(join).secret != new_identity(join).secret
