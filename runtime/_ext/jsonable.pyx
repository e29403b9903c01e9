"""Whether a value is JSON as it is, and how long at most, judged without making text of it."""

from cpython.dict cimport PyDict_Next
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.ref cimport PyObject
from libc.math cimport isfinite

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    long long PyLong_AsLongLongAndOverflow(object number, int* overflow) except? -1

# The longest forms: \u0000 for a character, -1.7976931348623157e+308 with a comma, -9223372036854775808 with one.
cdef enum:
    CHARACTER_BYTES = 6
    NUMBER_BYTES = 25
    MARKS_BYTES = 3


cdef Py_ssize_t _text(str text) except -2:
    if not PyUnicode_IS_ASCII(text):
        try:
            text.encode()
        except UnicodeEncodeError:
            return -1
    return CHARACTER_BYTES * PyUnicode_GET_LENGTH(text) + MARKS_BYTES


cdef Py_ssize_t json_size(object value, int depth) except -2:
    cdef Py_ssize_t total = MARKS_BYTES, part, index = 0
    cdef PyObject* key
    cdef PyObject* item
    cdef int overflow = 0
    kind = type(value)
    if kind is float:
        return NUMBER_BYTES if isfinite(<double>value) else -1
    if kind is str:
        return _text(<str>value)
    if value is None or kind is bool:
        return MARKS_BYTES + 3
    if kind is int:
        PyLong_AsLongLongAndOverflow(value, &overflow)
        return -1 if overflow else NUMBER_BYTES
    if depth < 0:
        return -1
    if kind is dict:
        while PyDict_Next(value, &index, &key, &item):
            if type(<object>key) is not str:
                return -1
            part = _text(<str><object>key)
            if part < 0:
                return -1
            total += part + 1
            part = json_size(<object>item, depth - 1)
            if part < 0:
                return -1
            total += part
        return total
    if kind is list:
        for index in range(PyList_GET_SIZE(value)):
            part = json_size(<object>PyList_GET_ITEM(value, index), depth - 1)
            if part < 0:
                return -1
            total += part
        return total
    return -1


def json_bytes_max(value, int depth_max) -> int:
    """How many bytes a value takes at most as JSON in UTF-8 without blanks.

    Args:
        value: anything.
        depth_max: lists and dicts within each other.

    Returns:
        An upper bound, or -1 when the value cannot be said in JSON as it is: another type than dict, list, str, int,
        float, bool and None, a key that is no text, a number that is not finite or an integer of more than 64 bits,
        half a surrogate pair, or nested too deep.
    """
    return json_size(value, depth_max)
