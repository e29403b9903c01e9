"""How many syncs and records a server takes to a durable commit, beside FastAPI and SQLAlchemy in the same run.

    python -m benchmarks.ingest [--only NAME ...] [--seconds S] [--write]

Each line starts a real server process on a fresh database with devices, and `benchmarks.ingest_load`, another process,
which sends prepared syncs over 128 kept connections: first as fast as answers come, then at half that rate, where the
times to the answer are measured from when a request was due. An answer counts after its commit (SQLite with
synchronous=FULL; PostgreSQL as it comes), and in the end the records that are stored are counted. All processes share
the machine's cores, so the ratios say more than the figures; `CPU` is what the server used itself.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgpack
import psutil
from tinylcm.wire import CONTENT_TYPES, Anchor, Format, SyncRequest, encode
from tinysphere.db import Database

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from fleet import make_certificate  # noqa: E402
from postgres import Cluster, bindir  # noqa: E402

PAGE = ROOT / "docs" / "server-performance.md"
BEGIN, END = "<!-- begin: make bench-ingest -->", "<!-- end: make bench-ingest -->"
CONNECTIONS, DEVICES = 128, 512
EPOCH, BOOT, SECRET = "00000000000000aa", "7d2f8f6e-3a0e-4b53-9f0e-51c8a0b3d1c4", "5e" * 32


@dataclass(frozen=True)
class Line:
    """One row of the table."""

    name: str
    about: str
    server: str  # tinysphere, commit or writer
    kind: str = "metric"
    records: int = 1
    tls: bool = False
    processes: int = 1
    postgresql: bool = False


LINES = (
    Line("1", "1 record", "tinysphere"),
    Line("1-commit", "1 record, FastAPI + SQLAlchemy, a commit a request", "commit"),
    Line("1-writer", "1 record, FastAPI + SQLAlchemy, a writer thread", "writer"),
    Line("100", "100 records", "tinysphere", records=100),
    Line("100-commit", "100 records, FastAPI + SQLAlchemy, a commit a request", "commit", records=100),
    Line("100-writer", "100 records, FastAPI + SQLAlchemy, a writer thread", "writer", records=100),
    Line("sketch", "1 summary with sketches, and its rollups", "tinysphere", kind="summary"),
    Line("sketch-10", "10 summaries with sketches, and their rollups", "tinysphere", kind="summary", records=10),
    Line("tls-1", "1 record over TLS", "tinysphere", tls=True),
    Line("tls-100", "100 records over TLS", "tinysphere", records=100, tls=True),
    Line("pg-1", "1 record, PostgreSQL, 2 processes", "tinysphere", processes=2, postgresql=True),
    Line("pg-100", "100 records, PostgreSQL, 2 processes", "tinysphere", records=100, processes=2, postgresql=True),
)


def device_id(number: int) -> str:
    return f"d{number:011d}a"


def payload(kind: str, seq: int) -> dict[str, Any]:
    """A metric as a sensor has it; or a summary of a minute as `tinylcm.metrics` makes it."""
    if kind == "metric":
        return {"name": "temperature_c", "value": 20.0 + seq % 50 / 10, "unit": "c"}
    buckets = [[450 + index, 1 + (index * seq) % 17] for index in range(40)]
    count = sum(item[1] for item in buckets)
    signal_ = {
        "count": count, "mean": 120.5, "m2": 900.0, "min": 80.0, "max": 400.0,
        "sketch": {"accuracy": 0.01, "zeros": 0, "buckets": buckets},
    }  # fmt: skip
    return {
        "model": "gesture", "version": "1.0.0", "start_ns": seq * 10**9, "end_ns": (seq + 60) * 10**9,
        "windows": count, "latency_us": signal_, "confidence": signal_, "labels": {"rest": count - 3, "wave": 3},
        "errors": 0, "dropped_samples": 0, "rss_bytes": 60_000_000, "cpu_percent": 12.5,
    }  # fmt: skip


def body(line: Line, instance: str, first: int) -> bytes:
    """A sync with the records from `first` on."""
    details = [
        {
            "type": line.kind, "epoch": EPOCH, "seq": seq, "boot": BOOT, "boot_ns": seq * 60_000_000_000,
            "payload": payload(line.kind, seq),
        }
        for seq in range(first, first + line.records)
    ]  # fmt: skip
    last_ns = (first + line.records) * 60_000_000_000
    request = SyncRequest(1, BOOT, Anchor(last_ns, time.time()), (), 1, instance, {}, [], details)
    return encode(request, format_of(line))


def format_of(line: Line) -> Format:
    """Devices send msgpack; FastAPI takes JSON."""
    return "msgpack" if line.server == "tinysphere" else "json"


def requests_of(line: Line, instance: str, turns: int, begin: int) -> list[list[bytes]]:
    """The requests of each connection: its devices take turns, `turns` requests each from the number `begin` on."""
    bodies = [body(line, instance, 1 + turn * line.records) for turn in range(begin, begin + turns)]
    connections: list[list[bytes]] = []
    for connection in range(CONNECTIONS):
        found = []
        for data in bodies:
            for number in range(connection, DEVICES, CONNECTIONS):
                head = (
                    f"POST /api/v1/sync HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {device_id(number)}."
                    f"{SECRET}\r\nContent-Type: {CONTENT_TYPES[format_of(line)]}\r\nContent-Length: {len(data)}\r\n\r\n"
                )
                found.append(head.encode() + data)
        connections.append(found)
    return connections


def add_devices(where: Path | str, count: int = DEVICES) -> str:
    """Enrolled devices, in bulk; the server's instance."""
    db, known = Database(where), hashlib.sha256(SECRET.encode()).hexdigest()
    columns = (
        "id", "name", "secret_sha256", "join_token", "labels", "capabilities", "running", "enrolled_at",
        "last_seen_at", "next_sync_s", "row_version",
    )  # fmt: skip
    for start in range(0, count, 5000):
        rows = [
            (device_id(number), f"device {number}", known, "bench", '{"site":"berlin"}', "{}", "[]", 1.0, 1.0, 30.0, 1)
            for number in range(start, min(count, start + 5000))
        ]
        db.write(lambda connection, rows=rows: connection.insert("device", columns, rows))  # type: ignore[misc]
    instance = db.instance
    db.close()
    return instance


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Running:
    """Servers that are up."""

    ports: list[int]
    processes: list[subprocess.Popen[str]]
    instance: str
    where: Path | str
    certificate: Path | None = None

    def cpu_s(self) -> float:
        """What they have used."""
        times = [psutil.Process(process.pid).cpu_times() for process in self.processes]
        return float(sum(item.user + item.system for item in times))

    def stored(self) -> int:
        """The records in the database."""
        if isinstance(self.where, Path):
            with contextlib.closing(sqlite3.connect(self.where)) as connection:
                return int(connection.execute("SELECT COUNT(*) FROM record").fetchone()[0])
        import psycopg

        with psycopg.connect(self.where) as opened:
            found = opened.execute("SELECT COUNT(*) FROM record").fetchone()
            return 0 if found is None else int(found[0])


