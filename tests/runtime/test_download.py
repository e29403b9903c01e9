"""Packages over a link that breaks, from servers that break the rules."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from peer import GOOD, Peer
from scripted import Reply
from tinylcm import Device, DeviceError, ServerError
from tinylcm.slots import State


def test_a_download_that_broke_goes_on_where_it_stopped(peer: Peer, device: Device, tmp_path: Path) -> None:
    peer.offer(GOOD)
    peer.download = Reply(body=GOOD, cut_after=1000)
    with pytest.raises(ServerError):
        device.sync()
    part = next((tmp_path / "packages").glob("*.part"))
    assert part.stat().st_size == 1000
    peer.download = Reply(206, GOOD[500:], {"Content-Range": f"bytes 500-{len(GOOD) - 1}/{len(GOOD)}"})
    with pytest.raises(ServerError, match="206"):
        device.sync()  # the wrong range must not be appended
    assert part.stat().st_size == 1000
    peer.download = None
    device.sync()
    assert device.slots()["gesture"].state is State.TRIAL


def test_a_server_that_ignores_the_range_is_read_from_the_start(peer: Peer, device: Device) -> None:
    peer.offer(GOOD)
    peer.download = Reply(body=GOOD, cut_after=100)
    with pytest.raises(ServerError):
        device.sync()
    peer.download = Reply(body=GOOD)
    device.sync()
    assert device.slots()["gesture"].state is State.TRIAL


def test_a_body_that_ends_early_without_saying_so_is_kept_and_gone_on_from(
    peer: Peer, device: Device, tmp_path: Path
) -> None:
    peer.offer(GOOD)
    peer.download = Reply(body=GOOD[:700])
    with pytest.raises(ServerError, match=f"after 700 of {len(GOOD)} bytes"):
        device.sync()
    assert next((tmp_path / "packages").glob("*.part")).stat().st_size == 700
    peer.download = None
    device.sync()
    assert device.slots()["gesture"].state is State.TRIAL


def test_a_download_is_not_begun_without_room_for_it(
    peer: Peer, device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer.offer(GOOD)
    asked: list[str] = []
    answer = peer.answer
    monkeypatch.setattr(Peer, "answer", lambda self, request: (asked.append(request.path), answer(request))[1])
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=256, f_frsize=4096))
        with pytest.raises(DeviceError, match=r"the package needs \d+ bytes of disk .* 1048576 are free"):
            device.sync()
    assert not list((tmp_path / "packages").iterdir()) and not any("packages" in path for path in asked)
    device.sync()  # there is room now
    assert device.slots()["gesture"].state is State.TRIAL
