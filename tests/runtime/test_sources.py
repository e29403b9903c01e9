"""Sources of samples: files, standard input, functions and the thread in front of them."""

from __future__ import annotations

import io
import math
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tinylcm.errors import ConfigError, InputError
from tinylcm.sources import BLOCK_FRAMES_MAX, Background, from_callable, load_array, open_source, paced
from tinylcm.window import Block, Lost, Sample


class Pipe(io.RawIOBase):
    """Standard input that gives as much at a time as was written at a time."""

    def __init__(self, *parts: bytes) -> None:
        self._parts = list(parts)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        part = self._parts.pop(0) if self._parts else b""
        if len(part) > len(view):
            self._parts.insert(0, part[len(view) :])
        size = min(len(part), len(view))
        view[:size] = part[:size]
        return size


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def give(*parts: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Pipe(*parts))))

    return give


# Files ---------------------------------------------------------------------------------------------------------


def test_arrays_csv_and_json_lines_give_rows(tmp_path: Path, stdin: Callable[..., None]) -> None:
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "a.npz", x=rows, y=rows)
    (tmp_path / "a.csv").write_text("left,right\n1,2\n\n3,4\n")
    np.testing.assert_array_equal(next(open_source(str(tmp_path / "a.npy"))), rows)
    np.testing.assert_array_equal(next(open_source(str(tmp_path / "a.npz"), array="y")), rows)
    assert list(open_source(str(tmp_path / "a.csv"))) == rows.tolist()
    stdin(b"[1, 2]\n\nnoise\n[3, 4]\n", b"[" * 100_000 + b"\n")
    assert list(open_source("-")) == [[1, 2], "noise\n", [3, 4], "[" * 100_000 + "\n"]


def test_a_bad_csv_row_is_passed_on_to_be_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n3,x\n")
    assert list(open_source(str(tmp_path / "a.csv"))) == [[1.0, 2.0], [3.0, "x"]]


@pytest.mark.parametrize("column", ["time", "time_s", "Timestamp"])
def test_a_time_column_makes_samples(tmp_path: Path, column: str) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + f"{column},x\n0.5,1\nnoon,2\n0.7,up\n0.8,4\n".encode())
    first, *rest = open_source(str(tmp_path / "a.csv"))
    assert first == Sample(0.5, [1.0])
    assert isinstance(rest[0], Sample) and math.isnan(rest[0].time_s)
    assert rest[1:] == [Sample(0.7, ["up"]), Sample(0.8, [4.0])]


def test_a_csv_that_cannot_be_taken_apart_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1\n" + "9" * 200_000 + "\n")
    with pytest.raises(InputError, match=r"a\.csv, line 2"):
        list(open_source(str(tmp_path / "a.csv")))


def test_an_npz_of_values_and_times_makes_blocks(tmp_path: Path) -> None:
    count = BLOCK_FRAMES_MAX + 10
    values, times = np.arange(count), np.arange(count) / 100
    np.savez(tmp_path / "a.npz", values=values, time_s=times)
    blocks = list(open_source(str(tmp_path / "a.npz")))
    assert all(isinstance(block, Block) for block in blocks) and len(blocks) == 2
    np.testing.assert_array_equal(np.concatenate([block.values for block in blocks]), values[:, np.newaxis])
    np.testing.assert_array_equal(np.concatenate([block.times_s for block in blocks]), times)
    (only,) = open_source(str(tmp_path / "a.npz"), array="values")
    np.testing.assert_array_equal(only, values)


@pytest.mark.parametrize("times", [np.zeros(3), np.zeros((2, 1)), np.array(["a", "b"]), np.array([{}, {}])])
def test_times_that_do_not_fit_the_values_are_refused(tmp_path: Path, times: np.ndarray) -> None:
    np.savez(tmp_path / "a.npz", values=np.zeros((2, 1)), time_s=times)
    with pytest.raises(ConfigError, match="time_s"):
        open_source(str(tmp_path / "a.npz"))


def write_wav(path: Path, frames: np.ndarray, rate: int = 16000) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(frames.shape[1])
        file.setsampwidth(frames.dtype.itemsize)
        file.setframerate(rate)
        file.writeframes(frames.tobytes())


def test_a_wav_gives_values_between_minus_1_and_1_at_its_rate(tmp_path: Path) -> None:
    frames = np.tile(np.array([[-32768, 16384]], dtype="<i2"), (BLOCK_FRAMES_MAX + 1, 1))
    write_wav(tmp_path / "a.wav", frames)
    first, second = open_source(str(tmp_path / "a.wav"), rate_hz=16000)
    assert isinstance(first, Block) and isinstance(second, Block)
    assert first.values.dtype == np.float32 and first.values[0].tolist() == [-1.0, 0.5]
    assert first.values.shape == (BLOCK_FRAMES_MAX, 2) and second.values.shape == (1, 2)
    assert first.times_s[1] == 1 / 16000 and second.times_s.tolist() == [BLOCK_FRAMES_MAX / 16000]
    with pytest.raises(ConfigError, match="16000 samples/s, expected 8000: resample"):
        open_source(str(tmp_path / "a.wav"), rate_hz=8000)


