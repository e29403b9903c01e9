"""Looking into a journal from outside: nothing is written, and every damaged byte is found."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from clocks import ManualClock
from tinylcm.errors import ConfigError, DeviceError
from tinylcm.journal import Journal, JournalLimits
from tinylcm.journal_tools import SegmentCheck, export, stat, tail, verify
from tinylcm.segments import ENTRIES_AT, MARKER

LIMITS = JournalLimits(
    journal_bytes_max=128 << 10, events_bytes_max=32 << 10, segment_bytes_max=4 << 10, commit_interval_s=0.0
)


def open_journal(folder: Path) -> Journal:
    return Journal.open(folder, LIMITS, ManualClock())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "journal"
    with open_journal(folder) as journal:
        for n in range(60):
            journal.append("events", "alarm" if n % 10 == 0 else "label", {"n": n, "text": 'é,"x"\n' * 10})
            journal.append("details", "note", {"n": n, "text": "y" * 200})
        journal.flush()
        record = journal.read("events", 20, 1 << 20)[-1]
        journal.acknowledge("events", record.epoch, record.seq)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def states(folder: Path) -> list[str]:
    return [check.state for check in verify(folder)]


def test_nothing_is_written_while_a_device_owns_the_folder(folder: Path) -> None:
    with open_journal(folder) as journal:
        journal.append("events", "label", {"n": 60}).result(5)
        before = contents(folder)
        assert stat(folder)["events"]["records"]["alarm"] >= 4  # type: ignore[index, call-overload]
        assert [record.payload["n"] for record in tail(folder, "events", 2)] == [59, 60]
        assert set(states(folder)) == {"sound"} and len(list(export(folder, "jsonl"))) > 60
        assert contents(folder) == before


def test_stat_counts_what_is_there_and_what_waits(folder: Path) -> None:
    found: dict = stat(folder)
    assert found["events"]["waiting"] == 40 and found["details"]["waiting"] == 60
    assert found["details"]["records"] == {"note": 60} and found["details"]["lost"] == {}
    assert found["details"]["first"]["seq"] == 1 and found["details"]["last"]["seq"] == 60
    assert found["details"]["acknowledged"] is None and found["events"]["acknowledged"]["seq"] == 20
    assert found["events"]["bytes"] == sum(path.stat().st_size for path in (folder / "events").glob("*.seg"))
    assert found["wear"]["syncs"] > 0 and found["wear"]["written_bytes"] > 10_000


def test_stat_says_what_was_lost_and_why(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        for _ in range(400):
            journal.append("details", "note", {"text": "x" * 500})
            journal.flush()
        dropped = journal.stats().details.dropped
    found: dict = stat(tmp_path)
    assert found["details"]["lost"] == {"dropped": dropped} and dropped > 200
    (tmp_path / "wear").write_text("nonsense")
    assert stat(tmp_path)["wear"] is None


@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_tail_gives_the_newest_oldest_first(folder: Path, count: int) -> None:
    expected = list(range(60))[max(0, 60 - count) :] if count else []
    assert [record.payload["n"] for record in tail(folder, "details", count)] == expected


def test_tail_follows_over_segments_and_reopenings(folder: Path) -> None:
    journal = open_journal(folder)
    written = iter(range(60, 130))

    def wait(seconds: float) -> None:
        nonlocal journal
        assert seconds > 0
        for n in (next(written, None) for _ in range(10)):
            if n is None:
                raise KeyboardInterrupt
            journal.append("details", "note", {"n": n, "text": "x" * 200})
        journal.flush()
        if n == 99:
            journal.close()
            journal = open_journal(folder)

    found: list[object] = []
    with pytest.raises(KeyboardInterrupt):
        found += [None]  # so that the list is there when the loop is interrupted
        for record in tail(folder, "details", 3, follow=True, wait=wait):
            found.append(record.payload["n"])
    journal.close()
    assert found[1:] == list(range(57, 130))


def test_export_gives_every_record_with_all_that_it_says(folder: Path) -> None:
    lines = [json.loads(line) for line in export(folder, "jsonl", ["events"])]
    assert lines[-1]["payload"]["n"] == 59 and lines[-1]["stream"] == "events" and "é" in lines[-1]["payload"]["text"]
    rows = list(csv.DictReader(export(folder, "csv")))
    assert len(rows) == len(lines) + 60
    assert [json.loads(row["payload"])["n"] for row in rows if row["stream"] == "details"] == list(range(60))
    with pytest.raises(ConfigError, match="expected one of jsonl, csv"):
        list(export(folder, "xml"))


def test_every_flipped_byte_shows(folder: Path) -> None:
    chance = random.Random(7)
    paths = sorted(folder.glob("*/*.seg"))
    for _ in range(120):
        path = chance.choice(paths)
        data = bytearray(path.read_bytes())
        place = chance.randrange(len(data))
        data[place] ^= 1 << chance.randrange(8)
        before = path.read_bytes()
        path.write_bytes(data)
        check = next(check for check in verify(folder) if check.path == path)
        path.write_bytes(before)
        assert check.bad_bytes > 0 and check.state == "damaged", place
    assert set(states(folder)) == {"sound"}


def newest(folder: Path) -> Path:
    return max((folder / "details").glob("*.seg"))


def test_an_unfinished_write_at_the_end_is_torn_and_no_damage(tmp_path: Path) -> None:
    with open_journal(tmp_path) as journal:
        journal.append("details", "note", {"n": 0})
        journal.flush()
        whole = newest(tmp_path).read_bytes()  # without a seal, as after a power cut
    path = newest(tmp_path)
    for tail_bytes, state in ((MARKER + b"half", "torn"), (bytes(100), "torn"), (b"", "sound")):
        path.write_bytes(whole + tail_bytes)
        assert states(tmp_path) == [state]
    for data in (b"", bytes(50), whole[: ENTRIES_AT - 1]):  # the creation of the segment was cut
        path.write_bytes(data)
        assert states(tmp_path) == ["sound" if not data else "torn"]


def test_a_segment_that_is_missing_shows(folder: Path) -> None:
    paths = sorted((folder / "details").glob("*.seg"))
    paths[1].unlink()
    checks: list[SegmentCheck] = [check for check in verify(folder) if check.missing]
    assert [check.path for check in checks] == [paths[2]] and checks[0].state == "damaged"


def test_a_segment_that_goes_meanwhile_is_passed_over(folder: Path) -> None:
    paths = sorted((folder / "details").glob("*.seg"))
    records: Iterator = tail(folder, "details", 100)
    checks = verify(folder)
    next(checks)
    paths[0].unlink()
    assert next(records).payload["n"] > 0
    assert paths[0] not in {check.path for check in checks}


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    for look in (stat, verify, lambda folder: tail(folder, "events", 1)):
        with pytest.raises(ConfigError, match="holds no journal"):
            list(look(tmp_path))  # type: ignore[operator]


def test_a_folder_that_cannot_be_read_is_a_device_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("tinylcm.journal_tools.load_cursor", broken)
    with pytest.raises(DeviceError, match="reading the journal"):
        stat(folder)
