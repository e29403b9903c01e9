"""What is kept of details that must go: every id is declared, samples go first, summaries are merged."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import MINUTE_NS
from kit import minute as make
from tinylcm.compaction import LOSS_BYTES, Given, compact, join
from tinylcm.journal import Journal, JournalLimits
from tinylcm.segments import GAP, RECORD, Entry, Loss, Ranges, encode_body
from tinylcm.types import Record

EPOCH = "00112233445566aa"


def entry(seq: int, kind: str, payload: dict, *, gap: bool = False) -> Entry:
    return Entry(GAP if gap else RECORD, EPOCH, seq, encode_body(kind, seq, payload), 1, 0)


def given_up(*entries: Entry, first: int = 1, last: int | None = None, sent: int = 0, size: int = 1 << 20) -> Given:
    last = max(entry.seq for entry in entries) if last is None else last
    return Given(EPOCH, "boot", first, last, size, lambda seq: seq <= sent, lambda: entries)


def covered(losses: list[Loss]) -> set[int]:
    return {seq for loss in losses for seq in range(loss.first, loss.last + 1)}


def test_summaries_become_one_and_the_rest_is_dropped() -> None:
    entries = [
        entry(1, "sample", {"x": 1}),
        *(entry(n, "summary", make(n, [1.0])) for n in range(2, 6)),
        entry(6, "note", {}),
    ]
    outcome = compact([given_up(*entries)], 1 << 16)
    assert len(outcome.bodies) == 4 and outcome.merged == 4 and outcome.dropped == 2  # there is room for all of them
    assert len(compact([given_up(*entries)], len(entries[1].body) + 60).bodies) == 1
    assert sorted((loss.reason, loss.first, loss.last, loss.count) for loss in outcome.losses) == [
        ("dropped", 1, 6, 2),
        ("merged", 2, 5, 4),
    ]
    kinds = [kind for kind, _ in outcome.items(0)]
    assert kinds == [GAP, GAP, *[RECORD] * 4]


def test_a_summary_that_may_have_been_sent_keeps_its_id_or_goes() -> None:
    entries = [entry(n, "summary", make(n, [1.0])) for n in range(1, 6)]
    outcome = compact([given_up(*entries, sent=3)], 1 << 16)
    assert outcome.merged == 2 and outcome.dropped == 3
    assert compact([given_up(*entries, sent=5)], 1 << 16).bodies == []


def test_only_what_has_room_is_kept_and_that_is_the_newest() -> None:
    models = {n: make(n, [float(n)], model=f"m{n:02d}") for n in range(1, 40)}  # nothing can be merged
    entries = [entry(n, "summary", payload) for n, payload in models.items()]
    size = len(entries[0].body) + 8
    outcome = compact([given_up(*entries)], 3 * size + size // 2)
    assert outcome.merged == 3 and outcome.dropped == 36
    assert [loss for loss in outcome.losses if loss.reason == "merged"] == [Loss(EPOCH, 37, 39, "merged", 3)]


def test_never_more_than_half_of_what_is_given_up_is_kept() -> None:
    entries = [entry(n, "summary", make(2 * n, [float(n)])) for n in range(1, 40)]
    size = sum(len(item.body) + 8 for item in entries)
    kept = compact([given_up(*entries, size=size)], 1 << 20).bodies
    assert sum(map(len, kept)) <= size // 2


def test_what_its_own_gap_records_said_is_said_again_once() -> None:
    older = Loss("ffeeddccbbaa0099", 5, 9, "damaged", 5)
    inside = Loss(EPOCH, 2, 2, "memory", 1)
    entries = [
        entry(1, "note", {}),
        entry(3, "gap", inside.payload(), gap=True),
        entry(4, "gap", older.payload(), gap=True),
    ]
    outcome = compact([given_up(*entries)], 1 << 16)
    assert sorted(outcome.losses, key=lambda loss: loss.first) == [Loss(EPOCH, 1, 4, "dropped", 2), older]


def test_losses_that_touch_become_one_and_no_loss_bridges_what_is_there() -> None:
    parts = [Loss(EPOCH, 1, 4, "dropped", 4), Loss(EPOCH, 5, 9, "dropped", 3), Loss(EPOCH, 12, 13, "dropped", 2)]
    assert join(parts, Ranges()) == [Loss(EPOCH, 1, 9, "dropped", 7), parts[2]]
    between = Loss(EPOCH, 10, 11, "merged", 2)
    assert join([*parts, between], Ranges())[0] == Loss(EPOCH, 1, 13, "dropped", 9)
    elsewhere = Ranges()
    elsewhere.add(EPOCH, 10, 11)
    assert join(parts, elsewhere) == [Loss(EPOCH, 1, 13, "dropped", 9)]


def test_the_oldest_losses_of_too_many_epochs_are_forgotten() -> None:
    epochs = [Loss(f"{n:016x}", 1, 5, "dropped", 5) for n in range(100)]
    gaps = [entry(seq, "gap", loss.payload(), gap=True) for seq, loss in enumerate(epochs, 1)]
    assert max(len(gap.body) for gap in gaps) <= LOSS_BYTES
    outcome = compact([given_up(*gaps)], 20 * LOSS_BYTES)
    assert len(outcome.losses) == 5 and epochs[-1] in outcome.losses


@given(
    st.lists(st.sampled_from(["sample", "summary", "note"]), min_size=1, max_size=30),
    st.integers(0, 30),
    st.integers(0, 5000),
)
def test_every_id_is_declared_and_every_record_is_counted_once(kinds: list[str], sent: int, bytes_max: int) -> None:
    entries = [entry(n, kind, make(n, [1.0]) if kind == "summary" else {"n": n}) for n, kind in enumerate(kinds, 1)]
    outcome = compact([given_up(*entries, sent=sent)], bytes_max)
    assert covered(outcome.losses) == set(range(1, len(kinds) + 1))
    assert outcome.dropped + outcome.merged == len(kinds)
    assert sum(loss.count for loss in outcome.losses) == len(kinds)


# Through the journal

LIMITS = JournalLimits(
    journal_bytes_max=160 << 10, events_bytes_max=48 << 10, segment_bytes_max=16 << 10, commit_interval_s=0.0
)


class Steps:
    """A clock that goes a minute on with every summary."""

    boot = "boot"

    def __init__(self) -> None:
        self.minute = 0

    def boot_ns(self) -> int:
        return self.minute * MINUTE_NS

    def monotonic_s(self) -> float:
        return self.minute * 60.0

    def wall_s(self) -> float:
        raise AssertionError("nobody asks for the time of day")


def fill(journal: Journal, clock: Steps, count: int) -> None:
    for _ in range(count):
        journal.append("details", "summary", make(clock.minute, [1.0, 2.0]))
        journal.append("details", "sample", {"data": "x" * 1500})
        clock.minute += 1
        journal.flush(10)


def windows(records: list[Record]) -> int:
    return sum(int(record.payload["windows"]) for record in records if record.type == "summary")  # type: ignore[call-overload]


def test_a_full_budget_takes_samples_first_and_no_window_is_forgotten(tmp_path: Path) -> None:
    clock = Steps()
    with Journal.open(tmp_path, LIMITS, clock) as journal:
        fill(journal, clock, 1000)
        stats = journal.stats()
        records = journal.read("details", 100_000, 1 << 30)
    assert stats.details.dropped < 1000 < stats.details.merged
    assert sum(path.stat().st_size for path in (tmp_path / "details").iterdir()) <= LIMITS.details_bytes_max
    assert windows(records) == 2000  # all of them, in coarser summaries
    samples = sum(record.type == "sample" for record in records)
    kept = [record.payload for record in records if record.type == "summary"]
    assert samples < 70 and len(kept) < 150
    assert sum(int(payload.get("merged", 1)) for payload in kept) == 1000  # type: ignore[call-overload]
    assert "merged" not in kept[-1]  # what is new is as fine as ever
    ids = [(record.epoch, record.seq) for record in records]
    assert len(set(ids)) == len(ids) and ids == sorted(ids)
    # Room is made for a segment at once, so what is kept is not written over and over.
    appended = sum(len(encode_body("", 0, {"data": "x" * 1500})) for _ in range(1000)) + 1000 * 650
    assert stats.details.written_bytes < 1.5 * appended
    assert sum(record.type == "gap" for record in records) < 20


@pytest.mark.parametrize("reopen", [False, True])
def test_what_was_handed_out_is_never_part_of_a_merged_one(tmp_path: Path, reopen: bool) -> None:
    clock = Steps()
    journal = Journal.open(tmp_path, LIMITS, clock)
    fill(journal, clock, 10)
    sent = journal.read("details", 8, 1 << 20)
    names = {(record.epoch, record.seq) for record in sent}
    if reopen:
        journal.close()
        journal = Journal.open(tmp_path, LIMITS, clock)
    fill(journal, clock, 200)
    records = journal.read("details", 100_000, 1 << 30)
    journal.close()
    merged = [record.payload for record in records if record.type == "gap" and record.payload["reason"] == "merged"]
    for payload in merged:
        first, last, count = (payload[key] for key in ("from_seq", "to_seq", "count"))
        inside = {(payload["epoch"], seq) for seq in range(first, last + 1)}  # type: ignore[arg-type, operator]
        assert count <= len(inside - names)  # type: ignore[operator]
    first_ones = sum(record.type == "summary" for record in sent)
    assert windows(records) == 2 * (
        200 if reopen else 210 - first_ones
    )  # after a restart all of a segment counts as sent


def test_urgent_details_do_not_wait_for_their_group(tmp_path: Path) -> None:
    limits = JournalLimits(commit_interval_s=3600.0, urgent=frozenset({"command_result"}))
    with Journal.open(tmp_path, limits, Steps()) as journal:
        slow = journal.append("details", "note", {})
        quick = journal.append("details", "command_result", {})
        assert quick.result(10).seq == 2 and slow.result(10).seq == 1  # order is kept: what waited goes with it
        assert not journal.append("details", "note", {}).done()
