"""100,000 queued records of about 200 bytes over loopback HTTPS to a real server: time, and growth of memory.

Both ends share the machine's cores. There is no peer: the figures stand beside what issue 5 wants of them.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from tinylcm import Device
from tinylcm.config import DeviceConfig, JournalConfig, ServerConfig
from tinylcm.device import enrol

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from fleet import make_certificate, make_keys, run_cli  # noqa: E402

RECORDS = 100_000
WANTED_S, WANTED_BYTES = 5.0, 16 << 20
PAYLOAD = {"model": "activity", "text": "x" * 40, **{f"channel_{n}": 1.37 * n for n in range(8)}}


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, Path]]:
    """A TinySphere with a certificate of its own; its address and the certificate."""
    certificate, key = make_certificate(folder)
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tinysphere.cli", "serve", "--port", "0", "--data", str(folder / "server"),
             "--tls-cert", str(certificate), "--tls-key", str(key)],
            stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1], certificate
        finally:
            process.terminate()
            process.wait(20)
            process.stdout.close()


def test_sync_of_a_backlog(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    with server(tmp_path) as (url, certificate):
        answer = run_cli(
            "tinysphere.cli", "join", "create", "--data", str(tmp_path / "server"), "--url", url,
            "--root", str(keys / "root.pub"), "--ca", str(certificate),
        )  # fmt: skip
        config = DeviceConfig(
            tmp_path / "device",
            server=ServerConfig(sync_interval_s=3600.0),
            journal=JournalConfig(journal_bytes_max=128 << 20),
        )
        enrol(config, str(answer["join"]))
        with Device.open(config, background=False) as device:
            device.sync()  # the connection, and everything that is imported late
            for start in range(0, RECORDS, 5000):
                for number in range(start, start + 5000):
                    device.journal.append("details", "torture", {**PAYLOAD, "n": number})
                device.journal.flush(60)
            gc.collect()
            process = psutil.Process()
            before, peak = process.memory_info().rss, [0]

            def look(settled: int) -> None:
                peak[0] = max(peak[0], process.memory_info().rss)

            start_s = time.perf_counter()
            settled = benchmark.pedantic(device.sync, kwargs={"progress": look}, rounds=1, iterations=1)  # type: ignore[no-untyped-call]
            took_s = time.perf_counter() - start_s
            assert settled == RECORDS
    benchmark.extra_info.update(
        table="sync",
        peer="wanted",
        records=RECORDS,
        seconds=round(took_s, 2),
        wanted_s=WANTED_S,
        records_per_s=round(RECORDS / took_s),
        rss_growth_mb=round((peak[0] - before) / 1e6, 1),
        wanted_mb=round(WANTED_BYTES / 1e6, 1),
    )


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "--benchmark-only", "-q"]))
