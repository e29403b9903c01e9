"""Text for people, JSON for scripts."""

from __future__ import annotations

import argparse
import json

import pytest
from tinysphere.output import emit


def test_json_is_one_document_and_text_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    emit(argparse.Namespace(json=True), {"a": [1]}, "a is 1")
    emit(argparse.Namespace(json=False), {"a": [1]}, "a is 1")
    first, second = capsys.readouterr().out.splitlines()
    assert json.loads(first) == {"a": [1]} and second == "a is 1"
