"""Tokens, join strings and the audit from the command line, here and from afar."""

from __future__ import annotations

from pathlib import Path

from fleet import make_keys, run, sphere
from tinylcm.identity import Join

URL = "https://sphere.example:8443"


def test_the_commands_work_on_the_machine_and_over_http(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    with sphere(tmp_path) as server:
        here = {"--data": str(server.data)}
        there = {"--server": server.url, "--token": server.token}
        server.trust(keys / "root.pub")
        made = []
        for way in (here, there):
            options = [text for pair in way.items() for text in pair]
            root = str(keys / "root.pub")
            made.append(run("join", "create", "--url", URL, "--root", root, *options).stdout.strip())
            assert Join.parse(made[-1]).url == URL
            listed = run("join", "list", *options).stdout
            assert f"{0} of 1" in listed and "any device" in listed
            token = run("token", "create", "--role", "viewer", "--name", "ada", *options).stdout.split()[0]
            assert token.split("_")[1] in run("token", "list", *options).stdout
            assert "is revoked" in run("token", "revoke", token.split("_")[1], *options).stdout
            assert "token.revoke" in run("audit", "list", "--limit", "3", *options).stdout
            number = Join.parse(made[-1]).token.split("_")[1]
            assert "nobody else" in run("join", "revoke", number, *options).stdout
        assert made[0] != made[1]
        run("token", "list", code=2)


def test_an_authority_is_named_on_the_servers_machine_alone(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "keys")
    made = run("join", "create", "--url", URL, "--root", str(keys / "root.pub"), "--ca", "x.pem",
               "--server", "http://127.0.0.1:9", "--token", "t", code=2)  # fmt: skip
    assert "--ca is for --data" in made.stderr
