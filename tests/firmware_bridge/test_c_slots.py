"""Models by the line into two slots: a power cut after any byte leaves what docs/wire.md says, and never no model."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib

import line_reference as line
import pytest
from board_oracle import random_network, random_trees
from c_board import CBoard, slot_size
from line_reference import ERR, RESP, Frame

FACTORY = random_trees(1)
SMALL = {"trees": 1, "depth": 1, "features": 2, "classes": 2, "vectors": 1}
A, B, C = (random_trees(seed, **SMALL) for seed in (2, 3, 4))
SLOT = 256
FACTORY_SLOT = 255
ON_FACTORY, ON_TRIAL, CONFIRMED = 0, 1, 2
MARK = b"\xa5" * 16


def sha(model: bytes) -> bytes:
    return hashlib.sha256(model).digest()


def board_with(flash: bytearray | None = None, **options) -> CBoard:
    board = CBoard(FACTORY, flash, **{"slot_bytes": SLOT, "align": 8, **options})
    assert board.status == 0
    return board


def begin(board: CBoard, model: bytes) -> tuple[int, int]:
    answer = board.ask(line.BEGIN, struct.pack("<I32sHH", len(model), sha(model), 1, 1))
    assert answer.flags == RESP, answer
    return struct.unpack("<BI", answer.payload)


def chunks(board: CBoard, model: bytes, at: int, size: int = 64) -> None:
    while at < len(model):
        answer = board.ask(line.CHUNK, struct.pack("<I", at) + model[at : at + size])
        assert answer.flags == RESP, answer
        (after,) = struct.unpack("<I", answer.payload)
        assert after > at
        at = after


def send(board: CBoard, model: bytes) -> Frame:
    _, at = begin(board, model)
    chunks(board, model, at)
    return board.ask(line.COMMIT, sha(model))


def install(board: CBoard, model: bytes) -> None:
    answer = send(board, model)
    assert answer.flags == RESP and answer.payload[1] == ON_TRIAL, answer
    answer = board.ask(line.CONFIRM, sha(model))
    assert answer.flags == RESP and answer.payload[1] == CONFIRMED, answer


def refusal(frame: Frame) -> int:
    assert frame.flags == RESP | ERR
    return frame.payload[0]


# --- what the store says, read a second time ---


def slot_of(flash: bytes, number: int) -> dict | None:
    """A valid slot's counter, marks and model, or None."""
    raw = flash[number * slot_size(SLOT) : (number + 1) * slot_size(SLOT)]
    magic, size, digest, _, _, counter = struct.unpack_from("<4sI32sHHI", raw)
    if magic != b"TBS1" or zlib.crc32(raw[:60]) != struct.unpack_from("<I", raw, 60)[0] or raw[64:80] != MARK:
        return None
    model = raw[128 : 128 + size]
    if sha(model) != digest:
        return None
    marks = {name: raw[at : at + 16] == MARK for name, at in (("trial", 80), ("confirmed", 96), ("rejected", 112))}
    return {"counter": counter, "model": model, **marks}


def expected(flash: bytes) -> tuple[bytes, int, int]:
    """What runs at a start from this store: SHA-256, slot, state."""
    slots = {number: found for number in (0, 1) if (found := slot_of(flash, number))}
    factory = (sha(FACTORY), FACTORY_SLOT, ON_FACTORY)
    if not slots:
        return factory
    newest = max(slots, key=lambda number: slots[number]["counter"])
    slot = slots[newest]
    if slot["confirmed"] and not slot["rejected"]:
        return sha(slot["model"]), newest, CONFIRMED
    if not slot["rejected"] and not slot["trial"]:
        return sha(slot["model"]), newest, ON_TRIAL
    other = slots.get(1 - newest)
    if other and other["confirmed"] and not other["rejected"]:
        return sha(other["model"]), 1 - newest, CONFIRMED
    return factory


# --- the plain way ---


