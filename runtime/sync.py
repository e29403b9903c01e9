"""The sync protocol without input or output: what to send next, what an answer means, when to try again.

Rules
- Nothing is believed acknowledged that was not sent in this very request.
- An answer that is no TinySphere's changes nothing: the same records go again.
- After a failure the wait is random within 0 and a bound that doubles (full jitter), so that a fleet that lost its
  server does not come back as one; the server's `Retry-After` is obeyed.
- After a failure half as much is sent, down to `BATCH_BYTES_MIN`, and after a success twice as much: a link that is
  slow, or breaks after so many bytes, still carries something.
- A server that refuses the format or the compression (415, or 400 by one that knew JSON alone) gets plain JSON at
  once, and for a day: an old server costs one more request, not its devices.
- A server that speaks older versions alone is spoken to in the newest that it names, at once, and for a day. One that
  speaks none of this device's is named as such, and the records wait.
- A permanent refusal (the key was revoked) still tries again, at the longest wait: a restored server may know us.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Final

from .errors import ServerError, WireError
from .types import Json, Record, Stream
from .wire import (
    CONTENT_TYPES,
    DESIRED_UNCHANGED,
    STREAMS,
    SYNC_BYTES_MAX,
    WIRE_VERSION,
    Anchor,
    Board,
    Desired,
    Format,
    Refused,
    RunningModel,
    SyncRequest,
    compress,
    decode_response,
    encode,
    expand,
    is_web_page,
    record_to_json,
)

RETRY_AFTER_S_MAX: Final = 86400.0
PROBLEM_CHARACTERS_MAX: Final = 300
BATCH_BYTES_MAX: Final = SYNC_BYTES_MAX // 2  # as the journal counts; JSON is larger
BATCH_BYTES_MIN: Final = 8 << 10
PLAIN_S: Final = 86400.0  # how long a server that refused the format or the version is spoken to in another
_SPOKEN: Final = re.compile(r"speaks versions (\d{1,9}) to (\d{1,9})\b")  # in every server's refusal of a version
RESPONSE_BYTES_MAX: Final = 4 << 20  # of an answer's plain body


@dataclass(frozen=True, slots=True)
class Known:
    """What the device remembers of its server between syncs; stored by the agent."""

    server_instance: str = ""
    generation: int = 0
    desired: Desired | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a good answer means: advance the journal to `acked`, then act on `desired` when there is one."""

    acked: Mapping[Stream, tuple[str, int]]
    known: Known
    desired: Desired | None
    refused: tuple[Refused, ...]
    server_time: float
    server_changed: bool
    downlink: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class Post:
    """What to post, and the headers that say what it is."""

    body: bytes
    headers: Mapping[str, str]


