"""The library's log on its way to the server."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from clocks import ManualClock
from tinylcm.config import LogConfig
from tinylcm.logs import QUEUE_MAX, LogRecords, blank

LOG = logging.getLogger("tinylcm")


class Bench:
    """A handler whose records are kept."""

    def __init__(self, config: LogConfig) -> None:
        self.records: list[dict[str, Any]] = []
        self.clock = ManualClock()
        self.logs = LogRecords(lambda stream, type, payload: self.records.append({**payload}), self.clock, config)

    def said(self) -> list[tuple[str, str]]:
        self.logs.tick()
        return [(item["level"], item["message"]) for item in self.records]


@pytest.fixture
def bench() -> Iterator[Bench]:
    before = LOG.level
    made = Bench(LogConfig(per_hour=10))
    made.logs.start()
    yield made
    made.logs.close()
    assert LOG.level == before and made.logs not in LOG.handlers


def test_lines_from_the_level_on_become_records(bench: Bench) -> None:
    LOG.info("too quiet")
    LOG.warning("disk is %s", "full")
    logging.getLogger("tinylcm.app").error("mine")
    try:
        raise ValueError("why")
    except ValueError:
        LOG.exception("it broke")
    assert bench.said() == [("warning", "disk is full"), ("error", "mine"), ("error", "it broke: ValueError: why")]
    assert [item["logger"] for item in bench.records] == ["tinylcm", "tinylcm.app", "tinylcm"]


def test_a_wrong_call_of_the_logger_breaks_nothing(bench: Bench) -> None:
    bench.logs.handle(logging.LogRecord("tinylcm", logging.ERROR, "", 0, "%d of %d", ("x",), None))
    assert bench.said() == [("error", "%d of %d")]


def test_at_most_so_many_an_hour_and_the_rest_is_counted(bench: Bench) -> None:
    for number in range(25):
        LOG.warning("line %d", number)
    assert len(bench.said()) == 10
    bench.clock.advance(300)
    assert len(bench.said()) == 10
    bench.clock.advance(100)
    LOG.warning("later")
    assert bench.said()[-1] == ("warning", "later") and bench.records[-1]["dropped"] == 15
    assert "dropped" not in bench.records[0]


def test_the_queue_is_bounded(bench: Bench) -> None:
    bench.logs.configure(LogConfig(per_hour=100_000))
    bench.clock.advance(3600)
    bench.logs.tick()
    for number in range(QUEUE_MAX + 5):
        LOG.warning("line %d", number)
    assert len(bench.said()) == QUEUE_MAX
    assert bench.records[0] == {"level": "warning", "logger": "tinylcm", "message": "line 5", "dropped": 5}


def test_the_log_speaks_up_for_a_while(bench: Bench) -> None:
    before = LOG.level
    bench.logs.override("debug", 30)
    bench.logs.override("error", 60)
    assert LOG.level == logging.ERROR
    LOG.warning("not now")
    bench.clock.advance(59)
    bench.logs.tick()
    assert LOG.level == logging.ERROR
    bench.clock.advance(2)
    bench.logs.tick()
    assert LOG.level == before
    bench.logs.override("debug", 30)
    LOG.debug("whisper")
    assert bench.said() == [("debug", "whisper")]
    bench.logs.close()
    assert LOG.level == before
    bench.logs.start()


def test_a_configuration_gives_another_level_but_not_over_a_command(bench: Bench) -> None:
    bench.logs.configure(LogConfig("info", 10))
    LOG.info("heard")
    bench.logs.override("error", 30)
    bench.logs.configure(LogConfig("debug", 10))
    LOG.info("not heard")
    bench.clock.advance(31)
    bench.logs.tick()
    LOG.debug("heard again")
    bench.logs.configure(LogConfig("off", 10))
    LOG.error("off")
    assert bench.said() == [("info", "heard"), ("debug", "heard again")]


def test_a_device_without_a_server_only_changes_what_the_application_sees() -> None:
    before, handlers = LOG.level, list(LOG.handlers)
    bench = Bench(LogConfig())
    bench.logs.override("debug", 30)
    assert LOG.level == logging.DEBUG and LOG.handlers == handlers
    bench.clock.advance(31)
    bench.logs.tick()
    assert LOG.level == before
    bench.logs.close()
    assert LOG.level == before and bench.records == []


def test_no_secret_leaves_with_a_line(bench: Bench) -> None:
    secrets = ("ts_0a1b2c3d_" + "s" * 43, "tj_0a1b2c3d_" + "t" * 43, "dabcdefgh2345." + "11" * 32)
    for secret in secrets:
        LOG.warning("cannot use %s", secret)
    LOG.warning("tinysphere+https://h/join#token=abc&root=1 and http://user:pass@proxy:1 Bearer xyz")
    said = [text for _, text in bench.said()]
    assert said[:3] == ["cannot use ***"] * 3
    assert said[3] == "tinysphere+https://h/join#token=***&root=1 and http://***@proxy:1 Bearer ***"
    assert blank("model 1.0.0 of device dabcdefgh2345 is fine") == "model 1.0.0 of device dabcdefgh2345 is fine"
