"""The HTTP API under generated requests: schemathesis reads /openapi.json and asks for everything that it allows, and
for much that it does not. No answer may be a 5xx or other than the document says.

`TINYMLOPS_TORTURE=1` asks twice as often.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from fleet import build_activity, device_config, make_keys, run_cli, sphere
from tinylcm.device import enrol

CASES_MIN = 5000
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
ASK = "45/s"  # below what the server lets one person or device ask: a 429 would try nothing
TIMES = 2 if os.environ.get("TINYMLOPS_TORTURE") else 1


def ask(url: str, key: str, examples: int, seed: int, folder: Path, *which: str) -> int:
    """Ask; how many cases there were. What schemathesis keeps lies in `folder`."""
    result = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("-H", f"Authorization: Bearer {key}", "--checks", ",".join(CHECKS), "--phases", "coverage,fuzzing"),
            *("-n", str(examples), "--rate-limit", ASK, "--request-timeout", "20", "--seed", str(seed)),
            *("--continue-on-failure", "--no-shrink", "--suppress-health-check", "all", "--warnings", "off"),
            *("--exclude-path", "/api/v1/events", *which),  # an answer that never ends
        ],
        capture_output=True,
        text=True,
        timeout=1500,
        cwd=folder,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    generated, passed = re.findall(r"([\d,]+) generated, ([\d,]+) passed", result.stdout)[-1]
    assert generated == passed
    return int(generated.replace(",", ""))


def test_no_request_ends_in_a_server_error_or_in_an_answer_that_the_document_does_not_know(
    tmp_path: Path, activity: Path, report: Callable[..., None]
) -> None:
    keys = make_keys(tmp_path / "keys")
    package = build_activity(activity, keys, tmp_path / "activity.tlm")
    with sphere(tmp_path) as server:
        server.trust(keys / "root.pub")
        run_cli("tinysphere.cli", "upload", str(package), TINYSPHERE_URL=server.url, TINYSPHERE_TOKEN=server.token)
        device = enrol(device_config(tmp_path / "device"), server.join(keys / "root.pub"))
        cases = ask(server.url, server.token, 55 * TIMES, 1, tmp_path)
        cases += ask(
            server.url, f"{device.device_id}.{device.secret}", 100 * TIMES, 2, tmp_path,
            "--include-path", "/api/v1/sync", "--include-path", "/api/v1/devices/key",
            "--include-path-regex", "/api/v1/(blobs|packages)/",
        )  # fmt: skip
        log = (tmp_path / "server.log").read_text()
    assert "unexpected error" not in log, log[-4000:]
    assert cases >= CASES_MIN
    report("generated requests to the API", cases=cases, server_errors=0, schema_violations=0)
