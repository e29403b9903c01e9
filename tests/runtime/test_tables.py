"""Tables: what they hold, and that anything else is one clear error."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinylcm import tables
from tinylcm.drift_report import Feature, compare
from tinylcm.errors import InputError
from tinylcm.tables import load_table

HOSTILE = "<script>alert('x')</script>\"&\x00\u202e"


def one(reference: object, current: object, **options: float) -> Feature:
    """The only feature of a comparison."""
    return compare({"x": np.asarray(reference)}, {"x": np.asarray(current)}, **options).features[0]


def test_an_npz_gives_its_arrays_and_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    np.savez(path, a=np.arange(3), b=np.arange(6.0).reshape(3, 2), c=np.array(["x", "y", "x"]), d=np.array([b"u"]))
    table = load_table(path)
    assert list(table) == ["a", "b[0]", "b[1]", "c", "d"]
    assert table["b[1]"].tolist() == [1, 3, 5] and table["c"].tolist() == ["x", "y", "x"]
    assert table["d"].tolist() == ["u"]


def test_columns_name_the_columns_of_an_npz(tmp_path: Path) -> None:
    path = tmp_path / "table.npz"
    np.savez_compressed(path, data=np.arange(6.0).reshape(3, 2), columns=np.array(["ax", HOSTILE]))
    assert {name: column.tolist() for name, column in load_table(path).items()} == {"ax": [0, 2, 4], HOSTILE: [1, 3, 5]}


def test_a_csv_gives_numbers_categories_and_missing_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS_AT_A_TIME", 2)  # text turns up in a later part than numbers
    path = tmp_path / "table.csv"
    path.write_text('﻿a, b ,,"d,e"\n1,1.5,07,x\n,NaN,8,\n3,-2e3,old,N/A\n\n')
    table = load_table(path)
    assert list(table) == ["a", "b", "column 3", "d,e"]
    np.testing.assert_array_equal(table["a"], [1, np.nan, 3])
    np.testing.assert_array_equal(table["b"], [1.5, np.nan, -2000])
    assert table["column 3"].tolist() == ["07", "8", "old"] and table["d,e"].tolist() == ["x", "", ""]


def write_npz(**arrays: object) -> Callable[[Path], object]:
    return lambda path: np.savez(path, **arrays)  # type: ignore[arg-type]


def write_zip(name: str, content: bytes) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)

    return write


def bare_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.arange(3))


def damaged(path: Path) -> None:
    np.savez_compressed(path, a=np.arange(5000))
    data = bytearray(path.read_bytes())
    data[200:400] = b"\xff" * 200
    path.write_bytes(data)


HUGE_SHAPE = (
    b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,), }".ljust(118)
)
BAD_NPZ: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("hello"), "is no .npz archive"),
    "npy": (bare_array, "is no .npz archive"),
    "cut": (lambda path: path.write_bytes(b"PK\x03\x04"), "is no .npz archive"),
    "damaged": (damaged, "is damaged"),
    "no array": (write_zip("a.txt", b"hello"), "is no array"),
    "lying header": (write_zip("a.npy", HUGE_SHAPE), "fit into this machine's memory|is damaged"),
    "objects": (write_npz(a=np.array([{}], dtype=object)), "never unpickled"),
    "no features": (write_npz(), "holds no features"),
    "no rows": (write_npz(a=np.empty(0)), "holds no rows"),
    "scalar": (write_npz(a=np.float64(3)), r"shape \(\), expected \[n\]"),
    "three dimensions": (write_npz(a=np.zeros((2, 2, 2))), r"expected \[n\] or \[n, d\]"),
    "complex": (write_npz(a=np.zeros(3, dtype=complex)), "type complex128"),
    "not UTF-8": (write_npz(a=np.array([b"\xff"])), "is damaged"),
    "essay": (write_npz(a=np.array(["x" * 201])), "over 200 characters"),
    "wide": (write_npz(a=np.zeros((1, 4097))), "4097 columns"),
    "many": (write_npz(a=np.zeros((1, 4000)), b=np.zeros((1, 97))), "more than 4096 features"),
    "twice": (write_npz(**{"a": np.zeros((1, 2)), "a[1]": np.zeros(1)}), "two features"),
    "columns short": (write_npz(a=np.zeros((1, 2)), columns=np.array(["x"])), "1 names, but 'a' has 2 columns"),
    "columns of what": (write_npz(a=np.zeros((1, 1)), b=np.zeros((1, 1)), columns=np.array(["x"])), "there are 2"),
    "surrogate": (write_npz(a=np.zeros((1, 1)), columns=np.array(["\ud800"])), "no name for a feature"),
    "long name": (write_npz(a=np.zeros((1, 1)), columns=np.array(["x" * 201])), "over 200 characters"),
    "no Unicode": (
        write_npz(a=np.zeros((1, 1)), columns=np.array([0x7FFFFFFF], "<u4").view("<U1")),
        "code points that Unicode does not have",
    ),
}


@pytest.mark.parametrize("case", BAD_NPZ)
def test_a_bad_npz_says_what_is_wrong(tmp_path: Path, case: str) -> None:
    write, message = BAD_NPZ[case]
    path = tmp_path / "table.npz"
    write(path)
    with pytest.raises(InputError, match=message) as caught:
        load_table(path)
    assert "table.npz" in str(caught.value)


BAD_CSV: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "header only": (b"a,b\n", "holds no rows"),
    "ragged": (b"a,b\n1,2\n3\n", "line 3 has 1 cells, expected 2"),
    "ragged wide": (b"a,b\n1,2,3\n", "line 2 has 3 cells"),
    "semicolons": (b"a;b\n1;2\n", "not separated by commas"),
    "twice": (b"a,a\n1,2\n", "two features are named 'a'"),
    "latin-1": (b"a\n\xfc\n", "no UTF-8"),
    "quote": (b'a\n"x\n', "no CSV table"),
    "essay": (b"a\n" + b"x" * 201 + b"\n", "over 200 characters"),
    "wide": (b",".join(b"%d" % i for i in range(4097)) + b"\n", "4097 columns"),
    "line": (b"a\n" + b"1" * 4_000_001, "longer than 4,000,000"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_a_bad_csv_says_what_is_wrong(tmp_path: Path, case: str) -> None:
    content, message = BAD_CSV[case]
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_table(path)


def test_a_file_that_is_not_there_not_a_table_or_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "table.npz"
    with pytest.raises(InputError, match="no such file"):
        load_table(path)
    with pytest.raises(InputError, match=r"\*.npz or \*.csv"):
        load_table(tmp_path / "table.parquet")
    with path.open("wb") as file:
        file.truncate(2_000_000_001)  # sparse
    with pytest.raises(InputError, match="at most 2,000,000,000"):
        load_table(path)
    np.savez_compressed(path, a=np.zeros(10_000))  # small until it is unpacked
    monkeypatch.setattr(tables, "FILE_BYTES_MAX", 50_000)
    with pytest.raises(InputError, match="unpacks to"):
        load_table(path)


@given(st.binary(max_size=300))
def test_random_bytes_are_a_table_or_an_input_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    for suffix in ("csv", "npz"):
        path = tmp_path_factory.getbasetemp() / f"random.{suffix}"
        path.write_bytes(data)
        with suppress(InputError):
            assert load_table(path)
