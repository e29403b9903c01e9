"""`tinysphere`: run the server, make tokens on its machine, and use its API from anywhere."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tinylcm.commands import COMMANDS
from tinylcm.errors import ConfigError, TinyLCMError
from tinylcm.files import device_error, read_bounded, write_atomic
from tinylcm.package import load_package

from . import __version__, access_cli, host_cli, simulate, telemetry_cli, tracking_cli
from .client import ClientError, Fields
from .errors import StartError, TinySphereError
from .output import client_of, emit, table, when
from .requestid import RequestIdFilter

CA_BYTES_MAX: Final = 256 << 10
SETTINGS_BYTES_MAX: Final = 256 << 10
BUILD_TIMEOUT_S: Final = 600.0


# over HTTP ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _built(arguments: argparse.Namespace) -> Iterator[Path]:
    """The package to upload: as given, or built and signed from a model by `tinylcm package build`."""
    path = Path(arguments.file)
    if not path.is_file():
        raise ConfigError(f"{path} does not exist")
    if path.suffix == ".tlm":
        if arguments.meta:
            raise ConfigError(f"{path} is signed as it is: metadata is given when it is built")
        yield path
        return
    if not arguments.manifest or not arguments.key:
        raise ConfigError(f"{path} is no package (.tlm); to build one of a model give --manifest and --key")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "package.tlm"
        command = ["package", "build", str(path), "--manifest", arguments.manifest, "--key", arguments.key]
        command += [f"--meta={pair}" for pair in arguments.meta or ()]
        result = subprocess.run(
            [sys.executable, "-m", "tinylcm.cli", *command, "-o", str(output)],
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_TIMEOUT_S,
        )
        if result.returncode != 0:
            raise TinySphereError(result.stderr.strip().removeprefix("tinylcm: ") or "the package could not be built")
        yield output


def _upload(arguments: argparse.Namespace) -> None:
    client = client_of(arguments)
    with _built(arguments) as path:
        name, size = load_package(path, None).manifest.name, path.stat().st_size
        progress = None
        if sys.stderr.isatty():
            progress = lambda sent: print(f"\r{sent / size:4.0%} of {size} bytes", end="", file=sys.stderr)  # noqa: E731
        version = client.upload(path, name, progress=progress)
        if progress is not None:
            print(file=sys.stderr)
    emit(arguments, version, f"{version['model']} {version['version']}  sha256 {version['sha256']}")


def _deploy(arguments: argparse.Namespace) -> None:
    made = client_of(arguments).deploy(arguments.model, arguments.version, arguments.selector)
    text = f"deployment {made['id']}: {made['model']} {made['version']} to {made['selector']}"
    emit(arguments, made, text)


def _abort(arguments: argparse.Namespace) -> None:
    made = client_of(arguments).abort(arguments.id)
    emit(arguments, made, f"deployment {made['id']} is {made['state']}")


def _runs(row: Fields) -> str:
    running = row["running"]
    return (
        ", ".join(f"{m['model']} {m['version']} ({m['state']})" for m in running) if isinstance(running, list) else ""
    )


def _devices(arguments: argparse.Namespace) -> None:
    rows = client_of(arguments).devices()
    columns: dict[str, Callable[[Fields], object]] = {
        "id": lambda row: row["id"],
        "name": lambda row: row["name"],
        "state": lambda row: "online" if row["online"] else "away",
        "last seen (UTC)": lambda row: when(row["last_seen_at"]),
        "runs": _runs,
        "alarms": lambda row: row["alarms"],
    }
    emit(arguments, {"items": rows}, table(rows, columns, "no devices; make a join string: tinysphere join create"))


def _device(arguments: argparse.Namespace) -> None:
    client = client_of(arguments)
    changes: dict[str, object] = {}
    if arguments.label:
        changes["labels"] = _pairs(arguments.label)
    if arguments.place:
        latitude, _, longitude = arguments.place.partition(",")
        try:
            changes |= {"latitude": float(latitude), "longitude": float(longitude)}
        except ValueError:
            raise ConfigError(f"--place is {arguments.place!r:.50}, expected degrees such as 52.5,13.4") from None
    if changes:
        client.change_device(arguments.id, **changes)
    if arguments.revoke:
        client.revoke_device(arguments.id)
    if arguments.retire:
        client.retire_device(arguments.id)
    found = client.device(arguments.id)
    emit(arguments, found, json.dumps(found, indent=2))


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    if wrong := next((text for text in texts if "=" not in text), None):
        raise ConfigError(f"{wrong!r:.70} is no KEY=VALUE")
    return dict(text.partition("=")[::2] for text in texts)


def _group_list(arguments: argparse.Namespace) -> None:
    rows = client_of(arguments).groups()
    columns: dict[str, Callable[[Fields], object]] = {
        "name": lambda row: row["name"],
        "devices": lambda row: row["devices"],
        "selector": lambda row: row["selector"],
    }
    emit(arguments, {"items": rows}, table(rows, columns, "no groups; make one: tinysphere group set NAME SELECTOR"))


def _group_set(arguments: argparse.Namespace) -> None:
    made = client_of(arguments).set_group(arguments.name, arguments.selector)
    emit(arguments, made, f"group {made['name']}: {made['selector']}, {made['devices']} devices now")


def _group_remove(arguments: argparse.Namespace) -> None:
    gone = client_of(arguments).remove_group(arguments.name)
    emit(arguments, gone, f"group {gone['name']} is removed")


def _expect_add(arguments: argparse.Namespace) -> None:
    made = client_of(arguments).announce(arguments.serial, arguments.name, _pairs(arguments.label or []))
    emit(arguments, made, f"{made['serial']} will be {made['name']}")


def _expect_list(arguments: argparse.Namespace) -> None:
    rows = client_of(arguments).expected()
    columns: dict[str, Callable[[Fields], object]] = {
        "serial": lambda row: row["serial"],
        "name": lambda row: row["name"],
        "came as": lambda row: row["device_id"] or "-",
    }
    emit(
        arguments, {"items": rows}, table(rows, columns, "no devices are announced: tinysphere expect add SERIAL NAME")
    )


def _expect_remove(arguments: argparse.Namespace) -> None:
    gone = client_of(arguments).withdraw(arguments.serial)
    emit(arguments, gone, f"{gone['serial']} is not expected any more")


def _fleet_export(arguments: argparse.Namespace) -> None:
    table = client_of(arguments).export_devices()
    if arguments.file is None:
        emit(arguments, {"csv": table}, table.rstrip("\n"))
        return
    write_atomic(Path(arguments.file), table.encode())
    emit(arguments, {"file": arguments.file}, f"{table.count(chr(10)) - 1} devices are in {arguments.file}")


def _fleet_import(arguments: argparse.Namespace) -> None:
    text = read_bounded(Path(arguments.file), SETTINGS_BYTES_MAX * 4).decode("utf-8-sig", "replace")
    done = client_of(arguments).import_devices(text)
    emit(arguments, done, f"{done['announced']} devices announced, {done['changed']} changed")


def _models(arguments: argparse.Namespace) -> None:
    rows = client_of(arguments).models()
    text = "\n".join("  ".join(f"{key}={value}" for key, value in row.items()) for row in rows)
    emit(arguments, {"items": rows}, text or "no models; upload one: tinysphere upload PACKAGE.tlm")


def _model_show(arguments: argparse.Namespace) -> None:
    client = client_of(arguments)
    found = {"name": arguments.model, "versions": client.versions(arguments.model)}
    names: dict[object, list[str]] = {}
    for alias in client.aliases(arguments.model):
        names.setdefault(alias["version"], []).append(f"@{alias['alias']}")
    rows = found["versions"]
    assert isinstance(rows, list)
    columns: dict[str, Callable[[Fields], object]] = {
        "version": lambda row: " ".join([str(row["version"]), *names.get(row["version"], [])]),
        "uploaded (UTC)": lambda row: when(row["uploaded_at"]),
        "by": lambda row: row["uploaded_by"],
        "size": lambda row: row["size"],
        "lineage": lambda row: " ".join(f"{key}={value}" for key, value in _of(row, "lineage").items()) or "-",
        "probe": lambda row: _probed(_of(row, "probe")),
    }
    emit(arguments, found, table(rows, columns, "no versions"))


def _of(row: Fields, key: str) -> Fields:
    found = row[key]
    assert isinstance(found, dict)
    return found


def _probed(probe: Fields) -> str:
    latency = probe.get("latency_us")
    return f"{latency:.0f} us" if isinstance(latency, int | float) else str(probe.get("skipped", "-"))


def _model_compare(arguments: argparse.Namespace) -> None:
    found = client_of(arguments).compare(arguments.model, arguments.a, arguments.b)
    rows = found["differences"]
    assert isinstance(rows, list)
    columns: dict[str, Callable[[Fields], object]] = {
        "place": lambda row: row["place"],
        arguments.a: lambda row: "-" if row["a"] is None else row["a"],
        arguments.b: lambda row: "-" if row["b"] is None else row["b"],
    }
    emit(arguments, found, table(rows, columns, "the manifests are the same"))


def _model_alias(arguments: argparse.Namespace) -> None:
    made = client_of(arguments).set_alias(arguments.model, arguments.alias, arguments.version)
    emit(arguments, made, f"{made['model']} @{made['alias']} is {made['version']}")


def _model_unalias(arguments: argparse.Namespace) -> None:
    gone = client_of(arguments).remove_alias(arguments.model, arguments.alias)
    emit(arguments, gone, f"{gone['model']} @{gone['alias']} is gone, {gone['version']} stays")


def _model_remove(arguments: argparse.Namespace) -> None:
    gone = client_of(arguments).remove_version(arguments.model, arguments.version)
    emit(arguments, gone, f"{gone['model']} {gone['version']} is removed")


def _model_fetch(arguments: argparse.Namespace) -> None:
    found = client_of(arguments).fetch(arguments.model, arguments.version, Path(arguments.file))
    text = f"{found['model']} {found['version']}: {found['size']} bytes are in {arguments.file}"
    emit(arguments, {"file": arguments.file, "bytes": found["size"], **found}, text)


def _deployments(arguments: argparse.Namespace) -> None:
    if arguments.id is not None:
        _one_deployment(arguments)
        return
    rows = client_of(arguments).deployments()
    columns: dict[str, Callable[[Fields], object]] = {
        "id": lambda row: row["id"],
        "model": lambda row: f"{row['model']} {row['version']}",
        "selector": lambda row: row["selector"],
        "state": lambda row: row["state"],
        "devices": lambda row: row["states"],
        "created (UTC)": lambda row: when(row["created_at"]),
    }
    emit(arguments, {"items": rows}, table(rows, columns, "no deployments"))


_ON_DEVICES: Final[dict[str, Callable[[Fields], object]]] = {
    "device": lambda row: row["device_id"],
    "name": lambda row: row["device_name"],
    "state": lambda row: row["state"],
    "since (UTC)": lambda row: when(row["updated_at"]),
    "reason": lambda row: row.get("reason", row.get("detail")) or "-",
}


def _one_deployment(arguments: argparse.Namespace) -> None:
    client = client_of(arguments)
    found = client.deployment(arguments.id)
    devices = client.deployment_devices(arguments.id, arguments.state)
    head = f"{found['model']} {found['version']} to {found['selector']}: {found['state']}, {found['states']}"
    emit(arguments, {**found, "devices": devices}, f"{head}\n{table(devices, _ON_DEVICES, 'no device has it yet')}")


def _value(text: str) -> object:
    """A command's argument: JSON where it is some, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _give_command(arguments: argparse.Namespace) -> None:
    pairs = [pair.partition("=") for pair in arguments.arg or ()]
    if not all(equals for _, equals, _ in pairs):
        raise ConfigError("--arg is KEY=VALUE, such as --arg model=activity")
    args = {key: _value(value) for key, _, value in pairs}
    made = client_of(arguments).command(arguments.selector, arguments.name, args, expires_in_s=arguments.expires_s)
    emit(arguments, made, f"command {made['id']}: {made['name']} to {made['selector']}; see `tinysphere commands`")


