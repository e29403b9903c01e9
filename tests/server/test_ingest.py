"""Records arrive at least once and take effect exactly once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kit import EPOCH, NOW, Kit, alarm, digest_of, make_kit, record, request, summary
from tinylcm.wire import Anchor, RunningModel
from tinysphere import drifthub, fleet, ingest, reports
from tinysphere.db import Connection, rows
from tinysphere.errors import UnauthorizedError
from tinysphere.ingest import EPOCHS_MAX


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[Kit]:
    made = make_kit(tmp_path)
    yield made
    made.db.close()


@pytest.fixture
def device(kit: Kit) -> str:
    return kit.enrol()


def stored(kit: Kit, sql: str) -> list[tuple]:
    return [tuple(found.values()) for found in kit.db.read(lambda connection: rows(connection, sql))]


def test_resent_records_count_once_and_are_acknowledged_again(kit: Kit, device: str) -> None:
    batch = {"events": [record(1), record(2, "alarm", alarm())], "details": [record(1, "summary", summary([5], [0.5]))]}
    first, again = kit.sync(device, **batch), kit.sync(device, **batch)
    assert dict(first.acked) == dict(again.acked) == {"events": (EPOCH, 2), "details": (EPOCH, 1)}
    kit.sync(device, events=[record(2, "alarm", alarm()), record(3)])
    assert stored(kit, "SELECT COUNT(*) FROM record") == [(4,)]
    assert len(drifthub.list_events(kit.db, device, None, None, 10).items) == 1
    assert stored(kit, "SELECT COUNT(*) FROM label") == [(2,)]


@pytest.mark.parametrize("count", [1, 2, 40])
def test_no_sync_reads_a_whole_table(kit: Kit, count: int) -> None:
    """Else a check-in costs more with every device that is registered. PostgreSQL chooses by the tables' sizes.

    What people set (deployments, groups, settings) is short, and read when a device is new or something has changed.
    """
    if kit.db.kind != "sqlite":
        return
    devices = [kit.enrol(f"watch-{i}", f"{i:064x}") for i in range(count)]
    asked: list[str] = []

    def settle(connection: Connection, seqs: range) -> list[str]:
        deliveries = [
            ingest.Delivery(
                device,
                request(
                    events=[record(seq, "alarm", alarm()) for seq in seqs],
                    details=[record(seq, "summary", summary([5.0], [0.5])) for seq in seqs],
                ),
                NOW,
                30.0,
                None,
            )
            for device in devices
        ]  # fmt: skip
        raw = connection.raw  # type: ignore[attr-defined]
        raw.set_trace_callback(asked.append)
        answers = ingest.settle(kit.db.instance, connection, deliveries)
        raw.set_trace_callback(None)
        assert not [answer for answer in answers if isinstance(answer, Exception)]
        plans = [
            (step[3], sql[:200])
            for sql in asked
            if sql.startswith(("SELECT", "INSERT", "UPDATE", "DELETE"))
            for step in raw.execute(f"EXPLAIN QUERY PLAN {sql}").fetchall()
        ]
        short = r"SCAN (CONSTANT|\d+ CONSTANT|[kv]$|d$|device_group |config_version )"
        return [f"{step}: {sql}" for step, sql in plans if step.startswith("SCAN") and not re.match(short, step)]

    for seqs in (range(1, 4), range(4, 7)):
        assert kit.db.write(lambda connection, seqs=seqs: settle(connection, seqs)) == []
    assert any("JOIN rollup" in sql for sql in asked) and any("watermark" in sql for sql in asked)


def test_records_in_one_sync_become_what_they_become_one_by_one(kit: Kit) -> None:
    """What is usual goes the short way, in runs; what is not ends a run and goes the long way."""
    other = "00000000000000bb"
    items = [
        record(1, "note", {"n": 1}), record(2, "note", {"text": "grün"}), record(3, "note", {"x": float("nan")}),
        record(4, "note", {}), record(6, "note", {"after": "a hole"}), record(7, "summary", summary([5.0], [0.5])),
        record(8, "note", {}), {**record(9, "note", {}), "boot": "another"}, record(10, "note", {"deep": [[[{}]]]}),
        {**record(1, "note", {}), "epoch": other}, {**record(2, "note", {}), "epoch": other},
        record(10, "note", {"again": True}), record(11, "note", {}), {"epoch": EPOCH, "seq": 12}, record(13, "Bad", {}),
        {**record(14, "note", {}), "boot_ns": -1}, {**record(15, "note", {}), "boot": "a\0b"}, record(16, "note", {}),
        {"no": "id"}, record(17, "note", {}),
    ]  # fmt: skip
    together, alone = kit.enrol("together", "33" * 32), kit.enrol("alone", "44" * 32)
    answer = kit.sync(together, details=items)
    answers = [kit.sync(alone, details=[item]) for item in items]
    assert list(answer.refused) == [refused for each in answers for refused in each.refused]
    for table, columns in (
        ("record", "stream, epoch, seq, type, boot, boot_ns, at, received_at, payload"),
        ("refused_record", "stream, epoch, seq, reason"),
        ("gap", "stream, epoch, from_seq, to_seq, reason, count"),
        ("watermark", "stream, epoch, seq"),
    ):
        sql = f"SELECT {columns} FROM {table} WHERE device = '{{}}' ORDER BY epoch, {columns.split(', ')[2]}"
        assert stored(kit, sql.format(together)) == stored(kit, sql.format(alone)), table
    assert stored(kit, f"SELECT COUNT(*) FROM record WHERE device = '{together}'") == [(13,)]


def test_syncs_of_many_devices_are_settled_together_and_two_of_one_after_the_other(kit: Kit, device: str) -> None:
    other, revoked = kit.enrol("other", "33" * 32), kit.enrol("revoked", "44" * 32)
    kit.db.write(lambda connection: connection.execute("UPDATE device SET revoked_at = 1 WHERE id = ?", (revoked,)))

    def delivery(who: str, *seqs: int, secret: str = "") -> ingest.Delivery:
        key = digest_of(secret) if secret else None
        return ingest.Delivery(who, request(details=[record(seq, "note", {}) for seq in seqs]), NOW, 30.0, key)

    deliveries = [
        delivery(device, 1, 2), delivery(other, 1), delivery(device, 2, 3), delivery(revoked, 1),
        delivery("d000", 1), delivery(other, 2, secret="wrong"), delivery(other, 2, secret="33" * 32),
    ]  # fmt: skip
    answers = kit.db.write(lambda connection: ingest.settle(kit.db.instance, connection, deliveries))
    refused = [number for number, answer in enumerate(answers) if isinstance(answer, UnauthorizedError)]
    assert refused == [3, 4, 5]
    acked = [answer.acked["details"] for answer in answers if not isinstance(answer, Exception)]
    assert acked == [(EPOCH, 2), (EPOCH, 1), (EPOCH, 3), (EPOCH, 2)]
    found = stored(kit, "SELECT device, seq FROM record ORDER BY seq")
    assert sorted(found) == sorted([(device, 1), (device, 2), (device, 3), (other, 1), (other, 2)])
    assert stored(kit, "SELECT COUNT(*) FROM gap") == [(0,)]


def test_a_new_device_is_told_its_state_whatever_it_claims_to_know(kit: Kit, device: str) -> None:
    generation = int(stored(kit, "SELECT value FROM meta WHERE key = 'generation'")[0][0])
    known = {"server_instance": kit.db.instance, "generation": generation}
    assert kit.sync(device, **known).desired != "unchanged"
    assert kit.sync(device, **known).desired == "unchanged"
    kit.enrol("another", "55" * 32)
    assert kit.sync(device, **known).desired == "unchanged", "a device that joins changes nothing for the others"


def test_a_bad_record_is_settled_with_its_reason_and_the_others_are_kept(kit: Kit, device: str) -> None:
    events = [
        record(1), record(2, "alarm", {"model": 3}), {**record(3), "payload": "text"}, record(4), {"nonsense": True},
    ]  # fmt: skip
    answer = kit.sync(device, events=events)
    assert answer.acked["events"] == (EPOCH, 4)
    assert {(item.seq, item.stream) for item in answer.refused} == {(2, "events"), (3, "events")}
    assert all(item.reason for item in answer.refused)
    assert kit.sync(device, events=events).acked["events"] == (EPOCH, 4)
    assert stored(kit, "SELECT seq FROM record ORDER BY seq") == [(1,), (4,)]


def test_a_wider_range_stands_for_those_in_it_and_other_reasons_stay(kit: Kit, device: str) -> None:
    def gap(seq: int, first: int, last: int, reason: str, count: int) -> dict:
        payload = {"epoch": EPOCH, "from_seq": first, "to_seq": last, "reason": reason, "count": count}
        return record(seq, "gap", payload)

    kit.sync(device, details=[record(30, "note", {})])
    kit.sync(device, details=[gap(31, 3, 9, "dropped", 7), gap(32, 4, 8, "merged", 5), gap(33, 40, 41, "dropped", 2)])
    kit.sync(device, details=[gap(34, 1, 29, "dropped", 24)])
    found = stored(kit, "SELECT from_seq, to_seq, reason, count FROM gap WHERE from_seq < 34 ORDER BY from_seq")
    assert found == [(1, 29, "dropped", 24), (4, 8, "merged", 5)]


def test_a_device_that_has_changed_is_meant_by_other_selectors(kit: Kit, device: str) -> None:
    kit.upload()
    kit.deploy(selector="ram_mb>=512")
    small, large = {"ram_bytes": 256 << 20}, {"ram_bytes": 1 << 30}
    answer = kit.sync(device, capabilities=small)
    assert not isinstance(answer.desired, str) and answer.desired.models == ()
    known = {"server_instance": answer.server_instance, "generation": answer.desired.generation}
    assert kit.sync(device, capabilities=small, **known).desired == "unchanged"
    answer = kit.sync(device, capabilities=large, **known)
    assert not isinstance(answer.desired, str) and [model.model for model in answer.desired.models] == ["gesture"]
    assert kit.sync(device, capabilities=large, **known).desired == "unchanged"


def test_a_jump_is_a_gap_until_the_device_declares_it(kit: Kit, device: str) -> None:
    kit.sync(device, details=[record(1, "note", {}), record(5, "note", {})])
    assert fleet.get_device(kit.db, device, NOW).gaps == 3
    declared = {"epoch": EPOCH, "from_seq": 2, "to_seq": 4, "reason": "dropped", "count": 3}
    kit.sync(device, details=[record(6, "gap", declared)])
    gaps = stored(kit, "SELECT from_seq, to_seq, reason FROM gap")
    assert (2, 4, "dropped") in gaps


def test_a_declaration_of_a_part_leaves_the_rest_open(kit: Kit, device: str) -> None:
    kit.sync(device, details=[record(1, "note", {}), record(11, "note", {})])
    part = {"epoch": EPOCH, "from_seq": 2, "to_seq": 5, "reason": "dropped", "count": 4}
    kit.sync(device, details=[record(12, "gap", part)])
    gaps = sorted(stored(kit, "SELECT from_seq, to_seq, COALESCE(reason, ''), count FROM gap"))
    assert gaps == [(2, 5, "dropped", 4), (6, 10, "", 5)]
    assert fleet.get_device(kit.db, device, NOW).gaps == 9


def test_an_absurd_jump_breaks_nothing(kit: Kit, device: str) -> None:
    for seq in (1, 2**62, 2**63 - 1):
        assert kit.sync(device, events=[record(seq)]).acked["events"] == (EPOCH, seq)
    other = record(2**63 - 1, epoch="00000000000000bb")
    kit.sync(device, events=[other])
    assert fleet.get_device(kit.db, device, NOW).gaps > 0


def test_epochs_of_a_stream_are_bounded(kit: Kit, device: str) -> None:
    for start in range(0, EPOCHS_MAX, 5000):
        kit.sync(device, events=[record(1, "note", {}, epoch=f"{start + index:016x}") for index in range(5000)])
    new, known = record(1, epoch="f" * 16), record(2, epoch="0" * 16)
    answer = kit.sync(device, events=[new, known])
    assert [(item.epoch, item.seq) for item in answer.refused] == [("f" * 16, 1)]
    assert str(EPOCHS_MAX) in answer.refused[0].reason and answer.acked["events"] == ("0" * 16, 2)
    assert stored(kit, "SELECT COUNT(*) FROM watermark") == [(EPOCHS_MAX,)]
    assert kit.sync(device, details=[new]).refused == ()


def test_epochs_are_apart_and_unknown_types_are_kept(kit: Kit, device: str) -> None:
    kit.sync(device, events=[record(1, "telepathy", {"deep": [1, 2]})])
    answer = kit.sync(device, events=[record(1, epoch="00000000000000bb")])
    assert answer.acked["events"] == ("00000000000000bb", 1)
    assert stored(kit, "SELECT type FROM record ORDER BY type") == [("label",), ("telepathy",)]


@pytest.mark.parametrize("years", [-10, 10])
def test_a_clock_that_is_years_off_gives_the_servers_times(kit: Kit, device: str, years: int) -> None:
    wrong = NOW + years * 365 * 86400
    kit.sync(device, anchor=Anchor(10_000_000_000, wrong), events=[record(1, "alarm", alarm())])
    event = drifthub.list_events(kit.db, device, None, None, 1).items[0]
    assert event.at_known and event.at == pytest.approx(NOW - 6)  # 4 s after boot, synced 10 s after boot
    offset = fleet.get_device(kit.db, device, NOW).clock_offset_s
    assert offset == pytest.approx(wrong - NOW)


def test_a_boot_that_was_never_anchored_is_bracketed(kit: Kit, device: str) -> None:
    kit.sync(device, events=[record(1, "alarm", alarm(), boot="lost-boot")])
    event = drifthub.list_events(kit.db, device, None, None, 1).items[0]
    assert event.at is None and not event.at_known and event.received_at == NOW


def test_metrics_keep_their_quantiles(kit: Kit, device: str) -> None:
    latency = np.random.default_rng(1).lognormal(4, 0.5, 500).tolist()
    confidence = np.random.default_rng(2).uniform(0.3, 1, 500).tolist()
    kit.sync(device, details=[record(1, "summary", summary(latency, confidence))])
    point = reports.query_metrics(kit.db, reports.Question(device, model="gesture")).points[0]
    assert point.windows == 500 and point.dropped_samples == 1 and point.labels == {"a": 500}
    assert point.confidence_mean == pytest.approx(np.mean(confidence))
    for got, values, q in (
        (point.latency_p50_us, latency, 0.5),
        (point.latency_p95_us, latency, 0.95),
        (point.confidence_p5, confidence, 0.05),
    ):
        assert got == pytest.approx(np.quantile(values, q, method="lower"), rel=0.0102)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("alarm", alarm(window="soon")),
        ("alarm", alarm(histogram={"reference": ["x"], "current": [], "edges": [], "labels": []})),
        ("alarm", alarm(model="x" * 5000)),
        ("summary", {"model": "m"}),
        ("summary", summary([1], [1], windows="many")),
        ("summary", summary([1], [1], labels={"a": -1})),
        ("deployment", {"deployment": 1, "model": "m", "version": "1", "sha256": "x", "state": "flying", "reason": ""}),
        ("label", {"prediction": 1, "label": "x"}),
        ("gap", {"epoch": EPOCH, "from_seq": 9, "to_seq": 2, "reason": "x", "count": 1}),
        ("gap", {"epoch": EPOCH, "from_seq": 2, "to_seq": 9, "reason": "x", "count": 9}),
        ("gap", {"epoch": "not hex", "from_seq": 2, "to_seq": 9, "reason": "x", "count": 1}),
    ],
)
def test_lying_payloads_are_refused_one_by_one(kit: Kit, device: str, kind: str, payload: dict) -> None:
    answer = kit.sync(device, events=[record(1, kind, payload), record(2)])
    assert [item.seq for item in answer.refused] == [1]
    assert answer.acked["events"] == (EPOCH, 2)


def test_deployment_states_and_running_models_are_shown(kit: Kit, device: str) -> None:
    view = kit.upload()
    deployment = kit.deploy()
    answer = kit.sync(device)
    assert answer.desired != "unchanged"
    state = {
        "deployment": deployment.id, "model": "gesture", "version": "1.0.0", "sha256": view.sha256,
        "state": "refused", "reason": "no room",
    }  # fmt: skip
    running = (RunningModel("gesture", "0.9", "0" * 64, "confirmed"),)
    kit.sync(device, events=[record(1, "deployment", state)], running=running)
    from tinysphere.deployments import get_deployment

    shown = get_deployment(kit.db, deployment.id).devices[0]
    assert (shown.state, shown.reason) == ("refused", "no room")
    assert fleet.get_device(kit.db, device, NOW).running[0].version == "0.9"


def test_a_device_that_knows_the_state_is_not_told_again(kit: Kit, device: str) -> None:
    kit.upload()
    kit.deploy()
    first = kit.sync(device)
    assert not isinstance(first.desired, str)
    known = {"generation": first.desired.generation, "server_instance": first.server_instance}
    assert kit.sync(device, **known).desired == "unchanged"
    assert kit.sync(device, **{**known, "server_instance": "another"}).desired != "unchanged"
    kit.upload(__import__("models").make_package(version="2.0.0"))
    kit.deploy("2.0.0")
    news = kit.sync(device, **known).desired
    assert not isinstance(news, str) and [model.version for model in news.models] == ["2.0.0"]


def test_what_is_stored_is_what_was_sent(kit: Kit, device: str) -> None:
    sent = record(1, "note", {"text": "ä\u2603", "number": 1.5, "nothing": None})
    kit.sync(device, details=[sent])
    assert json.loads(stored(kit, "SELECT payload FROM record")[0][0]) == sent["payload"]
    assert request().wire == 1
