"""Another key, cut off at any point."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from scripted import Reply, Request, scripted_server
from tinylcm.errors import ServerError
from tinylcm.http import HttpClient
from tinylcm.identity import Identity, load_identity, save_identity
from tinylcm.rekey import rekey


class Server:
    """Takes the present key and the next one, as the real one does; answers get lost when told."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.status = 200
        self.cut: int | None = None

    def answer(self, request: Request) -> Reply:
        self.asked.append(json.loads(request.body)["secret_sha256"])
        return Reply(self.status, b'{"device_id": "d1", "detail": "later"}', cut_after=self.cut)


def test_a_lost_answer_leaves_the_present_key_and_the_same_next_one(tmp_path: Path) -> None:
    path, server = tmp_path / "identity.json", Server()
    with scripted_server(server.answer) as (url, _):
        first = Identity("s" * 64, url, "sha256:" + "0" * 64, "d1")
        save_identity(path, first)
        client = HttpClient(url, key=first.key)
        for status, cut in ((200, 5), (503, None)):
            server.status, server.cut = status, cut
            with pytest.raises(ServerError):
                rekey(path, load_identity(path) or first, client)
            kept = load_identity(path)
            assert kept is not None and kept.key == first.key and len(kept.next_secret) == 64
        server.status, server.cut = 200, None
        changed = rekey(path, load_identity(path) or first, client)
        client.close()
    assert changed == load_identity(path) and changed.next_secret == "" and changed.secret != first.secret
    assert set(server.asked) == {hashlib.sha256(changed.secret.encode()).hexdigest()} and len(server.asked) == 3
    assert path.stat().st_mode & 0o077 == 0
