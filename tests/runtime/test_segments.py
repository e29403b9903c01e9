"""The journal's bytes: other versions are refused, any damage is read over, and a seal shows what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinylcm import segments
from tinylcm.errors import DeviceError
from tinylcm.segments import (
    CURSOR_BYTES,
    GAP,
    RECORD,
    SEAL,
    Cursor,
    Entry,
    Hole,
    Loss,
    Ranges,
    Segment,
    decode_loss,
    decode_record,
    encode_cursor,
    load_cursor,
    load_segments,
)

EPOCH = "00112233445566aa"


def entry(seq: int, kind: int = RECORD) -> bytes:
    return segments.encode_entry(kind, EPOCH, seq, segments.encode_body("m", seq * 10, {"n": seq}))


def write_segment(folder: Path, data: bytes, number: int = 1) -> None:
    (folder / f"{number:08d}.seg").write_bytes(data)


def segment_bytes(*parts: bytes, first_seq: int = 1) -> bytes:
    return segments.encode_header("details", EPOCH, "boot-1", first_seq) + b"".join(parts)


# Refusals


def test_a_later_schema_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "JOURNAL_SCHEMA", 2)
    data = segment_bytes(entry(1))
    monkeypatch.undo()
    write_segment(tmp_path, data)
    with pytest.raises(DeviceError, match="journal schema 2, this version reads 1"):
        load_segments(tmp_path, "details")


def test_a_segment_of_the_other_stream_is_refused(tmp_path: Path) -> None:
    write_segment(tmp_path, segments.encode_header("events", EPOCH, "b", 1) + entry(1))
    with pytest.raises(DeviceError, match="does not belong to the stream details"):
        load_segments(tmp_path, "details")


@given(st.binary(max_size=600))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    marked = data + entry(9) + data
    found = [item.seq for item in segments.entries(marked, 0, 1)]
    assert found == [9]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), max_size=8), st.integers(1, 40), st.integers(0, 10))
def test_ranges_agree_with_sets(parts: list[tuple[int, int]], first: int, length: int) -> None:
    ranges, members = Ranges(), set()
    for low, size in parts:
        ranges.add("e", low, low + size)
        members |= set(range(low, low + size + 1))
    missing = [seq for low, high in ranges.missing_from("e", first, first + length) for seq in range(low, high + 1)]
    assert missing == [seq for seq in range(first, first + length + 1) if seq not in members]


def test_an_entry_gives_back_its_record() -> None:
    (item,) = segments.entries(entry(3), 0, 1)
    record = decode_record(item, "boot")
    assert (record.type, record.epoch, record.seq, record.boot, record.boot_ns) == ("m", EPOCH, 3, "boot", 30)
    assert record.payload == {"n": 3}


def test_a_gap_entry_gives_back_its_loss() -> None:
    loss = Loss(EPOCH, 3, 9, "memory", 5)
    data = segments.encode_entry(GAP, EPOCH, 10, segments.encode_body("gap", 1, loss.payload()))
    assert decode_loss(next(segments.entries(data, 0, 1))) == loss


@pytest.mark.parametrize("damage", [None, 0, 1, "both"])
def test_the_newest_sound_slot_is_the_cursor(tmp_path: Path, damage: object) -> None:
    data = bytearray(CURSOR_BYTES)
    for generation in (6, 7):
        place, slot = encode_cursor(Cursor(generation, EPOCH, generation, generation))
        data[place : place + len(slot)] = slot
    for slot_number in (0, 1):
        if damage in (slot_number, "both"):
            data[slot_number * 4096 + 20] ^= 1
    (tmp_path / "cursor").write_bytes(data)
    expected = {None: 7, 0: 7, 1: 6, "both": 0}[damage]  # type: ignore[index]
    assert load_cursor(tmp_path / "cursor").seq == expected
    assert load_cursor(tmp_path / "none") == Cursor()


def test_a_flip_of_every_byte_of_a_slot_is_noticed(tmp_path: Path) -> None:
    place, slot = encode_cursor(Cursor(1, EPOCH, 5, 2))
    for index in range(len(slot)):
        data = bytearray(place + 4096)
        data[place : place + len(slot)] = slot
        data[place + index] ^= 4
        (tmp_path / "cursor").write_bytes(data)
        assert load_cursor(tmp_path / "cursor") == Cursor()


def test_walk_reports_what_a_seal_says_is_missing() -> None:
    segment = Segment(1, Path("x"), EPOCH, "b", 1, 0, 0)
    data = segment_bytes(entry(1), entry(3, kind=SEAL))
    items = list(segments.walk([(segment, data, 0)], "", 0))
    assert [type(item) for item in items] == [Entry, Hole]
    assert items[1] == Hole(EPOCH, 2, 3, 1)
