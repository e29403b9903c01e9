"""A typed client of the API for scripts: HTTP only, nothing of the server is imported.

client = Client("http://127.0.0.1:8080", token)
client.upload(Path("activity-1.0.0.tlm"), "activity")
client.deploy("activity", "1.0.0", "all")
"""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import os
import secrets
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self
from urllib.parse import quote, urlencode, urlsplit

import urllib3

ANSWER_BYTES_MAX: Final = 64 << 20
EVENT_BYTES_MAX: Final = 1 << 20
PACKAGE_BYTES_MAX: Final = 256 << 20
TRIES: Final = 4
WAIT_S_MAX: Final = 30.0
RETRIED: Final = (429, 502, 503, 504)
PIECES_MAX: Final = 1000  # connections of one download
_PIECE_BYTES: Final = 64 << 10
Fields = dict[str, object]


class ClientError(Exception):
    """A request failed.

    Args:
        message: what the server said, or why it was not reached.
        status: the HTTP status; 0 when there was no answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class _BrokenError(ClientError):
    """The connection broke, or the server is busy: what is missing can be asked for again."""


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Counted(io.RawIOBase):
    """A file that says how much of it has been read."""

    def __init__(self, file: IO[bytes], progress: Callable[[int], object]) -> None:
        self._file, self._progress, self._sent = file, progress, 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._sent += len(data)
        self._progress(self._sent)
        return data


class Client:
    """Requests as one user.

    Args:
        url: the server's address.
        token: a user token.
        ca_file: PEM of an authority of one's own.
        insecure: allow plain http to another machine.
        timeout_s: of connecting and of each read.

    Raises:
        ClientError: the address is not safe or the CA file is none.
    """

    def __init__(
        self, url: str, token: str, *, ca_file: str = "", insecure: bool = False, timeout_s: float = 60.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ClientError(f"{url!r:.200} is no http(s) address")
        if parts.scheme == "http" and not insecure and not _is_loopback(parts.hostname):
            raise ClientError(
                f"{parts.hostname} is not this machine and the address has no TLS: the token would travel in the "
                "clear. Use https, or name the choice with --insecure"
            )
        self._base = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"}
        try:
            context = ssl.create_default_context(cafile=ca_file or None)
        except (OSError, ssl.SSLError) as error:
            raise ClientError(f"the CA file {ca_file} cannot be used: {error}") from error
        self._pool = urllib3.PoolManager(ssl_context=context, retries=False, timeout=timeout_s)

    def close(self) -> None:
        """Close the connection."""
        self._pool.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _send(
        self, method: str, path: str, body: bytes | IO[bytes] | None, headers: Mapping[str, str]
    ) -> tuple[int, Mapping[str, str], bytes]:
        try:
            response = self._pool.request(
                method,
                self._base + path,
                body=body,
                headers={**self._headers, **headers},
                preload_content=False,
                redirect=False,
            )
            data = response.read(ANSWER_BYTES_MAX + 1)
            response.release_conn()
        except urllib3.exceptions.HTTPError as error:
            raise ClientError(f"{self._base} cannot be reached: {error}") from error
        if len(data) > ANSWER_BYTES_MAX:
            raise ClientError(f"the answer is larger than {ANSWER_BYTES_MAX} bytes", response.status)
        return response.status, dict(response.headers), data

    def request(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Fields:
        """Send JSON and read JSON; busy answers are tried again, a few times.

        Raises:
            ClientError: with what the server said.
        """
        raw = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **(headers or {})} if raw is not None else dict(headers or {})
        for attempt in range(TRIES):
            status, answered, data = self._send(method, path, raw, sent)
            if status not in RETRIED or attempt == TRIES - 1:
                break
            value = answered.get("Retry-After", "")
            time.sleep(min(float(value) if value.isdigit() else 2.0**attempt, WAIT_S_MAX))
        return self._read(status, data)

    @staticmethod
    def _read(status: int, data: bytes) -> Fields:
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not 200 <= status < 300:
            detail = answer.get("detail") if isinstance(answer, dict) else None
            said = detail or data[:200].decode("utf-8", "replace")
            raise ClientError(f"the server answered {status}: {said}", status)
        if not isinstance(answer, dict):
            raise ClientError("the answer is no JSON object: is this a TinySphere?", status)
        return answer

    def pages(self, path: str, query: Mapping[str, str | None], most: int = 10_000) -> Iterator[Fields]:
        """The items of a list, page by page, at most `most`."""
        cursor: object = None
        count = 0
        while count < most:
            fields = {key: value for key, value in {**query, "cursor": cursor}.items() if value is not None}
            page = self.request("GET", f"{path}?{urlencode(fields)}" if fields else path)
            items = page.get("items")
            if not isinstance(items, list):
                raise ClientError("the answer holds no list: is this a TinySphere?")
            yield from items[: most - count]
            count += len(items)
            cursor = page.get("next")
            if cursor is None or not items:
                return

    def upload(self, package: Path, model: str, *, progress: Callable[[int], object] | None = None) -> Fields:
        """Upload a package; the same file again changes nothing."""
        size = package.stat().st_size
        with package.open("rb") as file:
            body: IO[bytes] = _Counted(file, progress) if progress is not None else file  # type: ignore[assignment]
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
            status, _, data = self._send("POST", f"/api/v1/models/{quote(model, safe='')}/versions", body, headers)
        return self._read(status, data)

    def blob(self, sha256: str) -> bytes:
        """The bytes of a blob that a device uploaded, such as the window of a large sample."""
        status, _, data = self._send("GET", f"/api/v1/blobs/{quote(sha256, safe='')}", None, {})
        if status != 200:
            self._read(status, data)  # raises what the server says
        return data

    def deploy(self, model: str, version: str, selector: str = "all", *, key: str | None = None) -> Fields:
        """Deploy a version; `key` makes a repeated call the same deployment."""
        body = {"model": model, "version": version, "selector": selector}
        return self.request("POST", "/api/v1/deployments", body, _once(key))

    def abort(self, deployment: int) -> Fields:
        """End a deployment."""
        return self.request("POST", f"/api/v1/deployments/{deployment}/abort")

    def deployment(self, deployment: int) -> Fields:
        """One deployment with each device's state."""
        return self.request("GET", f"/api/v1/deployments/{deployment}")

    def deployment_devices(self, deployment: int, state: str | None = None) -> list[Fields]:
        """How far a deployment has come on each device, or on those in a state."""
        return list(self.pages(f"/api/v1/deployments/{deployment}/devices", {"state": state}, 1_000_000))

    def deployments(self) -> list[Fields]:
        """Deployments, newest first."""
        return list(self.pages("/api/v1/deployments", {}))

    def command(
        self,
        selector: str,
        name: str,
        args: Mapping[str, object] | None = None,
        *,
        expires_in_s: float = 3600.0,
        key: str | None = None,
    ) -> Fields:
        """Give a command to the devices that a selector matches; `key` makes a repeated call the same command."""
        body = {"selector": selector, "name": name, "args": dict(args or {}), "expires_in_s": expires_in_s}
        return self.request("POST", "/api/v1/commands", body, _once(key))

    def command_state(self, command: int) -> Fields:
        """One command with each device's answer."""
        return self.request("GET", f"/api/v1/commands/{command}")

    def command_devices(self, command: int, state: str | None = None) -> list[Fields]:
        """How far a command has come on each device, or on those in a state."""
        return list(self.pages(f"/api/v1/commands/{command}/devices", {"state": state}, 1_000_000))

    def commands(self, most: int = 1000) -> list[Fields]:
        """Commands, newest first."""
        return list(self.pages("/api/v1/commands", {}, most))

    def config_scopes(self) -> list[Fields]:
        """Scopes of configuration that were set."""
        return list(self.pages("/api/v1/config", {}))

    def config_versions(self, scope: str = "all", most: int = 1000) -> list[Fields]:
        """A scope's versions, newest first."""
        return list(self.pages(f"/api/v1/config/{quote(scope, safe='')}/versions", {}, most))

    def config_diff(self, scope: str = "all", before: int | None = None, after: int | None = None) -> Fields:
        """What changed between two versions of a scope; by default with the newest."""
        path = f"/api/v1/config/{quote(scope, safe='')}/diff"
        return self.request("GET", _query(path, {"from": before, "to": after}))

    def device_config(self, device_id: str) -> Fields:
        """What a device is sent of its configuration, key by key with the scope that says so."""
        return self.request("GET", f"/api/v1/devices/{quote(device_id, safe='')}/config")

    def config(self, scope: str = "all") -> Fields:
        """What the server sets of the configuration of a scope's devices, and what they made of it.

        Args:
            scope: `all`, `model:NAME`, `group:NAME` or `device:ID`.
        """
        return self.request("GET", f"/api/v1/config/{quote(scope, safe='')}")

    def set_config(self, settings: Mapping[str, object], scope: str = "all") -> Fields:
        """Set a part of devices' configuration: tables and keys as in device.toml, in the place of all before."""
        version = self.config(scope)["version"]
        path = f"/api/v1/config/{quote(scope, safe='')}"
        return self.request("PUT", path, {"settings": dict(settings)}, {"If-Match": f'"{version}"'})

    def devices(self) -> list[Fields]:
        """Every device."""
        return list(self.pages("/api/v1/devices", {}))

    def device(self, device_id: str) -> Fields:
        """One device."""
        return self.request("GET", f"/api/v1/devices/{quote(device_id, safe='')}")

    def change_device(self, device_id: str, **changes: object) -> Fields:
        """Change a device's `name`, `labels` (all of them), `latitude` and `longitude`."""
        version = self.device(device_id)["row_version"]
        path = f"/api/v1/devices/{quote(device_id, safe='')}"
        return self.request("PATCH", path, changes, {"If-Match": f'"{version}"'})

    def label_device(self, device_id: str, labels: Mapping[str, str]) -> Fields:
        """Replace a device's labels."""
        return self.change_device(device_id, labels=dict(labels))

    def revoke_device(self, device_id: str) -> Fields:
        """Refuse a device's key from now on."""
        return self.request("POST", f"/api/v1/devices/{quote(device_id, safe='')}/revoke")

    def retire_device(self, device_id: str) -> Fields:
        """Take a device out of service."""
        return self.request("POST", f"/api/v1/devices/{quote(device_id, safe='')}/retire")

    def announce(
        self, serial: str, name: str, labels: Mapping[str, str] | None = None, *, key: str | None = None
    ) -> Fields:
        """Announce a device by its serial number; `key` makes a repeated call the same announcement."""
        body = {"serial": serial, "name": name, "labels": dict(labels or {})}
        return self.request("POST", "/api/v1/devices/expected", body, _once(key))

    def withdraw(self, serial: str) -> Fields:
        """Take an announcement back."""
        return self.request("DELETE", f"/api/v1/devices/expected/{quote(serial, safe='')}")

    def expected(self) -> list[Fields]:
        """Devices that were announced."""
        return list(self.pages("/api/v1/devices/expected", {}))

    def export_devices(self) -> str:
        """Every device as CSV."""
        status, _, data = self._send("GET", "/api/v1/devices/table", None, {})
        if status != 200:
            self._read(status, data)  # raises what the server says
        return data.decode()

    def import_devices(self, table: str, *, key: str | None = None) -> Fields:
        """Announce and change devices by CSV: all rows or none; `key` makes a repeated call the same import."""
        headers = {"Content-Type": "text/csv", **_once(key)}
        status, _, data = self._send("POST", "/api/v1/devices/table", table.encode(), headers)
        return self._read(status, data)

    def groups(self) -> list[Fields]:
        """Groups of devices."""
        return list(self.pages("/api/v1/groups", {}))

    def group(self, name: str) -> Fields:
        """One group."""
        return self.request("GET", f"/api/v1/groups/{quote(name, safe='')}")

    def set_group(self, name: str, selector: str) -> Fields:
        """Make a group, or give it another selector: the one that it has now, whatever that is."""
        path = f"/api/v1/groups/{quote(name, safe='')}"
        return self.request("PUT", path, {"selector": selector}, {"If-Match": "*"})

    def remove_group(self, name: str) -> Fields:
        """Remove a group."""
        return self.request("DELETE", f"/api/v1/groups/{quote(name, safe='')}")

    def create_token(self, role: str, *, name: str = "", days: int | None = None, key: str | None = None) -> Fields:
        """Make a user token: its `token` is shown only now. With a `key` a repeated call is refused, not answered."""
        body = {"role": role, "name": name, "days": days}
        return self.request("POST", "/api/v1/tokens", body, _once(key))

    def tokens(self) -> list[Fields]:
        """User tokens, without their secrets."""
        return list(self.pages("/api/v1/tokens", {}))

    def revoke_token(self, token_id: str) -> Fields:
        """End a user token."""
        return self.request("DELETE", f"/api/v1/tokens/{quote(token_id, safe='')}")

    def create_join(
        self,
        url: str,
        *,
        root: str = "",
        uses: int = 1,
        ttl_s: int = 86400,
        expected_only: bool = False,
        key: str | None = None,
    ) -> Fields:
        """Make a join string: its `join` is shown only now.

        Args:
            url: the server's address as devices reach it.
            root: fingerprint of a root that is trusted there; may be left out when there is one alone.
            uses, ttl_s: how many devices may use it, and for how many seconds.
            expected_only: for announced devices alone.
            key: with one a repeated call is refused, not answered.
        """
        body = {"url": url, "root": root, "uses": uses, "ttl_s": ttl_s, "expected_only": expected_only}
        return self.request("POST", "/api/v1/join-tokens", body, _once(key))

    def joins(self) -> list[Fields]:
        """Join tokens, without their secrets."""
        return list(self.pages("/api/v1/join-tokens", {}))

    def revoke_join(self, token_id: str) -> Fields:
        """End a join token; devices that have enrolled with it stay."""
        return self.request("DELETE", f"/api/v1/join-tokens/{quote(token_id, safe='')}")

    def audit(self, most: int = 1000) -> list[Fields]:
        """Who changed what, newest first."""
        return list(self.pages("/api/v1/audit", {}, most))

    def alive(self) -> Fields:
        """Whether the server's process lives."""
        return self.request("GET", "/healthz")

    def ready(self) -> Fields:
        """Whether the server can serve, and what was looked at."""
        return self.request("GET", "/readyz")

    def counters(self) -> str:
        """The server's metrics of itself, in the text format of Prometheus."""
        return self._text("/metrics", "text/plain")

    def authority(self) -> str:
        """The PEM of the authority that devices pin."""
        return self._text("/api/v1/ca", "application/x-pem-file")

    def models(self) -> list[Fields]:
        """Every model."""
        return list(self.pages("/api/v1/models", {}))

    def model(self, name: str) -> Fields:
        """A model with its versions, newest first."""
        return self.request("GET", f"/api/v1/models/{quote(name, safe='')}")

    def versions(self, name: str, most: int = 10_000) -> list[Fields]:
        """The versions of a model, newest first."""
        return list(self.pages(f"/api/v1/models/{quote(name, safe='')}/versions", {}, most))

    def version(self, name: str, version: str) -> Fields:
        """One version, with its metadata, lineage and what its probe found; `@NAME` is an alias."""
        return self.request("GET", f"/api/v1/models/{quote(name, safe='')}/versions/{quote(version, safe='@')}")

    def aliases(self, name: str) -> list[Fields]:
        """The aliases of a model."""
        return list(self.pages(f"/api/v1/models/{quote(name, safe='')}/aliases", {}))

    def alias(self, name: str, alias: str) -> Fields:
        """One alias: its `version` is what it names."""
        return self.request("GET", f"/api/v1/models/{quote(name, safe='')}/aliases/{quote(alias, safe='')}")

    def set_alias(self, name: str, alias: str, version: str) -> Fields:
        """Have an alias, such as `champion`, name a version."""
        path = f"/api/v1/models/{quote(name, safe='')}/aliases/{quote(alias, safe='')}"
        return self.request("PUT", path, {"version": version}, {"If-Match": "*"})

    def remove_alias(self, name: str, alias: str) -> Fields:
        """Take an alias away."""
        return self.request("DELETE", f"/api/v1/models/{quote(name, safe='')}/aliases/{quote(alias, safe='')}")

    def compare(self, name: str, a: str, b: str) -> Fields:
        """Two versions of a model side by side; `@NAME` is an alias."""
        return self.request("GET", f"/api/v1/models/{quote(name, safe='')}/compare?{urlencode({'a': a, 'b': b})}")

    def remove_version(self, name: str, version: str) -> Fields:
        """Remove a version that nobody runs or is to run."""
        return self.request("DELETE", f"/api/v1/models/{quote(name, safe='')}/versions/{quote(version, safe='')}")

    def fetch(self, name: str, version: str, path: Path) -> Fields:
        """Download the package of a version, or of an alias as `@NAME`, into a file; which version it is."""
        found = self.version(name, version)
        self.download(str(found["sha256"]), path)
        return found

    def download(self, sha256: str, path: Path) -> None:
        """Download a package into a file. A connection that breaks is taken up where it broke, a few times.

        Raises:
            ClientError: it cannot be had, or is not what its name says; the file is then as it was.
        """
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            with part.open("wb") as file:
                attempt = 0
                for _ in range(PIECES_MAX):
                    have = file.tell()
                    try:
                        self._download_rest(sha256, file)
                        break
                    except _BrokenError:
                        attempt = attempt + 1 if file.tell() <= have else 0  # what gets on is not given up
                        if attempt == TRIES:
                            raise
                        time.sleep(min(2.0**attempt, WAIT_S_MAX))
                file.flush()
                os.fsync(file.fileno())
            with part.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                    raise ClientError("what came is not the package: its hash is another; fetch it again")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _download_rest(self, sha256: str, file: IO[bytes]) -> None:
        """Ask for what the file does not have yet, and append it."""
        have = file.tell()
        headers = {**self._headers, **({"Range": f"bytes={have}-", "If-Range": f'"{sha256}"'} if have else {})}
        try:
            url = f"{self._base}/api/v1/packages/{quote(sha256, safe='')}"
            response = self._pool.request("GET", url, headers=headers, preload_content=False, redirect=False)
            try:
                if response.status in RETRIED:
                    raise _BrokenError(f"the server answered {response.status}", response.status)
                if response.status not in (200, 206):
                    self._read(response.status, response.read(1 << 20))  # raises what the server says
                    raise ClientError(f"the server answered {response.status} to a download", response.status)
                if response.status == 200:
                    file.seek(0)  # the whole of it, again
                    file.truncate()
                elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                    raise ClientError("the server sent another part than it was asked for", response.status)
                for piece in response.stream(_PIECE_BYTES):
                    if file.tell() + len(piece) > PACKAGE_BYTES_MAX:
                        raise ClientError(f"the package has more than {PACKAGE_BYTES_MAX} bytes", response.status)
                    file.write(piece)
            finally:
                response.close()
        except urllib3.exceptions.HTTPError as error:
            raise _BrokenError(f"{self._base} cannot be reached: {error}") from error

    def package(self, sha256: str) -> bytes:
        """The bytes of a package."""
        status, _, data = self._send("GET", f"/api/v1/packages/{quote(sha256, safe='')}", None, {})
        if status != 200:
            self._read(status, data)  # raises what the server says
        return data

    def package_link(self, sha256: str, ttl_s: int | None = None) -> Fields:
        """An address of a package in the object store, which needs no token for at most 15 minutes."""
        return self.request("GET", _query(f"/api/v1/packages/{quote(sha256, safe='')}/link", {"ttl_s": ttl_s}))

    def blob_link(self, sha256: str, ttl_s: int | None = None) -> Fields:
        """The same of a blob that a device uploaded."""
        return self.request("GET", _query(f"/api/v1/blobs/{quote(sha256, safe='')}/link", {"ttl_s": ttl_s}))

    def events(self, *, device: str | None = None, model: str | None = None, most: int = 1000) -> list[Fields]:
        """Drift events, newest first."""
        return list(self.pages("/api/v1/drift/events", {"device": device, "model": model}, most))

    def event(self, number: int) -> Fields:
        """One drift event with its evidence."""
        return self.request("GET", f"/api/v1/drift/events/{number}")

    def metrics(self, *, limit: int = 500, **question: str | float | None) -> list[Fields]:
        """Metrics over time, oldest first.

        Args:
            limit: newest points.
            question: `device`, `group`, `model`, `version`; `since`, `until` in Unix seconds; `step` (minute, hour,
                day) adds up, `by` is what it keeps apart and `aggregate` what to answer (names with commas).
        """
        points = self.request("GET", _metrics_path(limit, question))["points"]
        return list(points) if isinstance(points, list) else []

    def metrics_csv(self, *, limit: int = 500, **question: str | float | None) -> str:
        """The same as CSV, a line a point."""
        return self._text(_metrics_path(limit, question), "text/csv")

    def usage(self, **question: str | float | None) -> Fields:
        """Predictions counted.

        Args:
            question: `device`, `group`, `model`, `version`; `since`, `until` in Unix seconds, 30 days unless given;
                `by` is what to keep apart, with commas: day, model, version, label.
        """
        return self.request("GET", _query("/api/v1/usage", question))

    def usage_csv(self, **question: str | float | None) -> str:
        """The same as CSV, a line an item."""
        return self._text(_query("/api/v1/usage", question), "text/csv")

    def fleet_health(self, limit: int = 20) -> Fields:
        """What is wrong in the fleet; `limit` devices of each check are named."""
        return self.request("GET", _query("/api/v1/health/fleet", {"limit": limit}))

    def device_health(self, device_id: str) -> Fields:
        """What is wrong with a device."""
        return self.request("GET", f"/api/v1/health/devices/{quote(device_id, safe='')}")

    def performance(
        self, model: str, *, group: str | None = None, since: float | None = None, until: float | None = None
    ) -> Fields:
        """How a model's versions do in the field; the last 7 days unless given."""
        path = f"/api/v1/models/{quote(model, safe='')}/performance"
        return self.request("GET", _query(path, {"group": group, "since": since, "until": until}))

    def logs(self, *, most: int = 1000, **question: str | float | None) -> list[Fields]:
        """What devices have logged, newest first.

        Args:
            most: lines.
            question: `device`, `level` (the least), `logger`; `since`, `until` in Unix seconds.
        """
        asked = {key: None if value is None else str(value) for key, value in question.items()}
        return list(self.pages("/api/v1/logs", asked, most))

    def follow(
        self,
        *,
        types: str | None = None,
        device: str | None = None,
        model: str | None = None,
        after: str | None = None,
        again: bool = True,
    ) -> Iterator[Fields]:
        """What happens, as it happens: each event with its `id`, `event` and what it tells.

        Args:
            types: only these, with commas: drift, deployment, command, config, change.
            device, model: only of these.
            after: the id of the last event that was seen; without it from now on.
            again: when the stream ends, go on from the last id, a few seconds later; for ever.

        Raises:
            ClientError: the server refuses, or the stream ended and `again` is False.
        """
        path = _query("/api/v1/events", {"types": types, "device": device, "model": model})
        failures = 0
        while True:
            try:
                for event in self._events(path, after):
                    failures, after = 0, str(event["id"])
                    yield event
            except ClientError as error:
                if not again or (error.status and error.status not in RETRIED):
                    raise
                failures += 1
            if not again:
                return
            time.sleep(min(3.0 * 2.0 ** min(failures, 4), WAIT_S_MAX))

    def _events(self, path: str, after: str | None) -> Iterator[Fields]:
        headers = {
            **self._headers,
            "Accept": "text/event-stream",
            **({} if after is None else {"Last-Event-ID": after}),
        }
        try:
            response = self._pool.request(
                "GET", self._base + path, headers=headers, preload_content=False, redirect=False
            )
        except urllib3.exceptions.HTTPError as error:
            raise ClientError(f"{self._base} cannot be reached: {error}") from error
        try:
            if response.status != 200:
                self._read(response.status, response.read(ANSWER_BYTES_MAX))
            yield from _read_events(response)
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            raise ClientError(f"the stream of {self._base} broke: {error}") from error
        finally:
            response.close()

    def _text(self, path: str, media: str) -> str:
        status, _, data = self._send("GET", path, None, {"Accept": media})
        if status != 200:
            self._read(status, data)  # raises what the server says
        return data.decode()


