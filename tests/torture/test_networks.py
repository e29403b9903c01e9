"""A device and a server on two hosts with a bad network between them: everything arrives, once.

The hosts are network namespaces, both of this machine and without a route to any other. Needs root, and Debian's
iproute2 and iptables.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fleet import make_keys, run_cli
from netns import SERVER, Hosts, hosts
from zygote import Zygote, stored

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc", "iptables"))),
    reason="needs root, iproute2 and iptables",
)
PORT = 8080
RUN_S = 1.5


def loss(network: Hosts) -> None:
    """Every tenth packet of each direction is lost."""
    for host in (network.server, network.device):
        network.rule(host, "-A", "INPUT", "-m", "statistic", "--mode", "random", "--probability", "0.1", "-j", "DROP")


def resets(network: Hosts) -> None:
    """A connection is reset once it has carried 60 kB."""
    network.rule(
        network.device, "-A", "OUTPUT", "-p", "tcp", "-m", "connbytes", "--connbytes", "60000:",
        "--connbytes-dir", "both", "--connbytes-mode", "bytes", "-j", "REJECT", "--reject-with", "tcp-reset",
    )  # fmt: skip


def slow(network: Hosts) -> None:
    """A link of 512 kbit/s."""
    network.slow("512kbit")


def pulled(network: Hosts) -> None:
    """The cable is pulled for three quarters of a second, again and again."""

    def pull() -> None:
        with suppress(AssertionError):  # the hosts are gone: the test has ended
            for _ in range(4):
                time.sleep(0.2)
                network.cable("down")
                time.sleep(0.75)
                network.cable("up")

    threading.Thread(target=pull, daemon=True).start()


@contextmanager
def server(network: Hosts, folder: Path) -> Iterator[Path]:
    """A TinySphere on the server's host; its data folder."""
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            network.inside(
                network.server, sys.executable, "-m", "tinysphere.cli", "serve", "--host", SERVER,
                "--port", str(PORT), "--insecure", "--data", str(folder / "server"),
            ),
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            assert process.stdout.readline().startswith("TinySphere listens"), (folder / "server.log").read_text()
            yield folder / "server"
        finally:
            process.terminate()
            process.wait(20)
            process.stdout.close()


@pytest.mark.parametrize("fault", [loss, resets, slow, pulled], ids=lambda fault: fault.__name__)
def test_everything_arrives_once(fault: Callable[[Hosts], None], tmp_path: Path, report: Callable[..., None]) -> None:
    keys = make_keys(tmp_path / "keys")
    config = tmp_path / "device.toml"
    config.write_text(
        f'[device]\nname = "far"\ndata = "{tmp_path / "device"}"\n[server]\nsync_interval_s = 0.05\ntimeout_s = 1.0\n'
        "backoff_min_s = 0.05\nbackoff_max_s = 0.3\ninsecure = true\n[journal]\ncommit_interval_s = 0.02\n"
    )
    with hosts() as network, server(network, tmp_path) as data:
        join = run_cli(
            "tinysphere.cli", "join", "create", "--data", str(data), "--url", f"http://{SERVER}:{PORT}",
            "--root", str(keys / "root.pub"),
        )["join"]  # fmt: skip
        enrolled = subprocess.run(
            network.inside(
                network.device, sys.executable, "-m", "tinylcm.cli", "enrol", "--config", str(config), "--insecure",
                str(join),
            ),
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert enrolled.returncode == 0, enrolled.stderr
        victim = Zygote(config, tmp_path / "victims.log", network.inside(network.device))
        try:
            pid = victim.ask("run 0")
            victim.wait_for("ready")
            fault(network)
            time.sleep(RUN_S)
            os.kill(pid, signal.SIGKILL)
            victim.wait_for("gone")
            victim.ask("drain")
            assert victim.wait_for("gone", 120)[1] == "0", (tmp_path / "victims.log").read_text()
        finally:
            victim.close()
        found = stored(data / "tinysphere.db")
    lost, doubled = victim.acked - set(found), [key for key, count in found.items() if count > 1]
    report(
        f"network: {fault.__doc__}".rstrip(". "),
        durable_records=len(victim.acked),
        lost=len(lost),
        doubled_in_the_database=len(doubled),
    )
    assert len(victim.acked) > 100
    assert lost == set()
    assert doubled == []
