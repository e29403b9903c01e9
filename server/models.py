"""The tables, as Peewee models; they are never bound to one database, so that two servers fit in one process.

Times are Unix seconds of the server's clock unless a name says otherwise.
"""

from __future__ import annotations

from typing import Final

from peewee import (
    AutoField,
    BigIntegerField,
    BlobField,
    CompositeKey,
    FloatField,
    IntegerField,
    Model,
    TextField,
)


class Meta(Model):
    """Facts about this database: `schema`, `instance`, `generation`."""

    key = TextField(primary_key=True)
    value = TextField()


class UserToken(Model):
    """A person's or program's token; only its hash is stored."""

    id = TextField(primary_key=True)
    secret_sha256 = TextField()
    name = TextField()
    role = TextField()
    created_at = FloatField()
    expires_at = FloatField(null=True)
    revoked_at = FloatField(null=True)

    class Meta:
        table_name = "user_token"


class JoinToken(Model):
    """What a device enrols with."""

    id = TextField(primary_key=True)
    secret_sha256 = TextField()
    uses = IntegerField(default=0)
    uses_max = IntegerField()
    created_at = FloatField()
    expires_at = FloatField()
    expected_only = IntegerField(default=0)

    class Meta:
        table_name = "join_token"


class Session(Model):
    """A dashboard session; only the hash of its id is stored."""

    id_sha256 = TextField(primary_key=True)
    token_id = TextField()
    expires_at = FloatField()
    person = TextField(null=True)


class Person(Model):
    """Somebody who signs in with a password, stored as Argon2id."""

    name = TextField(primary_key=True)
    password = TextField()
    role = TextField()
    created_at = FloatField()
    created_by = TextField()
    disabled_at = FloatField(null=True)


class Audit(Model):
    """Who changed what, and when."""

    id = AutoField()
    at = FloatField()
    who = TextField()
    what = TextField()
    target = TextField()
    sha256 = TextField(default="")


class Idempotency(Model):
    """Answers already given, by Idempotency-Key."""

    key = TextField()
    who = TextField()
    request_sha256 = TextField()
    status = IntegerField()
    answer = BlobField()
    created_at = FloatField(index=True)

    class Meta:
        primary_key = CompositeKey("who", "key")


class Device(Model):
    """A device; `row_version` is its ETag."""

    id = TextField(primary_key=True)
    name = TextField()
    secret_sha256 = TextField(index=True)
    join_token = TextField()
    labels = TextField(default="{}")
    capabilities = TextField(default="{}")
    running = TextField(default="[]")
    enrolled_at = FloatField()
    last_seen_at = FloatField(null=True)
    next_sync_s = FloatField(default=30.0)
    clock_offset_s = FloatField(null=True)
    row_version = IntegerField(default=1)
    serial = TextField(null=True, index=True)
    latitude = FloatField(null=True)
    longitude = FloatField(null=True)
    next_secret_sha256 = TextField(null=True)
    revoked_at = FloatField(null=True)
    retired_at = FloatField(null=True)
    boards = BigIntegerField(default=0)


class ExpectedDevice(Model):
    """A device that was announced by its serial number; `device` is who came."""

    serial = TextField(primary_key=True)
    name = TextField()
    labels = TextField()
    device = TextField(null=True)
    created_at = FloatField()
    created_by = TextField()

    class Meta:
        table_name = "expected_device"


class DeviceGroup(Model):
    """A selector with a name."""

    name = TextField(primary_key=True)
    selector = TextField()
    changed_at = FloatField()
    changed_by = TextField()

    class Meta:
        table_name = "device_group"


class Anchor(Model):
    """One moment of a device's boot on the server's clock: received_at is when boot_ns was."""

    device = TextField()
    boot = TextField()
    boot_ns = BigIntegerField()
    device_wall_s = FloatField()
    received_at = FloatField()

    class Meta:
        primary_key = CompositeKey("device", "boot")
        without_rowid = True


class Watermark(Model):
    """The last settled seq; it outlives the records."""

    device = TextField()
    stream = TextField()
    epoch = TextField()
    seq = BigIntegerField()

    class Meta:
        primary_key = CompositeKey("device", "stream", "epoch")
        without_rowid = True


