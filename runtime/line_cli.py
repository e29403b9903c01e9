"""`tinylcm board`, the part with a line: `ports info listen plot flash rollback reset simulate bench`.

The bridge is loaded when a command asks for it, so that nobody else pays for it. In a pipe a command prints plain
lines, on a terminal `listen` draws a page; `--json` prints a document an event.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Final

from .console import add_command, configuration, print_result, progress_bar
from .errors import ConfigError, InputError
from .files import read_bounded, write_atomic
from .types import Json
from .wire import finite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from firmware_bridge.boards import Board, Boards
    from firmware_bridge.simboard import Source
    from firmware_bridge.transfer import Transfer

BLOB_BYTES_MAX: Final = 16 << 20
FIND_S: Final = 20.0
UPDATE_S: Final = 600.0
REDRAW_S: Final = 0.2
PLOT_ROWS_MAX: Final = 200_000
MISCHIEF: Final = (
    "same-offset", "beyond", "window", "slot", "rot", "silent", "busy", "long-frame", "clock", "resets", "no-trial",
    "self-test", "babble",
)  # fmt: skip
"""As `firmware_bridge.simboard` has them; it is not loaded for --help."""


# finding boards -------------------------------------------------------------------------------------------


@contextmanager
def _boards(arguments: argparse.Namespace, *, units: bool = True) -> Iterator[Boards]:
    """The boards that the options name, all of them there."""
    from firmware_bridge.boards import Boards, Wanted

    ports = tuple(arguments.port)
    wanted = [Wanted(uid, ports, arguments.baud) for uid in arguments.uid] or [Wanted("", ports, arguments.baud)]
    with Boards(wanted, units=units) as boards:
        boards.wait_for_all(arguments.find_s)
        yield boards


def _found(board: Board) -> tuple[str, dict[str, Json]]:
    from firmware_bridge.view import describe_caps

    assert board.link is not None and board.caps is not None  # `wait_for_all` has found it
    return describe_caps(board.caps, board.link.port.url)


def _ports(arguments: argparse.Namespace) -> None:
    from firmware_bridge.errors import BridgeError
    from firmware_bridge.link import open_link
    from firmware_bridge.ports import expand, list_ports

    known = {info.path: info for info in list_ports()}
    found: list[Json] = []
    lines = []
    for path in expand(arguments.port):
        about = known[path].description if path in known else ""
        document: dict[str, Json] = {"port": path, "description": about}
        if arguments.hello:
            try:
                with open_link(path, baud=arguments.baud, hello_s=3.0) as link:
                    document |= {"uid": link.caps.uid, "fw": link.caps.fw, "baud": link.port.baud}
                    about = f"board {link.caps.uid}, {link.caps.fw}"
            except BridgeError as error:
                document["error"] = about = str(error)
        found.append(document)
        lines.append(f"{path}  {about}".rstrip())
    print_result(arguments, found, "\n".join(lines) or "no serial ports: is a board plugged in?")


def _info(arguments: argparse.Namespace) -> None:
    from firmware_bridge.messages import MetricsRequest

    with _boards(arguments) as boards:
        for board in boards.boards:
            text, document = _found(board)
            assert board.link is not None
            metrics = board.link.ask(MetricsRequest())
            until_s = time.monotonic() + 3.0
            while board.link.protocol.clock.samples < 4 and time.monotonic() < until_s:
                board.link.poll(0.2)
            clock = board.link.protocol.clock
            counters = {name: getattr(metrics, name) for name in getattr(metrics, "NAMES", ())}
            document |= {"metrics": counters, "baud": board.link.port.baud, "clock_error_us": clock.error_us}
            shown = ", ".join(f"{name} {value}" for name, value in counters.items())
            clock_text = "unknown" if clock.error_us is None else f"known within {clock.error_us:.0f} us"
            print_result(arguments, document, f"{text}\ncounters  {shown}\nclock     {clock_text}")


# listening ------------------------------------------------------------------------------------------------


def _streams(arguments: argparse.Namespace, boards: Boards) -> None:
    for board in boards.boards:
        sensors = board.caps.sensors if board.caps is not None else ()
        there = [sensor.stream for sensor in sensors]
        chosen = arguments.stream or there
        if missing := [stream for stream in chosen if stream not in there]:
            raise ConfigError(f"board {board.uid} has no stream {missing[0]}; it has {', '.join(map(str, there))}")
        for stream in chosen:
            board.stream(stream)


def _listen(arguments: argparse.Namespace) -> None:
    from firmware_bridge.protocol import Rows
    from firmware_bridge.view import View, describe

    live = sys.stdout.isatty() and not arguments.json and not arguments.plain
    with _boards(arguments, units=not arguments.counts) as boards:
        _streams(arguments, boards)
        view, drawn, due_s, rows = View(), 0, 0.0, 0
        until_s = time.monotonic() + arguments.seconds if arguments.seconds else float("inf")
        while time.monotonic() < until_s and (not arguments.rows or rows < arguments.rows):
            for board, event in boards.poll(min(REDRAW_S, max(0.0, until_s - time.monotonic()))):
                rows += len(event.values) if isinstance(event, Rows) else 0
                if live:
                    view.take(board, event, time.monotonic())
                    continue
                for text, document in describe(board, event):
                    print(json.dumps(finite(document)) if arguments.json else text, flush=True)
            if live and time.monotonic() >= due_s:
                due_s = time.monotonic() + REDRAW_S
                drawn = _draw(view.lines(boards.boards, shutil.get_terminal_size().columns - 1), drawn)


def _draw(lines: list[str], before: int) -> int:
    """Draw a page over the last one; how many lines it has."""
    up = f"\x1b[{before}A" if before else ""
    body = "".join(f"\x1b[2K{line}\n" for line in lines)
    print(f"{up}{body}\x1b[0J", end="", flush=True)
    return len(lines)


def _plot(arguments: argparse.Namespace) -> None:
    import numpy as np

    from firmware_bridge.picture import draw
    from firmware_bridge.protocol import Gap, Rows

    arguments.stream = [arguments.stream]
    with _boards(arguments, units=not arguments.counts) as boards:
        (board, *others) = boards.boards
        if others:
            raise ConfigError("a picture shows one board: give one --uid")
        _streams(arguments, boards)
        sensor = board.caps.sensor(arguments.stream[0]) if board.caps is not None else None
        assert sensor is not None  # `_streams` has looked
        values: list[NDArray[np.float32]] = []
        times: list[NDArray[np.int64]] = []
        breaks: list[int] = []
        rows, until_s = 0, time.monotonic() + arguments.seconds
        with progress_bar("listening") as progress:
            while (left_s := until_s - time.monotonic()) > 0 and rows < PLOT_ROWS_MAX:
                for _, event in boards.poll(min(0.2, left_s)):
                    if isinstance(event, Rows):
                        values.append(event.values)
                        times.append(event.times_us)
                        rows += len(event.values)
                    elif isinstance(event, Gap):
                        breaks.append(rows)
                if progress:
                    progress(1 - left_s / arguments.seconds)
    if not values:
        raise InputError(f"board {board.uid} sent no row of stream {sensor.stream} in {arguments.seconds:g} s")
    seconds = np.concatenate(times) / 1e6
    unit = "counts" if arguments.counts else sensor.unit
    title = f"{board.uid}, {sensor.name}: {rows} rows, {len(breaks)} gaps"
    picture = draw(title, sensor.channels, unit, seconds, np.concatenate(values), breaks)
    write_atomic(Path(arguments.output), picture)
    document = {"path": arguments.output, "board": board.uid, "rows": rows, "gaps": len(breaks)}
    print_result(arguments, document, f"{arguments.output}  {rows} rows, {len(breaks)} gaps")


# models ---------------------------------------------------------------------------------------------------


def _model_bytes(arguments: argparse.Namespace) -> bytes:
    """The model of a package, its signature checked; or a plain model file."""
    from .keys import Trust
    from .manifest import BOARD, PACKAGE_BYTES_MAX, member_name
    from .package import MAGIC, parse_package

    data = read_bounded(Path(arguments.model), PACKAGE_BYTES_MAX)
    if not data.startswith(MAGIC):
        if len(data) > BLOB_BYTES_MAX:
            raise InputError(
                f"{arguments.model} has {len(data)} bytes, no board's model has more than {BLOB_BYTES_MAX}"
            )
        return data
    trust = None if arguments.any_root else Trust.load(configuration(arguments).data / "trust")
    package = parse_package(data, trust)
    if package.manifest.format != BOARD:
        raise InputError(
            f"{arguments.model} is of format {package.manifest.format!r}, boards run {BOARD!r}: "
            "make one with `tinylcm board convert`"
        )
    return package.read(member_name(BOARD))


def _flash(arguments: argparse.Namespace) -> None:
    from firmware_bridge.transfer import State, Transfer

    blob = _model_bytes(arguments)
    start_s = time.monotonic()
    confirms = not arguments.no_confirm and not arguments.trial_s
    with _boards(arguments) as boards:
        (board, *others) = boards.boards
        if others:
            raise ConfigError("one board is flashed at a time: give one --uid")
        transfer = Transfer(blob, confirm=confirms)
        board.update(transfer, arguments.timeout_s)
        with progress_bar("sending") as progress:
            _until_over(boards, transfer, progress)
        sent_s = time.monotonic() - start_s
        results = 0
        if transfer.waits and arguments.trial_s:
            results = _trial(boards, transfer, arguments.trial_s)
            if not arguments.no_confirm:
                transfer.confirm()
                _until_over(boards, transfer, None)
        if transfer.error is not None:
            raise transfer.error
    state = "confirmed" if transfer.state is State.DONE else "on trial"
    document: dict[str, Json] = {
        "board": board.uid, "sha256": transfer.sha256.hex(), "size": transfer.size, "slot": transfer.slot,
        "state": state, "seconds": sent_s, "repeated_bytes": transfer.repeated_bytes, "results": results,
    }  # fmt: skip
    text = f"board {board.uid} runs {transfer.sha256.hex()[:16]} from slot {transfer.slot}, {state}"
    print_result(arguments, document, f"{text}; {transfer.size} bytes in {sent_s:.1f} s")


def _until_over(boards: Boards, transfer: Transfer, progress: Callable[[float], None] | None) -> None:
    """Until the board has it, or it failed; the transfer's own bounds end it."""
    from firmware_bridge.boards import Updated

    while True:
        over = False
        for _, event in boards.poll(0.2):
            over |= isinstance(event, Updated) and event.transfer is transfer
        if progress:
            progress(transfer.acknowledged / transfer.size)
        if over:
            return


