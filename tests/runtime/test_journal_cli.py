"""`tinylcm journal` as a user types it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from clocks import ManualClock
from tinylcm.cli import main
from tinylcm.journal import Journal, JournalLimits


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    with Journal.open(
        tmp_path / "tinylcm-data" / "journal", JournalLimits(commit_interval_s=0.0), ManualClock()
    ) as journal:
        for n in range(12):
            journal.append("events", "label", {"n": n})
        journal.append("details", "note", {"text": "x" * 500})
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["journal", *arguments]) == code, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out or captured.err


def test_stat_and_tail_speak_to_people_and_to_scripts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "stat")
    assert "events: 12 records wait" in text and "12 label" in text and "fsyncs" in text
    assert json.loads(run(capsys, "stat", "--json"))["events"]["waiting"] == 12
    lines = run(capsys, "tail", "-n", "2").splitlines()
    assert len(lines) == 2 and lines[1].endswith('label {"n": 11}')
    assert json.loads(run(capsys, "tail", "-n", "1", "--json"))["payload"] == {"n": 11}
    assert run(capsys, "tail", "--stream", "details").rstrip().endswith("...")
    assert "expected 0 or more" in run(capsys, "tail", "-n", "-1", code=2)


def test_verify_exits_with_1_when_something_is_damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "sound   events/00000001.seg  12 records" in run(capsys, "verify")
    path = folder / "tinylcm-data" / "journal" / "events" / "00000001.seg"
    data = bytearray(path.read_bytes())
    data[250] ^= 1
    path.write_bytes(data)
    text = run(capsys, "verify", code=1)
    assert "damaged events/00000001.seg" in text and "unreadable" in text and "1 records missing" in text
    checks = json.loads(run(capsys, "verify", "--json", code=1))
    assert checks[0]["state"] == "damaged" and checks[0]["missing"] == 1


def test_export_writes_lines_or_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(run(capsys, "export").splitlines()) == 13
    rows = list(csv.DictReader(io.StringIO(run(capsys, "export", "--csv", "--stream", "events"))))
    assert [json.loads(row["payload"])["n"] for row in rows] == list(range(12))
    assert "13 records: out.csv" in run(capsys, "export", "--csv", "-o", "out.csv")
    assert (folder / "out.csv").read_text().count("\n") == 14
    assert "not overwritten" in run(capsys, "export", "-o", "out.csv", code=2)


def test_a_folder_may_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "12 records wait" in run(capsys, "stat", "tinylcm-data/journal")
    assert "holds no journal" in run(capsys, "stat", "nowhere", code=2)
