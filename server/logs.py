"""What the library on the devices has logged, as their `log` records said it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec
from tinylcm.checks import Fields

from .db import Database, Page, Value, decode_cursor, paged, rows
from .errors import BadRequestError

LEVELS: Final = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
COLUMNS: Final = ("device", "level", "logger", "message", "dropped", "at", "received_at")
A_SYNC_MAX: Final = 500  # log records that are kept of one sync; more are refused by name
MESSAGE_CHARACTERS_MAX: Final = 4000
LOGGER_CHARACTERS_MAX: Final = 100
_NAMES: Final = {number: name for name, number in LEVELS.items()}
_NO_ID: Final = (1 << 63) - 1


class LogView(msgspec.Struct, frozen=True):
    """One line of a device's log. `dropped` lines before it were over the device's limit and are not here.

    `at` is on the server's clock; null when that boot was never anchored.
    """

    id: int
    device_id: str
    device_name: str
    level: str
    logger: str
    message: str
    dropped: int
    at: float | None
    received_at: float


@dataclass(frozen=True, slots=True)
class Question:
    """Whose lines, and which; `level` is the least, times are Unix seconds of the receipt."""

    device: str | None = None
    level: str | None = None
    logger: str | None = None
    since: float | None = None
    until: float | None = None


def read(fields: Fields) -> tuple[int, str, str, int]:
    """The level, logger, message and dropped lines of a `log` record.

    Raises:
        WireError: one of them is wrong.
    """
    level = fields.text("level")
    if level not in LEVELS:
        raise fields.fail("level", f"is {level!r:.40}; expected one of {', '.join(LEVELS)}")
    message = fields.text("message", length_max=256 << 10)[:MESSAGE_CHARACTERS_MAX]
    logger = fields.text("logger", "tinylcm", length_max=1000)[:LOGGER_CHARACTERS_MAX]
    return LEVELS[level], logger, message, fields.natural("dropped", 0)


def list_logs(db: Database, question: Question, cursor: str | None, limit: int) -> Page[LogView]:
    """Lines, newest first.

    Raises:
        BadRequestError: there is no such level, or the cursor is none of this list.
    """
    if question.level is not None and question.level not in LEVELS:
        raise BadRequestError(f"the query's level is {question.level!r:.40}; expected one of {', '.join(LEVELS)}")
    asked: list[tuple[str, Value]] = [("l.id < ?", decode_cursor(cursor, int, _NO_ID))]
    if question.device is not None:
        asked.append(("l.device = ?", question.device))
    if question.level is not None:
        asked.append(("l.level >= ?", LEVELS[question.level]))
    if question.logger is not None:
        asked.append(("l.logger = ?", question.logger))
    if question.since is not None:
        asked.append(("l.received_at >= ?", question.since))
    if question.until is not None:
        asked.append(("l.received_at < ?", question.until))
    sql = (
        "SELECT l.*, COALESCE(d.name, '') AS device_name FROM log l LEFT JOIN device d ON d.id = l.device"  # noqa: S608
        f" WHERE {' AND '.join(condition for condition, _ in asked)} ORDER BY l.id DESC LIMIT ?"
    )
    values = [value for _, value in asked]
    found = db.read(lambda connection: rows(connection, sql, (*values, limit + 1)))
    views = [
        LogView(
            item["id"],
            item["device"],
            item["device_name"],
            _NAMES.get(item["level"], "info"),
            item["logger"],
            item["message"],
            item["dropped"],
            item["at"],
            item["received_at"],
        )
        for item in found
    ]
    return paged(views, limit, lambda line: line.id)
