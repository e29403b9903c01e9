"""A model's life in the registry, by the commands, the API and the Python client together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import urllib3
from fleet import Sphere, run, run_cli, sphere
from models import make_package, make_signer
from tinylcm.keys import write_public
from tinysphere.client import Client, ClientError

LINEAGE = {"run_id": "r-7", "data_sha256": "d" * 64, "git_commit": "c" * 40}


def token(server: Sphere, role: str) -> str:
    return str(run_cli("tinysphere.cli", "token", "create", "--data", str(server.data), "--role", role)["token"])


def test_a_model_is_uploaded_named_compared_fetched_and_removed(tmp_path: Path) -> None:
    first = make_package(metadata={**LINEAGE, "training": {"epochs": 30}})
    second = make_package(version="2.0.0", bias=1.0, metadata={**LINEAGE, "training": {"epochs": 60}})
    (tmp_path / "first.tlm").write_bytes(first)
    (tmp_path / "second.tlm").write_bytes(second)
    broken = make_package(version="3.0.0", model=b"\x08\x08" + b"\xff" * 300)
    sha256 = hashlib.sha256(first).hexdigest()
    with sphere(tmp_path) as server:
        write_public(tmp_path / "root.pub", make_signer().keyset.root)
        server.trust(tmp_path / "root.pub")
        environment = {"TINYSPHERE_URL": server.url, "TINYSPHERE_TOKEN": token(server, "engineer")}
        # The three ways in: a command, the API as it is, the client.
        run("upload", str(tmp_path / "first.tlm"), **environment)
        raw = raw_upload(server, token(server, "scientist"), second)
        assert raw.status == 201 and json.loads(raw.data)["metadata"]["training"] == {"epochs": 60}
        assert raw_upload(server, server.token, second).status == 200, "the same again changes nothing"
        refused = raw_upload(server, server.token, broken)
        assert refused.status == 422 and "cannot load the model" in json.loads(refused.data)["detail"]
        assert raw_upload(server, token(server, "viewer"), first).status == 403
        client = Client(server.url, environment["TINYSPHERE_TOKEN"])
        found = client.version("gesture", "1.0.0")
        assert found["lineage"] == LINEAGE and float(str(dict(found["probe"])["latency_us"])) > 0  # type: ignore[call-overload]
        # Names, and two versions side by side.
        run("model", "alias", "gesture", "champion", "1.0.0", **environment)
        compared = run("model", "compare", "gesture", "@champion", "2.0.0", **environment).stdout
        assert "metadata.training.epochs" in compared and "metadata.run_id" not in compared
        shown = run("model", "show", "gesture", **environment).stdout
        assert "1.0.0 @champion" in shown and "run_id=r-7" in shown and " us" in shown
        # A part of the file, by the standard's Range.
        part = get(server, f"/api/v1/packages/{sha256}", Range="bytes=10-19")
        assert (part.status, part.data) == (206, first[10:20])
        assert part.headers["Content-Range"] == f"bytes 10-19/{len(first)}"
        client.fetch("gesture", "@champion", tmp_path / "got.tlm")
        assert (tmp_path / "got.tlm").read_bytes() == first
        # It stays as long as it is deployed or named.
        deployment = client.deploy("gesture", "@champion")
        assert "is deployed" in run("model", "remove", "gesture", "1.0.0", code=1, **environment).stderr
        with pytest.raises(ClientError, match="is deployed") as caught:
            client.remove_version("gesture", "1.0.0")
        assert caught.value.status == 409
        client.abort(int(str(deployment["id"])))
        assert "is @champion" in run("model", "remove", "gesture", "1.0.0", code=1, **environment).stderr
        run("model", "unalias", "gesture", "champion", **environment)
        run("model", "remove", "gesture", "1.0.0", **environment)
        assert get(server, f"/api/v1/packages/{sha256}").status == 404
        assert [item["version"] for item in client.versions("gesture")] == ["2.0.0"]
        client.close()


def raw_upload(server: Sphere, secret: str, data: bytes) -> urllib3.BaseHTTPResponse:
    return urllib3.request(
        "POST", f"{server.url}/api/v1/models/gesture/versions", body=data,
        headers={"Authorization": f"Bearer {secret}", "Content-Type": "application/octet-stream"},
    )  # fmt: skip


def get(server: Sphere, path: str, **headers: str) -> urllib3.BaseHTTPResponse:
    return urllib3.request("GET", server.url + path, headers={"Authorization": f"Bearer {server.token}", **headers})
