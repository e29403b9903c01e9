"""`tinylcm`: a thin skin over the library. Exit code 2 for wrong usage, 1 for a failure, one line and no traceback."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .board_cli import add_board_commands
from .config import DeviceConfig, default_toml
from .console import CONFIG, add_command, configuration, counter, print_result, progress_bar
from .daemon import LOG_FORMATS, Daemon, log_to
from .errors import ConfigError, InputError, TinyLCMError
from .files import device_error, write_atomic
from .journal_cli import add_journal_commands
from .package import Package, load_package
from .types import Json, Prediction
from .version import __version__
from .wire import finite

if TYPE_CHECKING:
    from .boards import BoardPrediction

# keys and packages ----------------------------------------------------------------------------------------


def _keys_init(arguments: argparse.Namespace) -> None:
    from .keys import fingerprint, init_keys

    keyset = init_keys(Path(arguments.folder), days=arguments.days)
    root = fingerprint(keyset.root)
    print_result(
        arguments,
        {"root": root, "folder": arguments.folder, "expires_s": keyset.keys[0].expires_s},
        f"root key     {arguments.folder}/root.key   keep it offline: it vouches for every release key\n"
        f"release key  {arguments.folder}/release.key   signs packages for {arguments.days} days\n"
        f"fingerprint  {root}",
    )


def _keys_renew(arguments: argparse.Namespace) -> None:
    from .keys import renew_keys

    keyset = renew_keys(Path(arguments.folder), days=arguments.days)
    expires = time.strftime("%Y-%m-%d", time.gmtime(keyset.keys[0].expires_s))
    print_result(arguments, {"expires_s": keyset.keys[0].expires_s}, f"the release key may sign until {expires}")


def _keys_trust(arguments: argparse.Namespace) -> None:
    from .keys import load_public, pin_root

    root = pin_root(configuration(arguments).data / "trust", load_public(Path(arguments.root)))
    print_result(arguments, {"root": root}, f"this device now trusts packages of root {root}")


def _keys_revoke(arguments: argparse.Namespace) -> None:
    from .keyring import revoke

    revocation = revoke(
        Path(arguments.folder), model=arguments.model, floor=arguments.floor, release=arguments.release_key
    )
    floors: dict[str, Json] = dict(revocation.floors)
    lines = [f"{model}: packages with a security_counter below {floor} may not run" for model, floor in floors.items()]
    lines += [f"packages signed by {key} may not run" for key in sorted(revocation.revoked)]
    lines.append("packages built from now on tell devices; for a device without a server: tinylcm keys accept")
    print_result(
        arguments,
        {"serial": revocation.serial, "floors": floors, "revoked": [*sorted(revocation.revoked)]},
        "\n".join(lines),
    )


def _keys_rotate_release(arguments: argparse.Namespace) -> None:
    from .keyring import rotate_release
    from .keys import fingerprint

    release = fingerprint(rotate_release(Path(arguments.folder), days=arguments.days).keys[0].public)
    print_result(arguments, {"release": release}, f"release key {release} signs from now on; the old one was put aside")


def _keys_rotate_root(arguments: argparse.Namespace) -> None:
    from .keyring import rotate_root
    from .keys import fingerprint

    root = fingerprint(rotate_root(Path(arguments.folder)).new)
    print_result(arguments, {"root": root}, f"root key {root} is in force from now on; the old one was put aside")


def _keys_accept(arguments: argparse.Namespace) -> None:
    from .files import read_bounded
    from .keys import STATEMENT_FILE_BYTES_MAX, accept_statement

    data = read_bounded(Path(arguments.statement), STATEMENT_FILE_BYTES_MAX)
    statement, news = accept_statement(configuration(arguments).data / "trust", data)
    kind = type(statement).__name__.lower()
    said = "is believed from the next start on" if news else "is no news to this device"
    print_result(arguments, {"kind": kind, "news": news}, f"the {kind} {said}")


def _package_facts(package: Package) -> dict[str, Json]:
    manifest = package.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "format": manifest.format,
        "sha256": package.sha256,
        "size": package.size,
        "root": package.root,
        "release": package.release,
        "expired": package.expired,
        "labels": list(manifest.labels),
        "input": {"name": manifest.input.name, "shape": list(manifest.input.shape), "dtype": manifest.input.dtype},
        "monitors": [monitor.name for monitor in manifest.monitors],
        "security_counter": manifest.security_counter,
    }


def metadata_of(pairs: Sequence[str]) -> dict[str, Json]:
    """`KEY=VALUE`s as metadata: a value is JSON where it is some, else the text itself.

    Raises:
        ConfigError: one is no pair.
    """
    found: dict[str, Json] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ConfigError(f"--meta {pair!r:.70} is no KEY=VALUE, such as run_id=8c1f")
        try:
            found[key] = finite(json.loads(value))
        except ValueError:
            found[key] = value
    return found


def _package_build(arguments: argparse.Namespace) -> None:
    from .package import parse_package
    from .publish import build

    metadata = metadata_of(arguments.meta or ())
    data = build(Path(arguments.model), Path(arguments.manifest), Path(arguments.key), metadata=metadata)
    package = parse_package(data, None)
    output = Path(arguments.output or f"{package.manifest.name}-{package.manifest.version}.tlm")
    write_atomic(output, data)
    print_result(
        arguments,
        {**_package_facts(package), "path": str(output)},
        f"{output}  {package.manifest.name} {package.manifest.version}  {package.size} bytes\nsha256 {package.sha256}",
    )


def _package_verify(arguments: argparse.Namespace) -> None:
    from .keys import Trust, fingerprint, load_public
    from .probe import check_golden

    if arguments.root:
        trust: Trust | None = Trust(frozenset({fingerprint(load_public(Path(arguments.root)))}))
    else:
        trust = None if arguments.any_root else Trust.load(configuration(arguments).data / "trust")
    package = load_package(arguments.package, trust)
    facts = _package_facts(package)
    lines = [f"{package.manifest.name} {package.manifest.version}: sound, signed under root {package.root}"]
    if package.expired:
        lines.append("warning: the release key that signed it has expired by this machine's clock")
    if arguments.run:
        golden = check_golden(package)
        facts["golden"] = golden
        lines.append(f"golden windows: {golden['windows']} right, {golden['latency_us']:.0f} us each")
    print_result(arguments, facts, "\n".join(lines))


def _package_show(arguments: argparse.Namespace) -> None:
    package = load_package(arguments.package, None)
    manifest = package.manifest.to_json()
    print_result(
        arguments,
        {**_package_facts(package), "manifest": manifest},
        json.dumps({key: value for key, value in manifest.items() if key not in ("reference", "golden")}, indent=2),
    )


def _package_install(arguments: argparse.Namespace) -> None:
    from .device import Device
    from .files import read_bounded
    from .manifest import PACKAGE_BYTES_MAX

    with Device.open(configuration(arguments), background=False) as device:
        package = load_package(arguments.package, None)
        slot = device.agent.install(read_bounded(Path(arguments.package), PACKAGE_BYTES_MAX))
    name, version = package.manifest.name, package.manifest.version
    print_result(
        arguments, {"model": name, "version": version, "state": slot.state}, f"{name} {version}: on {slot.state}"
    )


# device ---------------------------------------------------------------------------------------------------


def _init(arguments: argparse.Namespace) -> None:
    path = Path(arguments.path)
    if path.exists():
        raise ConfigError(f"{path} exists already and is not overwritten")
    write_atomic(path, default_toml().encode())
    print_result(arguments, {"path": str(path)}, f"wrote {path}")


def _enrol(arguments: argparse.Namespace) -> None:
    from .device import enrol

    text = sys.stdin.readline() if arguments.join == "-" else arguments.join
    identity = enrol(configuration(arguments), text, serial=arguments.serial, insecure=arguments.insecure)
    print_result(
        arguments,
        {"device_id": identity.device_id, "url": identity.url, "root": identity.root},
        f"this device is {identity.device_id} of {identity.url}\nit trusts packages of root {identity.root}",
    )


def _rotate_key(arguments: argparse.Namespace) -> None:
    from .device import Device

    with Device.open(configuration(arguments), background=False) as device:
        device.agent.rotate_key()
        device_id = "" if device.identity is None else device.identity.device_id
    text = f"{device_id} has another key; the one before is over with the next sync"
    print_result(arguments, {"device_id": device_id}, text)


def _sync(arguments: argparse.Namespace) -> None:
    from .device import Device

    with Device.open(configuration(arguments), background=False) as device, counter("records") as progress:
        count = device.sync(progress=progress)
        slots = {name: slot for name, slot in device.slots().items() if slot.active is not None}
    models = {
        name: {"version": slot.active.version, "state": slot.state} for name, slot in slots.items() if slot.active
    }
    text = "".join(f"\n{name} {model['version']}: {model['state']}" for name, model in models.items())
    print_result(arguments, {"acknowledged": count, "models": models}, f"{count} records acknowledged{text}")


def _status(arguments: argparse.Namespace) -> None:
    from .device import journal_bytes
    from .identity import load_identity
    from .status import ask_status
    from .store import SlotStore

    config = configuration(arguments)
    running = ask_status(config.data)
    if arguments.prometheus:
        print(_prometheus(config, running), end="")
        return
    identity = load_identity(config.data / "identity.json")
    store = SlotStore(config.data, config.data / "trust") if config.data.is_dir() else None
    models: dict[str, Json] = {}
    for name in store.models() if store else []:
        slot = store.read(name) if store else None
        if slot is not None:
            models[name] = {
                "state": str(slot.state),
                "version": slot.active.version if slot.active else None,
                "sha256": slot.active.sha256 if slot.active else None,
                "previous": slot.previous.version if slot.previous else None,
            }
    journal = journal_bytes(config.data)
    document = {
        "device_id": identity.device_id if identity else None,
        "url": identity.url if identity else None,
        "data": str(config.data),
        "models": models,
        "journal_bytes": journal,
        "running": running,
    }
    lines = [f"device   {document['device_id'] or 'not enrolled: run `tinylcm enrol JOIN_STRING`'}"]
    if identity:
        lines.append(f"server   {identity.url}")
    lines += [f"model    {name} {m['version']} ({m['state']})" for name, m in models.items() if isinstance(m, dict)]
    lines.append(f"journal  {journal['events']} bytes of events, {journal['details']} bytes of details")
    lines += _running_lines(running)
    print_result(arguments, document, "\n".join(lines))


def _running_lines(running: dict[str, Any] | None) -> list[str]:
    """What the process that runs on the data folder says, for people."""
    if running is None:
        return ["process  none runs here now"]
    system = running["system"]
    lines = [
        f"process  {system['rss_bytes'] / 2**20:.0f} MiB, {system['cpu_percent']:.0f} % of a core, "
        f"{system['threads']} threads"
    ]
    temperature, throttled = system["cpu_temperature_c"], system["throttled"]
    if temperature is not None or throttled:
        shown = "" if temperature is None else f"{temperature:.0f} C"
        lines.append(f"machine  {shown}{', held back by heat or voltage' if throttled else ''}")
    lines += _journal_lines(running["journal"])
    for uid, board in running.get("boards", {}).items():
        model = f"{board['model']} {board['model_version']}".strip() or "no model of this device"
        lines.append(f"board    {board['name'] or uid}: {board['state']}, {model}, {board['lost_rows']} rows lost")
    for name, model in running["models"].items():
        total, samples = model["latency"]["total"], model["samples"]
        lines.append(
            f"running  {name} {model['version']}: {model['windows']} windows, {model['windows_per_s']:.1f}/s, "
            f"p50 {total['p50_us']:.0f} us, p99 {total['p99_us']:.0f} us, {model['errors']} errors, "
            f"{samples['dropped']} samples dropped, {samples['gaps']} gaps"
        )
    return lines


def _journal_lines(journal: dict[str, Any]) -> list[str]:
    """What waits and what was lost in this process, and what a day costs the flash card."""
    lines = []
    for stream in ("events", "details"):
        state = journal[stream]
        lost = [
            f"{state[key]} {key}" for key in ("dropped", "merged", "overflowed", "refused", "damaged") if state[key]
        ]
        text = f"{state['unacknowledged']} wait for the server, {state['queued']} for the disk"
        lines.append(f"{stream:<8} {text}{', ' if lost else ''}{', '.join(lost)}")
        if state["failed"]:
            lines.append(f"         the disk does not take them: {state['failed']}")
    wear = journal["wear"]
    if wear["projected_bytes_per_day"] is not None:
        budget = wear["budget_bytes_per_day"]
        of_budget = f" of {budget / 1e6:.0f} MB" if budget else ""
        stretched = f", so details wait {wear['commit_interval_s']:.0f} s" if wear["stretched"] else ""
        lines.append(f"flash    about {wear['projected_bytes_per_day'] / 1e6:.0f} MB{of_budget} a day{stretched}")
    return lines


def _prometheus(config: DeviceConfig, running: dict[str, Any] | None) -> str:
    from .clock import SystemClock
    from .device import journal_bytes
    from .prometheus import render
    from .system import SystemProbe, SystemReading

    if running is None:
        return render({}, SystemProbe(config.data, SystemClock()).read(), journal_bytes(config.data))
    return render(running["models"], SystemReading(**running["system"]), running["journal_bytes"])


def _rollback(arguments: argparse.Namespace) -> None:
    from .device import Device

    with Device.open(configuration(arguments), background=False) as device:
        slot = device.agent.rollback(arguments.model)
    version = slot.active.version if slot.active else None
    print_result(
        arguments, {"model": arguments.model, "version": version}, f"{arguments.model}: back to {version or 'no model'}"
    )


def _prediction_json(prediction: Prediction) -> dict[str, Json]:
    document = finite({**prediction.to_dict(), "drift": [asdict(alarm) for alarm in prediction.drift]})
    assert isinstance(document, dict)
    return document


def _show(arguments: argparse.Namespace, prediction: Prediction) -> None:
    text = f"{prediction.label:<16} {prediction.confidence:6.3f} {prediction.latency_us:9.1f} us"
    for alarm in prediction.drift:
        text += f"\n  drift: {alarm.monitor}: {alarm.detector} of {alarm.signal} "
        text += f"{alarm.statistic:.4g} > {alarm.threshold:.4g}"
    print_result(arguments, _prediction_json(prediction), text)


def _show_any(arguments: argparse.Namespace, prediction: Prediction | BoardPrediction) -> None:
    if isinstance(prediction, Prediction):
        if not arguments.quiet or prediction.drift:
            _show(arguments, prediction)
    elif not arguments.quiet:
        text = f"{prediction.label:<16} {prediction.confidence:6.3f} {prediction.latency_us:9.1f} us"
        print_result(arguments, asdict(prediction), f"{text}  {prediction.model} on board {prediction.board}")


def _windows_of(lines: list[object], axes: int) -> list[object]:
    """Each line is a window; but lines of numbers are together the one window of a model that takes a matrix."""
    first = lines[0] if lines else None
    if axes != 2 or not isinstance(first, list) or (first and isinstance(first[0], list)):
        return lines
    for number, line in enumerate(lines, 1):
        if not isinstance(line, list) or len(line) != len(first):
            got = f"{len(line)} values" if isinstance(line, list) else repr(line)[:40]
            raise InputError(f"line {number}: expected a list of {len(first)} numbers as in the first, got {got}")
    return [lines]


def _infer(arguments: argparse.Namespace) -> None:
    from .keys import Trust
    from .pipeline import Pipeline
    from .sources import load_array, open_source

    path = Path(arguments.model)
    if path.suffix == ".tlm":
        trust = None if arguments.any_root else Trust.load(configuration(arguments).data / "trust")
        pipeline = Pipeline(load_package(path, trust))
    else:
        pipeline = Pipeline(path, labels=arguments.labels.split(",") if arguments.labels else None)
    axes = len(pipeline.manifest.window_shape)
    windows: list[object]
    if arguments.input != "-" and Path(arguments.input).suffix in (".npy", ".npz"):
        array = load_array(Path(arguments.input), arguments.array)
        windows = [array] if array.ndim == axes else list(array)
    elif pipeline.manifest.image is not None and arguments.input != "-":
        windows = [Path(arguments.input)]
    else:
        windows = _windows_of(list(open_source(arguments.input)), axes)
    for window in windows:
        _show(arguments, pipeline.infer(window))


def _run(arguments: argparse.Namespace) -> None:
    from .device import Device
    from .sources import open_source, paced

    config = configuration(arguments)
    if not arguments.model and not config.boards:
        raise ConfigError("name a model with --model, or configure a [[board]] in device.toml")
    with Device.open(config) as device:
        if device.boards is not None:
            device.boards.on_prediction = partial(_show_any, arguments)

        def reload() -> None:
            device.reload(configuration(arguments))

        with Daemon(is_well=lambda: device.is_well, reload=reload) as daemon:
            try:
                if not arguments.model:
                    daemon.ready("serving the boards")
                    threading.Event().wait()  # a signal ends it
                daemon.ready(f"waiting for {arguments.model}")
                model = device.wait_for_model(arguments.model, arguments.wait_s)
                samples = open_source(
                    arguments.input,
                    array=arguments.array,
                    kind=arguments.kind,
                    channels=model.manifest.layout[1],
                    rate_hz=model.manifest.window.rate_hz,
                )
                if arguments.rate_hz:
                    samples = paced(samples, arguments.rate_hz)

                def report(error: TinyLCMError) -> None:
                    print(f"tinylcm: {error}", file=sys.stderr, flush=True)

                daemon.status(f"predicting with {arguments.model}")
                for prediction in model.stream(samples, on_error=report):
                    if not arguments.quiet or prediction.drift:
                        _show(arguments, prediction)
            except KeyboardInterrupt:
                print("tinylcm: stopping", file=sys.stderr)


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor import examine

    checks = examine(configuration(arguments).data)
    marks = {"ok": "ok      ", "missing": "missing ", "fail": "FAILS   "}
    text = "\n".join(
        f"{marks[check.state]}{check.name:<12} {check.found}" + (f"\n{'':<21}-> {check.advice}" if check.advice else "")
        for check in checks
    )
    print_result(arguments, [asdict(check) for check in checks], text)
    return int(any(check.state == "fail" for check in checks))


def _bench(arguments: argparse.Namespace) -> None:
    from .bench import bench, draw, summarise
    from .keys import Trust

    path = Path(arguments.model)
    package: Package | Path = path
    if path.suffix == ".tlm":
        package = load_package(
            path, None if arguments.any_root else Trust.load(configuration(arguments).data / "trust")
        )
    with progress_bar("measuring") as progress:
        report = bench(
            package, seconds=arguments.seconds, rate_hz=arguments.rate_hz, threads=arguments.threads, progress=progress
        )
    if arguments.output:
        write_atomic(Path(arguments.output), (json.dumps(finite(report.to_json()), indent=2) + "\n").encode())
    if arguments.picture:
        write_atomic(Path(arguments.picture), draw(report).encode())
    print_result(arguments, report.to_json(), summarise(report))


# drift ----------------------------------------------------------------------------------------------------


def _drift_calibrate(arguments: argparse.Namespace) -> None:
    import numpy as np

    from .calibration import TUNED, Calibration, calibrate, calibrate_set
    from .tables import load_table

    columns = load_table(Path(arguments.reference))
    if arguments.column:
        unknown = [name for name in arguments.column if name not in columns]
        if unknown:
            raise ConfigError(f"no column {', '.join(unknown)}; {arguments.reference} has {', '.join(columns)}")
        columns = {name: columns[name] for name in arguments.column}
    parameters: dict[str, object] = {}
    for item in arguments.param:
        key, separator, text = item.partition("=")
        if not separator:
            raise ConfigError(f"--param {item}: expected NAME=VALUE")
        try:
            parameters[key] = json.loads(text)
        except ValueError:
            parameters[key] = text
    if arguments.detector not in TUNED:
        raise ConfigError(f"no detector {arguments.detector!r} to calibrate; known: {', '.join(sorted(TUNED))}")
    start = time.monotonic()
    with progress_bar(f"calibrating {arguments.detector}") as progress:
        common: dict[str, Any] = {"seed": arguments.seed, "block": arguments.block, "progress": progress, **parameters}
        members: dict[str, Calibration]
        if TUNED[arguments.detector].vector or len(columns) == 1:
            vector = TUNED[arguments.detector].vector
            name = "rows" if vector else next(iter(columns))
            values = np.column_stack(list(columns.values())) if vector else columns[name]
            result = calibrate(arguments.detector, values, arguments.arl0, monitors=arguments.monitors, **common)
            members, document = {name: result}, result.to_json()
        else:
            if arguments.monitors != 1:
                raise ConfigError("--monitors is for one column: a set counts its own")
            together = calibrate_set(arguments.detector, columns, arguments.arl0, **common)
            members, document = dict(together.members), together.to_json()
    first = next(iter(members.values()))
    width = max(12, *(len(name) for name in members))
    lines = [f"{'signal':<{width}}  {first.parameter:>12}  {'measured ARL0':>13}  90 % interval"]
    for name, member in members.items():
        lines.append(
            f"{name:<{width}}  {member.value:>12.6g}  {member.measured:>13,.0f}  "
            f"{member.low:,.0f} to {member.high:,.0f}"
        )
    if len(members) > 1:
        lines.append(
            f"{'all together':<{width}}  {'':>12}  {document['measured']:>13,.0f}  "
            f"{document['low']:,.0f} to {document['high']:,.0f}"
        )
    lines.append(
        f"wanted: one false alarm in {arguments.arl0:,.0f} values; each monitor got "
        f"{first.arl0 * first.monitors:,.0f}\n"
        f"{first.samples:,} reference values, worth {first.effective:,.0f} independent ones; blocks of {first.block}; "
        f"{time.monotonic() - start:.1f} s"
    )
    print_result(arguments, document, "\n".join(lines))


def _drift_report(arguments: argparse.Namespace) -> None:
    from .drift_report import compare
    from .tables import load_table

    reference, current = load_table(Path(arguments.reference)), load_table(Path(arguments.current))
    with progress_bar("comparing") as progress:

        def step(done: int, total: int) -> None:
            if progress:
                progress(done / total)

        names = (Path(arguments.reference).name, Path(arguments.current).name)
        report = compare(reference, current, alpha=arguments.alpha, progress=step, names=names)
    if arguments.output:
        write_atomic(Path(arguments.output), report.to_html().encode())
    verdict = f"{report.verdict}: {', '.join(report.drifted)}" if report.drifted else report.verdict
    lines = [verdict, *(f"{feature.name}: {feature.verdict}" for feature in report.by_severity())]
    if arguments.output:
        lines.append(f"written to {arguments.output}")
    print_result(arguments, report.to_json(), "\n".join(lines))


# the parser -----------------------------------------------------------------------------------------------


def make_parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = argparse.ArgumentParser(prog="tinylcm", description="Machine learning on this device.")
    parser.add_argument("--version", action="version", version=f"tinylcm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = add_command(commands, "init", _init, "write a device.toml with every key at its default")
    command.add_argument("path", nargs="?", default=CONFIG, help=f"the file to write (default {CONFIG})")

    keys = commands.add_parser("keys", help="signing keys and trust").add_subparsers(required=True, metavar="ACTION")
    command = add_command(keys, "init", _keys_init, "make a root key, a release key and the signed key set")
    command.add_argument("folder", nargs="?", default="keys", help="the keys' folder (default keys)")
    command.add_argument("--days", type=int, default=365, help="how long the release key may sign (default 365)")
    command = add_command(keys, "renew", _keys_renew, "let the release key sign longer; needs the root key")
    command.add_argument("folder", nargs="?", default="keys", help="the keys' folder (default keys)")
    command.add_argument("--days", type=int, default=365, help="from now on (default 365)")
    command = add_command(keys, "revoke", _keys_revoke, "raise a model's security floor, or revoke a release key")
    command.add_argument("folder", nargs="?", default="keys", help="the keys' folder (default keys)")
    command.add_argument("--model", default="", help="the model whose older packages may not run any more")
    command.add_argument("--floor", type=int, default=0, help="the least security_counter that may; never falls")
    command.add_argument("--release-key", default="", metavar="SHA256", help="fingerprint of a release key to revoke")
    command = add_command(keys, "rotate-release", _keys_rotate_release, "make a new release key; needs the root key")
    command.add_argument("folder", nargs="?", default="keys", help="the keys' folder (default keys)")
    command.add_argument("--days", type=int, default=365, help="how long the release key may sign (default 365)")
    command = add_command(keys, "rotate-root", _keys_rotate_root, "make a new root key that the old one vouches for")
    command.add_argument("folder", nargs="?", default="keys", help="the keys' folder (default keys)")
    command = add_command(keys, "accept", _keys_accept, "believe a revocation, key set or new root from a file")
    command.add_argument("statement", help="revocation.json, keyset.json or rotation-*.json of the publisher")
    command = add_command(keys, "trust", _keys_trust, "trust a publisher's root key on this device")
    command.add_argument("root", metavar="ROOT.pub", help="the publisher's public root key")

    package = commands.add_parser("package", help="model packages").add_subparsers(required=True, metavar="ACTION")
    command = add_command(package, "build", _package_build, "build and sign a package from a model and its manifest")
    command.add_argument("model", help="the model file")
    command.add_argument("--manifest", required=True, metavar="model.toml", help="what the model is and takes")
    command.add_argument("--key", required=True, metavar="release.key", help="signs the package")
    command.add_argument(
        "--meta", action="append", metavar="KEY=VALUE", help="metadata beside the manifest's: run_id=... (repeatable)"
    )
    command.add_argument("-o", "--output", metavar="FILE.tlm", help="the package (default NAME-VERSION.tlm)")
    command = add_command(package, "verify", _package_verify, "check a package's structure, hashes, signature and root")
    command.add_argument("package", help="a package, *.tlm")
    command.add_argument("--root", metavar="ROOT.pub", help="trust this root (default: the device's trusted roots)")
    command.add_argument("--any-root", action="store_true", help="check the signature but not who made it")
    command.add_argument("--run", action="store_true", help="also run the golden windows")
    command = add_command(package, "show", _package_show, "print a package's manifest")
    command.add_argument("package", help="a package, *.tlm")
    command = add_command(package, "install", _package_install, "install a package on this device, without a server")
    command.add_argument("package", help="a package, *.tlm")

    command = add_command(commands, "enrol", _enrol, "make this device known to a server")
    command.add_argument(
        "join", metavar="JOIN_STRING", help="from `tinysphere join create`, or - to read it from stdin"
    )
    command.add_argument("--serial", default="", help="by which it was announced: tinysphere expect add")
    command.add_argument("--insecure", action="store_true", help="allow plain http to another machine")
    add_command(commands, "rotate-key", _rotate_key, "have another key for the server")
    command = add_command(commands, "run", _run, "stream samples through a model; metrics and alarms go to the server")
    command.add_argument("--model", default="", help="the model's name; without one the [[board]] sections alone run")
    command.add_argument("--input", default="-", help=".npy, .npz, .csv, .wav, or - for stdin (default)")
    command.add_argument("--array", default="", help="array's name in a .npz")
    command.add_argument(
        "--kind",
        default="",
        choices=("json", "int16", "float32"),
        help="what stdin gives (default json: lists)",
    )
    command.add_argument("--rate-hz", type=float, default=0.0, help="pace the samples (default: as fast as they come)")
    command.add_argument("--wait-s", type=float, default=0.0, help="wait this long for a deployment to bring the model")
    command.add_argument("--quiet", action="store_true", help="print only windows with drift alarms")
    command.add_argument(
        "--log-format", default="text", choices=LOG_FORMATS, help="of the log on standard error (default text)"
    )
    command = add_command(commands, "infer", _infer, "predict windows with a model file or a package")
    command.add_argument("model", help="model.onnx, model.tflite or package.tlm")
    command.add_argument(
        "--input", default="-", help=".npy, .npz, .csv, an image, or - for JSON lines on stdin (default)"
    )
    command.add_argument("--array", default="", help="array's name in a .npz")
    command.add_argument("--labels", default="", help="for a plain model: labels, with commas")
    command.add_argument("--any-root", action="store_true", help="run a package whoever signed it")
    command = add_command(commands, "bench", _bench, "measure a model on this device, beside its bare backend")
    command.add_argument("model", help="package.tlm, model.onnx, model.tflite or model.npz")
    command.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default 3)")
    command.add_argument(
        "--rate-hz", type=float, default=0.0, help="of the paced measurement (default: the package's windows, else 100)"
    )
    command.add_argument("--threads", type=int, default=1, help="compute threads (default 1)")
    command.add_argument("-o", "--output", metavar="BENCH.json", help="the figures as JSON")
    command.add_argument("--picture", metavar="BENCH.svg", help="the distributions as a picture")
    command.add_argument("--any-root", action="store_true", help="run a package whoever signed it")
    add_command(commands, "sync", _sync, "exchange records and deployments with the server now")
    command = add_command(commands, "status", _status, "what this device is, holds and does")
    command.add_argument("--prometheus", action="store_true", help="metrics as Prometheus reads them")
    command = add_command(commands, "rollback", _rollback, "go back to a model's earlier package")
    command.add_argument("model", help="the model's name")
    add_journal_commands(commands)
    add_board_commands(commands)
    checks = commands.add_parser("drift", help="thresholds and reports").add_subparsers(required=True, metavar="ACTION")
    command = add_command(
        checks, "calibrate", _drift_calibrate, "find a threshold for a wanted time between false alarms"
    )
    command.add_argument("reference", metavar="REFERENCE", help="values without drift, in order: .npz or .csv")
    command.add_argument("--detector", required=True, help="class of tinylcm.drift, such as CUSUM")
    command.add_argument("--arl0", type=float, required=True, help="wanted mean number of values between false alarms")
    command.add_argument(
        "--column", action="append", default=[], help="only this signal (repeatable); several are calibrated as a set"
    )
    command.add_argument("--monitors", type=int, default=1, help="monitors that share the ARL0 (default 1)")
    command.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another parameter of the detector (repeatable)",
    )
    command.add_argument("--block", type=int, help="values in a block of the bootstrap (default: from the data)")
    command.add_argument("--seed", type=int, default=0, help="of the random numbers (default 0)")
    command = add_command(checks, "report", _drift_report, "compare two tables: an HTML page that needs no network")
    command.add_argument("reference", metavar="REFERENCE", help=".npz or .csv")
    command.add_argument("current", metavar="CURRENT", help=".npz or .csv")
    command.add_argument("-o", "--output", metavar="REPORT.html", help="the page to write")
    command.add_argument("--alpha", type=float, default=0.05, help="family-wise level of the tests (default 0.05)")
    add_command(commands, "doctor", _doctor, "say what this machine lacks and how to get it")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    level = logging.DEBUG if arguments.debug else logging.WARNING
    log_to(sys.stderr, getattr(arguments, "log_format", "text"), level, os.environ)
    try:
        return arguments.handler(arguments) or 0
    except (TinyLCMError, OSError) as error:
        if arguments.debug:
            raise
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()  # the reader has gone, as after `| head`: nothing to say and nobody to tell
            return 0
        shown = device_error(error, "reaching") if isinstance(error, OSError) else error
        print(f"tinylcm: {shown}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) and not isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("tinylcm: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
