"""The errors' family."""

from __future__ import annotations

import pytest
import tinylcm
from tinylcm import errors


def test_every_error_is_a_tinylcm_error_and_says_whose_fault_it_is() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(classes) >= 8
    assert all(issubclass(cls, errors.TinyLCMError) and cls.__doc__ for cls in classes)
    assert issubclass(tinylcm.InputError, ValueError)


def test_a_server_error_tells_how_long_to_wait() -> None:
    with pytest.raises(tinylcm.ServerError) as caught:
        raise tinylcm.ServerError("busy", retry_after_s=5)
    assert caught.value.retry_after_s == 5 and not caught.value.permanent
