"""The ring of samples and its windows: rows go in, a window comes out in one copy."""

from cpython.float cimport PyFloat_AsDouble
from cpython.list cimport PyList_CheckExact, PyList_GET_ITEM, PyList_GET_SIZE
from cpython.tuple cimport PyTuple_CheckExact, PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.math cimport isfinite
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

cimport cython

# What `push` answers; `runtime/window.py` turns the negative ones into sentences.
OK = 0
DUE = 1
BAD_LENGTH = -1
BAD_TYPE = -2
NOT_FINITE = -3


@cython.final
cdef class Ring:
    """Samples of `channels` float32 values; every `hop` samples a window of `window` samples is due."""

    cdef float* _data
    cdef Py_ssize_t _next, _filled
    cdef readonly Py_ssize_t capacity, channels, window, hop
    cdef readonly Py_ssize_t bad_channel
    cdef readonly long long total
    cdef readonly bint due

    def __cinit__(self, Py_ssize_t capacity, Py_ssize_t channels, Py_ssize_t window, Py_ssize_t hop):
        if channels < 1 or window < 1 or hop < 1 or capacity < window or capacity > (1 << 40) // (channels * 4):
            raise ValueError("a ring needs channels, window, hop >= 1 and capacity >= window")
        self._data = <float*>malloc(<size_t>capacity * <size_t>channels * sizeof(float))
        if self._data is NULL:
            raise MemoryError(f"no memory for a ring of {capacity} samples of {channels} channels")
        self.capacity = capacity
        self.channels = channels
        self.window = window
        self.hop = hop
        self.bad_channel = -1

    def __dealloc__(self):
        free(self._data)

    cdef inline void _accept(self) noexcept nogil:
        self._next += 1
        if self._next == self.capacity:
            self._next = 0
        self._filled += 1
        self.total += 1
        self.due = self._filled >= self.window and (self._filled - self.window) % self.hop == 0

    def push(self, row):
        """Take one sample, a list or tuple of numbers; a refused one changes nothing."""
        cdef Py_ssize_t i, size
        cdef bint is_list = PyList_CheckExact(row)
        cdef float* place = self._data + self._next * self.channels
        cdef double value
        if not is_list and not PyTuple_CheckExact(row):
            return BAD_TYPE
        size = PyList_GET_SIZE(row) if is_list else PyTuple_GET_SIZE(row)
        if size != self.channels:
            self.bad_channel = size
            return BAD_LENGTH
        for i in range(size):
            try:
                value = PyFloat_AsDouble(<object>(PyList_GET_ITEM(row, i) if is_list else PyTuple_GET_ITEM(row, i)))
            except (TypeError, OverflowError):
                self.bad_channel = i
                return BAD_TYPE
            if not isfinite(<float>value):  # also refuses what float32 cannot hold
                self.bad_channel = i
                return NOT_FINITE
            place[i] = <float>value
        self._accept()
        return DUE if self.due else OK

    def push_block(self, const float[:, ::1] block not None, Py_ssize_t start=0):
        """Take rows from `start` on until a window is due, the block ends or a row is not finite.

        Returns the index of the first row not taken; `due` says whether a window is due, `bad_channel` is the
        channel that stopped it, or -1.
        """
        cdef Py_ssize_t rows = block.shape[0], i = start, j
        cdef float* place
        cdef bint fine
        self.bad_channel = -1
        self.due = False
        if block.shape[1] != self.channels:
            raise ValueError(f"the block has {block.shape[1]} channels, the ring {self.channels}")
        if start < 0:
            raise ValueError("start must not be negative")
        with nogil:
            while i < rows and not self.due:
                fine = True
                for j in range(self.channels):
                    if not isfinite(block[i, j]):
                        self.bad_channel = j
                        fine = False
                        break
                if not fine:
                    break
                place = self._data + self._next * self.channels
                memcpy(place, &block[i, 0], <size_t>self.channels * sizeof(float))
                self._accept()
                i += 1
        return i

    def restart(self):
        """Forget what was collected: no window may span a gap."""
        self._filled = 0
        self.due = False

    def copy_window(self, float[:, ::1] out not None):
        """Write the newest `window` samples into `out`, `[window, channels]`, oldest first."""
        cdef Py_ssize_t first, head, row = self.channels
        if out.shape[0] != self.window or out.shape[1] != self.channels:
            raise ValueError(f"expected [{self.window}, {self.channels}], got [{out.shape[0]}, {out.shape[1]}]")
        if self._filled < self.window:
            raise ValueError("the ring does not hold a whole window yet")
        first = self._next - self.window
        if first >= 0:
            memcpy(&out[0, 0], self._data + first * row, <size_t>(self.window * row) * sizeof(float))
            return
        first += self.capacity
        head = self.capacity - first
        memcpy(&out[0, 0], self._data + first * row, <size_t>(head * row) * sizeof(float))
        if self.window > head:
            memcpy(&out[head, 0], self._data, <size_t>((self.window - head) * row) * sizeof(float))


def copy_finite(const float[::1] source not None, float[::1] out not None):
    """Copy values of one window into the input tensor; the index of the first that is not finite, or -1."""
    cdef Py_ssize_t i, bad = -1, size = source.shape[0]
    cdef float total = 0
    if out.shape[0] != size:
        raise ValueError(f"expected {out.shape[0]} values, got {size}")
    if size == 0:
        return -1
    with nogil:
        memcpy(&out[0], &source[0], <size_t>size * sizeof(float))
        for i in range(size):
            total += source[i] * 0.0  # stays 0 unless something is NaN or infinite: no branch in the loop
        if not isfinite(total):
            for i in range(size):
                if not isfinite(source[i]):
                    bad = i
                    break
    return bad
