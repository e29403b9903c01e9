"""Files of arrays from anywhere."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tinylcm import ModelError
from tinylcm.arrays import ARRAYS_BYTES_MAX, read_arrays, take, write_arrays


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def npy(array: np.ndarray, **options: bool) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def test_what_was_written_is_read_bit_for_bit() -> None:
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(7),
        "c": np.zeros((0, 4), dtype=np.int8),
        "d": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "e": np.array([True, False]),
    }
    data = write_arrays(arrays)
    assert data == write_arrays(arrays)
    for name, array in read_arrays(data, "it").items():
        assert array.dtype == arrays[name].dtype and array.shape == arrays[name].shape
        assert np.array_equal(array, arrays[name]) and array.flags.c_contiguous


def test_what_numpy_saved_is_read(tmp_path: object) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, x=np.arange(5), y=np.eye(3, order="F"))
    found = read_arrays(buffer.getvalue(), "it")
    assert np.array_equal(found["x"], np.arange(5)) and np.array_equal(found["y"], np.eye(3))


class Evil:
    def __reduce__(self) -> tuple:
        return print, ("run",)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no file of arrays"),
        (b"PK\x03\x04 nothing", "no file of arrays"),
        (zipped(a=b"not numpy"), "'a' is damaged"),
        (zipped(a=npy(np.arange(4.0))[:-8]), r"says it is float64 \[4\], but has 24 bytes"),
        (zipped(a=npy(np.arange(4.0)) + b"12345678"), "but has 40 bytes"),
        (zipped(a=npy(np.array([Evil()], dtype=object), allow_pickle=True)), "holds object"),
        (zipped(a=npy(np.array(["text"]))), "holds <U4"),
        (zipped(a=npy(np.array([1.0, np.nan]))), "holds NaN"),
        (zipped(a=pickle.dumps(Evil())), "'a' is damaged"),
    ],
)
def test_hostile_files_are_refused(data: bytes, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match=message):
        read_arrays(data, "it")
    assert capsys.readouterr().out == ""


def test_sizes_are_looked_at_before_memory_is_taken() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for index in range(5):
            archive.writestr(f"a{index}.npy", b"\0" * (ARRAYS_BYTES_MAX // 4))
    with pytest.raises(ModelError, match="unpacks to 5 arrays"):
        read_arrays(buffer.getvalue(), "it")
    with pytest.raises(ModelError, match="unpacks to 65 arrays"):
        read_arrays(zipped(**{f"a{index}": npy(np.zeros(1)) for index in range(65)}), "it")


@example(b"\x00\x02", 596)  # a place before the file's beginning: zipfile raises ValueError
@given(st.binary(max_size=300), st.integers(0, 10_000))
def test_any_change_of_a_file_is_refused_or_read(noise: bytes, place: int) -> None:
    data = bytearray(write_arrays({"a": np.arange(20, dtype=np.float32), "b": np.eye(3)}))
    start = place % len(data)
    data[start : start + len(noise)] = noise
    try:
        found = read_arrays(bytes(data), "it")
    except ModelError:
        return
    assert all(isinstance(array, np.ndarray) for array in found.values())


def test_take_names_what_is_missing_or_of_another_shape() -> None:
    arrays = {"a": np.zeros((2, 3)), "b": np.array(4)}
    assert take(arrays, "a", "it", (None, 3)).dtype == np.float32
    assert int(take(arrays, "b", "it", (), np.int64)) == 4
    with pytest.raises(ModelError, match="it has no array 'c'; it has a, b"):
        take(arrays, "c", "it", ())
    with pytest.raises(ModelError, match=r"'a' has shape \[2, 3\], expected \[n\]"):
        take(arrays, "a", "it", (None,))
    with pytest.raises(ModelError, match=r"expected \[3, n\]"):
        take(arrays, "a", "it", (3, None))
