"""The three encodings of a sync, plain and compressed: bytes and time a record, beside plain JSON in the same run.

The batch is what devices send most: summaries of the metrics, alarms with histograms, labels.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from tinylcm.wire import CONTENT_TYPES, Format, SyncRequest, compress, decode_request, encode, expand

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from kit import alarm, minute, record, request  # noqa: E402

RECORDS = 500
BYTES_MAX = 1 << 24


def batch() -> SyncRequest:
    chance = random.Random(5)
    records = []
    for seq in range(1, RECORDS + 1):
        if seq % 10 == 0:
            records.append(record(seq, "alarm", alarm(statistic=chance.random())))
        elif seq % 5 == 0:
            records.append(record(seq))
        else:
            records.append(record(seq, "summary", minute(seq, [chance.lognormvariate(5, 0.3) for _ in range(60)])))
    return request(details=records)


def us_a_record(call: Callable[[], object]) -> float:
    times = []
    for _ in range(15):
        start_s = time.perf_counter()
        call()
        times.append(time.perf_counter() - start_s)
    return median(times) / RECORDS * 1e6


@pytest.mark.parametrize("gzip", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("format", CONTENT_TYPES)
def test_wire(benchmark: BenchmarkFixture, format: Format, gzip: bool) -> None:
    message = batch()

    def pack() -> bytes:
        body = encode(message, format)
        return (compress(body) or body) if gzip else body

    body = pack()

    def unpack() -> SyncRequest:
        return decode_request(expand(body, BYTES_MAX) if gzip else body, CONTENT_TYPES[format])

    assert len(unpack().details) == RECORDS
    benchmark.pedantic(pack, rounds=15)  # type: ignore[no-untyped-call]
    plain = encode(message, "json")
    benchmark.extra_info.update(
        table="wire",
        peer="JSON, plain",
        bytes_a_record=round(len(body) / RECORDS),
        of_json=round(len(body) / len(plain), 2),
        pack_us=round(us_a_record(pack), 2),
        unpack_us=round(us_a_record(unpack), 2),
        json_pack_us=round(us_a_record(lambda: encode(message, "json")), 2),
        json_unpack_us=round(us_a_record(lambda: decode_request(plain)), 2),
    )