@pytest.mark.parametrize("mapped", [False, True])
def test_a_model_is_sent_tried_confirmed_and_stays(mapped: bool) -> None:
    model = random_network(7, (12, 8, 4))
    flash = bytearray(b"\xff" * 2 * slot_size(4096))
    with CBoard(FACTORY, flash, slot_bytes=4096, mapped=mapped) as board:
        assert board.running == (sha(FACTORY), 255, ON_FACTORY, 0)
        assert begin(board, model) == (0, 0)
        chunks(board, model, 0, 200)
        answer = board.ask(line.COMMIT, sha(model))
        assert (answer.flags, answer.payload) == (RESP, bytes([0, ON_TRIAL]))
        assert board.running == (sha(model), 0, ON_TRIAL, 1)
        assert refusal(board.ask(line.BEGIN, struct.pack("<I32sHH", len(A), sha(A), 1, 1))) == 4
        assert board.ask(line.CONFIRM, sha(model)).payload == bytes([0, CONFIRMED])
    with CBoard(FACTORY, flash, slot_bytes=4096, mapped=mapped) as board:
        assert board.running == (sha(model), 0, CONFIRMED, 1)


def test_slots_take_turns_and_a_rollback_goes_back_and_then_to_the_factory() -> None:
    with board_with() as board:
        install(board, A)
        install(board, B)
        assert board.running == (sha(B), 1, CONFIRMED, 2)
        install(board, C)
        assert board.running == (sha(C), 0, CONFIRMED, 3)
        assert board.ask(line.ROLLBACK).payload == bytes([1, CONFIRMED])
        assert board.running == (sha(B), 1, CONFIRMED, 2)
        assert board.ask(line.ROLLBACK).payload == bytes([255, ON_FACTORY])
        assert refusal(board.ask(line.ROLLBACK)) == 4
        flash = board.flash
    with board_with(flash) as board:
        assert board.running[:3] == (sha(FACTORY), 255, ON_FACTORY)
        install(board, A)
        assert board.running[0] == sha(A)


def test_a_trial_that_nobody_confirms_ends() -> None:
    with board_with(trial_s=5) as board:
        install(board, A)
        board.clock(10_000_000)
        assert send(board, B).payload == bytes([1, ON_TRIAL])
        board.clock(14_999_999)
        board.feed()
        assert board.running[0] == sha(B)
        board.clock(15_000_000)
        board.feed()
        assert board.running == (sha(A), 0, CONFIRMED, 1)
        assert refusal(board.ask(line.CONFIRM, sha(B))) == 4


def test_a_trial_that_a_restart_ends_is_not_tried_again() -> None:
    with board_with() as board:
        install(board, A)
        send(board, B)
        flash = board.flash
    with board_with(flash) as board:
        assert board.running == (sha(A), 0, CONFIRMED, 1)
    with board_with(flash) as board:
        assert board.running == (sha(A), 0, CONFIRMED, 1)
        assert begin(board, B) == (1, 0), "what was rejected is sent again from its beginning"


def test_commit_and_confirm_may_be_asked_again() -> None:
    with board_with() as board:
        first = send(board, A)
        assert board.ask(line.COMMIT, sha(A)).payload == first.payload
        confirmed = board.ask(line.CONFIRM, sha(A))
        assert board.ask(line.CONFIRM, sha(A)).payload == confirmed.payload


def test_what_cannot_be_is_refused_and_what_ran_still_runs() -> None:
    def header(size: int = len(A), kind: int = 1, abi: int = 1) -> bytes:
        return struct.pack("<I32sHH", size, sha(A), kind, abi)

    with board_with() as board:
        assert refusal(board.ask(line.CHUNK, bytes(12))) == 4
        assert refusal(board.ask(line.COMMIT, sha(A))) == 4
        assert refusal(board.ask(line.CONFIRM, sha(FACTORY))) == 4
        for payload, code in [
            (header()[:-1], 2), (header(size=0), 2), (header(size=SLOT + 1), 5), (header(size=2**32 - 1), 5),
            (header(kind=2), 7), (header(abi=2), 7),
        ]:  # fmt: skip
            assert refusal(board.ask(line.BEGIN, payload)) == code
        begin(board, A)
        assert refusal(board.ask(line.COMMIT, sha(A))) == 4, "not all is there"
        for payload in (b"", bytes(4), struct.pack("<I", 0) + bytes(7), struct.pack("<I", 0) + bytes(250)):
            assert refusal(board.ask(line.CHUNK, payload)) == 2
        for kind in (line.COMMIT, line.CONFIRM):
            assert refusal(board.ask(kind, bytes(31))) == 2
        for kind in (line.ABORT, line.ROLLBACK):
            assert refusal(board.ask(kind, b"x")) == 2
        assert board.running[:3] == (sha(FACTORY), 255, ON_FACTORY)


