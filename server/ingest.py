"""What a sync means: records are settled in order, each exactly once; the answer tells the device what to run.

The syncs that wait for the writer are settled together: what they only add is written with one statement a table.

A record's id is (device, stream, epoch, seq). One watermark per (device, stream, epoch) holds the last settled seq:
what is not above it was seen before and changes nothing. A refused record is settled too, its reason is kept. A seq
that jumps leaves a gap row, until a `gap` record says why. Everything of one sync is one transaction.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeAlias, cast

import msgspec
from tinylcm.checks import Fields
from tinylcm.errors import WireError
from tinylcm.types import Json, Stream
from tinylcm.wire import (
    STREAMS,
    Desired,
    Refused,
    SyncRequest,
    SyncResponse,
    record_reader,
    with_ids,
)

from . import boards, commands, deployments, distributions, feed, logs, settings
from .auth import check_device
from .db import Batch, Connection, Database, Row, Value, row, rows
from .errors import UnauthorizedError
from .judgements import Judgements
from .rollups import Rollup, Rollups
from .sql import rows_of

DEPLOYMENT_STATES: Final = frozenset(
    {"offered", "downloading", "staged", "refused", "trial", "confirmed", "rolled_back"}
)
LABELS_MAX: Final = 10_000
EPOCH: Final = re.compile(r"[0-9a-f]{16}")
REASON_CHARACTERS_MAX: Final = 1000
BOARD_UID_MAX: Final = 64
EPOCHS_MAX: Final = 10_000  # a stream of a device; an honest journal draws a new one only when it was lost


COLUMNS: Final = {
    "record": ("device", "stream", "epoch", "seq", "type", "boot", "boot_ns", "at", "received_at", "payload"),
    "refused_record": ("device", "stream", "epoch", "seq", "reason", "received_at"),
    "drift_event": (
        "device", "model", "version", "monitor", "detector", "signal", "statistic", "threshold", '"window"', "suspect",
        "at", "received_at", "histogram", "p_value", "arl0", "monitors", "board",
    ),
    "summary": (
        "device", "model", "version", "at", "received_at", "windows", "confidence_mean", "confidence_p5",
        "confidence_p50", "latency_p50_us", "latency_p95_us", "latency_p99_us", "rss_bytes", "cpu_percent", "labels",
        "errors", "dropped_samples", "payload",
    ),
    "label": ("device", "prediction", "label", "at", "received_at"),
    "feed": feed.COLUMNS,
    "log": logs.COLUMNS,
}  # fmt: skip
_LATEST: Final = COLUMNS["summary"][:-1]  # without the payload
_AT: Final = _LATEST.index("at")
_LATEST_HEAD: Final = f"INSERT INTO latest ({', '.join(_LATEST)})"
_LATEST_TAIL: Final = (
    f"ON CONFLICT (device, model) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _LATEST[2:])}"
    " WHERE excluded.at >= latest.at"
)
_DEVICE: Final = (
    "id", "secret_sha256", "next_secret_sha256", "revoked_at", "retired_at", "last_seen_at", "capabilities", "boards",
)  # fmt: skip
_MARK: Final = ("device", "stream", "epoch", "seq")
_MARK_HEAD: Final = "INSERT INTO watermark (device, stream, epoch, seq)"
_MARK_TAIL: Final = "ON CONFLICT (device, stream, epoch) DO UPDATE SET seq = excluded.seq"
_ANCHOR_HEAD: Final = "INSERT INTO anchor (device, boot, boot_ns, device_wall_s, received_at)"
_ANCHOR_TAIL: Final = (
    "ON CONFLICT (device, boot) DO UPDATE SET boot_ns = excluded.boot_ns,"
    " device_wall_s = excluded.device_wall_s, received_at = excluded.received_at"
)
_SEEN_HEAD: Final = (
    "UPDATE device SET last_seen_at = CAST(v.column2 AS DOUBLE PRECISION),"
    " clock_offset_s = CAST(v.column3 AS DOUBLE PRECISION), running = v.column4,"
    " next_sync_s = CAST(v.column5 AS DOUBLE PRECISION), capabilities = v.column6,"
    " boards = CAST(v.column7 AS BIGINT) FROM ("
)
_SEEN_TAIL: Final = ") AS v WHERE device.id = v.column1"


_Named: TypeAlias = list[tuple[tuple[str, int], object]]  # records with their ids, (epoch, seq)


class Delivery(msgspec.Struct, frozen=True):
    """One device's sync. With `key_sha256` its key is checked again in the transaction: it may be over by now."""

    device: str
    request: SyncRequest
    now_s: float
    next_sync_s: float
    key_sha256: str | None = None


