"""Tables from .npz and .csv files: named columns of numbers or categories, bounded and checked."""

from __future__ import annotations

import csv
import sys
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, TextIO

import numpy as np
from numpy.typing import NDArray

from .checks import is_utf8
from .errors import InputError

Column = NDArray[np.generic]
Array = NDArray[np.float64]

FEATURES_MAX: Final = 4096
FILE_BYTES_MAX: Final = 2_000_000_000
NAME_LENGTH_MAX: Final = 200
CATEGORY_LENGTH_MAX: Final = 200  # a text array is as wide as its longest cell: one novel must not fill the memory
LINE_LENGTH_MAX: Final = 4_000_000
ROWS_AT_A_TIME: Final = 20_000
MISSING_WORDS: Final = frozenset({"", "na", "n/a", "nan", "null", "none"})


def load_table(path: Path) -> dict[str, Column]:
    """Features of a table by name, from `.npz` or `.csv`.

    In an .npz each 1-D array is a feature under its own name and each 2-D array `[n, d]` gives `name[0]` to
    `name[d-1]`; a 1-D text array `columns` names the columns of the one 2-D array instead. A .csv has a header line
    and commas; a column with anything but numbers holds categories, and empty cells, NA, NaN, null and None are
    missing values. Rows are expected in the order of time.

    Raises:
        InputError: there is no such file, it is too large or damaged, or it holds no table.
    """
    readers = {".npz": _load_npz, ".csv": _load_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: expected a table named *.npz or *.csv")
    try:
        if not path.is_file():
            raise InputError(f"{path}: there is no such file")
        if (size := path.stat().st_size) > FILE_BYTES_MAX:
            raise InputError(f"{path}: has {size:,} bytes, at most {FILE_BYTES_MAX:,} are read: take fewer rows")
        table = reader(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise InputError(f"{path}: does not fit into this machine's memory: take fewer rows") from None
    if not table:
        raise InputError(f"{path}: holds no features")
    if not any(column.size for column in table.values()):
        raise InputError(f"{path}: holds no rows")
    return table


def _put(table: dict[str, Column], path: Path, name: str, column: Column) -> None:
    if not is_utf8(name) or len(name) > NAME_LENGTH_MAX:
        raise InputError(
            f"{path}: {name!a:.60} is no name for a feature: expected at most {NAME_LENGTH_MAX} characters"
        )
    if name in table:
        raise InputError(f"{path}: two features are named {name!r}: rename one")
    if len(table) == FEATURES_MAX:
        raise InputError(f"{path}: has more than {FEATURES_MAX} features: compare fewer at a time")
    table[name] = column


def _load_npz(path: Path) -> dict[str, Column]:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: is no .npz archive: write it with numpy.savez(path, name=array)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            size = sum(entry.file_size for entry in archive.zip.infolist())
            if size > FILE_BYTES_MAX:
                raise InputError(f"{path}: unpacks to {size:,} bytes, at most {FILE_BYTES_MAX:,} are read")
            names = list(dict.fromkeys(archive.files))
            if len(names) > FEATURES_MAX + 1:
                raise InputError(f"{path}: has {len(names)} arrays, at most {FEATURES_MAX} features are compared")
            arrays = {name: _usable(archive[name], path, name) for name in names}
    except InputError:
        raise
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        if "allow_pickle" in str(error):
            raise InputError(
                f"{path}: holds Python objects, which are never unpickled: save numbers, or text with dtype=str"
            ) from None
        raise InputError(f"{path}: is damaged or no .npz archive: {error}") from None
    titles = _column_titles(arrays, path)
    table: dict[str, Column] = {}
    for name, array in arrays.items():
        if array.ndim == 1:
            _put(table, path, name, array)
        for index in range(array.shape[1] if array.ndim == 2 else 0):
            _put(table, path, titles[index] if titles else f"{name}[{index}]", array[:, index])
    return table


def _usable(array: object, path: Path, name: str) -> Column:
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: its part {name!r} is no array: write the file with numpy.savez")
    if array.ndim not in (1, 2):
        raise InputError(
            f"{path}: array {name!r} has the shape {array.shape}, expected [n] or [n, d]: reshape it, or leave it out"
        )
    if array.ndim == 2 and array.shape[1] > FEATURES_MAX:
        raise InputError(f"{path}: array {name!r} has {array.shape[1]} columns, at most {FEATURES_MAX} are compared")
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8")
    if array.dtype.kind == "U" and array.dtype.itemsize > 4 * CATEGORY_LENGTH_MAX:
        raise InputError(f"{path}: array {name!r} holds texts of over {CATEGORY_LENGTH_MAX} characters: leave it out")
    if array.dtype.kind not in "fiubU":
        raise InputError(f"{path}: array {name!r} has the type {array.dtype}, expected numbers or text")
    if array.dtype.kind == "U" and array.size:
        points = np.ascontiguousarray(array).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
        if points.max() > sys.maxunicode:  # numpy stores them, and fails later when it makes a str
            raise InputError(f"{path}: array {name!r} holds code points that Unicode does not have: it is damaged")
    return array


def _column_titles(arrays: dict[str, Column], path: Path) -> list[str]:
    """Take the array `columns` out when it names the columns of the one 2-D array; an empty list when it does not."""
    columns = arrays.get("columns")
    wide = [name for name, array in arrays.items() if array.ndim == 2]
    if columns is None or columns.ndim != 1 or columns.dtype.kind != "U" or not wide:
        return []
    if len(wide) > 1:
        raise InputError(f"{path}: `columns` names the columns of one 2-D array, but there are {len(wide)}: {wide}")
    if (width := arrays[wide[0]].shape[1]) != columns.size:
        raise InputError(f"{path}: `columns` has {columns.size} names, but {wide[0]!r} has {width} columns")
    del arrays["columns"]
    return [str(title) for title in columns.tolist()]


def _load_csv(path: Path) -> dict[str, Column]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            names, rows = _csv_rows(file, path)
            numbers: list[list[Array] | None] = [[] for _ in names]  # None once a cell was no number
            while chunk := list(islice(rows, ROWS_AT_A_TIME)):
                for index, cells in enumerate(zip(*chunk, strict=True)):
                    if (parts := numbers[index]) is None:
                        continue
                    if (parsed := _parse_numbers(cells)) is None:
                        numbers[index] = None
                    else:
                        parts.append(parsed)
        # Whether a column is text shows at its last row only. A second reading is cheaper than keeping every cell.
        texts = _read_texts(path, [index for index, parts in enumerate(numbers) if parts is None])
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text ({error.reason}): save it as CSV in UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}: is no CSV table: {error}") from None
    table: dict[str, Column] = {}
    for index, name in enumerate(names):
        parts = numbers[index]
        column: Column = texts[index] if parts is None else np.concatenate(parts) if parts else np.empty(0)
        _put(table, path, name, column)
    return table


def _csv_rows(file: TextIO, path: Path) -> tuple[list[str], Iterator[list[str]]]:
    """The names in the header and the rows below it, each as long as the header."""
    reader = csv.reader(_lines(file, path), strict=True)
    header = next(reader, None)
    if not header:
        raise InputError(f"{path}: is empty, expected a header line with the names of the columns")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        raise InputError(f"{path}: its columns are not separated by commas: save it with ',' between them")
    if len(header) > FEATURES_MAX:
        raise InputError(f"{path}: has {len(header)} columns, at most {FEATURES_MAX} are compared")
    names = [name.strip() or f"column {index + 1}" for index, name in enumerate(header)]

    def rows() -> Iterator[list[str]]:
        for row in reader:
            if row and len(row) != len(names):
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(row)} cells, expected {len(names)} as in the header"
                )
            if row:
                yield row

    return names, rows()


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(LINE_LENGTH_MAX):
        if len(line) == LINE_LENGTH_MAX and not line.endswith("\n"):
            raise InputError(f"{path}: a line is longer than {LINE_LENGTH_MAX:,} characters: is it a CSV table?")
        yield line


def _parse_numbers(cells: Sequence[str]) -> Array | None:
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError:
        filled = ["nan" if cell.strip().lower() in MISSING_WORDS else cell for cell in cells]
    try:
        return np.array(filled, dtype=np.float64)
    except ValueError:
        return None


def _read_texts(path: Path, indexes: list[int]) -> dict[int, Column]:
    if not indexes:
        return {}
    parts: dict[int, list[Column]] = {index: [] for index in indexes}
    with path.open(encoding="utf-8-sig", newline="") as file:
        names, rows = _csv_rows(file, path)
        while chunk := list(islice(rows, ROWS_AT_A_TIME)):
            for index in indexes:
                cells = [row[index].strip() for row in chunk]
                if max(map(len, cells)) > CATEGORY_LENGTH_MAX:
                    raise InputError(
                        f"{path}: column {names[index]!r} has cells of over {CATEGORY_LENGTH_MAX} characters, which are"
                        " no categories: leave it out"
                    )
                parts[index].append(np.array(["" if cell.lower() in MISSING_WORDS else cell for cell in cells]))
    return {index: np.concatenate(found) for index, found in parts.items()}
