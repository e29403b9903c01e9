"""device.toml: every wrong key has its message."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from tinylcm.config import BoardConfig, DeviceConfig, default_toml, load_config, parse_config
from tinylcm.errors import ConfigError


def test_the_written_default_is_the_default(tmp_path: Path) -> None:
    written = parse_config(tomllib.loads(default_toml()), tmp_path)
    assert written == parse_config({}, tmp_path) == DeviceConfig(tmp_path / "tinylcm-data")


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"devise": {}}, r"device.toml.devise: is not known here; known: device, server"),
        ({"board": {}}, "device.toml.board: expected a list"),
        ({"board": [{}]}, r"board\[0\].uid: is missing: give uid, port, or both"),
        ({"board": [{"uid": "a", "speed": 1}]}, r"board\[0\].speed: is not known here"),
        ({"board": [{"uid": "a"}, {"uid": "a"}]}, "board: has a uid twice"),
        ({"board": [{"uid": "a", "model": "A B"}]}, r"board\[0\].model: 'A B' is no model name"),
        ({"board": [{"uid": "a", "streams": {"imu": "A B"}}]}, "streams.imu: 'A B' is no model name"),
        ({"board": [{"uid": "a", "streams": {"imu": 1}}]}, "streams.imu: expected str, got int"),
        ({"board": [{"port": 7}]}, "port: expected str, got int"),
        ({"board": [{"port": [7]}]}, r"port\[0\]: expected a string"),
        ({"board": [{"uid": "a", "baud": -1}]}, "baud: is -1"),
        ({"board": [{"uid": "x" * 65}]}, "uid: has 65 characters"),
        ({"device": {"metrics_interval_s": "fast"}}, "metrics_interval_s: expected a finite number"),
        ({"device": {"metrics_interval_s": float("nan")}}, "metrics_interval_s: expected a finite number"),
        ({"device": {"threads": 0}}, "threads: is 0, expected 1 to 1024"),
        ({"device": {"threads": True}}, "threads: expected int, got bool"),
        ({"device": {"ring_samples": -1}}, "ring_samples: is -1"),
        ({"server": {"backoff_max_s": 0.5}}, "backoff_max_s: is smaller than backoff_min_s"),
        ({"server": {"insecure": 1}}, "insecure: expected bool, got int"),
        ({"journal": {"journal_bytes_max": 1000}}, "journal_bytes_max: is 1000"),
        ({"journal": {"journal_bytes_max": 1 << 20}}, "must hold events_bytes_max"),
        ({"journal": {"urgent": "sample"}}, "urgent: expected a list, got str"),
        ({"journal": {"urgent": [1]}}, r"urgent\[0\]: expected a string"),
        ({"models": {"Bad Name": {"package": "x"}}}, "no model name"),
        ({"models": {"good": {"pakage": "x"}}}, "pakage: is not known"),
        ({"trial": {"windows": 0}}, "windows: is 0"),
    ],
)
def test_a_wrong_key_is_named(document: dict, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_config(document, tmp_path)


def test_boards_are_read(tmp_path: Path) -> None:
    one = {
        "uid": "n-7",
        "port": "/dev/ttyACM*",
        "baud": 9600,
        "model": "wrist",
        "streams": {"imu": "activity", "1": "b"},
    }
    found = parse_config({"board": [one, {"port": ["/dev/a", "socket://h:1"], "name": "left"}]}, tmp_path).boards
    assert found == (
        BoardConfig("n-7", ("/dev/ttyACM*",), 9600, "", "wrist", {"imu": "activity", "1": "b"}),
        BoardConfig(ports=("/dev/a", "socket://h:1"), name="left"),
    )
    example = default_toml().split("# [[board]]")[1].splitlines()[1:]
    text = "[[board]]\n" + "\n".join(line.removeprefix("# ") for line in example)
    (board,) = parse_config(tomllib.loads(text), tmp_path).boards
    assert (board.uid, board.streams) == ("nucleo-7", {"imu": "activity"})


def test_files_that_are_missing_or_no_toml_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tinylcm init"):
        load_config(tmp_path / "device.toml")
    (tmp_path / "device.toml").write_text("= 3")
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config(tmp_path / "device.toml")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "device.toml").write_text('[device]\ndata = "d"\n[models.a]\npackage = "a.tlm"\n')
    config = load_config(tmp_path / "device.toml")
    assert config.data == tmp_path.resolve() / "d" and config.models["a"].package == tmp_path.resolve() / "a.tlm"