class _Group:
    """What the syncs of one transaction add: it waits for one statement a table."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.added: dict[str, list[tuple[Value, ...]]] = {}
        self.latest: dict[tuple[str, str], tuple[Value, ...]] = {}
        self.marks: dict[tuple[str, Stream, str], int] = {}
        self.judgements: dict[str, Judgements] = {}
        self.rollups = Rollups(connection)
        self.reader = record_reader()

    def flush(self) -> None:
        """Write the rows, the sums and the watermarks."""
        for table, values in self.added.items():
            self.connection.insert(table, COLUMNS[table], values)
        self.rollups.flush()
        for judgements in self.judgements.values():
            judgements.flush(self.connection)
        self.connection.bulk(_LATEST_HEAD, list(self.latest.values()), _LATEST_TAIL)
        self.connection.bulk(_MARK_HEAD, [(*key, seq) for key, seq in self.marks.items()], _MARK_TAIL)


class _Batch:
    """One device's records of one stream."""

    def __init__(self, group: _Group, delivery: Delivery, stream: Stream) -> None:
        self.connection, self.device, self.stream = group.connection, delivery.device, stream
        self.now_s = delivery.now_s
        self.lines = 0  # of its log
        self._group = group

    def add(self, table: str, *values: Value) -> None:
        """A row, in the order of `COLUMNS`."""
        self._group.added.setdefault(table, []).append(values)

    def tell(self, type: str, model: str | None = None, **body: object) -> None:
        """Let those hear of it who follow what happens."""
        self.add("feed", *feed.values_of(type, self.now_s, self.device, model, **body))

    @property
    def judgements(self) -> Judgements:
        """What the device has predicted, and what was true."""
        known = self._group.judgements.get(self.device)
        if known is None:
            known = self._group.judgements[self.device] = Judgements(self.device, self.now_s)
        return known

    def rollup(self, model: str, version: str, time_s: float, rollup: Rollup) -> None:
        """Count a summary."""
        self._group.rollups.add(self.device, model, version, time_s, rollup)

    def note_latest(self, model: str, values: tuple[Value, ...]) -> None:
        """The newest values of a model, in the order of the summary's columns; an older one changes nothing."""
        known = self._group.latest.get((self.device, model))
        if known is None or cast("float", known[_AT]) <= cast("float", values[_AT]):
            self._group.latest[self.device, model] = values


class _Times:
    """Server time of a device's records, from the anchors of its boots."""

    def __init__(self, connection: Connection, delivery: Delivery) -> None:
        self._connection, self._device = connection, delivery.device
        request = delivery.request
        self._known: dict[str, tuple[int, float] | None] = {request.boot: (request.anchor.boot_ns, delivery.now_s)}

    def at(self, boot: str, boot_ns: int) -> float | None:
        """Unix seconds on the server's clock, or None when the boot was never anchored."""
        if boot not in self._known:
            sql = "SELECT boot_ns, received_at FROM anchor WHERE device = ? AND boot = ?"
            found = row(self._connection, sql, (self._device, boot))
            self._known[boot] = (found["boot_ns"], found["received_at"]) if found else None
        anchor = self._known[boot]
        return None if anchor is None else anchor[1] - (anchor[0] - boot_ns) / 1e9


