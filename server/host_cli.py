"""The commands of `tinysphere` that run on the server's own machine: serve, migrate, tokens, trust, join strings."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import gc
import getpass
import ipaddress
import os
import resource
import secrets
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import msgspec
from peewee import PeeweeException
from tinylcm.files import make_folder, read_bounded
from tinylcm.keys import load_public

from . import auth, people, trust
from . import backup as backups
from .certs import make_dev
from .config import DATABASE_FILE, ServerConfig
from .db import Database, close_database, open_database
from .errors import StartError
from .output import emit, when
from .retention import KINDS, parse_keep
from .schema import Schema
from .store import FolderStore, Store

CA_BYTES_MAX: Final = 256 << 10
FILES_SPARE: Final = 200  # of the open files: databases, blobs, pages
GC_THRESHOLDS: Final = (50_000, 20, 50)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _own_folder(data: Path, *, shared: bool) -> Iterator[bool]:
    """Hold the data folder for as long as the server runs: alone, or with other processes on one PostgreSQL.

    Yields:
        Whether nobody else holds it.
    """
    os.umask(0o077)  # the database, its log and everything else are for the server's user only
    make_folder(data, private=True)
    try:
        handle = os.open(data / "serve.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StartError(f"{data} cannot be written by user id {os.getuid()}: {error.strerror}") from error
    try:
        alone = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if not shared:
                raise StartError(f"another TinySphere serves {data}; stop it, or take another --data") from None
            alone = False
        if shared:
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield alone
    finally:
        os.close(handle)


def _serve(arguments: argparse.Namespace) -> None:
    import uvicorn

    from .app import create_app
    from .protocol import protocol_with, stopping_server

    tls, keep = bool(arguments.tls_cert), parse_keep(arguments.keep)
    if bool(arguments.tls_cert) != bool(arguments.tls_key):
        raise StartError("--tls-cert and --tls-key belong together")
    if arguments.behind_proxy and tls:
        raise StartError("--behind-proxy means that the proxy has the certificate; give one of the two")
    if not tls and not (arguments.insecure or arguments.behind_proxy) and not _is_loopback(arguments.host):
        raise StartError(
            f"{arguments.host} is not this machine alone and there is no TLS: keys and tokens would travel in the "
            "clear. Give --tls-cert and --tls-key, or --behind-proxy ADDRESS when a proxy ends TLS before it, or name "
            "the choice with --insecure"
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
    is_tls = tls or bool(arguments.behind_proxy)  # as browsers and devices see it
    where = _where(arguments)
    data, database = Path(arguments.data), where if isinstance(where, str) else ""
    s3 = arguments.s3 or os.environ.get("TINYSPHERE_S3", "")
    bucket: dict[str, Any] = {"s3": s3, "insecure": arguments.insecure}
    with _own_folder(data, shared=bool(database)) as alone, _listen(arguments.host, arguments.port) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        config = ServerConfig(
            data=data,
            database=database,
            alone=alone,
            ca_pem=ca_pem,
            secure_cookies=is_tls,
            keep=keep,
            mlflow=arguments.mlflow or os.environ.get("TINYSPHERE_MLFLOW", ""),
            mlflow_promote=arguments.mlflow_promote,
            url=arguments.url or f"{'https' if tls else 'http'}://{shown}:{port}",
            **bucket,
        )
        app = create_app(config)
        # Thousands of records that wait are no garbage: looking through all of them again and again costs more than the
        # few cycles that a request leaves.
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        # uvicorn sends itself the signal again after its graceful stop: that must end the process with 0.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        print(f"TinySphere listens on {'https' if tls else 'http'}://{shown}:{port}", flush=True)
        stopping_server(app.state.server.stopping)(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                ssl_certfile=arguments.tls_cert or None,
                ssl_keyfile=arguments.tls_key or None,
                # Only from this address are X-Forwarded-For and -Proto believed: anybody can send them.
                proxy_headers=bool(arguments.behind_proxy),
                forwarded_allow_ips=arguments.behind_proxy or None,
                limit_concurrency=_connections(config.connections_max),
                timeout_keep_alive=config.keep_alive_s,
                timeout_graceful_shutdown=config.stop_s,
                http=protocol_with(config.header_timeout_s),
            )
        ).run(sockets=[listener])


def _connections(wanted: int) -> int:
    """How many connections there may be: as many as wanted, or as the process may open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + FILES_SPARE
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return min(wanted, max(1, soft - FILES_SPARE))
    return wanted


