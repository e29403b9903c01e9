"""Record what this version's device asks and its server answers, for tests/runtime/test_versions.py to replay later.

    python scripts/record_wire.py 0.1.0 > tests/data/wire/0.1.0.json
    python scripts/record_wire.py next > tests/data/wire/next.json

Run it once for a version, with that version installed, and never again for it: the file is what the world has.

`next` stands for the version to come, which nobody can record yet: this version's device and server with fields, record
types, downlink items and streams that are not invented yet put into all that they say, and a server that speaks one
version of the wire more than this one.
"""

from __future__ import annotations

import base64
import gzip
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from kit import alarm, make_web, record, request, summary  # noqa: E402
from tinylcm.version import __version__  # noqa: E402
from tinylcm.wire import WIRE_VERSION, RunningModel, encode, messages  # noqa: E402


def bodies() -> dict[str, tuple[dict[str, str], bytes]]:
    """Requests by name: their headers and bodies."""
    full = encode(
        request(
            running=(RunningModel("gesture", "1.0.0", "ab" * 32, "confirmed"),),
            generation=0,
            capabilities={"formats": ["onnx"]},
            events=[record(1), record(2, "alarm", alarm()), record(3, "not_yet_invented", {"x": [1, 2.5, None]})],
            details=[record(1, "summary", summary([5, 7], [0.5, 0.7]))],
        )
    )
    if sys.argv[1] == "next":
        full = json.dumps(later(json.loads(full))).encode()
    newer = json.dumps({**json.loads(full), "wire": WIRE_VERSION + 1}).encode()
    as_json = {"Content-Type": "application/json"}
    return {
        "json": (as_json, full),
        "msgpack": ({"Content-Type": "application/msgpack"}, msgpack.packb(json.loads(full))),
        "gzip": ({**as_json, "Content-Encoding": "gzip"}, gzip.compress(full, mtime=0)),
        "next version": (as_json, newer),
    }


def later(value: Any, depth: int = 0) -> Any:
    """What is said, with a field more in every table of the protocol; payloads and settings belong to somebody else."""
    if isinstance(value, list):
        return [later(item, depth) for item in value]
    if not isinstance(value, dict):
        return value
    kept = ("payload", "capabilities", "acked", "settings", "args")
    said = {key: item if key in kept else later(item, depth + 1) for key, item in value.items()}
    if depth == 0 and "acked" in said:
        said["acked"]["samples"] = ["00000000000000aa", 9]
        said["downlink"] = [*said.get("downlink", []), {"type": "not_yet_invented", "id": 1, "expires_in_s": 60}]
        if isinstance(said["desired"], dict):
            said["desired"]["experiments"] = [{"kind": "not_yet_invented"}]
    return {**said, "not_yet_invented": {"since": WIRE_VERSION + 1}}


def answer_later(body: bytes, kind: str) -> bytes:
    """An answer in the words of the version to come."""
    load: Callable[[bytes], Any] = msgpack.unpackb if kind.endswith("msgpack") else json.loads
    said = later(load(body))
    return msgpack.packb(said) if kind.endswith("msgpack") else json.dumps(said).encode()


def main() -> int:
    """Ask an application in process, and print what was said."""
    exchanges: dict[str, object] = {}
    is_next = sys.argv[1] == "next"
    if is_next:
        messages.WIRE_VERSION = WIRE_VERSION + 1  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        web = make_web(Path(folder))
        with web.client:
            web.kit.upload()
            web.kit.deploy()
            for name, (headers, body) in bodies().items():
                _, key = web.enrol(name)
                answer = web.client.post("/api/v1/sync", content=body, headers={**key, **headers})
                kind = answer.headers["content-type"]
                exchanges[name] = {
                    "request": {"headers": headers, "body": base64.b64encode(body).decode()},
                    "answer": {
                        "status": answer.status_code,
                        "content_type": kind,
                        "body": base64.b64encode(
                            answer_later(answer.content, kind) if is_next else answer.content
                        ).decode(),
                    },
                }
    print(json.dumps({"version": __version__, "label": sys.argv[1], "exchanges": exchanges}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
