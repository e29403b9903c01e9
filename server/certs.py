"""Certificates for trying things out: an authority of one's own, and a server's certificate by it.

Devices pin the authority through their join string, so the server's certificate can be made anew as often as needed.
For a server on the internet, take a certificate of a public authority, or of one's company's.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tinylcm.files import make_folder, read_bounded, write_atomic

from .errors import StartError

DAYS_MAX: Final = 825  # browsers refuse certificates that live longer
AUTHORITY_DAYS: Final = 3650
_BACK: Final = datetime.timedelta(days=1)  # a peer's clock may be behind
_FILE_BYTES_MAX: Final = 64 << 10
_HOST: Final = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")


def make_dev(folder: Path, hosts: Sequence[str], days: int, now_s: float) -> list[Path]:
    """Make `ca.pem` and `ca.key`, unless they are there, and `server.pem` and `server.key` by them.

    Args:
        hosts: names and addresses that the server is reached by.
        days: life of the server's certificate.

    Returns:
        The files that were written.

    Raises:
        StartError: no host, a wrong number of days, or the authority that is there cannot be read.
        DeviceError: the folder cannot be written.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise StartError("making certificates needs cryptography: pip install 'tinymlops[server]'") from None
    if not hosts or not 1 <= days <= DAYS_MAX:
        raise StartError(f"a certificate needs one host at least, and 1 to {DAYS_MAX} days")
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    make_folder(folder, private=True)
    written: list[Path] = []
    if not (folder / "ca.pem").exists():
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"TinySphere dev {secrets.token_hex(4)}")
        builder = _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_signs_certificates(), critical=True)
        written += _keep(folder, "ca", key, _signed(builder, key, key))
    authority, authority_key = _load(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name(hosts[0]), authority.subject, key.public_key(), now, days)
    builder = builder.add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
    usage = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH])
    builder = builder.add_extension(usage, critical=False)
    return written + _keep(folder, "server", key, _signed(builder, key, authority_key))


def _name(text: str) -> Any:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, text[:64])])


def _alternative(host: str) -> Any:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        name = host.encode("idna").decode()
    except ValueError:
        name = ""
    if not _HOST.fullmatch(name):
        raise StartError(f"{host!r:.100} is no host name and no address")
    return x509.DNSName(name)


def _signs_certificates() -> Any:
    from cryptography import x509

    others = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    never = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(**never, key_cert_sign=True, crl_sign=True)


def _builder(subject: Any, issuer: Any, public: Any, now: datetime.datetime, days: int) -> Any:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACK)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _signed(builder: Any, key: Any, by: Any) -> Any:
    """With the identifiers that verifiers look for: of this key, and of the one that signs."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuers = x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key())
    builder = builder.add_extension(own, critical=False).add_extension(issuers, critical=False)
    return builder.sign(by, hashes.SHA256())


def _keep(folder: Path, name: str, key: Any, certificate: Any) -> list[Path]:
    from cryptography.hazmat.primitives import serialization

    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_atomic(folder / f"{name}.key", secret, mode=0o600)
    write_atomic(folder / f"{name}.pem", certificate.public_bytes(pem))
    return [folder / f"{name}.pem", folder / f"{name}.key"]


def _load(folder: Path) -> tuple[Any, Any]:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        certificate = x509.load_pem_x509_certificate(read_bounded(folder / "ca.pem", _FILE_BYTES_MAX))
        key = serialization.load_pem_private_key(read_bounded(folder / "ca.key", _FILE_BYTES_MAX), None)
        is_pair = key.public_key() == certificate.public_key()
    except (ValueError, TypeError) as error:
        raise StartError(f"the authority in {folder} cannot be read: {error}") from error
    if not is_pair:
        raise StartError(f"ca.key in {folder} is not the key of ca.pem")
    return certificate, key