@contextlib.contextmanager
def _listen(host: str, port: int) -> Iterator[socket.socket]:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=1024)
        # asyncio sets it only on sockets that name their protocol, which those accepted here do not: the body of each
        # answer then waits for the peer to acknowledge its head, which takes 40 ms on Linux.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except (OSError, OverflowError) as error:
        raise StartError(f"cannot listen on {host} port {port}: {error}") from error
    with listener:
        yield listener


def _where(arguments: argparse.Namespace) -> Path | str:
    """The database that a command is about."""
    found = arguments.database or os.environ.get("TINYSPHERE_DATABASE", "")
    return found or Path(arguments.data) / DATABASE_FILE


@contextlib.contextmanager
def database_of(arguments: argparse.Namespace) -> Iterator[Database]:
    """The database beside a running server, or without one."""
    os.umask(0o077)
    make_folder(Path(arguments.data), private=True)
    db = Database(_where(arguments))
    try:
        yield db
    finally:
        db.close()


def _certs_dev(arguments: argparse.Namespace) -> None:
    written = make_dev(
        Path(arguments.folder), arguments.host or ["localhost", "127.0.0.1"], arguments.days, time.time()
    )
    folder = Path(arguments.folder)
    text = "\n".join(
        [
            *(f"wrote {path}" for path in written),
            f"tinysphere serve --tls-cert {folder / 'server.pem'} --tls-key {folder / 'server.key'} "
            f"--tls-ca {folder / 'ca.pem'} ...",
            f"tinysphere join create --ca {folder / 'ca.pem'} ...",
        ]
    )
    emit(arguments, {"files": [str(path) for path in written]}, text)


@contextlib.contextmanager
def _schema(arguments: argparse.Namespace) -> Iterator[Schema]:
    os.umask(0o077)
    make_folder(Path(arguments.data), private=True)
    database = open_database(_where(arguments))
    try:
        yield Schema(database)
    except PeeweeException as error:
        raise StartError(f"the database cannot be reached: {error}") from error
    finally:
        close_database(database)


def _migrate_up(arguments: argparse.Namespace) -> None:
    with _schema(arguments) as schema:
        taken = schema.up(arguments.to)
    emit(arguments, {"taken": taken}, "\n".join(f"up    {name}" for name in taken) or "nothing to do")


def _migrate_down(arguments: argparse.Namespace) -> None:
    if not arguments.yes:
        raise StartError("this drops what the step has stored; make a backup, then say --yes")
    with _schema(arguments) as schema:
        undone = schema.down(arguments.to)
    emit(arguments, {"undone": undone}, "\n".join(f"down  {name}" for name in undone) or "nothing to do")


def _migrate_status(arguments: argparse.Namespace) -> None:
    with _schema(arguments) as schema:
        steps = schema.status()
    lines = [f"{step.name:<32} {step.applied or 'pending'}" for step in steps]
    emit(arguments, {"steps": [asdict(step) for step in steps]}, "\n".join(lines))


def _store_of(arguments: argparse.Namespace, instance: str, former: str | None = None) -> Store:
    folder = Path(arguments.data) / "blobs"
    s3 = arguments.s3 or os.environ.get("TINYSPHERE_S3", "")
    if not s3:
        return FolderStore(folder)
    from .s3store import S3Store

    return S3Store(s3, folder, instance, insecure=arguments.insecure, former=former)


def telling() -> Callable[[str], None]:
    """Show on a terminal what is being done, in one line."""

    def tell(what: str) -> None:
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)

    return tell if sys.stderr.isatty() else lambda what: None


