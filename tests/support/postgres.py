"""A real PostgreSQL on a free port of this machine, in a folder of its own, ended by its process id."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

import psutil

USER = "tiny"
_OTHERS = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
_TABLES = (
    "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
    " UNION ALL SELECT indexname, indexdef, '' FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1, 2, 3"
)
# As a replica, so that foreign keys need no order.
_EMPTY = """
DO $$ DECLARE one record; BEGIN
  SET LOCAL session_replication_role = replica;
  FOR one IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'schema_migration' LOOP
    EXECUTE format('DELETE FROM public.%I', one.tablename);
  END LOOP;
  FOR one IN SELECT sequencename FROM pg_sequences WHERE schemaname = 'public'
    AND sequencename NOT LIKE 'schema_m%' LOOP
    EXECUTE format('ALTER SEQUENCE public.%I RESTART', one.sequencename);
  END LOOP;
END $$
"""
READY_S = 30.0


def bindir() -> Path | None:
    """Where Debian or the PATH has PostgreSQL's programs, or None."""
    found = [path.parent for path in sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)]
    if found:
        return found[0]
    initdb = shutil.which("initdb")
    return Path(initdb).resolve().parent if initdb else None


class Cluster:
    """A PostgreSQL server. PostgreSQL refuses to run as root, so root runs it as the user `postgres`.

    Args:
        durable: False leaves fsync out: a killed server loses nothing by that, only a machine without power would.
    """

    def __init__(self, *, durable: bool = False) -> None:
        found = bindir()
        assert found is not None
        self._bin = found
        self._durable = durable
        self._folder = Path(tempfile.mkdtemp(prefix="tinymlops-pg-"))
        self._who: dict[str, object] = {}
        if os.getuid() == 0:
            account = pwd.getpwnam("postgres")
            os.chown(self._folder, account.pw_uid, account.pw_gid)
            self._who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        self._password = secrets.token_hex(8)
        word = self._folder / "password"
        word.write_text(self._password)
        word.chmod(0o644)
        subprocess.run(
            [self._bin / "initdb", "-D", self._folder / "data", "-U", USER, f"--pwfile={word}", "-E", "UTF8",
             "--auth=scram-sha-256", "--no-locale", "--no-sync"],
            check=True, capture_output=True, cwd="/", **self._who,  # type: ignore[call-overload]
        )  # fmt: skip
        word.unlink()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._made = 0
        self.start()

    def start(self) -> None:
        """Start it, also after `kill`, and wait until it answers."""
        options = ["fsync=on" if self._durable else "fsync=off", "unix_socket_directories=", "max_connections=200"]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._folder / "data", "-h", "127.0.0.1", "-p", str(self.port),
                 *(word for option in options for word in ("-c", option))],
                stdout=log, stderr=log, cwd="/", **self._who,  # type: ignore[call-overload]
            )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            try:
                self.sql("SELECT 1", "postgres")
                return
            except Exception as error:
                last = error
                time.sleep(0.05)
        raise TimeoutError((self._folder / "log").read_text()) from last

    def url(self, name: str) -> str:
        """The address of a database."""
        return f"postgresql://{USER}:{self._password}@127.0.0.1:{self.port}/{name}"

    def sql(self, statement: str, name: str) -> None:
        """Run a statement outside of any transaction."""
        import psycopg

        with psycopg.connect(self.url(name), autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement.encode())

    def database(self, template: str = "template0") -> str:
        """A new database, by default empty; its address."""
        self._made += 1
        name = f"test_{self._made}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}", "postgres")
        return self.url(name)

    def recycled(self, url: str, like: str) -> bool:
        """Empty a database's tables, which takes a twentieth of the time that a new one does.

        Args:
            like: the address of one whose tables it must have.

        Returns:
            Whether it is as good as new: nobody uses it and its tables are those of `like`.
        """
        import psycopg

        def tables(connection: psycopg.Connection) -> object:
            return connection.execute(_TABLES).fetchall()

        try:
            with (
                psycopg.connect(like, autocommit=True, connect_timeout=5) as model,
                psycopg.connect(url, autocommit=True, connect_timeout=5) as connection,
            ):
                connection.execute("SET lock_timeout = '1s'")
                (others,) = connection.execute(_OTHERS).fetchone() or (1,)
                if others or tables(connection) != tables(model):
                    return False
                connection.execute(_EMPTY)
                return True
        except psycopg.Error:
            return False

    def kill(self) -> None:
        """End it and its children as a crash would."""
        assert self._process is not None
        children = psutil.Process(self._process.pid).children(recursive=True)
        os.kill(self._process.pid, signal.SIGKILL)
        for child in children:  # a session goes on for a moment without its postmaster, and answers
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        self._process.wait(20)
        psutil.wait_procs(children, 20)

    def close(self) -> None:
        """Stop it and remove its folder."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # fast: it ends the sessions
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(20)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
