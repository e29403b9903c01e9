cdef class Prediction:
    cdef readonly object label, model, version, variant, drift, outputs, stages_us
    cdef readonly double confidence, latency_us, load_us, run_us, post_us, monitors_us, start_s, end_s
    cdef readonly long long first_sample, last_sample, filled
    cdef readonly bint event
    cdef object _session, _id, _labels, _scores
    cdef long long _number
    cdef float* _values
    cdef Py_ssize_t _count
    cdef int _keep(self, const float* scores, Py_ssize_t count) except -1