def _trial(boards: Boards, transfer: Transfer, seconds: float) -> int:
    """Let the model run for a while; how many results it gave. A board that goes away ends its trial by itself."""
    from firmware_bridge.messages import Result
    from firmware_bridge.protocol import Received

    results, until_s = 0, time.monotonic() + seconds
    while time.monotonic() < until_s and transfer.error is None:
        for _, event in boards.poll(min(0.5, max(0.0, until_s - time.monotonic()))):
            results += isinstance(event, Received) and isinstance(event.message, Result)
    return results


def _rollback(arguments: argparse.Namespace) -> None:
    from firmware_bridge.messages import HelloRequest, RollbackRequest

    with _boards(arguments) as boards:
        for board in boards.boards:
            assert board.link is not None
            board.link.ask(RollbackRequest())
            board.link.ask(HelloRequest(board.link.session))
            model = board.link.caps.model.sha256
            text = f"board {board.uid} runs {model[:16] or 'the factory model'} again"
            print_result(arguments, {"board": board.uid, "sha256": model}, text)


def _reset(arguments: argparse.Namespace) -> None:
    from firmware_bridge.messages import ResetRequest

    with _boards(arguments) as boards:
        for board in boards.boards:
            assert board.link is not None
            board.link.ask(ResetRequest())
            print_result(arguments, {"board": board.uid}, f"board {board.uid} restarts")


