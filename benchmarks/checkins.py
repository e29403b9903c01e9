"""What a check-in costs, however many devices are registered; and a fleet that checks in every minute.

    python -m benchmarks.checkins [--write] [--for-s S]

First: servers with 100, 10,000 and 100,000 registered devices, all of which have been there before (their rows are made
in bulk), and 100 of them checking in with a record each, at a fixed rate. Then the same with up to 5,000 of them, so
that rows lie far apart. Last: `tinysphere simulate` with 10,000 devices every 60 s, each over a connection that it
keeps, and again with a new connection each time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from tinylcm.wire import CONTENT_TYPES
from tinysphere.db import Database

from benchmarks.ingest import (
    EPOCH,
    PAGE,
    ROOT,
    SECRET,
    Line,
    Running,
    add_devices,
    body,
    device_id,
    load,
    machine,
    running_on,
)

BEGIN, END = "<!-- begin: make bench-checkins -->", "<!-- end: make bench-checkins -->"
REGISTERED = (100, 10_000, 100_000)
CONNECTIONS, RATE, TURNS = 20, 250.0, 8
WANTED_RATIO, WANTED_P99_MS, WANTED_RSS_MB = 1.2, 100.0, 300.0


def history(where: Path, count: int) -> None:
    """What check-ins have left of each device: where its clock and its records stand."""
    db = Database(where)
    tables: dict[str, tuple[tuple[str, ...], Callable[[str], tuple[Any, ...]]]] = {
        "anchor": (("device", "boot", "boot_ns", "device_wall_s", "received_at"), lambda who: (who, "b", 1, 1.0, 1.0)),
        "watermark": (("device", "stream", "epoch", "seq"), lambda who: (who, "events", EPOCH, 7)),
        "latest": (
            ("device", "model", "version", "at", "received_at", "windows", "labels", "errors", "dropped_samples"),
            lambda who: (who, "gesture", "1.0.0", 1.0, 1.0, 60, "{}", 0, 0),
        ),
    }
    for start in range(0, count, 5000):
        devices = [device_id(number) for number in range(start, min(count, start + 5000))]
        for table, (columns, row) in tables.items():
            rows = [row(device) for device in devices]
            db.write(lambda connection, t=table, c=columns, r=rows: connection.insert(t, c, r))  # type: ignore[misc]
    db.close()


def requests(chosen: Sequence[int], instance: str, begin: int, turns: int) -> list[list[bytes]]:
    """The check-ins of some devices, by connection."""
    line = Line("", "", "tinysphere")
    found: list[list[bytes]] = [[] for _ in range(CONNECTIONS)]
    for turn in range(begin, begin + turns):
        data = body(line, instance, 1 + turn)
        for place, number in enumerate(chosen):
            head = (
                f"POST /api/v1/sync HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {device_id(number)}.{SECRET}"
                f"\r\nContent-Type: {CONTENT_TYPES['msgpack']}\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            found[place % CONNECTIONS].append(head.encode() + data)
    return found


def cost(server: Running, chosen: Sequence[int], begin: int, turns: int, folder: Path) -> dict[str, float]:
    """Of a check-in: the server's own time, and the time to the answer."""
    load(server, requests(chosen, server.instance, begin, 1), 0.0, 0, folder)  # connections, caches
    before_s = server.cpu_s()
    found = load(server, requests(chosen, server.instance, begin + 1, turns), RATE, 0, folder)
    used_s = server.cpu_s() - before_s
    if found["failed"]:
        raise RuntimeError(f"{found['failed']} check-ins failed")
    return {"cpu_us": 1e6 * used_s / (len(chosen) * turns), "p50_ms": found["p50_ms"], "p99_ms": found["p99_ms"]}


