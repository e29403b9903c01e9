"""device.toml: every limit of a device with its unit, checked as a whole before anything starts."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path

from .capture import CapturePolicy, parse_capture
from .checks import Fields
from .errors import ConfigError
from .files import read_bounded
from .manifest import NAME
from .schedule import parse_hours
from .wire import Format, check_format
from .wire.messages import UID_CHARACTERS_MAX

CONFIG_BYTES_MAX = 1 << 20
LOG_OFF = "off"
LOG_LEVELS = ("debug", "info", "warning", "error", LOG_OFF)
_MIB = 1 << 20
URGENT_MAX = 32
BOARDS_MAX = 64  # serial lines of one device


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """How to reach the server; who it is comes from the enrolment.

    Attributes:
        format: of what is sent: `msgpack`, `json`, or `protobuf`, which needs the extra of that name.
        gzip: whether it is compressed when that helps.
        ca_file, client_cert, client_key: PEM; the authority, and who this device is to a server that wants to see a
            certificate.
        metered, details_interval_s, details_hours, bytes_per_day: when details may travel; see `tinylcm.schedule`.
        proxy: `http://host:port`, or `environment` for what HTTPS_PROXY and NO_PROXY say.
    """

    sync_interval_s: float = 60.0
    timeout_s: float = 30.0
    backoff_min_s: float = 1.0
    backoff_max_s: float = 900.0
    ca_file: str = ""
    insecure: bool = False
    format: Format = "msgpack"
    gzip: bool = True
    proxy: str = ""
    client_cert: str = ""
    client_key: str = ""
    metered: bool = False
    details_interval_s: float = 21600.0
    details_hours: str = ""
    bytes_per_day: int = 0


@dataclass(frozen=True, slots=True)
class JournalConfig:
    """The journal's bounds; see `tinylcm.journal.JournalLimits`."""

    journal_bytes_max: int = 64 * _MIB
    events_bytes_max: int = 16 * _MIB
    segment_bytes_max: int = _MIB
    commit_interval_s: float = 1.0
    urgent: tuple[str, ...] = ()
    wear_bytes_per_day: int = 0


