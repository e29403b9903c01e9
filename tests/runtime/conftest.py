"""A device and a server that can be told to break the rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clocks import ManualClock
from scripted import scripted_server
from tinylcm import Device
from tinylcm.config import DeviceConfig, ServerConfig, TrialConfig
from tinylcm.identity import Identity, save_identity

if TYPE_CHECKING:
    from peer import Peer

# `models` and `peer` need onnx, which the environment of scripts/tflite_runtime.sh does not have (its numpy is 1): they
# are imported by the fixtures that use them.


@pytest.fixture
def peer() -> Peer:
    from peer import Peer

    return Peer()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def config(tmp_path: Path) -> DeviceConfig:
    from models import make_signer, write_keys

    write_keys(tmp_path / "trust", make_signer())
    return DeviceConfig(tmp_path, server=ServerConfig(timeout_s=5), trial=TrialConfig(windows=5))


@pytest.fixture
def device(peer: Peer, config: DeviceConfig, clock: ManualClock) -> Iterator[Device]:
    with scripted_server(peer.answer) as (url, _):
        save_identity(config.data / "identity.json", Identity("s" * 64, url, "sha256:" + "0" * 64, "d" + "a" * 12))
        with Device.open(config, clock=clock, background=False) as opened:
            yield opened
