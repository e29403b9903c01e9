"""The ring of samples and its readers: rows go in, windows come out, also where rows are missing, late or doubled."""

from cpython.float cimport PyFloat_AsDouble, PyFloat_CheckExact
from cpython.list cimport PyList_CheckExact, PyList_GET_ITEM, PyList_GET_SIZE
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_CheckExact, PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.math cimport NAN, isfinite, isnan, rint
from libc.stdint cimport uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cimport cython

# What `push` answers; `runtime/window.py` turns the negative ones into sentences.
cdef enum:
    TAKEN = 0
    LENGTH = -1
    TYPE = -2
    FINITE = -3
    TIME = -4
    ROWS = -5

OK, BAD_LENGTH, BAD_TYPE, NOT_FINITE, BAD_TIME, NESTED = TAKEN, LENGTH, TYPE, FINITE, TIME, ROWS
READERS_MAX = 16
MISSING = ("drop", "hold", "interpolate", "mark")
REPEATED = ("drop", "mark")
cdef enum:
    DROP = 0
    HOLD = 1
    INTERPOLATE = 2
    MARK = 3


cdef inline uint32_t beyond(uint32_t bits) noexcept nogil:
    """The highest bit tells an exponent of all ones: integers, because compilers vectorise their reductions."""
    return (bits & 0x7fffffffu) + 0x00800000u


cdef inline bint all_finite(const float* x, Py_ssize_t n) noexcept nogil:
    """Whether no value is NaN or infinite; four quarters at a time, so that the loop itself costs little."""
    cdef const uint32_t* bits = <const uint32_t*>x
    cdef uint32_t a = 0, b = 0, c = 0, d = 0
    cdef Py_ssize_t i, quarter = n // 4
    for i in range(quarter):
        a |= beyond(bits[i])
        b |= beyond(bits[quarter + i])
        c |= beyond(bits[2 * quarter + i])
        d |= beyond(bits[3 * quarter + i])
    for i in range(4 * quarter, n):
        a |= beyond(bits[i])
    return not (a | b | c | d) >> 31


cdef inline bint is_nested(item):
    """A row's first item is a row itself."""
    if PyFloat_CheckExact(item) or PyLong_CheckExact(item):
        return False
    return isinstance(item, (list, tuple)) or (hasattr(item, "__len__") and not isinstance(item, (str, bytes)))


