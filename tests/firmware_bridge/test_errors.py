"""Errors of the bridge: one family, with the protocol's codes by name."""

from __future__ import annotations

import pytest
from tinylcm.errors import TinyLCMError

from firmware_bridge import errors


def test_whoever_catches_tinylcm_errors_catches_those_of_the_bridge() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) >= 7
    for kind in kinds:
        assert issubclass(kind, TinyLCMError)


@pytest.mark.parametrize(("code", "words"), [(6, "HASH (not equal)"), (77, "code 77 (not equal)")])
def test_a_refusal_names_its_code(code: int, words: str) -> None:
    assert str(errors.RefusedError("MODEL_COMMIT", code, "not equal")) == f"the board refused MODEL_COMMIT: {words}"