def test_a_chunk_out_of_order_writes_nothing_and_says_where_to_go_on() -> None:
    with board_with() as board:
        begin(board, A)
        before = bytes(board.flash)
        for at in (8, 64, 2**32 - 1):
            answer = board.ask(line.CHUNK, struct.pack("<I", at) + A[8:72])
            assert struct.unpack("<I", answer.payload) == (0,)
        assert bytes(board.flash) == before
        chunks(board, A, 0)
        answer = board.ask(line.CHUNK, struct.pack("<I", 0) + A[:64])
        assert struct.unpack("<I", answer.payload) == (len(A),)


@pytest.mark.parametrize(
    ("model", "told", "code"),
    [
        (A, B, 6),
        (b"TBM1" + A[4:9] + b"\x07" + A[10:], None, 7),
        (random_trees(9, **SMALL, channels=1), None, 7),
        (random_trees(9, **{**SMALL, "vectors": 0}, rows=4000), None, 7),
        (A[:-2] + bytes([A[-2] ^ 1, A[-1]]), None, 9),
    ],
    ids=["hash", "contents", "other channels", "window too long", "self-test"],
)
def test_a_refused_model_leaves_what_ran_and_begins_at_nothing(model: bytes, told: bytes | None, code: int) -> None:
    with board_with() as board:
        install(board, C)
        digest = sha(told or model)
        answer = board.ask(line.BEGIN, struct.pack("<I32sHH", len(model), digest, 1, 1))
        assert struct.unpack("<BI", answer.payload) == (1, 0)
        chunks(board, model, 0)
        assert refusal(board.ask(line.COMMIT, digest)) == code
        assert board.running == (sha(C), 0, CONFIRMED, 1)
        assert board.run([0, 0])[0] in (0, 1)
        answer = board.ask(line.BEGIN, struct.pack("<I32sHH", len(model), digest, 1, 1))
        assert struct.unpack("<BI", answer.payload) == (1, 0)
        install(board, B)


def test_abort_erases_what_was_received_and_nothing_else() -> None:
    with board_with() as board:
        install(board, A)
        kept = bytes(board.flash[: slot_size(SLOT)])
        assert board.ask(line.ABORT).flags == RESP
        begin(board, B)
        board.ask(line.CHUNK, struct.pack("<I", 0) + B[:64])
        assert board.ask(line.ABORT).flags == RESP
        assert bytes(board.flash) == kept + b"\xff" * slot_size(SLOT)
        assert refusal(board.ask(line.CHUNK, struct.pack("<I", 64) + B[64:72])) == 4
        assert begin(board, B) == (1, 0)


def test_a_transfer_goes_on_where_a_restart_ended_it() -> None:
    with board_with() as board:
        begin(board, A)
        board.ask(line.CHUNK, struct.pack("<I", 0) + A[:64])
        assert begin(board, A) == (0, 64)
        flash = board.flash
    with board_with(flash) as board:
        slot, at = begin(board, A)
        assert slot == 0 and 0 < at <= 64
        chunks(board, A, at)
        assert board.ask(line.COMMIT, sha(A)).payload == bytes([0, ON_TRIAL])
    with board_with(flash) as board:
        assert begin(board, B) == (1, 0), "another model begins anew, in the slot that was never used"


def test_a_factory_model_that_is_none_is_told_at_the_start() -> None:
    with CBoard(FACTORY[:-1]) as board:
        assert board.status == -9