@cython.final
cdef class Ring:
    """Samples of `channels` float32 values, each with its time where it has one.

    Args:
        capacity: samples kept; at least the largest window of its readers.
        channels: values a sample.
        rate_hz: the expected rate; 0 when it is not known, and then no sample is ever missed.
        missing: `drop` begins every window anew after a gap; `hold` repeats the sample before, `interpolate` draws a
            line to the next one, `mark` holds: all three count in `Reader.filled`.
        late, duplicate: `drop`, or `mark`: taken as the next sample, and counted in `Reader.filled`.
        gap_max: more missing samples than these begin anew whatever the policy, and so does a clock that jumps back
            by more.
        jitter: share of a period by which a sample may come early or late.

    A reader that is due must be read before the next row is taken: `push`, `push_block` and `advance` stop there.
    """

    def __cinit__(self, Py_ssize_t capacity, Py_ssize_t channels, double rate_hz=0.0, str missing="drop",
                  str late="drop", str duplicate="drop", long long gap_max=0, double jitter=0.5):
        if not 1 <= channels <= 1 << 30 or not 1 <= capacity <= (1 << 40) // (channels * 4):
            raise ValueError(f"a ring of {capacity} samples of {channels} channels: expected at least 1, in all 1 TiB")
        if missing not in MISSING or late not in REPEATED or duplicate not in REPEATED:
            raise ValueError(f"missing is one of {', '.join(MISSING)}; late and duplicate one of {', '.join(REPEATED)}")
        if not rate_hz >= 0 or not 0 < jitter < 1 or gap_max < 0:
            raise ValueError("expected rate_hz >= 0, 0 < jitter < 1 and gap_max >= 0")
        self._data = <float*>calloc(<size_t>capacity * <size_t>channels, sizeof(float))
        self._times = <double*>calloc(capacity, sizeof(double))
        self._marks = <unsigned char*>calloc(capacity, 1)
        self._incoming = <float*>calloc(channels, sizeof(float))
        self._cuts = <Cut*>calloc(READERS_MAX, sizeof(Cut))
        if not self._data or not self._times or not self._marks or not self._incoming or not self._cuts:
            raise MemoryError(f"no memory for a ring of {capacity} samples of {channels} channels")
        self.capacity, self.channels = capacity, channels
        self.bad_channel = -1
        self.readers = []
        self._period = 1 / rate_hz if rate_hz else 0
        self._jitter = jitter
        self._missing, self._late, self._duplicate = MISSING.index(missing), late == "mark", duplicate == "mark"
        self._gap_max = gap_max or capacity
        self._last_mark = -1
        self._time = NAN

    def __dealloc__(self):
        free(self._data)
        free(self._times)
        free(self._marks)
        free(self._incoming)
        free(self._cuts)

    # rows into the ring -------------------------------------------------------------------------------------

    cdef void _accept(self, const float* row, double time, bint marked) noexcept nogil:
        memcpy(self._data + self._next * self.channels, row, <size_t>self.channels * sizeof(float))
        self._times[self._next] = time
        self._marks[self._next] = marked
        if marked:
            self._last_mark = self.total
        self._move_on(1)

    cdef Py_ssize_t _accept_run(self, const float* rows, Py_ssize_t count) noexcept nogil:
        """Take rows without times as far as no reader is due, nothing wraps and all is finite; how many."""
        cdef Py_ssize_t i, n = min(count, self.capacity - self._next), row = self.channels
        for i in range(self._count):
            n = min(n, self._cuts[i].left)
        if not all_finite(rows, n * row):
            for i in range(n):
                if not all_finite(rows + i * row, row):
                    n = i
                    break
        if n == 0:
            return 0
        memcpy(self._data + self._next * row, rows, <size_t>(n * row) * sizeof(float))
        for i in range(self._next, self._next + n):
            self._times[i] = NAN
        memset(self._marks + self._next, 0, <size_t>n)
        self._time = NAN
        self._held = 0
        self._move_on(n)
        return n

    cdef void _move_on(self, Py_ssize_t rows) noexcept nogil:
        """So many rows were written; no reader is due before the last of them."""
        cdef Py_ssize_t i
        self._next += rows
        if self._next == self.capacity:
            self._next = 0
        self.total += rows
        self._begun = True
        for i in range(self._count):
            self._cuts[i].left -= rows
            if self._cuts[i].left == 0:
                self._take(&self._cuts[i])

    cdef void _take(self, Cut* cut) noexcept nogil:
        """A window is complete with the row that has just come."""
        cdef Py_ssize_t at = self._next - cut.window, i
        if at < 0:
            at += self.capacity
        self.due = cut.due = True
        cut.left = cut.hop
        cut.last, cut.first = self.total - 1, self.total - cut.window
        cut.start, cut.end = self._times[at], self._times[self._next - 1 if self._next else self.capacity - 1]
        cut.filled = 0
        if self._last_mark >= cut.first:
            for i in range(at, at + cut.window):
                cut.filled += self._marks[i if i < self.capacity else i - self.capacity]

    cdef void _begin_anew(self) noexcept nogil:
        """No window may span what is missing here."""
        cdef Py_ssize_t i
        if self._begun:
            self.restarts += 1
            self.changes += 1
        self._begun = False
        self._fill = self._lost = self._held = 0
        for i in range(self._count):
            self._cuts[i].left = self._cuts[i].window
            self._cuts[i].due = False

    cdef const float* _newest(self) noexcept nogil:
        return self._data + (self._next - 1 if self._next else self.capacity - 1) * self.channels

    cdef void _receive(self, double time) noexcept nogil:
        """A good row has come into `_incoming`: what has to stand before it, and whether it is taken at all."""
        cdef double steps
        cdef long long lost = self._lost
        self._mark_incoming = False
        self._waiting = True
        self._incoming_time = time
        self._fill = lost
        self._lost = self._held = 0
        if self._begun and not isnan(time) and not isnan(self._time):
            steps = (time - self._time) / self._period if self._period else (2 if time > self._time else 0)
            if steps < -<double>self._gap_max or (not self._period and time < self._time - 86400):
                self.gaps += 1  # a clock was set back
                self._begin_anew()
            elif steps < 1 - self._jitter:
                self._come_again(steps <= self._jitter - 1 or (not self._period and time < self._time))
            elif self._period and steps > 1 + self._jitter:
                # A gap beyond the greatest may be a clock that was set: it counts as one more than that.
                self._fill = <long long>rint(steps) - 1 if steps < self._gap_max + 2.0 else self._gap_max + 1
                self.missing += self._fill - lost if self._fill > lost else 0
        if self._fill and self._waiting and (
            self._missing == DROP or self._fill > self._gap_max or not self._begun
        ):
            self.gaps += 1
            self.changes += 1
            self._begin_anew()

    cdef void _come_again(self, bint late) noexcept nogil:
        """A sample whose time is not after the last one's."""
        if late:
            self.late += 1
            self.changes += 1
        else:
            self.duplicates += 1
            self.changes += 1
        self._fill = 0
        if self._late if late else self._duplicate:
            self._mark_incoming = True
            self._incoming_time = self._time
        else:
            self._waiting = False
            self.dropped += 1
            self.changes += 1

    cdef void _refuse(self) noexcept nogil:
        """A row that cannot be used stands for a missing one."""
        self.dropped += 1
        self.changes += 1
        self.missing += 1
        if not self._begun:
            return
        if self._missing == DROP or self._held + self._lost >= self._gap_max:
            self.gaps += 1
            self.changes += 1
            self._begin_anew()
        elif self._missing == INTERPOLATE:
            self._lost += 1
        else:
            self._held += 1
            self._hold()

    cdef void _hold(self) noexcept nogil:
        """Take the newest row once more."""
        cdef double time = self._time + self._period if self._period else self._time
        memcpy(self._incoming, self._newest(), <size_t>self.channels * sizeof(float))
        self.filled += 1
        self.changes += 1
        self._time = time
        self._accept(self._incoming, time, True)

    cdef bint _drain(self) noexcept nogil:
        """Take what waits, until a reader is due."""
        cdef double share
        cdef float* place
        cdef const float* before
        cdef Py_ssize_t j
        cdef double time
        while self._waiting and not self.due:
            if self._fill == 0:
                self._waiting = False
                self._time = self._incoming_time
                self._accept(self._incoming, self._incoming_time, self._mark_incoming)
                break
            before = self._newest()
            place = self._data + self._next * self.channels
            share = 1.0 / (self._fill + 1)
            for j in range(self.channels):
                place[j] = before[j]
                if self._missing == INTERPOLATE:
                    place[j] = <float>(before[j] + (<double>self._incoming[j] - before[j]) * share)
            time = self._times[self._next - 1 if self._next else self.capacity - 1]
            time += (self._incoming_time - time) * share
            self._fill -= 1
            self.filled += 1
            self.changes += 1
            self._accept(place, time, True)
        return self.due

    @property
    def pending(self):
        """Rows wait: call `advance` until none does."""
        return self._waiting

    def advance(self):
        """Go on after a reader was read; whether another is due."""
        self.due = False
        return self._drain()

    def push(self, row):
        """Take one sample, a list or tuple of numbers; OK, or what is wrong with it.

        NESTED is a list of rows: nothing was changed, `push_block` takes it as an array.
        """
        cdef int status = self._load(row)
        self.due = False
        if status == TAKEN:
            return self._push(NAN)
        if status != ROWS:
            self._refuse()
        return status

    def push_at(self, row, double time):
        """Take one sample with its time in seconds."""
        cdef int status = self._load(row)
        self.due = False
        if status == TAKEN:
            return self._push(time)
        self._refuse()
        return TYPE if status == ROWS else status

    cdef int _load(self, row) except? -1:
        """A row's numbers into `_incoming`; TAKEN, or what is wrong."""
        cdef Py_ssize_t i = 0, size
        cdef bint is_list = PyList_CheckExact(row)
        cdef double value
        cdef PyObject* item
        if not is_list and not PyTuple_CheckExact(row):
            return TYPE
        size = PyList_GET_SIZE(row) if is_list else PyTuple_GET_SIZE(row)
        if size and is_nested(row[0]):
            self.bad_channel = 0
            return ROWS
        if size != self.channels:
            self.bad_channel = size
            return LENGTH
        try:
            for i in range(size):
                item = PyList_GET_ITEM(row, i) if is_list else PyTuple_GET_ITEM(row, i)
                value = PyFloat_AsDouble(<object>item)
                if not isfinite(<float>value):  # also refuses what float32 cannot hold
                    self.bad_channel = i
                    return FINITE
                self._incoming[i] = <float>value
        except (TypeError, ValueError, OverflowError):
            self.bad_channel = i
            return TYPE
        return TAKEN

    cdef int _push(self, double time) noexcept nogil:
        if isnan(time) and not self._lost:
            self._time = NAN
            self._held = 0
            self._accept(self._incoming, NAN, False)
            return 0
        self._receive(time)
        self._drain()
        return 0

    def refuse(self):
        """Count a sample that was no row at all."""
        self.due = False
        self._refuse()

    def push_block(self, const float[:, ::1] block not None, times=None, Py_ssize_t start=0):
        """Take rows from `start` on until a reader is due, the block ends or a row cannot be used.

        Args:
            block: float32 `[n, channels]`.
            times: float64 `[n]` in seconds, or None.

        Returns:
            The index of the first row not taken. A row that cannot be used is counted as taken, and `bad_channel` is
            its first channel that is NaN or infinite, `channels` for a bad time, else -1.
        """
        cdef Py_ssize_t rows = block.shape[0], i = start, j, row = self.channels
        cdef const double[::1] at
        cdef bint timed = times is not None
        self.bad_channel = -1
        self.due = False
        if block.shape[1] != self.channels:
            raise ValueError(f"the block has {block.shape[1]} channels, the ring {self.channels}")
        if start < 0:
            raise ValueError("start must not be negative")
        if timed:
            at = times
            if at.shape[0] != rows:
                raise ValueError(f"{at.shape[0]} times for {rows} rows")
        with nogil:
            while i < rows and not self.due:
                if not timed and not self._lost:
                    i += self._accept_run(&block[i, 0], rows - i)
                    if self.due or i == rows:
                        break
                if timed and not isfinite(at[i]):
                    self.bad_channel = row
                elif not all_finite(&block[i, 0], row):
                    for j in range(row):
                        if not isfinite(block[i, j]):
                            self.bad_channel = j
                            break
                if self.bad_channel >= 0:
                    self._refuse()
                    i += 1
                    break
                memcpy(self._incoming, &block[i, 0], <size_t>row * sizeof(float))
                self._push(at[i] if timed else NAN)
                i += 1
        return i

    def restart(self):
        """Forget what was collected: no window may span a gap."""
        self.due = self._waiting = False
        self._begin_anew()


