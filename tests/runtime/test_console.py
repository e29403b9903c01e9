"""What the commands share: options, the configuration they find, and progress only for a terminal."""

from __future__ import annotations

import argparse
import io
import json
import sys
from pathlib import Path

import pytest
from tinylcm.console import add_command, configuration, counter, print_result, progress_bar
from tinylcm.errors import ConfigError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers(), "do", lambda arguments: None, "do it")
    return parser.parse_args(["do", *arguments])


def test_a_result_is_text_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(parse(), {"x": float("nan")}, "text")
    print_result(parse("--json"), {"x": float("nan")}, "text")
    first, second = capsys.readouterr().out.splitlines()
    assert first == "text" and json.loads(second) == {"x": None}


def test_the_configuration_is_the_named_one_the_one_here_or_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert configuration(parse()).data == tmp_path / "tinylcm-data"
    (tmp_path / "device.toml").write_text('[device]\nname = "here"\n')
    (tmp_path / "other.toml").write_text('[device]\nname = "there"\n')
    assert configuration(parse()).name == "here"
    assert configuration(parse("--config", "other.toml")).name == "there"
    with pytest.raises(ConfigError, match="does not exist"):
        configuration(parse("--config", "missing.toml"))


def test_progress_is_shown_on_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, shown in ((io.StringIO(), False), (Terminal(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        with counter("records") as count, progress_bar("measuring") as share:
            assert (count is None) == (share is None) == (not shown)
            if count is not None and share is not None:
                count(7)
                share(0.5)
                share(2.0)
        text = stream.getvalue()
        assert ("7 records" in text and " 50 %" in text and "100 %" in text) if shown else text == ""
