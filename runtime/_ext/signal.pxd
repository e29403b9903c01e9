cdef class Plan:
    cdef readonly Py_ssize_t samples, channels, size, itemsize
    cdef readonly tuple shape
    cdef readonly str dtype
    cdef readonly bint identity
    cdef list _ops
    cdef void** _steps  # the same, for use without the GIL
    cdef Py_ssize_t _count, _period
    cdef float* _a
    cdef float* _b
    cdef double* _gain
    cdef double* _offset
    cdef double _low, _high
    cdef int _kind, _zero_point
    cdef Py_ssize_t run(self, const float* head, Py_ssize_t head_rows, const float* tail, Py_ssize_t tail_rows,
                        void* out) noexcept nogil
    cdef Py_ssize_t _append(self, object op) except -1
    cdef int _finish(self, object gain, object offset, double low, double high, double factor) except -1
    cdef void _write(self, const float* x, Py_ssize_t n, Py_ssize_t at, void* out) noexcept nogil
