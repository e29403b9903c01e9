from libc.math cimport fabs
from libc.stdint cimport uint64_t


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
cdef object finite_array(object owner, object values, str name, int dimensions)
cdef Py_ssize_t ring_place(object place, Py_ssize_t used, Py_ssize_t window) except -1


cdef inline bint usable(double x) noexcept nogil:
    """Neither NaN nor infinite, and small enough that sums of its square stay finite: one comparison."""
    return fabs(x) <= 1e140


cdef const double* take_row(object row, Py_ssize_t d, Py_buffer* view, double* scratch) except NULL


cdef inline Py_ssize_t count_below(const double* points, Py_ssize_t n, double x) noexcept nogil:
    """How many of n sorted points are below x, by bisection."""
    cdef Py_ssize_t low = 0, high = n, middle
    while low < high:
        middle = (low + high) >> 1
        if points[middle] < x:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline uint64_t random64(uint64_t* state) noexcept nogil:
    """SplitMix64 (Steele, Lea, Flood, OOPSLA 2014)."""
    cdef uint64_t z
    state[0] += <uint64_t>0x9E3779B97F4A7C15
    z = state[0]
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)
