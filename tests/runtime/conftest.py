"""A device and a server that can be told to break the rules.

Each fixture imports what it needs itself: scripts/tflite_runtime.sh runs the tests of the backends beside this file, in
an environment that has neither onnx (its numpy is 1) nor the dependencies of the agent.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from clocks import ManualClock

if TYPE_CHECKING:
    from peer import Peer
    from tinylcm import Device
    from tinylcm.config import DeviceConfig


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
    from tinylcm.config import DeviceConfig, ServerConfig, TrialConfig

    write_keys(tmp_path / "trust", make_signer())
    return DeviceConfig(tmp_path, server=ServerConfig(timeout_s=5), trial=TrialConfig(windows=5))


@pytest.fixture
def device(peer: Peer, config: DeviceConfig, clock: ManualClock) -> Iterator[Device]:
    from scripted import scripted_server
    from tinylcm import Device
    from tinylcm.identity import Identity, save_identity

    with scripted_server(peer.answer) as (url, _):
        save_identity(config.data / "identity.json", Identity("s" * 64, url, "sha256:" + "0" * 64, "d" + "a" * 12))
        with Device.open(config, clock=clock, background=False) as opened:
            yield opened
