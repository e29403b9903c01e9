"""How well the fleet and a device are: a table of checks, each one query that finds the devices that fail it.

Rules
- A device's health and the fleet's come from the same queries, so that they cannot disagree.
- A check looks at what is stored and at the server's clock; nothing is computed when devices sync.
- `problem` is what somebody has to mend, `warning` what somebody should know. A device that is away is none of the
  first: to be offline is normal, until it lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from .boards import DOWN
from .db import Connection, Database, Row, Value, row, rows
from .errors import NotFoundError
from .fleet import ONLINE_S_MIN, ONLINE_SYNCS

Level = Literal["ok", "warning", "problem"]
DAY_S: Final = 86_400.0
CLOCK_OFFSET_S_MAX: Final = 300.0
ERRORS_SHARE_MAX: Final = 0.01
VERSIONS_SHOWN_MAX: Final = 1000
_LEVELS: Final[tuple[Level, ...]] = ("ok", "warning", "problem")


class CheckResult(msgspec.Struct, frozen=True):
    """What one check says of a device."""

    check: str
    level: Level
    detail: str


class ModelNow(msgspec.Struct, frozen=True):
    """The newest metrics of a model on a device."""

    model: str
    version: str
    at: float
    windows: int
    errors: int
    confidence_p50: float | None
    latency_p50_us: float | None
    latency_p99_us: float | None
    rss_bytes: int | None
    cpu_percent: float | None


class DeviceHealth(msgspec.Struct, frozen=True):
    """Every check of a device, and what its models did last; `status` is the worst of the levels."""

    device_id: str
    device_name: str
    status: Level
    at: float
    last_seen_at: float | None
    checks: list[CheckResult]
    models: list[ModelNow]


class Trouble(msgspec.Struct, frozen=True):
    """A device that fails a check."""

    device_id: str
    device_name: str
    detail: str


class FleetCheck(msgspec.Struct, frozen=True):
    """How many devices fail a check, and the first of them; `limit` says how many are named."""

    check: str
    level: Level
    about: str
    devices: int
    named: list[Trouble]


class VersionNow(msgspec.Struct, frozen=True):
    """On how many devices a version was the last to run."""

    model: str
    version: str
    devices: int


class FleetHealth(msgspec.Struct, frozen=True):
    """The fleet at a moment; devices that were retired do not count. `status` is the worst level that a device has."""

    status: Level
    at: float
    devices: int
    online: int
    never_seen: int
    failing: int
    checks: list[FleetCheck]
    versions: list[VersionNow]


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        about: what it finds, for people.
        sql: gives `device` and `value` of each device that fails; `{device}` stands for the condition on one device,
            and `{plus}` then keeps SQLite from looking at all days instead of at the device.
        values: of the query's marks, for a moment.
        detail: what to say of a value at a moment.
    """

    name: str
    level: Level
    about: str
    sql: str
    values: Callable[[float], tuple[Value, ...]]
    detail: Callable[[Row, float], str]


