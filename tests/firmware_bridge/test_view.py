"""What boards say as lines, documents and a page."""

from __future__ import annotations

import json
import time

import numpy as np
from board_models import CAPS

from firmware_bridge import messages as m
from firmware_bridge.boards import Board, Found, Gone, Wanted
from firmware_bridge.errors import MessageError
from firmware_bridge.protocol import ClockJumped, Gap, Lost, Malformed, Received, Restarted, Rows, Unknown
from firmware_bridge.view import View, describe, describe_caps, spark

DRIFT = m.Drift(2_000_000, 0, 1, m.UP, 3 << 16, 1 << 16, 0, 0, 9, tuple(range(16)))
ROWS = Rows(0, 7, np.array([[1.0, -2.5], [3.0, 4.0]], np.float32), np.array([1_000_000, 1_020_000]))


def board() -> Board:
    found = Board(Wanted("A1"), time.monotonic)
    found.caps = CAPS
    return found


def test_every_event_is_a_line_and_a_document() -> None:
    events = {
        "sensor,A1,0,7,1.000000,1,-2.5\nsensor,A1,0,8,1.020000,3,4": ROWS,
        "gap,A1,0,20,frames=1,rows=10": Gap(0, 20, 1, 10),
        "result,A1,0.500000,3,1.0000,40": Received(m.Result(500_000, 1, 3, 65_535, 40)),
        "drift,A1,2.000000,stream=0,channel=1,up,3,over=1": Received(DRIFT),
        "log,A1,0.000005,warning,hot": Received(m.Log(30, 5, "hot")),
        "found,A1,/dev/x": Found(CAPS, "/dev/x"),
        "gone,A1,unplugged": Gone("unplugged"),
        "restarted,A1,power": Restarted(CAPS),
        "clock,A1,jumped": ClockJumped(),
        "lost,A1,type 11,2": Lost(0x11, 2),
        "malformed,A1,short": Malformed(1, MessageError("short")),
        "unknown,A1,type 77,version 1": Unknown(0x77, 1),
    }
    for text, event in events.items():
        ((line, document),) = describe(board(), event)
        assert line == text
        assert json.loads(json.dumps(document))["board"] == "A1"
    ((line, document),) = describe(board(), Received(m.Metrics(up_ms=5, more={"heat": 1})))
    assert line.startswith("metrics,A1,up_ms=5,") and document["heat"] == 1
    ((_, document),) = describe(board(), ROWS)
    assert document["values"] == [[1.0, -2.5], [3.0, 4.0]] and document["host_s"] is None


def test_caps_are_told_to_people_and_scripts() -> None:
    text, document = describe_caps(CAPS, "/dev/x")
    assert "board     A1 on /dev/x" in text and "imu: x, y at 50 Hz in g" in text and "confirmed" in text
    assert document["sensors"] == [
        {"stream": 0, "name": "imu", "format": 1, "unit": "g", "channels": ["x", "y"], "rate_hz": 50.0, "scale": 0.5}
    ]


def test_a_curve_is_as_long_as_asked_for() -> None:
    assert spark([]) == ""
    assert spark([1.0, 1.0]) == "▁▁"
    assert spark([0.0, 7.0], 10) == "▁█"
    assert len(spark([float(i) for i in range(1000)], 40)) == 40


def test_the_page_has_a_line_for_each_channel_and_fits() -> None:
    view, one = View(), board()
    for i in range(5):
        view.take(one, ROWS, float(i))
    view.take(one, Received(m.Log(20, 0, "x" * 200)), 5.0)
    assert view.lines([one], 80) == ["A1: not there", f"  log,A1,0.000000,info,{'x' * 200}"[:80]]
