"""A program as systemd runs it: told when it is ready, watched, reloaded, stopped in order or at once."""

from __future__ import annotations

import configparser
import io
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fleet import build_activity, make_keys, run_cli
from tinylcm.cli import make_parser
from tinylcm.daemon import STOP_TIMEOUT_S, Daemon, JsonFormatter, Notifier, log_to

PROGRAM = """
import sys, time
from tinylcm.daemon import Daemon
well = True
def reload():
    global well
    if "fail" in sys.argv:
        raise ValueError("device.toml: x is wrong")
    well = False
with Daemon(is_well=lambda: well, reload=reload, stop_timeout_s=0.5) as daemon:
    try:
        daemon.ready("predicting")
        while True:
            time.sleep(60)
    except KeyboardInterrupt:
        print("closing", flush=True)
        time.sleep(60 if "hang" in sys.argv else 0)
print("closed", flush=True)
"""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """systemd's end of the notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(20)
        yield channel


def start(manager: socket.socket, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "NOTIFY_SOCKET": manager.getsockname(), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def heard(manager: socket.socket) -> dict[str, str]:
    lines = manager.recv(4096).decode().splitlines()
    return dict(line.split("=", 1) for line in lines)


def wait_for(manager: socket.socket, key: str) -> dict[str, str]:
    for _ in range(100):
        found = heard(manager)
        if key in found:
            return found
    raise AssertionError(f"{key} was not told")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_ready_and_stopping_and_ends_in_order(manager: socket.socket, number: signal.Signals) -> None:
    process = start(manager)
    assert heard(manager) == {"READY": "1", "STATUS": "predicting"}
    process.send_signal(number)
    assert wait_for(manager, "STOPPING")["STOPPING"] == "1"
    out, _ = process.communicate(timeout=20)
    assert out.split() == ["closing", "closed"] and process.returncode == 0


def test_a_close_that_hangs_is_ended_after_its_time(manager: socket.socket) -> None:
    process = start(manager, "hang")
    wait_for(manager, "READY")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert out.split() == ["closing"] and process.returncode == 1
    assert "did not stop in order within 0.5 s" in err


def test_a_second_signal_ends_it_at_once(manager: socket.socket) -> None:
    process = start(manager, "hang")
    wait_for(manager, "READY")
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None and process.stdout.readline() == "closing\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM


def test_the_watchdog_hears_of_it_only_while_it_is_well(manager: socket.socket) -> None:
    process = start(manager, WATCHDOG_USEC="200000")
    for _ in range(3):
        wait_for(manager, "WATCHDOG")
    process.send_signal(signal.SIGHUP)  # this program is unwell after it
    found = wait_for(manager, "RELOADING")
    assert abs(int(found["MONOTONIC_USEC"]) - time.monotonic_ns() // 1000) < 60_000_000
    assert wait_for(manager, "READY")["STATUS"] == "predicting"
    manager.settimeout(1.0)
    with pytest.raises(TimeoutError):
        heard(manager)
    process.kill()
    process.communicate(timeout=20)


def test_a_reload_that_fails_is_logged_and_it_runs_on(manager: socket.socket) -> None:
    process = start(manager, "fail", WATCHDOG_USEC="200000")
    wait_for(manager, "READY")
    process.send_signal(signal.SIGHUP)
    wait_for(manager, "RELOADING")
    wait_for(manager, "READY")
    wait_for(manager, "WATCHDOG")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert "nothing was reloaded: device.toml: x is wrong" in err and out.split() == ["closing", "closed"]


def test_without_systemd_nothing_is_told_and_signals_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Daemon(is_well=lambda: True, reload=lambda: None, notifier=Notifier({})) as daemon:
        daemon.ready("x")
        daemon.status("y")
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).send("READY=1")  # nobody listens: no error


def test_an_abstract_socket_is_understood() -> None:
    name = f"tinylcm-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind("\0" + name)
        channel.settimeout(5)
        Notifier({"NOTIFY_SOCKET": "@" + name}).send("READY=1", "STATUS=é")
        assert channel.recv(100).decode() == "READY=1\nSTATUS=é"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_that_of_this_process(environ: dict[str, str], expected: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/nowhere", **environ}).watchdog_s == expected


def make_record(level: int = logging.WARNING, message: str = "the disk\nis full") -> logging.LogRecord:
    return logging.LogRecord("tinylcm", level, "file", 1, message, (), None)


def test_a_json_log_has_one_object_a_line() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = make_record()
        record.exc_info = sys.exc_info()
    line = JsonFormatter().format(record)
    found = json.loads(line)
    assert "\n" not in line and found["message"] == "the disk\nis full" and found["level"] == "warning"
    assert "ValueError: why" in found["exception"] and found["thread"] == "MainThread"
    assert found["time"].endswith("Z") and len(found["time"]) == 24


def test_journald_gets_the_priority_of_each_line_and_others_do_not(tmp_path: Path) -> None:
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    try:
        with (tmp_path / "log").open("w") as stream:
            found = os.fstat(stream.fileno())
            root.handlers[:] = []
            log_to(stream, "text", logging.INFO, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
            for level in (logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
                root.handlers[0].handle(make_record(level))
            root.handlers[:] = []
            log_to(stream, "text", logging.INFO, {"JOURNAL_STREAM": "1:2"})
            root.handlers[0].handle(make_record(message="plain"))
        lines = (tmp_path / "log").read_text().splitlines()
        assert [line[:3] for line in lines[:8]] == ["<6>", "<6>", "<4>", "<4>", "<3>", "<3>", "<2>", "<2>"]
        assert lines[8] == "tinylcm: plain"
        root.handlers[:] = []
        log_to(io.StringIO(), "json", logging.INFO, {"JOURNAL_STREAM": "1:2"})  # a stream without a file
    finally:
        root.handlers[:] = before


# The whole command


def test_run_is_ready_reloads_and_stops_without_privileges_and_with_one_writable_folder(
    manager: socket.socket, tmp_path_factory: pytest.TempPathFactory, activity: Path
) -> None:
    config, samples = prepare(tmp_path_factory.mktemp("run"), activity)
    data = config.parent / "data"
    config.parent.chmod(0o555)  # root without capabilities is held to it too
    plain = (*read_only_root(data), *UNPRIVILEGED) if os.getuid() == 0 else ()
    before = {path.name for path in config.parent.iterdir()}
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*plain, sys.executable, "-m", "tinylcm.cli", "run", "--model", "activity", "--config", str(config), "--quiet",
         "--log-format", "json"],
        stdin=reader, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=config.parent,
        env={**os.environ, "NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "2000000", "HOME": "/nonexistent"},
    )  # fmt: skip
    try:
        os.write(writer, samples)
        manager.settimeout(60)
        assert wait_for(manager, "READY")["STATUS"] == "waiting for activity"
        wait_for(manager, "WATCHDOG")
        text = config.read_text()
        config.write_text(text.replace("[device]", "[device]\nmetrics_interval_s = 0.1", 1))
        process.send_signal(signal.SIGHUP)
        wait_for(manager, "RELOADING")
        wait_for(manager, "READY")
        config.write_text("nonsense = 1")
        process.send_signal(signal.SIGHUP)
        wait_for(manager, "RELOADING")
        wait_for(manager, "READY")
        process.send_signal(signal.SIGTERM)
        wait_for(manager, "STOPPING")
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait(10)
        os.close(writer)
        os.close(reader)
    assert process.returncode == 0, err
    logged = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert any("nothing was reloaded" in line["message"] and "nonsense" in line["message"] for line in logged), err
    assert "tinylcm: stopping" in err
    assert {path.name for path in config.parent.iterdir()} == before
    records = subprocess.run(
        [sys.executable, "-m", "tinylcm.cli", "journal", "stat", str(data / "journal"), "--json"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert json.loads(records.stdout)["details"]["records"]["summary"] >= 1


UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'


def read_only_root(data: Path) -> tuple[str, ...]:
    """What makes a command see the whole root file system read-only but one folder, where mounts are allowed."""
    seen = ("unshare", "--mount", "--propagation", "private", "sh", "-c", READ_ONLY, str(data))
    tried = subprocess.run([*seen, "touch", str(data.parent / "x")], capture_output=True, text=True, check=False)
    return seen if "Read-only file system" in tried.stderr else ()


def prepare(folder: Path, activity: Path) -> tuple[Path, bytes]:
    """A device that has the example's model; its configuration and some samples for its standard input."""
    keys, package = make_keys(folder / "keys"), folder / "activity.tlm"
    build_activity(activity, keys, package)
    (folder / "data").mkdir()
    config = folder / "device.toml"
    config.write_text(f'[device]\ndata = "{folder}/data"\n[models.activity]\npackage = "{package}"\n')
    arguments = ("keys", "trust", str(keys / "root.pub"), "--config", str(config))
    run_cli("tinylcm.cli", *arguments)
    rows = np.load(activity / "data" / "basic_motions.npz")["x_test"][0].T.tolist()
    return config, "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.mark.source_tree
def test_the_unit_is_one_that_systemd_takes() -> None:
    path = Path(__file__).parent.parent.parent / "deploy" / "tinylcm.service"
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(path.read_text())
    service = unit["Service"]
    assert service["Type"] == "notify" and int(service["TimeoutStopSec"]) > STOP_TIMEOUT_S
    assert service["ProtectSystem"] == "strict" and service["StateDirectory"] == "tinylcm"
    words = service["ExecStart"].replace("$TINYLCM_ARGS", "--model activity").split()
    assert make_parser().parse_args(words[1:]).log_format == "text"
    analyze = shutil.which("systemd-analyze")
    if analyze is not None:
        done = subprocess.run([analyze, "verify", str(path)], capture_output=True, text=True, check=False, timeout=60)
        wrong = [line for line in done.stderr.splitlines() if "tinylcm.service" in line and "ExecStart" not in line]
        assert [line for line in wrong if "not executable" not in line] == [], done.stderr
