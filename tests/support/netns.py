"""Two hosts on this machine: network namespaces joined by one cable, without a route to anywhere else. Needs root."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

SERVER: Final = "10.203.0.1"
DEVICE: Final = "10.203.0.2"


def run(*words: str) -> str:
    """One command; what it printed."""
    result = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert result.returncode == 0, f"{' '.join(words)}: {result.stderr or result.stdout}"
    return result.stdout


@dataclass(frozen=True)
class Hosts:
    """Names of the two namespaces; the cable's end in each is called `cable`."""

    server: str
    device: str

    def inside(self, host: str, *words: str) -> list[str]:
        """A command line that runs in one of them."""
        return ["ip", "netns", "exec", host, *words]

    def cable(self, state: str) -> None:
        """Pull the device's end of the cable out (`down`), or put it in (`up`)."""
        run(*self.inside(self.device, "ip", "link", "set", "cable", state))

    def rule(self, host: str, *words: str) -> None:
        """Add a packet rule."""
        run(*self.inside(host, "iptables", *words))

    def slow(self, rate: str) -> None:
        """Let the device send no faster than this, such as `512kbit`."""
        run(*self.inside(self.device, "tc", "qdisc", "add", "dev", "cable", "root", "tbf", "rate", rate,
                         "burst", "16kbit", "latency", "400ms"))  # fmt: skip


def _end(names: Sequence[str]) -> None:
    for name in names:
        with suppress(AssertionError):
            run("ip", "netns", "del", name)  # the cable goes with them


@contextmanager
def hosts() -> Iterator[Hosts]:
    """Make the two, and take them away."""
    made = Hosts(f"tlm-server-{os.getpid()}", f"tlm-device-{os.getpid()}")
    names = (made.server, made.device)
    try:
        for name in names:
            run("ip", "netns", "add", name)
        run("ip", "-n", made.server, "link", "add", "cable", "type", "veth", "peer", "name", "cable",
            "netns", made.device)  # fmt: skip
        for name, address in zip(names, (SERVER, DEVICE), strict=True):
            run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "cable")
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", "cable", "up")
            assert "default" not in run("ip", "-n", name, "route"), "nothing may leave the machine"
        yield made
    finally:
        _end(names)
