# What other extensions build upon.
from .core cimport Streaming


cdef class Statistic(Streaming):
    cdef readonly long long count, ignored
    cdef void _push(self, double x) noexcept nogil
    cdef void _push_many(self, const double* x, Py_ssize_t n) noexcept nogil
