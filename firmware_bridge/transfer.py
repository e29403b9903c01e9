"""A model onto a board, whatever the line and the board do: which request comes next, and when to give up.

Rules
1. Offsets lead. A chunk is sent from where the board says that it goes on, and what is not acknowledged is sent again.
2. The board is asked who it is before anything else and after everything odd: what it runs decides, not what was sent.
   So a transfer may be begun anew at any point, on either side, and ends in the same place.
3. Chunks are multiples of the board's `align`, the last one excepted. They get smaller, down to 64 bytes, and fewer at
   a time when the line loses some, and larger again when it does not.
4. Every loop ends: answers without progress, transfers begun without progress, questions without an answer, refusals
   that ask for patience, and models that arrive damaged are counted, each against a bound of its own.
5. A board that claims what cannot be (an offset beyond what it was sent) ends the transfer at once.

`TRANSITIONS` is the whole machine; an event that stands not there for a state leaves it. No port and no clock is known
here: `Transfer.requests` says what to ask, `Transfer.take` hears what came of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from .errors import BUSY, HASH, MODEL, SELFTEST, SIZE, STATE, STORE, RefusedError, UpdateError
from .frames import PAYLOAD_BYTES_MAX
from .messages import (
    CONFIRMED,
    TRIAL,
    WINDOW_MAX,
    AbortAnswer,
    AbortRequest,
    BeginAnswer,
    BeginRequest,
    Caps,
    ChunkAnswer,
    ChunkRequest,
    CommitAnswer,
    CommitRequest,
    ConfirmAnswer,
    ConfirmRequest,
    HelloRequest,
    Request,
    name_of,
)
from .protocol import Answered, Event, Refused, Restarted, Unanswered

CHUNK_BYTES: Final = 512
"""Chunks begin with so many bytes: 512 of 529 on the wire are the model's."""
CHUNK_BYTES_LEAST: Final = 64
GROW_AFTER: Final = 64
"""So many chunks in a row without a repetition, and the next ones are twice as large."""
STALLS_MAX: Final = 8
"""Answers in a row without progress, then the board is asked who it is."""
BEGINS_MAX: Final = 8
"""Times that a transfer is begun without getting further than ever before."""
ROUNDS_MAX: Final = 24
"""Times that something odd happened without getting further than ever before."""
UNANSWERED_MAX: Final = 8
"""Requests in a row, each sent four times, that nobody answered."""
BUSY_MAX: Final = 40
BUSY_S: Final = 0.25
"""A board that is busy is asked again after this; 40 times are 10 s, longer than any flash erases a slot."""
DAMAGED_MAX: Final = 2
COMMITS_MAX: Final = 4
FORMAT: Final = 1
ABI: Final = 1
"""The only format and ABI of models for boards so far, see docs/wire.md."""


class State(StrEnum):
    """Where a transfer is."""

    ASKING = "asking"
    BEGINNING = "beginning"
    SENDING = "sending"
    ABORTING = "aborting"
    COMMITTING = "committing"
    TRIAL = "trial"
    CONFIRMING = "confirming"
    DONE = "done"
    FAILED = "failed"


class Happening(StrEnum):
    """What moves it."""

    ABSENT = "absent"  # the board runs another model
    ON_TRIAL = "on trial"  # the board runs this one, on trial
    CONFIRMED = "confirmed"
    BEGUN = "begun"
    WHOLE = "whole"  # the last byte is there
    ODD = "odd"  # restarted, knows of no transfer, does not get on: ask who it is
    DAMAGED = "damaged"
    ABORTED = "aborted"
    PASSED = "passed"  # the trial, as the caller judges it
    FAILED = "failed"


TRANSITIONS: Final[Mapping[tuple[State, Happening], State]] = {
    (State.ASKING, Happening.ABSENT): State.BEGINNING,
    (State.ASKING, Happening.ON_TRIAL): State.TRIAL,
    (State.ASKING, Happening.CONFIRMED): State.DONE,
    (State.BEGINNING, Happening.BEGUN): State.SENDING,
    (State.BEGINNING, Happening.WHOLE): State.COMMITTING,
    (State.BEGINNING, Happening.ODD): State.ASKING,
    (State.SENDING, Happening.WHOLE): State.COMMITTING,
    (State.SENDING, Happening.ODD): State.ASKING,
    (State.COMMITTING, Happening.ON_TRIAL): State.TRIAL,
    (State.COMMITTING, Happening.CONFIRMED): State.DONE,
    (State.COMMITTING, Happening.DAMAGED): State.ABORTING,
    (State.COMMITTING, Happening.ODD): State.ASKING,
    (State.ABORTING, Happening.ABORTED): State.BEGINNING,
    (State.ABORTING, Happening.ODD): State.ASKING,
    (State.TRIAL, Happening.PASSED): State.CONFIRMING,
    (State.TRIAL, Happening.ODD): State.ASKING,
    (State.CONFIRMING, Happening.CONFIRMED): State.DONE,
    (State.CONFIRMING, Happening.ODD): State.ASKING,
    **{(state, Happening.FAILED): State.FAILED for state in State if state not in (State.DONE, State.FAILED)},
}
ENDED: Final = frozenset({State.DONE, State.FAILED})