@cython.final
cdef class Reader:
    """Windows of one ring: the first when `window` samples have come, then every `hop`."""

    def __cinit__(self, Ring ring not None, Py_ssize_t window, Py_ssize_t hop):
        if window < 1 or hop < 1 or window > ring.capacity:
            raise ValueError("a reader needs a hop of at least 1 and a window of at least 1 and at most the ring")
        if ring._count >= READERS_MAX:
            raise ValueError(f"a ring has at most {READERS_MAX} readers")
        self.ring = ring
        self._cut = &ring._cuts[ring._count]
        self._cut.window, self._cut.hop, self._cut.left = window, hop, window
        self._cut.start = self._cut.end = NAN
        self._cut.first = self._cut.last = -1
        ring._count += 1
        ring.readers.append(self)

    @property
    def window(self):
        """Samples a window."""
        return self._cut.window

    @property
    def hop(self):
        """Samples from window to window."""
        return self._cut.hop

    @property
    def first_sample(self):
        """The window's first sample, counted from 0 over all that were taken or filled in."""
        return self._cut.first

    @property
    def last_sample(self):
        """The window's last sample."""
        return self._cut.last

    @property
    def start_s(self):
        """The time of the first sample; NaN for samples without."""
        return self._cut.start

    @property
    def end_s(self):
        """The time of the last sample."""
        return self._cut.end

    @property
    def filled(self):
        """Samples of the window that others stand in for, or that came late or twice and were marked."""
        return self._cut.filled

    def take(self):
        """Whether there is a window to read; asked once for each."""
        cdef bint due = self._cut.due
        self._cut.due = False
        return due

    cdef void segments(self, const float** head, Py_ssize_t* head_rows, const float** tail,
                       Py_ssize_t* tail_rows) noexcept nogil:
        """The newest `window` rows as two pieces of the ring, oldest first; the second may be empty."""
        cdef Py_ssize_t first = self.ring._next - self._cut.window, row = self.ring.channels
        tail[0], tail_rows[0] = self.ring._data, 0
        if first >= 0:
            head[0], head_rows[0] = self.ring._data + first * row, self._cut.window
            return
        first += self.ring.capacity
        head[0], head_rows[0] = self.ring._data + first * row, self.ring.capacity - first
        tail_rows[0] = self._cut.window - head_rows[0]

    def copy_window(self, float[:, ::1] out not None):
        """Write the window into `out`, float32 `[window, channels]`, oldest first."""
        cdef const float* head
        cdef const float* tail
        cdef Py_ssize_t head_rows, tail_rows, row = self.ring.channels
        if out.shape[0] != self._cut.window or out.shape[1] != row:
            raise ValueError(f"expected [{self._cut.window}, {row}], got [{out.shape[0]}, {out.shape[1]}]")
        if self.ring.total < self._cut.window:
            raise ValueError("the ring does not hold a whole window yet")
        self.segments(&head, &head_rows, &tail, &tail_rows)
        memcpy(&out[0, 0], head, <size_t>(head_rows * row) * sizeof(float))
        if tail_rows:
            memcpy(&out[head_rows, 0], tail, <size_t>(tail_rows * row) * sizeof(float))


def first_not_finite(const float[::1] values not None):
    """Index of the first value that is NaN or infinite, or -1."""
    cdef Py_ssize_t i, size = values.shape[0]
    if size == 0 or all_finite(&values[0], size):
        return -1
    for i in range(size):
        if not isfinite(values[i]):
            return i
    return -1