class RecordRow(Model):
    """Every accepted record in its envelope."""

    device = TextField()
    stream = TextField()
    epoch = TextField()
    seq = BigIntegerField()
    type = TextField()
    boot = TextField()
    boot_ns = BigIntegerField()
    at = FloatField(null=True)
    received_at = FloatField(index=True)
    payload = TextField()

    class Meta:
        table_name = "record"
        primary_key = CompositeKey("device", "stream", "epoch", "seq")
        without_rowid = True


class RefusedRecord(Model):
    """A record that was settled but not stored, and why."""

    device = TextField()
    stream = TextField()
    epoch = TextField()
    seq = BigIntegerField()
    reason = TextField()
    received_at = FloatField(index=True)

    class Meta:
        table_name = "refused_record"
        primary_key = CompositeKey("device", "stream", "epoch", "seq")
        without_rowid = True


class Gap(Model):
    """A range of records that will not come; `reason` is NULL until the device declares it."""

    device = TextField()
    stream = TextField()
    epoch = TextField()
    from_seq = BigIntegerField()
    to_seq = BigIntegerField()
    reason = TextField(null=True)
    count = BigIntegerField()
    received_at = FloatField(index=True)

    class Meta:
        primary_key = CompositeKey("device", "stream", "epoch", "from_seq", "to_seq")
        without_rowid = True


class DriftEvent(Model):
    """An alarm with its evidence."""

    id = AutoField()
    device = TextField()
    model = TextField()
    version = TextField()
    monitor = TextField()
    detector = TextField()
    signal = TextField()
    statistic = FloatField(null=True)
    threshold = FloatField(null=True)
    window = BigIntegerField()
    suspect = BigIntegerField()
    at = FloatField(null=True)
    received_at = FloatField(index=True)
    histogram = TextField(null=True)
    p_value = FloatField(null=True)
    arl0 = FloatField(null=True)
    monitors = IntegerField(default=1)
    board = TextField(default="")

    class Meta:
        table_name = "drift_event"
        indexes = ((("device", "id"), False), (("model", "id"), False))


class Summary(Model):
    """Metrics of one interval of one model on one device."""

    id = AutoField()
    device = TextField()
    model = TextField()
    version = TextField()
    at = FloatField(null=True)
    received_at = FloatField(index=True)
    windows = BigIntegerField()
    confidence_mean = FloatField(null=True)
    confidence_p5 = FloatField(null=True)
    confidence_p50 = FloatField(null=True)
    latency_p50_us = FloatField(null=True)
    latency_p95_us = FloatField(null=True)
    latency_p99_us = FloatField(null=True)
    rss_bytes = BigIntegerField(null=True)
    cpu_percent = FloatField(null=True)
    labels = TextField()
    errors = BigIntegerField()
    dropped_samples = BigIntegerField()
    payload = TextField()

    class Meta:
        indexes = ((("device", "model", "id"), False),)


class Latest(Model):
    """The newest summary of a model on a device; `at` is when it was received if its own time is unknown."""

    device = TextField()
    model = TextField()
    version = TextField()
    at = FloatField()
    received_at = FloatField()
    windows = BigIntegerField()
    confidence_mean = FloatField(null=True)
    confidence_p5 = FloatField(null=True)
    confidence_p50 = FloatField(null=True)
    latency_p50_us = FloatField(null=True)
    latency_p95_us = FloatField(null=True)
    latency_p99_us = FloatField(null=True)
    rss_bytes = BigIntegerField(null=True)
    cpu_percent = FloatField(null=True)
    labels = TextField()
    errors = BigIntegerField()
    dropped_samples = BigIntegerField()

    class Meta:
        primary_key = CompositeKey("device", "model")
        without_rowid = True


class RollupRow(Model):
    """A device's metrics of a model in one step of `step` seconds; `body` is what server/rollups.py packs."""

    device = TextField()
    model = TextField()
    version = TextField()
    step = IntegerField()
    at = BigIntegerField()
    windows = BigIntegerField()
    errors = BigIntegerField()
    dropped_samples = BigIntegerField()
    labels = TextField()
    body = BlobField()

    class Meta:
        table_name = "rollup"
        primary_key = CompositeKey("device", "model", "version", "step", "at")
        indexes = ((("step", "at", "device", "model", "version"), False),)
        without_rowid = True


class Label(Model):
    """Ground truth that a device sent for a prediction."""

    id = AutoField()
    device = TextField()
    prediction = TextField()
    label = TextField()
    at = FloatField(null=True)
    received_at = FloatField(index=True)

    class Meta:
        indexes = ((("device", "prediction"), False),)