@dataclass(frozen=True, slots=True)
class TrialConfig:
    """What a new package must do before it is confirmed: see `tinylcm.trial.TrialBounds`; 0 turns a bound off."""

    windows: int = 20
    errors_max: int = 0
    latency_p95_us: float = 0.0
    latency_factor: float = 0.0
    confidence_min: float = 0.0
    alarms_max: int = 0
    probe_timeout_s: float = 60.0
    probe_memory_bytes: int = 2048 * _MIB


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What of the library's log goes to the server; see `tinylcm.logs`.

    Attributes:
        level: the least that does: `debug`, `info`, `warning`, `error`, or `off`.
        per_hour: at most so many lines; what is more is counted.
    """

    level: str = "warning"
    per_hour: int = 120


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """How one model runs here; see `tinylcm.loading.Options`.

    Attributes:
        package: to install at start, for a device without a server.
        threads: compute threads; 0 stands for the device's.
        priority: niceness of a worker's thread.
        latency_us, memory_bytes: budgets beyond which there is an alarm; 0 leaves it to the manifest.
    """

    package: Path | None = None
    threads: int = 0
    spinning: bool = False
    arena: bool = True
    priority: int = 0
    latency_us: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class BoardConfig:
    """A microcontroller on a serial line of this device; see `tinylcm.boards`.

    Attributes:
        uid: whom to expect; empty: whoever answers on its ports.
        ports: paths, patterns such as `/dev/ttyACM*`, or `socket://HOST:PORT`; empty: every serial port there is.
        baud: 0 tries the rates in use.
        name: shown to people.
        model: the package for boards that it runs; empty: the newest one that its sensors fit.
        streams: a sensor's name or number, and the model of this device that takes its rows.
    """

    uid: str = ""
    ports: tuple[str, ...] = ()
    baud: int = 0
    name: str = ""
    model: str = ""
    streams: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceConfig:
    """A device's configuration.

    Attributes:
        data: the one folder that the device writes to.
        name: shown to people; by default the host's name.
        metrics_interval_s: how often a summary of the metrics is journalled.
        log: what of the library's log goes to the server.
        models: how each model runs here.
        capture: which inputs are kept.
        boards: the microcontrollers behind this device.
    """

    data: Path
    name: str = ""
    metrics_interval_s: float = 60.0
    ring_samples: int | None = None
    threads: int = 1
    server: ServerConfig = field(default_factory=ServerConfig)
    journal: JournalConfig = field(default_factory=JournalConfig)
    trial: TrialConfig = field(default_factory=TrialConfig)
    log: LogConfig = field(default_factory=LogConfig)
    models: dict[str, ModelConfig] = field(default_factory=dict)
    capture: CapturePolicy = field(default_factory=CapturePolicy)
    boards: tuple[BoardConfig, ...] = ()


def _board(fields: Fields) -> BoardConfig:
    fields.refuse_unknown("uid", "port", "baud", "name", "model", "streams")
    streams = fields.table("streams", {})
    found = {name: streams.text(name, length_max=64) for name in streams.value}
    model = fields.text("model", "")
    for where, key, name in (*((streams, stream, model) for stream, model in found.items()), (fields, "model", model)):
        if name and not NAME.fullmatch(name):
            raise where.fail(key, f"{name!r} is no model name: lower-case letters, digits, - and _, at most 64")
    port = fields.value.get("port", "")
    board = BoardConfig(
        uid=fields.text("uid", "", length_max=UID_CHARACTERS_MAX),
        ports=fields.texts("port", length_max=64) if isinstance(port, list) else (fields.text("port"),) if port else (),
        baud=fields.natural("baud", 0, high=20_000_000),
        name=fields.text("name", ""),
        model=model,
        streams=found,
    )
    if not board.uid and not board.ports:
        raise fields.fail("uid", "is missing: give uid, port, or both; `tinylcm board ports` lists what is plugged in")
    return board


def _boards(fields: Fields) -> tuple[BoardConfig, ...]:
    boards = tuple(_board(item) for item in fields.tables("board", [], length_max=BOARDS_MAX))
    named = [board.uid for board in boards if board.uid]
    if len(set(named)) != len(named):
        raise fields.fail("board", "has a uid twice")
    return boards


def _model(fields: Fields, base: Path) -> ModelConfig:
    fields.refuse_unknown("package", "threads", "spinning", "arena", "priority", "latency_us", "memory_bytes")
    return ModelConfig(
        package=base / fields.text("package", length_max=4096) if "package" in fields else None,
        threads=fields.natural("threads", 0, high=1024),
        spinning=fields.typed("spinning", bool, False),
        arena=fields.typed("arena", bool, True),
        priority=fields.natural("priority", 0, low=-20, high=19),
        latency_us=fields.number("latency_us", 0.0, low=0.0, high=1e12),
        memory_bytes=fields.natural("memory_bytes", 0),
    )


def _format(fields: Fields, default: Format) -> Format:
    try:
        return check_format(fields.text("format", default))
    except ConfigError as error:
        raise fields.fail("format", str(error)) from error


def _server(fields: Fields) -> ServerConfig:
    default = ServerConfig()
    fields.refuse_unknown(*(item.name for item in dataclass_fields(ServerConfig)))
    config = ServerConfig(
        sync_interval_s=fields.number("sync_interval_s", default.sync_interval_s, low=0.05, high=30 * 86400),
        timeout_s=fields.number("timeout_s", default.timeout_s, low=0.1, high=3600),
        backoff_min_s=fields.number("backoff_min_s", default.backoff_min_s, low=0.01, high=3600),
        backoff_max_s=fields.number("backoff_max_s", default.backoff_max_s, low=0.01, high=86400),
        ca_file=fields.text("ca_file", default.ca_file, length_max=4096),
        insecure=fields.typed("insecure", bool, default.insecure),
        format=_format(fields, default.format),
        gzip=fields.typed("gzip", bool, default.gzip),
        proxy=fields.text("proxy", default.proxy, length_max=4096),
        client_cert=fields.text("client_cert", default.client_cert, length_max=4096),
        client_key=fields.text("client_key", default.client_key, length_max=4096),
        metered=fields.typed("metered", bool, default.metered),
        details_interval_s=fields.number("details_interval_s", default.details_interval_s, low=1.0, high=30 * 86400),
        details_hours=fields.text("details_hours", default.details_hours),
        bytes_per_day=fields.natural("bytes_per_day", default.bytes_per_day),
    )
    try:
        parse_hours(config.details_hours)
    except ConfigError as error:
        raise fields.fail("details_hours", str(error)) from error
    if config.client_key and not config.client_cert:
        raise fields.fail("client_key", "needs client_cert, whose key it is")
    if config.backoff_max_s < config.backoff_min_s:
        raise fields.fail("backoff_max_s", "is smaller than backoff_min_s")
    return config


def _journal(fields: Fields) -> JournalConfig:
    default = JournalConfig()
    fields.refuse_unknown(*(item.name for item in dataclass_fields(JournalConfig)))
    config = JournalConfig(
        journal_bytes_max=fields.natural("journal_bytes_max", default.journal_bytes_max, low=64 << 10),
        events_bytes_max=fields.natural("events_bytes_max", default.events_bytes_max, low=16 << 10),
        segment_bytes_max=fields.natural("segment_bytes_max", default.segment_bytes_max, low=4 << 10, high=256 * _MIB),
        commit_interval_s=fields.number("commit_interval_s", default.commit_interval_s, low=0.0, high=3600),
        urgent=fields.texts("urgent", list(default.urgent), length_max=URGENT_MAX),
        wear_bytes_per_day=fields.natural("wear_bytes_per_day", default.wear_bytes_per_day),
    )
    if config.events_bytes_max + 5 * config.segment_bytes_max > config.journal_bytes_max:
        raise fields.fail("journal_bytes_max", "must hold events_bytes_max and five segments for details")
    return config


def _trial(fields: Fields) -> TrialConfig:
    default = TrialConfig()
    fields.refuse_unknown(*(item.name for item in dataclass_fields(TrialConfig)))
    return TrialConfig(
        windows=fields.natural("windows", default.windows, low=1, high=10**9),
        errors_max=fields.natural("errors_max", default.errors_max),
        latency_p95_us=fields.number("latency_p95_us", default.latency_p95_us, low=0.0, high=1e12),
        latency_factor=fields.number("latency_factor", default.latency_factor, low=0.0, high=1e6),
        confidence_min=fields.number("confidence_min", default.confidence_min, low=0.0, high=1.0),
        alarms_max=fields.natural("alarms_max", default.alarms_max),
        probe_timeout_s=fields.number("probe_timeout_s", default.probe_timeout_s, low=0.1, high=3600),
        probe_memory_bytes=fields.natural("probe_memory_bytes", default.probe_memory_bytes, low=64 * _MIB),
    )


def _log(fields: Fields) -> LogConfig:
    default = LogConfig()
    fields.refuse_unknown(*(item.name for item in dataclass_fields(LogConfig)))
    level = fields.text("level", default.level)
    if level not in LOG_LEVELS:
        raise fields.fail("level", f"is {level!r:.40}, expected one of {', '.join(LOG_LEVELS)}")
    return LogConfig(level, fields.natural("per_hour", default.per_hour, high=100_000))


def parse_config(document: object, base: Path) -> DeviceConfig:
    """Check a configuration; relative paths are taken from `base`.

    Raises:
        ConfigError: with the key that is wrong.
    """
    fields = Fields(document, "device.toml", ConfigError)
    fields.refuse_unknown("device", "server", "journal", "trial", "log", "capture", "models", "board")
    device = fields.table("device", {})
    device.refuse_unknown("name", "data", "metrics_interval_s", "ring_samples", "threads")
    found = {}
    models = fields.table("models", {})
    for name in models.value:
        if not NAME.fullmatch(name):
            raise models.fail(name, "is no model name: lower-case letters, digits, - and _, at most 64")
        found[name] = _model(models.table(name), base)
    return DeviceConfig(
        data=base / device.text("data", "tinylcm-data", length_max=4096),
        name=device.text("name", ""),
        metrics_interval_s=device.number("metrics_interval_s", 60.0, low=0.05, high=86400),
        ring_samples=device.natural("ring_samples", low=1, high=1 << 30) if "ring_samples" in device else None,
        threads=device.natural("threads", 1, low=1, high=1024),
        server=_server(fields.table("server", {})),
        journal=_journal(fields.table("journal", {})),
        trial=_trial(fields.table("trial", {})),
        log=_log(fields.table("log", {})),
        models=found,
        capture=parse_capture(fields.table("capture", {})),
        boards=_boards(fields),
    )


def load_config(path: Path | str) -> DeviceConfig:
    """Read device.toml.

    Raises:
        ConfigError: it does not exist, is no TOML, or a key is wrong.
        DeviceError: it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; `tinylcm init {path}` writes one with every key and its default")
    try:
        document = tomllib.loads(read_bounded(path, CONFIG_BYTES_MAX).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    return parse_config(document, path.resolve().parent)


def default_toml() -> str:
    """A device.toml with every key at its default."""
    server, journal, trial, capture = ServerConfig(), JournalConfig(), TrialConfig(), CapturePolicy()
    log = LogConfig()
    return f"""# A TinyLCM device. Every key may be left out; what stands here is the default.
[device]
name = ""                     # shown to people; empty: the host's name
data = "tinylcm-data"         # the one folder that is written to; relative to this file
metrics_interval_s = 60.0     # a summary of the metrics is journalled this often
threads = 1                   # compute threads a model

[server]                      # who the server is comes from `tinylcm enrol`
sync_interval_s = {server.sync_interval_s}
timeout_s = {server.timeout_s}              # of one request
backoff_min_s = {server.backoff_min_s}           # after a failure: random within 0 and this, doubled each time
backoff_max_s = {server.backoff_max_s}
ca_file = ""                  # an authority of your own, PEM; empty: the system's
insecure = false              # true allows plain http to an address that is not this machine
format = "{server.format}"            # msgpack, json, or protobuf (pip install 'tinymlops[protobuf]')
gzip = true                   # compress what is sent when that helps
proxy = ""                    # http://host:port, or "environment" for HTTPS_PROXY and NO_PROXY
client_cert = ""              # PEM, for a server that wants to see a certificate
client_key = ""               # PEM, when client_cert does not hold it
metered = false               # true: metrics and samples go once in details_interval_s; events go always
details_interval_s = {server.details_interval_s}
details_hours = ""            # such as "01:00-05:00": metrics and samples only then, local time; empty: always
bytes_per_day = {server.bytes_per_day}             # of syncs; beyond it metrics and samples wait; 0: no bound

[journal]
journal_bytes_max = {journal.journal_bytes_max}  # the whole journal on disk; the oldest details give way
events_bytes_max = {journal.events_bytes_max}   # of it for alarms and labels, which never give way
segment_bytes_max = {journal.segment_bytes_max}
commit_interval_s = {journal.commit_interval_s}       # details reach the disk at latest after this; events at once
urgent = []                   # types of details that reach it at once too, such as "sample"
wear_bytes_per_day = {journal.wear_bytes_per_day}        # of the flash card; over it details wait longer; 0: no budget

[trial]                       # of a new package, before it is confirmed
windows = {trial.windows}
errors_max = {trial.errors_max}                # windows on which the model itself may fail
latency_p95_us = {trial.latency_p95_us}          # 95 % of its windows take no longer; 0: not judged
latency_factor = {trial.latency_factor}          # nor longer than so many times what the package before took
confidence_min = {trial.confidence_min}          # least mean confidence
alarms_max = {trial.alarms_max}                # drift alarms; 0: not judged
probe_timeout_s = {trial.probe_timeout_s}
probe_memory_bytes = {trial.probe_memory_bytes}

[log]                         # what of the library's own log goes to the server
level = "{log.level}"             # debug, info, warning, error, or off
per_hour = {log.per_hour}                # lines at most; what is more is counted

[capture]                     # which inputs are kept; each rule stands for itself, 0 turns it off
every_nth = {capture.every_nth}                 # one window of so many
confidence_below = {capture.confidence_below}
entropy_above = {capture.entropy_above}           # bits
margin_below = {capture.margin_below}            # between the two greatest scores
around_alarm = false
pre_roll = {capture.pre_roll}                  # windows before an alarm
post_roll = {capture.post_roll}                 # and after it
per_class = {capture.per_class}                 # windows of each label a day
reservoir = {capture.reservoir}                 # windows a day, each with the same probability
bytes_per_day = {capture.bytes_per_day}       # more is counted and not kept
writes_per_hour = {capture.writes_per_hour}          # kept windows reach the disk at most so often
privacy = "full"              # full, features, hashed or none

# [models.activity]           # how one model runs here
# package = "activity-1.0.0.tlm"   # to install at start, for a device without a server
# threads = 0                 # 0: as [device] says
# spinning = false            # true: microseconds faster, a third of a core at sensor rates
# arena = true                # false: a little less memory, slower
# priority = 0                # niceness of a Worker's thread, -20 to 19
# latency_us = 0.0            # budget of a prediction; more is an alarm; 0: as the manifest says
# memory_bytes = 0            # budget of the process

# [[board]]                   # a microcontroller on a serial line; one section each
# uid = "nucleo-7"            # whom to expect; empty: whoever answers on its port
# port = "/dev/ttyACM*"       # path, pattern, socket://HOST:PORT, or a list; empty: every serial port
# baud = 0                    # 0: try the rates in use
# name = "left wrist"         # shown to people
# model = "activity-board"    # the package for boards that it runs; empty: the newest one that fits its sensors
# streams = {{ imu = "activity" }}   # a sensor's name or number, and the model of this device that takes its rows
"""
