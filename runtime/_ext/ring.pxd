cdef struct Cut:
    # Where a reader stands: plain memory, so that the ring moves it on without the interpreter.
    Py_ssize_t window, hop, left
    bint due
    long long first, last, filled
    double start, end


cdef class Ring:
    cdef float* _data
    cdef double* _times
    cdef unsigned char* _marks
    cdef float* _incoming  # the row that waits while those before it are filled in
    cdef Py_ssize_t _next
    cdef readonly Py_ssize_t capacity, channels, bad_channel
    cdef readonly long long total, changes, missing, dropped, filled, late, duplicates, gaps, restarts
    cdef readonly bint due
    cdef readonly list readers
    cdef Cut* _cuts
    cdef Py_ssize_t _count
    cdef long long _last_mark, _held
    cdef double _period, _jitter, _time, _incoming_time
    cdef int _missing, _late, _duplicate
    cdef long long _gap_max, _fill, _lost
    cdef bint _waiting, _mark_incoming, _begun
    cdef void _accept(self, const float* row, double time, bint marked) noexcept nogil
    cdef void _move_on(self, Py_ssize_t rows) noexcept nogil
    cdef Py_ssize_t _accept_run(self, const float* rows, Py_ssize_t count) noexcept nogil
    cdef void _take(self, Cut* cut) noexcept nogil
    cdef void _begin_anew(self) noexcept nogil
    cdef bint _drain(self) noexcept nogil
    cdef void _receive(self, double time) noexcept nogil
    cdef void _refuse(self) noexcept nogil
    cdef const float* _newest(self) noexcept nogil
    cdef void _come_again(self, bint late) noexcept nogil
    cdef void _hold(self) noexcept nogil
    cdef int _push(self, double time) noexcept nogil
    cdef int _load(self, row) except? -1


cdef class Reader:
    cdef readonly Ring ring
    cdef Cut* _cut
    cdef void segments(self, const float** head, Py_ssize_t* head_rows, const float** tail,
                       Py_ssize_t* tail_rows) noexcept nogil