class ModelVersion(Model):
    """A package that may be deployed."""

    model = TextField()
    version = TextField()
    sha256 = TextField(index=True)
    size = BigIntegerField()
    root = TextField()
    release = TextField()
    manifest = TextField()
    uploaded_at = FloatField()
    uploaded_by = TextField()
    probe = TextField(default="{}")

    class Meta:
        table_name = "model_version"
        primary_key = CompositeKey("model", "version")


class ModelAlias(Model):
    """A name for a version."""

    model = TextField()
    name = TextField(column_name="alias")  # `alias` is a method of every Peewee model
    version = TextField()
    changed_at = FloatField()
    changed_by = TextField()

    class Meta:
        table_name = "model_alias"
        primary_key = CompositeKey("model", "name")


class TrustedRoot(Model):
    """A publisher's root key whose packages may be uploaded."""

    fingerprint = TextField(primary_key=True)
    pinned_at = FloatField()
    pinned_by = TextField()

    class Meta:
        table_name = "trusted_root"


class TrustStatement(Model):
    """What a trusted root has said: a key set, a revocation, a new root; named by its document's SHA-256."""

    fingerprint = TextField(primary_key=True)
    document = TextField()
    learnt_at = FloatField()

    class Meta:
        table_name = "trust_statement"


class Deployment(Model):
    """A version for the devices that a selector matches."""

    id = AutoField()
    model = TextField()
    version = TextField()
    sha256 = TextField()
    selector = TextField()
    state = TextField()
    created_at = FloatField()
    created_by = TextField()

    class Meta:
        indexes = ((("model", "state"), False),)


class DeviceDeployment(Model):
    """How far a deployment has come on a device."""

    deployment = IntegerField()
    device = TextField()
    state = TextField()
    reason = TextField(default="")
    updated_at = FloatField()

    class Meta:
        table_name = "device_deployment"
        primary_key = CompositeKey("deployment", "device")
        without_rowid = True


class Command(Model):
    """Something that devices are to do once; `id` is a time in milliseconds, or the one after the last."""

    id = BigIntegerField(primary_key=True)
    selector = TextField()
    name = TextField()
    args = TextField()
    created_at = FloatField()
    created_by = TextField()
    expires_at = FloatField()


class DeviceCommand(Model):
    """How far a command has come on a device."""

    command = BigIntegerField()
    device = TextField()
    state = TextField()
    detail = TextField(default="")
    result = TextField(null=True)
    expires_at = FloatField()
    updated_at = FloatField()

    class Meta:
        table_name = "device_command"
        primary_key = CompositeKey("command", "device")
        indexes = ((("device", "state", "command"), False), (("state", "updated_at"), False))
        without_rowid = True


class Blob(Model):
    """A blob that a device has uploaded; its file is the store's."""

    device = TextField()
    sha256 = TextField(index=True)
    size = BigIntegerField()
    created_at = FloatField(index=True)

    class Meta:
        primary_key = CompositeKey("device", "sha256")
        without_rowid = True


class ConfigVersion(Model):
    """Settings for the devices of a scope; the newest of a scope counts."""

    version = IntegerField(primary_key=True)
    scope = TextField()
    settings = TextField()
    created_at = FloatField()
    created_by = TextField()

    class Meta:
        table_name = "config_version"
        indexes = ((("scope", "version"), False),)


class DeviceConfig(Model):
    """What a device made of the last version that it was sent."""

    device = TextField(primary_key=True)
    version = BigIntegerField()
    state = TextField()
    reason = TextField(default="")
    updated_at = FloatField()

    class Meta:
        table_name = "device_config"


class Feed(Model):
    """Something that has happened, for those who follow it; `xact` is the transaction's number on PostgreSQL."""

    id = AutoField()
    xact = BigIntegerField(default=0)
    at = FloatField(index=True)
    type = TextField()
    device = TextField(null=True)
    model = TextField(null=True)
    body = TextField()

    class Meta:
        indexes = ((("xact", "id"), False),)


class Log(Model):
    """A line of a device's log; `level` as in Python's logging."""

    id = AutoField()
    device = TextField()
    level = IntegerField()
    logger = TextField()
    message = TextField()
    dropped = BigIntegerField()
    at = FloatField(null=True)
    received_at = FloatField(index=True)

    class Meta:
        indexes = ((("device", "id"), False),)