def sync(db: Database, device: str, request: SyncRequest, now_s: float, next_sync_s: float) -> SyncResponse:
    """Settle a device's records and say what it should run; returns after the commit.

    Raises:
        UnauthorizedError: there is no such device any more.
        BusyError: too many changes wait; nothing was settled.
        StorageError: the disk refuses; nothing was settled.
    """
    return db.write(lambda connection: sync_in(connection, db.instance, device, request, now_s, next_sync_s))


def sync_in(
    connection: Connection, instance: str, device: str, request: SyncRequest, now_s: float, next_sync_s: float
) -> SyncResponse:
    """The body of `sync`, in a writing job."""
    answer = settle(instance, connection, [Delivery(device, request, now_s, next_sync_s)])[0]
    if isinstance(answer, Exception):
        raise answer
    return answer


@functools.lru_cache(64)
def batch_of(instance: str) -> Batch[Delivery, SyncResponse]:
    """`settle` for `Database.batched`: always the same one, so that its deliveries meet."""
    return functools.partial(settle, instance)


def settle(instance: str, connection: Connection, deliveries: Sequence[Delivery]) -> Sequence[SyncResponse | Exception]:
    """The syncs of many devices in one transaction: the answer to each, or why it is refused.

    Two of one device are settled one after the other.
    """
    answers: dict[int, SyncResponse | Exception] = {}
    waiting = list(enumerate(deliveries))
    while waiting:
        devices: set[str] = set()
        now: list[tuple[int, Delivery]] = []
        later: list[tuple[int, Delivery]] = []
        for numbered in waiting:
            (later if numbered[1].device in devices else now).append(numbered)
            devices.add(numbered[1].device)
        found = _settle_round(instance, connection, [delivery for _, delivery in now])
        answers.update(zip((number for number, _ in now), found, strict=True))
        waiting = later
    return [answers[number] for number in range(len(deliveries))]


def _settle_round(
    instance: str, connection: Connection, deliveries: Sequence[Delivery]
) -> list[SyncResponse | Exception]:
    answers: dict[str, SyncResponse | Exception] = {}
    known = _devices(connection, deliveries)
    admitted: list[tuple[Delivery, bool]] = []
    for delivery in deliveries:
        device = known.get(delivery.device)
        try:
            check_device(connection, delivery.device, device, delivery.key_sha256)
        except UnauthorizedError as error:
            answers[delivery.device] = error
            continue
        assert device is not None
        admitted.append((delivery, device["last_seen_at"] is None))
    changed = _note_devices(connection, [delivery for delivery, _ in admitted], known)
    group = _Group(connection)
    marks = _Marks(connection, [delivery for delivery, _ in admitted])
    settled = [_settle(group, marks, delivery) for delivery, _ in admitted]
    group.flush()
    planner = deployments.Planner(connection)
    commanded = commands.waiting_for(connection, [delivery.device for delivery, _ in admitted])
    for (delivery, is_new), (acked, refused) in zip(admitted, settled, strict=True):
        device_id, request, now_s = delivery.device, delivery.request, delivery.now_s
        desired: Desired | None = None
        is_known = request.server_instance == instance and request.generation == planner.generation
        if is_new or device_id in changed or not is_known:
            planned = planner.plan(device_id)
            names = [model.model for model in planned.desired.models]
            config = settings.desired_for(connection, device_id, names)
            desired = replace(planned.desired, config=config)
            deployments.offer(connection, device_id, planned, now_s)
        downlink: tuple[Json, ...] = ()
        if device_id in commanded:
            downlink = commands.deliver(connection, device_id, request.downlink_cursor, now_s)
        answers[device_id] = SyncResponse(
            acked=acked,
            server_instance=instance,
            server_time=now_s,
            next_sync_s=delivery.next_sync_s,
            desired="unchanged" if desired is None else desired,
            downlink=downlink,
            refused=tuple(refused),
        )
    return [answers[delivery.device] for delivery in deliveries]