def _ago(seconds: float) -> str:
    for unit, size in (("days", DAY_S), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _seen(found: Row, now_s: float) -> str:
    return "never seen" if found["value"] is None else f"last seen {_ago(now_s - found['value'])} ago"


def _count(what: str) -> Callable[[Row, float], str]:
    return lambda found, now_s: f"{int(found['value'])} {what}"


def _day_before(now_s: float) -> tuple[Value, ...]:
    return (now_s - DAY_S,)


_SINCE: Final = "COALESCE(last_seen_at, enrolled_at)"
_AWAY_S: Final = (
    f"CASE WHEN {ONLINE_SYNCS} * next_sync_s > {ONLINE_S_MIN} THEN {ONLINE_SYNCS} * next_sync_s ELSE {ONLINE_S_MIN} END"
)
_LIVE: Final = "retired_at IS NULL AND revoked_at IS NULL"
# The newest active deployment of a model on a device is the one that counts.
_STUCK: Final = """SELECT s.device AS device, COUNT(*) AS value, MAX(s.reason) AS reason FROM device_deployment s
 JOIN deployment p ON p.id = s.deployment WHERE p.state = 'active' AND s.state IN ('refused', 'rolled_back', 'unfit')
 AND NOT EXISTS (SELECT 1 FROM device_deployment n JOIN deployment q ON q.id = n.deployment WHERE n.device = s.device
 AND q.model = p.model AND q.state = 'active' AND q.id > p.id){device} GROUP BY s.device"""

CHECKS: Final[tuple[Check, ...]] = (
    Check(
        "silent", "problem", "not seen for a day",
        f"SELECT id AS device, last_seen_at AS value FROM device WHERE {_LIVE} AND {_SINCE} <= ?{{device}}",  # noqa: S608 (constants)
        _day_before, _seen,
    ),
    Check(
        "away", "warning", "missed three of its syncs, but was seen within a day",
        f"SELECT id AS device, last_seen_at AS value FROM device WHERE {_LIVE} AND {_SINCE} > ?"  # noqa: S608
        f" AND {_SINCE} < CAST(? AS DOUBLE PRECISION) - ({_AWAY_S}){{device}}",
        lambda now_s: (now_s - DAY_S, now_s), _seen,
    ),
    Check(
        "revoked", "warning", "its key is refused",
        "SELECT id AS device, revoked_at AS value FROM device"
        " WHERE retired_at IS NULL AND revoked_at IS NOT NULL{device}",
        lambda now_s: (), lambda found, now_s: f"revoked {_ago(now_s - found['value'])} ago",
    ),
    Check(
        "clock", "warning", f"its clock is more than {CLOCK_OFFSET_S_MAX:.0f} s off",
        "SELECT id AS device, clock_offset_s AS value FROM device WHERE retired_at IS NULL"
        " AND (clock_offset_s > ? OR clock_offset_s < ?){device}",
        lambda now_s: (CLOCK_OFFSET_S_MAX, -CLOCK_OFFSET_S_MAX),
        lambda found, now_s: f"{_ago(abs(found['value']))} {'ahead' if found['value'] > 0 else 'behind'}",
    ),
    Check(
        "lost", "problem", "lost records in the last day",
        "SELECT device, SUM(CAST(count AS DOUBLE PRECISION)) AS value FROM gap WHERE received_at > ?"
        " AND (reason IS NULL OR reason <> 'merged'){device} GROUP BY device",
        _day_before, _count("records lost in the last day"),
    ),
    Check(
        "refused", "problem", "sent records in the last day that were refused",
        "SELECT device, COUNT(*) AS value FROM refused_record WHERE received_at > ?{device} GROUP BY device",
        _day_before, _count("records refused in the last day"),
    ),
    Check(
        "errors", "problem", f"a model failed on more than {ERRORS_SHARE_MAX:.0%} of its windows since yesterday (UTC)",
        "SELECT device, CAST(SUM(errors) AS DOUBLE PRECISION) AS value,"  # noqa: S608 (constants)
        " CAST(SUM(windows) AS DOUBLE PRECISION) AS total"
        f" FROM rollup WHERE {{plus}}step = 86400 AND {{plus}}at >= ?{{device}} GROUP BY device"
        " HAVING SUM(CAST(errors AS DOUBLE PRECISION))"
        f" > {ERRORS_SHARE_MAX} * SUM(CAST(windows AS DOUBLE PRECISION))",
        lambda now_s: (int((now_s - DAY_S) // DAY_S * DAY_S),),
        lambda found, now_s: f"{found['value']:.0f} of {found['total']:.0f} windows failed",
    ),
    Check(
        "drift", "warning", "raised drift alarms in the last day",
        "SELECT device, COUNT(*) AS value FROM drift_event WHERE received_at > ?{device} GROUP BY device",
        _day_before, _count("drift alarms in the last day"),
    ),
    Check(
        "deployment", "problem", "refused, rolled back or is unfit for what is deployed to it", _STUCK,
        lambda now_s: (), lambda found, now_s: f"{found['value']} deployments: {found['reason'] or 'no reason given'}",
    ),
    Check(
        "config", "problem", "did not take what the server set of its configuration",
        "SELECT device, version AS value, state, reason FROM device_config WHERE state <> 'applied'{device}",
        lambda now_s: (), lambda found, now_s: f"version {found['value']} was {found['state']}: {found['reason']}",
    ),
    Check(
        "boards", "warning", "has boards that are gone, away or failed",
        f"SELECT device, COUNT(*) AS value FROM board WHERE (gone_at IS NOT NULL OR state IN {DOWN}){{device}}"  # noqa: S608
        " GROUP BY device",
        lambda now_s: (), _count("boards are gone, away or failed"),
    ),
    Check(
        "commands", "warning", "failed to do what it was told in the last day",
        "SELECT device, COUNT(*) AS value FROM device_command WHERE updated_at > ?"
        " AND state IN ('failed', 'interrupted', 'refused'){device} GROUP BY device",
        _day_before, _count("commands failed in the last day"),
    ),
)  # fmt: skip
# The column that names the device in each check's query.
_OF: Final[Mapping[str, str]] = {"deployment": "s.device"} | dict.fromkeys(("silent", "away", "revoked", "clock"), "id")


def _worst(levels: list[Level]) -> Level:
    return max(levels, key=_LEVELS.index, default="ok")


def _failing(connection: Connection, check: Check, now_s: float) -> tuple[str, tuple[Value, ...]]:
    """The query of the devices in service that fail a check."""
    found = check.sql.format(device="", plus="")
    sql = f"SELECT f.*, d.name AS name FROM ({found}) f JOIN device d ON d.id = f.device WHERE d.retired_at IS NULL"  # noqa: S608
    return sql, check.values(now_s)


def fleet_health(db: Database, limit: int, now_s: float) -> FleetHealth:
    """The fleet, with the first `limit` devices of each check."""

    def job(connection: Connection) -> FleetHealth:
        checks: list[FleetCheck] = []
        union: list[str] = []
        values: list[Value] = []
        for check in CHECKS:
            sql, asked = _failing(connection, check, now_s)
            count = rows(connection, f"SELECT COUNT(*) AS n FROM ({sql}) x", asked)[0]["n"]  # noqa: S608 (constants)
            named = rows(connection, f"{sql} ORDER BY f.device LIMIT ?", (*asked, limit)) if count else []
            trouble = [Trouble(item["device"], item["name"], check.detail(item, now_s)) for item in named]
            checks.append(FleetCheck(check.name, check.level, check.about, count, trouble))
            if count:
                union.append(f"SELECT device FROM ({sql}) {check.name}")  # noqa: S608 (constants)
                values += asked
        failing = rows(connection, f"SELECT COUNT(*) AS n FROM ({' UNION '.join(union)}) x", values) if union else []  # noqa: S608
        counted = rows(
            connection,
            "SELECT COUNT(*) AS n, COUNT(last_seen_at) AS seen,"  # noqa: S608 (constants)
            f" SUM(CASE WHEN last_seen_at >= CAST(? AS DOUBLE PRECISION) - ({_AWAY_S}) AND revoked_at IS NULL"
            " THEN 1 ELSE 0 END) AS online FROM device WHERE retired_at IS NULL",
            (now_s,),
        )[0]
        return FleetHealth(
            status=_worst([check.level for check in checks if check.devices]),
            at=now_s,
            devices=counted["n"],
            online=int(counted["online"] or 0),
            never_seen=counted["n"] - counted["seen"],
            failing=failing[0]["n"] if failing else 0,
            checks=checks,
            versions=_versions(connection),
        )

    return db.read(job)


def _versions(connection: Connection) -> list[VersionNow]:
    found = rows(
        connection,
        "SELECT l.model, l.version, COUNT(*) AS devices FROM latest l JOIN device d ON d.id = l.device"
        " WHERE d.retired_at IS NULL GROUP BY l.model, l.version ORDER BY l.model, devices DESC, l.version LIMIT ?",
        (VERSIONS_SHOWN_MAX,),
    )
    return [VersionNow(**item) for item in found]


def device_health(db: Database, device: str, now_s: float) -> DeviceHealth:
    """One device.

    Raises:
        NotFoundError: there is none of this id.
    """

    def job(connection: Connection) -> DeviceHealth:
        known = row(connection, "SELECT name, last_seen_at FROM device WHERE id = ?", (device,))
        if known is None:
            raise NotFoundError(f"there is no device {device!r:.40}; see `tinysphere devices`")
        checks = []
        for check in CHECKS:
            sql = check.sql.format(device=f" AND {_OF.get(check.name, 'device')} = ?", plus="+")
            found = row(connection, sql, (*check.values(now_s), device))
            checks.append(
                CheckResult(check.name, "ok", "")
                if found is None
                else CheckResult(check.name, check.level, check.detail(found, now_s))
            )
        names = ", ".join(ModelNow.__struct_fields__)
        models = rows(connection, f"SELECT {names} FROM latest WHERE device = ? ORDER BY model", (device,))  # noqa: S608
        return DeviceHealth(
            device_id=device,
            device_name=known["name"],
            status=_worst([check.level for check in checks]),
            at=now_s,
            last_seen_at=known["last_seen_at"],
            checks=checks,
            models=[ModelNow(**item) for item in models],
        )

    return db.read(job)