@contextlib.contextmanager
def running(line: Line, folder: Path, cluster: Cluster | None) -> Iterator[Running]:
    """The server of a line, on a fresh database."""
    processes: list[subprocess.Popen[str]] = []
    ports: list[int] = []
    certificate: Path | None = None
    instance, where = "", folder / "tinysphere.db"
    environment = dict(os.environ)
    place: Path | str = where
    if line.server == "tinysphere":
        arguments = ["--data", str(folder)]
        if line.tls:
            certificate, key = make_certificate(folder)
            arguments += ["--tls-cert", str(certificate), "--tls-key", str(key)]
        if line.postgresql:
            assert cluster is not None
            place = environment["TINYSPHERE_DATABASE"] = cluster.database()
            command = [sys.executable, "-m", "tinysphere.cli", "migrate", "up", "--data", str(folder)]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        instance = add_devices(place)
        commands = [
            [sys.executable, "-m", "tinysphere.cli", "serve", "--port", "0", *arguments] for _ in range(line.processes)
        ]
    else:
        from sqlalchemy.orm import Session

        from benchmarks.ingest_peers import Base, Device, make_engine  # only here: they are an extra

        known = hashlib.sha256(SECRET.encode()).hexdigest()
        with Session(make_engine(str(where))) as session:
            session.add_all(Device(id=device_id(number), secret_sha256=known) for number in range(DEVICES))
            session.commit()
        assert Base.metadata.tables
        ports = [free_port()]
        commands = [[sys.executable, "-m", "benchmarks.ingest_peers", line.server, str(where), str(ports[0])]]
    try:
        for command in commands:
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            processes.append(process)
            if line.server == "tinysphere":
                assert process.stdout is not None
                ports.append(int(process.stdout.readline().split()[-1].rsplit(":", 1)[1]))
        deadline = time.monotonic() + 60
        while line.server != "tinysphere" and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", ports[0]), 1).close()
                break
            time.sleep(0.1)
        yield Running(ports, processes, instance, place, certificate)
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)
            if process.stdout is not None:
                process.stdout.close()


