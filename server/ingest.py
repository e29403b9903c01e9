"""What a sync means: records are settled in order, each exactly once; the answer tells the device what to run.

A record's id is (device, stream, epoch, seq). One watermark per (device, stream, epoch) holds the last settled seq:
what is not above it was seen before and changes nothing. A refused record is settled too, its reason is kept. A seq
that jumps leaves a gap row, until a `gap` record says why. Everything of one sync is one transaction.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Final, cast

import msgspec
from tinylcm.checks import Fields
from tinylcm.errors import WireError
from tinylcm.types import Record, Stream
from tinylcm.wire import (
    STREAMS,
    Desired,
    Refused,
    SyncRequest,
    SyncResponse,
    finite,
    record_from_json,
    record_id,
)

from . import boards, commands, deployments, distributions, feed, logs, settings
from .db import Connection, Database, Value, meta, row, rows
from .judgements import Judgements
from .rollups import Rollup, Rollups

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
_LATEST_SQL: Final = (
    f"INSERT INTO latest ({', '.join(_LATEST)}) VALUES ({', '.join('?' * len(_LATEST))})"  # noqa: S608 (constants)
    f" ON CONFLICT (device, model) DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in _LATEST[2:])}"
    " WHERE excluded.at >= latest.at"
)


@dataclass(slots=True)
class _Batch:
    """One device's records of one stream: what is only added waits for one statement a table."""

    connection: Connection
    device: str
    stream: Stream
    now_s: float
    added: dict[str, list[tuple[Value, ...]]] = field(default_factory=dict)
    latest: dict[str, tuple[Value, ...]] = field(default_factory=dict)
    rollups: Rollups = field(init=False)
    judgements: Judgements = field(init=False)

    def __post_init__(self) -> None:
        self.rollups = Rollups(self.connection, self.device)
        self.judgements = Judgements(self.device, self.now_s)

    def add(self, table: str, *values: Value) -> None:
        """A row, in the order of `COLUMNS`."""
        self.added.setdefault(table, []).append(values)

    def tell(self, type: str, model: str | None = None, **body: object) -> None:
        """Let those hear of it who follow what happens."""
        self.add("feed", *feed.values_of(type, self.now_s, self.device, model, **body))

    def note_latest(self, model: str, values: tuple[Value, ...]) -> None:
        """The newest values of a model, in the order of the summary's columns; an older one changes nothing."""
        known = self.latest.get(model)
        if known is None or cast("float", known[_AT]) <= cast("float", values[_AT]):
            self.latest[model] = values

    def flush(self) -> None:
        """Write the rows and the sums."""
        for table, values in self.added.items():
            self.connection.insert(table, COLUMNS[table], values)
        self.rollups.flush()
        self.judgements.flush(self.connection)
        self.connection.executemany(_LATEST_SQL, list(self.latest.values()))


class _Times:
    """Server time of a device's records, from the anchors of its boots."""

    def __init__(self, connection: Connection, device: str) -> None:
        self._connection, self._device = connection, device
        self._known: dict[str, tuple[int, float] | None] = {}

    def at(self, record: Record) -> float | None:
        """Unix seconds on the server's clock, or None when the boot was never anchored."""
        if record.boot not in self._known:
            found = row(
                self._connection,
                "SELECT boot_ns, received_at FROM anchor WHERE device = ? AND boot = ?",
                (self._device, record.boot),
            )
            self._known[record.boot] = (found["boot_ns"], found["received_at"]) if found else None
        anchor = self._known[record.boot]
        return None if anchor is None else anchor[1] - (anchor[0] - record.boot_ns) / 1e9


def sync(db: Database, device: str, request: SyncRequest, now_s: float, next_sync_s: float) -> SyncResponse:
    """Settle a device's records and say what it should run; returns after the commit.

    Raises:
        BusyError: too many changes wait; nothing was settled.
        StorageError: the disk refuses; nothing was settled.
    """
    return db.write(lambda connection: sync_in(connection, db.instance, device, request, now_s, next_sync_s))


def sync_in(
    connection: Connection, instance: str, device: str, request: SyncRequest, now_s: float, next_sync_s: float
) -> SyncResponse:
    """The body of `sync`, in a writing job."""
    is_changed = _note_device(connection, device, request, now_s, next_sync_s)
    times = _Times(connection, device)
    acked: dict[str, tuple[str, int] | None] = {}
    refused: list[Refused] = []
    batches: dict[Stream, Sequence[object]] = {"events": request.events, "details": request.details}
    for stream in STREAMS:
        acked[stream] = _settle(connection, device, stream, batches[stream], times, now_s, refused)
    desired: Desired | None = None
    is_known = request.server_instance == instance and request.generation == int(meta(connection, "generation"))
    if is_changed or not is_known:
        planned = deployments.plan(connection, device)
        names = [model.model for model in planned.desired.models]
        config = settings.desired_for(connection, device, names)
        desired = replace(planned.desired, config=config)
        deployments.offer(connection, device, planned, now_s)
    return SyncResponse(
        acked=acked,
        server_instance=instance,
        server_time=now_s,
        next_sync_s=next_sync_s,
        desired="unchanged" if desired is None else desired,
        downlink=commands.deliver(connection, device, request.downlink_cursor, now_s),
        refused=tuple(refused),
    )