class BoardRow(Model):
    """A board behind a device; `gone_at` is since when its device names it no more."""

    device = TextField()
    uid = TextField()
    name = TextField()
    fw = TextField()
    model = TextField()
    model_version = TextField()
    state = TextField()
    info = TextField()
    first_seen_at = FloatField()
    last_seen_at = FloatField(null=True)
    reported_at = FloatField()
    gone_at = FloatField(null=True)

    class Meta:
        table_name = "board"
        primary_key = CompositeKey("device", "uid")
        without_rowid = True


class BoardDeployment(Model):
    """How far a deployment has come on a board behind a device."""

    deployment = BigIntegerField()
    device = TextField()
    board = TextField()
    state = TextField()
    reason = TextField()
    updated_at = FloatField()

    class Meta:
        table_name = "board_deployment"
        primary_key = CompositeKey("deployment", "device", "board")
        without_rowid = True


class Job(Model):
    """Work that is done again and again, by one process at a time; times are of the database's clock."""

    name = TextField(primary_key=True)
    run_at = FloatField()
    lease_until = FloatField(null=True)
    lease = TextField(null=True)
    owner = TextField(null=True)
    attempts = IntegerField()
    problem = TextField()
    finished_at = FloatField(null=True)


class Removal(Model):
    """A file of the store that nothing names any more; `done_at` is when it was removed."""

    sha256 = TextField(primary_key=True)
    round = IntegerField()
    done_at = FloatField(null=True)


class Outbox(Model):
    """A thing that MLflow is still to be told of: see server/outbox.py."""

    kind = TextField()
    model = TextField()
    name = TextField()
    marks = BigIntegerField()
    queued_at = FloatField()
    tries = IntegerField()
    retry_at = FloatField(index=True)
    problem = TextField()

    class Meta:
        primary_key = CompositeKey("kind", "model", "name")
        without_rowid = True


class MlflowVersion(Model):
    """What a version is in MLflow: its number there, and the run of its metrics once there is one."""

    model = TextField()
    version = TextField()
    sha256 = TextField()
    number = TextField()
    run = TextField(null=True)

    class Meta:
        table_name = "mlflow_version"
        primary_key = CompositeKey("model", "version")
        without_rowid = True


class MlflowAlias(Model):
    """What an alias named when it was last the same here and there."""

    model = TextField()
    name = TextField(column_name="alias")
    version = TextField()

    class Meta:
        table_name = "mlflow_alias"
        primary_key = CompositeKey("model", "name")
        without_rowid = True


class FleetPoint(Model):
    """An hour or more of a version's metrics as MLflow has it or is to have it: see server/fleetmetrics.py."""

    model = TextField()
    version = TextField()
    at = BigIntegerField()
    span_s = BigIntegerField()
    marks = BigIntegerField()
    taken = BigIntegerField()
    settled = BigIntegerField()
    stamp_ms = BigIntegerField()
    body = TextField()

    class Meta:
        table_name = "fleet_point"
        primary_key = CompositeKey("model", "version", "at")
        without_rowid = True


class JudgementRow(Model):
    """A prediction whose input was kept, and its true label, as far as they are known."""

    device = TextField()
    prediction = TextField()
    model = TextField(null=True)
    version = TextField(null=True)
    predicted = TextField(null=True)
    truth = TextField(null=True)
    at = FloatField()
    changed_at = FloatField(index=True)

    class Meta:
        table_name = "judgement"
        primary_key = CompositeKey("device", "prediction")
        indexes = ((("model", "version", "at"), False),)
        without_rowid = True


TABLES: Final[tuple[type[Model], ...]] = (
    Meta,
    UserToken,
    JoinToken,
    Session,
    Person,
    Audit,
    Idempotency,
    Device,
    ExpectedDevice,
    DeviceGroup,
    Anchor,
    Watermark,
    RecordRow,
    RefusedRecord,
    Gap,
    DriftEvent,
    Summary,
    Latest,
    RollupRow,
    Label,
    ModelVersion,
    ModelAlias,
    TrustedRoot,
    TrustStatement,
    Deployment,
    DeviceDeployment,
    Command,
    DeviceCommand,
    ConfigVersion,
    DeviceConfig,
    Blob,
    Feed,
    Log,
    BoardRow,
    BoardDeployment,
    Job,
    Removal,
    Outbox,
    MlflowVersion,
    MlflowAlias,
    FleetPoint,
    JudgementRow,
)