@contextlib.contextmanager
def running_on(folder: Path, instance: str) -> Iterator[Running]:
    """A server on a folder that has its devices already."""
    command = [sys.executable, "-m", "tinysphere.cli", "serve", "--port", "0", "--data", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline().split()[-1].rsplit(":", 1)[1])
        yield Running([port], [process], instance, folder / "tinysphere.db")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        process.stdout.close()


def load(server: Running, connections: Sequence[list[bytes]], rate: float, warm: int, folder: Path) -> dict[str, Any]:
    """Have the other process send it all; with two servers each gets half of the connections, from a process each."""
    clients = []
    for number, port in enumerate(server.ports):
        plan = {
            "host": "127.0.0.1", "port": port, "ca": str(server.certificate) if server.certificate else None,
            "rate": rate / len(server.ports), "warm": warm, "connections": connections[number :: len(server.ports)],
        }  # fmt: skip
        path = folder / f"plan-{number}.msgpack"
        path.write_bytes(msgpack.packb(plan))
        clients.append(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.ingest_load", str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
            )
        )
    found = []
    for client in clients:
        output, _ = client.communicate(timeout=300)
        if client.returncode:
            raise RuntimeError("the load process failed")
        found.append(json.loads(output))
    return {
        "rate": sum(item["requests"] / item["seconds"] for item in found),
        "seconds": max(item["seconds"] for item in found),
        "failed": sum(item["failed"] for item in found),
        **{name: max(item[name] for item in found) for name in ("p50_ms", "p99_ms", "own_cpu_s")},
    }


