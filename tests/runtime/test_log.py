"""The segmented log: what is read after any damage, its cursor, and how it gives space back."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest
from tinylcm import segments
from tinylcm.errors import DeviceError
from tinylcm.log import Log
from tinylcm.segments import ENTRIES_AT, GAP, RECORD, SEAL, Loss
from tinylcm.types import Json

EPOCH = "00112233445566aa"
SEGMENT_BYTES = 64 << 10


def open_log(folder: Path, epoch: str = EPOCH, segment_bytes_max: int = SEGMENT_BYTES) -> Log:
    log = Log(folder, "details", epoch, "boot-1", segment_bytes_max)
    log.recover()
    return log


def entry(seq: int, epoch: str = EPOCH, kind: int = RECORD, payload: Json = None) -> bytes:
    return segments.encode_entry(kind, epoch, seq, segments.encode_body("m", seq * 10, payload or {"n": seq}))


def commit(log: Log, first: int, last: int) -> None:
    log.commit(b"".join(entry(seq, log.epoch) for seq in range(first, last + 1)), first, last)


def seqs(log: Log) -> list[int]:
    return [record.seq for record in log.read(10_000, 1 << 24)]


def write_segment(folder: Path, data: bytes, number: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{number:08d}.seg").write_bytes(data)


def segment_bytes(*entries: bytes, first_seq: int = 1, epoch: str = EPOCH) -> bytes:
    return segments.encode_header("details", epoch, "boot-1", first_seq) + b"".join(entries)


# Damage


def test_after_a_failed_fsync_the_file_is_opened_anew_and_what_it_has_lost_is_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path)
    commit(log, 1, 3)
    path = next(tmp_path.glob("*.seg"))
    second = ENTRIES_AT + len(entry(1)) + 20

    def failing(handle: int) -> None:
        with path.open("r+b") as file:  # the disk is no better than its fsync: a record that it had confirmed goes too
            file.seek(second)
            file.write(b"\0\0\0\0")
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", failing)
        with pytest.raises(OSError, match="Input/output error"):
            commit(log, 4, 4)
    assert not log.has_losses
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fadvise", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(OSError, match="Input/output error"):
            commit(log, 4, 4)  # nothing is written before the file was read back
    assert len(list(tmp_path.glob("*.seg"))) == 1
    commit(log, 4, 4)
    assert [(loss.first, loss.last, loss.reason) for loss in log.losses(10)] == [(2, 2, "damaged")]
    assert seqs(log) == [1, 3, 4] and log.damaged == 1
    assert path.stat().st_size == ENTRIES_AT + sum(len(entry(seq)) for seq in (1, 2, 3))


def test_a_failed_write_costs_nothing_when_the_disk_still_has_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_log(tmp_path)
    commit(log, 1, 3)
    log.acknowledge(EPOCH, 2)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", lambda handle: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(OSError, match="Input/output error"):
            commit(log, 4, 4)
    commit(log, 4, 4)
    assert seqs(log) == [3, 4] and not log.has_losses


def test_a_file_in_the_way_of_the_folder_is_a_device_error(tmp_path: Path) -> None:
    (tmp_path / "details").write_text("here")
    with pytest.raises(DeviceError, match="file, not a folder"):
        open_log(tmp_path / "details")


def test_truncation_at_every_byte_leaves_the_records_before_it(tmp_path: Path) -> None:
    parts = [entry(seq) for seq in range(1, 5)]
    data = segment_bytes(*parts)
    ends = [ENTRIES_AT + sum(map(len, parts[: n + 1])) for n in range(len(parts))]
    for size in range(len(data) + 1):
        write_segment(tmp_path, data[:size])
        log = open_log(tmp_path)
        assert seqs(log) == [n + 1 for n, end in enumerate(ends) if end <= size], size
        assert not log.has_losses, size


def test_a_flip_of_every_byte_costs_at_most_the_record_hit_and_is_declared(tmp_path: Path) -> None:
    parts = [entry(seq) for seq in range(1, 5)]
    data = segment_bytes(*parts, entry(4, kind=SEAL))
    ends = [ENTRIES_AT + sum(map(len, parts[: n + 1])) for n in range(len(parts))]
    for place in range(len(data)):
        write_segment(tmp_path, data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        log = open_log(tmp_path)
        hit = next((n + 1 for n, end in enumerate(ends) if ENTRIES_AT <= place < end), None)
        records = log.read(100, 1 << 20)
        assert [record.seq for record in records] == [seq for seq in (1, 2, 3, 4) if seq != hit], place
        assert all(record.payload == {"n": record.seq} and record.epoch == EPOCH for record in records), place
        assert log.losses(10) == ([Loss(EPOCH, hit, hit, "damaged", 1)] if hit else []), place
        assert all(record.boot == "boot-1" for record in records), place


def test_without_both_headers_the_records_keep_their_ids(tmp_path: Path) -> None:
    data = segment_bytes(entry(7), entry(8), first_seq=7)
    write_segment(tmp_path, bytes(ENTRIES_AT) + data[ENTRIES_AT:])
    records = open_log(tmp_path).read(10, 1000)
    assert [(record.epoch, record.seq, record.boot) for record in records] == [(EPOCH, 7, ""), (EPOCH, 8, "")]


def test_a_lost_header_takes_the_boot_from_a_sister_segment(tmp_path: Path) -> None:
    write_segment(tmp_path, bytes(ENTRIES_AT) + entry(1), 1)
    write_segment(tmp_path, segment_bytes(entry(2), first_seq=2), 2)
    assert [record.boot for record in open_log(tmp_path).read(10, 1000)] == ["boot-1", "boot-1"]


def test_a_segment_in_the_middle_that_vanished_is_a_declared_gap(tmp_path: Path) -> None:
    for number in (1, 3):
        write_segment(tmp_path, segment_bytes(entry(number), first_seq=number), number)
    log = open_log(tmp_path)
    assert seqs(log) == [1, 3]
    assert log.losses(10) == [Loss(EPOCH, 2, 2, "damaged", 1)]


def test_a_declared_gap_is_not_declared_again(tmp_path: Path) -> None:
    loss = Loss(EPOCH, 2, 3, "damaged", 2)
    gap = entry(1, "ff" * 8, GAP, loss.payload())
    write_segment(tmp_path, segment_bytes(entry(1), entry(4)), 1)
    write_segment(tmp_path, segment_bytes(gap, epoch="ff" * 8), 2)
    log = open_log(tmp_path)
    assert log.losses(10) == []
    assert seqs(log) == [1, 4, 1]
    assert not log.has_losses


def test_an_id_that_is_on_disk_twice_is_read_once_from_the_later_segment(tmp_path: Path) -> None:
    # The write of 2 to 4 failed with a hole in it and was repeated in the next segment.
    write_segment(tmp_path, segment_bytes(entry(1), entry(2), entry(4)), 1)
    write_segment(tmp_path, segment_bytes(entry(2), entry(3), entry(4), entry(5), first_seq=2), 2)
    log = open_log(tmp_path)
    assert seqs(log) == [1, 2, 3, 4, 5]
    assert not log.has_losses


def test_a_segment_given_up_before_the_power_went_is_not_read(tmp_path: Path) -> None:
    gap = entry(3, kind=GAP, payload=Loss(EPOCH, 1, 2, "dropped", 2).payload())
    write_segment(tmp_path, segment_bytes(entry(1), entry(2)), 1)
    write_segment(tmp_path, segment_bytes(gap, entry(4), first_seq=3), 2)
    log = open_log(tmp_path)
    assert seqs(log) == [3, 4]
    assert not (tmp_path / "00000001.seg").exists()


def test_a_segment_of_noise_stops_nothing(tmp_path: Path) -> None:
    write_segment(tmp_path, os.urandom(5000), 1)
    write_segment(tmp_path, segment_bytes(entry(1), entry(2)), 2)
    assert seqs(open_log(tmp_path)) == [1, 2]


def test_pages_that_cannot_be_read_cost_only_their_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = segment_bytes(*(entry(seq, payload={"text": "x" * 900}) for seq in range(1, 21)))
    write_segment(tmp_path, data)
    real = os.pread

    def broken(handle: int, size: int, offset: int) -> bytes:
        if offset <= 8192 < offset + size and size > 300:
            raise OSError(5, "Input/output error")
        return real(handle, size, offset)

    monkeypatch.setattr(os, "pread", broken)
    log = open_log(tmp_path)
    got = seqs(log)
    assert 12 <= len(got) < 20
    assert [seq for loss in log.losses(10) for seq in range(loss.first, loss.last + 1)] == sorted(
        set(range(1, 21)) - set(got)
    )


# The cursor


def test_the_cursor_survives_damage_of_its_newest_slot_by_the_older_one(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    commit(log, 1, 6)
    for seq in (2, 4):
        assert log.acknowledge(EPOCH, seq)
        log.save_cursor()
    data = bytearray((tmp_path / "cursor").read_bytes())
    data[3] ^= 1  # generation 2 stands in slot 0
    (tmp_path / "cursor").write_bytes(data)
    again = open_log(tmp_path, "ff" * 8)
    assert again.acknowledged == (EPOCH, 2)
    assert seqs(again) == [3, 4, 5, 6]
    assert not again.has_losses


def test_without_any_cursor_everything_on_disk_is_read_again(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    commit(log, 1, 3)
    log.acknowledge(EPOCH, 3)
    log.save_cursor()
    (tmp_path / "cursor").write_bytes(b"")
    assert seqs(open_log(tmp_path, "ff" * 8)) == [1, 2, 3]


@pytest.mark.parametrize(("epoch", "seq"), [("ff" * 8, 1), (EPOCH, 9), (EPOCH, 2), (EPOCH, 1), (EPOCH, 0)])
def test_an_unknown_or_old_acknowledgement_changes_nothing(tmp_path: Path, epoch: str, seq: int) -> None:
    log = open_log(tmp_path)
    commit(log, 1, 4)
    assert log.acknowledge(EPOCH, 2)
    assert not log.acknowledge(epoch, seq)
    assert seqs(log) == [3, 4]


def test_segments_behind_the_cursor_are_deleted(tmp_path: Path) -> None:
    log = open_log(tmp_path, segment_bytes_max=4096)
    for first in range(1, 301, 20):
        commit(log, first, first + 19)
    before = len(list(tmp_path.glob("*.seg")))
    assert before > 3
    log.acknowledge(EPOCH, 290)
    log.save_cursor()
    assert len(list(tmp_path.glob("*.seg"))) == 1
    assert seqs(log) == list(range(291, 301))


def test_segments_that_were_not_deleted_after_the_acknowledgement_go_at_the_next_open(tmp_path: Path) -> None:
    log = open_log(tmp_path / "a", segment_bytes_max=4096)
    for first in range(1, 301, 20):
        commit(log, first, first + 19)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    log.acknowledge(EPOCH, 250)
    log.save_cursor()
    shutil.copy(tmp_path / "a" / "cursor", tmp_path / "b" / "cursor")
    again = open_log(tmp_path / "b", "ff" * 8)
    assert seqs(again) == list(range(251, 301))
    assert {path.name for path in (tmp_path / "a").iterdir()} == {path.name for path in (tmp_path / "b").iterdir()}


# Order and bounds


def test_epochs_are_read_in_the_order_of_their_openings(tmp_path: Path) -> None:
    for epoch in ("ee" * 8, "11" * 8, "aa" * 8):
        log = open_log(tmp_path, epoch)
        commit(log, 1, 2)
        log.close()
    read = open_log(tmp_path, "00" * 8).read(10, 10_000)
    assert [(record.epoch[:2], record.seq) for record in read] == [
        ("ee", 1), ("ee", 2), ("11", 1), ("11", 2), ("aa", 1), ("aa", 2)
    ]  # fmt: skip


def test_read_keeps_both_bounds_and_gives_one_record_at_least(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    commit(log, 1, 10)
    assert [len(log.read(3, 1 << 20)), len(log.read(100, 1)), len(log.read(100, 2 * len(entry(1))))] == [3, 1, 2]


def test_gaps_inside_a_segment_that_is_given_up_are_declared_anew(tmp_path: Path) -> None:
    log = open_log(tmp_path, segment_bytes_max=4096)
    older = Loss("77" * 8, 5, 9, "dropped", 5)
    log.commit(entry(1, kind=GAP, payload=older.payload()), 1, 1)
    for first in range(2, 602, 20):
        commit(log, first, first + 19)
    total = sum(path.stat().st_size for path in tmp_path.glob("*.seg"))
    outcome = log.make_room(1, total + 4096, 1024)
    assert outcome is None
    outcome = log.make_room(1, total, 4096)
    assert outcome is not None
    own, before = sorted(outcome.losses, key=lambda loss: loss.first)
    assert before == older and (own.first, own.reason, own.count) == (
        1,
        "dropped",
        own.last - 1,
    )  # 1 was the gap record
    assert (tmp_path / "00000001.seg").exists()  # until the commit that declares it
    commit(log, 602, 602)
    assert not (tmp_path / "00000001.seg").exists()
    assert seqs(log)[0] == own.last + 1


def damaged(data: bytes, chance: random.Random) -> bytes:
    place, size = chance.randrange(len(data)), chance.choice([1, 1, 8, 64, 512])
    noise = {0: bytes(size), 1: chance.randbytes(size), 2: b"\xf5TL\xff" * (size // 4 + 1)}[chance.randrange(3)]
    return data[:place] + noise[: len(data) - place][:size] + data[place + size :]


def test_after_any_damage_a_record_is_read_or_missed_and_never_wrong(tmp_path: Path) -> None:
    chance = random.Random(5)
    log = open_log(tmp_path / "whole", segment_bytes_max=4096)
    for first in range(1, 401, 10):
        commit(log, first, first + 9)
    log.seal(400)
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.seg"))
    assert len(names) > 2
    for number in range(150):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        path = folder / chance.choice(names[:-1])  # what is missing after the last sound entry cannot be known
        path.write_bytes(damaged(path.read_bytes(), chance))
        again = open_log(folder, "ff" * 8)
        records = again.read(1000, 1 << 20)
        lost = [seq for loss in again.losses(100) for seq in range(loss.first, loss.last + 1)]
        assert all(record.payload == {"n": record.seq} and record.epoch == EPOCH for record in records), number
        assert sorted([*lost, *(record.seq for record in records)]) == list(range(1, 401)), number
        shutil.rmtree(folder)
