"""Who this device is, and the join string that makes it so.

The device makes its secret first and stores it; the server only ever sees the secret's hash. So enrolment can be
repeated after a power cut at any point and gives the same answer.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlencode, urlsplit

from .checks import Fields
from .errors import ConfigError, DeviceError
from .files import read_bounded, write_atomic
from .wire import canonical_json

_SCHEMES: Final = {"tinysphere+http": "http", "tinysphere+https": "https"}
_IDENTITY_BYTES_MAX: Final = 16 << 10


@dataclass(frozen=True, slots=True)
class Join:
    """What a join string says: where the server is, the token, and the pins of its root key and authority."""

    url: str
    token: str
    root: str
    ca: str = ""

    @classmethod
    def parse(cls, text: str) -> Join:
        """Read `tinysphere+https://HOST:PORT/join#token=...&root=sha256:...&ca=sha256:...`.

        Raises:
            ConfigError: it is no join string; its secret is not repeated in the message.
        """
        parts = urlsplit(text.strip())
        if parts.scheme not in _SCHEMES or not parts.netloc:
            raise ConfigError(
                "that is no join string; it begins with tinysphere+https:// and is printed by `tinysphere join create`"
            )
        fields = parse_qs(parts.fragment)
        values = {key: found[0] for key, found in fields.items()}
        for key in ("token", "root"):
            if not values.get(key):
                raise ConfigError(f"the join string has no {key}; copy all of it, in quotes, because of its & and #")
        if not values["root"].startswith("sha256:"):
            raise ConfigError("the join string's root is no sha256: fingerprint")
        base = parts.path.removesuffix("/join")
        url = f"{_SCHEMES[parts.scheme]}://{parts.netloc}{base}"
        return cls(url, values["token"], values["root"], values.get("ca", ""))

    def format(self) -> str:
        """The string to hand to a device."""
        fields = {"token": self.token, "root": self.root, **({"ca": self.ca} if self.ca else {})}
        return f"tinysphere+{self.url.rstrip('/')}/join#{urlencode(fields, safe=':')}"


@dataclass(frozen=True, slots=True)
class Identity:
    """A device's identity file. `device_id` is empty until the server has answered the enrolment."""

    secret: str
    url: str
    root: str
    device_id: str = ""
    ca_file: str = ""
    next_secret: str = ""  # of a change of keys that was begun: see `rekey`

    @property
    def secret_sha256(self) -> str:
        """What the server stores of the secret."""
        return hashlib.sha256(self.secret.encode()).hexdigest()

    @property
    def key(self) -> str:
        """The bearer key: `<device id>.<secret>`."""
        return f"{self.device_id}.{self.secret}"

    def enrolled(self, device_id: str) -> Identity:
        """The identity that the server has confirmed."""
        return replace(self, device_id=device_id)


def new_identity(join: Join, ca_file: str = "") -> Identity:
    """An identity with a fresh secret of 256 random bits."""
    return Identity(secret=secrets.token_hex(32), url=join.url, root=join.root, ca_file=ca_file)


def save_identity(path: Path, identity: Identity) -> None:
    """Store it for the owner's eyes only.

    Raises:
        DeviceError: it could not be stored.
    """
    document = {
        "secret": identity.secret,
        "url": identity.url,
        "root": identity.root,
        "device_id": identity.device_id,
        "ca_file": identity.ca_file,
        **({"next_secret": identity.next_secret} if identity.next_secret else {}),
    }
    write_atomic(path, canonical_json(document) + b"\n", mode=0o600)


def load_identity(path: Path) -> Identity | None:
    """Read the identity file; None when the device never enrolled.

    Raises:
        DeviceError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        fields = Fields(json.loads(read_bounded(path, _IDENTITY_BYTES_MAX)), str(path), DeviceError)
    except ValueError as error:
        raise DeviceError(f"{path} is damaged ({error}); remove it and enrol again with a new join string") from error
    return Identity(
        secret=fields.text("secret"),
        url=fields.text("url", length_max=2000),
        root=fields.text("root"),
        device_id=fields.text("device_id"),
        ca_file=fields.text("ca_file", "", length_max=4096),
        next_secret=fields.text("next_secret", ""),
    )
