"""Another key for a device: cut off at any point, it goes on with the one that it has.

The next secret is stored before the server hears of its hash, and the server takes both keys until the next one is used
for the first time. So a device that loses power anywhere in between can always say who it is, and begins again with the
same next secret.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import replace
from pathlib import Path

from .http import HttpClient
from .identity import Identity, save_identity
from .sync import read_refusal
from .wire import canonical_json

PATH = "/api/v1/devices/key"


def rekey(path: Path, identity: Identity, client: HttpClient) -> Identity:
    """Give a device another key.

    Args:
        path: the identity's file.
        client: speaks with the present key.

    Returns:
        The identity with the next key, stored.

    Raises:
        ServerError: the server cannot be reached or refuses; the present key stays.
        DeviceError: the identity cannot be stored; the present key stays.
    """
    identity = replace(identity, next_secret=identity.next_secret or secrets.token_hex(32))
    save_identity(path, identity)
    digest = hashlib.sha256(identity.next_secret.encode()).hexdigest()
    body = canonical_json({"secret_sha256": digest})
    answer = client.request("POST", PATH, body, {"Content-Type": "application/json"})
    if answer.status != 200:
        raise read_refusal(answer.status, answer.headers, answer.body)
    changed = replace(identity, secret=identity.next_secret, next_secret="")
    save_identity(path, changed)
    return changed
