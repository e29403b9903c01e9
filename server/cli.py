"""`tinysphere`: run the server, make tokens on its machine, and use its API from anywhere."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import ipaddress
import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from tinylcm.errors import ConfigError, TinyLCMError
from tinylcm.files import device_error, make_folder, read_bounded
from tinylcm.keys import load_public, pin_root
from tinylcm.package import load_package

from . import __version__, auth
from .client import Client, ClientError, Fields
from .config import ServerConfig
from .db import Database
from .errors import StartError, TinySphereError
from .requestid import RequestIdFilter

CA_BYTES_MAX: Final = 256 << 10
SETTINGS_BYTES_MAX: Final = 256 << 10
BUILD_TIMEOUT_S: Final = 600.0


def _print(arguments: argparse.Namespace, document: object, text: str) -> None:
    print(json.dumps(document) if arguments.json else text, flush=True)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


# the server -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _own_folder(data: Path) -> Iterator[None]:
    """Make the data folder ours alone for as long as the server runs."""
    os.umask(0o077)  # the database, its log and everything else are for the server's user only
    make_folder(data, private=True)
    try:
        handle = os.open(data / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartError(f"{data} cannot be written by user id {os.getuid()}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StartError(f"another TinySphere serves {data}; stop it, or take another --data") from None
        yield
    finally:
        os.close(handle)


def _serve(arguments: argparse.Namespace) -> None:
    import uvicorn

    from .app import create_app
    from .protocol import protocol_with

    tls = bool(arguments.tls_cert)
    if bool(arguments.tls_cert) != bool(arguments.tls_key):
        raise StartError("--tls-cert and --tls-key belong together")
    if not tls and not arguments.insecure and not _is_loopback(arguments.host):
        raise StartError(
            f"{arguments.host} is not this machine alone and there is no TLS: keys and tokens would travel in the "
            "clear. Give --tls-cert and --tls-key, or name the choice with --insecure"
        )
    if tls:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(arguments.tls_cert, arguments.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise StartError(
                f"{arguments.tls_cert} and {arguments.tls_key} are no certificate with its key: {error}"
            ) from None
    ca_file = arguments.tls_ca or arguments.tls_cert
    ca_pem = read_bounded(Path(ca_file), CA_BYTES_MAX) if ca_file else None
    config = ServerConfig(data=Path(arguments.data), ca_pem=ca_pem, secure_cookies=tls)
    with _own_folder(config.data), _listen(arguments.host, arguments.port) as listener:
        app = create_app(config)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        # uvicorn sends itself the signal again after its graceful stop: that must end the process with 0.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        print(f"TinySphere listens on {'https' if tls else 'http'}://{shown}:{port}", flush=True)
        uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                ssl_certfile=arguments.tls_cert or None,
                ssl_keyfile=arguments.tls_key or None,
                limit_concurrency=config.connections_max,
                timeout_keep_alive=config.keep_alive_s,
                timeout_graceful_shutdown=config.stop_s,
                http=protocol_with(config.header_timeout_s),
                h11_max_incomplete_event_size=64 << 10,
            )
        ).run(sockets=[listener])


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise StartError(f"cannot listen on {host} port {port}: {error}") from error
    with listener:
        yield listener


@contextlib.contextmanager
def _database(data: str) -> Iterator[Database]:
    """The database beside a running server, or without one."""
    os.umask(0o077)
    folder = make_folder(Path(data), private=True)
    db = Database(folder / "tinysphere.db")
    try:
        yield db
    finally:
        db.close()


def _token_create(arguments: argparse.Namespace) -> None:
    request = auth.TokenRequest(arguments.role, arguments.name, arguments.days)
    with _database(arguments.data) as db:
        token = auth.create_token(db, request, "cli", time.time())
    _print(arguments, msgspec.to_builtins(token), f"{token.token}\nshown only now; role {token.role}, id {token.id}")


def _token_list(arguments: argparse.Namespace) -> None:
    with _database(arguments.data) as db:
        tokens = auth.list_tokens(db)
    lines = [f"{token.id}  {token.role:<10} {token.name} {'revoked' if token.revoked_at else ''}" for token in tokens]
    _print(arguments, [msgspec.to_builtins(token) for token in tokens], "\n".join(lines) or "no tokens")


def _token_revoke(arguments: argparse.Namespace) -> None:
    with _database(arguments.data) as db:
        auth.revoke_token(db, arguments.id, "cli", time.time())
    _print(arguments, {"id": arguments.id, "revoked": True}, f"token {arguments.id} is revoked")


def _trust(arguments: argparse.Namespace) -> None:
    make_folder(Path(arguments.data), private=True)
    root = pin_root(Path(arguments.data) / "roots", load_public(Path(arguments.root)))
    _print(arguments, {"root": root}, f"packages of root {root} may be uploaded now")


def _join_create(arguments: argparse.Namespace) -> None:
    if not arguments.url.startswith(("http://", "https://")):
        raise ConfigError(f"{arguments.url!r:.200} is no http(s) address that devices could reach")
    with _database(arguments.data) as db:
        root = pin_root(Path(arguments.data) / "roots", load_public(Path(arguments.root)))
        token = auth.create_join_token(db, arguments.uses, arguments.ttl_s, "cli", time.time())
    join = f"tinysphere+{arguments.url.rstrip('/')}/join#token={token}&root={root}"
    if arguments.ca:
        pem = read_bounded(Path(arguments.ca), CA_BYTES_MAX).decode("ascii", "replace").strip()
        try:
            der = ssl.PEM_cert_to_DER_cert(pem)
        except ValueError as error:
            raise ConfigError(f"{arguments.ca} is no PEM certificate: {error}") from error
        join += f"&ca=sha256:{hashlib.sha256(der).hexdigest()}"
    document = {"join": join, "token": token, "root": root, "uses": arguments.uses, "ttl_s": arguments.ttl_s}
    _print(arguments, document, join)


# over HTTP ------------------------------------------------------------------------------------------------


def _client(arguments: argparse.Namespace) -> Client:
    url = arguments.server or os.environ.get("TINYSPHERE_URL", "")
    token = arguments.token or os.environ.get("TINYSPHERE_TOKEN", "")
    if not url or not token:
        raise ConfigError("name the server with --server and --token, or by TINYSPHERE_URL and TINYSPHERE_TOKEN")
    return Client(url, token, ca_file=arguments.ca_file, insecure=arguments.insecure)


@contextlib.contextmanager
def _built(arguments: argparse.Namespace) -> Iterator[Path]:
    """The package to upload: as given, or built and signed from a model by `tinylcm package build`."""
    path = Path(arguments.file)
    if not path.is_file():
        raise ConfigError(f"{path} does not exist")
    if path.suffix == ".tlm":
        yield path
        return
    if not arguments.manifest or not arguments.key:
        raise ConfigError(f"{path} is no package (.tlm); to build one of a model give --manifest and --key")
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "package.tlm"
        command = ["package", "build", str(path), "--manifest", arguments.manifest, "--key", arguments.key]
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
    client = _client(arguments)
    with _built(arguments) as path:
        name, size = load_package(path, None).manifest.name, path.stat().st_size
        progress = None
        if sys.stderr.isatty():
            progress = lambda sent: print(f"\r{sent / size:4.0%} of {size} bytes", end="", file=sys.stderr)  # noqa: E731
        version = client.upload(path, name, progress=progress)
        if progress is not None:
            print(file=sys.stderr)
    _print(arguments, version, f"{version['model']} {version['version']}  sha256 {version['sha256']}")


def _deploy(arguments: argparse.Namespace) -> None:
    made = _client(arguments).deploy(arguments.model, arguments.version, arguments.selector)
    text = f"deployment {made['id']}: {made['model']} {made['version']} to {made['selector']}"
    _print(arguments, made, text)


def _abort(arguments: argparse.Namespace) -> None:
    made = _client(arguments).abort(arguments.id)
    _print(arguments, made, f"deployment {made['id']} is {made['state']}")


def _table(rows: Sequence[Fields], columns: Mapping[str, Callable[[Fields], object]], empty: str) -> str:
    if not rows:
        return empty
    cells = [[str(column(row)) for column in columns.values()] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(columns)]
    lines = [list(columns), *cells]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _when(value: object) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(value)) if isinstance(value, int | float) else "-"


def _runs(row: Fields) -> str:
    running = row["running"]
    return (
        ", ".join(f"{m['model']} {m['version']} ({m['state']})" for m in running) if isinstance(running, list) else ""
    )


def _devices(arguments: argparse.Namespace) -> None:
    rows = _client(arguments).devices()
    columns: dict[str, Callable[[Fields], object]] = {
        "id": lambda row: row["id"],
        "name": lambda row: row["name"],
        "state": lambda row: "online" if row["online"] else "away",
        "last seen (UTC)": lambda row: _when(row["last_seen_at"]),
        "runs": _runs,
        "alarms": lambda row: row["alarms"],
    }
    _print(arguments, {"items": rows}, _table(rows, columns, "no devices; make a join string: tinysphere join create"))


def _device(arguments: argparse.Namespace) -> None:
    client = _client(arguments)
    if arguments.label:
        labels = dict(pair.partition("=")[::2] for pair in arguments.label)
        found = client.label_device(arguments.id, labels)
    else:
        found = client.device(arguments.id)
    _print(arguments, found, json.dumps(found, indent=2))


def _models(arguments: argparse.Namespace) -> None:
    rows = _client(arguments).models()
    text = "\n".join("  ".join(f"{key}={value}" for key, value in row.items()) for row in rows)
    _print(arguments, {"items": rows}, text or "no models; upload one: tinysphere upload PACKAGE.tlm")


def _deployments(arguments: argparse.Namespace) -> None:
    rows = _client(arguments).deployments()
    columns: dict[str, Callable[[Fields], object]] = {
        "id": lambda row: row["id"],
        "model": lambda row: f"{row['model']} {row['version']}",
        "selector": lambda row: row["selector"],
        "state": lambda row: row["state"],
        "devices": lambda row: row["states"],
        "created (UTC)": lambda row: _when(row["created_at"]),
    }
    _print(arguments, {"items": rows}, _table(rows, columns, "no deployments"))


def _events(arguments: argparse.Namespace) -> None:
    rows = _client(arguments).events(device=arguments.device, model=arguments.model)
    columns: dict[str, Callable[[Fields], object]] = {
        "id": lambda row: row["id"],
        "received (UTC)": lambda row: _when(row["received_at"]),
        "device": lambda row: row["device_name"],
        "monitor": lambda row: row["monitor"],
        "signal": lambda row: row["signal"],
        "statistic": lambda row: f"{row['statistic']:.4g}" if isinstance(row["statistic"], float) else "-",
        "threshold": lambda row: f"{row['threshold']:.4g}" if isinstance(row["threshold"], float) else "-",
        "window": lambda row: row["window"],
    }
    _print(arguments, {"items": rows}, _table(rows, columns, "no drift events"))


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
    made = _client(arguments).command(arguments.selector, arguments.name, args, expires_in_s=arguments.expires_s)
    _print(arguments, made, f"command {made['id']}: {made['name']} to {made['selector']}; see `tinysphere commands`")


def _commands(arguments: argparse.Namespace) -> None:
    if arguments.id is not None:
        found = _client(arguments).command_state(arguments.id)
        _print(arguments, found, json.dumps(found, indent=2))
        return
    rows = _client(arguments).commands()
    columns: dict[str, Callable[[Fields], object]] = {
        "id": lambda row: row["id"],
        "command": lambda row: row["name"],
        "selector": lambda row: row["selector"],
        "devices": lambda row: row["states"],
        "given (UTC)": lambda row: _when(row["created_at"]),
    }
    _print(arguments, {"items": rows}, _table(rows, columns, "no commands"))


def _config_set(arguments: argparse.Namespace) -> None:
    path = Path(arguments.file)
    try:
        settings = tomllib.loads(read_bounded(path, SETTINGS_BYTES_MAX).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    made = _client(arguments).set_config(settings)
    _print(arguments, made, f"version {made['version']} for {made['scope']} devices")


def _config_show(arguments: argparse.Namespace) -> None:
    found = _client(arguments).config()
    _print(arguments, found, json.dumps(found, indent=2))


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
        parser.add_argument("--data", required=True, metavar="DIR", help="the server's data folder")
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
    command = _command(commands, "serve", _serve, "run the server", data=True)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    command.add_argument("--port", type=int, default=8080, help="port (default 8080; 0 takes a free one)")
    command.add_argument("--tls-cert", metavar="PEM", default="", help="the server's certificate: serve https")
    command.add_argument("--tls-key", metavar="PEM", default="", help="its private key")
    command.add_argument("--tls-ca", metavar="PEM", default="", help="the authority that devices pin")
    command.add_argument("--insecure", action="store_true", help="serve other machines without TLS")

    token = commands.add_parser("token", help="people's tokens").add_subparsers(required=True, metavar="ACTION")
    command = _command(token, "create", _token_create, "make a token; it is shown once", data=True)
    command.add_argument("--role", required=True, choices=list(auth.ROLES), help="what it may do")
    command.add_argument("--name", default="", help="whose it is")
    command.add_argument("--days", type=int, help="how long it is valid (default: until revoked)")
    _command(token, "list", _token_list, "the tokens, without their secrets", data=True)
    _command(token, "revoke", _token_revoke, "end a token", data=True).add_argument("id", help="from `token list`")

    command = _command(commands, "trust", _trust, "let a publisher's packages be uploaded", data=True)
    command.add_argument("root", metavar="ROOT.pub", help="the publisher's public root key")
    join = commands.add_parser("join", help="join strings for devices").add_subparsers(required=True, metavar="ACTION")
    command = _command(join, "create", _join_create, "make the string that a device enrols with", data=True)
    command.add_argument("--url", required=True, help="the server's address as devices reach it")
    command.add_argument("--root", required=True, metavar="ROOT.pub", help="the publisher's root key that devices pin")
    command.add_argument("--uses", type=int, default=1, help="devices that may use it (default 1)")
    command.add_argument("--ttl-s", type=int, default=86400, help="seconds that it is valid (default a day)")
    command.add_argument("--ca", metavar="PEM", help="the authority that devices pin, with TLS")

    command = _command(commands, "upload", _upload, "upload a package, or build it from a model first", http=True)
    command.add_argument("file", metavar="PACKAGE.tlm | MODEL", help="what to upload")
    command.add_argument("--manifest", metavar="model.toml", help="to build a package")
    command.add_argument("--key", metavar="release.key", help="to build a package")
    command = _command(commands, "deploy", _deploy, "deploy a version to devices", http=True)
    command.add_argument("model", help="the model's name")
    command.add_argument("version", help="an uploaded version")
    command.add_argument("--selector", default="all", help="all, or such as 'site=berlin and ram_mb>=512'")
    _command(commands, "abort", _abort, "end a deployment", http=True).add_argument("id", type=int, help="its number")
    _command(commands, "devices", _devices, "the devices", http=True)
    command = _command(commands, "device", _device, "one device", http=True)
    command.add_argument("id", help="the device's id")
    command.add_argument("--label", action="append", metavar="KEY=VALUE", help="replace its labels (repeatable)")
    _command(commands, "models", _models, "the models", http=True)
    _command(commands, "deployments", _deployments, "the deployments", http=True)
    command = _command(commands, "command", _give_command, "have devices do something once", http=True)
    command.add_argument("selector", help="all, or such as 'site=berlin and ram_mb>=512'")
    command.add_argument(
        "name", help="ping, sync_now, flush, collect_status, rollback, reset_monitors, capture, log_level"
    )
    command.add_argument("--arg", action="append", metavar="KEY=VALUE", help="an argument (repeatable)")
    command.add_argument("--expires-s", type=float, default=3600.0, help="seconds that it waits for a device")
    command = _command(
        commands, "commands", _commands, "the commands given, newest first, or one with its answers", http=True
    )
    command.add_argument("id", type=int, nargs="?", help="of one command")
    config = commands.add_parser("config", help="what the server sets of devices' configuration").add_subparsers(
        required=True, metavar="ACTION"
    )
    command = _command(config, "set", _config_set, "set it for all devices", http=True)
    command.add_argument("file", metavar="FILE.toml", help="tables and keys as in device.toml; replaces all before")
    _command(config, "show", _config_show, "what is set, and what devices made of it", http=True)
    command = _command(commands, "events", _events, "drift events, newest first", http=True)
    command.add_argument("--device", help="of this device")
    command.add_argument("--model", help="of this model")
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
