"""Errors and their answers."""

from __future__ import annotations

import tinylcm
from tinysphere import errors


def test_every_error_has_an_answer() -> None:
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.TinySphereError)
    ]
    assert len(classes) >= 12
    for kind in classes:
        problem = errors.problem_of(kind("what happened"))
        assert 400 <= problem.status < 600 and problem.slug and problem.title


def test_the_nearest_parent_answers_and_a_stranger_is_our_fault() -> None:
    assert errors.problem_of(errors.NotFoundError("x")).status == 404
    assert errors.problem_of(tinylcm.ModelError("x")).status == 422
    assert errors.problem_of(tinylcm.DeviceError("x")).status == 500
    assert errors.problem_of(RuntimeError("x")) == errors.UNEXPECTED