def test_a_store_that_does_not_keep_what_was_written_is_told() -> None:
    with board_with() as board:
        begin(board, A)
        at = next(at for at in range(70, len(A)) if A[at])
        board.flash[128 + at] = 0x00  # a byte that was not erased
        answer = board.ask(line.CHUNK, struct.pack("<I", 0) + A[:128])
        assert refusal(answer) == 8
        assert begin(board, A) == (1, 0), "from its beginning, and in the other slot"
        install(board, A)


# --- the power goes ---


def a_life(board: CBoard) -> None:
    """Two updates and a rollback, as far as the power lasts."""
    for kind, model in (("install", A), ("install", B), ("back", b""), ("install", C)):
        if kind == "back":
            board.ask(line.ROLLBACK)
        else:
            answer = board.ask(line.BEGIN, struct.pack("<I32sHH", len(model), sha(model), 1, 1))
            at = 0
            while answer.flags == RESP and at < len(model):
                answer = board.ask(line.CHUNK, struct.pack("<I", at) + model[at : at + 64])
                at += 64
            board.ask(line.COMMIT, sha(model))
            board.ask(line.CONFIRM, sha(model))
        if board.dead:
            return


def whole_life() -> int:
    with board_with() as board:
        a_life(board)
        assert board.running[0] == sha(C)
        return board.changed


@pytest.mark.parametrize("part", range(8))
def test_the_power_goes_after_any_byte(part: int) -> None:
    """Every byte of a life with three updates: the next start runs what the table says, and an update then works."""
    cuts = range(part, whole_life(), 8)
    assert len(cuts) > 150
    for cut in cuts:
        with board_with(budget=cut) as board:
            a_life(board)
            assert board.dead
            flash = board.flash
        wanted = expected(bytes(flash))
        with board_with(flash) as board:
            assert board.running[:3] == wanted, cut
            assert wanted[0] in map(sha, (FACTORY, A, B, C))
            if wanted[2] == ON_TRIAL:
                board.ask(line.CONFIRM, wanted[0])
            if board.running[0] != sha(B):
                install(board, B)
            flash = board.flash
        with board_with(flash) as board:
            assert board.running[0] == sha(B), cut


def test_the_power_goes_again_and_again() -> None:
    """Cuts drawn by a seed, each start going on with what the last one left."""
    rng = random.Random(4)
    flash, models = None, (A, B, C)
    for _ in range(400):
        with board_with(flash, budget=rng.randrange(900)) as board:
            a_life(board)
            flash = board.flash
        wanted = expected(bytes(flash))
        with board_with(bytearray(flash)) as board:
            assert board.running[:3] == wanted
            model = rng.choice([each for each in models if sha(each) != wanted[0]])
            if wanted[2] == ON_TRIAL:
                board.ask(line.CONFIRM, wanted[0])
            install(board, model)


def test_a_flipped_bit_in_a_confirmed_model_is_found_at_the_start() -> None:
    with board_with() as board:
        install(board, A)
        install(board, B)
        flash = board.flash
    flash[slot_size(SLOT) + 128 + 40] ^= 4
    with board_with(flash) as board:
        assert board.running[:3] == (sha(A), 0, CONFIRMED)


@pytest.mark.parametrize("seed", range(20))
def test_a_store_of_anything_at_all_runs_the_factorys_model(seed: int) -> None:
    flash = bytearray(random.Random(seed).randbytes(2 * slot_size(SLOT)))
    with board_with(flash) as board:
        assert board.running[:3] == (sha(FACTORY), 255, ON_FACTORY)
        install(board, A)


def test_a_slot_that_says_it_is_larger_than_the_store_is_none() -> None:
    flash = bytearray(b"\xff" * 2 * slot_size(SLOT))
    header = struct.pack("<4sI32sHHI12x", b"TBS1", 2**31, bytes(32), 1, 1, 1)
    flash[:64] = header + struct.pack("<I", zlib.crc32(header))
    flash[64:80] = MARK
    with board_with(flash) as board:
        assert board.running[1] == 255
        install(board, A)


def test_models_of_the_test_fit_their_slot() -> None:
    assert all(len(model) <= SLOT for model in (A, B, C))
    assert len({A, B, C}) == 3
