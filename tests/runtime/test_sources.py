"""Sources of samples at the command line."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tinylcm.errors import ConfigError, InputError
from tinylcm.sources import load_array, open_source, paced


def test_arrays_csv_and_json_lines_give_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.array([[1.0, 2.0], [3.0, 4.0]])
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "a.npz", x=rows, y=rows)
    (tmp_path / "a.csv").write_text("left,right\n1,2\n3,4\n")
    np.testing.assert_array_equal(next(open_source(str(tmp_path / "a.npy"))), rows)
    np.testing.assert_array_equal(next(open_source(str(tmp_path / "a.npz"), array="y")), rows)
    assert list(open_source(str(tmp_path / "a.csv"))) == rows.tolist()
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1, 2]\n\nnoise\n[3, 4]\n"))
    assert list(open_source("-")) == [[1, 2], "noise\n", [3, 4]]


def test_a_bad_csv_row_is_passed_on_to_be_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n3,x\n")
    assert list(open_source(str(tmp_path / "a.csv"))) == [[1.0, 2.0], ["3", "x"]]


def test_sources_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "a.npy").write_bytes(b"rubbish")
    np.savez(tmp_path / "a.npz", x=[1], y=[2])
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name, problem in (
        ("none.csv", "does not exist"),
        ("a.txt", "expected .npy"),
        ("a.npy", "cannot be read"),
        ("a.npz", "holds x, y; name one"),
        ("pickled.npy", "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=problem):
            open_source(str(tmp_path / name))
    assert load_array(tmp_path / "a.npz", "x").tolist() == [1]


def test_pacing_keeps_the_rate_and_the_order() -> None:
    start = time.monotonic()
    rows = list(paced([np.arange(10).reshape(5, 2), [9, 9]], 100))
    assert len(rows) == 6 and time.monotonic() - start >= 0.05
    with pytest.raises(InputError, match="not positive"):
        list(paced([[1]], 0))