def _once(key: str | None) -> dict[str, str]:
    """The header that makes a creation happen once, also when it is sent again because the server was busy."""
    return {"Idempotency-Key": key or secrets.token_hex(16)}


def _metrics_path(limit: int, question: Mapping[str, str | float | None]) -> str:
    return _query("/api/v1/metrics/query", {**question, "limit": limit})


def _query(path: str, question: Mapping[str, str | float | None]) -> str:
    """An address with what is asked for; None is left out."""
    fields = {key: value for key, value in question.items() if value is not None}
    return f"{path}?{urlencode(fields)}" if fields else path


def _read_events(response: urllib3.BaseHTTPResponse) -> Iterator[Fields]:
    """The events of a stream of server-sent events; heartbeats are passed over."""
    left, event = b"", dict[str, str]()
    for piece in response.stream(decode_content=True):
        *lines, left = (left + piece).split(b"\n")
        if len(left) > EVENT_BYTES_MAX:
            raise ClientError(f"an event is larger than {EVENT_BYTES_MAX} bytes: is this a TinySphere?")
        for line in lines:
            name, _, value = line.decode("utf-8", "replace").rstrip("\r").partition(":")
            if name:
                event[name] = value.removeprefix(" ")
            elif not line.strip() and "data" in event:
                yield {**json.loads(event["data"]), "id": event.get("id", ""), "event": event.get("event", "")}
                event = {}