class Transfer:
    """One model's way onto one board.

    Args:
        blob: the model.
        session: of the `Protocol`, for HELLO.
        confirm: keep the model as soon as it runs; else the caller judges the trial and calls `confirm()`.
        chunk_bytes: the largest chunk.
        window: the most chunks under way, where the board would take more.

    Raises:
        UpdateError: the model is empty.
    """

    def __init__(
        self,
        blob: bytes,
        *,
        session: int = 0,
        format: int = FORMAT,
        abi: int = ABI,
        confirm: bool = True,
        chunk_bytes: int = CHUNK_BYTES,
        window: int = WINDOW_MAX,
    ) -> None:
        if not blob:
            raise UpdateError("the model has no bytes: choose another file")
        self.blob = bytes(blob)
        self.sha256 = hashlib.sha256(self.blob).digest()
        self.state = State.ASKING
        self.error: UpdateError | None = None
        self.acknowledged = 0
        self.slot: int | None = None
        self.repeated_bytes = 0
        self._session = session
        self._format, self._abi = format, abi
        self._passed = confirm
        self._chunk_max = self._chunk = chunk_bytes
        self._window_wanted = window
        self._window_max = self._window = 1
        self._align = 1
        self._sent = 0
        self._reached = 0  # further than the model ever got
        self._mine: list[Request] = []
        self._wait_until_s = 0.0
        self._draining = False
        self._smooth = 0
        self._stalls = self._begins = self._unanswered = self._busy = self._damaged = self._commits = self._rounds = 0
        self._committed = False

    # what to ask --------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Bytes of the model."""
        return len(self.blob)

    @property
    def ended(self) -> bool:
        """Whether it is over, well or not."""
        return self.state in ENDED

    @property
    def waits(self) -> bool:
        """The model runs on trial, and the caller has not judged it yet."""
        return self.state is State.TRIAL and not self._passed

    @property
    def chunk_bytes(self) -> int:
        """The size of the next chunks."""
        return self._chunk

    def next_timeout(self) -> float | None:
        """When `requests` may have something that it has not now."""
        return self._wait_until_s if self._wait_until_s and not self.ended else None

    def confirm(self) -> None:
        """The model passed its trial: it stays."""
        self._passed = True

    def requests(self, now_s: float) -> list[Request]:
        """What to ask the board now; send all of it."""
        if now_s < self._wait_until_s:
            return []
        self._wait_until_s = 0.0
        if self.state is State.TRIAL and self._passed:
            self._happen(Happening.PASSED)
        if self.state is State.SENDING:
            return self._chunks()
        if self._mine:
            return []
        request = self._single()
        if request is None:
            return []
        self._mine.append(request)
        return [request]

    def _single(self) -> Request | None:
        if self.state is State.ASKING:
            return HelloRequest(self._session, payload_max=PAYLOAD_BYTES_MAX)
        if self.state is State.BEGINNING:
            return BeginRequest(self.size, self.sha256, self._format, self._abi)
        if self.state is State.COMMITTING:
            return CommitRequest(self.sha256)
        if self.state is State.CONFIRMING:
            return ConfirmRequest(self.sha256)
        return AbortRequest() if self.state is State.ABORTING else None

    def _chunks(self) -> list[Request]:
        if self._draining:
            if self._mine:
                return []
            self._draining = False
            self.repeated_bytes += self._sent - self.acknowledged
            self._sent = self.acknowledged
        asked: list[Request] = []
        while len(self._mine) < self._window and self._sent < self.size:
            request = ChunkRequest(self._sent, self.blob[self._sent : self._sent + self._chunk])
            self._sent += len(request.data)
            self._mine.append(request)
            asked.append(request)
        return asked

    # what came of it ----------------------------------------------------------------------------------------

    def take(self, event: Event, now_s: float) -> None:
        """Hear an event of the protocol; what does not concern this transfer is passed over."""
        if self.ended:
            return
        if isinstance(event, Restarted):
            self._odd()
            if self.state is State.ASKING:
                self._known(event.caps)
            return
        if not isinstance(event, (Answered, Refused, Unanswered)):
            return
        place = next((i for i, request in enumerate(self._mine) if request is event.request), None)
        if place is None:
            return
        del self._mine[place]
        if isinstance(event, Answered):
            if not isinstance(event.answer, Caps):  # a board that answers nothing but HELLO answers nothing
                self._unanswered = 0
            self._answered(event)
        elif isinstance(event, Refused):
            self._unanswered = 0
            self._refused(event.request, event.error, now_s)
        else:
            self._nothing(event)

    def _answered(self, event: Answered) -> None:
        answer = event.answer
        if not isinstance(answer, ChunkAnswer):
            self._busy = 0
        if isinstance(answer, Caps):
            self._known(answer)
        elif isinstance(answer, BeginAnswer):
            self._begun(answer)
        elif isinstance(answer, ChunkAnswer) and isinstance(event.request, ChunkRequest):
            self._chunk_answered(event.request, answer, event.tries)
        elif isinstance(answer, (CommitAnswer, ConfirmAnswer)):
            self.slot = answer.slot
            self._committed = True
            if isinstance(answer, ConfirmAnswer) and answer.state != CONFIRMED:
                self._happen(Happening.ODD)
            else:
                self._happen(Happening.CONFIRMED if answer.state == CONFIRMED else Happening.ON_TRIAL)
        elif isinstance(answer, AbortAnswer):
            self._happen(Happening.ABORTED)

    def _known(self, caps: Caps) -> None:
        """What the board runs decides what comes next."""
        if self.state is not State.ASKING:
            return
        mine = caps.model.sha256 == self.sha256.hex()
        if mine and caps.model.state in (TRIAL, CONFIRMED):
            self._committed = True
            self.acknowledged, self.slot = self.size, caps.model.slot
            self._happen(Happening.CONFIRMED if caps.model.state == CONFIRMED else Happening.ON_TRIAL)
        elif self._committed:
            self._fail(
                f"the board ran the model and went back to {caps.model.sha256[:12] or 'its own'}: "
                "it failed its trial, or was not confirmed in time"
            )
        elif caps.model.state == TRIAL:
            self._fail(
                f"model {caps.model.sha256[:12]} is on trial on the board, so no other is taken: "
                f"confirm it, roll back, or wait for its {caps.trial_s} s to pass"
            )
        elif self._fits(caps):
            self._happen(Happening.ABSENT)

    def _fits(self, caps: Caps) -> bool:
        if self.size > caps.slot_bytes:
            self._fail(
                f"the model has {self.size} bytes, a slot of {caps.uid} takes {caps.slot_bytes}: make it smaller"
            )
        elif self._format not in caps.formats or self._abi != caps.abi:
            formats = ", ".join(map(str, caps.formats)) or "none"
            self._fail(
                f"the model has format {self._format} and ABI {self._abi}, board {caps.uid} runs formats {formats} "
                f"with ABI {caps.abi}: convert it for this firmware"
            )
        else:
            room = min(caps.frame_max - ChunkRequest.HEAD_BYTES, self._chunk_max)
            if room < caps.align:
                room = caps.frame_max - ChunkRequest.HEAD_BYTES
            self._align = caps.align
            self._chunk_max = room // caps.align * caps.align
            self._chunk = min(self._chunk, self._chunk_max) // caps.align * caps.align or self._chunk_max
            self._window_max = self._window = min(caps.window, self._window_wanted)
            return True
        return False

    def _begun(self, answer: BeginAnswer) -> None:
        if answer.offset > self.size or (answer.offset % self._align and answer.offset != self.size):
            self._fail(
                f"the board wants to go on at byte {answer.offset} of {self.size}, in steps of {self._align}: "
                "its firmware does not keep the protocol"
            )
            return
        self._begins += 1
        if self._begins > BEGINS_MAX:
            self._fail(
                f"the board began {BEGINS_MAX} times and never got beyond byte {self._reached} of {self.size}: "
                "its slot or its line is broken"
            )
            return
        self.slot = answer.slot
        self.acknowledged = self._sent = answer.offset
        self._progress()
        self._draining = False
        self._stalls = 0
        self._happen(Happening.WHOLE if answer.offset == self.size else Happening.BEGUN)

    def _progress(self) -> None:
        if self.acknowledged > self._reached:
            self._reached = self.acknowledged
            self._begins = self._rounds = 0

    def _chunk_answered(self, request: ChunkRequest, answer: ChunkAnswer, tries: int) -> None:
        if self.state is not State.SENDING:
            return
        if answer.offset > self._sent or (answer.offset % self._align and answer.offset != self.size):
            self._fail(
                f"the board says that it has {answer.offset} bytes, it was sent {self._sent}: "
                "its firmware does not keep the protocol"
            )
            return
        if answer.offset > self.acknowledged:
            self.acknowledged = answer.offset
            self._stalls = self._busy = 0
            self._progress()
        else:
            self._stalls += 1
        whole = answer.offset >= request.offset + len(request.data)
        if tries > 1 or not whole:
            self._smooth = 0
            if tries > 1:
                self._shrink()
            if not whole:
                self._draining = True
        else:
            self._grow()
        if self.acknowledged == self.size:
            self._mine.clear()
            self._happen(Happening.WHOLE)
        elif self._stalls >= STALLS_MAX:
            self._stalls = 0
            self._odd()

    def _odd(self) -> None:
        self._mine.clear()
        self._rounds += 1
        if self._rounds > ROUNDS_MAX:
            self._fail(f"the board was asked who it is {ROUNDS_MAX} times and never got beyond byte {self._reached}")
        else:
            self._happen(Happening.ODD)

    def _shrink(self) -> None:
        least = max(CHUNK_BYTES_LEAST // self._align * self._align, self._align)
        self._chunk = max(self._chunk // 2 // self._align * self._align, min(least, self._chunk_max))
        self._window = max(1, self._window // 2)

    def _grow(self) -> None:
        self._smooth += 1
        if self._smooth >= GROW_AFTER:
            self._smooth = 0
            self._chunk = min(self._chunk * 2, self._chunk_max)
            self._window = min(self._window * 2, self._window_max)

    def _refused(self, request: Request, error: RefusedError, now_s: float) -> None:
        if error.code == BUSY:
            self._busy += 1
            if self._busy > BUSY_MAX:
                self._fail(f"the board was busy {BUSY_MAX} times in a row: {error}")
            else:
                self._wait_until_s = now_s + BUSY_S
                self._draining = True
        elif error.code == STATE:
            self._begins += isinstance(request, BeginRequest)
            self._commits += isinstance(request, (CommitRequest, ConfirmRequest))
            if self._begins > BEGINS_MAX or self._commits > COMMITS_MAX:
                self._fail(f"the board takes no model now: {error}")
            else:
                self._stalls += 1
                self._odd()
        elif error.code == HASH and isinstance(request, CommitRequest) and self._damaged < DAMAGED_MAX:
            self._damaged += 1
            self._reached = 0
            self._happen(Happening.DAMAGED)
        else:
            advice = {
                SIZE: "the model does not fit a slot: make it smaller",
                MODEL: "it is for another board, other sensors or another ABI: convert it for this one",
                SELFTEST: "its test vectors came out otherwise on the board: convert it again, or mend the firmware",
                STORE: "the board's memory failed: what ran before runs on",
                HASH: f"it arrived damaged {DAMAGED_MAX + 1} times: the board's memory or firmware is broken",
            }.get(error.code, "what ran before runs on")
            self._fail(f"{error}; {advice}", error)

    def _nothing(self, event: Unanswered) -> None:
        self._unanswered += 1
        if self._unanswered > UNANSWERED_MAX:
            self._fail(f"{UNANSWERED_MAX} requests in a row had no answer, the last was {name_of(event.request.TYPE)}")
        elif isinstance(event.request, ChunkRequest):
            self._shrink()
            self._draining = True
        elif not isinstance(event.request, HelloRequest):
            self._commits += isinstance(event.request, (CommitRequest, ConfirmRequest))
            self._odd()

    def _fail(self, text: str, cause: BaseException | None = None) -> None:
        self.error = UpdateError(f"model {self.sha256.hex()[:12]} is not on the board: {text}")
        self.error.__cause__ = cause
        self._mine.clear()
        self._happen(Happening.FAILED)

    def reconnected(self, session: int) -> None:
        """The line was opened anew, with another `Protocol`: nothing that was asked will be answered."""
        self._session = session
        self._odd()

    def cancel(self, why: str) -> None:
        """Give up from outside: the port is gone, or the caller's time is up."""
        if not self.ended:
            self._fail(why)

    def _happen(self, happening: Happening) -> None:
        self.state = TRANSITIONS.get((self.state, happening), self.state)