def _note_device(connection: Connection, device: str, request: SyncRequest, now_s: float, next_sync_s: float) -> bool:
    """Whether it reports other capabilities than before, or has boards where it had none: then other selectors and
    packages may mean it."""
    reported = json.dumps(request.capabilities)
    before = row(connection, "SELECT capabilities, boards FROM device WHERE id = ?", (device,))
    count = had = before["boards"] if before is not None else 0
    if request.boards or count:
        count = boards.note(connection, device, request.boards, now_s)
    connection.execute(
        "UPDATE device SET last_seen_at = ?, clock_offset_s = ?, running = ?, next_sync_s = ?,"
        " boards = ?,"
        " capabilities = CASE WHEN ? = '{}' THEN capabilities ELSE ? END WHERE id = ?",
        (
            now_s,
            request.anchor.wall_s - now_s,
            json.dumps([asdict(running) for running in request.running]),
            next_sync_s,
            count,
            *(reported,) * 2,
            device,
        ),
    )
    connection.execute(
        "INSERT INTO anchor (device, boot, boot_ns, device_wall_s, received_at) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (device, boot) DO UPDATE SET boot_ns = excluded.boot_ns,"
        " device_wall_s = excluded.device_wall_s, received_at = excluded.received_at",
        (device, request.boot, request.anchor.boot_ns, request.anchor.wall_s, now_s),
    )
    is_other = bool(request.capabilities) and before is not None and before["capabilities"] != reported
    return before is not None and (is_other or bool(had) != bool(count))


def _settle(
    connection: Connection,
    device: str,
    stream: Stream,
    items: Sequence[object],
    times: _Times,
    now_s: float,
    refused: list[Refused],
) -> tuple[str, int] | None:
    marks: dict[str, int] = {}
    batch = _Batch(connection, device, stream, now_s)
    last: tuple[str, int] | None = None
    epochs: int | None = None
    for item in items:
        identity = record_id(item)
        if identity is None:
            continue  # it cannot be named, so it cannot be settled by itself; what follows settles it
        last = identity
        epoch, seq = identity
        if epoch not in marks:
            mark = _watermark(connection, device, stream, epoch)
            if mark == 0:
                epochs = _epochs(connection, device, stream) if epochs is None else epochs
                if epochs >= EPOCHS_MAX:  # no row is kept of it either: a device cannot fill the disk with epochs
                    reason = f"the device has used {EPOCHS_MAX} epochs on stream {stream}, the most that are taken"
                    refused.append(Refused(stream, epoch, seq, f"{reason}; enrol it again"))
                    continue
                epochs += 1
            marks[epoch] = mark
        if seq <= marks[epoch]:
            continue
        if seq > marks[epoch] + 1:
            _gap(connection, device, stream, epoch, marks[epoch] + 1, seq - 1, None, seq - 1 - marks[epoch], now_s)
        marks[epoch] = seq
        try:
            record = record_from_json(item)
            at = times.at(record)
            handler = _HANDLERS.get(record.type)
            if handler is not None:
                handler(batch, Fields(record.payload, record.type, WireError), at)
        except WireError as error:
            reason = str(error)[:REASON_CHARACTERS_MAX]
            refused.append(Refused(stream, epoch, seq, reason))
            batch.add("refused_record", device, stream, epoch, seq, reason, now_s)
            continue
        payload = msgspec.json.encode(record.payload).decode()
        batch.add("record", device, stream, epoch, seq, record.type, record.boot, record.boot_ns, at, now_s, payload)
    batch.flush()
    connection.executemany(
        "INSERT INTO watermark (device, stream, epoch, seq) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (device, stream, epoch) DO UPDATE SET seq = excluded.seq",
        [(device, stream, epoch, seq) for epoch, seq in marks.items()],
    )
    return last


def _watermark(connection: Connection, device: str, stream: str, epoch: str) -> int:
    found = row(
        connection,
        "SELECT seq FROM watermark WHERE device = ? AND stream = ? AND epoch = ?",
        (device, stream, epoch),
    )
    return int(found["seq"]) if found else 0


def _epochs(connection: Connection, device: str, stream: str) -> int:
    found = row(connection, "SELECT COUNT(*) AS n FROM watermark WHERE device = ? AND stream = ?", (device, stream))
    return int(found["n"]) if found else 0


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
    rollup = Rollup(
        windows,
        fields.natural("errors", 0),
        fields.natural("dropped_samples", 0),
        latency,
        confidence,
        {label: labels.natural(label) for label in labels.value},
        None if fields.value.get("rss_bytes") is None else fields.natural("rss_bytes"),
        _optional_number(fields, "cpu_percent"),
        windows,
    )
    model, version = fields.text("model"), fields.text("version")
    payload = json.dumps(finite(fields.value), separators=(",", ":"))
    # A record is made before it is received: a time that lies ahead is none.
    time_s = batch.now_s if at is None or at > batch.now_s else max(at, 0.0)
    batch.rollups.add(model, version, time_s, rollup)
    measured: tuple[Value, ...] = (
        windows,
        confidence.mean,
        *(confidence.quantile(q) for q in (0.05, 0.5)),
        *(latency.quantile(q) for q in (0.5, 0.95, 0.99)),
        rollup.rss_bytes,
        rollup.cpu_percent,
        json.dumps(rollup.labels),
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
    batch.connection.execute(
        "UPDATE device SET capabilities = ? WHERE id = ?", (json.dumps(finite(fields.value)), batch.device)
    )


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
    if len(batch.added.get("log", ())) >= logs.A_SYNC_MAX:
        raise WireError(f"log: more than {logs.A_SYNC_MAX} lines in one sync; log less, or at a higher level")
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