# without hardware, and figures ----------------------------------------------------------------------------


def _simulate(arguments: argparse.Namespace) -> None:
    import tempfile

    from firmware_bridge.simboard import Mischief, SimulatedBoard
    from firmware_bridge.simulator import Simulator
    from firmware_bridge.slots import Slots

    uid = arguments.uid[-1] if arguments.uid else "simulated-1"
    link = Path(arguments.link) if arguments.link else None
    with tempfile.TemporaryDirectory() as temporary:
        slots = Slots.in_folder(Path(arguments.slots or temporary), arguments.slot_bytes)
        mischief = [Mischief(name) for name in arguments.mischief]
        source = _source(arguments)
        board = SimulatedBoard(uid, slots, [source], trial_s=arguments.trial_s, mischief=mischief)
        with Simulator(board, link=link, baud=arguments.baud or 0) as simulator:
            signal.signal(signal.SIGTERM, lambda *_: simulator.interrupt())
            document = {"uid": uid, "port": simulator.path, "channels": list(source.sensor.channels)}
            print_result(arguments, document, f"board {uid} on {simulator.path}")
            simulator.wait(arguments.seconds or None)


def _source(arguments: argparse.Namespace) -> Source:
    from firmware_bridge.simboard import recording, synthetic

    if not arguments.play:
        after = round(arguments.drift_after_s * arguments.rate_hz)
        return synthetic(channels=arguments.channels, rate_hz=arguments.rate_hz, drift_after_rows=after)
    import numpy as np

    from .arrays import read_arrays

    arrays = read_arrays(read_bounded(Path(arguments.play), 256 << 20), arguments.play)
    name = arguments.array or next(iter(arrays), "")
    if name not in arrays:
        raise InputError(f"{arguments.play} has no array {name!r}; it has {', '.join(arrays) or 'none'}")
    table = np.asarray(arrays[name], np.float32)
    if table.ndim == 3:  # windows [n, channels, samples] or [n, samples, channels], played one after another
        table = table if table.shape[2] <= table.shape[1] else table.transpose(0, 2, 1)
        table = table.reshape(-1, table.shape[2])
    try:
        return recording(table, name=Path(arguments.play).stem, rate_hz=arguments.rate_hz)
    except ValueError as error:
        raise InputError(f"{arguments.play}: {error}") from error


