"""Where samples come from at the command line: arrays, CSV and JSON lines, read piece by piece."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

import numpy as np
from numpy.typing import NDArray

from .errors import ConfigError, InputError

LINE_CHARACTERS_MAX: Final = 1 << 20


def open_source(text: str, *, array: str = "") -> Iterator[object]:
    """Open a source of samples.

    Args:
        text: path of a `.npy`, `.npz` or `.csv` file, or `-` for JSON lines on standard input: a list of numbers a
            line, one a channel.
        array: the name of the array in a `.npz`; needed when there are several.

    Yields:
        Rows or blocks for `Pipeline.stream`. A line that is no list of numbers is yielded as it is, so that the
        stream can refuse it and go on.

    Raises:
        ConfigError: the source does not exist or is of a kind that is not known.
    """
    if text == "-":
        return _json_lines(sys.stdin)
    path = Path(text)
    if not path.is_file():
        raise ConfigError(f"the source {path} does not exist")
    if path.suffix in (".npy", ".npz"):
        return iter([load_array(path, array)])
    if path.suffix == ".csv":
        return _csv_rows(path)
    raise ConfigError(f"{path}: expected .npy, .npz or .csv, or - for JSON lines on standard input")


def load_array(path: Path, name: str = "") -> NDArray[np.generic]:
    """Read an array; series `[n, channels, samples]` stay as they are.

    Raises:
        ConfigError: it cannot be read, or a `.npz` needs a name.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as an array: {error}") from error
    if isinstance(loaded, np.ndarray):
        return loaded
    with loaded:
        names = list(loaded.files)
        if not name and len(names) == 1:
            name = names[0]
        if name not in names:
            raise ConfigError(f"{path} holds {', '.join(names)}; name one with --array")
        return np.asarray(loaded[name])


def _csv_rows(path: Path) -> Iterator[object]:
    with path.open(newline="") as file:
        for index, row in enumerate(csv.reader(file)):
            try:
                yield [float(value) for value in row]
            except ValueError:
                if index > 0:  # the first line may be a header
                    yield row


def _json_lines(file: IO[str]) -> Iterator[object]:
    while line := file.readline(LINE_CHARACTERS_MAX):
        if not line.strip():
            continue
        try:
            yield json.loads(line)
        except ValueError:
            yield line


def paced(samples: Iterable[object], rate_hz: float) -> Iterator[object]:
    """Give out one row after another at a rate, by a clock that does not drift.

    Raises:
        InputError: the rate is not positive.
    """
    if not rate_hz > 0:
        raise InputError(f"a rate of {rate_hz} samples/s is not positive")
    start, count = time.monotonic(), 0
    for item in samples:
        rows = item if isinstance(item, np.ndarray) and item.ndim == 2 else [item]
        for row in rows:
            wait = start + count / rate_hz - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            count += 1
            yield row
