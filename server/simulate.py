"""`tinysphere simulate`: many devices that speak the real protocol to one server, to see what a host is good for.

Each device enrols, as a real one does, and comes back every `interval_s` at a moment of its own, with a summary of what
it has seen. What was not acknowledged goes again. The time of a check-in is counted from when it was due, so that what
waits because the server is slow is not forgotten. Nothing here is a part of the server: it only uses its API.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import ipaddress
import json
import math
import random
import resource
import secrets
import ssl
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import msgspec
from tinylcm.errors import ConfigError, WireError
from tinylcm.files import read_bounded, write_atomic
from tinylcm.stats import Summary
from tinylcm.wire import CONTENT_TYPES, Anchor, Format, SyncRequest, check_format, decode_response, encode

from .errors import TinySphereError
from .output import emit

DEVICES_MAX: Final = 100_000
FOR_S_MAX: Final = 7 * 86_400.0
INTERVAL_S_MIN: Final = 0.05
CHECK_INS_MAX: Final = 20_000_000
ENROLLING_AT_ONCE: Final = 16
ANSWER_BYTES_MAX: Final = 4 << 20
TIMEOUT_S: Final = 30.0
FILES_SPARE: Final = 64
KEYS_BYTES_MAX: Final = 64 << 20
WINDOWS: Final = 60  # in a summary
PROBLEMS_SHOWN: Final = 8
GC_THRESHOLDS: Final = (50_000, 50, 10_000)
_Peer = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is simulated, against which server.

    Attributes:
        url: of the server, as somebody has named it.
        token: a join token, for the devices that have no key yet.
        devices: how many.
        interval_s: between two check-ins of one of them.
        for_s: how long it goes on.
        records: summaries in a check-in.
        format: of the messages.
        keeps: whether a device keeps its connection, as `tinylcm` does, or opens one for each check-in.
        keys: known devices, as (id, secret).
    """

    url: str
    token: str
    devices: int = 100
    interval_s: float = 60.0
    for_s: float = 60.0
    records: int = 1
    format: Format = "msgpack"
    keeps: bool = True
    ca_file: str = ""
    insecure: bool = False
    keys: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be simulated.

        Raises:
            ConfigError: with the value that is wrong.
        """
        if not 1 <= self.devices <= DEVICES_MAX:
            raise ConfigError(f"--devices is {self.devices}, expected 1 to {DEVICES_MAX}")
        if not INTERVAL_S_MIN <= self.interval_s <= FOR_S_MAX:
            raise ConfigError(f"--interval-s is {self.interval_s:g}, expected {INTERVAL_S_MIN:g} to {FOR_S_MAX:g}")
        if not 0.0 < self.for_s <= FOR_S_MAX:
            raise ConfigError(f"--for-s is {self.for_s:g}, expected more than 0 and at most {FOR_S_MAX:g}")
        if not 0 <= self.records <= 1000:
            raise ConfigError(f"--records is {self.records}, expected 0 to 1000")
        if self.devices * self.for_s / self.interval_s > CHECK_INS_MAX:
            raise ConfigError(f"that is more than {CHECK_INS_MAX} check-ins; simulate fewer devices, or for less long")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--url: {self.url!r:.200} is no http(s) address")
        if parts.scheme == "http" and not self.insecure and not _is_loopback(parts.hostname):
            raise ConfigError(f"{parts.hostname} is not this machine: keys would travel in the clear; say --insecure")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(slots=True)
class Result:
    """What came of it; times in seconds."""

    times_s: list[float] = field(default_factory=list)
    problems: Counter[str] = field(default_factory=Counter)
    records: int = 0
    resent: int = 0
    enrolled: int = 0
    enrol_s: float = 0.0
    took_s: float = 0.0

    def document(self, plan: Plan) -> dict[str, Any]:
        """The figures, for scripts."""
        times = sorted(self.times_s)

        def at(q: float) -> float | None:
            return round(1e3 * times[min(len(times) - 1, math.ceil(q * len(times)) - 1)], 2) if times else None

        return {
            "devices": plan.devices,
            "interval_s": plan.interval_s,
            "for_s": round(self.took_s, 2),
            "enrolled": self.enrolled,
            "enrol_s": round(self.enrol_s, 2),
            "check_ins": len(times),
            "check_ins_per_s": round(len(times) / self.took_s, 2) if self.took_s else 0.0,
            "records": self.records,
            "resent": self.resent,
            "errors": sum(self.problems.values()),
            "problems": dict(self.problems.most_common(PROBLEMS_SHOWN)),
            "p50_ms": at(0.5),
            "p95_ms": at(0.95),
            "p99_ms": at(0.99),
            "max_ms": at(1.0),
        }


class _Server:
    """The way to the server: plain requests over connections that the devices own."""

    def __init__(self, plan: Plan) -> None:
        parts = urlsplit(plan.url)
        self._host, self._context = parts.hostname or "", None
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._base = parts.path.rstrip("/")
        self._named = parts.netloc.rpartition("@")[2]
        if parts.scheme == "https":
            try:
                self._context = ssl.create_default_context(cafile=plan.ca_file or None)
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(f"the CA file {plan.ca_file} cannot be used: {error}") from error

    async def connect(self) -> _Peer:
        """Open a connection."""
        return await asyncio.open_connection(self._host, self._port, ssl=self._context, limit=ANSWER_BYTES_MAX)

    async def post(self, peer: _Peer, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, bool]:
        """Send a body; the status, the answer's body, and whether the connection stays open.

        Raises:
            OSError, EOFError: the connection ended.
        """
        reader, writer = peer
        sent = {"Host": self._named, "Content-Length": str(len(body)), **headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        writer.write(f"POST {self._base}{path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        found = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        parts = status_line.split(" ")
        length = found.get("content-length", "0")
        if len(parts) < 2 or not parts[1].isdigit() or not length.isdigit() or int(length) > ANSWER_BYTES_MAX:
            raise WireError(f"the server answered with no HTTP that can be read: {status_line[:80]!r}")
        data = await reader.readexactly(int(length))
        return int(parts[1]), data, found.get("connection", "").lower() != "close"


class _Device:
    """One simulated device: what it remembers between check-ins."""

    def __init__(self, device_id: str, secret: str, rng: random.Random) -> None:
        self.id, self.secret = device_id, secret
        self.boot, self.epoch = str(uuid.UUID(int=rng.getrandbits(128))), f"{rng.getrandbits(64):016x}"
        self.began_s = time.monotonic() - rng.uniform(0, 86_400)
        self.seq = 0
        self.waiting: list[dict[str, Any]] = []
        self.known: tuple[str, int] = ("", 0)
        self.peer: _Peer | None = None

    def request(self, plan: Plan, payload: dict[str, Any]) -> bytes:
        """The next sync: what waits, and new summaries."""
        now_ns = int((time.monotonic() - self.began_s) * 1e9)
        if not self.waiting:
            for _ in range(plan.records):
                self.seq += 1
                times = {"start_ns": max(0, now_ns - 60_000_000_000), "end_ns": now_ns}
                self.waiting.append(
                    {
                        "type": "summary", "epoch": self.epoch, "seq": self.seq, "boot": self.boot, "boot_ns": now_ns,
                        "payload": {**payload, **times},
                    }
                )  # fmt: skip
        instance, generation = self.known
        message = SyncRequest(
            1, self.boot, Anchor(now_ns, time.time()), (), generation, instance, {"machine": "simulated"}, (),
            self.waiting,
        )  # fmt: skip
        return encode(message, plan.format)

    def close(self) -> None:
        """Close its connection."""
        if self.peer is not None:
            self.peer[1].close()
            self.peer = None


def _payload(rng: random.Random) -> dict[str, Any]:
    """What a model of one device did in a minute, summed up as `tinylcm` sums it up."""
    signals = {}
    for name, middle in (("latency_us", 5.0), ("confidence", -0.3)):
        summary = Summary()
        values = [rng.lognormvariate(middle, 0.2) for _ in range(WINDOWS)]
        for value in values:
            summary.update(value)
        moments, sketch = summary.moments, summary.sketch
        signals[name] = {
            "count": moments.count, "mean": moments.mean, "m2": moments.m2, "min": min(values), "max": max(values),
            "sketch": {"accuracy": 0.01, "zeros": sketch.zeros, "buckets": [list(item) for item in sketch.items()]},
        }  # fmt: skip
    return {
        "model": "simulated", "version": "1.0.0", "windows": WINDOWS, **signals, "labels": {"rest": 48, "move": 12},
        "errors": 0, "dropped_samples": 0, "rss_bytes": 60_000_000, "cpu_percent": rng.uniform(1.0, 20.0),
    }  # fmt: skip


class Simulation:
    """Devices and their server.

    Args:
        plan: what to do.
        tell: called now and then with how far it is.
    """

    def __init__(self, plan: Plan, tell: Callable[[str], None] = lambda what: None, seed: int | None = None) -> None:
        self.plan, self._tell = plan, tell
        self._rng = random.Random(seed)  # noqa: S311 (nothing secret comes of it)
        self._server = _Server(plan)
        self._payloads = [_payload(self._rng) for _ in range(20)]
        self.devices = [_Device(device_id, secret, self._rng) for device_id, secret in plan.keys[: plan.devices]]
        self.result = Result()

    async def run(self) -> Result:
        """Enrol who has no key, then let all of them come and go.

        Raises:
            TinySphereError: a device cannot be enrolled.
        """
        await self._enrol()
        start_s = time.monotonic()
        end_s = start_s + self.plan.for_s
        tasks = [asyncio.create_task(self._live(device, start_s, end_s)) for device in self.devices]
        told = asyncio.create_task(self._report(start_s))
        try:
            await asyncio.gather(*tasks)
        finally:
            told.cancel()
            for task in tasks:
                task.cancel()
            for device in self.devices:
                device.close()
        self.result.took_s = time.monotonic() - start_s
        return self.result

    async def _report(self, start_s: float) -> None:
        while True:
            await asyncio.sleep(1.0)
            done, failed = len(self.result.times_s), sum(self.result.problems.values())
            self._tell(f"{time.monotonic() - start_s:.0f} of {self.plan.for_s:g} s: {done} check-ins, {failed} errors")

    async def _enrol(self) -> None:
        start_s, missing = time.monotonic(), self.plan.devices - len(self.devices)
        numbers = iter(range(len(self.devices), self.plan.devices))

        async def some() -> None:
            peer = await self._server.connect()
            try:
                for number in numbers:
                    self.devices.append(await self._enrol_one(peer, number))
                    self.result.enrolled += 1
                    if self.result.enrolled % 100 == 0:
                        self._tell(f"enrolled {self.result.enrolled} of {missing}")
            finally:
                peer[1].close()

        try:
            await asyncio.gather(*(some() for _ in range(min(ENROLLING_AT_ONCE, missing))))
        except (OSError, EOFError) as error:
            raise TinySphereError(f"{self.plan.url} cannot be reached: {error or type(error).__name__}") from error
        self.result.enrol_s = time.monotonic() - start_s

    async def _enrol_one(self, peer: _Peer, number: int) -> _Device:
        secret = secrets.token_hex(32)
        document = {
            "token": self.plan.token, "name": f"simulated-{number:06d}",
            "secret_sha256": sha256(secret.encode()).hexdigest(), "capabilities": {"machine": "simulated"},
        }  # fmt: skip
        async with asyncio.timeout(TIMEOUT_S):
            status, data, _ = await self._server.post(
                peer, "/api/v1/devices/enrol", json.dumps(document).encode(), {"Content-Type": "application/json"}
            )
        if status not in (200, 201):
            raise TinySphereError(f"device {number + 1} of {self.plan.devices} cannot be enrolled: {_detail(data)}")
        return _Device(str(json.loads(data)["device_id"]), secret, self._rng)

    async def _live(self, device: _Device, start_s: float, end_s: float) -> None:
        due_s = start_s + self._rng.uniform(0.0, self.plan.interval_s)
        while due_s < end_s:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            is_again = bool(device.waiting)
            problem = await self._check_in(device)
            if problem:
                self.result.problems[problem] += 1
            else:
                self.result.times_s.append(time.monotonic() - due_s)
                self.result.resent += is_again
            if problem or not self.plan.keeps:
                device.close()
            due_s += self.plan.interval_s * max(1, math.ceil((time.monotonic() - due_s) / self.plan.interval_s))

    async def _check_in(self, device: _Device) -> str:
        """One sync; what went wrong, or empty."""
        body = device.request(self.plan, self._rng.choice(self._payloads))
        headers = {
            "Authorization": f"Bearer {device.id}.{device.secret}", "Content-Type": CONTENT_TYPES[self.plan.format],
        }  # fmt: skip
        try:
            async with asyncio.timeout(TIMEOUT_S):
                for is_fresh in (device.peer is None, True):
                    try:
                        device.peer = device.peer or await self._server.connect()
                        status, data, stays = await self._server.post(device.peer, "/api/v1/sync", body, headers)
                        break
                    except (ConnectionError, EOFError):
                        device.close()  # a server may close a connection that was idle: once more, by a new one
                        if is_fresh:
                            raise
                else:
                    raise AssertionError("the second connection is always a fresh one")
        except TimeoutError:
            return f"no answer within {TIMEOUT_S:g} s"
        except (OSError, EOFError) as error:
            return f"connection: {type(error).__name__}"
        except WireError as error:
            return str(error)
        if not stays:
            device.close()
        if status != 200:
            return f"status {status}"
        return self._read(device, data)

    def _read(self, device: _Device, data: bytes) -> str:
        try:
            answer = decode_response(data, CONTENT_TYPES[self.plan.format])
        except WireError as error:
            return str(error)[:100]
        if device.waiting and answer.acked.get("details") != (device.epoch, device.waiting[-1]["seq"]):
            return "what was sent is not acknowledged"
        if answer.refused:
            return f"refused: {answer.refused[0].reason[:80]}"
        self.result.records += len(device.waiting)
        device.waiting = []
        if not isinstance(answer.desired, str):
            device.known = answer.server_instance, answer.desired.generation
        return ""


def _detail(data: bytes) -> str:
    try:
        return str(json.loads(data)["detail"])[:300]
    except (ValueError, KeyError, TypeError):
        return repr(data[:100])


def token_of(join: str) -> str:
    """The token of a join string, or a bare token.

    Raises:
        ConfigError: it is neither.
    """
    token = parse_qs(urlsplit(join).fragment).get("token", [join])[0]
    if not token.startswith("tj_"):
        raise ConfigError("--join is neither a join string nor its token; `tinysphere join create --uses N` prints one")
    return token


def _load_keys(path: Path) -> tuple[tuple[str, str], ...]:
    if not path.exists():
        return ()
    try:
        return msgspec.json.decode(read_bounded(path, KEYS_BYTES_MAX), type=tuple[tuple[str, str], ...])
    except msgspec.DecodeError as error:
        raise ConfigError(f"{path} holds no keys of simulated devices: {error}") from error


def _need_files(plan: Plan) -> None:
    """Have as many open files allowed as there will be connections."""
    wanted = (plan.devices if plan.keeps else min(plan.devices, 1000)) + FILES_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise ConfigError(f"{wanted} open files are needed and {hard} are allowed; raise it, or say --new-connections")
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _shown(found: Mapping[str, Any], plan: Plan) -> str:
    lines = [
        f"{found['devices']} devices, every {found['interval_s']:g} s, for {found['for_s']:g} s",
        f"check-ins    {found['check_ins']} ({found['check_ins_per_s']:g}/s), {found['records']} records",
        f"errors       {found['errors']}, {found['resent']} check-ins brought again what had not arrived",
    ]
    if found["enrolled"]:
        lines.insert(1, f"enrolled     {found['enrolled']} in {found['enrol_s']:g} s")
    if found["check_ins"]:
        lines.append(
            f"time         p50 {found['p50_ms']:g} ms  p95 {found['p95_ms']:g} ms  p99 {found['p99_ms']:g} ms  "
            f"max {found['max_ms']:g} ms"
        )
    return "\n".join([*lines, *(f"  {count} x {problem}" for problem, count in found["problems"].items())])


def _simulate(arguments: argparse.Namespace) -> None:
    keys = Path(arguments.keys) if arguments.keys else None
    plan = Plan(
        url=arguments.url,
        token=token_of(arguments.join) if arguments.join else "",
        devices=arguments.devices,
        interval_s=arguments.interval_s,
        for_s=arguments.for_s,
        records=arguments.records,
        format=check_format(arguments.format),
        keeps=not arguments.new_connections,
        ca_file=arguments.ca_file,
        insecure=arguments.insecure,
        keys=_load_keys(keys) if keys is not None else (),
    )
    if len(plan.keys) < plan.devices and not plan.token:
        raise ConfigError(f"--join is needed: {plan.devices - len(plan.keys)} devices have no key yet")
    _need_files(plan)
    from .host_cli import telling

    # A look for garbage among ten thousand devices takes a tenth of a second, which would be counted as the server's.
    gc.set_threshold(*GC_THRESHOLDS)
    tell = telling()
    simulation = Simulation(plan, tell)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(simulation.run())
    finally:
        tell("")
        if keys is not None and len(simulation.devices) > len(plan.keys):
            known = [(device.id, device.secret) for device in simulation.devices]
            write_atomic(keys, msgspec.json.encode(known), mode=0o600)
    found = simulation.result.document(plan)
    emit(arguments, found, _shown(found, plan))


def add_commands(commands: Any, command_of: Callable[..., argparse.ArgumentParser]) -> None:
    """Put this command into the parser."""
    command = command_of(commands, "simulate", _simulate, "many devices that check in with a server, to size a host")
    command.add_argument("--url", required=True, help="the server that is put to the test")
    command.add_argument("--join", default="", help="a join string, or its token, that so many devices may use")
    command.add_argument("--keys", metavar="FILE", default="", help="keep the devices' keys here, to use them again")
    command.add_argument("--devices", type=int, default=100, help=f"how many, at most {DEVICES_MAX} (default 100)")
    command.add_argument("--interval-s", type=float, default=60.0, help="between a device's check-ins (default 60)")
    command.add_argument("--for-s", type=float, default=60.0, help="how long it goes on (default 60)")
    command.add_argument("--records", type=int, default=1, help="summaries in a check-in (default 1)")
    command.add_argument("--format", default="msgpack", help="msgpack, json or protobuf (default msgpack)")
    command.add_argument("--new-connections", action="store_true", help="each check-in opens a connection of its own")
    command.add_argument("--ca-file", default="", metavar="PEM", help="an authority of your own")
    command.add_argument("--insecure", action="store_true", help="allow plain http to another machine")