def _devices(connection: Connection, deliveries: Sequence[Delivery]) -> dict[str, Row]:
    # Of two processes that got the same device's records the second waits here, and then sees the other's watermarks.
    lock = "ORDER BY id FOR UPDATE" if connection.kind == "postgresql" else ""
    keys = sorted({(delivery.device,) for delivery in deliveries})
    return {found["id"]: found for found in rows_of(connection, "device", _DEVICE, ("id",), keys, lock)}


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _note_devices(connection: Connection, deliveries: Sequence[Delivery], known: Mapping[str, Row]) -> set[str]:
    """Write down when and how they came. Returns those that report other capabilities, or have boards where they had
    none: other selectors and packages may mean them."""
    changed: set[str] = set()
    seen: list[tuple[Value, ...]] = []
    anchors: list[tuple[Value, ...]] = []
    for delivery in deliveries:
        request, device, now_s = delivery.request, delivery.device, delivery.now_s
        capabilities = before = known[device]["capabilities"]
        if request.capabilities and (capabilities := _json(request.capabilities)) != before:
            changed.add(device)
        running = _json(request.running)
        count = had = known[device]["boards"]
        if request.boards or count:
            count = boards.note(connection, device, request.boards, now_s)
        if bool(had) != bool(count):
            changed.add(device)
        offset_s = request.anchor.wall_s - now_s
        seen.append((device, now_s, offset_s, running, delivery.next_sync_s, capabilities, count))
        anchors.append((device, request.boot, request.anchor.boot_ns, request.anchor.wall_s, now_s))
    connection.bulk(_SEEN_HEAD, seen, _SEEN_TAIL)
    connection.bulk(_ANCHOR_HEAD, anchors, _ANCHOR_TAIL)
    return changed


class _Marks:
    """The watermarks of everything that some syncs name, read at once."""

    def __init__(self, connection: Connection, deliveries: Sequence[Delivery]) -> None:
        self._connection = connection
        self.items: dict[tuple[str, Stream], _Named] = {}
        keys: dict[tuple[str, str, str], None] = {}
        for delivery in deliveries:
            for stream, items in (("events", delivery.request.events), ("details", delivery.request.details)):
                if not items:
                    continue
                # What cannot be named cannot be settled by itself; what follows settles it.
                named, epochs = with_ids(items if isinstance(items, list) else list(items))
                self.items[delivery.device, cast("Stream", stream)] = named
                for epoch in epochs:
                    keys[delivery.device, stream, epoch] = None
        self._seqs = {
            (found["device"], found["stream"], found["epoch"]): int(found["seq"])
            for found in rows_of(connection, "watermark", _MARK, _MARK[:3], list(keys))
        }
        self._epochs: dict[tuple[str, str], int] = {}

    def seq(self, device: str, stream: str, epoch: str) -> int:
        """The last settled one; 0 when there is none."""
        return self._seqs.get((device, stream, epoch), 0)

    def admit_epoch(self, device: str, stream: str) -> bool:
        """Whether the device may begin one more: it cannot fill the disk with epochs."""
        key = device, stream
        if key not in self._epochs:
            sql = "SELECT COUNT(*) AS n FROM watermark WHERE device = ? AND stream = ?"
            found = row(self._connection, sql, key)
            self._epochs[key] = int(found["n"]) if found else 0
        if self._epochs[key] >= EPOCHS_MAX:
            return False
        self._epochs[key] += 1
        return True