@dataclass(slots=True)
class Sync:
    """One device's side of the round trip.

    Args:
        interval_s: between syncs when nothing is waiting.
        backoff_min_s, backoff_max_s: bounds of the wait after a failure.
        known: what was remembered from the last time.
        rng: for the jitter.
        format, gzip: how to say it, to a server that understands.
        wire: the newest version that this device speaks; it speaks all before it.

    Attributes:
        batch_bytes: how much to send at once, as the journal counts.
        plain_until_s: until then everything is sent as plain JSON.
        older_wire, older_until_s: until then this version is spoken.
    """

    interval_s: float
    backoff_min_s: float
    backoff_max_s: float
    known: Known = field(default_factory=Known)
    rng: random.Random = field(default_factory=random.Random)
    format: Format = "msgpack"
    gzip: bool = True
    wire: int = WIRE_VERSION
    failures: int = 0
    next_s: float = 0.0
    batch_bytes: int = BATCH_BYTES_MAX
    plain_until_s: float = -math.inf
    older_wire: int = WIRE_VERSION
    older_until_s: float = -math.inf
    _is_plain: bool = False
    _spoken: int = WIRE_VERSION
    _sent: dict[Stream, list[tuple[str, int]]] = field(default_factory=dict)

    def request(
        self,
        *,
        boot: str,
        anchor: Anchor,
        running: Sequence[RunningModel],
        capabilities: Mapping[str, Json],
        events: Sequence[Record],
        details: Sequence[Record],
        now_s: float,
        downlink_cursor: int = 0,
        boards: Sequence[Board] = (),
    ) -> Post:
        """What to post. `events` and `details` are durable records, oldest first; `boards` are all of the device."""
        self._sent = {
            stream: [(record.epoch, record.seq) for record in records]
            for stream, records in zip(STREAMS, (events, details), strict=True)
        }
        self._is_plain = now_s < self.plain_until_s
        self._spoken = self.older_wire if now_s < self.older_until_s else self.wire
        format: Format = "json" if self._is_plain else self.format
        body = encode(
            SyncRequest(
                wire=self._spoken,
                boot=boot,
                anchor=anchor,
                running=tuple(running),
                generation=self.known.generation,
                server_instance=self.known.server_instance,
                capabilities=capabilities,
                events=[record_to_json(record) for record in events],
                details=[record_to_json(record) for record in details],
                downlink_cursor=downlink_cursor,
                boards=tuple(boards),
            ),
            format,
        )
        headers = {"Content-Type": CONTENT_TYPES[format], "Accept": CONTENT_TYPES[format]}
        if self.gzip:
            headers["Accept-Encoding"] = "gzip"
        packed = compress(body) if self.gzip and not self._is_plain else None
        if packed is not None:
            headers["Content-Encoding"] = "gzip"
        return Post(body if packed is None else packed, headers)

    def receive(self, body: bytes, headers: Mapping[str, str], now_s: float) -> Outcome:
        """Read a 200 answer.

        Args:
            body: as it came.
            headers: of the answer; their names in lower case.
            now_s: monotonic time.

        Raises:
            WireError: it is no answer to what was sent; the wait until the next try has been set.
        """
        try:
            if headers.get("content-encoding", "identity").lower() == "gzip":
                body = expand(body, RESPONSE_BYTES_MAX)
            response = decode_response(body, headers.get("content-type", ""))
            acked: dict[Stream, tuple[str, int]] = {}
            for stream in STREAMS:
                ack = response.acked.get(stream)
                if ack is None:
                    continue
                if ack not in self._sent.get(stream, []):
                    raise WireError(f"the server acknowledges a record of {stream} that was not sent: {ack}")
                acked[stream] = ack
        except WireError:
            self.failed(now_s)
            raise
        changed = bool(self.known.server_instance) and response.server_instance != self.known.server_instance
        desired = None if response.desired == DESIRED_UNCHANGED else response.desired
        assert not isinstance(desired, str)
        self.known = Known(
            server_instance=response.server_instance,
            generation=self.known.generation if desired is None else desired.generation,
            desired=self.known.desired if desired is None else desired,
        )
        self.failures = 0
        self.batch_bytes = min(BATCH_BYTES_MAX, 2 * self.batch_bytes)
        self.next_s = now_s + (
            self.interval_s if response.next_sync_s <= 0 else min(self.interval_s, response.next_sync_s)
        )
        return Outcome(
            acked=acked,
            known=self.known,
            desired=desired,
            refused=response.refused,
            server_time=response.server_time,
            server_changed=changed,
            downlink=response.downlink,
        )

    @property
    def _is_special(self) -> bool:
        return self.gzip or self.format != "json"

    def failed(self, now_s: float, error: ServerError | None = None) -> float:
        """Note a failure; returns the seconds until the next try."""
        if error is not None and error.spoken is not None:
            low, high = error.spoken
            common = min(self._spoken - 1, high)
            if common >= max(1, low):
                self.older_wire, self.older_until_s, self.next_s = common, now_s + PLAIN_S, now_s
                return 0.0
        elif error is not None and error.status in (400, 415) and not self._is_plain and self._is_special:
            self.plain_until_s, self.next_s = now_s + PLAIN_S, now_s
            return 0.0
        bound = min(self.backoff_max_s, self.backoff_min_s * 2.0 ** min(self.failures, 40))
        self.failures += 1
        self.batch_bytes = max(BATCH_BYTES_MIN, self.batch_bytes // 2)
        wait = self.rng.uniform(0.0, bound)
        if error is not None and error.permanent:
            wait = self.backoff_max_s
        if error is not None and error.retry_after_s is not None:
            wait = max(wait, min(error.retry_after_s, RETRY_AFTER_S_MAX))
        self.next_s = now_s + wait
        return wait


def read_refusal(status: int, headers: Mapping[str, str], body: bytes) -> ServerError:
    """Turn an answer that is no 200 into an error that says what the server said; header names in lower case."""
    retry_after = _retry_after_s(headers)
    text = body[:PROBLEM_CHARACTERS_MAX].decode("utf-8", "replace").strip()
    if is_web_page(body, headers.get("content-type", "")) or status == 511 or 300 <= status < 400:
        where = headers.get("location", "")[:200]
        return ServerError(
            f"something else than TinySphere answered, with status {status}"
            + (f" and the address {where}" if where else "")
            + ": a proxy, or a captive portal that wants somebody to log in?",
            retry_after_s=retry_after,
            status=status,
        )
    try:
        problem = json.loads(body)
        text = str(problem.get("detail") or problem.get("title") or text)[:PROBLEM_CHARACTERS_MAX]
    except (ValueError, AttributeError, RecursionError):
        pass  # not problem+json: the text itself is the reason
    spoken = _SPOKEN.search(text) if status == 400 else None
    if spoken is not None and not int(spoken[1]) <= WIRE_VERSION:
        text += f"; this device speaks 1 to {WIRE_VERSION}: install a newer TinyLCM on it"
    return ServerError(
        f"the server answered {status}: {text or 'no reason given'}",
        retry_after_s=retry_after,
        permanent=status in (401, 403, 410),
        status=status,
        spoken=None if spoken is None else (int(spoken[1]), int(spoken[2])),
    )


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from either form of `Retry-After`: a date counts from the answer's own, not from this clock."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdecimal():
        return min(float(value), RETRY_AFTER_S_MAX)
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError):
        return None
    return min(max(wait.total_seconds(), 0.0), RETRY_AFTER_S_MAX)
