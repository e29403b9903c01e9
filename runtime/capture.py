"""Which inputs to keep, for review and for training: by a policy, within a budget, as private as wanted."""

from __future__ import annotations

import base64
import hashlib
import math
import random
import threading
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tinylcm._ext.stats import window_moments

from .checks import Fields
from .clock import Clock
from .errors import ConfigError, InputError
from .types import Alarm, Json, Payload, Prediction

PRIVACY: Final = ("full", "features", "hashed", "none")
WAITING_MAX: Final = 256  # kept windows that no one has fetched yet
SAMPLE_VALUES_MAX: Final = 1 << 26
SAMPLE_BYTES_MAX: Final = 240 << 10  # of one kept window as a record; the journal takes 256 KiB
BLOB_BYTES_MIN: Final = 160 << 10  # compressed; from here on a window is kept beside its record where that is possible
BLOB_BYTES_MAX: Final = 4 << 20
WAITING_BYTES_MAX: Final = 16 << 20  # of those, until somebody fetches them
DAY_S: Final = 86_400.0
HOUR_S: Final = 3_600.0


@dataclass(frozen=True, slots=True)
class CapturePolicy:
    """Which windows are kept. Each rule stands for itself; 0 turns it off.

    Attributes:
        every_nth: one of so many windows.
        confidence_below: windows whose confidence is lower.
        entropy_above: windows whose scores have more bits of entropy.
        margin_below: windows whose two greatest scores lie nearer together: near a decision boundary.
        around_alarm: windows before and after a drift alarm: `pre_roll` and `post_roll` of them.
        per_class: so many of each label a day, the first ones.
        reservoir: so many a day, each window with the same probability (algorithm R: Vitter, ACM TOMS 1985).
        bytes_per_day: budget; what goes beyond is counted and not kept.
        writes_per_hour: how often kept windows are handed to the disk, at most: flash wears out by writes.
        privacy: `full` keeps the window, `features` the mean and deviation of each channel, `hashed` a keyed hash, by
            which a window that is found elsewhere can be recognised, `none` nothing at all.
    """

    every_nth: int = 0
    confidence_below: float = 0.0
    entropy_above: float = 0.0
    margin_below: float = 0.0
    around_alarm: bool = False
    pre_roll: int = 8
    post_roll: int = 8
    per_class: int = 0
    reservoir: int = 0
    bytes_per_day: int = 1 << 20
    writes_per_hour: int = 60
    privacy: str = "full"

    def __post_init__(self) -> None:
        if self.privacy not in PRIVACY:
            raise ConfigError(f"privacy is {self.privacy!r}, expected {', '.join(PRIVACY)}")
        for name in ("every_nth", "pre_roll", "post_roll", "per_class", "reservoir", "bytes_per_day"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected at least 0")
        if self.pre_roll > 4096 or self.reservoir > WAITING_MAX or self.writes_per_hour < 1:
            raise ConfigError(f"expected pre_roll <= 4096, reservoir <= {WAITING_MAX} and writes_per_hour >= 1")

    @property
    def active(self) -> bool:
        """Whether anything can ever be kept."""
        rules = (self.every_nth, self.confidence_below, self.entropy_above, self.margin_below, self.around_alarm)
        return self.privacy != "none" and any((*rules, self.per_class, self.reservoir))


def parse_capture(place: Fields) -> CapturePolicy:
    """A policy from a configuration's table.

    Raises:
        ConfigError: with the key that is wrong.
    """
    default = CapturePolicy()
    place.refuse_unknown(*(item.name for item in fields(CapturePolicy)))
    values: dict[str, Any] = {}
    for item in fields(CapturePolicy):
        if item.name not in place:
            continue
        kind = type(getattr(default, item.name))
        if kind is float:
            values[item.name] = place.number(item.name, low=0.0, high=1e6)
        elif kind is int:
            values[item.name] = place.natural(item.name, high=1 << 40)
        else:
            values[item.name] = place.typed(item.name, kind)
    try:
        return CapturePolicy(**values)
    except ConfigError as error:
        raise ConfigError(f"{place.where}: {error}") from error


@dataclass(slots=True)
class _Kept:
    """A window that waits to be handed over."""

    payload: dict[str, Json]
    size: int
    blob: bytes = b""  # its bytes, when no record can hold them


class Capturer:
    """Applies a policy: `offer` each window, `flush` from time to time.

    Args:
        policy: what to keep.
        emit: takes each kept window's payload, in `flush`.
        clock: monotonic time for the budget: no wall clock can refill it.
        salt: key of the hashes, a secret of this device.
        seed: of the reservoir's random numbers.
        keep_blob: stores what no record can hold, and says whether it has; called by `flush` alone. Without it such
            windows are refused.

    `offer` does no I/O and, for a window that is not kept, no copy but the pre-roll's. Another thread may call `flush`.

    Attributes:
        kept: windows handed over or waiting, by reason.
        refused: windows that a rule wanted and the budget, or the size of one record (240 KiB; 4 MiB where large ones
            are kept beside their records), did not allow.
        lost: windows given up because nobody flushed.
    """

    def __init__(
        self,
        policy: CapturePolicy,
        emit: Callable[[Payload], object],
        clock: Clock,
        *,
        salt: bytes = b"",
        seed: int | None = None,
        keep_blob: Callable[[bytes], bool] | None = None,
    ) -> None:
        self.policy = self._wanted = policy
        self._asked, self._asked_model = 0, ""
        self._emit, self._clock, self._salt, self._keep_blob = emit, clock, salt[:64], keep_blob
        self._lock = threading.Lock()
        self._random = random.Random(seed)  # noqa: S311 - a sample, not a secret
        self._waiting: deque[_Kept] = deque()
        self._pool: list[_Kept] = []
        self._budget = float(policy.bytes_per_day)
        self._filled_s = self._day_s = clock.monotonic_s()
        self._flushed_s = -math.inf
        self._windows = self._seen_today = 0
        self._today: dict[str, int] = {}
        self._post_roll = 0
        self._pre: NDArray[np.float32] | None = None
        self._pre_predictions: list[Prediction | None] = []
        self._pre_next = 0
        self.kept: dict[str, int] = {}
        self.refused = 0
        self.lost = 0

    def offer(self, window: NDArray[np.float32], prediction: Prediction, alarms: Sequence[Alarm] = ()) -> bool:
        """Look at a window; whether it was kept.

        Args:
            window: float32 `[samples, channels]`, valid during the call only.
            prediction: what the model says of it.
            alarms: raised at it.
        """
        if self._wanted is not self.policy:
            self.policy, self._pre = self._wanted, None
        policy = self.policy
        if not policy.active and not self._asked:
            return False
        self._windows += 1
        reasons = self._reasons(prediction)
        if policy.around_alarm:
            if alarms:
                self._keep_pre_roll()
                self._post_roll = policy.post_roll + 1
            if self._post_roll:
                self._post_roll -= 1
                reasons.append("alarm")
            else:
                self._remember(window, prediction)
        kept = bool(reasons) and self._keep(window, prediction, reasons)
        if policy.reservoir:
            kept = self._draw(window, prediction) or kept
        return kept

    def change(self, policy: CapturePolicy) -> None:
        """Another policy from the next window on."""
        self._wanted = policy
        if policy.privacy == "none":
            self._asked = 0

    def ask(self, windows: int, model: str = "") -> None:
        """Keep the next windows of a model, or of any, whatever the rules say; the budget and privacy still hold.

        Raises:
            ConfigError: nothing may be kept here.
        """
        if self._wanted.privacy == "none":
            raise ConfigError("this device keeps no windows: its capture.privacy is none")
        self._asked_model, self._asked = model, windows

    def _reasons(self, prediction: Prediction) -> list[str]:
        policy, reasons = self.policy, []
        if self._asked and self._asked_model in ("", prediction.model):
            self._asked -= 1
            reasons.append("command")
        if policy.every_nth and self._windows % policy.every_nth == 0:
            reasons.append("every_nth")
        if prediction.confidence < policy.confidence_below:
            reasons.append("confidence")
        if policy.entropy_above and _entropy(prediction.scores) > policy.entropy_above:
            reasons.append("entropy")
        if policy.margin_below and _margin(prediction.scores) < policy.margin_below:
            reasons.append("margin")
        if policy.per_class:
            self._new_day()
            if self._today.get(prediction.label, 0) < policy.per_class:
                self._today[prediction.label] = self._today.get(prediction.label, 0) + 1
                reasons.append("per_class")
        return reasons

    def _new_day(self) -> None:
        """Quotas are of a day since the start, whatever the wall clock says."""
        now_s = self._clock.monotonic_s()
        if now_s - self._day_s >= DAY_S:
            self._day_s = now_s
            self._today.clear()
            self._seen_today = 0
            with self._lock:
                self._release_pool()

    def _remember(self, window: NDArray[np.float32], prediction: Prediction) -> None:
        """Into the ring of windows that an alarm makes worth keeping."""
        count = self.policy.pre_roll
        if not count:
            return
        if self._pre is None or self._pre.shape[1:] != window.shape:
            self._pre = np.zeros((count, *window.shape), dtype=np.float32)
            self._pre_predictions = [None] * count
            self._pre_next = 0
        self._pre[self._pre_next] = window
        self._pre_predictions[self._pre_next] = prediction
        self._pre_next = (self._pre_next + 1) % count

    def _keep_pre_roll(self) -> None:
        if self._pre is None:
            return
        count = len(self._pre)
        for step in range(count):
            place = (self._pre_next + step) % count
            prediction = self._pre_predictions[place]
            if prediction is not None:
                self._keep(self._pre[place], prediction, ["pre_roll"])
            self._pre_predictions[place] = None

    def _payload(
        self, window: NDArray[np.float32], prediction: Prediction, reasons: list[str]
    ) -> tuple[dict[str, Json], bytes]:
        privacy = self.policy.privacy
        payload: dict[str, Json] = {
            "prediction": prediction.id,
            "model": prediction.model,
            "version": prediction.version,
            "label": prediction.label,
            "confidence": prediction.confidence,
            "reasons": list(reasons),
            "captured_ns": self._clock.boot_ns(),
            "privacy": privacy,
            "shape": [int(n) for n in window.shape],
        }
        content = np.ascontiguousarray(window, dtype="<f4").tobytes()
        if privacy == "full":
            kind, packed = _pack(window, content)
            payload["encoding"] = f"zlib+base64 of {kind}"
            data = zlib.compress(packed, 1)
            if self._keep_blob is not None and len(data) > BLOB_BYTES_MIN:
                payload["encoding"], payload["blob"] = f"zlib of {kind}", hashlib.sha256(data).hexdigest()
                return payload, data
            payload["data"] = base64.b64encode(data).decode("ascii")
        elif privacy == "features":
            mean, std = np.zeros(window.shape[1]), np.zeros(window.shape[1])
            window_moments(np.ascontiguousarray(window), mean, std)
            payload["mean"], payload["std"] = [*map(float, mean)], [*map(float, std)]
        else:
            payload["hash"] = hashlib.blake2b(content, digest_size=32, key=self._salt).hexdigest()
        return payload, b""

    def _make(self, window: NDArray[np.float32], prediction: Prediction, reasons: list[str]) -> _Kept | None:
        """A kept window, paid for; None when the budget does not allow it."""
        payload, blob = self._payload(window, prediction, reasons)
        size = len(blob) + sum(len(key) + len(str(value)) + 6 for key, value in payload.items())
        now_s = self._clock.monotonic_s()
        rate = self.policy.bytes_per_day / DAY_S
        self._budget = min(float(self.policy.bytes_per_day), self._budget + max(0.0, now_s - self._filled_s) * rate)
        self._filled_s = now_s
        waiting = sum(len(kept.blob) for kept in (*self._waiting, *self._pool)) if blob else 0
        size_max = BLOB_BYTES_MAX if blob else SAMPLE_BYTES_MAX
        if size > min(self._budget, size_max) or waiting + len(blob) > WAITING_BYTES_MAX:
            self.refused += 1
            return None
        self._budget -= size
        return _Kept(payload, size, blob)

    def _keep(self, window: NDArray[np.float32], prediction: Prediction, reasons: list[str]) -> bool:
        with self._lock:
            kept = self._make(window, prediction, reasons)
            if kept is None:
                return False
            for reason in reasons:
                self.kept[reason] = self.kept.get(reason, 0) + 1
            if len(self._waiting) >= WAITING_MAX:
                self._waiting.popleft()
                self.lost += 1
            self._waiting.append(kept)
        return True

    def _draw(self, window: NDArray[np.float32], prediction: Prediction) -> bool:
        """The day's reservoir: it is handed over when the day ends, or with `close`."""
        self._new_day()
        self._seen_today += 1
        place = len(self._pool)
        if place >= self.policy.reservoir:
            place = self._random.randrange(self._seen_today)
            if place >= self.policy.reservoir:
                return False
        with self._lock:
            kept = self._make(window, prediction, ["reservoir"])
            if kept is None:
                return False
            self.kept["reservoir"] = self.kept.get("reservoir", 0) + 1
            if place < len(self._pool):
                self._budget += self._pool[place].size  # it was never written
                self.kept["reservoir"] -= 1
                self._pool[place] = kept
            else:
                self._pool.append(kept)
        return True

    def _release_pool(self) -> None:
        for kept in self._pool:
            if len(self._waiting) >= WAITING_MAX:
                self._waiting.popleft()
                self.lost += 1
            self._waiting.append(kept)
        self._pool.clear()

    def flush(self, *, force: bool = False) -> int:
        """Hand over what waits; how many. Not more often than the policy allows, unless forced (at the end)."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            if force:
                self._release_pool()
            if not force and now_s - self._flushed_s < HOUR_S / self.policy.writes_per_hour:
                return 0
            if not self._waiting:
                return 0
            self._flushed_s = now_s
            ready = list(self._waiting)
            self._waiting.clear()
        for kept in ready:
            if kept.blob and not (self._keep_blob is not None and self._keep_blob(kept.blob)):
                self.lost += 1
                continue
            self._emit(kept.payload)
        return len(ready)

    def stats(self) -> dict[str, Json]:
        """Counts, and what is left of the budget."""
        with self._lock:
            return {
                "kept": dict(self.kept),
                "refused": self.refused,
                "lost": self.lost,
                "waiting": len(self._waiting) + len(self._pool),
                "budget_bytes": int(self._budget),
            }

    def state(self) -> dict[str, Json]:
        """What a restart must not refill: the budget that is left."""
        return {"budget_bytes": self._budget}

    def restore(self, state: object) -> None:
        """Go on with the budget that was left; a state that is damaged leaves none.

        The time that the device was off does not count.
        """
        left = state.get("budget_bytes") if isinstance(state, dict) else None
        if not isinstance(left, int | float) or not math.isfinite(left):
            left = 0.0
        self._budget = min(float(self.policy.bytes_per_day), max(0.0, float(left)))
        self._filled_s = self._clock.monotonic_s()


def _pack(window: NDArray[np.float32], content: bytes) -> tuple[str, bytes]:
    """The window's bytes: those of an image as they came from the camera, a quarter of float32's."""
    if window.size and window.min() >= 0 and window.max() <= 255:
        small = window.astype(np.uint8)
        if np.array_equal(small, window):
            return "uint8", small.tobytes()
    return "float32, little-endian", content


def decode_sample(payload: Mapping[str, Json], blob: bytes | None = None) -> NDArray[np.float32]:
    """The window of a `sample` record, as the pipeline saw it.

    Args:
        payload: of a record that was kept with `privacy = "full"`.
        blob: what its `blob` names, for a window that the record itself could not hold.

    Returns:
        float32 of the record's shape, `[samples, channels]`.

    Raises:
        InputError: the record holds no window, or a damaged one.
    """
    kinds = {"uint8": "u1", "float32, little-endian": "<f4"}
    data, shape, encoding = payload.get("data"), payload.get("shape"), payload.get("encoding")
    form, _, kind_name = str(encoding).partition(" of ")
    if "blob" in payload and blob is None:
        raise InputError(f"the sample's window is the blob {payload['blob']}: fetch it and give it as `blob`")
    if blob is not None and hashlib.sha256(blob).hexdigest() != payload.get("blob"):
        raise InputError(f"the blob is not the one that the sample names: {payload.get('blob')!r}")
    packed = data if blob is None else blob
    if not isinstance(packed, str | bytes) or kind_name not in kinds or form not in ("zlib", "zlib+base64"):
        raise InputError(f"the sample holds no window: privacy {payload.get('privacy')!r}, encoding {encoding!r}")
    if not isinstance(shape, list) or not all(type(n) is int and 0 < n <= SAMPLE_VALUES_MAX for n in shape):
        raise InputError(f"a sample of shape {shape!r}")
    kind = np.dtype(kinds[kind_name])
    size = math.prod(n for n in shape if isinstance(n, int)) * kind.itemsize
    if size > SAMPLE_VALUES_MAX * kind.itemsize:
        raise InputError(f"a sample of shape {shape!r} has more than {SAMPLE_VALUES_MAX} values")
    unpacker = zlib.decompressobj()
    try:
        raw = base64.b64decode(packed, validate=True) if isinstance(packed, str) else packed
        content = unpacker.decompress(raw, size + 1)
    except (ValueError, zlib.error) as error:
        raise InputError(f"the sample is damaged: {error}") from error
    if len(content) != size:
        raise InputError(f"the sample is damaged: shape {shape!r} needs {size} bytes")
    return np.frombuffer(content, dtype=kind).astype(np.float32).reshape([int(str(n)) for n in shape])


def _entropy(scores: Sequence[float]) -> float:
    return -sum(p * math.log2(p) for p in scores if p > 0)


def _margin(scores: Sequence[float]) -> float:
    if len(scores) < 2:
        return math.inf
    first, second = sorted(scores)[-1:-3:-1]
    return first - second