def _settle(
    group: _Group, marks: _Marks, delivery: Delivery
) -> tuple[dict[str, tuple[str, int] | None], list[Refused]]:
    """What is acknowledged in each stream, and what is refused."""
    acked: dict[str, tuple[str, int] | None] = {}
    refused: list[Refused] = []
    times = _Times(group.connection, delivery)
    for stream in STREAMS:
        named = marks.items.get((delivery.device, stream))
        acked[stream] = named[-1][0] if named else None
        if named:
            _settle_stream(group, marks, delivery, stream, named, times, refused)
    return acked, refused


def _settle_stream(
    group: _Group,
    marks: _Marks,
    delivery: Delivery,
    stream: Stream,
    named: _Named,
    times: _Times,
    refused: list[Refused],
) -> None:
    device, now_s, connection = delivery.device, delivery.now_s, group.connection
    boot, anchor, reader = delivery.request.boot, delivery.request.anchor, group.reader
    seqs: dict[str, int] = {}
    batch, stored = _Batch(group, delivery, stream), group.added.setdefault("record", [])
    place = 0
    while place < len(named):
        (epoch, seq), item = named[place]
        place += 1
        last = seqs.get(epoch)
        if last is None:
            last = marks.seq(device, stream, epoch)
            if last == 0 and not marks.admit_epoch(device, stream):  # no row is kept of it either
                reason = f"the device has used {EPOCHS_MAX} epochs on stream {stream}, the most that are taken"
                refused.append(Refused(stream, epoch, seq, f"{reason}; enrol it again"))
                continue
            seqs[epoch] = last
        if seq <= last:
            continue
        if seq > last + 1:
            _gap(connection, device, stream, epoch, last + 1, seq - 1, None, seq - 1 - last, now_s)
        seqs[epoch] = seq
        try:
            kind, its_boot, boot_ns, payload = reader.read(item)
            at = times.at(its_boot, boot_ns)
            handler = _HANDLERS.get(kind)
            if handler is not None:
                handler(batch, Fields(payload, kind, WireError), at)
        except WireError as error:
            reason = str(error)[:REASON_CHARACTERS_MAX]
            refused.append(Refused(stream, epoch, seq, reason))
            batch.add("refused_record", device, stream, epoch, seq, reason, now_s)
            continue
        text = msgspec.json.encode(payload).decode()
        stored.append((device, stream, epoch, seq, kind, its_boot, boot_ns, at, now_s, text))
        after = reader.rows(
            named,
            place,
            seq,
            device,
            stream,
            _HANDLERS,
            boot,
            anchor.boot_ns,
            now_s,
            now_s,
            msgspec.json.encode,
            stored,
        )
        seqs[epoch] += after - place
        place = after
    for epoch, seq in seqs.items():
        group.marks[device, stream, epoch] = seq


def _gap(
    connection: Connection,
    device: str,
    stream: str,
    epoch: str,
    from_seq: int,
    to_seq: int,
    reason: str | None,
    count: int,
    now_s: float,
) -> None:
    if reason is not None:
        # A device joins what it has declared: a wider range stands for those in it, and says why of a jump.
        connection.execute(
            "DELETE FROM gap WHERE device = ? AND stream = ? AND epoch = ? AND from_seq >= ? AND to_seq <= ?"
            " AND (reason IS NULL OR reason = ?)",
            (device, stream, epoch, from_seq, to_seq, reason),
        )
    connection.execute(
        "INSERT INTO gap (device, stream, epoch, from_seq, to_seq, reason, count, received_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device, stream, epoch, from_seq, to_seq)"
        " DO UPDATE SET reason = COALESCE(excluded.reason, gap.reason), count = excluded.count",
        (device, stream, epoch, from_seq, to_seq, reason, count, now_s),
    )


# What each known type does beside being stored. Each looks at everything it was sent before it changes anything, for
# a refused record must leave nothing behind. ------------------------------------------------------------


def _optional_number(fields: Fields, key: str) -> float | None:
    return None if fields.value.get(key) is None else fields.number(key)