def test_a_wav_that_was_cut_off_ends_with_an_error(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.zeros((100, 2), dtype="<i2"))
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data[:-6])
    source = open_source(str(tmp_path / "a.wav"))
    assert len(next(source).values) == 98  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="ends inside of frame 98"):
        next(source)


def test_sources_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "a.npy").write_bytes(b"rubbish")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    np.savez(tmp_path / "a.npz", x=[1], y=[2])
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "pickled.npz", np.array([{}], dtype=object), allow_pickle=True)
    write_wav(tmp_path / "8bit.wav", np.zeros((4, 1), dtype=np.uint8))
    for name, problem in (
        ("none.csv", "does not exist"),
        ("a.txt", "expected .npy"),
        ("a.npy", "cannot be read"),
        ("empty.npy", "cannot be read"),
        ("a.npz", "holds x, y; name one"),
        ("pickled.npy", "cannot be read"),
        ("a.wav", "cannot be read as PCM WAV"),
        ("8bit.wav", "8 bits a value"),
    ):
        with pytest.raises(ConfigError, match=problem):
            open_source(str(tmp_path / name))
    with pytest.raises(ConfigError, match="arr_0 cannot be read"):
        open_source(str(tmp_path / "pickled.npz"), array="arr_0")
    with pytest.raises(ConfigError, match="is for standard input"):
        open_source(str(tmp_path / "a.npy"), kind="int16")
    assert load_array(tmp_path / "a.npz", "x").tolist() == [1]


# Standard input ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "dtype"), [("int16", "<i2"), ("float32", "<f4")])
def test_raw_frames_come_as_they_are_written(stdin: Callable[..., None], kind: str, dtype: str) -> None:
    frames = np.arange(12).reshape(6, 2).astype(dtype)
    data = frames.tobytes()
    size = 2 * frames.dtype.itemsize
    stdin(data[: size + 1], data[size + 1 : size + 2], data[size + 2 :])
    blocks = list(open_source("-", kind=kind, channels=2))
    assert [len(block) for block in blocks] == [1, 5], "what has come is not held back"  # type: ignore[arg-type]
    np.testing.assert_array_equal(np.concatenate(blocks), frames)


def test_raw_frames_have_times_when_their_rate_is_known(stdin: Callable[..., None]) -> None:
    frames = np.zeros(BLOCK_FRAMES_MAX + 2, dtype="<i2")
    stdin(frames.tobytes())
    blocks = list(open_source("-", kind="int16", channels=1, rate_hz=100))
    assert all(isinstance(block, Block) and len(block.values) <= BLOCK_FRAMES_MAX for block in blocks)
    times = np.concatenate([block.times_s for block in blocks])  # type: ignore[attr-defined]
    np.testing.assert_array_equal(times, np.arange(BLOCK_FRAMES_MAX + 2) / 100)


