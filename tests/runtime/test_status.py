"""The status socket: who asks gets an answer, and nobody who asks ends what runs."""

from __future__ import annotations

import math
import os
import resource
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from models import make_package, make_signer, write_keys
from tinylcm import Device, DeviceError
from tinylcm.config import DeviceConfig, ModelConfig
from tinylcm.status import SOCKET, STATUS_BYTES_MAX, StatusServer, ask_status

WAIT_S = 20.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


@contextmanager
def serving(folder: Path, read: Callable[[], Mapping[str, object]]) -> Iterator[StatusServer]:
    server = StatusServer(folder, read)
    assert server.start()
    try:
        yield server
    finally:
        server.close()


def leave_stale(folder: Path) -> None:
    """A socket file as a process leaves it that was killed."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(folder / SOCKET))


def test_who_asks_gets_the_present_document_as_json(folder: Path) -> None:
    document = {"name": "Gerät", "numbers": [1, 2.5, None], "nan": math.nan, "inf": -math.inf}
    with serving(folder, lambda: document):
        assert ask_status(folder) == {"name": "Gerät", "numbers": [1, 2.5, None], "nan": None, "inf": None}
        document["numbers"] = []
        assert (ask_status(folder) or {})["numbers"] == []


def test_a_large_document_arrives_whole_and_one_beyond_the_limit_is_no_status(folder: Path) -> None:
    size = 1 << 20
    with serving(folder, lambda: {"text": "x" * size}):
        answer = ask_status(folder)
        assert answer is not None and len(str(answer["text"])) == size
        size = STATUS_BYTES_MAX + (1 << 17)  # the last part may reach beyond the limit
        with pytest.raises(DeviceError, match="gave no status"):
            ask_status(folder)


def test_many_clients_are_answered_one_after_another_and_together(folder: Path) -> None:
    counter = iter(range(1000))
    with serving(folder, lambda: {"n": next(counter)}):
        assert [ask_status(folder) for _ in range(50)] == [{"n": n} for n in range(50)]
        answers: list[object] = []
        threads = [threading.Thread(target=lambda: answers.append(ask_status(folder))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        assert sorted(str(answer) for answer in answers) == [f"{{'n': {n}}}" for n in range(50, 58)]


def test_nobody_runs_is_none(folder: Path) -> None:
    assert ask_status(folder) is None
    assert ask_status(folder / "missing") is None
    assert ask_status(folder / ("x" * 200)) is None


def test_a_socket_that_a_crash_left_is_none_and_the_next_process_takes_its_place(folder: Path) -> None:
    leave_stale(folder)
    assert (folder / SOCKET).exists()
    assert ask_status(folder) is None
    with serving(folder, lambda: {"alive": True}):
        assert ask_status(folder) == {"alive": True}


def test_only_this_user_may_connect_and_the_umask_is_as_before(folder: Path) -> None:
    before = os.umask(0o022)
    try:
        with serving(folder, dict):
            mode = (folder / SOCKET).stat().st_mode
            after = os.umask(0o022)
    finally:
        os.umask(before)
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    assert after == 0o022


def test_close_takes_the_socket_away_and_ends_the_thread(folder: Path) -> None:
    before = threading.active_count()
    StatusServer(folder, dict).close()  # one that never started
    server = StatusServer(folder, dict)
    assert server.start()
    assert threading.active_count() == before + 1
    server.close()
    assert not (folder / SOCKET).exists()
    assert threading.active_count() == before
    assert ask_status(folder) is None
    server.close()


def test_too_long_a_path_is_a_warning_and_the_device_goes_on_without(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deep = folder / ("d" * 100)
    deep.mkdir()
    server = StatusServer(deep, dict)
    assert not server.start()
    assert "too long a path for a socket" in caplog.text
    assert list(deep.iterdir()) == []
    server.close()


def test_a_place_where_no_socket_can_be_is_a_warning(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / SOCKET).mkdir()
    server = StatusServer(folder, dict)
    assert not server.start()
    server.close()
    missing = StatusServer(folder / "missing", dict)
    assert not missing.start()
    missing.close()
    assert caplog.text.count("no status socket") == 2


def test_a_reader_that_raises_costs_one_answer(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = True

    def read() -> dict[str, object]:
        if broken:
            raise KeyError("models")
        return {"well": True}

    with serving(folder, read):
        for _ in range(3):
            with pytest.raises(DeviceError, match="gave no status"):
                ask_status(folder)
        broken = False
        assert ask_status(folder) == {"well": True}
    assert caplog.text.count("a status was not given") == 3


def test_a_client_that_hangs_up_does_not_end_the_server(folder: Path) -> None:
    with serving(folder, lambda: {"text": "x" * (1 << 20)}):
        for _ in range(3):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
                client.connect(str(folder / SOCKET))
        assert ask_status(folder) is not None


def test_running_out_of_descriptors_passes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with serving(folder, lambda: {"well": True}), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(WAIT_S)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            client.connect(str(folder / SOCKET))
            end = time.monotonic() + WAIT_S
            while "Too many open files" not in caplog.text and time.monotonic() < end:
                time.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert "Too many open files" in caplog.text
        assert client.recv(100) == b'{"well":true}'
        assert ask_status(folder) == {"well": True}


@pytest.mark.parametrize("answer", [b"", b"{", b"hello", b"[1]", b"\xff\xfe"])
def test_an_answer_that_is_no_status_is_an_error(folder: Path, answer: bytes) -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / SOCKET))
        listener.listen(1)
        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(DeviceError, match=r"the device that runs on .* gave no status"):
            ask_status(folder)
        thread.join(WAIT_S)


def test_a_device_that_does_not_answer_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinylcm.status.TIMEOUT_S", 0.05)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(folder / SOCKET))
        listener.listen(1)  # and never accepts
        with pytest.raises(DeviceError, match="does not answer: timed out"):
            ask_status(folder)


def test_a_running_device_says_what_it_does(folder: Path) -> None:
    data = folder / "data"
    write_keys(data / "trust", make_signer())
    package = folder / "gesture.tlm"
    package.write_bytes(make_package())
    with Device.open(DeviceConfig(data, models={"gesture": ModelConfig(package)})) as device:
        device.model("gesture").infer([1, 2, 3])
        running: Any = ask_status(data)
        model = running["models"]["gesture"]
        assert (model["version"], model["windows"], model["overflow"]) == ("1.0.0", 1, 0)
        assert sum(model["labels"].values()) == 1
        assert running["system"]["rss_bytes"] > 1 << 20
        assert running["journal_bytes"]["events"] > 0
        assert running["capture"] is None
    assert ask_status(data) is None