def _alarm(batch: _Batch, fields: Fields, at: float | None) -> None:
    histogram = None
    if fields.value.get("histogram") is not None:
        table = fields.table("histogram")
        histogram = json.dumps(
            {
                "reference": table.numbers("reference", length_max=10_000),
                "current": table.numbers("current", length_max=10_000),
                "edges": table.numbers("edges", length_max=10_001) if "edges" in table else [],
                "labels": table.texts("labels", []),
            }
        )
    names = [fields.text(key) for key in ("model", "version", "monitor", "detector", "signal")]
    model, version, monitor, _, signal = names
    statistic, threshold = (_optional_number(fields, key) for key in ("statistic", "threshold"))
    board = fields.text("board", "", length_max=BOARD_UID_MAX)
    batch.add(
        "drift_event",
        batch.device,
        *names,
        statistic,
        threshold,
        *(fields.natural(key, low=-1) for key in ("window", "suspect")),
        at,
        batch.now_s,
        histogram,
        *(_optional_number(fields, key) for key in ("p_value", "arl0")),
        fields.natural("monitors", 1, high=1_000_000),
        board,
    )
    told = {"version": version, "monitor": monitor, "signal": signal, "statistic": statistic, "threshold": threshold}
    if board:
        told["board"] = board
    batch.tell("drift", model, **told)


def _summary(batch: _Batch, fields: Fields, at: float | None) -> None:
    confidence = distributions.read(fields.table("confidence"))
    latency = distributions.read(fields.table("latency_us"))
    labels = fields.table("labels", {})
    if len(labels.value) > LABELS_MAX:
        raise fields.fail("labels", f"has more than {LABELS_MAX} labels")
    windows = fields.natural("windows")
    cpu_percent = _optional_number(fields, "cpu_percent")
    rollup = Rollup(
        windows,
        fields.natural("errors", 0),
        fields.natural("dropped_samples", 0),
        latency,
        confidence,
        {label: labels.natural(label) for label in labels.value},
        None if fields.value.get("rss_bytes") is None else fields.natural("rss_bytes"),
        cpu_percent,
        0 if cpu_percent is None else max(windows, 1),
    )
    model, version = fields.text("model"), fields.text("version")
    payload = _json(fields.value)  # what JSON cannot carry was refused with the record
    # A record is made before it is received: a time that lies ahead is none.
    time_s = batch.now_s if at is None or at > batch.now_s else max(at, 0.0)
    batch.rollup(model, version, time_s, rollup)
    measured: tuple[Value, ...] = (
        windows,
        confidence.mean,
        *confidence.quantiles((0.05, 0.5)),
        *latency.quantiles((0.5, 0.95, 0.99)),
        rollup.rss_bytes,
        rollup.cpu_percent,
        _json(rollup.labels),
        rollup.errors,
        rollup.dropped_samples,
    )
    batch.note_latest(model, (batch.device, model, version, time_s, batch.now_s, *measured))
    batch.add("summary", batch.device, model, version, at, batch.now_s, *measured, payload)


def _label(batch: _Batch, fields: Fields, at: float | None) -> None:
    prediction, label = fields.text("prediction"), fields.text("label")
    batch.add("label", batch.device, prediction, label, at, batch.now_s)
    batch.judgements.true(prediction, label, at)


def _sample(batch: _Batch, fields: Fields, at: float | None) -> None:
    batch.judgements.predicted(fields.value, at)


