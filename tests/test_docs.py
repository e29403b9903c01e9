"""The documentation says what the code does: names are complete, generated parts current, links and examples work."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import tinylcm
from tinylcm import capture, config, errors, manifest, preprocess, wire
from tinylcm._ext.prediction import FIELDS as PREDICTION_FIELDS
from tinylcm.backends import BUILT_IN
from tinylcm.cli import make_parser as tinylcm_parser
from tinylcm.keys import init_keys, load_public, pin_root
from tinylcm.package import MAGIC
from tinylcm.publish import INPUT_KEYS, MANIFEST_KEYS, WINDOW_KEYS, build
from tinylcm.segments import JOURNAL_SCHEMA
from tinysphere.app import ROUTES
from tinysphere.auth import ROLES, SCOPES
from tinysphere.cli import make_parser as tinysphere_parser
from tinysphere.config import ServerConfig
from tinysphere.errors import PROBLEMS
from tinysphere.ingest import DEPLOYMENT_STATES

from firmware_bridge import errors as bridge_errors
from firmware_bridge import messages, protocol
from firmware_bridge.errors import ERROR_NAMES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
RECORD_TYPES = {
    "alarm", "label", "deployment", "summary", "device", "gap", "command_result", "config_result", "log",
    "sample",
}  # fmt: skip
WIRE_TYPES = [
    wire.SyncRequest,
    wire.SyncResponse,
    wire.Anchor,
    wire.Board,
    wire.RunningModel,
    wire.Desired,
    wire.DesiredModel,
    wire.Refused,
    tinylcm.Record,
]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(.*?)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def page(name: str) -> str:
    return (DOCS / name).read_text()


def missing(names: set[str], text: str) -> list[str]:
    """The names that stand nowhere on a page as code."""
    words = re.findall(r"[A-Za-z0-9_./{}:-]+", " ".join(re.findall(r"`([^`\n]+)`", text)))
    known = {*words, *(part for word in words for part in word.split("."))}
    return sorted(names - known)


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    children = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not children:
        yield parser
    for action in children:
        for child in action.choices.values():
            yield from commands(child)


@pytest.mark.parametrize("parser", [tinylcm_parser(), tinysphere_parser()], ids=lambda parser: parser.prog)
def test_every_command_and_option_is_documented(parser: argparse.ArgumentParser) -> None:
    text = page("cli.md")
    found = list(commands(parser))
    assert len(found) > 10
    assert [command.prog for command in found if f"### {command.prog}\n" not in text] == []
    options = {option for command in found for action in command._actions for option in action.option_strings}
    assert missing(options - {"-h"}, text) == []


def test_every_key_of_device_toml_is_documented() -> None:
    text = page("configuration.md")
    types = [
        config.DeviceConfig,
        config.ServerConfig,
        config.JournalConfig,
        config.TrialConfig,
        config.LogConfig,
        config.ModelConfig,
        config.BoardConfig,
    ]
    tables = {"server", "journal", "trial", "log", "models", "capture", "boards"}  # tables of their own
    keys = {item.name for kind in (*types, capture.CapturePolicy) for item in fields(kind)} - tables
    assert missing(keys - {"ports"} | {"port"}, text) == []
    for line in config.default_toml().split("# [[board]]")[0].splitlines():  # there it is an example
        found = re.match(r"(?:# )?([a-z_]+) = (\S+)", line)
        if found and found[1] != "package":
            assert re.search(rf"\| `{found[1]}` \| `{re.escape(found[2])}`", text), f"the default of {line!r}"


def test_every_limit_of_the_server_is_documented() -> None:
    assert missing({item.name for item in fields(ServerConfig)}, page("configuration.md")) == []


def test_every_route_scope_and_problem_is_documented() -> None:
    text = page("http-api.md")
    assert [route.path for route in ROUTES if f"`{route.method} {route.path}`" not in text] == []
    assert missing({*SCOPES, *ROLES, "public", "device", "any"}, text) == []
    assert missing({problem.slug for problem in PROBLEMS.values()}, text) == []


def test_every_error_and_public_name_is_documented() -> None:
    text = page("python-api.md")
    classes = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)}
    assert {"TinyLCMError", "InputError"} <= classes
    names = {*classes, *tinylcm.__all__, *tinylcm.drift.__all__, *tinylcm.stats.__all__}
    values = {*PREDICTION_FIELDS, *(item.name for item in fields(tinylcm.Alarm))}
    assert missing(names | values, text) == []


def test_every_key_of_a_manifest_is_documented() -> None:
    text = page("inference.md")
    kinds = (manifest.PostSpec, manifest.Budget, manifest.StageSpec)
    keys = {*MANIFEST_KEYS, *INPUT_KEYS, *WINDOW_KEYS, *(item.name for kind in kinds for item in fields(kind))}
    values = {*manifest.MISSING, *manifest.REPEATED, *manifest.ACTIVATIONS, *BUILT_IN, manifest.CHAIN}
    assert missing(keys | values, text) == []
    assert missing({*preprocess.OPS, *capture.PRIVACY}, text) == []


def test_the_manifests_shown_are_right() -> None:
    blocks = [found[2] for found in BLOCK.finditer(page("inference.md")) if found[1].strip() == "toml"]
    assert len(blocks) == 4
    formats = {manifest.parse_manifest(tomllib.loads(body)).format for body in blocks}
    assert formats == {"onnx", "tflite", "chain"}


@pytest.mark.parametrize("kind", WIRE_TYPES, ids=lambda kind: kind.__name__)
def test_every_field_on_the_wire_is_documented(kind: type) -> None:
    assert is_dataclass(kind)
    assert missing({item.name for item in fields(kind)}, page("wire.md")) == []


def test_every_record_type_and_file_format_is_documented() -> None:
    text = page("wire.md")
    assert missing(RECORD_TYPES | set(DEPLOYMENT_STATES) | {"golden.f32", "model.onnx"}, text) == []
    assert f"`WIRE_VERSION` is {wire.WIRE_VERSION}" in text
    assert f"schema {JOURNAL_SCHEMA}" in text
    assert MAGIC.decode().strip() in text


def test_every_message_code_and_key_of_the_serial_line_is_documented() -> None:
    text = page("wire.md")
    line = text[text.index("## The serial line") :]
    rows = {(number, name) for number, name in re.findall(r"^\| ([0-9a-f]{2}) \| ([A-Z_]+) \|", line, re.MULTILINE)}
    assert rows == {(f"{kind:02x}", name) for kind, name in messages.NAMES.items()}
    codes = {(int(code), name) for code, name in re.findall(r"^\| (\d+) \| `([A-Z]+)` \|", line, re.MULTILINE)}
    assert codes == set(ERROR_NAMES.items())
    keys = {item.name for kind in (messages.Sensor, messages.Metrics) for item in fields(kind)} - {"more"}
    keys |= {item.name for item in fields(messages.Caps)}
    assert missing(keys, line) == []


def test_every_error_and_event_of_the_bridge_is_documented() -> None:
    kinds = [kind for kind in vars(bridge_errors).values() if inspect.isclass(kind) and issubclass(kind, Exception)]
    events = {name for name in protocol.__all__ if name[0].isupper()} - {"RETRY_S", "StreamCounts", "Event"}
    names = {kind.__name__ for kind in kinds if kind.__module__ == bridge_errors.__name__} | events
    assert missing(names, page("python-api.md")) == []


@pytest.mark.source_tree
def test_every_record_type_of_the_server_is_known_here() -> None:
    source = (ROOT / "server" / "ingest.py").read_text()
    handlers = source[source.index("_HANDLERS: Final") :]
    assert set(re.findall(r'^    "(\w+)": ', handlers, re.MULTILINE)) == RECORD_TYPES


@pytest.mark.source_tree
def test_generated_parts_are_current() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "make_docs.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def anchors(text: str) -> set[str]:
    prose = BLOCK.sub("", text)
    titles = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path: Path) -> None:
    text = path.read_text()
    for target in LINK.findall(BLOCK.sub("", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        found = (path.parent / name).resolve() if name else path
        assert found.exists(), f"{target} leads nowhere"
        if anchor:
            assert anchor in anchors(found.read_text()), f"{target}: no such heading"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_tests_that_are_named_exist(path: Path) -> None:
    named = re.findall(r"`((?:tests|examples|docs)/[\w/.-]+\.\w+)(?:::(\w+))?`", path.read_text())
    assert [name for name, _ in named if not (ROOT / name).exists()] == []
    tests = [(name, test) for name, test in named if test]
    assert [test for name, test in tests if f"def {test}(" not in (ROOT / name).read_text()] == []


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_every_page_is_in_the_index(path: Path) -> None:
    assert path.name == "README.md" or f"]({path.name})" in page("README.md")


@pytest.mark.parametrize("name", ["quickstart.md", "python-api.md", "inference.md"])
def test_examples_run(name: str, tmp_path: Path, activity: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source in activity.iterdir():
        if source.is_file():
            shutil.copy(source, tmp_path)
    shutil.copytree(activity / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = page(name)
    blocks = [(found.start(), found[1].strip(), found[2]) for found in BLOCK.finditer(text)]
    python = [(start, body) for start, kind, body in blocks if kind == "python"]
    assert len(python) >= 2
    for _, kind, body in blocks:
        if kind == "python no-run":
            assert body.startswith("# Not run"), f"say why it is not run: {body[:60]!r}"
            compile(body, name, "exec")
    scope: dict[str, object] = {"__name__": "docs"}
    for start, body in python:
        line = text.count("\n", 0, start) + 1
        exec(compile("\n" * line + body, str(DOCS / name), "exec"), scope)  # the page's own line numbers


def readme_blocks(kind: str) -> list[str]:
    return [found[2] for found in BLOCK.finditer((ROOT / "README.md").read_text()) if found[1].strip() == kind]


def test_the_python_of_the_readme_runs(
    tmp_path: Path, activity: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recordings = np.load(activity / "data" / "basic_motions.npz")["x_test"].transpose(0, 2, 1)
    shutil.copy(activity / "model.onnx", tmp_path)
    init_keys(tmp_path / "keys")
    package = build(activity / "model.onnx", activity / "model.toml", tmp_path / "keys" / "release.key")
    (tmp_path / "activity.tlm").write_bytes(package)
    pin_root(tmp_path / "d" / "trust", load_public(tmp_path / "keys" / "root.pub"))
    (tmp_path / "device.toml").write_text('[device]\ndata = "d"\n[models.activity]\npackage = "activity.tlm"\n')
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {"window": recordings[0], "samples": list(recordings[0])}
    blocks = readme_blocks("python")
    assert len(blocks) == 2
    try:
        for body in blocks:
            exec(compile(body, "README.md", "exec"), scope)
    finally:
        if "device" in scope:
            scope["device"].close()  # type: ignore[attr-defined]
    assert capsys.readouterr().out.startswith(("badminton", "running", "standing", "walking", "0", "1", "2", "3"))


def test_the_server_commands_of_the_readme_run(tmp_path: Path) -> None:
    (block,) = (body for body in readme_blocks("sh") if "tinysphere serve" in body)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    script = block.replace("8080", port).replace("--data fleet &", f"--data fleet --port {port} &\nSERVER=$!", 1)
    script = script.replace("tinylcm keys init keys\n", "tinylcm keys init keys\nsleep 4\n", 1)  # until it listens
    script = f"set -e\ntrap 'kill $SERVER' EXIT\n{script}"
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert "tinysphere+http://127.0.0.1" in result.stdout and "deployment 1: activity 1.0.0 to all" in result.stdout