def test_half_a_frame_at_the_end_is_an_error(stdin: Callable[..., None]) -> None:
    stdin(b"\1\0\2\0\3")
    source = open_source("-", kind="int16", channels=2)
    np.testing.assert_array_equal(next(source), [[1, 2]])
    with pytest.raises(InputError, match="inside of frame 1: 1 of 4 bytes"):
        next(source)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"kind": "int8"}, "expected one of json, int16, float32"),
        ({"kind": "int16"}, "say how many values"),
        ({"kind": "float32", "channels": 1 << 40}, "say how many values"),
        ({"rate_hz": -1.0}, "rate_hz is -1.0"),
        ({"rate_hz": math.nan}, "rate_hz is nan"),
    ],
)
def test_standard_input_that_cannot_be_is_refused(arguments: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        open_source("-", **arguments)  # type: ignore[arg-type]


# Live sources --------------------------------------------------------------------------------------------------


def test_pacing_keeps_the_rate_and_the_order() -> None:
    start = time.monotonic()
    rows = list(paced([np.arange(10).reshape(5, 2), [9, 9]], 100))
    assert len(rows) == 6 and time.monotonic() - start >= 0.05
    with pytest.raises(InputError, match="not positive"):
        list(paced([[1]], 0))


def test_pacing_takes_blocks_with_times_apart() -> None:
    whole, wrong = Block([[1], [2]], 3.0), Block([[1], [2]], [3.0])
    timed = Block([[1], [2]], [0.1, 0.2])
    assert list(paced([timed, whole, wrong], 1e6)) == [Sample(0.1, [1]), Sample(0.2, [2]), whole, wrong]


@pytest.mark.parametrize("end", [StopIteration, EOFError])
def test_a_function_is_asked_until_it_ends(end: type[Exception]) -> None:
    answers: list[object] = [None, [1.0], None, None, Sample(2.0, [2.0])]

    def read() -> object:
        if not answers:
            raise end
        return answers.pop(0)

    assert list(from_callable(read)) == [[1.0], Sample(2.0, [2.0])]


def test_a_function_is_asked_no_more_often_than_its_rate() -> None:
    asked: list[float] = []

    def read() -> object:
        asked.append(time.monotonic())
        return [1.0]

    source = from_callable(read, rate_hz=200)
    for _ in range(5):
        next(source)
    assert asked[-1] - asked[0] >= 4 / 200 - 1e-3


def test_a_function_that_fails_or_stalls_says_so() -> None:
    with pytest.raises(InputError, match=r"no sample for 0\.\d s; stall_s is 0\.05"):
        next(from_callable(lambda: None, stall_s=0.05))
    with pytest.raises(OSError, match="bus"):
        next(from_callable(_raiser(OSError("bus"))))
    for arguments in ({"stall_s": 0.0}, {"stall_s": math.nan}, {"rate_hz": -1.0}, {"rate_hz": math.inf}):
        with pytest.raises(ConfigError, match=next(iter(arguments))):
            from_callable(lambda: None, **arguments)


def _raiser(error: Exception) -> Callable[[], object]:
    def read() -> object:
        raise error

    return read


def test_the_time_that_a_consumer_takes_is_no_stall() -> None:
    answers: list[object] = [[1.0], None, [2.0]]
    source = from_callable(lambda: answers.pop(0), stall_s=0.05)
    assert next(source) == [1.0]
    time.sleep(0.1)
    assert next(source) == [2.0]


class Steps:
    """A source that goes on when it is told to, and says how far it is."""

    def __init__(self, items: list[object]) -> None:
        self._items = items
        self.asked = threading.Semaphore(0)
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[object]:
        try:
            for item in self._items:
                self.asked.release()
                yield item
            self.asked.release()
        finally:
            self.closed.set()


def test_a_thread_hands_on_everything_in_order_and_then_the_failure() -> None:
    def source() -> Iterator[object]:
        yield from ([float(n)] for n in range(500))
        raise OSError("cable")

    with Background(source(), queue_rows=3) as background:
        seen = []
        with pytest.raises(OSError, match="cable"):
            seen.extend(background_items(background))
        assert background.dropped == 0
        with pytest.raises(StopIteration):
            next(background)
    assert list(Background([[1.0], [2.0]])) == [[1.0], [2.0]]


def background_items(background: Background) -> Iterator[object]:
    for expected, item in enumerate(background):
        assert item == [float(expected)]
        yield item
    raise AssertionError("the source's failure was lost")


@pytest.mark.parametrize(
    ("overflow", "expected"),
    [
        ("drop_oldest", [Lost(4, "the queue was full"), [5.0], np.zeros((2, 1))]),
        ("drop_newest", [[1.0], [2.0], [3.0]]),
    ],
)
def test_a_full_queue_loses_samples_and_says_so(overflow: str, expected: list[object]) -> None:
    steps = Steps([[1.0], [2.0], [3.0], [4.0], [5.0], np.zeros((2, 1))])
    with Background(steps, queue_rows=3, overflow=overflow) as background:
        for _ in range(7):
            assert steps.asked.acquire(timeout=5)
        assert steps.closed.wait(5)
        seen = list(background)
        assert background.dropped == 4
    assert [plain(item) for item in seen] == [plain(item) for item in expected]


def plain(item: object) -> object:
    return item.tolist() if isinstance(item, np.ndarray) else item


def test_what_was_lost_lies_before_what_comes_next() -> None:
    more = threading.Event()

    def source() -> Iterator[object]:
        yield from ([1.0], [2.0], [3.0])
        assert more.wait(5)
        yield [4.0]

    with Background(source(), queue_rows=1, overflow="drop_newest") as background:
        deadline = time.monotonic() + 5
        while background.dropped < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert next(background) == [1.0]
        more.set()
        assert list(background) == [Lost(2, "the queue was full"), [4.0]]


def test_a_block_larger_than_the_queue_waits_alone() -> None:
    blocks = [np.zeros((10, 1)), np.ones((10, 1))]
    assert [len(block) for block in Background(blocks, queue_rows=4)] == [10, 10]  # type: ignore[arg-type]


def test_a_source_that_hangs_is_a_stall_and_does_not_hold_the_consumer() -> None:
    release = threading.Event()

    def source() -> Iterator[object]:
        yield [1.0]
        release.wait(10)

    background = Background(source(), stall_s=0.05)
    assert next(background) == [1.0]
    with pytest.raises(InputError, match=r"no sample for 0\.05 s"):
        next(background)
    release.set()
    background.close()
    background.close()
    assert list(background) == []


def test_closing_ends_the_thread_and_the_source() -> None:
    steps = Steps([[float(n)] for n in range(100)])
    with Background(steps, queue_rows=2) as background:
        assert next(background) == [0.0]
    assert steps.closed.wait(5)
    assert not any(thread.name == "tinylcm-source" and thread.is_alive() for thread in threading.enumerate())


@pytest.mark.parametrize("arguments", [{"queue_rows": 0}, {"overflow": "explode"}, {"stall_s": -1.0}])
def test_background_arguments_out_of_range_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        Background([], **arguments)  # type: ignore[arg-type]