def _deployment(batch: _Batch, fields: Fields, at: float | None) -> None:
    state = fields.text("state")
    if state not in DEPLOYMENT_STATES:
        raise fields.fail("state", f"is {state!r}; expected one of {', '.join(sorted(DEPLOYMENT_STATES))}")
    number, reason = fields.natural("deployment"), fields.text("reason", "", length_max=10_000)
    if row(batch.connection, "SELECT 1 FROM deployment WHERE id = ?", (number,)) is None:
        return  # installed by hand on the device (number 0), or of a server whose database was restored
    if board := fields.text("board", "", length_max=BOARD_UID_MAX):
        known = boards.BoardState(board, state, reason[:REASON_CHARACTERS_MAX], batch.now_s)
        boards.note_state(batch.connection, number, batch.device, known)
        batch.tell("deployment", fields.text("model", "") or None, deployment=number, board=board, state=state)
        return
    batch.connection.execute(
        "INSERT INTO device_deployment (deployment, device, state, reason, updated_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (deployment, device) DO UPDATE SET state = excluded.state, reason = excluded.reason,"
        " updated_at = excluded.updated_at",
        (number, batch.device, state, reason[:REASON_CHARACTERS_MAX], batch.now_s),
    )
    model = fields.text("model", "") or None
    batch.tell("deployment", model, deployment=number, state=state, reason=reason)


def _device(batch: _Batch, fields: Fields, at: float | None) -> None:
    batch.connection.execute("UPDATE device SET capabilities = ? WHERE id = ?", (_json(fields.value), batch.device))


def _declared_gap(batch: _Batch, fields: Fields, at: float | None) -> None:
    from_seq, to_seq = fields.natural("from_seq", low=1), fields.natural("to_seq", low=1)
    if to_seq < from_seq:
        raise fields.fail("to_seq", f"is {to_seq}, before from_seq {from_seq}")
    epoch, reason = fields.text("epoch"), fields.text("reason", length_max=REASON_CHARACTERS_MAX)
    if not EPOCH.fullmatch(epoch):
        raise fields.fail("epoch", "expected 16 hexadecimal digits")
    count = fields.natural("count", high=to_seq - from_seq + 1)
    connection, device, stream, now_s = batch.connection, batch.device, batch.stream, batch.now_s
    # What the jump of seq had left open is now explained: the declaration takes its part out of it.
    where = "device = ? AND stream = ? AND epoch = ? AND reason IS NULL AND from_seq <= ? AND to_seq >= ?"
    values = (device, stream, epoch, to_seq, from_seq)
    for hole in rows(connection, f"SELECT from_seq, to_seq FROM gap WHERE {where}", values):  # noqa: S608 (constants)
        for low, high in ((hole["from_seq"], from_seq - 1), (to_seq + 1, hole["to_seq"])):
            if low <= high:
                _gap(connection, device, stream, epoch, low, high, None, high - low + 1, now_s)
    connection.execute(f"DELETE FROM gap WHERE {where}", values)  # noqa: S608 (constants)
    _gap(connection, device, stream, epoch, from_seq, to_seq, reason, count, now_s)


def _command_result(batch: _Batch, fields: Fields, at: float | None) -> None:
    commands.note_result(batch.connection, batch.device, fields, batch.now_s)
    batch.tell("command", None, **{key: fields.value.get(key) for key in ("command", "name", "state", "detail")})


def _config_result(batch: _Batch, fields: Fields, at: float | None) -> None:
    settings.note_result(batch.connection, batch.device, fields, batch.now_s)
    batch.tell("config", None, **{key: fields.value.get(key) for key in ("version", "state", "reason")})


def _log(batch: _Batch, fields: Fields, at: float | None) -> None:
    level, logger, message, dropped = logs.read(fields)
    if batch.lines >= logs.A_SYNC_MAX:
        raise WireError(f"log: more than {logs.A_SYNC_MAX} lines in one sync; log less, or at a higher level")
    batch.lines += 1
    batch.add("log", batch.device, level, logger, message, dropped, at, batch.now_s)


_Handler = Callable[[_Batch, Fields, "float | None"], None]
_HANDLERS: Final[Mapping[str, _Handler]] = {
    "alarm": _alarm,
    "summary": _summary,
    "label": _label,
    "sample": _sample,
    "deployment": _deployment,
    "device": _device,
    "gap": _declared_gap,
    "command_result": _command_result,
    "config_result": _config_result,
    "log": _log,
}