def measure(line: Line, seconds: float, cluster: Cluster | None) -> dict[str, Any]:
    """The figures of a line."""
    folder = Path(tempfile.mkdtemp(prefix="ingest-", dir=ROOT / "build"))
    try:
        with running(line, folder, cluster) as server:
            turns = 4  # a first look, for how long the measured runs have to be
            first = load(server, requests_of(line, server.instance, turns, 0), 0.0, 4, folder)
            done = turns
            turns = max(2, min(200, round(first["rate"] * seconds / DEVICES)))
            requests = requests_of(line, server.instance, turns, done)
            before_s = server.cpu_s()
            full = load(server, requests, 0.0, 0, folder)
            cpu_s = server.cpu_s() - before_s
            sent = DEVICES * turns
            done += turns
            turns = max(2, turns // 2)
            half = load(server, requests_of(line, server.instance, turns, done), full["rate"] / 2, 2, folder)
            done += turns
            failed = first["failed"] + full["failed"] + half["failed"]
            stored, wanted = server.stored(), DEVICES * done * line.records
            rss = [psutil.Process(process.pid).memory_info().rss for process in server.processes]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if failed or stored != wanted:
        raise RuntimeError(f"{line.name}: {failed} requests failed, {stored} of {wanted} records are stored")
    return {
        "requests_per_s": full["rate"],
        "records_per_s": full["rate"] * line.records,
        "p50_ms": full["p50_ms"],
        "p99_ms": full["p99_ms"],
        "half_p99_ms": half["p99_ms"],
        "cpu_us": 1e6 * cpu_s / sent / line.records,
        "cpu_share": cpu_s / full["seconds"],
        "load_cpu_share": full["own_cpu_s"] / full["seconds"],
        "rss_mb": sum(rss) / 1e6,
    }


COLUMNS: Final[Mapping[str, Callable[[dict[str, Any]], str]]] = {
    "requests/s": lambda found: f"{found['requests_per_s']:,.0f}",
    "records/s": lambda found: f"{found['records_per_s']:,.0f}",
    "p50 ms": lambda found: f"{found['p50_ms']:.1f}",
    "p99 ms": lambda found: f"{found['p99_ms']:.1f}",
    "p99 ms at half": lambda found: f"{found['half_p99_ms']:.1f}",
    "CPU µs a record": lambda found: f"{found['cpu_us']:.1f}",
    "cores": lambda found: f"{found['cpu_share']:.2f}",
    "RSS MB": lambda found: f"{found['rss_mb']:.0f}",
}


def table(results: Sequence[tuple[Line, dict[str, Any]]]) -> str:
    lines = [f"| {' | '.join(('a request has', *COLUMNS))} |", f"|---|{'---|' * len(COLUMNS)}"]
    lines += [f"| {line.about} | {' | '.join(show(found) for show in COLUMNS.values())} |" for line, found in results]
    return "\n".join(lines)


def ratios(results: Sequence[tuple[Line, dict[str, Any]]]) -> str:
    found, lines = {line.name: figures for line, figures in results}, []
    for records in ("1", "100"):
        for peer, about in (("commit", "a commit a request"), ("writer", "a writer thread, our design")):
            other = found.get(f"{records}-{peer}")
            if records in found and other is not None:
                rate = found[records]["requests_per_s"] / other["requests_per_s"]
                cpu = other["cpu_us"] / found[records]["cpu_us"]
                lines.append(
                    f"- {records} record{'' if records == '1' else 's'} a request: {rate:.1f} times the requests of "
                    f"FastAPI + SQLAlchemy with {about}; that needs {cpu:.1f} times the CPU a record."
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=[line.name for line in LINES], help="this line (repeatable)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measured run, about")
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.relative_to(ROOT)}")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    arguments = parser.parse_args()
    chosen = [line for line in LINES if not arguments.only or line.name in arguments.only]
    (ROOT / "build").mkdir(exist_ok=True)
    results: list[tuple[Line, dict[str, Any]]] = []
    with contextlib.ExitStack() as stack:
        cluster = None
        if any(line.postgresql for line in chosen) and bindir() is not None:
            cluster = stack.enter_context(Cluster())
        for line in chosen:
            if line.postgresql and cluster is None:
                print(f"{line.name}: PostgreSQL is not installed", file=sys.stderr)
                continue
            results.append((line, measure(line, arguments.seconds, cluster)))
            print(line.name, {key: round(value, 2) for key, value in results[-1][1].items()}, file=sys.stderr)
    if arguments.json:
        print(json.dumps({line.name: found for line, found in results}))
        return
    text = f"{machine()}\n\n{table(results)}\n\n{ratios(results)}"
    print(text)
    if arguments.write:
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


def machine() -> str:
    """What it ran on."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("starlette", "uvicorn", "fastapi", "sqlalchemy"))
    return (
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores (load average "
        f"{os.getloadavg()[0]:.1f}); SQLite {sqlite3.sqlite_version}, {ssl.OPENSSL_VERSION.split(' (')[0]}; {versions}."
    )


if __name__ == "__main__":
    main()
