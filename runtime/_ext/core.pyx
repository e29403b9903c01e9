"""What the statistics and the detectors share: their common root, blocks of numbers, the bytes of a state.

A state is msgpack `[class, version, parameters, fields]`; floats travel as IEEE 754 doubles and arrays as their
little-endian bytes, so a restored object goes on bit for bit.
"""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.math cimport isnan
from libc.stdlib cimport calloc
from libc.string cimport memcpy

import sys

import msgpack
import numpy as np

from tinylcm.errors import ConfigError, InputError

STATE_BYTES_MAX = 64 << 20

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("tinylcm needs a little-endian machine")


cdef class Streaming:
    """Root of the statistics and detectors: something that reads a stream and survives a restart."""

    state_version = 1

    cdef list _config(self):
        """The constructor's arguments."""
        return []

    cdef list _fields(self):
        """Everything seen."""
        return []

    cdef int _load(self, list fields) except -1:
        """Take back what `_fields` gave; ValueError when it cannot be."""
        return 0

    def to_state(self):
        """Parameters and everything seen, as bytes for `from_state`."""
        kind = type(self)
        return msgpack.packb([kind.__name__, kind.state_version, self._config(), self._fields()])

    @classmethod
    def from_state(cls, state):
        """The object that gave these bytes; it goes on bit for bit.

        Raises:
            InputError: no bytes, damaged, or of another class or version.
        """
        cdef Streaming self
        name = cls.__name__
        if not isinstance(state, (bytes, bytearray, memoryview)):
            raise InputError(f"the state of a {name} is bytes, got {type(state).__name__}")
        if len(state) > STATE_BYTES_MAX:
            raise InputError(f"the state of a {name} has {len(state)} bytes, more than {STATE_BYTES_MAX}")
        try:
            document = msgpack.unpackb(state, strict_map_key=True)
        except Exception as error:  # msgpack raises several, some without a base of their own
            raise damaged(name, error) from None
        if not isinstance(document, list) or len(document) != 4:
            raise damaged(name, "no class, version, parameters and fields")
        kind, version, config, fields = document
        if kind != name:
            raise InputError(f"expected the state of a {name}, got that of a {str(kind)[:40]}")
        if version != cls.state_version:
            raise InputError(
                f"the state of this {name} has version {str(version)[:20]}, this release reads {cls.state_version}"
            )
        if not isinstance(config, list) or not isinstance(fields, list):
            raise damaged(name, "no parameters and fields")
        try:
            self = cls(*config)
            self._load(fields)
        except (ConfigError, TypeError, ValueError, OverflowError, IndexError, MemoryError) as error:
            raise damaged(name, error) from None
        return self

    def __reduce__(self):
        return type(self).from_state, (self.to_state(),)


def damaged(kind, why):
    """The error for bytes that are no state of this class."""
    return InputError(f"the state of a {kind} is damaged ({why}); begin with a new one")


cdef int take_doubles(object values, Py_buffer* view) except -1:
    """View a one-dimensional block as contiguous doubles; the caller releases it.

    The buffer protocol itself, not a typed memoryview: it costs a tenth, which counts for short blocks.
    """
    try:
        PyObject_GetBuffer(values, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        if view.ndim == 1 and view.itemsize == 8 and view.format != NULL and view.format[0] == c"d":
            return 0
        PyBuffer_Release(view)
    except (TypeError, BufferError, ValueError):
        pass
    PyObject_GetBuffer(doubles(values, 1), view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    return 0


def doubles(values, dimensions):
    """A contiguous float64 array of what was given, of so many dimensions. Raises InputError."""
    try:
        array = np.asarray(values, dtype=np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise InputError(f"expected numbers, got {type(values).__name__}: {error}") from None
    if dimensions == 1 and array.ndim != 1 or dimensions == 2 and array.ndim not in (1, 2):
        shape = "a one-dimensional block" if dimensions == 1 else "a row or a block of rows"
        raise InputError(f"expected {shape}, got shape {list(np.shape(values))}")
    return array


cdef class Block:
    """A row or rows as contiguous doubles, released with the object."""

    def __dealloc__(self):
        if self._kept is not None:
            PyBuffer_Release(&self._view)

    cdef int take(self, object values, int dimensions) except -1:
        self._kept = doubles(values, dimensions)
        try:
            PyObject_GetBuffer(self._kept, &self._view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
        except BaseException:
            self._kept = None
            raise
        self.data = <const double*>self._view.buf
        self.rows = self._view.shape[0] if self._view.ndim == 2 else 1
        self.columns = self._view.shape[self._view.ndim - 1]
        return 0


cdef bytes as_bytes(const void* data, Py_ssize_t size):
    return PyBytes_FromStringAndSize(<const char*>data, size)


cdef int restore(void* target, object source, Py_ssize_t size) except -1:
    """Copy exactly `size` bytes of a state."""
    if not isinstance(source, bytes) or PyBytes_GET_SIZE(source) != size:
        raise ValueError(f"an array of {size} bytes is missing")
    if size:
        memcpy(target, PyBytes_AS_STRING(source), <size_t>size)
    return 0


cdef void* allocate(Py_ssize_t count, size_t size) except NULL:
    """Zeroed memory; free() gives it back."""
    cdef void* place = calloc(<size_t>count if count > 0 else 1, size)
    if place is NULL:
        raise MemoryError(f"no memory for {count} entries")
    return place


cdef long long natural(object value, long long most=4611686018427387904) except -1:
    """A count of a state: an integer of 0 to `most`."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("a count is out of range")
    return value


cdef double number(object value) except? -1:
    """A float of a state; NaN is none."""
    if type(value) is not float:
        raise ValueError("a number is missing")
    if isnan(<double>value):
        raise ValueError("a number is NaN")
    return value


cdef object finite_array(object owner, object values, str name, int dimensions):
    """Finite numbers of a constructor's argument as float64, or ConfigError."""
    kind = type(owner).__name__
    try:
        array = np.array(values, dtype=np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{kind}: {name} must be numbers: {error}") from None
    if array.ndim != dimensions or not array.size or not np.all(np.abs(array) <= 1e140):
        raise ConfigError(f"{kind}: {name} must be finite numbers in {dimensions} dimension(s)")
    return array


cdef Py_ssize_t ring_place(object place, Py_ssize_t used, Py_ssize_t window) except -1:
    """Where a ring of a state goes on: behind what it holds until it is full."""
    cdef Py_ssize_t result = natural(place, window - 1)
    if used < window and result != used:
        raise ValueError("a ring has a hole")
    return result


cdef const double* take_row(object row, Py_ssize_t d, Py_buffer* view, double* scratch) except NULL:
    """A row of d float64 or float32 values without a copy of the object; the caller releases the view."""
    cdef Py_ssize_t j
    try:
        PyObject_GetBuffer(row, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    except (TypeError, BufferError, ValueError):
        pass
    else:
        if view.ndim == 1 and view.shape[0] == d and view.format != NULL:
            if view.itemsize == 8 and view.format[0] == c"d":
                return <const double*>view.buf
            if view.itemsize == 4 and view.format[0] == c"f":
                for j in range(d):
                    scratch[j] = (<const float*>view.buf)[j]
                return scratch
        PyBuffer_Release(view)
    array = doubles(row, 1)
    if array.size != d:
        raise InputError(f"expected a row of {d} values, got {array.size}")
    PyObject_GetBuffer(array, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)
    return <const double*>view.buf
