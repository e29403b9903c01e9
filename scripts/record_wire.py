"""Record what this version's device asks and its server answers, for tests/runtime/test_versions.py to replay later.

    python scripts/record_wire.py 0.1.0 > tests/data/wire/0.1.0.json

Run it once for a version, with that version installed, and never again for it: the file is what the world has.
"""

from __future__ import annotations

import base64
import gzip
import json
import sys
import tempfile
from pathlib import Path

import msgpack

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from kit import alarm, make_web, record, request, summary  # noqa: E402
from tinylcm.version import __version__  # noqa: E402
from tinylcm.wire import RunningModel, encode  # noqa: E402


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
    later = json.dumps({**json.loads(full), "wire": 2}).encode()
    as_json = {"Content-Type": "application/json"}
    return {
        "json": (as_json, full),
        "msgpack": ({"Content-Type": "application/msgpack"}, msgpack.packb(json.loads(full))),
        "gzip": ({**as_json, "Content-Encoding": "gzip"}, gzip.compress(full, mtime=0)),
        "next version": (as_json, later),
    }


def main() -> int:
    """Ask an application in process, and print what was said."""
    exchanges: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        web = make_web(Path(folder))
        with web.client:
            web.kit.upload()
            web.kit.deploy()
            for name, (headers, body) in bodies().items():
                _, key = web.enrol(name)
                answer = web.client.post("/api/v1/sync", content=body, headers={**key, **headers})
                exchanges[name] = {
                    "request": {"headers": headers, "body": base64.b64encode(body).decode()},
                    "answer": {
                        "status": answer.status_code,
                        "content_type": answer.headers["content-type"],
                        "body": base64.b64encode(answer.content).decode(),
                    },
                }
    print(json.dumps({"version": __version__, "label": sys.argv[1], "exchanges": exchanges}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
