"""What is left of segments that are given up, and which losses declare the rest.

It owns the decision and no file: the log chooses the segments and deletes them, the journal writes what is kept. The
order is the design's: samples go first, then summaries are merged into coarser ones, and only what cannot be merged
or has no room is dropped.

Rules
- A record that may have been sent keeps its id or goes: only summaries that never were are merged. What was merged
  is a new record with a new id.
- Every seq of a segment is declared, as `merged` or as `dropped`, so nothing waits for it; and what its own gap
  records declared is declared anew, because nobody may have heard of it.
- What is kept and what is declared go to the disk as one pack: a power cut leaves the segment or its successor.
- It reads each segment once, keeps at most `bytes_max` and never more than half of what is given up.
- Losses that only declared seqs lie between become one, so that there are no more of them than segments and epochs;
  and should a device that never syncs have begun too many epochs, the oldest losses are forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import msgpack

from .segments import (
    GAP,
    GAP_TYPE,
    RECORD,
    SUMMARY_TYPE,
    Entry,
    Loss,
    Ranges,
    decode_loss,
    decode_record,
    encode_body,
)
from .summaries import Summary, condense, is_mergeable
from .types import Json
from .wire import finite

LOSS_BYTES: Final = 160  # of a gap record's body, at most
ITEM_BYTES: Final = 8  # what msgpack adds to a body in a pack, at most
_TYPE_PACKED: Final = msgpack.packb(SUMMARY_TYPE)


@dataclass(frozen=True, slots=True)
class Given:
    """A segment that is given up: what it may still hold that is neither acknowledged nor elsewhere.

    Attributes:
        epoch: of its records, and
        boot: the machine's then.
        first, last: seqs that are its own to declare; none when `last` is below `first`.
        size: bytes on disk.
        is_sent: whether a seq of it may have been handed out.
        entries: its sound entries, read when they are asked for.
    """

    epoch: str
    boot: str
    first: int
    last: int
    size: int
    is_sent: Callable[[int], bool]
    entries: Callable[[], Iterable[Entry]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What must be written before the segments may go.

    Attributes:
        losses: to declare, each range in a gap record.
        bodies: of the coarser summaries, encoded.
        dropped, merged: records.
    """

    losses: list[Loss]
    bodies: list[bytes]
    dropped: int
    merged: int

    def items(self, boot_ns: int) -> list[tuple[int, bytes]]:
        """The entries of the pack, in order: kind and body."""
        gaps = [(GAP, encode_body(GAP_TYPE, boot_ns, loss.payload())) for loss in self.losses]
        return gaps + [(RECORD, body) for body in self.bodies]


def compact(given: Iterable[Given], bytes_max: int, declared: Ranges | None = None) -> Outcome:
    """Decide what is kept of segments that are given up.

    Args:
        given: the segments, in order.
        bytes_max: what the kept summaries may take at most; the losses have a quarter of that beside it.
        declared: what gap records declare already; seqs that are nowhere any more.
    """
    parts = [_Part(segment) for segment in given]
    losses_bytes_max = bytes_max // 4
    bytes_max = min(bytes_max, sum(part.given.size for part in parts) // 2)
    summaries = condense((summary for part in parts for summary in part.summaries), bytes_max, _size)
    kept, bodies = _newest(summaries, bytes_max)
    losses = join((loss for part in parts for loss in part.losses(kept)), declared or Ranges())
    return Outcome(
        losses=losses[-max(2, losses_bytes_max // LOSS_BYTES) :],
        bodies=bodies,
        dropped=sum(loss.count for part in parts for loss in part.own(kept) if loss.reason == "dropped"),
        merged=len(kept),
    )


def _body(summary: Summary) -> bytes:
    return encode_body(SUMMARY_TYPE, summary.boot_ns, finite(summary.payload), summary.boot)


def _size(summary: Summary) -> int:
    return len(_body(summary)) + ITEM_BYTES


def _newest(summaries: list[Summary], bytes_max: int) -> tuple[set[tuple[str, int]], list[bytes]]:
    """The newest ones that have room together: the ids that they stand for, and their bodies, oldest first."""
    ids: set[tuple[str, int]] = set()
    bodies: list[bytes] = []
    for summary in sorted(summaries, key=lambda summary: summary.boot_ns, reverse=True):
        body = _body(summary)
        bytes_max -= len(body) + ITEM_BYTES
        if bytes_max < 0:
            break
        ids.update(summary.ids)
        bodies.append(body)
    return ids, bodies[::-1]


class _Part:
    """One segment, read: its mergeable summaries, and what its gap records said."""

    def __init__(self, given: Given) -> None:
        self.given = given
        self.summaries: list[Summary] = []
        self._inner: list[Loss] = []
        self._gaps = 0
        for entry in given.entries():
            if entry.epoch != given.epoch or not given.first <= entry.seq <= given.last:
                continue
            if entry.kind == GAP:
                self._gaps += 1
                self._inner.append(decode_loss(entry))
            elif entry.kind == RECORD and entry.body[1:].startswith(_TYPE_PACKED) and not given.is_sent(entry.seq):
                record = decode_record(entry, given.boot)
                if is_mergeable(record.payload):
                    payload: dict[str, Json] = dict(record.payload)
                    self.summaries.append(Summary(record.boot, record.boot_ns, payload, ((entry.epoch, entry.seq),)))

    def losses(self, kept: set[tuple[str, int]]) -> Iterator[Loss]:
        """What is to be declared when these ids are kept as parts of coarser summaries."""
        given = self.given
        for loss in self._inner:
            if loss.epoch != given.epoch or loss.first < given.first or given.last < loss.last:
                yield loss  # what lies in the own range is in the own losses already
        yield from self.own(kept)

    def own(self, kept: set[tuple[str, int]]) -> list[Loss]:
        """The losses that cover the segment's own range."""
        epoch, first, last = self.given.epoch, self.given.first, self.given.last
        if last < first:
            return []
        merged = sorted(seq for name, seq in kept if name == epoch and first <= seq <= last)
        losses = [Loss(epoch, merged[0], merged[-1], "merged", len(merged))] if merged else []
        there = set(merged)
        while first <= last and first in there:
            first += 1
        while last >= first and last in there:
            last -= 1
        if first <= last:
            count = self.given.last - self.given.first + 1 - len(merged) - self._gaps
            losses.append(Loss(epoch, first, last, "dropped", max(count, 0)))
        return losses


def join(losses: Iterable[Loss], declared: Ranges) -> list[Loss]:
    """Losses of one epoch and reason become one where all that lies between them is declared; as they came, else."""
    everything = declared.copy()
    by_reason: dict[tuple[str, str], list[Loss]] = {}
    for loss in losses:
        everything.add(loss.epoch, loss.first, loss.last)
        by_reason.setdefault((loss.epoch, loss.reason), []).append(loss)
    joined: list[Loss] = []
    for (epoch, _), group in by_reason.items():
        before, *rest = sorted(group, key=lambda loss: loss.first)
        for loss in rest:
            if everything.missing_from(epoch, before.last + 1, loss.first - 1):
                joined.append(before)
                before = loss
            else:
                last = max(before.last, loss.last)
                count = min(before.count + loss.count, last - before.first + 1)
                before = replace(before, last=last, count=count)
        joined.append(before)
    return joined