def _backup(arguments: argparse.Namespace) -> None:
    tell, path = telling(), Path(arguments.file)
    if path.exists() and not arguments.force:
        raise StartError(f"{path} is there already; take another name, or say --force")
    with _schema(arguments) as schema:
        if not schema.is_filled():
            raise StartError(f"there is no server's database in {arguments.data}")
        steps = [step.name for step in schema.status() if step.applied]
    with database_of(arguments) as db:
        store = None if arguments.without_blobs else _store_of(arguments, db.instance)
        made = backups.backup(db, store, path, steps, time.time(), tell)
    tell("")
    size = path.stat().st_size
    text = f"wrote {path}: {made.rows} rows, {made.blobs} blobs, {size / 1e6:.1f} MB"
    if made.missing:
        text += f"; {len(made.missing)} blobs that are named were not in the store"
    emit(
        arguments,
        {"file": str(path), "rows": made.rows, "blobs": made.blobs, "missing": made.missing, "bytes": size},
        text,
    )


def _restore(arguments: argparse.Namespace) -> None:
    tell, path = telling(), Path(arguments.file)
    manifest, instance = backups.inspect(path, tell), secrets.token_hex(8)
    # Blobs first: they do no harm while the database is empty, and a restore that was cut off begins again.
    with _own_folder(Path(arguments.data), shared=False), _schema(arguments) as schema:
        if schema.is_filled():
            raise StartError("the database is used already; restore into another --data, or into an empty database")
        last = backups.check_steps(manifest, [step.name for step in schema.status()])
        store = _store_of(arguments, instance, "*" if arguments.take_bucket else manifest.instance)
        blobs = backups.load_blobs(store, path, tell)
        schema.up(last)
        schema.fill(lambda connection: backups.load_tables(connection, path, manifest, instance, tell))
        schema.up()
    tell("")
    emit(
        arguments,
        {"rows": manifest.rows, "blobs": blobs, "made_at": manifest.made_at},
        f"restored {manifest.rows} rows and {blobs} blobs of {when(manifest.made_at)} UTC; devices that enrolled since "
        "then have to enrol again",
    )


def _password(arguments: argparse.Namespace) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\n")
    first = getpass.getpass(f"password of {arguments.name}: ")
    if getpass.getpass("once more: ") != first:
        raise StartError("the two are not the same; nothing was changed")
    return first


def _person_create(arguments: argparse.Namespace) -> None:
    password = _password(arguments)
    with database_of(arguments) as db:
        person = people.create(db, arguments.name, password, arguments.role, "cli", time.time())
    emit(arguments, msgspec.to_builtins(person), f"{person.name} may sign in as {person.role}")


def _person_password(arguments: argparse.Namespace) -> None:
    password = _password(arguments)
    with database_of(arguments) as db:
        person = people.set_password(db, arguments.name, password, "cli", time.time())
    emit(arguments, msgspec.to_builtins(person), f"{person.name} has another password; every session has ended")


def _person_disable(arguments: argparse.Namespace) -> None:
    with database_of(arguments) as db:
        person = people.disable(db, arguments.name, "cli", time.time())
    emit(arguments, msgspec.to_builtins(person), f"{person.name} may not sign in any more; every session has ended")


def _person_list(arguments: argparse.Namespace) -> None:
    with database_of(arguments) as db:
        found = people.list_people(db)
    lines = [f"{person.name:<30} {person.role:<10} {'disabled' if person.disabled_at else ''}" for person in found]
    emit(arguments, [msgspec.to_builtins(person) for person in found], "\n".join(lines) or "nobody signs in by name")


def _trust(arguments: argparse.Namespace) -> None:
    with database_of(arguments) as db:
        if arguments.root is None:
            found = trust.list_roots(db)
            lines = [f"{root.fingerprint}  {root.pinned_by}" for root in found]
            emit(arguments, [msgspec.to_builtins(root) for root in found], "\n".join(lines) or "no roots")
            return
        root = trust.pin(db, load_public(Path(arguments.root)), "cli", time.time())
    emit(arguments, {"root": root}, f"packages of root {root} may be uploaded now")


def _add_bucket(command: argparse.ArgumentParser) -> None:
    command.add_argument("--s3", metavar="URL", default="", help="the bucket of the blobs (or TINYSPHERE_S3)")
    command.add_argument("--insecure", action="store_true", help="the bucket may be reached by plain http")