def flat() -> list[dict[str, Any]]:
    """A row for each number of registered devices, measured by turns so that the machine's moods meet all alike."""
    folders = {count: Path(tempfile.mkdtemp(prefix="checkins-", dir=ROOT / "build")) for count in REGISTERED}
    results: dict[int, dict[str, Any]] = {count: {"near": [], "far": []} for count in REGISTERED}
    try:
        instances = {}
        for count, folder in folders.items():
            instances[count] = add_devices(folder / "tinysphere.db", count)
            history(folder / "tinysphere.db", count)
        for round_ in range(3):
            for count, folder in folders.items():
                with running_on(folder, instances[count]) as server:
                    rng = random.Random(count)
                    near = rng.sample(range(count), 100)
                    results[count]["near"].append(cost(server, near, 20 * round_, TURNS, folder))
                    far = rng.sample(range(count), min(count, 2000))
                    results[count]["far"].append(
                        cost(server, far, 1000 + 20 * round_, max(1, 2000 // len(far)), folder)
                    )
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)

    def best(items: Sequence[dict[str, float]], key: str) -> float:
        return min(item[key] for item in items)

    return [
        {
            "registered": count,
            **{f"{kind}_{key}": best(found[kind], key) for kind in ("near", "far") for key in ("cpu_us", "p50_ms")},
        }
        for count, found in results.items()
    ]


def fleet(devices: int, interval_s: float, for_s: float, *, keeps: bool) -> dict[str, Any]:
    """`tinysphere simulate` against a server, whose memory is looked at meanwhile."""
    folder = Path(tempfile.mkdtemp(prefix="fleet-", dir=ROOT / "build"))
    try:
        instance = add_devices(folder / "tinysphere.db", devices)
        keys = folder / "keys.json"
        keys.write_text(json.dumps([(device_id(number), SECRET) for number in range(devices)]))
        with running_on(folder, instance) as server:
            process = psutil.Process(server.processes[0].pid)
            peak, done = [process.memory_info().rss], threading.Event()

            def watch() -> None:
                while not done.wait(0.2):
                    peak[0] = max(peak[0], process.memory_info().rss)

            thread = threading.Thread(target=watch)
            thread.start()
            command = [
                sys.executable, "-m", "tinysphere.cli", "simulate", "--url", f"http://127.0.0.1:{server.ports[0]}",
                "--keys", str(keys), "--devices", str(devices), "--interval-s", str(interval_s), "--for-s", str(for_s),
                "--json", *([] if keeps else ["--new-connections"]),
            ]  # fmt: skip
            try:
                before_s = server.cpu_s()
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                found["cpu_share"] = (server.cpu_s() - before_s) / found["for_s"]
            finally:
                done.set()
                thread.join()
            found["rss_mb"] = peak[0] / 1e6
            found["keeps"] = keeps
            return dict(found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--for-s", type=float, default=125.0, help="how long the fleet is simulated (default 125)")
    parser.add_argument("--devices", type=int, default=10_000, help="in the fleet (default 10000)")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {PAGE.relative_to(ROOT)}")
    arguments = parser.parse_args()
    (ROOT / "build").mkdir(exist_ok=True)
    began_s = time.monotonic()
    rows = flat()
    fleets = [fleet(arguments.devices, 60.0, arguments.for_s, keeps=keeps) for keeps in (True, False)]
    lines = [
        machine(),
        "",
        "| registered devices | CPU µs, 100 of them | p50 ms | CPU µs, up to 2,000 of them | p50 ms |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['registered']:,} | {row['near_cpu_us']:.0f} | {row['near_p50_ms']:.1f} | {row['far_cpu_us']:.0f} | "
        f"{row['far_p50_ms']:.1f} |"
        for row in rows
    ]
    ratio = rows[-1]["near_cpu_us"] / rows[0]["near_cpu_us"]
    far = rows[-1]["far_cpu_us"] / rows[0]["far_cpu_us"]
    lines += [
        "",
        f"A check-in of one of 100,000 devices costs {ratio:.2f} times that of one of 100 when as many come (wanted: "
        f"at most {WANTED_RATIO}), and {far:.2f} times when 2,000 different ones come instead of 100: their rows lie "
        "on pages of their own.",
        "",
        "| devices, every 60 s | connections | check-ins | errors | p50 ms | p95 ms | p99 ms | peak RSS MB | cores |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {found['devices']:,} | {'kept' if found['keeps'] else 'new'} | {found['check_ins']:,} | "
        f"{found['errors']} | {found['p50_ms']:.1f} | {found['p95_ms']:.1f} | {found['p99_ms']:.1f} | "
        f"{found['rss_mb']:.0f} | {found['cpu_share']:.2f} |"
        for found in fleets
    ]
    lines += ["", f"Wanted: a p99 of at most {WANTED_P99_MS:g} ms and at most {WANTED_RSS_MB:g} MB."]
    text = "\n".join(lines)
    print(text)
    print(f"({time.monotonic() - began_s:.0f} s, load average {os.getloadavg()[0]:.1f})", file=sys.stderr)
    if arguments.write:
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
