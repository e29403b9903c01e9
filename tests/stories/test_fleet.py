"""A fleet from its list of serial numbers to its last device, by the commands that people type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fleet import build_activity, device_config, make_keys, run, run_cli, sphere
from tinylcm import Device, ServerError
from tinylcm.device import enrol
from tinylcm.identity import load_identity


def test_a_fleet_is_announced_grouped_rekeyed_and_retired(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    with sphere(tmp_path) as server:
        at = {"TINYSPHERE_URL": server.url, "TINYSPHERE_TOKEN": server.token}
        table = tmp_path / "fleet.csv"
        table.write_text("serial,name,labels\nSN1,hall,site=berlin\nSN2,yard,site=bonn\n")
        assert "2 devices announced" in run("fleet", "import", str(table), **at).stdout
        run("expect", "add", "SN3", "roof", "--label", "site=bonn", **at)
        assert "SN3" in run("expect", "list", **at).stdout
        run("expect", "remove", "SN3", **at)
        assert "KEY=VALUE" in run("expect", "add", "SN3", "roof", "--label", "site", code=2, **at).stderr
        made = run_cli("tinysphere.cli", "join", "create", "--data", str(server.data), "--url", server.url,
                       "--root", str(keys / "root.pub"), "--expected-only", "--uses", "2")  # fmt: skip
        config = device_config(tmp_path / "device")
        with pytest.raises(ServerError, match="announced by their serial number"):
            enrol(config, made["join"])
        identity = enrol(config, made["join"], serial="SN1")
        device_id = identity.device_id
        run("group", "set", "north", "site=berlin", **at)
        assert "1" in run("group", "list", **at).stdout.splitlines()[-1]
        run("command", "group=north", "rotate_key", **at)
        with Device.open(config, background=False) as device:
            device.sync()
            device.sync()  # with the next key
        changed = load_identity(config.data / "identity.json")
        assert changed is not None and changed.secret != identity.secret and changed.next_secret == ""
        (answer,) = run_cli("tinysphere.cli", "commands", str(server.client.commands()[0]["id"]), **at)["devices"]
        assert answer["state"] == "done"
        toml = tmp_path / "device.toml"
        toml.write_text(f'[device]\ndata = "{config.data}"\n')
        assert device_id in json.dumps(run_cli("tinylcm.cli", "rotate-key", "--config", str(toml)))
        with Device.open(config, background=False) as device:
            device.sync()
        shown = json.loads(run("device", device_id, "--place", "52.5,13.4", "--json", **at).stdout)
        assert (shown["latitude"], shown["name"], shown["labels"]) == (52.5, "hall", {"site": "berlin"})
        assert "degrees" in run("device", device_id, "--place", "here", code=2, **at).stderr
        run("fleet", "export", str(tmp_path / "out.csv"), **at)
        assert f"{device_id},SN1,hall,52.5,13.4,site=berlin" in (tmp_path / "out.csv").read_text()
        assert run("fleet", "export", **at).stdout.startswith("id,serial,name")
        run("device", device_id, "--revoke", **at)
        with Device.open(config, background=False) as device, pytest.raises(ServerError, match="was revoked"):
            device.sync()
        run("device", device_id, "--retire", **at)
        assert device_id not in run("devices", **at).stdout
        run("group", "remove", "north", **at)
        assert "no groups" in run("group", "list", **at).stdout


def test_a_models_versions_are_named_compared_fetched_and_removed(tmp_path: Path, activity: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    with sphere(tmp_path) as server:
        at = {"TINYSPHERE_URL": server.url, "TINYSPHERE_TOKEN": server.token}
        server.trust(keys / "root.pub")
        package = build_activity(activity, keys, tmp_path / "activity.tlm")
        run("upload", str(package), **at)
        run("model", "alias", "activity", "champion", "1.0.0", **at)
        shown = run("model", "show", "activity", **at).stdout
        assert "1.0.0 @champion" in shown and " us" in shown
        assert "the same" in run("model", "compare", "activity", "1.0.0", "@champion", **at).stdout
        assert "deployment 1: activity 1.0.0" in run("deploy", "activity", "@champion", **at).stdout
        run("model", "fetch", "activity", "1.0.0", str(tmp_path / "back.tlm"), **at)
        assert (tmp_path / "back.tlm").read_bytes() == package.read_bytes()
        assert "no version" in run("model", "fetch", "activity", "9", str(tmp_path / "x"), code=1, **at).stderr
        assert "is deployed" in run("model", "remove", "activity", "1.0.0", code=1, **at).stderr
        run("abort", "1", **at)
        run("model", "unalias", "activity", "champion", **at)
        run("model", "remove", "activity", "1.0.0", **at)
        assert "no model" in run("model", "show", "activity", code=1, **at).stderr