def _bench(arguments: argparse.Namespace) -> None:
    from firmware_bridge.frames import ACKREQ, Frame, encode
    from firmware_bridge.messages import ChunkRequest, MetricsRequest
    from firmware_bridge.protocol import Rows

    with _boards(arguments) as boards:
        (board, *_) = boards.boards
        assert board.link is not None and board.caps is not None
        ways = []
        for _ in range(arguments.count):
            start_s = time.perf_counter()
            board.link.ask(MetricsRequest())
            ways.append(time.perf_counter() - start_s)
        for sensor in board.caps.sensors:
            board.stream(sensor.stream)
        rows, start_s = 0, time.monotonic()
        while (left_s := start_s + arguments.seconds - time.monotonic()) > 0:
            for _, event in boards.poll(min(0.2, left_s)):
                rows += len(event.values) if isinstance(event, Rows) else 0
        counts = board.link.protocol.streams().values() if board.link is not None else ()
        lost = sum(count.rows_lost for count in counts)
        bad = board.link.protocol.bad if board.link is not None else 0
    chunk = encode(Frame(ChunkRequest.TYPE, 1, ChunkRequest(0, bytes(range(256)) * 2).encode(), ACKREQ))
    ways.sort()
    slow_ms = ways[-1 - len(ways) // 100] * 1e3
    document: dict[str, Json] = {
        "board": board.uid, "round_trip_ms_p50": median(ways) * 1e3, "round_trip_ms_p99": slow_ms,
        "rows_per_s": rows / arguments.seconds, "rows_lost": lost, "frames_bad": bad,
        "chunk_efficiency": 512 / len(chunk),
    }  # fmt: skip
    print_result(
        arguments,
        document,
        f"round trip   {median(ways) * 1e3:.2f} ms (p50), {slow_ms:.2f} ms (p99) of "
        f"{len(ways)}\nstream       {rows / arguments.seconds:.1f} rows/s, {lost} lost, {bad} bad frames\n"
        f"efficiency   {512 / len(chunk):.1%} of a chunk of 512 bytes",
    )


# the parser -----------------------------------------------------------------------------------------------

Actions = argparse._SubParsersAction


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _natural(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _reach(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options that say which board."""
    command.add_argument(
        "--port", action="append", default=[], help="a port, pattern or socket://HOST:PORT (repeatable; default: all)"
    )
    command.add_argument("--uid", action="append", default=[], help="the board's own name (repeatable; default: any)")
    command.add_argument("--baud", type=_natural, help="the line's rate (default: the one that the board answers at)")
    command.add_argument(
        "--find-s", type=_positive, default=FIND_S, metavar="SECONDS", help=f"look for it so long (default {FIND_S:g})"
    )
    return command


def add_line_commands(board: Actions[argparse.ArgumentParser]) -> None:
    """`ports info listen plot flash rollback reset simulate bench`."""
    command = add_command(board, "ports", _ports, "the serial ports of this machine")
    command.add_argument("--port", action="append", default=[], help="only these: a port or pattern (repeatable)")
    command.add_argument("--baud", type=_natural, help="for --hello: the line's rate (default: all in use)")
    command.add_argument("--hello", action="store_true", help="ask who answers on each; may reset a board")
    _reach(add_command(board, "info", _info, "who a board is, what it can, and its counters"))
    command = _reach(add_command(board, "listen", _listen, "what boards send: samples, predictions, alarms, logs"))
    command.add_argument("--stream", type=int, action="append", default=[], help="only this (repeatable; default: all)")
    command.add_argument("--seconds", type=_positive, help="stop after this time (default: go on)")
    command.add_argument("--rows", type=_natural, help="stop after so many rows (default: go on)")
    command.add_argument("--counts", action="store_true", help="as the board counts, not in the stream's unit")
    command.add_argument("--plain", action="store_true", help="plain lines on a terminal too")
    command = _reach(add_command(board, "plot", _plot, "draw a stream as a PNG; needs the extra `image`"))
    command.add_argument("-o", "--output", required=True, metavar="FILE.png", help="the picture to write")
    command.add_argument("--stream", type=int, default=0, help="which stream (default 0)")
    command.add_argument("--seconds", type=_positive, default=5.0, help="listen so long (default 5)")
    command.add_argument("--counts", action="store_true", help="as the board counts, not in the stream's unit")
    command = _reach(add_command(board, "flash", _flash, "bring a model onto a board, over as many resets as it takes"))
    command.add_argument("model", help="a package of format board (.tlm), or a plain model file")
    command.add_argument("--any-root", action="store_true", help="take a package whoever signed it")
    command.add_argument("--trial-s", type=float, default=0.0, help="let it run so long before it is confirmed")
    command.add_argument("--no-confirm", action="store_true", help="leave it on trial: the board goes back by itself")
    command.add_argument("--timeout-s", type=_positive, default=UPDATE_S, help=f"for all of it (default {UPDATE_S:g})")
    _reach(add_command(board, "rollback", _rollback, "go back to a board's earlier model"))
    _reach(add_command(board, "reset", _reset, "restart a board"))
    command = add_command(board, "simulate", _simulate, "be a board, on a pty: for people without hardware")
    command.add_argument("--uid", action="append", default=[], help="its name (default simulated-1)")
    command.add_argument("--link", default="", metavar="PATH", help="a link that always points to its port")
    command.add_argument("--slots", default="", metavar="FOLDER", help="where its models are (default: forgotten)")
    command.add_argument("--slot-bytes", type=_natural, default=65_536, help="size of a slot (default 65536)")
    command.add_argument("--rate-hz", type=_positive, default=50.0, help="rows a second (default 50)")
    command.add_argument("--channels", type=_natural, default=3, help="of the synthetic sensor (default 3)")
    command.add_argument("--drift-after-s", type=float, default=0.0, help="the synthetic sensor shifts after this time")
    command.add_argument("--play", default="", metavar="FILE.npz", help="play this recording as the sensor")
    command.add_argument("--array", default="", help="array's name in the recording (default: the first)")
    command.add_argument("--baud", type=_natural, help="carry noise at every other rate (default: any will do)")
    command.add_argument("--trial-s", type=_natural, default=60, help="as the board says it (default 60)")
    command.add_argument("--seconds", type=_positive, help="end after this time (default: on SIGINT or SIGTERM)")
    command.add_argument(
        "--mischief", action="append", default=[], choices=MISCHIEF, help="misbehave in this way (repeatable)"
    )
    command = _reach(add_command(board, "bench", _bench, "measure a line: round trips, rows a second, losses"))
    command.add_argument("--count", type=_natural, default=200, help="round trips (default 200)")
    command.add_argument("--seconds", type=_positive, default=3.0, help="of streaming (default 3)")