def _commands(arguments: argparse.Namespace) -> None:
    if arguments.id is not None:
        client = client_of(arguments)
        found = client.command_state(arguments.id)
        devices = client.command_devices(arguments.id, arguments.state)
        head = f"{found['name']} to {found['selector']}: {found['states']}"
        emit(arguments, {**found, "devices": devices}, f"{head}\n{table(devices, _ON_DEVICES, 'no device is meant')}")
        return
    rows = client_of(arguments).commands()
    columns: dict[str, Callable[[Fields], object]] = {
        "id": lambda row: row["id"],
        "command": lambda row: row["name"],
        "selector": lambda row: row["selector"],
        "devices": lambda row: row["states"],
        "given (UTC)": lambda row: when(row["created_at"]),
    }
    emit(arguments, {"items": rows}, table(rows, columns, "no commands"))


def _config_set(arguments: argparse.Namespace) -> None:
    path = Path(arguments.file)
    try:
        settings = tomllib.loads(read_bounded(path, SETTINGS_BYTES_MAX).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    made = client_of(arguments).set_config(settings, arguments.scope)
    emit(arguments, made, f"version {made['version']} for {made['scope']}")


def _config_show(arguments: argparse.Namespace) -> None:
    found = client_of(arguments).config(arguments.scope)
    emit(arguments, found, json.dumps(found, indent=2))


def _config_list(arguments: argparse.Namespace) -> None:
    rows = client_of(arguments).config_scopes()
    columns: dict[str, Callable[[Fields], object]] = {
        "scope": lambda row: row["scope"],
        "version": lambda row: row["version"],
        "keys": lambda row: row["keys"],
        "set (UTC)": lambda row: when(row["created_at"]),
        "by": lambda row: row["created_by"],
    }
    emit(arguments, {"items": rows}, table(rows, columns, "nothing was set: tinysphere config set FILE.toml"))


def _config_history(arguments: argparse.Namespace) -> None:
    rows = client_of(arguments).config_versions(arguments.scope)
    columns: dict[str, Callable[[Fields], object]] = {
        "version": lambda row: row["version"],
        "set (UTC)": lambda row: when(row["created_at"]),
        "by": lambda row: row["created_by"],
        "settings": lambda row: json.dumps(row["settings"]),
    }
    emit(arguments, {"items": rows}, table(rows, columns, "nothing was set"))


def _config_diff(arguments: argparse.Namespace) -> None:
    found = client_of(arguments).config_diff(arguments.scope, arguments.before, arguments.after)
    changes = found["changes"]
    assert isinstance(changes, list)
    columns: dict[str, Callable[[Fields], object]] = {
        "key": lambda row: row["key"],
        f"version {found['before']}": lambda row: "-" if row["before"] is None else json.dumps(row["before"]),
        f"version {found['after']}": lambda row: "-" if row["after"] is None else json.dumps(row["after"]),
    }
    emit(arguments, found, table(changes, columns, f"{found['before']} and {found['after']} say the same"))


def _config_of(arguments: argparse.Namespace) -> None:
    found = client_of(arguments).device_config(arguments.device)
    settings, sources, reported = found["settings"], found["sources"], found["reported"]
    assert isinstance(settings, dict) and isinstance(sources, dict)
    lines = [f"version {found['version']} of {', '.join(map(str, _list(found, 'scopes')))}"]
    for key, scope in sorted(sources.items()):
        value: object = settings
        for part in key.split("."):
            assert isinstance(value, dict)
            value = value[part]
        lines.append(f"{key} = {json.dumps(value)}    from {scope}")
    if isinstance(reported, dict):
        lines.append(f"the device: version {reported['version']} {reported['state']} {reported['reason']}".rstrip())
    emit(arguments, found, "\n".join(lines))


def _list(found: Fields, key: str) -> list[object]:
    items = found[key]
    assert isinstance(items, list)
    return items


# the parser -----------------------------------------------------------------------------------------------


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    handler: Callable[[argparse.Namespace], None],
    help: str,
    *,
    data: bool = False,
    http: bool = False,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(handler=handler)
    parser.add_argument("--json", action="store_true", help="print JSON for scripts")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    if data:
        parser.add_argument(
            "--data",
            required=not http,
            metavar="DIR",
            help="the server's data folder" + (", on its own machine, instead of --server" if http else ""),
        )
        parser.add_argument(
            "--database", metavar="URL", help="postgresql://... instead of SQLite in DIR (or TINYSPHERE_DATABASE)"
        )
    if http:
        parser.add_argument("--server", metavar="URL", help="the server (or TINYSPHERE_URL)")
        parser.add_argument("--token", metavar="TOKEN", help="a user token (or TINYSPHERE_TOKEN)")
        parser.add_argument("--ca-file", default="", metavar="PEM", help="an authority of your own")
        parser.add_argument("--insecure", action="store_true", help="allow plain http to another machine")
    return parser


def make_parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = argparse.ArgumentParser(prog="tinysphere", description="The server of a fleet of devices.")
    parser.add_argument("--version", action="version", version=f"tinysphere {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    host_cli.add_commands(commands, _command)
    access_cli.add_commands(commands, _command)
    telemetry_cli.add_commands(commands, _command)
    tracking_cli.add_commands(commands, _command)
    simulate.add_commands(commands, _command)
    command = _command(commands, "upload", _upload, "upload a package, or build it from a model first", http=True)
    command.add_argument("file", metavar="PACKAGE.tlm | MODEL", help="what to upload")
    command.add_argument("--manifest", metavar="model.toml", help="to build a package")
    command.add_argument("--key", metavar="release.key", help="to build a package")
    command.add_argument(
        "--meta", action="append", metavar="KEY=VALUE", help="metadata of the training: run_id=... (repeatable)"
    )
    command = _command(commands, "deploy", _deploy, "deploy a version to devices", http=True)
    command.add_argument("model", help="the model's name")
    command.add_argument("version", help="an uploaded version, or @ALIAS")
    command.add_argument("--selector", default="all", help="all, or such as 'site=berlin and ram_mb>=512'")
    _command(commands, "abort", _abort, "end a deployment", http=True).add_argument("id", type=int, help="its number")
    _command(commands, "devices", _devices, "the devices", http=True)
    command = _command(commands, "device", _device, "one device", http=True)
    command.add_argument("id", help="the device's id")
    command.add_argument("--label", action="append", metavar="KEY=VALUE", help="replace its labels (repeatable)")
    command.add_argument("--place", metavar="LAT,LON", help="where it is, in degrees")
    command.add_argument("--revoke", action="store_true", help="refuse its key from now on")
    command.add_argument("--retire", action="store_true", help="take it out of service")
    group = commands.add_parser("group", help="selectors with a name: group=NAME").add_subparsers(
        required=True, metavar="ACTION"
    )
    _command(group, "list", _group_list, "the groups", http=True)
    command = _command(group, "set", _group_set, "make a group, or give it another selector", http=True)
    command.add_argument("name", help="its name")
    command.add_argument("selector", help="such as 'site=berlin and ram_mb>=512'")
    _command(group, "remove", _group_remove, "remove a group", http=True).add_argument("name", help="its name")
    expect = commands.add_parser("expect", help="devices announced by their serial number").add_subparsers(
        required=True, metavar="ACTION"
    )
    command = _command(expect, "add", _expect_add, "announce a device", http=True)
    command.add_argument("serial", help="its serial number: tinylcm enrol --serial")
    command.add_argument("name", help="the name that it gets")
    command.add_argument("--label", action="append", metavar="KEY=VALUE", help="a label that it gets (repeatable)")
    _command(expect, "list", _expect_list, "the announced devices", http=True)
    command = _command(expect, "remove", _expect_remove, "take an announcement back", http=True)
    command.add_argument("serial", help="its serial number")
    fleet = commands.add_parser("fleet", help="the fleet as a table").add_subparsers(required=True, metavar="ACTION")
    command = _command(fleet, "export", _fleet_export, "every device as CSV", http=True)
    command.add_argument("file", nargs="?", metavar="FILE.csv", help="where to (default: print it)")
    command = _command(fleet, "import", _fleet_import, "announce and change devices by CSV", http=True)
    command.add_argument("file", metavar="FILE.csv", help="with the columns of `fleet export`")
    _command(commands, "models", _models, "the models", http=True)
    model = commands.add_parser("model", help="one model and its versions").add_subparsers(
        required=True, metavar="ACTION"
    )
    command = _command(model, "show", _model_show, "its versions, aliases and lineage", http=True)
    command.add_argument("model", help="the model's name")
    command = _command(model, "compare", _model_compare, "where two versions differ", http=True)
    command.add_argument("model", help="the model's name")
    command.add_argument("a", help="a version, or @ALIAS")
    command.add_argument("b", help="a version, or @ALIAS")
    command = _command(model, "alias", _model_alias, "have an alias, such as champion, name a version", http=True)
    command.add_argument("model", help="the model's name")
    command.add_argument("alias", help="the name, without @")
    command.add_argument("version", help="an uploaded version")
    command = _command(model, "unalias", _model_unalias, "take an alias away", http=True)
    command.add_argument("model", help="the model's name")
    command.add_argument("alias", help="the name, without @")
    command = _command(model, "fetch", _model_fetch, "the package of a version", http=True)
    command.add_argument("model", help="the model's name")
    command.add_argument("version", help="an uploaded version, or @ALIAS")
    command.add_argument("file", metavar="FILE.tlm", help="where to")
    command = _command(model, "remove", _model_remove, "remove a version that nobody runs", http=True)
    command.add_argument("model", help="the model's name")
    command.add_argument("version", help="an uploaded version")
    command = _command(commands, "deployments", _deployments, "the deployments, or one with its devices", http=True)
    command.add_argument("id", type=int, nargs="?", help="of one deployment")
    command.add_argument("--state", help="only devices in this state, such as rolled_back")
    command = _command(commands, "command", _give_command, "have devices do something once", http=True)
    command.add_argument("selector", help="all, or such as 'site=berlin and ram_mb>=512'")
    command.add_argument("name", help=", ".join(COMMANDS))
    command.add_argument("--arg", action="append", metavar="KEY=VALUE", help="an argument (repeatable)")
    command.add_argument("--expires-s", type=float, default=3600.0, help="seconds that it waits for a device")
    command = _command(
        commands, "commands", _commands, "the commands given, newest first, or one with its answers", http=True
    )
    command.add_argument("id", type=int, nargs="?", help="of one command")
    command.add_argument("--state", help="only devices in this state, such as failed")
    config = commands.add_parser("config", help="what the server sets of devices' configuration").add_subparsers(
        required=True, metavar="ACTION"
    )
    scope = "all, model:NAME, group:NAME or device:ID (default all)"
    command = _command(config, "set", _config_set, "set it for the devices of a scope", http=True)
    command.add_argument("file", metavar="FILE.toml", help="tables and keys as in device.toml; replaces all before")
    command.add_argument("--scope", default="all", help=scope)
    command = _command(config, "show", _config_show, "what is set, and what devices made of it", http=True)
    command.add_argument("--scope", default="all", help=scope)
    _command(config, "list", _config_list, "the scopes that were set", http=True)
    command = _command(config, "history", _config_history, "the versions of a scope, newest first", http=True)
    command.add_argument("--scope", default="all", help=scope)
    command = _command(config, "diff", _config_diff, "what changed between two versions of a scope", http=True)
    command.add_argument("before", type=int, nargs="?", help="a version (default: the one before the newest)")
    command.add_argument("after", type=int, nargs="?", help="a version (default: the newest)")
    command.add_argument("--scope", default="all", help=scope)
    command = _command(config, "of", _config_of, "what a device is sent, and which scope says so", http=True)
    command.add_argument("device", help="the device's id")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    logging.basicConfig(level=logging.WARNING, format="%(name)s: [%(request_id)s] %(message)s", handlers=[handler])
    try:
        arguments.handler(arguments)
    except (TinySphereError, TinyLCMError, ClientError, OSError) as error:
        if arguments.debug:
            raise
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()  # the reader has gone, as after `| head`
            return 0
        shown = device_error(error, "reaching") if isinstance(error, OSError) else error
        print(f"tinysphere: {shown}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError | StartError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
