"""One byte of a journal changed, or its end cut off, anywhere: nothing wrong is read, at most the record hit is lost.

tests/runtime/test_log.py does it to one segment of a log; here it is a whole folder, with several segments, both
streams and the cursors, opened as a device opens it. By default every 23rd byte, with TINYMLOPS_TORTURE=1 every one.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clocks import ManualClock
from powered import LIMITS, text_of
from tinylcm.journal import Journal
from tinylcm.segments import ENTRIES_AT, entries

STEP = 1 if os.environ.get("TINYMLOPS_TORTURE") else 23
Found = dict[tuple[str, str, int], int]


@pytest.fixture
def folder() -> Iterator[Path]:
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as name:
        yield Path(name)


def make(folder: Path) -> Path:
    """Two openings of both streams, over several segments, some of it acknowledged."""
    path = folder / "journal"
    for opening in range(2):
        with Journal.open(path, LIMITS, ManualClock()) as journal:
            for n in range(opening * 40, opening * 40 + 40):
                for stream in ("events", "details"):
                    journal.append(stream, "note", {"n": n, "text": text_of(n)})  # type: ignore[arg-type]
            journal.flush(20)
            for stream in ("events", "details"):
                first = journal.read(stream, 7, 1 << 20)[-1]  # type: ignore[arg-type]
                journal.acknowledge(stream, first.epoch, first.seq)  # type: ignore[arg-type]
            journal.flush(20)
    return path


def read(path: Path) -> tuple[Found, int, int]:
    """The records by stream and id, how many were wrong, and how many gap records say are damaged."""
    found: Found = {}
    wrong = damaged = 0
    with Journal.open(path, LIMITS, ManualClock()) as journal:
        journal.flush(20)
        for stream in ("events", "details"):
            for record in journal.read(stream, 1 << 20, 1 << 30):  # type: ignore[arg-type]
                if record.type == "gap":
                    damaged += int(str(record.payload["count"]))
                    continue
                number = int(str(record.payload["n"]))
                wrong += record.payload["text"] != text_of(number)
                found[stream, record.epoch, record.seq] = number
    return found, wrong, damaged


def hit(data: bytes, place: int) -> int:
    """How many records a flip at this place may cost: the one that it is in."""
    ends = [entry.end for entry in entries(data, ENTRIES_AT, 1)]
    return int(place >= ENTRIES_AT and any(place < end for end in ends))


def test_a_flip_of_any_byte_costs_at_most_the_record_hit(folder: Path, report: Callable[..., None]) -> None:
    origin = make(folder)
    whole, _, _ = read(shutil.copytree(origin, folder / "whole"))
    assert len(whole) > 100
    chance, flips, wrong_total, lost_most = random.Random(3), 0, 0, 0
    for path in sorted(item for item in origin.rglob("*") if item.suffix == ".seg" or item.name == "cursor"):
        data = path.read_bytes()
        places = [place for place in range(0, len(data), STEP) if path.suffix == ".seg" or place % 4096 < 64]
        for place in places:
            state = folder / "state"
            shutil.rmtree(state, ignore_errors=True)
            shutil.copytree(origin, state)
            changed = bytearray(data)
            changed[place] ^= 1 << chance.randrange(8)
            (state / path.relative_to(origin)).write_bytes(changed)
            found, wrong, damaged = read(state)
            lost = {key for key in whole if key not in found}
            where = f"{path.relative_to(origin)} at {place}"
            assert wrong == 0 and all(found[key] == whole[key] for key in found.keys() & whole.keys()), where
            assert len(lost) <= (hit(data, place) if path.suffix == ".seg" else 0), f"{where}: lost {lost}"
            assert damaged >= len(lost), f"{where}: {lost} are not declared"
            flips, wrong_total, lost_most = flips + 1, wrong_total + wrong, max(lost_most, len(lost))
    report("every byte of a journal flipped", flips=flips, wrong=wrong_total, lost_at_most=lost_most)


def test_a_journal_cut_off_anywhere_gives_what_was_before(folder: Path, report: Callable[..., None]) -> None:
    origin = make(folder)
    whole, _, _ = read(shutil.copytree(origin, folder / "whole"))
    cuts = wrong_total = 0
    for stream in ("events", "details"):
        path = max((origin / stream).glob("*.seg"))
        data = path.read_bytes()
        ends = [entry.end for entry in entries(data, ENTRIES_AT, 1)]
        for size in range(0, len(data), STEP):
            state = folder / "state"
            shutil.rmtree(state, ignore_errors=True)
            shutil.copytree(origin, state)
            (state / stream / path.name).write_bytes(data[:size])
            found, wrong, _ = read(state)
            lost = sum(key not in found for key in whole)
            assert wrong == 0 and lost <= sum(end > size for end in ends), f"{stream} cut at {size}: {lost} lost"
            cuts, wrong_total = cuts + 1, wrong_total + wrong
    report("a journal cut off at every byte", cuts=cuts, wrong=wrong_total)
