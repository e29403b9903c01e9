from libc.math cimport fabs


# What the statistics and the detectors share: their common root, blocks of numbers, bytes of a state.
cdef class Streaming:
    cdef list _config(self)
    cdef list _fields(self)
    cdef int _load(self, list fields) except -1


cdef class Block:
    cdef const double* data
    cdef Py_ssize_t rows, columns
    cdef Py_buffer _view
    cdef object _kept
    cdef int take(self, object values, int dimensions) except -1


cdef int take_doubles(object values, Py_buffer* view) except -1
cdef bytes as_bytes(const void* data, Py_ssize_t size)
cdef int restore(void* target, object source, Py_ssize_t size) except -1
cdef void* allocate(Py_ssize_t count, size_t size) except NULL
cdef long long natural(object value, long long most=*) except -1
cdef double number(object value) except? -1
cdef Py_ssize_t ring_place(object place, Py_ssize_t used, Py_ssize_t window) except -1


cdef inline bint usable(double x) noexcept nogil:
    """Neither NaN nor infinite, and small enough that sums of its square stay finite: one comparison."""
    return fabs(x) <= 1e140


cdef const double* take_row(object row, Py_ssize_t d, Py_buffer* view, double* scratch) except NULL
