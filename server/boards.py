"""The boards behind a device: what its gateway reports of them with every sync, as they are now.

Rules
- A sync names all boards that the device knows. One that is named no more is gone: it is kept and says since when.
- How long ago a board was heard is counted by the device, and becomes a time on the server's clock.
- A board that cannot be read costs itself: the sync and the other boards are taken.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from tinylcm.errors import WireError
from tinylcm.wire import Board, board_from_json

from . import feed
from .db import Connection, Row, rows

BOARDS_MAX: Final = 256  # of one device; more are left out
STATES_SHOWN_MAX: Final = 50_000
DOWN: Final = ("away", "failed")  # states in which somebody should look after a board
_log: Final = logging.getLogger("tinysphere")
_TOLD: Final = ("name", "fw", "model", "model_version", "state")


class BoardView(msgspec.Struct, frozen=True):
    """A board as its device reported it last; times are Unix seconds on the server's clock."""

    uid: str
    name: str
    fw: str
    model: str
    model_version: str
    state: str
    info: dict[str, object]
    first_seen_at: float
    last_seen_at: float | None
    reported_at: float
    gone_at: float | None


def _readable(device: str, items: Sequence[object]) -> dict[str, Board]:
    found: dict[str, Board] = {}
    for item in items[:BOARDS_MAX]:
        try:
            board = board_from_json(item)
        except WireError as error:
            _log.warning("a board of device %s is left out: %s", device, error)
            continue
        found.setdefault(board.uid, board)
    if len(items) > BOARDS_MAX:
        _log.warning("device %s reports %d boards, the first %d are kept", device, len(items), BOARDS_MAX)
    return found


def note(connection: Connection, device: str, items: Sequence[object], now_s: float) -> int:
    """Store what a sync says of a device's boards; returns how many it has."""
    reported = _readable(device, items)
    known = {item["uid"]: item for item in rows(connection, "SELECT * FROM board WHERE device = ?", (device,))}
    room = BOARDS_MAX - len(known)  # gone ones give way to new ones, the longest gone first
    news = [uid for uid in reported if uid not in known]
    gone = sorted((uid for uid in known if uid not in reported), key=lambda uid: known[uid]["gone_at"] or now_s)
    for uid in gone[: max(0, len(news) - room)]:
        connection.execute("DELETE FROM board WHERE device = ? AND uid = ?", (device, uid))
    for uid in gone:
        if known[uid]["gone_at"] is None:
            connection.execute("UPDATE board SET gone_at = ? WHERE device = ? AND uid = ?", (now_s, device, uid))
            feed.note(connection, "board", now_s, device, None, uid=uid, state="gone", name=known[uid]["name"])
    for uid, board in reported.items():
        _tell(connection, device, board, known.get(uid), now_s)
    connection.executemany(
        "INSERT INTO board (device, uid, name, fw, model, model_version, state, info, first_seen_at, last_seen_at,"
        " reported_at, gone_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL) ON CONFLICT (device, uid) DO UPDATE SET"
        " name = excluded.name, fw = excluded.fw, model = excluded.model, model_version = excluded.model_version,"
        " state = excluded.state, info = excluded.info,"
        " last_seen_at = COALESCE(excluded.last_seen_at, board.last_seen_at), reported_at = excluded.reported_at,"
        " gone_at = NULL",
        [_values(device, board, now_s) for board in reported.values()],
    )
    return len(reported)


def _values(device: str, board: Board, now_s: float) -> tuple[Any, ...]:
    seen_at = None if board.last_seen_ms is None else now_s - board.last_seen_ms / 1000
    told = (getattr(board, name) for name in _TOLD)
    return (device, board.uid, *told, json.dumps(board.info), now_s, seen_at, now_s)


def _tell(connection: Connection, device: str, board: Board, before: Row | None, now_s: float) -> None:
    """Let followers know of what is new of a board."""
    is_same = before is not None and before["gone_at"] is None
    if is_same and before is not None and all(before[name] == getattr(board, name) for name in _TOLD):
        return
    told = {name: getattr(board, name) for name in _TOLD if name != "model"}
    feed.note(connection, "board", now_s, device, board.model or None, uid=board.uid, **told)


class BoardState(msgspec.Struct, frozen=True):
    """How far a deployment has come on a board."""

    uid: str
    state: str
    reason: str
    updated_at: float


def note_state(connection: Connection, deployment: int, device: str, state: BoardState) -> None:
    """Store what a device says of a deployment on one of its boards."""
    connection.execute(
        "INSERT INTO board_deployment (deployment, device, board, state, reason, updated_at) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (deployment, device, board) DO UPDATE SET state = excluded.state, reason = excluded.reason,"
        " updated_at = excluded.updated_at",
        (deployment, device, state.uid, state.state, state.reason, state.updated_at),
    )


def states_of(connection: Connection, deployment: int) -> dict[str, list[BoardState]]:
    """How far a deployment has come on boards, by device."""
    sql = (
        "SELECT device, board, state, reason, updated_at FROM board_deployment WHERE deployment = ?"
        " ORDER BY device, board LIMIT ?"
    )
    found: dict[str, list[BoardState]] = {}
    for item in rows(connection, sql, (deployment, STATES_SHOWN_MAX)):
        state = BoardState(item["board"], item["state"], item["reason"], item["updated_at"])
        found.setdefault(item["device"], []).append(state)
    return found


def boards_of(connection: Connection, devices: Sequence[str]) -> dict[str, list[BoardView]]:
    """The boards of some devices, by uid."""
    if not devices:
        return {}
    marks = ", ".join("?" * len(devices))
    sql = f"SELECT * FROM board WHERE device IN ({marks}) ORDER BY device, uid LIMIT ?"  # noqa: S608 (marks)
    found: dict[str, list[BoardView]] = {}
    for item in rows(connection, sql, (*devices, BOARDS_MAX * len(devices))):
        fields = {name: item[name] for name in BoardView.__struct_fields__}
        found.setdefault(item["device"], []).append(BoardView(**{**fields, "info": json.loads(item["info"])}))
    return found