def add_commands(commands: Any, command_of: Callable[..., argparse.ArgumentParser]) -> None:
    """Put these commands into the parser."""
    command = command_of(commands, "serve", _serve, "run the server", data=True)
    command.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    command.add_argument("--port", type=int, default=8080, help="port (default 8080; 0 takes a free one)")
    command.add_argument("--tls-cert", metavar="PEM", default="", help="the server's certificate: serve https")
    command.add_argument("--tls-key", metavar="PEM", default="", help="its private key")
    command.add_argument("--tls-ca", metavar="PEM", default="", help="the authority that devices pin")
    command.add_argument(
        "--s3", metavar="URL", default="", help="https://host/bucket for blobs instead of DIR/blobs (or TINYSPHERE_S3)"
    )
    command.add_argument(
        "--behind-proxy", metavar="ADDRESS", default="", help="a proxy at this address ends TLS and names the peers"
    )
    command.add_argument("--insecure", action="store_true", help="serve other machines without TLS")
    command.add_argument(
        "--mlflow", metavar="URL", default="", help="an MLflow server that mirrors this one (or TINYSPHERE_MLFLOW)"
    )
    command.add_argument(
        "--mlflow-promote", action="store_true", help="an alias that is moved in MLflow moves here too"
    )
    command.add_argument(
        "--url", default="", help="where people reach this server, for MLflow (default: where it listens)"
    )
    command.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="KIND=90d|20GB|forever",
        help=f"what is deleted when it is older, or more (repeatable); kinds: {', '.join(KINDS)}",
    )

    migrate = commands.add_parser("migrate", help="the database's schema").add_subparsers(
        required=True, metavar="ACTION"
    )
    command = command_of(migrate, "up", _migrate_up, "take the steps that are pending", data=True)
    command.add_argument("--to", metavar="STEP", help="stop after this one")
    command = command_of(migrate, "down", _migrate_down, "undo the last step, with what it stored", data=True)
    command.add_argument("--to", metavar="STEP", help="undo back to and with this one")
    command.add_argument("--yes", action="store_true", help="what the step has stored may go")
    command_of(migrate, "status", _migrate_status, "every step, and when it was taken", data=True)

    command = command_of(commands, "backup", _backup, "one file with all that the server knows", data=True)
    command.add_argument("file", metavar="FILE.tar", help="where to")
    command.add_argument("--without-blobs", action="store_true", help="the tables alone, where a bucket is kept anyway")
    command.add_argument("--force", action="store_true", help="replace the file")
    _add_bucket(command)
    command = command_of(commands, "restore", _restore, "fill a new database from a backup", data=True)
    command.add_argument("file", metavar="FILE.tar", help="from `tinysphere backup`")
    command.add_argument("--take-bucket", action="store_true", help="the bucket is this server's, whoever it names")
    _add_bucket(command)

    certs = commands.add_parser("certs", help="certificates for trying things out").add_subparsers(
        required=True, metavar="ACTION"
    )
    command = command_of(certs, "dev", _certs_dev, "an authority of your own and a server's certificate by it")
    command.add_argument("folder", metavar="DIR", help="where to; the authority that is there is used again")
    command.add_argument("--host", action="append", help="a name or an address of the server (default localhost)")
    command.add_argument("--days", type=int, default=365, help="life of the server's certificate (default 365)")

    person = commands.add_parser("person", help="people who sign in with a password").add_subparsers(
        required=True, metavar="ACTION"
    )
    command = command_of(person, "create", _person_create, "let somebody sign in; asks for the password", data=True)
    command.add_argument("name", help="in lower case, such as ada@example.org")
    command.add_argument("--role", required=True, choices=list(auth.ROLES), help="what the person may do")
    command = command_of(person, "password", _person_password, "set another password, ending all sessions", data=True)
    command.add_argument("name", help="whose")
    command = command_of(person, "disable", _person_disable, "let somebody sign in no more", data=True)
    command.add_argument("name", help="whom")
    command_of(person, "list", _person_list, "everybody who signs in by name", data=True)

    command = command_of(commands, "trust", _trust, "let a publisher's packages be uploaded, or list whose", data=True)
    command.add_argument("root", nargs="?", metavar="ROOT.pub", help="the publisher's public root key")
