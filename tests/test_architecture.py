"""The house: who may import whom, and a test for every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.source_tree

BOTTOM = {
    "errors", "types", "checks", "clock", "version", "files", "wire", "config", "keys", "package", "manifest",
    "preprocess", "arrays", "capture", "keyring", "statements", "commands", "remote_config", "schedule", "requires",
}  # fmt: skip
# What each room of the runtime may import from, beside the bottom and `_ext`. Downwards only.
RUNTIME = {
    "stats": set(),
    "drift": {"stats"},
    "backends": set(),
    "window": set(),
    "metrics": {"stats"},
    "system": set(),
    "prometheus": {"metrics", "system"},
    "status": set(),
    "monitors": {"drift", "stats", "calibration"},
    "segments": set(),
    "summaries": set(),
    "wear": set(),
    "compaction": {"segments", "summaries"},
    "log": {"compaction", "segments"},
    "journal_queue": {"log", "segments"},
    "journal": {"journal_queue", "log", "segments", "wear"},
    "journal_tools": {"journal_queue", "segments", "wear"},
    "slots": set(),
    "trial": set(),
    "store": {"slots"},
    "sync": set(),
    "http": set(),
    "identity": set(),
    "sources": {"window"},
    "daemon": set(),
    "doctor": set(),
    "loading": {"backends", "window", "metrics", "monitors", "drift"},
    "pipeline": {"backends", "loading", "window", "metrics", "monitors", "drift", "neighbours", "stats"},
    "neighbours": {"backends", "loading"},
    "worker": {"sources", "window"},
    "bench": {"loading", "pipeline", "metrics"},
    "calibration": {"drift"},
    "tables": set(),
    "drift_report": {"calibration", "tables", "drift_page"},
    "drift_page": {"drift_report"},
    "probe": {"pipeline"},
    "publish": {"loading", "pipeline", "window"},
    "downlink": {"journal"},
    "logs": set(),
    "upload": {"http", "sync"},
    "rekey": {"http", "identity", "sync"},
    "capabilities": {"backends"},
    "download": {"http", "store", "sync"},
    "installer": {"capabilities", "journal", "pipeline", "probe", "slots", "store", "trial"},
    "boards": {"metrics", "slots", "store", "window"},
    "agent": {
        "capabilities", "download", "downlink", "http", "identity", "installer", "journal", "logs", "monitors",
        "pipeline", "rekey", "slots", "store", "sync", "upload",
    },
    "device": {
        "agent", "boards", "capabilities", "http", "identity", "journal", "loading", "metrics", "pipeline", "slots",
        "status", "store", "sync", "system",
    },
}  # fmt: skip
PURE = {"schedule", "slots", "summaries", "sync", "trial", "wear"}
FORBIDDEN_IN_PURE = {"socket", "pathlib", "os", "time", "urllib3", "datetime", "subprocess", "threading", "sqlite3"}
SERVER_MAY = {
    "wire",
    "package",
    "manifest",
    "requires",
    "probe",
    "capabilities",
    "stats",
    "drift",
    "files",
    "errors",
    "keys",
    "statements",
    "checks",
    "types",
    "clock",
    "version",
    "commands",
    "remote_config",
}
# `backends` is the seam through which any other package adds a format: the bridge's `backend` is one of them.
BRIDGE_MAY = {"types", "errors", "wire", "_ext"}
ROUTES_MAY_NOT_BE_IMPORTED_BELOW = {"starlette", "uvicorn"}
LOGIC = {
    "fleet",
    "registry",
    "deployments",
    "expected",
    "groups",
    "lifecycle",
    "audit",
    "people",
    "versions",
    "blobs",
    "commands",
    "selectors",
    "settings",
    "ingest",
    "drifthub",
    "reports",
    "health",
    "usage",
    "feed",
    "joins",
    "preconditions",
    "boards",
    "logs",
    "performance",
    "db",
    "schema",
    "sql",
    "distributions",
    "rollups",
    "jobs",
    "judgements",
    "fleetmetrics",
    "mlflowapi",
    "outbox",
    "tracking",
    "removals",
    "retention",
    "backup",
    "s3store",
    "store",
    "trust",
    "models",
}


# What each room of the bridge may import from: bottom up, as docs/architecture.md draws it.
BRIDGE_BOTTOM = {"errors", "clocks", "frames", "messages"}
BRIDGE: dict[str, set[str]] = {
    "errors": set(),
    "clocks": set(),
    "frames": set(),
    "messages": {"errors", "frames"},
    "protocol": BRIDGE_BOTTOM,
    "transfer": {*BRIDGE_BOTTOM, "protocol"},
    "ports": {"errors"},
    "link": {*BRIDGE_BOTTOM, "protocol", "transfer", "ports"},
    "blob": set(),
    "interpreter": {"blob"},
    "backend": {"blob", "interpreter"},
    "originals": set(),
    "quantise": {"blob", "originals"},
    "convert": {"blob", "interpreter", "originals", "quantise"},
    "slots": {"errors", "messages"},
    "simboard": {*BRIDGE_BOTTOM, "slots", "blob", "interpreter"},
    "simulator": {"errors", "simboard"},
    "gateway": {*BRIDGE_BOTTOM, "protocol", "transfer", "ports", "link", "blob"},
    "boards": {*BRIDGE_BOTTOM, "protocol", "transfer", "ports", "link"},
    "view": {*BRIDGE_BOTTOM, "protocol", "boards"},
    "picture": {"errors"},
}
BRIDGE_PURE = {"errors", "clocks", "frames", "messages", "protocol", "transfer", "interpreter", "simboard"}


def imports_of(path: Path, package: str) -> set[str]:
    """Absolute names of everything that a file imports."""
    found = set()
    parts = package.split(".")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


def files_of(folder: str, name: str) -> list[tuple[Path, str, str]]:
    """(path, package of its relative imports, room) of each Python file."""
    result = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        relative = path.relative_to(ROOT / folder)
        package = ".".join((name, *relative.parent.parts))
        result.append((path, package, relative.parts[0].removesuffix(".py")))
    return result


def rooms(names: set[str], package: str) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith(f"{package}.")}


def test_the_runtime_imports_downwards_only() -> None:
    wrong = []
    for path, package, room in files_of("runtime", "tinylcm"):
        used = rooms(imports_of(path, package), "tinylcm") - {"_ext", room}
        known = {used_room for used_room in used if used_room in BOTTOM | set(RUNTIME)}
        if room in BOTTOM:
            wrong += [(path.name, name) for name in known - BOTTOM]
        elif room in RUNTIME:
            wrong += [(path.name, name) for name in known - BOTTOM - RUNTIME[room]]
    assert wrong == []


def test_every_room_of_the_runtime_has_a_place_in_the_table() -> None:
    placed = BOTTOM | set(RUNTIME) | {"__init__", "_ext", "cli", "console", "journal_cli", "board_cli", "line_cli"}
    assert {room for _, _, room in files_of("runtime", "tinylcm")} - placed == set()


def test_the_pure_modules_know_no_socket_file_or_clock() -> None:
    for path, package, room in files_of("runtime", "tinylcm"):
        if room in PURE:
            assert {name.split(".")[0] for name in imports_of(path, package)} & FORBIDDEN_IN_PURE == set(), path


def test_the_server_takes_only_shared_rooms_of_the_runtime_and_nobody_takes_the_server() -> None:
    for path, package, _ in files_of("server", "tinysphere"):
        names = imports_of(path, package)
        assert rooms(names, "tinylcm") - SERVER_MAY == set(), path
        assert not any(name.startswith("firmware_bridge") for name in names), path
    for folder, name in (("runtime", "tinylcm"), ("firmware_bridge", "firmware_bridge")):
        for path, package, _ in files_of(folder, name):
            assert not any(item.split(".")[0] == "tinysphere" for item in imports_of(path, package)), path


def test_the_bridge_takes_only_values_and_the_seam_of_backends_from_the_runtime() -> None:
    for path, package, room in files_of("firmware_bridge", "firmware_bridge"):
        taken = rooms(imports_of(path, package), "tinylcm")
        allowed = BRIDGE_MAY | ({"backends"} if room in ("backend", "originals") else set())
        assert taken - allowed == set(), path


def test_there_is_no_http_below_the_routes() -> None:
    for path, package, room in files_of("server", "tinysphere"):
        if room in LOGIC:
            tops = {name.split(".")[0] for name in imports_of(path, package)}
            assert tops & ROUTES_MAY_NOT_BE_IMPORTED_BELOW == set(), path
            assert "tinysphere.routes" not in imports_of(path, package), path


def test_the_client_imports_nothing_of_the_server() -> None:
    names = imports_of(ROOT / "server" / "client.py", "tinysphere")
    assert not any(name.startswith("tinysphere") for name in names)


def test_the_bridge_imports_downwards_only() -> None:
    for path, package, room in files_of("firmware_bridge", "firmware_bridge"):
        names = imports_of(path, package)
        assert not any(name.startswith("tinylcm._ext.") and name.split(".")[2] != "frame" for name in names), path
        if room in BRIDGE:
            assert (rooms(names, "firmware_bridge") & set(BRIDGE)) - BRIDGE[room] - {room} == set(), path
        if room in BRIDGE_PURE:
            assert {name.split(".")[0] for name in names} & (FORBIDDEN_IN_PURE | {"serial", "select"}) == set(), path


def test_every_room_of_the_bridge_has_a_place_in_the_table() -> None:
    placed = set(BRIDGE) | {"__init__", "c"}
    assert {room for _, _, room in files_of("firmware_bridge", "firmware_bridge")} - placed == set()


def test_only_the_commands_and_the_boards_of_a_device_load_the_bridge() -> None:
    for path, package, room in files_of("runtime", "tinylcm"):
        if room not in {"board_cli", "line_cli", "boards"}:
            assert not any(name.startswith("firmware_bridge") for name in imports_of(path, package)), path


@pytest.mark.parametrize(
    ("folder", "tests"),
    [("runtime", "runtime"), ("server", "server"), ("firmware_bridge", "firmware_bridge")],
)
def test_every_module_has_its_tests(folder: str, tests: str) -> None:
    there = {path.name for path in (ROOT / "tests" / tests).glob("test_*.py")}
    exempt = {"__init__", "version", "types", "models"}  # values and tables without behaviour
    modules = {path.stem for path in (ROOT / folder).glob("*.py")} - exempt
    assert {f"test_{module}.py" for module in modules} - there == set()


def test_folder_names_are_never_imported() -> None:
    for top in ("runtime", "server", "firmware_bridge", "tests", "examples", "benchmarks", "scripts"):
        for path in (ROOT / top).rglob("*.py"):
            tops = {name.split(".")[0] for name in imports_of(path, "x")}
            assert tops & {"runtime", "server"} == set(), path


def test_importing_the_library_loads_no_backend_and_no_numpy_for_the_wire() -> None:
    code = (
        "import sys, tinylcm, tinylcm.wire;"
        "loaded = {'onnxruntime', 'numpy', 'starlette', 'psutil', 'urllib3'} & set(sys.modules);"
        "print(sorted(loaded)); import tinylcm.pipeline; print('onnxruntime' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["[]", "False"]
