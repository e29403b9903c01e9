"""The main job, end to end: a watch's sensor -> TinyLCM -> TinySphere -> a person sees drift.

Run it with `make demo`. It starts a server on this machine, enrols a device with a join token, uploads and deploys a
signed model package and streams real recordings at ten times real time. Halfway the watch is worn differently. It
ends by itself; `make demo KEEP=1` leaves the server up.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from stream import Recording, activity_of, load, wear_differently
from tinylcm import Device, Pipeline, Prediction
from tinylcm.keys import Trust, fingerprint, load_public
from tinylcm.package import Package, load_package

HERE: Final = Path(__file__).parent
OUTPUT: Final = Path("demo-output")
SPEED: Final = 10.0
RATE_HZ: Final = 10.0
BIN: Final = Path(sys.executable).parent
BAR_CHARACTERS: Final = 30


def say(text: str = "") -> None:
    """A line for the person who watches."""
    print(text, flush=True)


def call(*command: str) -> str:
    """Run one of our commands as a user would; its output."""
    result = subprocess.run([str(BIN / command[0]), *command[1:]], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise SystemExit(f"{command[0]} {command[1]} failed: {result.stderr.strip()}")
    return result.stdout


@dataclass
class Server:
    """A TinySphere of our own on a free loopback port."""

    process: subprocess.Popen[str]
    url: str
    token: str


def start_server(data: Path) -> Server:
    """Start the server on SQLite and a folder, and make an administrator's token."""
    log = (OUTPUT / "server.log").open("w")
    process = subprocess.Popen(
        [str(BIN / "tinysphere"), "serve", "--host", "127.0.0.1", "--port", "0", "--data", str(data)],
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("TinySphere listens on "):
        process.kill()
        raise SystemExit(f"the server did not start; see {OUTPUT / 'server.log'}")
    token = json.loads(
        call("tinysphere", "token", "create", "--data", str(data), "--role", "admin", "--name", "demo", "--json")
    )
    return Server(process, line.removeprefix("TinySphere listens on ").split()[0], token["token"])


@dataclass
class Phase:
    """What was seen in one part of the stream."""

    pure: int = 0
    right: int = 0
    mixed: int = 0
    confidence: list[float] = field(default_factory=list)
    latency_us: list[float] = field(default_factory=list)

    def add(self, prediction: Prediction, activity: str | None) -> None:
        """Count a prediction."""
        self.confidence.append(prediction.confidence)
        self.latency_us.append(prediction.latency_us)
        if activity is None:
            self.mixed += 1
        else:
            self.pure += 1
            self.right += prediction.label == activity

    @property
    def accuracy(self) -> float:
        """Share of pure windows that were right."""
        return self.right / max(1, self.pure)

    def describe(self) -> str:
        """In words."""
        return (
            f"{self.right} of {self.pure} windows inside one activity right ({self.accuracy:.3f}); "
            f"{self.mixed} mixed windows apart; mean confidence {np.mean(self.confidence):.3f}; "
            f"latency p50 {np.percentile(self.latency_us, 50):.0f} us, p95 {np.percentile(self.latency_us, 95):.0f} us"
        )


@dataclass
class Report:
    """The whole stream's result."""

    before: Phase = field(default_factory=Phase)
    after: Phase = field(default_factory=Phase)
    false_alarms: int = 0
    first_alarms: dict[str, int] = field(default_factory=dict)  # monitor -> windows after the change


def paced(samples: NDArray[np.float32], speed: float) -> Iterator[NDArray[np.float32]]:
    """Samples at `speed` times real time, with progress."""
    start, period = time.monotonic(), 1.0 / (RATE_HZ * speed)
    terminal, shown = sys.stdout.isatty(), 0
    for index, sample in enumerate(samples):
        wait = start + index * period - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        yield sample
        share = (index + 1) / len(samples)
        if terminal and index % 20 == 0:
            done = int(share * BAR_CHARACTERS)
            worn = "as trained" if share <= 0.5 else "worn differently"
            print(f"\r  [{'#' * done}{'.' * (BAR_CHARACTERS - done)}] {share:4.0%} {worn:<17}", end="", flush=True)
        elif not terminal and int(share * 4) > shown:
            shown = int(share * 4)
            say(f"  {share:4.0%} of the stream")
    if terminal:
        print("\r" + " " * 70 + "\r", end="", flush=True)


def judge(predictions: Iterator[Prediction], recording: Recording, change: int) -> Report:
    """Compare predictions with what was recorded; `change` is the sample at which the watch was turned."""
    report = Report()
    windows_after = 0
    for prediction in predictions:
        first, last = prediction.first_sample, prediction.last_sample
        if last >= change:
            windows_after += 1
        if prediction.drift and last < change:
            report.false_alarms += len(prediction.drift)
        for alarm in prediction.drift if last >= change else ():
            report.first_alarms.setdefault(f"{alarm.monitor} ({alarm.detector} on {alarm.signal})", windows_after)
        if last < change:
            report.before.add(prediction, activity_of(recording, first, last))
        elif first >= change:
            report.after.add(prediction, activity_of(recording, first, last))
    return report


def control_run(package: Package, recording: Recording) -> int:
    """The same length without the change, as fast as it goes; the number of alarms (all of them false)."""
    twice = np.concatenate([recording.samples, recording.samples])
    return sum(len(prediction.drift) for prediction in Pipeline(package).stream([twice]))


def set_up(server: Server, data: Path) -> tuple[Package, str]:
    """Keys, package, upload, deployment and enrolment, each by the command that a user types."""
    keys = OUTPUT / "keys"
    call("tinylcm", "keys", "init", str(keys))
    root = str(keys / "root.pub")
    join = json.loads(
        call("tinysphere", "join", "create", "--data", str(data), "--url", server.url, "--root", root, "--json")
    )
    package_path = OUTPUT / "activity-1.0.0.tlm"
    call(
        "tinylcm", "package", "build", str(HERE / "model.onnx"), "--manifest", str(HERE / "model.toml"),
        "--key", str(keys / "release.key"), "-o", str(package_path),
    )  # fmt: skip
    os.environ.update(TINYSPHERE_URL=server.url, TINYSPHERE_TOKEN=server.token)
    call("tinysphere", "upload", str(package_path))
    call("tinysphere", "deploy", "activity", "1.0.0", "--selector", "all")
    config = OUTPUT / "device.toml"
    config.write_text(
        '[device]\nname = "watch-01"\ndata = "device"\nmetrics_interval_s = 1.0\n'
        "[server]\nsync_interval_s = 1.0\nbackoff_max_s = 5.0\n"
    )
    enrolled = json.loads(call("tinylcm", "enrol", join["join"], "--config", str(config), "--json"))
    package = load_package(package_path, Trust(frozenset({fingerprint(load_public(Path(root)))})))
    return package, enrolled["device_id"]


def stream_to_server(recording: Recording, speed: float) -> tuple[Report, int]:
    """The device's application: a few lines. Returns the report and the records that the server acknowledged last."""
    changed = wear_differently(recording.samples)
    both = Recording(
        np.concatenate([recording.samples, changed]),
        np.concatenate([recording.activities, recording.activities]),
    )
    with Device.open(OUTPUT / "device.toml") as device:
        model = device.wait_for_model("activity", timeout_s=30)
        report = judge(model.stream(paced(both.samples, speed)), both, len(recording.samples))
        settled = device.sync()
    return report, settled


def drift_events(device_id: str) -> list[dict[str, object]]:
    """The drift events that the server shows for a device."""
    answer = json.loads(call("tinysphere", "events", "--device", device_id, "--json"))
    return list(answer["items"])


def main() -> int:
    """Run the demonstration; 0 when everything that it promises was seen."""
    parser = argparse.ArgumentParser(description="The main job, end to end, on real sensor data.")
    parser.add_argument("--keep", action="store_true", help="leave the server up")
    parser.add_argument("--speed", type=float, default=SPEED, help="times real time (default 10)")
    arguments = parser.parse_args()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    OUTPUT.mkdir()
    data = OUTPUT / "server"
    started = time.monotonic()
    say("1. starting TinySphere on SQLite and a folder")
    server = start_server(data)
    try:
        say(f"   {server.url}")
        say("2. keys, signed package, upload, deployment to every device, enrolment with a join token")
        package, device_id = set_up(server, data)
        page = f"{server.url}/login#token={server.token}&next=/devices/{device_id}"
        say(f"   device {device_id}; model activity 1.0.0, sha256 {package.sha256[:12]}")
        if arguments.keep:
            say(f"   watch it live: {page}")
        recording = load()
        say(f"3. streaming {2 * len(recording.samples)} samples of a smart watch at {arguments.speed:g}x real time")
        report, _ = stream_to_server(recording, arguments.speed)
        say("4. control run: the same length without the change")
        control = control_run(package, recording)
        events = drift_events(device_id)
        return tell(report, control, events, page, server, keep=arguments.keep, seconds=time.monotonic() - started)
    finally:
        if not arguments.keep:
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(timeout=20)


def tell(
    report: Report,
    control: int,
    events: list[dict[str, object]],
    page: str,
    server: Server,
    *,
    keep: bool,
    seconds: float,
) -> int:
    """Say in plain words what was seen; 1 when a promise was not kept."""
    first = min(report.first_alarms.values(), default=None)
    say()
    say(f"Before the change   {report.before.describe()}")
    say(f"After the change    {report.after.describe()}")
    if first is None:
        say("Drift               no alarm was raised")
    else:
        say(f"Drift               alarm {first} windows ({first:g} s of watch time) after the change")
        for monitor, windows in sorted(report.first_alarms.items(), key=lambda item: item[1]):
            say(f"                    - {monitor}: window {windows}")
    say(f"False alarms        {report.false_alarms} before the change; {control} in the control run without a change")
    say(f"On the server       {len(events)} drift events arrived through the journal")
    kept = (
        report.before.accuracy >= 0.95 and first is not None and not report.false_alarms and not control and events
        and {"input", "features"} <= {str(event["monitor"]) for event in events}
    )  # fmt: skip
    say()
    if keep:
        say(f"See it              {page}")
        say(f"                    the server stays up; stop it with: kill {server.process.pid}")
    else:
        say("See it              run `make demo KEEP=1`: it leaves the server up and prints the address of the page")
    say(f"Took                {seconds:.0f} s; everything is in {OUTPUT}/")
    if not kept:
        say("FAILED: at least one promise of the demonstration was not kept; see above")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
