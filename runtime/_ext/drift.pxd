# What the windowed detectors build upon.
from .core cimport Streaming

cdef enum:
    POLICY_RESET = 0
    POLICY_REBASE = 1
    POLICY_LATCH = 2


cdef class Detector(Streaming):
    cdef readonly long long index, ignored, n_detections, suspect
    cdef readonly bint drift_detected, warning_detected
    cdef bint _armed, _over, _latched
    cdef int _policy
    cdef int _take(self, double x) noexcept nogil
    cdef int _step(self, double x) noexcept nogil
    cdef void _begin(self) noexcept nogil
    cdef void _judge(self, double statistic, double threshold) noexcept nogil
    cdef void _settle(self) noexcept nogil
    cdef double _value(self)
    cdef double _limit(self)
    cdef list _own(self)
    cdef int _own_load(self, list fields) except -1
    cdef int _set_policy(self, object policy) except -1
