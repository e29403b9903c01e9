# What other extensions build upon.
from .core cimport Streaming


cdef class Statistic(Streaming):
    cdef readonly long long count, ignored
    cdef void _push(self, double x) noexcept nogil
    cdef void _push_many(self, const double* x, Py_ssize_t n) noexcept nogil


cdef enum:
    STAGES = 4  # load, run, post, monitors
    BUCKETS = 108  # of a latency histogram


cdef class MetricsRing:
    cdef double* _latency
    cdef double* _confidence
    cdef int* _label
    cdef long long* _counts
    cdef long long[STAGES + 1][BUCKETS] _histograms
    cdef double[STAGES + 1] _sums
    cdef Py_ssize_t _place
    cdef readonly Py_ssize_t capacity, labels
    cdef readonly long long total
    cdef readonly object latency_us, confidence
    cdef Statistic _latency_moments, _latency_sketch, _confidence_moments, _confidence_sketch
    cdef void put(self, const double* stages_us, Py_ssize_t stages, double latency_us, double confidence,
                  int label) noexcept nogil
