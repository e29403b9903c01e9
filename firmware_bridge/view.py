"""What boards say, as lines: one an event for a pipe, a page that is drawn over and over for a terminal.

Both only turn events into text and JSON; who prints them, and where, is for the command.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Final, TypeAlias

import numpy as np
from tinylcm.types import Json

from .boards import Board, BoardEvent, Found, Gone
from .messages import UP, Caps, Drift, Log, Metrics, Result
from .protocol import ClockJumped, Gap, Lost, Malformed, Received, Restarted, Rows, Unknown

_BARS: Final = "▁▂▃▄▅▆▇█"
SPARK_CHARS: Final = 40
NOTES_MAX: Final = 6

Described: TypeAlias = "list[tuple[str, dict[str, Json]]]"


def describe(board: Board, event: BoardEvent) -> Described:
    """An event as lines of text, each beside its document; nothing for what concerns nobody who listens."""
    uid = board.uid
    if isinstance(event, Rows):
        return _rows(board, event)
    if isinstance(event, Received):
        message = event.message
        if isinstance(message, Result):
            score = message.score / 65_535
            text = f"result,{uid},{message.time_us / 1e6:.6f},{message.label},{score:.4f},{message.infer_us}"
            return [(text, {"event": "result", "board": uid, **_plain(asdict(message)), "score": score})]
        if isinstance(message, Drift):
            return [(_drift_text(uid, message), {"event": "drift", "board": uid, **_plain(asdict(message))})]
        if isinstance(message, Log):
            text = f"log,{uid},{message.time_us / 1e6:.6f},{message.level_name},{message.text}"
            return [(text, {"event": "log", "board": uid, **_plain(asdict(message))})]
        if isinstance(message, Metrics):
            shown = {name: getattr(message, name) for name in message.NAMES}
            text = f"metrics,{uid}," + ",".join(f"{name}={value}" for name, value in shown.items())
            return [(text, {"event": "metrics", "board": uid, **shown, **dict(message.more)})]
        return []
    return _of_link(uid, event)


def _of_link(uid: str, event: BoardEvent) -> Described:
    if isinstance(event, Gap):
        text = f"gap,{uid},{event.stream},{event.index},frames={event.frames},rows={event.rows}"
        return [(text, {"event": "gap", "board": uid, **_plain(asdict(event))})]
    if isinstance(event, Found):
        document: dict[str, Json] = {"event": "found", "board": uid, "port": event.url, "boot": event.caps.boot}
        return [(f"found,{uid},{event.url}", document)]
    if isinstance(event, Gone):
        return [(f"gone,{uid},{event.why}", {"event": "gone", "board": uid, "why": event.why})]
    if isinstance(event, Restarted):
        document = {"event": "restarted", "board": uid, "boot": event.caps.boot, "reset": event.caps.reset}
        return [(f"restarted,{uid},{event.caps.reset}", document)]
    if isinstance(event, ClockJumped):
        return [(f"clock,{uid},jumped", {"event": "clock", "board": uid})]
    if isinstance(event, Lost):
        text = f"lost,{uid},type {event.type:02x},{event.count}"
        return [(text, {"event": "lost", "board": uid, "type": event.type, "count": event.count})]
    if isinstance(event, Malformed):
        return [(f"malformed,{uid},{event.error}", {"event": "malformed", "board": uid, "why": str(event.error)})]
    if isinstance(event, Unknown):
        document = {"event": "unknown", "board": uid, "type": event.type, "version": event.version}
        return [(f"unknown,{uid},type {event.type:02x},version {event.version}", document)]
    return []


def _plain(values: dict[str, object]) -> dict[str, Json]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}  # type: ignore[misc]


def _drift_text(uid: str, drift: Drift) -> str:
    direction = "up" if drift.direction == UP else "down"
    statistic, threshold = drift.statistic / 65_536, drift.threshold / 65_536
    return (
        f"drift,{uid},{drift.time_us / 1e6:.6f},stream={drift.stream},channel={drift.channel},{direction},"
        f"{statistic:.4g},over={threshold:.4g}"
    )


def _rows(board: Board, event: Rows) -> Described:
    """A line a row, one document for all of them."""
    clock = board.link.protocol.clock if board.link is not None else None
    host_us = clock.host_us(event.times_us) if clock is not None and clock.known else None
    lines = [
        f"sensor,{board.uid},{event.stream},{event.index + i},{time_us / 1e6:.6f}," + ",".join(f"{x:.6g}" for x in row)
        for i, (time_us, row) in enumerate(zip(event.times_us.tolist(), event.values.tolist(), strict=True))
    ]
    document: dict[str, Json] = {
        "event": "rows",
        "board": board.uid,
        "stream": event.stream,
        "index": event.index,
        "time_s": [time_us / 1e6 for time_us in event.times_us.tolist()],
        "host_s": None if host_us is None else [float(x) / 1e6 for x in host_us],
        "values": event.values.tolist(),
    }
    return [("\n".join(lines), document)]


def describe_caps(caps: Caps, url: str) -> tuple[str, dict[str, Json]]:
    """Who a board is, for people and for scripts."""
    state = {0: "the factory's", 1: "on trial", 2: "confirmed"}[caps.model.state]
    lines = [
        f"board     {caps.uid} on {url}",
        f"firmware  {caps.fw}, started by {caps.reset or 'unknown'} (boot {caps.boot:08x})",
        f"model     {caps.model.sha256[:16] or 'none'}, {state}; slots of {caps.slot_bytes} bytes, "
        f"formats {', '.join(map(str, caps.formats)) or 'none'}, ABI {caps.abi}",
        f"line      frames of {caps.frame_max} bytes, window {caps.window}, writes aligned to {caps.align}",
    ]
    sensors: list[Json] = []
    for sensor in caps.sensors:
        lines.append(
            f"stream {sensor.stream}  {sensor.name}: {', '.join(sensor.channels)} at {sensor.rate_hz:g} Hz in "
            f"{sensor.unit or 'counts'}"
        )
        sensors.append(
            {
                "stream": sensor.stream, "name": sensor.name, "format": sensor.format, "unit": sensor.unit,
                "channels": list(sensor.channels), "rate_hz": sensor.rate_hz, "scale": sensor.scale,
            }
        )  # fmt: skip
    document: dict[str, Json] = {
        "uid": caps.uid, "port": url, "fw": caps.fw, "boot": caps.boot, "reset": caps.reset,
        "frame_max": caps.frame_max, "window": caps.window, "align": caps.align, "slots": caps.slots,
        "slot_bytes": caps.slot_bytes, "abi": caps.abi, "formats": list(caps.formats), "trial_s": caps.trial_s,
        "sensors": sensors,
        "model": {"sha256": caps.model.sha256, "slot": caps.model.slot, "state": caps.model.state,
                  "counter": caps.model.counter},
    }  # fmt: skip
    return "\n".join(lines), document


@dataclass
class _Stream:
    rows: int = 0
    times_s: deque[float] = field(default_factory=lambda: deque(maxlen=50))
    counts: deque[int] = field(default_factory=lambda: deque(maxlen=50))
    recent: deque[list[float]] = field(default_factory=lambda: deque(maxlen=4 * SPARK_CHARS))


def spark(values: list[float], chars: int = SPARK_CHARS) -> str:
    """A curve in one line of text; the newest value stands last."""
    if not values:
        return ""
    step = max(1, len(values) // chars)
    kept = np.array(values[-step * chars :: step], np.float64)
    low, high = float(kept.min()), float(kept.max())
    places = np.zeros(len(kept), int) if high == low else ((kept - low) / (high - low) * 7).round().astype(int)
    return "".join(_BARS[place] for place in places)


class View:
    """A page about boards, for a terminal."""

    def __init__(self) -> None:
        self._streams: dict[tuple[str, int], _Stream] = {}
        self._notes: deque[str] = deque(maxlen=NOTES_MAX)
        self._results: dict[str, str] = {}

    def take(self, board: Board, event: BoardEvent, now_s: float) -> None:
        """Hear an event."""
        if isinstance(event, Rows):
            stream = self._streams.setdefault((board.uid, event.stream), _Stream())
            stream.rows += len(event.values)
            stream.times_s.append(now_s)
            stream.counts.append(len(event.values))
            stream.recent.extend(event.values.tolist())
            return
        described = describe(board, event)
        if isinstance(event, Received) and isinstance(event.message, Result):
            self._results[board.uid] = described[0][0]
        elif not (isinstance(event, Received) and isinstance(event.message, Metrics)):
            self._notes.extend(text for text, _ in described)

    def lines(self, boards: list[Board], width: int) -> list[str]:
        """The page, no line longer than `width`."""
        page: list[str] = []
        for board in boards:
            page += self._board(board)
        page += [f"  {note}" for note in self._notes]
        return [line[:width] for line in page]

    def _board(self, board: Board) -> list[str]:
        if board.link is None or board.caps is None:
            return [f"{board.uid or 'a board'}: not there"]
        protocol = board.link.protocol
        error_us = protocol.clock.error_us
        clock = "unknown" if error_us is None else f"{protocol.clock.drift_ppm:+.0f} ppm, within {error_us:.0f} us"
        page = [
            f"{board.uid} on {board.link.port.url}: {protocol.frames} frames, {protocol.bad} bad, "
            f"{protocol.retries} repeated; clock {clock}"
        ]
        counts = protocol.streams()
        for sensor in board.caps.sensors:
            stream = self._streams.get((board.uid, sensor.stream))
            if stream is None:
                continue
            span_s = stream.times_s[-1] - stream.times_s[0] if len(stream.times_s) > 1 else 0.0
            rate_hz = sum(list(stream.counts)[1:]) / span_s if span_s else 0.0
            lost = counts[sensor.stream].rows_lost if sensor.stream in counts else 0
            page.append(
                f"  stream {sensor.stream} {sensor.name}: {stream.rows} rows, {rate_hz:.1f} a second, {lost} lost"
            )
            for i, name in enumerate(sensor.channels):
                column = [row[i] for row in stream.recent]
                page.append(f"    {name[:12]:<12} {column[-1]:>12.5g} {sensor.unit:<8} {spark(column)}")
        if board.uid in self._results:
            page.append(f"  {self._results[board.uid]}")
        return page
